"""The figures of a report."""
from collections.abc import Mapping

from matplotlib.figure import Figure

from p2c.study.analysis import Estimate
from p2c.tables.curves import COLOURS

LINE = 0.26  # height of a line in a forest plot, in inches


def differences(estimates: Mapping[str, Mapping[str, Estimate]]) -> Figure:
    """Draw a panel each for base, novel and HM, with the interval of each dataset and of the pooled estimate."""
    figure = Figure((8, 1 + LINE * 1.4 * len(estimates)), layout="constrained")
    for ax, measure, title in zip(figure.subplots(1, 3, sharey=True), ("base", "novel", "hm"), ("base", "novel", "HM"),
                                  strict=True):
        forest(ax, {name: found[measure] for name, found in estimates.items()})
        ax.set_title(title, fontsize=9)
    figure.supxlabel("difference in points, 95% CI", fontsize=9)
    return figure


def ablations(groups: Mapping[str, Mapping[str, Estimate]], dataset: str) -> Figure:
    """Draw a panel for each group: differences in HM with their intervals."""
    shown = {title: estimates for title, estimates in groups.items() if estimates}
    heights = [1 + len(estimates) for estimates in shown.values()]
    figure = Figure((8, 0.8 + LINE * sum(heights)), layout="constrained")
    axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for ax, (title, estimates) in zip(axes, shown.items(), strict=True):
        forest(ax, estimates)
        ax.set_title(title, fontsize=9, loc="left")
    figure.supxlabel(f"difference in HM on {dataset} in points, 95% CI", fontsize=9)
    return figure


def forest(ax, estimates: Mapping[str, Estimate]) -> None:
    """Draw estimates with their intervals, the first on top, and a line at 0."""
    ax.axvline(0, color="0.6", linewidth=0.8)
    upwards = list(estimates)[::-1]
    for place, name in enumerate(upwards):
        found = estimates[name]
        ax.errorbar([found.mean], [place], xerr=[[found.mean - found.low], [found.high - found.mean]], fmt="o",
                    color=COLOURS[0], markersize=4, capsize=2, linewidth=1.2)
    ax.set_yticks(range(len(estimates)), upwards, fontsize=8)
    ax.set_ylim(-0.6, len(estimates) - 0.4)
    ax.tick_params(axis="x", labelsize=8)
    ax.grid(axis="x", alpha=0.3)
