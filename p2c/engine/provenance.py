"""What computed a result: the code's version, the packages', the device."""
import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

import p2c


def versions(dassl: str | None = None) -> dict[str, str | None]:
    """Return the versions of what computes; `dassl`: real Dassl's, where it runs the trainer."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "open_clip_torch": _version("open_clip_torch"),
        "numpy": np.__version__,
        "pillow": _version("pillow"),
        "cuda": torch.version.cuda,
        "p2c": p2c.__version__,
        "dassl": dassl,
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def code() -> dict:
    """The version of this package and, where it is a git checkout, the commit and whether tracked files differ from it.

    The last is None where git cannot tell.
    """
    root = Path(p2c.__file__).resolve().parents[1]
    found = commit(root)
    return {"version": p2c.__version__, "commit": found, "dirty": found and _dirty(root)}


def commit(root: Path) -> str | None:
    """The commit that a checkout is at; None where that is no checkout, or git cannot tell."""
    found = _git(root, "rev-parse", "--verify", "HEAD") if (root / ".git").exists() else None  # of no folder around it
    return found and found.strip()


def _dirty(root: Path) -> bool | None:
    status = _git(root, "status", "--porcelain", "--untracked-files=no")
    return None if status is None else bool(status)


def _git(root: Path, *words: str) -> str | None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(["git", "--no-optional-locks", *words], cwd=root, env=environment, capture_output=True,
                              text=True, errors="replace", timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def machine(device: torch.device) -> dict:
    """The device that computes, the GPU's name, and the CPU threads that sums may depend on."""
    return {
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
    }
