"""Average the test results of several runs (seeds): CoOp's aggregator, and the base-to-novel table.

Results of one experiment, one folder per seed (mean and spread are printed in CoOp's format):

    python parse_test_res.py output/my_experiment                 # reads my_experiment/seed1/, seed2/, ...
    python parse_test_res.py output/my_experiment --test-log      # the logs are of evaluation-only runs
    python parse_test_res.py output --multi-exp                   # several experiments: output/exp1/seed1/, ...

A run's value is taken from its `results.json` (unrounded, finished runs only) where there is one, else from the newest
of its `log.txt`, `log.txt-DATE` with a result; logs of CoOp, MaPLe and their relatives are read too. Runs that do not
count are named.

Base-to-novel generalisation, from folders as the scripts write them, `train_base/` (or `test_base/`) and `test_new/`:

    python parse_test_res.py output/base2new --base2new [--format text|markdown|csv|latex]

For each trainer, config and number of shots: base, novel and their harmonic mean HM per data set, and their average.
Each data set's base and novel are means over the seeds that both halves have, and its HM is that of these two means.
The average row has the means over data sets and the HM of these means, as the papers do. The spread is the population
standard deviation over seeds, for HM that of the seeds' own HMs, in the average row that of the seeds' averages.
"""

from __future__ import annotations

import argparse
import csv
import glob
import json
import math
import os.path as osp
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from os import listdir
from statistics import fmean, pstdev

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

    @property
    def counts(self) -> bool:
        return not self.fault


# One run


def read_run(folder: str, keyword: str, test_log: bool) -> Run:
    """The run's value for keyword, from results.json if it is ours and has it, else from the log."""
    path = osp.join(folder, "results.json")
    results = read_results(path)
    if results is not None:
        if results.get("finished") is not True:
            return Run(folder, fault="not finished (results.json)")
        value = results.get("metrics", {}).get(METRICS.get(keyword, keyword))
        if isinstance(value, (int, float)):
            finite = math.isfinite(value)
            return Run(folder, path, float(value)) if finite else Run(folder, fault=f"{keyword} is {value}")
    return read_logs(folder, keyword, test_log)


def read_results(path: str) -> dict | None:
    """What results.json holds; None if there is none, or another program's."""
    try:
        with open(path, encoding="utf-8") as file:
            results = json.load(file)
    except (OSError, ValueError):
        return None
    return results if isinstance(results, dict) and results.get("format") == "p2c-results" else None


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
    pattern = re.compile(rf"\* {keyword}: (?P<percent>[\.\deE+-]+)%")
    ended, value = False, None
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in map(str.strip, file):
            ended = ended or line in signals
            match = pattern.search(line) if ended else None
            if match:
                value = number(match["percent"], value)
    return ended, value


def number(text: str, otherwise: float | None) -> float | None:
    """The pattern, which is CoOp's, also matches texts like "1.2.3" that are no number."""
    try:
        return float(text)
    except ValueError:
        return otherwise


# CoOp's report: folders of seeds


def folders_in(directory: str) -> list[str]:
    names = sorted(name for name in listdir(directory) if not name.startswith("."))
    return [path for path in (osp.join(directory, name) for name in names) if osp.isdir(path)]


def report(directory: str, keyword: str, test_log: bool, spread: Spread) -> tuple[float | None, int]:
    """Print the runs of a directory, then mean and spread. Gives the mean (None: nothing found), the runs left out."""
    print(f"Parsing files in {directory}")
    runs = [read_run(folder, keyword, test_log) for folder in folders_in(directory)]
    values = [run.value for run in runs if run.counts]
    for run in runs:
        print(f"file: {run.file}. {keyword}: {run.value:.2f}%. " if run.counts else left_out(run))
    missing = len(runs) - len(values)
    if not values:
        return None, missing
    if missing:
        print(f"{len(values)} of {len(runs)} runs counted")
    print("===")
    print(f"Summary of directory: {directory}")
    print(f"* {keyword}: {fmean(values):.2f}% +- {spread(values):.2f}%")
    print("===")
    return fmean(values), missing


