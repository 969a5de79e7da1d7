"""Small helpers around files, seeds and modules."""
import contextlib
import functools
import json
import logging
import os
import random
import urllib.request
import uuid
import warnings
from collections.abc import Iterable, Iterator

import numpy as np
import PIL
import torch
from PIL import Image
from torch import nn
from torch.utils import collect_env

log = logging.getLogger(__name__)


# Files

def write_atomically(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a whole file or nothing: a crash leaves what was there before."""
    path = os.fspath(path)
    mkdir_if_missing(os.path.dirname(path))
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise


def mkdir_if_missing(dirname: str) -> None:
    """Make a folder and its parents; an empty name is the current folder."""
    if dirname:
        os.makedirs(dirname, exist_ok=True)


def check_isfile(fpath: str) -> bool:
    """Whether `fpath` is a file; warns if not."""
    found = os.path.isfile(fpath)
    if not found:
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return found


def listdir_nohidden(path: str, sort: bool = False) -> list[str]:
    """The names in a folder that do not start with a dot."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def read_json(fpath: str | os.PathLike):
    """The object in a JSON file."""
    with open(fpath, encoding="utf-8") as file:
        return json.load(file)


def write_json(obj, fpath: str | os.PathLike) -> None:
    """Write an object as JSON: indented by 4, ASCII only; atomic."""
    write_atomically(fpath, json.dumps(obj, indent=4, separators=(",", ": ")))


def read_image(path: str | os.PathLike) -> Image.Image:
    """An image file as RGB."""
    with Image.open(path) as image:
        return image.convert("RGB")


def download_url(url: str, dst: str) -> None:
    """Fetch a file; `dst` is complete or absent."""
    log.info(f'Downloading "{url}" to "{dst}"')
    with urllib.request.urlopen(url) as response:
        write_atomically(dst, response.read())


# Random numbers

def set_random_seed(seed: int) -> None:
    """Seed the global generators of Python, numpy, torch and all GPUs."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@functools.cache
def _drawn_seed() -> int:
    seed = random.SystemRandom().randrange(2**31)
    log.info(f"SEED is negative, drew {seed}")
    return seed


def run_seed(cfg) -> int:
    """SEED or, where that is negative, the seed drawn (and logged) once for this process."""
    return cfg.SEED if cfg.SEED >= 0 else _drawn_seed()


@contextlib.contextmanager
def random_state_kept(gpu: bool = True) -> Iterator[None]:
    """Whatever is drawn or seeded inside leaves the global generators as they were.

    `gpu=False` leaves the GPU's alone, which spares a wait for it.
    """
    python, legacy_numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpu = torch.cuda.get_rng_state() if gpu and torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy_numpy)
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu)


# Modules

def tolist_if_not(x) -> list:
    """A list as it is, anything else as the only item of one."""
    return x if isinstance(x, list) else [x]


def count_num_param(model: nn.Module | None = None, params: Iterable | None = None) -> int:
    """How many numbers a module, or an iterable of tensors or of {"params": tensor}, holds."""
    if model is not None:
        return sum(parameter.numel() for parameter in model.parameters())
    if params is None:
        raise ValueError("count_num_param needs a model or params, but got neither")
    return sum((item["params"] if isinstance(item, dict) else item).numel() for item in params)


def open_all_layers(model: nn.Module) -> None:
    """Train every parameter."""
    model.train()
    model.requires_grad_(True)


def open_specified_layers(model: nn.Module, open_layers: str | list[str]) -> None:
    """Train the named children and freeze the others; an unknown name raises ValueError."""
    names = [open_layers] if isinstance(open_layers, str) else list(open_layers)
    children = dict(model.named_children())
    if unknown := [name for name in names if name not in children]:
        raise ValueError(f"No child module is called {', '.join(unknown)}; choose from {', '.join(children)}")
    for name, child in children.items():
        child.train(name in names)
        child.requires_grad_(name in names)


_INITIALISERS = {
    "normal": lambda weight, gain: nn.init.normal_(weight, 0.0, gain),
    "xavier": lambda weight, gain: nn.init.xavier_normal_(weight, gain=gain),
    "kaiming": lambda weight, gain: nn.init.kaiming_normal_(weight, a=0, mode="fan_in"),
    "orthogonal": lambda weight, gain: nn.init.orthogonal_(weight, gain=gain),
}


def init_network_weights(model: nn.Module, init_type: str = "normal", gain: float = 0.02) -> None:
    """Draw linear and convolutional weights afresh; biases become 0, normalisation layers the identity."""
    if init_type not in _INITIALISERS:
        raise ValueError(f"Unknown init_type {init_type!r}; choose from {', '.join(_INITIALISERS)}")
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            _INITIALISERS[init_type](module.weight.data, gain)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm | nn.InstanceNorm1d | nn.InstanceNorm2d):
            if module.weight is not None:
                nn.init.ones_(module.weight)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# The machine

def collect_env_info() -> str:
    """A report on torch, the drivers and Pillow; takes seconds, since it runs external commands."""
    return f"{collect_env.get_pretty_env_info()}\n        Pillow ({PIL.__version__})"
