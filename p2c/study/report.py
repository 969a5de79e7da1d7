"""The test of the frozen choice: all cells that the report needs, and the report as Markdown, CSV and figures."""
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from tabulate import tabulate

from p2c.engine.files import write_atomically, write_csv, write_figure
from p2c.study import plots
from p2c.study.analysis import Estimate, equal_spreads, paired, pooled
from p2c.study.cells import REPORT, Cell, Measured, Place, measured, run_cells
from p2c.study.choice import Choice
from p2c.study.plan import Ablations, Compare, Initialisations, Settings, Study
from p2c.tables.figures import reliability

TITLES = {"base": "Base", "novel": "Novel", "hm": "HM"}  # measures
DOUBT = {"low confidence": "auroc_confidence", "mutual information": "auroc_mutual_information",
         "share of draws that dissent": "auroc_dissent"}  # metrics of a test with cloud inference


class Row(NamedTuple):
    """One test of a cell, planned or with its result."""

    part: str  # "compare", "cloud", "ablations: TITLE" or "initialisations"
    name: str  # of a trainer or variant
    cell: Cell
    test: Settings
    found: Measured = Measured(math.nan, math.nan, ())


class Rows:
    """All tests of a report, looked up by part, name and dataset."""

    def __init__(self, rows: Sequence[Row], faults: Counter):
        self.rows = rows
        self.faults = faults  # (part, name) -> number of trainings that ended with a loss that is not finite

    def values(self, part: str, name: str, dataset: str, measure: str) -> list[float]:
        """Return a measure of a part's line on a dataset, in the order of the seeds, and of one seed as planned."""
        rows = [row for row in self.rows if (row.part, row.name, row.cell.dataset) == (part, name, dataset)]
        return [row.found.value(measure) for row in sorted(rows, key=lambda row: row.cell.seed)]

    def differences(self, part: str, names: Sequence[str], dataset: str, measure: str) -> list[float]:
        """Return the first line minus the second, seed by seed."""
        first, second = (self.values(part, name, dataset, measure) for name in names)
        return [a - b for a, b in zip(first, second, strict=True)]

    def spread(self, part: str, name: str, dataset: str, measure: str) -> str:
        """Return the mean and standard deviation of a line in words."""
        sample = self.values(part, name, dataset, measure)
        return f"{fmean(sample):.1f}" + (f" ± {stdev(sample):.1f}" if len(sample) > 1 else "")


def run(study: Study, choice: Choice, place: Place, jobs: int) -> Rows:
    """Train and test everything that the report needs.

    Raises:
        FloatingPointError: a training ended with a loss that is not finite; ablations may.
    """
    planned = [*comparison(study, choice), *initialisations(study, choice), *ablations(study, choice)]
    faults = run_cells("Report", [row.cell for row in planned], place, jobs)
    failed = [row for row in planned if row.cell.name in faults]
    for row in failed:
        if not row.part.startswith("ablations"):
            raise FloatingPointError(f"The training in {row.cell.name} has no result: {faults[row.cell.name]}")
    rows = [row._replace(found=measured(row.cell, place, row.test)) for row in planned if row.cell.name not in faults]
    return Rows(rows, Counter((row.part, row.name) for row in failed))


def comparison(study: Study, choice: Choice) -> Iterator[Row]:
    for dataset in study.compare.datasets:
        for trainer in study.compare.trainers:
            chosen, seeds = {}, 1  # of zero-shot CLIP, which learns nothing
            if trainer in choice.own:
                chosen, seeds = choice.settings(trainer), study.compare.seeds
            cloud = [choice.cloud[trainer]] if trainer in choice.cloud else []
            for seed in range(1, seeds + 1):
                cell = Cell(REPORT, trainer, study.config, dataset, seed, {**study.settings, **chosen}, [{}, *cloud])
                yield Row("compare", trainer, cell, {})
                for test in cloud:
                    yield Row("cloud", trainer, cell, test)


