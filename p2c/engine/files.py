"""File helpers: atomic writes, JSON, images, downloads."""
import contextlib
import csv
import errno
import io
import json
import os
import re
import urllib.request
import uuid
import warnings
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from p2c.utils.logs import get_logger

log = get_logger(__name__)

LEFTOVER = re.compile(r"\.[0-9a-f]{32}\.tmp$")


class DiskFull(OSError):
    """There is no space to write a file."""

    def __str__(self) -> str:
        return self.strerror or super().__str__()


@contextlib.contextmanager
def errors_naming(path: str | os.PathLike) -> Iterator[None]:
    """Add the path to an error that occurs while a file is written; raise DiskFull if the disk, or a quota, is full."""
    try:
        yield
    except DiskFull:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(error.errno, f'No space is left to write "{os.fspath(path)}" ({error.strerror}); free some, '
                                        "then give the same command again: what was saved before is whole") from error
        if isinstance(error, FileExistsError | NotADirectoryError):
            error.filename, error.strerror = os.fspath(path), "A file is where a folder should be; choose another place"
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


def write_atomically(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a file completely or not at all: after a crash the previous content is still there."""
    path = os.fspath(path)
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    with errors_naming(path):
        mkdir_if_missing(os.path.dirname(path))
        try:
            with open(temporary, "xb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.remove(temporary)
            raise


def check_writable(path: str | os.PathLike) -> None:
    """Raise OSError now if a file could not be written later: a folder is there, or its own folder cannot be used."""
    path = os.path.abspath(path)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "A folder is where a file should be written; add a file's name", path)
    folder = os.path.dirname(path)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    with errors_naming(path):
        if not os.path.isdir(folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def remove_leftovers(folder: str) -> None:
    """Delete temporary files of a killed `write_atomically` from a folder not in use, and the folder if it is empty."""
    if not os.path.isdir(folder):
        return
    for name in filter(LEFTOVER.search, os.listdir(folder)):
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(folder, name))
    if not os.listdir(folder):
        os.rmdir(folder)


def mkdir_if_missing(dirname: str) -> None:
    """Create a folder and its parents; an empty name means the current folder."""
    if dirname:
        os.makedirs(dirname, exist_ok=True)


def check_isfile(fpath: str) -> bool:
    """Return whether `fpath` is a file; warn if it is not."""
    found = os.path.isfile(fpath)
    if not found:
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return found


def listdir_nohidden(path: str, sort: bool = False) -> list[str]:
    """List the names in a folder that do not start with a dot."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def read_json(fpath: str | os.PathLike):
    """Read a JSON file. Raise ValueError if it is damaged."""
    with open(fpath, encoding="utf-8") as file:
        try:
            return json.load(file)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error


def write_json(obj, fpath: str | os.PathLike) -> None:
    """Write an object as JSON, indented by 4 and ASCII only, atomically."""
    write_atomically(fpath, json.dumps(obj, indent=4, separators=(",", ": ")))


def write_csv(fpath: str | os.PathLike, columns: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write a table as CSV with a header row, atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomically(fpath, text.getvalue())


def write_figure(fpath: str | os.PathLike, figure) -> None:
    """Write a matplotlib figure atomically, in the format of the file's extension, such as .png or .pdf."""
    content = io.BytesIO()
    figure.savefig(content, format=os.path.splitext(fpath)[1][1:].lower(), dpi=150)
    write_atomically(fpath, content.getvalue())


class UnreadableImage(ValueError):
    """An image file that is missing or damaged."""

    def __init__(self, message: str):
        # A loader re-raises a worker's exception by calling its class with the formatted traceback.
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


def read_image(path: str | os.PathLike) -> Image.Image:
    """Read the first frame of an image file as 8-bit RGB without transparency; raise UnreadableImage if it cannot be.

    As in Dassl, the EXIF orientation is ignored.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about damaged EXIF data and large images
            with Image.open(path) as image:
                return to_rgb(image)
    except Exception as error:  # damaged files make Pillow raise almost any exception
        reason = str(error) or type(error).__name__
        raise UnreadableImage(f"{os.fspath(path)} cannot be read as an image ({reason}); replace the file "
                              "(`python -m p2c data verify` finds all such)") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB; drop transparency."""
    if image.mode == "I" or image.mode.startswith("I;16"):  # 16 bits, which convert would clip
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:  # convert("RGB") warns about these
        image = image.convert("RGBA")
    return image.convert("RGB")


def download_url(url: str, dst: str) -> None:
    """Download a file to `dst` atomically."""
    log.info(f'Downloading "{url}" to "{dst}"')
    with urllib.request.urlopen(url) as response:
        write_atomically(dst, response.read())
