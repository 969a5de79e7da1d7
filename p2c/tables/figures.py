"""The figures of the report as inline SVG, whose text and axes take the colour of the page's text."""
import io
import re
from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from p2c.tables.curves import COLOURS, MARKERS

WIDTH = 4.6  # in inches; a phone shows this almost in full size
Bar = tuple[float, float | None, float | None]  # mean, spread if known, published number if comparable


def svg(figure: Figure, label: str) -> Markup:
    """Return a figure as an SVG element that is as wide as its place allows, at most its own size."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(file, format="svg", transparent=True,
                       metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg"):], flags=re.DOTALL)
    text = re.sub(r' id="[a-z]+_\d+"', "", text)  # of groups; equal ones are in every figure
    width = re.search(r'width="([\d.]+)pt"', text)
    assert width
    head = f'<svg role="img" aria-label="{Markup.escape(label)}" style="width: {float(width[1]) * 4 / 3:.0f}px"'
    text = re.sub(r"<svg( xmlns:xlink=\S+)? width=\S+ height=\S+", lambda _: head, text, count=1)
    return Markup(text.replace("#000000", "currentColor").replace("#ffffff", "var(--page)"))


def plain(text: str) -> str:
    """Return a text that matplotlib draws as it is, without reading formulas in it."""
    return text.replace("$", r"\$")


def bars(groups: Sequence[str], series: Mapping[str, Sequence[Bar | None]], unit: str) -> Figure:
    """Draw horizontal bars with error bars, a group of them for each name; a diamond marks a published number."""
    count = len(series)
    figure = Figure((WIDTH, 0.9 + 0.17 * count * (len(groups) + 0.5) + 0.2 * count), layout="constrained")
    ax = figure.subplots()
    height = 0.84 / count
    for number, ((label, values), colour) in enumerate(zip(series.items(), cycle(COLOURS), strict=False)):
        places = [group - 0.42 + (number + 0.5) * height for group, bar in enumerate(values) if bar]
        means, spreads, published = zip(*filter(None, values), strict=True) if places else ((), (), ())
        ax.barh(places, means, height * 0.9, color=colour, label=plain(label))
        ax.errorbar(means, places, xerr=[spread or 0 for spread in spreads], fmt="none", ecolor="black", capsize=2,
                    linewidth=1)
        known = [(value, place) for value, place in zip(published, places, strict=True) if value is not None]
        ax.plot(*zip(*known, strict=True) if known else ((), ()), "D", markersize=4, markerfacecolor="white",
                color="black")
    ax.set_yticks(range(len(groups)), [plain(name) for name in groups], fontsize=9)
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.set_xlim(left=0)
    ax.set_xlabel(unit, fontsize=9)
    finish(ax)
    if count > 1:
        figure.legend(loc="outside upper left", frameon=False, fontsize=9)
    return figure


def lines(title: str, curves: Mapping[str, Mapping[int, float]], unit: str) -> Figure:
    """Draw values over training steps; a curve of few points has markers."""
    figure = Figure((WIDTH * 0.8, 2.6), layout="constrained")
    ax = figure.subplots()
    for (label, points), colour, marker in zip(curves.items(), cycle(COLOURS), cycle(MARKERS), strict=False):
        steps = sorted(points)
        ax.plot(steps, [points[step] for step in steps], color=colour, linewidth=1.2, label=plain(label),
                marker=marker if len(steps) < 10 else None, markersize=4)
    ax.set_title(title, fontsize=9)
    ax.set_xlabel(unit, fontsize=9)
    ax.margins(x=0.03)
    finish(ax)
    ax.ticklabel_format(axis="y", scilimits=(-3, 4))
    if len(curves) > 1:
        ax.legend(frameon=False, fontsize=8)
    return figure


def reliability(kinds: Mapping[str, Sequence[Mapping[str, list]]]) -> Figure:
    """Draw accuracy against confidence, over the joint bins of all tests of a kind."""
    figure = Figure((4.2, 4), layout="constrained")
    ax = figure.subplots()
    ax.plot([0, 100], [0, 100], color="0.6", linewidth=0.8)
    for (kind, tests), colour, marker in zip(kinds.items(), cycle(COLOURS), cycle(MARKERS), strict=False):
        counts, confidence, accuracy = (np.array([bins[name] for bins in tests], float)  # NaN for None
                                        for name in ("count", "confidence", "accuracy"))
        filled = counts.sum(0) > 0
        x, y = (np.nansum(counts * means, 0)[filled] / counts.sum(0)[filled] for means in (confidence, accuracy))
        ax.plot(x, y, color=colour, marker=marker, markersize=4, linewidth=1.2, label=plain(kind))
    ax.set_xlabel("confidence in %", fontsize=9)
    ax.set_ylabel("accuracy in %", fontsize=9)
    finish(ax)
    ax.legend(frameon=False, fontsize=8)
    return figure


def finish(ax) -> None:
    """Set the ticks and the grid of all figures."""
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.3)
