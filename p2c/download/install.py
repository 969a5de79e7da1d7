"""Installation of one dataset from its sources into its folder.

Each part is unpacked into a draft next to its final place, checked there and renamed, so that whatever has a final name
is complete. Archives, images and splits that the user has put there are used. Files in the way are renamed, never
overwritten. After an interruption at any point, the next call continues.
"""
import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import gdown

from p2c.datasets.base import FewShotDataset
from p2c.download.contents import (
    MARKER,
    check_split,
    class_of,
    fault_of,
    faults_of_parts,
    find_split,
    find_valid_split,
    read_marker,
)
from p2c.download.extract import extract
from p2c.download.fetch import DRIVE, Drive, FetchError, InvalidFile, Remote, address, check_file, digest, fetch
from p2c.download.places import FETCHED, draft, drafts_in, format_size, locked, move_into_place
from p2c.download.sources import SPLITS, Archive, Source
from p2c.engine.files import write_json
from p2c.utils.logs import get_logger

log = get_logger(__name__)

MIRROR_DEPTH = 2  # the most levels of folders above the dataset's parts in a mirror's archive


class InstallError(OSError):
    """A part of a dataset could not be installed."""


def install(name: str, source: Source, root: Path, mirror: bool = False, drive: Drive = gdown.download) -> list[str]:
    """Install all missing parts of a dataset into its folder below `root`.

    Args:
        mirror: also try the third party's archive if the sources fail.
        drive: the function that downloads from Google Drive.

    Returns:
        For each part that could not be installed, why.

    Raises:
        OSError: the disk is full, or a folder cannot be written to.
    """
    job = Installation(class_of(name), source, root, drive)
    folder = job.folder
    if folder.is_symlink() and not folder.exists():
        raise FileNotFoundError(f"{folder} is a link to {os.readlink(folder)}, which does not exist")
    if job.is_done() and not job.fetched.exists() and not job.drafts():
        return []
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        for leftover in job.drafts():
            shutil.rmtree(leftover)
        faults = [] if job.is_done() else job.run(mirror)
        if not faults:
            shutil.rmtree(job.fetched, ignore_errors=True)
        return faults


