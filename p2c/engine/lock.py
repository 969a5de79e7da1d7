"""One process in an output folder: a lock of the operating system's, which ends with its process, and a file beside it
that names the owner."""
import contextlib
import os
import platform
import time
from collections.abc import Iterator

from filelock import FileLock, Timeout

from p2c.engine.files import DiskFull, mkdir_if_missing, named_errors, write_atomically

FILE, OWNER = "run.lock", "run.owner"


class FolderInUse(ValueError):
    """Another process has the folder."""


@contextlib.contextmanager
def folder_lock(folder: str) -> Iterator[str]:
    """Have a folder for oneself; gives a line about the owner that died in it, "" if there was none.

    Raises:
        FolderInUse: another process has it.
        OSError: the folder cannot be written to.
    """
    path, owner = os.path.join(folder, FILE), os.path.join(folder, OWNER)
    lock = FileLock(path)
    try:
        with named_errors(folder):
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
        # Before the release: who has opened the file meanwhile finds it deleted once it has the lock, and tries again.
        for each in (owner, path):
            with contextlib.suppress(FileNotFoundError, PermissionError):  # Windows deletes no open file
                os.remove(each)
        lock.release()


def _read(owner: str) -> str:
    """Return the content of an owner's file as one line, "" if there is none."""
    try:
        with open(owner, encoding="utf-8", errors="replace") as file:
            return " ".join(file.read(200).split())
    except OSError:
        return ""
