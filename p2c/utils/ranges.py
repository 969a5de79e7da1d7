"""What a setting may be, and how a configuration is compared with that: by its key, its value and the range in words.

Imports nothing heavy: the tables of ranges stand beside the keys, in p2c/config.py and p2c/engine/config.py.
"""
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

KINDS = {bool: "True or False", str: "text", int: "a number", float: "a number", list: "a list", tuple: "a list"}
MISSING = object()


class Range(NamedTuple):
    """Whether a value is one of those that a setting may have, given the whole configuration; and which these are."""

    holds: Callable[[Any, Any], bool]
    words: str


def number(value) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def at_least(least: float) -> Range:
    return Range(lambda value, cfg: number(value) and value >= least, f"it must be a finite number, at least {least}")


def above(bound: float) -> Range:
    return Range(lambda value, cfg: number(value) and value > bound, f"it must be a finite number above {bound}")


def between(low: float, high: float) -> Range:
    return Range(lambda value, cfg: number(value) and low <= value <= high, f"it must be a number from {low} to {high}")


def whole(least: int, most: int | None = None) -> Range:
    """A whole number, `most` included."""
    return Range(lambda value, cfg: type(value) is int and least <= value and (most is None or value <= most),
                 f"it must be a whole number, at least {least}" if most is None else
                 f"it must be a whole number from {least} to {most}")


def one_of(*choices: str) -> Range:
    return Range(lambda value, cfg: value in choices, f"choose from {', '.join(choices)}")


def several(holds: Callable[[float], bool], count: int, words: str) -> Range:
    """So many finite numbers, each of which `holds`; `words` say what they are."""
    return Range(lambda value, cfg: len(value) == count and all(number(entry) and holds(entry) for entry in value),
                 f"it must be {words}")


def flatten(tree: Mapping, prefix: str = "") -> dict:
    """Dotted key to value."""
    flat = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def faults(cfg, defaults: Mapping, ranges: Mapping[str, Range]) -> list[str]:
    """What is wrong with the settings that `defaults` names, an entry each; those that `cfg` lacks are passed over.

    Beside values out of their ranges these are None and, of numbers, NaN and the infinities, which no setting may be.
    """
    found = []
    for key, default in flatten(defaults).items():
        value = lookup(cfg, key)
        if value is MISSING:
            continue
        if key in ranges:
            if not _holds(ranges[key], value, cfg):
                found.append(f"{key} is {value!r}; {ranges[key].words}")
        elif value is None and default is not None:
            found.append(f"{key} is None; it must be {KINDS[type(default)]}")
        elif isinstance(value, float) and not math.isfinite(value):
            found.append(f"{key} is {value!r}; it must be a finite number")
    return found


def lookup(cfg, key: str):
    """The value of a dotted key, or MISSING."""
    for part in key.split("."):
        if part not in cfg:
            return MISSING
        cfg = cfg[part]
    return cfg


def _holds(range_: Range, value, cfg) -> bool:
    try:
        return range_.holds(value, cfg)
    except (TypeError, OverflowError):  # a value of another type, or a whole number beyond floats
        return False
