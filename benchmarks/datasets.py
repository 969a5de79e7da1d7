"""Time to build datasets of the sizes of SUN397 and ImageNet, from empty files.

    python benchmarks/datasets.py [--folder FOLDER] [--skip-imagenet]

Every file exists, as the loaders demand, but none is opened. ImageNet's 1.33 million files are made once (minutes) and
stay in FOLDER for the next run. Each build runs in its own process; imports are not counted.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
BUILD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from p2c import registry
from p2c.config import extend_cfg
from p2c.framework import DATASET_REGISTRY, get_cfg_default
cfg = get_cfg_default()
extend_cfg(cfg)
cfg.merge_from_list(["DATASET.NAME", sys.argv[2], "DATASET.ROOT", sys.argv[3], "DATASET.NUM_SHOTS", int(sys.argv[4]),
                     "SEED", 1])
registry.require(cfg.DATASET.NAME, registry.DATASETS, "dataset", DATASET_REGISTRY.registered_names())
start = time.perf_counter()
dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)
seconds = time.perf_counter() - start
import resource
print("RESULT", seconds, len(dataset.train_x), len(dataset.test), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def build(name: str, root: Path, shots: int) -> tuple[float, int, int, int]:
    """Return the seconds, training and test images, and peak memory (KiB) of one build."""
    done = subprocess.run([sys.executable, "-c", BUILD, str(ROOT), name, str(root), str(shots)], check=True,
                          capture_output=True, text=True)
    seconds, train, test, memory = done.stdout.split("RESULT")[1].split()
    return float(seconds), int(train), int(test), int(memory)


def make_sun397(root: Path) -> None:
    """Make 397 classes with 40 training, 10 validation and 50 test images each."""
    folder, split = root / "sun397", {"train": [], "val": [], "test": []}
    for label in range(397):
        place = f"{chr(97 + label % 26)}/class_{label}"
        (folder / "SUN397" / place).mkdir(parents=True)
        for part, count in (("train", 40), ("val", 10), ("test", 50)):
            for index in range(count):
                path = f"{place}/sun_{part}_{index}.jpg"
                (folder / "SUN397" / path).touch()
                split[part].append([path, label, f"class_{label}"])
    (folder / "split_zhou_SUN397.json").write_text(json.dumps(split, indent=4))


def make_imagenet(root: Path) -> None:
    """Make 1000 classes with 1,281,167 training and 50,000 validation images."""
    folder = root / "imagenet"
    wnids = [f"n{label:08d}" for label in range(1000)]
    for label, wnid in enumerate(tqdm(wnids, desc="making empty files", unit="class", disable=None)):
        for part, count in (("train", 1281 + (label < 167)), ("val", 50)):
            place = folder / "images" / part / wnid
            place.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                (place / f"{wnid}_{index}.JPEG").touch()
    (folder / "classnames.txt").write_text("".join(f"{wnid} class {wnid}\n" for wnid in wnids))  # last


def report(name: str, what: str, result: tuple[float, int, int, int]) -> None:
    seconds, train, test, memory = result
    print(f"{name:10} {what:10} {seconds:6.2f} s   {train:9,} training, {test:7,} test images   "
          f"peak {memory >> 10} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="folder in which the empty files stay; default: a temporary one")
    parser.add_argument("--skip-imagenet", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = args.folder or Path(temporary)
        if not (root / "sun397/split_zhou_SUN397.json").is_file():
            make_sun397(root)
        for shots, what in ((-1, "all images"), (16, "16 shots")):
            report("SUN397", what, build("SUN397", root, shots))
        if args.skip_imagenet:
            return
        if not (root / "imagenet/classnames.txt").is_file():
            make_imagenet(root)
        for shots, what in ((-1, "all images"), (16, "16 shots")):
            report("ImageNet", what, build("ImageNet", root, shots))


if __name__ == "__main__":
    main()
