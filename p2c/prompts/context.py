"""The common part of all prompt learners: tokens of class prompts, initial contexts, and the prompts of a learner.

Shapes: C classes, M context tokens, J layers with prompts (the input included), D text width, D_v vision width.
"""
import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from p2c.denoising.noise import to_device_of
from p2c.prompts.attributes import Attribute

INIT_STD = 0.02  # of random contexts, as in CoOp and MaPLe
# Where the class name may stand: the context tokens in front of it, of M.
POSITIONS = {"end": lambda m: m, "middle": lambda m: m // 2, "front": lambda m: 0}


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


def find_same(classnames: Sequence[str]) -> tuple[int, int] | None:
    """Return the indices of the first two class names that CLIP reads alike; None if all differ."""
    seen: dict[str, int] = {}
    for index, name in enumerate(classnames):
        first = seen.setdefault(unicodedata.normalize("NFC", readable(name).lower()), index)
        if first != index:
            return first, index
    return None


def add_noise(prompts: Prompts, noise: Tensor | None) -> Prompts:
    """Move the attributes' tokens and the text context by noise (A + M, D); deep and visual prompts stay clean.

    Class-specific contexts (C, M, D) all move by the same noise. None: no noise.
    """
    if noise is None:
        return prompts
    context = prompts.context
    assert context is not None, "Prompts without a text context have nothing to put noise on"
    *attribute_noise, context_noise = noise.split([*map(len, prompts.attributes), context.shape[-2]])
    return prompts._replace(
        context=context + to_device_of(context, context_noise),
        attributes=[tokens + to_device_of(tokens, part)
                    for tokens, part in zip(prompts.attributes, attribute_noise, strict=True)])


@dataclass(frozen=True)
class TemplateLayout:
    """A prompt of each class without learned tokens: [SOS], the template with the name for `{}`, [EOT]."""

    template: str
    per_class = False

    def ids_and_slots(self, classnames: Sequence[str], tokenize: Callable[[str], list[int]], sot: int, eot: int) \
            -> tuple[list[list[int]], list[list[int]]]:
        """Return the token ids of one prompt a class, and that none is learned."""
        return [[sot, *tokenize(self.template.replace("{}", readable(name))), eot] for name in classnames], []


@dataclass(frozen=True)
class ContextLayout:
    """A prompt of each class with an M-token context: [SOS], attributes, context, fixed ids, name, full stop, [EOT].

    With `position` "front" the name is before the context, with "middle" between its halves, the second of which is
    the longer (CoOp). What is put there are, as in CoOp, the first n tokens of the fixed ids followed by the name,
    where n is the length of the name: where there are fixed ids, these go first.

    Attributes:
        n_ctx: M.
        fixed: ids that follow the context.
        position: of the name: end, middle or front.
        attributes: those in use.
        per_class: whether each class has a context of its own.
    """

    n_ctx: int
    fixed: tuple[int, ...] = ()
    position: str = "end"
    attributes: tuple[Attribute, ...] = ()
    per_class: bool = False

    def ids_and_slots(self, classnames: Sequence[str], tokenize: Callable[[str], list[int]], sot: int, eot: int) \
            -> tuple[list[list[int]], list[list[int]]]:
        """Return the token ids of one prompt a class, and the positions of its learned tokens, which hold any id."""
        before = POSITIONS[self.position](self.n_ctx)
        front: list[int] = [sot]
        places: list[int] = []  # of the attributes' tokens
        for tokens, words in self.attributes:
            places += range(len(front), len(front) + tokens)
            front += [sot] * tokens + tokenize(words)
        start = len(front)
        rows, slots = [], []
        for name in classnames:
            rest = [*self.fixed, *tokenize(f"{readable(name)}.")]
            length = 0 if self.position == "end" else len(tokenize(readable(name)))
            after = range(start + before + length, start + self.n_ctx + length)
            rows.append(front + [sot] * before + rest[:length] + [sot] * len(after) + rest[length:] + [eot])
            slots.append([*places, *range(start, start + before), *after])
        return rows, slots


def length_and_words(n_ctx: int, ctx_init: str) -> tuple[int, str]:
    """Return the length of a context and its words as CoOp and CoCoOp read them: words give the length, one a token."""
    words = readable(ctx_init)
    return len(words.split(" ")) if words else n_ctx, words


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


class PromptLearner(nn.Module):
    """The trained part of a method: parameters from which a call makes `Prompts`.

    By itself it has no parameters, and its prompts leave CLIP as it is.
    """

    def text_tokens(self) -> list[Tensor]:
        """Return the learned tokens of the text input, which prompt noise moves: the attributes', then the context."""
        return []

    def forward(self) -> Prompts:
        """Return the prompts, without noise."""
        return Prompts(context=None)


class ContextLearner(PromptLearner):
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

    def text_tokens(self) -> list[Tensor]:
        """Return the learned tokens of the text input: the attributes' (N_i, D), then the context."""
        return [*(getattr(self, name) for name in self._used), self.ctx]

    def forward(self) -> Prompts:
        """Return the context and the tokens of the attributes in use."""
        *attributes, context = self.text_tokens()
        return Prompts(context=context, attributes=attributes)


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
