"""Repeat the test of a finished run and compare the result with its record.

    python -m p2c verify_run output/RUN                # data in the recorded folder
    python -m p2c verify_run output/RUN --root DATA    # data elsewhere

RUN is the folder of a training or an evaluation by train.py. Its checkpoint is tested with the recorded configuration;
nothing is written to RUN. Every metric and count, the trained weights, the data and the versions are compared exactly.
On a GPU, or on another device than the run's, rounding may change single predictions.

Exit status: 0 everything is as recorded, 1 something differs (the last line says what), 2 a usage error: there is no
run, it is not finished, or its checkpoint or its data are missing.
"""
import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tabulate import tabulate

from p2c import registry
from p2c.engine.logger import only_warnings
from p2c.engine.results import describe_data, digest_weights, measured, versions
from p2c.engine.seeds import preserve_random_state, set_random_seed
from p2c.framework import SimpleTrainer, build_trainer
from p2c.inference.records import read_record, recorded_cfg, recorded_model, use_cuda
from p2c.utils.console import DONE, FAILED, MISTAKE, MISTAKES, command_parser, exit_on, show

NEEDED = ("metrics", "split", "epoch", "data", "versions", "device", "seed")  # entries of a record
WIDTH = 24  # characters shown of a value


class Row(NamedTuple):
    """One comparison: its kind and name, the recorded value and the value found now."""

    kind: str
    name: str
    recorded: Any
    found: Any

    @property
    def same(self) -> bool:
        return self.recorded == self.found


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = command_parser("verify_run", __doc__)
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("--root", help="folder that holds all datasets; default: the recorded one")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the run's, or the CPU if there is no GPU")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        with exit_on(*MISTAKES, torch.OutOfMemoryError, status=MISTAKE), only_warnings():
            record = read_record(args.run)
            model_dir, epoch = recorded_model(record, args.run, None)
            if missing := [name for name in NEEDED if name not in record]:
                raise ValueError(f"{args.run} does not record {', '.join(missing)}, so there is nothing to compare "
                                 "with; metrics are missing if there was no test (TEST.NO_TEST)")
            trainer = rebuild(record, args, scratch)
        with (exit_on(ValueError, OSError, torch.OutOfMemoryError, status=FAILED, line="Not confirmed: {}"),
              exit_on(FileNotFoundError, status=MISTAKE), only_warnings()):
            if trainer.get_model_names():
                trainer.load_model(str(model_dir), epoch=epoch)
            trainer.test(record["split"])
    rows = compare(record, trainer)
    table = [(row.name, brief(row.recorded), brief(row.found), "same" if row.same else "DIFFERS") for row in rows]
    show(tabulate(table, headers=("", "recorded", "now", ""), disable_numparse=True))
    show(verdict(rows, record["device"], str(trainer.device)))
    return DONE if all(row.same for row in rows) else FAILED


def rebuild(record: dict, args: argparse.Namespace, scratch: str) -> SimpleTrainer:
    """Build the untrained trainer of a run with its data; it writes to the folder `scratch`."""
    cfg = recorded_cfg(record, args.run)
    was_gpu = record["device"].startswith("cuda") and torch.cuda.is_available()
    cfg.USE_CUDA = use_cuda(args.device or ("cuda" if was_gpu else "cpu"))
    cfg.OUTPUT_DIR, cfg.RESUME, cfg.MODEL.INIT_WEIGHTS = scratch, "", ""  # the checkpoint holds everything
    cfg.TEST.SPLIT, cfg.SEED, cfg.VERBOSE = record["split"], record["seed"], False
    cfg.DATASET.ROOT = args.root or cfg.DATASET.ROOT
    cfg.freeze()
    registry.get_dataset(cfg.DATASET.NAME)
    if not Path(cfg.DATASET.ROOT).expanduser().is_dir():
        raise FileNotFoundError(f"No data at {cfg.DATASET.ROOT}; give --root the folder that holds all datasets")
    with preserve_random_state():
        set_random_seed(cfg.SEED)
        return build_trainer(cfg)


def compare(record: dict, trainer: SimpleTrainer) -> list[Row]:
    """Compare a run's record with a trainer's test; what an earlier version did not record is left out."""
    found = {
        "numbers": measured(trainer),
        "weights": {"epoch": trainer.deployed_epoch, "weights": digest_weights(trainer)},
        "data": {"split": trainer.tested_split, **describe_data(trainer.dm.dataset, trainer.cfg.DATASET.ROOT)},
        "versions": versions(trainer.dassl_version),
    }
    recorded = {
        "numbers": record["metrics"],
        "weights": {name: record[name] for name in ("epoch", "weights") if name in record},
        "data": {"split": record["split"], **record["data"]},
        "versions": record["versions"],
    }
    return [Row(kind, name, value, found[kind].get(name)) for kind in found for name, value in recorded[kind].items()]


def brief(value: Any) -> str:
    """Return a value as one short text."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= WIDTH else f"{text[:WIDTH - 3]}..."


def verdict(rows: Sequence[Row], recorded_device: str, device: str) -> str:
    """Return the comparison in one line."""
    different: dict[str, list[str]] = {}
    for row in rows:
        if not row.same:
            different.setdefault(row.kind, []).append(row.name)
    if not different:
        return f"Confirmed: numbers, weights, data and versions are as recorded (on {device})"
    line = "Not confirmed, different: " + "; ".join(f"{kind} ({', '.join(names)})" for kind, names in different.items())
    if list(different) == ["versions"]:
        return f"{line}. Numbers, weights and data are as recorded"
    if "numbers" in different and (device != "cpu" or device != recorded_device):
        line += f". The run was on {recorded_device}, this test on {device}: rounding may change single predictions"
    return line
