"""Named random streams: each kind of randomness is a function of (seed, name, step) alone.

So runs that differ in one setting share all other streams, all ranks of a distributed run draw the same noise, and a
resumed run needs no generator state.
"""
import hashlib

import torch


def seed_of(seed: int, name: str, step: int | str = 0) -> int:
    """Return a 63-bit seed that depends only on the three arguments."""
    digest = hashlib.sha256(f"{seed}/{name}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, name: str, step: int | str = 0) -> torch.Generator:
    """Return a new CPU generator for the stream `name` at `step`; draw on the CPU, then move the result."""
    return torch.Generator().manual_seed(seed_of(seed, name, step))
