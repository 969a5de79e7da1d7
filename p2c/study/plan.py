"""A study as its YAML file describes it: the search space, what is compared, and the ablations. Nothing runs here."""
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from p2c.utils.console import one_line

Settings = dict[str, Any]  # dotted key -> value


@dataclass(frozen=True)
class Space:
    """The trials of a trainer: every combination of the values in `grid`, on top of another trainer's choice if any."""

    trainer: str
    grid: dict[str, list]
    inherits: str = ""

    def trials(self) -> list[Settings]:
        """All combinations, the last key changing fastest."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


@dataclass(frozen=True)
class Cloud:
    """Cloud inference: these trainers' models are tested with `samples` draws; level and average are searched."""

    trainers: list[str]
    samples: int
    levels: list[float]
    averages: list[str]

    def trials(self) -> list[Settings]:
        return [{"TEST.CLOUD_SAMPLES": self.samples, "TEST.CLOUD_LEVEL": level, "TEST.CLOUD_AVERAGE": average}
                for average, level in itertools.product(self.averages, self.levels)]


@dataclass(frozen=True)
class Search:
    """Where settings are chosen: data sets that are not reported, seeds 1 to `seeds`."""

    datasets: list[str]
    seeds: int
    spaces: list[Space]


@dataclass(frozen=True)
class Compare:
    """The main comparison; `difference` names two of the trainers, of which the first minus the second is reported."""

    datasets: list[str]
    seeds: int
    trainers: list[str]
    difference: list[str]


@dataclass(frozen=True)
class Variant:
    """One line of an ablation.

    Attributes:
        chosen: trainers whose chosen settings it has, later ones over earlier ones.
        settings: its own, over these.
        against: name of the variant above it in its group that it is compared with; "": none.
    """

    name: str
    trainer: str
    chosen: list[str]
    settings: Settings
    against: str


@dataclass(frozen=True)
class Group:
    """Variants that answer one question."""

    title: str
    variants: list[Variant]


@dataclass(frozen=True)
class Ablations:
    dataset: str
    seeds: int
    groups: list[Group]


@dataclass(frozen=True)
class Initialisations:
    """Runs of one seed that differ in their initial prompts alone."""

    dataset: str
    seeds: int
    trainers: list[str]


