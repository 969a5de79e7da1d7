"""Where the lines of this package's loggers go: console and log file."""
import io
import logging
import sys

import pytest
from engine_fixtures import console_text, own_console

from p2c.engine import setup_logger

log = logging.getLogger("p2c.test")


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_lines_reach_the_file_and_a_console_that_is_no_terminal(tmp_path, monkeypatch, terminal):
    with own_console() as console:
        setup_logger(str(tmp_path))
        monkeypatch.setattr("p2c.engine.logger.on_terminal", lambda: terminal)
        log.info("epoch [1/5]", extra={"progress": True})
        log.info("=> result")
        assert (tmp_path / "log.txt").read_text() == "epoch [1/5]\n=> result\n"
        assert console_text(console) == ("=> result\n" if terminal else "epoch [1/5]\n=> result\n")


def test_characters_that_the_console_cannot_show_are_escaped_there_and_kept_in_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True))
    console = sys.stdout
    setup_logger(str(tmp_path))
    log.info("* class: 0 (猫)")
    assert console_text(console) == "* class: 0 (\\u732b)\n" and capsys.readouterr().err == ""
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "* class: 0 (猫)\n"


def test_messages_go_to_the_standard_output_of_the_moment(capsys):
    log.info("bare")
    log.debug("not shown")
    assert capsys.readouterr().out == "bare\n"
