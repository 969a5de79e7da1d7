"""VPT: deep prompts of the image tower alone (Visual Prompt Tuning, arXiv 2203.12119; for CLIP as in MaPLe's code).

Shapes: C classes, E width of the features.
"""
import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from yacs.config import CfgNode

from p2c.clip.loading import Backbone
from p2c.framework import TRAINER_REGISTRY
from p2c.model import PromptedCLIP, init_stream
from p2c.prompts.context import Prompts, TemplateLayout
from p2c.prompts.deep import IndependentPromptLearner
from p2c.trainers.base import PromptTrainer

TEMPLATE = "a photo of a {}."  # as published: of every dataset, whatever CTX_INIT says


class VPTModel(PromptedCLIP):
    """Image prompts against fixed texts. The published code runs CLIP in float32 whatever PREC says; ours obeys it.

    Args:
        clip, classnames, options: see PromptedCLIP.
        n_ctx_vision: tokens in each layer.
        prompt_depth_vision: layers with prompts, the input included.
        seed: of the initial prompts.
    """

    prompts_text = False

    def __init__(self, clip: Backbone, classnames: Sequence[str], *, n_ctx_vision: int = 2,
                 prompt_depth_vision: int = 1, seed: int = 0, **options):
        super().__init__(clip, **options)
        init = functools.partial(init_stream, seed)
        images = self.image_prompts(n_ctx_vision, prompt_depth_vision, least=1)
        self.layout = TemplateLayout(TEMPLATE)
        self.learner = IndependentPromptLearner(None, 1, *images, init).to(self.device)
        self.set_classes(classnames)

    def set_classes(self, classnames: Sequence[str]) -> None:
        super().set_classes(classnames)
        self._text_features = None

    def encode_text(self, prompts: Prompts) -> Tensor:
        """Return normalised features (C, E), which no training changes."""
        if self._text_features is None:
            with torch.no_grad():
                self._text_features = super().encode_text(Prompts(context=None))
        return self._text_features


@TRAINER_REGISTRY.register()
class VPT(PromptTrainer):
    """Trains VPTModel."""

    node, model_class = "VPT", VPTModel

    @classmethod
    def model_arguments(cls, cfg: CfgNode, clip: Backbone, dataset) -> dict:
        arguments = super().model_arguments(cfg, clip, dataset)
        del arguments["ctx_init"]
        return arguments
