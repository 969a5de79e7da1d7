"""What all data sets share: read the fixed split, draw the shots, keep base or new classes, hand over.

A data set states facts: folder, split file, template. Everything is keyed by label, so class names may repeat.
"""
import json
import logging
import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from p2c.framework import DatasetBase, Datum, read_legacy_pickle, run_seed

log = logging.getLogger(__name__)

VAL_SHOTS = 4  # at most so many validation images a class accompany a few-shot draw, as in CoOp
HALVES = ("all", "base", "new")
PARTS = ("train", "val", "test")


class FewShotDataset(DatasetBase):
    """A data set with a split JSON of CoOp's form: {train, val, test: [[path below the images, label, class name]]}.

    Raises:
        FileNotFoundError: the folder, the split or images are missing; the message says how to get them.
        ValueError: a split or a setting that makes no sense.
    """

    folder: str  # below DATASET.ROOT
    images: str  # image folder, below `folder`
    split: str  # file name, in `folder`
    split_id: str  # the split's id on Google Drive
    template: str = "a photo of a {}."
    remedy: str = "extract the images so that these paths exist"  # of missing images

    def __init__(self, cfg):
        self.dataset_dir = Path(os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))) / self.folder
        self.image_dir = self.dataset_dir / self.images
        self.prepare()
        train, val, test = read_split(self.split_path(), self.image_dir, self.split_remedy)
        check_images_exist(self.image_dir, [*train, *val, *test], type(self).__name__, self.remedy)
        train, val = self.draw_shots(train, val, cfg.DATASET.NUM_SHOTS, run_seed(cfg))
        train, val, test = select_classes(train, val, test, cfg.DATASET.SUBSAMPLE_CLASSES)
        super().__init__(train_x=train, val=val, test=test)

    def prepare(self) -> None:
        """Make the files; nothing to do unless a data set is generated."""

    def split_path(self) -> Path:
        """The split file, which must be there: a new random split would not be comparable."""
        path = self.dataset_dir / self.split
        if not self.dataset_dir.is_dir():
            raise FileNotFoundError(f"No {type(self).__name__} at {self.dataset_dir}: put its images into "
                                    f"{self.image_dir} and {self.split} beside them, or point --root (scripts: $DATA) "
                                    f"at the folder that holds {self.folder}")
        if not path.is_file():
            raise FileNotFoundError(f"{type(self).__name__} has no split file {path}; {self.split_remedy}")
        return path

    @property
    def split_remedy(self) -> str:
        """How to get a good split file."""
        return f"download https://drive.google.com/file/d/{self.split_id} to that path"

    def draw_shots(self, train: list[Datum], val: list[Datum], shots: int, seed: int) \
            -> tuple[list[Datum], list[Datum]]:
        """CoOp's few-shot draw for a seed, item for item: from train, then with the same generator from val.

        An upstream few-shot pickle is used if all its items belong to the split. `shots` of -1 keeps everything.

        Raises:
            ValueError: another number of shots below 1, or a pickle that is not such a cache.
        """
        if shots == -1:
            return train, val
        if shots < 1:
            raise ValueError(f"DATASET.NUM_SHOTS must be a positive number of images a class, or -1 for all, "
                             f"but got {shots}")
        legacy = self.dataset_dir / "split_fewshot" / f"shot_{shots}-seed_{seed}.pkl"
        if legacy.is_file():
            drawn = self.read_upstream_draw(legacy, train, val)
            if drawn is not None:
                return drawn
        rng = random.Random(seed)
        return (self.generate_fewshot_dataset(train, num_shots=shots, rng=rng),
                self.generate_fewshot_dataset(val, num_shots=min(shots, VAL_SHOTS), rng=rng))

    def read_upstream_draw(self, path: Path, train: list[Datum], val: list[Datum]) \
            -> tuple[list[Datum], list[Datum]] | None:
        """The draw cached by CoOp or MaPLe, absolute paths re-rooted; None, and a line, if not of this split."""
        cached = read_legacy_pickle(path)
        drawn = []
        for part, items in (("train", train), ("val", val)):
            known = {(self.relative(item), item.label): item for item in items}
            found = [next((known[key] for key in suffixes(item) if key in known), None)
                     for item in cached.get(part, [])]
            if None in found or (items and not found):
                log.warning(f"{path} is not used: it holds {part} images that {self.split} does not have")
                return None
            drawn.append(found)
        log.info(f"Loading preprocessed few-shot data from {path}")
        return tuple(drawn)

    def relative(self, item: Datum) -> str:
        """An item's path below the image folder."""
        return Path(item.impath).relative_to(self.image_dir).as_posix()


