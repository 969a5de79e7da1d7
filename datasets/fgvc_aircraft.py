"""FGVC Aircraft (Maji et al., 2013): model variants, split by the dataset's own lists."""
from pathlib import Path

from p2c.datasets.base import FewShotDataset, Sizes
from p2c.datasets.splits import PARTS, Item, Split, check_items, read_lines
from p2c.datasets.trees import check_images_exist
from p2c.framework import DATASET_REGISTRY

NAMES = "variants.txt"  # one class name a line, in the order of the labels
LISTS = {part: f"images_variant_{part}.txt" for part in PARTS}  # lines "id class name"
SHA256 = {
    NAMES: "6e14e778b0a7c94c80619a7ba2c9f90c6784c9c997e308938ff8d3ee11662f0b",
    LISTS["train"]: "29ac66fb762b9e1e5d007a18cb2cd2404ee326a4bce1dc0040e267c5585c46e7",
    LISTS["val"]: "17afd8d6aac16d6188109465637f224a69e6c68d8b6e8422a2591f87aa3a8281",
    LISTS["test"]: "06b5f65d559c399d6887d660dcec09dbf661576c0f3bd85e981e976b2bed3511",
}


@DATASET_REGISTRY.register()
class FGVCAircraft(FewShotDataset):
    name, folder, images, split = "fgvc_aircraft", "fgvc_aircraft", "images", NAMES
    sizes = Sizes(classes=100, train=3_334, val=3_333, test=3_333)
    template = "a photo of a {}, a type of aircraft."

    def read(self) -> Split:
        """Read the split from the four text files."""
        paths = {name: self.require(name, "list") for name in SHA256}
        for name, expected in SHA256.items():
            self.compare(paths[name], expected)
        labels = {name: label for label, name in enumerate(read_lines(paths[NAMES]))}
        split = Split(*(self.read_list(paths[LISTS[part]], labels) for part in PARTS))
        check_items(split, self.image_dir, self.dataset_dir, self.remedy)
        check_images_exist(self.image_dir, split.paths, type(self).__name__, self.remedy)
        return split

    def read_list(self, path: Path, labels: dict[str, int]) -> list[Item]:
        """Read the items of a list; raise ValueError for a line that is not "id name" with a name in variants.txt."""
        items = []
        for line in read_lines(path):
            number, _, name = line.partition(" ")
            if name.strip() not in labels:
                raise ValueError(f"{path}: in the line {line!r}, {name.strip()!r} is no class of {NAMES}; "
                                 f"{self.remedy}")
            items.append(Item(f"{number}.jpg", labels[name.strip()], name.strip()))
        return items
