"""Verification that a dataset is as published: it compares the counts and opens images."""
import random
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path

from tqdm import tqdm

from p2c.datasets.base import FewShotDataset, Sizes
from p2c.datasets.trees import images_below
from p2c.download.contents import check_split, class_of, faults_of_parts, find_split, find_valid_split, load_cfg
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
    if any(faults_of_parts(kind, root, source.targets)):
        found = any((root / kind.folder / part).exists() for part in (*source.targets, kind.split))
        return "images missing" if found else "absent"
    return "complete" if find_valid_split(kind, root) else "split missing"


def verify(name: str, source: Source | None, root: Path, full: bool = False) -> Report:
    """Read a dataset as a trainer does, and open a sample of its images, or all of them.

    Args:
        source: None for folder:PATH, the user's own data, which has no source.
        full: open every image, not a sample of SAMPLE.
    """
    cfg = load_cfg(name, root)
    kind = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    folder = Path(cfg.DATASET.ROOT) / kind.folder
    report = Report()
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
    unreadable = open_images(paths, name)
    report.faults += unreadable
    if paths:
        report.facts.append(f"{len(paths) - len(unreadable):,} of {len(paths):,} images opened")
    return report


def faults_of(kind: type[FewShotDataset], source: Source, root: Path) -> list[str]:
    """Return all faults of a dataset's split and file names; building the dataset reports only the first."""
    if not (root / kind.folder).is_dir():
        return []
    faults = []
    try:
        if path := find_split(kind, root):
            check_split(kind, path)
        else:
            faults.append(f"{root / kind.folder / kind.split} is missing")
    except ValueError as error:
        faults.append(str(error))
    return [*faults, *faults_of_parts(kind, root, source.targets)]


def open_images(paths: list[str], name: str) -> list[str]:
    """Decode images, in several threads; return the faults of those that cannot be decoded."""
    with ThreadPool() as pool:
        faults = pool.imap(fault_of_image, paths, chunksize=64)
        shown = tqdm(faults, f"opening images of {name}", len(paths), leave=False, unit="image",
                     disable=not on_terminal())
        return list(filter(None, shown))


def fault_of_image(path: str) -> str:
    """Return why an image cannot be decoded; "" if it can."""
    try:
        read_image(path)
    except UnreadableImage as error:
        return str(error)
    return ""
