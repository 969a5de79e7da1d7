"""Archives into folders, without a way out of the folder.

Nothing but plain files and folders is written, whatever the archive asks for: no owner, mode, device or link. A name
that leads elsewhere refuses the whole archive. What an archive is, its content tells, not its name.
"""
import fnmatch
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
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from p2c.download.fetch import CHUNK, Unfit, bar
from p2c.download.places import check_space, in_words

GROWTH, SLACK = 4, 64 * 2**20  # images hardly grow: an archive may unpack to 4 times its size, and 64 MB
MEMBERS = 1_500_000  # ImageNet, the largest, has 1.3 million images
STEP = 256 * 2**20  # bytes written between looks at the disk's free space
JUNK = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")  # what file managers add, beside names in ._
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError,
          gzip.BadGzipFile, RuntimeError,  # encrypted, or an unknown compression
          FileExistsError, NotADirectoryError, IsADirectoryError)  # a name that is a file and a folder
DRIVE_LETTER = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class Member:
    """One entry of an archive. `target` is what a link leads to, from the archive's root."""

    name: str
    kind: str  # file, folder, link, or what else it is
    size: int = 0
    target: str = ""
    open: Callable[[], IO[bytes]] | None = None


class Budget:
    """What an archive may still write: bytes, members, and room on the disk.

    Raises:
        Unfit: an archive wants more than an honest one would.
        NoSpace: the disk fills up.
    """

    def __init__(self, archive: Path, folder: Path):
        size = archive.stat().st_size
        self.folder, self.limit, self.what = folder, GROWTH * size + SLACK, f"unpacking {archive.name}"
        self.written = self.looked = self.seen = 0
        check_space(folder, size, self.what)

    def charge(self, member: Member, size: int) -> None:
        """Count a member that writes `size` bytes, before it does."""
        self.seen += 1
        self.written += size
        if self.seen > MEMBERS or self.written > self.limit:
            raise Unfit(f"it unpacks to more than {MEMBERS:,} files or {in_words(self.limit)} (at "
                        f"{member.name!r}), more than an honest archive of its size")
        if size > STEP or self.written - self.looked > STEP:
            check_space(self.folder, size, self.what)
            self.looked = self.written


def extract(archive: Path, folder: Path, inner: str = "") -> None:
    """Unpack a tar (plain or compressed) or zip into a folder, which exists.

    Args:
        inner: a pattern of members that are archives themselves; X.tar.gz is unpacked into the folder X.

    Raises:
        Unfit: the archive is damaged, unsafe, or a bomb; the folder is to be thrown away then.
        OSError: a file cannot be written.
    """
    with open(archive, "rb") as file, bar(archive.stat().st_size, f"unpacking {archive.name}") as progress:
        try:
            _unpack(file, folder, Budget(archive, folder), inner,
                    lambda: progress.update(max(0, file.tell() - progress.n)))
        except DAMAGE as error:
            raise Unfit(f"it is damaged ({error or type(error).__name__})") from error


def _unpack(file: IO[bytes], folder: Path, budget: Budget, inner: str = "",
            advance: Callable[[], object] = lambda: None) -> None:
    links = []
    for member in _members(file):
        parts = _parts(member.name, member.name)
        if member.kind not in ("file", "folder", "link"):
            raise Unfit(f"its member {member.name!r} is a {member.kind}")
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
                    budget.charge(member, member.size)
                    with open(path, "wb") as target:
                        shutil.copyfileobj(stream, target, CHUNK)
        elif member.kind == "folder":
            budget.charge(member, 0)
            path.mkdir(parents=True, exist_ok=True)
        advance()
    for member, parts, target in links:  # a link becomes a copy: no path in the folder leads anywhere else
        source, path = folder.joinpath(*target), folder.joinpath(*parts)
        if source.is_file() and source != path:
            budget.charge(member, source.stat().st_size)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, path)


def _parts(name: str, member: str) -> list[str]:
    """The components of a member's name or of a link's target.

    Raises:
        Unfit: it leads out of the folder, or would on some system.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name or any(map(DRIVE_LETTER.match, parts)):
        leads = "" if name == member else f", a link to {name!r},"
        raise Unfit(f"its member {member!r}{leads} leads out of the folder")
    return parts


def _members(file: IO[bytes]) -> Iterator[Member]:
    """The members of a tar or zip in order; after the last, all checksums have been compared."""
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
        while tar.fileobj.read(CHUNK):  # the checksum of the compression comes after the last member
            pass


def _tar_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    if info.isdir():
        return Member(info.name, "folder")
    if info.issym():
        return Member(info.name, "link", target=posixpath.join(posixpath.dirname(info.name), info.linkname))
    if info.islnk():
        return Member(info.name, "link", target=info.linkname)
    if info.isreg():
        return Member(info.name, "file", info.size, open=lambda: tar.extractfile(info))
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
