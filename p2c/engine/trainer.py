"""The loop over epochs, its hooks, and the trainers that methods subclass: TrainerX and TrainerXU.

A method defines build_model and forward_backward, often check_cfg and parse_batch_train.

Saving and resuming inside an epoch needs no state of random generators, since random numbers are functions of (seed,
name, step or epoch), see p2c/utils/streams.py. Trainers that draw other random numbers resume at the start of an epoch.
"""
import contextlib
import os
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from p2c.engine.checkpoint import BEST, POSITION, CannotResume, plain, serialize
from p2c.engine.curves import CurveWriter, truncate_curves
from p2c.engine.data import DataManager, end_workers, set_epoch, start_at
from p2c.engine.distributed import any_process, barrier, first_on_each_machine, is_main, processes
from p2c.engine.files import errors_naming, mkdir_if_missing, write_atomically
from p2c.engine.logger import warnings_on_terminal
from p2c.engine.numerics import NonFiniteLoss, check_finite, save_nonfinite_state
from p2c.engine.progress import EpochProgress
from p2c.engine.registry import build_evaluator
from p2c.engine.run import Run
from p2c.engine.seeds import set_random_seed
from p2c.engine.utils import tolist_if_not
from p2c.utils.logs import get_logger
from p2c.utils.streams import seed_of

log = get_logger(__name__)


class Stopped(Exception):
    """Training was asked to stop, and has saved its position."""


class SimpleNet(nn.Module):
    """Placeholder for Dassl's network of backbone and head, which this engine does not provide."""

    def __init__(self, *args, **kwargs):
        raise NotImplementedError("This engine has no SimpleNet: define build_model in the trainer")


