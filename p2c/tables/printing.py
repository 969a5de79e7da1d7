"""The tables as text, Markdown and LaTeX for people, and as CSV, unrounded, for programs."""

import csv
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, groupby
from os import path as osp

from tabulate import tabulate

from p2c.tables.notes import notes_on
from p2c.tables.published import AVERAGE, STATEMENT
from p2c.tables.rows import Line, Row, Scope, find_rows
from p2c.tables.runs import Spread

MISSING = "–"
LEGEND = f"{MISSING}: no result; *: lacks seeds that others of the row have; n of m: an average over n of m data sets"
GROUP = ["Trainer", "Config", "Shots"]
MEASURES = ["Base", "Novel", "HM"]
PUBLISHED = ["Published", "Difference"]  # each of all three
LEFT = {"Data set", *GROUP, "Data sets", "Seeds"}
LOOKED_FOR = {
    "base2new": "train_base/ or test_base/, and test_new/, with DATASET/shots_K/TRAINER/CFG/seedN below",
    "xd": "evaluation/TRAINER/CFG_Kshots/DATASET/seedN and ZeroshotCLIP/CFG/DATASET of other data sets than the source",
    "dg": "evaluation/TRAINER/CFG_Kshots/DATASET/seedN and ZeroshotCLIP/CFG/DATASET of the source's domains",
    "fewshot": "DATASET/TRAINER/CFG_Kshots/seedN and ZeroshotCLIP/CFG/DATASET",
}
TITLES = {"xd": "Cross-dataset transfer", "dg": "Domain generalization", "fewshot": "Few-shot learning"}


def report(
    benchmark: str, folders: list[str], keyword: str, spread: Spread, style: str, curves: str | None = None,
    datasets: Sequence[str] = (),
) -> tuple[bool, int]:
    """Print a benchmark's tables, of some data sets or (none named) all, and draw its curves.

    Gives whether there are any results, and the number of notes.
    """
    notes: list[str] = []
    if benchmark == "base2new":
        below = [osp.join(folder, benchmark) for folder in folders]
        folders = [path if osp.isdir(path) else folder for path, folder in zip(below, folders, strict=True)]
    rows = find_rows(benchmark, folders, keyword, spread, notes, datasets)
    output = output_folder(benchmark, folders[0])
    for row in rows:
        notes += notes_on(row, output)
    legend = [LEGEND] * any(not row.whole(line, name) for row in rows for line in row.lines for name in row.scope.names)
    if not rows:
        print_notes(notes)
    elif style == "csv":
        print_csv(rows, keyword, spread.__name__)
        print_notes([*[STATEMENT] * any_published(rows), *notes], style)
    else:
        show = {"base2new": print_base_to_novel, "fewshot": print_few_shot}.get(benchmark, print_transfer)
        show(rows, [*legend, *notes], f"{keyword} in %, mean ± {spread.__name__} over seeds", style)
    if rows and curves:
        from p2c.tables.curves import draw  # here, since matplotlib takes seconds to import

        draw(rows, curves, keyword, spread.__name__)
        print(f"Curves: {curves}", file=sys.stderr)
    return bool(rows), len(notes)


def output_folder(benchmark: str, folder: str) -> str | None:
    """What $OUTPUT must be for the scripts to write to a folder; None: they cannot."""
    if benchmark != "base2new":
        return osp.normpath(folder)
    above, name = osp.split(osp.abspath(folder))
    return None if name != benchmark else above if osp.isabs(folder) else osp.relpath(above)


def any_published(rows: list[Row]) -> bool:
    return any(line.published for row in rows for line in row.lines)


# Each benchmark's tables


