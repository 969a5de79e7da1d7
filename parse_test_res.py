"""Average the test results of several runs (seeds), as CoOp's script does, or print a table of one of four benchmarks.

Results of one experiment, one folder per seed (mean and spread are printed in CoOp's format):

    python parse_test_res.py output/my_experiment                 # reads my_experiment/seed1/, seed2/, ...
    python parse_test_res.py output/my_experiment --test-log      # the logs are of evaluation-only runs
    python parse_test_res.py output --multi-exp                   # several experiments: output/exp1/seed1/, ...

A run's value is taken from its `results.json` (unrounded, finished runs only) if there is one, else from the newest of
its `log.txt`, `log.txt-DATE` with a result. Logs of CoOp, MaPLe and related code are read too. Runs that do not count
are listed, and runs that are not seeds of one experiment are named.

The table of a benchmark, over datasets and trainers, from the folders that the scripts write:

    python parse_test_res.py --base2new output [--format text|markdown|csv|latex]    # base-to-novel generalization
    python parse_test_res.py --xd output           # cross-dataset transfer: one source, other datasets as targets
    python parse_test_res.py --dg output           # domain generalization: one source, the same classes elsewhere
    python parse_test_res.py --fewshot output [--curves FILE.png|FILE.pdf]           # 1, 2, 4, 8, 16 shots

Each cell is a mean over seeds, next to the published number if there is one. As in the papers, base-to-novel's HM is
the harmonic mean of these means, and in the average row that of the means over datasets. A transfer's average leaves
out the source. The spread is the population standard deviation over seeds; for HM that of the seeds' HMs, in an average
that of the seeds' averages; a single seed has none. Cells that are missing, or that mix seeds or configurations, are
listed. The LaTeX is for a paper: the best values are bold, and published numbers are left out.
"""

from __future__ import annotations

import argparse
import os.path as osp
import re
import sys
from os import listdir
from statistics import fmean

from p2c.tables.runs import METRICS, Run, Spread, ci95, describe_left_out, metric_of, read_run, std, value_pattern
from p2c.utils.console import FAILED, MISTAKE, Parser, Several, listed, one_line, prepare_streams, say

# CoOp's report: folders of seeds


def folders_in(directory: str) -> list[str]:
    """Return the paths of the folders in a directory, sorted, without hidden ones."""
    paths = [osp.join(directory, name) for name in sorted(listdir(directory)) if not name.startswith(".")]
    return list(filter(osp.isdir, paths))


def report(directory: str, keyword: str, test_log: bool, spread: Spread) -> tuple[float | None, int]:
    """Print a directory's runs, their mean and spread; return the mean, if any, and how many faults there are.

    A fault is a run that was left out, or a mean over runs that are not alike.
    """
    print(f"Parsing files in {directory}")
    text = metric_of(keyword).text
    runs = [read_run(folder, keyword, test_log) for folder in folders_in(directory)]
    counted = [run for run in runs if not run.fault]
    for run in runs:
        print(describe_left_out(run) if run.fault else f"file: {run.file}. {keyword}: {text(run.value)}. ")
    missing = len(runs) - len(counted)
    if not counted:
        return None, missing
    if missing:
        print(f"{len(counted)} of {len(runs)} runs counted")
    unlike = describe_unlike(counted)
    if unlike:
        print(f"warning: {unlike}")
    values = [run.value for run in counted]
    print("===")
    print(f"Summary of directory: {directory}")
    print(f"* {keyword}: {text(fmean(values))} +- {text(spread(values))}")
    print("===")
    return fmean(values), missing + bool(unlike)


def describe_unlike(runs: list[Run]) -> str:
    """Describe in what runs differ that are not seeds of one experiment; "" if they do not, or have only logs."""
    recorded = [run for run in runs if run.config]
    if len(recorded) < 2:
        return ""
    from p2c.tables.notes import differing  # imported here, so that averaging CoOp's folders needs no other package

    keys = [name for name in ("mode", "split") if len({run.tested.get(name) for run in recorded} - {None}) > 1]
    keys += differing(tuple(recorded), ("SEED",))
    if not keys:
        return ""
    shown = ", ".join(keys[:5]) + (f" and {len(keys) - 5} more settings" if len(keys) > 5 else "")
    return f"these runs are not alike, and their mean is over different experiments: they differ in {shown}"


