"""Where a shipped configuration lies.

    python -m p2c config path P2C/vit_b16_c2_ep5_batch4_2ctx

prints the path of an installed YAML: of a trainer (TRAINER/CFG) or of a dataset (datasets/NAME).
"""
import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path

from p2c import configs
from p2c.config import config_file
from p2c.utils.console import DONE, MISTAKE, Parser, say, show


def shipped() -> list[str]:
    """Return the names of the installed files."""
    root = Path(list(configs.__path__)[0])
    trainers = sorted(path.relative_to(root / "trainers") for path in root.glob("trainers/*/*.yaml"))
    datasets = sorted(path.relative_to(root) for path in root.glob("datasets/*.yaml"))
    return [path.with_suffix("").as_posix() for path in trainers + datasets]


def main(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    parser = Parser(prog="python -m p2c config", description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["path"], help="what to print")
    parser.add_argument("name", metavar="NAME", help="TRAINER/CFG, or datasets/NAME")
    args = parser.parse_args(argv)
    names, name = shipped(), args.name.removesuffix(".yaml").removeprefix("trainers/")
    if name not in names:
        close = [known for known in names if known.startswith(name)] or difflib.get_close_matches(name, names) or names
        say(f"error: no configuration is called {args.name}; choose from {', '.join(close)}")
        return MISTAKE
    show(config_file(*([] if name.startswith("datasets/") else ["trainers"]), name))
    return DONE
