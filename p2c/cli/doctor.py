"""Is this set-up right?

    python -m p2c doctor [--root DIR] [--quick]

Tells which versions run on which device, which of CLIP's weights and which data sets are here, and, with ViT-B/16's
weights and DTD or EuroSAT at hand, whether zero-shot CLIP reaches its published accuracy: the one way to know that a
set-up is right. What is merely absent is no fault.

Exit status: 0 nothing is wrong, 1 something is (the line says what to do), 2 a mistaken call.
"""
import argparse
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from p2c.utils.console import Parser, one_line

# The rest is imported where it is needed: an installation that is broken must not break the report of it.

FINE, FAULTY = 0, 1
OK, ABSENT, AGREES, WRONG, DIFFERS = "ok", "absent", "agrees", "WRONG", "DIFFERS"
MODULES = ("torch", "torchvision", "open_clip", "yacs", "p2c.inference.predictor")  # the last needs all that ours need
BACKBONE, TRAINER, CONFIG, SHOTS = "ViT-B/16", "ZeroshotCLIP", "vit_b16", 16  # of the published numbers
COMPARED = ("dtd", "eurosat")  # one is enough; the first has the fewest images
TOLERANCE = 0.3  # percentage points


class Finding(NamedTuple):
    """A line of the report."""

    mark: str
    text: str


def main(argv: Sequence[str]) -> int:
    """Print the report; returns the exit status."""
    parser = Parser(prog="python -m p2c doctor", description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(os.environ.get("DATA") or "data"),
                        help="folder that holds all data sets (default: $DATA, else data/)")
    parser.add_argument("--quick", action="store_true", help="leave the zero-shot comparison out")
    args = parser.parse_args(argv)
    try:
        faults = show("Software", check_software())
        if not faults:
            faults += show("Device", check_device())
            faults += show("Weights of CLIP", check_weights())
            faults += show(f"Data in {args.root}", check_data(args.root))
            if not args.quick:
                faults += show("Zero-shot accuracy as published (minutes without a GPU)", check_accuracy(args.root))
    except KeyboardInterrupt:
        print("Interrupted", file=sys.stderr)
        return FAULTY
    if faults:
        print(f"\nSomething is wrong: see the {faults} marked {WRONG} or {DIFFERS}")
    else:
        print("\nNothing is wrong")
    return FAULTY if faults else FINE


def show(title: str, findings: Iterator[Finding]) -> int:
    """Print findings as they come; returns how many are faults. A check that breaks is one."""
    print(f"\n{title}", flush=True)
    faults = 0
    try:
        for finding in findings:
            faults += print_finding(finding)
    except Exception as error:  # whatever breaks a check is what the user came to hear
        faults += print_finding(Finding(WRONG, f"{type(error).__name__}: {one_line(error)}"))
    return faults


def print_finding(finding: Finding) -> bool:
    """Returns whether it is a fault."""
    print(f"  {finding.mark:8}{finding.text}", flush=True)
    return finding.mark in (WRONG, DIFFERS)


# Software and device


def check_software() -> Iterator[Finding]:
    """Whether everything imports and is of a version that this package takes."""
    broken = False
    for name in MODULES:
        try:
            importlib.import_module(name)
        except Exception as error:  # binary packages that do not match raise anything
            broken = True
            yield Finding(WRONG, f"{name} cannot be imported ({type(error).__name__}: {one_line(error)}); install it "
                                 "again, torch and torchvision together")
    yield from check_requirements()
    if broken:
        return
    from p2c.framework import TrainerX, versions

    engine = TrainerX.__module__.partition(".")[0]
    found = {**versions(), "yacs": metadata.version("yacs")}
    yield Finding(OK, ", ".join(f"{name} {version}" for name, version in found.items()))
    yield Finding(OK, f"engine: {'our own' if engine == 'p2c' else engine}")


def check_requirements() -> Iterator[Finding]:
    """The packages that the installed p2c asks for; of a checkout that is not installed nothing is known."""
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
    """The GPUs that torch can use, each tried, or the CPU."""
    import torch

    if torch.cuda.is_available():
        drivers = nvidia_gpus()
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            if not multiplies(f"cuda:{index}"):
                yield Finding(WRONG, f"GPU {index} multiplies wrongly")
            yield Finding(OK, f"GPU {index}: {torch.cuda.get_device_name(index)}, {total / 2**30:.0f} GiB of memory, "
                              f"{free / 2**30:.0f} free")
        yield Finding(OK, f"CUDA {torch.version.cuda} in torch" + "".join(f"; driver: {line}" for line in drivers[:1]))
        return
    if (gpus := nvidia_gpus()) and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built for CPUs only"
        yield Finding(WRONG, f"there is a GPU ({gpus[0]}), but torch cannot use it: torch {torch.__version__} {built}; "
                             "install a build that fits the driver, see pytorch.org")
    else:
        yield Finding(OK, f"CPU, {torch.get_num_threads()} threads; no GPU, which {BACKBONE} needs to train in minutes")