def report_experiments(directory: str, keyword: str, test_log: bool, spread: Spread) -> tuple[float | None, int]:
    """report() of each experiment, then the mean of their means."""
    reports = [(folder, *report(folder, keyword, test_log, spread)) for folder in folders_in(directory)]
    means = [mean for _, mean, _ in reports if mean is not None]
    empty = [folder for folder, mean, _ in reports if mean is None]
    missing = sum(count for *_, count in reports) + len(empty)
    if not means:
        return None, missing
    for folder in empty:
        print(f"Nothing found in {folder}")
    if empty:
        print(f"{len(means)} of {len(reports)} experiments counted")
    print("Average performance")
    print(f"* {keyword}: {fmean(means):.2f}%")
    return fmean(means), missing


def left_out(run: Run) -> str:
    return f"not counted: {run.folder}: {run.fault}"


def std(values: list[float]) -> float:
    return pstdev(values)


def ci95(values: list[float]) -> float:
    """Half the width of the mean's 95% confidence interval."""
    return 1.96 * pstdev(values) / math.sqrt(len(values))


# The base-to-novel table

Seeds = dict[str, float]  # seed -> value
Group = tuple[str, str, str]  # trainer, config, shots
Table = dict[Group, dict[str, Seeds]]  # group -> data set -> seed -> value


@dataclass
class Row:
    """A line of a table. Spreads are None where the data sets of an average have different seeds."""

    name: str
    seeds: list[str]
    means: tuple[float, float, float]  # base, novel, HM
    spreads: tuple[float, float, float] | None


def harmonic_mean(base: float, novel: float) -> float:
    return 2 * base * novel / (base + novel) if base + novel else 0.0


def collect(roots: list[str], half: str, keyword: str, notes: list[str]) -> Table:
    """Values of the runs ROOT/half/DATASET/shots_K/TRAINER/CFG/seedN; a run that does not count is put into notes."""
    table: Table = {}
    for root in roots:
        start = osp.join(root, half)
        for folder in filter(osp.isdir, sorted(glob.glob(osp.join(glob.escape(start), "*/shots_*/*/*/seed*")))):
            dataset, shots, trainer, config, seed = osp.relpath(folder, start).split(osp.sep)
            group = trainer, config, shots.removeprefix("shots_")
            values = table.setdefault(group, {}).setdefault(dataset, {})
            run = read_run(folder, keyword, test_log=half != "train_base")
            if not run.counts:
                notes.append(left_out(run))
            elif seed.removeprefix("seed") in values:
                notes.append(f"not counted: {folder}: a directory given before has the same run")
            else:
                values[seed.removeprefix("seed")] = run.value
    return table


def halves(roots: list[str], keyword: str, notes: list[str]) -> tuple[Table, Table]:
    """Base and novel results. Base is train_base's; test_base's, as of zero-shot, where that has none."""
    base, tested, novel = (collect(roots, half, keyword, notes) for half in ("train_base", "test_base", "test_new"))
    for group, datasets in tested.items():
        for dataset, values in datasets.items():
            trained = base.setdefault(group, {})
            trained[dataset] = trained.get(dataset) or values
    return base, novel


def rows_of(label: str, base: dict[str, Seeds], novel: dict[str, Seeds], spread: Spread, notes: list[str]) -> list[Row]:
    """A row for each data set with a seed in both halves, and their average; what is left out is put into notes."""
    shared = {}
    for dataset in sorted(base.keys() | novel.keys()):
        first, second = base.get(dataset, {}), novel.get(dataset, {})
        seeds = in_order(first.keys() & second.keys())
        if first.keys() != second.keys():
            outcome = f"the row is over {named(seeds)}" if seeds else "left out, no seed has both"
            notes.append(f"{label}: {dataset}: base has {named(first)}, novel {named(second)}: {outcome}")
        if seeds:
            shared[dataset] = {s: first[s] for s in seeds}, {s: second[s] for s in seeds}
    rows = [row(dataset, *pair, spread) for dataset, pair in shared.items()]
    return [*rows, average(rows, list(shared.values()), spread)] if rows else []


