"""What all prompt-learning trainers share: build the method's model from a configuration, step it, save its prompts.

The method itself is the model (p2c/model.py). Shapes: B images, C classes.
"""
import functools
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from yacs.config import CfgNode

from p2c.checkpoints.prompts import find_checkpoint, load_prompts, other_backbone
from p2c.clip.loading import Backbone, load_backbone
from p2c.clip.precision import Precision
from p2c.cloud import CloudTests
from p2c.config import check_settings
from p2c.denoising.mixture import noise_from_config
from p2c.denoising.noise import PromptDenoising
from p2c.denoising.schedules import build_schedule
from p2c.engine.checkpoint import CannotResume
from p2c.engine.config import SHARED_NODES
from p2c.engine.distributed import first_on_each_machine, local_processes, parallel
from p2c.engine.numerics import SkippedSteps
from p2c.engine.optim import build_lr_scheduler, build_optimizer
from p2c.framework import TrainerX
from p2c.model import PromptedCLIP, Step
from p2c.prompts.attributes import choose_attributes
from p2c.utils import trainable
from p2c.utils.logs import get_logger
from p2c.utils.memory import total_memory
from p2c.utils.pixels import Normalization, as_bytes

log = get_logger(__name__)

GIB = 1 << 30  # bytes
TEXT_SHARE = 0.25  # of a device's memory, for the class texts' activations


