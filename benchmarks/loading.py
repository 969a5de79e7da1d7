"""Images read per second for training and for evaluation, and the time of each stage.

    python benchmarks/loading.py [--images N] [--epochs E] [--workers 0 1 2] [--device cpu] [--quick]

The images are JPEGs of 500 x 375 pixels, made in a temporary folder, with CLIP's transforms to 224 x 224. "float": the
loader yields normalised floats, for foreign trainers; "bytes": uint8, for ours. Moving a batch to the device, and
normalising bytes there, is counted. The first epoch starts the workers; for later ones the median is shown. N is the
number of images per worker. The files were just written, so they come from the page cache.
"""
import contextlib
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch
from common import machine, options, seconds
from PIL import Image
from tabulate import tabulate
from torchvision import transforms as T
from torchvision.transforms import functional as F

from p2c.config import extend_cfg
from p2c.engine.data import set_epoch
from p2c.engine.datasets import Datum
from p2c.engine.files import read_image
from p2c.framework import DATASET_REGISTRY, DataManager, DatasetBase, get_cfg_default
from p2c.utils.pixels import Normalization, as_bytes, to_bytes

try:
    from torchvision.io import ImageReadMode, decode_jpeg  # deprecated since torchvision 0.29
except ImportError:
    decode_jpeg = None

WIDTH, HEIGHT, SIZE = 500, 375, 224
BATCH, TEST_BATCH = 4, 100  # as in the published configurations
DISTINCT = 100  # images; the others are copies
STATISTICS = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]  # CLIP's


@DATASET_REGISTRY.register()
class SyntheticJpegs(DatasetBase):
    """The first DATASET.NUM_SHOTS images in DATASET.ROOT, all of one class, for training and test."""

    def __init__(self, cfg):
        paths = sorted(Path(cfg.DATASET.ROOT).glob("*.jpg"))[:cfg.DATASET.NUM_SHOTS]
        items = [Datum(str(path), 0, classname="noise") for path in paths]
        super().__init__(train_x=items, test=items)


