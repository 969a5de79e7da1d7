"""VPT: deep prompts of the image tower alone (Visual Prompt Tuning, arXiv 2203.12119; for CLIP as in MaPLe's code).

Shapes: C classes, E width of the features.
"""
from collections.abc import Sequence

import torch
from torch import Tensor
from yacs.config import CfgNode

from p2c.clip.loading import Backbone
from p2c.framework import TRAINER_REGISTRY
from p2c.model import PromptedCLIP
from p2c.prompts.context import Prompts, TemplateLayout
from p2c.prompts.deep import IndependentPromptLearner
from p2c.trainers.base import PromptTrainer
from p2c.trainers.building import Classes

TEMPLATE = "a photo of a {}."  # as published for every dataset, whatever CTX_INIT says


class VPTModel(PromptedCLIP):
    """Learned image prompts, and the fixed texts of a template.

    The published code runs CLIP in float32 whatever PREC says; this one follows PREC.

    Args:
        clip, classnames, options: see PromptedCLIP.
        n_ctx_vision: tokens in each layer.
        prompt_depth_vision: layers with prompts, the input included.
    """

    prompts_text = False

    def __init__(self, clip: Backbone, classnames: Sequence[str], *, n_ctx_vision: int = 2,
                 prompt_depth_vision: int = 1, **options):
        super().__init__(clip, **options)
        images = self.image_prompts(n_ctx_vision, prompt_depth_vision, least=1)
        self.layout = TemplateLayout(TEMPLATE)
        self.finish(IndependentPromptLearner(None, 1, *images, self.init_stream), classnames)

    def set_classes(self, classnames: Sequence[str]) -> None:
        """Classify into these classes from now on."""
        super().set_classes(classnames)
        self._text_features: Tensor | None = None

    def encode_text(self, prompts: Prompts) -> Tensor:
        """Return normalised features (C, E); they are encoded once, since no training changes them."""
        if self._text_features is None:
            with torch.no_grad():
                self._text_features = super().encode_text(Prompts(context=None))
        return self._text_features


@TRAINER_REGISTRY.register()
class VPT(PromptTrainer):
    """Train VPTModel."""

    node, model_class = "VPT", VPTModel
    capturable = True

    @classmethod
    def model_arguments(cls, cfg: CfgNode, clip: Backbone, dataset: Classes) -> dict:
        """Return the model's own arguments: the settings except CTX_INIT, which is not read."""
        arguments = super().model_arguments(cfg, clip, dataset)
        del arguments["ctx_init"]
        return arguments
