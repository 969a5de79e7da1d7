"""The draw of a few shots, CoOp's item for item."""
import random
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from p2c.datasets.splits import Item, Split
from p2c.engine.datasets import Datum, sample_shots
from p2c.engine.restricted import read_legacy_pickle
from p2c.utils.logs import get_logger

log = get_logger(__name__)

VAL_SHOTS = 4  # at most so many validation images a class accompany a draw, as in CoOp


def draw(split: Split, shots: int, seed: int) -> Split:
    """Draw `shots` training images of each class, then up to VAL_SHOTS validation images, from one generator.

    A class with fewer images gives all of them.
    """
    rng = random.Random(seed)

    def drawn(items: list[Item], number: int) -> list[Item]:
        log.info(f"Creating a {number}-shot dataset")
        return sample_shots(items, number, rng=rng)

    train = drawn(split.train, shots)
    return Split(train, drawn(split.val, min(shots, VAL_SHOTS)), split.test)


def read_upstream_draw(path: Path, split: Split) -> Split | None:
    """Return a draw that CoOp or MaPLe pickled, as items of this split; if it is of another, log a line, return None.

    The absolute paths in the pickle are matched with the split's by their ends.

    Raises:
        ValueError: the file is no such pickle.
    """
    cached = read_legacy_pickle(path)
    drawn: dict[str, list[Item]] = {}
    for part, items in (("train", split.train), ("val", split.val)):
        known = {(str(PurePosixPath(item.path)), item.label): item for item in items}
        matched = [next((known[key] for key in _suffixes(item) if key in known), None) for item in cached.get(part, [])]
        drawn[part] = [item for item in matched if item is not None]
        if len(drawn[part]) < len(matched) or (items and not matched):
            log.warning(f"{path} is not used: it holds {part} images that the split does not have")
            return None
    log.info(f"Loading preprocessed few-shot data from {path}")
    return split._replace(**drawn)


def _suffixes(item: Datum) -> Iterable[tuple[str, int]]:
    """Yield (end of the item's path, its label) for every number of path components, longest first."""
    parts = PurePosixPath(item.impath.replace("\\", "/")).parts
    return (("/".join(parts[start:]), item.label) for start in range(len(parts)))
