"""MaPLe: coupled text and image prompts at many depths (Multi-modal Prompt Learning, arXiv 2210.03117)."""
from p2c.framework import TRAINER_REGISTRY
from p2c.model import CoupledCLIP
from p2c.trainers.base import PromptTrainer


class MaPLeModel(CoupledCLIP):
    """Text contexts in the first layers of the text tower, and linear mappers from these to the image tower's."""


@TRAINER_REGISTRY.register()
class MaPLe(PromptTrainer):
    """Trains MaPLeModel."""

    node, model_class = "MAPLE", MaPLeModel
    takes_attributes = True
    learner_name = "MultiModalPromptLearner"
