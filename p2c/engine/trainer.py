"""The trainers that methods subclass: TrainerX for labeled data, TrainerXU for labeled and unlabeled data.

A method defines build_model and forward_backward, often check_cfg and parse_batch_train.
"""
from collections.abc import Iterable, Iterator

from torch import Tensor

from p2c.engine.base import SimpleNet, SimpleTrainer, TrainerBase
from p2c.engine.data import set_epoch
from p2c.engine.position import BatchLoop

__all__ = ["SimpleNet", "SimpleTrainer", "TrainerBase", "TrainerX", "TrainerXU"]


class TrainerX(BatchLoop):
    """Trains on labeled data: `forward_backward(batch)` once per batch of train_loader_x."""

    def run_epoch(self) -> None:
        batches = ((batch,) for batch in self.train_loader_x)
        self.run_batches(batches, self.batches_per_epoch())

    def parse_batch_train(self, batch: dict) -> tuple[Tensor, ...]:
        """Return image, label and domain on the device."""
        return tuple(self.to_device(batch[name]) for name in ("img", "label", "domain"))


class TrainerXU(BatchLoop):
    """Trains on labeled and unlabeled data: `forward_backward(batch_x, batch_u)`."""

    def batches_per_epoch(self) -> int:
        length_x, length_u = len(self.train_loader_x), len(self.train_loader_u)
        lengths = {"train_x": length_x, "train_u": length_u, "smaller_one": min(length_x, length_u)}
        return lengths[self.cfg.TRAIN.COUNT_ITER]

    def run_epoch(self) -> None:
        num_batches = self.batches_per_epoch()
        batches_x = self._endless(self.train_loader_x, "labeled")
        batches_u = self._endless(self.train_loader_u, "unlabeled")
        self.run_batches(((next(batches_x), next(batches_u)) for _ in range(num_batches)), num_batches)

    def _endless(self, loader: Iterable, kind: str) -> Iterator:
        """Yield batches without end; each pass over the loader has its own order."""
        passes = 0
        while True:
            yield from loader
            passes += 1
            set_epoch(loader, f"{kind}.{self.epoch}.{passes}")

    def parse_batch_train(self, batch_x: dict, batch_u: dict) -> tuple[Tensor, Tensor, Tensor]:
        """Return labeled image, its label and unlabeled image on the device."""
        return self.to_device(batch_x["img"]), self.to_device(batch_x["label"]), self.to_device(batch_u["img"])
