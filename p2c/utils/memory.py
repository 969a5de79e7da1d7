"""The memory of a device."""
import os
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")  # of the process's container, if any (cgroup version 2)


def total_memory(device: torch.device) -> int:
    """Return the total bytes of a GPU or, for a CPU, of the machine or its container, whether in use or not."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if not hasattr(os, "sysconf"):  # Windows
        return 4 << 30
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = CGROUP / "memory.max"
    text = limit.read_text().strip() if limit.is_file() else "max"
    return total if text == "max" else min(total, int(text))
