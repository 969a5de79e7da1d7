"""The reliability diagram: accuracy against confidence, above a histogram of confidence."""
import os
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from p2c.engine.files import write_figure

SIZE = 4.0, 4.4  # width and height in inches


def draw(reliability: Mapping[str, Sequence], path: str | os.PathLike) -> None:
    """Write the bins of `reliability` in a results.json as a PNG file."""
    write_figure(path, figure_of(**reliability))


def figure_of(count: Sequence[int], confidence: Sequence[float | None], accuracy: Sequence[float | None]) -> Figure:
    """Return the diagram: points on the diagonal are calibrated, points below it overconfident."""
    figure = Figure(SIZE, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = 100 / len(count)
    filled = [place for place, number in enumerate(count) if number]
    above.plot((0, 100), (0, 100), color="#7f7f7f", linewidth=1, linestyle=":")
    above.bar([width * place for place in filled], [accuracy[place] for place in filled], width, align="edge",
              color="#0072b2", alpha=0.35, edgecolor="white")
    above.plot([confidence[place] for place in filled], [accuracy[place] for place in filled], "o-", color="#0072b2",
               markersize=4, linewidth=1.2)
    above.set(xlim=(0, 100), ylim=(0, 100), ylabel="accuracy in %")
    below.bar([width * place for place in range(len(count))], count, width, align="edge", color="#0072b2",
              edgecolor="white")
    below.set(xlabel="confidence in %", ylabel="images")
    for ax in (above, below):
        ax.grid(alpha=0.3)
    return figure
