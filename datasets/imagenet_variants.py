"""Variants of ImageNet's test set for domain generalization: V2, Sketch, A and R. They have no training images.

V2: Recht et al., 2019. Sketch: Wang et al., 2019. A: Hendrycks et al., 2021. R: Hendrycks et al., 2021.
"""
from pathlib import Path

from yacs.config import CfgNode

from p2c.datasets.base import FewShotDataset, Sizes
from p2c.datasets.imagenet import CLASSNAMES, CLASSNAMES_ID, ImageNet, name_of
from p2c.datasets.splits import Item, Split, read_names
from p2c.datasets.trees import list_classes
from p2c.framework import DATASET_REGISTRY


class ImageNetVariant(FewShotDataset):
    """A test set of class folders named by WordNet id; labels number the sorted folders.

    Raises:
        ValueError: base or new classes are asked for; variants are tested on all classes.
    """

    split, split_id = CLASSNAMES, CLASSNAMES_ID

    def __init__(self, cfg: CfgNode):
        if cfg.DATASET.SUBSAMPLE_CLASSES != "all":
            raise ValueError(f"{type(self).__name__} is tested on all its classes; DATASET.SUBSAMPLE_CLASSES must be "
                             f"all, but got '{cfg.DATASET.SUBSAMPLE_CLASSES}'")
        super().__init__(cfg)

    def require(self, name: str, what: str) -> Path:
        """Return the path of the file of class names, which may also be ImageNet's own."""
        shared = self.dataset_dir.parent / ImageNet.folder / name
        if self.dataset_dir.is_dir() and not (self.dataset_dir / name).is_file() and shared.is_file():
            return shared
        return super().require(name, what)

    def read(self) -> Split:
        """Return the images as test items; there are no others."""
        names = read_names(self.require(self.split, "file of class names"))
        folders = list_classes(self.image_dir, type(self).__name__, self.remedy)
        test = [Item(f"{folder}/{image}", label, name) for label, folder, name in self.classes_of(folders, names)
                for image in folders[folder]]
        return Split([], [], test)

    def classes_of(self, folders: dict[str, list[str]], names: dict[str, str]) -> list[tuple[int, str, str]]:
        """Return (label, folder, class name) of each class folder."""
        return [(label, folder, name_of(names, folder, self.image_dir)) for label, folder in enumerate(folders)]

    def draw_shots(self, split: Split, shots: int, seed: int) -> Split:
        """Return the test images in place of the training images, of which there are none; ignore the shots."""
        return split._replace(train=split.test)


@DATASET_REGISTRY.register()
class ImageNetV2(ImageNetVariant):
    name, folder, images = "imagenetv2", "imagenetv2", "imagenetv2-matched-frequency-format-val"
    sizes = Sizes(classes=1000, train=0, val=0, test=10_000)

    def classes_of(self, folders: dict[str, list[str]], names: dict[str, str]) -> list[tuple[int, str, str]]:
        """Return (label, folder, class name) of each class; folders are named 0 to 999, by line of classnames.txt."""
        ordered = list(names.values())
        number = min(len(folders), len(ordered)) if self.checks == "partial" else len(ordered)
        if odd := sorted(folders.keys() ^ {str(label) for label in range(number)}):
            raise ValueError(f"{self.image_dir}: the folders should be named 0 to {number - 1} by label, but these are "
                             f"missing or not among them: {odd[:5]}; {self.remedy}")
        return [(label, str(label), ordered[label]) for label in range(number)]


@DATASET_REGISTRY.register()
class ImageNetSketch(ImageNetVariant):
    name, folder, images = "imagenet_sketch", "imagenet-sketch", "images"
    sizes = Sizes(classes=1000, train=0, val=0, test=50_889)


@DATASET_REGISTRY.register()
class ImageNetA(ImageNetVariant):
    name, folder, images = "imagenet_a", "imagenet-adversarial", "imagenet-a"
    sizes = Sizes(classes=200, train=0, val=0, test=7_500)


@DATASET_REGISTRY.register()
class ImageNetR(ImageNetVariant):
    name, folder, images = "imagenet_r", "imagenet-rendition", "imagenet-r"
    sizes = Sizes(classes=200, train=0, val=0, test=30_000)
