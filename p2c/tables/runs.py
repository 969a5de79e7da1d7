"""What a finished run reached, read from its folder, and the spread of several runs. Needs the standard library alone.

The value is taken from `results.json` (unrounded, finished runs only) where there is one, else from the newest of the
run's `log.txt`, `log.txt-DATE` with a result; logs of CoOp, MaPLe and their relatives are read too.
"""

import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from os import listdir
from os import path as osp
from statistics import pstdev

METRICS = {"accuracy": "accuracy", "error": "error_rate", "macro_f1": "macro_f1", "average": "perclass_accuracy"}
END_OF_TRAINING = ("Finish training", "Finished training")  # Dassl from 0.6.1 on, and before
RESULT_BLOCK = ("=> result",)
# A run started again in its folder logs into a dated file, again in the same second into one with two dates.
LOG_NAME = re.compile(r"log\.txt(-\d{4}(-\d\d){5})*")

Spread = Callable[[list[float]], float]


@dataclass
class Run:
    """A run's folder; either the file that gave a value (in percent), or why there is none."""

    folder: str
    file: str = ""
    value: float = math.nan
    fault: str = ""
    config: dict = field(default_factory=dict)  # as in results.json; empty where only a log tells of the run

    @property
    def counts(self) -> bool:
        return not self.fault


def read_run(folder: str, keyword: str, test_log: bool) -> Run:
    """The run's value for keyword, from results.json if it is ours and has it, else from the log.

    `test_log` says that the log is an evaluation's, in which no end of a training comes before the result.
    """
    path = osp.join(folder, "results.json")
    results = read_results(path)
    if results is None:
        return read_logs(folder, keyword, test_log)
    if results.get("finished") is not True:
        return Run(folder, fault="not finished (results.json)")
    metrics = results.get("metrics")
    value = metrics.get(METRICS.get(keyword, keyword)) if isinstance(metrics, dict) else None
    if not isinstance(value, (int, float)):
        run = read_logs(folder, keyword, test_log)
    elif abs(value) <= sys.float_info.max:
        run = Run(folder, path, float(value))
    else:
        run = Run(folder, fault=f"{keyword} is {value}")
    run.config = results.get("config", {})
    return run


def read_results(path: str) -> dict | None:
    """What results.json holds; None if there is none, or it is damaged or another program's."""
    try:
        with open(path, encoding="utf-8") as file:
            results = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(results, dict) and results.get("format") == "p2c-results" and all(
        isinstance(results.get(name, {}), dict) for name in ("metrics", "config"))
    return results if ours else None


def read_logs(folder: str, keyword: str, test_log: bool) -> Run:
    """The value in the newest log with a result. The dates in the names sort after log.txt and by time."""
    logs = sorted((name for name in listdir(folder) if LOG_NAME.fullmatch(name)), reverse=True)
    if not logs:
        return Run(folder, fault="no log.txt, no results.json")
    signals = RESULT_BLOCK if test_log else END_OF_TRAINING
    ended = False
    for name in logs:
        end, value = read_log(osp.join(folder, name), keyword, signals)
        if value is not None:
            return Run(folder, osp.join(folder, name), value)
        ended = ended or end
    if ended:
        return Run(folder, fault=f'finished, but no "* {keyword}: ...%" in its log')
    return Run(folder, fault=f'not finished (no line "{signals[0]}" in its log)')


def read_log(path: str, keyword: str, signals: tuple[str, ...]) -> tuple[bool, float | None]:
    """Whether the log has a line that is one of the signals, and the last value after it (None: there is none)."""
    pattern = value_pattern(keyword)
    ended, value = False, None
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in map(str.strip, file):
            ended = ended or line in signals
            match = pattern.search(line) if ended else None
            if match:
                value = number(match["percent"], value)
    return ended, value


def value_pattern(keyword: str) -> re.Pattern[str]:
    """CoOp's pattern of a line with a value; the keyword is a regular expression too."""
    return re.compile(rf"\* (?:{keyword}): (?P<percent>[\.\deE+-]+)%")


def number(text: str, otherwise: float | None) -> float | None:
    """The pattern also matches texts like "1.2.3" that are no number."""
    try:
        value = float(text)
    except ValueError:
        return otherwise
    return value if math.isfinite(value) else otherwise


def left_out(run: Run) -> str:
    return f"not counted: {run.folder}: {run.fault}"


def std(values: list[float]) -> float:
    return pstdev(values)


def ci95(values: list[float]) -> float:
    """Half the width of the mean's 95% confidence interval."""
    return 1.96 * pstdev(values) / math.sqrt(len(values))
