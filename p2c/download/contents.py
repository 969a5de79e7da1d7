"""Whether a folder holds what a data set needs, by what the data set's class says of itself."""
from collections.abc import Iterable, Iterator
from pathlib import Path

from p2c import registry
from p2c.config import config_file, extend_cfg
from p2c.datasets.base import FewShotDataset
from p2c.datasets.fgvc_aircraft import LISTS
from p2c.datasets.imagenet import CLASSNAMES, ImageNet, read_classnames
from p2c.datasets.splits import read_lines, read_split
from p2c.datasets.trees import check_images_exist, list_classes
from p2c.framework import DATASET_REGISTRY, get_cfg_default, read_json

OWN = "folder:"
MARKER = ".complete.json"  # in a data set's folder: which archives it was unpacked from


def load_cfg(name: str, root: Path):
    """The configuration of configs/datasets/NAME.yaml for a root, its class imported.

    folder:PATH is one's own data, as in the scripts: a folder of images, or a split file in it.
    """
    cfg = get_cfg_default()
    extend_cfg(cfg)
    own = Path(name.removeprefix(OWN)) if name.startswith(OWN) else None
    cfg.merge_from_file(config_file("datasets", "folder" if own else name))
    if own:
        root, cfg.DATASET.FOLDER.SPLIT = (own.parent, own.name) if own.is_file() else (own, "")
    cfg.DATASET.ROOT, cfg.SEED = str(root), 1  # nothing is drawn: all shots
    registry.require(cfg.DATASET.NAME, registry.DATASETS, "data set", DATASET_REGISTRY.registered_names())
    return cfg


def class_of(name: str) -> type[FewShotDataset]:
    """The class of a data set's configuration."""
    return DATASET_REGISTRY.get(load_cfg(name, Path()).DATASET.NAME)


def read_marker(folder: Path) -> dict[str, dict]:
    """What a data set's folder was unpacked from, as far as known: archive -> its bytes, hash and parts."""
    try:
        return dict(read_json(folder / MARKER))
    except (OSError, ValueError, TypeError):
        return {}


def find_split(kind: type[FewShotDataset], root: Path) -> Path | None:
    """A data set's split file or file of class names; ImageNet's serves its variants too."""
    places = [root / kind.folder, *([root / ImageNet.folder] if kind.split == CLASSNAMES else [])]
    return next((place / kind.split for place in places if (place / kind.split).is_file()), None)


def check_split(kind: type[FewShotDataset], path: Path) -> None:
    """Make sure that a file can be a data set's split, or its class names.

    Raises:
        ValueError: it is something else, or of another size than the published one.
    """
    if kind.split == CLASSNAMES:
        found, expected = len(read_classnames(path)), ImageNet.sizes.classes
        if found != expected:
            raise ValueError(f"{path}: it has {found} class names, expected {expected}")
    elif kind.split.endswith(".json"):
        split = read_split(path, Path(kind.images), "fetch it again")
        found, expected = list(map(len, split.parts)), list(kind.sizes[1:])
        if found != expected:
            raise ValueError(f"{path}: it lists {found} images to train, validate and test, expected {expected}")


def sound_split(kind: type[FewShotDataset], root: Path) -> Path | None:
    """`find_split`, if that file can be one."""
    path = find_split(kind, root)
    try:
        if path:
            check_split(kind, path)
    except ValueError:
        return None
    return path


def fault_of(kind: type[FewShotDataset], split: Path | None, part: str, folder: Path) -> str:
    """What is wrong with a folder (or file) that is or will be `part` of a data set's folder; "" if nothing is seen.

    Only names are looked at, not what is in the images.
    """
    images = not kind.images or part == kind.images or part.startswith(f"{kind.images}/")
    if not (folder.is_dir() if images else folder.is_file()):
        return f"{folder} is missing"
    if not images:
        return ""
    try:
        if kind.split == CLASSNAMES:
            expected = {"train": kind.sizes.train, "val": kind.sizes.test}.get(Path(part).name, sum(kind.sizes[1:]))
            found = list_classes(folder, kind.__name__)
            images, classes, wanted = sum(map(len, found.values())), len(found), kind.sizes.classes
            return "" if (images, classes) == (expected, wanted) else \
                f"{folder} holds {images} images in {classes} class folders, expected {expected} in {wanted}"
        listed = _listed(kind, split, part) if kind.split.endswith(".json") else _listed_beside(folder)
        check_images_exist(folder, listed, kind.__name__, "the split lists them")
    except (OSError, ValueError) as error:
        return str(error)
    return "" if any(folder.iterdir()) else f"{folder} is empty"


def faults_of_parts(kind: type[FewShotDataset], split: Path | None, root: Path, parts: Iterable[str]) -> Iterator[str]:
    """What is wrong with parts of the data set's folder below `root`, part by part."""
    return filter(None, (fault_of(kind, split, part, root / kind.folder / part) for part in parts))


def _listed_beside(images: Path) -> list[str]:
    """The images that FGVC Aircraft's lists beside the image folder name."""
    return [f"{line.partition(' ')[0]}.jpg" for name in LISTS.values() if (images.parent / name).is_file()
            for line in read_lines(images.parent / name)]


def _listed(kind: type[FewShotDataset], split: Path | None, part: str) -> list[str]:
    """The images that a split lists in a part, as paths in it; none if it is no split, which `check_split` tells."""
    try:
        listed = read_split(split, Path(kind.images), "") if split else None
    except ValueError:
        listed = None
    if not listed:
        return []
    paths = (f"{kind.images}/{path}".lstrip("/") for path in listed.paths)
    return [path.removeprefix(f"{part}/") for path in paths if path.startswith(f"{part}/")]


