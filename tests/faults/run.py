"""Break runs in every way that the documentation says they survive.

    python tests/faults/run.py                          # everything, some minutes; `make faults`
    python tests/faults/run.py kills damage --seed 7    # some of it, from another seed
    python tests/faults/run.py kills --quick            # a sample

Prints counts and seeds. Exit status: 0 all held, 1 something did not.
"""
import argparse
import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ("kills", "full_disk", "damage", "corpus")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a sample of each section")
    args = parser.parse_args()
    if unknown := set(args.sections) - set(SECTIONS):
        parser.error(f"unknown: {', '.join(unknown)}")
    sys.path[:1] = [str(ROOT), str(ROOT / "tests")]  # not this folder
    importlib.import_module("environment")
    held = [importlib.import_module(f"faults.{name}").main(args.seed, args.quick)
            for name in args.sections or SECTIONS]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
