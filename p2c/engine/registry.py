"""Tables of trainers, data sets and evaluators by name, and the builders that look a config's choice up in them."""
from collections.abc import Callable, Iterable
from difflib import SequenceMatcher

from p2c.utils.logs import get_logger

log = get_logger(__name__)


class Registry:
    """Objects by their `__name__`.

    Use as a decorator (`@REGISTRY.register()`, which returns the object) or as a call (`REGISTRY.register(obj)`).
    Where two have one name, an object of this package's gives way to one from elsewhere (a plugin's).
    """

    def __init__(self, name: str):
        self._name = name
        self._objects = {}

    def register(self, obj=None, force: bool = False):
        """Add an object; a name that is taken raises KeyError unless `force` replaces it."""
        if obj is None:
            def decorator(decorated):
                self._add(decorated, force)
                return decorated
            return decorator
        self._add(obj, force)

    def _add(self, obj, force: bool) -> None:
        name = obj.__name__
        if name in self._objects and not force:
            ours, new_is_ours = _is_ours(self._objects[name]), _is_ours(obj)
            if ours == new_is_ours:
                raise KeyError(f'An object named "{name}" was already registered in "{self._name}" registry')
            if new_is_ours:
                return  # somebody's own object keeps the name, whichever was imported first
        self._objects[name] = obj

    def get(self, name: str):
        """The object called `name`; KeyError if there is none."""
        if name not in self._objects:
            raise KeyError(f'Object name "{name}" does not exist in "{self._name}" registry')
        return self._objects[name]

    def registered_names(self) -> list[str]:
        """All names, in the order of registration."""
        return list(self._objects)


def _is_ours(obj) -> bool:
    return obj.__module__.partition(".")[0] == __name__.partition(".")[0]


TRAINER_REGISTRY = Registry("TRAINER")
DATASET_REGISTRY = Registry("DATASET")
EVALUATOR_REGISTRY = Registry("EVALUATOR")


def get_most_similar_str_to_a_from_b(a: str, b: Iterable[str]) -> str | None:
    """The string of `b` most like `a`, the last one on ties; None when `b` is empty."""
    best, best_ratio = None, 0.0
    for candidate in b:
        ratio = SequenceMatcher(None, a, candidate).ratio()
        if ratio >= best_ratio:
            best, best_ratio = candidate, ratio
    return best


def check_availability(requested: str, available: list[str]) -> None:
    """Raise ValueError with the choices and a guess unless `requested` is one of `available`."""
    if requested not in available:
        guess = get_most_similar_str_to_a_from_b(requested, available)
        raise ValueError(
            f"The requested one is expected to belong to {available}, but got [{requested}] (do you mean [{guess}]?)"
        )


def _look_up(registry: Registry, kind: str, name: str, verbose: bool) -> Callable:
    check_availability(name, registry.registered_names())
    if verbose:
        log.info(f"Loading {kind}: {name}")
    return registry.get(name)


def build_trainer(cfg):
    """The trainer that TRAINER.NAME asks for."""
    return _look_up(TRAINER_REGISTRY, "trainer", cfg.TRAINER.NAME, cfg.VERBOSE)(cfg)


def build_dataset(cfg):
    """The data set that DATASET.NAME asks for."""
    return _look_up(DATASET_REGISTRY, "dataset", cfg.DATASET.NAME, cfg.VERBOSE)(cfg)


def build_evaluator(cfg, **kwargs):
    """The evaluator that TEST.EVALUATOR asks for; `kwargs` go to it."""
    return _look_up(EVALUATOR_REGISTRY, "evaluator", cfg.TEST.EVALUATOR, cfg.VERBOSE)(cfg, **kwargs)
