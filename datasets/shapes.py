"""The shapes family: few-shot datasets of generated pictures, with which every benchmark runs offline.

`Shapes` is the source. `ShapesDark` to `ShapesSketch` show the same classes in other styles (domain generalization);
`ShapesCounts` to `ShapesGrounds` have other classes (cross-dataset transfer). No picture is in two datasets, and each
dataset has a style that the built-in backbone `tiny-shapes` was not trained on. The styles' strengths were chosen by
that backbone's zero-shot accuracy on a separate calibration stream, never on a dataset.

A dataset is written at its first use: PNG files and a split JSON as for any other dataset. The first half of each list
of classes are the base classes. A class name also specifies its pictures: see `drawing.parse_spec`.
"""
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from p2c.datasets import styles
from p2c.datasets.base import FewShotDataset
from p2c.datasets.drawing import RandomStream, draw, parse_spec
from p2c.datasets.splits import Split
from p2c.datasets.trees import draft
from p2c.engine.files import write_json
from p2c.framework import DATASET_REGISTRY
from p2c.utils.logs import get_logger

log = get_logger(__name__)

PICTURES = {"train": 32, "val": 20, "test": 40}  # per class
Style = Callable[[np.ndarray, RandomStream], np.ndarray]

COMPOSITIONS = (
    "red solid star", "red striped circle", "red hollow square", "green dotted star",
    "green solid heart", "green striped triangle", "blue hollow circle", "blue dotted ring",
    "blue solid cross", "yellow striped heart", "yellow dotted square", "purple hollow triangle",
    "red dotted heart", "red checkered cross", "green hollow circle", "green striped diamond",
    "blue solid triangle", "blue striped star", "yellow hollow star", "yellow solid ring",
    "purple dotted circle", "purple solid arrow", "orange striped square", "pink checkered crescent",
)
COUNTS = (
    "two solid stars", "two striped circles", "two hollow hearts", "two dotted squares",
    "three solid circles", "three hollow stars", "three striped squares", "three dotted triangles",
    "four solid hearts", "four hollow triangles", "four striped stars", "four dotted circles",
    "two hollow triangles", "two solid crosses", "two dotted circles", "two striped hearts",
    "three hollow circles", "three solid diamonds", "three dotted hearts", "three striped triangles",
    "four hollow stars", "four solid arrows", "four checkered squares", "four striped rings",
)
SIZES = (
    "tiny red star", "tiny blue circle", "tiny green heart", "tiny yellow square",
    "tiny purple cross", "tiny black triangle", "big red circle", "big blue star",
    "big green square", "big yellow heart", "big purple triangle", "big black cross",
    "tiny red heart", "tiny blue triangle", "tiny green circle", "tiny yellow star",
    "tiny pink square", "tiny orange diamond", "big red square", "big blue heart",
    "big green star", "big yellow circle", "big pink crescent", "big orange ring",
)
PAIRS = (
    "star above a circle", "circle above a star", "heart above a square", "square above a cross",
    "triangle above a heart", "cross above a ring", "star beside a heart", "circle beside a square",
    "triangle beside a cross", "ring beside a circle", "square beside a triangle", "heart beside a cross",
    "circle above a heart", "heart above a star", "square above a triangle", "star above a cross",
    "diamond above a circle", "arrow above a ring", "star beside a square", "circle beside a heart",
    "triangle beside a ring", "cross beside a star", "diamond beside a square", "crescent beside an arrow",
)
GROUNDS = (
    "red star on a white background", "red circle on a gray background", "red heart on a tan background",
    "blue star on a gray background", "blue square on a mint background", "blue circle on a white background",
    "green heart on a white background", "green triangle on a tan background", "yellow cross on a mint background",
    "yellow star on a gray background", "purple square on a tan background", "purple ring on a mint background",
    "red square on a mint background", "red triangle on a white background", "blue heart on a tan background",
    "blue cross on a gray background", "green circle on a tan background", "green star on a mint background",
    "yellow heart on a gray background", "yellow ring on a white background", "purple circle on a mint background",
    "black arrow on a tan background", "pink diamond on a white background", "orange crescent on a gray background",
)


class GeneratedDataset(FewShotDataset):
    """A dataset that is drawn at its first use: `contents` specifies its classes, `style` filters the pictures."""

    images = "images"
    contents: tuple[str, ...] = COMPOSITIONS
    style: Style

    @property
    def remedy(self) -> str:
        """The remedy if files are missing or wrong, for messages."""
        return f"delete {self.dataset_dir} to generate the dataset again"

    def read(self) -> Split:
        """Read the split, after drawing the dataset unless it exists."""
        generate(self.folder, self.dataset_dir)
        return super().read()


