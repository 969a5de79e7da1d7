"""PromptSRC: IVLP kept near frozen CLIP (Self-regulating Prompts, arXiv 2307.06948).

Three self-regularising losses tie the prompted features and predictions to frozen CLIP's, whose texts come from diverse
templates; and the prompts that are kept are a Gaussian weighted average over the epochs. Shapes: B images, C classes, E
width of the features.
"""
import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from p2c.framework import TRAINER_REGISTRY
from p2c.prompts.context import class_rows
from p2c.trainers.base import PromptTrainer, build_independent_prompts
from p2c.utils import trainable
from p2c.utils.logs import get_logger

log = get_logger(__name__)

# The first sixty of the eighty that CLIP's authors wrote for ImageNet.
TEMPLATES = (
    "a photo of a {}.", "a bad photo of a {}.", "a photo of many {}.", "a sculpture of a {}.",
    "a photo of the hard to see {}.", "a low resolution photo of the {}.", "a rendering of a {}.", "graffiti of a {}.",
    "a bad photo of the {}.", "a cropped photo of the {}.", "a tattoo of a {}.", "the embroidered {}.",
    "a photo of a hard to see {}.", "a bright photo of a {}.", "a photo of a clean {}.", "a photo of a dirty {}.",
    "a dark photo of the {}.", "a drawing of a {}.", "a photo of my {}.", "the plastic {}.", "a photo of the cool {}.",
    "a close-up photo of a {}.", "a black and white photo of the {}.", "a painting of the {}.", "a painting of a {}.",
    "a pixelated photo of the {}.", "a sculpture of the {}.", "a bright photo of the {}.", "a cropped photo of a {}.",
    "a plastic {}.", "a photo of the dirty {}.", "a jpeg corrupted photo of a {}.", "a blurry photo of the {}.",
    "a photo of the {}.", "a good photo of the {}.", "a rendering of the {}.", "a {} in a video game.",
    "a photo of one {}.", "a doodle of a {}.", "a close-up photo of the {}.", "the origami {}.",
    "the {} in a video game.", "a sketch of a {}.", "a doodle of the {}.", "a origami {}.",
    "a low resolution photo of a {}.", "the toy {}.", "a rendition of the {}.", "a photo of the clean {}.",
    "a photo of a large {}.", "a rendition of a {}.", "a photo of a nice {}.", "a photo of a weird {}.",
    "a blurry photo of a {}.", "a cartoon {}.", "art of a {}.", "a sketch of the {}.", "a embroidered {}.",
    "a pixelated photo of a {}.", "itap of the {}.",
)


def epoch_weights(epochs: int, mean: float, std: float) -> Tensor:
    """Weights (epochs,) of the epochs 1, 2, ... in the average of their prompts: Gaussian, with sum 1 (section 3.3)."""
    distance = (torch.arange(1, epochs + 1, dtype=torch.float64) - mean) / std
    return torch.softmax(-distance**2 / 2, dim=0)


def divergence(logits: Tensor, frozen: Tensor) -> Tensor:
    """KL divergence of the prompted predictions from the frozen ones, logits (B, C), as published over B * C."""
    return F.kl_div(logits.log_softmax(1), frozen.log_softmax(1), reduction="sum", log_target=True) / logits.numel()


@TRAINER_REGISTRY.register()
class PromptSRC(PromptTrainer):
    """IVLP's prompts with self-regularisation and prompt averaging."""

    node = "PROMPTSRC"
    learner_name = "VLPromptLearner"
    length_matters = True  # the average's weights
    average: dict[str, Tensor] | None = None  # sum so far of the epochs' prompts, each with its weight

    def build_prompts(self):
        self.epoch_weights = epoch_weights(self.max_epoch, self.settings.GPA_MEAN, self.settings.GPA_STD)
        return build_independent_prompts(self)

    def before_train(self) -> None:
        assert len(self.frozen_text) == self.num_classes  # encoded now, and only for training
        super().before_train()

    @functools.cached_property
    @torch.no_grad()
    def frozen_text(self) -> Tensor:
        """Normalised mean (C, E) over the templates of frozen CLIP's features, which are not normalised before.

        Raises:
            ValueError: a backbone with a reduced vocabulary has words for none of the templates.
        """
        names, clip, text = self.dm.dataset.classnames, self.clip, self.text_tower
        rows = []
        for template in TEMPLATES:
            try:
                rows.append(class_rows(names, clip.tokenize, text.sot, text.eot, template))
            except ValueError as error:  # tiny-shapes has few words
                fault = error
        if not rows:
            raise ValueError(f"PromptSRC needs some of its {len(TEMPLATES)} templates, but {fault}")
        if len(rows) < len(TEMPLATES):
            log.info(f"{len(rows)} of {len(TEMPLATES)} templates are used; {clip.name} has no words for the others")
        mean = sum(self.run_tower(text.encode, text.prepare(some)) for some in rows) / len(rows)
        return F.normalize(mean, dim=-1)

    def losses(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        settings, prompts = self.settings, self.denoise(self.prompts())
        text_features, image_features = self.encode_text(prompts), self.encode_image(image, prompts)
        with torch.no_grad():
            frozen_image = self.features(self.image_tower.encode, image)                # (B, E)
            frozen_logits = self.logits(frozen_image, self.frozen_text)                 # (B, C)
        logits = self.logits(image_features, text_features)
        return {
            "loss_ce": F.cross_entropy(logits, label),
            "loss_text": settings.TEXT_LOSS_WEIGHT * F.l1_loss(text_features, self.frozen_text),
            "loss_image": settings.IMAGE_LOSS_WEIGHT * F.l1_loss(image_features, frozen_image),
            "loss_kl": divergence(logits, frozen_logits),
        }

    def after_epoch(self) -> None:
        """Add the epoch's prompts to the average; after the last epoch the average takes their place."""
        weight, state = self.epoch_weights[self.epoch].item(), trainable.state_dict(self.prompts)
        so_far = self.average or {name: torch.zeros_like(value) for name, value in state.items()}
        self.average = {name: so_far[name] + weight * value for name, value in state.items()}
        if self.epoch + 1 == self.max_epoch:
            trainable.load_state_dict(self.prompts, self.average)
        super().after_epoch()

    def extra_state(self) -> dict:
        return {"average": self.average}

    def load_extra_state(self, state: dict) -> None:
        average = state["average"]
        self.average = average and {name: value.to(self.device) for name, value in average.items()}
