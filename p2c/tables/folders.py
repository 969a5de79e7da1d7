"""The layout of the benchmarks' runs below an output folder, as written by scripts/run.sh and by CoOp's and MaPLe's."""

import glob
import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from os import path as osp
from typing import NamedTuple

from p2c.tables.runs import Run, describe_left_out, read_run

NO_SEED = ""  # the seed of a run without a seed folder: zero-shot CLIP is not trained


class Group(NamedTuple):
    """The properties that runs must share to be averaged."""

    trainer: str
    config: str
    shots: int  # 0: not trained

    @property
    def shots_text(self) -> str:
        """The number of shots in words, such as "1 shot"."""
        return "1 shot" if self.shots == 1 else f"{self.shots} shots"

    def __str__(self) -> str:
        return f"{self.trainer}, {self.config}, {self.shots_text}"


class Layout(NamedTuple):
    """One kind of run folder: how to list and parse its path, and whether its logs are those of evaluations."""

    globs: tuple[str, ...]
    pattern: str
    test_log: bool


Found = dict[Group, dict[str, dict[str, Run]]]  # group -> dataset -> seed -> run; seeds are sorted

NAME = "[^/]+"
GROUP = rf"(?P<trainer>{NAME})/(?P<config>{NAME})_(?P<shots>-?\d+)shots(?P<more>/{NAME})?"  # more: CoOp's variants
DATASET, SEED = rf"(?P<dataset>{NAME})", rf"seed(?P<seed>{NAME})"

TRAINED = Layout(("*/*/*shots/seed*", "*/*/*shots/*/seed*"), f"(?!evaluation/){DATASET}/{GROUP}/{SEED}", test_log=False)
TESTED = Layout(("evaluation/*/*shots/*/seed*", "evaluation/*/*shots/*/*/seed*"),
                f"evaluation/{GROUP}/{DATASET}/{SEED}", test_log=True)  # fmt: skip
ZERO_SHOT = Layout(("ZeroshotCLIP*/*/*",), f"(?P<trainer>ZeroshotCLIP2?)/(?P<config>{NAME})/{DATASET}", test_log=True)


def half_layout(name: str) -> Layout:
    """Return the layout of train_base, test_base or test_new, below base2new/."""
    pattern = rf"{name}/{DATASET}/shots_(?P<shots>-?\d+)/(?P<trainer>{NAME})/(?P<config>{NAME})/{SEED}"
    return Layout((f"{name}/*/shots_*/*/*/seed*",), pattern, test_log=name != "train_base")


def collect_runs(
    roots: list[str], layout: Layout, keyword: str, notes: list[str], wanted: Callable[[Group, str], bool] | None = None
) -> Found:
    """Read the runs of a layout, of wanted groups and datasets; add a note for each run that does not count."""
    found: Found = {}
    for folder, group, dataset, seed in matches(roots, layout):
        if wanted and not wanted(group, dataset):
            continue
        runs = found.setdefault(group, {}).setdefault(dataset, {})
        run = read_run(folder, keyword, layout.test_log)
        if run.fault:
            notes.append(describe_left_out(run))
        elif seed in runs:
            notes.append(f"not counted: {folder}: the same run is in a directory given before")
        else:
            runs[seed] = run
    for datasets in found.values():
        for dataset, runs in datasets.items():
            datasets[dataset] = {seed: runs[seed] for seed in sort_seeds(runs)}
    return found


def matches(roots: list[str], layout: Layout) -> Iterator[tuple[str, Group, str, str]]:
    """Yield the folders of a layout as (folder, group, dataset, seed)."""
    for root, pattern in itertools.product(roots, layout.globs):
        for folder in filter(osp.isdir, sorted(glob.glob(osp.join(glob.escape(root), pattern)))):
            if match := re.fullmatch(layout.pattern, osp.relpath(folder, root).replace(os.sep, "/")):
                parts = match.groupdict()
                config = parts["config"] + (parts.get("more") or "")
                group = Group(parts["trainer"], config, int(parts.get("shots") or 0))
                yield folder, group, parts["dataset"], parts.get("seed", NO_SEED)


def sort_seeds(seeds: Iterable[str]) -> list[str]:
    """Sort seeds by number; other names come last."""
    return sorted(seeds, key=lambda seed: (int(seed) if seed.isdecimal() else math.inf, seed))
