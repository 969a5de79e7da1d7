"""The figure of few-shot curves: accuracy over shots, with a panel for the average and one for each dataset."""

import math
from itertools import cycle, groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from p2c.engine.files import write_figure
from p2c.tables.published import AVERAGE
from p2c.tables.rows import Row

PANEL = 2.9, 2.2  # width and height in inches
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")  # safe for colour-blind readers
MARKERS = "osD^vPX"


def draw(rows: list[Row], path: str, keyword: str, spread: str) -> None:
    """Write the curves of few-shot rows to a PNG or PDF file, depending on its suffix.

    Raises:
        OSError: the file cannot be written.
    """
    write_figure(path, figure_of(rows, keyword, spread))


def figure_of(rows: list[Row], keyword: str, spread: str) -> Figure:
    """Return the figure of few-shot rows, with one legend above all panels."""
    panels = []
    for _, scope_rows in groupby(rows, key=lambda row: row.scope):
        panels += panels_of(list(scope_rows))
    shots = sorted({line.group.shots for row in rows for line in row.lines})
    labels = dict.fromkeys(label for _, panel_rows in panels for label in label_rows(panel_rows))
    styles = dict(zip(labels, cycle(zip(COLOURS, MARKERS, strict=True)), strict=False))
    width = min(4, math.ceil(math.sqrt(len(panels))))
    height = math.ceil(len(panels) / width)
    figure = Figure((PANEL[0] * width, PANEL[1] * height + 0.6), layout="constrained")
    axes = list(figure.subplots(height, width, squeeze=False).flat)
    for ax in axes[len(panels):]:
        ax.remove()
    for ax, (name, panel_rows) in zip(axes, panels, strict=False):
        draw_panel(ax, name, label_rows(panel_rows), shots, styles)
    figure.supxlabel("shots (training images per class)", fontsize=10)
    figure.supylabel(f"{keyword} in %, mean ± {spread} over seeds", fontsize=10)
    handles: dict[str, Any] = {}
    for ax in figure.axes:
        panel_handles, panel_labels = ax.get_legend_handles_labels()
        handles.update(zip(panel_labels, panel_handles, strict=True))
    columns = int(figure.get_figwidth() / (0.6 + 0.085 * max(map(len, labels))))  # as many labels as fit side by side
    figure.legend([handles[label] for label in labels], list(labels), loc="outside upper center", ncols=max(1, columns),
                  frameon=False)
    return figure


def panels_of(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    """Return the panels of a family as (name, rows): its average, and each dataset that has a result."""
    names = (AVERAGE, *rows[0].scope.columns)
    return [(name, rows) for name in names if any(name in line.cells for row in rows for line in row.lines)]


def label_rows(rows: list[Row]) -> dict[str, Row]:
    """Return the rows of a family by trainer, or by trainer and config if the trainer has several."""
    groups = [row.lines[0].group for row in rows]
    trainers = [group.trainer for group in groups]
    labels = [group.trainer if trainers.count(group.trainer) == 1 else f"{group.trainer}, {group.config}"
              for group in groups]  # fmt: skip
    return dict(zip(labels, rows, strict=True))


def draw_panel(ax: Axes, name: str, rows: dict[str, Row], shots: list[int], styles: dict[str, tuple[str, str]]) -> None:
    """Draw a curve with error bars for each row, a level line for zero-shot, and hollow points for partial averages."""
    drawn = {label: [line for line in row.lines if name in line.cells] for label, row in rows.items()}
    drawn = {label: lines for label, lines in drawn.items() if lines}
    trained = [label for label, lines in drawn.items() if lines[0].group.shots]
    complete = True
    for label, lines in drawn.items():
        color, marker = styles[label]
        look: dict[str, Any] = {"color": color, "marker": marker, "markersize": 4, "linewidth": 1.2}
        x = [float(shots.index(line.group.shots)) for line in lines]  # equally spaced, so that small numbers are apart
        y = [line.cells[name].means[0] for line in lines]
        if label in trained:
            offset = (trained.index(label) - (len(trained) - 1) / 2) * 0.08  # so that error bars do not overlap
            x = [position + offset for position in x]
            spreads = [line.cells[name].spreads for line in lines]
            errors = [spread[0] if spread else 0 for spread in spreads]
            ax.errorbar(x, y, errors, **look, capsize=2, label=label)
        else:
            ax.axhline(y[0], color=color, linewidth=1, linestyle=":")
            ax.plot(x, y, **look, linestyle=":", label=label)
        partial = [i for i, line in enumerate(lines) if not rows[label].all_datasets(line, name)]
        hollow: dict[str, Any] = {"markerfacecolor": "white", "linestyle": "none", "zorder": 3}
        ax.plot([x[i] for i in partial], [y[i] for i in partial], **look, **hollow)
        complete = complete and not partial
    title = name
    if name == AVERAGE:
        size = len(next(iter(rows.values())).scope.averaged)
        title = f"average of {size} {'datasets' if complete else '(hollow: of fewer)'}"
    ax.set_title(title, fontsize=9)
    ax.set_xticks(range(len(shots)), map(str, shots))
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.3)
