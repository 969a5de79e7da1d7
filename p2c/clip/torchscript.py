"""The tensors of a TorchScript archive, as OpenAI publishes CLIP in, without running the code that is in it.

torch.jit.load runs an archive's `__setstate__`, which may write files. Here the archive is a zip of pickled module
objects (data.pkl), their storages (data/KEY) and, as text, which of their tensors are parameters or buffers.
"""
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from p2c.engine.restricted import Unpickler

STORAGES = {"HalfStorage": torch.half, "BFloat16Storage": torch.bfloat16, "FloatStorage": torch.float,
            "DoubleStorage": torch.double, "ByteStorage": torch.uint8, "CharStorage": torch.int8,
            "ShortStorage": torch.short, "IntStorage": torch.int, "LongStorage": torch.long, "BoolStorage": torch.bool}
COMPRESSED = 2**24  # bytes that a compressed member may unpack to


class Module:
    """Stands for an object of one of the archive's classes: keeps its attributes."""

    declared = "", ""  # the class's file, and the name in it

    def __init__(self):
        self.attributes = {}

    def __setstate__(self, state):
        self.attributes = state if isinstance(state, dict) else {}


class ModuleUnpickler(Unpickler):
    """Admits tensors and plain containers, and makes a Module of each object of the archive's own classes."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(read_member(archive, f"{root}/data.pkl")))
        self.archive, self.root = archive, root

    def find_class(self, module, name):
        if module.partition(".")[0] == "__torch__":
            return type(name, (Module,), {"declared": (f"{self.root}/code/{module.replace('.', '/')}.py", name)})
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        return super().find_class(module, name)

    def persistent_load(self, identity):
        _, dtype, key, *_ = identity
        content = bytearray(read_member(self.archive, f"{self.root}/data/{key}"))
        storage = torch.frombuffer(content, dtype=torch.uint8).untyped_storage() if content else torch.UntypedStorage(0)
        return torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)


def is_torchscript(path: Path) -> bool:
    """Whether a file is a zip with the constants that only a TorchScript archive has."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return _root(archive) is not None


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers by name, as the state dict of the module in the archive.

    Raises some exception, whichever the damage leads to, for a file that is no whole archive.
    """
    with zipfile.ZipFile(path) as archive:
        root = ModuleUnpickler(archive, _root(archive)).load()
        return dict(_tensors(root, archive, ""))


def _root(archive: zipfile.ZipFile) -> str | None:
    found = (name.removesuffix("/constants.pkl") for name in archive.namelist() if name.endswith("/constants.pkl"))
    return next(found, None)


def _tensors(module: Module, archive: zipfile.ZipFile, prefix: str) -> Iterator[tuple[str, Tensor]]:
    file, name = module.declared
    code = read_member(archive, file).decode()
    lists = re.search(rf"^class {re.escape(name)}\(Module\):\n((?:  __(?:parameters|buffers)__ = .*\n)*)", code, re.M)
    own = set(re.findall(r'"([^"]+)"', lists[1]))
    for key, value in module.attributes.items():
        if isinstance(value, Module):
            yield from _tensors(value, archive, f"{prefix}{key}.")
        elif isinstance(value, Tensor) and key in own:
            yield prefix + key, value


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A member of reasonable size: torch compresses code, never tensors.

    Raises:
        ValueError: it is compressed and large.
    """
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED and info.file_size > COMPRESSED:
        raise ValueError(f"{name} is compressed, of {info.file_size} bytes")
    return archive.read(name)
