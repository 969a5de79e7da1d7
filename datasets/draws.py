"""The draw of a few shots, CoOp's item for item, and the file that remembers it.

The file is JSON: what was drawn, from which split (its hash), for how many shots and which seed. It is used only if all
of that agrees; the draw is a function of split, shots and seed, so anything else is drawn again.
"""
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from p2c.datasets.splits import Item, Split
from p2c.engine.datasets import Datum, sample_shots
from p2c.engine.files import read_json, write_json
from p2c.engine.restricted import read_legacy_pickle
from p2c.utils.logs import get_logger

log = get_logger(__name__)

VAL_SHOTS = 4  # at most so many validation images a class accompany a draw, as in CoOp
FORMAT, VERSION = "p2c-fewshot", 1


def draw(split: Split, shots: int, seed: int) -> tuple[list[Item], list[Item]]:
    """Draw `shots` training images of each class, then up to VAL_SHOTS validation images, from one generator.

    A class with fewer images gives all of them.
    """
    rng = random.Random(seed)

    def drawn(items: Sequence[Item], number: int) -> list[Item]:
        log.info(f"Creating a {number}-shot dataset")
        return sample_shots(items, number, rng=rng)

    train = drawn(split.train, shots)
    return train, drawn(split.val, min(shots, VAL_SHOTS))


def remembered_draw(path: Path, split: Split, shots: int, seed: int, dataset: str) -> tuple[list[Item], list[Item]]:
    """Return `draw` of the arguments, from a file that remembers it if there is one, and write that file if not."""
    key = {"format": FORMAT, "version": VERSION, "dataset": dataset, "shots": shots,
           "val_shots": min(shots, VAL_SHOTS), "seed": seed, "split_sha256": split.digest}
    kept = _read(path, key, split)
    if kept is not None:
        log.info(f"Loading preprocessed few-shot data from {path}")
        return kept
    train, val = draw(split, shots, seed)
    counts = {"train": len(train), "val": len(val)}
    try:
        write_json({**key, "counts": counts, "train": train, "val": val}, path)
        log.info(f"Saving preprocessed few-shot data to {path}")
    except OSError as error:  # the same draw can be made again
        log.info(f"The draw is not kept in {path}: {error}")
    return train, val


def _read(path: Path, key: dict, split: Split) -> tuple[list[Item], list[Item]] | None:
    """Return the draw in a file; if it is not of this split, shots and seed, log why and return None."""
    try:
        content = read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.info(f"{path} is not used, the shots are drawn again: {error}")
        return None
    try:
        changed = [name for name, value in key.items() if content[name] != value]
        train, val = ([Item(*item) for item in content[part]] for part in ("train", "val"))
        if not changed and content["counts"] != {"train": len(train), "val": len(val)}:
            changed = ["counts"]
        if not changed and not (_belongs(train, split.train) and _belongs(val, split.val)):
            changed = ["images"]
    except (KeyError, TypeError) as error:
        changed = [f"{type(error).__name__}: {error}"]
    if changed:
        log.info(f"{path} is not used, the shots are drawn again: it is of another draw ({', '.join(changed)})")
        return None
    return train, val


def _belongs(items: Sequence[Item], part: Sequence[Item]) -> bool:
    """Return whether all items belong to a part of the split, and none is there twice."""
    chosen = set(items)
    return len(chosen) == len(items) and len(chosen.intersection(part)) == len(chosen)


def read_upstream_draw(path: Path, split: Split) -> tuple[list[Item], list[Item]] | None:
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
    return drawn["train"], drawn["val"]


def _suffixes(item: Datum) -> Iterable[tuple[str, int]]:
    """Yield (end of the item's path, its label) for every number of path components, longest first."""
    parts = PurePosixPath(item.impath.replace("\\", "/")).parts
    return (("/".join(parts[start:]), item.label) for start in range(len(parts)))


def short_classes(split: Split, shots: int) -> dict[str, int]:
    """Return the classes with fewer training images than shots, and how many they have, for messages."""
    counts = Counter(item.label for item in split.train)
    names = {item.label: item.classname for item in split.train}
    return {f"{names[label]} ({label})": count for label, count in sorted(counts.items()) if count < shots}
