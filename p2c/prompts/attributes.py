"""Attributes in the prompt: words such as "color", each after learnable tokens (ATPrompt, arXiv 2412.09442).

The prompt is [SOS], tokens of attribute 1, its words, tokens of attribute 2, ..., context, name, full stop, [EOT].
Everything before the name is shared by all classes. In deeper layers only the context is replaced; the attributes'
states are kept. Words of several tokens are kept whole (the published code cuts Oxford Pets' "playfulness" to "play").
"""
from collections.abc import Mapping
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


def choose_attributes(settings: Mapping, dataset: str) -> list[Attribute]:
    """Return the attributes that TRAINER.ATPROMPT asks for; none if it is off.

    Raises:
        ValueError: the words of an attribute are missing, or the dataset has no published attributes.
    """
    if not settings["USE_ATPROMPT"]:
        return []
    number = settings["ATT_NUM"]
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
    return [Attribute(tokens, word) for tokens, word in zip(token_numbers(settings), words, strict=False)]


def token_numbers(settings: Mapping) -> list[int]:
    """Return the number of learnable tokens of each of the three attributes, in use or not."""
    return [settings[f"N_ATT{i}"] for i in range(1, MOST + 1)]


def start_tokens(settings: Mapping, width: int, generator: Generator) -> list[Tensor]:
    """Draw initial tokens (N_i, D) of all three attributes from N(0, 0.01^2); none if attributes are off.

    As in the published code, unused ones exist too: a model that was trained with two attributes can be tested on a
    dataset that has three.
    """
    if not settings["USE_ATPROMPT"]:
        return []
    return [INIT_STD * torch.randn(number, width, generator=generator) for number in token_numbers(settings)]
