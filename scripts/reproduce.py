"""Run, or list, every run that a trainer's rows of the benchmarks' tables need.

    bash scripts/reproduce.sh P2C base2new                                    # 11 data sets, seeds 1 2 3
    bash scripts/reproduce.sh P2C all --gpus 0,1,2,3 -- OPTIM.MAX_EPOCH 1     # one run per GPU at a time
    bash scripts/reproduce.sh MaPLe xd --datasets dtd eurosat --dry-run       # list the commands
    bash scripts/reproduce.sh P2C all --family shapes --seeds 1               # the built-in data sets

Each run is a call of scripts/run.sh, which names its folder, skips it when it is finished and resumes it when it was
interrupted. A run that fails stops only those that need it. What follows -- goes to every call: options of train.py,
then KEY VALUE pairs. Variables as for run.sh: DATA, OUTPUT, CFG, PYTHON.

Exit status: 0 everything is finished, 1 something failed, 2 a mistaken call, 75 interrupted and resumable.
"""

import argparse
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from p2c.grid.families import FAMILIES, Family, each_once  # noqa: E402
from p2c.utils.console import DONE, FAILED, INTERRUPTED, Parser  # noqa: E402

FINISHED = DONE
PROTOCOLS = ("base2new", "xd", "dg", "fewshot")
ON_OWN_DATA = ("base2new", "fewshot")  # what also runs on folder:PATH
ZERO_SHOT = ("ZeroshotCLIP", "ZeroshotCLIP2")
VARIABLES = ("DATA", "OUTPUT", "CFG", "PYTHON")  # what run.sh reads


# The grid


@dataclass(frozen=True)
class Cell:
    """One call of run.sh: `run.sh TRAINER protocol dataset number`."""

    protocol: str
    dataset: str
    number: str
    what: str = ""  # what number is, for people: "seed 1"
    variables: tuple[tuple[str, str], ...] = ()  # what run.sh is told by the environment
    needs: "Cell | None" = field(default=None, repr=False)  # it has to be finished
    after: "Cell | None" = field(default=None, repr=False)  # it has to be over, one way or the other

    def __str__(self) -> str:
        return f"{self.protocol} {self.dataset} {self.what}".rstrip()

    @property
    def runs(self) -> int:
        """How often run.sh calls train.py: zero-shot tests both halves by one call."""
        return 2 if self.protocol == "base2new_test" and self.needs is None else 1


def choose(protocols: Iterable[str], family: Family, named: list[str]) -> dict[str, list[str]]:
    """The data sets that each protocol trains or tests on; protocols without any are left out.

    Args:
        named: the data sets to keep, each once, in any order, and folder:PATH for one's own; none: all of the family.

    Raises:
        ValueError: a name that is in none of the protocols.
    """
    offered = {"base2new": family.datasets, "fewshot": family.datasets, "xd": (family.source, *family.targets),
               "dg": (family.source, *family.domains)}
    own = [name for name in named if name.startswith("folder:")]
    chosen = {}
    for protocol in protocols:
        chosen[protocol] = [name for name in offered[protocol] if not named or name in named]
        chosen[protocol] += own if protocol in ON_OWN_DATA else []
    for name in named:
        if not any(name in names for names in chosen.values()):
            known = list(dict.fromkeys(name for protocol in chosen for name in offered[protocol]))
            known += ["folder:PATH"] * any(protocol in ON_OWN_DATA for protocol in chosen)
            raise ValueError(f"Unknown data set '{name}' for {', '.join(chosen)}; choose from {', '.join(known)}")
    return {protocol: names for protocol, names in chosen.items() if names}


def trained_cells(chosen: dict[str, list[str]], source: str, seeds: list[int], shots: list[int]) -> list[Cell]:
    """The runs of a trainer that learns, in the order of running: what others need comes first.

    Cross-dataset and domain generalization test the same training. Under one configuration it is also the few-shot run
    with as many shots, in the same folder, so that the two never run at once.
    """
    sources = {}
    if "xd" in chosen or "dg" in chosen:
        sources = {seed: Cell("xd_train", source, str(seed), f"seed {seed}") for seed in seeds}
    cells = list(sources.values())
    for protocol, names in chosen.items():
        for seed in seeds:
            for name in names:
                if protocol == "base2new":
                    train = Cell("base2new_train", name, str(seed), f"seed {seed}")
                    cells += [train, Cell("base2new_test", name, str(seed), f"seed {seed}", needs=train)]
                elif protocol == "fewshot":
                    after = sources.get(seed) if name == source else None
                    for shot in shots:
                        what = f"{shot} shot{'s' * (shot > 1)}, seed {seed}"
                        cells.append(Cell("few_shot", name, str(shot), what, (("SEEDS", str(seed)),), after=after))
                elif name != source:
                    cells.append(Cell("xd_test", name, str(seed), f"seed {seed}", (("SOURCE", source),), sources[seed]))
    return cells


