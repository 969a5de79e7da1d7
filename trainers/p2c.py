"""P2C: MaPLe with prompts that are trained under noise ("From Points to Clouds", arXiv 2511.22897).

MaPLe learns text prompts for the first layers of the text tower and, for each of these layers, a mapper from its text
prompts to image prompts. Its training finds a single point of the prompt space, which overfits the classes it sees. P2C
trains with noise around the point, so that a whole region of prompts, a cloud, classifies well. According to the paper
this generalizes better to unseen classes. Two kinds of noise are added, in training only:

- Dynamic Prompt Denoising (DPD): Gaussian-mixture noise on the text prompts of the first layer, at a level that falls
  over the epochs. All classes and images of a step share one draw; each of its numbers picks its component of the
  mixture independently. It does not reach the image prompts, which are mapped from the clean text prompts.
- Mapper denoising: a second loss, L_map, for the mapper of the first layer, which is here an MLP, at test time too.
  From text prompts with Gaussian noise of a constant level it should still make the image prompts of the clean ones, as
  a denoising autoencoder does. L_map is the mean squared error to the clean image prompts, detached; its gradient
  reaches the mapper and, through the noisy input, the text prompts.

With both off this is exactly MaPLe. p2c/denoising/ has the mixture, the falling level and L_map. Shapes: B images, M
text prompts (context tokens) in a layer, A tokens of attributes before these (ATPrompt, arXiv 2412.09442, an option; 0
by default), which are not mapped, D text width.
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
    """MaPLe's coupled prompts, trained with both kinds of noise.

    Args:
        clip, classnames, options: see CoupledCLIP; `denoising` describes DPD, by default None: off.
        hidden_scale: hidden width of the first layer's mapper, an MLP, divided by the text width. None switches mapper
            denoising off: MaPLe's single Linear, no second loss.
        mapper_weight: lambda, the weight of the mapper's loss.
        mapper_std: sigma_a, the standard deviation of the mapper's noise, an absolute value, not in the unit of the
            settings; None: twice the standard deviation of CLIP's token embedding.
    """

    dpd_by_default = True  # `p2c.create_model` passes a `denoising` unless told otherwise; train.py if configured

    def __init__(self, clip: Backbone, classnames: Sequence[str], *, hidden_scale: float | None = 1.0,
                 mapper_weight: float = 1.0, mapper_std: float | None = None, **options):
        hidden_width = None if hidden_scale is None else max(1, int(hidden_scale * clip.text_width))
        super().__init__(clip, classnames, hidden_width=hidden_width, **options)
        self.denoises_mapper = hidden_scale is not None
        self.mapper_weight = mapper_weight
        self.mapper_std = 2.0 * clip.token_std if mapper_std is None else mapper_std

    def draw(self, step: Step) -> dict[str, Tensor]:
        """Draw all random numbers of a step, on the CPU, so that they are the same on every device.

        Returns:
            With DPD "dpd" (A + M, D): sigma(e) eps, with eps from the Gaussian mixture and the level sigma(e) of
            epoch e. With mapper denoising "mapper" (M, D): sigma_a n, with n ~ N(0, I).
        """
        noise = {}
        if self.denoising is not None:
            noise["dpd"] = self.text_noise(self.denoising.distribution, self.noise_level(step), "dpd", step)
        if self.denoises_mapper:
            n = torch.randn(*self.learner.ctx.shape, generator=step.generator("mapper"))
            noise["mapper"] = self.mapper_std * n
        return noise

    def losses(self, image: Tensor, label: Tensor, noise: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the terms whose sum is minimised: "loss_ce", the cross-entropy, and "loss_map", lambda L_map.

        Args:
            image: (B, 3, height, width).
            label: (B,).
            noise: what `draw` returned for the step; moved to the model's device where it is added.
        """
        prompts = self.learner()  # clean; the image prompts are mapped from the clean text prompts
        noisy = add_noise(prompts, noise.get("dpd"))  # DPD, on the first layer's text prompts only
        image_features, text_features = self.encode(image, noisy)
        losses = {"loss_ce": F.cross_entropy(self.logits(image_features, text_features), label)}
        if self.denoises_mapper:
            mapper, context = self.learner.proj, self.learner.ctx  # the first layer's; MaPLe's names
            losses["loss_map"] = self.mapper_weight * mapper_loss(mapper, context, noise["mapper"])
        return losses


@TRAINER_REGISTRY.register()
class P2C(PromptTrainer):
    """Train P2CModel."""

    node, model_class = "P2C", P2CModel  # settings: TRAINER.P2C; those of DPD: TRAINER.PROMPT_DENOISING
    capturable = True  # see PromptTrainer
    takes_attributes = True  # TRAINER.ATPROMPT applies
    learner_name = "MultiModalPromptLearner"  # folder of the checkpoints, as in MaPLe

    def check_cfg(self, cfg: CfgNode) -> None:
        """Check the settings as every trainer does; log a line if both kinds of noise are off."""
        super().check_cfg(cfg)
        if not (cfg.TRAINER.P2C.MAPPER.ENABLED or cfg.TRAINER.PROMPT_DENOISING.ENABLED):
            log.info("P2C with both denoisers off is MaPLe")

    @classmethod
    def model_arguments(cls, cfg: CfgNode, clip: Backbone, dataset: Classes) -> dict:
        """Return P2CModel's arguments from the settings; those of TRAINER.P2C.MAPPER are renamed to match."""
        arguments = super().model_arguments(cfg, clip, dataset)
        mapper = arguments.pop("mapper")
        # PROMPT_DENOISING.NOISE_UNIT is the unit of DPD's level and of MAPPER.NOISE_STD, also where DPD is off.
        unit = noise_unit(cfg.TRAINER.PROMPT_DENOISING, clip.token_std)
        return arguments | {"hidden_scale": mapper.HIDDEN_SCALE if mapper.ENABLED else None,
                            "mapper_weight": mapper.LOSS_WEIGHT, "mapper_std": mapper.NOISE_STD * unit}