@DATASET_REGISTRY.register()
class Shapes(GeneratedDataset):
    folder, split = "shapes", "split_shapes.json"
    style = partial(styles.mosaic, block=5, level=150, amount=20)


@DATASET_REGISTRY.register()
class ShapesDark(GeneratedDataset):
    folder, split = "shapes_dark", "split_shapes_dark.json"
    style = partial(styles.dark, level=210, amount=15)


@DATASET_REGISTRY.register()
class ShapesBlur(GeneratedDataset):
    folder, split = "shapes_blur", "split_shapes_blur.json"
    style = partial(styles.blur, radius=3, level=160)


@DATASET_REGISTRY.register()
class ShapesNoise(GeneratedDataset):
    folder, split = "shapes_noise", "split_shapes_noise.json"
    style = partial(styles.grain, amount=110)


@DATASET_REGISTRY.register()
class ShapesTexture(GeneratedDataset):
    folder, split = "shapes_texture", "split_shapes_texture.json"
    style = partial(styles.texture, coarse=45, fine=45)


@DATASET_REGISTRY.register()
class ShapesSketch(GeneratedDataset):
    folder, split = "shapes_sketch", "split_shapes_sketch.json"
    style = partial(styles.sketch, ink=160, wash=100, amount=12)


@DATASET_REGISTRY.register()
class ShapesCounts(GeneratedDataset):
    folder, split = "shapes_counts", "split_shapes_counts.json"
    contents = COUNTS
    style = partial(styles.relief, depth=100, wash=80)


@DATASET_REGISTRY.register()
class ShapesSizes(GeneratedDataset):
    folder, split = "shapes_sizes", "split_shapes_sizes.json"
    contents = SIZES
    style = partial(styles.wave, swing=3, level=180, amount=40)


@DATASET_REGISTRY.register()
class ShapesPairs(GeneratedDataset):
    folder, split = "shapes_pairs", "split_shapes_pairs.json"
    contents = PAIRS
    style = partial(styles.newsprint, screen=90, wash=100)


@DATASET_REGISTRY.register()
class ShapesGrounds(GeneratedDataset):
    folder, split = "shapes_grounds", "split_shapes_grounds.json"
    contents = GROUNDS
    style = partial(styles.scratched, scratches=10, thickness=14, level=160)


FAMILY: dict[str, type[GeneratedDataset]] = {member.folder: member for member in GeneratedDataset.__subclasses__()}


def picture(name: str, stream: str, label: int, index: int, styled: bool = True) -> np.ndarray:
    """Draw a picture (64, 64, 3), uint8, of class `label`; it depends on the arguments alone.

    Args:
        name: folder of a dataset of the family.
        stream: "train", "val" or "test"; any other name gives pictures that are in no dataset.
        index: number of the picture within its class and stream.
        styled: True for the dataset's style, False for a clean picture as in pretraining.
    """
    member = FAMILY[name]
    rng = RandomStream(f"{name}/{stream}/{label}/{index}")
    clean = draw(rng, parse_spec(member.contents[label]))
    if not styled:
        return clean
    return np.clip(member.style(clean.astype(np.int32), rng), 0, 255).astype(np.uint8)


def generate(name: str, folder: Path, pictures: dict[str, int] = PICTURES) -> None:
    """Write dataset `name` to `folder` unless it exists.

    All files are written to a draft folder next to it, which is then renamed: `folder` is never incomplete. If two
    processes generate the same dataset at once, one copy is discarded.

    Raises:
        FileExistsError: `folder` holds something else.
    """
    member = FAMILY[name]
    if (folder / member.split).exists():
        return
    log.info(f"Generating {name} in {folder}")
    with draft(folder) as work:
        _write(name, work, pictures)
        try:
            os.rename(work, folder)
        except OSError as error:
            if not (folder / member.split).exists():
                raise FileExistsError(f"{folder} exists but has no {member.split}; move or delete that folder to "
                                      f"generate {name} there") from error


def _write(name: str, folder: Path, pictures: dict[str, int]) -> None:
    member = FAMILY[name]
    split: dict[str, list] = {stream: [] for stream in pictures}
    total = len(member.contents) * sum(pictures.values())
    with tqdm(total=total, desc=f"drawing {name}", unit="picture", leave=False, disable=None) as bar:
        for label, classname in enumerate(member.contents):
            place = classname.replace(" ", "_")
            (folder / member.images / place).mkdir(parents=True)
            for stream, count in pictures.items():
                for index in range(count):
                    path = f"{place}/{stream}_{index:04d}.png"
                    Image.fromarray(picture(name, stream, label, index)).save(folder / member.images / path)
                    split[stream].append([path, label, classname])
                bar.update(count)
    write_json(split, folder / member.split)
