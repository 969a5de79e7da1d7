"""One few-shot run, planned as scripts/run.sh plans it: which configuration files it takes, and its folder's name."""
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from p2c import configs
from p2c.config import config_file

CONFIGS = Path(list(configs.__path__)[0])
BACKBONES = re.compile(r"(vit_b16|vit_b32|rn50|rn101|tiny_shapes)(_.*)?")  # names of shipped configurations
FOLDER = "folder:"


@dataclass(frozen=True)
class Source:
    """A dataset: its name in output folders, and what train.py needs of it."""

    label: str
    config: str
    root: str
    pairs: tuple[str, ...] = ()


def plan(data: str | os.PathLike, method: str, shots: int, seed: int, backbone: str | None,
         output: str | os.PathLike | None) -> list[str]:
    """Return train.py's words for a few-shot run, or for a test if the method is not trained.

    Args:
        data: a folder of images, a split file in one, a name in configs/datasets, or a YAML file.
        method: a folder in configs/trainers, or IVLP:language_only.
        shots: images per class; -1: all.
        backbone: CLIP's architecture; None: that of the configuration.
        output: the run's folder; None: a name below $OUTPUT, else output/.

    Raises:
        FileNotFoundError: there is no such data.
        ValueError: the method is unknown.
    """
    source, trainer = find_source(os.fspath(data)), method.partition(":")[0]
    folder = "ZeroshotCLIP" if trainer == "ZeroshotCLIP2" else trainer
    cfg = default_cfg(method, source, shots, backbone)
    if not os.path.isfile(config_file("trainers", folder, cfg)):
        known = sorted(path.name for path in (CONFIGS / "trainers").iterdir() if path.is_dir())
        raise ValueError(f"Unknown method '{method}'; choose from {', '.join(known)}, or use train.py with a "
                         "configuration of your own")
    words = ["--root", source.root, "--trainer", trainer, "--seed", str(seed),
             "--dataset-config-file", source.config, "--config-file", config_file("trainers", folder, cfg)]
    words += ["--backbone", backbone] if backbone else []
    settings = next(table("set", f"{method}/{cfg}/few_shot/{source.label}"), [])
    if trained := folder != "ZeroshotCLIP":
        settings = ["TRAIN.CHECKPOINT_FREQ", "10", "DATASET.NUM_SHOTS", str(shots), *settings]
    name = renamed(cfg, backbone)
    below = (source.label, trainer, f"{name}_{shots}shots", f"seed{seed}") if trained else (trainer, name, source.label)
    folder = os.path.join(os.environ.get("OUTPUT") or "output", *below) if output is None else os.fspath(output)
    return [*words, "--output-dir", folder, *([] if trained else ["--eval-only"]), "--", *source.pairs, *settings]


def find_source(data: str) -> Source:
    """Return the dataset of a name, a YAML file, or a path with or without folder: before it.

    A dataset's name comes before a folder's; ./NAME is always a folder. Raise FileNotFoundError if there is neither.
    """
    shared = os.environ.get("DATA") or "data"
    if os.path.isfile(known := config_file("datasets", data)):
        return Source(data, known, shared)
    if data.endswith((".yaml", ".yml")):
        return Source(Path(data).stem, data, shared)
    path = data.removeprefix(FOLDER)
    if not os.path.exists(path):
        names = sorted(file.stem for file in CONFIGS.glob("datasets/*.yaml"))
        raise FileNotFoundError(f"No folder of images, split file or dataset '{path}'; give a path, or choose from "
                                f"{', '.join(names)}")
    folder, file = (path, "") if os.path.isdir(path) else os.path.split(path)
    root = os.path.realpath(folder)
    name = re.sub(r"[^A-Za-z0-9._-]", "_", file or os.path.basename(root))
    label = f"{name}-{checksum(os.fsencode(f'{root}/{file}')):08x}"
    return Source(label, config_file("datasets", "folder"), root, ("DATASET.FOLDER.SPLIT", file) if file else ())


def default_cfg(method: str, source: Source, shots: int, backbone: str | None) -> str:
    """Return the name of a method's configuration: the published one, or that of tiny-shapes."""
    if backbone == "tiny-shapes" or (Path(source.config).stem.startswith("shapes") and backbone is None):
        variant = method.partition(":")[2]
        return f"tiny_shapes_{variant}" if variant else "tiny_shapes"
    return next(table("cfg", f"{method}/few_shot/{source.label}/{shots}"))[0]


def renamed(cfg: str, backbone: str | None) -> str:
    """Return a configuration's name with that of the backbone which runs, such as vit_b32_ep50 for vit_b16_ep50."""
    shipped = BACKBONES.fullmatch(cfg)
    if backbone is None or shipped is None:
        return cfg
    return re.sub(r"[^a-z0-9]", "_", backbone.lower().replace("/", "")) + (shipped[2] or "")


def table(kind: str, name: str) -> Iterator[list[str]]:
    """Yield what configs/defaults.txt has in its lines of a kind whose patterns fit a name."""
    for line in (CONFIGS / "defaults.txt").read_text(encoding="utf-8").splitlines():
        first, *rest = line.split()
        if first == kind and fnmatchcase(name, rest[0]):
            yield rest[1:]


def checksum(data: bytes) -> int:
    """Return what the command cksum prints for data: a CRC-32 over it and its length, highest bits first."""
    length = len(data).to_bytes((len(data).bit_length() + 7) // 8, "little")
    mirrored = bytes(mirror(byte, 8) for byte in data + length)  # zlib's takes the lowest bits first
    return mirror(zlib.crc32(mirrored, 0xFFFFFFFF), 32)


def mirror(number: int, bits: int) -> int:
    """Return a number with the order of its bits reversed."""
    return int(f"{number:0{bits}b}"[::-1], 2)
