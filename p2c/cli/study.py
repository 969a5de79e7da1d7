"""Choose settings on validation data, freeze them, then compare methods on test data, with confidence intervals.

    python -m p2c study configs/studies/shapes.yaml --output output/study
    python -m p2c study configs/studies/vit_b16.yaml --root DATA --output output/study_vit_b16

The same command continues a study that was interrupted; what is finished is not repeated. In the output folder:
choice.json (the frozen settings with the scores of all trials), report.md, cells.csv (every run), pictures, and runs/
(their folders).

Exit status: 0 done, 1 a run failed, 2 a mistaken call or file, 75 interrupted and resumable.
"""
import argparse
import os
import shlex
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool

import torch

from p2c.engine.files import DiskFull
from p2c.engine.lock import folder_lock
from p2c.study import choice as choices
from p2c.study import report
from p2c.study.cells import Place
from p2c.study.plan import Study, read_study
from p2c.utils.console import DONE, FAILED, INTERRUPTED, MISTAKE, MISTAKES, Parser, one_line, positive, say, show

STAGES = ("all", "search", "report")


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m p2c study", description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", metavar="STUDY.yaml", help="what is searched, compared and left out; "
                                                            "see configs/studies/")
    parser.add_argument("--output", default="output/study", help="folder of the study (default: %(default)s)")
    parser.add_argument("--root", default=os.environ.get("DATA", "data"),
                        help="folder that holds all data sets (default: $DATA, or data)")
    parser.add_argument("--jobs", type=positive, default=default_jobs(),
                        help="runs at a time (default: one, where there is a GPU, else one a core, of one thread each)")
    parser.add_argument("--stage", choices=STAGES, default="all",
                        help="search: choose and freeze; report: test what was chosen before (default: %(default)s)")
    return parser.parse_args(argv)


def default_jobs() -> int:
    if torch.cuda.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    args = parse_args(argv)
    try:
        study, place = read_study(args.study), Place(args.output, args.root)
        if choices.load_choice(study, place) is None and args.stage == "report":
            raise ValueError(f"There is no {choices.FILE} in {args.output}, and nothing is tested before settings are "
                             "chosen; run the search first (--stage search, or no --stage)")
        with folder_lock(args.output) as died:
            if died:
                say(died)
            carry_out(study, place, args)
            return DONE
    except KeyboardInterrupt:
        say("Interrupted; the same command continues")
        return INTERRUPTED
    except BrokenProcessPool:
        say("error: one of the processes was killed, as for lack of memory; the same command continues, and --jobs has "
            "fewer at a time")
        return FAILED
    except (DiskFull, FloatingPointError, torch.OutOfMemoryError) as error:
        say(f"error: {one_line(error)}")
        return FAILED
    except MISTAKES as error:
        say(f"error: {one_line(error)}")
        return MISTAKE


def carry_out(study: Study, place: Place, args: argparse.Namespace) -> None:
    """Search, unless that has been done, and report what was chosen, unless the search is all that is asked for."""
    if choices.load_choice(study, place) is None:
        choices.search(study, place, args.jobs)
    choice = choices.load_choice(study, place)
    say(f"Settings chosen in {os.path.join(args.output, choices.FILE)}, SHA-256 {choice.digest}")
    if args.stage == "search":
        return
    place = place._replace(choice=choice.digest)
    rows = report.run(study, choice, place, args.jobs)
    command = f"python -m p2c study {shlex.quote(args.study)}"
    for path in report.write(study, choice, rows, place, command):
        show(path)
