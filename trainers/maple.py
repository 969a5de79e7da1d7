"""MaPLe: coupled text and image prompts at many depths (Multi-modal Prompt Learning, arXiv 2210.03117)."""
from p2c.framework import TRAINER_REGISTRY
from p2c.trainers.base import PromptTrainer, build_coupled_prompts


@TRAINER_REGISTRY.register()
class MaPLe(PromptTrainer):
    """Text contexts in the first layers of the text tower, and linear mappers from these to the image tower's."""

    node = "MAPLE"
    takes_attributes = True
    learner_name = "MultiModalPromptLearner"

    def build_prompts(self):
        return build_coupled_prompts(self)
