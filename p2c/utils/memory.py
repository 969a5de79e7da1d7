"""The memory of a device."""
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")  # of the process's container, if any (cgroup version 2)
MEMINFO = Path("/proc/meminfo")
UNKNOWN = 4 << 30  # bytes assumed where the system does not tell


def total_memory(device: torch.device) -> int:
    """Return the total bytes of a GPU or, for a CPU, of the machine or its container, whether in use or not."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    total = _machine("MemTotal")
    return min(total, _limit() or total)


def _machine(entry: str) -> int:
    if not MEMINFO.is_file():
        return UNKNOWN
    entries = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
    return int(entries[entry].split()[0]) << 10


def _limit() -> int | None:
    """Return the container's limit in bytes, or None if there is none."""
    limit = CGROUP / "memory.max"
    text = limit.read_text().strip() if limit.is_file() else "max"
    return None if text == "max" else int(text)
