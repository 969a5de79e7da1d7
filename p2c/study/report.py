"""The frozen choice, tested: every cell that the report needs, and the report as Markdown, CSV and pictures."""
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from tabulate import tabulate

from p2c.engine.files import write_atomically, write_csv, write_figure
from p2c.study import plots
from p2c.study.analysis import Estimate, paired, pooled, spreads
from p2c.study.cells import REPORT, Cell, Measured, Place, measured, run_cells
from p2c.study.choice import Choice
from p2c.study.plan import Group, Settings, Study, Variant

MEASURES = ("base", "novel", "hm")
DOUBT = {"low confidence": "auroc_confidence", "mutual information": "auroc_mutual_information",
         "share of draws that dissent": "auroc_dissent"}  # metrics of a test with a cloud
TITLES = {"base": "Base", "novel": "Novel", "hm": "HM"}


@dataclass(frozen=True)
class Row:
    """One cell's test.

    Attributes:
        part: "compare", "cloud", "ablations: TITLE" or "initialisations".
        name: the trainer, or a variant's name.
    """

    part: str
    name: str
    cell: Cell
    test: Settings
    found: Measured


class Rows:
    """All tests of a report, to be looked up by what they are of.

    Attributes:
        faults: by part and name, how many of a line's trainings ended with a loss that is not finite.
    """

    def __init__(self, rows: Sequence[Row], faults: Counter):
        self.rows, self.faults = rows, faults

    def values(self, part: str, name: str, dataset: str, measure: Callable[[Measured], float] | str) -> list[float]:
        """A measure of a part's line on a data set, in the order of seeds."""
        get = (lambda found: getattr(found, measure)) if isinstance(measure, str) else measure
        rows = [row for row in self.rows if (row.part, row.name, row.cell.dataset) == (part, name, dataset)]
        return [get(row.found) for row in sorted(rows, key=lambda row: (row.cell.seed, row.cell.name))]

    def differences(self, part: str, names: Sequence[str], dataset: str, measure) -> list[float]:
        """The first line minus the second, seed by seed."""
        first, second = (self.values(part, name, dataset, measure) for name in names)
        return [a - b for a, b in zip(first, second, strict=True)]


def run(study: Study, choice: Choice, place: Place, jobs: int) -> Rows:
    """Train and test all that the report needs.

    Raises:
        FloatingPointError: a training that is not of an ablation ended with a loss that is not finite.
    """
    needed = [*comparison(study, choice), *initialisations(study, choice)]
    planned = [*needed, *ablations(study, choice)]
    faults = run_cells("Report", [cell for _, _, cell, _ in planned], place, jobs)
    for _, _, cell, _ in needed:
        if cell.name in faults:
            raise FloatingPointError(f"The training in {cell.name} has no result: {faults[cell.name]}")
    rows = [Row(part, name, cell, test, measured(cell, place, test)) for part, name, cell, test in planned
            if cell.name not in faults]
    return Rows(rows, Counter((part, name) for part, name, cell, _ in planned if cell.name in faults))


Planned = tuple[str, str, Cell, Settings]


def comparison(study: Study, choice: Choice) -> Iterator[Planned]:
    for dataset in study.compare.datasets:
        for trainer in study.compare.trainers:
            trained = trainer in choice.own
            for seed in range(1, study.compare.seeds + 1) if trained else (1,):
                settings = {**study.settings, **(choice.settings(trainer) if trained else {})}
                tests = [{}, *([choice.cloud[trainer]] if trainer in choice.cloud else [])]
                cell = Cell(REPORT, trainer, study.config, dataset, seed, settings, tests)
                yield "compare", trainer, cell, {}
                if trainer in choice.cloud:
                    yield "cloud", trainer, cell, choice.cloud[trainer]


def ablations(study: Study, choice: Choice) -> Iterator[Planned]:
    for group in study.ablations.groups if study.ablations else ():
        for variant in group.variants:
            settings = {**study.settings, **choice.settings(*variant.chosen), **variant.settings}
            for seed in range(1, study.ablations.seeds + 1):
                cell = Cell(REPORT, variant.trainer, study.config, study.ablations.dataset, seed, settings)
                yield f"ablations: {group.title}", variant.name, cell, {}


