"""Registries of trainers, datasets and evaluators by name, and the functions that build what a config names."""
from collections.abc import Callable, Iterable
from difflib import SequenceMatcher
from typing import Any

from p2c.utils.logs import get_logger

log = get_logger(__name__)


class Registry:
    """Objects by their `__name__`.

    Register with a decorator (`@REGISTRY.register()`) or a call (`REGISTRY.register(obj)`). If an object of this
    package and another one, such as a plugin's, have the same name, the other one takes precedence.
    """

    def __init__(self, name: str):
        self._name = name
        self._objects: dict[str, Any] = {}

    def register(self, obj=None, force: bool = False):
        """Add an object. Raise KeyError if its name is taken, unless `force` is set."""
        if obj is None:
            def decorator(decorated):
                self.register(decorated, force)
                return decorated
            return decorator
        name = obj.__name__
        if name in self._objects and not force:
            ours, new_is_ours = (each.__module__.startswith("p2c.") for each in (self._objects[name], obj))
            if ours == new_is_ours:
                raise KeyError(f'An object named "{name}" was already registered in "{self._name}" registry')
            if new_is_ours:
                return None  # the other object keeps the name, whichever was imported first
        self._objects[name] = obj
        return None

    def get(self, name: str):
        """Return the object called `name`. Raise KeyError if there is none."""
        if name not in self._objects:
            raise KeyError(f'Object name "{name}" does not exist in "{self._name}" registry')
        return self._objects[name]

    def registered_names(self) -> list[str]:
        """Return all names, in order of registration."""
        return list(self._objects)


TRAINER_REGISTRY = Registry("TRAINER")
DATASET_REGISTRY = Registry("DATASET")
EVALUATOR_REGISTRY = Registry("EVALUATOR")


def get_most_similar_str_to_a_from_b(a: str, b: Iterable[str]) -> str | None:
    """Return the string of `b` most similar to `a`, the last one on ties; None if `b` is empty."""
    return max(reversed(list(b)), key=lambda candidate: SequenceMatcher(None, a, candidate).ratio(), default=None)


def check_availability(requested: str, available: list[str]) -> None:
    """Raise ValueError, with the choices and the most similar one, unless `requested` is one of `available`."""
    if requested not in available:
        guess = get_most_similar_str_to_a_from_b(requested, available)
        raise ValueError(f"The requested one is expected to belong to {available}, but got [{requested}] "
                         f"(do you mean [{guess}]?)")


def _look_up(registry: Registry, kind: str, name: str, verbose: bool) -> Callable:
    check_availability(name, registry.registered_names())
    if verbose:
        log.info(f"Loading {kind}: {name}")
    return registry.get(name)


def build_trainer(cfg):
    """Build the trainer TRAINER.NAME."""
    return _look_up(TRAINER_REGISTRY, "trainer", cfg.TRAINER.NAME, cfg.VERBOSE)(cfg)


def build_dataset(cfg):
    """Build the dataset DATASET.NAME."""
    return _look_up(DATASET_REGISTRY, "dataset", cfg.DATASET.NAME, cfg.VERBOSE)(cfg)


def build_evaluator(cfg, **kwargs):
    """Build the evaluator TEST.EVALUATOR with `kwargs`."""
    return _look_up(EVALUATOR_REGISTRY, "evaluator", cfg.TEST.EVALUATOR, cfg.VERBOSE)(cfg, **kwargs)
