"""Run, or list, all runs that a trainer's rows in the benchmarks' tables need.

    bash scripts/reproduce.sh P2C base2new                                    # 11 datasets, seeds 1 2 3
    bash scripts/reproduce.sh P2C all --gpus 0,1,2,3 -- OPTIM.MAX_EPOCH 9     # one run per GPU at a time
    bash scripts/reproduce.sh MaPLe xd --datasets dtd eurosat --dry-run       # list the commands
    bash scripts/reproduce.sh P2C all --family shapes --seeds 1               # the built-in datasets

Each run is a call of scripts/run.sh, which chooses its folder, skips a finished run and resumes an interrupted one. A
failed run stops only the runs that need it. Arguments after -- are passed to every call: options of train.py, then KEY
VALUE pairs. Variables as for run.sh: DATA, OUTPUT, CFG, PYTHON.

Exit status: 0 everything is finished, 1 something failed, 2 a usage error, 75 interrupted and resumable.
"""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from p2c.grid.families import FAMILIES, Family, unique_names  # noqa: E402
from p2c.utils.console import (  # noqa: E402
    DONE,
    FAILED,
    INTERRUPTED,
    Parser,
    ReaderGone,
    Several,
    listed,
    prepare_streams,
    show,
    usable_cores,
)

RUN = ROOT / "scripts" / "run.sh"
PROTOCOLS = ("base2new", "xd", "dg", "fewshot")
USER_DATA_PROTOCOLS = ("base2new", "fewshot")  # these also take folder:PATH
ZERO_SHOT = ("ZeroshotCLIP", "ZeroshotCLIP2")
VARIABLES = ("DATA", "OUTPUT", "CFG", "PYTHON")  # the environment variables that run.sh reads


# The grid


@dataclass(frozen=True)
class Cell:
    """One call of run.sh: `run.sh TRAINER protocol dataset number`."""

    protocol: str
    dataset: str
    number: str
    what: str = ""  # the meaning of `number`, for messages: "seed 1"
    variables: tuple[tuple[str, str], ...] = ()  # environment variables for run.sh
    needs: "Cell | None" = field(default=None, repr=False)  # must have finished successfully before
    after: "Cell | None" = field(default=None, repr=False)  # must have ended before, successfully or not

    def __str__(self) -> str:
        return f"{self.protocol} {self.dataset} {self.what}".rstrip()

    @property
    def runs(self) -> int:
        """The number of train.py calls by run.sh: in zero-shot it tests both halves."""
        return 2 if self.protocol == "base2new_test" and self.needs is None else 1


def choose(protocols: Iterable[str], family: Family, named: list[str]) -> dict[str, list[str]]:
    """Return the datasets that each protocol trains or tests on; protocols without any are left out.

    Only `named` ones are kept, unless there are none. Raise ValueError for a name that no protocol uses.
    """
    offered = {"base2new": family.datasets, "fewshot": family.datasets, "xd": (family.source, *family.targets),
               "dg": (family.source, *family.domains)}
    own = [name for name in named if name.startswith("folder:")]
    chosen = {}
    for protocol in protocols:
        chosen[protocol] = [name for name in offered[protocol] if not named or name in named]
        chosen[protocol] += own if protocol in USER_DATA_PROTOCOLS else []
    for name in named:
        if not any(name in names for names in chosen.values()):
            known = list(dict.fromkeys(name for protocol in chosen for name in offered[protocol]))
            if any(protocol in USER_DATA_PROTOCOLS for protocol in chosen):
                known.append("folder:PATH")
            raise ValueError(f"Unknown dataset '{name}' for {', '.join(chosen)}; choose from {', '.join(known)}")
    return {protocol: names for protocol, names in chosen.items() if names}


def trained_cells(chosen: dict[str, list[str]], source: str, seeds: list[int], shots: list[int]) -> list[Cell]:
    """Return the cells of a trainer that learns, in the order of running: cells that others need come first.

    Cross-dataset and domain generalization test the same training. With the same configuration that is also the
    few-shot run with as many shots, in the same folder, so the two must not run at the same time.
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
                        what = f"{shot} {'shot' if shot == 1 else 'shots'}, seed {seed}"
                        cells.append(Cell("few_shot", name, str(shot), what, (("SEEDS", str(seed)),), after=after))
                elif name != source:
                    cells.append(Cell("xd_test", name, str(seed), f"seed {seed}", (("SOURCE", source),), sources[seed]))
    return cells


def zero_shot_cells(chosen: dict[str, list[str]], source: str, seed: int, cfg: str) -> list[Cell]:
    """Return the cells of a zero-shot trainer: one seed suffices, and three protocols share a dataset's test."""
    cells = [Cell("base2new_test", name, str(seed), f"seed {seed}") for name in chosen.get("base2new", ())]
    for protocol in ("xd", "dg", "fewshot"):
        if protocol in chosen:
            first = [source] if protocol != "fewshot" else []
            cells += [Cell("zeroshot", name, cfg) for name in (*first, *chosen[protocol])]
    return list(dict.fromkeys(cells))