def initialisations(study: Study, choice: Choice) -> Iterator[Planned]:
    part = study.initialisations
    for trainer in part.trainers if part else ():
        for seed in range(1, part.seeds + 1):
            settings = {**study.settings, **choice.settings(trainer), "TRAIN.INIT_SEED": 1000 + seed}
            yield "initialisations", trainer, Cell(REPORT, trainer, study.config, part.dataset, 1, settings), {}


# What is written


def write(study: Study, choice: Choice, rows: Rows, place: Place, command: str) -> list[str]:
    """Write report.md, cells.csv and the pictures; returns their paths."""
    folder = Path(place.output)
    write_cells(rows, place)
    pictures = {"differences.png": plots.differences(comparison_estimates(study, rows))}
    if study.ablations:
        pictures["ablations.png"] = plots.ablations(ablation_estimates(study, rows), study.ablations.dataset)
    if study.cloud:
        pictures["reliability.png"] = plots.reliability(reliability_bins(choice, rows))
    for name, figure in pictures.items():
        write_figure(folder / name, figure)
    sections = [head(study, choice, command), chosen_section(study, choice), compare_section(study, rows)]
    if study.ablations:
        sections += [ablation_section(study, rows)]
    if study.initialisations:
        sections += [spread_section(study, rows)]
    if study.cloud:
        sections += [cloud_section(study, choice, rows)]
    write_atomically(folder / "report.md", "\n\n".join(sections) + "\n")
    return [str(folder / name) for name in ("report.md", "cells.csv", *pictures)]


def write_cells(rows: Rows, place: Place) -> None:
    """Write cells.csv: a line for each test."""
    metrics = ("ece", "nll")
    columns = ["part", "name", "trainer", "dataset", "seed", *MEASURES,
               *(f"{half}_{metric}" for half in MEASURES[:2] for metric in metrics), "settings", "test", "run",
               "choice_sha256"]
    write_csv(Path(place.output) / "cells.csv", columns, [[
        row.part, row.name, row.cell.trainer, row.cell.dataset, row.cell.seed,
        *(getattr(row.found, measure) for measure in MEASURES),
        *(half[metric] for half in row.found.halves for metric in metrics), json.dumps(row.cell.settings),
        json.dumps(row.test), row.cell.name, place.choice] for row in rows.rows])


def head(study: Study, choice: Choice, command: str) -> str:
    return f"""# Report of {study.path}

    {command}

Accuracies in %, HM: harmonic mean of base and novel of each seed. ± is the standard deviation over seeds (n - 1).
Intervals are 95% confidence intervals of paired differences (Student's t over seeds). Settings were chosen on
validation images of {' and '.join(study.search.datasets)}; the choice's SHA-256 is {choice.digest}."""


def chosen_section(study: Study, choice: Choice) -> str:
    lines = [f"## The choice\n\nEach trainer had {len(study.search.spaces[0].trials())} trials, scored by the HM of "
             "the two halves of the base classes (validation images), the mean over "
             f"{len(study.search.datasets)} data sets and {study.search.seeds} seeds."]
    for space in study.search.spaces:
        trials = choice.content["trials"][space.trainer]
        table = [[*(values(trial["settings"])), *(number(trial.get(measure)) for measure in MEASURES),
                  "chosen" if trial["settings"] == choice.own[space.trainer] else
                  "loss not finite" if "fault" in trial else ""]
                 for trial in trials]
        more = f", on top of {space.inherits}'s choice" if space.inherits else ""
        lines += [f"**{space.trainer}**{more}", markdown([*space.grid, *TITLES.values(), ""], table)]
    if study.cloud:
        for trainer, trials in choice.content["cloud_trials"].items():
            table = [[*values(trial["settings"]), number(trial["hm"]), number(trial["ece"]), number(trial["nll"], 4),
                      "chosen" if trial["settings"] == choice.cloud[trainer] else ""] for trial in trials]
            lines += [f"**Cloud inference, {trainer}** (by NLL)",
                      markdown([*trials[0]["settings"], "HM", "ECE", "NLL", ""], table)]
    return "\n\n".join(lines)


