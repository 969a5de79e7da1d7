"""The tables in LaTeX with booktabs, to be included in a paper: names as papers write them, the best values in bold.

Base-to-novel and few-shot make a small table for the average and for each dataset, as many side by side as fit. A
transfer makes one table with a column for each dataset.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from p2c.tables.published import AVERAGE
from p2c.tables.rows import Line, Row, Scope, label_rows

METHODS = {"ZeroshotCLIP": "CLIP", "ZeroshotCLIP2": "CLIP (ensemble)"}  # other trainers are called as in their papers
ORDER = (*METHODS, "CoOp", "CoCoOp", "VPT", "IVLP", "MaPLe", "PromptSRC")  # then all others, P2C last
DATASETS = {
    "imagenet": "ImageNet", "caltech101": "Caltech101", "oxford_pets": "OxfordPets", "stanford_cars": "StanfordCars",
    "oxford_flowers": "Flowers102", "food101": "Food101", "fgvc_aircraft": "FGVCAircraft", "sun397": "SUN397",
    "dtd": "DTD", "eurosat": "EuroSAT", "ucf101": "UCF101", "imagenetv2": "ImageNetV2",
    "imagenet_sketch": "ImageNet-Sketch", "imagenet_a": "ImageNet-A", "imagenet_r": "ImageNet-R",
}  # fmt: skip
TITLES = {"base2new": "Base-to-novel generalization", "xd": "Cross-dataset transfer", "dg": "Domain generalization",
          "fewshot": "Few-shot learning"}  # fmt: skip
SPREADS = {"std": "the standard deviation", "ci95": "the 95% confidence interval"}
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
           **{character: f"\\{character}" for character in "_&%#${}"}}  # fmt: skip
MISSING = "--"
FITS = 8  # columns of numbers that fit on a page; a wider table is scaled
HALF = 3  # columns of numbers of which two tables fit side by side; wider ones are scaled

Place = tuple[Row, Line | None, str, int]  # a cell's row, line (None: there is none), name and measure


def latex(rows: Sequence[Row], keyword: str, spread: str) -> str:
    """Return the LaTeX of a benchmark's tables, one for each family.

    Args:
        keyword: the metric, as the user called it.
        spread: "std" or "ci95".
    """
    return "\n".join(table(scope, list(family), keyword, spread)
                     for scope, family in groupby(rows, key=lambda row: row.scope))


def table(scope: Scope, rows: list[Row], keyword: str, spread: str) -> str:
    """Return the table of a family."""
    benchmark = rows[0].benchmark
    labelled = label_rows(sorted(rows, key=rank), METHODS)
    panels = [transfer(scope, labelled)] if benchmark in ("xd", "dg") else \
        [panel(name, labelled) for name in (AVERAGE, *scope.columns) if any(has(row, name) for row in rows)]
    return "\n".join([
        r"% needs \usepackage{booktabs,graphicx}",
        r"\begin{table*}[t]",
        r"\centering\small\setlength{\tabcolsep}{3pt}\setlength{\lineskip}{2ex}",
        rf"\caption{{{escape(caption(rows, keyword, spread))}}}",
        rf"\label{{tab:{benchmark}-{scope.name}}}",
        r"\vspace{1ex}",
        "\\quad\n".join(panels),
        r"\end{table*}",
        "",
    ])


def rank(row: Row) -> int:
    """Return the place of a row's trainer among the methods."""
    trainer = row.lines[0].group.trainer
    return ORDER.index(trainer) if trainer in ORDER else len(ORDER) + (trainer == "P2C")


def caption(rows: list[Row], keyword: str, spread: str) -> str:
    """Return the caption of a family's table, unescaped."""
    words = [f"{TITLES[rows[0].benchmark]}: {keyword.replace('_', ' ')} in {rows[0].metric.unit}"]
    counts = {len(row.seeds) for row in rows if row.lines[0].group.trainer not in METHODS}  # these are not trained
    if counts not in (set(), {1}):
        words.append(f", mean over {f'{counts.pop()} ' if len(counts) == 1 else ''}seeds")
        if any(cell.spreads for row in rows for line in row.lines for cell in line.cells.values()):
            words.append(f" with {SPREADS[spread]}")
    if rows[0].metric.best and len(rows) > 1:
        words.append("; best in bold")
    words.append(".")
    if any(not row.all_seeds(line, name) for row in rows for line in row.lines for name in line.cells):
        words.append(" *: not all seeds.")
    return "".join(words)


def has(row: Row, name: str) -> bool:
    """Return whether a row has a result in a column."""
    return any(name in line.cells for line in row.lines)


# Tables of numbers


