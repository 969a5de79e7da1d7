"""The figure of few-shot curves: accuracy over shots, with a panel for the average and one for each dataset."""

import math
from itertools import cycle, groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from p2c.tables.published import AVERAGE
from p2c.tables.rows import Row, heading, label_rows

PANEL = 2.9, 2.2  # width and height in inches
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")  # safe for colour-blind readers
MARKERS = "osD^vPX"


def figure_of(rows: list[Row], keyword: str, spread: str) -> Figure:
    """Return the figure of few-shot rows, with one legend above all panels."""
    panels = []
    for scope, family in groupby(rows, key=lambda row: row.scope):
        labelled = label_rows(list(family))
        for name in (AVERAGE, *scope.columns):
            if any(name in line.cells for row in labelled.values() for line in row.lines):
                panels.append((name, labelled))
    shots = sorted({line.group.shots for row in rows for line in row.lines})
    labels = list(dict.fromkeys(label for _, labelled in panels for label in labelled))
    styles = dict(zip(labels, cycle(zip(COLOURS, MARKERS, strict=True)), strict=False))
    width = min(4, math.ceil(math.sqrt(len(panels))))
    height = math.ceil(len(panels) / width)
    figure = Figure((PANEL[0] * width, PANEL[1] * height + 0.6), layout="constrained")
    axes = list(figure.subplots(height, width, squeeze=False).flat)
    for ax in axes[len(panels):]:
        ax.remove()
    handles: dict[str, Any] = {}
    for ax, (name, labelled) in zip(axes, panels, strict=False):
        draw_panel(ax, name, labelled, shots, styles)
        drawn, names = ax.get_legend_handles_labels()
        handles.update(zip(names, drawn, strict=True))
    figure.supxlabel("shots (training images per class)", fontsize=10)
    figure.supylabel(heading(rows, keyword, spread), fontsize=10)
    columns = int(figure.get_figwidth() / (0.6 + 0.085 * max(map(len, labels))))  # as many labels as fit side by side
    figure.legend([handles[label] for label in labels], labels, loc="outside upper center", ncols=max(1, columns),
                  frameon=False)
    return figure


def draw_panel(ax: Axes, name: str, rows: dict[str, Row], shots: list[int], styles: dict[str, tuple[str, str]]) -> None:
    """Draw a curve with error bars for each row, a level line for zero-shot, and hollow points for partial averages."""
    drawn = {label: [line for line in row.lines if name in line.cells] for label, row in rows.items()}
    trained = [label for label, lines in drawn.items() if lines and lines[0].group.shots]
    complete = True
    for label, lines in drawn.items():
        if not lines:
            continue
        color, marker = styles[label]
        look: dict[str, Any] = {"color": color, "marker": marker, "markersize": 4, "linewidth": 1.2}
        x = [float(shots.index(line.group.shots)) for line in lines]  # equally spaced, so that small numbers are apart
        y = [line.cells[name].means[0] for line in lines]
        if label in trained:
            offset = (trained.index(label) - (len(trained) - 1) / 2) * 0.08  # so that error bars do not overlap
            x = [position + offset for position in x]
            spreads = [line.cells[name].spreads for line in lines]
            ax.errorbar(x, y, [spread[0] if spread else math.nan for spread in spreads], **look, capsize=2, label=label)
        else:
            ax.axhline(y[0], color=color, linewidth=1, linestyle=":")
            ax.plot(x, y, **look, linestyle=":", label=label)
        partial = [i for i, line in enumerate(lines) if not rows[label].all_datasets(line, name)]
        look |= {"markerfacecolor": "white", "linestyle": "none", "zorder": 3}
        ax.plot([x[i] for i in partial], [y[i] for i in partial], **look)
        complete = complete and not partial
    title = name
    if name == AVERAGE:
        size = len(next(iter(rows.values())).scope.averaged)
        title = f"average of {size} {'datasets' if complete else '(hollow: of fewer)'}"
    ax.set_title(title, fontsize=9)
    ax.set_xticks(range(len(shots)), map(str, shots))
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.3)
