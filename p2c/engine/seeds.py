"""Seeding and preserving the global random generators."""
import contextlib
import functools
import os
import random
from collections.abc import Iterator

import numpy as np
import torch

from p2c.engine.distributed import from_main
from p2c.utils.logs import get_logger

log = get_logger(__name__)


def set_random_seed(seed: int) -> None:
    """Seed the global generators of Python, numpy, torch and all GPUs."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def use_deterministic_algorithms() -> None:
    """Use deterministic algorithms from now on in this process; operations that have none raise."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads it


@functools.cache
def _drawn_seed() -> int:
    seed = from_main(lambda: random.SystemRandom().randrange(2**31))
    log.info(f"SEED is negative, drew {seed}")
    return seed


def run_seed(cfg) -> int:
    """Return SEED or, if that is negative, a seed that is drawn and logged once per process."""
    return cfg.SEED if cfg.SEED >= 0 else _drawn_seed()


@contextlib.contextmanager
def preserve_random_state(gpu: bool = True) -> Iterator[None]:
    """Restore the global generators after the block.

    `gpu=False` leaves out the GPU's, whose state can be read only after a wait for the device.
    """
    python, legacy_numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state() if gpu and torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy_numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)
