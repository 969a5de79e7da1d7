"""Trainings and the tests of their models, each in its own folder, so that finished ones are never repeated."""
import gc
import hashlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from tqdm import tqdm
from yacs.config import CfgNode

from p2c import registry
from p2c.config import config_file
from p2c.download.contents import load_cfg
from p2c.engine.files import write_atomically
from p2c.engine.logger import only_warnings
from p2c.engine.numerics import NonFiniteLoss
from p2c.engine.results import changed_keys, read_results
from p2c.engine.seeds import set_random_seed
from p2c.framework import build_trainer
from p2c.merging import merge_values
from p2c.study.plan import Settings
from p2c.tables.cells import harmonic_mean
from p2c.utils.console import say

FAULT = "fault.txt"


class Stage(NamedTuple):
    """The classes that serve as base and new, and the split that is tested."""

    name: str
    halves: tuple[str, str]
    split: str


DEVELOPMENT = Stage("development", ("dev_base", "dev_new"), "val")
REPORT = Stage("report", ("base", "new"), "test")


@dataclass(frozen=True)
class Cell:
    """A trainer with settings and a seed, trained on the first half of a dataset's classes and tested on both."""

    stage: Stage
    trainer: str
    config: str  # CONFIG in configs/trainers/TRAINER/CONFIG.yaml
    dataset: str  # DATASET in configs/datasets/DATASET.yaml
    seed: int
    settings: Settings
    tests: Sequence[Settings] = ({},)  # settings of each test, which override those of the training; {}: the plain test

    @property
    def folder(self) -> Path:
        """Return the cell's folder, relative to the study's."""
        name = f"{self.config}-{digest(self.settings)}"
        return Path("runs") / self.stage.name / self.dataset / self.trainer / name / f"seed{self.seed}"

    @property
    def name(self) -> str:
        return self.folder.as_posix()

    def test_folder(self, half: str, settings: Settings) -> Path:
        return self.folder / (f"{half}-{digest(settings)}" if settings else half)


class Place(NamedTuple):
    """A study's folder, the data root, and the SHA-256 of the choice whose tests are reported."""

    output: str
    root: str
    choice: str = ""


class Measured(NamedTuple):
    """The result of a test on both halves of the classes."""

    base: float  # accuracy in percent
    novel: float
    halves: Sequence[dict]  # all metrics of each half

    @property
    def hm(self) -> float:
        return harmonic_mean(self.base, self.novel)

    def value(self, measure: str) -> float:
        """Return base, novel or hm, or the mean of another metric over both halves."""
        if measure in ("base", "novel", "hm"):
            return getattr(self, measure)
        return fmean(half[measure] for half in self.halves)


def digest(settings: Settings) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


# One cell


def run_cell(cell: Cell, place: Place) -> str:
    """Run what is missing of a cell, and return why it has no result, or "" if it has one.

    A loss that is not finite is recorded, since the same training would reach it again.
    """
    fault = Path(place.output, cell.folder, FAULT)
    if fault.is_file():
        return fault.read_text(encoding="utf-8")
    with only_warnings():
        try:
            train(cell, place)
        except NonFiniteLoss as error:
            text = str(error).replace(os.path.join(place.output, ""), "")  # relative to the study's folder
            write_atomically(fault, text)
            return text
        for settings in cell.tests:
            for half in cell.stage.halves:
                test(cell, half, settings, place)
    gc.collect()  # trainers hold image caches in reference cycles, which would fill the memory
    return ""


def train(cell: Cell, place: Place) -> None:
    """Train a cell's model, or resume its training."""
    first = cell.stage.halves[0]
    cfg = build_cfg(cell, place, cell.folder / "train", {"DATASET.SUBSAMPLE_CLASSES": first, "TEST.NO_TEST": True})
    if finished(cfg):
        return
    trainer = build_trainer(cfg)
    if trainer.get_model_names():
        trainer.train()


def test(cell: Cell, half: str, settings: Settings, place: Place) -> None:
    """Test a cell's model on all images of a split, for one half of the classes."""
    options = {"DATASET.SUBSAMPLE_CLASSES": half, "TEST.SPLIT": cell.stage.split, "DATASET.NUM_SHOTS": -1, **settings}
    cfg = build_cfg(cell, place, cell.test_folder(half, settings), options)
    if finished(cfg):
        return
    trainer = build_trainer(cfg)
    source = {"choice": place.choice} if place.choice else {}
    if trainer.get_model_names():
        source["model_dir"] = os.path.join(place.output, cell.folder / "train")
        trainer.load_model(source["model_dir"])
    trainer.test()
    trainer.write_results("eval", **source)


def finished(cfg: CfgNode) -> bool:
    """Return whether a run is finished in its folder. Raise ValueError if another run is there."""
    record = read_results(cfg.OUTPUT_DIR)
    if record and (changed := changed_keys(record["config"], cfg)):
        raise ValueError(f"{cfg.OUTPUT_DIR} was made with other settings ({', '.join(changed)}); delete it, or choose "
                         "another --output")
    return bool(record and record["finished"])


def build_cfg(cell: Cell, place: Place, folder: Path, options: Settings) -> CfgNode:
    """Return the frozen configuration of a cell's training or test, and seed the generators.

    Raises:
        ValueError: a setting is unknown.
    """
    cfg = load_cfg(cell.dataset, Path(place.root))
    cfg.merge_from_file(config_file("trainers", cell.trainer, cell.config))
    fixed = {"TRAINER.NAME": cell.trainer, "SEED": cell.seed, "VERBOSE": False,
             "OUTPUT_DIR": os.path.join(place.output, folder)}
    merge_values(cfg, {**fixed, **cell.settings, **options})
    registry.get_trainer(cell.trainer)
    cfg.freeze()
    set_random_seed(cell.seed)
    return cfg


def measured(cell: Cell, place: Place, settings: Settings) -> Measured:
    """Return the result of a finished test of a cell."""
    folders = [os.path.join(place.output, cell.test_folder(half, settings)) for half in cell.stage.halves]
    metrics = [record["metrics"] for folder in folders if (record := read_results(folder))]
    return Measured(metrics[0]["accuracy"], metrics[1]["accuracy"], metrics)


# Many cells


def run_cells(title: str, cells: Iterable[Cell], place: Place, jobs: int) -> dict[str, str]:
    """Run cells, `jobs` at a time, and show the progress; return by name why cells have no result."""
    merged: dict[Path, Cell] = {}  # each training once, with all its tests
    for cell in cells:
        known = merged.setdefault(cell.folder, cell)
        more = [settings for settings in cell.tests if settings not in known.tests]
        merged[cell.folder] = replace(known, tests=[*known.tests, *more])
    faults: dict[str, str] = {}
    say(f"{title}: {len(merged)} trainings with their tests")
    with tqdm(total=len(merged), unit="run", leave=False, disable=None) as bar:
        for cell, fault in execute(list(merged.values()), place, jobs):
            bar.update()
            if fault:
                faults[cell.name] = fault
    return faults


def execute(cells: Sequence[Cell], place: Place, jobs: int) -> Iterator[tuple[Cell, str]]:
    """Yield each cell when it is done, with its fault; several `jobs` are processes of one thread each."""
    if jobs == 1:
        for cell in cells:
            yield cell, run_cell(cell, place)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=prepare_process) as pool:
        try:
            futures = {pool.submit(run_cell, cell, place): cell for cell in cells}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def prepare_process() -> None:
    """Use one thread, and end silently, not at Ctrl-C but when the study's process asks for it."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit())
