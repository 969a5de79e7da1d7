"""Where lines go: console, log file, and what happens when a run dies."""
import contextlib
import gc
import io
import logging
import os
import re
import sys

import pytest

from p2c.engine import Logger, setup_logger

log = logging.getLogger("p2c.test")


@contextlib.contextmanager
def own_console():
    """A standard output of the test's own; what was there is put back."""
    stdout, excepthook = sys.stdout, sys.excepthook
    sys.stdout = console = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    try:
        yield console
    finally:
        sys.stdout, sys.excepthook = stdout, excepthook


def text(console):
    return console.buffer.getvalue().decode()


def test_log_files_are_never_overwritten(tmp_path):
    """Check 45."""
    with own_console() as console:
        setup_logger(str(tmp_path / "run"))
        print("first")
        setup_logger(str(tmp_path / "run"))
        log.info("second")
        names = sorted(os.listdir(tmp_path / "run"))
        assert names[0] == "log.txt" and re.fullmatch(r"log\.txt-\d{4}-\d\d-\d\d-\d\d-\d\d-\d\d", names[1])
        assert [(tmp_path / "run" / name).read_text() for name in names] == ["first\n", "second\n"]
        assert text(console) == "first\nsecond\n"
        assert sys.stdout.console is console


def test_a_bare_file_name_is_a_file_in_the_current_folder(tmp_path, monkeypatch):
    """Check 45."""
    with own_console():
        monkeypatch.chdir(tmp_path)
        setup_logger("x.log")
        print("hello")
        assert (tmp_path / "x.log").read_text() == "hello\n"
        setup_logger(None)
        assert isinstance(sys.stdout, Logger)


def test_the_console_outlives_the_logger(tmp_path):
    """Check 45."""
    with own_console() as console:
        setup_logger(str(tmp_path))
        sys.stdout = console
        gc.collect()
        with pytest.raises(IsADirectoryError):
            Logger(str(tmp_path))
        gc.collect()
        with Logger(str(tmp_path / "a.log")) as logger:
            logger.write("in both\n")
        logger.write("on the console\n")
        print("still here")
        assert text(console) == "in both\non the console\nstill here\n"
        assert (tmp_path / "a.log").read_text() == "in both\n"


def test_the_logger_looks_like_a_standard_output(tmp_path):
    """Check 45."""
    with own_console() as console:
        setup_logger(str(tmp_path))
        assert sys.stdout.isatty() is False and sys.stdout.encoding == "utf-8" and sys.stdout.writable()
        assert sys.stdout.buffer is console.buffer
        sys.stdout.flush()


def test_lines_of_a_killed_run_are_in_the_file(tmp_path):
    """Check 45."""
    child = os.fork()
    if child == 0:
        try:
            sys.stdout = open(os.devnull, "w")
            setup_logger(str(tmp_path))
            print("printed")
            log.info("logged")
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert (tmp_path / "log.txt").read_text() == "printed\nlogged\n"


def test_the_traceback_of_an_uncaught_exception_is_in_the_file(tmp_path, capsys):
    """Check 45."""
    with own_console() as console:
        setup_logger(str(tmp_path / "one"))
        setup_logger(str(tmp_path / "two"))
        try:
            raise RuntimeError("no luck")
        except RuntimeError:
            sys.excepthook(*sys.exc_info())
        logged = (tmp_path / "two/log.txt").read_text()
        assert logged.startswith("Traceback") and logged.endswith("RuntimeError: no luck\n")
        assert capsys.readouterr().err.count("RuntimeError: no luck") == 1
        assert text(console) == "" and (tmp_path / "one/log.txt").read_text() == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_lines_reach_the_file_and_a_console_that_is_no_terminal(tmp_path, monkeypatch, terminal):
    with own_console() as console:
        setup_logger(str(tmp_path))
        monkeypatch.setattr("p2c.engine.logger.on_terminal", lambda: terminal)
        log.info("epoch [1/5]", extra={"progress": True})
        log.info("=> result")
        assert (tmp_path / "log.txt").read_text() == "epoch [1/5]\n=> result\n"
        assert text(console) == ("=> result\n" if terminal else "epoch [1/5]\n=> result\n")


def test_messages_go_to_the_standard_output_of_the_moment(capsys):
    log.info("bare")
    log.debug("not shown")
    assert capsys.readouterr().out == "bare\n"
