"""Notes on a table: which cells are missing, and which mix seeds or configurations."""

import shlex
from collections.abc import Callable, Hashable, Iterator
from typing import TypeVar

from p2c.tables.folders import NO_SEED
from p2c.tables.published import AVERAGE, STANDARD_SHOTS
from p2c.tables.rows import OWN_DATA, Line, Row, format_seeds
from p2c.tables.runs import Run
from p2c.utils.ranges import flatten

# Settings that differ between the seeds and halves of every experiment. If no others do, the engine, which knows all
# settings that may differ but takes seconds to import, is not needed.
USUAL = ("OUTPUT_DIR", "TRAIN.CHECKPOINT_FREQ")

Found = TypeVar("Found", bound=Hashable)


def notes_on(row: Row, output: str | None) -> list[str]:
    """Return the notes on a row; `output` is the folder that the scripts write to, None if unknown."""
    return [*missing(row, output), *different_seeds(row, output), *mixed(row)]


# Missing cells


def missing(row: Row, output: str | None) -> list[str]:
    """Return a note for each set of datasets without a result."""
    def absent(line: Line) -> tuple[str, ...]:
        return tuple(name for name in row.scope.columns if name not in line.cells)

    notes = []
    for label, names, line in group_lines(row, absent):
        what = ", ".join(names) if len(names) < len(row.scope.columns) else "any dataset"
        note = f"{label}: no result for {what}"
        if AVERAGE in line.cells and not row.all_datasets(line, AVERAGE):
            note += f"; its average is over {line.cells[AVERAGE].datasets} of {len(row.scope.averaged)} datasets"
        notes.append(note + remedy(row, line, names[0], row.seeds or ["1"], output))
    return notes


def different_seeds(row: Row, output: str | None) -> list[str]:
    """Return a note for each set of cells that lack seeds of the row."""
    def fewer(line: Line) -> tuple[tuple[str, tuple[str, ...]], ...]:
        names = (name for name in line.cells if name != AVERAGE and not row.all_seeds(line, name))
        return tuple((name, line.cells[name].seeds) for name in names)

    notes = []
    for label, cells, line in group_lines(row, fewer):
        what = "; ".join(f"{name} has {format_seeds(seeds)}" for name, seeds in cells)
        name, seeds = cells[0]
        lacking = [seed for seed in row.seeds if seed not in seeds]
        notes.append(f"{label}: different seeds in a row: {what}; others {format_seeds(row.seeds)}"
                     + remedy(row, line, name, lacking, output))  # fmt: skip
    return notes


def group_lines(row: Row, find: Callable[[Line], Found]) -> Iterator[tuple[str, Found, Line]]:
    """Group a row's lines by the result of `find`; yield a label, the result (if true) and the first line of each."""
    lines: dict[Found, list[Line]] = {}
    for line in row.lines:
        lines.setdefault(find(line), []).append(line)
    for found, same in lines.items():
        if found:
            last = same[-1].group
            shots = ", ".join([*(str(line.group.shots) for line in same[:-1]), last.shots_text])
            yield f"{last.trainer}, {last.config}, {shots}", found, same[0]


def remedy(row: Row, line: Line, dataset: str, seeds: list[str], output: str | None) -> str:
    """Return the command that runs the first missing seed of a dataset, as the end of a note; "" if there is none.

    There is none for CoOp, whose config's name depends on the dataset and the number of shots.
    """
    trainer, config, shots = line.group
    if output is None or row.scope.name == OWN_DATA or trainer == "CoOp":
        return ""
    zero_shot = trainer.startswith("ZeroshotCLIP")
    variables = {"OUTPUT": output, "CFG": config} if output != "output" else {"CFG": config}
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
    assignments = "".join(f"{name}={shlex.quote(value)} " for name, value in variables.items())
    return f"; begin with {assignments}bash scripts/run.sh {trainer} {task}"


# Mixed cells


def mixed(row: Row) -> list[str]:
    """Return a note for each cell whose seeds or halves ran with different settings."""
    notes = []
    for line in row.lines:
        for dataset, seeds in line.runs.items():
            where = f"{line.group}: {dataset}"
            for runs in zip(*seeds.values(), strict=True):
                if keys := differing(runs, ("SEED",)):
                    notes.append(f"{where}: mixed configurations: its seeds differ in {', '.join(keys)}")
            if keys := differing(next(iter(seeds.values())), ("SEED", "DATASET.SUBSAMPLE_CLASSES")):
                notes.append(f"{where}: mixed configurations: base and novel differ in {', '.join(keys)}")
            for seed, runs in seeds.items():
                ran = {str(run.config["SEED"]) for run in runs if "SEED" in run.config} - {seed}
                if ran and seed != NO_SEED:
                    notes.append(f"{where}: mixed seeds: the folder of seed {seed} ran with SEED {', '.join(ran)}")
    return notes


def differing(runs: tuple[Run, ...], apart_from: tuple[str, ...]) -> list[str]:
    """Return the settings in which runs differ from the first, except those that may differ within an experiment."""
    configs = [run.config for run in runs if run.config]
    compared = [{key: value for key, value in flatten(config).items() if key not in (*USUAL, *apart_from)}
                for config in configs]
    if all(config == compared[0] for config in compared):
        return []
    from p2c.engine.results import changed_keys

    keys = {key for config in configs for key in changed_keys(configs[0], config)}
    return sorted(keys - set(apart_from))
