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
from p2c.engine import utils
from p2c.engine.config import clean_cfg, get_cfg_default
from p2c.engine.data import DataManager, DatasetWrapper, build_data_loader
from p2c.engine.datasets import DatasetBase, Datum
from p2c.engine.evaluation import Classification, EvaluatorBase, compute_accuracy
from p2c.engine.optim import build_lr_scheduler, build_optimizer
from p2c.engine.registry import (
    DATASET_REGISTRY,
    EVALUATOR_REGISTRY,
    TRAINER_REGISTRY,
    build_dataset,
    build_evaluator,
    build_trainer,
)
from p2c.engine.samplers import RandomClassSampler, RandomDomainSampler, SeqDomainSampler, build_sampler
from p2c.engine.trainer import SimpleNet, SimpleTrainer, TrainerBase, TrainerX, TrainerXU
from p2c.engine.transforms import INTERPOLATION_MODES, build_transform
from p2c.engine.utils import *  # noqa: F403

__all__ = [
    "Classification", "DATASET_REGISTRY", "DataManager", "DatasetBase", "DatasetWrapper", "Datum", "EVALUATOR_REGISTRY",
    "EvaluatorBase", "INTERPOLATION_MODES", "RandomClassSampler", "RandomDomainSampler", "SeqDomainSampler",
    "SimpleNet", "SimpleTrainer", "TRAINER_REGISTRY", "TrainerBase", "TrainerX", "TrainerXU", "build_data_loader",
    "build_dataset", "build_evaluator", "build_lr_scheduler", "build_optimizer", "build_sampler", "build_trainer",
    "build_transform", "clean_cfg", "compute_accuracy", "get_cfg_default",
]
__all__ += utils.__all__
