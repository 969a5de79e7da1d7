"""The training loop and its hooks: TrainerBase -> SimpleTrainer -> TrainerX (labeled data), TrainerXU (unlabeled too).

A method subclasses TrainerX and defines build_model and forward_backward, often check_cfg and parse_batch_train.
"""
import os
import shutil
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from datetime import timedelta

import torch
from torch import Tensor, nn
from tqdm import tqdm

from p2c import trainable
from p2c.engine.checkpoint import (
    BEST,
    CannotResume,
    NothingToResume,
    load_checkpoint,
    load_resumable,
    restore,
    save_checkpoint,
)
from p2c.engine.config import check_values, unused_keys
from p2c.engine.data import DataManager, set_epoch
from p2c.engine.files import mkdir_if_missing
from p2c.engine.logger import on_terminal
from p2c.engine.progress import EpochProgress
from p2c.engine.registry import build_evaluator
from p2c.engine.results import changes, describe_classes, to_plain, write_finished, write_started
from p2c.engine.seeds import random_state_kept, run_seed, set_random_seed
from p2c.engine.utils import tolist_if_not
from p2c.logs import get_logger
from p2c.streams import seed_of

log = get_logger(__name__)


class SimpleNet(nn.Module):
    """Dassl's backbone-and-head network, which this engine does not have."""

    def __init__(self, *args, **kwargs):
        raise NotImplementedError("This engine has no SimpleNet: define build_model in the trainer")


