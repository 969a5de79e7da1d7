"""The text that a model has learned, and the words of CLIP's token embedding that are nearest to it.

Shapes: M learned tokens, V words, D their width.
"""
from typing import NamedTuple

import torch
from torch import Tensor

from p2c.clip.loading import Backbone
from p2c.model import PromptedCLIP


class Place(NamedTuple):
    """Learned tokens that stand together in a prompt."""

    part: str  # context, or attribute 1, 2, ...
    layer: int  # of the text tower at which they enter; 0: its input
    classname: str  # "": all classes
    tokens: Tensor  # (M, D)


class Vocabulary:
    """The V words of a CLIP that have an embedding, of width D."""

    def __init__(self, clip: Backbone):
        self.word = clip.word
        self.ids = sorted(clip.stored_ids or range(len(clip.model.get_parameter("token_embedding.weight"))))
        self.table = clip.token_embedding(self.ids)  # (V, D)

    @torch.no_grad()
    def nearest(self, tokens: Tensor, top: int) -> list[list[tuple[str, float]]]:
        """Return, for each token (M, D), the nearest words and their distances."""
        # The default, by a matrix product, is inexact for small distances.
        distances = torch.cdist(tokens, self.table, compute_mode="donot_use_mm_for_euclid_dist")  # (M, V)
        best = distances.topk(min(top, len(self.ids)), largest=False)
        return [[(self.word(self.ids[row]), distance) for row, distance in zip(rows, values, strict=True)]
                for rows, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def learned_text(model: PromptedCLIP, method: str) -> list[Place]:
    """Return the text that a model has learned, from the input to the deepest layer.

    Raises:
        ValueError: it has learned no text.
    """
    prompts = model.learner()
    places = [Place(f"attribute {i}", 0, "", tokens) for i, tokens in enumerate(prompts.attributes, 1)]
    if prompts.context is not None:
        contexts = {"": prompts.context}
        if prompts.context.ndim == 3:  # class-specific
            contexts = dict(zip(model.classnames, prompts.context, strict=True))
        places += [Place("context", 0, name, tokens) for name, tokens in contexts.items()]
    places += [Place("context", layer, "", tokens) for layer, tokens in enumerate(prompts.deep_text, 1)]
    if not places:
        raise ValueError(f"{method} learns no text, so there are no words to find; give a run of a trainer that learns "
                         "a text context, such as CoOp, MaPLe or P2C")
    return places
