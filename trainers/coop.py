"""CoOp: a learned text context (Learning to Prompt for Vision-Language Models, arXiv 2109.01134)."""
from p2c.framework import TRAINER_REGISTRY
from p2c.prompts.context import ContextLearner
from p2c.trainers.base import PromptTrainer, length_and_words


@TRAINER_REGISTRY.register()
class CoOp(PromptTrainer):
    """One context for all classes, or one a class (CSC), with the class name behind, inside or before it."""

    node = "COOP"
    takes_attributes = True

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        settings = cfg.TRAINER.COOP
        if cfg.TRAINER.ATPROMPT.USE_ATPROMPT and (settings.CSC or settings.CLASS_TOKEN_POSITION != "end"):
            raise ValueError("Attributes need one context for all classes before their names; set TRAINER.COOP.CSC "
                             "False and CLASS_TOKEN_POSITION end, or TRAINER.ATPROMPT.USE_ATPROMPT False")

    def build_prompts(self):
        settings = self.settings
        n_ctx, words = length_and_words(settings)
        # As published: with words the context is shared by all classes, whatever CSC says.
        context, class_prompts = self.text_context("N_CTX", n_ctx, words, settings.CLASS_TOKEN_POSITION,
                                                   per_class=settings.CSC and not words)
        return ContextLearner(context, *self.attribute_tokens()), class_prompts
