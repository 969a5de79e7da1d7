"""Decoded images kept in memory, for all worker processes together.

An image is read from its file once, by whichever process needs it first. What is kept are the pixels as they were
decoded: whatever a transform makes of an image, it makes the same of a kept one.
"""
import mmap
import multiprocessing
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from p2c.engine.distributed import local_processes
from p2c.engine.files import read_image
from p2c.utils.logs import get_logger
from p2c.utils.memory import free_memory

log = get_logger(__name__)

AUTOMATIC, SHARE = -1, 4  # by itself the cache takes at most a quarter of the free memory


def cache_budget(cfg) -> int:
    """Bytes that DATALOADER.CACHE allows this process; none if workers could not share them or cfg lacks the key."""
    gib = cfg.DATALOADER.get("CACHE", 0)
    if cfg.DATALOADER.NUM_WORKERS and start_method() != "fork":
        return 0
    budget = free_memory() // SHARE if gib == AUTOMATIC else gib << 30
    return budget // local_processes()


def start_method() -> str:
    """How worker processes will be started: fork, spawn or forkserver."""
    return multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]


class ImageCache:
    """Reads images, and keeps those of `paths` as long as `budget` bytes hold them.

    Memory is taken as it is filled. Processes forked from the one that made the cache share it; any other copy of it
    keeps nothing and reads files.

    Raises:
        ValueError: the system does not give so much memory.
    """

    def __init__(self, paths: Sequence[str], budget: int):
        self.rows = {path: row for row, path in enumerate(dict.fromkeys(paths))}
        self.budget = budget
        try:
            self.pixels = mmap.mmap(-1, max(1, budget))
        except (OSError, OverflowError) as error:
            raise ValueError(f"The system does not give {budget / 2**30:.1f} GiB to keep images in ({error}); lower "
                             "DATALOADER.CACHE") from error
        table = mmap.mmap(-1, 24 * (len(self.rows) + 1))
        self.table = np.frombuffer(table, np.int64).reshape(-1, 3)  # of each image: start, width, height; width 0: none
        self.totals = self.table[-1]  # bytes in use, images that found no room
        self.lock = multiprocessing.get_context(start_method()).Lock()
        self.reported = False

    def __reduce__(self):
        return ImageCache, ((), 0)

    def read(self, path: str | os.PathLike) -> Image.Image:
        """What `read_image` gives, as an image of its own; raises what that raises."""
        row = self.rows.get(path)
        if row is None:
            return read_image(path)
        with self.lock:
            start, width, height = self.table[row].tolist()
        if width:
            return Image.frombytes("RGB", (width, height), memoryview(self.pixels)[start:start + 3 * width * height])
        image = read_image(path)
        self._keep(row, image)
        return image

    def _keep(self, row: int, image: Image.Image) -> None:
        size = 3 * image.width * image.height
        with self.lock:
            start = int(self.totals[0])
            if self.table[row, 1]:  # by another process meanwhile
                return
            if start + size > self.budget:
                self.totals[1] += 1
                return
            self.pixels[start:start + size] = image.tobytes()
            self.totals[0] = start + size
            self.table[row] = start, image.width, image.height

    def report(self) -> None:
        """Say once, when that is known, that not all images find room."""
        if self.totals[1] and not self.reported:
            self.reported = True
            kept = np.count_nonzero(self.table[:-1, 1])
            log.info(f"{kept} of {len(self.rows)} training images are kept decoded, in {self.totals[0] / 2**30:.1f} "
                     "GiB; the others are read again each epoch (DATALOADER.CACHE)")