# One call


def command(args: argparse.Namespace, cell: Cell, script: str) -> list[str]:
    """Return a cell's command as a list of words."""
    return ["bash", script, args.trainer, cell.protocol, cell.dataset, cell.number, *args.extra]


def command_line(args: argparse.Namespace, cell: Cell) -> str:
    """Return a cell's command, with variables, as typed in the current directory."""
    given = [(name, os.environ[name]) for name in VARIABLES if os.environ.get(name)]
    variables = [f"{name}={shlex.quote(value)}" for name, value in (*given, *cell.variables)]
    return " ".join([*variables, shlex.join(command(args, cell, relative_path(RUN)))])


def log_name(args: argparse.Namespace, cell: Cell) -> str:
    """Return the name of the file for a cell's output.

    For folder:PATH it contains the path's last part and a checksum of the whole path.
    """
    dataset = cell.dataset
    if dataset.startswith("folder:"):
        dataset = f"{Path(dataset.removeprefix('folder:')).name}-{zlib.crc32(dataset.encode()):08x}"
    what = cell.what.replace(", ", "-").replace(" ", "")
    parts = (args.trainer, Path(os.environ.get("CFG", "")).stem, cell.protocol, dataset, what)
    return "-".join(filter(None, parts)) + ".log"


def relative_path(path: Path) -> str:
    """Return the path relative to the current directory if it is below, else unchanged."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative


# Running


RAN, FINISHED_BEFORE, NOT_RUN, BROKEN, STOPPED = "done", "finished before", "not run", "failed", "interrupted"
FINISHED = (RAN, FINISHED_BEFORE)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL = 0.05  # seconds between looks at the running cells


@dataclass
class Running:
    """A running cell."""

    cell: Cell
    process: subprocess.Popen
    log: Path
    began: float


class Grid:
    """Runs cells, one per slot at a time, in order, each as soon as the cells that it needs have ended.

    Args:
        slots: the environment variables of each slot: which GPU, how many threads.
        folder: for the cells' outputs.

    Attributes:
        outcomes: cell -> RAN, FINISHED_BEFORE, NOT_RUN, BROKEN or STOPPED.
        reasons: cell that is not finished -> the reason.
    """

    def __init__(self, cells: list[Cell], args: argparse.Namespace, slots: list[dict[str, str]], folder: Path):
        self.cells, self.args, self.slots, self.folder = cells, args, slots, folder
        self.outcomes: dict[Cell, str] = {}
        self.reasons: dict[Cell, str] = {}
        self.interrupted = False
        self._running: dict[int, Running] = {}  # by slot

    def run(self) -> None:
        """Run the cells until all have been tried, or until those running have ended after a signal."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, self._interrupt)
        try:
            self._start_ready()
            while self._running and not self.interrupted:
                self._collect()
                self._start_ready()
            if self._running:
                say(f"Interrupted, ending the running calls ({len(self._running)})")
        finally:
            for running in self._running.values():  # leave nothing running, whatever went wrong
                running.process.terminate()
        while self._running:
            self._collect()

    def _interrupt(self, signum, frame) -> None:
        self.interrupted = True

    def _start_ready(self) -> None:
        busy = {running.cell for running in self._running.values()}
        for cell in self.cells:
            if cell in self.outcomes or cell in busy:
                continue
            free = [slot for slot in range(len(self.slots)) if slot not in self._running]
            if not free or self.interrupted:
                return
            if self.outcomes.get(cell.needs, RAN) not in FINISHED:
                self.reasons[cell] = f"needs {cell.needs}"
                self._record(cell, NOT_RUN, f": {self.reasons[cell]}")
            elif all(other is None or other in self.outcomes for other in (cell.needs, cell.after)):
                self._start(cell, free[0])

    def _start(self, cell: Cell, slot: int) -> None:
        """Start a cell in a new session, so that Ctrl-C reaches it only once, from here."""
        log = self.folder / log_name(self.args, cell)
        environ = {**os.environ, **self.slots[slot], **dict(cell.variables)}
        with open(log, "wb") as file:
            process = subprocess.Popen(command(self.args, cell, str(RUN)), env=environ, stdin=subprocess.DEVNULL,
                                       stdout=file, stderr=file, start_new_session=True)
        self._running[slot] = Running(cell, process, log, time.monotonic())
        gpu = self.slots[slot].get("CUDA_VISIBLE_DEVICES")
        self._say(cell, "started" + (f" on GPU {gpu}" if gpu else ""))

    def _collect(self) -> None:
        """Wait a moment, then record the cells that have ended."""
        time.sleep(POLL)
        for slot, running in list(self._running.items()):
            if running.process.poll() is not None:
                del self._running[slot]
                self._end(running)

    def _end(self, running: Running) -> None:
        with suppress(ProcessLookupError, PermissionError):  # end a training that outlived a killed run.sh
            os.killpg(running.process.pid, signal.SIGTERM)
        cell, log, status = running.cell, running.log, running.process.returncode
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        if status == DONE and sum(line.startswith("Finished before") for line in lines) == cell.runs:
            self._record(cell, FINISHED_BEFORE)
        elif status == DONE:
            self._record(cell, RAN, f" ({duration(time.monotonic() - running.began)})")
        else:
            self.reasons[cell] = f"{last_error(lines)}\n    see {log}"
            if status == INTERRUPTED or self.interrupted:
                self._record(cell, STOPPED)
            else:
                self._record(cell, BROKEN, f" (status {status}), see {log}")

    def _record(self, cell: Cell, outcome: str, more: str = "") -> None:
        self.outcomes[cell] = outcome
        self._say(cell, outcome + more)

    def _say(self, cell: Cell, event: str) -> None:
        say(f"[{self.cells.index(cell) + 1}/{len(self.cells)}] {self.args.trainer} {cell}: {event}")


