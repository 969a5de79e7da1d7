"""The result of a finished run, read from its folder, and the spread of several runs. Needs only the standard library.

The value is taken from `results.json` (unrounded, finished runs only) if there is one, else from the newest of the
run's `log.txt`, `log.txt-DATE` with a result. Logs of CoOp, MaPLe and related code are read too.
"""

import contextlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from os import listdir
from os import path as osp
from statistics import pstdev
from typing import NamedTuple


class Metric(NamedTuple):
    """A metric of results.json, and how to read its numbers."""

    name: str
    unit: str = "%"
    digits: int = 2  # decimals
    best: Callable[[Iterable[float]], float] | None = None  # of several methods' values; None: neither high nor low
    has_hm: bool = False  # whether a harmonic mean of base and novel means something, as that of two accuracies does

    def text(self, value: float) -> str:
        """Format a value with its unit."""
        number = f"{value:.{self.digits}f}"
        return f"{number}%" if self.unit == "%" else f"{number} {self.unit}"


METRICS = {  # keyword -> metric
    "accuracy": Metric("accuracy", best=max, has_hm=True),
    "error": Metric("error_rate", best=min),
    "macro_f1": Metric("macro_f1", best=max, has_hm=True),
    "average": Metric("perclass_accuracy", best=max, has_hm=True),
    "ece": Metric("ece", best=min),
    "nll": Metric("nll", "nats", 3, best=min),
    "mutual_information": Metric("mutual_information", "nats", 3),
    "correct": Metric("correct", "images", 1, best=max),
    "total": Metric("total", "images", 1),
}


def metric_of(keyword: str) -> Metric:
    """Return the metric of a keyword, or of a name in results.json; any other is in percent, as values in logs are."""
    by_name = {metric.name: metric for metric in METRICS.values()}
    return METRICS.get(keyword) or by_name.get(keyword) or Metric(keyword)

END_OF_TRAINING = ("Finish training", "Finished training")  # of Dassl from 0.6.1 on, and of older versions
# A run restarted in its folder logs to a file with a date; restarted in the same second, to one with two dates.
LOG_NAME = re.compile(r"log\.txt(-\d{4}(-\d\d){5})*")

Spread = Callable[[list[float]], float]


@dataclass
class Run:
    """A run's folder, with either a value and the file it was read from, or why there is none."""

    folder: str
    file: str = ""
    value: float = math.nan
    fault: str = ""
    config: dict = field(default_factory=dict)  # as in results.json; empty if there is only a log
    tested: dict = field(default_factory=dict)  # likewise: after training or alone ("mode"), and on which "split"


def read_run(folder: str, keyword: str, test_log: bool) -> Run:
    """Read the run's value for a keyword, from results.json if it is ours and has it, else from the log.

    In a `test_log`, that of an evaluation, no end of training precedes the result.
    """
    path = osp.join(folder, "results.json")
    results = read_results(path)
    if results is None:
        run = read_logs(folder, keyword, test_log)
        if run.fault and osp.isfile(path):
            run.fault += "; its results.json is damaged, or not of this program"
        return run
    if results.get("finished") is not True:
        return Run(folder, fault="not finished (results.json)")
    value = results.get("metrics", {}).get(metric_of(keyword).name)
    if not isinstance(value, (int, float)):
        run = read_logs(folder, keyword, test_log)
        if run.fault:
            run.fault = f"no {keyword} in its results.json; {run.fault}"
    elif abs(value) <= sys.float_info.max:
        run = Run(folder, path, float(value))
    else:
        run = Run(folder, fault=f"{keyword} is {value}")
    run.config = results.get("config", {})
    run.tested = {name: results[name] for name in ("mode", "split") if name in results}
    return run


def read_results(path: str) -> dict | None:
    """Read results.json; return None if it is missing, damaged or another program's."""
    try:
        with open(path, encoding="utf-8") as file:
            results = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(results, dict) or results.get("format") != "p2c-results":
        return None
    whole = all(isinstance(results.get(name, {}), dict) for name in ("metrics", "config"))
    return results if whole else None


def read_logs(folder: str, keyword: str, test_log: bool) -> Run:
    """Read the value from the newest log with a result; in order of names log.txt precedes the others, by date."""
    logs = sorted((name for name in listdir(folder) if LOG_NAME.fullmatch(name)), reverse=True)
    if not logs:
        missing = [name for name in ("log.txt", "results.json") if not osp.isfile(osp.join(folder, name))]
        return Run(folder, fault=", ".join(f"no {name}" for name in missing))
    signals = ("=> result",) if test_log else END_OF_TRAINING
    fault = f'not finished (no line "{signals[0]}" in its log)'
    for name in logs:
        ended, value = read_log(osp.join(folder, name), keyword, signals)
        if value is not None:
            return Run(folder, osp.join(folder, name), value)
        if ended:
            fault = f'finished, but no "* {keyword}: ...%" in its log'
    return Run(folder, fault=fault)


def read_log(path: str, keyword: str, signals: tuple[str, ...]) -> tuple[bool, float | None]:
    """Return whether a line of the log is one of the signals, and the last value after it (None: there is none)."""
    pattern = value_pattern(keyword)
    ended, value = False, None
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in map(str.strip, file):
            ended = ended or line in signals
            if ended and (match := pattern.search(line)):
                with contextlib.suppress(ValueError):  # such as "1.2.3", which also matches
                    number = float(match["percent"])
                    value = number if math.isfinite(number) else value
    return ended, value


def value_pattern(keyword: str) -> re.Pattern[str]:
    """Return CoOp's pattern of a line with a value; the keyword may be a regular expression."""
    return re.compile(rf"\* (?:{keyword}): (?P<percent>[\.\deE+-]+)%")


def describe_left_out(run: Run) -> str:
    """Return a note on a run without a value."""
    return f"not counted: {run.folder}: {run.fault}"


def std(values: list[float]) -> float:
    """Return the population standard deviation, as CoOp's aggregator does."""
    return pstdev(values)


def ci95(values: list[float]) -> float:
    """Return half the width of the mean's 95% confidence interval."""
    return 1.96 * pstdev(values) / math.sqrt(len(values))
