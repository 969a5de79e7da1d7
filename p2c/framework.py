"""The one place that chooses the engine: the rest of p2c imports Dassl's names from here.

On real Dassl (see `p2c.compat.engine`) the loop, the data, the evaluator, the registries and the default configuration
are Dassl's. Optimisers, schedules, checkpoints and records are this package's on both.
"""
from p2c import compat
from p2c.engine import (
    CannotResume,
    Datum,
    Logger,
    build_lr_scheduler,
    build_optimizer,
    check_availability,
    clean_cfg,
    collect_env_info,
    compute_accuracy,
    load_checkpoint,
    load_pretrained_weights,
    read_image,
    read_json,
    read_legacy_pickle,
    run_seed,
    sample_shots,
    save_checkpoint,
    set_random_seed,
    setup_logger,
    write_atomically,
    write_json,
)
from p2c.engine.checkpoint import BEST
from p2c.engine.config import SHARED_NODES, check_values
from p2c.engine.distributed import (
    first_on_each_machine,
    is_main,
    join,
    launched,
    leave,
    local_processes,
    parallel,
    rank,
)
from p2c.engine.files import DiskFull, UnreadableImage, remove_leftovers, to_rgb, write_csv, write_figure
from p2c.engine.lock import folder_lock
from p2c.engine.logger import only_warnings
from p2c.engine.numerics import NonFiniteLoss, SkippedSteps, check_finite, keep_state
from p2c.engine.position import Stopped
from p2c.engine.provenance import versions
from p2c.engine.results import (
    changed_keys,
    describe_data,
    digest_weights,
    measured,
    read_results,
    to_plain,
    write_started,
)
from p2c.engine.run import Run
from p2c.engine.seeds import random_state_kept

__all__ = [
    "BEST", "CannotResume", "DATASET_REGISTRY", "DataManager", "DatasetBase", "DatasetWrapper", "Datum", "DiskFull",
    "EVALUATOR_REGISTRY", "Logger", "NonFiniteLoss", "Run", "SHARED_NODES", "SimpleTrainer", "SkippedSteps", "Stopped",
    "TRAINER_REGISTRY", "TrainerBase", "TrainerX", "UnreadableImage", "build_lr_scheduler", "build_optimizer",
    "build_trainer", "build_transform", "changed_keys", "check_availability", "check_values", "clean_cfg",
    "collect_env_info", "compute_accuracy", "describe_data", "digest_weights", "first_on_each_machine", "folder_lock",
    "get_cfg_default", "is_main", "join", "launched", "leave", "load_checkpoint", "load_pretrained_weights",
    "local_processes", "measured", "only_warnings", "parallel", "random_state_kept", "rank", "read_image", "read_json",
    "read_legacy_pickle", "read_results", "remove_leftovers", "run_seed", "sample_shots", "save_checkpoint",
    "set_random_seed", "setup_logger", "to_plain", "to_rgb", "versions", "write_atomically", "write_csv",
    "write_figure", "write_json", "write_started",
]

if compat.engine() == compat.OURS:
    from p2c.engine import (
        DATASET_REGISTRY,
        EVALUATOR_REGISTRY,
        TRAINER_REGISTRY,
        DataManager,
        DatasetBase,
        DatasetWrapper,
        SimpleTrainer,
        TrainerBase,
        TrainerX,
        build_trainer,
        build_transform,
        get_cfg_default,
    )
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

    from p2c.utils.logs import speak_despite_disable

    speak_despite_disable()

    class Names:
        """A registry of real Dassl's, in which a name that is taken stays whose it is."""

        def __init__(self, registry):
            self._registry = registry

        def register(self, obj=None, force: bool = False):
            """Add an object by its name, unless it is taken; as a decorator it returns the object."""
            if obj is None:
                return lambda decorated: self.register(decorated, force) or decorated
            if force or obj.__name__ not in self._registry.registered_names():
                self._registry.register(obj, force=force)

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
            """What a training step reports, as it is; NonFiniteLoss, a FloatingPointError, if a loss is not finite."""
            try:
                check_finite(summary, (self.epoch, self.max_epoch), (self.batch_idx, self.num_batches),
                             self.get_current_lr())
            except NonFiniteLoss as error:
                raise keep_state(self, error) from error
            return summary

        def after_epoch(self) -> None:
            self.deployed_epoch = self.epoch + 1
            super().after_epoch()

        def after_train(self) -> None:
            super().after_train()
            self.write_results("train")
