"""The command line: `p2c NAME ...`, or `python -m p2c NAME ...` if the package is not installed."""
import importlib
import signal
import sys

from p2c.utils.console import FAILED, Parser, prepare_streams, say

COMMANDS = {  # each is a module of p2c.cli
    "config": "print every setting, or the path of a shipped configuration",
    "convert": "write a run's prompts in MaPLe's layout",
    "data": "download, verify and list datasets",
    "doctor": "check software, device, weights and datasets",
    "interpret": "name the words nearest to learned prompts",
    "predict": "classify images, or export the classifier",
    "report": "write a page that shows the results of runs",
    "study": "choose settings on validation data, and compare methods",
    "train": "train on a folder of images, or on a dataset, and test",
    "verify_run": "repeat a run's test and compare the results",
}


def main() -> None:
    """Run the command that the first argument names; SIGTERM interrupts it as Ctrl-C does."""
    prepare_streams()
    lines = "\n".join(f"  {name:12}{does}" for name, does in COMMANDS.items())
    parser = Parser(prog="p2c", usage="p2c NAME ... (p2c NAME --help lists the options)", add_help=False)
    name, *argv = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(f"usage: {parser.usage}\n\n{lines}")
        return
    if name not in COMMANDS:
        parser.error(f"there is no command '{name}'; choose from {', '.join(COMMANDS)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(importlib.import_module(f"p2c.cli.{name}").main(argv))
    except KeyboardInterrupt:
        say("Interrupted")
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
