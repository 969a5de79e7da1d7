"""Time of the whole base-to-novel grid of P2C on this machine, projected from measured parts.

    python benchmarks/grid.py [--precision fp16] [--workers 8] [--steps 30] [--device cuda]
    python benchmarks/grid.py --quick    a dry run of a few seconds: two datasets, on a tiny tower

The grid is that of `scripts/reproduce.sh P2C base2new`: 11 datasets, 3 seeds, one run after the other. A run is a
training on the base classes with 16 shots and its test on them, and a second process that tests on the new classes.
Epochs, batches and workers are the shipped ones; the numbers of classes and test images are those of the datasets.

No such run is made. Measured are, with random weights and images and the first C of ImageNet's class names:

start     a process of train.py that builds everything and stops, and the extra time of the first step
step      a training step, for each number of base classes
texts     encoding the classes for a test; both halves are assumed to cost the same
images    computing their logits in a test
loading   JPEGs as in benchmarks/loading.py, from the page cache; a training's first epoch starts workers

On a GPU loading and computing overlap, and the slower one counts. On a CPU they share the cores, and their times are
added. Not included: reading a dataset's lists (benchmarks/datasets.py), weights from a file, checkpoints.
"""
import gc
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from common import ROOT, Setting, build, machine, made_up, options, seconds, shipped
from loading import Loading, make_images
from tabulate import tabulate

from p2c import registry
from p2c.config import config_file, extend_cfg
from p2c.datasets.base import Sizes, select_classes
from p2c.datasets.splits import Item, Split
from p2c.engine.logger import only_warnings
from p2c.framework import DATASET_REGISTRY, get_cfg_default
from p2c.grid.families import FAMILIES
from p2c.trainers.p2c import P2C

SHOTS, SEEDS = 16, 3
IMAGES = 400  # per worker
PASSES = 3  # over the images


@dataclass(frozen=True)
class Pieces:
    """Measured seconds."""

    start: float  # of a process
    first_step: float  # beyond those of other steps
    first_read: float  # of an image in training's first epoch
    read: float  # in others
    loaded: float  # of an image in a test
    computed: float
    step: dict[int, float]  # by the number of classes
    texts: dict[int, float]


def sizes_of(name: str) -> Sizes:
    """Return the published numbers of a dataset in configs/datasets."""
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.merge_from_file(config_file("datasets", name))
    registry.require(cfg.DATASET.NAME, registry.DATASETS, "dataset", DATASET_REGISTRY.registered_names())
    return DATASET_REGISTRY.get(cfg.DATASET.NAME).sizes


def base_classes(sizes: Sizes) -> int:
    """Return the number of base classes."""
    items = [Item("", label, "") for label in range(sizes.classes)]
    with only_warnings():
        return len(select_classes(Split(items, [], []), "base").train)


# Measuring


def start_up(folder: Path, setting: Setting) -> float:
    """Return the seconds of train.py until it would train, on a few images in a folder."""
    name = "tiny_shapes" if setting.tiny else "vit_b16_c2_ep5_batch4_2ctx"
    pairs = {"DATASET.NAME": "SyntheticJpegs", "DATASET.NUM_SHOTS": setting.batch, "MODEL.BACKBONE.WEIGHTS": "random",
             "TRAINER.P2C.PREC": setting.precision, "USE_CUDA": setting.device != "cpu"}
    words = [sys.executable, ROOT / "train.py", "--plugin", "loading", "--trainer", "P2C", "--seed", 1,
             "--root", folder, "--output-dir", folder / "run", "--config-file", config_file("trainers", "P2C", name),
             "--no-train", "--", *(word for pair in pairs.items() for word in pair)]
    path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH")]))
    environ = {**os.environ, "PYTHONPATH": path}
    return seconds(lambda: subprocess.run([str(word) for word in words], env=environ, stdout=subprocess.DEVNULL,
                                          check=True), "cpu")


def measure_loading(setting: Setting, workers: int, images: int) -> tuple[float, float, float, float]:
    """Return the seconds of a process's start, and of an image in training's first epoch, in others, and in a test."""
    images *= max(1, workers)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder, images)
        start = start_up(folder, setting)
        loading = Loading(folder, images, workers, setting.device, compact=True)
        rates = (*loading.training(PASSES), loading.evaluation(PASSES))
    return start, *(1 / rate for rate in rates)


def measure_step(setting: Setting, steps: int) -> tuple[P2C, float, float]:
    """Return a trainer, and the seconds of its first step and of each later one."""
    trainer = build(P2C, setting)
    images, labels = made_up(trainer, setting.batch, setting.classes)
    batch = {"img": images, "label": labels}

    def train(count: int) -> None:
        for _ in range(count):
            trainer.forward_backward(batch)

    first = seconds(lambda: train(1), setting.device)
    if setting.device != "cpu":
        train(3)
    return trainer, first, seconds(lambda: train(steps), setting.device) / steps