class PromptTrainer(CloudTests, TrainerX):
    """Base of the prompt-learning trainers. CLIP stays frozen, and the learner alone is registered."""

    node: str  # the trainer's settings in cfg.TRAINER
    model_class: type[PromptedCLIP]
    learner_name = "prompt_learner"  # folder of the checkpoints, as in the published code
    takes_attributes = False  # whether TRAINER.ATPROMPT is for this trainer
    supports_distributed = True
    length_matters = False
    resumes_inside_epoch = True  # all randomness is in streams: a trainer with any other must set this to False

    # Building

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise ValueError for missing or senseless settings, naming the key."""
        name = type(self).__name__
        for node in (self.node, "PROMPT_DENOISING", "ATPROMPT"):
            if node not in cfg.TRAINER:
                raise ValueError(f"The configuration lacks TRAINER.{node}; call p2c.config.extend_cfg(cfg) before "
                                 "merging, and do not remove the node")
        check_settings(cfg, {self.node, *SHARED_NODES})
        if cfg.INPUT.NO_TRANSFORM:
            raise ValueError(f"INPUT.NO_TRANSFORM hands out images as their files have them, but {name} needs tensors "
                             "of one size; set INPUT.NO_TRANSFORM False")
        if cfg.TRAINER.ATPROMPT.USE_ATPROMPT and not self.takes_attributes:
            raise ValueError(f"{name} takes no attributes; set TRAINER.ATPROMPT.USE_ATPROMPT False")
        if cfg.TRAINER.PROMPT_DENOISING.ENABLED and not self.model_class.prompts_text:
            raise ValueError(f"{name} learns no text context to put noise on; set "
                             "TRAINER.PROMPT_DENOISING.ENABLED False")
        super().check_cfg(cfg)

    @classmethod
    def model_arguments(cls, cfg: CfgNode, clip: Backbone, dataset) -> dict:
        """Return the model's own arguments: the trainer's settings, in lower case."""
        return {key.lower(): value for key, value in cfg.TRAINER[cls.node].items() if key != "PREC"}

    @classmethod
    def create_model(cls, cfg: CfgNode, clip: Backbone, precision: Precision, dataset, seed: int) -> PromptedCLIP:
        """Build the method's model for a dataset's classes (`classnames`, and `template` if it has one).

        Raises:
            ValueError: settings, classes and towers that do not go together.
        """
        settings, denoising = cfg.TRAINER[cls.node], cfg.TRAINER.PROMPT_DENOISING
        arguments = cls.model_arguments(cfg, clip, dataset) | {
            "denoising": build_denoising(cfg, clip) if denoising.ENABLED else None,
            "precision": precision,
            "text_memory": text_memory(cfg.TRAIN.TEXT_MEMORY, clip.model.text_projection.device),
            "compiled": cfg.TRAIN.COMPILE,
        }
        if cls.takes_attributes:
            arguments["attributes"] = choose_attributes(cfg.TRAINER.ATPROMPT, cfg.DATASET.NAME)
        try:
            model = cls.model_class(clip, dataset.classnames, seed=seed, **arguments)
        except ValueError as error:
            argument, _, rest = str(error).partition(" ")
            if argument.upper() in settings:
                raise ValueError(f"TRAINER.{cls.node}.{argument.upper()} {rest}") from error
            raise
        if denoising.NOISE_UNIT == "embedding" and model.draw(Step()):
            log.info(f"Noise levels are in units of {clip.token_std:.6f}, the standard deviation of the token "
                     "embedding")
        return model

    def build_model(self) -> None:
        """Load CLIP, make the method's model, and register its learner alone, with the optimiser.

        Raises:
            ValueError: settings, classes or weights that do not go together.
            FileNotFoundError: weights that are nowhere to be had.
        """
        cfg, dataset = self.cfg, self.dm.dataset
        if len(dataset.classnames) != self.num_classes:
            raise ValueError(f"{cfg.DATASET.NAME} has {self.num_classes} classes by its labels, but "
                             f"{len(dataset.classnames)} class names; every label from 0 on needs one name")
        precision = Precision.from_name(cfg.TRAINER[self.node].PREC, self.device)
        with first_on_each_machine():
            clip = load_backbone(cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.WEIGHTS, precision.dtype, self.device)
        check_input(cfg, clip)
        self.model = self.create_model(cfg, clip, precision, dataset, init_seed(cfg, self.seed))
        if trainable.parameters(self.model.learner):
            self.prepare_training(precision)

    def prepare_training(self, precision: Precision) -> None:
        """Load initial prompts, and make optimiser, schedule and loss scaling."""
        cfg = self.cfg
        if cfg.DATALOADER.K_TRANSFORMS > 1 and type(self).parse_batch_train is PromptTrainer.parse_batch_train:
            raise ValueError(f"DATALOADER.K_TRANSFORMS is {cfg.DATALOADER.K_TRANSFORMS}, but {type(self).__name__} "
                             "trains on one view of each image; set DATALOADER.K_TRANSFORMS 1")
        if cfg.MODEL.INIT_WEIGHTS:
            if not Path(cfg.MODEL.INIT_WEIGHTS).is_file():
                raise FileNotFoundError(f"No checkpoint at {cfg.MODEL.INIT_WEIGHTS}; give a file as MODEL.INIT_WEIGHTS")
            self.load_prompts(Path(cfg.MODEL.INIT_WEIGHTS))
            log.info(f"Starting from the prompts in {cfg.MODEL.INIT_WEIGHTS}")
        self.optim = build_optimizer(self.model.learner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision.scaling)
        self.skipped = SkippedSteps(self.scaler, self.device)
        self.register_model(self.learner_name, self.model.learner, self.optim, self.sched)
        # Words of the attributes that are not in use have tokens that learn nothing.
        self.parallel_model = parallel(self.model, some_unused=cfg.TRAINER.ATPROMPT.USE_ATPROMPT)

    # Images

    def build_data_loader(self) -> None:
        """Have the loaders hand out images in uint8, where normalisation is all that is done to them as floats."""
        super().build_data_loader()
        options = self.cfg.DATALOADER
        if options.K_TRANSFORMS > 1 or options.RETURN_IMG0:  # a batch holds several images of each, all alike
            return
        for loader in (self.train_loader_x, self.train_loader_u, self.val_loader, self.test_loader):
            if hasattr(getattr(loader, "dataset", None), "transform"):
                loader.dataset.transform = as_bytes(loader.dataset.transform, self.normalization)

    @functools.cached_property
    def normalization(self) -> Normalization:
        """What INPUT says of pixels, for images in uint8."""
        return input_normalization(self.cfg, self.device)

    def parse_batch_train(self, batch: Mapping) -> tuple[Tensor, Tensor]:
        """Return images, as floats, and labels, on the device."""
        return self.parse_batch(batch)

    def parse_batch_test(self, batch: Mapping) -> tuple[Tensor, Tensor]:
        """Return images, as floats, and labels, on the device."""
        return self.parse_batch(batch)

    def parse_batch(self, batch: Mapping) -> tuple[Tensor, Tensor]:
        """Return images, as floats, and labels, on the device; images in uint8 are normalised there."""
        image, label = (batch[name].to(self.device, non_blocking=True) for name in ("img", "label"))
        return self.normalization(image) if image.dtype == torch.uint8 else image, label

    # Training

    @property
    def step(self) -> Step:
        """The step in progress."""
        return Step(self.seed, self.epoch * self.num_batches + self.batch_idx, self.epoch,
                    self.batch_idx / self.num_batches)

    def forward_backward(self, batch: Mapping) -> dict[str, Tensor | float]:
        """Do one step: noise, losses, their sum backward, update. Return what is logged, without waiting for a GPU."""
        image, label = self.parse_batch_train(batch)
        noise = self.model.draw(self.step)
        if self.cfg.TRAIN.COMPILE:
            torch.compiler.cudagraph_mark_step_begin()  # its import of the compiler alone takes seconds
        losses = self.parallel_model(image, label, noise)
        loss = sum(losses.values())
        self.optim.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optim)
        self.skipped.update()
        summary = {"loss": loss.detach()}
        if len(losses) > 1:
            summary |= {name: value.detach() for name, value in losses.items()}
        if self.model.denoising is not None:
            summary["noise"] = self.model.noise_level(self.step)
        summary = self.checked(summary)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return summary

    def after_epoch(self) -> None:
        """Say how many steps loss scaling has left out, where it did."""
        if skipped := self.skipped_steps:
            steps = (self.epoch + 1) * self.num_batches
            log.info(f"Loss scaling has left out {skipped} of {steps} steps so far: their gradients were not finite")
        super().after_epoch()

    @property
    def skipped_steps(self) -> int:
        """Steps that loss scaling has left out."""
        return self.skipped.count if self.get_model_names() else 0

    # Checkpoints

    def run_state(self) -> dict:
        return {**super().run_state(), "skipped_steps": self.skipped_steps,
                "backbone_sha256": self.model.backbone.sha256}

    def check_run_state(self, checkpoint: dict) -> None:
        super().check_run_state(checkpoint)
        if not (faults := other_backbone(self.model, checkpoint, self.cfg.MODEL.BACKBONE.WEIGHTS)):
            return
        if not self.resume_anyway:
            raise CannotResume(f"Cannot resume from {self.cfg.RESUME or self.output_dir}: {faults[0]}; choose another "
                               "--output-dir, give the weights of then, or give --resume-anyway")
        self.resumed_anyway = [*self.resumed_anyway, *faults]
        log.warning(f"Resuming anyway: {faults[0]}")

    def load_run_state(self, checkpoint: dict) -> None:
        super().load_run_state(checkpoint)
        self.skipped.before = checkpoint.get("skipped_steps", 0)

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load trained prompts from a run's folder: of `epoch`, else the best on validation data, else the last.

        Published checkpoints load too: only what is learned is taken from them.

        Raises:
            FileNotFoundError: no such checkpoint.
            ValueError: a checkpoint of other prompts.
        """
        if not directory:
            log.info("Note that load_model() is skipped as no pretrained model is given")
            return
        path = find_checkpoint(Path(directory) / self.learner_name, epoch)
        self.deployed_epoch = self.load_prompts(path)
        log.info(f'Loading weights to {self.learner_name} from "{path}" (epoch = {self.deployed_epoch})')

    def load_prompts(self, path: Path) -> int:
        """Load prompts from a checkpoint file; return its epoch. Raises as `checkpoints.prompts.load_prompts`."""
        return load_prompts(self.model, path, type(self).__name__, self.cfg.TRAINER[self.node],
                            self.cfg.MODEL.BACKBONE.WEIGHTS)