def compare_section(study: Study, rows: Rows) -> str:
    compare = study.compare
    table = [[dataset, trainer, *(spread(rows.values("compare", trainer, dataset, measure)) for measure in MEASURES)]
             for dataset in compare.datasets for trainer in compare.trainers]
    first, second = compare.difference
    estimates = comparison_estimates(study, rows)
    k = len(compare.datasets)
    differences = [[name, *(interval(found[measure]) for measure in MEASURES),
                    *(("", "") if corrected is None else (interval(corrected), f"{corrected.p:.2g}"))]
                   for name, (found, corrected) in estimates.items()]
    overall = next(reversed(estimates.values()))[0]["hm"]
    return "\n\n".join([
        f"## Base-to-novel, {compare.seeds} seeds",
        markdown(["data set", "trainer", *TITLES.values()], table),
        f"**{first} - {second}**, mean [95% CI]; corrected: {k} intervals that hold together (Bonferroni), with p "
        f"times {k}; pooled: the data sets count alike",
        markdown(["data set", *TITLES.values(), "HM, corrected", "p, corrected"], differences),
        f"Pooled over the data sets {sentence(first, second, overall)}",
        "![Differences](differences.png)"])


def comparison_estimates(study: Study, rows: Rows) -> dict[str, tuple[dict[str, Estimate], Estimate | None]]:
    """By data set, and "pooled" at the end: the estimate of each measure, and HM's corrected for their number."""
    compare = study.compare
    found = {dataset: {measure: rows.differences("compare", compare.difference, dataset, measure)
                       for measure in MEASURES} for dataset in compare.datasets}
    estimates: dict = {dataset: ({measure: paired(values) for measure, values in by_measure.items()},
                                 paired(by_measure["hm"], len(found))) for dataset, by_measure in found.items()}
    estimates["pooled"] = ({measure: pooled({dataset: found[dataset][measure] for dataset in found})
                            for measure in MEASURES}, None)
    return estimates


def ablation_estimates(study: Study, rows: Rows) -> dict[str, dict[str, Estimate]]:
    """By group and variant: the difference in HM to the variant that it is compared with, where both have results."""
    dataset = study.ablations.dataset
    return {group.title: {f"{variant.name} - {variant.against}": found for variant in group.variants
                          if (found := against(rows, group, variant, dataset))} for group in study.ablations.groups}


def ablation_section(study: Study, rows: Rows) -> str:
    part = study.ablations
    lines = [f"## Ablations on {part.dataset}, {part.seeds} seeds"]
    for group in part.groups:
        name = f"ablations: {group.title}"
        table = []
        for variant in group.variants:
            if failed := rows.faults[name, variant.name]:
                table.append([variant.name, "", "", "", f"loss not finite in {failed} of {part.seeds} runs"])
                continue
            found = against(rows, group, variant, part.dataset)
            table.append([variant.name,
                          *(spread(rows.values(name, variant.name, part.dataset, measure)) for measure in MEASURES),
                          f"{interval(found)} to {variant.against}" if found else ""])
        lines += [f"**{group.title}**", markdown(["", *TITLES.values(), "HM, difference"], table)]
    return "\n\n".join([*lines, "![Ablations](ablations.png)"])


def against(rows: Rows, group: Group, variant: Variant, dataset: str) -> Estimate | None:
    """The difference in HM to the variant that one is compared with; None if there is none, or one has no result."""
    part = f"ablations: {group.title}"
    if not variant.against or rows.faults[part, variant.name] or rows.faults[part, variant.against]:
        return None
    return paired(rows.differences(part, (variant.name, variant.against), dataset, "hm"))


