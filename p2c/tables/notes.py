"""What a reader of a table must know: which cells are missing, which mix seeds or configurations."""

import shlex
from collections.abc import Callable, Hashable, Iterator

from p2c.tables.folders import NO_SEED
from p2c.tables.published import AVERAGE, STANDARD_SHOTS
from p2c.tables.rows import OWN, Line, Row, named
from p2c.tables.runs import Run

# What differs between the seeds and the halves of any experiment. If that is all, the engine, which knows every setting
# that may differ but takes seconds to import, need not be asked.
USUAL = ("OUTPUT_DIR", "TRAIN.CHECKPOINT_FREQ")


def notes_on(row: Row, output: str | None) -> list[str]:
    """The notes on a row; output is the folder that the scripts write to, None if it is not known."""
    return [*missing(row, output), *different_seeds(row, output), *mixed(row)]


# Missing cells


def missing(row: Row, output: str | None) -> list[str]:
    def absent(line: Line) -> tuple[str, ...]:
        return tuple(name for name in row.scope.columns if name not in line.cells)

    notes = []
    for label, names, line in alike(row, absent):
        what = ", ".join(names) if len(names) < len(row.scope.columns) else "any data set"
        over = ""
        if AVERAGE in line.cells and not row.all_datasets(line, AVERAGE):
            count = line.cells[AVERAGE].datasets
            over = f"; its average is over {count} of {len(row.scope.averaged)} data sets"
        notes.append(f"{label}: no result for {what}{over}" + remedy(row, line, names[0], row.seeds or ["1"], output))
    return notes


def different_seeds(row: Row, output: str | None) -> list[str]:
    def fewer(line: Line) -> tuple[tuple[str, tuple[str, ...]], ...]:
        names = (name for name in line.cells if name != AVERAGE and not row.all_seeds(line, name))
        return tuple((name, line.cells[name].seeds) for name in names)

    notes = []
    for label, cells, line in alike(row, fewer):
        what = "; ".join(f"{name} has {named(seeds)}" for name, seeds in cells)
        name, seeds = cells[0]
        lacking = [seed for seed in row.seeds if seed not in seeds]
        notes.append(f"{label}: different seeds in a row: {what}; others {named(row.seeds)}"
                     + remedy(row, line, name, lacking, output))  # fmt: skip
    return notes


def alike(row: Row, find: Callable[[Line], Hashable]) -> Iterator[tuple[str, Hashable, Line]]:
    """What find finds in the row's lines: label of those with the same, that, and the first of them."""
    lines: dict[Hashable, list[Line]] = {}
    for line in row.lines:
        lines.setdefault(find(line), []).append(line)
    for found, same in lines.items():
        if found:
            *others, last = (line.group for line in same)
            shots = "".join(f"{group.shots}, " for group in others)
            yield f"{last.trainer}, {last.config}, {shots}{str(last).rpartition(', ')[2]}", found, same[0]


def remedy(row: Row, line: Line, dataset: str, seeds: list[str], output: str | None) -> str:
    """How to begin to fill the missing cells, with this seed of this data set; "" where the scripts cannot.

    What CoOp's config is called depends on the data set and the number of shots.
    """
    trainer, config, shots = line.group
    if output is None or row.scope.name == OWN or trainer == "CoOp":
        return ""
    zero_shot = trainer.startswith("ZeroshotCLIP")
    variables = {"OUTPUT": output, "CFG": config}
    cell = f"{dataset} {seeds[0]}" + (f" DATASET.NUM_SHOTS {shots}" if shots != STANDARD_SHOTS else "")
    if row.benchmark == "base2new":
        task = f"base2new_test {cell}" if zero_shot else f"base2new_train {cell}, then base2new_test"
    elif zero_shot:
        task = f"zeroshot {dataset} {variables.pop('CFG')}"
    elif row.benchmark == "fewshot":
        variables["SEEDS"] = " ".join(seeds)
        task = f"few_shot {dataset} {shots}"
    else:
        task = f"xd_train {cell}" if dataset == row.scope.columns[0] else f"xd_test {cell}"
    if variables["OUTPUT"] == "output":
        del variables["OUTPUT"]
    assignments = "".join(f"{name}={shlex.quote(value)} " for name, value in variables.items())
    return f"; begin with {assignments}bash scripts/run.sh {trainer} {task}"


# Mixed cells


def mixed(row: Row) -> list[str]:
    """Seeds and halves of a cell that differ in more than they must."""
    notes = []
    for line in row.lines:
        for dataset, seeds in line.runs.items():
            where = f"{line.group}: {dataset}"
            for runs in zip(*seeds.values(), strict=True):
                keys = differing(runs, ("SEED",))
                if keys:
                    notes.append(f"{where}: mixed configurations: its seeds differ in {', '.join(keys)}")
            keys = differing(next(iter(seeds.values())), ("SEED", "DATASET.SUBSAMPLE_CLASSES"))
            if keys:
                notes.append(f"{where}: mixed configurations: base and novel differ in {', '.join(keys)}")
            for seed, runs in seeds.items():
                ran = {str(run.config["SEED"]) for run in runs if "SEED" in run.config} - {seed}
                if ran and seed != NO_SEED:
                    notes.append(f"{where}: mixed seeds: what is called seed {seed} ran with SEED {', '.join(ran)}")
    return notes


def differing(runs: tuple[Run, ...], apart_from: tuple[str, ...]) -> list[str]:
    """The settings in which runs differ from the first of them, but for those that may differ in one experiment."""
    first, *others = [run.config for run in runs if run.config] or [{}]
    usual = (*USUAL, *apart_from)
    if all(without(usual, config) == without(usual, first) for config in others):
        return []
    from p2c.engine.results import changed_keys

    keys = {key for config in others for key in changed_keys(first, config)}
    return sorted(keys - set(apart_from))


def without(keys: tuple[str, ...], node, name: str = ""):
    """A configuration, or its node called name, without some dotted keys."""
    if not isinstance(node, dict):
        return node
    keyed = {f"{name}.{key}".lstrip("."): value for key, value in node.items()}
    return {key: without(keys, value, key) for key, value in keyed.items() if key not in keys}
