"""List the settings, or locate a shipped configuration.

    python -m p2c config path P2C/vit_b16_c2_ep5_batch4_2ctx
    python -m p2c config settings

`path` prints the path of an installed YAML file, of a trainer (TRAINER/CFG) or of a dataset (datasets/NAME). `settings`
prints every setting with its default, range and meaning, as in docs/configuration.md.
"""
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from p2c import config, configs
from p2c.engine import config as engine
from p2c.utils.console import DONE, MISTAKE, command_parser, say, show
from p2c.utils.ranges import flatten

# docs/configuration.md
PAGE = """\
# Configuration
Every setting with its default, its range and its meaning. Settings come from YAML files and from `KEY VALUE` pairs at
the end of a command; a value out of range is refused with an error that names its key. `python -m p2c config settings`
writes this page from the tables in `p2c/config.py` and `p2c/engine/config.py`.

## Settings of P2C
{ours}

## Settings of Dassl
{engines}"""


def markdown(table: Mapping) -> str:
    """Return a table of settings as Markdown."""
    rows = ["| Setting | Default | Range | Meaning |", "| --- | --- | --- | --- |"]
    for key, (default, allowed, meaning) in flatten(table).items():
        if not isinstance(default, str) or default == "":
            default = repr(default).replace("'", '"')  # as on the command line
        words = allowed.words.removeprefix("it must be ").removeprefix("choose from ")
        rows.append(f"| `{key}` | `{default}` | {words} | {meaning} |")
    return "\n".join(rows)


def shipped() -> list[str]:
    """Return the names of the installed configurations."""
    root = Path(list(configs.__path__)[0])
    paths = [*root.glob("trainers/*/*.yaml"), *root.glob("datasets/*.yaml")]
    return sorted(path.relative_to(root).with_suffix("").as_posix().removeprefix("trainers/") for path in paths)


def main(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    parser = command_parser("config", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="path|settings")
    commands.add_parser("path", help="print the path of a shipped configuration") \
        .add_argument("name", metavar="NAME", help="TRAINER/CFG, or datasets/NAME")
    commands.add_parser("settings", help="print every setting")
    args = parser.parse_args(argv)
    if args.command == "settings":
        show(PAGE.format(ours=markdown(config.SETTINGS), engines=markdown(engine.SETTINGS)))
        return DONE
    names, name = shipped(), args.name.removesuffix(".yaml").removeprefix("trainers/")
    if name not in names:
        close = [known for known in names if known.startswith(name)] or difflib.get_close_matches(name, names) or names
        say(f"error: there is no configuration {args.name}; choose from {', '.join(close)}")
        return MISTAKE
    show(config.config_file(*([] if name.startswith("datasets/") else ["trainers"]), name))
    return DONE