def last_error(lines: list[str]) -> str:
    """Return the last error line of a failed run's output, or else its last line."""
    lines = [line.strip() for line in lines if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["it wrote nothing"])[-1]


def duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def say(line: str) -> None:
    """Print a line; a closed terminal, or a reader that has gone, is ignored."""
    with suppress(OSError, ReaderGone):
        print(line, flush=True)


# Command line


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Parse the command line and check every value; `extra` holds the arguments for train.py."""
    own, extra = argv, []
    if "--" in argv:
        own, extra = argv[:argv.index("--")], argv[argv.index("--") + 1:]
    parser = Parser(prog="reproduce.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                    allow_abbrev=False, usage="%(prog)s TRAINER PROTOCOL [options] [-- OPTIONS KEY VALUE ...]")
    parser.add_argument("trainer", metavar="TRAINER", help=", ".join(known_trainers()))
    parser.add_argument("protocol", metavar="PROTOCOL", choices=[*PROTOCOLS, "all"],
                        help=f"{', '.join(PROTOCOLS)} or all")
    parser.add_argument("--family", choices=FAMILIES, default="standard", metavar="NAME",
                        help=f"datasets: {' or '.join(FAMILIES)} (default: %(default)s)")
    parser.add_argument("--datasets", action=Several, type=listed(), default=[], metavar="NAME",
                        help="some of the family's; xd and dg always train on the source. base2new and fewshot take "
                             "folder:PATH too")
    parser.add_argument("--seeds", action=Several, type=listed(at_least(0)), default=[1, 2, 3], metavar="N",
                        help="(default: 1 2 3)")
    parser.add_argument("--shots", action=Several, type=listed(at_least(1)), metavar="K",
                        help="shots of fewshot (default: 1 2 4 8 16)")
    places = parser.add_mutually_exclusive_group()
    places.add_argument("--gpus", action=Several, type=listed(), metavar="GPU",
                        help="GPUs to use, with one run at a time on each")
    places.add_argument("--jobs", type=at_least(1), metavar="N",
                        help="parallel runs, which share the GPU or the cores (default: 1; with --family shapes, whose "
                             "runs are small, one per core, at most 4)")
    parser.add_argument("--dry-run", action="store_true", help="list the commands; run nothing")
    args = parser.parse_args(own)
    args.extra = extra
    try:
        check(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def known_trainers() -> list[str]:
    """Return the names of the trainers with a folder of configurations, and of zero-shot CLIP."""
    return sorted({path.name for path in (ROOT / "configs" / "trainers").iterdir() if path.is_dir()} | {*ZERO_SHOT})


def check(args: argparse.Namespace) -> None:
    """Convert the arguments to values, in place. Raise ValueError naming an invalid one."""
    plugins = os.environ.get("CFG", "").endswith(".yaml")  # a plugin's trainer comes with its own configuration
    if args.trainer not in known_trainers() and not plugins:
        raise ValueError(f"Unknown trainer '{args.trainer}'; choose from {', '.join(known_trainers())}")
    args.family = FAMILIES[args.family]
    args.seeds = list(dict.fromkeys(args.seeds))
    protocols = PROTOCOLS if args.protocol == "all" else (args.protocol,)
    args.datasets = unique_names(args.datasets)
    args.chosen = choose(protocols, args.family, args.datasets)
    if args.shots and "fewshot" not in protocols:
        raise ValueError("--shots is for fewshot; for other protocols append -- DATASET.NUM_SHOTS K")
    args.shots = list(dict.fromkeys(args.shots or [1, 2, 4, 8, 16]))
    if "fewshot" in args.chosen and args.trainer not in ZERO_SHOT and "DATASET.NUM_SHOTS" in args.extra:
        raise ValueError("DATASET.NUM_SHOTS would make all few-shot runs the same; choose their shots with --shots")
    if args.gpus is not None:
        wrong = [gpu for gpu in args.gpus if not re.fullmatch(r"[0-9]+|(GPU|MIG)-\S+", gpu)]
        if wrong or len(set(args.gpus)) < len(args.gpus):
            raise ValueError(f"--gpus takes different GPUs, such as 0,1,2,3, but got '{','.join(args.gpus)}'")


def at_least(least: int) -> Callable[[str], int]:
    """Return the conversion of an option to a whole number from `least` on."""
    def convert(word: str) -> int:
        if not re.fullmatch("[0-9]+", word) or int(word) < least:
            raise argparse.ArgumentTypeError(f"takes whole numbers from {least} on, but got '{word}'")
        return int(word)

    return convert


def build_cells(args: argparse.Namespace) -> list[Cell]:
    """Return the cells that the command line asks for."""
    if args.trainer not in ZERO_SHOT:
        return trained_cells(args.chosen, args.family.source, args.seeds, args.shots)
    cfg = os.environ.get("CFG") or ("tiny_shapes" if args.family is FAMILIES["shapes"] else "vit_b16")
    return zero_shot_cells(args.chosen, args.family.source, args.seeds[0], cfg)


def build_slots(args: argparse.Namespace) -> list[dict[str, str]]:
    """Return the environment variables of each slot."""
    if args.gpus is not None:
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in args.gpus]
    cores = usable_cores()
    jobs = args.jobs or (min(cores, 4) if args.family is FAMILIES["shapes"] else 1)
    threads = {} if jobs == 1 or "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
    return [threads] * jobs


def format_counts(kinds: Iterable[str]) -> str:
    """Count kinds in words, such as "3 runs: 2 done, 1 failed"."""
    counts = Counter(kinds)
    runs = "1 run" if counts.total() == 1 else f"{counts.total()} runs"
    return f"{runs}: {', '.join(f'{count} {kind}' for kind, count in counts.items())}"


def report(grid: Grid, out: str) -> int:
    """Print the outcomes and the commands of the tables; return the exit status."""
    args = grid.args
    kinds = [grid.outcomes.get(cell, "not started") for cell in grid.cells]
    say(f"\n{format_counts(kinds)}")
    for cell, reason in grid.reasons.items():
        if grid.outcomes[cell] != STOPPED or not grid.interrupted:
            say(f"{grid.outcomes[cell]}: {args.trainer} {cell}: {reason}")
    if grid.interrupted:
        say("Interrupted; the same command continues")
        return INTERRUPTED
    if STOPPED in kinds or BROKEN in kinds:
        say("The same command tries these again, and repeats no finished run")
    say("The tables:")
    own = any(name.startswith("folder:") for name in args.datasets)
    for protocol, names in args.chosen.items():
        words = [os.environ.get("PYTHON") or "python", relative_path(ROOT / "parse_test_res.py"), f"--{protocol}", out]
        if args.datasets and not own:
            words += ["--datasets", *(name for name in args.datasets if name in names)]
        say(f"    {shlex.join(words)}")
    if BROKEN in kinds:
        return FAILED
    return INTERRUPTED if STOPPED in kinds else DONE


def main(argv: list[str]) -> int:
    """Run the command and return the exit status."""
    args = parse_args(argv)
    cells = build_cells(args)
    counts = format_counts(cell.protocol for cell in cells)
    if args.dry_run:
        show("\n".join([f"# {counts}", *(command_line(args, cell) for cell in cells)]))
        return DONE
    out = os.environ.get("OUTPUT") or "output"
    grid = Grid(cells, args, build_slots(args), Path(out) / "reproduce")
    say(f"{counts}; {len(grid.slots)} at a time, with output in {grid.folder}")
    try:
        grid.folder.mkdir(parents=True, exist_ok=True)
        grid.run()
    except OSError as error:  # of this process, such as a full disk
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    return report(grid, out)


if __name__ == "__main__":
    prepare_streams()
    sys.exit(main(sys.argv[1:]))
