"""Check the installation, the weights and the datasets.

    python -m p2c doctor [--root DIR] [--quick]

Reports the versions, the device, and which of CLIP's weights and of the datasets are present. If the weights of
ViT-B/16 and DTD or EuroSAT are, it also compares zero-shot CLIP with its published accuracy, which tests the set-up as
a whole. Missing weights and datasets are not faults.

Exit status: 0 nothing is wrong, 1 something is wrong (its line says what to do), 2 a usage error.
"""
import importlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from p2c.utils.console import DONE, FAILED, command_parser, one_line

# Everything else is imported where it is needed, so that a broken installation can be reported.
if TYPE_CHECKING:
    from p2c.datasets.base import FewShotDataset

OK, ABSENT, AGREES, WRONG, DIFFERS = "ok", "absent", "agrees", "WRONG", "DIFFERS"
MODULES = ("torch", "torchvision", "open_clip", "yacs", "p2c.inference.predictor")  # the last imports all dependencies
BACKBONE, TRAINER, CONFIG, SHOTS = "ViT-B/16", "ZeroshotCLIP", "vit_b16", 16  # those of the published numbers
COMPARED = ("dtd", "eurosat")  # datasets to compare on: the first one present is used
TOLERANCE = 0.3  # percentage points


class Finding(NamedTuple):
    """A line of the report."""

    mark: str
    text: str


def main(argv: Sequence[str]) -> int:
    """Print the report and return the exit status."""
    parser = command_parser("doctor", __doc__)
    parser.add_argument("--root", type=Path, default=Path(os.environ.get("DATA") or "data"),
                        help="folder that holds all datasets (default: $DATA, else data/)")
    parser.add_argument("--quick", action="store_true", help="skip the zero-shot comparison")
    args = parser.parse_args(argv)
    faults = show("Software", check_software())
    if not faults:
        faults += show("Device", check_device())
        faults += show("Weights of CLIP", check_weights())
        faults += show(f"Data in {args.root}", check_data(args.root))
        if not args.quick:
            faults += show("Zero-shot accuracy as published (minutes without a GPU)", check_accuracy(args.root))
    if faults:
        print(f"\nSomething is wrong: see the {faults} marked {WRONG} or {DIFFERS}")
    else:
        print("\nNothing is wrong")
    return FAILED if faults else DONE


def show(title: str, findings: Iterator[Finding]) -> int:
    """Print findings as they are made and return the number of faults."""
    print(f"\n{title}", flush=True)
    faults = 0
    for mark, text in errors_as_findings(findings):
        print(f"  {mark:8}{text}", flush=True)
        faults += mark in (WRONG, DIFFERS)
    return faults


def errors_as_findings(findings: Iterator[Finding]) -> Iterator[Finding]:
    """Yield findings; whatever a check raises is the last one."""
    try:
        yield from findings
    except Exception as error:
        yield Finding(WRONG, f"{type(error).__name__}: {one_line(error)}")


# Software and device


def check_software() -> Iterator[Finding]:
    """Check that all packages can be imported and have supported versions."""
    broken = False
    for name in MODULES:
        try:
            importlib.import_module(name)
        except Exception as error:  # mismatched binary packages may raise anything
            broken = True
            yield Finding(WRONG, f"{name} cannot be imported ({type(error).__name__}: {one_line(error)}); install it "
                                 "again, torch and torchvision together")
    yield from check_requirements()
    if broken:
        return
    from p2c.engine.results import versions
    from p2c.framework import TrainerX

    found = {**versions(), "yacs": metadata.version("yacs")}
    yield Finding(OK, ", ".join(f"{name} {version}" for name, version in found.items()))
    yield Finding(OK, f"engine: {TrainerX.__module__.partition('.')[0]}")


def check_requirements() -> Iterator[Finding]:
    """Check the versions of the packages that the installed p2c requires; an uninstalled checkout is not checked."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in metadata.requires("p2c") or ()]
    except metadata.PackageNotFoundError:
        return
    for requirement in requirements:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = None
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            found = f"{requirement.name} is {version}" if version else f"{requirement.name} is not installed"
            yield Finding(WRONG, f"{found}: pip install '{requirement}'")


def check_device() -> Iterator[Finding]:
    """Report the GPUs that torch can use, after a product on each, or report the CPU."""
    import torch

    if torch.cuda.is_available():
        drivers = nvidia_gpus()
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            ones = torch.ones(64, 64, dtype=torch.float16, device=f"cuda:{index}")
            (ones @ ones).sum().item()  # raises if this torch has no kernels for the GPU
            yield Finding(OK, f"GPU {index}: {torch.cuda.get_device_name(index)}, {total / 2**30:.0f} GiB of memory, "
                              f"{free / 2**30:.0f} free")
        driver = f"; driver: {drivers[0]}" if drivers else ""
        yield Finding(OK, f"CUDA {torch.version.cuda} in torch{driver}")
        return
    if (gpus := nvidia_gpus()) and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built for CPUs only"
        yield Finding(WRONG, f"there is a GPU ({gpus[0]}), but torch cannot use it: torch {torch.__version__} {built}; "
                             "install a build that fits the driver, see pytorch.org")
    else:
        yield Finding(OK, f"CPU, {torch.get_num_threads()} threads; no GPU, which {BACKBONE} needs to train in minutes")


def nvidia_gpus() -> list[str]:
    """Return name and driver of each GPU according to nvidia-smi; none if that is not installed."""
    if not (tool := shutil.which("nvidia-smi")):
        return []
    done = subprocess.run([tool, "--query-gpu=name,driver_version", "--format=csv,noheader"], capture_output=True,
                          text=True)
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


# Weights and data


def check_weights() -> Iterator[Finding]:
    """Check the built-in weights and OpenAI's weights on this machine, with their hashes where published."""
    from p2c.clip.loading import CLIP_CACHE, CLIP_NAMES, TINY, load_backbone, openai_file, openai_url

    load_backbone(TINY, "builtin")
    yield Finding(OK, f"{TINY}: part of the package, and loads")
    for name in CLIP_NAMES:
        try:
            path = openai_file(name)
        except ValueError as error:
            yield Finding(WRONG, f"{name}: {one_line(error)}")
            continue
        if path:
            yield Finding(OK, f"{name}: {path}")
        elif name == BACKBONE:
            yield Finding(ABSENT, f"{name}: fetched at first use; or put {openai_url(name)} into {CLIP_CACHE}")


