"""Classify images with a trained run.

    python -m p2c predict output/RUN photos/ more.jpg              # five classes an image, with probabilities
    python -m p2c predict output/RUN photos/ --csv photos.csv
    python -m p2c predict output/RUN photos/ --classes zebra,okapi  # other classes than the run's
    python -m p2c predict output/RUN --export classifier.safetensors

RUN is the folder of a training or an evaluation by train.py; its data set is not needed. Folders are searched for image
files, and folders in them too. Predictions go to standard output, one line an image, all else to standard error.

Exit status: 0 all predicted, 1 some images could not be read (they are named and passed over) or something failed, 2 a
mistaken call.
"""
import argparse
import functools
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from p2c.datasets.splits import read_lines
from p2c.datasets.trees import SUFFIXES, images_below
from p2c.engine.files import UnreadableImage, write_csv
from p2c.engine.logger import only_warnings
from p2c.inference.predictor import Predictor
from p2c.utils.console import DONE, FAILED, MISTAKE, MISTAKES, one_line, positive, printable, run_parser, say, show

COLUMNS = ("path", "rank", "class", "label", "probability")


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = run_parser("predict", __doc__)
    parser.add_argument("images", metavar="IMAGE_OR_FOLDER", nargs="*", help="image files, folders of them, or both")
    parser.add_argument("--top", type=positive, default=5, help="classes named for each image (default: %(default)s)")
    parser.add_argument("--csv", help="also write the predictions to this file")
    parser.add_argument("--classes", help="names with commas between, or a .txt file of one a line; default: the run's")
    parser.add_argument("--export", metavar="FILE.safetensors", help="write the text classifier to this file")
    parser.add_argument("--batch-size", type=positive, help="images at a time; default: that of the run's tests")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    args = parser.parse_args(argv)
    if not args.images and not args.export:
        parser.error("give images or folders of images, or --export")
    return args


def main(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    args = parse_args(argv)
    try:
        paths = find_images(args.images)
        classes = None if args.classes is None else read_classes(args.classes)
        with only_warnings():
            predictor = Predictor.from_run(args.run, classes, args.load_epoch, args.device)
            if args.export and not predictor.export(args.export):
                say(f"warning: the image features for {args.export} need this package too, since the image tower is "
                    "prompted")
    except (*MISTAKES, torch.OutOfMemoryError) as error:
        say(f"error: {one_line(error)}")
        return MISTAKE
    try:
        return predict(predictor, paths, args)
    except (*MISTAKES, RuntimeError) as error:
        say(f"error: {one_line(error)}")
    except KeyboardInterrupt:
        say("Interrupted")
    return FAILED


def predict(predictor: Predictor, paths: list[str], args: argparse.Namespace) -> int:
    """Print the predictions, and write them to the CSV file that the options ask for."""
    unreadable = []

    def pass_over(error: UnreadableImage) -> None:
        unreadable.append(error)
        say(f"skipped: {str(error).rpartition('; ')[0]}")  # the rest is a remedy for data sets

    names, rows = predictor.classnames, []
    batch_size = args.batch_size or predictor.cfg.DATALOADER.TEST.BATCH_SIZE
    workers = min(os.cpu_count() or 1, predictor.cfg.DATALOADER.NUM_WORKERS, len(paths) // batch_size)
    for indices, probabilities in predictor.batches(paths, batch_size, workers, pass_over):
        best = probabilities.topk(min(args.top, len(names)))
        for index, values, labels in zip(indices, best.values.tolist(), best.indices.tolist(), strict=True):
            path = printable(paths[index])
            named = ", ".join(f"{names[label]} {value:.1%}" for value, label in zip(values, labels, strict=True))
            show(f"{path}: {named}")
            rows += [(path, rank, names[label], label, value)
                     for rank, (value, label) in enumerate(zip(values, labels, strict=True), 1)]
    if args.csv:
        write_csv(args.csv, COLUMNS, rows)
    if unreadable:
        say(f"{len(unreadable)} of {len(paths)} images could not be read")
    return FAILED if unreadable else DONE


def read_classes(words: str) -> list[str]:
    """Return the names in a .txt file, one a line, or between commas.

    Raises FileNotFoundError if there is no such file, ValueError if it is no text or if a file has another ending.
    """
    if not words.endswith(".txt"):
        if os.path.isfile(words):
            raise ValueError(f"--classes {words} is a file, but not a .txt file of one class name a line; save it as "
                             "such, or give the names with commas between")
        return words.split(",")
    if not Path(words).is_file():
        raise FileNotFoundError(f"No file of class names at {words}; give a .txt file, or names with commas between")
    return read_lines(Path(words))


def find_images(places: Sequence[str]) -> list[str]:
    """The files among `places`, and the image files in its folders and their folders, each once, in order.

    Names in a folder are sorted, hidden ones and other kinds of files left out; a folder that several links lead to
    is searched once, and a file that is given in two ways (`a.jpg`, `./a.jpg`, or with its folder) keeps the first.

    Raises:
        FileNotFoundError: a place that does not exist, or no image in any.
    """
    def fail(error: OSError) -> None:
        raise error

    real = functools.cache(os.path.realpath)
    found: dict[tuple[str, str], str] = {}  # folder and name, and how they were given
    for place in places:
        if not os.path.lexists(place):
            raise FileNotFoundError(f"No image or folder at {place}; give image files or folders of them")
        for path in images_below(place, fail) if os.path.isdir(place) else [place]:
            folder, name = os.path.split(path)
            found.setdefault((real(folder), name), path)
    if places and not found:
        raise FileNotFoundError(f"No image in {', '.join(places)}: looked for names that end in "
                                f"{', '.join(SUFFIXES)}")
    return list(found.values())
