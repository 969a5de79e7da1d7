"""The test of the frozen choice: all cells that the report needs, and the report as Markdown, CSV and figures."""
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
from p2c.study.plan import Ablations, Compare, Group, Initialisations, Settings, Study, Variant

MEASURES = ("base", "novel", "hm")
Measure = str | Callable[[Measured], float]  # an attribute of Measured, or a function of it
DOUBT = {"low confidence": "auroc_confidence", "mutual information": "auroc_mutual_information",
         "share of draws that dissent": "auroc_dissent"}  # metrics of a test with cloud inference
TITLES = {"base": "Base", "novel": "Novel", "hm": "HM"}


@dataclass(frozen=True)
class Row:
    """The result of one test of a cell.

    Attributes:
        part: "compare", "cloud", "ablations: TITLE" or "initialisations".
        name: a trainer or variant.
    """

    part: str
    name: str
    cell: Cell
    test: Settings
    found: Measured


class Rows:
    """All tests of a report, looked up by part, name and dataset.

    Attributes:
        faults: (part, name) -> number of trainings that ended with a loss that is not finite.
    """

    def __init__(self, rows: Sequence[Row], faults: Counter):
        self.rows, self.faults = rows, faults

    def values(self, part: str, name: str, dataset: str, measure: Measure) -> list[float]:
        """Return a measure of a part's line on a dataset, in the order of the seeds."""
        rows = [row for row in self.rows if (row.part, row.name, row.cell.dataset) == (part, name, dataset)]
        ordered = sorted(rows, key=lambda row: (row.cell.seed, row.cell.name))
        return [getattr(row.found, measure) if isinstance(measure, str) else measure(row.found) for row in ordered]

    def differences(self, part: str, names: Sequence[str], dataset: str, measure: Measure) -> list[float]:
        """Return the first line minus the second, seed by seed."""
        first, second = (self.values(part, name, dataset, measure) for name in names)
        return [a - b for a, b in zip(first, second, strict=True)]


def run(study: Study, choice: Choice, place: Place, jobs: int) -> Rows:
    """Train and test everything that the report needs.

    Raises:
        FloatingPointError: a training ended with a loss that is not finite; ablations may.
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
            chosen, seeds = {}, 1  # of zero-shot CLIP, which learns nothing
            if trainer in choice.own:
                chosen, seeds = choice.settings(trainer), study.compare.seeds
            cloud = [choice.cloud[trainer]] if trainer in choice.cloud else []
            for seed in range(1, seeds + 1):
                cell = Cell(REPORT, trainer, study.config, dataset, seed, {**study.settings, **chosen}, [{}, *cloud])
                yield "compare", trainer, cell, {}
                for test in cloud:
                    yield "cloud", trainer, cell, test


def ablations(study: Study, choice: Choice) -> Iterator[Planned]:
    if not (part := study.ablations):
        return
    for group in part.groups:
        for variant in group.variants:
            settings = {**study.settings, **choice.settings(*variant.chosen), **variant.settings}
            for seed in range(1, part.seeds + 1):
                cell = Cell(REPORT, variant.trainer, study.config, part.dataset, seed, settings)
                yield f"ablations: {group.title}", variant.name, cell, {}


def initialisations(study: Study, choice: Choice) -> Iterator[Planned]:
    if not (part := study.initialisations):
        return
    for trainer in part.trainers:
        for seed in range(1, part.seeds + 1):
            settings = {**study.settings, **choice.settings(trainer), "TRAIN.INIT_SEED": 1000 + seed}
            yield "initialisations", trainer, Cell(REPORT, trainer, study.config, part.dataset, 1, settings), {}


# What is written


def write(study: Study, choice: Choice, rows: Rows, place: Place, command: str) -> list[str]:
    """Write report.md, cells.csv and the figures; return their paths."""
    folder = Path(place.output)
    write_cells(rows, place)
    figures = {"differences.png": plots.differences(comparison_estimates(study, rows))}
    sections = [head(study, choice, command), chosen_section(study, choice), compare_section(study, rows)]
    if study.ablations:
        figures["ablations.png"] = plots.ablations(ablation_estimates(study.ablations, rows), study.ablations.dataset)
        sections.append(ablation_section(study.ablations, rows))
    if study.initialisations:
        sections.append(spread_section(study.compare, study.initialisations, rows))
    if study.cloud:
        figures["reliability.png"] = plots.reliability(reliability_bins(choice, rows))
        sections.append(cloud_section(study, choice, rows))
    for name, figure in figures.items():
        write_figure(folder / name, figure)
    write_atomically(folder / "report.md", "\n\n".join(sections) + "\n")
    return [str(folder / name) for name in ("report.md", "cells.csv", *figures)]


def write_cells(rows: Rows, place: Place) -> None:
    """Write cells.csv, one line for each test."""
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

Accuracies in %; HM: harmonic mean of base and novel, for each seed. ± is the standard deviation over seeds (n - 1).
Intervals are 95% confidence intervals of paired differences (Student's t over seeds). Settings were chosen on
validation images of {' and '.join(study.search.datasets)}; the choice's SHA-256 is {choice.digest}."""


