"""Zero-shot CLIP with hand-written templates (CLIP, arXiv 2103.00020, section 3.1.4): nothing is trained."""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p2c.framework import TRAINER_REGISTRY
from p2c.prompts.context import Prompts, class_rows
from p2c.trainers.base import PromptTrainer

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


class NoPrompts(nn.Module):
    """A learner with nothing to learn: the prompts stay as they were written."""

    def forward(self) -> Prompts:
        return Prompts(context=None)


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(PromptTrainer):
    """One template: the data set's own."""

    node = "ZEROSHOTCLIP"
    prompts_text = False

    def templates(self) -> Sequence[str]:
        """Templates with one `{}` each; a class is the mean of its features over them."""
        return (getattr(self.dm.dataset, "template", DEFAULT_TEMPLATE),)

    def build_prompts(self):
        clip, text = self.clip, self.text_tower
        prepared = [text.prepare(class_rows(self.dm.dataset.classnames, clip.tokenize, text.sot, text.eot, template))
                    for template in self.templates()]
        return NoPrompts(), prepared

    def encode_text(self, prompts: Prompts) -> Tensor:
        """Normalised mean over the templates of the normalised features, (C, E)."""
        features = [self.features(self.text_tower.encode, written) for written in self.class_prompts]
        return F.normalize(torch.stack(features).mean(0), dim=-1)


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(ZeroshotCLIP):
    """The ensemble of seven templates, and the data set's own except on ImageNet."""

    def templates(self) -> Sequence[str]:
        return ENSEMBLE if self.cfg.DATASET.NAME == "ImageNet" else (*ENSEMBLE, *super().templates())
