"""Merging of users' values into a configuration, from YAML files, KEY VALUE pairs and records.

An int is accepted where a float is meant, and a float for an int setting if its range holds it.
"""
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from p2c import config
from p2c.engine import config as engine
from p2c.utils.logs import get_logger
from p2c.utils.ranges import KINDS, Range, flatten

log = get_logger(__name__)

SETTINGS = {**flatten(engine.SETTINGS), **flatten(config.SETTINGS)}


def merge_file(cfg: CfgNode, path: str) -> list[str]:
    """Merge a YAML file, and return its keys. Raise FileNotFoundError or ValueError naming the file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"No configuration file {path}; the shipped ones are in configs/")
    if Path(path).suffix not in (".yaml", ".yml"):
        raise ValueError(f"The configuration file {path} must be YAML, and its name must end in .yaml")
    try:
        text = Path(path).read_text(encoding="utf-8")
        tree = yaml.safe_load(text)
        if not isinstance(tree, dict | None):
            came = "a list" if isinstance(tree, list) else f"only {str(tree)[:40]!r}"
            raise ValueError(f"it holds {came}; it must hold sections of settings, such as OPTIM: {{LR: 0.1}}")
        return merge_values(cfg, {key: decoded(value) for key, value in flatten(tree or {}).items()})
    except Exception as error:  # whatever the YAML reader raises is a fault of the file
        raise ValueError(f"{path} does not fit the configuration: {error}; correct the file") from error


def merge_pairs(cfg: CfgNode, words: Sequence[str]) -> list[str]:
    """Merge KEY VALUE pairs, and return the keys. Raise ValueError naming the key."""
    if len(words) % 2:
        raise ValueError(f"{words[-1]} has no value; settings are pairs, KEY VALUE")
    return merge_values(cfg, {key: decoded(word) for key, word in zip(words[::2], words[1::2], strict=True)})


def merge_values(cfg: CfgNode, values: Mapping) -> list[str]:
    """Merge all values by their dotted keys, and return the keys; raise ValueError and merge none if one is wrong."""
    fitting = {key: fitted(cfg, key, value) for key, value in values.items()}
    for key, value in fitting.items():
        *sections, leaf = key.split(".")
        node = cfg
        for section in sections:
            node = node[section]
        node[leaf] = value
    return list(fitting)


def setting_at(cfg: CfgNode, key: str, value: Any) -> Any:
    """Return what the configuration has under a dotted key. Raise ValueError if no value can be given to that."""
    node = cfg
    sections: list[str] = []
    for part in key.split("."):
        if not isinstance(node, dict):
            name = ".".join(sections)
            raise ValueError(f"{name} is one setting, not a section with {key.removeprefix(f'{name}.')} in it; "
                             f"{range_of(name, node).words}")
        if part not in node:
            known = flatten(cfg)
            close = difflib.get_close_matches(key.upper(), known) or ["those of `python -m p2c config settings`"]
            raise ValueError(f"There is no key {key}; choose from {', '.join(close)}")
        node = node[part]
        sections.append(part)
    if isinstance(node, dict):
        raise ValueError(f"{key} is a section of settings, but got {value}; choose from "
                         f"{', '.join(f'{key}.{name}' for name in flatten(node))}")
    return node


def fitted(cfg: CfgNode, key: str, value: Any) -> Any:
    """Return a value in the type of a setting. Raise ValueError if it does not fit, or the setting does not exist."""
    old = setting_at(cfg, key, value)
    kind = type(old)
    if value is None or old is None or type(value) is kind:
        return value  # None is out of the ranges
    if isinstance(value, list | tuple) and kind in (list, tuple):
        return kind(value)
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            pass
    # Dassl and published configurations give whole numbers for some settings that are not counts.
    if kind is int and type(value) is float and range_of(key, old).holds(value, cfg):
        return value
    text = f" (as KEY VALUE: {key} \"'{value}'\")" if kind is str and type(value) in (int, float, bool) else ""
    raise ValueError(f"{key} is {value!r}; {range_of(key, old).words}{text}")


def range_of(key: str, old: Any) -> Range:
    """Return a setting's range, from the tables or, if it has no entry there, from the type of its value."""
    return SETTINGS[key].range if key in SETTINGS else KINDS[type(old)]


def warn_of_unread(given: Sequence[str], trainer: type) -> None:
    """Warn of given keys that belong to other methods, and that a trainer therefore does not read.

    A trainer's `node` names the section of its own settings; there is no warning for a trainer without one.
    """
    node = getattr(trainer, "node", None)
    others = config.SETTINGS["TRAINER"].keys() - {node, *engine.SHARED_NODES}
    unread = [key for key in dict.fromkeys(given) if key.startswith("TRAINER.") and key.split(".")[1] in others]
    if node is not None and unread:
        log.warning(f"{trainer.__name__} does not read {', '.join(unread)}: the values given have no effect")


def decoded(value: Any) -> Any:
    """Return the value of a Python literal, and any other value as it is."""
    return CfgNode._decode_cfg_value(value)