def print_base_to_novel(rows: list[Row], notes: list[str], title: str, style: str) -> None:
    """A table for each row: base, novel and HM by data set; of several rows also side by side, and their averages."""
    for row in rows:
        line = row.lines[0]
        body = []
        for name in row.scope.names:
            seeds = ", ".join(line.cells[name].seeds) if name in line.cells else MISSING
            body.append([name + part(row, line, name), *ours(row, line, name), *theirs(row, line, name), seeds])
        print_title(f"{line.group}: {title}", [row], style)
        print_table(["Data set", *MEASURES, *PUBLISHED, "Seeds"], body, style)
    print_notes(notes, style)
    if len(rows) == 1:
        return
    for scope, some in by_scope(rows):
        if len(some) > 1:
            body = blocks(scope, some, lambda row, name: [[*row.lines[0].group, *ours(row, row.lines[0], name)]])
            print_title(f"Side by side, {scope.name} data sets: {title}", [], style)
            print_table(["Data set", *GROUP, *MEASURES], body, style)
    body = []
    for row in rows:
        line = row.lines[0]
        size = f"{line.cells[AVERAGE].datasets} of {len(row.scope.averaged)} {row.scope.name}"
        body.append([*line.group, size, *ours(row, line, AVERAGE), *theirs(row, line, AVERAGE)])
    print_title(f"Averages over data sets: {title}", rows, style)
    print_table([*GROUP, "Data sets", *MEASURES, *PUBLISHED], body, style)


def ours(row: Row, line: Line, name: str) -> list[str]:
    """Base, novel and HM of a cell."""
    return [shown(row, line, name, measure) for measure in range(len(MEASURES))]


def theirs(row: Row, line: Line, name: str) -> list[str]:
    """The published base, novel and HM, and ours minus these."""
    published = " / ".join(f"{value:.2f}" for value in line.published.get(name, ()))
    return [published, " / ".join(map(signed, row.differences(line, name) or ()))]


def print_transfer(rows: list[Row], notes: list[str], title: str, style: str) -> None:
    """For each family a table: a row for each trainer and config, columns for source, targets, and their average."""
    gap = "\n" if style == "text" else " "  # with the spread below, a dozen columns fit on a screen
    for scope, some in by_scope(rows):
        body = []
        for row in some:
            line = row.lines[0]
            cells = [shown(row, line, name, gap=gap) + part(row, line, name, gap) for name in scope.names]
            body.append([*line.group, *cells, ", ".join(row.seeds)])
            body += comparison(row, [(line, name) for name in scope.names], labels=len(GROUP))
        print_title(f"{TITLES[rows[0].benchmark]} from {scope.names[0]}: {title}", some, style)
        print_table([*GROUP, *scope.names, "Seeds"], body, style)
    print_notes(notes, style)


def print_few_shot(rows: list[Row], notes: list[str], title: str, style: str) -> None:
    """For each family a table: by data set, and for their average, a row for each trainer and config, by shots."""
    gap = "\n" if style == "text" else " "
    for scope, some in by_scope(rows):
        shots = sorted({line.group.shots for row in some for line in row.lines})

        def lines_of(row: Row, name: str, shots=shots) -> list[list[str]]:
            by_shots = {line.group.shots: line for line in row.lines}
            lines = [by_shots.get(number) for number in shots]
            cells = [shown(row, line, name) + part(row, line, name, gap) if line else "" for line in lines]
            seeds = ", ".join(row.seeds) if any(name in line.cells for line in row.lines) else MISSING
            ours = [*row.lines[0].group[:2], *cells, seeds]
            return [ours, *comparison(row, [(line, name) for line in lines], labels=2)]

        print_title(f"{TITLES['fewshot']}, {scope.name} data sets, by shots: {title}", some, style)
        print_table(["Data set", *GROUP[:2], *map(str, shots), "Seeds"], blocks(scope, some, lines_of), style)
    print_notes(notes, style)


def by_scope(rows: list[Row]) -> Iterator[tuple[Scope, list[Row]]]:
    for scope, some in groupby(rows, key=lambda row: row.scope):
        yield scope, list(some)


def blocks(scope: Scope, rows: list[Row], lines_of: Callable[[Row, str], list[list]]) -> list[list]:
    """The table lines of all rows, data set by data set; one line for a data set that no row has."""
    body = []
    for name in scope.names:
        has_any = any(name in line.cells for row in rows for line in row.lines)
        lines = [line for row in rows for line in lines_of(row, name)] if has_any else [[MISSING]]
        body += [[name, *lines[0]], *(["", *line] for line in lines[1:])]
    return body


# Cells


def shown(row: Row, line: Line, name: str, measure: int = 0, gap: str = " ") -> str:
    """Mean and spread with two decimals."""
    if name not in line.cells:
        return MISSING
    cell = line.cells[name]
    mean = f"{cell.means[measure]:.2f}" + "*" * (not row.all_seeds(line, name))
    return mean if cell.spreads is None else f"{mean}{gap}± {cell.spreads[measure]:.2f}"


