"""What all data sets share: read the fixed split, check it, draw the shots, keep base or new classes, hand over.

A data set states facts: name, folder, split file, sizes, template. Everything is keyed by label, so class names may
repeat.
"""
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from p2c.datasets.draws import read_upstream_draw, remembered_draw, short_classes
from p2c.datasets.splits import CHECKS, HALVES, Item, Sizes, Split, read_split
from p2c.datasets.trees import check_images_exist
from p2c.framework import DatasetBase, Datum, run_seed
from p2c.utils.logs import get_logger

log = get_logger(__name__)

CACHE = Path("~/.cache/p2c")  # for data sets in folders that cannot be written to; $XDG_CACHE_HOME counts


class FewShotDataset(DatasetBase):
    """A data set with a split JSON of CoOp's form: {train, val, test: [[path below the images, label, class name]]}.

    Raises:
        FileNotFoundError: the folder, the split or images are missing; the message says how to get them.
        ValueError: a split or a setting that makes no sense.
    """

    name: str = ""  # as in configs/datasets/NAME.yaml, for `python -m p2c data`; "": it cannot be fetched
    folder: str  # below DATASET.ROOT
    images: str  # image folder, below `folder`
    split: str  # file name, in `folder`
    split_id: str = ""  # the split's id on Google Drive
    split_sha256: str = ""  # of the file that published results used
    sizes: Sizes | None = None  # the published numbers; None: any
    template: str = "a photo of a {}."

    def __init__(self, cfg):
        if cfg.DATASET.CHECKS not in CHECKS:
            raise ValueError(f"DATASET.CHECKS must be one of {', '.join(CHECKS)}, but got '{cfg.DATASET.CHECKS}'")
        self.checks = cfg.DATASET.CHECKS
        self.dataset_dir = self.locate(Path(os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))))
        self.image_dir = self.dataset_dir / self.images
        self.prepare()
        split = self.read()
        if self.sizes and self.checks != "partial":
            self.check_sizes(split)
        train, val = self.draw_shots(split, cfg.DATASET.NUM_SHOTS, run_seed(cfg))
        parts = select_classes(train, val, split.test, cfg.DATASET.SUBSAMPLE_CLASSES)
        train, val, test = (self.to_data(part) for part in parts)
        super().__init__(train_x=train, val=val, test=test)

    def locate(self, root: Path) -> Path:
        """The data set's folder below DATASET.ROOT."""
        return root / self.folder

    def prepare(self) -> None:
        """Make the files; nothing to do unless a data set is generated."""

    # Reading

    def read(self) -> Split:
        """The split, all of whose images are there."""
        path = self.require(self.split, self.split_id, "split file")
        split = read_split(path, self.image_dir, f"{self.remedy}, or download {drive_url(self.split_id)} to that path"
                           if self.split_id else self.remedy)
        self.compare(path, split.digest, self.split_sha256)
        return self.with_images(split)

    def compare(self, path: Path, digest: str, expected: str) -> None:
        """Warn of a file that published results did not use, by its SHA-256; "" is expected where that is not known."""
        if expected and digest != expected and self.checks != "partial":
            log.warning(f"{path} is not the one of the published results: its SHA-256 is {digest}, expected {expected}")

    def with_images(self, split: Split) -> Split:
        """The split, if all its images are there; raises FileNotFoundError otherwise."""
        check_images_exist(self.image_dir, split.paths, type(self).__name__, self.remedy)
        return split

    @property
    def remedy(self) -> str:
        """What to do where files are missing or wrong."""
        return f"`python -m p2c data download {self.name}` gets what is missing" if self.name else \
            "extract the images so that these paths exist"

    def require(self, name: str, drive_id: str, what: str) -> Path:
        """A file of the data set's folder that must be there; nothing is invented in its place.

        Raises:
            FileNotFoundError: the folder or the file is missing; the message says how to get it.
        """
        path = self.dataset_dir / name
        if not self.dataset_dir.is_dir():
            dangling = ", which is a link to nothing" if self.dataset_dir.is_symlink() else ""
            raise FileNotFoundError(f"No {type(self).__name__} at {self.dataset_dir}{dangling}; {self.remedy}, or "
                                    f"point --root (scripts: $DATA) at the folder that holds {self.folder}")
        if not path.is_file():
            by_hand = f", or download {drive_url(drive_id)} to that path" if drive_id else ""
            raise FileNotFoundError(f"{type(self).__name__} has no {what} {path}; {self.remedy}{by_hand}")
        return path

    def check_sizes(self, split: Split) -> None:
        """Compare a split with the published numbers.

        Raises:
            ValueError: they differ.
        """
        found = Sizes(len({item.label for item in split.test}), len(split.train), len(split.val), len(split.test))
        if found != self.sizes:
            raise ValueError(f"{type(self).__name__} in {self.dataset_dir} has {found}, but the published data set has "
                             f"{self.sizes}; {self.remedy}, or set DATASET.CHECKS partial to use a part of it on "
                             "purpose")

    # Shots

    def draw_shots(self, split: Split, shots: int, seed: int) -> tuple[list[Item], list[Item]]:
        """The training and validation items for a number of shots; -1 keeps everything.

        An upstream few-shot pickle is used if all its items belong to the split.

        Raises:
            ValueError: another number of shots below 1, a pickle that is not such a cache, or, with
                DATASET.CHECKS strict, a class with fewer images than shots.
        """
        if shots == -1:
            return split.train, split.val
        if shots < 1:
            raise ValueError(f"DATASET.NUM_SHOTS must be a positive number of images a class, or -1 for all, "
                             f"but got {shots}")
        if short := short_classes(split, shots):
            text = f"{len(short)} classes have fewer than {shots} training images: " + \
                ", ".join(f"{name} has {count}" for name, count in list(short.items())[:5])
            if self.checks == "strict":
                raise ValueError(f"{type(self).__name__}: {text}; take fewer shots (DATASET.NUM_SHOTS), or set "
                                 "DATASET.CHECKS published to use all that there are")
            log.warning(f"{text}; all of these are used, as in CoOp")
        legacy = self.dataset_dir / "split_fewshot" / f"shot_{shots}-seed_{seed}.pkl"
        if legacy.is_file():
            drawn = read_upstream_draw(legacy, split)
            if drawn is not None:
                return drawn
        return remembered_draw(self.cache_dir / f"shot_{shots}-seed_{seed}.json", split, shots, seed,
                               type(self).__name__)

    @property
    def cache_dir(self) -> Path:
        """Where draws and listings are kept: with the data set, or where its folder cannot be written to, in CACHE."""
        beside = self.dataset_dir / "split_fewshot"
        if os.access(beside if beside.is_dir() else self.dataset_dir, os.W_OK):
            return beside
        place = os.environ.get("XDG_CACHE_HOME")
        cache = Path(place) / "p2c" if place else CACHE.expanduser()
        return cache / f"{self.dataset_dir.name}-{hashlib.sha256(str(self.dataset_dir).encode()).hexdigest()[:12]}"

    # Handing over

    def to_data(self, items: Sequence[Item]) -> list[Datum]:
        """Items with the whole path."""
        base = str(self.image_dir)
        return [Datum(impath=f"{base}/{path}", label=label, classname=name, check=False) for path, label, name in items]


