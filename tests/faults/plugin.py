"""A --plugin that breaks the run which loads it, where the environment variable P2C_FAULT says; else it does nothing.

The files are real and so is what happens to them: a process kills itself by SIGKILL in the middle of a write, or finds
/dev/full, which has no space for anything, in the place of its file.
"""
import builtins
import errno
import io
import json
import os
import re
import signal
from typing import NamedTuple

from p2c.engine import curves, files, logger
from p2c.trainers.base import PromptTrainer

VARIABLE = "P2C_FAULT"
KILL, FULL = "kill", "full"
STEP = "step"
BYTES, SYNC, RENAME, RENAMED = "bytes", "fsync", "rename", "renamed"  # the stages of a write
INSIDE = (BYTES, SYNC, RENAME)  # those at which the file is not yet in its place
TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp$")


class Fault(NamedTuple):
    """Where a run is to break.

    Attributes:
        act: KILL or FULL; once a disk is full it stays so.
        place: STEP, or a pattern that the path of a written file has to match.
        count: which of these, from 1.
        stage: of a write; of a step True: before it, False: after it.
        share: of the bytes that are written before, 0 to 1.
        journal: file outside the run's folder in which the process says where it stood.
    """

    act: str
    place: str
    count: int
    stage: str | bool
    share: float
    journal: str

    def environment(self) -> dict[str, str]:
        return {VARIABLE: json.dumps(self)}


class Armed:
    def __init__(self, fault: Fault):
        self.fault, self.seen, self.full = fault, 0, False

    def due(self, stage: str, path: str) -> bool:
        """Count a write to a file that the fault concerns; return whether the fault is due at it."""
        path = TEMPORARY.sub("", path)
        if self.fault.stage != stage or not re.search(self.fault.place, path):
            return False
        self.seen += 1
        return self.seen == self.fault.count

    def act(self, path: str, where: str) -> None:
        """Say where the process stands; then end it, or have the disk full."""
        self.note(file=TEMPORARY.sub("", path), where=where, inside=self.fault.stage in INSIDE)
        if self.fault.act == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        self.full = True

    def note(self, **place) -> None:
        descriptor = os.open(self.fault.journal, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(descriptor, f"{json.dumps(place)}\n".encode())
        os.close(descriptor)


def path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def arm(armed: Armed) -> None:
    """Put what may break in the place of what writes."""
    fsync, replace = os.fsync, os.replace

    class Breaking(io.FileIO):
        def write(self, content) -> int:
            content = memoryview(content).cast("B")
            written, path = 0, path_of(self.fileno())
            if path != "/dev/full" and armed.due(BYTES, path):
                written = int(armed.fault.share * len(content))
                super().write(content[:written])
                armed.act(path, f"after {written} of {len(content)} bytes")
            if armed.full and path != "/dev/full":
                full = os.open("/dev/full", os.O_WRONLY)
                os.dup2(full, self.fileno())
                os.close(full)
            return written + super().write(content[written:])

    def breaking_open(file, mode="r", buffering=-1, encoding=None, errors=None):
        if not set(mode) & set("wxa"):
            return builtins.open(file, mode, buffering, encoding, errors)
        raw = Breaking(file, mode.replace("b", ""))
        if buffering == 0:
            return raw
        written = io.BufferedWriter(raw)
        return written if "b" in mode else io.TextIOWrapper(written, encoding, errors, line_buffering=buffering == 1)

    def at(stage: str, path: str, where: str) -> None:
        if armed.due(stage, path):
            armed.act(path, where)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def breaking_fsync(descriptor: int) -> None:
        at(SYNC, path_of(descriptor), "written, before fsync")
        fsync(descriptor)

    def breaking_replace(source, target) -> None:
        at(RENAME, os.fspath(target), "before the rename")
        replace(source, target)
        at(RENAMED, os.fspath(target), "after the rename")

    for module in (files, logger, curves):
        module.open = breaking_open
    os.fsync, os.replace = breaking_fsync, breaking_replace


def arm_steps(armed: Armed) -> None:
    step = PromptTrainer.forward_backward

    def breaking_step(self, batch):
        armed.seen += 1
        due = armed.seen == armed.fault.count
        if due and armed.fault.stage:
            kill(self, self.batch_idx)
        summary = step(self, batch)
        if due:
            kill(self, self.batch_idx + 1)
        return summary

    def kill(trainer, done: int) -> None:
        armed.note(where=f"after batch {done} of {trainer.num_batches} of epoch {trainer.epoch + 1}",
                   middle=0 < done < trainer.num_batches)
        os.kill(os.getpid(), signal.SIGKILL)

    PromptTrainer.forward_backward = breaking_step


def extend_cfg(cfg) -> None:
    """Arm the fault of the environment; --plugin calls this."""
    if VARIABLE in os.environ:
        fault = Fault(*json.loads(os.environ[VARIABLE]))
        (arm_steps if fault.place == STEP else arm)(Armed(fault))