def spread_section(study: Study, rows: Rows) -> str:
    """Standard deviations over all of a seed's randomness, and over the initial prompts alone."""
    part, compare = study.initialisations, study.compare
    first, second = compare.difference
    table = []
    for label, name, dataset in (*(("seeds", "compare", dataset) for dataset in compare.datasets),
                                 ("initial prompts alone", "initialisations", part.dataset)):
        for measure in MEASURES:
            samples = [rows.values(name, trainer, dataset, measure) for trainer in (first, second)]
            found = spreads(*samples)
            table.append([dataset, label, len(samples[0]), TITLES[measure], number(found.first, 2),
                          number(found.second, 2), f"{found.p:.2g}"])
    return "\n\n".join([
        "## Spread with and without denoising",
        "Standard deviations over runs; p of their being equal (Pitman and Morgan, paired runs, not corrected for the "
        "number of tests).",
        markdown(["data set", "runs differ in", "n", "", first, second, "p"], table)])


def cloud_section(study: Study, choice: Choice, rows: Rows) -> str:
    datasets, seeds = study.compare.datasets, study.compare.seeds
    measures = {"HM": "hm", "ECE": both("ece"), "NLL": both("nll")}
    lines = [f"## Cloud inference, {seeds} seeds",
             "Cloud minus point, mean [95% CI]; ECE (%) and NLL (nats) are means over base and novel."]
    for trainer, settings in choice.cloud.items():
        table, found = [], {}
        for dataset in datasets:
            found[dataset] = {title: [a - b for a, b in zip(rows.values("cloud", trainer, dataset, measure),
                                                            rows.values("compare", trainer, dataset, measure),
                                                            strict=True)] for title, measure in measures.items()}
            table.append([dataset, *(f"{fmean(rows.values('compare', trainer, dataset, measure)):.{digits(title)}f}"
                                     for title, measure in measures.items()),
                          *(interval(paired(found[dataset][title]), digits(title)) for title in measures)])
        table.append(["pooled", *[""] * len(measures),
                      *(interval(pooled({dataset: found[dataset][title] for dataset in datasets}), digits(title))
                        for title in measures)])
        table_of_doubt = [[dataset, *(spread(rows.values("cloud", trainer, dataset, both(metric)))
                                      for metric in DOUBT.values())] for dataset in datasets]
        words = ", ".join(f"{key} {value}" for key, value in settings.items())
        lines += [f"**{trainer}**, {words}",
                  markdown(["data set", *(f"{title}, point" for title in measures),
                            *(f"{title}, difference" for title in measures)], table),
                  "How well wrong predictions of the cloud are told from right ones (AUROC in %, 50: not at all), by",
                  markdown(["data set", *DOUBT], table_of_doubt)]
    return "\n\n".join([*lines, "![Reliability](reliability.png)"])


def both(metric: str) -> Callable[[Measured], float]:
    """The mean of a metric over base and novel."""
    return lambda found: fmean(half[metric] for half in found.halves)


def reliability_bins(choice: Choice, rows: Rows) -> dict[str, list[dict]]:
    """By trainer and kind of inference: every test's bins of confidence."""
    return {f"{trainer}, {'cloud' if part == 'cloud' else 'point'}": [
        found["reliability"] for row in rows.rows if row.part == part and row.name == trainer
        for found in row.found.halves] for trainer in choice.cloud for part in ("compare", "cloud")}


# Text


def markdown(headers: Sequence[str], table: Sequence[Sequence]) -> str:
    return tabulate(table, headers, tablefmt="github", disable_numparse=True)


def values(settings: Settings) -> list[str]:
    return [str(value) for value in settings.values()]


def number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def digits(title: str) -> int:
    return 3 if title == "NLL" else 1


def spread(sample: Sequence[float]) -> str:
    return f"{fmean(sample):.1f}" + (f" ± {stdev(sample):.1f}" if len(sample) > 1 else "")


def interval(found: Estimate, digits: int = 1) -> str:
    return f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"


def sentence(first: str, second: str, found: Estimate) -> str:
    """What an estimate of HM says, in words."""
    size = f"({found.mean:+.2f} points, 95% CI [{found.low:+.2f}, {found.high:+.2f}])"
    if found.includes_zero:
        return f"no difference between {first} and {second} is shown: the interval includes 0 {size}."
    return f"{first} is {'better' if found.mean > 0 else 'worse'} than {second} {size}."