def ablations(study: Study, choice: Choice) -> Iterator[Row]:
    if not (part := study.ablations):
        return
    for group in part.groups:
        for variant in group.variants:
            settings = {**study.settings, **choice.settings(*(variant.chosen or [variant.trainer])), **variant.settings}
            for seed in range(1, part.seeds + 1):
                cell = Cell(REPORT, variant.trainer, study.config, part.dataset, seed, settings)
                yield Row(f"ablations: {group.title}", variant.name, cell, {})


def initialisations(study: Study, choice: Choice) -> Iterator[Row]:
    if not (part := study.initialisations):
        return
    for trainer in part.trainers:
        for seed in range(1, part.seeds + 1):
            settings = {**study.settings, **choice.settings(trainer), "TRAIN.INIT_SEED": 1000 + seed}
            yield Row("initialisations", trainer, Cell(REPORT, trainer, study.config, part.dataset, 1, settings), {})


# What is written


def write(study: Study, choice: Choice, rows: Rows, place: Place, command: str) -> list[str]:
    """Write report.md, cells.csv and the figures; return their paths."""
    folder = Path(place.output)
    write_cells(rows, folder, place.choice)
    estimates = comparison_estimates(study.compare, rows)
    figures = {"differences.png": plots.differences(estimates)}
    sections = [head(study, choice, command), *chosen_section(study, choice),
                *compare_section(study.compare, rows, estimates)]
    if study.ablations:
        effects = ablation_estimates(study.ablations, rows)
        figures["ablations.png"] = plots.ablations(effects, study.ablations.dataset)
        sections += ablation_section(study.ablations, rows, effects)
    if study.initialisations:
        sections += spread_section(study.compare, study.initialisations, rows)
    if study.cloud:
        figures["reliability.png"] = reliability(reliability_bins(choice, rows))
        sections += cloud_section(study.compare, choice, rows)
    for name, figure in figures.items():
        write_figure(folder / name, figure)
    write_atomically(folder / "report.md", "\n\n".join(sections) + "\n")
    return [str(folder / name) for name in ("report.md", "cells.csv", *figures)]


def write_cells(rows: Rows, folder: Path, choice: str) -> None:
    """Write cells.csv, one line for each test."""
    columns = ["part", "name", "trainer", "dataset", "seed", *TITLES, "base_ece", "base_nll", "novel_ece", "novel_nll",
               "settings", "test", "run", "choice_sha256"]
    lines = []
    for part, name, cell, test, found in rows.rows:
        numbers = [*(found.value(measure) for measure in TITLES),
                   *(half[metric] for half in found.halves for metric in ("ece", "nll"))]
        lines.append([part, name, cell.trainer, cell.dataset, cell.seed, *numbers, json.dumps(cell.settings),
                      json.dumps(test), cell.name, choice])
    write_csv(folder / "cells.csv", columns, lines)


def head(study: Study, choice: Choice, command: str) -> str:
    return f"""# Report of {study.path}

    {command}

Accuracies in %; HM: harmonic mean of base and novel, for each seed. ± is the standard deviation over seeds (n - 1).
Intervals are 95% confidence intervals of paired differences (Student's t over seeds). Settings were chosen on
validation images of {' and '.join(study.search.datasets)}; the choice's SHA-256 is {choice.digest}."""


def chosen_section(study: Study, choice: Choice) -> Iterator[str]:
    yield (f"## The choice\n\nEach trainer had {len(study.search.spaces[0].trials())} trials, scored by the HM of the "
           f"two halves of the base classes (validation images), the mean over {len(study.search.datasets)} datasets "
           f"and {study.search.seeds} seeds.")
    for space in study.search.spaces:
        more = f", on top of {space.inherits}'s choice" if space.inherits else ""
        yield f"**{space.trainer}**{more}"
        yield markdown([*space.grid, *TITLES.values(), ""], [
            [*trial["settings"].values(), *(number(trial.get(measure)) for measure in TITLES),
             remark(trial, choice.own[space.trainer])] for trial in choice.content["trials"][space.trainer]])
    for trainer, trials in choice.content["cloud_trials"].items():
        yield f"**Cloud inference, {trainer}** (by NLL)"
        yield markdown([*trials[0]["settings"], "HM", "ECE", "NLL", ""], [
            [*trial["settings"].values(), number(trial["hm"]), number(trial["ece"]), number(trial["nll"], 4),
             remark(trial, choice.cloud[trainer])] for trial in trials])