def init_seed(cfg: CfgNode, seed: int) -> int:
    """Return the seed of the initial prompts: TRAIN.INIT_SEED or, for -1, the run's."""
    return cfg.TRAIN.INIT_SEED if cfg.TRAIN.INIT_SEED >= 0 else seed


def text_memory(gib: float, device: torch.device) -> float:
    """Return the bytes that TRAIN.TEXT_MEMORY allows: what is asked for or, for 0, an equal part of a share of the
    device's memory for each process there. Not of what is free at the time: equal runs must give equal bits."""
    if gib:
        return gib * GIB
    return TEXT_SHARE * total_memory(device) / (local_processes() if device.type == "cpu" else 1)


def input_normalization(cfg: CfgNode, device: torch.device) -> Normalization:
    """Return what INPUT says of pixels, for images in uint8."""
    settings = cfg.INPUT
    normalized = "normalize" in settings.TRANSFORMS
    return Normalization((settings.PIXEL_MEAN, settings.PIXEL_STD) if normalized else None, device)


def check_input(cfg: CfgNode, clip: Backbone) -> None:
    """Compare the images that the configuration makes with those that CLIP was trained on.

    Raises:
        ValueError: another image size.
    """
    if tuple(cfg.INPUT.SIZE) != clip.image_size:
        raise ValueError(f"INPUT.SIZE is {tuple(cfg.INPUT.SIZE)}, but {clip.name} takes images of {clip.image_size}; "
                         f"set INPUT.SIZE \"{clip.image_size}\"")
    statistics = (*cfg.INPUT.PIXEL_MEAN, *cfg.INPUT.PIXEL_STD)
    expected = (*clip.pixel_mean, *clip.pixel_std)
    if max(abs(a - b) for a, b in zip(statistics, expected, strict=True)) > 1e-3:
        log.warning(f"INPUT.PIXEL_MEAN and PIXEL_STD differ from {clip.name}'s {list(clip.pixel_mean)} and "
                    f"{list(clip.pixel_std)}")


def noise_unit(cfg: CfgNode, clip: Backbone) -> float:
    """Return what a noise level of 1 means in the embedding's numbers."""
    return 1.0 if cfg.TRAINER.PROMPT_DENOISING.NOISE_UNIT == "absolute" else clip.token_std


def build_denoising(cfg: CfgNode, clip: Backbone) -> PromptDenoising:
    """Return the prompt noise that TRAINER.PROMPT_DENOISING describes."""
    settings = cfg.TRAINER.PROMPT_DENOISING
    schedule = build_schedule(settings.SCHEDULE, settings.SIGMOID_K)
    return PromptDenoising(noise_from_config(settings), settings.NOISE_STD, schedule,
                           cfg.OPTIM.MAX_EPOCH, settings.WARMUP_EPOCHS, settings.ANNEAL, noise_unit(cfg, clip))
