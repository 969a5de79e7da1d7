"""The entries of the tables of settings, and how a configuration is compared with them.

Imports nothing heavy: the tables are `SETTINGS` in p2c/config.py and p2c/engine/config.py.
"""
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

MISSING = object()


class Range(NamedTuple):
    """The values that a setting may have, as a test of a value and the whole configuration, and in words."""

    test: Callable[[Any, Any], bool]
    words: str

    def holds(self, value, cfg) -> bool:
        """Return whether a value, of whatever type, is in the range."""
        try:
            return self.test(value, cfg)
        except (TypeError, OverflowError):  # a value of another type, or a whole number beyond floats
            return False


class Setting(NamedTuple):
    """What a setting is unless it is given, what it may be, and what it means."""

    default: Any
    range: Range
    meaning: str


def number(value) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


TEXT = Range(lambda value, cfg: isinstance(value, str), "it must be text")
SWITCH = Range(lambda value, cfg: isinstance(value, bool), "it must be True or False")
NUMBER = Range(lambda value, cfg: number(value), "it must be a finite number")
LIST = Range(lambda value, cfg: isinstance(value, list | tuple), "it must be a list")


def at_least(least: float) -> Range:
    return Range(lambda value, cfg: number(value) and value >= least, f"it must be a finite number, at least {least}")


def above(bound: float) -> Range:
    return Range(lambda value, cfg: number(value) and value > bound, f"it must be a finite number above {bound}")


def between(low: float, high: float) -> Range:
    return Range(lambda value, cfg: number(value) and low <= value <= high, f"it must be a number from {low} to {high}")


def whole(least: float = -math.inf, most: float = math.inf) -> Range:
    """Return the whole numbers within two bounds, both included."""
    bounds = "" if least == -math.inf else f", at least {least}" if most == math.inf else f" from {least} to {most}"
    return Range(lambda value, cfg: type(value) is int and least <= value <= most, f"it must be a whole number{bounds}")


def one_of(*choices: str) -> Range:
    return Range(lambda value, cfg: value in choices, f"choose from {', '.join(choices)}")


def several(holds: Callable[[float], bool], count: int, words: str) -> Range:
    """Return the lists of so many finite numbers, each of which `holds`; `words` say what they are."""
    return Range(lambda value, cfg: len(value) == count and all(number(entry) and holds(entry) for entry in value),
                 f"it must be {words}")


# The range of a setting that is in no table, such as a plugin's, by the type of its default.
KINDS = {bool: SWITCH, str: TEXT, int: whole(), float: NUMBER, list: LIST, tuple: LIST,
         type(None): Range(lambda value, cfg: True, "it may be anything")}


def flatten(tree: Mapping, prefix: str = "") -> dict:
    """Return the leaves of a tree by their dotted keys."""
    flat = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def defaults(table: Mapping) -> dict:
    """Return a table's tree with the default of each setting in its place."""
    return {key: defaults(entry) if isinstance(entry, dict) else entry.default for key, entry in table.items()}


def faults(cfg, table: Mapping) -> list[str]:
    """Return what is out of its range among a table's settings, a line each; those that `cfg` lacks are passed over."""
    values = ((key, setting.range, lookup(cfg, key)) for key, setting in flatten(table).items())
    return [f"{key} is {value!r}; {range_.words}" for key, range_, value in values
            if value is not MISSING and not range_.holds(value, cfg)]


def lookup(cfg, key: str):
    """Return the value of a dotted key, or MISSING."""
    for part in key.split("."):
        if part not in cfg:
            return MISSING
        cfg = cfg[part]
    return cfg
