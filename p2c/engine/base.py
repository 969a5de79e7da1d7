"""The loop over epochs and its hooks."""
from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from p2c.engine.curves import CurveWriter
from p2c.engine.distributed import is_main
from p2c.engine.files import errors_naming
from p2c.engine.numerics import check_finite
from p2c.engine.run import Run
from p2c.engine.utils import tolist_if_not
from p2c.utils.logs import get_logger

log = get_logger(__name__)


class SimpleNet(nn.Module):
    """Placeholder for Dassl's network of backbone and head, which this engine does not provide."""

    def __init__(self, *args, **kwargs):
        raise NotImplementedError("This engine has no SimpleNet: define build_model in the trainer")


class TrainerBase(Run):
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
