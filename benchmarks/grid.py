"""Time of the whole base-to-novel grid of P2C on this machine, projected from measured parts.

    python benchmarks/grid.py [--precision fp16] [--workers 8] [--steps 30] [--device cuda]
    python benchmarks/grid.py --quick    a dry run of a few seconds: two datasets, on a tiny tower

The grid is that of `scripts/reproduce.sh P2C base2new`: 11 datasets, 3 seeds, one run after the other. A run is a
training on the base classes with 16 shots and its test on them, and a second process that tests on the new classes.
Epochs, batches and workers are the shipped ones; the numbers of classes and test images are those of the datasets.

No such run is made. Measured are, with random weights and images and the first C of ImageNet's class names:

start     a process of train.py with a single step and a test of few images
step      a training step, for each number of base classes
texts     encoding the classes for a test; both halves are assumed to cost the same
images    computing their logits in a test
reading   JPEGs of 500 x 375 pixels from the page cache, for training and for a test

On a GPU reading and computing overlap, and the slower one counts. On a CPU they share the cores, and their times are
added. Not included: reading a dataset's lists, weights from a file, checkpoints.
"""
import math
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from common import ROOT, Setting, build, machine, made_up, options, seconds, shipped
from PIL import Image
from tabulate import tabulate

from p2c.config import config_file
from p2c.datasets.base import Sizes
from p2c.datasets.folder import Folder
from p2c.download.contents import class_of, sizes_of
from p2c.grid.families import FAMILIES
from p2c.trainers.p2c import P2C

SHOTS, SEEDS = 16, 3
IMAGES = 200  # per worker
PASSES = 3  # over the images, after one that starts the workers


@dataclass(frozen=True)
class Pieces:
    """Measured seconds."""

    start: float  # of a process
    read: float  # of an image in training
    read_test: float  # of an image in a test
    computed: float  # of an image in a test
    step: dict[int, float]  # by the number of classes
    texts: dict[int, float]


# Measuring


