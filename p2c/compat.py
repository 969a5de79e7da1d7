"""Coexistence of real Dassl and this package's engine.

`engine()` returns which of them runs. `patch_dassl()` and `provide_dassl()` take effect only when called: the first
fixes real Dassl in place, the second lets code written for Dassl run on this package's engine. Only this file and
`p2c.framework` import dassl.
"""
import functools
import importlib
import importlib.abc
import importlib.util
import logging
import os
import sys
from multiprocessing.reduction import ForkingPickler
from types import ModuleType

OURS, DASSL = "p2c", "dassl"
VARIABLE = "P2C_ENGINE"

WILDS = "dassl.data.datasets.dg.wilds"  # three datasets of real Dassl that need the packages wilds and pandas


class EngineError(ImportError):
    """The requested engine cannot run here."""


# Which engine


@functools.cache
def engine() -> str:
    """Return the engine of this process, decided once: "dassl" if real Dassl is imported already, else "p2c"."""
    return DASSL if has_real_dassl() else OURS


def choose_engine() -> None:
    """Follow the environment variable P2C_ENGINE ("p2c" or "dassl"); a program calls it first.

    Raises:
        EngineError: another value, or real Dassl cannot be imported; the message says why.
    """
    asked = os.environ.get(VARIABLE) or OURS
    if asked not in (OURS, DASSL):
        raise EngineError(f"{VARIABLE} is '{asked}'; choose from {OURS}, {DASSL}")
    if asked == DASSL:
        import_dassl()
        engine.cache_clear()


def has_real_dassl() -> bool:
    """Return whether this process has imported real Dassl's engine."""
    return not isinstance(sys.modules.get("dassl.engine"), Provided | None)


def dassl_version() -> str | None:
    """Return the version of real Dassl if it is the engine, else None."""
    return getattr(sys.modules.get("dassl"), "__version__", "unknown") if engine() == DASSL else None


def describe() -> str:
    """Describe the engine of this process, for a log."""
    if engine() == OURS:
        return "p2c"
    return f"real Dassl {dassl_version()} in {os.path.dirname(sys.modules['dassl'].__file__ or '')}"


def import_dassl() -> None:
    """Import real Dassl, keeping logging enabled and leaving out the datasets that need wilds if that is missing.

    Raises:
        EngineError: it cannot be imported; the message says why.
    """
    disabled = logging.root.manager.disable
    if not (_importable("wilds") and _importable("pandas")):
        sys.modules.setdefault(WILDS, ModuleType(WILDS))  # empty, so that `from .wilds import *` adds nothing
    try:
        for name in ("dassl.engine", "dassl.data.datasets", "dassl.config", "dassl.evaluation", "dassl.optim"):
            importlib.import_module(name)
    except Exception as error:  # a third party's package may raise anything when it is imported
        raise EngineError(f"Real Dassl cannot be imported ({type(error).__name__}: {error}); install it from "
                          f"github.com/KaiyangZhou/Dassl.pytorch, or leave {VARIABLE} unset to run on the engine of "
                          "this package") from error
    finally:
        logging.disable(disabled)


def _importable(name: str) -> bool:
    if name in sys.modules:
        return sys.modules[name] is not None
    return importlib.util.find_spec(name) is not None


def check_cfg(cfg) -> None:
    """Raise EngineError if a configuration is real Dassl's although our trainers run on this package's engine."""
    if has_real_dassl() and engine() == OURS and "MCD" in cfg.TRAINER:
        raise EngineError("p2c was imported before Dassl, so its trainers do not run on Dassl; move `import "
                          "p2c.trainers.p2c` below all imports of dassl")


# Fixes for real Dassl


