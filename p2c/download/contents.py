"""Checks of whether a folder holds what a dataset needs, according to the dataset's class."""
from collections.abc import Iterable, Iterator
from pathlib import Path

from p2c import registry
from p2c.config import config_file, extend_cfg
from p2c.datasets.base import FewShotDataset
from p2c.datasets.fgvc_aircraft import LISTS
from p2c.datasets.imagenet import CLASSNAMES, ImageNet, read_classnames
from p2c.datasets.splits import Sizes, read_lines, read_split
from p2c.datasets.trees import check_images_exist, list_classes
from p2c.engine.files import read_json
from p2c.framework import DATASET_REGISTRY, get_cfg_default

FOLDER_PREFIX = "folder:"
MARKER = ".complete.json"  # in a dataset's folder: the archives it was unpacked from


def load_cfg(name: str, root: Path):
    """Return the configuration of configs/datasets/NAME.yaml with DATASET.ROOT set, and import the dataset's class.

    folder:PATH names the user's own data, as in the scripts: a folder of images, or a split file in it.

    Raises:
        ValueError: an unknown dataset.
    """
    cfg = get_cfg_default()
    extend_cfg(cfg)
    if name.startswith(FOLDER_PREFIX):
        path = Path(name.removeprefix(FOLDER_PREFIX))
        cfg.merge_from_file(config_file("datasets", "folder"))
        root, cfg.DATASET.FOLDER.SPLIT = (path.parent, path.name) if path.is_file() else (path, "")
    else:
        cfg.merge_from_file(config_file("datasets", name))
    cfg.DATASET.ROOT, cfg.SEED = str(root), 1  # the seed has no effect: all images are used
    registry.require(cfg.DATASET.NAME, registry.DATASETS, "dataset", DATASET_REGISTRY.registered_names())
    return cfg


def class_of(name: str) -> type[FewShotDataset]:
    """Return the class of a dataset by the name of its configuration."""
    return DATASET_REGISTRY.get(load_cfg(name, Path()).DATASET.NAME)


def sizes_of(kind: type[FewShotDataset]) -> Sizes:
    """Return the published numbers of a dataset. Every dataset that can be downloaded has them."""
    assert kind.sizes is not None, f"{kind.__name__} has no published numbers"
    return kind.sizes


def read_marker(folder: Path) -> dict[str, dict]:
    """Return the archives that a dataset's folder was unpacked from, as far as known: name -> bytes, hash and parts."""
    try:
        return dict(read_json(folder / MARKER))
    except (OSError, ValueError, TypeError):
        return {}


def find_split(kind: type[FewShotDataset], root: Path) -> Path | None:
    """Find a dataset's split file or file of class names; ImageNet's variants may use ImageNet's file."""
    folders = [kind.folder]
    if kind.split == CLASSNAMES:
        folders.append(ImageNet.folder)
    paths = [root / folder / kind.split for folder in folders]
    return next(filter(Path.is_file, paths), None)


def check_split(kind: type[FewShotDataset], path: Path) -> None:
    """Check that a file is a valid split, or file of class names, of a dataset.

    Raises:
        ValueError: it is not, or its numbers differ from the published ones.
    """
    if kind.split == CLASSNAMES:
        found, expected = len(read_classnames(path)), sizes_of(ImageNet).classes
        if found != expected:
            raise ValueError(f"{path}: it has {found} class names, expected {expected}")
    elif kind.split.endswith(".json"):
        split = read_split(path, Path(kind.images), "fetch it again")
        listed, published = list(map(len, split.parts)), list(sizes_of(kind)[1:])
        if listed != published:
            raise ValueError(f"{path}: it lists {listed} images for training, validation and test, expected "
                             f"{published}")


def find_valid_split(kind: type[FewShotDataset], root: Path) -> Path | None:
    """Return what `find_split` finds if `check_split` accepts it, else None."""
    path = find_split(kind, root)
    try:
        if path:
            check_split(kind, path)
    except ValueError:
        return None
    return path


def fault_of(kind: type[FewShotDataset], split: Path | None, part: str, folder: Path) -> str:
    """Return what is wrong with a folder or file that is, or is to become, `part` of a dataset; "" if nothing.

    Only names are checked; no image is opened.
    """
    holds_images = not kind.images or part == kind.images or part.startswith(f"{kind.images}/")
    if not (folder.is_dir() if holds_images else folder.is_file()):
        return f"{folder} is missing"
    if not holds_images:
        return ""
    try:
        if kind.split == CLASSNAMES:
            listing = list_classes(folder, kind.__name__)
            found = sum(map(len, listing.values())), len(listing)
            sizes = sizes_of(kind)
            images = {"train": sizes.train, "val": sizes.test}.get(Path(part).name, sum(sizes[1:]))
            expected = images, sizes.classes
            if found == expected:
                return ""
            return "{} holds {} images in {} class folders, expected {} in {}".format(folder, *found, *expected)
        listed = _listed_in_split(kind, split, part) if kind.split.endswith(".json") else _listed_by_aircraft(folder)
        check_images_exist(folder, listed, kind.__name__, "the split lists them")
    except (OSError, ValueError) as error:
        return str(error)
    return "" if any(folder.iterdir()) else f"{folder} is empty"


def faults_of_parts(kind: type[FewShotDataset], split: Path | None, root: Path, parts: Iterable[str]) -> Iterator[str]:
    """Yield what is wrong with each faulty one of `parts` of the dataset's folder below `root`."""
    return filter(None, (fault_of(kind, split, part, root / kind.folder / part) for part in parts))


def _listed_by_aircraft(images: Path) -> list[str]:
    """Return the names of the images in FGVC Aircraft's lists, which lie next to the image folder."""
    lists = [images.parent / name for name in LISTS.values()]
    lines = [line for path in lists if path.is_file() for line in read_lines(path)]
    return [f"{line.partition(' ')[0]}.jpg" for line in lines]


def _listed_in_split(kind: type[FewShotDataset], split: Path | None, part: str) -> list[str]:
    """Return the paths, relative to a part, of the images that a split lists there; none for an invalid split."""
    if not split:
        return []
    try:
        listed = read_split(split, Path(kind.images), "")
    except ValueError:  # `check_split` reports it
        return []
    paths = (f"{kind.images}/{path}".lstrip("/") for path in listed.paths)
    return [path.removeprefix(f"{part}/") for path in paths if path.startswith(f"{part}/")]
