"""Where the lines of a run go: bare messages to standard output, and from there to a log file as well."""
import contextlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator

from p2c.engine.files import DiskFull, mkdir_if_missing, named_errors


def on_terminal() -> bool:
    """Whether somebody watches: then bars show progress, and progress lines go to the log file only."""
    console = getattr(sys.stdout, "console", sys.stdout)  # real Dassl's Logger cannot be asked itself
    return console.isatty() and sys.stderr.isatty()


class Logger:
    """A stand-in for sys.stdout that writes to the console and, if a path is given, to a new file too.

    Each full line reaches the file at once. The console is never closed.
    """

    def __init__(self, fpath: str | None = None):
        self.file = None  # set first: opening it may fail
        self.console = sys.stdout.console if isinstance(sys.stdout, Logger) else sys.stdout
        if fpath is not None:
            mkdir_if_missing(os.path.dirname(fpath))
            self.file = open(fpath, "w", buffering=1, encoding="utf-8", errors="backslashreplace")

    def write(self, text: str) -> int:
        self.write_file(text)
        return self.console.write(text)

    def write_file(self, text: str) -> None:
        """Write to the file alone. After an OSError (DiskFull, for one) only the console is written."""
        if self.file is None:
            return
        try:
            with named_errors(self.file.name):
                self.file.write(text)
        except OSError:
            with contextlib.suppress(OSError):  # what could not be written is tried again
                self.file.close()
            self.file = None
            raise

    def flush(self) -> None:
        self.console.flush()
        if self.file is not None:
            with named_errors(self.file.name):
                self.file.flush()
                os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the file; from then on only the console is written."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __getattr__(self, name):
        # isatty, encoding, fileno, buffer and whatever else is asked of a standard output
        if name in ("console", "file"):
            raise AttributeError(name)
        return getattr(self.console, name)


class StdoutHandler(logging.Handler):
    """Writes bare messages to the sys.stdout of the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + "\n"
            stdout = sys.stdout
            if getattr(record, "progress", False) and on_terminal():
                if isinstance(stdout, Logger):
                    stdout.write_file(line)
                return
            stdout.write(line)
            console = stdout.console if isinstance(stdout, Logger) else stdout
            console.flush()  # not Logger.flush: one fsync per line is slow on network disks
        except DiskFull:
            raise
        except Exception:
            self.handleError(record)


def _configure() -> None:
    logger = logging.getLogger("p2c")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not any(isinstance(handler, StdoutHandler) for handler in logger.handlers):
        logger.addHandler(StdoutHandler())


_configure()


@contextlib.contextmanager
def only_warnings() -> Iterator[None]:
    """Leave standard output alone, for a command whose result it is: warnings, and what is printed, go to stderr."""
    logger = logging.getLogger("p2c")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)


def setup_logger(output: str | None = None) -> None:
    """Copy standard output, and the traceback of an uncaught exception, to a log file from now on.

    `output` is a file if it ends in .txt or .log, otherwise a folder, whose log.txt is written; None does nothing.
    A file that exists is kept: the new name is the old one with the date and time appended.
    """
    if output is None:
        return
    path = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    while os.path.exists(path):
        path += time.strftime("-%Y-%m-%d-%H-%M-%S")
    sys.stdout = Logger(path)
    if sys.excepthook is not _log_uncaught:
        _log_uncaught.previous = sys.excepthook
        sys.excepthook = _log_uncaught


def _log_uncaught(kind, error, trace) -> None:
    if isinstance(sys.stdout, Logger):
        sys.stdout.write_file("".join(traceback.format_exception(kind, error, trace)))
    _log_uncaught.previous(kind, error, trace)
