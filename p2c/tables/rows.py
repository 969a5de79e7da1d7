"""The rows of a benchmark's tables, made from folders: selects its runs, assigns them to cells and averages."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from p2c.grid.families import FAMILIES
from p2c.tables.cells import Cell, make_average, make_cell
from p2c.tables.folders import (
    NO_SEED,
    TESTED,
    TRAINED,
    ZERO_SHOT,
    Found,
    Group,
    collect_runs,
    half_layout,
    matches,
    sort_seeds,
)
from p2c.tables.published import AVERAGE, comparable, published
from p2c.tables.runs import Metric, Run, Spread, metric_of

SHOTS = (1, 2, 4, 8, 16)  # of the few-shot benchmark
SOURCES = {family.source for family in FAMILIES.values()}
MEMBERS = {name for family in FAMILIES.values() for name in family.members}
DATASETS = {name for family in FAMILIES.values() for name in family.datasets}
MEASURES = "Base", "Novel", "HM"
OWN_DATA = "own"  # the scope of the user's own datasets; one that any trainer was run on is expected of all trainers

Runs = dict[str, dict[str, tuple[Run, ...]]]  # dataset -> seed -> run, or the runs of the base and the novel half


class Scope(NamedTuple):
    """The datasets of a table, a transfer's source first, and those that its average is over."""

    name: str
    columns: tuple[str, ...]
    averaged: tuple[str, ...]
    chosen: bool = False  # a selection by the user, whose average is not comparable with a published one

    @property
    def names(self) -> tuple[str, ...]:
        """All columns, and "average"."""
        return *self.columns, AVERAGE


@dataclass
class Line:
    """The cells for one number of shots, by dataset or "average"; a missing cell has no entry."""

    group: Group
    runs: Runs
    cells: dict[str, Cell]
    published: dict[str, tuple[float, ...]]


@dataclass
class Row:
    """The results of one trainer and config: one line, or in the few-shot table one for each number of shots."""

    benchmark: str
    scope: Scope
    lines: list[Line]
    seeds: list[str]  # the seeds of all cells together
    metric: Metric

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of a cell's values in base-to-novel."""
        return MEASURES if self.metric.has_hm else MEASURES[:2]

    def all_seeds(self, line: Line, name: str) -> bool:
        """Return whether a cell has all seeds of the row."""
        cell = line.cells[name]
        return cell.seeds == (NO_SEED,) or list(cell.seeds) == self.seeds

    def all_datasets(self, line: Line, name: str) -> bool:
        """Return whether a cell is that of a dataset, or an average over all datasets."""
        return name != AVERAGE or line.cells[name].datasets == len(self.scope.averaged)

    def is_complete(self, line: Line, name: str) -> bool:
        """Return whether a cell exists and has all seeds and datasets."""
        return name in line.cells and self.all_seeds(line, name) and self.all_datasets(line, name)

    def differences(self, line: Line, name: str) -> tuple[float, ...] | None:
        """Return a cell minus the published numbers; None if either is missing, or the cell is a partial average."""
        if name not in line.cells or name not in line.published or not self.all_datasets(line, name):
            return None
        means, references = line.cells[name].means, line.published[name]
        return tuple(mean - reference for mean, reference in zip(means, references, strict=True))


def find_rows(
    benchmark: str, roots: list[str], keyword: str, spread: Spread, notes: list[str], datasets: Sequence[str] = ()
) -> list[Row]:
    """Return the rows of a benchmark's tables below some folders, family by family, of all or some datasets.

    What was found but does not count is added to `notes`.

    Raises:
        ValueError: the benchmark has no dataset of that name.
    """
    found = FIND[benchmark](benchmark, roots, keyword, notes)
    names = {name for runs in found.values() for name in runs}
    known = dict.fromkeys(name for scope in scopes(benchmark, names) for name in scope.columns)
    if unknown := [name for name in datasets if name not in known]:
        raise ValueError(f"Unknown dataset '{unknown[0]}' for --{benchmark}; choose from {', '.join(known)}")
    rows = []
    for scope in scopes(benchmark, names, datasets):
        for groups in grouped(benchmark, found):
            runs = {group: {name: found[group][name] for name in scope.columns if name in found.get(group, {})}
                    for group in groups}  # fmt: skip
            if any(name in scope.averaged for line in runs.values() for name in line):
                rows.append(make_row(benchmark, scope, runs, metric_of(keyword), spread))
    return rows


