"""The numbers in a table's cells: means and spreads over seeds, and averages over datasets, by the field's conventions.

In base-to-novel a run has two values, base and novel, and a cell also their harmonic mean HM if the metric has one;
elsewhere there is one value. A cell's HM is the HM of its means, but its spread is that of the seeds' HMs. An average
holds the means over datasets and the HM of these means; its spread is that of the seeds' averages. One seed has no
spread.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from p2c.tables.runs import Spread

Values = dict[str, tuple[float, ...]]  # seed -> value, or base and novel


@dataclass(frozen=True)
class Cell:
    """The result on a dataset, or the average over several."""

    means: tuple[float, ...]
    spreads: tuple[float, ...] | None  # None: one run, or datasets with different seeds
    seeds: tuple[str, ...]  # empty for an average over datasets with different seeds
    datasets: int = 1  # number of averaged datasets


def make_cell(values: Values, spread: Spread, hm: bool, datasets: int = 1) -> Cell:
    """Return the mean and spread over seeds; with `hm`, also those of the harmonic mean of two values."""
    columns = zip(*(with_hm(value, hm) for value in values.values()), strict=True)
    spreads = tuple(spread(list(column)) for column in columns) if len(values) > 1 else None
    return Cell(with_hm(averages(values.values()), hm), spreads, tuple(values), datasets)


def make_average(datasets: list[Values], spread: Spread, hm: bool) -> Cell:
    """Return the mean over datasets, with a spread if all have the same seeds."""
    seeds = list(datasets[0])
    if all(list(values) == seeds for values in datasets):
        by_seed = {seed: averages(values[seed] for values in datasets) for seed in seeds}
        return make_cell(by_seed, spread, hm, len(datasets))
    means = averages(averages(values.values()) for values in datasets)
    return Cell(with_hm(means, hm), None, (), len(datasets))


def averages(values: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    """Return the means of the first, second, ... values."""
    return tuple(map(fmean, zip(*values, strict=True)))


def with_hm(values: Sequence[float], hm: bool) -> tuple[float, ...]:
    """Return the values; with `hm`, the harmonic mean of base and novel behind these if there are two."""
    return (*values, harmonic_mean(*values)) if hm and len(values) == 2 else tuple(values)


def harmonic_mean(base: float, novel: float) -> float:
    """Return the harmonic mean; 0 if both values are 0."""
    return 2 * base * novel / (base + novel) if base + novel else 0.0
