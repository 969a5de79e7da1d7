"""Splits into training, validation and test images with labels, read from a file or made from class folders.

Items keep the file's order, on which the few-shot draw depends.
"""
import json
import posixpath
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from p2c.utils.logs import get_logger

log = get_logger(__name__)

PARTS = ("train", "val", "test")
# dev_base and dev_new are the two halves of the base classes, used as base and new classes when settings are chosen.
HALVES = ("all", "base", "new", "dev_base", "dev_new")
CHECKS = ("partial", "published", "strict")  # how closely a split is compared with the published one
SHARES = (0.5, 0.2, 0.3)  # of train, val and test in a split made here, as in CoOp's splits
DRIVE_LETTER = re.compile(r"[A-Za-z]:")


class Item(NamedTuple):
    """One image: its path below the image folder (with forward slashes), label and class name."""

    path: str
    label: int
    classname: str


class Split(NamedTuple):
    """The items of each part; the fields are PARTS."""

    train: list[Item]
    val: list[Item]
    test: list[Item]

    @property
    def paths(self) -> list[str]:
        """The paths of all images."""
        return [item.path for part in self for item in part]


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, without a byte-order mark.

    Raises:
        ValueError: the file is not in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error.reason} at byte {error.start}); save it in UTF-8") \
            from error


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, stripped and without blank ones."""
    return [line for line in map(str.strip, read_text(path).splitlines()) if line]


def read_names(path: Path) -> dict[str, str]:
    """Read a mapping from class folder to class name, in the file's order.

    Lines are "folder name", with a tab between the two if the folder's name contains spaces.

    Raises:
        ValueError: another line, or a folder that is listed twice.
    """
    names: dict[str, str] = {}
    for line in read_lines(path):
        folder, _, name = line.partition("\t" if "\t" in line else " ")
        if not name.strip() or folder.strip() in names:
            raise ValueError(f"{path}: the line {line!r} should be a folder that is listed once, a space or tab, and "
                             "a class name; correct the file, or download it again")
        names[folder.strip()] = name.strip()
    return names


def read_split(path: Path, image_dir: Path, remedy: str) -> Split:
    """Read a split JSON in CoOp's form: {train, val, test: [[path below image_dir, label, class name]]}.

    Raises:
        ValueError: another file, or items that `check_items` refuses; the message ends with `remedy`.
    """
    log.info(f"Reading split from {path}")
    content = path.read_bytes()
    if content.lstrip()[:1] == b"<":
        raise ValueError(f"{path}: this is a web page, not a split file: the server answered the download with a "
                         f"page; {remedy}")
    try:
        raw = json.loads(content.decode("utf-8-sig"))
        split = Split(*([Item(*item) for item in raw[part]] for part in PARTS))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: this is not a split file: expected train, val and test, each a list of [path, "
                         f"label, class name] ({type(error).__name__}: {error}); {remedy}") from error
    check_items(split, image_dir, path, remedy)
    return split


def check_items(split: Split, image_dir: Path, source: Path, remedy: str) -> None:
    """Check that a split is a valid dataset.

    Args:
        source: the file or folder that the split was read from, for messages, which end with `remedy`.

    Raises:
        ValueError: a path outside the image folder, an image that is listed twice (however its path is written),
            labels with gaps, a label with two names or none, a class that is not in both train and test, or no items
            to train or test.
    """
    def fault(what: str) -> ValueError:
        return ValueError(f"{source}: {what}; {remedy}")

    names: dict[int, str] = {}
    seen: dict[str, str] = {}  # normalised path -> path as written
    for path, label, name in (item for part in split for item in part):
        if type(label) is not int or label < 0:
            raise fault(f"the label of {path!r} must be a whole number from 0 on, but is {label!r}")
        if not isinstance(name, str) or not name.strip():
            raise fault(f"label {label} needs a class name, but has {name!r}")
        if not is_relative_path(path):
            raise fault(f"{path!r} must be a path below {image_dir} in UTF-8, with forward slashes and no '..'")
        normal = posixpath.normpath(path)
        if normal in seen:
            before = f" (before as {seen[normal]!r})" if seen[normal] != path else ""
            raise fault(f"{path!r} is listed twice{before}; an image belongs to one part, once")
        if names.setdefault(label, name) != name:
            raise fault(f"label {label} has two class names, {names[label]!r} and {name!r}")
        seen[normal] = path
    for part in ("train", "test"):
        if not getattr(split, part):
            raise fault(f"there are no {part} images")
    trained, validated, tested = ({item.label for item in part} for part in split)
    for what, odd in (("no test", trained - tested), ("no training", (tested | validated) - trained)):
        if odd:
            classes = ", ".join(f"{names[label]!r} ({label})" for label in sorted(odd)[:5])
            raise fault(f"{len(odd)} classes have {what} images: {classes}; training and test need the same classes")
    if gaps := set(range(len(trained))) - trained:
        raise fault(f"the {len(trained)} labels of the training images must be 0 to {len(trained) - 1} without gaps, "
                    f"but {min(gaps)} is missing")


def is_relative_path(path: object) -> bool:
    """Return whether a value is a path in UTF-8, with forward slashes, that stays inside its folder on every system."""
    if not isinstance(path, str) or not path:
        return False
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    absolute = path.startswith("/") or DRIVE_LETTER.match(path)
    return not (absolute or "\\" in path or "\0" in path or ".." in path.split("/"))


def divide(items: Sequence[Item], seed: int, source: Path) -> Split:
    """Divide items at random into train, val and test, by SHARES within each class.

    Raises:
        ValueError: a class with fewer than three images; the message begins with `source`.
    """
    groups: dict[int, list[Item]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    rng = random.Random(seed)
    split = Split([], [], [])
    for _, group in sorted(groups.items()):
        if len(group) < len(PARTS):
            raise ValueError(f"{source}: class {group[0].classname!r} has {len(group)} images; a split needs at least "
                             f"{len(PARTS)}, one each for training, validation and test")
        rng.shuffle(group)
        n_val, n_test = (max(1, round(share * len(group))) for share in SHARES[1:])
        split.val.extend(group[:n_val])
        split.test.extend(group[n_val:n_val + n_test])
        split.train.extend(group[n_val + n_test:])
    return split
