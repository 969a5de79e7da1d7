"""What all prompt-learning trainers share: load CLIP, freeze it, train the prompts, save only the prompts.

A method supplies `build_prompts` and, where cross-entropy is not all, `losses`.
"""
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from yacs.config import CfgNode

from p2c.checkpoints.published import class_differences, differences, learned_entries, per_class
from p2c.clip.loading import CLIP_NAMES, Backbone, load_backbone, named_weights
from p2c.clip.precision import Precision
from p2c.clip.text import ClassPrompts, TextTower
from p2c.clip.vision import ImageTower
from p2c.cloud import CloudRecord, combine, dissent, mutual_information
from p2c.config import check_settings
from p2c.denoising.mixture import Noise, build_noise
from p2c.denoising.noise import PromptDenoising, perturb
from p2c.denoising.schedules import build_schedule
from p2c.framework import (
    SHARED_NODES,
    CannotResume,
    SkippedSteps,
    TrainerX,
    build_lr_scheduler,
    build_optimizer,
    first_on_each_machine,
    is_main,
    load_checkpoint,
    local_processes,
    parallel,
)
from p2c.prompts.attributes import choose_attributes, start_tokens
from p2c.prompts.context import Prompts, context_rows, random_context, readable, split_context_init
from p2c.prompts.coupled import MultiModalPromptLearner
from p2c.prompts.deep import IndependentPromptLearner
from p2c.utils import trainable
from p2c.utils.logs import get_logger
from p2c.utils.memory import total_memory
from p2c.utils.pixels import Normalization, as_bytes
from p2c.utils.ranges import flatten
from p2c.utils.streams import generator

log = get_logger(__name__)

GIB = 1 << 30  # bytes
TEXT_SHARE = 0.25  # of a device's memory, for the class texts' activations


