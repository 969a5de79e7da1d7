"""PromptSRC: IVLP kept near frozen CLIP (Self-regulating Prompts, arXiv 2307.06948).

Three losses keep the prompted image features, text features and predictions near those of frozen CLIP, whose text
features are means over many templates. The prompts after training are a Gaussian-weighted average over the epochs.

Shapes: B images, C classes, E width of the features.
"""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from p2c.clip.loading import Backbone
from p2c.framework import TRAINER_REGISTRY
from p2c.model import IndependentCLIP
from p2c.prompts.context import TemplateLayout, add_noise
from p2c.trainers.base import PromptTrainer
from p2c.trainers.building import Classes
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
    """Return the weights (epochs,) of the epochs' prompts in their average: Gaussian over 1, 2, ..., with sum 1.

    Section 3.3 of the paper.
    """
    distance = (torch.arange(1, epochs + 1, dtype=torch.float64) - mean) / std
    return torch.softmax(-distance**2 / 2, dim=0)


def divergence(logits: Tensor, frozen: Tensor) -> Tensor:
    """Return the divergence KL(frozen || prompted) of predictions, given as logits (B, C).

    As published, its sum is divided by B * C, not by B.
    """
    return F.kl_div(logits.log_softmax(1), frozen.log_softmax(1), reduction="sum", log_target=True) / logits.numel()


class PromptSRCModel(IndependentCLIP):
    """IVLP's prompts with self-regularisation.

    Args:
        clip, classnames, options: see IndependentCLIP.
        n_ctx_vision, n_ctx_text: tokens in each layer.
        text_loss_weight, image_loss_weight: weights of the mean absolute distances to frozen CLIP's features.
    """

    def __init__(self, clip: Backbone, classnames: Sequence[str], *, n_ctx_vision: int = 4, n_ctx_text: int = 4,
                 text_loss_weight: float = 25.0, image_loss_weight: float = 10.0, **options):
        super().__init__(clip, classnames, n_ctx_vision=n_ctx_vision, n_ctx_text=n_ctx_text, **options)
        self.text_loss_weight, self.image_loss_weight = text_loss_weight, image_loss_weight

    def set_classes(self, classnames: Sequence[str]) -> None:
        """Classify into these classes from now on."""
        super().set_classes(classnames)
        self._frozen_text: Tensor | None = None

    @torch.no_grad()
    def frozen_text(self) -> Tensor:
        """Return the mean over the templates of frozen CLIP's text features, normalised after the mean: (C, E).

        The texts are encoded at the first call, since only training needs them. Templates with words that the
        backbone does not know are left out.

        Raises:
            ValueError: no template is left.
        """
        if self._frozen_text is None:
            written = []
            for template in TEMPLATES:
                try:
                    written.append(self.ids_and_slots(TemplateLayout(template))[0])
                except ValueError as error:  # tiny-shapes has few words
                    fault = error
            if not written:
                raise ValueError(f"PromptSRC needs some of its {len(TEMPLATES)} templates, but {fault}")
            if len(written) < len(TEMPLATES):
                log.info(f"{len(written)} of {len(TEMPLATES)} templates are used; {self.backbone.name} has no words "
                         "for the others")
            text = self.text_tower
            total = sum(self.run_tower(text.encode, text.prepare(rows)) for rows in written)
            assert isinstance(total, Tensor)
            self._frozen_text = F.normalize(total / len(written), dim=-1)
        return self._frozen_text

    def losses(self, image: Tensor, label: Tensor, noise: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses of a batch: cross-entropy, and three distances to frozen CLIP."""
        prompts = add_noise(self.learner(), noise.get("dpd"))
        image_features, text_features = self.encode(image, prompts)
        with torch.no_grad():
            frozen_image = self.features(self.image_tower.encode, image)                # (B, E)
            frozen_logits = self.logits(frozen_image, self.frozen_text())               # (B, C)
        logits = self.logits(image_features, text_features)
        return {
            "loss_ce": F.cross_entropy(logits, label),
            "loss_text": self.text_loss_weight * F.l1_loss(text_features, self.frozen_text()),
            "loss_image": self.image_loss_weight * F.l1_loss(image_features, frozen_image),
            "loss_kl": divergence(logits, frozen_logits),
        }


@TRAINER_REGISTRY.register()
class PromptSRC(PromptTrainer):
    """Train PromptSRCModel, and average its prompts over the epochs with Gaussian weights."""

    node, model_class = "PROMPTSRC", PromptSRCModel
    capturable = True
    model: PromptSRCModel
    learner_name = "VLPromptLearner"
    length_matters = True  # the weights of the average depend on the number of epochs
    average: dict[str, Tensor] | None = None  # the weighted sum of the epochs' prompts so far

    @classmethod
    def model_arguments(cls, cfg: CfgNode, clip: Backbone, dataset: Classes) -> dict:
        """Return the model's own arguments: the settings without those of the average."""
        arguments = super().model_arguments(cfg, clip, dataset)
        return {key: value for key, value in arguments.items() if not key.startswith("gpa_")}

    def build_model(self) -> None:
        """Also compute the weights of the epochs."""
        super().build_model()
        settings = self.cfg.TRAINER.PROMPTSRC
        self.epoch_weights = epoch_weights(self.max_epoch, settings.GPA_MEAN, settings.GPA_STD)

    def before_train(self) -> None:
        """Encode the templates, so that a fault in them shows before the first step."""
        self.model.frozen_text()
        super().before_train()

    def after_epoch(self) -> None:
        """Add the epoch's prompts to the average; after the last epoch, replace the prompts by it."""
        weight, state = self.epoch_weights[self.epoch].item(), trainable.state_dict(self.model.learner)
        so_far = self.average or {name: torch.zeros_like(value) for name, value in state.items()}
        self.average = {name: so_far[name] + weight * value for name, value in state.items()}
        if self.epoch + 1 == self.max_epoch:
            trainable.load_state_dict(self.model.learner, self.average)
        super().after_epoch()

    def extra_state(self) -> dict:
        """Return the average so far, for checkpoints."""
        return {"average": self.average}

    def load_extra_state(self, state: dict) -> None:
        """Take the average of a checkpoint."""
        average = state["average"]
        self.average = average and {name: value.to(self.device) for name, value in average.items()}
