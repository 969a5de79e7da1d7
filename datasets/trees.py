"""Folders of images: what they hold, whether the images of a split are there, and how a folder is made as a whole."""
import contextlib
import os
import shutil
import unicodedata
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from p2c.engine.files import READERS, UNREAD

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm",
            *(ending for ending in READERS if ending not in UNREAD))
JUNK = ("__MACOSX", "split_fewshot")  # folders beside class folders that hold no class


def is_image(name: str) -> bool:
    """Return whether a file of this name is an image: by its ending, and not hidden (macOS leaves `._name.jpg`)."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def list_images(folder: Path) -> list[str]:
    """Return the names of the images in a folder, sorted."""
    return sorted(filter(is_image, os.listdir(folder)))


def images_below(folder: str | os.PathLike[str], onerror: Callable[[OSError], object] | None = None) -> list[str]:
    """Return the paths of the images in a folder and its folders, as `files_below`."""
    return [path for path in files_below(folder, onerror) if is_image(os.path.basename(path))]


def files_below(folder: str | os.PathLike[str], onerror: Callable[[OSError], object] | None = None) -> list[str]:
    """Return the paths of the files in a folder and its folders, sorted.

    Hidden files and folders are left out; a folder that several links lead to is searched once.

    Args:
        onerror: called with the error of a folder that cannot be searched; None: it counts as empty.
    """
    found: list[str] = []
    searched: set[str] = set()
    for parent, folders, files in os.walk(os.fspath(folder), onerror=onerror, followlinks=True):
        place = os.path.realpath(parent)
        if place in searched:
            folders.clear()
            continue
        searched.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [os.path.join(parent, name) for name in files if not name.startswith(".")]
    return sorted(found)


def describe(files: Iterable[str]) -> str:
    """Return how many files have each ending, and what installs a reader of images that cannot be read here."""
    endings = Counter(os.path.splitext(name)[1].lower() or "without an ending" for name in files)
    return ", ".join(f"{count} {ending}" + (f" (`{UNREAD[ending]}` installs a reader)" if ending in UNREAD else "")
                     for ending, count in endings.most_common())


def note_on_forms(names: Collection[str]) -> str:
    """Return a note if some of different names look the same, since their letters have other Unicode forms; else ""."""
    if len({unicodedata.normalize("NFC", name) for name in names}) == len(names):
        return ""
    return " (only the coding of letters with accents differs: composed, or decomposed as on macOS)"


def list_deep(folder: Path) -> list[str]:
    """Return the paths of the images in a folder and its folders, relative to it, with forward slashes, sorted."""
    def fail(error: OSError) -> None:
        raise error

    return sorted(os.path.relpath(path, folder).replace(os.sep, "/") for path in images_below(folder, fail))


def list_classes(folder: Path, dataset: str, remedy: str = "",
                 listed: Callable[[Path], list[str]] = list_images) -> dict[str, list[str]]:
    """Return the names of the images in each class folder, folders and names sorted.

    Args:
        listed: lists the images of one class folder: `list_images`, or `list_deep`.

    Raises:
        FileNotFoundError: there is no such folder, it has no class folders, or one of them is empty; the message ends
            with `remedy`.
    """
    def fault(what: str) -> FileNotFoundError:
        return FileNotFoundError(f"{dataset}: {what}; {remedy}" if remedy else f"{dataset}: {what}")

    if not folder.is_dir():
        raise fault(f"no folder {folder}, which should hold one folder of images a class")
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries
                       if entry.is_dir() and not entry.name.startswith(".") and entry.name not in JUNK)
    listing = {name: listed(folder / name) for name in names}
    if not listing:
        loose = len(list_images(folder))
        found = f"it holds {loose} images that are not sorted into class folders" if loose else "it is empty"
        raise fault(f"{folder} should hold one folder of images a class, but {found}")
    for name, images in listing.items():
        if not images:
            others = describe(files_below(folder / name))
            raise fault(f"the class folder {folder / name} holds no images" + (f", only {others}" if others else ""))
    return listing


def check_images_exist(image_dir: Path, paths: Iterable[str], dataset: str, remedy: str) -> None:
    """Check that all images of a split exist, with one listing of each folder.

    Raises:
        FileNotFoundError: images are missing; the message names the first few, and what is there instead.
    """
    by_folder: dict[Path, list[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        by_folder.setdefault(image_dir / folder, []).append(name)
    missing: list[Path] = []
    for place, names in by_folder.items():
        present = _names_in(place)
        for name in sorted(names):
            # macOS finds a name that it lists in another Unicode form.
            if name not in present and (name.isascii() or not (place / name).is_file()):
                missing.append(place / name)
    if missing:
        raise FileNotFoundError(f"{dataset}: {len(missing)} of {sum(map(len, by_folder.values()))} images of the split "
                                f"are missing below {image_dir}, first {', '.join(map(str, missing[:3]))}; "
                                f"{_hint(missing[0], image_dir)}{remedy}")


def _names_in(folder: Path) -> set[str]:
    """Return the names in a folder, without broken links; none if there is no such folder."""
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_file() or entry.is_dir()}


def _hint(path: Path, image_dir: Path) -> str:
    """Return why an image may be missing, with a semicolon; "" if nothing explains it."""
    if path.is_symlink():
        return f"{path} is a link to {os.readlink(path)}, which does not exist; "
    while not path.parent.is_dir() and path.parent != image_dir:
        path = path.parent
    for other in _names_in(path.parent):
        if note := note_on_forms({other, path.name}):
            return f"{path.parent} holds {other}{note}: names must be exact; "
        if other.lower() == path.name.lower():
            return f"{path.with_name(other)} differs from {path.name} in upper and lower case: names must be exact; "
    # An archive that was extracted one level too deep leaves a folder in a folder of the same name, or the image folder
    # in another one.
    inside = filter(Path.is_dir, image_dir.glob("*"))
    doubled = (folder / folder.name for folder in (image_dir, *inside, image_dir.parent))
    for folder in (*doubled, *image_dir.parent.glob(f"*/{image_dir.name}")):
        if folder.is_dir():
            return f"{folder} looks like an archive extracted one level too deep: move it up; "
    return ""


@contextlib.contextmanager
def draft(target: Path) -> Iterator[Path]:
    """Create a folder next to a target, in which to build it before it is renamed; remove that folder afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
