"""CoOp: a learned text context (Learning to Prompt for Vision-Language Models, arXiv 2109.01134)."""
from p2c.framework import TRAINER_REGISTRY
from p2c.prompts.context import ContextLearner, readable
from p2c.trainers.base import PromptTrainer, check_choice

POSITIONS = ("end", "middle", "front")


@TRAINER_REGISTRY.register()
class CoOp(PromptTrainer):
    """One context for all classes, or one a class (CSC), with the class name behind, inside or before it."""

    node = "COOP"
    takes_attributes = True

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        settings = cfg.TRAINER.COOP
        check_choice("CLASS_TOKEN_POSITION", settings.CLASS_TOKEN_POSITION, POSITIONS, self.node)
        if cfg.TRAINER.ATPROMPT.USE_ATPROMPT and (settings.CSC or settings.CLASS_TOKEN_POSITION != "end"):
            raise ValueError("Attributes need one context for all classes before their names; set TRAINER.COOP.CSC "
                             "False and CLASS_TOKEN_POSITION end, or TRAINER.ATPROMPT.USE_ATPROMPT False")

    def build_prompts(self):
        settings = self.settings
        # As published: words decide how many tokens there are, one a word, and are shared by all classes.
        words = readable(settings.CTX_INIT)
        n_ctx = len(words.split(" ")) if words else settings.N_CTX
        context, class_prompts = self.text_context("N_CTX", n_ctx, words, settings.CLASS_TOKEN_POSITION,
                                                   per_class=settings.CSC and not words)
        return ContextLearner(context, *self.attribute_tokens()), class_prompts
