"""Printing of the tables: text, Markdown and HTML for people, LaTeX for papers, and CSV, unrounded, for programs."""

import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from html import escape
from itertools import chain, groupby
from os import path as osp

from tabulate import tabulate

from p2c.tables.latex import TITLES, latex
from p2c.tables.notes import notes_on
from p2c.tables.published import AVERAGE, STATEMENT
from p2c.tables.rows import Line, Row, Scope, find_rows, heading
from p2c.tables.runs import Spread

MISSING = "–"
LEGEND = f"{MISSING}: no result; *: lacks seeds of other cells in the row; n of m: an average over n of m datasets"
GROUP = ["Trainer", "Config", "Shots"]
PUBLISHED = ["Published", "Difference"]  # each holds all three measures
LEFT = {"Dataset", *GROUP, "Datasets", "Seeds"}
LOOKED_FOR = {
    "base2new": "train_base/ or test_base/, and test_new/, with DATASET/shots_K/TRAINER/CFG/seedN below",
    "xd": "evaluation/TRAINER/CFG_Kshots/DATASET/seedN and ZeroshotCLIP/CFG/DATASET of other datasets than the source",
    "dg": "evaluation/TRAINER/CFG_Kshots/DATASET/seedN and ZeroshotCLIP/CFG/DATASET of the source's domains",
    "fewshot": "DATASET/TRAINER/CFG_Kshots/seedN and ZeroshotCLIP/CFG/DATASET",
}


def report(
    benchmark: str, folders: list[str], keyword: str, spread: Spread, style: str, curves: str | None,
    datasets: Sequence[str],
) -> tuple[bool, int]:
    """Print a benchmark's tables, of all or some datasets, and draw its few-shot curves to a file, if one is given.

    Returns:
        Whether there are any results, and the number of notes.

    Raises:
        ValueError: the benchmark has no dataset of that name.
    """
    rows, notes = rows_and_notes(benchmark, folders, keyword, spread, datasets)
    print_rows(rows, notes, keyword, spread, style)
    if rows and curves:
        from p2c.engine.files import write_figure
        from p2c.tables.curves import figure_of  # imported here, since matplotlib takes seconds to import

        write_figure(curves, figure_of(rows, keyword, spread.__name__))
        print(f"Curves: {curves}", file=sys.stderr)
    return bool(rows), len(notes)


def rows_and_notes(
    benchmark: str, folders: list[str], keyword: str, spread: Spread, datasets: Sequence[str] = ()
) -> tuple[list[Row], list[str]]:
    """Return the rows of a benchmark's tables, of all or some datasets, and the notes on them."""
    notes: list[str] = []
    output: str | None = osp.normpath(folders[0])  # the $OUTPUT with which the scripts write there
    if benchmark == "base2new":
        below = [osp.join(folder, benchmark) for folder in folders]
        folders = [path if osp.isdir(path) else folder for path, folder in zip(below, folders, strict=True)]
        scripts_write_here = osp.basename(osp.abspath(folders[0])) == benchmark
        output = osp.normpath(osp.join(folders[0], osp.pardir)) if scripts_write_here else None
    rows = find_rows(benchmark, folders, keyword, spread, notes, datasets)
    for row in rows:
        notes += notes_on(row, output)
    return rows, notes


def print_rows(rows: list[Row], notes: list[str], keyword: str, spread: Spread, style: str) -> None:
    """Print a benchmark's tables in a style: "text", "markdown", "latex", "html" or "csv"."""
    if not rows:
        print_notes(notes)
    elif style == "latex":
        print(latex(rows, keyword, spread.__name__))
        print_notes(notes, style)
    elif style == "csv":
        print_csv(rows, keyword, spread.__name__)
        print_notes([STATEMENT, *notes] if any_published(rows) else notes, style)
    else:
        complete = all(row.is_complete(line, name) for row in rows for line in row.lines for name in row.scope.names)
        show = {"base2new": print_base_to_novel, "fewshot": print_few_shot}.get(rows[0].benchmark, print_transfer)
        show(rows, notes if complete else [LEGEND, *notes], heading(rows, keyword, spread.__name__), style)


def any_published(rows: list[Row]) -> bool:
    """Return whether a line of some rows has published numbers."""
    return any(line.published for row in rows for line in row.lines)


# Each benchmark's tables


