"""The console helpers of all commands: an output whose reader goes, and options with several values."""
import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
from run_folders import log_text, write_log

from p2c.cli import train
from p2c.utils.console import Output, Parser, ReaderGone, Several, listed

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def unread():
    """A standard output that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        yield Output(stream)


def test_output_without_a_reader_ends_the_command_and_swallows_the_rest(unread):
    with pytest.raises(ReaderGone):
        print("a line", file=unread, flush=True)
    print("the rest", file=unread, flush=True)


def test_a_training_whose_reader_goes_ends_as_interrupted_and_its_log_says_so(call, monkeypatch, tmp_path, capsys):
    reader, writer = os.pipe()
    build = train.build_trainer

    def build_unread(cfg):
        os.close(reader)
        return build(cfg)

    with monkeypatch.context() as patch, open(writer, "w") as stream:
        patch.setattr(sys, "stdout", Output(stream))
        patch.setattr(train, "build_trainer", build_unread)
        assert call() == 75
    assert "roken" not in capsys.readouterr().err
    assert (tmp_path / "run" / "log.txt").read_text().splitlines()[-1].startswith("Interrupted; ")
    assert call() == 0


@pytest.mark.parametrize("words", [("-m", "p2c"), ("parse_test_res.py", "FOLDER"), ("parse_test_res.py", "--help"),
                                   ("scripts/reproduce.py", "P2C", "all", "--dry-run")])
def test_a_command_ends_quietly_when_its_reader_goes(tmp_path, words):
    for seed in range(100):
        write_log(tmp_path / f"seed{seed}", log_text(81))
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, *(str(tmp_path) if word == "FOLDER" else word for word in words)], cwd=ROOT,
                          stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.stderr == "" and done.returncode in (0, 1)


def test_several_values_are_separated_by_spaces_or_commas():
    parser = Parser()
    parser.add_argument("--seeds", action=Several, type=listed(int), default=[1])
    assert parser.parse_args([]).seeds == [1]
    for words in (["1,2,3"], ["1", "2", "3"], ["1,", "2,3"]):
        assert parser.parse_args(["--seeds", *words]) == argparse.Namespace(seeds=[1, 2, 3])
    parser.add_argument("--datasets", action=Several, type=listed())
    assert parser.parse_args(["--datasets", "dtd,eurosat", "folder:a,b"]).datasets == ["dtd", "eurosat", "folder:a,b"]