class PromptTrainer(TrainerX):
    """Base of the prompt-learning trainers; CLIP stays frozen and outside the registered model.

    Shapes: B images, C classes, E features' width.
    """

    node: str  # the trainer's settings in cfg.TRAINER
    learner_name = "prompt_learner"  # folder of the checkpoints, as in the published code
    takes_attributes = False  # whether TRAINER.ATPROMPT is for this trainer
    prompts_text = True  # whether a text context is learned, which prompt noise needs
    per_image_classes = False  # whether the class features depend on the image: then no classifier can be exported
    several_processes = True
    length_matters = False
    resumes_inside_epoch = True  # all randomness is in streams: a trainer with any other must set this to False
    _deployed: tuple[Prompts, Tensor] | None = None  # prompts and class features, while an evaluation lasts
    cloud: CloudRecord | None = None  # what the last evaluation with a cloud saw

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raises ValueError for missing or senseless settings, naming the key."""
        for node in (self.node, "PROMPT_DENOISING", "ATPROMPT"):
            if node not in cfg.TRAINER:
                raise ValueError(f"The configuration lacks TRAINER.{node}; call p2c.config.extend_cfg(cfg) before "
                                 "merging, and do not remove the node")
        check_settings(cfg, {self.node, *SHARED_NODES})
        if cfg.INPUT.NO_TRANSFORM:
            raise ValueError(f"INPUT.NO_TRANSFORM hands out images as their files have them, but {type(self).__name__} "
                             "needs tensors of one size; set INPUT.NO_TRANSFORM False")
        if cfg.TRAINER.ATPROMPT.USE_ATPROMPT and not self.takes_attributes:
            raise ValueError(f"{type(self).__name__} takes no attributes; set TRAINER.ATPROMPT.USE_ATPROMPT False")
        if cfg.TRAINER.PROMPT_DENOISING.ENABLED and not self.prompts_text:
            raise ValueError(f"{type(self).__name__} learns no text context to put noise on; set "
                             "TRAINER.PROMPT_DENOISING.ENABLED False")
        if cfg.TEST.CLOUD_SAMPLES and (self.per_image_classes or not self.prompts_text):
            reason = ("encodes the classes for each image, which a cloud would repeat for each draw"
                      if self.prompts_text else "learns no text context to draw a cloud around")
            raise ValueError(f"{type(self).__name__} {reason}; set TEST.CLOUD_SAMPLES 0")

    @property
    def settings(self) -> CfgNode:
        """The trainer's own settings."""
        return self.cfg.TRAINER[self.node]

    def stream(self, name: str, step: int = 0) -> Generator:
        """The run's random stream `name` at `step`."""
        return generator(self.seed, name, step)

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
        settings = self.cfg.INPUT
        normalized = "normalize" in settings.TRANSFORMS
        return Normalization((settings.PIXEL_MEAN, settings.PIXEL_STD) if normalized else None, self.device)

    def build_model(self) -> None:
        """Load CLIP, make the prompts, and register these alone, with their optimiser.

        Raises:
            ValueError: settings, classes or weights that do not go together.
            FileNotFoundError: weights that are nowhere to be had.
        """
        cfg = self.cfg
        names = self.dm.dataset.classnames
        if len(names) != self.num_classes:
            raise ValueError(f"{cfg.DATASET.NAME} has {self.num_classes} classes by its labels, but {len(names)} class "
                             "names; every label from 0 on needs one name")
        self._compiled: dict[Callable, Callable] = {}
        self.precision = Precision.from_name(self.settings.PREC, self.device)
        with first_on_each_machine():
            self.clip = load_backbone(cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.WEIGHTS, self.precision.dtype,
                                      self.device)
        check_input(cfg, self.clip)
        self.text_tower = TextTower(self.clip.model, self.clip.tokenizer.sot_token_id,
                                    self.clip.tokenizer.eot_token_id, text_memory(cfg.TRAIN.TEXT_MEMORY, self.device))
        self.image_tower = ImageTower(self.clip.model)
        self.attributes = choose_attributes(cfg.TRAINER.ATPROMPT, cfg.DATASET.NAME)
        self.prompts, self.class_prompts = self.build_prompts()
        self.prompts.to(self.device)
        if trainable.parameters(self.prompts):
            self.prepare_training()

    def prepare_training(self) -> None:
        """Noise, initial weights, optimiser and loss scaling; registers the prompts alone."""
        cfg = self.cfg
        if cfg.DATALOADER.K_TRANSFORMS > 1 and type(self).parse_batch_train is PromptTrainer.parse_batch_train:
            raise ValueError(f"DATALOADER.K_TRANSFORMS is {cfg.DATALOADER.K_TRANSFORMS}, but {type(self).__name__} "
                             "trains on one view of each image; set DATALOADER.K_TRANSFORMS 1")
        self.denoising = build_denoising(cfg, self.noise_unit) if cfg.TRAINER.PROMPT_DENOISING.ENABLED else None
        if cfg.MODEL.INIT_WEIGHTS:
            if not Path(cfg.MODEL.INIT_WEIGHTS).is_file():
                raise FileNotFoundError(f"No checkpoint at {cfg.MODEL.INIT_WEIGHTS}; give a file as MODEL.INIT_WEIGHTS")
            self.load_prompts(Path(cfg.MODEL.INIT_WEIGHTS))
            log.info(f"Starting from the prompts in {cfg.MODEL.INIT_WEIGHTS}")
        self.optim = build_optimizer(self.prompts, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision.scaling)
        self.skipped = SkippedSteps(self.scaler, self.device)
        self.register_model(self.learner_name, self.prompts, self.optim, self.sched)
        # Words of the attributes that are not in use have tokens that learn nothing.
        self.training_losses = parallel(Losses(self), some_unused=cfg.TRAINER.ATPROMPT.USE_ATPROMPT)

    def build_prompts(self) -> tuple[nn.Module, ClassPrompts | list[ClassPrompts]]:
        """The method's learner, whose call returns Prompts, and the class prompts that its context belongs to."""
        raise NotImplementedError(f"{type(self).__name__} must define build_prompts()")

    @functools.cached_property
    def noise_unit(self) -> float:
        """What a noise level of 1 means in the embedding's numbers."""
        if self.cfg.TRAINER.PROMPT_DENOISING.NOISE_UNIT == "absolute":
            return 1.0
        log.info(f"Noise levels are in units of {self.clip.token_std:.6f}, the standard deviation of the token "
                 "embedding")
        return self.clip.token_std

    def text_context(self, key: str, n_ctx: int, words: str, position: str = "end", per_class: bool = False) \
            -> tuple[Tensor, ClassPrompts]:
        """The start (M, D) of a text context, or (C, M, D) of one a class, and the class prompts it belongs to.

        Args:
            key: the setting that gives M, for messages.
            words: text whose first M tokens start the context, and whose others stay; "": N(0, 0.02^2).
            position: of the class name, see `context_rows`.

        Raises:
            ValueError: a length that the text tower cannot take, or fewer words than M.
        """
        text, names = self.text_tower, self.dm.dataset.classnames
        if self.attributes and words:
            log.info("With attributes the context starts at random, as published, whatever CTX_INIT says")
            words = ""
        if not 1 <= n_ctx <= text.context_length - 3:  # [SOS], a name, [EOT]
            raise ValueError(f"TRAINER.{self.node}.{key} must be from 1 to {text.context_length - 3}, since the text "
                             f"tower takes {text.context_length} tokens, but got {n_ctx}")
        start, fixed = split_context_init(words, n_ctx, self.clip.tokenize)
        shape = (len(names), n_ctx, text.width) if per_class else (n_ctx, text.width)
        context = self.clip.token_embedding(start).float() if start else random_context(shape, self.init_stream("ctx"))
        rows, slots = context_rows(names, self.clip.tokenize, text.sot, text.eot, n_ctx, fixed, position,
                                   self.attributes)
        return context, text.prepare(rows, slots, own=per_class)

    def attribute_tokens(self) -> tuple[list[Tensor], int]:
        """The starts (N_i, D) of the attributes' learned tokens, and how many of them the prompts have."""
        settings = self.cfg.TRAINER.ATPROMPT
        return start_tokens(settings, self.text_tower.width, self.init_stream("attributes")), len(self.attributes)

    def check_depth(self, key: str, layers: int, least: int = 1) -> int:
        """The depth in a setting. Raises ValueError if a tower of so many layers cannot have it."""
        depth = self.settings[key]
        if not least <= depth <= layers:
            raise ValueError(f"TRAINER.{self.node}.{key} must be from {least} to {layers}, the layers of "
                             f"{self.clip.name}'s tower, but got {depth}")
        return depth

    def image_prompts(self, least: int) -> tuple[int, int, int]:
        """Tokens, width and depth of image prompts by the settings N_CTX_VISION and PROMPT_DEPTH_VISION.

        Args:
            least: the least depth; 0 allows none.

        Raises:
            ValueError: a depth or number of tokens that makes no sense, or a tower that takes no prompts.
        """
        if least == self.settings.PROMPT_DEPTH_VISION == 0:
            return 0, 0, 0
        tower = self.image_tower.require_prompts()
        if self.settings.N_CTX_VISION < 1:
            raise ValueError(f"TRAINER.{self.node}.N_CTX_VISION must be at least 1, but got "
                             f"{self.settings.N_CTX_VISION}")
        return self.settings.N_CTX_VISION, tower.width, self.check_depth("PROMPT_DEPTH_VISION", tower.layers, least)

    def init_stream(self, name: str) -> Generator:
        """The random stream that starts a parameter group."""
        seed = self.cfg.TRAIN.INIT_SEED
        return generator(self.seed if seed < 0 else seed, f"init.{name}")

    # Forward

    def encode_text(self, prompts: Prompts) -> Tensor:
        """Normalised features (C, E) of all classes, in float32 or better."""
        context = torch.cat([*prompts.attributes, prompts.context]) if prompts.attributes else prompts.context
        return self.features(self.text_tower.encode, self.class_prompts, context, prompts.deep_text)

    def encode_image(self, image: Tensor, prompts: Prompts) -> Tensor:
        """Normalised features (B, E), in float32 or better."""
        assert image.is_floating_point(), "Images in uint8 come here through parse_batch_train or parse_batch_test"
        return self.features(self.image_tower.encode, image, prompts.visual, prompts.deep_visual)

    def features(self, encode: Callable[..., Tensor], *inputs) -> Tensor:
        """What a tower makes of its inputs, as `run_tower`, but rows have length 1."""
        return F.normalize(self.run_tower(encode, *inputs), dim=-1)

    def run_tower(self, encode: Callable[..., Tensor], *inputs) -> Tensor:
        """What a tower makes of its inputs in the run's precision, in float32 or better."""
        if self.cfg.TRAIN.COMPILE and torch.is_grad_enabled():
            encode = self.compiled(encode)
        with self.precision.context(self.device):
            features = encode(*inputs)
        return features.to(torch.promote_types(features.dtype, torch.float32))

    def compiled(self, encode: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """A tower's function compiled for the shapes of training; on a GPU its kernels are launched as one graph."""
        if encode not in self._compiled:
            mode = "reduce-overhead" if self.device.type == "cuda" else None
            self._compiled[encode] = torch.compile(encode, dynamic=False, mode=mode)
        return self._compiled[encode]

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """exp(logit_scale) times the cosines (B, C) of normalised features (B, E) and (C, E)."""
        return self.clip.logit_scale * image_features @ text_features.t()

    def scores(self, image: Tensor, prompts: Prompts) -> Tensor:
        """Logits (B, C) of images (B, 3, height, width)."""
        return self.logits(self.encode_image(image, prompts), self.encode_text(prompts))

    def denoise(self, prompts: Prompts) -> Prompts:
        """The prompts with this step's noise on the text context (DPD)."""
        if self.denoising is None:
            return prompts
        def move(context: Tensor, generator: Generator) -> Tensor:
            return self.denoising.perturb(context, self.noise_level(), generator)

        return self.moved(prompts, move, "dpd", self.step)

    def moved(self, prompts: Prompts, move: Callable[[Tensor, Generator], Tensor], stream: str, step: int) -> Prompts:
        """The prompts with the text context moved, at random by a stream at a step, and the attributes' tokens by
        streams of their own; deep and visual prompts stay clean."""
        return prompts._replace(
            context=move(prompts.context, self.stream(stream, step)),
            attributes=[move(tokens, self.stream(f"{stream}.attribute{i}", step))
                        for i, tokens in enumerate(prompts.attributes, 1)])

    # Training

    @property
    def step(self) -> int:
        """Optimisation steps done before this one."""
        return self.epoch * self.num_batches + self.batch_idx

    def noise_level(self) -> float:
        """sigma of this step, in the embedding's numbers."""
        return self.denoising.sigma(self.epoch, self.batch_idx / self.num_batches)

    def losses(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Named losses of a batch (B, 3, height, width), (B,); their sum is minimised."""
        return {"loss_ce": F.cross_entropy(self.scores(image, self.denoise(self.prompts())), label)}

    def forward_backward(self, batch: Mapping) -> dict[str, Tensor | float]:
        """One step: losses, their sum backward, update. Returns what is logged, without waiting for the device."""
        image, label = self.parse_batch_train(batch)
        if self.cfg.TRAIN.COMPILE:
            torch.compiler.cudagraph_mark_step_begin()  # its import of the compiler alone takes seconds
        losses = self.training_losses(image, label)
        loss = sum(losses.values())
        self.optim.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optim)
        self.skipped.update()
        summary = {"loss": loss.detach()}
        if len(losses) > 1:
            summary |= {name: value.detach() for name, value in losses.items()}
        if self.denoising is not None:
            summary["noise"] = self.noise_level()
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

    def run_state(self) -> dict:
        return {**super().run_state(), "skipped_steps": self.skipped_steps, "backbone_sha256": self.clip.sha256}

    def check_run_state(self, checkpoint: dict) -> None:
        super().check_run_state(checkpoint)
        if not (faults := self.other_backbone(checkpoint)):
            return
        if not self.resume_anyway:
            raise CannotResume(f"Cannot resume from {self.cfg.RESUME or self.output_dir}: {faults[0]}; choose another "
                               "--output-dir, give the weights of then, or give --resume-anyway")
        self.resumed_anyway = [*self.resumed_anyway, *faults]
        log.warning(f"Resuming anyway: {faults[0]}")

    def load_run_state(self, checkpoint: dict) -> None:
        super().load_run_state(checkpoint)
        self.skipped.before = checkpoint.get("skipped_steps", 0)

    def parse_batch_train(self, batch: Mapping) -> tuple[Tensor, Tensor]:
        """Images, as floats, and labels, on the device."""
        return self.parse_batch(batch)

    def parse_batch(self, batch: Mapping) -> tuple[Tensor, Tensor]:
        """Images, as floats, and labels, on the device; images in uint8 are normalised there."""
        image, label = (batch[name].to(self.device, non_blocking=True) for name in ("img", "label"))
        return self.normalization(image) if image.dtype == torch.uint8 else image, label

    # Testing

    def parse_batch_test(self, batch: Mapping) -> tuple[Tensor, Tensor]:
        """Images, as floats, and labels, on the device."""
        return self.parse_batch(batch)

    def set_model_mode(self, mode: str = "train", names=None) -> None:
        """Also forgets the encoded classes, which hold for one evaluation."""
        super().set_model_mode(mode, names)
        self._deployed = None

    @torch.no_grad()
    def deployed(self) -> tuple[Prompts, Tensor]:
        """The prompts and the features (C, E) of the classes, encoded once an evaluation; no noise is drawn.

        With TEST.CLOUD_SAMPLES the features are (K, C, E), those of K draws around the text context.
        """
        if self._deployed is None:
            prompts = self.prompts()
            encode = self.encode_cloud if self.cfg.TEST.CLOUD_SAMPLES else self.encode_text
            self._deployed = prompts, encode(prompts)
        return self._deployed

    def encode_cloud(self, prompts: Prompts) -> Tensor:
        """Normalised features (K, C, E) of all classes. Draw k is the same whatever K is, and in every evaluation."""
        noise, sigma = noise_of(self.cfg), self.cfg.TEST.CLOUD_LEVEL * self.noise_unit

        def move(context: Tensor, generator: Generator) -> Tensor:
            return perturb(context, noise, sigma, generator)

        draws = range(self.cfg.TEST.CLOUD_SAMPLES)
        return torch.stack([self.encode_text(self.moved(prompts, move, "cloud", k)) for k in draws])

    @torch.no_grad()
    def model_inference(self, input: Tensor) -> Tensor:
        """Logits (B, C); with TEST.CLOUD_SAMPLES what `combine` makes of the cloud's."""
        if self.cfg.TEST.CLOUD_SAMPLES:
            return combine(self.cloud_logits(input), self.cfg.TEST.CLOUD_AVERAGE)
        prompts, text_features = self.deployed()
        return self.logits(self.encode_image(input, prompts), text_features)

    @torch.no_grad()
    def cloud_logits(self, image: Tensor) -> Tensor:
        """Logits (B, K, C) by the K classifiers of the cloud; the images are encoded once."""
        prompts, cloud = self.deployed()
        logits = self.logits(self.encode_image(image, prompts), cloud.flatten(0, 1))    # (B, K * C)
        return logits.unflatten(1, cloud.shape[:2])

    def test(self, split: str | None = None) -> float:
        """Also keeps in `cloud` how far the cloud's classifiers disagree on each image, where TEST.CLOUD_SAMPLES asks
        for them."""
        self.cloud = CloudRecord() if self.cfg.TEST.CLOUD_SAMPLES else None
        return super().test(split)

    def outputs(self, loader: Iterable[Mapping]) -> Iterator[tuple[Tensor, ...]]:
        """What `process_outputs` takes of each batch."""
        if self.cloud is None:
            yield from super().outputs(loader)
            return
        for batch in loader:
            image, label = self.parse_batch_test(batch)
            logits = self.cloud_logits(image)
            output = combine(logits, self.cfg.TEST.CLOUD_AVERAGE)
            yield output, label, batch["index"], mutual_information(logits), dissent(logits, output)

    def process_outputs(self, output: Tensor, label: Tensor, *of_cloud: Tensor) -> None:
        super().process_outputs(output, label)
        if self.cloud is not None:
            self.cloud.add(output, label, *of_cloud)

    def evaluate_outputs(self) -> dict[str, float]:
        return {**super().evaluate_outputs(), **(self.cloud.metrics() if self.cloud else {})}

    def write_results(self, mode: str, **source) -> None:
        """Also writes what there is to see of a cloud: predictions.csv, reliability.png."""
        if self.cloud is not None and is_main():
            loader = self.val_loader if self.tested_split == "val" else self.test_loader
            self.cloud.write(self.output_dir, loader.dataset.data_source, self.cfg.DATASET.ROOT,
                             self.dm.dataset.classnames)
            if calibration := getattr(self.evaluator, "calibration", None):
                from p2c.utils.reliability import draw  # here: matplotlib takes a second to import

                draw(calibration["reliability"], os.path.join(self.output_dir, "reliability.png"))
        super().write_results(mode, **source)

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load trained prompts from a run's folder: of `epoch`, else the best on validation data, else the last.

        Published MaPLe and CoOp checkpoints load too: only what is learned is taken from them.

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
        """Take the prompts from a checkpoint file; returns its epoch.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds other prompts.
        """
        try:
            checkpoint = load_checkpoint(path)
        except ValueError as error:
            raise ValueError(f"{error}; choose another checkpoint") from error
        saved, trained = learned_entries(checkpoint["state_dict"]), checkpoint.get("classnames")
        try:
            faults = differences(saved, trainable.state_dict(self.prompts), self.settings, self.clip.name)
            faults = faults or class_differences(saved, trained, self.dm.dataset.classnames)
            faults = faults or self.other_backbone(checkpoint)
            if faults:
                raise ValueError("; ".join(faults))
            trainable.load_state_dict(self.prompts, saved)
        except ValueError as error:
            raise ValueError(f"{path} does not fit {type(self).__name__} with these settings: {error}") from error
        if per_class(saved) and trained is None:
            log.warning(f"{path} does not say which classes its contexts belong to; they are taken for these, in order")
        self._deployed = None
        return checkpoint["epoch"]

    def other_backbone(self, checkpoint: Mapping) -> list[str]:
        """Return, in words, that prompts were trained with another CLIP of the same widths, where their file shows it.
        """
        config = checkpoint.get("config")
        config = flatten(config) if isinstance(config, dict) else {}
        here = self.clip.name
        there = config.get("MODEL.BACKBONE.NAME", here)
        if CLIP_NAMES.get(here, here) != CLIP_NAMES.get(there, there):
            return [f"it was trained with the backbone {there}, the settings say {here} (MODEL.BACKBONE.NAME)"]
        weights = self.cfg.MODEL.BACKBONE.WEIGHTS
        trained = config.get("MODEL.BACKBONE.WEIGHTS", weights)
        digest = checkpoint.get("backbone_sha256")
        others = digest != self.clip.sha256 if digest else \
            trained != weights and {trained, weights} <= set(named_weights(here))
        if others:
            return [f"it was trained with the weights '{trained}' of {here}, "
                    + (f"but those that '{weights}' names now are others" if trained == weights else
                       f"the settings say '{weights}'") + " (MODEL.BACKBONE.WEIGHTS)"]
        state, clip = checkpoint["state_dict"], self.clip.model.state_dict()
        for tower, part in (("image", "visual."), ("text", "")):
            saved = state.get(f"{tower}_encoder.positional_embedding")
            own = clip.get(f"{part}positional_embedding")
            if saved is not None and own is not None and not same(saved.double(), own.double().cpu()):
                return [f"the {tower} tower in it is not {here}'s: another backbone or other weights (MODEL.BACKBONE)"]
        return []


class Losses(nn.Module):
    """A trainer's losses as what its prompts compute, for DistributedDataParallel."""

    def __init__(self, trainer: PromptTrainer):
        super().__init__()
        self.prompts = trainer.prompts
        self.losses = trainer.losses

    def forward(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        return self.losses(image, label)


def find_checkpoint(folder: Path, epoch: int | None) -> Path:
    """The checkpoint of `epoch` in a learner's folder; without an epoch the best one, or else the last.

    Raises:
        FileNotFoundError: it is not there; the message lists what is.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"No trained prompts at {folder}: there is no such folder; give --model-dir the folder "
                                "of a run")
    if epoch is not None:
        path = folder / f"model.pth.tar-{epoch}"
    elif (folder / "model-best.pth.tar").is_file() or not (folder / "checkpoint").is_file():
        path = folder / "model-best.pth.tar"
    else:
        path = folder / (folder / "checkpoint").read_text(encoding="utf-8", errors="replace").strip()
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in folder.glob("model*"))) or "nothing"
        raise FileNotFoundError(f"No checkpoint at {path} (the folder holds {there}); train first, or give --model-dir "
                                "a run's folder and --load-epoch an epoch that was saved")
    return path


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal to what half precision leaves of them."""
    return a.shape == b.shape and bool((a - b).norm() <= 0.01 * b.norm())


def text_memory(gib: float, device: torch.device) -> float:
    """Bytes that TRAIN.TEXT_MEMORY allows: what is asked for or, by itself, an equal part of a share of the device's
    memory for each process there. Not of what is free at the time: equal runs must give equal bits."""
    if gib:
        return gib * GIB
    return TEXT_SHARE * total_memory(device) / (local_processes() if device.type == "cpu" else 1)


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


def noise_of(cfg: CfgNode) -> Noise:
    """What TRAINER.PROMPT_DENOISING draws noise from."""
    settings = cfg.TRAINER.PROMPT_DENOISING
    return build_noise(settings.NOISE_TYPE, settings.GMM_MEANS, settings.GMM_STDS, settings.GMM_WEIGHTS,
                       settings.GMM_COMPONENTS)


def build_denoising(cfg: CfgNode, unit: float) -> PromptDenoising:
    """The prompt noise that TRAINER.PROMPT_DENOISING describes; `unit` is what a level of 1 means."""
    settings = cfg.TRAINER.PROMPT_DENOISING
    return PromptDenoising(noise_of(cfg), settings.NOISE_STD, build_schedule(settings.SCHEDULE, settings.SIGMOID_K),
                           cfg.OPTIM.MAX_EPOCH, settings.WARMUP_EPOCHS, settings.ANNEAL, unit)


def build_coupled_prompts(trainer: PromptTrainer, hidden_width: int | None = None) \
        -> tuple[MultiModalPromptLearner, ClassPrompts]:
    """MaPLe's prompts for the trainer's settings and classes; `hidden_width` of the input prompts' mapper, if any.

    Raises:
        ValueError: settings that the towers cannot take.
    """
    settings, image = trainer.settings, trainer.image_tower.require_prompts()
    depth = trainer.check_depth("PROMPT_DEPTH", min(trainer.text_tower.layers, image.layers))
    context, class_prompts = trainer.text_context("N_CTX", settings.N_CTX, short(settings.CTX_INIT, settings.N_CTX))
    return MultiModalPromptLearner(context, image.width, depth, hidden_width, trainer.init_stream,
                                   *trainer.attribute_tokens()), class_prompts


def build_independent_prompts(trainer: PromptTrainer) -> tuple[IndependentPromptLearner, ClassPrompts]:
    """IVLP's prompts for the trainer's settings and classes.

    Raises:
        ValueError: settings that the towers cannot take.
    """
    settings = trainer.settings
    words = short(settings.CTX_INIT, settings.N_CTX_TEXT)
    context, class_prompts = trainer.text_context("N_CTX_TEXT", settings.N_CTX_TEXT, words)
    depth = trainer.check_depth("PROMPT_DEPTH_TEXT", trainer.text_tower.layers)
    return IndependentPromptLearner(context, depth, *trainer.image_prompts(least=0), trainer.init_stream), class_prompts


def length_and_words(settings: CfgNode) -> tuple[int, str]:
    """How CoOp and CoCoOp read N_CTX and CTX_INIT: words decide how many tokens there are, one a word."""
    words = readable(settings.CTX_INIT)
    return len(words.split(" ")) if words else settings.N_CTX, words


def short(words: str, n_ctx: int) -> str:
    """The words that start a context in MaPLe and its relatives: none for contexts of more than 4 tokens."""
    return words if n_ctx <= 4 else ""
