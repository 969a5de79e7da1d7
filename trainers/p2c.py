"""P2C: MaPLe with prompts that are trained to withstand noise ("From Points to Clouds", arXiv 2511.22897).

MaPLe trains a few vectors of the text prompts, and mappers from these to prompts of the image tower. Such a training
fits the vectors to the classes it sees, at one point of the prompt space. P2C trains with noise around that point, so
that a whole region of prompts, a cloud, classifies well. By the paper this generalizes better to unseen classes. Two
denoisers are added, in training only:

- Dynamic Prompt Denoising: noise from a Gaussian mixture on the text prompts, whose level falls over the epochs.
- V-L mapper denoising: a second loss, for the mapper of the input prompts. With Gaussian noise of a constant level on
  the text prompts, it should still give the visual prompts of the clean ones, as a denoising autoencoder does.

With both off this is MaPLe, number for number. Shapes: B images, M context tokens, A tokens of ATPrompt's attributes
before these (0 by default), D text width.
"""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from p2c.clip.loading import Backbone
from p2c.denoising.mapper import mapper_loss
from p2c.denoising.noise import noise_unit
from p2c.framework import TRAINER_REGISTRY
from p2c.model import CoupledCLIP, Step
from p2c.prompts.context import add_noise
from p2c.trainers.base import PromptTrainer
from p2c.trainers.building import Classes
from p2c.utils.logs import get_logger

log = get_logger(__name__)


class P2CModel(CoupledCLIP):
    """MaPLe's coupled prompts with both denoisers.

    Args:
        clip, classnames, options: see CoupledCLIP; `denoising` is Dynamic Prompt Denoising, by default None: off.
        hidden_scale: ratio of the mapper's hidden width to the text width; None: no mapper denoising, and one Linear
            as in MaPLe.
        map_weight: lambda, the weight of the mapper's loss.
        map_std: sigma_a, the standard deviation of the mapper's noise, an absolute value; None: twice that of CLIP's
            token embedding.
    """

    denoises_text = True  # the default of `create_model`

    def __init__(self, clip: Backbone, classnames: Sequence[str], *, hidden_scale: float | None = 1.0,
                 map_weight: float = 1.0, map_std: float | None = None, **options):
        hidden_width = None if hidden_scale is None else max(1, int(hidden_scale * clip.text_width))
        super().__init__(clip, classnames, hidden_width=hidden_width, **options)
        self.denoises_mapper = hidden_scale is not None
        self.map_weight = map_weight
        self.map_std = 2.0 * clip.token_std if map_std is None else map_std

    def draw(self, step: Step) -> dict[str, Tensor]:
        """Draw all random numbers of a step, on the CPU.

        Returns:
            With Dynamic Prompt Denoising "dpd" (A + M, D): sigma(e) eps, with eps from the Gaussian mixture and the
            level sigma(e) of epoch e. With mapper denoising "mapper" (M, D): n ~ N(0, I), whose constant
            level `losses` sets.
        """
        noise = {}
        if self.denoising is not None:
            noise["dpd"] = self.text_noise(self.denoising.noise, self.noise_level(step), "dpd", step)
        if self.denoises_mapper:
            noise["mapper"] = torch.randn(*self.learner.ctx.shape, generator=step.generator("mapper"))
        return noise

    def losses(self, image: Tensor, label: Tensor, noise: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the terms whose sum is minimised: "loss_ce", the cross-entropy, and "loss_map", lambda L_map.

        Args:
            image: (B, 3, height, width).
            label: (B,).
            noise: what `draw` returned for the step.
        """
        prompts = self.learner()  # clean; the visual prompts are mapped from the text prompts
        noisy = add_noise(prompts, noise.get("dpd"))  # Dynamic Prompt Denoising: moves the input's text tokens only
        logits = self.logits(self.encode_image(image, noisy), self.encode_text(noisy))
        losses = {"loss_ce": F.cross_entropy(logits, label)}
        if self.denoises_mapper:
            mapper, context = self.learner.proj, self.learner.ctx  # MaPLe's names
            losses["loss_map"] = self.map_weight * mapper_loss(mapper, context, self.map_std * noise["mapper"])
        return losses


@TRAINER_REGISTRY.register()
class P2C(PromptTrainer):
    """Train P2CModel."""

    node, model_class = "P2C", P2CModel
    takes_attributes = True
    learner_name = "MultiModalPromptLearner"

    def check_cfg(self, cfg: CfgNode) -> None:
        """Log a line if both denoisers are off."""
        super().check_cfg(cfg)
        if not (cfg.TRAINER.P2C.MAPPER.ENABLED or cfg.TRAINER.PROMPT_DENOISING.ENABLED):
            log.info("P2C with both denoisers off is MaPLe")

    @classmethod
    def model_arguments(cls, cfg: CfgNode, clip: Backbone, dataset: Classes) -> dict:
        """Return the model's own arguments, with those of the mapper from TRAINER.P2C.MAPPER."""
        arguments = super().model_arguments(cfg, clip, dataset)
        mapper = arguments.pop("mapper")
        unit = noise_unit(cfg.TRAINER.PROMPT_DENOISING, clip.token_std)  # the unit of both denoisers' levels
        return arguments | {"hidden_scale": mapper.HIDDEN_SCALE if mapper.ENABLED else None,
                            "map_weight": mapper.LOSS_WEIGHT, "map_std": mapper.NOISE_STD * unit}