def make_images(folder: Path, count: int) -> list[Path]:
    """Make smooth blobs with grain, which compress about as well as photographs (60 KB)."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{index:05}.jpg" for index in range(count)]
    for index, path in enumerate(paths):
        if index >= DISTINCT:
            path.write_bytes(paths[index % DISTINCT].read_bytes())
            continue
        blobs = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        pixels = np.asarray(blobs.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        pixels = pixels + rng.normal(0, 8, pixels.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return paths


class Loading:
    """The loaders of the first `images` of a folder, and the processing of their batches."""

    def __init__(self, folder: Path, images: int, workers: int, device: str, compact: bool):
        cfg = get_cfg_default()
        extend_cfg(cfg)
        cfg.merge_from_list([
            "DATASET.NAME", "SyntheticJpegs", "DATASET.ROOT", str(folder), "DATASET.NUM_SHOTS", images, "SEED", 1,
            "VERBOSE", False, "INPUT.INTERPOLATION", "bicubic",
            "INPUT.TRANSFORMS", ["random_resized_crop", "random_flip", "normalize"],
            "INPUT.PIXEL_MEAN", STATISTICS[0], "INPUT.PIXEL_STD", STATISTICS[1], "DATALOADER.NUM_WORKERS", workers,
            "DATALOADER.TRAIN_X.BATCH_SIZE", BATCH, "DATALOADER.TEST.BATCH_SIZE", TEST_BATCH,
            "USE_CUDA", device != "cpu",
        ])
        with contextlib.redirect_stdout(io.StringIO()):
            self.data = DataManager(cfg)
        self.device = device
        self.finish = normalization = Normalization(STATISTICS, torch.device(device))
        if not compact:
            self.finish = lambda images: images
            return
        for loader in (self.data.train_loader_x, self.data.test_loader):
            loader.dataset.transform = as_bytes(loader.dataset.transform, normalization)

    def training(self, epochs: int) -> tuple[float, float]:
        """Return the images per second of the first epoch, and the median of the others."""
        rates = []
        for epoch in range(epochs):
            set_epoch(self.data.train_loader_x, epoch)
            rates.append(self._rate(self.data.train_loader_x))
        return rates[0], median(rates[1:])

    def evaluation(self, passes: int) -> float:
        """Images a second, the median of some passes."""
        return median(self._rate(self.data.test_loader) for _ in range(passes))

    def _rate(self, loader) -> float:
        counts = []

        def read() -> None:
            for batch in loader:
                counts.append(len(self.finish(batch["img"].to(self.device, non_blocking=True))))

        time = seconds(read, self.device)
        return sum(counts) / time


def measure_training(folder: Path, images: int, workers: Sequence[int], epochs: int, device: str) -> list[dict]:
    rows = []
    for number in workers:
        for compact in (False, True):
            first, later = Loading(folder, images * max(1, number), number, device, compact).training(epochs)
            rows.append({"workers": number, "batches": kind(compact), "first epoch": first, "later": later})
    return rows


def measure_evaluation(folder: Path, images: int, workers: Sequence[int], passes: int, device: str) -> list[dict]:
    rows = []
    for number in workers:
        for compact in (False, True):
            loading = Loading(folder, images * max(1, number), number, device, compact)
            rows.append({"workers": number, "batches": kind(compact), "images/s": loading.evaluation(passes)})
    return rows


def kind(compact: bool) -> str:
    return "bytes" if compact else "float"


def milliseconds(function: Callable, inputs: Sequence) -> float:
    """Return the median time of a call."""
    return 1000 * median(seconds(lambda value=value: function(value), "cpu") for value in inputs)


def measure_stages(paths: Sequence[Path]) -> list[dict]:
    """Measure each stage of reading one image, in this process."""
    images = [read_image(path) for path in paths]
    contents = [torch.from_numpy(np.fromfile(path, np.uint8)) for path in paths]
    bicubic = T.InterpolationMode.BICUBIC
    for_test = T.Compose([T.Resize(SIZE, interpolation=bicubic), T.CenterCrop(SIZE)])
    small = [for_test(image) for image in images]
    floats = T.Compose([T.ToTensor(), T.Normalize(*STATISTICS)])
    stages = {
        "read and decode (Pillow)": (read_image, paths),
        "random resized crop": (T.RandomResizedCrop(SIZE, (0.08, 1.0), interpolation=bicubic), images),
        "resize and centre crop (Pillow)": (for_test, images),
        "to float, normalise": (floats, small),
        "to bytes": (to_bytes, small),
    }
    if decode_jpeg:
        stages["decode (torchvision)"] = decode, contents
        stages["resize and centre crop (torchvision)"] = for_test, [decode(content) for content in contents]
    return [{"stage": name, "ms": milliseconds(*stage)} for name, stage in stages.items()]


def decode(content: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return decode_jpeg(content, mode=ImageReadMode.RGB)


def compare_decoders(paths: Sequence[Path]) -> str:
    """Compare torchvision's pixels with Pillow's, after decoding and after resizing."""
    resize = T.Resize(SIZE, interpolation=T.InterpolationMode.BICUBIC)
    pairs = {"decoding": [], "resizing": []}
    for path in paths:
        ours, theirs = read_image(path), decode(torch.from_numpy(np.fromfile(path, np.uint8)))
        pairs["decoding"].append((F.pil_to_tensor(ours), theirs))
        pairs["resizing"].append((F.pil_to_tensor(resize(ours)), resize(theirs)))
    texts = []
    for stage, tensors in pairs.items():
        differences = torch.cat([(a.int() - b.int()).abs().flatten() for a, b in tensors])
        texts.append(f"after {stage} {(differences > 0).float().mean():.1%} of the values, by up to "
                     f"{int(differences.max())}")
    return "torchvision's pixels differ from Pillow's " + ", ".join(texts)


def table(title: str, rows: list[dict]) -> None:
    print(f"\n{title}\n{tabulate(rows, headers='keys', floatfmt='.1f')}", flush=True)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=4, help="at least 2")
    counts = [number for number in (0, 1, 2, 4, 8) if number <= (os.cpu_count() or 1)]  # 8: the shipped number
    parser.add_argument("--workers", type=int, nargs="+", default=counts)
    args = parser.parse_args()
    if args.quick:
        args.images, args.epochs, args.workers = 8, 2, [0, 1]
    if args.epochs < 2 or args.images < BATCH:
        parser.error(f"at least 2 epochs and {BATCH} images are needed")
    torch.set_num_threads(1)  # as in a worker, so that the numbers of workers can be compared
    print(machine(args.device), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = make_images(folder, args.images * max(1, *args.workers))
        size = sum(path.stat().st_size for path in paths) / len(paths) / 1000
        print(f"{len(paths)} JPEGs of {WIDTH} x {HEIGHT}, {size:.0f} KB each")
        table("One image, in one process", measure_stages(paths[:100]))
        if decode_jpeg:
            print(compare_decoders(paths[:100]))
        table(f"Training, batches of {BATCH}: images/s",
              measure_training(folder, args.images, args.workers, args.epochs, args.device))
        table(f"Evaluation, batches of {TEST_BATCH}",
              measure_evaluation(folder, args.images, args.workers, args.epochs, args.device))


if __name__ == "__main__":
    main()
