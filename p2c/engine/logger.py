"""Logging of a run: bare messages to standard output, which is copied to a log file.

Until a program calls `log_to_stdout` or `setup_logger`, the package prints nothing: its logger, "p2c", is an ordinary
one, and Python shows its warnings on standard error.
"""
import contextlib
import functools
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TextIO

from tqdm import tqdm

from p2c.engine.files import DiskFull, errors_naming, mkdir_if_missing


def on_terminal() -> bool:
    """Return whether output goes to a terminal, which shows less than a pipe: details go to the log file alone."""
    console = getattr(sys.stdout, "console", sys.stdout)  # real Dassl's Logger has no isatty
    return console.isatty() and sys.stderr.isatty()


class Logger:
    """A replacement for sys.stdout that writes to the console and, if a path is given, also to a new file.

    The file is line-buffered. The console is never closed.
    """

    def __init__(self, fpath: str | None = None):
        self.file: TextIO | None = None  # set first: opening it may fail
        self.console: TextIO = sys.stdout.console if isinstance(sys.stdout, Logger) else sys.stdout
        if fpath is not None:
            mkdir_if_missing(os.path.dirname(fpath))
            self.file = open(fpath, "w", buffering=1, encoding="utf-8", errors="backslashreplace")

    def write(self, text: str) -> int:
        self.write_file(text)
        return self.console.write(text)

    def write_file(self, text: str) -> None:
        """Write to the file alone. After an OSError, such as DiskFull, all output goes to the console alone."""
        if self.file is None:
            return
        try:
            with errors_naming(self.file.name):
                self.file.write(text)
        except OSError:
            with contextlib.suppress(OSError):  # closing retries the failed write
                self.file.close()
            self.file = None
            raise

    def flush(self) -> None:
        self.console.flush()
        if self.file is not None:
            with errors_naming(self.file.name):
                self.file.flush()
                os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the file; all further output goes to the console alone."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __getattr__(self, name):
        return getattr(self.console, name)  # isatty, encoding, fileno, buffer and the rest of a standard output


def _copied() -> Logger | None:
    """Return standard output if it is copied to a log file, else None."""
    return sys.stdout if isinstance(sys.stdout, Logger) and sys.stdout.file else None


def print_on_terminal(text: str) -> None:
    """Print a text above the progress bars of a terminal, if this package's messages are printed on one."""
    if HANDLER in PACKAGE.handlers and PACKAGE.isEnabledFor(logging.INFO) and on_terminal():
        console = getattr(sys.stdout, "console", sys.stdout)
        with tqdm.external_write_mode():
            console.write(_printable(text, console) + "\n")
            console.flush()


def _printable(text: str, stream: TextIO) -> str:
    """Return a text in which characters that a stream's encoding lacks are escaped."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


class StdoutHandler(logging.Handler):
    """Writes bare messages to the current sys.stdout.

    On a terminal progress lines go to the log file alone; so do, in a block of `warnings_on_terminal`, all lines below
    WARNING, if there is a log file.
    """

    only_warnings = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line, console = self.format(record) + "\n", sys.stdout
            left_out = self.only_warnings and record.levelno < logging.WARNING and _copied()
            for_file = (left_out or getattr(record, "progress", False)) and on_terminal()
            if isinstance(console, Logger):
                console.write_file(line)
                console = console.console
            if for_file:
                return
            console.write(_printable(line, console))
            console.flush()  # not Logger.flush: one fsync per line is slow on network disks
        except DiskFull:
            raise
        except Exception:
            self.handleError(record)


class FileHandler(logging.Handler):
    """Writes bare messages to the file of a `Logger`."""

    def __init__(self, target: Logger):
        super().__init__()
        self.target = target

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.target.write_file(self.format(record) + "\n")
        except DiskFull:
            raise
        except Exception:
            self.handleError(record)


class PassOn(logging.Handler):
    """Gives messages of at least a level to another logger's handlers."""

    def __init__(self, logger: logging.Logger, level: int):
        super().__init__(level)
        self.logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        self.logger.callHandlers(record)


PACKAGE = logging.getLogger("p2c")
HANDLER = StdoutHandler()


def log_to_stdout() -> None:
    """Print this package's messages, as Dassl prints its own, from now on; for programs."""
    if HANDLER not in PACKAGE.handlers:
        PACKAGE.addHandler(HANDLER)
        PACKAGE.setLevel(logging.INFO)
        PACKAGE.propagate = False


@contextlib.contextmanager
def log_to_file(output: str) -> Iterator[None]:
    """Copy this package's messages to a log file, as `setup_logger` names it; print nothing.

    Handlers that the user has set for the logger "p2c" get what they get otherwise.
    """
    usual = logging.Logger(PACKAGE.name)
    usual.parent, usual.propagate, usual.handlers = PACKAGE.parent, PACKAGE.propagate, PACKAGE.handlers
    level, threshold = PACKAGE.level, PACKAGE.getEffectiveLevel()
    with Logger(log_path(output)) as file:
        PACKAGE.handlers, PACKAGE.propagate = [FileHandler(file), PassOn(usual, threshold)], False
        PACKAGE.setLevel(min(threshold, logging.INFO))
        try:
            yield
        finally:
            PACKAGE.handlers, PACKAGE.propagate = usual.handlers, usual.propagate
            PACKAGE.setLevel(level)


@contextlib.contextmanager
def only_warnings() -> Iterator[None]:
    """Keep standard output for a command's result: show warnings only, and send them and prints to stderr."""
    level = PACKAGE.level
    PACKAGE.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        PACKAGE.setLevel(level)


@contextlib.contextmanager
def warnings_on_terminal() -> Iterator[None]:
    """Show only warnings on a terminal; all lines go to the log file. Without either, change nothing."""
    before, HANDLER.only_warnings = HANDLER.only_warnings, True
    try:
        yield
    finally:
        HANDLER.only_warnings = before


def setup_logger(output: str | None = None) -> None:
    """Copy standard output, and the traceback of an uncaught exception, to a log file from now on.

    `output` is a file if it ends in .txt or .log, otherwise a folder, in which log.txt is written; None: no file. An
    existing file is kept: date and time are appended to the new name. This package's messages are printed from now on.
    """
    log_to_stdout()
    if output is None:
        return
    path = log_path(output)
    if not isinstance(sys.stdout, Logger):
        sys.excepthook = functools.partial(_log_uncaught, sys.excepthook)
    sys.stdout = Logger(path)


def log_path(output: str) -> str:
    """Return the path of a new log file: `output` if it ends in .txt or .log, else log.txt in that folder."""
    path = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    while os.path.exists(path):
        path += time.strftime("-%Y-%m-%d-%H-%M-%S")
    return path


def _log_uncaught(previous: Callable, kind, error, trace) -> None:
    """Write the traceback to the log file, then call the previous excepthook."""
    if isinstance(sys.stdout, Logger):
        sys.stdout.write_file("".join(traceback.format_exception(kind, error, trace)))
    previous(kind, error, trace)
