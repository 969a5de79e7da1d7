"""P2C: MaPLe that learns a cloud instead of a point ("From Points to Clouds", arXiv 2511.22897).

Two denoisers are added while training: annealed noise on the text context (Dynamic Prompt Denoising), and a loss that
makes the input prompts' vision-language mapper a denoising autoencoder. With both off this is MaPLe, number for number.
"""
import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from p2c.clip.loading import Backbone
from p2c.denoising.mapper import mapper_loss
from p2c.framework import TRAINER_REGISTRY
from p2c.model import CoupledCLIP, Step
from p2c.prompts.context import add_noise
from p2c.trainers.base import PromptTrainer, noise_unit
from p2c.utils.logs import get_logger

log = get_logger(__name__)


class P2CModel(CoupledCLIP):
    """MaPLe's coupled prompts with dual denoising. Shapes: B images, M context tokens, D text width.

    Args:
        clip, classnames, options: see CoupledCLIP; its `denoising` is Dynamic Prompt Denoising.
        hidden_scale: hidden width of the denoising mapper over the text width; None: no mapper denoising, one Linear.
        map_weight: lambda, of the mapper's denoising loss.
        map_std: sigma_a, of the mapper's noise, in the embedding's numbers; None: 2 standard deviations of it.
    """

    denoises_text = True

    def __init__(self, clip: Backbone, classnames, *, hidden_scale: float | None = 1.0, map_weight: float = 1.0,
                 map_std: float | None = None, **options):
        self.denoises_mapper = hidden_scale is not None
        hidden_width = max(1, int(hidden_scale * clip.text_width)) if self.denoises_mapper else None
        super().__init__(clip, classnames, hidden_width=hidden_width, **options)
        self.map_weight = map_weight
        self.map_std = 2.0 * clip.token_std if map_std is None else map_std

    def draw(self, step: Step) -> dict[str, Tensor]:
        """Draw the noise of one step, on the CPU: "dpd" for the text context, "mapper" (M, D), standard normal."""
        noise = super().draw(step)  # sigma(e) times draws from the mixture, where the text context is denoised
        if self.denoises_mapper:
            noise["mapper"] = torch.randn(*self.learner.ctx.shape, generator=step.generator("mapper"))
        return noise

    def losses(self, image: Tensor, label: Tensor, noise: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses of a batch (B, 3, height, width), (B,); they draw nothing."""
        prompts = self.learner()  # clean; visual prompts come from the clean text context
        noisy = add_noise(prompts, noise.get("dpd"))  # Dynamic Prompt Denoising
        logits = self.logits(self.encode_image(image, noisy), self.encode_text(noisy))
        losses = {"loss_ce": F.cross_entropy(logits, label)}
        if self.denoises_mapper:
            loss_map = mapper_loss(self.learner.proj, self.learner.ctx, self.map_std * noise["mapper"])
            losses["loss_map"] = self.map_weight * loss_map
        return losses


@TRAINER_REGISTRY.register()
class P2C(PromptTrainer):
    """Trains P2CModel."""

    node, model_class = "P2C", P2CModel
    takes_attributes = True
    learner_name = "MultiModalPromptLearner"

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        if not (cfg.TRAINER.P2C.MAPPER.ENABLED or cfg.TRAINER.PROMPT_DENOISING.ENABLED):
            log.info("P2C with both denoisers off is MaPLe")

    @classmethod
    def model_arguments(cls, cfg: CfgNode, clip: Backbone, dataset) -> dict:
        arguments = super().model_arguments(cfg, clip, dataset)
        mapper = arguments.pop("mapper")
        return arguments | {"hidden_scale": mapper.HIDDEN_SCALE if mapper.ENABLED else None,
                            "map_weight": mapper.LOSS_WEIGHT, "map_std": mapper.NOISE_STD * noise_unit(cfg, clip)}