def multiplies(device: str) -> bool:
    """Return whether a device's ("cpu", "cuda:0") matrix product in half precision is right."""
    import torch

    ones = torch.ones(64, 64, dtype=torch.float16, device=device)
    return (ones @ ones).sum(dtype=torch.float32).item() == 64**3  # half precision ends at 65504


def nvidia_gpus() -> list[str]:
    """Name and driver of each GPU by NVIDIA's own account; none where its tool is not installed."""
    if not (tool := shutil.which("nvidia-smi")):
        return []
    done = subprocess.run([tool, "--query-gpu=name,driver_version", "--format=csv,noheader"], capture_output=True,
                          text=True)
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


# Weights and data


def check_weights() -> Iterator[Finding]:
    """The built-in weights, and OpenAI's as far as they are on this machine; their hashes where OpenAI gives them."""
    from p2c.clip.loading import CLIP_CACHE, CLIP_NAMES, TINY, load_backbone, openai_file, openai_url

    load_backbone(TINY, "builtin")
    yield Finding(OK, f"{TINY}: ships with the package, and loads")
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
    """Each data set of the benchmarks: absent, whole by its names and numbers, or what is wrong with it."""
    for name, kind in benchmark_classes().items():
        if not is_there(kind, root):
            yield Finding(ABSENT, f"{name}: {how_to_get(name)}")
        elif fault := fault_of(kind, root):
            yield Finding(WRONG, f"{name}: {fault}")
        else:
            yield Finding(OK, f"{name}: {kind.sizes}")


def how_to_get(name: str) -> str:
    return f"`python -m p2c data download {name}` gets it"


def benchmark_classes() -> dict[str, type]:
    """The data sets' classes by the names of configs/datasets/NAME.yaml, in the order of the papers' tables."""
    from p2c.download.contents import class_of
    from p2c.grid.families import FAMILIES

    return {name: class_of(name) for name in FAMILIES["standard"].members}


def is_there(kind: type, root: Path) -> bool:
    return (root / kind.folder).exists()


def fault_of(kind: type, root: Path) -> str:
    """What a trainer would be told on reading a data set; "" if it can be read."""
    from p2c.download.contents import load_cfg
    from p2c.framework import only_warnings

    try:
        with only_warnings():
            kind(load_cfg(kind.name, root))
    except (OSError, ValueError) as error:
        return one_line(error)
    return ""


# Accuracy


def check_accuracy(root: Path) -> Iterator[Finding]:
    """Zero-shot CLIP on both halves of a data set's classes, as in base-to-novel, where weights and data are here."""
    from p2c.clip.loading import openai_file

    classes = benchmark_classes()
    name = next((name for name in COMPARED if is_there(kind := classes[name], root) and not fault_of(kind, root)), None)
    needed = [] if openai_file(BACKBONE) else [f"the weights of {BACKBONE}"]
    if name is None:
        needed.append(" or ".join(f"{name} ({how_to_get(name)})" for name in COMPARED))
    if needed:
        yield Finding(ABSENT, f"not compared: that takes {' and '.join(needed)}")
        return
    from p2c.tables.folders import Group
    from p2c.tables.published import published

    base, novel, _ = published("base2new", Group(TRAINER, CONFIG, SHOTS))[name]
    yield from compare(classes[name], root, {"base": base, "new": novel})


def compare(kind: type, root: Path, published: dict[str, float], config: str = CONFIG,
            pairs: Sequence = ()) -> Iterator[Finding]:
    """Measure zero-shot CLIP and compare with the published accuracy (percent) of each half of the classes.

    Args:
        config: one of ZeroshotCLIP's.
        pairs: KEY, value, ... that win over it.
    """
    for half, expected in published.items():
        accuracy = zero_shot_accuracy(kind, root, half, config, pairs)
        figures = f"{kind.name}, {half} classes: {accuracy:.2f}, published {expected:.2f}"
        if abs(accuracy - expected) <= TOLERANCE:
            yield Finding(AGREES, figures)
        else:
            yield Finding(DIFFERS, f"{figures}, more than {TOLERANCE} apart; look at the images with `python -m "
                                   f"p2c data verify {kind.name} --full`, and fetch the weights of {BACKBONE} again")


def zero_shot_accuracy(kind: type, root: Path, half: str, config: str, pairs: Sequence = ()) -> float:
    """Percent of the test images of a half of the classes that zero-shot CLIP gets right."""
    from p2c import registry
    from p2c.config import config_file
    from p2c.download.contents import load_cfg
    from p2c.framework import TRAINER_REGISTRY, build_trainer, only_warnings

    cfg = load_cfg(kind.name, root)
    cfg.merge_from_file(config_file("trainers", TRAINER, config))
    cfg.TRAINER.NAME, cfg.DATASET.SUBSAMPLE_CLASSES = TRAINER, half
    cfg.DATALOADER.NUM_WORKERS = min(cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)
    cfg.merge_from_list(list(pairs))
    registry.require(TRAINER, registry.TRAINERS, "trainer", TRAINER_REGISTRY.registered_names())
    with only_warnings():
        return build_trainer(cfg).test()
