"""The numbers of a table's cells: means and spreads over seeds, averages over data sets, by the field's conventions.

A run of base-to-novel has two values, base and novel; a cell a third, their harmonic mean HM. Elsewhere there is one.
A cell's HM is that of its means, its spread that of the seeds' own HMs. An average has the means over data sets and the
HM of these means; its spread is over the seeds' averages.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from p2c.tables.folders import NO_SEED
from p2c.tables.runs import Spread

Values = dict[str, tuple[float, ...]]  # seed -> value, or base and novel


@dataclass(frozen=True)
class Cell:
    """What was reached on a data set, or on the average over several."""

    means: tuple[float, ...]
    spreads: tuple[float, ...] | None  # None: one run without a seed, or data sets with different seeds
    seeds: tuple[str, ...]  # none in an average over data sets with different seeds
    datasets: int = 1  # that the average is over


def cell(values: Values, spread: Spread, datasets: int = 1) -> Cell:
    """Mean and spread over seeds."""
    means = with_hm(averages(values.values()))
    spreads = tuple(spread(list(column)) for column in zip(*map(with_hm, values.values()), strict=True))
    return Cell(means, None if NO_SEED in values else spreads, tuple(values), datasets)


def average(datasets: list[Values], spread: Spread) -> Cell:
    """Mean over data sets; with a spread where all have the same seeds."""
    seeds = list(datasets[0])
    if all(list(values) == seeds for values in datasets):
        return cell({seed: averages(values[seed] for values in datasets) for seed in seeds}, spread, len(datasets))
    means = averages(averages(values.values()) for values in datasets)
    return Cell(with_hm(means), None, (), len(datasets))


def averages(values: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(map(fmean, zip(*values, strict=True)))


def with_hm(values: Sequence[float]) -> tuple[float, ...]:
    return (*values, harmonic_mean(*values)) if len(values) == 2 else tuple(values)


def harmonic_mean(base: float, novel: float) -> float:
    return 2 * base * novel / (base + novel) if base + novel else 0.0
