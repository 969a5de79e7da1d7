"""The report: one HTML page on the runs below some folders, which needs no network, no JavaScript and no other file."""
import base64
import contextlib
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from os import path as osp
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from p2c.engine.curves import read_curves
from p2c.engine.files import UnreadableImage, read_image
from p2c.tables import figures
from p2c.tables.curves import figure_of, label_rows
from p2c.tables.experiments import Experiment, Prediction, Subject, Tested, by_subject, find_tests
from p2c.tables.latex import TITLES
from p2c.tables.printing import MISSING, any_published, by_scope, print_rows, rows_and_notes
from p2c.tables.published import AVERAGE
from p2c.tables.rows import MEASURES, Row
from p2c.tables.runs import std
from p2c.utils.console import MISTAKES, one_line

METRICS = {"accuracy": "Accuracy in %", "macro_f1": "Macro F1 in %", "ece": "ECE in %", "nll": "NLL in nats"}
CURVES = {  # tag -> title, unit of the steps, whether it is the same for all seeds
    "train/loss": ("Loss", "step", False),
    "train/acc": ("Accuracy on training images in %", "step", False),
    "val/accuracy": ("Accuracy on validation images in %", "epoch", False),
    "train/lr": ("Learning rate", "step", True),
    "train/noise": ("Noise level", "step", True),
}
POINTS = 100  # at most, of a curve
MATRIX = 30  # classes; the confusions of more are listed
CONFUSIONS = 30  # in that list
WRONG, RIGHT = 8, 4  # pictures of a subject
SIDE = 128  # of a picture, in pixels
TEXTS = 60  # lines of nearest words of a run

Words = Callable[[str], Sequence[tuple[str, ...]]]  # folder of a training -> (part, layer, token, nearest words)


class Table(NamedTuple):
    """The headers and the cells of a table."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A test image with the predictions of several methods."""

    path: str
    source: str  # a data: address; "": the image cannot be read
    truth: str
    predictions: list[tuple[str, str, float, bool]]  # method, class, probability in percent, whether it is right


def make_page(folders: list[str], words: Words) -> str:
    """Return the page on the runs below some folders.

    Args:
        words: names the words nearest to the prompts of a training; raises an error that says why it cannot.

    Raises:
        ValueError: there are no results.
    """
    benchmarks = [section for name in TITLES if (section := benchmark_section(name, folders))]
    tests = find_tests(folders)
    if not benchmarks and not tests:
        raise ValueError(f"No finished run with a test is below {', '.join(folders)}; give the folder that runs were "
                         "written to, such as output")
    subjects = [subject_section(subject, found, words) for subject, found in by_subject(tests).items()]
    return template().render(folders=folders, made=datetime.now().strftime("%Y-%m-%d %H:%M"), count=len(tests),
                             benchmarks=benchmarks, subjects=subjects)


def template() -> jinja2.Template:
    """Read report.html, which escapes every text that is put into it."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                                     trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("report.html")


# Benchmarks


def benchmark_section(benchmark: str, folders: list[str]) -> dict[str, Any] | None:
    """Return a benchmark's title, its tables as parse_test_res.py prints them, and its figures; None without runs."""
    rows, notes = rows_and_notes(benchmark, folders, "accuracy", std)
    if not rows:
        return None
    with contextlib.redirect_stdout(io.StringIO()) as tables:
        print_rows(rows, notes, "accuracy", std, "html")
    title = TITLES[benchmark]
    if benchmark == "fewshot":
        drawn = [figures.svg(figure_of(rows, "accuracy", std.__name__), f"{title}: accuracy by shots")]
    else:
        drawn = [figures.svg(benchmark_bars(benchmark, scope_rows), f"{title}: the numbers are in the table")
                 for _, scope_rows in by_scope(rows)]  # fmt: skip
    return {"title": title, "tables": Markup(tables.getvalue()), "figures": drawn, "wide": benchmark == "fewshot",
            "published": benchmark != "fewshot" and any_published(rows)}


