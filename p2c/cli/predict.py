"""Classify images with a trained run.

    python -m p2c predict output/RUN photos/ more.jpg              # five classes for each image
    python -m p2c predict output/RUN photos/ --csv photos.csv
    python -m p2c predict output/RUN photos/ --classes zebra,okapi  # other classes than the run's
    python -m p2c predict output/RUN --export classifier.onnx       # or .pt2, or .safetensors: the text classifier

RUN is the folder of a training or an evaluation by train.py; its dataset is not needed. Folders are searched
recursively for image files. Predictions go to standard output, one line for each image, everything else to standard
error.

Exit status: 0 all predicted, 1 some images could not be read (they are named and skipped) or something failed, 2 a
usage error.
"""
import argparse
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from p2c.datasets.splits import read_lines
from p2c.datasets.trees import SUFFIXES, describe, files_below
from p2c.engine.files import UNREAD, UnreadableImage, check_writable, write_csv
from p2c.engine.logger import only_warnings
from p2c.inference.export import check_destination
from p2c.inference.predictor import Predictor
from p2c.utils.console import (
    DONE,
    FAILED,
    MISTAKE,
    MISTAKES,
    ReaderGone,
    exit_on,
    positive,
    printable,
    run_parser,
    say,
    show,
)

COLUMNS = ("path", "rank", "class", "label", "probability")


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = run_parser("predict", __doc__)
    parser.add_argument("images", metavar="IMAGE_OR_FOLDER", nargs="*", help="image files, folders of them, or both")
    parser.add_argument("--top", type=positive, default=5, help="classes named for each image (default: %(default)s)")
    parser.add_argument("--csv", help="also write the predictions to this file")
    parser.add_argument("--classes", help="names separated by commas, or a .txt file, one a line; default: the run's")
    parser.add_argument("--export", metavar="FILE", help="write the classifier to this file: .pt2 (torch.export) or "
                        ".onnx, with the image tower; .safetensors, the class features only")
    parser.add_argument("--batch-size", type=positive, help="default: that of the run's tests")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    args = parser.parse_args(argv)
    if not args.images and not args.export:
        parser.error("give images or folders of images, or --export")
    return args


def main(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    args = parse_args(argv)
    with exit_on(*MISTAKES, torch.OutOfMemoryError, status=MISTAKE), only_warnings():
        if args.export:
            check_destination(args.export)
        for file in filter(None, (args.csv, args.export)):  # before minutes of work
            check_writable(file)
        paths, others = find_images(args.images)
        classes = None if args.classes is None else read_classes(args.classes)
        predictor = Predictor.from_run(args.run, classes, args.load_epoch, args.device)
        if args.export:
            with exit_on(RuntimeError, status=FAILED):
                for line in predictor.export(args.export):
                    say(line)
    if others:
        say(f"left out, as no images: {describe(others)}")
    with exit_on(*MISTAKES, RuntimeError, status=FAILED):
        complete = predict(predictor, paths, args)
    return DONE if complete else FAILED


def predict(predictor: Predictor, paths: list[str], args: argparse.Namespace) -> bool:
    """Print the predictions, write them to --csv, and return whether all images could be read."""
    unreadable = []

    def pass_over(error: UnreadableImage) -> None:
        unreadable.append(error)
        say(f"skipped: {str(error).rpartition('; ')[0]}")  # the rest is advice about datasets

    names, rows = predictor.classnames, []
    batch_size = args.batch_size or predictor.cfg.DATALOADER.TEST.BATCH_SIZE
    workers = min(os.cpu_count() or 1, predictor.cfg.DATALOADER.NUM_WORKERS, len(paths) // batch_size)
    for indices, probabilities in predictor.batches(paths, batch_size, workers, pass_over):
        best = probabilities.topk(min(args.top, len(names)))
        for index, values, labels in zip(indices, best.values.tolist(), best.indices.tolist(), strict=True):
            path = printable(paths[index])
            ranking = [(names[label], label, value) for label, value in zip(labels, values, strict=True)]
            with contextlib.suppress(*([ReaderGone] if args.csv else [])):  # the file is wanted whole
                show(f"{path}: {', '.join(f'{name} {value:.1%}' for name, _, value in ranking)}")
            rows += [(path, rank, *entry) for rank, entry in enumerate(ranking, 1)]
    if args.csv:
        write_csv(args.csv, COLUMNS, rows)
    if unreadable:
        say(f"{len(unreadable)} of {len(paths)} images could not be read")
    return not unreadable


def read_classes(words: str) -> list[str]:
    """Return class names that are separated by commas, or those of a .txt file with one a line."""
    if not words.endswith(".txt"):
        if os.path.isfile(words):
            raise ValueError(f"--classes {words} is a file, but not a .txt file with one class name a line; save it as "
                             "such, or give the names separated by commas")
        return words.split(",")
    if not Path(words).is_file():
        raise FileNotFoundError(f"No file of class names at {words}; give a .txt file, or names separated by commas")
    return read_lines(Path(words))


def find_images(places: Sequence[str]) -> tuple[list[str], set[str]]:
    """Return the files among `places` and the image files below its folders, each once, in order, and the other files.

    In a folder the names are sorted, and hidden files are left out. A folder that several links lead to is searched
    once. Of a file that is given in two ways (`a.jpg`, `./a.jpg`), the first is kept.
    """
    def fail(error: OSError) -> None:
        raise error

    found: dict[tuple[str, str], str] = {}  # (folder, name) -> path as given
    others: set[str] = set()
    for place in places:
        if not os.path.lexists(place):
            raise FileNotFoundError(f"No image or folder at {place}; give image files or folders of them")
        paths = [place]
        if os.path.isdir(place):
            files = files_below(place, fail)
            paths = [path for path in files if path.lower().endswith((*SUFFIXES, *UNREAD))]
            others |= set(files).difference(paths)
        for path in paths:
            folder, name = os.path.split(path)
            found.setdefault((os.path.realpath(folder), name), path)
    if places and not found:
        raise FileNotFoundError(f"No image in {', '.join(places)}: looked for names that end in "
                                f"{', '.join(SUFFIXES)}, but found {describe(others) or 'no file'}")
    return list(found.values()), others
