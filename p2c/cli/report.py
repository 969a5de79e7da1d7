"""Write a page that shows the results of runs: one HTML file, which needs no network.

    python -m p2c report output                                   # writes report.html
    python -m p2c report output/base2new more --html page.html

OUTPUT is a folder with runs of train.py below it, at any depth; those in the folders of the scripts also get the tables
of parse_test_res.py, beside published numbers where these are comparable. The page shows, for each dataset: accuracy,
calibration, the accuracy of each class, confusions, images with predictions, training curves, and the words nearest to
learned prompts. Images come from the dataset's folder, words need CLIP's weights; what is not there is left out.

Exit status: 0 done, 1 the page cannot be written, 2 a usage error, such as a folder without finished runs.
"""
import argparse
from collections.abc import Sequence
from pathlib import Path

from p2c.engine.files import write_atomically
from p2c.engine.logger import only_warnings
from p2c.inference.records import RecordedRun
from p2c.inference.words import Vocabulary, learned_text
from p2c.tables.report import make_page
from p2c.utils.console import DONE, FAILED, MISTAKE, MISTAKES, command_parser, exit_on, show

NEAREST = 5  # words of each token


def words(folder: str) -> list[tuple[str, ...]]:
    """Return part, layer, token and nearest words, with distances, of the text that a training has learned.

    Raises:
        ValueError, OSError: it has learned none, or its model cannot be rebuilt.
    """
    run = RecordedRun(folder, device="cpu")
    model = run.model()
    vocabulary = Vocabulary(model.backbone)
    rows: list[tuple[str, ...]] = []
    for part, layer, classname, tokens in learned_text(model, run.cfg.TRAINER.NAME):
        for number, nearest in enumerate(vocabulary.nearest(tokens, NEAREST), 1):
            place = f"{part} of {classname}" if classname else part
            rows.append((place, str(layer), str(number), ", ".join(f"{word} ({far:.2f})" for word, far in nearest)))
    return rows


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("report", __doc__)
    parser.add_argument("folders", metavar="OUTPUT", nargs="+", help="folder with runs below it")
    parser.add_argument("--html", metavar="FILE", default="report.html", help="the page (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    args = parse_args(argv)
    with exit_on(*MISTAKES, status=MISTAKE), only_warnings():
        for folder in args.folders:
            if not Path(folder).is_dir():
                raise FileNotFoundError(f"No such folder: {folder}; give a folder with runs below it, such as output")
        page = make_page(args.folders, words)
    with exit_on(OSError, status=FAILED):
        write_atomically(args.html, page)
    show(f"Report: {args.html}")
    return DONE
