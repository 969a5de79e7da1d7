"""Which module holds a trainer or a data set; it is imported when its name is asked for, and registers itself then."""
import importlib
from collections.abc import Mapping

TRAINERS = {
    "ZeroshotCLIP": "p2c.trainers.zsclip",
    "ZeroshotCLIP2": "p2c.trainers.zsclip",
    "MaPLe": "p2c.trainers.maple",
    "P2C": "p2c.trainers.p2c",
}

DATASETS = {
    "Caltech101": "p2c.datasets.caltech101",
    "DescribableTextures": "p2c.datasets.dtd",
    "EuroSAT": "p2c.datasets.eurosat",
    "FGVCAircraft": "p2c.datasets.fgvc_aircraft",
    "Folder": "p2c.datasets.folder",
    "Food101": "p2c.datasets.food101",
    "ImageNet": "p2c.datasets.imagenet",
    "ImageNetA": "p2c.datasets.imagenet_variants",
    "ImageNetR": "p2c.datasets.imagenet_variants",
    "ImageNetSketch": "p2c.datasets.imagenet_variants",
    "ImageNetV2": "p2c.datasets.imagenet_variants",
    "OxfordFlowers": "p2c.datasets.oxford_flowers",
    "OxfordPets": "p2c.datasets.oxford_pets",
    "StanfordCars": "p2c.datasets.stanford_cars",
    "SUN397": "p2c.datasets.sun397",
    "UCF101": "p2c.datasets.ucf101",
    "Shapes": "p2c.datasets.shapes",
    "ShapesBlur": "p2c.datasets.shapes",
    "ShapesCounts": "p2c.datasets.shapes",
    "ShapesDark": "p2c.datasets.shapes",
    "ShapesGrounds": "p2c.datasets.shapes",
    "ShapesNoise": "p2c.datasets.shapes",
    "ShapesPairs": "p2c.datasets.shapes",
    "ShapesSizes": "p2c.datasets.shapes",
    "ShapesSketch": "p2c.datasets.shapes",
    "ShapesTexture": "p2c.datasets.shapes",
}


def require(name: str, table: Mapping[str, str], kind: str, registered: list[str]) -> None:
    """Import the module of `name`, unless the name is registered already.

    Raises:
        ValueError: neither a name of the table nor registered.
    """
    if name in registered:
        return
    if name not in table:
        raise ValueError(f"Unknown {kind} '{name}'; choose from {', '.join(sorted({*table, *registered}))}")
    importlib.import_module(table[name])