def remark(trial: dict, chosen: Settings) -> str:
    if trial["settings"] == chosen:
        return "chosen"
    return "loss not finite" if "fault" in trial else ""


def comparison_estimates(compare: Compare, rows: Rows) -> dict[str, dict[str, Estimate]]:
    """Return by dataset, and for "pooled", each measure's estimate; of a dataset also the "corrected" one of HM."""
    found = {measure: {dataset: rows.differences("compare", compare.difference, dataset, measure)
                       for dataset in compare.datasets} for measure in TITLES}
    estimates: dict[str, dict[str, Estimate]] = {}
    for dataset in compare.datasets:
        estimates[dataset] = {measure: paired(found[measure][dataset]) for measure in TITLES}
        estimates[dataset]["corrected"] = paired(found["hm"][dataset], len(compare.datasets))
    estimates["pooled"] = {measure: pooled(by_dataset) for measure, by_dataset in found.items()}
    return estimates


def compare_section(compare: Compare, rows: Rows, estimates: dict[str, dict[str, Estimate]]) -> Iterator[str]:
    first, second = compare.difference
    k = len(compare.datasets)
    yield f"## Base-to-novel, {compare.seeds} seeds"
    yield markdown(["dataset", "trainer", *TITLES.values()], [
        [dataset, trainer, *(rows.spread("compare", trainer, dataset, measure) for measure in TITLES)]
        for dataset in compare.datasets for trainer in compare.trainers])
    yield (f"**{first} - {second}**, mean [95% CI]; corrected: {k} intervals that hold jointly (Bonferroni), with p "
           f"times {k}; pooled: all datasets weigh the same")
    table = []
    for name, found in estimates.items():
        corrected = found.get("corrected")
        last = [interval(corrected), f"{corrected.p:.2g}"] if corrected else []
        table.append([name, *(interval(found[measure]) for measure in TITLES), *last])
    yield markdown(["dataset", *TITLES.values(), "HM, corrected", "p, corrected"], table)
    yield f"Pooled over the datasets {sentence(first, second, estimates['pooled']['hm'])}"
    yield "![Differences](differences.png)"


def ablation_estimates(part: Ablations, rows: Rows) -> dict[str, dict[str, Estimate]]:
    """Return by group the differences in HM of variants to those that they are compared with, if both have a result."""
    estimates: dict[str, dict[str, Estimate]] = {}
    for group in part.groups:
        name = f"ablations: {group.title}"
        estimates[group.title] = {
            f"{variant.name} - {variant.against}":
                paired(rows.differences(name, (variant.name, variant.against), part.dataset, "hm"))
            for variant in group.variants
            if variant.against and not (rows.faults[name, variant.name] or rows.faults[name, variant.against])}
    return estimates


def ablation_section(part: Ablations, rows: Rows, effects: dict[str, dict[str, Estimate]]) -> Iterator[str]:
    yield f"## Ablations on {part.dataset}, {part.seeds} seeds"
    for group in part.groups:
        name = f"ablations: {group.title}"
        table = []
        for variant in group.variants:
            if failed := rows.faults[name, variant.name]:
                table.append([variant.name, "", "", "", f"loss not finite in {failed} of {part.seeds} runs"])
                continue
            found = effects[group.title].get(f"{variant.name} - {variant.against}")
            table.append([variant.name, *(rows.spread(name, variant.name, part.dataset, measure) for measure in TITLES),
                          f"{interval(found)} to {variant.against}" if found else ""])
        yield f"**{group.title}**"
        yield markdown(["", *TITLES.values(), "HM, difference"], table)
    yield "![Ablations](ablations.png)"


