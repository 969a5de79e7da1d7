"""Download of one file from the first source that provides it: resumed, checked, then renamed into place.

A partial download is kept as NAME.part next to the target (from Google Drive: in the folder NAME.drive.part), and the
next call resumes it. Only one process at a time may fetch a file (`places.locked`).
"""
import hashlib
import http
import http.client
import os
import shutil
import tarfile
import textwrap
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gdown
from tqdm import tqdm

from p2c.datasets.base import drive_url
from p2c.download.places import check_space, format_size
from p2c.engine.logger import on_terminal
from p2c.utils.logs import get_logger

log = get_logger(__name__)

DRIVE = "drive:"
CHUNK = 2**20
TIMEOUT = 60  # seconds to wait for an answer
HEADERS = {"User-Agent": "p2c", "Accept-Encoding": "identity"}  # the stored bytes: their size and hash are known
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz")

Drive = Callable[..., object]  # gdown.download(id=, output=, quiet=, resume=)


@dataclass(frozen=True)
class Remote:
    """A file that can be fetched.

    Args:
        sources: URLs, or drive:ID for a file on Google Drive, tried in turn.
        size: exact number of bytes, if known; a file of another size is refused.
        digest: "sha256:..." or "md5:...", if known; a file with another digest is refused.
        about: approximate number of bytes.
    """

    name: str
    sources: tuple[str, ...] = ()
    size: int | None = None
    digest: str = ""
    about: int | None = None

    @property
    def expected(self) -> int | None:
        """The exact or approximate number of bytes, if known."""
        return self.size or self.about

    @property
    def description(self) -> str:
        """The name, with the size if that is known."""
        return f"{self.name} ({format_size(self.expected)})" if self.expected else self.name


class InvalidFile(ValueError):
    """A file is not the expected one."""


class ConnectionDropped(OSError):
    """A connection broke during a transfer, which can be resumed."""


class FetchError(OSError):
    """A file, or a part of a dataset, cannot be had from a source, or from any of them."""


def address(source: str) -> str:
    """Return the URL of a source, for a browser."""
    return drive_url(source.removeprefix(DRIVE)) if source.startswith(DRIVE) else source


def fetch(remote: Remote, target: Path, accept: Callable[[Path], None] | None = None,
          drive: Drive = gdown.download) -> None:
    """Fetch a file to `target`, whose folder exists.

    Args:
        accept: a further check, after those of size and digest; raises ValueError for a wrong file.
        drive: the function that downloads from Google Drive.

    Raises:
        FetchError: no source provided the file.
        OSError: the file cannot be written.
    """
    for source in remote.sources:
        log.info(f"Fetching {remote.description} from {address(source)}")
        try:
            arrived = _download(source, target, remote, accept, drive)
        except (FetchError, ValueError) as error:
            log.info(f"  failed: {error}")
            continue
        os.replace(arrived, target)
        for partial in _partial(target):
            _discard(partial)
        return
    raise FetchError(f"none of the sources of {target.name} provided it")


def _partial(target: Path) -> tuple[Path, Path]:
    """Return the file of a partial download from a URL, and the folder of one from Google Drive."""
    return target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.drive.part")


def _download(source: str, target: Path, remote: Remote, accept: Callable[[Path], None] | None, drive: Drive) -> Path:
    """Download a file, check it and return its path for now; one that was resumed and is wrong is downloaded again."""
    part, folder = _partial(target)
    from_drive = source.startswith(DRIVE)
    partial, arrived = (folder, folder / target.name) if from_drive else (part, part)
    while True:
        resumed = any(folder.glob("*")) if from_drive else part.exists()
        try:
            if from_drive:
                _transfer_from_drive(source.removeprefix(DRIVE), arrived, remote, drive)
            else:
                _transfer_resuming(source, part, remote)
            check_file(arrived, remote)
            if accept:
                accept(arrived)
            return arrived
        except ValueError as error:
            _discard(partial)
            if not resumed:
                raise
            log.info(f"  {error}; downloading it again from the start")


def _discard(partial: Path) -> None:
    """Remove a partial download."""
    if partial.is_dir():
        shutil.rmtree(partial)
    else:
        partial.unlink(missing_ok=True)


