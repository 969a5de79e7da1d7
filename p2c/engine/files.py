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
from PIL import ExifTags, Image, UnidentifiedImageError, features

from p2c.utils.logs import get_logger

try:
    import pillow_heif
except ImportError:
    READS_HEIF = False
else:
    pillow_heif.register_heif_opener()
    READS_HEIF = True

log = get_logger(__name__)

# Endings of images that not every installation reads, and what installs a reader.
READERS = {".heic": "pip install pillow-heif", ".heif": "pip install pillow-heif",
           ".avif": "pip install 'pillow>=11.3'"}
UNREAD = {ending: remedy for ending, remedy in READERS.items()
          if not (features.check("avif") if ending == ".avif" else READS_HEIF)}  # those without a reader here
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}  # EXIF orientation -> what sets the image upright

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


def read_image(path: str | os.PathLike, as_shown: bool = False) -> Image.Image:
    """Read the first frame of an image file as 8-bit RGB; raise UnreadableImage if it cannot be.

    Args:
        as_shown: see `to_rgb`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about damaged EXIF data and large images
            with Image.open(path) as image:
                return to_rgb(image, as_shown)
    except Exception as error:  # damaged files make Pillow raise almost any exception
        reason = str(error) or type(error).__name__
        remedy = UNREAD.get(os.path.splitext(os.fspath(path))[1].lower())
        if remedy and isinstance(error, UnidentifiedImageError):
            reason = f"`{remedy}` installs a reader"
        raise UnreadableImage(f"{os.fspath(path)} cannot be read as an image ({reason}); replace the file") from None


def to_rgb(image: Image.Image, as_shown: bool = False) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB.

    Args:
        as_shown: turn it as its EXIF orientation says, lay transparent parts on white, and scale numbers of more than
            8 bits by the image's own range. False: as in Dassl, ignore the orientation and drop transparency.
    """
    if as_shown:
        image.load()  # of a TIFF, this turns the image
        image = _upright(image)
    if image.mode == "F" and as_shown or image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        image = Image.fromarray(_scaled(values) if as_shown else (values >> 8).clip(0, 255).astype(np.uint8))
    elif as_shown and ("transparency" in image.info or "A" in image.getbands()):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    elif image.mode == "P" and "transparency" in image.info:  # convert("RGB") warns about these
        image = image.convert("RGBA")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says; damaged EXIF data say nothing."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as for damaged files
        return image
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def _scaled(values: np.ndarray) -> np.ndarray:
    """Scale one channel to 8 bits by the least of 8, 12 or 16 bits, or 0 to 1 for fractions, that holds all its values.

    Values that fit none of these are scaled by their own range.
    """
    fractions = values.dtype.kind == "f"
    values = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    low, high = values.min(), values.max()
    span = high - low or 1
    if low >= 0 and fractions and high <= 1:
        low, span = 0, 1
    elif low >= 0:
        low, span = 0, next((span for span in (256, 4096, 65536) if high < span), high)
    return ((values - low) * 256 / span).clip(0, 255).astype(np.uint8)


def download_url(url: str, dst: str) -> None:
    """Download a file to `dst` atomically."""
    log.info(f'Downloading "{url}" to "{dst}"')
    with urllib.request.urlopen(url) as response:
        write_atomically(dst, response.read())
