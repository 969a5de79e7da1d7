"""How much memory there is."""
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")  # of the container that the process runs in, if any (version 2)
MEMINFO = Path("/proc/meminfo")
UNKNOWN = 4 << 30  # bytes that are assumed where the system does not say


def total_memory(device: torch.device) -> int:
    """Bytes of a GPU or, for a CPU, of the machine (or its container); the same whatever else runs."""
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
    """Bytes that the container may take, if there is a limit."""
    limit = CGROUP / "memory.max"
    text = limit.read_text().strip() if limit.is_file() else "max"
    return None if text == "max" else int(text)