class TrainerBase:
    """Keeps the registered models with their optimisers and schedules, and runs the loop over epochs."""

    def __init__(self):
        self._models = OrderedDict()
        self._optims = OrderedDict()
        self._scheds = OrderedDict()
        self._writer = None

    # Models

    def register_model(self, name: str = "model", model: nn.Module | None = None, optim=None, sched=None) -> None:
        """Have a model trained, saved and resumed under `name`, with its optimiser and schedule if any."""
        if "_models" not in self.__dict__:
            raise AttributeError("Call super().__init__() before register_model()")
        assert name not in self._models, f"Found duplicate model names: {name}"
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names: str | list[str] | None = None) -> list[str]:
        """All registered names, or those given, which must be registered."""
        if names is None:
            return list(self._models)
        names = tolist_if_not(names)
        for name in names:
            assert name in self._models, f"No model is registered as {name}; choose from {', '.join(self._models)}"
        return names

    def set_model_mode(self, mode: str = "train", names: str | list[str] | None = None) -> None:
        """Put registered models into mode "train", "test" or "eval"."""
        if mode not in ("train", "test", "eval"):
            raise KeyError(f"Unknown mode {mode!r}; choose from train, test, eval")
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    # Checkpoints

    def save_model(
        self, epoch: int, directory: str, is_best: bool = False, val_result: float | None = None, model_name: str = ""
    ) -> None:
        """Write a checkpoint of each registered model after the epoch with this index."""
        for name in self.get_model_names():
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": trainable.state_dict(self._models[name]),
                "epoch": epoch + 1,
                "optimizer": None if optim is None else optim.state_dict(),
                "scheduler": None if sched is None else sched.state_dict(),
                "val_result": val_result,
                **self.run_state(),
            }
            save_checkpoint(state, os.path.join(directory, name), is_best=is_best, model_name=model_name)

    def resume_model_if_exist(self, directory: str) -> int:
        """Continue from the checkpoints under a folder, if there are any; returns the epoch to start with.

        Raises CannotResume if they are another run's, do not fit or cannot be read.
        """
        names = self.get_model_names()
        if not names:
            log.info("There is nothing to train: no model is registered")
            return self.max_epoch
        folders = [os.path.join(directory, name) for name in names]
        if missing := [folder for folder in folders if not os.path.isdir(folder)]:
            if len(missing) < len(folders):
                log.warning(f"There are checkpoints in {directory}, but none in {', '.join(missing)}")
            log.info("No checkpoint found, train from scratch")
            return 0
        log.info(f"Found checkpoint at {directory} (will resume training)")
        paths, checkpoints = load_resumable(folders)
        self.check_run_state(checkpoints[-1])
        for name, path, checkpoint in zip(names, paths, checkpoints, strict=True):
            restore(path, checkpoint, self._models[name], self._optims[name], self._scheds[name])
        self.load_run_state(checkpoints[-1])
        return checkpoints[-1]["epoch"]

    def run_state(self) -> dict:
        """What a checkpoint holds about the run as a whole."""
        return {"extra_state": self.extra_state()}

    def check_run_state(self, checkpoint: dict) -> None:
        """Raise CannotResume if a checkpoint is of another run; nothing has been loaded yet."""

    def load_run_state(self, checkpoint: dict) -> None:
        """Take back what `run_state` gave; a checkpoint of another engine lacks it."""
        if checkpoint.get("extra_state") is not None:
            self.load_extra_state(checkpoint["extra_state"])

    def extra_state(self) -> dict | None:
        """Hook: what else a trainer must keep to resume, as plain tensors and values."""
        return None

    def load_extra_state(self, state: dict) -> None:
        """Hook: take back what `extra_state` gave."""

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load the weights of each registered model: the best ones, or those after `epoch` epochs.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            ValueError: it cannot be read, or its weights are not those of the model.
        """
        if not directory:
            log.info("Note that load_model() is skipped as no pretrained model is given")
            return
        for name in self.get_model_names():
            path = os.path.join(directory, name, BEST if epoch is None else f"model.pth.tar-{epoch}")
            checkpoint = load_checkpoint(path)
            trainable.load_state_dict(self._models[name], checkpoint["state_dict"])
            details = f"epoch={checkpoint['epoch']}"
            if checkpoint.get("val_result") is not None:
                details += f", val_result={checkpoint['val_result']:.1f}"
            log.info(f"Load {path} to {name} ({details})")
            self.deployed_epoch = checkpoint["epoch"]

    # Curves

    def init_writer(self, log_dir: str) -> None:
        """Start writing curves for TensorBoard, if it is installed."""
        if self._writer is not None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            log.warning("tensorboard is not installed: no curves are written")
            return
        log.info(f"Initialize tensorboard (log_dir={log_dir})")
        self._writer = SummaryWriter(log_dir=log_dir)

    def close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Add a point to a curve; does nothing while there is no writer."""
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    # The loop

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """Run the epochs from start_epoch (which before_train may move) to max_epoch."""
        self.start_epoch = start_epoch
        self.max_epoch = max_epoch
        self.before_train()
        for epoch in range(self.start_epoch, self.max_epoch):
            self.epoch = epoch
            self.begin_epoch()
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def begin_epoch(self) -> None:
        """What must hold at the start of each epoch, whatever the hooks do."""

    def before_train(self) -> None:
        """Hook."""

    def after_train(self) -> None:
        """Hook."""

    def before_epoch(self) -> None:
        """Hook."""

    def after_epoch(self) -> None:
        """Hook."""

    def run_epoch(self) -> None:
        raise NotImplementedError

    def test(self) -> float:
        raise NotImplementedError

    def parse_batch_train(self, batch):
        raise NotImplementedError

    def parse_batch_test(self, batch):
        raise NotImplementedError

    def forward_backward(self, batch) -> dict | None:
        raise NotImplementedError

    def model_inference(self, input: Tensor) -> Tensor:
        raise NotImplementedError

    # Steps

    def update_lr(self, names: str | list[str] | None = None) -> None:
        """Step the schedules; the trainer calls this after the last batch of an epoch."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def detect_anomaly(self, loss: Tensor) -> None:
        """FloatingPointError if a loss is not finite."""
        if not torch.isfinite(loss).all():
            epoch, batch = getattr(self, "epoch", 0) + 1, getattr(self, "batch_idx", 0) + 1
            raise FloatingPointError(f"Loss is infinite or NaN! It is {loss.item()} at epoch {epoch}, batch {batch}")

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
        """One step of the optimisers on a loss, which is checked at once."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)


