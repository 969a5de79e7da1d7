"""CoOp: a learned text context (Learning to Prompt for Vision-Language Models, arXiv 2109.01134).

Shapes: M context tokens.
"""
from collections.abc import Sequence

from yacs.config import CfgNode

from p2c.clip.loading import Backbone
from p2c.framework import TRAINER_REGISTRY
from p2c.model import PromptedCLIP
from p2c.prompts.attributes import NO_ATTRIBUTES, Attributes
from p2c.prompts.context import ContextLearner, length_and_words
from p2c.trainers.base import PromptTrainer


class CoOpModel(PromptedCLIP):
    """One context for all classes, or class-specific contexts (CSC); the class name is after, inside or before it.

    Args:
        clip, classnames, options: see PromptedCLIP.
        n_ctx: M, context tokens; not read if ctx_init has words.
        ctx_init: words that start the context, as many tokens as words; "": random.
        csc: True for class-specific contexts; as published without effect if ctx_init has words.
        class_token_position: end, middle or front: where the class name stands.
        attributes: words in the prompt with learned tokens of their own.
    """

    def __init__(self, clip: Backbone, classnames: Sequence[str], *, n_ctx: int = 16, ctx_init: str = "",
                 csc: bool = False, class_token_position: str = "end", attributes: Attributes = NO_ATTRIBUTES,
                 **options):
        super().__init__(clip, **options)
        n_ctx, words = length_and_words(n_ctx, ctx_init)
        classes = len(classnames) if csc and not words else 0
        context, self.layout = self.start_context(n_ctx, words, attributes=attributes, position=class_token_position,
                                                  classes=classes)
        tokens = attributes.tokens(self.text_tower.width, self.init_stream("attributes"))
        self.finish(ContextLearner(context, *tokens), classnames)


@TRAINER_REGISTRY.register()
class CoOp(PromptTrainer):
    """Train CoOpModel."""

    node, model_class = "COOP", CoOpModel
    capturable = True
    takes_attributes = True

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise ValueError also for attributes with a context that they cannot precede."""
        super().check_cfg(cfg)
        settings = cfg.TRAINER.COOP
        if cfg.TRAINER.ATPROMPT.USE_ATPROMPT and (settings.CSC or settings.CLASS_TOKEN_POSITION != "end"):
            raise ValueError("Attributes need one context for all classes before their names; set TRAINER.COOP.CSC "
                             "False and CLASS_TOKEN_POSITION end, or TRAINER.ATPROMPT.USE_ATPROMPT False")
