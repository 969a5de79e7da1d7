"""A lock that lets one process use an output folder, with a file that names its owner.

The operating system releases the lock when the process ends.
"""
import contextlib
import os
import platform
import time
from collections.abc import Iterator

from filelock import FileLock, Timeout

from p2c.engine.files import DiskFull, errors_naming, mkdir_if_missing, write_atomically

FILE, OWNER = "run.lock", "run.owner"


class FolderInUse(ValueError):
    """Another process uses the folder."""


@contextlib.contextmanager
def folder_lock(folder: str) -> Iterator[str]:
    """Hold the lock of a folder. Yield a line about an owner that died, "" if there was none.

    Raise FolderInUse if another process holds it, OSError if the folder cannot be written to.
    """
    path, owner = os.path.join(folder, FILE), os.path.join(folder, OWNER)
    lock = FileLock(path)
    try:
        with errors_naming(folder):
            mkdir_if_missing(folder)
            lock.acquire(timeout=0)
    except Timeout:
        who = _read(owner) or "owner unknown"
        raise FolderInUse(f"{folder} is in use: {who}; wait for that run, or choose another --output-dir") from None
    except DiskFull:
        raise
    except OSError as error:
        raise OSError(f"{folder} cannot be written to ({error}); choose another --output-dir") from error
    try:
        died = _read(owner)
        write_atomically(owner, f"{platform.node()}, process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        yield f"Taking {folder} over from a run that died ({died})" if died else ""
    finally:
        # Before the release: a process that has opened the file by then sees that it is deleted, and tries again.
        for each in (owner, path):
            with contextlib.suppress(FileNotFoundError, PermissionError):  # Windows cannot delete an open file
                os.remove(each)
        lock.release()


def _read(owner: str) -> str:
    """Return the content of an owner file as one line, "" if there is none."""
    try:
        with open(owner, encoding="utf-8", errors="replace") as file:
            return " ".join(file.read(200).split())
    except OSError:
        return ""
