"""P2C: MaPLe that learns a cloud instead of a point ("From Points to Clouds", arXiv 2511.22897).

Two denoisers are added while training: annealed noise on the text context (Dynamic Prompt Denoising, in the base since
any learner can have it), and a loss that makes the input prompts' vision-language mapper a denoising autoencoder. With
both off this is MaPLe, number for number.
"""
from torch import Tensor
from yacs.config import CfgNode

from p2c.denoising.mapper import mapper_loss
from p2c.framework import TRAINER_REGISTRY
from p2c.trainers.base import PromptTrainer, build_coupled_prompts
from p2c.utils.logs import get_logger

log = get_logger(__name__)


@TRAINER_REGISTRY.register()
class P2C(PromptTrainer):
    """MaPLe's prompts with dual denoising."""

    node = "P2C"
    takes_attributes = True
    learner_name = "MultiModalPromptLearner"

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        if not (cfg.TRAINER.P2C.MAPPER.ENABLED or cfg.TRAINER.PROMPT_DENOISING.ENABLED):
            log.info("P2C with both denoisers off is MaPLe")

    def build_prompts(self):
        mapper = self.settings.MAPPER
        if not mapper.ENABLED:
            return build_coupled_prompts(self)
        self.mapper_std = mapper.NOISE_STD * self.noise_unit
        return build_coupled_prompts(self, max(1, int(mapper.HIDDEN_SCALE * self.text_tower.width)))

    def losses(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        losses = super().losses(image, label)
        mapper = self.settings.MAPPER
        if mapper.ENABLED:
            denoising = mapper_loss(self.prompts.proj, self.prompts.ctx, self.mapper_std,
                                    self.stream("mapper", self.step))
            losses["loss_map"] = mapper.LOSS_WEIGHT * denoising
        return losses
