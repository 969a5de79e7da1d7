"""Kills trainings at random places, starts them again until they end, and compares with those that were left alone."""
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from clip_files import make_pets
from outcomes import assert_equal, outcome

from faults import processes
from faults.plugin import BYTES, KILL, RENAME, RENAMED, STEP, SYNC, Fault

CHECKPOINTS = r"\.pth\.tar|/checkpoint$"
BEST = ("TEST.FINAL_MODEL", "best_val")
RUNS = (  # trainer, settings
    ("P2C", ("TRAIN.CHECKPOINT_STEPS", "3", "TRAIN.CHECKPOINT_FREQ", "1", "DATALOADER.NUM_WORKERS", "2", *BEST)),
    ("MaPLe", ("TRAIN.CHECKPOINT_STEPS", "2")),
    ("PromptSRC", ("TRAIN.CHECKPOINT_STEPS", "1", "TRAIN.CHECKPOINT_FREQ", "2", *BEST)),
)
KINDS = {"write": 7, "step": 6, "outside": 1}  # kills of each trainer's runs, of each kind
QUICK = {"write": 2, "step": 1}
EARLIEST, LATEST = 3.0, 9.0  # seconds after which a process is killed from outside
INSIDE, MIDDLE, ELSEWHERE = "inside a checkpoint write", "mid-epoch", "elsewhere"
STARTS = 60  # of one run, after which it does not advance


def main(seed: int, quick: bool) -> bool:
    print(f"kills: seed {seed}")
    processes.warm()
    total, held = Counter(), True
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        make_pets(root / "data")
        for number, (trainer, pairs) in enumerate(RUNS[2:] if quick else RUNS):
            rng = random.Random(f"{seed}.{trainer}")
            counts, faults = torment(rng, trainer, (*pairs, "OPTIM.MAX_EPOCH", "2" if quick else "3"), root, number,
                                     QUICK if quick else KINDS)
            print(f"  {trainer}: {said(counts)}, {'; '.join(faults) or 'identical to the undisturbed run'}")
            total += counts
            held = held and not faults
    print(f"kills: {said(total)}; {'all held' if held else 'NOT ALL HELD'}")
    return held


def said(counts: Counter) -> str:
    kinds = ", ".join(f"{counts[kind]} {kind}" for kind in (INSIDE, MIDDLE, ELSEWHERE))
    return f"{counts.total()} kills ({kinds})"


def torment(rng: random.Random, trainer: str, pairs: tuple[str, ...], root: Path, number: int,
            kinds: dict[str, int]) -> tuple[Counter, list[str]]:
    """Where the runs of a trainer were killed, and what is not as it should be."""
    whole = root / f"whole{number}"
    ended = processes.run(processes.training(trainer, root / "data", whole, *pairs))
    if ended.status:
        return Counter(), [f"the undisturbed run ended with {ended.status}: {ended.err}"]
    expected = outcome(whole)
    journal = root / f"journal{number}"
    planned = [kind for kind, count in kinds.items() for _ in range(count)]
    rng.shuffle(planned)
    counts: Counter = Counter()
    runs = 0
    while planned:
        runs += 1
        if runs > STARTS:
            return counts, ["the planned kills do not happen"]
        out = root / f"run{number}_{runs}"
        command = processes.training(trainer, root / "data", out, *pairs)
        if fault := until_it_ends(rng, command, planned, journal, counts):
            return counts, [f"run {runs}: {fault}"]
        try:
            assert_equal(outcome(out), expected)
        except AssertionError as difference:
            return counts, [f"run {runs} differs from the undisturbed one: {str(difference)[:300]}"]
    return counts, []


def until_it_ends(rng: random.Random, command: list[str], planned: list[str], journal: Path, counts: Counter) -> str:
    """Start a training again and again, with the planned kills; a fault, "" for none."""
    for _ in range(STARTS):
        kind = planned[-1] if planned else None
        if kind == "outside":
            status, said = kill_from_outside(command, rng.uniform(EARLIEST, LATEST))
        else:
            ended = processes.run(command, draw(rng, kind, journal).environment() if kind else None)
            status, said = ended.status, ended.err or ended.out[-500:]
        if status == 0:
            return ""
        if status != -signal.SIGKILL:
            return f"a start ended with status {status}: {said}"
        planned.pop()
        counts[ELSEWHERE if kind == "outside" else place(journal)] += 1
    return f"it has not ended after {STARTS} starts"


def draw(rng: random.Random, kind: str, journal: Path) -> Fault:
    """A place to kill at."""
    if kind == "step":
        return Fault(KILL, STEP, rng.randint(1, 5), rng.random() < 0.5, 0.0, str(journal))
    stage = rng.choices((BYTES, SYNC, RENAME, RENAMED), (5, 2, 2, 1))[0]
    return Fault(KILL, CHECKPOINTS, rng.randint(1, 3), stage, rng.random(), str(journal))


def place(journal: Path) -> str:
    """Of which kind the last place in a journal is."""
    last = json.loads(journal.read_text().splitlines()[-1])
    if last.get("inside"):
        return INSIDE
    return MIDDLE if last.get("middle") else ELSEWHERE


def kill_from_outside(command: list[str], seconds: float) -> tuple[int, str]:
    """Start train.py in a new interpreter, and kill it after so long."""
    process = subprocess.Popen(
        [sys.executable, str(processes.ROOT / "train.py"), *command[1:]], text=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": f"{processes.ROOT}:{processes.ROOT / 'tests'}"})
    time.sleep(seconds)
    process.kill()
    _, err = process.communicate()
    return process.returncode, err