def scopes(benchmark: str, names: set[str], datasets: Sequence[str] = ()) -> list[Scope]:
    """Return the scope of each family, and in base-to-novel and few-shot that of the user's own among datasets `names`.

    If `datasets` are given, only these are kept, beside a transfer's source.
    """
    def scope(family: str, source: tuple[str, ...], others: tuple[str, ...]) -> Scope:
        kept = tuple(name for name in others if not datasets or name in datasets)
        return Scope(family, (*source, *kept), kept, chosen=len(kept) < len(others))

    if benchmark in ("xd", "dg"):
        return [scope(name, (family.source,), family.targets if benchmark == "xd" else family.domains)
                for name, family in FAMILIES.items()]  # fmt: skip
    own = tuple(sorted(names - DATASETS))
    return [*(scope(name, (), family.datasets) for name, family in FAMILIES.items()), scope(OWN_DATA, (), own)]


def grouped(benchmark: str, found: Iterable[Group]) -> list[list[Group]]:
    """Return the groups of each row; a few-shot row also has one for each number of shots that was never run."""
    if benchmark != "fewshot":
        return [[group] for group in sorted(found)]
    rows: dict[tuple[str, str], set[Group]] = {}
    for group in sorted(found):
        expected = (group._replace(shots=shots) for shots in SHOTS if group.shots)
        rows.setdefault(group[:2], set()).update((group, *expected))
    return [sorted(groups) for groups in rows.values()]


def make_row(benchmark: str, scope: Scope, runs: dict[Group, Runs], metric: Metric, spread: Spread) -> Row:
    """Return the row of some groups' runs in a scope."""
    all_runs = [run for line in runs.values() for seeds in line.values() for pair in seeds.values() for run in pair]
    compare = metric.name == "accuracy" and scope.name == "standard"
    lines = []
    for group, line in runs.items():
        values = {name: {seed: tuple(run.value for run in pair) for seed, pair in seeds.items()}
                  for name, seeds in line.items()}  # fmt: skip
        cells = {name: make_cell(seeds, spread, metric.has_hm) for name, seeds in values.items()}
        averaged = [values[name] for name in scope.averaged if name in values]
        if averaged:
            cells[AVERAGE] = make_average(averaged, spread, metric.has_hm)
        references = published(benchmark, group) if compare and comparable(group.config, all_runs) else {}
        if scope.chosen:
            references.pop(AVERAGE, None)
        lines.append(Line(group, line, cells, references))
    seeds = {seed for line in runs.values() for pairs in line.values() for seed in pairs} - {NO_SEED}
    return Row(benchmark, scope, lines, sort_seeds(seeds), metric)


# Words


def label_rows(rows: list[Row], names: Mapping[str, str] = MappingProxyType({})) -> dict[str, Row]:
    """Return the rows of a family by trainer, or by trainer and config if the trainer has several.

    `names` are other names for some of the trainers.
    """
    groups = [row.lines[0].group for row in rows]
    trainers = [group.trainer for group in groups]
    labels = [names.get(group.trainer, group.trainer)
              + (f", {group.config}" if trainers.count(group.trainer) > 1 else "") for group in groups]  # fmt: skip
    return dict(zip(labels, rows, strict=True))


def heading(rows: list[Row], keyword: str, spread: str) -> str:
    """Return what the numbers of some rows are, such as "accuracy in %, mean ± std over seeds"."""
    text = f"{keyword} in {rows[0].metric.unit}"
    if any(cell.spreads for row in rows for line in row.lines for cell in line.cells.values()):
        return f"{text}, mean ± {spread} over seeds"
    return f"{text}, mean over seeds" if any(len(row.seeds) > 1 for row in rows) else text


# Which runs belong to a benchmark


def base_to_novel(_: str, roots: list[str], keyword: str, notes: list[str]) -> dict[Group, Runs]:
    """Return the runs of base-to-novel; a seed needs both halves.

    Base results are those of train_base, or of test_base where that has none, as for zero-shot.
    """
    base, tested, novel = (collect_runs(roots, half_layout(name), keyword, notes)
                           for name in ("train_base", "test_base", "test_new"))  # fmt: skip
    fill_missing(base, tested)
    found: dict[Group, Runs] = {}
    for group in sorted(base.keys() | novel.keys()):
        first, second = base.get(group, {}), novel.get(group, {})
        for dataset in sorted(first.keys() | second.keys()):
            ours, theirs = first.get(dataset, {}), second.get(dataset, {})  # base, novel
            seeds = [seed for seed in ours if seed in theirs]
            if ours.keys() != theirs.keys():
                outcome = f"the row is over {format_seeds(seeds)}" if seeds else "left out, no seed has both"
                halves = f"base has {format_seeds(ours)}, novel {format_seeds(theirs)}"
                notes.append(f"{group}: {dataset}: {halves}: {outcome}")
            if seeds:
                found.setdefault(group, {})[dataset] = {seed: (ours[seed], theirs[seed]) for seed in seeds}
    return merge_epochs(found)