def chosen_section(study: Study, choice: Choice) -> str:
    lines = [f"## The choice\n\nEach trainer had {len(study.search.spaces[0].trials())} trials, scored by the HM of "
             "the two halves of the base classes (validation images), the mean over "
             f"{len(study.search.datasets)} datasets and {study.search.seeds} seeds."]
    for space in study.search.spaces:
        trials = choice.content["trials"][space.trainer]
        table = [[*values(trial["settings"]), *(number(trial.get(measure)) for measure in MEASURES),
                  remark(trial, choice.own[space.trainer])] for trial in trials]
        more = f", on top of {space.inherits}'s choice" if space.inherits else ""
        lines += [f"**{space.trainer}**{more}", markdown([*space.grid, *TITLES.values(), ""], table)]
    if study.cloud:
        for trainer, trials in choice.content["cloud_trials"].items():
            table = [[*values(trial["settings"]), number(trial["hm"]), number(trial["ece"]), number(trial["nll"], 4),
                      remark(trial, choice.cloud[trainer])] for trial in trials]
            lines += [f"**Cloud inference, {trainer}** (by NLL)",
                      markdown([*trials[0]["settings"], "HM", "ECE", "NLL", ""], table)]
    return "\n\n".join(lines)


def remark(trial: dict, chosen: Settings) -> str:
    if trial["settings"] == chosen:
        return "chosen"
    return "loss not finite" if "fault" in trial else ""


def compare_section(study: Study, rows: Rows) -> str:
    compare = study.compare
    table = [[dataset, trainer, *(spread(rows.values("compare", trainer, dataset, measure)) for measure in MEASURES)]
             for dataset in compare.datasets for trainer in compare.trainers]
    first, second = compare.difference
    estimates = comparison_estimates(study, rows)
    k = len(compare.datasets)
    differences = []
    for name, (found, corrected) in estimates.items():
        last = [interval(corrected), f"{corrected.p:.2g}"] if corrected else ["", ""]
        differences.append([name, *(interval(found[measure]) for measure in MEASURES), *last])
    overall = estimates["pooled"][0]["hm"]
    return "\n\n".join([
        f"## Base-to-novel, {compare.seeds} seeds",
        markdown(["dataset", "trainer", *TITLES.values()], table),
        f"**{first} - {second}**, mean [95% CI]; corrected: {k} intervals that hold jointly (Bonferroni), with p "
        f"times {k}; pooled: all datasets weigh the same",
        markdown(["dataset", *TITLES.values(), "HM, corrected", "p, corrected"], differences),
        f"Pooled over the datasets {sentence(first, second, overall)}",
        "![Differences](differences.png)"])


