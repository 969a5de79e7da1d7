"""Installation of one dataset from its sources into its folder.

Each part is unpacked into a draft next to its final place, checked there and renamed, so that whatever has a final name
is complete. Archives, images and splits that the user has put there are used. Files in the way are renamed, never
overwritten. After an interruption at any point, the next call continues.
"""
import contextlib
import itertools
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import gdown

from p2c.datasets.base import FewShotDataset
from p2c.datasets.trees import draft
from p2c.download.contents import check_split, class_of, fault_of, faults_of_parts, find_split, find_valid_split
from p2c.download.extract import extract
from p2c.download.fetch import DRIVE, Drive, FetchError, InvalidFile, Remote, address, check_file, fetch
from p2c.download.places import FETCHED, drafts_in, locked, move_into_place
from p2c.download.sources import SPLITS, Archive, Source, sort_validation_images
from p2c.utils.logs import get_logger

log = get_logger(__name__)


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


@contextlib.contextmanager
def collecting(faults: list[str]) -> Iterator[None]:
    """Add the message of a FetchError to `faults`."""
    try:
        yield
    except FetchError as error:
        faults.append(str(error))


class Installation:
    """The work of `install` on one dataset. Only the process that holds the dataset's lock may call `run`."""

    def __init__(self, kind: type[FewShotDataset], source: Source, root: Path, drive: Drive):
        self.kind, self.source, self.root, self.drive = kind, source, root, drive
        self.folder = root / kind.folder
        self.fetched = self.folder / FETCHED

    def is_done(self) -> bool:
        """Return whether the dataset is complete."""
        return bool(find_valid_split(self.kind, self.root)) and not any(
            faults_of_parts(self.kind, self.root, self.source.targets))

    def drafts(self) -> list[Path]:
        """List the drafts next to all parts."""
        parents = {(self.folder / target).parent for target in self.source.targets}
        return [path for parent in parents for path in drafts_in(parent)]

    def run(self, mirror: bool) -> list[str]:
        """Install all missing parts; return why each other one could not be installed."""
        faults: list[str] = []
        with collecting(faults):
            self.get_split()
        for archives in self.source.parts:
            with collecting(faults):
                self.get_part(archives)
        if faults and mirror and self.source.mirror:
            with collecting(faults):
                self.get_from_mirror(self.source.mirror)
        return [] if self.is_done() else faults

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
        remote = Remote(self.kind.split, (DRIVE + self.kind.split_id, *copies))
        move_into_place(self.fetch(remote, lambda file: check_split(self.kind, file)), self.folder / self.kind.split)

    def fetch(self, remote: Remote, accept: Callable[[Path], None] | None = None) -> Path:
        """Fetch a file to the folder of fetched files and return its path."""
        self.fetched.mkdir(exist_ok=True)
        fetch(remote, self.fetched / remote.name, accept, self.drive)
        return self.fetched / remote.name

    # The images

    def get_part(self, archives: Sequence[Archive]) -> None:
        """Install a part from the first usable archive: a local one if there is any, else one that can be fetched."""
        if not any(faults_of_parts(self.kind, self.root, archives[0].targets)):
            return
        reasons = []
        for archive in archives:
            for path in self.find_copies(archive):
                try:
                    check_file(path, archive)
                    return self.unpack(path, archive)
                except InvalidFile as error:
                    advice = "; delete it to fetch it again" if path.parent == self.fetched else ""
                    reasons.append(f"{path} exists but is not used: {error}{advice}")
        for archive in archives:
            if not archive.sources or (self.fetched / archive.name).exists():
                continue
            try:
                return self.unpack(self.fetch(archive), archive)
            except FetchError as error:
                reasons.append(str(error))
            except InvalidFile as error:
                reasons.append(f"{self.fetched / archive.name} was fetched but is not used: {error}")
        raise FetchError("; ".join(reasons) or f"{archives[0].name} is missing and cannot be fetched")

    def find_copies(self, remote: Remote) -> list[Path]:
        """Return the paths of local copies of a file, provided by the user or fetched before."""
        paths = [folder / remote.name for folder in (self.folder, self.root, self.fetched)]
        return [path for path in paths if path.is_file()]

    def unpack(self, path: Path, archive: Archive) -> None:
        """Unpack an archive and install its parts; raise InvalidFile, with nothing installed, if it is another."""
        if archive.devkit:
            devkits = self.find_copies(archive.devkit)
            if not devkits:
                raise InvalidFile(f"{archive.devkit.name} is needed next to it")
            check_file(devkits[0], archive.devkit)
        with draft(self.folder / archive.targets[-1]) as work:
            content = work / "content"
            content.mkdir()
            log.info(f"Unpacking {path}")
            extract(path, content, archive.inner)
            if archive.devkit:
                sort_validation_images(content, devkits[0])
            self.install_parts(content, archive.layout)

    def install_parts(self, content: Path, layout: Sequence[tuple[str, str]]) -> None:
        """Check what an archive holds, then rename it into place; raise InvalidFile before if something is wrong."""
        split = find_valid_split(self.kind, self.root)
        for source, target in layout:
            if not (content / source).exists():
                found = ", ".join(sorted(item.name for item in content.iterdir())[:5]) or "nothing"
                raise InvalidFile(f"it should hold {source}, but holds {found}")
            if fault := fault_of(self.kind, split, target, content / source):
                raise InvalidFile(fault.replace(f"{content}{os.sep}", ""))
        for source, target in layout:
            move_into_place(content / source, self.folder / target)

    # The mirror

    def get_from_mirror(self, remote: Remote) -> None:
        """Install all missing parts from the third party's archive, wherever in it they are."""
        copies = self.find_copies(remote)
        path = copies[0] if copies else self.fetch(remote)
        missing = [target for target in self.source.targets if any(faults_of_parts(self.kind, self.root, [target]))]
        try:
            check_file(path, remote)
            with draft(self.folder / "mirror") as work:
                log.info(f"Unpacking {path}")
                extract(path, work)
                base = find_base(work, missing or [self.kind.split])
                split = base / self.kind.split
                if split.is_file() and not find_valid_split(self.kind, self.root):
                    check_split(self.kind, split)
                    move_into_place(split, self.folder / self.kind.split)
                self.install_parts(base, [(target, target) for target in missing])
        except ValueError as error:
            raise FetchError(f"{path} exists but is not used: {error}; delete it to fetch it again") from error


