"""IVLP: deep prompts of both towers, learned independently (the baseline of arXiv 2210.03117, section 4.1).

With N_CTX_VISION and PROMPT_DEPTH_VISION 0 it is deep language prompting.
"""
from p2c.framework import TRAINER_REGISTRY
from p2c.model import IndependentCLIP
from p2c.trainers.base import PromptTrainer


@TRAINER_REGISTRY.register()
class IVLP(PromptTrainer):
    """Train IndependentCLIP: text and image prompts in the first layers of their towers."""

    node, model_class = "IVLP", IndependentCLIP
    capturable = True
    learner_name = "VLPromptLearner"
