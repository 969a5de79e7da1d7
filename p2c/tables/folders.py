"""Where the runs of the benchmarks lie below an output folder: as scripts/run.sh writes them, or CoOp's and MaPLe's."""

import glob
import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from os import path as osp
from typing import NamedTuple

from p2c.tables.runs import Run, left_out, read_run

NO_SEED = ""  # the seed of a run whose folder has no level for it: zero-shot CLIP is not trained


class Group(NamedTuple):
    """What runs must share to be averaged."""

    trainer: str
    config: str
    shots: int  # 0: not trained

    def __str__(self) -> str:
        return f"{self.trainer}, {self.config}, {self.shots} shot{'' if self.shots == 1 else 's'}"


class Layout(NamedTuple):
    """One kind of folder: how to list it, what the parts of its name are, and whether its logs are of evaluations."""

    globs: tuple[str, ...]
    pattern: re.Pattern[str]
    test_log: bool


Found = dict[Group, dict[str, dict[str, Run]]]  # group -> data set -> seed -> run; seeds are in order

NAME = "[^/]+"
GROUP = rf"(?P<trainer>{NAME})/(?P<config>{NAME})_(?P<shots>-?\d+)shots(?P<more>/{NAME})?"  # more: CoOp's variants
DATASET, SEED = rf"(?P<dataset>{NAME})", rf"seed(?P<seed>{NAME})"

TRAINED = Layout(
    globs=("*/*/*shots/seed*", "*/*/*shots/*/seed*"),
    pattern=re.compile(f"(?!evaluation/){DATASET}/{GROUP}/{SEED}"),
    test_log=False,
)
TESTED = Layout(
    globs=("evaluation/*/*shots/*/seed*", "evaluation/*/*shots/*/*/seed*"),
    pattern=re.compile(f"evaluation/{GROUP}/{DATASET}/{SEED}"),
    test_log=True,
)
ZERO_SHOT = Layout(
    globs=("ZeroshotCLIP*/*/*",),
    pattern=re.compile(f"(?P<trainer>ZeroshotCLIP2?)/(?P<config>{NAME})/{DATASET}"),
    test_log=True,
)


def half(name: str) -> Layout:
    """train_base, test_base or test_new, below base2new/."""
    pattern = rf"{name}/{DATASET}/shots_(?P<shots>-?\d+)/(?P<trainer>{NAME})/(?P<config>{NAME})/{SEED}"
    return Layout((f"{name}/*/shots_*/*/*/seed*",), re.compile(pattern), test_log=name != "train_base")


def collect(
    roots: list[str], layout: Layout, keyword: str, notes: list[str], wanted: Callable[[Group, str], bool] | None = None
) -> Found:
    """The runs of a layout, of wanted groups and data sets; a run that does not count is put into notes."""
    found: Found = {}
    for folder, group, dataset, seed in matches(roots, layout):
        if wanted and not wanted(group, dataset):
            continue
        runs = found.setdefault(group, {}).setdefault(dataset, {})
        run = read_run(folder, keyword, layout.test_log)
        if not run.counts:
            notes.append(left_out(run))
        elif seed in runs:
            notes.append(f"not counted: {folder}: a directory given before has the same run")
        else:
            runs[seed] = run
    return {
        group: {name: {seed: runs[seed] for seed in in_order(runs)} for name, runs in datasets.items()}
        for group, datasets in found.items()
    }


def matches(roots: list[str], layout: Layout) -> Iterator[tuple[str, Group, str, str]]:
    """The folders of a layout with what their names say: group, data set, seed."""
    for root, pattern in itertools.product(roots, layout.globs):
        for folder in filter(osp.isdir, sorted(glob.glob(osp.join(glob.escape(root), pattern)))):
            match = layout.pattern.fullmatch(osp.relpath(folder, root).replace(os.sep, "/"))
            if match:
                parts = match.groupdict()
                config = parts["config"] + (parts.get("more") or "")
                group = Group(parts["trainer"], config, int(parts.get("shots") or 0))
                yield folder, group, parts["dataset"], parts.get("seed", NO_SEED)


def in_order(seeds: Iterable[str]) -> list[str]:
    return sorted(seeds, key=lambda seed: (int(seed) if seed.isdecimal() else math.inf, seed))
