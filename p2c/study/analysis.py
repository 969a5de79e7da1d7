"""What differences over seeds say: means with confidence intervals, pooled over data sets, and the ratio of spreads."""
import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from scipy import stats

LEVEL = 0.95


class Estimate(NamedTuple):
    """A mean difference with a confidence interval, and the p-value of the difference 0 (two-sided t-test)."""

    mean: float
    low: float
    high: float
    p: float
    n: int

    @property
    def includes_zero(self) -> bool:
        return self.low <= 0 <= self.high


class Spreads(NamedTuple):
    """Standard deviations of two paired samples, and the p-value of their being equal."""

    first: float
    second: float
    p: float


def paired(differences: Sequence[float], comparisons: int = 1) -> Estimate:
    """The mean of paired differences by Student's t.

    Args:
        differences: at least two, one a seed.
        comparisons: how many intervals are to hold together at LEVEL (Bonferroni); p is multiplied alike.
    """
    n = len(differences)
    if n < 2:
        raise ValueError(f"A confidence interval needs at least two differences, but got {n}")
    mean, error = fmean(differences), stdev(differences) / math.sqrt(n)
    half = float(stats.t.ppf(1 - (1 - LEVEL) / comparisons / 2, n - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0)
    return Estimate(mean, mean - half, mean + half, min(1.0, p * comparisons), n)


def pooled(by_dataset: Mapping[str, Sequence[float]]) -> Estimate:
    """The mean over data sets, which count alike and are taken as given: a paired t over the seeds' means.

    Runs of one seed share random streams, so that the data sets' differences are not independent; their mean of each
    seed is one number.
    """
    return paired([fmean(seed) for seed in zip(*by_dataset.values(), strict=True)])


def spreads(first: Sequence[float], second: Sequence[float]) -> Spreads:
    """Compare the spreads of two paired samples (Pitman 1939, Morgan 1939: sum and difference are uncorrelated if the
    variances are equal).

    Args:
        first, second: at least three values each, paired.
    """
    sums = [a + b for a, b in zip(first, second, strict=True)]
    differences = [a - b for a, b in zip(first, second, strict=True)]
    constant = len(set(sums)) == 1 or len(set(differences)) == 1
    p = 1.0 if constant else float(stats.pearsonr(sums, differences).pvalue)
    return Spreads(stdev(first), stdev(second), p)