def patch_dassl() -> None:
    """Fix real Dassl in place, for trainers that are written for it; docs/dassl.md lists the faults.

    The faulty functions are replaced by this package's, in Dassl and in every module that has imported them by name. A
    second call changes nothing. If wilds is missing, call it before anything imports Dassl. If this package's engine
    stands in for Dassl, it does nothing.

    Raises:
        EngineError: real Dassl cannot be imported.
    """
    if isinstance(sys.modules.get("dassl"), Provided):
        return
    import_dassl()
    from dassl.metrics import accuracy
    from dassl.optim import lr_scheduler
    from dassl.utils import torchtools

    from p2c.engine import checkpoint, evaluation, optim
    from p2c.engine.logger import log_to_stdout
    from p2c.utils.logs import speak_despite_disable

    speak_despite_disable()
    log_to_stdout()
    for theirs, ours in (
        (lr_scheduler.build_lr_scheduler, optim.build_lr_scheduler),
        (torchtools.load_checkpoint, checkpoint.read),
        (torchtools.resume_from_checkpoint, checkpoint.resume_from_checkpoint),
        (torchtools.load_pretrained_weights, checkpoint.load_pretrained_weights),
        (accuracy.compute_accuracy, evaluation.compute_accuracy),
    ):
        _replace(theirs, ours)


def _replace(old, new) -> None:
    """Replace `old` by `new` in all imported modules, under any name."""
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is old:
                setattr(module, name, new)


# Standing in for Dassl

# The modules of p2c.engine -> Dassl's modules that have their contents.
MODULES = {
    "config": ("dassl.config",),
    "data": ("dassl.data", "dassl.data.data_manager"),
    "datasets": ("dassl.data.datasets", "dassl.data.datasets.base_dataset"),
    "evaluation": ("dassl.evaluation", "dassl.evaluation.build", "dassl.evaluation.evaluator", "dassl.metrics",
                   "dassl.metrics.accuracy"),
    "logger": ("dassl.utils.logger",),
    "meters": ("dassl.utils.meters",),
    "optim": ("dassl.optim", "dassl.optim.lr_scheduler", "dassl.optim.optimizer"),
    "registry": ("dassl.data.datasets", "dassl.data.datasets.build", "dassl.engine", "dassl.engine.build",
                 "dassl.utils.registry"),
    "samplers": ("dassl.data.samplers",),
    "trainer": ("dassl.engine", "dassl.engine.trainer"),
    "transforms": ("dassl.data.transforms", "dassl.data.transforms.transforms"),
    "utils": ("dassl.utils", "dassl.utils.tools", "dassl.utils.torchtools"),
}


class Provided(ModuleType):
    """A module named as one of Dassl's, with the contents of this package's engine."""


class _MissingModules(importlib.abc.MetaPathFinder):
    """Raises a helpful error for Dassl's modules that this package does not provide."""

    def find_spec(self, fullname, path=None, target=None):
        """Raise ModuleNotFoundError for a module of Dassl's."""
        if fullname.startswith("dassl."):
            raise ModuleNotFoundError(f"{fullname} is not part of the engine of p2c, which stands in for Dassl here; "
                                      f"with real Dassl installed, {VARIABLE}=dassl runs on that", name=fullname)


def provide_dassl() -> None:
    """Make `import dassl` in this process import this package's engine, even if real Dassl is installed.

    For trainers and datasets that were written for Dassl. A second call changes nothing.

    Raises:
        EngineError: real Dassl has been imported already.
    """
    present = sys.modules.get("dassl")
    if isinstance(present, Provided):
        return
    if present is not None:
        raise EngineError("Real Dassl has been imported already, so this package's engine cannot stand in for it; call "
                          "provide_dassl() before anything imports dassl")
    from p2c.engine.datasets import Datum

    for source, names in MODULES.items():
        ours = importlib.import_module(f"p2c.engine.{source}")
        for name in names:
            module = _provided(name)
            module.__dict__.update({key: value for key, value in vars(ours).items() if not key.startswith("_")})
    sys.meta_path.insert(0, _MissingModules())
    # Real Dassl reads the few-shot files that a plugin pickles; worker processes, which may lack dassl, get our class.
    Datum.__module__ = "dassl.data.datasets.base_dataset"
    ForkingPickler.register(Datum, lambda item: (_datum, (item.impath, item.label, item.domain, item.classname)))


def _provided(name: str) -> ModuleType:
    """Return Dassl's module of this name, made with its parents if need be."""
    if not isinstance(sys.modules.get(name), Provided):
        module = sys.modules[name] = Provided(name, f"{name}, by the engine of p2c.")
        module.__path__ = []
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(_provided(parent), leaf, module)
    return sys.modules[name]


def _datum(impath: str, label: int, domain: int, classname: str):
    from p2c.engine.datasets import Datum

    return Datum(impath, label, domain, classname, check=False)
