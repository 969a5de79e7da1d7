"""The training loop and its hooks: TrainerBase -> SimpleTrainer -> TrainerX (labeled data), TrainerXU (unlabeled too).

A method subclasses TrainerX and defines build_model and forward_backward, often check_cfg and parse_batch_train.
"""
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from datetime import timedelta

import torch
from torch import Tensor, nn

from p2c.engine.checkpoint import BEST, is_readable
from p2c.engine.curves import CurveWriter, cut_back
from p2c.engine.data import DataManager, end_workers, set_epoch
from p2c.engine.distributed import first_on_each_machine, is_main, processes
from p2c.engine.files import mkdir_if_missing, named_errors
from p2c.engine.numerics import NonFiniteLoss, check_finite, keep_state
from p2c.engine.position import InsideEpoch
from p2c.engine.progress import EpochProgress
from p2c.engine.registry import build_evaluator
from p2c.engine.run import Checkpoints, Run
from p2c.engine.seeds import set_random_seed
from p2c.engine.utils import tolist_if_not
from p2c.utils.logs import get_logger
from p2c.utils.streams import seed_of

log = get_logger(__name__)


class SimpleNet(nn.Module):
    """Dassl's backbone-and-head network, which this engine does not have."""

    def __init__(self, *args, **kwargs):
        raise NotImplementedError("This engine has no SimpleNet: define build_model in the trainer")


class TrainerBase(Checkpoints):
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

    # Curves

    def init_writer(self, log_dir: str) -> None:
        """Start writing curves for TensorBoard, if it is installed."""
        if self._writer is not None or not is_main():
            return
        try:
            with named_errors(log_dir):
                self._writer = CurveWriter(log_dir)
        except ImportError:
            log.warning("tensorboard is not installed: no curves are written")
            return
        log.info(f"Initialize tensorboard (log_dir={log_dir})")

    def flush_writer(self) -> None:
        """Have the points so far on the disk."""
        if self._writer is not None:
            with named_errors(self._writer.log_dir):
                self._writer.flush()

    def close_writer(self) -> None:
        if self._writer is not None:
            with named_errors(self._writer.log_dir):
                self._writer.close()
            self._writer = None

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Add a point to a curve; does nothing while there is no writer."""
        if self._writer is not None:
            with named_errors(self._writer.log_dir):
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
            self.end_epoch()
        self.after_train()

    def begin_epoch(self) -> None:
        """What must hold at the start of each epoch, whatever the hooks do."""

    def end_epoch(self) -> None:
        """What must be done at the end of each epoch, after the hooks."""

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
        """NonFiniteLoss, a FloatingPointError, if a loss is not finite."""
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
        """One step of the optimisers on a loss, which is checked at once."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)


class SimpleTrainer(Run, TrainerBase):
    """A trainer with data, a device, evaluation and checkpoints."""

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
        """Hook: refuse settings that the method cannot work with; self.cfg is not set yet."""

    def build_data_loader(self) -> None:
        """Set the loaders and what is known of the classes."""
        with first_on_each_machine():
            dm = DataManager(self.cfg)
        self.use_data(dm)
        self.num_batches = self.batches_per_epoch()
        if not self.cfg.TEST.NO_TEST:
            self.check_validation(training=False)

    def build_model(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define build_model")

    def train(self) -> None:
        super().train(self.start_epoch, self.max_epoch)

    def before_train(self) -> None:
        self.check_validation(training=True)
        self.start_epoch = self.resume_model_if_exist(self.cfg.RESUME or self.output_dir)
        self.begin_run()
        if not self.cfg.RESUME:
            self.save_missing_model()
        writer_dir = os.path.join(self.output_dir, "tensorboard")
        mkdir_if_missing(writer_dir)
        if is_main():
            cut_back(writer_dir, self.stays_in_curves)
        self.init_writer(writer_dir)

    def save_missing_model(self) -> None:
        """Write the last epoch's checkpoint if the run was killed when only the best model was saved, or if it is
        damaged."""
        due = self._models and self.start_epoch and not self.start_batch and self.saves_after(self.start_epoch)
        name = f"model.pth.tar-{self.start_epoch}"
        if due and not all(is_readable(os.path.join(self.output_dir, model, name)) for model in self._models):
            self.save_model(self.start_epoch - 1, self.output_dir)

    def stays_in_curves(self, tag: str, step: int) -> bool:
        """Whether this run, as it goes on, will not write a curve's point again."""
        kind = tag.partition("/")[0]
        if kind == "val":
            return step < self.start_epoch
        if kind == "test":
            return step < min(self.start_epoch, self.max_epoch - 1)
        return step < self.start_epoch * self.batches_per_epoch() + self.start_batch

    def batches_per_epoch(self) -> int:
        """The length of an epoch."""
        return len(self.train_loader_x)

    def save_model(self, epoch: int, directory: str, *args, **kwargs) -> None:
        """The curves are on the disk before the checkpoint: a run that goes on from there does not draw them again."""
        self.flush_writer()
        super().save_model(epoch, directory, *args, **kwargs)

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
        if self.saves_after(self.epoch + 1):
            self.save_model(self.epoch, self.output_dir)

    def saves_after(self, epochs: int) -> bool:
        """Whether so many epochs of training leave a checkpoint."""
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
        """Image and label on the device."""
        return self.to_device(batch["img"]), self.to_device(batch["label"])

    def get_current_lr(self, names: str | list[str] | None = None) -> float:
        """The rate of the first parameter group of the first model's optimiser."""
        name = self.get_model_names(names)[0]
        return self._optims[name].param_groups[0]["lr"]


class TrainerX(InsideEpoch, SimpleTrainer):
    """Trains on labeled data: `forward_backward(batch)` once per batch of train_loader_x."""

    def run_epoch(self) -> None:
        batches = ((batch,) for batch in self.train_loader_x)
        self.run_batches(batches, self.batches_per_epoch())

    def run_batches(self, batches: Iterable[tuple], num_batches: int) -> None:
        """An epoch over tuples of arguments for `forward_backward`, with progress lines and curves.

        Batches before `first_batch` are done, and not among these.
        """
        self.set_model_mode("train")
        self.num_batches = num_batches
        freq = self.cfg.TRAIN.PRINT_FREQ
        first = self.first_batch
        progress = EpochProgress(self.epoch, self.max_epoch, num_batches, freq, self.write_scalar, first,
                                 self.progress_before)
        try:
            with progress:
                for self.batch_idx, batch in enumerate(progress.timed(batches), first):
                    used_lr = self.get_current_lr()
                    summary = self.forward_backward(*batch)
                    progress.record(self.batch_idx, summary, self.get_current_lr(), used_lr)
                    self.after_step(progress)
        except NonFiniteLoss as error:
            raise keep_state(self, error, progress.recent()) from error

    def parse_batch_train(self, batch: dict) -> tuple[Tensor, ...]:
        """Image, label and domain on the device."""
        return tuple(self.to_device(batch[name]) for name in ("img", "label", "domain"))


class TrainerXU(TrainerX):
    """Trains on labeled and unlabeled data: `forward_backward(batch_x, batch_u)`."""

    def batches_per_epoch(self) -> int:
        length_x, length_u = len(self.train_loader_x), len(self.train_loader_u)
        lengths = {"train_x": length_x, "train_u": length_u, "smaller_one": min(length_x, length_u)}
        return lengths[self.cfg.TRAIN.COUNT_ITER]

    def run_epoch(self) -> None:
        num_batches = self.batches_per_epoch()
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