def print_base_to_novel(rows: list[Row], notes: list[str], title: str, style: str) -> None:
    """Print a table of base, novel and HM by dataset for each row, then several rows side by side, and averages."""
    for row in rows:
        line = row.lines[0]
        body: list[list] = []
        for name in row.scope.names:
            seeds = ", ".join(line.cells[name].seeds) if name in line.cells else MISSING
            label = name + format_coverage(row, line, name)
            body.append([label, *our_cells(row, line, name), *published_cells(row, line, name), seeds])
        print_title(f"{line.group}: {title}", [row], style)
        print_table(["Dataset", *row.measures, *PUBLISHED, "Seeds"], body, style)
    print_notes(notes, style)
    if len(rows) == 1:
        return
    for scope, scope_rows in by_scope(rows):
        if len(scope_rows) > 1:
            body = blocks(scope, scope_rows,
                          lambda row, name: [[*row.lines[0].group, *our_cells(row, row.lines[0], name)]])
            print_title(f"Side by side, {scope.name} datasets: {title}", [], style)
            print_table(["Dataset", *GROUP, *rows[0].measures], body, style)
    body = []
    for row in rows:
        line = row.lines[0]
        size = f"{line.cells[AVERAGE].datasets} of {len(row.scope.averaged)} {row.scope.name}"
        body.append([*line.group, size, *our_cells(row, line, AVERAGE), *published_cells(row, line, AVERAGE)])
    print_title(f"Averages over datasets: {title}", rows, style)
    print_table([*GROUP, "Datasets", *rows[0].measures, *PUBLISHED], body, style)


def our_cells(row: Row, line: Line, name: str) -> list[str]:
    """Return base, novel and, if the metric has one, HM of a cell."""
    return [format_cell(row, line, name, measure) for measure in range(len(row.measures))]


def published_cells(row: Row, line: Line, name: str) -> list[str]:
    """Return the published base, novel and HM in one cell, and ours minus these in another."""
    published = " / ".join(f"{value:.2f}" for value in line.published.get(name, ()))
    return [published, " / ".join(map(format_signed, row.differences(line, name) or ()))]


def print_transfer(rows: list[Row], notes: list[str], title: str, style: str) -> None:
    """Print a table for each family: a row per trainer and config, columns for source, targets and their average."""
    gap = "\n" if style == "text" else " "  # with the spread below the mean, a dozen columns fit on a screen
    for scope, scope_rows in by_scope(rows):
        body: list[list] = []
        for row in scope_rows:
            line = row.lines[0]
            places: list[tuple[Line | None, str]] = [(line, name) for name in scope.names]
            body += compared(row, [*line.group], places, ", ".join(row.seeds), gap, gap)
        print_title(f"{TITLES[rows[0].benchmark]} from {scope.names[0]}: {title}", scope_rows, style)
        print_table([*GROUP, *scope.names, "Seeds"], body, style)
    print_notes(notes, style)


def print_few_shot(rows: list[Row], notes: list[str], title: str, style: str) -> None:
    """Print a table for each family: by dataset and for the average a row per trainer and config, columns by shots."""
    gap = "\n" if style == "text" else " "
    for scope, scope_rows in by_scope(rows):
        shots = sorted({line.group.shots for row in scope_rows for line in row.lines})

        def lines_of(row: Row, name: str, shots=shots) -> list[list[str]]:
            by_shots = {line.group.shots: line for line in row.lines}
            seeds = ", ".join(row.seeds) if any(name in line.cells for line in row.lines) else MISSING
            places = [(by_shots.get(number), name) for number in shots]
            return compared(row, [*row.lines[0].group[:2]], places, seeds, " ", gap)

        print_title(f"{TITLES['fewshot']}, {scope.name} datasets, by shots: {title}", scope_rows, style)
        print_table(["Dataset", *GROUP[:2], *map(str, shots), "Seeds"], blocks(scope, scope_rows, lines_of), style)
    print_notes(notes, style)


def by_scope(rows: list[Row]) -> Iterator[tuple[Scope, list[Row]]]:
    """Yield each scope with its rows, which stand together."""
    for scope, scope_rows in groupby(rows, key=lambda row: row.scope):
        yield scope, list(scope_rows)


def blocks(scope: Scope, rows: list[Row], lines_of: Callable[[Row, str], list[list]]) -> list[list]:
    """Return the table lines of all rows, dataset by dataset, with a single line for a dataset that no row has."""
    body = []
    for name in scope.names:
        has_any = any(name in line.cells for row in rows for line in row.lines)
        lines = [line for row in rows for line in lines_of(row, name)] if has_any else [[MISSING]]
        body += [[name, *lines[0]], *(["", *line] for line in lines[1:])]
    return body