def check_data(root: Path) -> Iterator[Finding]:
    """Report each dataset of the benchmarks as absent, complete or faulty, by its file names and counts."""
    for name, kind in benchmark_classes().items():
        if is_absent(root / kind.folder):
            yield Finding(ABSENT, f"{name}: {kind.how_to_get.format(name)}")
        elif fault := fault_of(kind, root):
            yield Finding(WRONG, f"{name}: {fault}")
        else:
            yield Finding(OK, f"{name}: {kind.sizes}")


def benchmark_classes() -> dict[str, type["FewShotDataset"]]:
    """Return the dataset classes by the names of configs/datasets/NAME.yaml, in the order of the papers' tables."""
    from p2c.download.contents import class_of
    from p2c.grid.families import FAMILIES

    return {name: class_of(name) for name in FAMILIES["standard"].members}


def is_absent(folder: Path) -> bool:
    """Return whether a dataset's folder does not exist, or holds only what a download that failed leaves there."""
    from p2c.download.places import FETCHED, LOCK

    return not folder.exists() or folder.is_dir() and {path.name for path in folder.iterdir()} <= {FETCHED, LOCK}


def fault_of(kind: type["FewShotDataset"], root: Path) -> str:
    """Read a dataset as a trainer does, and return the error, or "" if there is none."""
    from p2c.download.contents import load_cfg
    from p2c.engine.logger import only_warnings

    try:
        with only_warnings():
            kind(load_cfg(kind.name, root))
    except (OSError, ValueError) as error:
        return one_line(error)
    return ""


# Accuracy


def check_accuracy(root: Path) -> Iterator[Finding]:
    """Compare zero-shot CLIP with its published base-to-novel accuracy, if weights and data are present."""
    from p2c.clip.loading import openai_file

    classes = benchmark_classes()
    name = next((name for name in COMPARED if not fault_of(classes[name], root)), "")
    missing = [] if openai_file(BACKBONE) else [f"the weights of {BACKBONE}"]
    if not name:
        missing.append(" or ".join(f"{name} ({classes[name].how_to_get.format(name)})" for name in COMPARED))
    if missing:
        yield Finding(ABSENT, f"not compared: that needs {' and '.join(missing)}")
        return
    from p2c.tables.folders import Group
    from p2c.tables.published import published

    base, novel, _ = published("base2new", Group(TRAINER, CONFIG, SHOTS))[name]
    yield from compare(classes[name], root, {"base": base, "new": novel})


def compare(kind: type["FewShotDataset"], root: Path, published: dict[str, float], config: str = CONFIG,
            pairs: Sequence = ()) -> Iterator[Finding]:
    """Measure zero-shot CLIP and compare it with the published accuracy (percent) on each half of the classes."""
    for half, expected in published.items():
        accuracy = zero_shot_accuracy(kind, root, half, config, pairs)
        comparison = f"{kind.name}, {half} classes: {accuracy:.2f}, published {expected:.2f}"
        if abs(accuracy - expected) <= TOLERANCE:
            yield Finding(AGREES, comparison)
        else:
            yield Finding(DIFFERS, f"{comparison}, more than {TOLERANCE} apart; check the images with `python -m "
                                   f"p2c data verify {kind.name} --full`, and download the weights of {BACKBONE} again")


def zero_shot_accuracy(kind: type["FewShotDataset"], root: Path, half: str, config: str, pairs: Sequence = ()) -> float:
    """Return the accuracy of zero-shot CLIP in percent on the test images of a half of the classes."""
    from p2c import registry
    from p2c.config import config_file
    from p2c.download.contents import load_cfg
    from p2c.engine.logger import only_warnings
    from p2c.framework import build_trainer

    cfg = load_cfg(kind.name, root)
    cfg.merge_from_file(config_file("trainers", TRAINER, config))
    cfg.TRAINER.NAME, cfg.DATASET.SUBSAMPLE_CLASSES = TRAINER, half
    cfg.DATALOADER.NUM_WORKERS = min(cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)
    cfg.merge_from_list(list(pairs))
    registry.get_trainer(TRAINER)
    with only_warnings():
        return build_trainer(cfg).test()