def benchmark_bars(benchmark: str, rows: list[Row]):
    """Return the figure of base-to-novel's averages, or of a transfer's datasets."""
    names = rows[0].scope.names

    def bars_of(row: Row) -> list[figures.Bar | None]:
        line = row.lines[0]
        places = [(AVERAGE, at) for at in range(3)] if benchmark == "base2new" else [(name, 0) for name in names]
        return [(line.cells[name].means[at], (line.cells[name].spreads or {at: None})[at],
                 line.published[name][at] if name in line.published else None) if name in line.cells else None
                for name, at in places]  # fmt: skip

    series = {label: bars_of(row) for label, row in label_rows(rows).items()}
    return figures.bars(MEASURES if benchmark == "base2new" else names, series, "accuracy in %, mean ± std over seeds")


# Subjects


def subject_section(subject: Subject, experiments: list[Experiment], words: Words) -> dict[str, Any]:
    """Return everything about the tests on one subject."""
    accuracy: dict[str, list[figures.Bar | None]] = {}
    for experiment in experiments:
        values = experiment.values("accuracy")
        accuracy[experiment.label] = [(fmean(values), std(values) if len(values) > 1 else None, None)]
    bins = {experiment.label: [run.metrics["reliability"] for run in experiment.runs if "reliability" in run.metrics]
            for experiment in experiments}  # fmt: skip
    bins = {label: found for label, found in bins.items() if found}
    without = [run.folder for experiment in experiments for run in experiment.runs if not run.predictions]
    return {
        "title": subject.title,
        "summary": summary(experiments),
        "accuracy": figures.svg(figures.bars([""], accuracy, "accuracy in %, mean ± std over seeds"),
                                f"Accuracy on {subject.title}: the numbers are in the table above"),
        "classes": class_table(subject, experiments),
        "reliability": bins and figures.svg(figures.reliability(bins), f"Reliability on {subject.title}"),
        "bins": bins and bin_table(bins),
        "pictures": pictures(subject, experiments),
        "methods": [method_section(subject, experiment, words) for experiment in experiments],
        "without": without,
    }


def summary(experiments: list[Experiment]) -> Table:
    """Return the metrics of each method, mean ± std over seeds."""
    rows = []
    for experiment in experiments:
        found = [experiment.values(metric) for metric in METRICS]
        seeds = sorted({str(run.record.get("seed", "?")) for run in experiment.runs})
        rows.append([experiment.label, *map(mean_and_spread, found), ", ".join(seeds)])
    return Table(["Method", *METRICS.values(), "Seeds"], rows)


def mean_and_spread(values: list[float]) -> str:
    """Format values as the tables of the benchmarks do."""
    if not values:
        return MISSING
    return f"{fmean(values):.2f}" + (f" ± {std(values):.2f}" if len(values) > 1 else "")


def class_table(subject: Subject, experiments: list[Experiment]) -> Table:
    """Return the accuracy of each class, in percent, by method."""
    rows = []
    for label, name in enumerate(subject.classnames):
        found = [experiment.class_accuracy(label) for experiment in experiments]
        if any(value is not None for value in found):
            rows.append([name, *(MISSING if value is None else f"{value:.1f}" for value in found)])
    return Table(["Class", *(experiment.label for experiment in experiments)], rows)


def bin_table(bins: dict[str, list[dict[str, list]]]) -> Table:
    """Return how many images of all tests have a confidence in each bin, by method."""
    size = len(next(iter(bins.values()))[0]["count"])
    rows = [[f"{100 * place / size:.0f} to {100 * (place + 1) / size:.0f}%",
             *(str(sum(test["count"][place] for test in tests)) for tests in bins.values())]
            for place in range(size)]  # fmt: skip
    return Table(["Confidence", *bins], [row for row in rows if set(row[1:]) != {"0"}])