class SimpleTrainer(TrainerBase):
    """A trainer with data, a device, evaluation and checkpoints."""

    def __init__(self, cfg):
        super().__init__()
        check_values(cfg)
        if keys := unused_keys(cfg):
            log.warning(f"Nothing reads {', '.join(keys)}: the values given have no effect")
        self.check_cfg(cfg)
        self.device = torch.device("cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")
        if self.device.type == "cuda" and torch.cuda.device_count() > 1:
            log.info("Using one of the GPUs; choose which with CUDA_VISIBLE_DEVICES")
        self.start_epoch = self.epoch = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.cfg = cfg
        self.seed = run_seed(cfg)
        self.time_built = time.time()
        self.seconds_before = 0.0  # training time of the runs that this one continues
        self.deployed_epoch = 0  # epochs of training behind the weights in use
        self.results = self.tested_split = None  # of the last test

        self.build_data_loader()
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)
        self.best_result = -float("inf")

    def check_cfg(self, cfg) -> None:
        """Hook: refuse settings that the method cannot work with; self.cfg is not set yet."""

    def build_data_loader(self) -> None:
        """Set the loaders and what is known of the classes."""
        self.use_data(DataManager(self.cfg))

    def use_data(self, dm) -> None:
        """Take loaders and classes from a DataManager, or from what has its attributes."""
        self.train_loader_x = dm.train_loader_x
        self.train_loader_u = dm.train_loader_u
        self.val_loader = dm.val_loader
        self.test_loader = dm.test_loader
        self.num_classes = dm.num_classes
        self.num_source_domains = dm.num_source_domains
        self.lab2cname = dm.lab2cname
        self.dm = dm

    def build_model(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define build_model")

    def train(self) -> None:
        super().train(self.start_epoch, self.max_epoch)

    def before_train(self) -> None:
        self.start_epoch = self.resume_model_if_exist(self.cfg.RESUME or self.output_dir)
        self.deployed_epoch = self.start_epoch if self._models else 0
        write_started(self.cfg, self.output_dir)
        writer_dir = os.path.join(self.output_dir, "tensorboard")
        mkdir_if_missing(writer_dir)
        self.init_writer(writer_dir)
        self.time_start = time.time() - self.seconds_before

    def begin_epoch(self) -> None:
        """Make the epoch's random numbers a function of seed and epoch, whatever was drawn before."""
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
        freq = self.cfg.TRAIN.CHECKPOINT_FREQ
        if (freq > 0 and (self.epoch + 1) % freq == 0) or self.epoch + 1 == self.max_epoch:
            self.save_model(self.epoch, self.output_dir)

    def after_train(self) -> None:
        log.info("Finish training")
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

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on "val" (where there is validation data) or on the test data; returns the first metric."""
        self.set_model_mode("eval")
        self.evaluator.reset()
        split = split or self.cfg.TEST.SPLIT
        use_val = split == "val" and self.val_loader is not None
        split, loader = ("val", self.val_loader) if use_val else ("test", self.test_loader)
        log.info(f"Evaluate on the *{split}* set")
        with random_state_kept():
            for batch in tqdm(loader, desc=split, unit="batch", leave=False, disable=not on_terminal()):
                input, label = self.parse_batch_test(batch)
                self.evaluator.process(self.model_inference(input), label)
        results = self.evaluator.evaluate()
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        self.results, self.tested_split = dict(results), split
        return next(iter(results.values()))

    def elapsed(self) -> float:
        """Seconds of training, resumed runs included; before training, seconds since construction."""
        return time.time() - getattr(self, "time_start", self.time_built)

    def write_results(self, mode: str, **source) -> None:
        """Write results.json to the output folder; mode is "train" or, for the test of a model that was loaded from
        `source`, "eval"."""
        write_finished(self, mode, **source)

    def model_inference(self, input: Tensor) -> Tensor:
        return self.model(input)

    def parse_batch_test(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Image and label on the device."""
        return self.to_device(batch["img"]), self.to_device(batch["label"])

    def to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def get_current_lr(self, names: str | list[str] | None = None) -> float:
        """The rate of the first parameter group of the first model's optimiser."""
        name = self.get_model_names(names)[0]
        return self._optims[name].param_groups[0]["lr"]

    def resume_model_if_exist(self, directory: str) -> int:
        start_epoch = super().resume_model_if_exist(directory)
        if self._models and self.cfg.RESUME and not start_epoch:
            raise NothingToResume(f'RESUME asks for "{directory}", but there is no checkpoint of this trainer in it')
        return start_epoch

    def run_state(self) -> dict:
        scaler = getattr(self, "scaler", None)
        return {
            **super().run_state(),
            "config": to_plain(self.cfg),
            "best_result": self.best_result,
            "seconds": self.elapsed(),
            **describe_classes(self.dm.dataset),
            "scaler": scaler.state_dict() if hasattr(scaler, "state_dict") else None,
        }

    def check_run_state(self, checkpoint: dict) -> None:
        source = self.cfg.RESUME or self.output_dir
        if changed := changes(checkpoint.get("config") or {}, self.cfg):
            raise CannotResume(
                f"Cannot resume from {source}, a run with other settings: {changed}; choose another --output-dir "
                "(and no --resume), or give the old values"
            )
        classnames = checkpoint.get("classnames")
        if classnames is not None and classnames != list(self.dm.dataset.classnames):
            raise CannotResume(
                f"Cannot resume from {source}: it was trained on {len(classnames)} classes "
                f"({', '.join(classnames[:3])}, ...), this data set has {self.num_classes} "
                f"({', '.join(self.dm.dataset.classnames[:3])}, ...); choose another --output-dir"
            )

    def load_run_state(self, checkpoint: dict) -> None:
        super().load_run_state(checkpoint)
        if checkpoint.get("scaler") and hasattr(getattr(self, "scaler", None), "load_state_dict"):
            self.scaler.load_state_dict(checkpoint["scaler"])
        self.seconds_before = checkpoint.get("seconds", 0.0)
        self._take_over_best_model(checkpoint)

    def _take_over_best_model(self, checkpoint: dict) -> None:
        """Go on comparing with the best model so far, which may lie in the folder that RESUME names."""
        self.best_result = checkpoint.get("best_result", self.best_result)
        for name in self.get_model_names():
            source = os.path.join(self.cfg.RESUME or self.output_dir, name, BEST)
            target = os.path.join(self.output_dir, name, BEST)
            if not os.path.isfile(source):
                continue
            if "best_result" not in checkpoint:  # one of real Dassl
                val_result = load_checkpoint(source).get("val_result")
                self.best_result = self.best_result if val_result is None else val_result
            if not os.path.isfile(target):
                mkdir_if_missing(os.path.dirname(target))
                shutil.copyfile(source, target)


class TrainerX(SimpleTrainer):
    """Trains on labeled data: `forward_backward(batch)` once per batch of train_loader_x."""

    def run_epoch(self) -> None:
        batches = ((batch,) for batch in self.train_loader_x)
        self.run_batches(batches, len(self.train_loader_x))

    def run_batches(self, batches: Iterable[tuple], num_batches: int) -> None:
        """One epoch over tuples of arguments for `forward_backward`, with progress lines and curves."""
        self.set_model_mode("train")
        self.num_batches = num_batches
        freq = self.cfg.TRAIN.PRINT_FREQ
        with EpochProgress(self.epoch, self.max_epoch, num_batches, freq, self.write_scalar) as progress:
            for self.batch_idx, batch in enumerate(progress.timed(batches)):
                summary = self.forward_backward(*batch)
                progress.record(self.batch_idx, summary, self.get_current_lr())

    def parse_batch_train(self, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
        """Image, label and domain on the device."""
        return tuple(self.to_device(batch[name]) for name in ("img", "label", "domain"))


class TrainerXU(TrainerX):
    """Trains on labeled and unlabeled data: `forward_backward(batch_x, batch_u)`."""

    def run_epoch(self) -> None:
        length_x, length_u = len(self.train_loader_x), len(self.train_loader_u)
        lengths = {"train_x": length_x, "train_u": length_u, "smaller_one": min(length_x, length_u)}
        num_batches = lengths[self.cfg.TRAIN.COUNT_ITER]
        batches_x = self._restarting(self.train_loader_x, "labeled")
        batches_u = self._restarting(self.train_loader_u, "unlabeled")
        self.run_batches(((next(batches_x), next(batches_u)) for _ in range(num_batches)), num_batches)

    def _restarting(self, loader: Iterable, kind: str) -> Iterator:
        """Batches without end; each pass over the loader has its own order."""
        passes = 0
        while True:
            yield from loader
            passes += 1
            set_epoch(loader, f"{kind}.{self.epoch}.{passes}")

    def parse_batch_train(self, batch_x: dict, batch_u: dict) -> tuple[Tensor, Tensor, Tensor]:
        """Labeled image, its label and unlabeled image on the device."""
        return self.to_device(batch_x["img"]), self.to_device(batch_x["label"]), self.to_device(batch_u["img"])
