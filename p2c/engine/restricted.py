"""Restricted unpickling: untrusted files cannot run code.

Files that real Dassl wrote hold objects of its own classes and of torch's. `Unpickler` (and with it this module, as the
`pickle_module` of torch.load) allows tensors and plain containers and replaces everything else by inert objects;
`read_legacy_pickle` allows Dassl's Datum and plain containers and rejects everything else.

A pickle can also set attributes of the objects it is given (the BUILD opcode does, even on a class or a function).
Therefore it is given only Python's own containers, which have none to set, and objects created for this one read.
"""
import collections
import os
import pickle
from collections.abc import Callable
from typing import BinaryIO

import torch

from p2c.engine.datasets import Datum

CONTAINERS = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("builtins", "dict"): dict,
    ("builtins", "list"): list,
    ("builtins", "set"): set,
}

TENSORS = {
    ("torch._utils", name): getattr(torch._utils, name)
    for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
}

FIELDS = {"_impath": str, "_label": int, "_domain": int, "_classname": str}  # of a Datum


class Rebuild:
    """Wraps a torch function that a file may call; rejects attempts to set its attributes."""

    __slots__ = ("function",)

    def __init__(self, function: Callable):
        self.function = function

    def __call__(self, *args):
        return self.function(*args)

    def __setstate__(self, state):
        raise ValueError(f"it sets attributes of {self.function.__name__}")


class Inert:
    """Replaces an object that is not allowed: accepts everything a pickle does to it and keeps nothing."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        return self

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        pass

    def extend(self, items):
        pass

    def add(self, item):
        pass


class Unpickler(pickle.Unpickler):
    """Allows tensors and plain containers; any other global becomes inert."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._inert = type("Inert", (Inert,), {})
        self._admitted = {**CONTAINERS, **{key: Rebuild(function) for key, function in TENSORS.items()}}

    def find_class(self, module, name):
        return self._admitted.get((module, name), self._inert)


def load(file: BinaryIO, **kwargs):
    """Load a pickle with `Unpickler`; torch.load calls this for files of the old format."""
    return Unpickler(file, **kwargs).load()


def plain(value):
    """Return a copy in which everything but tensors, plain values and containers is None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)(plain(item) for item in value)
    return value if isinstance(value, torch.Tensor | bool | int | float | str | bytes) else None


class StoredDatum:
    """Replaces a Datum: keeps the attributes that a pickle sets as `fields`."""

    def __setstate__(self, state):
        self.fields = state


class _DatumUnpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.datum = type("Datum", (StoredDatum,), {})
        self._admitted = {**CONTAINERS, ("dassl.data.datasets.base_dataset", "Datum"): self.datum}

    def find_class(self, module, name):
        if (module, name) not in self._admitted:
            raise ValueError(f"it asks for {module}.{name}, which is neither Dassl's Datum nor a plain container")
        return self._admitted[module, name]


def read_legacy_pickle(path: str | os.PathLike) -> dict[str, list]:
    """Read a few-shot cache of CoOp or Dassl: a dict of lists of Datum, whose image files need not exist.

    Raises:
        ValueError: the file asks for or holds anything else, or is damaged; no code has run.
    """
    with open(path, "rb") as file:
        try:
            content = _DatumUnpickler(file).load()
        except Exception as error:  # damaged files make pickle raise almost any exception
            reason = str(error) or type(error).__name__
            raise ValueError(f'Cannot read the pickle "{os.fspath(path)}": {reason}; delete it') from error
    try:
        return _to_datums(content)
    except TypeError as error:
        raise ValueError(f'The pickle "{os.fspath(path)}" holds no dict of lists of Datum: {error}; delete it') \
            from error


def _to_datums(content) -> dict[str, list]:
    """Convert each StoredDatum to a Datum, a repeated one to the same Datum. Raise TypeError for anything else."""
    if not isinstance(content, dict):
        raise TypeError(f"it is a {type(content).__name__}")
    made: dict[int, Datum] = {}
    converted = {}
    for key, items in dict.items(content):  # the file may have set an attribute `items` of an OrderedDict
        if not isinstance(items, list):
            raise TypeError(f"{key!r} is a {type(items).__name__}")
        for item in items:
            if id(item) not in made:
                made[id(item)] = _to_datum(item)
        converted[key] = [made[id(item)] for item in items]
    return converted


def _to_datum(item) -> Datum:
    if not isinstance(item, StoredDatum):
        raise TypeError(f"an item is a {type(item).__name__}")
    fields = vars(item).get("fields")
    if not isinstance(fields, dict):
        raise TypeError("an item has no fields")
    for name, kind in FIELDS.items():
        if type(fields.get(name)) is not kind:
            raise TypeError(f"the {name} of an item is {fields.get(name)!r}, not of type {kind.__name__}")
    impath, label, domain, classname = (fields[name] for name in FIELDS)
    return Datum(impath, label, domain, classname, check=False)
