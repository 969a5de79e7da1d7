"""TensorBoard event files, cut back on resume so that no point of a curve is written twice."""
import os
import platform
import struct
import time
from collections.abc import Callable, Iterator

from p2c.engine.files import write_atomically
from p2c.utils.logs import get_logger

log = get_logger(__name__)

HEADER, FOOTER = 12, 4  # bytes of a record before its content (length and checksum) and after it (checksum)
FLUSH_SECONDS = 5  # a point flushes the file if the last flush is longer ago


class CurveWriter:
    """Writes points to a new event file.

    torch's SummaryWriter writes in a thread: its `flush` has been seen to hang, and the thread prints a traceback when
    the disk is full.

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, log_dir: str):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.log_dir = log_dir
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        name = f"events.out.tfevents.{int(time.time())}.{platform.node()}.{os.getpid()}.{time.time_ns()}"
        self._records = RecordWriter(open(os.path.join(log_dir, name), "xb"))
        self._flushed = time.monotonic()
        self._add(file_version="brain.Event:2")
        self.flush()

    def add_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Add a point to a curve, at step 0 if none is given."""
        value = self._summary.Value(tag=tag, simple_value=float(scalar_value))
        self._add(step=global_step or 0, summary=self._summary(value=[value]))

    def _add(self, **content) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Pass all points so far to the operating system."""
        self._records.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._records.close()


def truncate_curves(folder: str, keep: Callable[[str, int], bool]) -> None:
    """Drop damaged records and the points for which `keep(tag, step)` is False from a folder's event files.

    Do nothing if tensorboard is not installed.
    """
    try:
        from google.protobuf.message import DecodeError
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
    except ImportError:
        return

    def is_kept(record: bytes) -> bool:
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
        rest = b"".join(record for record in _records(content, path, masked_crc32c) if is_kept(record))
        if rest != content:
            write_atomically(path, rest)


def _records(content: bytes, path: str, checksum: Callable[[bytes], int]) -> Iterator[bytes]:
    """Yield the complete records of an event file; warn if it is damaged before its end."""
    start = 0
    while start + HEADER <= len(content):
        length, length_sum = struct.unpack_from("<QI", content, start)
        end = start + HEADER + length + FOOTER
        if checksum(content[start:start + 8]) != length_sum:
            log.warning(f"{path} is damaged: the points of its last {len(content) - start} bytes are lost")
            return
        if end > len(content):
            return
        record = content[start:end]
        if checksum(record[HEADER:-FOOTER]) == struct.unpack("<I", record[-FOOTER:])[0]:
            yield record
        else:
            log.warning(f"{path} is damaged: a point of its curves is lost")
        start = end
