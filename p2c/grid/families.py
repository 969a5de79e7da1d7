"""The datasets of the four benchmarks: the papers' eleven, or the built-in shapes.

Base-to-novel and few-shot train on several datasets of a family. Cross-dataset and domain generalization train on its
source and test on the other datasets. Names are those of configs/datasets/NAME.yaml, in the papers' order.
"""
import os
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """The datasets of each benchmark."""

    source: str
    targets: tuple[str, ...]  # cross-dataset: other classes than the source's
    domains: tuple[str, ...]  # domain generalization: the source's classes, or some of them, in other styles
    datasets: tuple[str, ...]  # base-to-novel and few-shot: the source, then targets

    @property
    def members(self) -> tuple[str, ...]:
        """All datasets of the family."""
        return self.source, *self.targets, *self.domains


_TARGETS = ("caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft", "sun397", "dtd",
            "eurosat", "ucf101")

FAMILIES = {
    "standard": Family(
        source="imagenet",
        targets=_TARGETS,
        domains=("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"),
        datasets=("imagenet", *_TARGETS),
    ),
    "shapes": Family(
        source="shapes",
        targets=("shapes_counts", "shapes_sizes", "shapes_pairs", "shapes_grounds"),
        domains=("shapes_dark", "shapes_blur", "shapes_noise", "shapes_texture", "shapes_sketch"),
        datasets=("shapes", "shapes_counts", "shapes_grounds"),  # few, so that all tables take minutes on two cores
    ),
}


def unique_names(names: Iterable[str]) -> list[str]:
    """Return the names without repetitions; of several folder:PATH that lead to one folder, the first is kept."""
    unique: dict[str, str] = {}
    for name in names:
        key = os.path.realpath(name.removeprefix("folder:")) if name.startswith("folder:") else name
        unique.setdefault(key, name)
    return list(unique.values())
