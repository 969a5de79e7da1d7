"""The training engine: the part of Dassl's public API that prompt learning uses, on current torch.

Dassl                          this package
dassl.engine                   p2c.engine, p2c.engine.trainer
dassl.config                   p2c.engine.config
dassl.data, .data_manager      p2c.engine.data
dassl.data.datasets            p2c.engine.datasets, p2c.engine.registry
dassl.data.samplers            p2c.engine.samplers
dassl.data.transforms          p2c.engine.transforms
dassl.evaluation, .metrics     p2c.engine.evaluation
dassl.optim                    p2c.engine.optim
dassl.utils, .torchtools       p2c.engine.utils
"""
from p2c.engine.checkpoint import (
    CannotResume,
    load_checkpoint,
    load_pretrained_weights,
    resume_from_checkpoint,
    save_checkpoint,
)
from p2c.engine.config import clean_cfg, get_cfg_default
from p2c.engine.data import DataManager, DatasetWrapper, build_data_loader
from p2c.engine.datasets import DatasetBase, Datum, sample_shots
from p2c.engine.evaluation import Classification, EvaluatorBase, compute_accuracy
from p2c.engine.files import (
    check_isfile,
    download_url,
    listdir_nohidden,
    mkdir_if_missing,
    read_image,
    read_json,
    write_atomically,
    write_json,
)
from p2c.engine.layers import count_num_param, init_network_weights, open_all_layers, open_specified_layers
from p2c.engine.logger import Logger, setup_logger
from p2c.engine.meters import AverageMeter, MetricMeter
from p2c.engine.optim import build_lr_scheduler, build_optimizer
from p2c.engine.registry import (
    DATASET_REGISTRY,
    EVALUATOR_REGISTRY,
    TRAINER_REGISTRY,
    Registry,
    build_dataset,
    build_evaluator,
    build_trainer,
    check_availability,
    get_most_similar_str_to_a_from_b,
)
from p2c.engine.restricted import read_legacy_pickle
from p2c.engine.samplers import RandomClassSampler, RandomDomainSampler, SeqDomainSampler, build_sampler
from p2c.engine.seeds import run_seed, set_random_seed
from p2c.engine.trainer import SimpleNet, SimpleTrainer, TrainerBase, TrainerX, TrainerXU
from p2c.engine.transforms import INTERPOLATION_MODES, build_transform
from p2c.engine.utils import collect_env_info, tolist_if_not

__all__ = [
    "AverageMeter", "CannotResume", "Classification", "DATASET_REGISTRY", "DataManager", "DatasetBase",
    "DatasetWrapper", "Datum", "EVALUATOR_REGISTRY", "EvaluatorBase", "INTERPOLATION_MODES", "Logger", "MetricMeter",
    "RandomClassSampler", "RandomDomainSampler", "Registry", "SeqDomainSampler", "SimpleNet", "SimpleTrainer",
    "TRAINER_REGISTRY", "TrainerBase", "TrainerX", "TrainerXU", "build_data_loader", "build_dataset", "build_evaluator",
    "build_lr_scheduler", "build_optimizer", "build_sampler", "build_trainer", "build_transform", "check_availability",
    "check_isfile", "clean_cfg", "collect_env_info", "compute_accuracy", "count_num_param", "download_url",
    "get_cfg_default", "get_most_similar_str_to_a_from_b", "init_network_weights", "listdir_nohidden",
    "load_checkpoint", "load_pretrained_weights", "mkdir_if_missing", "open_all_layers", "open_specified_layers",
    "read_image", "read_json", "read_legacy_pickle", "resume_from_checkpoint", "run_seed", "sample_shots",
    "save_checkpoint", "set_random_seed", "setup_logger", "tolist_if_not", "write_atomically", "write_json",
]