def find_base(folder: Path, parts: Sequence[str]) -> Path:
    """Find the uppermost folder, at most two levels below, that holds all of some parts; raise InvalidFile if none."""
    for base in itertools.chain([folder], folder.glob("*"), folder.glob("*/*")):
        if all((base / part).exists() for part in parts):
            return base
    raise InvalidFile(f"it should hold {', '.join(parts)} together in one folder, but does not")


def steps_by_hand(name: str, source: Source, root: Path) -> list[str]:
    """Return instructions for a manual download of a dataset, one a line."""
    kind = class_of(name)
    folder = root / kind.folder
    lines = []
    for first, *others in source.parts:
        devkit = f" and {first.devkit.name}" if first.devkit else ""
        lines += [f"put {first.description}{devkit} into {folder}", *_addresses(first)]
        for archive in others:
            if archive.sources:
                lines += [f"    or {archive.description}", *_addresses(archive)]
    lines += [f"    {link}" for link in source.by_hand]
    if kind.split_id:
        lines += [f"put {kind.split} into {folder}", f"    {address(DRIVE + kind.split_id)}"]
    command = f"python -m p2c data download {name} --root {shlex.quote(str(root))}"
    lines.append(f"then run again: {command}")
    if source.mirror:
        lines.append(f"or use a third party's copy: {command} --mirror")
    return lines


def _addresses(archive: Archive) -> list[str]:
    return [f"    {address(source)}" for source in archive.sources]
