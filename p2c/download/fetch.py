"""One file from the first of its sources that has it: resumed, checked, then renamed into place.

What has arrived lies in NAME.part beside the target (from Google Drive: in the folder NAME.drive.part), where the next
call goes on. Of two processes only one may fetch a file (`places.locked`).
"""
import hashlib
import http
import http.client
import os
import re
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
from p2c.download.places import check_space, in_words
from p2c.engine.logger import on_terminal
from p2c.utils.logs import get_logger

log = get_logger(__name__)

DRIVE = "drive:"
CHUNK = 2**20
TIMEOUT = 60  # seconds without an answer
RESUMPTIONS = 50  # of one transfer, as long as each brings something
HEADERS = {"User-Agent": "p2c", "Accept-Encoding": "identity"}  # the stored bytes, whose size and hash are known
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz")

Drive = Callable[..., object]  # gdown.download(id=, output=, quiet=, resume=)


@dataclass(frozen=True)
class Remote:
    """A file that can be fetched.

    sources are tried in turn: URLs, or drive:ID for a file on Google Drive. A file that has another size or digest
    ("sha256:..." or "md5:...") is refused; where the digest is not `certain`, being known from another copy, a warning
    is all. `about` is the size as far as it is known.
    """

    name: str
    sources: tuple[str, ...] = ()
    size: int | None = None
    digest: str = ""
    certain: bool = True
    about: int | None = None

    @property
    def expected(self) -> int | None:
        """The size, for planning."""
        return self.size or self.about


class Unfit(ValueError):
    """A file is not what it should be."""


class Unreachable(OSError):
    """A source does not give its file."""


class Dropped(OSError):
    """A connection broke in the middle; what has arrived can be resumed."""


class NotFetched(OSError):
    """None of a file's sources gave it; a line each has said why."""


def address(source: str) -> str:
    """A source as a browser opens it."""
    return drive_url(source.removeprefix(DRIVE)) if source.startswith(DRIVE) else source


def fetch(remote: Remote, target: Path, accept: Callable[[Path], None] | None = None,
          drive: Drive = gdown.download) -> None:
    """Put a file at `target`, whose folder exists.

    Args:
        accept: raises ValueError for a file that is not what it should be, after its size and digest were found right.
        drive: what fetches from Google Drive.

    Raises:
        NotFetched: no source gave it.
        OSError: it cannot be written.
    """
    def check(path: Path) -> None:
        check_file(path, remote)
        if accept:
            accept(path)

    for source in remote.sources:
        size = f" ({in_words(remote.expected)})" if remote.expected else ""
        log.info(f"Fetching {target.name}{size} from {address(source)}")
        try:
            if source.startswith(DRIVE):
                arrived = _from_drive(source.removeprefix(DRIVE), target, remote, check, drive)
            else:
                arrived = _from_url(source, target.with_name(f"{target.name}.part"), remote, check)
        except (Unreachable, ValueError) as error:
            log.info(f"  failed: {error}")
            continue
        os.replace(arrived, target)
        shutil.rmtree(_drive_folder(target), ignore_errors=True)
        target.with_name(f"{target.name}.part").unlink(missing_ok=True)
        return
    raise NotFetched(f"none of the sources of {target.name} gave it")


def check_file(path: Path, remote: Remote) -> None:
    """Compare a file with what is known of it; its kind is what its name says.

    Raises:
        Unfit: it is something else.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(CHUNK // 1024).lstrip()
    if not start:
        raise Unfit("it is empty")
    if start.startswith(b"<"):
        raise Unfit("it is a web page, not the file: the source answers with a page, as for a login or a spent quota")
    if remote.size and size != remote.size:
        raise Unfit(f"it has {size} bytes, expected {remote.size}")
    if remote.name.endswith(ARCHIVES) and not (tarfile.is_tarfile(path) or zipfile.is_zipfile(path)):
        raise Unfit("it is no archive, or not the whole of one")
    if remote.digest:
        algorithm = remote.digest.partition(":")[0]
        found = digest(path, algorithm)
        if found != remote.digest:
            text = f"its {algorithm.upper()} is {found.partition(':')[2]}, expected {remote.digest.partition(':')[2]}"
            if remote.certain:
                raise Unfit(text)
            log.warning(f"{remote.name}: {text}; that is the hash of another copy, so it may be right all the same")


def digest(path: Path, algorithm: str = "sha256") -> str:
    """A file's hash, "algorithm:hexadecimal"."""
    known = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file, bar(path.stat().st_size, f"checking {path.name}") as progress:
        while chunk := file.read(CHUNK):
            known.update(chunk)
            progress.update(len(chunk))
    return f"{algorithm}:{known.hexdigest()}"


