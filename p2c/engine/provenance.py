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
    described = describe_checkout(Path(p2c.__file__).resolve().parents[1])
    commit, _, dirty = (described or "").partition("-")
    return {"version": p2c.__version__, "commit": commit or None, "dirty": bool(dirty) if commit else None}


def describe_checkout(root: Path) -> str | None:
    """Return the commit of a checkout, followed by "-dirty" if tracked files differ from it.

    Return None if the folder is not the root of one, or git cannot tell.
    """
    if not (root / ".git").exists():
        return None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def machine(device: torch.device) -> dict:
    """Return the device, the GPU's name, and the number of CPU threads, on which sums may depend."""
    return {
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
    }