def pictures(subject: Subject, experiments: list[Experiment]) -> dict[str, list[Picture]]:
    """Return the most confidently wrong, and some right, images of the methods' first runs with predictions."""
    runs = [(experiment.label, run) for experiment in experiments for run in experiment.runs[:1] if run.predictions]
    images: dict[str, list[tuple[str, Tested, Prediction]]] = defaultdict(list)
    for label, run in runs:
        for prediction in run.predictions:
            images[prediction.path].append((label, run, prediction))

    def picture(found: list[tuple[str, Tested, Prediction]]) -> Picture:
        _, run, first = found[0]
        names = subject.classnames
        return Picture(first.path, thumbnail(osp.join(run.root, first.path), run.as_shown), names[first.label], [
            (label, names[each.predicted], 100 * each.probability, each.right) for label, _, each in found])

    def confidence(found: list[tuple[str, Tested, Prediction]], right: bool) -> float:
        return max((each.probability for _, _, each in found if each.right == right), default=0)

    wrong = sorted((found for found in images.values() if confidence(found, right=False)),
                   key=lambda found: -confidence(found, right=False))
    by_class: dict[int, list] = {}  # one right image of each class, as the classes come
    for found in images.values():
        if all(each.right for _, _, each in found):
            by_class.setdefault(found[0][2].label, found)
    right = list(by_class.values())[::max(1, len(by_class) // RIGHT)]
    return {"wrong": list(map(picture, wrong[:WRONG])), "right": list(map(picture, right[:RIGHT]))}


def thumbnail(path: str, as_shown: bool) -> str:
    """Return a small JPEG of an image as a data: address; "" if the image is not there any more, or damaged."""
    try:
        image = read_image(path, as_shown)
    except UnreadableImage:
        return ""
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


# One method's tests on a subject


def method_section(subject: Subject, experiment: Experiment, words: Words) -> dict[str, Any]:
    """Return the confusions, training curves and nearest words of a method."""
    counts = Counter((each.label, each.predicted) for each in experiment.predictions())
    small = len(subject.classnames) <= MATRIX
    trained = experiment.first.record.get("mode") == "train"
    return {
        "label": experiment.label,
        "folder": experiment.folder,
        "matrix": confusion_matrix(subject, counts) if counts and small else None,
        "confusions": confusion_list(subject, counts) if counts and not small else None,
        "curves": list(curves_of(experiment)) if trained else [],
        "words": words_of(experiment.first, words) if trained else None,
    }


def confusion_matrix(subject: Subject, counts: Counter) -> list[tuple[str, list[tuple[int, float, bool]]]]:
    """Return, for each true class, its name and for each predicted one the count, its share and whether it is right."""
    rows = []
    places = range(len(subject.classnames))
    for label, name in enumerate(subject.classnames):
        total = sum(counts[label, predicted] for predicted in places)
        rows.append((name, [(counts[label, predicted], counts[label, predicted] / max(total, 1), label == predicted)
                            for predicted in places]))  # fmt: skip
    return rows


def confusion_list(subject: Subject, counts: Counter) -> Table:
    """Return the most frequent confusions of two classes."""
    names, totals = subject.classnames, Counter[int]()
    for (label, _), count in counts.items():
        totals[label] += count
    wrong = [(pair, count) for pair, count in counts.most_common() if pair[0] != pair[1]]
    return Table(["Class", "Predicted", "Images", "Of the class"], [
        [names[label], names[predicted], str(count), f"{100 * count / totals[label]:.0f}%"]
        for (label, predicted), count in wrong[:CONFUSIONS]])


def curves_of(experiment: Experiment) -> Iterator[tuple[Markup, Table]]:
    """Yield the figures of the trainings, a line for each seed, with the first and the last values."""
    found = [(f"seed {run.record.get('seed', '?')}", read_curves(osp.join(run.folder, "tensorboard")))
             for run in experiment.runs]  # fmt: skip
    for tag, (title, unit, same) in CURVES.items():
        lines = {seed: thinned(curves[tag]) for seed, curves in found if tag in curves}
        if same and lines:
            lines = {"all seeds": next(iter(lines.values()))}
        if lines:
            table = Table([title, "First", "Last"], [
                [label, *(f"{points[end(points)]:.4g}" for end in (min, max))] for label, points in lines.items()])
            yield figures.svg(figures.lines(title, lines, unit), f"{title}: {experiment.label}"), table


def thinned(points: dict[int, float]) -> dict[int, float]:
    """Return at most about POINTS points of a curve, with the first and the last."""
    steps = sorted(points)
    return {step: points[step] for step in [*steps[::-(-len(steps) // POINTS)], steps[-1]]}


def words_of(run: Tested, words: Words) -> dict[str, Any]:
    """Return the nearest words of a training, or why there are none."""
    try:
        rows = words(run.folder)
    except (*MISTAKES, RuntimeError) as error:  # weights that are not here, or a checkpoint of another version
        return {"fault": one_line(error), "table": None}
    table = Table(["Part", "Layer", "Token", "Nearest words, with distances"], rows[:TEXTS])
    fault = f"{len(rows) - TEXTS} more tokens: python -m p2c interpret {run.folder}" if len(rows) > TEXTS else ""
    return {"fault": fault, "table": table, "seed": run.record.get("seed", "?")}
