"""CoCoOp's context, which a small network shifts depending on the image's feature (arXiv 2203.05557, section 3.2).

Parameters are named as in CoCoOp's published code. Shapes: B images, M context tokens, D text width, E feature width.
"""
from collections.abc import Callable

from torch import Generator, Tensor, nn

from p2c.prompts.context import ContextLearner, reset_linear

BOTTLENECK = 16  # feature width over hidden width of the network


class MetaNet(nn.Module):
    """Linear - ReLU - Linear from image features (B, E) to shifts (B, D)."""

    def __init__(self, feature_width: int, text_width: int, generator: Generator):
        super().__init__()
        hidden = feature_width // BOTTLENECK
        self.linear1 = reset_linear(nn.Linear(feature_width, hidden), generator)
        self.relu = nn.ReLU()
        self.linear2 = reset_linear(nn.Linear(hidden, text_width), generator)

    def forward(self, features: Tensor) -> Tensor:
        """Return a shift (B, D) for each image's feature (B, E)."""
        return self.linear2(self.relu(self.linear1(features)))


class ConditionalContextLearner(ContextLearner):
    """A context for all classes, and the network that shifts it.

    Args:
        context: (M, D), the initial context.
        feature_width: E.
        init: returns the random stream that a parameter group starts from, by its name.
    """

    def __init__(self, context: Tensor, feature_width: int, init: Callable[[str], Generator]):
        super().__init__(context)
        self.meta_net = MetaNet(feature_width, context.shape[-1], init("meta_net"))

    def shifted(self, context: Tensor, features: Tensor) -> Tensor:
        """Return contexts (B, M, D): all tokens of the context (M, D) plus the shift for an image's feature (B, E)."""
        return context + self.meta_net(features)[:, None]
