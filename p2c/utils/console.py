"""The console of the commands: their options, what they print, and their exit statuses."""
import argparse
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

DONE, FAILED, MISTAKE = 0, 1, 2  # exit statuses
INTERRUPTED = 75  # the same command continues
MISTAKES = (ValueError, TypeError, KeyError, OSError, AssertionError)  # raised in set-up: the user's, status MISTAKE


class Parser(argparse.ArgumentParser):
    """A parser that reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(MISTAKE, f"error: {message} (--help lists the options)\n")


def command_parser(command: str, description: str | None) -> Parser:
    """Return a parser without options for a command of p2c.cli."""
    return Parser(prog=f"python -m p2c {command}", description=description, allow_abbrev=False,
                  formatter_class=argparse.RawDescriptionHelpFormatter)


def run_parser(command: str, description: str | None) -> Parser:
    """Return the parser of a command that takes a run of train.py and one of its epochs."""
    parser = command_parser(command, description)
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("--load-epoch", type=int, metavar="EPOCH",
                        help="epoch whose checkpoint to use; default: the one that the run itself was tested with")
    return parser


@contextlib.contextmanager
def exit_on(*errors: type[BaseException], status: int, line: str = "error: {}") -> Iterator[None]:
    """Exit with `status` on any of `errors`, after one line on standard error; {} in it is the error's message."""
    try:
        yield
    except errors as error:
        say(line.format(one_line(error)))
        raise SystemExit(status) from error


def one_line(error: BaseException) -> str:
    """Return an error's message without line breaks."""
    message = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(str(message).split()) or type(error).__name__


def positive(text: str) -> int:
    """Convert an option to a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, but got {number}")
    return number


def show(line: str) -> None:
    """Print a line; do nothing if the reader of standard output has gone, as `head` does."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def escape_unprintable() -> None:
    """Let standard output escape characters that its encoding lacks, as standard error does by default."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def say(line: str) -> None:
    """Print a line on standard error."""
    print(printable(line), file=sys.stderr, flush=True)


def printable(path: str) -> str:
    """Return a path as text; bytes that are not UTF-8 are replaced."""
    return os.fsencode(path).decode("utf-8", "replace")