def row(name: str, base: Seeds, novel: Seeds, spread: Spread) -> Row:
    """The line of base and novel values over the same seeds."""
    first, second = list(base.values()), list(novel.values())
    hms = [harmonic_mean(*pair) for pair in zip(first, second, strict=True)]
    means = fmean(first), fmean(second), harmonic_mean(fmean(first), fmean(second))
    return Row(name, list(base), means, (spread(first), spread(second), spread(hms)))


def average(rows: list[Row], values: list[tuple[Seeds, Seeds]], spread: Spread) -> Row:
    """The line of the means over data sets; with a spread where all have the same seeds."""
    seeds = rows[0].seeds
    if all(other.seeds == seeds for other in rows):
        base, novel = ({s: fmean(pair[half][s] for pair in values) for s in seeds} for half in (0, 1))
        return row("average", base, novel, spread)
    base, novel = (fmean(line.means[half] for line in rows) for half in (0, 1))
    return Row("average", [], (base, novel, harmonic_mean(base, novel)), None)


def in_order(seeds: Iterable[str]) -> list[str]:
    return sorted(seeds, key=lambda seed: (int(seed) if seed.isdecimal() else math.inf, seed))


def named(seeds: Iterable[str]) -> str:
    listed = in_order(seeds)
    return f"seed{'s' if len(listed) > 1 else ''} {', '.join(listed)}" if listed else "no results"


def label_of(group: Group) -> str:
    trainer, config, shots = group
    return f"{trainer}, {config}, {shots} shot{'' if shots == '1' else 's'}"


def base_to_novel(roots: list[str], keyword: str, spread: Spread) -> tuple[dict[Group, list[Row]], list[str]]:
    """The rows of each group, the average last, and notes on everything that was expected and is not in them."""
    notes: list[str] = []
    base, novel = halves(roots, keyword, notes)
    tables = {}
    for group in sorted(base.keys() | novel.keys()):
        rows = rows_of(label_of(group), base.get(group, {}), novel.get(group, {}), spread, notes)
        if rows:
            tables[group] = rows
    seen = {line.name for rows in tables.values() for line in rows[:-1]}
    for group, rows in tables.items():
        absent = sorted(seen - {line.name for line in rows[:-1]})
        if absent:
            notes.append(f"{label_of(group)}: no row for {', '.join(absent)}; its average is over {len(rows) - 1} of "
                         f"{len(seen)} data sets")  # fmt: skip
    return tables, notes


def print_tables(tables: dict[Group, list[Row]], notes: list[str], style: str, keyword: str, spread: str) -> None:
    """A table for each group, the notes, and for several groups one of their averages, in tabulate's formats."""
    for group, rows in tables.items():
        print_title(f"{label_of(group)}: {keyword} in %, mean ± {spread} over seeds", style)
        lines = [[line.name, *cells(line, style), ", ".join(line.seeds)] for line in rows]
        print_table(["Data set", "Base", "Novel", "HM", "Seeds"], lines, style)
    print_notes(notes, sys.stderr if style == "latex" else sys.stdout)
    if len(tables) > 1:
        print_title(f"Averages over data sets: {keyword} in %", style)
        lines = [[*group, str(len(rows) - 1), *cells(rows[-1], style)] for group, rows in tables.items()]
        print_table(["Trainer", "Config", "Shots", "Data sets", "Base", "Novel", "HM"], lines, style)


def cells(line: Row, style: str) -> list[str]:
    """Base, novel, HM with two decimals."""
    if line.spreads is None:
        return [f"{mean:.2f}" for mean in line.means]
    sign = r"$\pm$" if style == "latex" else "±"
    return [f"{mean:.2f} {sign} {spread:.2f}" for mean, spread in zip(line.means, line.spreads, strict=True)]


def print_title(title: str, style: str) -> None:
    print({"text": title, "markdown": f"**{title}**\n", "latex": "% " + title.replace("%", "percent")}[style])


def print_table(headers: list[str], lines: list[list[str]], style: str) -> None:
    from tabulate import tabulate  # here, so that averaging CoOp's folders needs the standard library alone

    if style == "latex":  # latex_raw, since tabulate's own escaping would spoil the plus-minus sign
        lines = [[re.sub(r"([_&%#])", r"\\\1", cell) for cell in line] for line in lines]
    form = {"text": "simple", "markdown": "github", "latex": "latex_raw"}[style]
    sides = ["right" if header in ("Base", "Novel", "HM") else "left" for header in headers]
    print(tabulate(lines, headers, tablefmt=form, disable_numparse=True, colalign=sides), end="\n\n")


