"""Deep prompts of the two towers, learned independently (IVLP; of the image tower alone: VPT, arXiv 2203.12119).

Shapes: M text tokens in each of J layers, N image tokens in each of K layers (the input included), D text width, D_v
vision width.
"""
from collections.abc import Callable

from torch import Generator, Tensor, nn

from p2c.prompts.context import PromptLearner, Prompts, random_context


class IndependentPromptLearner(PromptLearner):
    """Text contexts for the first J layers of the text tower, prompts for the first K of the image tower.

    Args:
        context: (M, D), the initial text context; None: no text prompts.
        text_depth: J; 1 without text prompts.
        image_tokens: N.
        image_width: D_v.
        image_depth: K; 0 for no image prompts.
        init: returns the random stream that a parameter group starts from, by its name.
    """

    def __init__(self, context: Tensor | None, text_depth: int, image_tokens: int, image_width: int, image_depth: int,
                 init: Callable[[str], Generator]):
        super().__init__()
        self.ctx = None if context is None else nn.Parameter(context.detach().clone())
        deep_text, images = init("deep_text"), init("images")
        text_shape = () if context is None else context.shape  # without a context nothing is drawn, since J is 1
        self.deep_text = nn.ParameterList(random_context(text_shape, deep_text) for _ in range(text_depth - 1))
        self.images = nn.ParameterList(random_context((image_tokens, image_width), images) for _ in range(image_depth))

    def text_tokens(self) -> list[Tensor]:
        """Return the learned tokens of the text input: the context, if the text is prompted."""
        return [] if self.ctx is None else [self.ctx]

    def forward(self) -> Prompts:
        """Return the prompts of both towers."""
        images = list(self.images)
        return Prompts(self.ctx, list(self.deep_text), images[0] if images else None, images[1:])