def comparison_estimates(study: Study, rows: Rows) -> dict[str, tuple[dict[str, Estimate], Estimate | None]]:
    """Return by dataset, and for "pooled", the estimate of each measure, and the corrected one of HM, if any."""
    compare = study.compare
    found = {dataset: {measure: rows.differences("compare", compare.difference, dataset, measure)
                       for measure in MEASURES} for dataset in compare.datasets}
    estimates: dict = {dataset: ({measure: paired(values) for measure, values in by_measure.items()},
                                 paired(by_measure["hm"], len(found))) for dataset, by_measure in found.items()}
    estimates["pooled"] = ({measure: pooled({dataset: found[dataset][measure] for dataset in found})
                            for measure in MEASURES}, None)
    return estimates


def ablation_estimates(part: Ablations, rows: Rows) -> dict[str, dict[str, Estimate]]:
    """Return by group and variant the difference in HM to the variant that it is compared with, if there is one."""
    return {group.title: {f"{variant.name} - {variant.against}": found for variant in group.variants
                          if (found := against(rows, group, variant, part.dataset))} for group in part.groups}


def ablation_section(part: Ablations, rows: Rows) -> str:
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
    """Return the difference in HM to the variant that one is compared with, or None if there is none or no result."""
    part = f"ablations: {group.title}"
    if not variant.against or rows.faults[part, variant.name] or rows.faults[part, variant.against]:
        return None
    return paired(rows.differences(part, (variant.name, variant.against), dataset, "hm"))


def spread_section(compare: Compare, part: Initialisations, rows: Rows) -> str:
    """Return the standard deviations over all of a seed's randomness, and over the initial prompts alone."""
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
        "Standard deviations over runs; p of the hypothesis that they are equal (Pitman and Morgan, paired runs, not "
        "corrected for the number of tests).",
        markdown(["dataset", "runs differ in", "n", "", first, second, "p"], table)])


def cloud_section(study: Study, choice: Choice, rows: Rows) -> str:
    datasets, seeds = study.compare.datasets, study.compare.seeds
    measures: dict[str, Measure] = {"HM": "hm", "ECE": both("ece"), "NLL": both("nll")}
    lines = [f"## Cloud inference, {seeds} seeds",
             "Cloud minus point inference, mean [95% CI]; ECE (%) and NLL (nats) are means over base and novel."]
    for trainer, settings in choice.cloud.items():
        found: dict[str, dict[str, list[float]]] = {}
        table = []
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
                  markdown(["dataset", *(f"{title}, point" for title in measures),
                            *(f"{title}, difference" for title in measures)], table),
                  "How well these tell wrong predictions of the cloud from right ones (AUROC in %; 50: not at all)",
                  markdown(["dataset", *DOUBT], table_of_doubt)]
    return "\n\n".join([*lines, "![Reliability](reliability.png)"])


def both(metric: str) -> Callable[[Measured], float]:
    """Return a function for the mean of a metric over base and novel."""
    return lambda found: fmean(half[metric] for half in found.halves)


def reliability_bins(choice: Choice, rows: Rows) -> dict[str, list[dict]]:
    """Return the confidence bins of every test, by trainer and kind of inference."""
    kinds = {"compare": "point", "cloud": "cloud"}
    return {f"{trainer}, {kind}": [half["reliability"] for row in rows.rows if (row.part, row.name) == (part, trainer)
                                   for half in row.found.halves]
            for trainer in choice.cloud for part, kind in kinds.items()}


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
    mean = f"{fmean(sample):.1f}"
    return f"{mean} ± {stdev(sample):.1f}" if len(sample) > 1 else mean


def interval(found: Estimate, digits: int = 1) -> str:
    return f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"


def sentence(first: str, second: str, found: Estimate) -> str:
    """Return in words what an estimate of HM says."""
    size = f"({found.mean:+.2f} points, 95% CI [{found.low:+.2f}, {found.high:+.2f}])"
    if found.includes_zero:
        return f"no difference between {first} and {second} is shown: the interval includes 0 {size}."
    return f"{first} is {'better' if found.mean > 0 else 'worse'} than {second} {size}."
