"""The entries of the settings tables, and checks of a configuration against them.

The tables are `SETTINGS` in p2c/config.py and p2c/engine/config.py. This module imports nothing heavy.
"""
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Range(NamedTuple):
    """The allowed values of a setting, as a test of (value, whole configuration) and in words."""

    test: Callable[[Any, Any], bool]
    words: str

    def holds(self, value: Any, cfg: Any) -> bool:
        """Return whether a value of any type is in the range."""
        try:
            return self.test(value, cfg)
        except (TypeError, OverflowError):  # a value of another type, or an int too large for a float
            return False


class Setting(NamedTuple):
    """A setting's default, range and meaning."""

    default: Any
    range: Range
    meaning: str


def number(value: Any) -> bool:
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
    """Return the range of whole numbers within two inclusive bounds."""
    if most != math.inf:
        bounds = f" from {least} to {most}"
    else:
        bounds = "" if least == -math.inf else f", at least {least}"
    return Range(lambda value, cfg: type(value) is int and least <= value <= most, f"it must be a whole number{bounds}")


def one_of(*choices: str) -> Range:
    return Range(lambda value, cfg: value in choices, f"choose from {', '.join(choices)}")


def several(holds: Callable[[float], bool], count: int, words: str) -> Range:
    """Return the range of lists of `count` finite numbers for each of which `holds` is true, described by `words`."""
    return Range(lambda value, cfg: len(value) == count and all(number(entry) and holds(entry) for entry in value),
                 f"it must be {words}")


# The ranges of settings that are in no table, such as a plugin's, by the types of their defaults.
KINDS = {bool: SWITCH, str: TEXT, int: whole(), float: NUMBER, list: LIST, tuple: LIST,
         type(None): Range(lambda value, cfg: True, "it may be anything")}


def flatten(tree: Mapping, prefix: str = "") -> dict:
    """Return the leaves of a tree by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def defaults(table: Mapping) -> dict:
    """Return a table with each setting replaced by its default."""
    return {key: defaults(entry) if isinstance(entry, dict) else entry.default for key, entry in table.items()}


def faults(cfg: Any, table: Mapping) -> list[str]:
    """Return one line for each of a table's settings that is out of range; settings that `cfg` lacks are skipped."""
    values = flatten(cfg)
    return [f"{key} is {values[key]!r}; {setting.range.words}" for key, setting in flatten(table).items()
            if key in values and not setting.range.holds(values[key], cfg)]
