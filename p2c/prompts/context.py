"""The common part of all prompt learners: tokens of class prompts, initial contexts, and the prompts of a learner.

Shapes: C classes, M context tokens, J layers with prompts (the input included), D text width, D_v vision width.
"""
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from p2c.prompts.attributes import Attribute

INIT_STD = 0.02  # of random contexts, as in CoOp and MaPLe


class Prompts(NamedTuple):
    """The prompts that a learner passes to the towers."""

    context: Tensor | None  # (M, D) text context at the input, or (C, M, D), class-specific; None: no text prompts
    deep_text: Sequence[Tensor] = ()  # (M, D) each, entering text layers 1..J-1
    visual: Tensor | None = None  # (M, D_v) image prompts at the input
    deep_visual: Sequence[Tensor] = ()  # (M, D_v) each, entering image layers 1..J-1
    attributes: Sequence[Tensor] = ()  # (N_i, D) learned tokens of the attributes, which precede the context


def readable(classname: str) -> str:
    """Return a class name as it is written in a prompt: underscores become spaces."""
    return classname.replace("_", " ")


def class_rows(classnames: Sequence[str], tokenize: Callable[[str], list[int]], sot: int, eot: int,
               template: str) -> list[list[int]]:
    """Return the token ids of one prompt per class: [SOS], the template with the class name for `{}`, [EOT]."""
    return [[sot, *tokenize(template.replace("{}", readable(name))), eot] for name in classnames]


def context_rows(classnames: Sequence[str], tokenize: Callable[[str], list[int]], sot: int, eot: int, n_ctx: int,
                 fixed: Sequence[int] = (), position: str = "end", attributes: Sequence[Attribute] = ()) \
        -> tuple[list[list[int]], list[list[int]]]:
    """Return the token ids of one prompt per class with an M-token context, and the positions of its learned tokens.

    The prompt is [SOS], attributes, context, `fixed` ids, name, full stop, [EOT]. With `position` "front" the name
    precedes the context; with "middle" it stands between the context's halves, the second of which may be longer by one
    token (CoOp). As in CoOp, the name is counted as the first tokens after the context, as many as it has on its own.

    Args:
        tokenize: maps a text to token ids.
        sot, eot: ids of [SOS] and [EOT].
        n_ctx: M.

    Returns:
        (rows, slots), each with one list per class; learned tokens hold the id of [SOS].
    """
    before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]  # context tokens in front of the name
    front, places = [sot], []
    for tokens, words in attributes:
        places += range(len(front), len(front) + tokens)
        front += [sot] * tokens + tokenize(words)
    start = len(front)
    rows, slots = [], []
    for name in classnames:
        rest = [*fixed, *tokenize(f"{readable(name)}.")]
        length = 0 if position == "end" else len(tokenize(readable(name)))
        after = range(start + before + length, start + n_ctx + length)
        rows.append(front + [sot] * before + rest[:length] + [sot] * len(after) + rest[length:] + [eot])
        slots.append([*places, *range(start, start + before), *after])
    return rows, slots


def split_context_init(text: str, n_ctx: int, tokenize: Callable[[str], list[int]]) -> tuple[list[int], list[int]]:
    """Split an initial text into the ids that initialise an M-token context and those after them, which stay fixed.

    Both are empty for an empty text.

    Raises:
        ValueError: the text has fewer tokens than the context.
    """
    if not text:
        return [], []
    ids = tokenize(readable(text))
    if len(ids) < n_ctx:
        raise ValueError(f"CTX_INIT {text!r} has {len(ids)} tokens, fewer than the context's {n_ctx} (N_CTX): give a "
                         "longer text, a smaller N_CTX, or '' for a random start")
    return ids[:n_ctx], ids[n_ctx:]


class ContextLearner(nn.Module):
    """CoOp's learner: one context for all classes, or class-specific contexts (arXiv 2109.01134, section 3.2).

    Args:
        context: (M, D) or (C, M, D), the initial context.
        attributes: initial tokens (N_i, D) of the attributes, in use or not.
        used: number of attributes that the prompts have.
    """

    def __init__(self, context: Tensor, attributes: Sequence[Tensor] = (), used: int = 0):
        super().__init__()
        self.ctx = nn.Parameter(context.detach().clone())
        self._used = [f"ctx_att{i}" for i in range(1, 1 + used)]
        for i, tokens in enumerate(attributes, 1):
            self.register_parameter(f"ctx_att{i}", nn.Parameter(tokens))

    def forward(self) -> Prompts:
        return Prompts(context=self.ctx, attributes=[getattr(self, name) for name in self._used])


def random_context(shape: Sequence[int], generator: Generator) -> Tensor:
    """Draw a context of a given shape from N(0, 0.02^2)."""
    return INIT_STD * torch.randn(*shape, generator=generator)


@torch.no_grad()
def reset_linear(layer: nn.Linear, generator: Generator) -> nn.Linear:
    """Initialise a Linear as torch does, U(-1/sqrt(in), 1/sqrt(in)) for weight and bias, but from a given generator."""
    bound = 1 / math.sqrt(layer.in_features)
    layer.weight.uniform_(-bound, bound, generator=generator)
    layer.bias.uniform_(-bound, bound, generator=generator)
    return layer
