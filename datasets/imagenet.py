"""ImageNet (Deng et al., 2009; ILSVRC 2012): 1000 classes, tested on the validation images.

Labels number the sorted class folders (WordNet ids); class names are those of CLIP's authors (classnames.txt). Images
are listed in sorted order, so that a draw of shots is the same on every file system. CoOp draws from the file system's
own order, which no seed reproduces.
"""
from pathlib import Path

from p2c.datasets.base import FewShotDataset, Sizes
from p2c.datasets.splits import Item, Split, read_names
from p2c.datasets.trees import list_classes
from p2c.framework import DATASET_REGISTRY

CLASSNAMES = "classnames.txt"
CLASSNAMES_ID = "1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF"


@DATASET_REGISTRY.register()
class ImageNet(FewShotDataset):
    name, folder, images = "imagenet", "imagenet", "images"
    split, split_id = CLASSNAMES, CLASSNAMES_ID
    sizes = Sizes(classes=1000, train=1_281_167, val=0, test=50_000)
    how_to_get = ("get its archives by hand, since image-net.org requires registration (docs/datasets.md); then "
                  "`python -m p2c data download {}` unpacks them")

    def read(self) -> Split:
        """Return training and test items; the test items are ImageNet's validation images.

        They also stand in for the missing validation set, but no model is selected on them: see Run.require_validation.
        """
        names = read_names(self.require(self.split, "file of class names"))
        remedy = f"{self.remedy} (the validation images must be sorted into class folders too)"
        train, val = (list_classes(self.image_dir / part, "ImageNet", remedy) for part in ("train", "val"))
        if odd := sorted(train.keys() ^ val.keys()):
            raise ValueError(f"ImageNet: the class folders {odd[:5]} are not in both {self.image_dir / 'train'} and "
                             f"{self.image_dir / 'val'}; {self.remedy}")
        labels = {folder: (label, name_of(names, folder, self.image_dir / "train"))
                  for label, folder in enumerate(train)}
        items = {part: [Item(f"{part}/{folder}/{image}", *labels[folder])
                        for folder, images in folders.items() for image in images]
                 for part, folders in (("train", train), ("val", val))}
        return Split(items["train"], [], items["val"])

    def draw_shots(self, split: Split, shots: int, seed: int) -> Split:
        """Draw the training items; the test items stand in for the validation set."""
        return super().draw_shots(split, shots, seed)._replace(val=split.test)


def name_of(names: dict[str, str], wnid: str, folder: Path) -> str:
    """Return the class name of a class folder.

    Raises:
        ValueError: the folder is not that of a class.
    """
    if wnid not in names:
        raise ValueError(f"{folder / wnid}: {CLASSNAMES} has no name for '{wnid}'; move folders that are not classes "
                         f"away, or download {CLASSNAMES} again")
    return names[wnid]