def zero_shot_cells(chosen: dict[str, list[str]], source: str, seed: int, cfg: str) -> list[Cell]:
    """The tests of a trainer that learns nothing: one seed says all, and three protocols share a data set's test."""
    cells = [Cell("base2new_test", name, str(seed), f"seed {seed}") for name in chosen.get("base2new", ())]
    for protocol in ("xd", "dg", "fewshot"):
        if protocol in chosen:
            first = [source] if protocol != "fewshot" else []
            cells += [Cell("zeroshot", name, cfg) for name in (*first, *chosen[protocol])]
    return list(dict.fromkeys(cells))


# One call


@dataclass(frozen=True)
class Call:
    """How cells are called."""

    trainer: str
    extra: list[str]  # what goes to train.py

    def words(self, cell: Cell, script: str) -> list[str]:
        return ["bash", script, self.trainer, cell.protocol, cell.dataset, cell.number, *self.extra]

    def line(self, cell: Cell) -> str:
        """The call as one types it where this command was typed."""
        given = [(name, os.environ[name]) for name in VARIABLES if os.environ.get(name)]
        variables = [f"{name}={shlex.quote(value)}" for name, value in (*given, *cell.variables)]
        return " ".join([*variables, shlex.join(self.words(cell, near(ROOT / "scripts" / "run.sh")))])

    def log_name(self, cell: Cell) -> str:
        """The file of a cell's output; a folder of one's own has its last part and a check sum of the whole in it."""
        dataset = cell.dataset
        if dataset.startswith("folder:"):
            dataset = f"{Path(dataset[len('folder:'):]).name}-{zlib.crc32(dataset.encode()):08x}"
        what = cell.what.replace(", ", "-").replace(" ", "")
        parts = (self.trainer, Path(os.environ.get("CFG", "")).stem, cell.protocol, dataset, what)
        return "-".join(filter(None, parts)) + ".log"