def spread_section(compare: Compare, part: Initialisations, rows: Rows) -> Iterator[str]:
    """Yield the standard deviations over all of a seed's randomness, and over the initial prompts alone."""
    yield "## Spread with and without denoising"
    yield ("Standard deviations over runs; p of the hypothesis that they are equal (Pitman and Morgan, paired runs, "
           "not corrected for the number of tests).")
    table = []
    for label, name, dataset in (*(("seeds", "compare", dataset) for dataset in compare.datasets),
                                 ("initial prompts alone", "initialisations", part.dataset)):
        for measure, title in TITLES.items():
            first, second = (rows.values(name, trainer, dataset, measure) for trainer in compare.difference)
            table.append([dataset, label, len(first), title, number(stdev(first), 2), number(stdev(second), 2),
                          f"{equal_spreads(first, second):.2g}"])
    yield markdown(["dataset", "runs differ in", "n", "", *compare.difference, "p"], table)


def cloud_section(compare: Compare, choice: Choice, rows: Rows) -> Iterator[str]:
    measures = {"HM": ("hm", 1), "ECE": ("ece", 1), "NLL": ("nll", 3)}  # title -> measure, digits
    yield f"## Cloud inference, {compare.seeds} seeds"
    yield "Cloud minus point inference, mean [95% CI]; ECE (%) and NLL (nats) are means over base and novel."
    for trainer, settings in choice.cloud.items():
        point: dict[str, list[str]] = {dataset: [] for dataset in compare.datasets}
        differences: dict[str, list[str]] = {name: [] for name in (*compare.datasets, "pooled")}
        for measure, digits in measures.values():
            found = {}
            for dataset in compare.datasets:
                before = rows.values("compare", trainer, dataset, measure)
                after = rows.values("cloud", trainer, dataset, measure)
                found[dataset] = [a - b for a, b in zip(after, before, strict=True)]
                point[dataset].append(number(fmean(before), digits))
                differences[dataset].append(interval(paired(found[dataset]), digits))
            differences["pooled"].append(interval(pooled(found), digits))
        point["pooled"] = [""] * len(measures)
        yield f"**{trainer}**, " + ", ".join(f"{key} {value}" for key, value in settings.items())
        yield markdown(["dataset", *(f"{title}, point" for title in measures),
                        *(f"{title}, difference" for title in measures)],
                       [[name, *point[name], *differences[name]] for name in differences])
        yield "How well these tell wrong predictions of the cloud from right ones (AUROC in %; 50: not at all)"
        yield markdown(["dataset", *DOUBT], [
            [dataset, *(rows.spread("cloud", trainer, dataset, metric) for metric in DOUBT.values())]
            for dataset in compare.datasets])
    yield "![Reliability](reliability.png)"


def reliability_bins(choice: Choice, rows: Rows) -> dict[str, list[dict]]:
    """Return the confidence bins of every test, by trainer and kind of inference."""
    kinds = {"compare": "point", "cloud": "cloud"}
    return {f"{trainer}, {kind}": [half["reliability"] for row in rows.rows if (row.part, row.name) == (part, trainer)
                                   for half in row.found.halves]
            for trainer in choice.cloud for part, kind in kinds.items()}


# Text


def markdown(headers: Sequence[str], table: Sequence[Sequence]) -> str:
    return tabulate(table, headers, tablefmt="github", disable_numparse=True)


def number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def interval(found: Estimate, digits: int = 1) -> str:
    return f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"


def sentence(first: str, second: str, found: Estimate) -> str:
    """Return in words what an estimate of HM says."""
    size = f"({found.mean:+.2f} points, 95% CI [{found.low:+.2f}, {found.high:+.2f}])"
    if found.includes_zero:
        return f"no difference between {first} and {second} is shown: the interval includes 0 {size}."
    return f"{first} is {'better' if found.mean > 0 else 'worse'} than {second} {size}."
