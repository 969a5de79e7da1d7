"""Runs the project's commands in processes of their own, which are forked from one that has imported everything.

So a command takes a second, not six; it is a process like any other, with its own number, descriptors and end.
"""
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import tensorboard.summary.writer.record_writer  # noqa: F401 (so that no child has to)
import torch

from p2c import registry
from p2c.cli import convert, predict, train, verify_run

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {"predict": predict.main, "convert": convert.main, "verify_run": verify_run.main}
LIMIT = 180  # seconds of a command, after which it hangs
PLUGIN = "faults.plugin"
SMALL = ("MODEL.BACKBONE.WEIGHTS", "random", "OPTIM.WARMUP_EPOCH", "-1", "DATASET.CHECKS", "partial",
         "DATALOADER.TRAIN_X.BATCH_SIZE", "2", "TRAIN.PRINT_FREQ", "3",
         "INPUT.TRANSFORMS", "('random_resized_crop','random_flip','normalize')")  # 8 batches an epoch of the pets


class Ended(NamedTuple):
    """How a process ended: its status, or minus the signal that killed it, and what it said."""

    status: int
    out: str
    err: str

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL

    @property
    def fault(self) -> str:
        """Return why the end was not clean, in one line; "" if it was."""
        lines = self.err.strip().splitlines()
        if "Traceback" in self.err or "Traceback" in self.out:
            return f"a traceback that ends in {lines[-1] if lines else self.out.splitlines()[-1]!r}"
        if self.status not in (0, 1, 2, 75):
            return f"status {self.status}"
        said = [line for line in lines if line.startswith(("error: ", "Not confirmed"))]
        if self.status in (1, 2) and len(said) != 1 and not (lines and "could not be read" in lines[-1]):
            return f"not one line: {self.err!r}"
        return ""


def training(trainer: str, root: Path, out: Path, *pairs: str, dataset: str = "oxford_pets",
             options: Sequence[str] = ()) -> list[str]:
    """The command of a small training in which a fault can be armed."""
    return ["train", "--plugin", PLUGIN, "--root", str(root), "--seed", "1", "--trainer", trainer, "--output-dir",
            str(out), "--dataset-config-file", f"{ROOT}/configs/datasets/{dataset}.yaml",
            "--config-file", f"{ROOT}/configs/trainers/{trainer}/tiny_shapes.yaml", *options, *SMALL, *pairs]


def warm() -> None:
    """Import what every training would import; this process computes nothing, so that it can be forked."""
    torch.set_num_threads(1)
    for name in (*registry.TRAINERS.values(), *registry.DATASETS.values()):
        __import__(name)


def run(command: Sequence[str] | Callable[[], None], environment: Mapping[str, str] | None = None) -> Ended:
    """Run `train` or one of COMMANDS with its arguments, or a function, and wait for its end."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if not child:
            _become(command, environment or {}, out.fileno(), err.fileno())
        status = _wait(child)
        out.seek(0)
        err.seek(0)
        return Ended(status, *(file.read().decode(errors="replace") for file in (out, err)))


def _become(command: Sequence[str] | Callable[[], None], environment: Mapping[str, str], out: int, err: int) -> None:
    status = 1
    try:
        os.environ.update(environment)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))
        if callable(command):
            sys.exit(command())
        name, *words = command
        if name == "train":
            sys.argv = ["train.py", *words]
            train.run_as_coop()
        status = COMMANDS[name](words)
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def _wait(child: int) -> int:
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGTERM)
    os.waitpid(child, 0)
    raise TimeoutError(f"A command has not ended after {LIMIT} s")