def check_file(path: Path, remote: Remote) -> None:
    """Check a file's size, format (by the remote's name) and digest.

    Raises:
        InvalidFile: one of them is wrong.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(CHUNK // 1024).lstrip()
    if not start:
        raise InvalidFile("it is empty")
    if start.startswith(b"<"):
        raise InvalidFile("it is a web page, not the file: the source may require a login or have exceeded its quota")
    if remote.size and size != remote.size:
        raise InvalidFile(f"it has {size} bytes, expected {remote.size}")
    if remote.name.endswith(ARCHIVES) and not (tarfile.is_tarfile(path) or zipfile.is_zipfile(path)):
        raise InvalidFile("it is not an archive, or an incomplete one")
    if remote.digest:
        algorithm, _, expected = remote.digest.partition(":")
        found = digest(path, algorithm)
        if found != expected:
            raise InvalidFile(f"its {algorithm.upper()} is {found}, expected {expected}")


def digest(path: Path, algorithm: str) -> str:
    """Return a file's hash in hexadecimal digits."""
    hasher = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file, bar(path.stat().st_size, f"checking {path.name}") as progress:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
            progress.update(len(chunk))
    return hasher.hexdigest()


def bar(total: int | None, what: str, initial: int = 0) -> tqdm:
    """Return a progress bar in bytes, shown only on a terminal."""
    return tqdm(total=total, initial=initial, desc=what, unit="B", unit_scale=True, leave=False,
                disable=not on_terminal())


# HTTP

def _transfer_resuming(url: str, part: Path, remote: Remote) -> None:
    """Transfer a file, resuming whenever the connection breaks, as long as some bytes arrive each time."""
    while True:
        before = _size(part)
        try:
            return _transfer(url, part, remote)
        except ConnectionDropped as error:
            if _size(part) <= before:
                raise FetchError(f"{error}; the next call resumes {part}") from error
            log.info(f"  {error}; resuming")


def _transfer(url: str, part: Path, remote: Remote) -> None:
    """Request the missing bytes of `part` and append them."""
    have = _size(part)
    if remote.size and have == remote.size:  # complete; its digest is checked later
        return
    headers = {**HEADERS, "Range": f"bytes={have}-"} if have else HEADERS
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:  # it is another, shorter file
            part.unlink()
            return _transfer(url, part, remote)
        raise FetchError(f"the server answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise FetchError(f"cannot connect ({getattr(error, 'reason', error)})") from error
    with response:
        if url.startswith("https:") and response.url.startswith("http:") and not remote.digest:
            raise FetchError(f"it redirects to {response.url}, which is not encrypted, and no hash of it is known")
        if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise FetchError("the server answers with a web page instead of the file")
        start = have if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else remote.size
        if remote.size and total != remote.size:
            raise InvalidFile(f"the server has a file of {total} bytes, expected {remote.size}")
        check_space(part.parent, (total or remote.expected or start) - start, part.name.removesuffix(".part"))
        with open(part, "r+b" if start else "wb") as file, bar(total, part.name, start) as progress:
            file.seek(start)
            while chunk := _read(response):
                file.write(chunk)
                progress.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
            arrived = file.tell()
    if total and arrived != total:
        raise ConnectionDropped(f"the connection ended after {arrived} of {total} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    """Read the bytes that have arrived; none at the end of the response, which may be premature."""
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionDropped(f"the connection broke ({error})") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# Google Drive

def _transfer_from_drive(file_id: str, path: Path, remote: Remote, drive: Drive) -> None:
    """Download a file from Google Drive to `path`, in a folder of its own, unless it is there."""
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        return
    check_space(path.parent, remote.expected or 0, path.name)
    try:
        # gdown resumes a partial file in the folder whose name begins with that of `output`.
        drive(id=file_id, output=str(path), quiet=not on_terminal(), resume=True)
    except Exception as error:  # gdown raises its own errors, those of requests, and those of parsing a page
        reason = textwrap.shorten(str(error), 300) or type(error).__name__
        if "range" in reason:
            raise InvalidFile(f"Google Drive does not resume it ({reason})") from error
        raise FetchError(f"Google Drive does not provide it ({reason})") from error
    if not path.is_file():
        raise FetchError("Google Drive does not provide it (gdown wrote no file)")
