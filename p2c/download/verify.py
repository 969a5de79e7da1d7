"""Verification that a dataset is as published: it compares the counts and opens images."""
import multiprocessing
import random
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from p2c.datasets.base import FewShotDataset
from p2c.datasets.splits import Sizes
from p2c.datasets.trees import images_below
from p2c.download.contents import (
    check_split,
    class_of,
    faults_of_parts,
    find_split,
    find_valid_split,
    load_cfg,
    read_marker,
)
from p2c.download.sources import Source
from p2c.engine.files import UnreadableImage, read_image
from p2c.engine.logger import on_terminal
from p2c.framework import DATASET_REGISTRY

SAMPLE = 200  # images to open unless all are asked for


@dataclass
class Report:
    """Facts about a dataset, and its faults, one a line."""

    facts: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def state_of(name: str, source: Source, root: Path) -> str:
    """Return the state of a dataset, judged by names alone: complete, split missing, images missing or absent."""
    kind = class_of(name)
    split = find_valid_split(kind, root)
    if any(faults_of_parts(kind, split, root, source.targets)):
        found = any((root / kind.folder / part).exists() for part in (*source.targets, kind.split))
        return "images missing" if found else "absent"
    return "complete" if split else "split missing"


def verify(name: str, source: Source | None, root: Path, full: bool = False) -> Report:
    """Read a dataset as a trainer does, and open a sample of its images, or all of them.

    Args:
        source: None for folder:PATH, the user's own data, which has no source.
        full: open every image, not a sample of SAMPLE.
    """
    cfg = load_cfg(name, root)
    kind = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    folder = Path(cfg.DATASET.ROOT) / kind.folder
    report = Report([f"unpacked from {archive}, {record.get('hash')}"
                     for archive, record in read_marker(folder).items()])
    try:
        data = kind(cfg)
    except (OSError, ValueError) as error:
        report.faults += (faults_of(kind, source, root) if source else []) or [str(error)]
        paths = images_below(folder / kind.images)
    else:
        parts = [part or [] for part in (data.train_x, data.val, data.test)]
        report.facts.append(str(kind.sizes or Sizes(data.num_classes, *map(len, parts))))
        paths = list(dict.fromkeys(item.impath for part in parts for item in part))
    if not full:
        paths = random.Random(0).sample(paths, min(SAMPLE, len(paths)))
    unreadable = list(filter(None, open_images(paths, name)))
    report.faults += unreadable
    if paths:
        report.facts.append(f"{len(paths) - len(unreadable):,} of {len(paths):,} images opened")
    return report


def faults_of(kind: type[FewShotDataset], source: Source, root: Path) -> list[str]:
    """Return all faults of a dataset's split and file names; building the dataset reports only the first."""
    if not (root / kind.folder).is_dir():
        return []
    split = find_split(kind, root)
    faults = [] if split else [f"{root / kind.folder / kind.split} is missing"]
    try:
        if split:
            check_split(kind, split)
    except ValueError as error:
        faults.append(str(error))
    return [*faults, *faults_of_parts(kind, split, root, source.targets)]


def open_images(paths: list[str], name: str) -> Iterator[str]:
    """Decode images, in several processes if there are many; yield the fault of each, or ""."""
    progress = tqdm(total=len(paths), desc=f"opening images of {name}", unit="image", leave=False,
                    disable=not on_terminal())
    with progress:
        for fault in _in_processes(paths) if len(paths) > SAMPLE else map(fault_of_image, paths):
            progress.update()
            yield fault


def _in_processes(paths: list[str]) -> Iterable[str]:
    with multiprocessing.Pool(initializer=_leave_signals_to_parent) as pool:
        yield from pool.imap(fault_of_image, paths, chunksize=64)


def _leave_signals_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def fault_of_image(path: str) -> str:
    """Return why an image cannot be decoded; "" if it can."""
    try:
        read_image(path)
    except UnreadableImage as error:
        return str(error)
    return ""
