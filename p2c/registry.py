"""The modules of trainers and datasets; a module is imported, and registers itself, when a name of it is needed."""
import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

from yacs.config import CfgNode

from p2c import compat
from p2c.framework import DATASET_REGISTRY, TRAINER_REGISTRY
from p2c.utils.logs import get_logger

log = get_logger(__name__)

TRAINERS = {
    "ZeroshotCLIP": "p2c.trainers.zsclip",
    "ZeroshotCLIP2": "p2c.trainers.zsclip",
    "CoOp": "p2c.trainers.coop",
    "CoCoOp": "p2c.trainers.cocoop",
    "VPT": "p2c.trainers.vpt",
    "IVLP": "p2c.trainers.ivlp",
    "MaPLe": "p2c.trainers.maple",
    "PromptSRC": "p2c.trainers.promptsrc",
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
    **dict.fromkeys(("Shapes", "ShapesBlur", "ShapesCounts", "ShapesDark", "ShapesGrounds", "ShapesNoise",
                     "ShapesPairs", "ShapesSizes", "ShapesSketch", "ShapesTexture"), "p2c.datasets.shapes"),
}


def get_trainer(name: str) -> type[Any]:
    """Return the trainer called `name`; import its module if need be. Raise ValueError if there is none."""
    _register(name, TRAINERS, "trainer", "--trainer", TRAINER_REGISTRY.registered_names())
    return TRAINER_REGISTRY.get(name)


def get_dataset(name: str) -> type[Any]:
    """Return the dataset called `name`; import its module if need be. Raise ValueError if there is none."""
    _register(name, DATASETS, "dataset", "--dataset-config-file", DATASET_REGISTRY.registered_names())
    return DATASET_REGISTRY.get(name)


def _register(name: str, table: Mapping[str, str], kind: str, option: str, registered: list[str]) -> None:
    if name in registered:
        return
    if name not in table:
        raise ValueError(f"Unknown {kind} '{name}' ({option}); choose from {', '.join(sorted({*table, *registered}))}")
    importlib.import_module(table[name])


def load_plugin(name: str, cfg: CfgNode) -> None:
    """Import a module that registers trainers or datasets, and add its settings by its `extend_cfg(cfg)`.

    On this package's engine, `dassl` means that engine in the whole process from then on. The module may lie in the
    working folder. If it registers one of our names, its trainer or dataset replaces ours, and a line is logged.

    Raises:
        ValueError: it cannot be imported, or its `extend_cfg` fails.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        if compat.engine() == compat.OURS:
            compat.provide_dassl()
        module = importlib.import_module(name)
        if hasattr(module, "extend_cfg"):
            module.extend_cfg(cfg)
    except Exception as error:  # a plugin is the user's code and may raise anything
        raise ValueError(f"The plugin '{name}' cannot be imported ({type(error).__name__}: {error}); give a module's "
                         "name as in `import my.module`, in the working folder or on PYTHONPATH; --debug shows where "
                         "it fails") from error
    for kind, registry, table in (("trainer", TRAINER_REGISTRY, TRAINERS), ("dataset", DATASET_REGISTRY, DATASETS)):
        for taken in sorted(table.keys() & set(registry.registered_names())):
            if (source := registry.get(taken).__module__) != table[taken]:
                log.info(f"The {kind} {taken} is the plugin's ({source}), not the one of this package")
