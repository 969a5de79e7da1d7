"""Progress of a training loop: a line every few batches, and curves.

A terminal shows less: a header, a bar, and a line an epoch; the lines of the batches go to the log file alone. The
numbers of each batch stay on the device until a line is due, so that the loop does not wait for the GPU.
"""
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from p2c.engine.distributed import average
from p2c.engine.logger import on_terminal, print_on_terminal
from p2c.engine.meters import AverageMeter, MetricMeter
from p2c.engine.numerics import check_finite
from p2c.utils.logs import get_logger

if TYPE_CHECKING:
    from p2c.engine.run import Run

log = get_logger(__name__)

RECENT = 100  # batches whose numbers are kept for NonFiniteLoss
SAMPLE = 10  # batches from which the length of a training is estimated; the first, which is slower, does not count

Record = tuple[int, dict, float, float]  # batch, its numbers, learning rate after it and in it


class EpochProgress:
    """Tracks one epoch. Epochs and batches count from 0 here and from 1 in the output.

    For every batch, `write_scalar(tag, value, step)` receives the running averages as train/NAME, and train/lr. When
    resumed, an epoch starts at batch `first` from `so_far`, the `state` at that batch. With `announce`, the time left
    is shown as soon as it can be estimated.
    """

    def __init__(
        self, epoch: int, max_epoch: int, num_batches: int, print_freq: int,
        write_scalar: Callable[[str, float, int], None], first: int = 0, so_far: dict | None = None,
        announce: bool = False,
    ):
        self.epoch, self.max_epoch = epoch, max_epoch
        self.num_batches = num_batches
        self.every = print_freq if num_batches >= print_freq else 1
        self.write_scalar = write_scalar
        self.batch_time, self.data_time = AverageMeter(), AverageMeter()
        self.metrics = MetricMeter()
        self.pending: list[Record] = []  # not yet copied to the host
        self.read: deque[Record] = deque(maxlen=RECENT)  # copied
        self.first = first
        self.announce = announce
        if so_far is not None:
            for name, values in so_far["metrics"].items():
                vars(self.metrics.meters[name]).update(values)

    def timed(self, batches: Iterable) -> Generator:
        """Yield the batches and time how long each took to arrive; at the end read all numbers."""
        with tqdm(batches, total=self.num_batches, initial=self.first, desc=f"epoch {self.epoch + 1}/{self.max_epoch}",
                  unit="batch", leave=False, disable=not on_terminal(), file=sys.stderr) as self.bar:
            self.started = self.mark = time.time()
            for batch in self.bar:
                self.data_time.update(time.time() - self.mark)
                yield batch
        self._read()

    def record(self, batch: int, summary: dict | None, lr: float, used_lr: float) -> None:
        """Take a batch's numbers or one-element tensors by name, the learning rate after it, and the one used in it."""
        detached = {
            name: value.detach().clone() if isinstance(value, torch.Tensor) else value
            for name, value in (summary or {}).items()
        }
        self.pending.append((batch, detached, lr, used_lr))
        due = (batch + 1) % self.every == 0
        if due:
            self._read()  # waits for the GPU, which is part of the time that the batches took
        self.batch_time.update(time.time() - self.mark)
        if due:
            self._show(batch, lr)
        self.mark = time.time()
        if batch == self.first:
            self.first_done = self.mark

    def state(self) -> dict:
        """Return the averages so far as plain values, after reading and checking all numbers."""
        self._read()
        return {"metrics": {name: vars(meter).copy() for name, meter in self.metrics.meters.items()}}

    def _read(self) -> None:
        """Copy the pending numbers to the host in one go, check the losses, average and write them."""
        numbers = _to_host([summary for _, summary, _, _ in self.pending])
        window = [(batch, summary, lr, used_lr)
                  for (batch, _, lr, used_lr), summary in zip(self.pending, numbers, strict=True)]
        self.read.extend(window)
        self.pending.clear()
        for batch, summary, lr, used_lr in window:
            check_finite(summary, (self.epoch, self.max_epoch), (batch, self.num_batches), used_lr)
            self.metrics.update(summary)
            step = self.epoch * self.num_batches + batch
            for name in summary:
                self.write_scalar(f"train/{name}", self.metrics.meters[name].avg, step)
            self.write_scalar("train/lr", lr, step)

    def recent(self) -> list[dict]:
        """Return the numbers and learning rates of the last batches; numbers not yet read are those of this process."""
        return [
            {"epoch": self.epoch, "batch": batch, "lr": lr, **{name: float(value) for name, value in summary.items()}}
            for batch, summary, _, lr in (*self.read, *self.pending)
        ]

    def show_epoch(self, val_result: float | None) -> None:
        """Show the line of an epoch on a terminal, with the result on validation data, if there is one.

        Call it when the epoch is over, with its test and checkpoint: the time left is estimated from its whole length.
        """
        if not (self.read and on_terminal()):  # a run that was stopped after the last batch reads none here
            return
        averages = {name: meter.avg for name, meter in self.metrics.meters.items()}
        numbers = [f"{name} {average:.4f}" for name, average in averages.items()
                   if "loss" not in averages or not name.startswith("loss_")]  # without the parts of the loss
        numbers.append(f"lr {self.read[-1][3]:.2e}")
        if val_result is not None:
            numbers.append(f"val {val_result:.2f}")
        a_batch = (time.time() - self.started) / (self.num_batches - self.first)
        left = timedelta(seconds=round(a_batch * self._batches_after(self.num_batches - 1)))
        epoch = f"{self.epoch + 1}".rjust(len(f"{self.max_epoch}"))
        print_on_terminal("  ".join((f"epoch {epoch}/{self.max_epoch}", *numbers, f"{left} left")))

    def _batches_after(self, batch: int) -> int:
        """Return how many batches of this and all further epochs follow a batch of this one."""
        return self.num_batches - batch - 1 + (self.max_epoch - self.epoch - 1) * self.num_batches

    def _show(self, batch: int, lr: float) -> None:
        remaining = self._batches_after(batch)
        eta = timedelta(seconds=int(self.batch_time.avg * remaining))
        metrics = f"{self.metrics} " if self.metrics.meters else ""
        log.info(f"epoch [{self.epoch + 1}/{self.max_epoch}] batch [{batch + 1}/{self.num_batches}] "
                 f"time {self.batch_time.val:.3f} ({self.batch_time.avg:.3f}) "
                 f"data {self.data_time.val:.3f} ({self.data_time.avg:.3f}) "
                 f"{metrics}lr {lr:.4e} eta {eta}", extra={"progress": True})
        if "loss" in self.metrics.meters:
            self.bar.set_postfix_str(f"loss {self.metrics.meters['loss'].avg:.4f}")
        done = batch - self.first  # without the first
        if self.announce and 0 < done >= min(SAMPLE, self.num_batches - self.first) - 1:
            seconds = (time.time() - self.first_done) / done * remaining
            print_on_terminal(f"About {timedelta(seconds=round(seconds))} of training; tests take extra time")
            self.announce = False


