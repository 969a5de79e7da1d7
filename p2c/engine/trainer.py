"""The trainers that methods subclass: TrainerX for labeled data, TrainerXU for labeled and unlabeled data.

A method defines build_model and forward_backward, often check_cfg and parse_batch_train.

Saving and resuming inside an epoch needs no state of random generators, since random numbers are functions of (seed,
name, step or epoch), see p2c/utils/streams.py. Trainers that draw other random numbers resume at the start of an epoch.
"""
import os
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from p2c.engine.base import SimpleNet, TrainerBase
from p2c.engine.checkpoint import BEST, CannotResume, remove_position, save_position
from p2c.engine.curves import truncate_curves
from p2c.engine.data import DataManager, end_workers, set_epoch, start_at
from p2c.engine.distributed import any_process, barrier, first_on_each_machine, is_main, processes
from p2c.engine.files import mkdir_if_missing
from p2c.engine.numerics import NonFiniteLoss, save_nonfinite_state
from p2c.engine.progress import EpochProgress
from p2c.engine.registry import build_evaluator
from p2c.engine.seeds import set_random_seed
from p2c.utils.logs import get_logger
from p2c.utils.streams import seed_of

__all__ = ["SimpleNet", "SimpleTrainer", "Stopped", "TrainerBase", "TrainerX", "TrainerXU"]

log = get_logger(__name__)


class Stopped(Exception):
    """Training was asked to stop, and has saved its position."""


