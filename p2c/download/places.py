"""Moves of files and folders to their final names, which never overwrite anything and never expose partial results."""
import contextlib
import filecmp
import os
import re
import shutil
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
    lock = FileLock(folder / LOCK)
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        log.info(f"Another process is fetching {folder}; waiting for it")
        held = lock.acquire()
    with held:
        yield


def drafts_in(folder: Path) -> list[Path]:
    """List the drafts in a folder. For the holder of the lock these are leftovers of killed processes."""
    return [path for path in folder.glob(".*")
            if DRAFT.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]


def move_into_place(source: Path, target: Path) -> None:
    """Rename a file or folder to its final name, unless an equal file has it.

    Anything else of that name is renamed to the first free name TARGET.old-N; an empty folder is removed.
    """
    if source.is_file() and target.is_file() and filecmp.cmp(source, target, shallow=False):
        return
    with contextlib.suppress(OSError):  # not an empty folder
        target.rmdir()
    if os.path.lexists(target):
        number = 1
        while os.path.lexists(kept := target.with_name(f"{target.name}.old-{number}")):
            number += 1
        os.rename(target, kept)
        log.info(f"{target} was there already and differs; it is kept as {kept.name}")
    os.rename(source, target)
