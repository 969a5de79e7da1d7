"""Which data sets the four benchmarks run on: the eleven of the papers, or the built-in shapes.

Base-to-novel and few-shot train on several data sets of a family; cross-dataset and domain generalization train on its
source and test elsewhere. Names are those of configs/datasets/NAME.yaml, in the order of the papers' tables.
"""
import os
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """The data sets of the benchmarks."""

    source: str
    targets: tuple[str, ...]  # other classes than the source's (cross-dataset)
    domains: tuple[str, ...]  # the source's classes, or some of them, in other styles (domain generalization)
    datasets: tuple[str, ...]  # of base-to-novel and few-shot: the source first, then targets

    @property
    def members(self) -> tuple[str, ...]:
        """All of the family."""
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
        datasets=("shapes", "shapes_counts", "shapes_grounds"),  # so that all four tables take minutes on two cores
    ),
}


def each_once(names: Iterable[str]) -> list[str]:
    """Return the names without repetitions; folder:PATH of one place in other words is one, and keeps the first."""
    first: dict[str, str] = {}
    for name in names:
        kind, colon, path = name.partition(":")
        first.setdefault(os.path.realpath(path) if (kind, colon) == ("folder", ":") else name, name)
    return list(first.values())
