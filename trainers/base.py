"""PromptTrainer, the base of all prompt-learning trainers: it builds a model from a configuration, and trains it.

The method itself is the model (p2c/model.py); the loop over the epochs is the engine's. Shapes: B images, C classes.
"""
import functools
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from yacs.config import CfgNode

from p2c.checkpoints.prompts import find_checkpoint, load_prompts, other_backbone
from p2c.clip.precision import Precision
from p2c.cloud import CloudTests
from p2c.config import check_settings
from p2c.engine.checkpoint import CannotResume
from p2c.engine.config import SHARED_NODES
from p2c.engine.distributed import first_on_each_machine, parallel, processes
from p2c.engine.numerics import SkippedSteps
from p2c.engine.optim import build_lr_scheduler, build_optimizer
from p2c.model import Step
from p2c.trainers import graph
from p2c.trainers.building import ModelFromConfig, init_seed, input_normalization, load_clip
from p2c.trainers.graph import GraphedStep, Refused, Update
from p2c.utils import trainable
from p2c.utils.logs import get_logger
from p2c.utils.pixels import Normalization, as_bytes

log = get_logger(__name__)


class PromptTrainer(ModelFromConfig, CloudTests):
    """Base of the prompt-learning trainers. CLIP stays frozen; the engine trains and saves the model's learner only.

    CloudTests is the engine's TrainerX with one more kind of test.
    """

    scaler: torch.amp.GradScaler
    learner_name = "prompt_learner"  # folder of the checkpoints, as in the published code
    supports_distributed = True
    length_matters = False  # True if what an epoch does depends on OPTIM.MAX_EPOCH
    capturable = False  # True if a step is always the same function of batch, noise, learning rates and what is trained
    launch: Update | None = None  # does the steps of this training
    resumes_inside_epoch = True  # False in a trainer that draws random numbers outside `model.draw`

    # Building

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise ValueError for missing settings, and for those that make no sense, naming the key."""
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

    def build_model(self) -> None:
        """Load CLIP, build the method's model, and register its learner with the engine.

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
            clip = load_clip(cfg, precision, self.device)
        self.model = self.create_model(cfg, clip, precision, dataset, init_seed(cfg, self.seed))
        if trainable.parameters(self.model.learner):
            self.prepare_training(precision)

    def prepare_training(self, precision: Precision) -> None:
        """Load initial prompts, make optimiser, schedule and loss scaling, and register the learner.

        Raises:
            ValueError: several views of an image, or initial prompts of another model.
            FileNotFoundError: there is no file of initial prompts.
        """
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
        # Attributes that are not in use have tokens too, and these get no gradient.
        self.parallel_model = parallel(self.model, some_unused=cfg.TRAINER.ATPROMPT.USE_ATPROMPT)

    # Images

    def build_data_loader(self) -> None:
        """Make the loaders, whose images stay in uint8 if the only step after that is normalisation."""
        super().build_data_loader()
        options = self.cfg.DATALOADER
        if options.K_TRANSFORMS > 1 or options.RETURN_IMG0:  # a batch holds several versions of each image
            return
        for loader in (self.train_loader_x, self.train_loader_u, self.val_loader, self.test_loader):
            if hasattr(getattr(loader, "dataset", None), "transform"):
                loader.dataset.transform = as_bytes(loader.dataset.transform, self.normalization)

    @functools.cached_property
    def normalization(self) -> Normalization:
        """The normalisation of images in uint8."""
        return input_normalization(self.cfg, self.device)

    def parse_batch_train(self, batch: Mapping) -> tuple[Tensor, Tensor]:
        """Return images and labels of a batch, see `parse_batch`. A method may train on several views of each image."""
        return self.parse_batch(batch)

    def parse_batch_test(self, batch: Mapping) -> tuple[Tensor, Tensor]:
        """Return images and labels of a batch, see `parse_batch`."""
        return self.parse_batch(batch)

    def parse_batch(self, batch: Mapping) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, height, width), as normalised floats, and labels (B,), on the device.

        Images in uint8 are normalised there.
        """
        image, label = (batch[name].to(self.device, non_blocking=True) for name in ("img", "label"))
        return self.normalization(image), label

    # Training

    @property
    def step(self) -> Step:
        """The step in progress."""
        return Step(seed=self.seed, index=self.epoch * self.num_batches + self.batch_idx, epoch=self.epoch,
                    fraction=self.batch_idx / self.num_batches)

    def forward_backward(self, batch: Mapping) -> dict[str, Tensor | float]:
        """Do one step: draw, losses, gradients of their sum, update. Return what is logged, without waiting for a GPU.
        """
        image, label = self.parse_batch_train(batch)
        step = self.step
        noise = self.model.draw(step)
        if self.launch is None:
            self.launch = self.choose_launch(image, label, noise)
        summary: dict[str, Tensor | float] = {**self.launch(image, label, noise)}
        if self.model.denoising is not None:
            summary["noise"] = self.model.noise_level(step)
        summary = self.checked(summary)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()  # once an epoch
        return summary

    def update(self, image: Tensor, label: Tensor, noise: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute losses and gradients of their sum, and update the prompts. Draw nothing, and do not wait for a GPU.

        Returns:
            "loss", the sum, and if there are several losses, each by its name.
        """
        losses = self.parallel_model(image, label, noise)
        loss = sum(losses.values())
        self.optim.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optim)
        self.skipped.update()
        parts = losses if len(losses) > 1 else {}
        return {name: value.detach() for name, value in {"loss": loss, **parts}.items()}

    def choose_launch(self, image: Tensor, label: Tensor, noise: dict[str, Tensor]) -> Update:
        """Return `update` as a CUDA graph if TRAIN.CUDA_GRAPH asks for one and it can be had, else `update` itself."""
        wish, has_graphs = self.cfg.TRAIN.CUDA_GRAPH, graph.available(self.device)
        if wish == "off" or wish == "auto" and not has_graphs:
            return self.update
        try:
            if not has_graphs:
                raise Refused("that needs a GPU")
            if processes() > 1:
                raise Refused("several processes average their gradients")
            if wish == "auto" and not vars(type(self)).get("capturable"):
                raise Refused(f"{type(self).__name__} is not marked as capturable (see CONTRIBUTING.md)")
            return GraphedStep(self.update, self.optim, self.scaler, self.skipped.skipped, image, label, noise,
                               self.model.precision.products)
        except Refused as error:
            log.info(f"Training steps are not launched as one CUDA graph: {error}")
            return self.update

    def after_epoch(self) -> None:
        """Log how many steps loss scaling has left out, if any."""
        if skipped := self.skipped_steps:
            steps = (self.epoch + 1) * self.num_batches
            log.info(f"Loss scaling has left out {skipped} of {steps} steps so far: their gradients were not finite")
        super().after_epoch()

    @property
    def skipped_steps(self) -> int:
        """The number of steps that loss scaling has left out."""
        return self.skipped.count if self.get_model_names() else 0

    # Checkpoints

    def run_state(self) -> dict:
        """Return what a checkpoint holds beside the learner, with the digest of CLIP's weights."""
        return {**super().run_state(), "skipped_steps": self.skipped_steps,
                "backbone_sha256": self.model.backbone.sha256}

    def check_run_state(self, checkpoint: dict) -> None:
        """Raise CannotResume if a checkpoint is of another run or was trained with another CLIP."""
        super().check_run_state(checkpoint)
        if not (faults := other_backbone(self.model, checkpoint, self.cfg.MODEL.BACKBONE.WEIGHTS)):
            return
        if not self.resume_anyway:
            raise CannotResume(f"Cannot resume from {self.cfg.RESUME or self.output_dir}: {faults[0]}; choose another "
                               "--output-dir, give the weights of then, or give --resume-anyway")
        self.resumed_anyway = [*self.resumed_anyway, *faults]
        log.warning(f"Resuming anyway: {faults[0]}")

    def load_run_state(self, checkpoint: dict) -> None:
        """Take what `run_state` returned."""
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
        """Load prompts from a checkpoint file; return its epoch. Raise as `p2c.checkpoints.prompts.load_prompts`."""
        return load_prompts(self.model, path, type(self).__name__, self.cfg.TRAINER[self.node],
                            self.cfg.MODEL.BACKBONE.WEIGHTS)
