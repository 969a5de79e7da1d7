"""Splits: which images train, validate and test, with their labels; read from a file or made from class folders.

Items keep the file's order, which the few-shot draw depends on.
"""
import hashlib
import json
import posixpath
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from p2c.utils.logs import get_logger

log = get_logger(__name__)

PARTS = ("train", "val", "test")
# dev_base and dev_new are the halves of the base half: they play base and new where settings are chosen.
HALVES = ("all", "base", "new", "dev_base", "dev_new")
CHECKS = ("partial", "published", "strict")  # how closely a split is compared with the published one
SHARES = (0.5, 0.2, 0.3)  # of train, val and test in a split made here, as in CoOp's own
DRIVE = re.compile(r"[A-Za-z]:")


class Item(NamedTuple):
    """One image: its path below the image folder (with forward slashes), label and class name."""

    path: str
    label: int
    classname: str


@dataclass(frozen=True)
class Split:
    """The items of each part, and a SHA-256 of where they came from."""

    train: list[Item]
    val: list[Item]
    test: list[Item]
    digest: str

    @property
    def parts(self) -> tuple[list[Item], list[Item], list[Item]]:
        """In the order of PARTS."""
        return self.train, self.val, self.test

    @property
    def paths(self) -> list[str]:
        """Of all images."""
        return [item.path for part in self.parts for item in part]


class Sizes(NamedTuple):
    """The published numbers of a data set's classes and of the images in its split."""

    classes: int
    train: int
    val: int
    test: int

    def __str__(self) -> str:
        return (f"{self.classes:,} classes, {self.train:,} training, {self.val:,} validation and {self.test:,} test "
                "images")


def read_text(path: Path) -> str:
    """A text file as UTF-8, without a byte-order mark.

    Raises ValueError, which names the file, if it is none.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error.reason} at byte {error.start}); save it as that") \
            from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank, without white space around them."""
    return [line for line in map(str.strip, read_text(path).splitlines()) if line]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def digest_of(parts: Iterable[Iterable[Item]]) -> str:
    """A SHA-256 of items that come from no single file."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update("".join(f"{path}\t{label}\t{name}\n" for path, label, name in part).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def read_split(path: Path, image_dir: Path, remedy: str) -> Split:
    """A split JSON of CoOp's form: {train, val, test: [[path below image_dir, label, class name]]}.

    Raises:
        ValueError: not such a file, or items that `check_items` refuses; ends with `remedy`.
    """
    log.info(f"Reading split from {path}")
    content = path.read_bytes()

    def fault(what: str) -> ValueError:
        return ValueError(f"{path}: {what}; {remedy}")

    if content.lstrip()[:1] == b"<":
        raise fault("this is a web page, not a split file: the download was answered with a page")
    try:
        raw = json.loads(content.decode("utf-8-sig"))
        parts = {part: [Item(*item) for item in raw[part]] for part in PARTS}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise fault("this is no split file: expected train, val and test, each a list of [path, label, class name] "
                    f"({type(error).__name__}: {error})") from error
    check_items(parts, image_dir, fault)
    return Split(**parts, digest=sha256(content))


def check_items(parts: Mapping[str, Sequence[Item]], image_dir: Path, fault: Callable[[str], ValueError]) -> None:
    """Refuse items that make no data set.

    Raises:
        ValueError: what `fault` makes of: a path outside the image folder, an image that comes twice, whichever way
            its path is written, labels with gaps, a label with two names or none, a class that is not in both train
            and test, or an empty part.
    """
    names: dict[int, str] = {}
    seen: dict[str, str] = {}  # normal paths, and how they are written
    for path, label, name in (item for part in PARTS for item in parts[part]):
        if type(label) is not int or label < 0:
            raise fault(f"the label of {path!r} must be a whole number from 0 on, but is {label!r}")
        if not isinstance(name, str) or not name.strip():
            raise fault(f"label {label} needs a class name, but has {name!r}")
        if not is_unicode(name):
            raise fault(f"the class name {name!r} of label {label} is no text in UTF-8")
        if not isinstance(path, str) or not path or path.startswith("/") or "\\" in path or DRIVE.match(path) or \
                ".." in path.split("/") or "\0" in path or not is_unicode(path):
            raise fault(f"{path!r} must be a path below {image_dir}, in UTF-8, with forward slashes and no '..'")
        normal = posixpath.normpath(path)
        if normal in seen:
            before = f" (before as {seen[normal]!r})" if seen[normal] != path else ""
            raise fault(f"{path!r} is listed twice{before}; an image belongs to one part, once")
        if names.setdefault(label, name) != name:
            raise fault(f"label {label} has two class names, {names[label]!r} and {name!r}")
        seen[normal] = path
    for part in ("train", "test"):
        if not parts[part]:
            raise fault(f"there are no {part} images")
    classes, validated, tested = ({item.label for item in parts[part]} for part in PARTS)
    gap = next((label for label in range(len(classes)) if label not in classes), None)
    if gap is not None:
        raise fault(f"the {len(classes)} labels of the training images must be 0 to {len(classes) - 1} without gaps, "
                    f"but {gap} is missing")
    if odd := sorted(classes ^ tested | validated - classes):
        raise fault(f"train has {len(classes)} classes, but the classes {odd[:5]} are not in both train and test")


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8; one with half of a character in it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def divide(items: Sequence[Item], seed: int) -> dict[str, list[Item]]:
    """A new split of items, by SHARES within each class.

    Raises:
        ValueError: a class with fewer than three images.
    """
    groups: dict[int, list[Item]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    rng = random.Random(seed)
    parts: dict[str, list[Item]] = {part: [] for part in PARTS}
    for _, group in sorted(groups.items()):
        if len(group) < len(PARTS):
            raise ValueError(f"class {group[0].classname!r} has {len(group)} images; a split needs at least "
                             f"{len(PARTS)}, one to train, one to validate and one to test")
        rng.shuffle(group)
        n_val, n_test = (max(1, round(share * len(group))) for share in SHARES[1:])
        parts["val"] += group[:n_val]
        parts["test"] += group[n_val:n_val + n_test]
        parts["train"] += group[n_val + n_test:]
    return parts