class Installation:
    """The work of `install` on one dataset. Only the process that holds the dataset's lock may call `run`."""

    def __init__(self, kind: type[FewShotDataset], source: Source, root: Path, drive: Drive):
        self.kind, self.source, self.root, self.drive = kind, source, root, drive
        self.folder = root / kind.folder
        self.fetched = self.folder / FETCHED

    def is_done(self) -> bool:
        """Return whether the dataset is complete."""
        return bool(find_valid_split(self.kind, self.root)) and not self.first_fault(self.source.targets)

    def drafts(self) -> list[Path]:
        """List the drafts next to all parts."""
        parents = {(self.folder / target).parent for target in self.source.targets}
        return [path for parent in parents for path in drafts_in(parent)]

    def run(self, mirror: bool) -> list[str]:
        """Install all missing parts; return why each other one could not be installed."""
        attempts = [self.attempt(self.get_split), *(self.attempt(self.get_part, part) for part in self.source.parts)]
        faults = [fault for fault in attempts if fault]
        if faults and mirror and self.source.mirror:
            if fault := self.attempt(self.get_from_mirror, self.source.mirror):
                faults.append(fault)
            elif find_valid_split(self.kind, self.root):
                faults = []
        return faults

    def attempt(self, step: Callable[..., None], *args) -> str:
        """Run a step; return why it failed, or "" if it succeeded."""
        try:
            step(*args)
        except (FetchError, InstallError) as error:
            return str(error)
        return ""

    # The split

    def get_split(self) -> None:
        """Install the split file or the file of class names."""
        if not self.kind.split_id:  # the images' archive holds it
            return
        if path := find_split(self.kind, self.root):
            try:
                return check_split(self.kind, path)
            except ValueError as error:
                log.info(f"{path} is not used: {error}")
        copies = (SPLITS + self.kind.split,) if self.kind.split.endswith(".json") else ()
        remote = Remote(self.kind.split, (DRIVE + self.kind.split_id, *copies), certain=False,
                        digest=self.kind.split_sha256 and f"sha256:{self.kind.split_sha256}")
        move_into_place(self.fetch(remote, lambda file: check_split(self.kind, file)), self.folder / self.kind.split)

    def fetch(self, remote: Remote, accept: Callable[[Path], None] | None = None) -> Path:
        """Fetch a file to the folder of fetched files and return its path."""
        self.fetched.mkdir(exist_ok=True)
        fetch(remote, self.fetched / remote.name, accept, self.drive)
        return self.fetched / remote.name

    # The images

    def first_fault(self, targets: Sequence[str]) -> str:
        """Return what is wrong with the first faulty one of some parts of the dataset's folder; "" if none is."""
        return next(faults_of_parts(self.kind, find_split(self.kind, self.root), self.root, targets), "")

    def get_part(self, archives: Sequence[Archive]) -> None:
        """Install a part from the first usable archive: a local one if there is any, else one that can be fetched."""
        if not self.first_fault(archives[0].targets):
            return
        reasons, refused = [], set()
        for archive in archives:
            for path in self.find_copies(archive):
                try:
                    check_file(path, archive)
                    return self.unpack(path, archive)
                except InvalidFile as error:
                    reasons.append(f"{path} exists but is not used: {error}")
                    refused.add(path)
        for archive in archives:
            path = self.fetched / archive.name
            if not archive.sources:
                continue
            if path in refused:
                reasons.append("delete it to fetch it again")
                continue
            try:
                return self.unpack(self.fetch(archive), archive)
            except FetchError as error:
                reasons.append(str(error))
            except InvalidFile as error:
                reasons.append(f"{path} was fetched but is not used: {error}")
        raise InstallError("; ".join(reasons) or f"{archives[0].name} is missing and cannot be fetched")

    def find_copies(self, remote: Remote) -> list[Path]:
        """Return the paths of local copies of a file, provided by the user or fetched before."""
        paths = [folder / remote.name for folder in (self.folder, self.root, self.fetched)]
        return [path for path in paths if path.is_file()]

    def unpack(self, path: Path, archive: Archive) -> None:
        """Unpack an archive and install its parts.

        Raises:
            InvalidFile: it is not the expected archive; nothing was installed.
        """
        companion = self.find_companion(archive.companion) if archive.companion else None
        with draft(self.folder / archive.targets[-1]) as work:
            content = work / "content"
            content.mkdir()
            log.info(f"Unpacking {path}")
            extract(path, content, archive.inner)
            if archive.arrange:
                archive.arrange(content, companion)
            self.install_parts(content, archive.layout, path, archive.digest if archive.certain else "")

    def find_companion(self, remote: Remote) -> Path:
        """Return the checked path of a file that an archive needs and that only the user can provide.

        Raises:
            InvalidFile: it is missing, or not the expected file.
        """
        copies = self.find_copies(remote)
        if not copies:
            raise InvalidFile(f"{remote.name} is needed next to it")
        check_file(copies[0], remote)
        return copies[0]

    def install_parts(self, content: Path, layout: Sequence[tuple[str, str]], path: Path, known_hash: str = "") -> None:
        """Check what an archive holds, rename it into place, and record the archive in MARKER."""
        split = find_split(self.kind, self.root)
        for source, target in layout:
            if not (content / source).exists():
                found = ", ".join(sorted(item.name for item in content.iterdir())[:5]) or "nothing"
                raise InvalidFile(f"it should hold {source}, but holds {found}")
            if fault := fault_of(self.kind, split, target, content / source):
                raise InvalidFile(fault.replace(f"{content}{os.sep}", ""))
        record = {"bytes": path.stat().st_size, "hash": known_hash or digest(path),
                  "parts": [target for _, target in layout]}
        for source, target in layout:
            move_into_place(content / source, self.folder / target)
        write_json({**read_marker(self.folder), path.name: record}, self.folder / MARKER)

    # The mirror

    def get_from_mirror(self, remote: Remote) -> None:
        """Install all missing parts from the third party's archive, wherever in it they are."""
        copies = self.find_copies(remote)
        path = copies[0] if copies else self.fetch(remote)
        missing = [target for target in self.source.targets if self.first_fault([target])]
        try:
            check_file(path, remote)
            with draft(self.folder / "mirror") as work:
                log.info(f"Unpacking {path}")
                extract(path, work)
                base = find_base(work, missing or [self.kind.split])
                self.install_mirror_split(base)
                self.install_parts(base, [(target, target) for target in missing], path)
        except InvalidFile as error:
            raise InstallError(f"{path} exists but is not used: {error}; delete it to fetch it again") from error

    def install_mirror_split(self, base: Path) -> None:
        """Install a mirror's split, if there is no valid one yet."""
        path = base / self.kind.split
        if find_valid_split(self.kind, self.root) or not path.is_file():
            return
        try:
            check_split(self.kind, path)
        except ValueError as error:
            raise InvalidFile(f"its {self.kind.split} is invalid: {error}") from error
        move_into_place(path, self.folder / self.kind.split)


def find_base(folder: Path, parts: Sequence[str]) -> Path:
    """Find the uppermost folder that holds all of some parts.

    Raises:
        InvalidFile: no folder does.
    """
    level = [folder]
    for _ in range(MIRROR_DEPTH + 1):
        for base in level:
            if all((base / part).exists() for part in parts):
                return base
        level = sorted(path for base in level for path in base.iterdir() if path.is_dir())
    raise InvalidFile(f"it should hold {', '.join(parts)} together in one folder, but does not")


def steps_by_hand(name: str, source: Source, root: Path) -> list[str]:
    """Return instructions for a manual download of a dataset, one a line."""
    kind = class_of(name)
    folder = root / kind.folder
    lines = []
    for first, *others in source.parts:
        companion = f" and {first.companion.name}" if first.companion else ""
        lines += [f"put {_name_and_size(first)}{companion} into {folder}", *_addresses(first)]
        for archive in others:
            if archive.sources:
                lines += [f"    or {_name_and_size(archive)}", *_addresses(archive)]
    lines += [f"    {link}" for link in source.by_hand]
    if kind.split_id:
        lines += [f"put {kind.split} into {folder}", f"    {address(DRIVE + kind.split_id)}"]
    command = f"python -m p2c data download {name} --root {shlex.quote(str(root))}"
    lines.append(f"then run again: {command}")
    if source.mirror:
        lines.append(f"or use a third party's copy: {command} --mirror")
    return lines


def _name_and_size(archive: Archive) -> str:
    return f"{archive.name} ({format_size(archive.expected)})" if archive.expected else archive.name


def _addresses(archive: Archive) -> list[str]:
    return [f"    {address(source)}" for source in archive.sources]
