"""Progress of a training loop: a line every few batches, curves, and a bar on a terminal.

The numbers of each batch stay on the device until a line is due, so that the loop does not wait for the GPU.
"""
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from datetime import timedelta

import torch
from tqdm import tqdm

from p2c.engine.distributed import average
from p2c.engine.logger import on_terminal
from p2c.engine.meters import AverageMeter, MetricMeter
from p2c.engine.numerics import check_finite
from p2c.utils.logs import get_logger

log = get_logger(__name__)

RECENT = 100  # batches whose numbers are kept for NonFiniteLoss

Record = tuple[int, dict, float, float]  # batch, its numbers, learning rate after it and in it


class EpochProgress:
    """Tracks one epoch. Epochs and batches count from 0 here and from 1 in the output.

    For every batch, `write_scalar(tag, value, step)` receives the running averages as train/NAME, and train/lr. When
    resumed, an epoch starts at batch `first` from `so_far`, the `state` at that batch.
    """

    def __init__(
        self, epoch: int, max_epoch: int, num_batches: int, print_freq: int,
        write_scalar: Callable[[str, float, int], None], first: int = 0, so_far: dict | None = None,
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
        if so_far is not None:
            for name, values in so_far["metrics"].items():
                vars(self.metrics.meters[name]).update(values)

    def timed(self, batches: Iterable) -> Generator:
        """Yield the batches and time how long each took to arrive; at the end read all numbers."""
        with tqdm(batches, total=self.num_batches, initial=self.first, desc=f"epoch {self.epoch + 1}/{self.max_epoch}",
                  unit="batch", leave=False, disable=not on_terminal(), file=sys.stderr) as self.bar:
            self.mark = time.time()
            for batch in self.bar:
                self.data_time.update(time.time() - self.mark)
                yield batch
        self._read()

    def record(self, batch: int, summary: dict | None, lr: float, used_lr: float) -> None:
        """Take a batch's numbers or one-element tensors by name, the learning rate after it, and the one used in it."""
        self.batch_time.update(time.time() - self.mark)
        detached = {
            name: value.detach().clone() if isinstance(value, torch.Tensor) else value
            for name, value in (summary or {}).items()
        }
        self.pending.append((batch, detached, lr, used_lr))
        if (batch + 1) % self.every == 0:
            self._read()
            self._show(batch, lr)
        self.mark = time.time()

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

    def _show(self, batch: int, lr: float) -> None:
        remaining = self.num_batches - batch - 1 + (self.max_epoch - self.epoch - 1) * self.num_batches
        eta = timedelta(seconds=int(self.batch_time.avg * remaining))
        metrics = f"{self.metrics} " if self.metrics.meters else ""
        log.info(f"epoch [{self.epoch + 1}/{self.max_epoch}] batch [{batch + 1}/{self.num_batches}] "
                 f"time {self.batch_time.val:.3f} ({self.batch_time.avg:.3f}) "
                 f"data {self.data_time.val:.3f} ({self.data_time.avg:.3f}) "
                 f"{metrics}lr {lr:.4e} eta {eta}", extra={"progress": True})
        if "loss" in self.metrics.meters:
            self.bar.set_postfix_str(f"loss {self.metrics.meters['loss'].avg:.4f}")


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
