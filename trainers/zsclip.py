"""Zero-shot CLIP with hand-written templates (CLIP, arXiv 2103.00020, section 3.1.4): nothing is trained.

Shapes: C classes, E width of the features.
"""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from p2c.clip.loading import Backbone
from p2c.clip.text import ClassPrompts
from p2c.framework import TRAINER_REGISTRY
from p2c.model import PromptedCLIP
from p2c.prompts.context import PromptLearner, Prompts, TemplateLayout
from p2c.trainers.base import PromptTrainer
from p2c.trainers.building import Classes

DEFAULT_TEMPLATE = "a photo of a {}."

# The seven that CLIP's authors selected from their eighty for ImageNet.
ENSEMBLE = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


class ZeroshotModel(PromptedCLIP):
    """CLIP without learned prompts: the feature of a class is the mean over some templates.

    Args:
        clip, classnames, options: see PromptedCLIP.
        templates: texts with one `{}` each, for the class name.
    """

    class_prompts: list[ClassPrompts]  # of each template
    prompts_text = False

    def __init__(self, clip: Backbone, classnames: Sequence[str], *, templates: Sequence[str] = (DEFAULT_TEMPLATE,),
                 **options):
        super().__init__(clip, **options)
        self.templates = list(templates)
        self.finish(PromptLearner(), classnames)

    def prepare_classes(self) -> list[ClassPrompts]:
        """Return the classes' prompts by each template."""
        return [self.prepare(TemplateLayout(template)) for template in self.templates]

    def encode_text(self, prompts: Prompts) -> Tensor:
        """Return the normalised mean over the templates of the normalised features, (C, E)."""
        features = [self.features(self.text_tower.encode, written) for written in self.class_prompts]
        return F.normalize(torch.stack(features).mean(0), dim=-1)


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(PromptTrainer):
    """Test with one template: the dataset's own."""

    node, model_class = "ZEROSHOTCLIP", ZeroshotModel

    @classmethod
    def model_arguments(cls, cfg: CfgNode, clip: Backbone, dataset: Classes) -> dict:
        """Return the model's own arguments, templates among them."""
        arguments = super().model_arguments(cfg, clip, dataset)
        return arguments | {"templates": cls.templates(cfg, getattr(dataset, "template", DEFAULT_TEMPLATE))}

    @classmethod
    def templates(cls, cfg: CfgNode, template: str) -> Sequence[str]:
        """Return the templates to use, given the dataset's own."""
        return (template,)


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(ZeroshotCLIP):
    """Test with the ensemble of seven templates and, except on ImageNet, the dataset's own."""

    @classmethod
    def templates(cls, cfg: CfgNode, template: str) -> Sequence[str]:
        """Return the templates to use, given the dataset's own."""
        return ENSEMBLE if cfg.DATASET.NAME == "ImageNet" else (*ENSEMBLE, template)