def measure_texts(trainer: P2C, device: str) -> float:
    """Return the seconds of encoding the classes for a test."""
    @torch.no_grad()
    def encode() -> None:
        trainer.model.encode_text(trainer.model.learner())

    encode()
    return statistics.median(seconds(encode, device) for _ in range(3))


def measure_images(trainer: P2C, device: str) -> float:
    """Return the seconds of an image in a test, with the classes encoded already."""
    count = trainer.cfg.DATALOADER.TEST.BATCH_SIZE
    images, _ = made_up(trainer, count, 1)
    trainer.model_inference(images[:2] if device == "cpu" else images)  # warm-up
    repeats = 1 if device == "cpu" else 10
    return seconds(lambda: [trainer.model_inference(images) for _ in range(repeats)], device) / count / repeats


def measure(classes: list[int], setting: Setting, workers: int, images: int, steps: int) -> Pieces:
    """Measure all pieces; `setting` is a run's, except for the classes."""
    loading = measure_loading(setting, workers, images)
    first, step, texts = {}, {}, {}
    for count in classes:
        trainer, first[count], step[count] = measure_step(
            Setting(count, setting.batch, setting.precision, setting.device, setting.tiny), steps)
        texts[count] = measure_texts(trainer, setting.device)
        if count == classes[-1]:
            computed = measure_images(trainer, setting.device)
        del trainer
        gc.collect()
    start, *of_images = loading
    excess = max(first[count] - step[count] for count in classes)  # nearly all of it in the process's first step
    return Pieces(start, max(0.0, excess), *of_images, computed, step, texts)


# Projecting


def project(name: str, sizes: Sizes, pieces: Pieces, cfg, device: str) -> tuple[list, float]:
    """Return a dataset's row of the table, and the seconds of one seed."""
    def together(computing: float, loading: float) -> float:
        return computing + loading if device == "cpu" else max(computing, loading)

    base, batch, epochs = base_classes(sizes), cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.OPTIM.MAX_EPOCH
    steps = SHOTS * base // batch  # an incomplete batch is dropped
    step, read = pieces.step[base], batch * pieces.read
    training = steps * (together(step, batch * pieces.first_read) + (epochs - 1) * together(step, read))
    testing = sizes.test * together(pieces.computed, pieces.loaded) + 2 * pieces.texts[base]
    starting = 2 * pieces.start + pieces.first_step
    slower = ["computing" if computing >= loading else "loading"
              for computing, loading in ((step, read), (pieces.computed, pieces.loaded))]
    total = starting + training + testing
    return [name, sizes.classes, base, epochs * steps, f"{1000 * step:.1f}", f"{training:.0f}", slower[0],
            f"{sizes.test:,}", f"{pieces.texts[base]:.2f}", f"{testing:.0f}", slower[1], f"{starting:.0f}",
            f"{total / 60:.1f}"], total


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--precision", help="default: fp16 on a GPU, fp32 on a CPU")
    parser.add_argument("--workers", type=int, help="default: the shipped number")
    parser.add_argument("--steps", type=int, help="measured steps (default: 2; on a GPU 30)")
    args = parser.parse_args()
    gpu = args.device != "cpu"
    cfg, names, images = shipped("P2C", args.quick), FAMILIES["standard"].datasets, IMAGES
    if args.quick:
        args.workers, args.steps, names, images = 1, 1, names[-2:], 8
    workers = cfg.DATALOADER.NUM_WORKERS if args.workers is None else args.workers
    precision = args.precision or ("fp16" if gpu else "fp32")
    sizes = {name: sizes_of(name) for name in names}
    print(machine(args.device), flush=True)
    classes = sorted({base_classes(some) for some in sizes.values()})
    setting = Setting(0, cfg.DATALOADER.TRAIN_X.BATCH_SIZE, precision, args.device, args.quick)
    pieces = measure(classes, setting, workers, images, args.steps or (30 if gpu else 2))
    print(f"\nMeasured in {precision} with {workers} workers: a process starts in {pieces.start:.1f} s, its first step "
          f"takes {pieces.first_step:.1f} s more\nthan others; images/s read in training's first epoch "
          f"{1 / pieces.first_read:.1f}, in others {1 / pieces.read:.1f}; in a test {1 / pieces.loaded:.1f} read, "
          f"{1 / pieces.computed:.1f} computed")
    rows, totals = zip(*(project(name, some, pieces, cfg, args.device) for name, some in sizes.items()), strict=True)
    print("\nProjected, one seed of each dataset, training on the base classes and testing on both halves")
    print(tabulate(rows, ["dataset", "classes", "base", "steps", "step (ms)", "training (s)", "slower", "test images",
                          "texts (s)", "test (s)", "slower", "start (s)", "all (min)"],
                   disable_numparse=True, stralign="right", colalign=["left"]))
    print(f"Projected, {len(rows)} datasets and {SEEDS} seeds ({SEEDS * len(rows)} runs): "
          f"{SEEDS * sum(totals) / 3600:.2f} hours")
    print(machine(args.device))


if __name__ == "__main__":
    main()
