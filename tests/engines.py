"""The engines that the contract tests run on: this package's and, where it can be imported, real Dassl.

Both live in one process here. This package's trainers run on its own engine all the same, which p2c.framework has
chosen before Dassl comes in.
"""
import importlib
import os
import sys
from types import SimpleNamespace

import p2c.engine
import p2c.framework  # noqa: F401 (must come before real Dassl)
from p2c import compat

# Where Dassl has the names that p2c.engine has in one place.
MODULES = (
    "config", "data", "data.data_manager", "data.datasets", "data.samplers", "data.transforms", "engine", "evaluation",
    "metrics", "optim", "utils",
)


def names_of(name: str) -> SimpleNamespace:
    """What an engine, "p2c" or "dassl", has of Dassl's public names, and its `name`.

    Raises:
        compat.EngineError: real Dassl cannot be imported.
    """
    modules = [p2c.engine]
    if name == compat.DASSL:
        compat.import_dassl()
        modules = [importlib.import_module(f"dassl.{module}") for module in MODULES]
    names = {key: getattr(module, key) for module in modules for key in p2c.engine.__all__ if hasattr(module, key)}
    return SimpleNamespace(name=name, **names)


def report() -> str:
    """Which engines the tests of this process run on."""
    try:
        names_of(compat.DASSL)
    except compat.EngineError as error:
        return f"engines: p2c; real Dassl cannot be imported: {error.__cause__}"
    dassl = sys.modules["dassl"]
    return f"engines: p2c, real Dassl {dassl.__version__} in {os.path.dirname(dassl.__file__)}"
