"""From folders to the rows of a benchmark's tables: which runs belong to it, in which cell, averaged over what."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from p2c.grid.families import FAMILIES
from p2c.tables.cells import Cell, average, cell
from p2c.tables.folders import NO_SEED, TESTED, TRAINED, ZERO_SHOT, Found, Group, collect, half, in_order, matches
from p2c.tables.published import AVERAGE, comparable, published
from p2c.tables.runs import Run, Spread

SHOTS = (1, 2, 4, 8, 16)  # of the few-shot benchmark
SOURCES = {family.source for family in FAMILIES.values()}
MEMBERS = {name for family in FAMILIES.values() for name in family.members}
DATASETS = {name for family in FAMILIES.values() for name in family.datasets}
OWN = "own"  # what no family trains on: the user's own; those that any trainer was run on are expected of all

Runs = dict[str, dict[str, tuple[Run, ...]]]  # data set -> seed -> run, or the runs of the base and the novel half


class Scope(NamedTuple):
    """The data sets of a table, a transfer's source first, and those of them that its average is over."""

    name: str
    columns: tuple[str, ...]
    averaged: tuple[str, ...]
    chosen: bool = False  # only those that were asked for: their average is nobody's published one

    @property
    def names(self) -> tuple[str, ...]:
        return *self.columns, AVERAGE


@dataclass
class Line:
    """The cells of one number of shots, by data set or "average"; a missing cell has no entry."""

    group: Group
    runs: Runs
    cells: dict[str, Cell]
    published: dict[str, tuple[float, ...]]


@dataclass
class Row:
    """What a table says of one trainer and config: one line, in the few-shot table one for each number of shots."""

    benchmark: str
    scope: Scope
    lines: list[Line]
    seeds: list[str]  # that any cell has

    def all_seeds(self, line: Line, name: str) -> bool:
        """Whether a cell has every seed that a cell of the row has."""
        cell = line.cells[name]
        return cell.seeds == (NO_SEED,) or list(cell.seeds) == self.seeds

    def all_datasets(self, line: Line, name: str) -> bool:
        """Whether a cell is no average, or one over all the data sets."""
        return name != AVERAGE or line.cells[name].datasets == len(self.scope.averaged)

    def whole(self, line: Line, name: str) -> bool:
        return name in line.cells and self.all_seeds(line, name) and self.all_datasets(line, name)

    def differences(self, line: Line, name: str) -> tuple[float, ...] | None:
        """A cell minus the published numbers; None where one is missing, or ours is an average over fewer data sets."""
        if name not in line.cells or name not in line.published or not self.all_datasets(line, name):
            return None
        means, references = line.cells[name].means, line.published[name]
        return tuple(mean - reference for mean, reference in zip(means, references, strict=True))


def find_rows(
    benchmark: str, roots: list[str], keyword: str, spread: Spread, notes: list[str],
    datasets: Sequence[str] = (),
) -> list[Row]:
    """The rows of a benchmark's tables, family by family, of some data sets or, if none are named, of all.

    What is found and does not count is put into notes.
    """
    found = FIND[benchmark](benchmark, roots, keyword, notes)
    rows = []
    for scope in scopes(benchmark, {name for runs in found.values() for name in runs}, datasets):
        for groups in grouped(benchmark, found):
            runs = {group: within(scope, found.get(group, {})) for group in groups}
            if any(name in scope.averaged for line in runs.values() for name in line):
                rows.append(make_row(benchmark, scope, runs, keyword, spread))
    return rows


def scopes(benchmark: str, names: set[str], datasets: Sequence[str] = ()) -> list[Scope]:
    """The families' data sets, as far as the benchmark has them, then the user's own; of some only, if any are named.

    A transfer's source is always there.
    """
    def of(family: str, source: tuple[str, ...], others: tuple[str, ...]) -> Scope:
        kept = tuple(name for name in others if not datasets or name in datasets)
        return Scope(family, (*source, *kept), kept, chosen=len(kept) < len(others))

    if benchmark in ("xd", "dg"):
        rest = {name: family.targets if benchmark == "xd" else family.domains for name, family in FAMILIES.items()}
        return [of(name, (FAMILIES[name].source,), others) for name, others in rest.items()]
    own = tuple(sorted(names - DATASETS))
    return [*(of(name, (), family.datasets) for name, family in FAMILIES.items()), of(OWN, (), own)]


def grouped(benchmark: str, found: Iterable[Group]) -> list[list[Group]]:
    """The groups of each row. A few-shot row also has a group for each number of shots that was never run."""
    if benchmark != "fewshot":
        return [[group] for group in sorted(found)]
    rows: dict[tuple[str, str], set[Group]] = {}
    for group in sorted(found):
        expected = (group._replace(shots=shots) for shots in SHOTS if group.shots)
        rows.setdefault(group[:2], set()).update((group, *expected))
    return [sorted(groups) for groups in rows.values()]


def within(scope: Scope, runs: Runs) -> Runs:
    return {name: runs[name] for name in scope.columns if name in runs}


