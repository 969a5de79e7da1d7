"""Safe extraction of archives.

Only plain files and folders are written; owners, modes, devices and links in the archive are ignored or refused. An
archive with a member name that leads out of the target folder is refused as a whole. The format is detected from the
content, not from the file name.
"""
import fnmatch
import gzip
import io
import lzma
import posixpath
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from tqdm.utils import CallbackIOWrapper

from p2c.download.fetch import CHUNK, InvalidFile, bar
from p2c.download.places import check_space, format_size
from p2c.engine.files import errors_naming

GROWTH, SLACK = 4, 64 * 2**20  # an archive may unpack to 4 times its size plus 64 MiB; images hardly compress
MEMBERS = 1_500_000  # ImageNet, the largest dataset, has 1.3 million images
JUNK = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")  # added by file managers, as are names that begin with ._
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError,
          gzip.BadGzipFile, RuntimeError,  # encrypted, or an unknown compression
          FileExistsError, NotADirectoryError, IsADirectoryError)  # one name for both a file and a folder
DRIVE_LETTER = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class Member:
    """One entry of an archive.

    Attributes:
        kind: file, folder, link, or another kind, which is refused.
        target: the target of a link, relative to the archive's root.
        open: opens the content of a file.
    """

    name: str
    kind: str
    size: int = 0
    target: str = ""
    open: Callable[[], IO[bytes]] = io.BytesIO


class Budget:
    """The limits on what an archive may write: bytes and members.

    Raises:
        NoSpace: the disk is too full even for files of the archive's own size.
    """

    def __init__(self, archive: Path, folder: Path):
        size = archive.stat().st_size
        self.limit = GROWTH * size + SLACK
        self.members = self.written = 0
        check_space(folder, size, f"unpacking {archive.name}")

    def charge(self, name: str, size: int) -> None:
        """Count a member of `size` bytes before it is written; raise InvalidFile if the archive exceeds a limit."""
        self.members += 1
        self.written += size
        if self.members > MEMBERS or self.written > self.limit:
            raise InvalidFile(f"it unpacks to more than {MEMBERS:,} files or {format_size(self.limit)} (at {name!r}), "
                              "too much for an archive of its size")


def extract(archive: Path, folder: Path, inner: str = "") -> None:
    """Unpack a tar (plain or compressed) or zip archive into an existing folder.

    Args:
        inner: pattern of the members that are archives themselves; X.tar.gz is unpacked into the folder X.

    Raises:
        InvalidFile: the archive is damaged, unsafe or a decompression bomb; the caller must discard the folder.
        OSError: a file cannot be written.
    """
    with open(archive, "rb") as file, bar(archive.stat().st_size, f"unpacking {archive.name}") as progress:
        counted = cast(IO[bytes], CallbackIOWrapper(progress.update, file))
        try:
            _unpack(counted, folder, Budget(archive, folder), inner)
        except DAMAGE as error:
            raise InvalidFile(f"it is damaged ({error or type(error).__name__})") from error


def _unpack(file: IO[bytes], folder: Path, budget: Budget, inner: str = "") -> None:
    """Unpack an open archive."""
    links = []
    for member in _members(file):
        parts = _parts(member.name, member.name)
        if member.kind not in ("file", "folder", "link"):
            raise InvalidFile(f"its member {member.name!r} is a {member.kind}")
        if member.kind == "link":
            links.append((member, parts, _parts(posixpath.normpath(member.target), member.name)))
        if not parts or parts[-1].startswith("._") or any(part in JUNK for part in parts):
            continue
        path = folder.joinpath(*parts)
        if member.kind == "file":
            path.parent.mkdir(parents=True, exist_ok=True)
            with member.open() as stream:
                if inner and fnmatch.fnmatchcase(member.name, inner):
                    within = path.with_name(path.name[:path.name.index(".tar")])
                    within.mkdir(exist_ok=True)
                    _unpack(stream, within, budget)
                else:
                    budget.charge(member.name, member.size)
                    with errors_naming(path), open(path, "wb") as unpacked:
                        shutil.copyfileobj(stream, unpacked, CHUNK)
        elif member.kind == "folder":
            budget.charge(member.name, 0)
            path.mkdir(parents=True, exist_ok=True)
    for member, parts, target in links:  # a link becomes a copy, so that no path in the folder leads out of it
        source, path = folder.joinpath(*target), folder.joinpath(*parts)
        if source.is_file() and source != path:
            budget.charge(member.name, source.stat().st_size)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, path)


def _parts(name: str, member: str) -> list[str]:
    """Return the path components of a member's name or of a link's target.

    Raises:
        InvalidFile: the path leads out of the folder on some operating system.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or any(map(DRIVE_LETTER.match, parts)):
        raise InvalidFile(f"its member {member!r} leads out of the folder")
    return parts


def _members(file: IO[bytes]) -> Iterator[Member]:
    """Yield the members of a tar or zip in order; once exhausted, all checksums have been verified."""
    try:
        tar = tarfile.open(fileobj=file, mode="r:*")
    except tarfile.ReadError:
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            yield from (_zip_member(archive, info) for info in archive.infolist())
        return
    with tar:
        for info in tar:
            yield _tar_member(tar, info)
        while tar.fileobj.read(CHUNK):  # read to the end: the compression's checksum follows the last member
            pass


def _tar_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    if info.isdir():
        return Member(info.name, "folder")
    if info.issym():
        return Member(info.name, "link", target=posixpath.join(posixpath.dirname(info.name), info.linkname))
    if info.islnk():
        return Member(info.name, "link", target=info.linkname)
    if info.isreg():
        return Member(info.name, "file", info.size, open=lambda: cast(IO[bytes], tar.extractfile(info)))
    return Member(info.name, "device" if info.isdev() else "member of an unknown kind")


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    name, mode = info.orig_filename, info.external_attr >> 16  # the name as stored; Unix permissions, if any
    if stat.S_ISLNK(mode):
        with archive.open(info) as stream:
            target = stream.read(CHUNK).decode("utf-8", "surrogateescape")
        return Member(name, "link", target=posixpath.join(posixpath.dirname(name), target))
    if info.is_dir():
        return Member(name, "folder")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return Member(name, "device")
    return Member(name, "file", info.file_size, open=lambda: archive.open(info))
