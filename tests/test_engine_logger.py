"""Where the lines of this package's loggers go: console and log file."""
import logging

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


def test_messages_go_to_the_standard_output_of_the_moment(capsys):
    log.info("bare")
    log.debug("not shown")
    assert capsys.readouterr().out == "bare\n"
