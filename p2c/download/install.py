"""One data set from its sources into its folder.

Each part is unpacked into a draft beside its place, looked at there, and renamed into place: what bears a final name
was whole when it got it. What a user has put there already, archives, images or splits, is used; what is in the way is
set aside, not overwritten. Killed at any point, the next call goes on.
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
    read_marker,
    sound_split,
)
from p2c.download.extract import extract
from p2c.download.fetch import DRIVE, Drive, NotFetched, Remote, Unfit, address, check_file, digest, fetch
from p2c.download.places import FETCHED, draft, drafts_in, in_words, locked, place
from p2c.download.sources import SPLITS, Archive, Source
from p2c.framework import write_json
from p2c.utils.logs import get_logger

log = get_logger(__name__)

MIRROR_DEPTH = 2  # folders of a mirror's archive above the data set's parts, at most


class NotInstalled(OSError):
    """A part of a data set could not be put in place."""


def install(name: str, source: Source, root: Path, mirror: bool = False, drive: Drive = gdown.download) -> list[str]:
    """Put all that is missing of a data set into its folder below `root`.

    Args:
        mirror: also try the third party's archive where the sources fail.
        drive: what fetches from Google Drive.

    Returns:
        What could not be got, and why.

    Raises:
        OSError: the disk is full, a folder cannot be written to.
    """
    job = Installation(class_of(name), source, root, drive)
    folder = job.folder
    if folder.is_symlink() and not folder.exists():
        raise FileNotFoundError(f"{folder} is a link to {os.readlink(folder)}, which does not exist")
    if job.is_done() and not job.fetched.exists() and not job.drafts():
        return []
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        for left in job.drafts():
            shutil.rmtree(left)
        faults = [] if job.is_done() else job.run(mirror)
        if not faults:
            shutil.rmtree(job.fetched, ignore_errors=True)
        return faults


class Installation:
    """The work of `install`; `run` is for the process that holds the data set's lock."""

    def __init__(self, kind: type[FewShotDataset], source: Source, root: Path, drive: Drive):
        self.kind, self.source, self.root, self.drive = kind, source, root, drive
        self.folder = root / kind.folder
        self.fetched = self.folder / FETCHED

    def is_done(self) -> bool:
        """Whether all is there, so that nothing needs to be written."""
        return bool(sound_split(self.kind, self.root)) and not self.lacks(self.source.targets)

    def drafts(self) -> list[Path]:
        """The drafts beside all parts."""
        parents = {(self.folder / target).parent for target in self.source.targets}
        return [path for parent in parents for path in drafts_in(parent)]

    def run(self, mirror: bool) -> list[str]:
        """Get all that is missing; returns what could not be got."""
        attempts = [self.attempt(self.get_split), *(self.attempt(self.get_part, part) for part in self.source.parts)]
        faults = [fault for fault in attempts if fault]
        if faults and mirror and self.source.mirror:
            if fault := self.attempt(self.get_from_mirror):
                faults.append(fault)
            elif sound_split(self.kind, self.root):
                faults = []
        return faults

    def attempt(self, step: Callable[..., None], *args) -> str:
        """Why a step failed; "" if it did not."""
        try:
            step(*args)
        except (NotFetched, NotInstalled) as error:
            return str(error)
        return ""

    # The split

    def get_split(self) -> None:
        """The split file, or the file of class names; nothing to do where the images' archive holds it."""
        if not self.kind.split_id:
            return
        if path := find_split(self.kind, self.root):
            try:
                return check_split(self.kind, path)
            except ValueError as error:
                log.info(f"{path} is not used: {error}")
        copies = (SPLITS + self.kind.split,) if self.kind.split.endswith(".json") else ()
        remote = Remote(self.kind.split, (DRIVE + self.kind.split_id, *copies), certain=False,
                        digest=self.kind.split_sha256 and f"sha256:{self.kind.split_sha256}")
        place(self.fetch(remote, lambda file: check_split(self.kind, file)), self.folder / self.kind.split)

    def fetch(self, remote: Remote, accept: Callable[[Path], None] | None = None) -> Path:
        """Fetch a file to a place where it stays until the data set is complete."""
        self.fetched.mkdir(exist_ok=True)
        fetch(remote, self.fetched / remote.name, accept, self.drive)
        return self.fetched / remote.name

    # The images

    def lacks(self, targets: Sequence[str]) -> str:
        """What is wrong with the first of some parts of the data set's folder that is not as it should be; or ""."""
        return next(faults_of_parts(self.kind, find_split(self.kind, self.root), self.root, targets), "")

    def get_part(self, archives: Sequence[Archive]) -> None:
        """A part by the first archive that has it: one that lies there already, else one that can be fetched."""
        if not self.lacks(archives[0].targets):
            return
        reasons, refused = [], set()
        for archive in archives:
            for path in self.lying_about(archive):
                try:
                    check_file(path, archive)
                    return self.unpack(path, archive)
                except Unfit as error:
                    reasons.append(f"{path} is there but not used: {error}")
                    refused.add(path)
        for archive in archives:
            path = self.fetched / archive.name
            if not archive.sources:
                continue
            if path in refused:
                reasons.append("delete it to have it fetched again")
                continue
            try:
                return self.unpack(self.fetch(archive), archive)
            except NotFetched as error:
                reasons.append(str(error))
            except Unfit as error:
                reasons.append(f"{path} was fetched but is not used: {error}")
        raise NotInstalled("; ".join(reasons) or f"{archives[0].name} is not there, and cannot be fetched")

    def lying_about(self, remote: Remote) -> list[Path]:
        """Where a file of this name lies: put there by the user, or fetched before."""
        places = (self.folder, self.root, self.fetched)
        return [path for folder in places if (path := folder / remote.name).is_file()]

    def unpack(self, path: Path, archive: Archive) -> None:
        """Unpack an archive and put its parts in place.

        Raises:
            Unfit: it is not what it should be; nothing was put in place then.
        """
        beside = self.find_beside(archive.beside) if archive.beside else None
        with draft(self.folder / archive.targets[-1]) as work:
            content = work / "content"
            content.mkdir()
            log.info(f"Unpacking {path}")
            extract(path, content, archive.inner)
            if archive.arrange:
                archive.arrange(content, beside)
            self.put_in_place(content, archive.layout, path, archive.digest if archive.certain else "")

    def find_beside(self, remote: Remote) -> Path:
        """A file that an archive needs and that only the user can provide."""
        for path in self.lying_about(remote):
            check_file(path, remote)
            return path
        raise Unfit(f"{remote.name} is needed beside it")

    def put_in_place(self, content: Path, layout: Sequence[tuple[str, str]], path: Path, known_hash: str = "") -> None:
        """Look at what an archive brought, rename it into place, and record which archive that was."""
        split = find_split(self.kind, self.root)
        for source, target in layout:
            if not (content / source).exists():
                held = ", ".join(sorted(item.name for item in content.iterdir())[:5]) or "nothing"
                raise Unfit(f"it should hold {source}, but holds {held}")
            if fault := fault_of(self.kind, split, target, content / source):
                raise Unfit(fault.replace(f"{content}{os.sep}", ""))
        record = {"bytes": path.stat().st_size, "hash": known_hash or digest(path),
                  "parts": [target for _, target in layout]}
        for source, target in layout:
            place(content / source, self.folder / target)
        write_json({**read_marker(self.folder), path.name: record}, self.folder / MARKER)

    # The mirror

    def get_from_mirror(self) -> None:
        """All that is missing, from the third party's archive, whose inner folders are looked for."""
        remote = self.source.mirror
        path = next(iter(self.lying_about(remote)), None) or self.fetch(remote)
        missing = [target for target in self.source.targets if self.lacks([target])]
        try:
            check_file(path, remote)
            with draft(self.folder / "mirror") as work:
                log.info(f"Unpacking {path}")
                extract(path, work)
                base = find_base(work, missing or [self.kind.split])
                self.take_split(base)
                self.put_in_place(base, [(target, target) for target in missing], path)
        except Unfit as error:
            raise NotInstalled(f"{path} is there but not used: {error}; delete it to have it fetched again") from error

    def take_split(self, base: Path) -> None:
        """A mirror's split, where none could be fetched."""
        path = base / self.kind.split
        if sound_split(self.kind, self.root) or not path.is_file():
            return
        try:
            check_split(self.kind, path)
        except ValueError as error:
            raise Unfit(f"its {self.kind.split} is none: {error}") from error
        place(path, self.folder / self.kind.split)