@dataclass(frozen=True)
class Study:
    """A whole study.

    Attributes:
        path: the file that describes it.
        config: of configs/trainers/TRAINER/CONFIG.yaml.
        settings: of every run.
    """

    path: str
    config: str
    settings: Settings
    search: Search
    cloud: Cloud | None
    compare: Compare
    ablations: Ablations | None
    initialisations: Initialisations | None

    @property
    def space_digest(self) -> str:
        """SHA-256 of all that the choice depends on."""
        parts = [self.config, self.settings, self.search.datasets, self.search.seeds,
                 [vars(space) for space in self.search.spaces], self.cloud and vars(self.cloud)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Node:
    """A mapping of the file, whose entries are taken one by one; what is left over in the end is a mistake."""

    def __init__(self, value, where: str, path: str):
        self.where, self.path = where, path
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise self.fault("", f"must be a mapping of names to values, but is {value!r}")
        self.left = dict(value)

    def fault(self, key: str, text: str) -> ValueError:
        place = ".".join(part for part in (self.where, key) if part) or "the file"
        return ValueError(f"{self.path}: {place} {text}")

    def take(self, key: str, kind: type | tuple[type, ...], default=None):
        """An entry of a type; without a default it must be there."""
        if key not in self.left:
            if default is None:
                raise self.fault(key, "is missing")
            return default
        value = self.left.pop(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            names = {str: "text", int: "a whole number", dict: "a mapping", list: "a list"}
            raise self.fault(key, f"must be {names[kind]}, but is {value!r}")
        return value

    def count(self, key: str) -> int:
        value = self.take(key, int)
        if value < 1:
            raise self.fault(key, f"must be at least 1, but is {value}")
        return value

    def texts(self, key: str, default: Sequence[str] | None = None) -> list[str]:
        return self._list(key, str, "texts", default)

    def numbers(self, key: str) -> list[float]:
        return self._list(key, (int, float), "numbers", None)

    def _list(self, key: str, kind, words: str, default) -> list:
        values = self.take(key, list, default)
        if not values or not all(isinstance(value, kind) and not isinstance(value, bool) for value in values):
            raise self.fault(key, f"must be a list of {words}, at least one, but is {values!r}")
        if repeated := {value for value in values if values.count(value) > 1}:
            raise self.fault(key, f"names {', '.join(map(str, sorted(repeated)))} more than once")
        return list(values)

    def settings(self, key: str) -> Settings:
        return dict(self.take(key, dict, {}))

    def node(self, key: str) -> "Node":
        return Node(self.take(key, dict), f"{self.where}.{key}".lstrip("."), self.path)

    def nodes(self, key: str) -> list["Node"]:
        where = f"{self.where}.{key}".lstrip(".")
        return [Node(value, f"{where}[{i}]", self.path) for i, value in enumerate(self.take(key, list))]

    def end(self) -> None:
        if self.left:
            raise self.fault("", f"has entries that nothing reads: {', '.join(map(str, self.left))}")


def read_study(path: str) -> Study:
    """The study in a YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no study; the message names the entry.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"No study {path}; the shipped ones are in configs/studies/")
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {one_line(error)}") from error
    root = Node(content, "", path)
    study = Study(
        path=path, config=root.take("config", str), settings=root.settings("settings"), search=_search(root),
        cloud=_cloud(root) if "cloud" in root.left else None, compare=_compare(root),
        ablations=_ablations(root) if "ablations" in root.left else None,
        initialisations=_initialisations(root) if "initialisations" in root.left else None,
    )
    root.end()
    _check(study, root)
    return study


def _search(root: Node) -> Search:
    node = root.node("search")
    spaces = []
    for entry in node.nodes("spaces"):
        grid = entry.node("grid")
        spaces.append(Space(entry.take("trainer", str), {key: _values(grid, key) for key in list(grid.left)},
                            entry.take("inherits", str, "")))
        entry.end()
    search = Search(node.texts("datasets"), node.count("seeds"), spaces)
    node.end()
    return search


def _values(grid: Node, key: str) -> list:
    values = grid.take(key, list)
    if not values:
        raise grid.fault(key, "has no value")
    return values


def _cloud(root: Node) -> Cloud:
    node = root.node("cloud")
    cloud = Cloud(node.texts("trainers"), node.count("samples"), node.numbers("levels"), node.texts("averages"))
    node.end()
    return cloud


def _compare(root: Node) -> Compare:
    node = root.node("compare")
    compare = Compare(node.texts("datasets"), node.count("seeds"), node.texts("trainers"), node.texts("difference"))
    node.end()
    if len(compare.difference) != 2 or not set(compare.difference) <= set(compare.trainers):
        raise node.fault("difference", f"must be two of {', '.join(compare.trainers)}, but is {compare.difference}")
    if compare.seeds < 2:
        raise node.fault("seeds", "must be at least 2, or there is no confidence interval")
    return compare


def _ablations(root: Node) -> Ablations:
    node = root.node("ablations")
    groups = []
    for entry in node.nodes("groups"):
        groups.append(Group(entry.take("title", str), list(_variants(entry))))
        entry.end()
    ablations = Ablations(node.take("dataset", str), node.count("seeds"), groups)
    node.end()
    return ablations


def _variants(group: Node) -> Iterator[Variant]:
    names: list[str] = []
    for entry in group.nodes("variants"):
        trainer = entry.take("trainer", str)
        variant = Variant(entry.take("name", str), trainer, entry.texts("chosen", [trainer]),
                          entry.settings("settings"), entry.take("against", str, names[0] if names else ""))
        entry.end()
        if variant.name in names:
            raise entry.fault("name", f"is taken: {variant.name}")
        if variant.against and variant.against not in names:
            raise entry.fault("against", f"must name a variant above it, but is {variant.against!r}")
        names.append(variant.name)
        yield variant


def _initialisations(root: Node) -> Initialisations:
    node = root.node("initialisations")
    found = Initialisations(node.take("dataset", str), node.count("seeds"), node.texts("trainers"))
    node.end()
    return found


def _check(study: Study, root: Node) -> None:
    """What no single entry shows: settings that are chosen where they are reported, or by nobody."""
    reported = {*study.compare.datasets, *(part.dataset for part in (study.ablations, study.initialisations) if part)}
    if both := reported & set(study.search.datasets):
        raise root.fault("search.datasets", f"names {', '.join(sorted(both))}, on which results are reported; settings "
                         "must be chosen on other data sets")
    known: list[str] = []
    sizes = {}
    for space in study.search.spaces:
        if space.trainer in known:
            raise root.fault("search.spaces", f"has {space.trainer} twice")
        if space.inherits and space.inherits not in known:
            raise root.fault("search.spaces", f"lets {space.trainer} inherit from {space.inherits}, which must stand "
                             "above it")
        known.append(space.trainer)
        sizes[space.trainer] = len(space.trials())
    if len(set(sizes.values())) > 1:
        raise root.fault("search.spaces", "must give every trainer the same number of trials, but gives " +
                         ", ".join(f"{trainer} {size}" for trainer, size in sizes.items()))
    compared = [name for name in study.compare.trainers if not name.startswith("ZeroshotCLIP")]  # nothing to choose
    for where, trainers in (("compare.trainers", compared),
                            ("cloud.trainers", study.cloud.trainers if study.cloud else ()),
                            ("initialisations.trainers",
                             study.initialisations.trainers if study.initialisations else ()),
                            *((f"ablations, {group.title}, {variant.name}: chosen", variant.chosen)
                              for group in (study.ablations.groups if study.ablations else ())
                              for variant in group.variants)):
        if unknown := [trainer for trainer in trainers if trainer not in known]:
            raise root.fault(where, f"names {', '.join(unknown)}, but only for {', '.join(known)} settings are chosen")