def report_experiments(directory: str, keyword: str, test_log: bool, spread: Spread) -> tuple[float | None, int]:
    """Print the report of each experiment, then the mean of their means; return the latter as `report` does."""
    reports = [(folder, *report(folder, keyword, test_log, spread)) for folder in folders_in(directory)]
    means = [mean for _, mean, _ in reports if mean is not None]
    empty = [folder for folder, mean, _ in reports if mean is None]
    missing = sum(count for *_, count in reports) + len(empty)
    if not means:
        return None, missing
    for folder in empty:
        print(f"Nothing found in {folder}")
    if empty:
        print(f"{len(means)} of {len(reports)} experiments counted")
    print("Average performance")
    print(f"* {keyword}: {metric_of(keyword).text(fmean(means))}")
    return fmean(means), missing


# Command line


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    description, _, layouts = __doc__.partition("\n\n")
    parser = Parser(description=description, epilog=layouts.replace("%", "%%"),
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="+", help="directory of the runs (several for a benchmark)")
    parser.add_argument("--ci95", action="store_true", help="95%% confidence interval instead of standard deviation")
    parser.add_argument("--test-log", action="store_true", help="parse test-only logs")
    parser.add_argument("--multi-exp", action="store_true", help="parse multiple experiments")
    parser.add_argument("--keyword", default="accuracy", help=f"{', '.join(METRICS)}, ... (default: %(default)s)")
    parser.add_argument("--strict", action="store_true", help="exit status 1 if a run was left out or is missing")
    benchmarks = parser.add_mutually_exclusive_group()
    for name, title in (("base2new", "base-to-novel generalization"), ("xd", "cross-dataset transfer"),
                        ("dg", "domain generalization"), ("fewshot", "few-shot learning")):  # fmt: skip
        benchmarks.add_argument(f"--{name}", dest="benchmark", action="store_const", const=name,
                                help=f"the table of {title}")
    parser.add_argument("--datasets", action=Several, type=listed(), default=[], metavar="NAME",
                        help="datasets of that table (default: all of a family)")
    parser.add_argument("--format", choices=("text", "markdown", "csv", "latex"),
                        help="format of that table (default: text)")
    parser.add_argument("--curves", metavar="FILE", help="also draw the few-shot curves (.png or .pdf)")
    args = parser.parse_args(argv)
    if args.benchmark and (args.test_log or args.multi_exp):
        parser.error(f"--{args.benchmark} does not take --test-log and --multi-exp: it detects the kind of each log "
                     "itself; leave them out")
    if not args.benchmark and (args.format or args.datasets or len(args.directory) > 1):
        parser.error("several directories, --datasets and --format need --base2new, --xd, --dg or --fewshot")
    if args.curves and args.benchmark != "fewshot":
        parser.error("--curves needs --fewshot")
    if args.curves and not args.curves.lower().endswith((".png", ".pdf")):
        parser.error(f"--curves {args.curves} must end with .png or .pdf")
    try:
        value_pattern(args.keyword)
    except re.error as error:
        parser.error(f"--keyword {args.keyword!r} is not a regular expression: {error}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the command; return 0, or 1 if nothing was found (with --strict, also if a run was left out)."""
    args = parse_args(argv)
    spread = ci95 if args.ci95 else std
    for directory in args.directory:
        if not osp.isdir(directory):
            print(f"No such directory: {directory}; give a folder that holds runs", file=sys.stderr)
            return 1
    if args.benchmark:
        from p2c.tables import printing  # imported here as well

        try:
            found, missing = printing.report(args.benchmark, args.directory, args.keyword, spread,
                                             args.format or "text", args.curves, args.datasets)
        except (ValueError, OSError) as error:
            say(f"error: {one_line(error)}")
            return MISTAKE if isinstance(error, ValueError) else FAILED
        hint = f"looked for {printing.LOOKED_FOR[args.benchmark]}"
    else:
        show = report_experiments if args.multi_exp else report
        mean, missing = show(args.directory[0], args.keyword, args.test_log, spread)
        found, hint = mean is not None, hint_for(args.directory[0], args.test_log)
    if not found:
        print(f"Nothing found in {', '.join(args.directory)}" + (f" ({hint})" if hint else ""), file=sys.stderr)
    return 0 if found and not (args.strict and missing) else 1


def hint_for(directory: str, test_log: bool) -> str:
    """Return what may be wrong if nothing was found in a directory; "" if unknown."""
    if any(osp.isfile(osp.join(directory, name)) for name in ("log.txt", "results.json")):
        return "this is the folder of a single run; give the folder above it"
    return "" if test_log else "logs of evaluation-only runs need --test-log"


if __name__ == "__main__":
    prepare_streams()
    sys.exit(main())
