"""Restricted unpickling: untrusted files cannot run code.

Files that real Dassl wrote hold objects of its own classes and of torch's. `Unpickler` (and with it this module, as the
`pickle_module` of torch.load) allows tensors and plain containers and replaces everything else by inert objects;
`read_legacy_pickle` allows Dassl's Datum and plain containers and rejects everything else.

A pickle can also set attributes of the objects it is given (the BUILD opcode does, even on a class or a function).
Therefore it is given only Python's own containers, which have none to set, and objects created for this one read.
"""
import collections
import functools
import os
import pickle
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


class Inert:
    """Replaces an object that is not allowed: accepts everything a pickle does to it and keeps nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        return self

    def __setitem__(self, key, value):
        pass

    def __setstate__(self, state):
        pass

    append = extend = add = __setstate__


class Unpickler(pickle.Unpickler):
    """Allows tensors and plain containers; any other global becomes inert."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._inert = type("Inert", (Inert,), {})
        # A pickle that sets the state of a partial lets this one alone call something else that it was given.
        self._admitted = {**CONTAINERS, **{key: functools.partial(function) for key, function in TENSORS.items()}}

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

    Raise ValueError if the file asks for or holds anything else, or is damaged; no code has run.
    """
    with open(path, "rb") as file:
        try:
            content = _DatumUnpickler(file).load()
            if not isinstance(content, dict):
                raise TypeError(f"it is a {type(content).__name__}")
            # The file may have set an attribute `items` of an OrderedDict.
            return {key: _to_datums(items) for key, items in dict.items(content)}
        except Exception as error:  # damaged files make pickle raise almost any exception
            reason = str(error) or type(error).__name__
            raise ValueError(f'The pickle "{os.fspath(path)}" is no dict of lists of Datum: {reason}; delete it') \
                from error


def _to_datums(items) -> list[Datum]:
    """Convert a list of StoredDatum. Raise TypeError for anything else."""
    if not isinstance(items, list):
        raise TypeError(f"it holds a {type(items).__name__}")
    datums = []
    for item in items:
        fields = vars(item).get("fields") if isinstance(item, StoredDatum) else None
        if not isinstance(fields, dict) or any(type(fields.get(name)) is not kind for name, kind in FIELDS.items()):
            raise TypeError(f"an item lacks {', '.join(FIELDS)} of the right types")
        impath, label, domain, classname = (fields[name] for name in FIELDS)
        datums.append(Datum(impath, label, domain, classname, check=False))
    return datums