def drive_url(file_id: str) -> str:
    """Where a browser finds a file on Google Drive."""
    return f"https://drive.google.com/file/d/{file_id}"


def select_classes(train: Sequence[Item], val: Sequence[Item], test: Sequence[Item], half: str) \
        -> tuple[Sequence[Item], ...]:
    """Keep all classes, the first ceil(n/2) labels (base) or the rest (new), or a half of the base labels, taken
    likewise (dev_base, dev_new); relabelled from 0 in order.

    Raises:
        ValueError: no such choice, or no new classes.
    """
    if half not in HALVES:
        raise ValueError(f"DATASET.SUBSAMPLE_CLASSES must be one of {', '.join(HALVES)}, but got '{half}'")
    if half == "all":
        return train, val, test
    labels = sorted({item.label for item in train})
    chosen = labels
    for part in ("base", half.removeprefix("dev_")) if half.startswith("dev_") else (half,):
        m = (len(chosen) + 1) // 2
        chosen = chosen[:m] if part == "base" else chosen[m:]
    if not chosen:
        raise ValueError(f"There are no classes for DATASET.SUBSAMPLE_CLASSES {half}: the data set has {len(labels)} "
                         f"class{'es' * (len(labels) > 1)}; set DATASET.SUBSAMPLE_CLASSES all")
    log.info(f"SUBSAMPLE {half.upper()} CLASSES!")
    relabel = {label: new for new, label in enumerate(chosen)}
    return tuple([item._replace(label=relabel[item.label]) for item in part if item.label in relabel]
                 for part in (train, val, test))