def header(run: "Run", training: bool) -> str:
    """Return what a run does, with what and on what, in a few lines for a terminal."""
    cfg, dataset = run.cfg, run.dm.dataset
    training = training and run.start_epoch < run.max_epoch
    train, val, test = (f"{len(items or ()):,}" for items in (dataset.train_x, dataset.val, dataset.test))
    half, shots = cfg.DATASET.get("SUBSAMPLE_CLASSES", "all"), cfg.DATASET.NUM_SHOTS
    weights = cfg.MODEL.BACKBONE.get("WEIGHTS", "")
    gpu = torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else "CPU"
    lines = [
        f"{'Training' if training else 'Testing'} {cfg.TRAINER.NAME} on {cfg.DATASET.NAME}, {half} classes"
        + (f", {shots} shots" if shots > 0 else ""),
        f"  data      {run.num_classes:,} classes; images: {train} training, {val} validation, {test} test",
        f"  model     {cfg.MODEL.BACKBONE.NAME}{weights and f' ({weights})'} on {gpu}, seed {run.seed}",
    ]
    if training:
        batches = getattr(run, "num_batches", len(run.dm.train_loader_x))  # real Dassl counts them later
        before = f", of which {run.start_epoch} are done" if run.start_epoch else ""
        lines.append(f"  length    {run.max_epoch} epochs{before}; {batches} batches of "
                     f"{cfg.DATALOADER.TRAIN_X.BATCH_SIZE} images each")
    return "\n".join([*lines, f"  files     {run.cfg.OUTPUT_DIR} (log.txt: all settings, more progress)"])


def _to_host(summaries: list[dict]) -> list[dict]:
    """Return the dicts with every tensor as a float, its mean over all processes, after one copy to the host."""
    tensors = [value for summary in summaries for value in summary.values() if isinstance(value, torch.Tensor)]
    if not tensors:
        return summaries
    numbers = iter(average(torch.stack([tensor.reshape(()).double() for tensor in tensors])).tolist())
    return [
        {name: next(numbers) if isinstance(value, torch.Tensor) else value for name, value in summary.items()}
        for summary in summaries
    ]
