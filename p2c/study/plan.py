"""A study as its YAML file describes it: the search, the comparison and the ablations. Nothing runs here."""
import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from p2c.utils.console import one_line

Settings = dict[str, Any]  # dotted key -> value


def distinct(values: list) -> list:
    """Return a list; raise ValueError if it repeats a value."""
    if repeated := {value for value in values if values.count(value) > 1}:
        raise ValueError(f"names {', '.join(map(str, sorted(repeated)))} more than once")
    return values


Count = Annotated[int, Field(ge=1)]
Texts = Annotated[list[str], Field(min_length=1), AfterValidator(distinct)]


class Part(BaseModel):
    """An entry of the file; no value is converted, and an unknown key is refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Space(Part):
    """The trials of a trainer: all combinations of the values in `grid`, on top of another trainer's choice, if any."""

    trainer: str
    grid: dict[str, Annotated[list, Field(min_length=1)]]
    inherits: str = ""

    def trials(self) -> list[Settings]:
        """Return all combinations; the last key changes fastest."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


class Cloud(Part):
    """Cloud inference with `samples` draws, for these trainers; the level and the kind of average are searched."""

    trainers: Texts
    samples: Count
    levels: Annotated[list[float], Field(min_length=1), AfterValidator(distinct)]
    averages: Texts

    def trials(self) -> list[Settings]:
        return [{"TEST.CLOUD_SAMPLES": self.samples, "TEST.CLOUD_LEVEL": level, "TEST.CLOUD_AVERAGE": average}
                for average, level in itertools.product(self.averages, self.levels)]


class Search(Part):
    """The choice of settings, on datasets that are not reported, with seeds 1 to `seeds`."""

    datasets: Texts
    seeds: Count
    spaces: list[Space]

    @field_validator("spaces")
    @classmethod
    def check_spaces(cls, spaces: list[Space]) -> list[Space]:
        known: list[str] = []
        for space in spaces:
            if space.trainer in known:
                raise ValueError(f"has {space.trainer} twice")
            if space.inherits and space.inherits not in known:
                raise ValueError(f"lets {space.trainer} inherit from {space.inherits}, which must stand above it")
            known.append(space.trainer)
        sizes = {space.trainer: len(space.trials()) for space in spaces}
        if len(set(sizes.values())) > 1:
            raise ValueError("must give every trainer the same number of trials, but gives " +
                             ", ".join(f"{trainer} {size}" for trainer, size in sizes.items()))
        return spaces


class Compare(Part):
    """The main comparison; `difference` names two trainers, and the first minus the second is reported."""

    datasets: Texts
    seeds: Annotated[int, Field(ge=2)]  # a confidence interval needs two
    trainers: Texts
    difference: Texts

    @model_validator(mode="after")
    def check_difference(self) -> "Compare":
        if len(self.difference) != 2 or not set(self.difference) <= set(self.trainers):
            raise ValueError(f"has a difference of {self.difference}; it must be two of {', '.join(self.trainers)}")
        return self


class Variant(Part):
    """One line of an ablation."""

    name: str
    trainer: str
    chosen: Texts = []  # trainers whose chosen settings it takes, later ones over earlier ones; []: its trainer
    settings: Settings = {}  # its own settings, which override the chosen ones
    against: str | None = None  # a variant above it that it is compared with; "": none; None: the first of its group


class Group(Part):
    """Variants that answer one question."""

    title: str
    variants: list[Variant]

    @field_validator("variants")
    @classmethod
    def check_variants(cls, variants: list[Variant]) -> list[Variant]:
        names = distinct([variant.name for variant in variants])
        complete = []
        for i, variant in enumerate(variants):
            against = variant.against
            if against is None:
                against = names[0] if i else ""
            if against and against not in names[:i]:
                raise ValueError(f"has {variant.name} against {against!r}, which must name a variant above it")
            complete.append(variant.model_copy(update={"against": against}))
        return complete


class Ablations(Part):
    dataset: str
    seeds: Count
    groups: list[Group]


class Initialisations(Part):
    """Runs with one seed that differ only in their initial prompts."""

    dataset: str
    seeds: Count
    trainers: Texts


class Study(Part):
    """A whole study."""

    path: str  # of the study's file
    config: str  # CONFIG in configs/trainers/TRAINER/CONFIG.yaml
    settings: Settings = {}  # of every run
    search: Search
    cloud: Cloud | None = None
    compare: Compare
    ablations: Ablations | None = None
    initialisations: Initialisations | None = None

    @property
    def space_digest(self) -> str:
        """Return the SHA-256 of everything that the choice depends on."""
        parts = [self.config, self.settings, self.search.datasets, self.search.seeds,
                 [vars(space) for space in self.search.spaces], self.cloud and vars(self.cloud)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @model_validator(mode="after")
    def check_choices(self) -> "Study":
        """Raise ValueError if settings are chosen on reported data, or needed but never chosen."""
        reported = {*self.compare.datasets, *(part.dataset for part in (self.ablations, self.initialisations) if part)}
        if both := reported & set(self.search.datasets):
            raise ValueError(f"search.datasets names {', '.join(sorted(both))}, on which results are reported; "
                             "settings must be chosen on other datasets")
        users = {"compare.trainers": [name for name in self.compare.trainers if not name.startswith("ZeroshotCLIP")]}
        for name in ("cloud", "initialisations"):
            if part := getattr(self, name):
                users[f"{name}.trainers"] = part.trainers
        for group in self.ablations.groups if self.ablations else ():
            users |= {f"ablations, {group.title}, {variant.name}: chosen": variant.chosen or [variant.trainer]
                      for variant in group.variants}
        known = [space.trainer for space in self.search.spaces]
        for where, trainers in users.items():
            if unknown := [trainer for trainer in trainers if trainer not in known]:
                raise ValueError(f"{where} names {', '.join(unknown)}, but settings are chosen only for "
                                 f"{', '.join(known)}")
        return self


def read_study(path: str) -> Study:
    """Read a study from a YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a valid study; the message names the entry.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"No study {path}; the shipped ones are in configs/studies/")
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {one_line(error)}") from error
    try:
        return Study.model_validate({**content, "path": path} if isinstance(content, dict) else content)
    except ValidationError as error:
        raise ValueError(f"{path}: {in_words(error.errors()[0])}") from None


def in_words(fault: Mapping) -> str:
    """Return in words a fault that pydantic found: the entry, its value and what was expected."""
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")
    known = {"missing": "is missing", "extra_forbidden": "is an entry that nothing reads",
             "value_error": fault["msg"].removeprefix("Value error, ")}  # one of ours
    if fault["type"] in known:
        return f"{place} {known[fault['type']]}".lstrip()
    return f"{place or 'the file'} is {fault['input']!r}: {fault['msg']}"
