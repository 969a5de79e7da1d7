"""Choose settings on validation data, freeze them, then compare methods on test data, with confidence intervals.

    python -m p2c study configs/studies/shapes.yaml --output output/study
    python -m p2c study configs/studies/vit_b16.yaml --root DATA --output output/study_vit_b16

The same command continues an interrupted study; finished runs are not repeated. The output folder holds choice.json
(the frozen settings with the scores of all trials), report.md, cells.csv (one line for each test), figures, and runs/.

Exit status: 0 done, 1 a run failed, 2 a usage error or a mistake in the file, 75 interrupted and resumable.
"""
import argparse
import os
import shlex
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool

import torch

from p2c.engine.files import DiskFull
from p2c.engine.lock import folder_lock
from p2c.study import report
from p2c.study.cells import Place
from p2c.study.choice import FILE, read_choice, search
from p2c.study.plan import read_study
from p2c.utils import console
from p2c.utils.console import exit_on, say


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = console.command_parser("study", __doc__)
    parser.add_argument("study", metavar="STUDY.yaml", help="the search, the comparison and the ablations; "
                                                            "see configs/studies/")
    parser.add_argument("--output", default="output/study", help="folder of the study (default: %(default)s)")
    parser.add_argument("--root", default=os.environ.get("DATA", "data"),
                        help="folder that holds all datasets (default: $DATA, else data/)")
    cores = console.usable_cores()
    parser.add_argument("--jobs", type=console.positive, default=1 if torch.cuda.is_available() else cores,
                        help="runs at a time; if several, of one thread each (default: 1 on a GPU, else one per core)")
    parser.add_argument("--stage", choices=("all", "search", "report"), default="all",
                        help="search: choose and freeze; report: test the frozen choice (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    args = parse_args(argv)
    with (exit_on(*console.MISTAKES, status=console.MISTAKE),
          exit_on(DiskFull, FloatingPointError, torch.OutOfMemoryError, status=console.FAILED),
          exit_on(BrokenProcessPool, status=console.FAILED,
                  line="error: one of the processes was killed, perhaps for lack of memory; the same command "
                       "continues, and --jobs sets fewer at a time"),
          exit_on(KeyboardInterrupt, status=console.INTERRUPTED, line="Interrupted; the same command continues")):
        study, place = read_study(args.study), Place(args.output, args.root)
        frozen = os.path.isfile(os.path.join(args.output, FILE))
        if not frozen and args.stage == "report":
            raise ValueError(f"There is no {FILE} in {args.output}: settings are chosen before anything is tested; run "
                             "the search first (--stage search, or no --stage)")
        with folder_lock(args.output) as died:
            if died:
                say(died)
            choice = read_choice(study, place) if frozen else search(study, place, args.jobs)
            say(f"Settings chosen in {os.path.join(args.output, FILE)}, SHA-256 {choice.digest}")
            if args.stage != "search":
                place = place._replace(choice=choice.digest)
                rows = report.run(study, choice, place, args.jobs)
                for path in report.write(study, choice, rows, place, f"python -m p2c study {shlex.quote(args.study)}"):
                    console.show(path)
    return console.DONE
