"""How much memory is free for activations."""
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")  # of the container that the process runs in, if any (version 2)
MEMINFO = Path("/proc/meminfo")
UNKNOWN = 4 << 30  # bytes that are assumed where the system does not say


def free_memory(device: torch.device) -> int:
    """Bytes that new tensors may take on the device: on a GPU of the device's memory, else of the machine's."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    available = UNKNOWN
    if MEMINFO.is_file():
        entries = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        available = int(entries["MemAvailable"].split()[0]) << 10
    limit = CGROUP / "memory.max"
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        # What is not anonymous memory is mostly cached files, which give way.
        entries = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        available = min(available, int(text) - int(entries["anon"]))
    return max(0, available)
