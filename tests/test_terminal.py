"""The terminal of a run: what it shows, and that the log file and a pipe do not depend on it."""
import contextlib
import io
import re
import runpy
import sys
from pathlib import Path

import pytest
from messages import naming
from outcomes import assert_equal, curves, outcome

import p2c.__main__
from p2c.cli import train
from p2c.engine.results import read_results
from p2c.trainers.base import PromptTrainer

ROOT = Path(__file__).resolve().parents[1]
LINE = re.compile(r"epoch (\d)/2  loss [\d.]+  noise [\d.]+  lr ([\d.e+-]+)(?:  val ([\d.]+))?  \d+:\d\d:\d\d left")
WARM_UP = ("OPTIM.WARMUP_EPOCH", "1", "OPTIM.WARMUP_TYPE", "constant")


class Terminal(io.StringIO):
    """A standard output or error that is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """terminal(): make standard output and standard error terminals from now on, and return the first."""
    def begin():
        monkeypatch.setattr(sys, "stdout", Terminal())
        monkeypatch.setattr(sys, "stderr", Terminal())
        return sys.stdout
    return begin


def without_numbers(text):
    """A log without what differs from run to run: times, and the name of the output folder."""
    return re.sub(r"\d+:\d\d:\d\d|\d+\.\d{3} \(\d+\.\d{3}\)|output_dir: .*|OUTPUT_DIR: .*|/\w+/tensorboard", "", text)


def test_a_terminal_gets_a_header_a_line_an_epoch_and_the_results(call, tmp_path, terminal):
    screen = terminal()
    assert call(pairs=(*WARM_UP, "TEST.VAL_EVERY", "2", "TRAIN.CHECKPOINT_FREQ", "1")) == 0
    shown = screen.getvalue()
    assert re.search(naming("P2C", "OxfordPets", "4 classes", "16 training, 8 validation, 12 test", "tiny-shapes",
                            "2 epochs", tmp_path / "run"), shown.partition("About")[0])
    assert re.search(r"^About \d+:\d\d:\d\d of training", shown, re.MULTILINE)
    epochs = LINE.findall(shown)
    assert [epoch for epoch, _, _ in epochs] == ["1", "2"]
    assert float(epochs[0][1]) == 1e-5 < float(epochs[1][1])  # the rates of their own steps
    assert epochs[0][2] == "" and float(epochs[1][2]) == pytest.approx(
        curves(tmp_path / "run")["val/accuracy"][0][1], abs=0.01)
    assert "=> result" in shown and "results.json" in shown
    assert not any(word in shown for word in ("** Config", "Loading dataset", "epoch [", "*val*", "Checkpoint saved"))
    assert len(shown.splitlines()) < 30


def test_a_resumed_run_says_on_a_terminal_what_is_done(call, tmp_path, terminal):
    assert call(pairs=("TRAIN.CHECKPOINT_FREQ", "1")) == 0
    for name in ("results.json", "MultiModalPromptLearner/model.pth.tar-2"):
        (tmp_path / "run" / name).unlink()
    screen = terminal()
    assert call(pairs=("TRAIN.CHECKPOINT_FREQ", "1")) == 0
    shown = screen.getvalue()
    assert "2 epochs, of which 1 are done" in shown and [line[0] for line in LINE.findall(shown)] == ["2"]


def test_a_run_stopped_after_the_last_batch_of_an_epoch_goes_on_on_a_terminal(call, terminal, monkeypatch):
    step = PromptTrainer.forward_backward

    def stopping(self, batch):
        if self.batch_idx + 1 == self.num_batches:
            train.interrupt(None, None)
        return step(self, batch)

    monkeypatch.setattr(PromptTrainer, "forward_backward", stopping)
    assert call() == train.INTERRUPTED
    monkeypatch.setattr(PromptTrainer, "forward_backward", step)
    screen = terminal()
    assert call() == 0
    assert [line[0] for line in LINE.findall(screen.getvalue())] == ["2"]


@pytest.mark.parametrize("words", [("--eval-only",), ()], ids=["eval-only", "nothing to train"])
def test_a_test_on_a_terminal_has_a_header_too(call, terminal, words):
    screen = terminal()
    assert call(*words, trainer="ZeroshotCLIP") == 0
    shown = screen.getvalue()
    assert "Testing ZeroshotCLIP on OxfordPets" in shown and "* accuracy:" in shown and "** Config" not in shown


def test_the_log_file_and_a_pipe_get_every_line_whatever_the_terminal_shows(call, tmp_path, capsys, terminal):
    assert call(out="piped", pairs=WARM_UP) == 0
    piped = capsys.readouterr().out
    log = (tmp_path / "piped/log.txt").read_text()
    assert piped == f"Setting fixed seed: 1\n{log}"
    assert log.count("epoch [1/2] batch [") == 4 and not LINE.search(log) and "left" not in piped
    terminal()
    assert call(out="shown", pairs=WARM_UP) == 0
    shown = (tmp_path / "shown/log.txt").read_text()
    assert without_numbers(shown).replace("/shown/", "/piped/") == without_numbers(log)


def test_warnings_reach_a_terminal(call, terminal):
    screen = terminal()
    assert call("--no-train", pairs=("OPTIM.WARMUP_EPOCH", "7")) == 0
    assert re.search(naming("OPTIM.WARMUP_EPOCH 7", "OPTIM.MAX_EPOCH 2"), screen.getvalue())


def test_a_validation_curve_changes_nothing_but_the_curve(call, tmp_path):
    for every in (0, 1):
        assert call(out=f"every{every}", pairs=("TEST.VAL_EVERY", str(every))) == 0
    without, with_curve = outcome(tmp_path / "every0"), outcome(tmp_path / "every1")
    assert [step for step, _ in with_curve["curves"]["val/accuracy"]] == [0, 1]
    for tag in [tag for tag in with_curve["curves"] if tag.startswith("val/")]:
        del with_curve["curves"][tag]
    assert_equal(without, with_curve)
    assert read_results(str(tmp_path / "every1"))["split"] == "test"


# Characters that the encoding of standard output lacks

def test_every_program_escapes_what_standard_output_cannot_show(tmp_path, monkeypatch):
    folder = tmp_path / "猫"
    (folder / "seed1").mkdir(parents=True)
    (folder / "seed1/log.txt").write_text("Finish training\n* accuracy: 70.0%\n")
    monkeypatch.setattr(train, "run", lambda args: print(args.output_dir))
    monkeypatch.setattr(sys, "stderr", sys.stderr)  # which the programs replace

    def printed(program, *words):
        console = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
        monkeypatch.setattr(sys, "stdout", console)
        monkeypatch.setattr(sys, "argv", ["program", *map(str, words)])
        with contextlib.suppress(SystemExit):
            program()
        return console.buffer.getvalue().decode("ascii")

    assert "\\u732b" in printed(train.run_as_coop, "--output-dir", folder)
    assert "\\u732b" in printed(p2c.__main__.main, "data", "verify", f"folder:{folder}")
    assert "\\u732b" in printed(lambda: runpy.run_path(str(ROOT / "parse_test_res.py"), run_name="__main__"), folder)
