"""Fills the disk at each kind of write: one line says which file had no space, and the same command goes on."""
import random
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from clip_files import make_pets
from outcomes import assert_equal, outcome

from faults import processes
from faults.plugin import BYTES, FULL, RENAME, SYNC, Fault

SETTINGS = ("OPTIM.MAX_EPOCH", "2", "TRAIN.CHECKPOINT_STEPS", "3", "TRAIN.CHECKPOINT_FREQ", "1", "TEST.FINAL_MODEL",
            "best_val", "DATASET.NUM_SHOTS", "3", "TEST.COMPUTE_CMAT", "True")
WHOLE, STREAM = (BYTES, SYNC, RENAME), (BYTES,)  # stages of a file that is written at once, and of one that grows


class Target(NamedTuple):
    """A kind of file that is written: its name, how often at most a fault waits for it, and when it can fail."""

    name: str
    pattern: str
    most: int = 1
    stages: tuple[str, ...] = WHOLE


TRAINING = (
    Target("position", r"/resume\.pth\.tar$", 4),
    Target("checkpoint", r"/model\.pth\.tar-\d+$", 2),
    Target("best checkpoint", r"/model-best\.pth\.tar$"),
    Target("pointer", r"/checkpoint$", 2),
    Target("results.json", r"/results\.json$", 2),
    Target("confusion matrix", r"/cmat\.pt$"),
    Target("log", r"/log\.txt$", 40, STREAM),
    Target("curves", r"/events\.out\.tfevents\.[^/]*$", 4, STREAM),
    Target("owner of the lock", r"/run\.owner$"),
    Target("few-shot draw", r"/shot_3-seed_1\.json$"),
)
COMMANDS = (  # target, command, its options before and after the run's folder
    (Target("predictions", r"/made\.csv$"), "predict", ("{data}/oxford_pets/images", "--csv", "{out}/made.csv")),
    (Target("classifier", r"/made\.safetensors$"), "predict", ("--export", "{out}/made.safetensors")),
    (Target("converted", r"/model\.pth\.tar-\d+$"), "convert", ("{out}",)),
)
SIZES = 3  # of real small disks
NO_SPACE = "No space is left to write"


def main(seed: int, quick: bool) -> bool:
    print(f"full_disk: seed {seed}")
    processes.warm()
    rng = random.Random(f"{seed}.full")
    with tempfile.TemporaryDirectory() as scratch:
        disk = Disk(Path(scratch))
        faults = {}
        for target in rng.sample(TRAINING, 1) if quick else TRAINING:
            faults[target.name] = disk.fill_training(rng, target)
        for target, *command in () if quick else COMMANDS:
            faults[target.name] = disk.fill_command(rng, target, *command)
        for number in range(0 if quick else SIZES):
            faults[f"a real small disk {number + 1}"] = disk.fill_for_real(rng, number)
    for name, fault in faults.items():
        print(f"  {name}: {fault or 'held'}")
    held = not any(fault.startswith("FAULT") for fault in faults.values())
    print(f"full_disk: {len(faults)} full disks; {'all held' if held else 'NOT ALL HELD'}")
    return held


class Disk:
    """Runs on a disk that becomes full."""

    def __init__(self, root: Path):
        self.root, self.journal = root, root / "journal"
        make_pets(root / "data")
        self.whole = root / "whole"
        assert self.train(self.whole).status == 0
        self.expected = outcome(self.whole)

    def train(self, out: Path, fault: Fault | None = None, data: Path | None = None) -> processes.Ended:
        command = processes.training("P2C", data or self.root / "data", out, *SETTINGS)
        return processes.run(command, fault and fault.environment())

    def draw(self, rng: random.Random, target: Target, first: bool = False) -> Fault:
        count = 1 if first else rng.randint(1, target.most)
        return Fault(FULL, target.pattern, count, rng.choice(target.stages), rng.random(), str(self.journal))

    def fill_training(self, rng: random.Random, target: Target) -> str:
        """Fill the disk at a write of a training; what is not as it should be, or what was seen."""
        out, data = (self.root / f"{target.name} {kind}" for kind in ("out", "data"))
        make_pets(data)  # without a draw
        self.journal.unlink(missing_ok=True)
        ended = self.train(out, self.draw(rng, target), data)
        if not self.journal.exists():  # there are not so many
            shutil.rmtree(out)
            shutil.rmtree(data)
            make_pets(data)
            ended = self.train(out, self.draw(rng, target, first=True), data)
        return faults_of(ended, (out, data)) or self.goes_on(out, data, ended)

    def goes_on(self, out: Path, data: Path, ended: processes.Ended) -> str:
        """The same command ends the run as if nothing had been."""
        again = self.train(out, data=data)
        if again.status:
            return f"FAULT: the same command ended with {again.status}: {again.err}"
        try:
            assert_equal(outcome(out), self.expected)
        except AssertionError as difference:
            return f"FAULT: it differs from the undisturbed run: {difference}"
        return f"held: {ended.err.strip().replace(str(self.root), '...')}"

    def fill_command(self, rng: random.Random, target: Target, name: str, words: Sequence[str]) -> str:
        """Likewise at what a command writes."""
        def command(out: Path) -> list[str]:
            return [name, str(self.whole), *(word.format(data=self.root / "data", out=out) for word in words)]

        good, out = (self.root / f"{target.name} {kind}" for kind in ("good", "out"))
        good.mkdir()
        out.mkdir()
        assert processes.run(command(good)).status == 0
        self.journal.unlink(missing_ok=True)
        ended = processes.run(command(out), self.draw(rng, target).environment())
        if fault := faults_of(ended, (out,), (1, 2)):
            return fault
        if left := [path for path in out.rglob("*") if path.is_file()]:
            return f"FAULT: left {left}"
        if processes.run(command(out)).status or contents(out) != contents(good):
            return "FAULT: the same command does not make the same file"
        return f"held: {ended.err.strip().replace(str(self.root), '...')}"

    def fill_for_real(self, rng: random.Random, number: int) -> str:
        """A training into a file system of its own, which is too small, and later large enough."""
        place = self.root / f"small{number}"
        place.mkdir()
        size = rng.randint(10, 90) * sum(path.stat().st_size for path in self.whole.rglob("*")) // 100
        if mount(place, f"size={size}"):
            return "not tried: file systems cannot be mounted here"
        try:
            ended = self.train(place / "out")
            if fault := faults_of(ended, (place / "out",)):
                return fault
            mount(place, "remount,size=64m")
            return f"{self.goes_on(place / 'out', self.root / 'data', ended)} ({size:,} bytes)"
        finally:
            subprocess.run(["umount", str(place)], check=True)


def mount(place: Path, options: str) -> int:
    if shutil.which("mount") is None:
        return 1
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True).returncode


def faults_of(ended: processes.Ended, folders: Sequence[Path], statuses: Sequence[int] = (1,)) -> str:
    """Return what is wrong with a command that found no space, and with what it left; "" if nothing is."""
    if ended.fault or ended.status not in statuses:
        return f"FAULT: status {ended.status}, {ended.fault}: {ended.err}"
    if NO_SPACE not in ended.err:
        return f"FAULT: {ended.err}"
    for folder in folders:
        for path in folder.rglob("*"):
            if path.name.endswith(".tmp"):
                return f"FAULT: left {path}"
            if ".pth.tar" in path.name:
                torch.load(path)
    return ""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
