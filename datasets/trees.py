"""Folders of images: one folder a class, listed once and remembered; and whether the images of a split are there."""
import os
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from p2c.engine.files import read_json, write_json
from p2c.utils.logs import get_logger

log = get_logger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
JUNK = ("__MACOSX", "split_fewshot")  # folders beside class folders that hold no class
FORMAT, VERSION = "p2c-listing", 1
SETTLED = 2.0  # seconds after which a folder's time of change tells whether it has changed since


def is_image(name: str) -> bool:
    """Return whether a file of this name is an image: by its ending, and not hidden (macOS leaves `._name.jpg`)."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def class_folders(folder: Path) -> list[str]:
    """Return the names of the class folders in a folder, sorted: not hidden ones, and not leftovers of archives."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries
                      if entry.is_dir() and not entry.name.startswith(".") and entry.name not in JUNK)


def list_images(folder: Path) -> list[str]:
    """Return the names of the images in a folder, sorted."""
    return sorted(filter(is_image, os.listdir(folder)))


def images_below(folder: str | os.PathLike[str], onerror: Callable[[OSError], object] | None = None) -> list[str]:
    """Return the paths of the images in a folder and its folders, sorted.

    Hidden folders are left out; one that several links lead to is searched once.

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
        found += [os.path.join(parent, name) for name in filter(is_image, files)]
    return sorted(found)


def list_classes(folder: Path, what: str, cache: Path | None = None) -> dict[str, list[str]]:
    """Return the names of the images in each class folder, folders and names sorted.

    Args:
        what: the dataset, for messages.
        cache: a file that remembers the listing; a folder that has changed since is listed again.

    Raises:
        FileNotFoundError: there is no such folder, it has no class folders, or one of them is empty.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{what}: no folder {folder}, which should hold one folder of images a class")
    names = class_folders(folder)
    if not names:
        loose = len(list_images(folder))
        hint = f"it holds {loose} images that are not sorted into class folders" if loose else "it is empty"
        raise FileNotFoundError(f"{what}: {folder} should hold one folder of images a class, but {hint}")
    known = _read_listing(cache) if cache else {}
    listing, changed = {}, False
    for name in names:
        times = os.stat(folder / name).st_mtime_ns
        entry = known.get(name)
        if entry is None or entry["changed"] != times:
            # A folder changed just now may change again within the clock's tick: list it again next time.
            settled = time.time() - times / 1e9 > SETTLED
            entry = {"changed": times if settled else None, "images": list_images(folder / name)}
            changed = True
        if not entry["images"]:
            raise FileNotFoundError(f"{what}: the class folder {folder / name} holds no images")
        listing[name] = entry
    if cache and (changed or known.keys() != listing.keys()):
        _write_listing(cache, listing)
    return {name: entry["images"] for name, entry in listing.items()}


def _read_listing(path: Path) -> dict[str, dict]:
    """Read what `_write_listing` wrote; return {} for any other file or none."""
    try:
        content = read_json(path)
        if content["format"] != FORMAT or content["version"] != VERSION:
            return {}
        folders = content["folders"]
        sound = all(isinstance(entry["images"], list) and "changed" in entry and
                    all(isinstance(name, str) and "/" not in name and "\\" not in name for name in entry["images"])
                    for entry in folders.values())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        log.info(f"{path} is not used: it is no listing of this program's")
    return folders if sound else {}


def _write_listing(path: Path, listing: Mapping[str, dict]) -> None:
    """Remember a listing in a file, if that can be written."""
    try:
        write_json({"format": FORMAT, "version": VERSION, "folders": listing}, path)
    except OSError as error:  # only speed depends on it
        log.info(f"The listing is not kept in {path}: {error}")


def check_images_exist(image_dir: Path, paths: Iterable[str], dataset: str, remedy: str) -> None:
    """Check that all images of a split exist, with one listing of each folder.

    Raises:
        FileNotFoundError: images are missing; the message names the first few, and what is there instead.
    """
    by_folder: dict[str, list[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        by_folder.setdefault(folder, []).append(name)
    missing: list[str] = []
    hints: list[str] = []
    for folder, names in by_folder.items():
        place = image_dir / folder
        present, dangling = _names_in(place)
        for name in sorted(names):
            if name in present and name not in dangling or _is_there_otherwise(place, name, present):
                continue
            missing.append(str(place / name))
            if name in dangling:
                hints.append(f"{place / name} is a link to {os.readlink(place / name)}, which does not exist")
            elif close := next((other for other in present if other.lower() == name.lower()), None):
                hints.append(f"{place / close} differs from {name} in upper and lower case: names must be exact")
    if missing:
        hints += _nested(image_dir)
        total = sum(map(len, by_folder.values()))
        raise FileNotFoundError(f"{dataset}: {len(missing)} of {total} images of the split are missing below "
                                f"{image_dir}, first {', '.join(missing[:3])}; "
                                + "".join(f"{hint}; " for hint in hints[:1]) + remedy)


def _names_in(folder: Path) -> tuple[set[str], set[str]]:
    """Return the names in a folder, and those of broken links among them; none if there is no such folder."""
    if not folder.is_dir():
        return set(), set()
    with os.scandir(folder) as entries:
        listed = list(entries)
    return {entry.name for entry in listed}, {entry.name for entry in listed
                                              if entry.is_symlink() and not os.path.exists(entry.path)}


def _is_there_otherwise(folder: Path, name: str, present: set[str]) -> bool:
    """Return whether a file is there although its name is listed in another Unicode form, as on macOS."""
    if name.isascii():
        return False
    normal = unicodedata.normalize("NFC", name)
    return any(unicodedata.normalize("NFC", other) == normal for other in present) and (folder / name).exists()


def _nested(image_dir: Path) -> list[str]:
    """Return a hint for each folder that looks like an archive extracted one level too deep.

    That leaves a folder in a folder of the same name, or the image folder in another one.
    """
    inside = (folder for folder in (image_dir.iterdir() if image_dir.is_dir() else ()) if folder.is_dir())
    doubled = [folder / folder.name for folder in (image_dir, *inside, image_dir.parent)]
    found = [folder for folder in (*doubled, *image_dir.parent.glob(f"*/{image_dir.name}")) if folder.is_dir()]
    return [f"{folder} looks like an archive extracted one level too deep: move it up" for folder in found]
