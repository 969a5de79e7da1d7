"""CoCoOp: a text context that each image shifts (Conditional Prompt Learning, arXiv 2203.05557).

Shapes: B images, C classes, E width of the features, M context tokens, D text width.
"""
from collections.abc import Sequence

import torch
from torch import Tensor

from p2c.clip.loading import Backbone
from p2c.framework import TRAINER_REGISTRY
from p2c.model import PromptedCLIP
from p2c.prompts.conditional import ConditionalContextLearner
from p2c.prompts.context import Prompts, length_and_words
from p2c.trainers.base import PromptTrainer


class CoCoOpModel(PromptedCLIP):
    """CoOp's context; a small network maps each image's feature to a shift of all its tokens.

    Args:
        clip, classnames, options: see PromptedCLIP.
        n_ctx: M, context tokens; not read if ctx_init has words.
        ctx_init: words that start the context, as many tokens as words; "": random.
    """

    learner: ConditionalContextLearner
    per_image_classes = True

    def __init__(self, clip: Backbone, classnames: Sequence[str], *, n_ctx: int = 16, ctx_init: str = "",
                 **options):
        super().__init__(clip, **options)
        context, self.layout = self.start_context(*length_and_words(n_ctx, ctx_init))
        learner = ConditionalContextLearner(context, self.text_tower.feature_width, self.init_stream)
        self.finish(learner, classnames)

    def scores(self, image: Tensor, prompts: Prompts) -> Tensor:
        """Return logits (B, C) of images by prompts; the classes are encoded once for each image."""
        assert prompts.context is not None
        image_features = self.encode_image(image, prompts)                              # (B, E)
        contexts = self.learner.shifted(prompts.context, image_features)                # (B, M, D)
        text_features = self.encode_text(prompts._replace(context=contexts))            # (B, C, E)
        # Not a matrix product: its backward pass would be an outer product, which torch 2.14 compiles at run time.
        return self.backbone.logit_scale * (text_features * image_features[:, None]).sum(-1)

    @torch.no_grad()
    def predict(self, image: Tensor) -> Tensor:
        """Return logits (B, C) of images by the prompts without noise."""
        return self.scores(image, self.learner())


@TRAINER_REGISTRY.register()
class CoCoOp(PromptTrainer):
    """Train CoCoOpModel."""

    node, model_class = "COCOOP", CoCoOpModel
    capturable = True
