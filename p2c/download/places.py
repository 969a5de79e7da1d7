"""Moves of files and folders to their final names, which never overwrite anything and never expose partial results."""
import contextlib
import filecmp
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from p2c.utils.logs import get_logger

log = get_logger(__name__)

LOCK = ".download.lock"
FETCHED = "fetched"  # subfolder of a dataset's folder for downloaded files, removed when the dataset is complete
DRAFT = re.compile(r"\..+\.[0-9a-f]{32}")  # names of the folders that `draft` makes
RESERVE = 64 * 2**20  # bytes of the disk to leave free


class NoSpace(OSError):
    """The disk is too full."""


def check_space(folder: Path, needed: int, what: str) -> None:
    """Check that a folder's disk has room for `needed` bytes.

    Raises:
        NoSpace: it does not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + RESERVE:
        raise NoSpace(f"{what} needs {format_size(needed)} in {folder}, but its disk has {format_size(free)} free; "
                      "make room and run the command again")


def format_size(size: int) -> str:
    """Format a number of bytes with three significant digits, such as "792 MB"."""
    number, unit = float(size), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 999.5:
            break
        number, unit = number / 1000, larger
    return f"{number:.3g} {unit}"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a dataset's folder, waiting for other processes; a killed process releases its lock."""
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        log.info(f"Another process is fetching {folder}; waiting for it")
        lock.acquire(timeout=-1)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def draft(target: Path) -> Iterator[Path]:
    """Create a folder next to a target, in which to build it; remove that folder afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def drafts_in(folder: Path) -> list[Path]:
    """List the drafts in a folder. For the holder of the lock these are leftovers of killed processes."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir()
            if DRAFT.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]


def move_into_place(source: Path, target: Path) -> None:
    """Rename a file or folder to its final name, unless an equal file has it; set anything else of that name aside."""
    if source.is_file() and target.is_file() and filecmp.cmp(source, target, shallow=False):
        return
    with contextlib.suppress(OSError):  # an empty folder need not be kept
        target.rmdir()
    set_aside(target)
    os.rename(source, target)


def set_aside(path: Path) -> None:
    """Rename the file or folder at a path, if any, to the first free name PATH.old-N."""
    if not os.path.lexists(path):
        return
    number = 1
    while os.path.lexists(kept := path.with_name(f"{path.name}.old-{number}")):
        number += 1
    os.rename(path, kept)
    log.info(f"{path} was there already and differs; it is kept as {kept.name}")
