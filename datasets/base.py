"""The base class of all datasets: it reads the fixed split, checks it, draws the shots and selects base or new classes.

A subclass states facts: name, folder, split file, sizes, template. Everything is keyed by label, so two classes may
have the same name.
"""
import hashlib
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from yacs.config import CfgNode

from p2c.datasets.draws import draw, read_upstream_draw
from p2c.datasets.splits import CHECKS, HALVES, Item, Split, read_split
from p2c.datasets.trees import check_images_exist
from p2c.engine.datasets import Datum
from p2c.engine.seeds import run_seed
from p2c.framework import DatasetBase
from p2c.utils.logs import get_logger

log = get_logger(__name__)


class Sizes(NamedTuple):
    """The published numbers of classes and images of a dataset."""

    classes: int
    train: int
    val: int
    test: int

    def __str__(self) -> str:
        return (f"{self.classes:,} classes, {self.train:,} training, {self.val:,} validation and {self.test:,} test "
                "images")


class FewShotDataset(DatasetBase):
    """A dataset with a split JSON in CoOp's form: {train, val, test: [[path below the images, label, class name]]}.

    Raises:
        FileNotFoundError: the folder, the split or images are missing; the message says how to get them.
        ValueError: an invalid split or setting.
    """

    name: str = ""  # as in configs/datasets/NAME.yaml, for `python -m p2c data`; "": cannot be downloaded
    folder: str  # below DATASET.ROOT
    images: str  # image folder, below `folder`
    split: str  # file name, in `folder`
    split_id: str = ""  # the split's id on Google Drive
    split_sha256: str = ""  # of the split file that the published results used
    sizes: Sizes | None = None  # the published numbers of classes and images; None: any
    template: str = "a photo of a {}."
    how_to_get: str = "`python -m p2c data download {}` downloads what is missing"  # {}: the name
    dataset_dir: Path

    def __init__(self, cfg: CfgNode):
        if cfg.DATASET.CHECKS not in CHECKS:
            raise ValueError(f"DATASET.CHECKS must be one of {', '.join(CHECKS)}, but got '{cfg.DATASET.CHECKS}'")
        self.checks = cfg.DATASET.CHECKS
        self.dataset_dir = Path(os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))) / self.folder
        self.image_dir = self.dataset_dir / self.images
        split = self.read()
        if self.sizes and self.checks != "partial":
            self.check_sizes(split)
        split = self.draw_shots(split, cfg.DATASET.NUM_SHOTS, run_seed(cfg))
        split = select_classes(split, cfg.DATASET.SUBSAMPLE_CLASSES)
        if len({item.label for item in split.test}) == 1:
            log.warning(f"There is only one class, {split.test[0].classname!r}: every prediction is right, and nothing "
                        "can be learned")
        train, val, test = map(self.to_data, split)
        super().__init__(train_x=train, val=val, test=test)

    # Reading

    def read(self) -> Split:
        """Read the split and check that all its images exist."""
        path = self.require(self.split, "split file")
        split = read_split(path, self.image_dir, self.remedy + self.or_by_hand)
        self.compare(path, self.split_sha256)
        check_images_exist(self.image_dir, split.paths, type(self).__name__, self.remedy)
        return split

    def compare(self, path: Path, expected: str) -> None:
        """Warn if a file's SHA-256 is not that of the file that published results used ("": unknown)."""
        if expected and self.checks != "partial":
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            if found != expected:
                log.warning(f"{path} is not the one of the published results: its SHA-256 is {found}, expected "
                            f"{expected}")

    @property
    def remedy(self) -> str:
        """The remedy if files are missing or wrong, for messages."""
        if self.name:
            return self.how_to_get.format(self.name)
        return "extract the images so that these paths exist"

    @property
    def or_by_hand(self) -> str:
        """The continuation of a remedy if the split is on Google Drive."""
        return f", or download {drive_url(self.split_id)} to that path" if self.split_id else ""

    @classmethod
    def verification(cls, cfg: CfgNode) -> str:
        """Return the command that opens all images of the dataset; "" if there is none."""
        return f"python -m p2c data verify --full --root {shlex.quote(cfg.DATASET.ROOT)} {cls.name}" if cls.name else ""

    def require(self, name: str, what: str) -> Path:
        """Return the path of a required file in the dataset's folder; `what` is the kind of file, for messages.

        Raises:
            FileNotFoundError: the folder or the file is missing; the message says how to get it.
        """
        path = self.dataset_dir / name
        if not self.dataset_dir.is_dir():
            dangling = ", which is a broken link" if self.dataset_dir.is_symlink() else ""
            raise FileNotFoundError(f"No {type(self).__name__} at {self.dataset_dir}{dangling}; {self.remedy}, or "
                                    f"point --root (scripts: $DATA) at the folder that holds {self.folder}")
        if not path.is_file():
            raise FileNotFoundError(f"{type(self).__name__} has no {what} {path}; {self.remedy}{self.or_by_hand}")
        return path

    def check_sizes(self, split: Split) -> None:
        """Raise ValueError if a split's numbers of classes and images are not the published ones."""
        found = Sizes(len({item.label for item in split.test}), len(split.train), len(split.val), len(split.test))
        if found != self.sizes:
            raise ValueError(f"{type(self).__name__} in {self.dataset_dir} has {found}, but the published dataset has "
                             f"{self.sizes}; {self.remedy}, or set DATASET.CHECKS partial to use only a part of it")

    # Shots

    def draw_shots(self, split: Split, shots: int, seed: int) -> Split:
        """Draw the training and validation items for a number of shots; -1 keeps everything. All are tested.

        A few-shot pickle of CoOp or MaPLe is used instead if all its items belong to the split.

        Raises:
            ValueError: another number of shots below 1, an invalid pickle, or, with DATASET.CHECKS strict, a class
                with fewer images than shots.
        """
        if shots == -1:
            return split
        if shots < 1:
            raise ValueError("DATASET.NUM_SHOTS must be a positive number of images per class, or -1 for all, but got "
                             f"{shots}")
        self.check_short_classes(split, shots)
        upstream = self.dataset_dir / "split_fewshot" / f"shot_{shots}-seed_{seed}.pkl"
        drawn = read_upstream_draw(upstream, split) if upstream.is_file() else None
        return drawn or draw(split, shots, seed)

    def check_short_classes(self, split: Split, shots: int) -> None:
        """Warn of classes with fewer training images than shots, or raise ValueError with DATASET.CHECKS strict."""
        counts = Counter((item.label, item.classname) for item in split.train)
        short = [f"{name} ({label}) has {count}" for (label, name), count in sorted(counts.items()) if count < shots]
        if not short:
            return
        text = f"{len(short)} classes have fewer than {shots} training images: {', '.join(short[:5])}"
        if self.checks == "strict":
            raise ValueError(f"{type(self).__name__}: {text}; use fewer shots (DATASET.NUM_SHOTS), or set "
                             "DATASET.CHECKS published to use all images of these classes")
        log.warning(f"{text}; all of these are used, as in CoOp")

    def to_data(self, items: Sequence[Item]) -> list[Datum]:
        """Convert items to the engine's `Datum`, with complete paths."""
        base = str(self.image_dir)
        return [Datum(impath=f"{base}/{path}", label=label, classname=name, check=False) for path, label, name in items]