def transfer(benchmark: str, roots: list[str], keyword: str, notes: list[str]) -> dict[Group, Runs]:
    """Return the tests on the targets or domains, and on the source: the training's own test, or a separate one."""
    columns = {name for scope in scopes(benchmark, set()) for name in scope.columns}
    own = sorted({(group, dataset) for _, group, dataset, _ in matches(roots, TESTED) if dataset not in MEMBERS})
    notes += [f"not in the table: {group}: the test on {dataset}, which is in no family" for group, dataset in own]
    tested = collect_runs(roots, TESTED, keyword, notes, lambda _, dataset: dataset in columns)
    found = collect_runs(roots, TRAINED, keyword, notes, lambda group, dataset: dataset in SOURCES and group in tested)
    fill_missing(found, tested)
    zero_shot = collect_runs(roots, ZERO_SHOT, keyword, notes, lambda _, dataset: dataset in columns)
    return wrap_runs(found) | wrap_runs(zero_shot)


def few_shot(_: str, roots: list[str], keyword: str, notes: list[str]) -> dict[Group, Runs]:
    """Return the trainings on all classes, and zero-shot for 0 shots.

    A group that was trained on sources alone and tested elsewhere belongs to the transfers, and is left out.
    """
    trained_on: dict[tuple[str, str], set[str]] = {}
    for _, group, dataset, _ in matches(roots, TRAINED):
        trained_on.setdefault((group.trainer, without_epochs(group)), set()).add(dataset)
    transferred = {group for _, group, _, _ in matches(roots, TESTED)}

    def wanted(group: Group, _: str) -> bool:
        return group not in transferred or not trained_on[group.trainer, without_epochs(group)] <= SOURCES

    trained = collect_runs(roots, TRAINED, keyword, notes, wanted)
    others = MEMBERS - DATASETS  # their zero-shot results belong to the transfers
    zero_shot = collect_runs(roots, ZERO_SHOT, keyword, notes, lambda _, dataset: dataset not in others)
    return merge_epochs(wrap_runs(trained)) | wrap_runs(zero_shot)


FIND = {"base2new": base_to_novel, "xd": transfer, "dg": transfer, "fewshot": few_shot}


def fill_missing(found: Found, others: Found) -> None:
    """Add to `found` the runs in `others` on the datasets of which it has none."""
    for group, datasets in others.items():
        for dataset, runs in datasets.items():
            ours = found.setdefault(group, {})
            ours[dataset] = ours.get(dataset) or runs


def wrap_runs(found: Found) -> dict[Group, Runs]:
    """Return each run as a tuple of one, without datasets that have no runs."""
    return {group: {dataset: {seed: (run,) for seed, run in runs.items()} for dataset, runs in datasets.items() if runs}
            for group, datasets in found.items()}  # fmt: skip


def merge_epochs(found: dict[Group, Runs]) -> dict[Group, Runs]:
    """Merge CoOp's configs whose names differ only in the number of epochs (vit_b16_ep50, vit_b16) into one row.

    CoOp trains longer with more shots, and less on ImageNet. Configs that were both run on the same dataset with the
    same number of shots are alternatives, and are not merged.
    """
    same_config: dict[tuple[str, str], list[Group]] = {}
    for group in found:
        same_config.setdefault((group.trainer, without_epochs(group)), []).append(group)
    renamed = {}
    for (_, config), groups in same_config.items():
        cells = [(group.shots, dataset) for group in groups for dataset in found[group]]
        if len({group.config for group in groups}) > 1 and len(cells) == len(set(cells)):
            renamed.update({group: group._replace(config=config) for group in groups})
    merged: dict[Group, Runs] = {}
    for group, runs in found.items():
        merged.setdefault(renamed.get(group, group), {}).update(runs)
    return merged


def without_epochs(group: Group) -> str:
    """Return a group's config, for CoOp without the number of epochs in its name."""
    return re.sub(r"_ep\d+", "", group.config) if group.trainer == "CoOp" else group.config


def format_seeds(seeds: Iterable[str]) -> str:
    """Format seeds for a note, such as "seeds 1, 2"."""
    listed = sort_seeds(seeds)
    noun = "seed" if len(listed) == 1 else "seeds"
    return f"{noun} {', '.join(listed)}" if listed else "no results"
