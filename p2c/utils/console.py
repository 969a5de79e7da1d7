"""What the commands share: how they print, and how they answer a mistake, in one line and with status 2."""
import argparse
import os
import sys

DONE, FAILED, MISTAKE = 0, 1, 2  # exit statuses of the commands that take a run
INTERRUPTED = 75  # and resumable
MISTAKES = (ValueError, TypeError, KeyError, OSError, AssertionError)  # of the user's, in set-up


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str):
        self.exit(2, f"error: {message} (--help lists the options)\n")


def run_parser(command: str, description: str) -> Parser:
    """The parser of a command that takes a run of train.py, and an epoch of it."""
    parser = Parser(prog=f"python -m p2c {command}", description=description, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("--load-epoch", type=int, metavar="EPOCH",
                        help="epoch whose checkpoint to use; default: the one that the run itself was tested with")
    return parser


def one_line(error: Exception) -> str:
    """What an error says, without line breaks."""
    message = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(str(message).split()) or type(error).__name__


def positive(text: str) -> int:
    """A whole number from 1, as an option's type."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, but got {number}")
    return number


def show(line: str) -> None:
    """Print a line, unless the reader of standard output is gone, as `head` is after its share."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(line: str) -> None:
    """Print a line on standard error."""
    print(printable(line), file=sys.stderr, flush=True)


def printable(path: str) -> str:
    """A path as text, whatever bytes are in its name."""
    return os.fsencode(path).decode("utf-8", "replace")
