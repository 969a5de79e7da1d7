"""Safe extraction of archives.

Only plain files and folders are written: owners and modes are ignored, a link becomes a copy, a device is refused. An
archive with a member or a link that leads out of the target folder is refused as a whole. The format is detected from
the content, not from the file name.
"""
import fnmatch
import functools
import gzip
import lzma
import posixpath
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
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


class Budget:
    """The limits on what an archive may write, bytes and members; NoSpace if the disk is too full for its own size."""

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
    for member, open_member in _members(file):
        parts = _parts(member.name, member.name)
        if member.issym() or member.islnk():
            base = posixpath.dirname(member.name) if member.issym() else ""
            target = posixpath.normpath(posixpath.join(base, member.linkname))
            links.append((member.name, parts, _parts(target, member.name)))
        elif not (member.isreg() or member.isdir()):
            raise InvalidFile(f"its member {member.name!r} is a device or of an unknown kind")
        if not parts or parts[-1].startswith("._") or any(part in JUNK for part in parts):
            continue
        path = folder.joinpath(*parts)
        if member.isdir():
            budget.charge(member.name, 0)
            path.mkdir(parents=True, exist_ok=True)
        elif member.isreg():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_member() as stream:
                if inner and fnmatch.fnmatchcase(member.name, inner):
                    within = path.with_name(path.name[:path.name.index(".tar")])
                    within.mkdir(exist_ok=True)
                    _unpack(stream, within, budget)
                else:
                    budget.charge(member.name, member.size)
                    with errors_naming(path), open(path, "wb") as unpacked:
                        shutil.copyfileobj(stream, unpacked, CHUNK)
    for name, parts, target_parts in links:  # a link becomes a copy, so that no path in the folder leads out of it
        source, path = folder.joinpath(*target_parts), folder.joinpath(*parts)
        if source.is_file() and source != path:
            budget.charge(name, source.stat().st_size)
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


def _members(file: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, Callable[[], IO[bytes]]]]:
    """Yield each member of a tar or zip and a function that opens it; at the end all checksums have been verified."""
    try:
        tar = tarfile.open(fileobj=file, mode="r:*")
    except tarfile.ReadError:
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                yield _zip_member(archive, info), functools.partial(archive.open, info)
        return
    with tar:
        for member in tar:
            yield member, functools.partial(cast(Callable[..., IO[bytes]], tar.extractfile), member)
        while tar.fileobj.read(CHUNK):  # read to the end: the compression's checksum follows the last member
            pass


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tarfile.TarInfo:
    """Describe a member of a zip as one of a tar."""
    member = tarfile.TarInfo(info.orig_filename)  # the name as stored
    member.size = info.file_size
    mode = info.external_attr >> 16  # Unix permissions, if any
    if stat.S_ISLNK(mode):
        member.type = tarfile.SYMTYPE
        with archive.open(info) as stream:
            member.linkname = stream.read(CHUNK).decode("utf-8", "surrogateescape")
    elif info.is_dir():
        member.type = tarfile.DIRTYPE
    elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        member.type = tarfile.CHRTYPE
    return member
