"""CoOp: a learned text context (Learning to Prompt for Vision-Language Models, arXiv 2109.01134)."""
import functools
from collections.abc import Sequence

from p2c.clip.loading import Backbone
from p2c.framework import TRAINER_REGISTRY
from p2c.model import PromptedCLIP, init_stream
from p2c.prompts.attributes import NO_ATTRIBUTES, Attributes
from p2c.prompts.context import ContextLearner, length_and_words
from p2c.trainers.base import PromptTrainer


class CoOpModel(PromptedCLIP):
    """One context for all classes, or one a class (CSC), with the class name behind, inside or before it.

    Args:
        clip, classnames, options: see PromptedCLIP.
        n_ctx: M, context tokens; not read if ctx_init has words.
        ctx_init: words that start the context, as many tokens as words; "": random.
        csc: one context a class; as published not where ctx_init has words.
        class_token_position: of the name: end, middle or front.
        attributes: words in the prompt with learned tokens of their own.
        seed: of the initial context.
    """

    def __init__(self, clip: Backbone, classnames: Sequence[str], *, n_ctx: int = 16, ctx_init: str = "",
                 csc: bool = False, class_token_position: str = "end", attributes: Attributes = NO_ATTRIBUTES,
                 seed: int = 0, **options):
        super().__init__(clip, **options)
        init = functools.partial(init_stream, seed)
        n_ctx, words = length_and_words(n_ctx, ctx_init)
        context, self.layout = self.start_context(n_ctx, words, init, attributes=attributes,
                                                  position=class_token_position,
                                                  classes=len(classnames) if csc and not words else 0)
        tokens = attributes.tokens(self.text_tower.width, init("attributes"))
        self.learner = ContextLearner(context, *tokens).to(self.device)
        self.set_classes(classnames)


@TRAINER_REGISTRY.register()
class CoOp(PromptTrainer):
    """Trains CoOpModel."""

    node, model_class = "COOP", CoOpModel
    takes_attributes = True

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        settings = cfg.TRAINER.COOP
        if cfg.TRAINER.ATPROMPT.USE_ATPROMPT and (settings.CSC or settings.CLASS_TOKEN_POSITION != "end"):
            raise ValueError("Attributes need one context for all classes before their names; set TRAINER.COOP.CSC "
                             "False and CLASS_TOKEN_POSITION end, or TRAINER.ATPROMPT.USE_ATPROMPT False")