def print_notes(notes: list[str], file) -> None:
    for note in notes:
        print(f"- {note}", file=file)
    if notes:
        print(file=file)


def print_csv(tables: dict[Group, list[Row]], spread: str) -> None:
    """All rows in one table, unrounded."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    columns = [name for column in ("base", "novel", "hm") for name in (column, f"{column}_{spread}")]
    writer.writerow(["trainer", "config", "shots", "dataset", *columns, "seeds"])
    for group, rows in tables.items():
        for line in rows:
            pairs = zip(line.means, line.spreads or ("", "", ""), strict=True)
            writer.writerow([*group, line.name, *(value for pair in pairs for value in pair), " ".join(line.seeds)])


def report_base_to_novel(roots: list[str], keyword: str, spread: Spread, style: str) -> tuple[bool, int]:
    """Print the tables. Gives whether there are any, and the number of notes."""
    tables, notes = base_to_novel(roots, keyword, spread)
    if not tables:
        print_notes(notes, sys.stderr)
    elif style == "csv":
        print_csv(tables, spread.__name__)
        print_notes(notes, sys.stderr)
    else:
        print_tables(tables, notes, style, keyword, spread.__name__)
    return bool(tables), len(notes)


# Command line


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    description, _, layouts = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=layouts.replace("%", "%%"), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", nargs="+", help="path to directory (several with --base2new)")
    parser.add_argument("--ci95", action="store_true", help="95%% confidence interval instead of standard deviation")
    parser.add_argument("--test-log", action="store_true", help="parse test-only logs")
    parser.add_argument("--multi-exp", action="store_true", help="parse multiple experiments")
    parser.add_argument("--keyword", default="accuracy", help=f"{', '.join(METRICS)}, ... (default: %(default)s)")
    parser.add_argument("--strict", action="store_true", help="exit status 1 when a run was left out")
    parser.add_argument("--base2new", action="store_true", help="the table of base-to-novel generalisation")
    parser.add_argument("--format", choices=("text", "markdown", "csv", "latex"), help="of that table (default: text)")
    args = parser.parse_args(argv)
    if args.base2new and (args.test_log or args.multi_exp):
        parser.error("--base2new finds out itself what --test-log and --multi-exp say; leave them out")
    if not args.base2new and (args.format or len(args.directory) > 1):
        parser.error("several directories and --format go with --base2new")
    try:
        re.compile(args.keyword)
    except re.error as error:
        parser.error(f"--keyword {args.keyword!r} is no regular expression: {error}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the command. Gives the exit status: 0, or 1 if nothing was found (with --strict, if a run was left out)."""
    args = parse_args(argv)
    spread = ci95 if args.ci95 else std
    for directory in args.directory:
        if not osp.isdir(directory):
            print(f"No such directory: {directory}", file=sys.stderr)
            return 1
    if args.base2new:
        found, missing = report_base_to_novel(args.directory, args.keyword, spread, args.format or "text")
        hint = "looked for train_base/ or test_base/, and test_new/, with DATASET/shots_K/TRAINER/CFG/seedN below"
    else:
        show = report_experiments if args.multi_exp else report
        mean, missing = show(args.directory[0], args.keyword, args.test_log, spread)
        found, hint = mean is not None, hint_for(args.directory[0], args.test_log)
    if not found:
        print(f"Nothing found in {', '.join(args.directory)}" + (f" ({hint})" if hint else ""), file=sys.stderr)
    return 0 if found and not (args.strict and missing) else 1


def hint_for(directory: str, test_log: bool) -> str:
    """What may be wrong when a directory gives nothing."""
    if any(osp.isfile(osp.join(directory, name)) for name in ("log.txt", "results.json")):
        return "this is a run's own folder; give the folder above it"
    return "" if test_log else "logs of evaluation-only runs need --test-log"


if __name__ == "__main__":
    sys.exit(main())