def make_row(benchmark: str, scope: Scope, runs: dict[Group, Runs], keyword: str, spread: Spread) -> Row:
    all_runs = [run for line in runs.values() for seeds in line.values() for pair in seeds.values() for run in pair]
    compare = keyword == "accuracy" and scope.name == "standard"
    lines = []
    for group, line in runs.items():
        values = {name: {seed: tuple(run.value for run in pair) for seed, pair in seeds.items()}
                  for name, seeds in line.items()}  # fmt: skip
        cells = {name: cell(seeds, spread) for name, seeds in values.items()}
        averaged = [values[name] for name in scope.averaged if name in values]
        if averaged:
            cells[AVERAGE] = average(averaged, spread)
        references = published(benchmark, group) if compare and comparable(group.config, all_runs) else {}
        if scope.chosen:
            references.pop(AVERAGE, None)
        lines.append(Line(group, line, cells, references))
    seeds = {seed for line in runs.values() for pairs in line.values() for seed in pairs} - {NO_SEED}
    return Row(benchmark, scope, lines, in_order(seeds))


# Which runs belong to a benchmark


def base_to_novel(_: str, roots: list[str], keyword: str, notes: list[str]) -> dict[Group, Runs]:
    """Base results are train_base's; test_base's, as of zero-shot, where that has none. A seed needs both halves."""
    base, tested, novel = (
        collect(roots, half(name), keyword, notes) for name in ("train_base", "test_base", "test_new")
    )
    fill_in(base, tested)
    found: dict[Group, Runs] = {}
    for group in sorted(base.keys() | novel.keys()):
        first, second = base.get(group, {}), novel.get(group, {})
        for dataset in sorted(first.keys() | second.keys()):
            ours, theirs = first.get(dataset, {}), second.get(dataset, {})
            seeds = [seed for seed in ours if seed in theirs]
            if ours.keys() != theirs.keys():
                outcome = f"the row is over {named(seeds)}" if seeds else "left out, no seed has both"
                notes.append(f"{group}: {dataset}: base has {named(ours)}, novel {named(theirs)}: {outcome}")
            if seeds:
                found.setdefault(group, {})[dataset] = {seed: (ours[seed], theirs[seed]) for seed in seeds}
    return merge_epochs(found)


def transfer(benchmark: str, roots: list[str], keyword: str, notes: list[str]) -> dict[Group, Runs]:
    """Tests on the targets or domains; the source's result is the training's own test, or a test like the others."""
    columns = {name for scope in scopes(benchmark, set()) for name in scope.columns}
    own = sorted({(group, dataset) for _, group, dataset, _ in matches(roots, TESTED) if dataset not in MEMBERS})
    notes += [f"not in the table: {group}: the test on {dataset}, which is of no family" for group, dataset in own]
    tested = collect(roots, TESTED, keyword, notes, lambda _, dataset: dataset in columns)
    found = collect(roots, TRAINED, keyword, notes, lambda group, dataset: dataset in SOURCES and group in tested)
    fill_in(found, tested)
    zero_shot = collect(roots, ZERO_SHOT, keyword, notes, lambda _, dataset: dataset in columns)
    return singles(found) | singles(zero_shot)


def few_shot(_: str, roots: list[str], keyword: str, notes: list[str]) -> dict[Group, Runs]:
    """Trainings on all classes, but those on a source alone that were then tested elsewhere; zero-shot for 0 shots."""
    trained_on: dict[tuple[str, str], set[str]] = {}
    for _, group, dataset, _ in matches(roots, TRAINED):
        trained_on.setdefault((group.trainer, without_epochs(group)), set()).add(dataset)
    transferred = {group for _, group, _, _ in matches(roots, TESTED)}

    def wanted(group: Group, _: str) -> bool:
        return group not in transferred or not trained_on[group.trainer, without_epochs(group)] <= SOURCES

    trained = collect(roots, TRAINED, keyword, notes, wanted)
    others = MEMBERS - DATASETS  # whose zero-shot results are for the transfers
    zero_shot = collect(roots, ZERO_SHOT, keyword, notes, lambda _, dataset: dataset not in others)
    return merge_epochs(singles(trained)) | singles(zero_shot)


FIND = {"base2new": base_to_novel, "xd": transfer, "dg": transfer, "fewshot": few_shot}


def fill_in(found: Found, others: Found) -> None:
    """Take from others the data sets of which found has no run."""
    for group, datasets in others.items():
        for dataset, runs in datasets.items():
            ours = found.setdefault(group, {})
            ours[dataset] = ours.get(dataset) or runs


def singles(found: Found) -> dict[Group, Runs]:
    return {
        group: {dataset: {seed: (run,) for seed, run in runs.items()} for dataset, runs in datasets.items() if runs}
        for group, datasets in found.items()
    }


def merge_epochs(found: dict[Group, Runs]) -> dict[Group, Runs]:
    """One row of CoOp's configs that differ only in the number of epochs in their names (vit_b16_ep50, vit_b16).

    CoOp trains the longer the more shots, and less on ImageNet. Configs that were both run on a data set with a number
    of shots are rivals, and stay apart.
    """
    alike: dict[tuple[str, str], list[Group]] = {}
    for group in found:
        alike.setdefault((group.trainer, without_epochs(group)), []).append(group)
    renamed = {}
    for (_, config), groups in alike.items():
        cells = [(group.shots, dataset) for group in groups for dataset in found[group]]
        if len({group.config for group in groups}) > 1 and len(cells) == len(set(cells)):
            renamed.update({group: group._replace(config=config) for group in groups})
    merged: dict[Group, Runs] = {}
    for group, runs in found.items():
        merged.setdefault(renamed.get(group, group), {}).update(runs)
    return merged


def without_epochs(group: Group) -> str:
    return re.sub(r"_ep\d+", "", group.config) if group.trainer == "CoOp" else group.config


def named(seeds: Iterable[str]) -> str:
    listed = in_order(seeds)
    return f"seed{'s' if len(listed) > 1 else ''} {', '.join(listed)}" if listed else "no results"
