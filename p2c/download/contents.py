"""Checks of whether a folder holds what a dataset needs, according to the dataset's class."""
from collections.abc import Iterable, Iterator
from pathlib import Path

from p2c import registry
from p2c.config import config_file, extend_cfg
from p2c.datasets.base import FewShotDataset, Sizes
from p2c.datasets.fgvc_aircraft import LISTS
from p2c.datasets.imagenet import CLASSNAMES, ImageNet
from p2c.datasets.imagenet_variants import ImageNetV2
from p2c.datasets.splits import read_lines, read_names, read_split
from p2c.datasets.trees import check_images_exist, list_classes
from p2c.framework import get_cfg_default

FOLDER_PREFIX = "folder:"


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
    registry.get_dataset(cfg.DATASET.NAME)
    return cfg


def class_of(name: str) -> type[FewShotDataset]:
    """Return the class of a dataset by the name of its configuration."""
    return registry.get_dataset(load_cfg(name, Path()).DATASET.NAME)


def sizes_of(kind: type[FewShotDataset]) -> Sizes:
    """Return the published numbers of a dataset. Every dataset that can be downloaded has them."""
    assert kind.sizes is not None, f"{kind.__name__} has no published numbers"
    return kind.sizes


def find_split(kind: type[FewShotDataset], root: Path) -> Path | None:
    """Find a dataset's split file or file of class names; ImageNet's variants may use ImageNet's file."""
    paths = [root / kind.folder / kind.split]
    if kind.split == CLASSNAMES:
        paths.append(root / ImageNet.folder / CLASSNAMES)
    return next(filter(Path.is_file, paths), None)


def check_split(kind: type[FewShotDataset], path: Path) -> None:
    """Check that a file is a valid split, or file of class names, of a dataset.

    Raises:
        ValueError: it is not, or its numbers differ from the published ones.
    """
    if kind.split == CLASSNAMES:
        found, expected = len(read_names(path)), sizes_of(ImageNet).classes
        if found != expected:
            raise ValueError(f"{path}: it has {found} class names, expected {expected}")
    elif kind.split.endswith(".json"):
        listed = [len(part) for part in read_split(path, Path(kind.images), "fetch it again")]
        published = list(sizes_of(kind)[1:])
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


def fault_of(kind: type[FewShotDataset], split: Path | None, part: str, place: Path) -> str:
    """Return what is wrong with a folder or file that is, or is to become, `part` of a dataset; "" if nothing.

    Only names are checked; no image is opened.

    Args:
        split: what `find_valid_split` returns.
    """
    holds_images = not kind.images or part == kind.images or part.startswith(f"{kind.images}/")
    if not (place.is_dir() if holds_images else place.is_file()):
        return f"{place} is missing"
    if not holds_images:
        return ""
    try:
        if kind.split == CLASSNAMES:
            return _fault_of_classes(kind, part, place)
        check_images_exist(place, _listed(kind, split, part, place), kind.__name__, "the split lists them")
    except (OSError, ValueError) as error:
        return str(error)
    return "" if any(place.iterdir()) else f"{place} is empty"


def _fault_of_classes(kind: type[FewShotDataset], part: str, folder: Path) -> str:
    """Return what is wrong with class folders of ImageNet or a variant, by the published numbers; "" if nothing."""
    sizes = sizes_of(kind)
    listing = list_classes(folder, kind.__name__)
    if kind is ImageNetV2 and listing.keys() != {str(label) for label in range(sizes.classes)}:
        return (f"{folder} should hold the folders 0 to {sizes.classes - 1}, but holds {', '.join(list(listing)[:5])} "
                "...: this is another version of ImageNetV2")
    images = sum(map(len, listing.values()))
    expected = {"train": sizes.train, "val": sizes.test}.get(Path(part).name, sum(sizes[1:]))
    if (images, len(listing)) == (expected, sizes.classes):
        return ""
    return (f"{folder} holds {images} images in {len(listing)} class folders, expected {expected} in "
            f"{sizes.classes}")


def _listed(kind: type[FewShotDataset], split: Path | None, part: str, folder: Path) -> list[str]:
    """Return the paths, relative to a part, of the images that belong there; none without a split.

    FGVC Aircraft's lists are next to the folder of images.
    """
    if not kind.split.endswith(".json"):
        lists = filter(Path.is_file, (folder.parent / name for name in LISTS.values()))
        return [f"{line.partition(' ')[0]}.jpg" for path in lists for line in read_lines(path)]
    if not split:
        return []
    paths = (f"{kind.images}/{path}".lstrip("/") for path in read_split(split, Path(kind.images), "").paths)
    return [path.removeprefix(f"{part}/") for path in paths if path.startswith(f"{part}/")]


def faults_of_parts(kind: type[FewShotDataset], root: Path, parts: Iterable[str]) -> Iterator[str]:
    """Yield what is wrong with each faulty one of `parts` of the dataset's folder below `root`."""
    split = find_valid_split(kind, root)
    return filter(None, (fault_of(kind, split, part, root / kind.folder / part) for part in parts))