class TrainerBase(Run):
    """Holds the registered models with their optimisers and schedules, and runs the loop over epochs."""

    def __init__(self):
        self._models = {}
        self._optims = {}
        self._scheds = {}
        self._writer: CurveWriter | None = None

    # Models

    def register_model(self, name: str = "model", model: Any = None, optim=None, sched=None) -> None:
        """Register a model to be saved and resumed under `name`, with its optimiser and schedule, if any."""
        if "_models" not in self.__dict__:
            raise AttributeError("Call super().__init__() before register_model()")
        assert name not in self._models, f"Found duplicate model names: {name}"
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names: str | list[str] | None = None) -> list[str]:
        """Return all registered names, or the given ones, which must be registered."""
        if names is None:
            return list(self._models)
        names = tolist_if_not(names)
        for name in names:
            assert name in self._models, f"No model is registered as {name}; choose from {', '.join(self._models)}"
        return names

    def set_model_mode(self, mode: str = "train", names: str | list[str] | None = None) -> None:
        """Set registered models to mode "train", "test" or "eval"."""
        if mode not in ("train", "test", "eval"):
            raise KeyError(f"Unknown mode {mode!r}; choose from train, test, eval")
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    # Curves

    def init_writer(self, log_dir: str) -> None:
        """Start writing curves for TensorBoard, if it is installed."""
        if self._writer is not None or not is_main():
            return
        try:
            with errors_naming(log_dir):
                self._writer = CurveWriter(log_dir)
        except ImportError:
            log.warning("tensorboard is not installed: no curves are written")
            return
        log.info(f"Initialize tensorboard (log_dir={log_dir})")

    def close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Add a point to a curve, if there is a writer."""
        if self._writer is not None:
            with errors_naming(self._writer.log_dir):
                self._writer.add_scalar(tag, scalar_value, global_step)

    # The loop

    def train(self, start_epoch: int | None = None, max_epoch: int | None = None) -> None:
        """Run the epochs from start_epoch, which before_train may change, to max_epoch, by default those of self."""
        self.start_epoch = self.start_epoch if start_epoch is None else start_epoch
        self.max_epoch = self.max_epoch if max_epoch is None else max_epoch
        with warnings_on_terminal():
            self.before_train()
            for epoch in range(self.start_epoch, self.max_epoch):
                self.epoch = epoch
                self.begin_epoch()
                self.before_epoch()
                self.run_epoch()
                self.after_epoch()
                self.end_epoch()
        self.after_train()

    def begin_epoch(self) -> None:
        """Prepare an epoch, before the hook before_epoch."""

    def end_epoch(self) -> None:
        """Finish an epoch, after the hook after_epoch."""

    def before_train(self) -> None:
        """Run before the first epoch; a hook."""

    def after_train(self) -> None:
        """Run after the last epoch; a hook."""

    def before_epoch(self) -> None:
        """Run before each epoch; a hook."""

    def after_epoch(self) -> None:
        """Run after each epoch; a hook."""

    def run_epoch(self) -> None:
        raise NotImplementedError

    def parse_batch_train(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def parse_batch_test(self, batch) -> Any:
        raise NotImplementedError

    def forward_backward(self, *args: Any, **kwargs: Any) -> dict | None:
        raise NotImplementedError

    def model_inference(self, input: Tensor) -> Tensor:
        raise NotImplementedError

    # Steps

    def update_lr(self, names: str | list[str] | None = None) -> None:
        """Step the schedules; a trainer calls this after the last batch of an epoch."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def detect_anomaly(self, loss: Tensor) -> None:
        """Raise NonFiniteLoss, a FloatingPointError, if a loss is not finite."""
        lr = next((optim.param_groups[0]["lr"] for optim in self._optims.values() if optim is not None), float("nan"))
        check_finite({"loss": loss.detach()}, (self.epoch, self.max_epoch), (self.batch_idx, self.num_batches), lr)

    def model_zero_grad(self, names: str | list[str] | None = None) -> None:
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def model_backward(self, loss: Tensor) -> None:
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names: str | list[str] | None = None) -> None:
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].step()

    def model_backward_and_update(self, loss: Tensor, names: str | list[str] | None = None) -> None:
        """Check a loss and take one step of the optimisers on it."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)


class SimpleTrainer(TrainerBase):
    """A trainer with data, a device, evaluation and checkpoints, inside an epoch too if it `resumes_inside_epoch`."""

    model: Any  # set by build_model
    _progress_before: dict | None = None  # averages over the first start_batch batches of start_epoch
    _can_stop = _stop_asked = False
    _epoch_progress: EpochProgress | None = None  # of the epoch in progress, if run_batches runs it
    _val_result: float | None = None  # of the test on validation data after the epoch, if there was one

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
        self.first_batch = self.start_batch if self.epoch == self.start_epoch else 0
        if self.first_batch:
            start_at(self.train_loader_x, self.first_batch)
        self._can_stop = self.resumes_inside_epoch

    def run_batches(self, batches: Iterable[tuple]) -> None:
        """Run an epoch over tuples of arguments for `forward_backward`, with progress lines and curves.

        `batches` starts with number `first_batch`; those before it have been trained already.
        """
        self.set_model_mode("train")
        self.num_batches = self.batches_per_epoch()
        first = self.first_batch
        progress = self._epoch_progress = EpochProgress(
            self.epoch, self.max_epoch, self.num_batches, self.cfg.TRAIN.PRINT_FREQ, self.write_scalar, first,
            self._progress_before if first else None, announce=self.epoch == self.start_epoch)
        try:
            with contextlib.closing(progress.timed(batches)) as timed:
                for self.batch_idx, batch in enumerate(timed, first):
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
        self._val_result = self.test(split="val") if self.validates_after(self.epoch + 1) else None
        if self._val_result is not None and self.cfg.TEST.FINAL_MODEL == "best_val":
            if self._val_result > self.best_result:
                self.best_result = self._val_result
                self.save_model(self.epoch, self.output_dir, val_result=self._val_result, model_name=BEST)
        if self.saves_after(self.epoch + 1):
            self.save_model(self.epoch, self.output_dir)
            self.remove_positions()

    def end_epoch(self) -> None:
        if self._epoch_progress is not None:
            self._epoch_progress.show_epoch(self._val_result)
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

    def save_missing_model(self) -> None:
        """Write the last epoch's checkpoint if the run was killed before that was saved, or if it is damaged."""
        if not self.resumed_from or self.start_batch or not self.saves_after(self.start_epoch):
            return
        if any(os.path.basename(path) != f"model.pth.tar-{self.start_epoch}" for path in self.resumed_from):
            self.save_model(self.start_epoch - 1, self.output_dir)
        self.remove_positions()  # left by a run that was killed before it removed them

    def save_position(self, epoch: int, batch: int, progress: dict | None) -> None:
        """Save the state after `epoch` whole epochs and `batch` batches of the next one."""
        position = {"epoch": epoch, "batch": batch, "num_batches": self.num_batches, "progress": progress}
        if is_main():
            for name in self.get_model_names():
                content = serialize(plain({**self.model_state(name), **position}))
                write_atomically(os.path.join(self.output_dir, name, POSITION), content)
        barrier()

    def remove_positions(self) -> None:
        """Delete the position files, once a checkpoint has superseded them."""
        if is_main():
            for name in self.get_model_names():
                Path(self.output_dir, name, POSITION).unlink(missing_ok=True)

    def check_run_state(self, checkpoint: dict) -> None:
        super().check_run_state(checkpoint)
        batch, of, batches = checkpoint.get("batch"), checkpoint.get("num_batches"), self.batches_per_epoch()
        if batch and of != batches:
            raise CannotResume(f"Cannot resume from {self.cfg.RESUME or self.output_dir}: it was saved after batch "
                               f"{batch} of {of}, but an epoch has {batches} here; choose another --output-dir")

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
