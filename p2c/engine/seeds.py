"""The global random generators: seeding them, and leaving them as they were."""
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
    """Have a GPU compute sums in one order, from here on in this process; operations that cannot do so raise."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


@functools.cache
def _drawn_seed() -> int:
    seed = from_main(lambda: random.SystemRandom().randrange(2**31))
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
    cuda = torch.cuda.get_rng_state() if gpu and torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy_numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)
