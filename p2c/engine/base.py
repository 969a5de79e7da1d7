"""The loop over epochs and its hooks: TrainerBase and SimpleTrainer."""
import os
from collections import OrderedDict
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from p2c.engine.checkpoint import BEST, is_readable
from p2c.engine.curves import CurveWriter, truncate_curves
from p2c.engine.data import DataManager, end_workers, set_epoch
from p2c.engine.distributed import first_on_each_machine, is_main, processes
from p2c.engine.files import errors_naming, mkdir_if_missing
from p2c.engine.numerics import check_finite
from p2c.engine.registry import build_evaluator
from p2c.engine.run import Checkpoints, Run
from p2c.engine.seeds import set_random_seed
from p2c.engine.utils import tolist_if_not
from p2c.utils.logs import get_logger
from p2c.utils.streams import seed_of

log = get_logger(__name__)


class SimpleNet(nn.Module):
    """Placeholder for Dassl's network of backbone and head, which this engine does not provide."""

    def __init__(self, *args, **kwargs):
        raise NotImplementedError("This engine has no SimpleNet: define build_model in the trainer")


class TrainerBase(Checkpoints):
    """Holds the registered models with their optimisers and schedules, and runs the loop over epochs."""

    def __init__(self):
        self._models = OrderedDict()
        self._optims = OrderedDict()
        self._scheds = OrderedDict()
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

    def flush_writer(self) -> None:
        """Write all points so far to the file."""
        if self._writer is not None:
            with errors_naming(self._writer.log_dir):
                self._writer.flush()

    def close_writer(self) -> None:
        if self._writer is not None:
            with errors_naming(self._writer.log_dir):
                self._writer.close()
            self._writer = None

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Add a point to a curve, if there is a writer."""
        if self._writer is not None:
            with errors_naming(self._writer.log_dir):
                self._writer.add_scalar(tag, scalar_value, global_step)

    # The loop

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """Run the epochs from start_epoch, which before_train may change, to max_epoch."""
        self.start_epoch = start_epoch
        self.max_epoch = max_epoch
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

    def test(self) -> float:
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
        epoch, batch = getattr(self, "epoch", 0), getattr(self, "batch_idx", 0)
        lr = next((optim.param_groups[0]["lr"] for optim in self._optims.values() if optim is not None), float("nan"))
        check_finite({"loss": loss.detach()}, (epoch, getattr(self, "max_epoch", epoch + 1)),
                     (batch, getattr(self, "num_batches", batch + 1)), lr)

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


class SimpleTrainer(Run, TrainerBase):
    """A trainer with data, a device, evaluation and checkpoints."""

    model: Any  # set by build_model

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
            dm = DataManager(self.cfg)
        self.use_data(dm)
        self.num_batches = self.batches_per_epoch()
        if not self.cfg.TEST.NO_TEST:
            self.check_validation(training=False)

    def build_model(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define build_model")

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

    def save_missing_model(self) -> None:
        """Write the last epoch's checkpoint if the run was killed before that was saved, or if it is damaged."""
        due = self._models and self.start_epoch and not self.start_batch and self.saves_after(self.start_epoch)
        name = f"model.pth.tar-{self.start_epoch}"
        if due and not all(is_readable(os.path.join(self.output_dir, model, name)) for model in self._models):
            self.save_model(self.start_epoch - 1, self.output_dir)

    def keeps_point(self, tag: str, step: int) -> bool:
        """Return whether a point of a curve stays: this run, once resumed, does not write it again."""
        kind = tag.partition("/")[0]
        if kind == "val":
            return step < self.start_epoch
        if kind == "test":
            return step < min(self.start_epoch, self.max_epoch - 1)
        return step < self.start_epoch * self.batches_per_epoch() + self.start_batch

    def batches_per_epoch(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.train_loader_x)

    def save_model(self, epoch: int, directory: str, *args, **kwargs) -> None:
        """Write the curves, which a run resumed from this checkpoint does not write again, then the checkpoint."""
        self.flush_writer()
        super().save_model(epoch, directory, *args, **kwargs)

    def begin_epoch(self) -> None:
        """Seed the epoch: its random numbers are a function of seed and epoch alone."""
        set_random_seed(seed_of(self.seed, "global", self.epoch))
        set_epoch(self.train_loader_x, self.epoch)
        set_epoch(self.train_loader_u, f"unlabeled.{self.epoch}")

    def after_epoch(self) -> None:
        self.deployed_epoch = self.epoch + 1
        if not self.cfg.TEST.NO_TEST and self.cfg.TEST.FINAL_MODEL == "best_val":
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name=BEST)
        if self.saves_after(self.epoch + 1):
            self.save_model(self.epoch, self.output_dir)

    def saves_after(self, epochs: int) -> bool:
        """Return whether a checkpoint is written after this number of epochs."""
        freq = self.cfg.TRAIN.CHECKPOINT_FREQ
        return (freq > 0 and epochs % freq == 0) or epochs == self.max_epoch

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

    def model_inference(self, input: Tensor) -> Tensor:
        return self.model(input)

    def parse_batch_test(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Return image and label on the device."""
        return self.to_device(batch["img"]), self.to_device(batch["label"])

    def get_current_lr(self, names: str | list[str] | None = None) -> float:
        """Return the learning rate of the first parameter group of the first model."""
        name = self.get_model_names(names)[0]
        return self._optims[name].param_groups[0]["lr"]
