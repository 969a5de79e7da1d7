"""Provenance of a result: versions of code and packages, and the device."""
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
    """Return the versions of Python and packages; `dassl` is the version of real Dassl if that runs the trainer."""
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
    """Return this package's version and, in a git checkout, the commit and whether tracked files differ from it.

    Values that git cannot tell are None.
    """
    root = Path(p2c.__file__).resolve().parents[1]
    found = commit(root)
    return {"version": p2c.__version__, "commit": found, "dirty": _dirty(root) if found else None}


def commit(root: Path) -> str | None:
    """Return the commit of a checkout; None if the folder is not the root of one, or git cannot tell."""
    if not (root / ".git").exists():
        return None
    found = _git(root, "rev-parse", "--verify", "HEAD")
    return None if found is None else found.strip()


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
    """Return the device, the GPU's name, and the number of CPU threads, on which sums may depend."""
    return {
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
    }
