"""Numbers that are not finite: a loss ends the run and leaves what there is to look into; skipped steps are counted."""
import math
import os
from collections.abc import Iterable

import torch

from p2c.engine.checkpoint import plain, serialised
from p2c.engine.distributed import is_main
from p2c.engine.files import write_atomically
from p2c.utils import trainable
from p2c.utils.logs import get_logger

log = get_logger(__name__)

FILE = "nonfinite.pth.tar"  # beside the checkpoints, but none of them: nothing resumes from it


class NonFiniteLoss(FloatingPointError):
    """A loss of a training step is infinite or NaN. `step` holds where that was, as plain values."""

    def __init__(self, message: str, step: dict):
        super().__init__(message)
        self.step = step


def check_finite(summary: dict, epoch: tuple[int, int], batch: tuple[int, int], lr: float) -> None:
    """NonFiniteLoss if a loss of a step is not finite.

    Args:
        summary: what the step reported, name to number; of these "noise" is the noise level.
        epoch, batch: (index, number of them).
        lr: the rate of this step.
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


def keep_state(trainer, error: NonFiniteLoss, recent: Iterable[dict] = ()) -> NonFiniteLoss:
    """Write what a trainer holds now to FILE in each model's folder; the error to raise, which says where it lies.

    The files hold plain values: state_dict, optimizer, scheduler, scaler, `nonfinite` (where the loss was found; epoch,
    batch and step from 0), steps_done (what the state is after), and `recent`, what the last steps reported.
    """
    scaler = getattr(trainer, "scaler", None)
    places = []
    for name in trainer.get_model_names() if is_main() else ():
        optim, sched = trainer._optims[name], trainer._scheds[name]
        state = {
            "state_dict": trainable.state_dict(trainer._models[name]),
            "optimizer": None if optim is None else optim.state_dict(),
            "scheduler": None if sched is None else sched.state_dict(),
            "scaler": scaler.state_dict() if hasattr(scaler, "state_dict") else None,
            "nonfinite": error.step,
            "steps_done": trainer.epoch * trainer.num_batches + trainer.batch_idx + 1,
            "recent": list(recent),
            "seed": trainer.seed,
        }
        path = os.path.join(trainer.output_dir, name, FILE)
        try:
            write_atomically(path, serialised(plain(state)))
        except (OSError, TypeError) as problem:  # what stopped the run is said in any case
            log.warning(f"The state to look into could not be written to {path}: {problem}")
        else:
            places.append(path)
    if not places:
        return error
    return NonFiniteLoss(f"{error}; the state to look into lies in {', '.join(places)}", error.step)


class SkippedSteps:
    """Counts the steps that loss scaling leaves out since a gradient is not finite, without waiting for the device.

    A scaler lowers its scale when, and only when, it leaves a step out.
    """

    def __init__(self, scaler: torch.amp.GradScaler, device: torch.device):
        self.scaler = scaler
        self.one = torch.ones((), device=device)
        self.before = 0  # in the runs that this one continues
        self.here = torch.zeros((), dtype=torch.long, device=device)

    def update(self) -> None:
        """Call it instead of the scaler's update, after the step."""
        if not self.scaler.is_enabled():
            return
        scale = self.scaler.scale(self.one)
        self.scaler.update()
        self.here += self.scaler.scale(self.one) < scale

    @property
    def count(self) -> int:
        """Steps left out so far; waits for the device."""
        return self.before + int(self.here)
