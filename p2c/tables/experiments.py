"""The tests below some folders, read from their results.json and predictions.csv, and grouped for a report."""
import csv
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from os import path as osp
from typing import Any, NamedTuple

from p2c.tables.runs import read_results


class Prediction(NamedTuple):
    """A line of predictions.csv."""

    path: str
    label: int
    predicted: int
    probability: float

    @property
    def right(self) -> bool:
        return self.label == self.predicted


@dataclass(frozen=True)
class Subject:
    """The classes and images of a test; results on the same subject are comparable."""

    dataset: str
    classes: str  # all, base or new
    split: str
    classnames: tuple[str, ...]

    @property
    def title(self) -> str:
        title = self.dataset if self.classes == "all" else f"{self.dataset}, {self.classes} classes"
        return title if self.split == "test" else f"{title}, {self.split} images"


@dataclass
class Tested:
    """A finished run with a test; `record` is its results.json."""

    folder: str
    record: dict[str, Any]

    @property
    def metrics(self) -> dict[str, Any]:
        return self.record["metrics"]

    @property
    def trainer(self) -> str:
        return self.record.get("trainer", "?")

    @property
    def root(self) -> str:
        return osp.expanduser(self.record.get("config", {}).get("DATASET", {}).get("ROOT", ""))

    @property
    def as_shown(self) -> bool:
        """How the run read its images, see `p2c.engine.files.to_rgb`; earlier versions did not record it."""
        return self.record.get("config", {}).get("INPUT", {}).get("AS_SHOWN", False)

    @cached_property
    def subject(self) -> Subject:
        """The subject of the test. Folders of the user's own images are told apart by their names."""
        data, name = self.record.get("data", {}), self.record.get("dataset", "?")
        dataset = f"{name} {osp.basename(osp.abspath(self.root))}" if name == "Folder" else name
        return Subject(dataset, self.record.get("subsample_classes", "all"), self.record.get("split", "test"),
                       tuple(data.get("classnames") or ()))

    @cached_property
    def predictions(self) -> list[Prediction]:
        """The predictions of all images; empty if an earlier version ran the test, or the file is of another one."""
        try:
            with open(osp.join(self.folder, "predictions.csv"), encoding="utf-8", newline="") as file:
                rows = [Prediction(row["path"], int(row["label"]), int(row["predicted_label"]),
                                   float(row["probability"])) for row in csv.DictReader(file)]
        except (OSError, ValueError, KeyError, TypeError, csv.Error):
            return []
        counts = len(rows), sum(row.right for row in rows)
        known = max((max(row.label, row.predicted) for row in rows), default=0) < len(self.subject.classnames)
        return rows if known and counts == (self.metrics.get("total"), self.metrics.get("correct")) else []


@dataclass
class Experiment:
    """Runs that differ in the seed alone: those in the folders seedN of a folder, or a single run."""

    folder: str
    runs: list[Tested]
    label: str = ""

    @property
    def first(self) -> Tested:
        return self.runs[0]

    def values(self, metric: str) -> list[float]:
        """Return a metric of all runs that have it."""
        found = (run.metrics.get(metric) for run in self.runs)
        return [float(value) for value in found if isinstance(value, (int, float))]

    def class_accuracy(self, label: int) -> float | None:
        """Return the mean accuracy of a class in percent; None if no run tells."""
        rows = [run.metrics.get("class_accuracy") or [] for run in self.runs]
        found = [row[label] for row in rows if len(row) > label and row[label] is not None]
        return sum(found) / len(found) if found else None

    def predictions(self) -> Iterator[Prediction]:
        """Yield the predictions of all runs."""
        for run in self.runs:
            yield from run.predictions


def find_tests(folders: Iterable[str]) -> list[Tested]:
    """Return the finished runs with a test below some folders, in the order of their paths, each once."""
    found: dict[str, Tested] = {}
    for folder in folders:
        for place, names, files in os.walk(folder):
            names.sort()
            record = read_results(osp.join(place, "results.json")) if "results.json" in files else None
            accuracy = record.get("metrics", {}).get("accuracy") if record else None
            if record and record.get("finished") is True and isinstance(accuracy, (int, float)):
                found.setdefault(osp.realpath(place), Tested(place, record))
    return list(found.values())


def by_subject(tests: Iterable[Tested]) -> dict[Subject, list[Experiment]]:
    """Return the experiments on each subject, named by their trainers and, if need be, by shots or by folders."""
    found: dict[Subject, dict[str, Experiment]] = {}
    for test in tests:
        parent, name = osp.split(osp.normpath(test.folder))
        folder = parent if re.fullmatch(r"seed-?\d+", name) else test.folder
        found.setdefault(test.subject, {}).setdefault(folder, Experiment(folder, [])).runs.append(test)
    subjects = {subject: list(found[subject].values()) for subject in sorted(found, key=lambda key: key.title)}
    for experiments in subjects.values():
        name_experiments(experiments)
    return subjects


def name_experiments(experiments: list[Experiment]) -> None:
    """Give experiments the shortest labels of a kind that are all different, and sort by these."""
    trainers = [experiment.first.trainer for experiment in experiments]
    shots = [f"{experiment.first.trainer}, {experiment.first.record.get('num_shots')} shots"
             for experiment in experiments]  # fmt: skip
    folders = [f"{experiment.first.trainer}, {experiment.folder}" for experiment in experiments]
    labels = next(names for names in (trainers, shots, folders) if len(set(names)) == len(names) or names is folders)
    for experiment, label in zip(experiments, labels, strict=True):
        experiment.label = label
    experiments.sort(key=lambda experiment: experiment.label)  # as in the tables, so that colours are the same there