def drive_url(file_id: str) -> str:
    """Return the URL of a file on Google Drive."""
    return f"https://drive.google.com/file/d/{file_id}"


def select_classes(split: Split, half: str) -> Split:
    """Return the items of some classes, relabelled from 0 in order.

    Args:
        half: "all"; "base", the first ceil(n/2) labels; "new", the rest; "dev_base" or "dev_new", the same halves of
            the base labels.

    Raises:
        ValueError: an unknown half, or one without classes.
    """
    if half not in HALVES:
        raise ValueError(f"DATASET.SUBSAMPLE_CLASSES must be one of {', '.join(HALVES)}, but got '{half}'")
    if half == "all":
        return split
    labels = sorted({item.label for item in split.train})
    chosen = labels
    halvings = ("base", half.removeprefix("dev_")) if half.startswith("dev_") else (half,)
    for part in halvings:
        middle = (len(chosen) + 1) // 2
        chosen = chosen[:middle] if part == "base" else chosen[middle:]
    if not chosen:
        classes = "1 class" if len(labels) == 1 else f"{len(labels)} classes"
        raise ValueError(f"There are no classes for DATASET.SUBSAMPLE_CLASSES {half}: the dataset has {classes}; set "
                         "DATASET.SUBSAMPLE_CLASSES all")
    log.info(f"SUBSAMPLE {half.upper()} CLASSES!")
    relabel = {label: new for new, label in enumerate(chosen)}
    return Split(*([item._replace(label=relabel[item.label]) for item in part if item.label in relabel]
                   for part in split))
