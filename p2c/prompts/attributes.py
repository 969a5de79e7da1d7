"""Attributes in the prompt: words such as "color", each after learnable tokens (ATPrompt, arXiv 2412.09442).

The prompt is [SOS], tokens of attribute 1, its words, tokens of attribute 2, ..., context, name, full stop, [EOT].
Everything before the name is shared by all classes. In deeper layers only the context is replaced; the attributes'
states are kept. Words of several tokens are kept whole (the published code cuts Oxford Pets' "playfulness" to "play").
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

MOST = 3  # the largest number of attributes
INIT_STD = 0.01  # of the attributes' tokens

# The published attributes (ATPrompt's table) by the dataset's registry name.
_IMAGENET = ("color", "shape")
PUBLISHED = {
    **dict.fromkeys(("ImageNet", "ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"), _IMAGENET),
    "Caltech101": ("shape", "size"),
    "OxfordPets": ("playfulness", "energy"),
    "StanfordCars": ("luxury",),
    "OxfordFlowers": ("color", "habitat", "growth"),
    "Food101": ("flavor", "preparation"),
    "FGVCAircraft": ("design", "range"),
    "SUN397": ("function",),
    "DescribableTextures": ("pattern", "color", "design"),
    "EuroSAT": ("habitat",),
    "UCF101": ("precision",),
}


class Attribute(NamedTuple):
    """An attribute of a prompt: its words, and the number of learnable tokens before them."""

    tokens: int
    words: str


@dataclass(frozen=True)
class Attributes:
    """The attributes of a model's prompts.

    Attributes:
        used: those that stand in the prompts, in order.
        lengths: learnable tokens of all attributes, used or not. As published, those not in use exist too: a model that
            was trained with two attributes can be tested on a dataset that has three.
    """

    used: tuple[Attribute, ...] = ()
    lengths: tuple[int, ...] = ()

    def tokens(self, width: int, generator: Generator) -> tuple[list[Tensor], int]:
        """Return the starts (N_i, D) of the tokens of all attributes, N(0, 0.01^2), and how many of them are used."""
        return [INIT_STD * torch.randn(number, width, generator=generator) for number in self.lengths], len(self.used)


NO_ATTRIBUTES = Attributes()


def choose_attributes(settings: Mapping, dataset: str) -> Attributes:
    """Return the attributes that TRAINER.ATPROMPT asks for; none if it is off.

    Raises:
        ValueError: words that are not given, or a dataset without published ones.
    """
    if not settings["USE_ATPROMPT"]:
        return NO_ATTRIBUTES
    number = settings["ATT_NUM"]
    words: Sequence[str]
    if number:
        words = [settings[f"ATT{i}_TEXT"] for i in range(1, number + 1)]
    elif dataset in PUBLISHED:
        words = PUBLISHED[dataset]
    else:
        raise ValueError(f"No attributes are published for {dataset}; set TRAINER.ATPROMPT.ATT_NUM, ATT1_TEXT, ... "
                         f"(there are published ones for {', '.join(PUBLISHED)})")
    for i, word in enumerate(words, 1):
        if not word.strip() or word == "none":
            raise ValueError(f"TRAINER.ATPROMPT.ATT{i}_TEXT must give the words of attribute {i}, but is {word!r}")
    lengths = tuple(settings[f"N_ATT{i}"] for i in range(1, MOST + 1))
    return Attributes(tuple(Attribute(tokens, word) for tokens, word in zip(lengths, words, strict=False)), lengths)
