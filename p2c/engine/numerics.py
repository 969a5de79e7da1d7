"""Non-finite numbers: a non-finite loss ends the run and saves its state; steps skipped by loss scaling are counted."""
import math
import os
from collections.abc import Iterable

import torch

from p2c.engine.checkpoint import plain, serialize
from p2c.engine.distributed import is_main
from p2c.engine.files import write_atomically
from p2c.utils.logs import get_logger

log = get_logger(__name__)

FILE = "nonfinite.pth.tar"  # beside the checkpoints, for debugging; no run resumes from it


class NonFiniteLoss(FloatingPointError):
    """A loss of a training step is infinite or NaN; `step` describes the step in plain values."""

    def __init__(self, message: str, step: dict):
        super().__init__(message)
        self.step = step


def check_finite(summary: dict, epoch: tuple[int, int], batch: tuple[int, int], lr: float) -> None:
    """Raise NonFiniteLoss if a loss of a step is not finite.

    Args:
        summary: the numbers that the step reported by name, "noise" being the noise level.
        epoch, batch: (index, total).
        lr: the learning rate of this step.
    """
    bad = {name: float(value) for name, value in summary.items() if "loss" in name and not math.isfinite(value)}
    if not bad:
        return
    step = {"step": epoch[0] * batch[1] + batch[0], "epoch": epoch[0], "batch": batch[0], "lr": float(lr)}
    text = f"step {step['step'] + 1}, epoch [{epoch[0] + 1}/{epoch[1]}] batch [{batch[0] + 1}/{batch[1]}], " \
           f"learning rate {lr:.4e}"
    if "noise" in summary:
        step["noise"] = float(summary["noise"])
        text += f", noise level {step['noise']:.4e}"
    losses = ", ".join(f"{name} is {value}" for name, value in bad.items())
    raise NonFiniteLoss(f"Loss is infinite or NaN! {losses} at {text}", step)


def save_nonfinite_state(trainer, error: NonFiniteLoss, recent: Iterable[dict] = ()) -> NonFiniteLoss:
    """Write a trainer's state to FILE in each model's folder; return the error to raise, which names the files.

    They hold what a checkpoint does, but for the epoch, `nonfinite` (epoch, batch and step of the loss, from 0),
    steps_done (steps before the state was written), and `recent`, the numbers that the last steps reported.
    """
    if not is_main():
        return error
    places = []
    for name in trainer.get_model_names():
        state = {
            **trainer.model_state(name),
            "nonfinite": error.step,
            "steps_done": trainer.epoch * trainer.num_batches + trainer.batch_idx + 1,
            "recent": list(recent),
            "seed": trainer.seed,
        }
        path = os.path.join(trainer.output_dir, name, FILE)
        try:
            write_atomically(path, serialize(plain(state)))
        except (OSError, TypeError) as problem:  # the error itself is raised in any case
            log.warning(f"The state for debugging could not be written to {path}: {problem}")
        else:
            places.append(path)
    where = f"; the state for debugging is in {', '.join(places)}" if places else ""
    return NonFiniteLoss(f"{error}{where}", error.step)


class SkippedSteps:
    """Counts the steps that loss scaling skips because a gradient is not finite, without waiting for the device.

    A scaler lowers its scale if and only if it skips a step.
    """

    def __init__(self, scaler: torch.amp.GradScaler, device: torch.device):
        self.scaler = scaler
        self.one = torch.ones((), device=device)
        self.before = 0  # skipped in the runs that this one continues
        self.skipped = torch.zeros((), dtype=torch.long, device=device)

    def update(self) -> None:
        """Update the scaler after a step; call this in place of `scaler.update`."""
        if not self.scaler.is_enabled():
            return
        scale = self.scaler.scale(self.one)
        self.scaler.update()
        self.skipped += self.scaler.scale(self.one) < scale

    @property
    def count(self) -> int:
        """Return the number of steps skipped so far; waits for the device."""
        return self.before + int(self.skipped)
