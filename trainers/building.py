"""From a configuration to a method's model: the arguments, the prompt noise, what is compared and checked."""
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from yacs.config import CfgNode

from p2c.clip.loading import Backbone, load_backbone
from p2c.clip.precision import Precision
from p2c.denoising.mixture import noise_from_config
from p2c.denoising.noise import PromptDenoising, noise_unit, schedule_from_config
from p2c.engine.distributed import local_processes
from p2c.model import PromptedCLIP, Step
from p2c.prompts.attributes import choose_attributes
from p2c.utils.logs import get_logger
from p2c.utils.memory import total_memory
from p2c.utils.pixels import Normalization

log = get_logger(__name__)

GIB = 1 << 30  # bytes
TEXT_SHARE = 0.25  # of a device's memory, for the class texts' activations


class Classes(Protocol):
    """The classes of a dataset, in the order of the labels. A dataset may also have a `template` with a `{}`."""

    @property
    def classnames(self) -> Sequence[str]:
        """The classes' names."""


class ModelFromConfig:
    """The part of a trainer that builds its model, without data or engine, so that a finished run can be loaded too."""

    node: str  # key of the trainer's settings in cfg.TRAINER
    model_class: type[PromptedCLIP]
    takes_attributes = False  # True if TRAINER.ATPROMPT applies to this trainer

    @classmethod
    def model_arguments(cls, cfg: CfgNode, clip: Backbone, dataset: Classes) -> dict:
        """Return the model's own arguments: the trainer's settings except PREC, in lower case."""
        return {key.lower(): value for key, value in cfg.TRAINER[cls.node].items() if key != "PREC"}

    @classmethod
    def create_model(cls, cfg: CfgNode, clip: Backbone, precision: Precision, dataset: Classes, seed: int) \
            -> PromptedCLIP:
        """Build the method's model for a dataset's classes.

        Args:
            seed: seed of the learner's start.

        Raises:
            ValueError: settings, classes and towers that do not go together.
        """
        settings, denoising = cfg.TRAINER[cls.node], cfg.TRAINER.PROMPT_DENOISING
        build: Callable[..., PromptedCLIP] = cls.model_class  # each method has its own arguments
        arguments = cls.model_arguments(cfg, clip, dataset) | {
            "denoising": build_denoising(cfg, clip) if denoising.ENABLED else None,
            "precision": precision,
            "text_memory": text_memory(cfg.TRAIN.TEXT_MEMORY, clip.model.text_projection.device),
        }
        if cls.takes_attributes:
            arguments["attributes"] = choose_attributes(cfg.TRAINER.ATPROMPT, cfg.DATASET.NAME)
        try:
            model = build(clip, dataset.classnames, seed=seed, **arguments)
        except ValueError as error:  # where it begins with the name of an argument, name the setting instead
            argument, _, rest = str(error).partition(" ")
            if argument.upper() in settings:
                raise ValueError(f"TRAINER.{cls.node}.{argument.upper()} {rest}") from error
            raise
        if denoising.NOISE_UNIT == "embedding" and model.draw(Step()):  # a model without noise has no levels
            log.info(f"Noise levels are in units of {clip.token_std:.6f}, the standard deviation of the token "
                     "embedding")
        return model


def init_seed(cfg: CfgNode, seed: int) -> int:
    """Return the seed of the initial prompts: TRAIN.INIT_SEED or, for -1, the run's."""
    return cfg.TRAIN.INIT_SEED if cfg.TRAIN.INIT_SEED >= 0 else seed


def text_memory(gib: float, device: torch.device) -> float:
    """Return the bytes that the class texts' activations may take, given TRAIN.TEXT_MEMORY in GiB.

    For 0 it is a share of the device's memory, divided among the processes on a CPU. The share is of the whole memory,
    not of what is free: two runs must give the same bits.
    """
    if gib:
        return gib * GIB
    return TEXT_SHARE * total_memory(device) / (local_processes() if device.type == "cpu" else 1)


def input_normalization(cfg: CfgNode, device: torch.device) -> Normalization:
    """Return the normalisation of images in uint8 that INPUT describes."""
    settings = cfg.INPUT
    normalized = "normalize" in settings.TRANSFORMS
    return Normalization((settings.PIXEL_MEAN, settings.PIXEL_STD) if normalized else None, device)


def load_clip(cfg: CfgNode, precision: Precision, device: torch.device) -> Backbone:
    """Load the CLIP that MODEL.BACKBONE names; warn if INPUT's statistics are not those that it was trained with.

    Raises:
        ValueError: unknown or damaged weights, or INPUT.SIZE is not CLIP's.
        FileNotFoundError: the weights cannot be found or downloaded.
    """
    clip = load_backbone(cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.WEIGHTS, precision.dtype, device)
    if tuple(cfg.INPUT.SIZE) != clip.image_size:
        raise ValueError(f"INPUT.SIZE is {tuple(cfg.INPUT.SIZE)}, but {clip.name} takes images of {clip.image_size}; "
                         f"set INPUT.SIZE \"{clip.image_size}\"")
    statistics = (*cfg.INPUT.PIXEL_MEAN, *cfg.INPUT.PIXEL_STD)
    expected = (*clip.pixel_mean, *clip.pixel_std)
    if max(abs(a - b) for a, b in zip(statistics, expected, strict=True)) > 1e-3:
        log.warning(f"INPUT.PIXEL_MEAN and PIXEL_STD differ from {clip.name}'s {list(clip.pixel_mean)} and "
                    f"{list(clip.pixel_std)}")
    return clip


def build_denoising(cfg: CfgNode, clip: Backbone) -> PromptDenoising:
    """Return the prompt noise that TRAINER.PROMPT_DENOISING describes."""
    settings = cfg.TRAINER.PROMPT_DENOISING
    return PromptDenoising(noise_from_config(settings), settings.NOISE_STD, schedule_from_config(settings),
                           cfg.OPTIM.MAX_EPOCH, settings.WARMUP_EPOCHS, settings.ANNEAL,
                           noise_unit(settings, clip.token_std))
