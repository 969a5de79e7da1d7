"""The choice of the engine: names that depend on it are imported from here.

On real Dassl (see `p2c.compat.engine`) the loop, the data, the evaluator, the registries and the default configuration
are Dassl's. Everything else, such as optimisers, checkpoints and records, is this package's on both. The type checker
sees this package's engine.
"""
from typing import TYPE_CHECKING

from p2c import compat

__all__ = [
    "DATASET_REGISTRY", "DataManager", "DatasetBase", "DatasetWrapper", "EVALUATOR_REGISTRY", "SimpleTrainer",
    "TRAINER_REGISTRY", "TrainerBase", "TrainerX", "build_trainer", "build_transform", "get_cfg_default",
]

if TYPE_CHECKING or compat.engine() == compat.OURS:
    from p2c.engine.config import get_cfg_default
    from p2c.engine.data import DataManager, DatasetWrapper
    from p2c.engine.datasets import DatasetBase
    from p2c.engine.registry import DATASET_REGISTRY, EVALUATOR_REGISTRY, TRAINER_REGISTRY, build_trainer
    from p2c.engine.trainer import SimpleTrainer, TrainerBase, TrainerX
    from p2c.engine.transforms import build_transform
else:
    from dassl.config import get_cfg_default
    from dassl.data import DataManager, DatasetWrapper
    from dassl.data.datasets import DATASET_REGISTRY as DASSL_DATASETS
    from dassl.data.datasets import DatasetBase
    from dassl.data.transforms import build_transform
    from dassl.engine import TRAINER_REGISTRY as DASSL_TRAINERS
    from dassl.engine import SimpleTrainer, TrainerBase, build_trainer
    from dassl.engine import TrainerX as DasslTrainerX
    from dassl.evaluation import EVALUATOR_REGISTRY

    from p2c.engine.logger import log_to_stdout
    from p2c.engine.numerics import NonFiniteLoss, check_finite, save_nonfinite_state
    from p2c.engine.run import Run
    from p2c.utils.logs import speak_despite_disable

    speak_despite_disable()
    log_to_stdout()

    class Names:
        """A registry of real Dassl in which a name that is taken keeps its object."""

        def __init__(self, registry):
            self._registry = registry

        def register(self):
            """Return a decorator that adds an object unless its name is taken."""
            def add(obj):
                if obj.__name__ not in self._registry.registered_names():
                    self._registry.register(obj)
                return obj

            return add

        def __getattr__(self, name: str):
            return getattr(self._registry, name)

    DATASET_REGISTRY, TRAINER_REGISTRY = Names(DASSL_DATASETS), Names(DASSL_TRAINERS)

    class TrainerX(Run, DasslTrainerX):
        """Real Dassl's loop with this package's checkpoints, evaluation and records."""

        dassl_version = compat.dassl_version()

        def __init__(self, cfg):
            self.open_run(cfg)
            super().__init__(cfg)

        def build_data_loader(self) -> None:
            super().build_data_loader()
            if not self.cfg.TEST.NO_TEST:
                self.check_validation(training=False)

        def before_train(self) -> None:
            self.check_validation(training=True)
            super().before_train()
            self.begin_run()

        def checked(self, summary: dict) -> dict:
            """Return the numbers of a training step unchanged. Raise NonFiniteLoss if a loss is not finite."""
            try:
                check_finite(summary, (self.epoch, self.max_epoch), (self.batch_idx, self.num_batches),
                             self.get_current_lr())
            except NonFiniteLoss as error:
                raise save_nonfinite_state(self, error) from error
            return summary

        def after_epoch(self) -> None:
            self.deployed_epoch = self.epoch + 1
            if self.validates_after(self.epoch + 1) and self.cfg.TEST.FINAL_MODEL != "best_val":
                self.test(split="val")
            super().after_epoch()

        def after_train(self) -> None:
            super().after_train()
            self.write_results("train")
