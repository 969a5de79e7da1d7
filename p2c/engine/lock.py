"""One process in an output folder: a file that names its owner, whose age tells whether the owner is alive.

The owner sets the file's time anew every BEAT seconds. Ages are differences of two times that the folder's own file
system gave, so that no clocks are compared.
"""
import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from p2c.engine.files import DiskFull, mkdir_if_missing, named_errors, write_atomically

FILE = "run.lock"
BEAT = 10  # seconds
STALE = 120  # seconds without a beat after which an owner that cannot be asked counts as gone


class FolderInUse(ValueError):
    """Another process has the folder."""


@contextlib.contextmanager
def folder_lock(folder: str) -> Iterator[str]:
    """Have a folder for oneself; gives a line about the dead owner whose lock was taken over, "" if there was none.

    An owner on this machine is dead if its process is gone; one elsewhere, if its lock is older than STALE.

    Raises:
        FolderInUse: a living process has it.
        OSError: the folder cannot be written to.
    """
    path = os.path.join(folder, FILE)
    mine = {**_myself(), "id": uuid.uuid4().hex}
    try:
        with named_errors(folder):
            mkdir_if_missing(folder)
            taken_over = _acquire(folder, path, mine)
    except DiskFull:
        raise
    except OSError as error:
        raise OSError(f"{folder} cannot be written to ({error}); choose another --output-dir") from error
    done = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, done), daemon=True)
    beat.start()
    try:
        yield taken_over
    finally:
        done.set()
        beat.join()
        if _owner(path) == mine:
            os.remove(path)


def _acquire(folder: str, path: str, mine: dict) -> str:
    """Make the lock one's own; a line about its dead owner, "" if there was none."""
    while not _create(path, mine):
        owner = _owner(path)
        if owner is None:  # it has just gone
            continue
        who = f"{owner.get('host', 'unknown')}, process {owner.get('pid', 'unknown')}, since " \
              f"{owner.get('since', 'unknown')}"
        if not _is_dead(owner, path):
            raise FolderInUse(f"{folder} is in use: {who}; wait for that run, or choose another --output-dir (if it "
                              f"died on another machine, this passes {STALE} s after its last sign of life)")
        if _take_over(path, owner, mine):
            return f"Taking {folder} over from a run that died ({who})"
    return ""


def _create(path: str, owner: dict) -> bool:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    try:
        with named_errors(path), open(descriptor, "w", encoding="utf-8") as file:
            json.dump(owner, file)
    except BaseException:
        os.remove(path)
        raise
    return True


def _owner(path: str) -> dict | None:
    """The owner by a lock file; None if there is no file."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            owner = json.load(file)
    except FileNotFoundError:
        return None
    except ValueError:  # being written, or by somebody whose disk was full
        return {}
    return owner if isinstance(owner, dict) else {}


def _age(path: str) -> float:
    """Seconds since a lock's last sign of life, 0 if it is gone."""
    probe = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with named_errors(path), open(probe, "xb") as file:
            now = os.fstat(file.fileno()).st_mtime
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(probe)
    try:
        with open(path, "rb") as file:  # opening asks a network's server anew
            return now - os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return 0.0


def _take_over(path: str, dead: dict, mine: dict) -> bool:
    """Put one's own lock in the place of a dead owner's; False if somebody else is about to, or has done it.

    The lock is there at all times, so that nobody can create it meanwhile, and a second file lets in one at a time.
    """
    guard = f"{path}.taking"
    if not _create(guard, mine):
        if _age(guard) > STALE:  # that process has died just there
            with contextlib.suppress(FileNotFoundError):
                os.remove(guard)
        time.sleep(0.05)
        return False
    try:
        if _owner(path) != dead:
            return False
        write_atomically(path, json.dumps(mine))
        return True
    finally:
        os.remove(guard)


def _beat(path: str, done: threading.Event) -> None:
    while not done.wait(BEAT):
        with contextlib.suppress(OSError):  # a disk that is away for a while
            os.utime(path)


# Processes


def _myself() -> dict:
    return {"host": platform.node(), "machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid()),
            "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _machine() -> str | None:
    """This machine since it was switched on, and the space in which its process numbers count; None if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node() if os.name == "posix" else None


def _started(pid: int) -> str | None:
    """When a process began, in a unit of the system's; None if it is gone, or the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _is_dead(owner: dict, path: str) -> bool:
    machine, pid = _machine(), owner.get("pid")
    if machine is None or owner.get("machine") != machine or not isinstance(pid, int):
        return _age(path) > STALE
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # the latter: a number that no process has
        return True
    except PermissionError:  # alive, somebody else's
        pass
    return owner.get("started") != _started(pid)  # its number may have gone to another process