# Cells


def format_cell(row: Row, line: Line, name: str, measure: int = 0, gap: str = " ") -> str:
    """Format the mean, marked by * if seeds are missing, and the spread if there are several seeds."""
    if name not in line.cells:
        return MISSING
    cell, digits = line.cells[name], row.metric.digits
    mean = f"{cell.means[measure]:.{digits}f}"
    if not row.all_seeds(line, name):
        mean += "*"
    return mean if cell.spreads is None else f"{mean}{gap}± {cell.spreads[measure]:.{digits}f}"


def format_coverage(row: Row, line: Line, name: str, gap: str = " ") -> str:
    """Format the number of datasets that an average is over; "" if it is over all."""
    if name not in line.cells or row.all_datasets(line, name):
        return ""
    return f"{gap}({line.cells[name].datasets} of {len(row.scope.averaged)})"


def format_signed(difference: float) -> str:
    """Format a difference with its sign and two decimals."""
    return f"{round(difference, 2) + 0.0:+.2f}"  # adding 0.0 avoids -0.00


def compared(
    row: Row, labels: list, places: list[tuple[Line | None, str]], seeds: str, gap: str, coverage_gap: str
) -> list[list]:
    """Return three table lines: a row's cells, their published numbers, ours minus these; without blank lines."""
    blank = [""] * (len(labels) - 1)
    ours, published, differences = [*labels], ["published", *blank], ["difference", *blank]
    for line, name in places:
        reference = line.published.get(name) if line else None
        difference = row.differences(line, name) if line else None
        cell = format_cell(row, line, name, gap=gap) + format_coverage(row, line, name, coverage_gap) if line else ""
        ours.append(cell)
        published.append(f"{reference[0]:.2f}" if reference else "")
        differences.append(format_signed(difference[0]) if difference else "")
    return [[*ours, seeds], *(line for line in (published, differences) if any(line[len(labels):]))]


# Formats


def print_title(title: str, rows: list[Row], style: str) -> None:
    """Print the line above a table; if the rows have published numbers, it says what these are."""
    if any_published(rows):
        title += f"; {STATEMENT}"
    forms = {"text": title, "markdown": f"**{title}**\n", "html": f"<h3>{escape(title)}</h3>"}
    print(forms[style])


def print_table(headers: list[str], lines: list[list], style: str) -> None:
    """Print a table without its empty columns."""
    texts = [[*map(str, line), *[""] * (len(headers) - len(line))] for line in lines]
    used = [index for index in range(len(headers)) if any(line[index] for line in texts)]
    headers, *texts = ([line[index] for index in used] for line in (headers, *texts))
    sides = ["left" if header in LEFT else "right" for header in headers]
    form = {"text": "simple", "markdown": "github", "html": "html"}[style]
    table = tabulate(texts, headers, tablefmt=form, disable_numparse=True, colalign=sides)
    print(f'<div class="scroll" tabindex="0">\n{table}\n</div>' if style == "html" else table, end="\n\n")


def print_notes(notes: list[str], style: str = "") -> None:
    """Print the notes; to standard error if the table is for a program to read."""
    if style == "html":
        items = "\n".join(f"<li>{escape(note)}</li>" for note in notes)
        print(f"<details><summary>Notes</summary><ul>\n{items}\n</ul></details>" if notes else "")
        return
    file = sys.stdout if style in ("text", "markdown") else sys.stderr
    for note in notes:
        print(f"- {note}", file=file)
    if notes:
        print(file=file)


def print_csv(rows: list[Row], keyword: str, spread: str) -> None:
    """Print all cells in one table, unrounded: a line for each number of shots and dataset or average."""
    names = [name.lower() for name in rows[0].measures] if rows[0].benchmark == "base2new" else [keyword]
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
    """Return the values after the dataset's name: numbers in pairs, then family, completeness and seeds."""
    blank: Sequence[float | str] = [""] * count
    cell = line.cells.get(name)
    means, spreads, seeds = (cell.means, cell.spreads or blank, cell.seeds) if cell else (blank, blank, ())
    ours = zip(means, spreads, strict=True)
    theirs = zip(line.published.get(name, blank), row.differences(line, name) or blank, strict=True)
    complete = "yes" if row.is_complete(line, name) else "no"
    n_seeds = len(seeds) or ("" if cell else 0)  # "": an average over datasets with different seeds
    return [*chain(*ours, *theirs), row.scope.name, complete, n_seeds, " ".join(seeds)]