def find_base(folder: Path, parts: Sequence[str]) -> Path:
    """The uppermost folder that holds all of some parts.

    Raises:
        Unfit: there is none.
    """
    level = [folder]
    for _ in range(MIRROR_DEPTH + 1):
        for base in level:
            if all((base / part).exists() for part in parts):
                return base
        level = sorted(path for base in level for path in base.iterdir() if path.is_dir())
    raise Unfit(f"it should hold {', '.join(parts)} together in a folder, but does not")


def steps_by_hand(name: str, source: Source, root: Path) -> list[str]:
    """What a person can do to get a data set: lines of text."""
    kind = class_of(name)
    folder = root / kind.folder
    lines = []
    for first, *others in source.parts:
        beside = f" and {first.beside.name}" if first.beside else ""
        lines += [f"put {_named(first)}{beside} into {folder}", *_addresses(first)]
        for archive in (other for other in others if other.sources):
            lines += [f"    or {_named(archive)}", *_addresses(archive)]
    lines += [f"    {link}" for link in source.by_hand]
    if kind.split_id:
        lines += [f"put {kind.split} into {folder}", f"    {address(DRIVE + kind.split_id)}"]
    command = f"python -m p2c data download {name} --root {shlex.quote(str(root))}"
    return [*lines, f"then run again: {command}",
            *([f"or take a third party's copy: {command} --mirror"] if source.mirror else [])]


def _named(archive: Archive) -> str:
    return f"{archive.name} ({in_words(archive.expected)})" if archive.expected else archive.name


def _addresses(archive: Archive) -> list[str]:
    return [f"    {address(source)}" for source in archive.sources]