class SimpleTrainer(TrainerBase):
    """A trainer with data, a device, evaluation and checkpoints, which can save, stop and resume after any batch."""

    model: Any  # set by build_model
    _progress_before: dict | None = None  # averages over the first start_batch batches of start_epoch
    _can_stop = _stop_asked = False

    def __init__(self, cfg):
        super().__init__()
        self.open_run(cfg)
        self.check_cfg(cfg)
        self.device = torch.device("cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")
        if self.device.type == "cuda" and processes() == 1 and torch.cuda.device_count() > 1:
            log.info("Using one of the GPUs: choose which with CUDA_VISIBLE_DEVICES, or start several processes with "
                     "torchrun")
        self.start_epoch = self.epoch = self.batch_idx = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.cfg = cfg
        self.build_data_loader()
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)
        self.best_result = -float("inf")

    def check_cfg(self, cfg) -> None:
        """Raise an error for settings that the method cannot work with; a hook, called before self.cfg is set."""

    def build_data_loader(self) -> None:
        """Build the dataset and its loaders."""
        with first_on_each_machine():
            self.dm = DataManager(self.cfg)
        self.train_loader_x = self.dm.train_loader_x
        self.train_loader_u = self.dm.train_loader_u
        self.val_loader = self.dm.val_loader
        self.test_loader = self.dm.test_loader
        self.num_classes = self.dm.num_classes
        self.num_source_domains = self.dm.num_source_domains
        self.lab2cname = self.dm.lab2cname
        self.num_batches = self.batches_per_epoch()
        if not self.cfg.TEST.NO_TEST:
            self.check_validation(training=False)

    def build_model(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define build_model")

    def batches_per_epoch(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.train_loader_x)

    def model_inference(self, input: Tensor) -> Tensor:
        return self.model(input)

    def parse_batch_test(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Return image and label on the device."""
        return self.to_device(batch["img"]), self.to_device(batch["label"])

    def to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def get_current_lr(self, names: str | list[str] | None = None) -> float:
        """Return the learning rate of the first parameter group of the first model."""
        name = self.get_model_names(names)[0]
        return self._optims[name].param_groups[0]["lr"]

    # The loop

    def train(self, start_epoch: int | None = None, max_epoch: int | None = None) -> None:
        """Run the epochs, by default from self.start_epoch to self.max_epoch."""
        super().train(self.start_epoch if start_epoch is None else start_epoch,
                      self.max_epoch if max_epoch is None else max_epoch)

    def before_train(self) -> None:
        self.check_validation(training=True)
        self.start_epoch = self.resume_model_if_exist(self.cfg.RESUME or self.output_dir)
        self.begin_run()
        if not self.cfg.RESUME:
            self.save_missing_model()
        writer_dir = os.path.join(self.output_dir, "tensorboard")
        mkdir_if_missing(writer_dir)
        if is_main():
            truncate_curves(writer_dir, self.keeps_point)
        self.init_writer(writer_dir)

    def keeps_point(self, tag: str, step: int) -> bool:
        """Return whether a point of a curve stays: this run, once resumed, does not write it again."""
        kind = tag.partition("/")[0]
        if kind == "val":
            return step < self.start_epoch
        if kind == "test":
            return step < min(self.start_epoch, self.max_epoch - 1)
        return step < self.start_epoch * self.batches_per_epoch() + self.start_batch

    def begin_epoch(self) -> None:
        """Seed the epoch: its random numbers are a function of seed and epoch alone."""
        set_random_seed(seed_of(self.seed, "global", self.epoch))
        set_epoch(self.train_loader_x, self.epoch)
        set_epoch(self.train_loader_u, f"unlabeled.{self.epoch}")
        if self.first_batch:
            start_at(self.train_loader_x, self.first_batch)
        self._can_stop = self.resumes_inside_epoch

    @property
    def first_batch(self) -> int:
        """Return the index of the first batch to train in this epoch."""
        return self.start_batch if self.epoch == self.start_epoch else 0

    def run_batches(self, batches: Iterable[tuple]) -> None:
        """Run an epoch over tuples of arguments for `forward_backward`, with progress lines and curves.

        `batches` starts with number `first_batch`; those before it have been trained already.
        """
        self.set_model_mode("train")
        self.num_batches = self.batches_per_epoch()
        first = self.first_batch
        progress = EpochProgress(self.epoch, self.max_epoch, self.num_batches, self.cfg.TRAIN.PRINT_FREQ,
                                 self.write_scalar, first, self._progress_before if first else None)
        try:
            with progress:
                for self.batch_idx, batch in enumerate(progress.timed(batches), first):
                    used_lr = self.get_current_lr()
                    summary = self.forward_backward(*batch)
                    progress.record(self.batch_idx, summary, self.get_current_lr(), used_lr)
                    if self.resumes_inside_epoch:
                        self.after_step(progress)
        except NonFiniteLoss as error:
            raise save_nonfinite_state(self, error, progress.recent()) from error

    def after_step(self, progress: EpochProgress) -> None:
        """Save the position if it is due, and stop if that was asked for."""
        stop, every = any_process(self._stop_asked), self.cfg.TRAIN.get("CHECKPOINT_STEPS", 0)
        done = self.batch_idx + 1
        if stop or (every and (self.epoch * self.num_batches + done) % every == 0):
            self.save_position(self.epoch, done, progress.state())
        if stop:
            self.stop(f" batch [{done}/{self.num_batches}]")

    def after_epoch(self) -> None:
        self.deployed_epoch = self.epoch + 1
        if not self.cfg.TEST.NO_TEST and self.cfg.TEST.FINAL_MODEL == "best_val":
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name=BEST)
        if self.saves_after(self.epoch + 1):
            self.save_model(self.epoch, self.output_dir)
            self.remove_positions()

    def end_epoch(self) -> None:
        if self.epoch + 1 == self.max_epoch:
            self._can_stop = False  # before the last check of _stop_asked, so that no request is lost
        if self.resumes_inside_epoch and any_process(self._stop_asked):
            if not self.saves_after(self.epoch + 1):
                self.save_position(self.epoch + 1, 0, None)
            self.stop()

    def ask_to_stop(self) -> bool:
        """Make training save and raise Stopped after the current step; return whether it can. For signals."""
        self._stop_asked = self._stop_asked or self._can_stop
        return self._can_stop

    def stop(self, batch: str = "") -> None:
        """End the workers and raise Stopped."""
        end_workers(self.train_loader_x)
        raise Stopped(f"Stopped after epoch [{self.epoch + 1}/{self.max_epoch}]{batch}")

    def after_train(self) -> None:
        log.info("Finish training")
        for loader in (self.train_loader_x, self.train_loader_u):
            end_workers(loader)
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                log.info("Deploy the model with the best val performance")
                self.load_model(self.output_dir)
            else:
                log.info("Deploy the last-epoch model")
            self.test()
        log.info(f"Elapsed: {timedelta(seconds=round(self.elapsed()))}")
        self.close_writer()
        self.write_results("train")

    # Checkpoints

    def saves_after(self, epochs: int) -> bool:
        """Return whether a checkpoint is written after this number of epochs."""
        freq = self.cfg.TRAIN.CHECKPOINT_FREQ
        return (freq > 0 and epochs % freq == 0) or epochs == self.max_epoch

    def save_model(self, epoch: int, directory: str, *args, **kwargs) -> None:
        """Write the curves, which a run resumed from this checkpoint does not write again, then the checkpoint."""
        self.flush_writer()
        super().save_model(epoch, directory, *args, **kwargs)

    def save_missing_model(self) -> None:
        """Write the last epoch's checkpoint if the run was killed before that was saved, or if it is damaged."""
        if not self.resumed_from or self.start_batch or not self.saves_after(self.start_epoch):
            return
        if any(os.path.basename(path) != f"model.pth.tar-{self.start_epoch}" for path in self.resumed_from):
            self.save_model(self.start_epoch - 1, self.output_dir)
        self.remove_positions()  # left by a run that was killed before it removed them

    def save_position(self, epoch: int, batch: int, progress: dict | None) -> None:
        """Save the state after `epoch` whole epochs and `batch` batches of the next one."""
        self.flush_writer()
        position = {"epoch": epoch, "batch": batch, "num_batches": self.num_batches, "progress": progress}
        if is_main():
            for name in self.get_model_names():
                save_position({**self.model_state(name), **position}, os.path.join(self.output_dir, name))
        barrier()

    def remove_positions(self) -> None:
        """Delete the position files, once a checkpoint has superseded them."""
        if is_main():
            for name in self.get_model_names():
                remove_position(os.path.join(self.output_dir, name))

    def check_run_state(self, checkpoint: dict) -> None:
        super().check_run_state(checkpoint)
        batches = self.batches_per_epoch()
        if checkpoint.get("batch") and checkpoint.get("num_batches") != batches:
            raise CannotResume(
                f"Cannot resume from {self.cfg.RESUME or self.output_dir}: it was saved after batch "
                f"{checkpoint['batch']} of {checkpoint.get('num_batches')}, but this dataset has {batches} per epoch; "
                "choose another --output-dir"
            )

    def load_run_state(self, checkpoint: dict) -> None:
        super().load_run_state(checkpoint)
        self.start_batch, self._progress_before = checkpoint.get("batch", 0), checkpoint.get("progress")
        if self.start_batch:
            log.info(f"Resuming after batch {self.start_batch} of epoch {checkpoint['epoch'] + 1}")


class TrainerX(SimpleTrainer):
    """Trains on labeled data: `forward_backward(batch)` once per batch of train_loader_x."""

    def run_epoch(self) -> None:
        self.run_batches((batch,) for batch in self.train_loader_x)

    def parse_batch_train(self, batch: dict) -> tuple[Tensor, ...]:
        """Return image, label and domain on the device."""
        return tuple(self.to_device(batch[name]) for name in ("img", "label", "domain"))


class TrainerXU(SimpleTrainer):
    """Trains on labeled and unlabeled data: `forward_backward(batch_x, batch_u)`."""

    def batches_per_epoch(self) -> int:
        length_x, length_u = len(self.train_loader_x), len(self.train_loader_u)
        lengths = {"train_x": length_x, "train_u": length_u, "smaller_one": min(length_x, length_u)}
        return lengths[self.cfg.TRAIN.COUNT_ITER]

    def run_epoch(self) -> None:
        batches_x = self._endless(self.train_loader_x, "labeled")
        batches_u = self._endless(self.train_loader_u, "unlabeled")
        self.run_batches((next(batches_x), next(batches_u)) for _ in range(self.batches_per_epoch()))

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