def near(path: Path) -> str:
    """The path as seen from here, if it is below."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative


# Running


DONE, BEFORE, NOT_RUN = "done", "finished before", "not run"
BROKEN, STOPPED = "failed", "interrupted"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Outcome:
    """What became of a cell."""

    kind: str
    detail: str = ""
    log: Path | None = None

    @property
    def finished(self) -> bool:
        return self.kind in (DONE, BEFORE)


@dataclass
class Running:
    """A cell at work."""

    cell: Cell
    process: subprocess.Popen
    log: Path
    began: float


class Grid:
    """Runs cells, one per slot at a time, in their order as far as what they need is there.

    Args:
        slots: for each cell at a time, the variables that it gets: which GPU, how many threads.
        folder: where the cells' outputs go.
    """

    def __init__(self, cells: list[Cell], call: Call, slots: list[dict[str, str]], folder: Path):
        self.cells, self.call, self.slots, self.folder = cells, call, slots, folder
        self.outcomes: dict[Cell, Outcome] = {}
        self.interrupted = False
        self._running: dict[int, Running] = {}
        self._events: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()  # slot and status; None: a signal

    def run(self) -> None:
        """Returns when nothing runs any more: everything was tried, or a signal came."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
                signal.signal(number, self._interrupt)
        try:
            self._start_ready()
            while self._running:
                event = self._events.get()
                if event is None:
                    say(f"Interrupted, ending what runs ({len(self._running)})")
                    self._terminate()
                else:
                    self._end(*event)
                self._start_ready()
        finally:
            self._terminate()  # nothing is left running, whatever went wrong here

    def _terminate(self) -> None:
        for running in self._running.values():
            running.process.terminate()

    def _interrupt(self, signum, frame) -> None:
        if not self.interrupted:  # a second one would only disturb what ends on the first
            self.interrupted = True
            self._events.put(None)

    def _start_ready(self) -> None:
        busy = {running.cell for running in self._running.values()}
        for cell in self.cells:
            if cell in self.outcomes or cell in busy:
                continue
            free = [slot for slot in range(len(self.slots)) if slot not in self._running]
            if not free or self.interrupted:
                return
            needed = self.outcomes.get(cell.needs)
            if needed and not needed.finished:
                self._record(cell, Outcome(NOT_RUN, f"needs {cell.needs}"))
            elif all(other is None or other in self.outcomes for other in (cell.needs, cell.after)):
                self._start(cell, free[0])

    def _start(self, cell: Cell, slot: int) -> None:
        """The call gets a session of its own, so that Ctrl-C reaches it once: from here."""
        log = self.folder / self.call.log_name(cell)
        environ = {**os.environ, **self.slots[slot], **dict(cell.variables)}
        with open(log, "wb") as file:
            process = subprocess.Popen(self.call.words(cell, str(ROOT / "scripts" / "run.sh")), env=environ,
                                       stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
        self._running[slot] = Running(cell, process, log, time.monotonic())
        gpu = self.slots[slot].get("CUDA_VISIBLE_DEVICES")
        self._say(cell, "started" + (f" on GPU {gpu}" if gpu else ""))
        threading.Thread(target=self._wait, args=(slot, process), daemon=True).start()

    def _wait(self, slot: int, process: subprocess.Popen) -> None:
        status = process.wait()
        with suppress(ProcessLookupError, PermissionError):  # a training that outlived run.sh, killed the hard way
            os.killpg(process.pid, signal.SIGTERM)
        self._events.put((slot, status))

    def _end(self, slot: int, status: int) -> None:
        running = self._running.pop(slot)
        cell, log = running.cell, running.log
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        if status == FINISHED:
            before = sum(line.startswith("Finished before") for line in lines) == cell.runs
            outcome = Outcome(BEFORE if before else DONE)
        elif status == INTERRUPTED or self.interrupted:
            outcome = Outcome(STOPPED, log=log)
        else:
            outcome = Outcome(BROKEN, f"status {status}", log)
        self._record(cell, outcome, time.monotonic() - running.began)

    def _record(self, cell: Cell, outcome: Outcome, seconds: float = 0) -> None:
        self.outcomes[cell] = outcome
        self._say(cell, {
            DONE: f"done ({duration(seconds)})",
            BROKEN: f"failed ({outcome.detail}), see {outcome.log}",
            NOT_RUN: f"not run: {outcome.detail}",
        }.get(outcome.kind, outcome.kind))

    def _say(self, cell: Cell, event: str) -> None:
        say(f"[{self.cells.index(cell) + 1}/{len(self.cells)}] {self.call.trainer} {cell}: {event}")


def last_error(log: Path) -> str:
    """The line that says why a run failed, or the last it wrote."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["it wrote nothing"])[-1]


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def say(line: str) -> None:
    with suppress(OSError):  # a terminal that has gone is no reason to stop
        print(line, flush=True)


# Command line


def parse_args(argv: list[str]) -> argparse.Namespace:
    """The command line, every value checked; `extra` is what goes to train.py."""
    own, extra = argv, []
    if "--" in argv:
        own, extra = argv[:argv.index("--")], argv[argv.index("--") + 1:]
    parser = Parser(prog="reproduce.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                    allow_abbrev=False, usage="%(prog)s TRAINER PROTOCOL [options] [-- OPTIONS KEY VALUE ...]")
    parser.add_argument("trainer", metavar="TRAINER", help=", ".join(trainers()))
    parser.add_argument("protocol", metavar="PROTOCOL", help=f"{', '.join(PROTOCOLS)} or all")
    parser.add_argument("--family", default="standard", metavar="NAME",
                        help=f"data sets: {' or '.join(FAMILIES)} (default: %(default)s)")
    parser.add_argument("--datasets", nargs="+", default=[], metavar="NAME",
                        help="some of the family's; xd and dg always train on the source. base2new and fewshot take "
                             "folder:PATH too")
    parser.add_argument("--seeds", nargs="+", default=["1", "2", "3"], metavar="N", help="(default: 1 2 3)")
    parser.add_argument("--shots", nargs="+", metavar="K", help="of fewshot (default: 1 2 4 8 16)")
    parser.add_argument("--gpus", metavar="0,1,...", help="one run at a time on each of these")
    parser.add_argument("--jobs", metavar="N", help="runs at a time, sharing the GPU or the cores (default: 1; with "
                                                    "--family shapes, whose runs are small, the cores, at most 4)")
    parser.add_argument("--dry-run", action="store_true", help="list the commands; run nothing")
    args = parser.parse_args(own)
    args.extra = extra
    try:
        check(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def trainers() -> list[str]:
    return sorted({path.name for path in (ROOT / "configs" / "trainers").iterdir() if path.is_dir()} | {*ZERO_SHOT})


def check(args: argparse.Namespace) -> None:
    """Turn words into values.

    Raises:
        ValueError: naming the word that makes no sense.
    """
    if not os.environ.get("CFG", "").endswith(".yaml"):  # a plugin's trainer brings its own configuration
        one_of("trainer", args.trainer, trainers())
    one_of("protocol", args.protocol, [*PROTOCOLS, "all"])
    one_of("family", args.family, FAMILIES)
    args.family = FAMILIES[args.family]
    args.seeds = whole_numbers("--seeds", args.seeds, least=0)
    protocols = PROTOCOLS if args.protocol == "all" else (args.protocol,)
    args.datasets = each_once(args.datasets)
    args.chosen = choose(protocols, args.family, args.datasets)
    if args.shots and "fewshot" not in protocols:
        raise ValueError("--shots is for fewshot; elsewhere write -- DATASET.NUM_SHOTS K")
    args.shots = whole_numbers("--shots", args.shots or ["1", "2", "4", "8", "16"], least=1)
    if "fewshot" in args.chosen and args.trainer not in ZERO_SHOT and "DATASET.NUM_SHOTS" in args.extra:
        raise ValueError("DATASET.NUM_SHOTS would make all few-shot runs the same; choose their shots with --shots")
    if args.gpus is not None and args.jobs is not None:
        raise ValueError("--gpus and --jobs do not go together: --gpus already runs one at a time on each GPU")
    if args.jobs is not None:
        args.jobs, = whole_numbers("--jobs", [args.jobs], least=1)
    if args.gpus is not None:
        args.gpus = args.gpus.split(",")
        wrong = [gpu for gpu in args.gpus if not re.fullmatch(r"[0-9]+|(GPU|MIG)-\S+", gpu)]
        if wrong or len(set(args.gpus)) < len(args.gpus):
            raise ValueError(f"--gpus takes different GPUs, such as 0,1,2,3, but got '{','.join(args.gpus)}'")


def one_of(kind: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise ValueError(f"Unknown {kind} '{name}'; choose from {', '.join(known)}")


def whole_numbers(option: str, words: list[str], least: int) -> list[int]:
    """The numbers, each once."""
    wrong = [word for word in words if not re.fullmatch("[0-9]+", word) or int(word) < least]
    if wrong:
        raise ValueError(f"{option} takes whole numbers from {least} on, but got '{wrong[0]}'")
    return list(dict.fromkeys(map(int, words)))


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """The grid that the command line asks for."""
    if args.trainer not in ZERO_SHOT:
        return trained_cells(args.chosen, args.family.source, args.seeds, args.shots)
    cfg = os.environ.get("CFG") or ("tiny_shapes" if args.family is FAMILIES["shapes"] else "vit_b16")
    return zero_shot_cells(args.chosen, args.family.source, args.seeds[0], cfg)


def slots_of(args: argparse.Namespace) -> list[dict[str, str]]:
    """The variables of each cell at a time."""
    if args.gpus is not None:
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in args.gpus]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = args.jobs or (min(cores, 4) if args.family is FAMILIES["shapes"] else 1)
    threads = {} if jobs == 1 or "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
    return [threads] * jobs


def list_calls(cells: list[Cell], call: Call) -> None:
    """The commands, as a script that bash could run."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # for "| head"
    print(f"# {counted(cell.protocol for cell in cells)}")
    for cell in cells:
        print(call.line(cell))


def counted(kinds: Iterable[str]) -> str:
    """As "3 runs: 2 done, 1 failed"."""
    counts = Counter(kinds)
    runs = "1 run" if counts.total() == 1 else f"{counts.total()} runs"
    return f"{runs}: {', '.join(f'{count} {kind}' for kind, count in counts.items())}"


def report(grid: Grid, args: argparse.Namespace, out: str) -> int:
    """Say what came of everything; returns the exit status."""
    kinds = [grid.outcomes[cell].kind if cell in grid.outcomes else "not started" for cell in grid.cells]
    say(f"\n{counted(kinds)}")
    for cell, outcome in grid.outcomes.items():
        if not outcome.finished and not (outcome.kind == STOPPED and grid.interrupted):
            reason = f"{last_error(outcome.log)}\n    see {outcome.log}" if outcome.log else outcome.detail
            say(f"{outcome.kind}: {grid.call.trainer} {cell}: {reason}")
    if grid.interrupted:
        say("Interrupted; the same command continues")
        return INTERRUPTED
    if STOPPED in kinds or BROKEN in kinds:
        say("The same command tries these again, and runs nothing twice")
    say("The tables:")
    some = [] if any(name.startswith("folder:") for name in args.datasets) else args.datasets
    for protocol in args.chosen:
        words = [os.environ.get("PYTHON") or "python", near(ROOT / "parse_test_res.py"), f"--{protocol}", out]
        words += ["--datasets", *some] if some else []
        say(f"    {shlex.join(words)}")
    return FAILED if BROKEN in kinds else INTERRUPTED if STOPPED in kinds else FINISHED


def main(argv: list[str]) -> int:
    """Returns the exit status."""
    args = parse_args(argv)
    cells, call = cells_of(args), Call(args.trainer, args.extra)
    if args.dry_run:
        list_calls(cells, call)
        return FINISHED
    out = os.environ.get("OUTPUT") or "output"
    grid = Grid(cells, call, slots_of(args), Path(out) / "reproduce")
    say(f"{counted(cell.protocol for cell in cells)}; {len(grid.slots)} at a time, their output in {grid.folder}")
    try:
        grid.folder.mkdir(parents=True, exist_ok=True)
        grid.run()
    except OSError as error:  # of ours, such as a full disk
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    return report(grid, args, out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