def part(row: Row, line: Line, name: str, gap: str = " ") -> str:
    """Over how many of its data sets an average is, if not over all."""
    if name not in line.cells or row.all_datasets(line, name):
        return ""
    return f"{gap}({line.cells[name].datasets} of {len(row.scope.averaged)})"


def signed(difference: float) -> str:
    return f"{round(difference, 2) + 0.0:+.2f}"  # no -0.00


def comparison(row: Row, places: list[tuple[Line | None, str]], labels: int) -> list[list[str]]:
    """The published numbers of a row's cells, and ours minus these, as lines of a table; without a blank one."""
    published, differences = [], []
    for line, name in places:
        reference = line.published.get(name) if line else None
        difference = row.differences(line, name) if line else None
        published.append(f"{reference[0]:.2f}" if reference else "")
        differences.append(signed(difference[0]) if difference else "")
    blank = [""] * (labels - 1)
    lines = ["published", *blank, *published], ["difference", *blank, *differences]
    return [line for line in lines if any(line[labels:])]


# Formats


def print_title(title: str, rows: list[Row], style: str) -> None:
    """The line above a table; it says what the published numbers are of the rows that have some."""
    title += f"; {STATEMENT}" * any_published(rows)
    print({"text": title, "markdown": f"**{title}**\n", "latex": "% " + title.replace("%", "percent")}[style])


def print_table(headers: list[str], lines: list[list], style: str) -> None:
    """Columns without any text are left out."""
    texts = [[*map(str, line), *[""] * (len(headers) - len(line))] for line in lines]
    used = [index for index in range(len(headers)) if any(line[index] for line in texts)]
    headers, *texts = ([line[index] for index in used] for line in (headers, *texts))
    sides = ["left" if header in LEFT else "right" for header in headers]
    if style == "latex":  # latex_raw, since tabulate's own escaping would spoil the plus-minus sign
        headers, *texts = ([latex(text) for text in line] for line in (headers, *texts))
    form = {"text": "simple", "markdown": "github", "latex": "latex_raw"}[style]
    print(tabulate(texts, headers, tablefmt=form, disable_numparse=True, colalign=sides), end="\n\n")


def latex(text: str) -> str:
    return re.sub(r"([_&%#])", r"\\\1", text).replace("±", r"$\pm$").replace(MISSING, "--")


def print_notes(notes: list[str], style: str = "") -> None:
    """Where the table is for a program to read, they go to standard error."""
    file = sys.stdout if style in ("text", "markdown") else sys.stderr
    for note in notes:
        print(f"- {note}", file=file)
    if notes:
        print(file=file)


def print_csv(rows: list[Row], keyword: str, spread: str) -> None:
    """All cells in one table, unrounded: a line for each data set, and for the average, of each number of shots."""
    names = ("base", "novel", "hm") if rows[0].benchmark == "base2new" else (keyword,)
    columns = [f"{name}{kind}" for name in names for kind in ("", f"_{spread}")]
    compared = [f"{name}{kind}" for name in names for kind in ("_published", "_difference")]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    group = [header.lower() for header in GROUP]
    writer.writerow([*group, "dataset", *columns, *compared, "family", "complete", "n_seeds", "seeds"])
    for row in rows:
        for line in row.lines:
            for name in row.scope.names:
                writer.writerow([*line.group, name, *csv_cells(row, line, name, len(names))])


def csv_cells(row: Row, line: Line, name: str, count: int) -> list:
    """What follows the name of the data set: numbers in pairs, then what is known of the cell."""
    blank = [""] * count
    cell = line.cells.get(name)
    ours = zip(cell.means if cell else blank, cell and cell.spreads or blank, strict=True)
    theirs = zip(line.published.get(name, blank), row.differences(line, name) or blank, strict=True)
    complete = "yes" if row.whole(line, name) else "no"
    seeds = cell.seeds if cell else ()
    count_seeds = "" if cell and not seeds else len(seeds)  # an average over data sets with different seeds
    return [*chain(*ours, *theirs), row.scope.name, complete, count_seeds, " ".join(seeds)]
