"""Helpers of the benchmarks: options, trainers with random weights and images, and the machine's description."""
import argparse
import dataclasses
import os
import platform
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from open_clip import IMAGENET_CLASSNAMES
from torch import Tensor
from yacs.config import CfgNode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from p2c import registry  # noqa: E402
from p2c.config import config_file, extend_cfg  # noqa: E402
from p2c.engine.datasets import Datum  # noqa: E402
from p2c.engine.logger import only_warnings  # noqa: E402
from p2c.framework import DATASET_REGISTRY, DatasetBase, get_cfg_default  # noqa: E402
from p2c.trainers.base import PromptTrainer  # noqa: E402


def options(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    parser.add_argument("--device", choices=devices, default=devices[-1], help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a dry run of a few seconds, whose numbers mean nothing")
    return parser


@dataclasses.dataclass(frozen=True)
class Setting:
    """The conditions of a measurement."""

    classes: int  # number, the first of ImageNet's
    batch: int
    precision: str  # a choice of PREC
    device: str
    tiny: bool = False  # the tiny tower instead of ViT-B/16, for a dry run

    @property
    def config(self) -> str:
        """The name of MaPLe's or P2C's configuration for base-to-novel."""
        return "tiny_shapes" if self.tiny else "vit_b16_c2_ep5_batch4_2ctx"


@DATASET_REGISTRY.register()
class FirstOfImageNet(DatasetBase):
    """ImageNet's first DATASET.NUM_CLASSES classes; its images are never opened."""

    def __init__(self, cfg):
        items = [Datum("none", label, classname=name, check=False)
                 for label, name in enumerate(IMAGENET_CLASSNAMES[:cfg.DATASET.NUM_CLASSES])]
        super().__init__(train_x=items, test=items)


def shipped(trainer: str, config: str) -> CfgNode:
    """Return the configuration configs/trainers/TRAINER/CONFIG.yaml."""
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.merge_from_file(config_file("trainers", trainer, config))
    return cfg


def build(trainer: type[PromptTrainer], setting: Setting, *pairs) -> PromptTrainer:
    """Build MaPLe or P2C with its shipped settings and random weights; `pairs` KEY, VALUE, ... override settings."""
    name = next(name for name in registry.TRAINERS if name.upper() == trainer.node)
    cfg = shipped(name, setting.config)
    cfg.DATASET.NUM_CLASSES = setting.classes
    cfg.merge_from_list([
        "DATASET.NAME", "FirstOfImageNet", "MODEL.BACKBONE.WEIGHTS", "random", f"TRAINER.{trainer.node}.PREC",
        setting.precision, "TRAINER.NAME", name, "DATALOADER.TRAIN_X.BATCH_SIZE", setting.batch,
        "USE_CUDA", setting.device != "cpu", "DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", tempfile.gettempdir(),
        "SEED", 1, "VERBOSE", False, *pairs])
    cfg.freeze()
    torch.backends.cudnn.benchmark = setting.device != "cpu"  # as train.py does
    with only_warnings():
        built = trainer(cfg)
    built.num_batches = 2  # so that no step ends an epoch
    built.set_model_mode("train")
    return built


def made_up(trainer: PromptTrainer, count: int, classes: int) -> tuple[Tensor, Tensor]:
    """Return random images (count, 3, height, width) and labels on the trainer's device, equal in all processes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, *trainer.model.backbone.image_size, generator=generator)
    return images.to(trainer.device), torch.randint(classes, (count,), generator=generator).to(trainer.device)


def seconds(call: Callable[[], object], device: str, repeats: int, warm_up: int = 1) -> float:
    """Return the median of the seconds of some calls, after others as warm-up, each until the device has finished."""
    times = []
    for _ in range(warm_up + repeats):
        start = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[warm_up:])


def peak_memory(device: str) -> int:
    """Return this process's peak of resident bytes, or of allocated bytes on a GPU."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)


def machine(device: str) -> str:
    """Return the machine in one line."""
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.is_file() and (names := re.findall("model name.*: (.+)", info.read_text())):
        cpu = names[0]
    gpu = "" if device == "cpu" else f"{torch.cuda.get_device_name(device)}; "
    return (f"{gpu}{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}; "
            f"Python {platform.python_version()}, torch {torch.__version__}, device {device}")
