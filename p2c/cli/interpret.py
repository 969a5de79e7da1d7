"""Find the words that are nearest to the text that a run has learned.

    python -m p2c interpret output/RUN                            # five words for each token, with distances
    python -m p2c interpret output/RUN --top 10 --csv words.csv

RUN is the folder of a training or an evaluation by train.py, of any trainer that learns text; its dataset is not
needed. Each learned token is compared with the rows of CLIP's token embedding, by Euclidean distance, as CoOp and MaPLe
do. The words go to standard output, one block for each token, everything else to standard error; distances in the table
are not rounded. A token that does not end a word is followed by a hyphen (ful-); a character that cannot be shown is
given by its code. Class-specific contexts are listed class by class; CoCoOp's is the one before an image shifts it.

Exit status: 0 done, 1 something failed, 2 a usage error, such as a run without learned text.
"""
import argparse
from collections.abc import Sequence

from p2c.engine.files import write_csv
from p2c.engine.logger import only_warnings
from p2c.inference.records import RecordedRun
from p2c.inference.words import Place, Vocabulary, learned_text
from p2c.utils.console import DONE, FAILED, MISTAKE, MISTAKES, exit_on, positive, run_parser, show

COLUMNS = ("part", "layer", "class", "token", "rank", "word", "distance")
DEEPER = "From layer 1 on this is a rough reading: these tokens replace hidden states of the tower, not embeddings."


def interpret(places: Sequence[Place], vocabulary: Vocabulary, top: int) -> list[tuple]:
    """Print the words nearest to the tokens, and return them as rows of COLUMNS."""
    rows = []
    for part, layer, classname, tokens in places:
        owner = f" of {classname}" if classname else ""
        if layer == 1:
            show(DEEPER)
        for number, words in enumerate(vocabulary.nearest(tokens, top), 1):
            show(f"{part}{owner}, layer {layer}, token {number}")
            for rank, (text, distance) in enumerate(words, 1):
                show(f"  {distance:.4f}  {text}")
                rows.append((part, layer, classname, number, rank, text, distance))
    return rows


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = run_parser("interpret", __doc__)
    parser.add_argument("--top", type=positive, default=5, help="words named for each token (default: %(default)s)")
    parser.add_argument("--csv", metavar="FILE", help=f"also write a table to this file: {', '.join(COLUMNS)}")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    args = parse_args(argv)
    with exit_on(*MISTAKES, status=MISTAKE), only_warnings():
        run = RecordedRun(args.run, args.load_epoch, device="cpu")
        model = run.model()
        places = learned_text(model, run.cfg.TRAINER.NAME)
    with exit_on(*MISTAKES, RuntimeError, status=FAILED):
        rows = interpret(places, Vocabulary(model.backbone), args.top)
        if args.csv:
            write_csv(args.csv, COLUMNS, rows)
    return DONE
