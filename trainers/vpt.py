"""VPT: deep prompts of the image tower alone (Visual Prompt Tuning, arXiv 2203.12119; for CLIP as in MaPLe's code)."""
import functools

import torch
from torch import Tensor

from p2c.framework import TRAINER_REGISTRY
from p2c.prompts.context import Prompts, class_rows
from p2c.prompts.deep import IndependentPromptLearner
from p2c.trainers.base import PromptTrainer

TEMPLATE = "a photo of a {}."  # as published: of every data set, whatever CTX_INIT says


@TRAINER_REGISTRY.register()
class VPT(PromptTrainer):
    """Image prompts against fixed texts. The published code runs CLIP in float32 whatever PREC says; ours obeys it."""

    node = "VPT"
    prompts_text = False

    def build_prompts(self):
        clip, text = self.clip, self.text_tower
        rows = class_rows(self.dm.dataset.classnames, clip.tokenize, text.sot, text.eot, TEMPLATE)
        learner = IndependentPromptLearner(None, 1, *self.image_prompts(least=1), self.init_stream)
        return learner, text.prepare(rows)

    def encode_text(self, prompts: Prompts) -> Tensor:
        """Normalised features (C, E), which no training changes."""
        return self.text_features

    @functools.cached_property
    def text_features(self) -> Tensor:
        with torch.no_grad():
            return super().encode_text(Prompts(context=None))
