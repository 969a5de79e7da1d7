"""Reading pickles without trusting them: no code of the file's choosing runs.

Files that real Dassl wrote hold objects of its own classes and of torch's. `Unpickler` (and with it this module, as the
`pickle_module` of torch.load) admits tensors and plain containers and puts something inert in the place of the rest;
`read_legacy_pickle` admits Dassl's Datum and plain containers and refuses the rest.
"""
import collections
import os
import pickle
from typing import BinaryIO

import torch

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


class Inert:
    """Stands for an object that is not admitted: takes whatever a pickle does to it and keeps nothing."""

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
    """Admits tensors and plain containers; any other global becomes Inert."""

    def find_class(self, module, name):
        return {**CONTAINERS, **TENSORS}.get((module, name), Inert)


def load(file: BinaryIO, **kwargs):
    """pickle.load through `Unpickler`; torch.load calls it for files of the old format."""
    return Unpickler(file, **kwargs).load()


def plain(value):
    """A copy of what was read in which everything but tensors, plain values and containers is None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)(plain(item) for item in value)
    return value if isinstance(value, torch.Tensor | bool | int | float | str | bytes) else None


class _DatumUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        from p2c.engine.datasets import Datum
        admitted = {**CONTAINERS, ("dassl.data.datasets.base_dataset", "Datum"): Datum}
        if (module, name) not in admitted:
            raise ValueError(f"it asks for {module}.{name}, which is neither Dassl's Datum nor a plain container")
        return admitted[module, name]


def read_legacy_pickle(path: str | os.PathLike) -> dict[str, list]:
    """What a few-shot cache of CoOp or Dassl holds: a dict of lists of Datum, whose files need not exist.

    Raises ValueError, with nothing run, if the file asks for or holds anything else, or is damaged.
    """
    with open(path, "rb") as file:
        try:
            content = _DatumUnpickler(file).load()
        except Exception as error:  # damaged bytes drive the reader into almost any exception
            reason = str(error) or type(error).__name__
            raise ValueError(f'Cannot read the pickle "{os.fspath(path)}": {reason}; delete it') from error
    if not _is_draw(content):
        raise ValueError(f'The pickle "{os.fspath(path)}" holds no dict of lists of Datum; delete it')
    return content


def _is_draw(content) -> bool:
    from p2c.engine.datasets import Datum
    if not isinstance(content, dict) or not all(isinstance(items, list) for items in content.values()):
        return False
    return all(
        isinstance(item, Datum) and isinstance(getattr(item, "_impath", None), str)
        and isinstance(getattr(item, "_label", None), int)
        for items in content.values() for item in items
    )
