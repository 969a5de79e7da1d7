"""MaPLe: coupled text and image prompts at many depths (Multi-modal Prompt Learning, arXiv 2210.03117)."""
from p2c.framework import TRAINER_REGISTRY
from p2c.model import CoupledCLIP
from p2c.trainers.base import PromptTrainer


class MaPLeModel(CoupledCLIP):
    """A text context in each of the first layers of the text tower, and a Linear that maps each to a visual prompt.

    The visual prompts enter the same layers of the image tower.
    """


@TRAINER_REGISTRY.register()
class MaPLe(PromptTrainer):
    """Train MaPLeModel."""

    node, model_class = "MAPLE", MaPLeModel
    capturable = True
    takes_attributes = True
    learner_name = "MultiModalPromptLearner"
