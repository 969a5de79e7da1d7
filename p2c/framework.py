"""The one place that names the engine: the rest of p2c imports Dassl's names from here."""
from p2c.engine import (
    DATASET_REGISTRY,
    EVALUATOR_REGISTRY,
    TRAINER_REGISTRY,
    CannotResume,
    DataManager,
    DatasetBase,
    DatasetWrapper,
    Datum,
    Logger,
    SimpleTrainer,
    TrainerBase,
    TrainerX,
    build_lr_scheduler,
    build_optimizer,
    build_trainer,
    build_transform,
    check_availability,
    clean_cfg,
    collect_env_info,
    compute_accuracy,
    get_cfg_default,
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
from p2c.engine.config import SHARED_NODES
from p2c.engine.files import UnreadableImage, to_rgb, write_csv
from p2c.engine.logger import only_warnings
from p2c.engine.results import changed_keys, flatten, read_results, to_plain, versions, write_started
from p2c.engine.seeds import random_state_kept

__all__ = [
    "BEST", "CannotResume", "DATASET_REGISTRY", "DataManager", "DatasetBase", "DatasetWrapper", "Datum",
    "EVALUATOR_REGISTRY", "Logger", "SHARED_NODES", "SimpleTrainer", "TRAINER_REGISTRY", "TrainerBase", "TrainerX",
    "UnreadableImage", "build_lr_scheduler", "build_optimizer", "build_trainer", "build_transform", "changed_keys",
    "check_availability", "clean_cfg", "collect_env_info", "compute_accuracy", "flatten", "get_cfg_default",
    "load_checkpoint", "load_pretrained_weights", "only_warnings", "random_state_kept", "read_image", "read_json",
    "read_legacy_pickle", "read_results", "run_seed", "sample_shots", "save_checkpoint", "set_random_seed",
    "setup_logger", "to_plain", "to_rgb", "versions", "write_atomically", "write_csv", "write_json", "write_started",
]
