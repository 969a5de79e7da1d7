"""Reading and writing files: whole or not at all."""
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
        return self.strerror


@contextlib.contextmanager
def named_errors(path: str | os.PathLike) -> Iterator[None]:
    """Have an error while a file is written say which one it was, and a full disk what to do about it.

    Raises:
        DiskFull: the disk is full, or one's share of it.
    """
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
    """Write a whole file or nothing: a crash leaves what was there before.

    Raises:
        DiskFull: there is no space for it.
    """
    path = os.fspath(path)
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    with named_errors(path):
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


def remove_leftovers(folder: str) -> None:
    """Delete what a killed `write_atomically` left in a folder in which nobody writes, and a folder of nothing else."""
    if not os.path.isdir(folder):
        return
    for name in filter(LEFTOVER.search, os.listdir(folder)):
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(folder, name))
    if not os.listdir(folder):
        os.rmdir(folder)


def mkdir_if_missing(dirname: str) -> None:
    """Make a folder and its parents; an empty name is the current folder."""
    if dirname:
        os.makedirs(dirname, exist_ok=True)


def check_isfile(fpath: str) -> bool:
    """Whether `fpath` is a file; warns if not."""
    found = os.path.isfile(fpath)
    if not found:
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return found


def listdir_nohidden(path: str, sort: bool = False) -> list[str]:
    """The names in a folder that do not start with a dot."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def read_json(fpath: str | os.PathLike):
    """The object in a JSON file.

    Raises ValueError if it is damaged.
    """
    with open(fpath, encoding="utf-8") as file:
        try:
            return json.load(file)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error


def write_json(obj, fpath: str | os.PathLike) -> None:
    """Write an object as JSON: indented by 4, ASCII only; atomic."""
    write_atomically(fpath, json.dumps(obj, indent=4, separators=(",", ": ")))


def write_csv(fpath: str | os.PathLike, columns: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write a table as CSV, its columns' names first; atomic."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomically(fpath, text.getvalue())


def write_figure(fpath: str | os.PathLike, figure) -> None:
    """Write a picture of matplotlib's in the format that its name ends with, such as .png or .pdf; atomic."""
    content = io.BytesIO()
    figure.savefig(content, format=os.path.splitext(fpath)[1][1:].lower(), dpi=150)
    write_atomically(fpath, content.getvalue())


class UnreadableImage(ValueError):
    """An image file that is missing or damaged.

    A loader's worker process hands an exception on by calling its class with the formatted traceback, of which this
    keeps the message alone.
    """

    def __init__(self, message: str):
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


def read_image(path: str | os.PathLike) -> Image.Image:
    """An image file as RGB with 8 bits: its first frame, as stored, without transparency.

    The file's own note on its orientation is not followed, as in Dassl. Raises UnreadableImage, which names the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF notes and large sizes; what matters raises
            with Image.open(path) as image:
                return to_rgb(image)
    except Exception as error:  # damaged bytes drive Pillow's readers into almost any exception
        reason = str(error) or type(error).__name__
        raise UnreadableImage(f"{os.fspath(path)} cannot be read as an image ({reason}); replace the file "
                              "(`python -m p2c data verify` finds all such)") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """An image in any mode as RGB with 8 bits; transparency is dropped."""
    if image.mode == "I" or image.mode.startswith("I;16"):  # 16 bits, which convert would clip
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:  # convert warns of what it does with these
        image = image.convert("RGBA")
    return image.convert("RGB")


def download_url(url: str, dst: str) -> None:
    """Fetch a file; `dst` is complete or absent."""
    log.info(f'Downloading "{url}" to "{dst}"')
    with urllib.request.urlopen(url) as response:
        write_atomically(dst, response.read())
