"""TensorBoard event files, cut back on resume so that no point of a curve is written twice."""
import io
import os
import platform
import time
from collections.abc import Callable, Iterator

from p2c.engine.files import write_atomically
from p2c.utils.logs import get_logger

log = get_logger(__name__)


class CurveWriter:
    """Writes points to a new event file. Raises ImportError if tensorboard is not installed.

    torch's SummaryWriter writes in a thread: its `flush` has been seen to hang, and the thread prints a traceback when
    the disk is full.
    """

    def __init__(self, log_dir: str):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.log_dir = log_dir
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        name = f"events.out.tfevents.{int(time.time())}.{platform.node()}.{os.getpid()}.{time.time_ns()}"
        # Unbuffered: a resumed run does not write the points before its checkpoint again.
        self._records = RecordWriter(open(os.path.join(log_dir, name), "xb", buffering=0))
        self._add(file_version="brain.Event:2")

    def add_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Add a point to a curve, at step 0 if none is given."""
        value = self._summary.Value(tag=tag, simple_value=float(scalar_value))
        self._add(step=global_step or 0, summary=self._summary(value=[value]))

    def _add(self, **content) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())

    def close(self) -> None:
        self._records.close()


def truncate_curves(folder: str, keep: Callable[[str, int], bool]) -> None:
    """Drop the points for which `keep(tag, step)` is False, and all after a damage, from a folder's event files.

    Do nothing if tensorboard is not installed.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError:
        return
    for path in _event_files(folder):
        kept = io.BytesIO()
        writer = RecordWriter(kept)
        for record in _records(path):
            event = Event.FromString(record)
            if all(keep(value.tag, event.step) for value in event.summary.value):
                writer.write(record)
        if kept.tell() != os.path.getsize(path):
            write_atomically(path, kept.getvalue())


def read_curves(folder: str) -> dict[str, dict[int, float]]:
    """Return the curves in a folder's event files: tag -> step -> value; nothing without a folder or tensorboard."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
    except ImportError:
        return {}
    curves: dict[str, dict[int, float]] = {}
    for path in _event_files(folder):
        for record in _records(path):
            event = Event.FromString(record)
            for value in event.summary.value:
                curves.setdefault(value.tag, {})[event.step] = value.simple_value
    return curves


def _event_files(folder: str) -> list[str]:
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [os.path.join(folder, name) for name in names if name.startswith("events.out.tfevents.")]


def _records(path: str) -> Iterator[bytes]:
    """Yield the records of an event file up to its end, or to a damage; warn unless the file is only cut off."""
    from tensorboard.compat.tensorflow_stub import errors
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

    reader = PyRecordReader_New(path)
    try:
        while True:
            reader.GetNext()
            yield reader.record()
    except errors.OutOfRangeError:
        return
    except errors.DataLossError as error:
        if "truncated" not in str(error):
            log.warning(f"{path} is damaged: the points of its curves from there on are lost")
