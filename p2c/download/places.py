"""Moving files and folders into place: nothing is overwritten, nothing half done bears a final name."""
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
FETCHED = "fetched"  # folder in a data set's folder for what has been fetched, until the data set is complete
DRAFT = re.compile(r"\..+\.[0-9a-f]{32}")  # what `draft` calls its folders
RESERVE = 64 * 2**20  # bytes of the disk that are left free


class NoSpace(OSError):
    """The disk is too full."""


def check_space(folder: Path, needed: int, what: str) -> None:
    """Make sure that a folder's disk has room for `needed` bytes.

    Raises:
        NoSpace: it has not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + RESERVE:
        raise NoSpace(f"{what} needs {in_words(needed)} in {folder}, but its disk has {in_words(free)} free; make room "
                      "and run the command again")


def in_words(size: int) -> str:
    """A number of bytes to three digits: 792 MB."""
    number, unit = float(size), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 999.5:
            break
        number, unit = number / 1000, larger
    return f"{number:.3g} {unit}"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes that fetch the same data set waiting; a killed process holds no lock."""
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
    """A new folder beside a target, to build it in; removed afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def drafts_in(folder: Path) -> list[Path]:
    """The drafts in a folder: those of other processes at work, or, for the holder of the lock, of killed ones."""
    return [path for path in (folder.iterdir() if folder.is_dir() else ())
            if DRAFT.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]


def place(source: Path, target: Path) -> None:
    """Rename a file or folder to its final name; what bears that name and differs is set aside."""
    if source.is_file() and target.is_file() and filecmp.cmp(source, target, shallow=False):
        return
    with contextlib.suppress(OSError):  # an empty folder is nothing to keep
        target.rmdir()
    set_aside(target)
    os.rename(source, target)


def set_aside(path: Path) -> None:
    """Rename what is in the way, if anything, to the first free name PATH.old-N."""
    if not os.path.lexists(path):
        return
    number = 1
    while os.path.lexists(kept := path.with_name(f"{path.name}.old-{number}")):
        number += 1
    os.rename(path, kept)
    log.info(f"{path} was there already and differs; it is kept as {kept.name}")