def suffixes(item: Datum) -> Iterable[tuple[str, int]]:
    """(the end of the item's path, its label), for every number of path components, longest first."""
    parts = PurePosixPath(item.impath.replace("\\", "/")).parts
    return (("/".join(parts[start:]), item.label) for start in range(len(parts)))


def read_split(path: Path, image_dir: Path, remedy: str) -> tuple[list[Datum], list[Datum], list[Datum]]:
    """Train, validation and test items of a split JSON, in the file's order, which the few-shot draw depends on.

    Raises:
        ValueError: not such a file, a path outside the image folder, labels with gaps, a label with two names or none,
            a class that is not in both train and test, or an empty part; ends with `remedy`.
    """
    log.info(f"Reading split from {path}")

    def fault(what: str) -> ValueError:
        return ValueError(f"{path}: {what}; {remedy}")

    try:
        split = json.loads(path.read_text(encoding="utf-8"))
        parts = [[(impath, label, name) for impath, label, name in split[part]] for part in PARTS]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise fault("this is no split file: expected train, val and test, each a list of [path, label, class name] "
                    f"({type(error).__name__}: {error})") from error
    names: dict[int, str] = {}
    for impath, label, name in (item for part in parts for item in part):
        if type(label) is not int or label < 0:
            raise fault(f"the label of {impath!r} must be a whole number from 0 on, but is {label!r}")
        if not isinstance(name, str) or not name.strip():
            raise fault(f"label {label} needs a class name, but has {name!r}")
        if not isinstance(impath, str) or PurePosixPath(impath).is_absolute() or "\\" in impath or \
                ".." in PurePosixPath(impath).parts:
            raise fault(f"{impath!r} must be a path below {image_dir}, with forward slashes and no '..'")
        if names.setdefault(label, name) != name:
            raise fault(f"label {label} has two class names, {names[label]!r} and {name!r}")
    train, val, test = parts
    for part, items in (("train", train), ("test", test)):
        if not items:
            raise fault(f"there are no {part} images")
    classes = {label for _, label, _ in train}
    gap = next((label for label in range(len(classes)) if label not in classes), None)
    if gap is not None:
        raise fault(f"the {len(classes)} labels of the training images must be 0 to {len(classes) - 1} without gaps, "
                    f"but {gap} is missing")
    tested = {label for _, label, _ in test}
    if odd := sorted(classes ^ tested | {label for _, label, _ in val} - classes):
        raise fault(f"train has {len(classes)} classes, but the classes {odd[:5]} are not in both train and test")
    return tuple([Datum(impath=str(image_dir / impath), label=label, classname=name, check=False)
                  for impath, label, name in part] for part in parts)


def check_images_exist(image_dir: Path, items: Sequence[Datum], dataset: str, remedy: str) -> None:
    """Look for every image, one listing a folder.

    Raises:
        FileNotFoundError: naming the first few that are missing and how many are.
    """
    by_folder: dict[Path, set[str]] = {}
    for item in items:
        path = Path(item.impath)
        by_folder.setdefault(path.parent, set()).add(path.name)
    missing = []
    for folder, names in by_folder.items():
        present = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
        missing += [str(folder / name) for name in sorted(names - present)]
    if missing:
        raise FileNotFoundError(f"{dataset}: {len(missing)} of {len(items)} images of the split are missing below "
                                f"{image_dir}, first {', '.join(missing[:3])}; {remedy}")


def select_classes(train: list[Datum], val: list[Datum], test: list[Datum], half: str) -> tuple[list[Datum], ...]:
    """Keep all classes, the first ceil(n/2) labels (base) or the rest (new), relabelled from 0 in order.

    Raises:
        ValueError: no such choice, or no new classes.
    """
    if half not in HALVES:
        raise ValueError(f"DATASET.SUBSAMPLE_CLASSES must be one of {', '.join(HALVES)}, but got '{half}'")
    if half == "all":
        return train, val, test
    labels = sorted({item.label for item in train})
    m = (len(labels) + 1) // 2
    chosen = labels[:m] if half == "base" else labels[m:]
    if not chosen:
        raise ValueError(f"There are no new classes: the data set has {len(labels)} class only")
    log.info(f"SUBSAMPLE {half.upper()} CLASSES!")
    relabel = {label: new for new, label in enumerate(chosen)}
    return tuple([Datum(impath=item.impath, label=relabel[item.label], classname=item.classname, check=False)
                  for item in part if item.label in relabel] for part in (train, val, test))
