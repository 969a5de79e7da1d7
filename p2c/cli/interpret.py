"""Which words the text that a run has learned is near to.

    python -m p2c interpret output/RUN                            # five words a token, with their distances
    python -m p2c interpret output/RUN --top 10 --csv words.csv

RUN is the folder of a training or an evaluation by train.py, of any trainer that learns text; its data set is not
needed. Each learned token is compared with the rows of CLIP's token embedding, by Euclidean distance, as CoOp and MaPLe
do. Words go to standard output, a block a token, all else to standard error; the table's distances are not rounded.
A piece that does not end a word has a hyphen behind it (ful-); a character that cannot be shown is given by its code.
Contexts of one class each come class by class; CoCoOp's is the one before an image shifts it.

Exit status: 0 done, 1 something failed, 2 a mistaken call, such as a run without learned text.
"""
import argparse
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from p2c.clip.loading import Backbone
from p2c.engine.files import write_csv
from p2c.engine.logger import only_warnings
from p2c.inference.records import RecordedRun
from p2c.model import PromptedCLIP
from p2c.utils.console import DONE, FAILED, MISTAKE, MISTAKES, one_line, positive, run_parser, say, show

COLUMNS = ("part", "layer", "class", "token", "rank", "word", "distance")
DEEPER = "From layer 1 on this is a rough reading: these tokens replace states inside the text tower, not embeddings."


class Place(NamedTuple):
    """Learned tokens of a prompt that stand together."""

    part: str  # context, or attribute 1, 2, ...
    layer: int  # of the text tower that they enter; 0: they are part of its input
    classname: str  # "": they are for all classes
    tokens: Tensor  # (M, D)

    def __str__(self) -> str:
        return f"{self.part}{self.classname and f' of {self.classname}'}, layer {self.layer}"


class Vocabulary:
    """The words of a CLIP, those that have an embedding (V of them, of width D)."""

    def __init__(self, clip: Backbone):
        self.word = clip.word
        self.ids = sorted(clip.stored_ids or range(len(clip.model.token_embedding.weight)))
        self.table = clip.token_embedding(self.ids)  # (V, D)

    @torch.no_grad()
    def nearest(self, tokens: Tensor, top: int) -> list[list[tuple[str, float]]]:
        """For each token (M, D) the nearest words, and their distances."""
        # not by way of a product of matrices: that is not exact for what is near
        distances = torch.cdist(tokens, self.table, compute_mode="donot_use_mm_for_euclid_dist")  # (M, V)
        best = distances.topk(min(top, len(self.ids)), largest=False)
        return [[(self.word(self.ids[row]), distance) for row, distance in zip(rows, values, strict=True)]
                for rows, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def learned_text(model: PromptedCLIP, method: str) -> list[Place]:
    """Return the text that a model has learned, from the input to the deepest layer.

    Raises:
        ValueError: it learned none.
    """
    prompts = model.learner()
    places = [Place(f"attribute {i}", 0, "", tokens) for i, tokens in enumerate(prompts.attributes, 1)]
    if prompts.context is not None:
        own = prompts.context.ndim == 3
        names, contexts = (model.classnames, prompts.context) if own else ([""], [prompts.context])
        places += [Place("context", 0, name, tokens) for name, tokens in zip(names, contexts, strict=True)]
    places += [Place("context", layer, "", tokens) for layer, tokens in enumerate(prompts.deep_text, 1)]
    if not places:
        raise ValueError(f"{method} learns no text, so there are no words to find; give a run of a trainer that learns "
                         "a text context, such as CoOp, MaPLe or P2C")
    return places


def interpret(places: Sequence[Place], vocabulary: Vocabulary, top: int) -> list[tuple]:
    """Print the words that the tokens are nearest to; returns them as rows of COLUMNS."""
    rows = []
    for place in places:
        if place.layer == 1:
            show(DEEPER)
        for number, words in enumerate(vocabulary.nearest(place.tokens, top), 1):
            show(f"{place}, token {number}")
            for rank, (text, distance) in enumerate(words, 1):
                show(f"  {distance:.4f}  {text}")
                rows.append((place.part, place.layer, place.classname, number, rank, text, distance))
    return rows


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = run_parser("interpret", __doc__)
    parser.add_argument("--top", type=positive, default=5, help="words named for each token (default: %(default)s)")
    parser.add_argument("--csv", metavar="FILE", help=f"also write a table to this file: {', '.join(COLUMNS)}")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    args = parse_args(argv)
    try:
        with only_warnings():
            run = RecordedRun(args.run, args.load_epoch, device="cpu")
            model = run.model()
            places = learned_text(model, run.cfg.TRAINER.NAME)
    except MISTAKES as error:
        say(f"error: {one_line(error)}")
        return MISTAKE
    try:
        rows = interpret(places, Vocabulary(model.backbone), args.top)
        if args.csv:
            write_csv(args.csv, COLUMNS, rows)
        return DONE
    except (*MISTAKES, RuntimeError) as error:
        say(f"error: {one_line(error)}")
    except KeyboardInterrupt:
        say("Interrupted")
    return FAILED
