"""TensorBoard's files, in which a run that goes on must find no point that it is going to write again."""
import os
import struct
from collections.abc import Callable, Iterator

from p2c.engine.files import write_atomically

HEADER, FOOTER = 12, 4  # bytes of a record before its content (length and checksum) and after it (checksum)


def cut_back(folder: str, keep: Callable[[str, int], bool]) -> None:
    """Drop the points for which `keep(tag, step)` is False from a folder's event files, and what a crash left half.

    Does nothing if tensorboard is not installed.
    """
    try:
        from google.protobuf.message import DecodeError
        from tensorboard.compat.proto.event_pb2 import Event
    except ImportError:
        return

    def kept(record: bytes) -> bool:
        try:
            event = Event.FromString(record[HEADER:-FOOTER])
        except DecodeError:
            return False
        return all(keep(value.tag, event.step) for value in event.summary.value)

    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if not name.startswith("events.out.tfevents.") or not os.path.isfile(path):
            continue
        with open(path, "rb") as file:
            content = file.read()
        rest = b"".join(filter(kept, _records(content)))
        if rest != content:
            write_atomically(path, rest)


def _records(content: bytes) -> Iterator[bytes]:
    """The whole records of an event file."""
    start = 0
    while start + HEADER <= len(content):
        length, = struct.unpack_from("<Q", content, start)
        end = start + HEADER + length + FOOTER
        if end > len(content):
            return
        yield content[start:end]
        start = end
