"""The console of the commands: their options, what they print, and their exit statuses."""
import argparse
import atexit
import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn, TextIO

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


def listed(convert: Callable[[str], object] = str) -> Callable[[str], list]:
    """Return the conversion of a word of `Several` to values: those between its commas."""
    def split(word: str) -> list:
        return [word] if word.startswith("folder:") else [convert(part) for part in word.split(",") if part]

    return split


class Several(argparse.Action):
    """An option with one or more values, separated by spaces or commas; its type is made by `listed`."""

    def __init__(self, option_strings: list[str], dest: str, **settings):
        super().__init__(option_strings, dest, nargs="+", **settings)

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        flat = [value for word in values for value in word]
        if not flat:
            raise argparse.ArgumentError(self, "expected at least one value")
        setattr(namespace, self.dest, flat)


def whole(text: str) -> int:
    """Convert an option to a whole number of at least 0."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, but got {number}")
    return number


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def positive(text: str) -> int:
    """Convert an option to a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, but got {number}")
    return number


class ReaderGone(SystemExit):
    """The program at the other end of an output has gone, as `head` goes after its last line: the command ends too."""


class Output:
    """A standard output whose failed writes raise ReaderGone; nobody takes that for an error of their own."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        with self._checked():
            return self.stream.write(text)

    def flush(self) -> None:
        with self._checked():
            self.stream.flush()

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            discard(self.stream)
            raise ReaderGone(FAILED) from None

    def __getattr__(self, name: str):
        return getattr(self.stream, name)  # isatty, encoding, fileno, buffer and the rest


def prepare_streams() -> None:
    """Have this process end quietly when the reader of its output goes; a program calls it first.

    Standard output escapes characters that its encoding lacks, as standard error does by default.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    atexit.register(flush_rest, sys.stdout)
    sys.stdout, sys.stderr = Output(sys.stdout), Output(sys.stderr)  # type: ignore[assignment]


def flush_rest(stream: TextIO) -> None:
    """Flush what is left at the end of a program, if somebody reads it."""
    try:
        stream.flush()
    except BrokenPipeError:
        discard(stream)


def discard(stream: TextIO) -> None:
    """Send what is written to a stream from now on nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def show(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def say(line: str) -> None:
    """Print a line on standard error."""
    print(printable(line), file=sys.stderr, flush=True)


def printable(path: str) -> str:
    """Return a path as text; bytes that are not UTF-8 are replaced."""
    return os.fsencode(path).decode("utf-8", "replace")