def make_images(folder: Path, count: int) -> None:
    """Make a dataset of one class: smooth blobs with grain, which compress about as well as photographs (60 KB)."""
    rng = np.random.default_rng(0)
    images = folder / "train" / "noise"
    images.mkdir(parents=True)
    for index in range(count):
        blobs = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        pixels = np.asarray(blobs.resize((500, 375), Image.Resampling.BICUBIC)) + rng.normal(0, 8, (375, 500, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(images / f"{index}.jpg", quality=90)
    shutil.copytree(folder / "train", folder / "test")


def start_up(folder: Path, setting: Setting) -> float:
    """Return the seconds of a run of train.py that trains for a single step."""
    words = [sys.executable, ROOT / "train.py", "--trainer", "P2C", "--seed", 1, "--root", folder,
             "--output-dir", folder / "run", "--dataset-config-file", config_file("datasets", "folder"),
             "--config-file", config_file("trainers", "P2C", setting.config),
             "DATASET.NUM_SHOTS", setting.batch, "DATALOADER.TRAIN_X.BATCH_SIZE", setting.batch, "OPTIM.MAX_EPOCH", 1,
             "MODEL.BACKBONE.WEIGHTS", "random", "TRAINER.P2C.PREC", setting.precision,
             "USE_CUDA", setting.device != "cpu"]
    start = time.perf_counter()
    subprocess.run(list(map(str, words)), stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def measure_reading(folder: Path, setting: Setting, workers: int) -> tuple[float, float]:
    """Return the seconds to read an image in training, and in a test."""
    trainer = build(P2C, setting, "DATASET.NAME", Folder.__name__, "DATASET.ROOT", str(folder),
                    "DATALOADER.NUM_WORKERS", workers)
    times = []
    for loader in (trainer.train_loader_x, trainer.test_loader):
        def read(loader=loader) -> int:
            return sum(len(trainer.parse_batch(batch)[0]) for batch in loader)

        count = read()  # and starts the workers
        times.append(seconds(read, setting.device, PASSES, warm_up=0) / count)
    return times[0], times[1]


def measure_computing(setting: Setting, steps: int) -> tuple[float, float, float]:
    """Return the seconds of a training step, of encoding the classes for a test, and of a tested image."""
    trainer, device = build(P2C, setting), setting.device
    images, labels = made_up(trainer, setting.batch, setting.classes)
    step = seconds(lambda: trainer.forward_backward({"img": images, "label": labels}), device, steps, warm_up=3)
    with torch.no_grad():
        texts = seconds(lambda: trainer.model.encode_text(trainer.model.learner()), device, 3)
    count = 4 if device == "cpu" else trainer.cfg.DATALOADER.TEST.BATCH_SIZE
    tested, _ = made_up(trainer, count, 1)
    return step, texts, seconds(lambda: trainer.model_inference(tested), device, 3) / count


def measure(classes: list[int], setting: Setting, workers: int, images: int, steps: int) -> Pieces:
    """Measure all pieces; `setting` is a run's, except for the classes."""
    with tempfile.TemporaryDirectory() as name:
        make_images(Path(name), images * max(1, workers))
        start = start_up(Path(name), setting)
        read, read_test = measure_reading(Path(name), setting, workers)
    step, texts = {}, {}
    for count in classes:
        step[count], texts[count], computed = measure_computing(replace(setting, classes=count), steps)
    return Pieces(start, read, read_test, computed, step, texts)


# Projecting


def base_classes(sizes: Sizes) -> int:
    """Return the number of base classes."""
    return math.ceil(sizes.classes / 2)


def project(name: str, sizes: Sizes, pieces: Pieces, cfg, device: str) -> tuple[list, float]:
    """Return a dataset's row of the table, and the seconds of one seed."""
    def together(computing: float, reading: float) -> float:
        return computing + reading if device == "cpu" else max(computing, reading)

    base, batch = base_classes(sizes), cfg.DATALOADER.TRAIN_X.BATCH_SIZE
    steps = cfg.OPTIM.MAX_EPOCH * (SHOTS * base // batch)  # an incomplete batch is dropped
    training = steps * together(pieces.step[base], batch * pieces.read)
    testing = sizes.test * together(pieces.computed, pieces.read_test) + 2 * pieces.texts[base]
    total = 2 * pieces.start + training + testing
    return [name, sizes.classes, base, steps, f"{1000 * pieces.step[base]:.1f}", f"{training:.0f}", f"{sizes.test:,}",
            f"{pieces.texts[base]:.2f}", f"{testing:.0f}", f"{total / 60:.1f}"], total


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--precision", help="default: fp16 on a GPU, fp32 on a CPU")
    parser.add_argument("--workers", type=int, help="default: the shipped number")
    parser.add_argument("--steps", type=int, help="measured steps (default: 2; on a GPU 30)")
    args = parser.parse_args()
    gpu = args.device != "cpu"
    names, images = FAMILIES["standard"].datasets, IMAGES
    if args.quick:
        args.workers, args.steps, names, images = 1, 1, names[-2:], 8
    setting = Setting(0, 0, args.precision or ("fp16" if gpu else "fp32"), args.device, args.quick)
    cfg = shipped("P2C", setting.config)
    setting = replace(setting, batch=cfg.DATALOADER.TRAIN_X.BATCH_SIZE)
    workers = cfg.DATALOADER.NUM_WORKERS if args.workers is None else args.workers
    sizes = {name: sizes_of(class_of(name)) for name in names}
    print(machine(args.device), flush=True)
    classes = sorted({base_classes(some) for some in sizes.values()})
    pieces = measure(classes, setting, workers, images, args.steps or (30 if gpu else 2))
    print(f"\nMeasured in {setting.precision} with {workers} workers: a process starts in {pieces.start:.1f} s; "
          f"images/s read in training {1 / pieces.read:.1f},\nin a test {1 / pieces.read_test:.1f}; computed in a test "
          f"{1 / pieces.computed:.1f}")
    rows, totals = zip(*(project(name, some, pieces, cfg, args.device) for name, some in sizes.items()), strict=True)
    print("\nProjected, one seed of each dataset, training on the base classes and testing on both halves")
    print(tabulate(rows, ["dataset", "classes", "base", "steps", "step (ms)", "training (s)", "test images",
                          "texts (s)", "test (s)", "all (min)"],
                   disable_numparse=True, stralign="right", colalign=["left"]))
    print(f"Projected, {len(rows)} datasets and {SEEDS} seeds ({SEEDS * len(rows)} runs): "
          f"{SEEDS * sum(totals) / 3600:.2f} hours")


if __name__ == "__main__":
    main()
