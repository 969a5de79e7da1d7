"""Download, verify or list the datasets of the benchmarks.

    python -m p2c data download NAME...    fetch, check, unpack and arrange in CoOp's layout; existing files are used
    python -m p2c data verify NAME...      compare the counts, and open a sample of the images (--full: all)
    python -m p2c data list                show the state of each dataset

NAMEs are those of configs/datasets/NAME.yaml, or all; verify also takes your own data as folder:PATH.
Exit status: 0 complete, 1 something is missing or wrong, 2 a usage error, 75 interrupted and resumable.
"""
import argparse
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import gdown
from tabulate import tabulate

from p2c.download.contents import FOLDER_PREFIX, class_of
from p2c.download.fetch import DRIVE, Drive
from p2c.download.install import install, steps_by_hand
from p2c.download.places import format_size
from p2c.download.sources import SOURCES, Source
from p2c.download.verify import state_of, verify
from p2c.engine.logger import log_to_stdout
from p2c.grid.families import FAMILIES, unique_names
from p2c.utils.console import DONE, FAILED, INTERRUPTED, command_parser


def parse_args(argv: Sequence[str], sources: Mapping[str, Source]) -> argparse.Namespace:
    """Parse the command line and check its names; `all` is expanded, generated datasets are left out."""
    parser = command_parser("data", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="download|verify|list")
    download_parser = commands.add_parser("download", help="download datasets")
    download_parser.add_argument("--mirror", action="store_true",
                                 help="if the sources fail, use a third-party copy (huggingface.co, "
                                      "zhengli97/prompt_learning_dataset)")
    verify_parser = commands.add_parser("verify", help="check that datasets are complete and correct")
    verify_parser.add_argument("--full", action="store_true", help="open every image, not only a sample")
    list_parser = commands.add_parser("list", help="show the state of each dataset")
    for command in (download_parser, verify_parser, list_parser):
        command.add_argument("--root", type=Path, default=os.environ.get("DATA") or "data",
                             help="folder that holds all datasets (default: $DATA, else data/)")
    choices = f"all, or some of {', '.join(sources)}"
    download_parser.add_argument("names", nargs="+", metavar="NAME", help=choices)
    verify_parser.add_argument("names", nargs="+", metavar="NAME", help=f"{choices}; or folder:PATH")
    args = parser.parse_args(argv)
    args.root = args.root.expanduser()
    if args.root.exists() and not args.root.is_dir():
        parser.error(f"--root must be a folder, but {args.root} is a file")
    generated = FAMILIES["shapes"].members
    names = unique_names(getattr(args, "names", ["all"]))
    user_folders = [name for name in names if name.startswith(FOLDER_PREFIX) and args.command == "verify"]
    if unknown := [name for name in names if name not in {"all", *sources, *generated, *user_folders}]:
        parser.error(f"Unknown dataset '{unknown[0]}'; choose from all, {', '.join(sources)}")
    for name in user_folders:
        if not Path(path := name.removeprefix(FOLDER_PREFIX)).exists():
            parser.error(f"No folder of images, or split file, at '{path}'")
    for name in names:
        if name in generated:
            print(f"{name}: nothing to download, it is generated on first use")
    chosen = sources if "all" in names else [name for name in names if name in sources]
    args.names = [*chosen, *user_folders]
    return args


def main(argv: Sequence[str], sources: Mapping[str, Source] = SOURCES, drive: Drive = gdown.download) -> int:
    """Run the command and return the exit status; `sources` and `drive` are for tests."""
    args = parse_args(argv, sources)
    log_to_stdout()
    logger = logging.getLogger("p2c.datasets")
    level = logger.level
    logger.setLevel(logging.WARNING)  # without the lines about reading a dataset
    try:
        return run_command(args, sources, drive)
    finally:
        logger.setLevel(level)


def run_command(args: argparse.Namespace, sources: Mapping[str, Source], drive: Drive) -> int:
    """Run the parsed command and return the exit status."""
    if args.command == "list":
        print(table(sources, args.root))
        return DONE
    complete = {}
    try:
        for name in args.names:
            print(f"== {name}", flush=True)
            complete[name] = process(name, sources.get(name), args, drive)
    except KeyboardInterrupt:
        print("Interrupted; the same command continues from here", flush=True)
        return INTERRUPTED
    if len(complete) > 1:
        rows = [(name, "complete" if whole else "NOT COMPLETE") for name, whole in complete.items()]
        print("\n" + tabulate(rows, tablefmt="plain"))
    return DONE if all(complete.values()) else FAILED


def process(name: str, source: Source | None, args: argparse.Namespace, drive: Drive) -> bool:
    """Download a dataset, if asked to, verify it and print the findings; return whether it is complete.

    If it cannot be read or downloaded, print what to do by hand.
    """
    try:
        faults = install(name, source, args.root, args.mirror, drive) if source and args.command == "download" else []
        if not faults:
            report = verify(name, source, args.root, getattr(args, "full", False))
            print("\n".join((*report.facts, *(f"error: {name}: {fault}" for fault in report.faults))))
            remedy = f"; {class_of(name).how_to_get.format(name)}" if source else ""
            print(f"{name}: NOT COMPLETE{remedy}" if report.faults else f"{name}: complete", flush=True)
            return not report.faults
    except OSError as error:
        faults = [str(error)]
    for fault in faults:
        print(f"error: {name}: {fault}")
    if source:
        print("By hand:")
        for line in steps_by_hand(name, source, args.root):
            print(f"  {line}", flush=True)
    return False


def table(sources: Mapping[str, Source], root: Path) -> str:
    """Return a table of all datasets: state, folder, size and origin."""
    rows = []
    for name, source in sources.items():
        sizes = [part[0].expected or 0 for part in source.parts]  # 0: unknown
        archives = [archive for part in source.parts for archive in part]
        hosts = dict.fromkeys("Google Drive" if address.startswith(DRIVE) else address.split("/")[2]
                              for archive in archives for address in archive.sources)
        rows.append((name, state_of(name, source, root), str(root / class_of(name).folder),
                     format_size(sum(sizes)) if all(sizes) else "?", source.note or ", ".join(hosts)))
    return tabulate(rows, headers=("dataset", "state", "folder", "download", "from"), tablefmt="plain")
