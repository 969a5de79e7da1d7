"""The data sets of the benchmarks: get them, look whether they are right, list them.

    python -m p2c data download NAME...    fetch, check, unpack and lay out as CoOp does; what is there is used
    python -m p2c data verify NAME...      counts, and a sample of the images opened (--full: all)
    python -m p2c data list                what there is

NAMEs are those of configs/datasets/NAME.yaml, or all; verify also takes one's own data, folder:PATH.
Exit status: 0 all is well, 1 something is missing or wrong, 2 a mistaken call, 75 interrupted and resumable.
"""
import argparse
import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import gdown
from tabulate import tabulate

from p2c.download.contents import OWN, class_of
from p2c.download.fetch import DRIVE, Drive
from p2c.download.install import install, steps_by_hand
from p2c.download.places import in_words
from p2c.download.sources import SOURCES, Source
from p2c.download.verify import state_of, verify
from p2c.grid.families import FAMILIES, each_once
from p2c.utils.console import Parser

FINE, FAULTY, INTERRUPTED = 0, 1, 75


def folder(text: str) -> Path:
    """A path, as the loaders take it."""
    return Path(text).expanduser()


def parse_args(argv: Sequence[str], sources: Mapping[str, Source]) -> argparse.Namespace:
    """The command, its names checked and `all` written out, those that need no download taken out."""
    parser = Parser(prog="python -m p2c data", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="download|verify|list")
    download = commands.add_parser("download", help="get data sets")
    download.add_argument("--mirror", action="store_true",
                          help="where the sources fail, take a third party's copy (huggingface.co, "
                               "zhengli97/prompt_learning_dataset)")
    verifying = commands.add_parser("verify", help="look whether data sets are right")
    verifying.add_argument("--full", action="store_true", help="open every image, not a sample")
    listing = commands.add_parser("list", help="what there is")
    for command in (download, verifying, listing):
        command.add_argument("--root", type=folder, default=os.environ.get("DATA") or "data",
                             help="folder that holds all data sets (default: $DATA, else data/)")
    for command in (download, verifying):
        command.add_argument("names", nargs="+", metavar="NAME", help=f"all, or some of {', '.join(sources)}"
                             + ("; or folder:PATH" if command is verifying else ""))
    args = parser.parse_args(argv)
    if args.root.exists() and not args.root.is_dir():
        parser.error(f"--root must be a folder, but {args.root} is a file")
    generated = FAMILIES["shapes"].members
    names = each_once(getattr(args, "names", ["all"]))
    own = [name for name in names if name.startswith(OWN) and args.command == "verify"]
    if unknown := [name for name in names if name not in {"all", *sources, *generated, *own}]:
        parser.error(f"Unknown data set '{unknown[0]}'; choose from all, {', '.join(sources)}")
    if gone := [name for name in own if not Path(name.removeprefix(OWN)).exists()]:
        parser.error(f"No folder of images, or split file, at '{gone[0].removeprefix(OWN)}'")
    for name in names:
        if name in generated:
            print(f"{name}: nothing to download, it is drawn when it is first used")
    chosen = sources if "all" in names else [name for name in names if name in sources]
    args.names = [*chosen, *own]
    return args


def main(argv: Sequence[str], sources: Mapping[str, Source] = SOURCES, drive: Drive = gdown.download) -> int:
    """Run the command; `sources` and `drive` are for tests. Return the exit status."""
    args = parse_args(argv, sources)
    with silenced(logging.getLogger("p2c.datasets")):  # reading a dataset is a step here, not the work
        return carry_out(args, sources, drive)


@contextlib.contextmanager
def silenced(logger: logging.Logger) -> Iterator[None]:
    """Let only warnings of a logger through."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def carry_out(args: argparse.Namespace, sources: Mapping[str, Source], drive: Drive) -> int:
    """Do what the options ask for; return the exit status."""
    if args.command == "list":
        print(table(sources, args.root))
        return FINE
    good = {}
    try:
        for name in args.names:
            print(f"== {name}", flush=True)
            good[name] = work_on(name, sources.get(name), args, drive)
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on from here", flush=True)
        return INTERRUPTED
    if len(good) > 1:
        print("\n" + tabulate([(name, "complete" if fine else "NOT COMPLETE") for name, fine in good.items()],
                              tablefmt="plain"))
    return FINE if all(good.values()) else FAULTY


def work_on(name: str, source: Source | None, args: argparse.Namespace, drive: Drive) -> bool:
    """Download a data set, if that is asked for, and verify it; where it fails, say what a person can do."""
    try:
        faults = install(name, source, args.root, args.mirror, drive) if args.command == "download" else []
        if not faults:
            return report(name, source, args)
    except OSError as error:
        faults = [str(error)]
    for fault in faults:
        print(f"error: {name}: {fault}")
    if source:
        print("\n".join(("By hand:", *(f"  {line}" for line in steps_by_hand(name, source, args.root)))), flush=True)
    return False


def report(name: str, source: Source | None, args: argparse.Namespace) -> bool:
    """Verify a data set and say what was seen."""
    found = verify(name, source, args.root, getattr(args, "full", False))
    print("\n".join((*found.facts, *(f"error: {name}: {fault}" for fault in found.faults))))
    remedy = f"; `python -m p2c data download {name}` gets what is missing" if source else ""
    print(f"{name}: NOT COMPLETE{remedy}" if found.faults else f"{name}: complete", flush=True)
    return not found.faults


def table(sources: Mapping[str, Source], root: Path) -> str:
    """All data sets: what there is of them, where, and where they come from."""
    rows = []
    for name, source in sources.items():
        sizes = [part[0].expected for part in source.parts]
        hosts = dict.fromkeys(host(address) for part in source.parts for archive in part for address in archive.sources)
        rows.append((name, state_of(name, source, root), str(root / class_of(name).folder),
                     in_words(sum(sizes)) if all(sizes) else "?", source.note or ", ".join(hosts)))
    return tabulate(rows, headers=("data set", "state", "folder", "download", "from"), tablefmt="plain")


def host(source: str) -> str:
    """Whom a source is asked of."""
    return "Google Drive" if source.startswith(DRIVE) else source.split("/")[2]
