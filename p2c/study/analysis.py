"""Statistics over seeds: mean differences with confidence intervals, pooled over datasets, and a test of spreads."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from scipy import stats

LEVEL = 0.95


class Estimate(NamedTuple):
    """A mean difference of n pairs, its confidence interval, and the p-value of a two-sided t-test against 0."""

    mean: float
    low: float
    high: float
    p: float
    n: int

    @property
    def includes_zero(self) -> bool:
        return self.low <= 0 <= self.high


def paired(differences: Sequence[float], comparisons: int = 1) -> Estimate:
    """Estimate the mean of paired differences, at least two, by Student's t.

    If several `comparisons` are made, their intervals hold jointly at LEVEL (Bonferroni), and p is multiplied by them.
    """
    n = len(differences)
    if n < 2:
        raise ValueError(f"A confidence interval needs at least two differences, but got {n}")
    mean, error = fmean(differences), stdev(differences) / math.sqrt(n)
    half = float(stats.t.ppf(1 - (1 - LEVEL) / comparisons / 2, n - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0)
    return Estimate(mean, mean - half, mean + half, min(1.0, p * comparisons), n)


def pooled(by_dataset: Mapping[str, Sequence[float]]) -> Estimate:
    """Estimate the mean over datasets, which are fixed and weigh the same, by a paired t over the seeds' means.

    Runs with one seed share random streams, so differences on several datasets are not independent. Their mean is
    therefore one observation per seed.
    """
    return paired([fmean(seed) for seed in zip(*by_dataset.values(), strict=True)])


def equal_spreads(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the p-value of the test of Pitman and Morgan (1939) that two paired samples have equal variances.

    Sums and differences of the pairs are uncorrelated if the variances are equal.
    """
    sums = [a + b for a, b in zip(first, second, strict=True)]
    differences = [a - b for a, b in zip(first, second, strict=True)]
    if len(set(sums)) == 1 or len(set(differences)) == 1:
        return 1.0
    return float(stats.pearsonr(sums, differences).pvalue)