def panel(name: str, labelled: dict[str, Row]) -> str:
    """Return the small table of a dataset or of the average: a line per method, a column per measure or shots."""
    first = next(iter(labelled.values()))
    grid: list[list[Place]]
    if first.benchmark == "base2new":
        heads = list(first.measures)
        grid = [[(row, row.lines[0], name, measure) for measure in range(len(heads))] for row in labelled.values()]
    else:
        shots = sorted({line.group.shots for row in labelled.values() for line in row.lines})
        heads = [f"{number} shot{'s' if number != 1 else ''}" for number in shots]
        grid = [[(row, line_of(row, number), name, 0) for number in shots] for row in labelled.values()]
    title = f"Average over {len(first.scope.averaged)} datasets" if name == AVERAGE else DATASETS.get(name, name)
    top = [rf"\multicolumn{{{len(heads) + 1}}}{{c}}{{{escape(title)}}} \\"]
    text = tabular(top, [], heads, list(labelled), grid)
    return scaled(text, r"0.48\textwidth") if len(heads) > HALF else text


def transfer(scope: Scope, labelled: dict[str, Row]) -> str:
    """Return the table of a transfer: a line per method, a column for the source, each target and their average."""
    last = len(scope.names) + 1
    groups = [rf" & Source & \multicolumn{{{last - 2}}}{{c}}{{Target}} \\",
              rf"\cmidrule(lr){{2-2}}\cmidrule(lr){{3-{last}}}"]
    grid: list[list[Place]] = [[(row, row.lines[0], name, 0) for name in scope.names] for row in labelled.values()]
    heads = [DATASETS.get(name, name) for name in scope.columns]
    text = tabular([], groups, [*heads, "Average"], list(labelled), grid)
    return scaled(text, r"\textwidth") if len(scope.names) > FITS else text


def scaled(text: str, width: str) -> str:
    """Return a table scaled to a width."""
    return rf"\resizebox{{{width}}}{{!}}{{%" + f"\n{text}}}"


def line_of(row: Row, shots: int) -> Line | None:
    """Return a few-shot row's line for a number of shots."""
    return next((line for line in row.lines if line.group.shots == shots), None)


def tabular(
    above: list[str], groups: list[str], heads: list[str], labels: list[str], grid: list[list[Place]]
) -> str:
    """Return a tabular environment: lines above the rules, lines above the heads, the heads, and a line per label."""
    lines = [[escape(label), *cells] for label, cells in zip(labels, format_grid(grid), strict=True)]
    return "\n".join([
        rf"\begin{{tabular}}[t]{{l{'c' * len(heads)}}}",
        *above,
        r"\toprule",
        *groups,
        " & ".join(["Method", *map(escape, heads)]) + r" \\",
        r"\midrule",
        *(" & ".join(line) + r" \\" for line in lines),
        r"\bottomrule",
        r"\end{tabular}",
    ])


# Cells


def format_grid(grid: list[list[Place]]) -> Iterator[list[str]]:
    """Yield the cells of each line, the best of each column in bold, all of them if several are equal as shown."""
    best = [best_of(column) for column in zip(*grid, strict=True)]
    for places in grid:
        yield [format_place(place, bold) for place, bold in zip(places, best, strict=True)]


def best_of(column: Sequence[Place]) -> str | None:
    """Return the best number of a column as it is shown; None if there are not several to compare."""
    metric = column[0][0].metric
    numbers = [number(place) for place in column if compares(place)]
    if len(numbers) < 2 or metric.best is None:
        return None
    return f"{metric.best(map(float, numbers)):.{metric.digits}f}"


def compares(place: Place) -> bool:
    """Return whether a cell exists and is no average over fewer datasets than others."""
    row, line, name, _ = place
    return line is not None and name in line.cells and row.all_datasets(line, name)


def number(place: Place) -> str:
    """Return the mean of a cell that exists, rounded."""
    row, line, name, measure = place
    assert line is not None
    return f"{line.cells[name].means[measure]:.{row.metric.digits}f}"


def format_place(place: Place, best: str | None) -> str:
    """Return a cell: the mean, in bold if it is the best, with marks and the spread as a subscript."""
    row, line, name, measure = place
    if line is None or name not in line.cells:
        return MISSING
    cell = line.cells[name]
    mean = number(place)
    text = rf"\textbf{{{mean}}}" if mean == best and compares(place) else mean
    star = "^{*}" if not row.all_seeds(line, name) else ""
    spread = rf"_{{\pm {cell.spreads[measure]:.{row.metric.digits}f}}}" if cell.spreads else ""
    if star or spread:
        text += f"${star}{spread}$"
    if not row.all_datasets(line, name):
        text += f" ({cell.datasets} of {len(row.scope.averaged)})"
    return text


def escape(text: str) -> str:
    """Escape a text for LaTeX."""
    return re.sub(r"[\\~^_&%#${}]", lambda match: SPECIAL[match[0]], text)