def bar(total: int | None, what: str, initial: int = 0) -> tqdm:
    """Progress in bytes, on a terminal."""
    return tqdm(total=total, initial=initial, desc=what, unit="B", unit_scale=True, leave=False,
                disable=not on_terminal())


# HTTP

def _from_url(url: str, part: Path, remote: Remote, check: Callable[[Path], None]) -> Path:
    """The file of a URL in `part`, checked; a part that turns out wrong after it was resumed is fetched once more."""
    resumed = part.exists()
    _transfer_resuming(url, part, remote)
    try:
        check(part)
    except ValueError as error:
        part.unlink()
        if not resumed:
            raise
        log.info(f"  {error}; fetching it again from the start")
        return _from_url(url, part, remote, check)
    return part


def _transfer_resuming(url: str, part: Path, remote: Remote) -> None:
    """Transfer, again and again from where the connection broke."""
    for _ in range(RESUMPTIONS):
        before = _size(part)
        try:
            return _transfer(url, part, remote)
        except Dropped as error:
            if _size(part) <= before:
                raise Unreachable(f"{error}; the next call goes on with {part}") from error
            log.info(f"  {error}; resuming")
    raise Unreachable(f"the connection broke {RESUMPTIONS} times; the next call goes on with {part}")


def _transfer(url: str, part: Path, remote: Remote) -> None:
    """Ask for what is missing of `part` and append it."""
    have = _size(part)
    if remote.size and have >= remote.size:  # whole, as its digest will tell, or of something else
        if have == remote.size:
            return
        have = 0
    request = urllib.request.Request(url, headers={**HEADERS, **({"Range": f"bytes={have}-"} if have else {})})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # there is nothing after what we have
            if error.headers.get("Content-Range", "").endswith(f"/{have}"):
                return
            part.unlink()
            return _transfer(url, part, remote)
        raise Unreachable(f"the server answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"no connection ({getattr(error, 'reason', error)})") from error
    with response:
        if url.startswith("https:") and response.url.startswith("http:") and not (remote.digest and remote.certain):
            raise Unreachable(f"it is redirected to {response.url}, which is not encrypted, and no hash of it is known")
        start, total = _range_of(response, have)
        if remote.size and total and total != remote.size:
            raise Unfit(f"the server has a file of {total} bytes, expected {remote.size}")
        total = total or remote.size
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
        raise Dropped(f"the connection ended after {arrived} of {total} bytes")


def _range_of(response: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """(offset of the first byte that an answer brings, size of the whole file if announced).

    Raises:
        Unreachable: the answer is a page, or another range than asked for.
    """
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise Unreachable("the server answers with a web page instead of the file")
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
    if not found or int(found[1]) != have:
        raise Unreachable(f"the server does not answer with the bytes asked for, from {have} on")
    return have, int(found[3]) if found[3] != "*" else int(found[2]) + 1


def _read(response: http.client.HTTPResponse) -> bytes:
    """What has arrived; nothing at the end, which may come early."""
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise Dropped(f"the connection broke ({error})") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# Google Drive

def _drive_folder(target: Path) -> Path:
    return target.with_name(f"{target.name}.drive.part")


def _from_drive(file_id: str, target: Path, remote: Remote, check: Callable[[Path], None], drive: Drive) -> Path:
    """A file of Google Drive in a folder of its own, checked; one that is wrong when resumed is fetched once more."""
    folder = _drive_folder(target)
    folder.mkdir(exist_ok=True)
    path = folder / target.name
    resumed = any(folder.iterdir())
    if not path.exists():
        check_space(folder, remote.expected or 0, target.name)
        try:
            # It resumes the file there whose name begins so.
            drive(id=file_id, output=str(path), quiet=not on_terminal(), resume=True)
        except Exception as error:  # gdown's own, those of requests, and those of parsing Google's pages
            if resumed and "range" in str(error):  # the file has changed, or cannot be resumed
                shutil.rmtree(folder)
                return _from_drive(file_id, target, remote, check, drive)
            reason = textwrap.shorten(str(error), 300) or type(error).__name__
            raise Unreachable(f"Google Drive does not give it ({reason})") from error
        if not path.is_file():
            raise Unreachable("Google Drive does not give it (gdown brought no file)")
    try:
        check(path)
    except ValueError as error:
        shutil.rmtree(folder)
        if not resumed:
            raise
        log.info(f"  {error}; fetching it again from the start")
        return _from_drive(file_id, target, remote, check, drive)
    return path
