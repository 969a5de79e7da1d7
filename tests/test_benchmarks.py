"""The benchmarks run, and what they compare computes the same; no time is looked at."""
import os
import sys
from pathlib import Path

import pytest

from p2c.datasets.base import Sizes

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def dry_run(monkeypatch, capsys):
    """dry_run("grid"): the words of each line that a benchmark prints when run --quick in this process."""
    monkeypatch.syspath_prepend("benchmarks")

    def run(name, *options):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "--device", "cpu", *options])
        __import__(name).main()
        return [line.split() for line in capsys.readouterr().out.splitlines()]

    return run


def test_our_step_and_the_plain_one_agree_in_loss_and_gradients(start):
    """Of ImageNet's first ten names, with "." and [EOT], five have 3 tokens, three 4 and two 5; 5 are shared."""
    done = start(ROOT / "benchmarks/step.py", "--quick", "--classes", "10", "--device", "cpu",
                 env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(" ")]
    _, ours, plain, _, comparison = rows
    assert comparison[2] == "ours"
    assert ours[2:4] == ["ours", str(5 + 5 * 3 + 5 * 5)] and plain[2:4] == ["plain", str(77 * 10)]
    loss, loss_differs, gradients_differ = map(float, comparison[7:10])
    assert loss > 0 and loss_differs <= 1e-5 and gradients_differ <= 1e-4


def test_an_evaluation_is_measured_beside_the_bare_image_tower(dry_run):
    assert ["8", "30", "fp32"] in [line[:3] for line in dry_run("evaluation")]


def test_dry_run_of_the_loading_benchmark(dry_run):
    lines = dry_run("loading")
    assert "cores," in lines[0] and lines[1][:5] == ["8", "JPEGs", "of", "500", "x"]
    rows = [line for line in lines if line[1:2] in (["bytes"], ["float"]) and len(line) == 4]
    assert [line[:2] for line in rows] == [["0", "float"], ["0", "bytes"], ["1", "float"], ["1", "bytes"]]
    assert all(float(rate) > 0 for row in rows for rate in row[2:])


def test_several_processes_are_compared_with_one(dry_run, monkeypatch):
    """Half the time, a quarter of it, with 2 and 4 processes would be ideal."""
    import ranks

    monkeypatch.setattr(ranks, "measure", lambda count, threads, args: ({1: 8.0, 2: 5.0, 4: 4.0}[count], 3 << 30))
    rows = [line for line in dry_run("ranks", "--processes", "1", "2", "4") if line[1:4] == ["4", "100", "fp32"]]
    assert [(line[0], *line[-5:]) for line in rows] == [
        ("1", "8.0000", "0.50", "1.00", "100%", "3.00"), ("2", "5.0000", "0.80", "1.60", "80%", "3.00"),
        ("4", "4.0000", "1.00", "2.00", "50%", "3.00")]


def test_each_process_takes_its_part(dry_run):
    result = dry_run("ranks", "--take-part")[-1]
    assert result[0] == "RESULT" and float(result[1]) > 0 and result[3] == "1"


def test_dry_run_of_the_grid(dry_run, monkeypatch):
    """Base classes with 16 shots in batches of 4, 8 epochs: 32 steps a class."""
    import grid

    monkeypatch.setattr(grid, "start_up", lambda folder, setting: 7.0)
    lines = [line for line in dry_run("grid") if line[:1] in (["eurosat"], ["ucf101"])]
    rows = [[line[position] for position in (0, 1, 2, 3, 7)] for line in lines]
    assert rows == [["eurosat", "10", "5", "160", "8,100"], ["ucf101", "101", "51", "1632", "3,783"]]


def test_a_projection_adds_up(monkeypatch):
    """Per seed: two starts of 10 s, a first step of 5 s; 51 classes make 204 steps an epoch."""
    monkeypatch.syspath_prepend("benchmarks")
    import common
    import grid

    pieces = grid.Pieces(start=10, first_step=5, first_read=0.5, read=0.1, loaded=0.01, computed=0.002, step={51: 1.0},
                         texts={51: 3.0})
    some, cfg = Sizes(classes=101, train=9999, val=9, test=1000), common.shipped("P2C")
    row, on_gpu = grid.project("some", some, pieces, cfg, "cuda")
    assert on_gpu == pytest.approx(25 + 204 * (2.0 + 4 * 1.0) + 1000 * 0.01 + 2 * 3.0)
    assert row[6] == "computing" and row[10] == "loading"
    _, on_cpu = grid.project("some", some, pieces, cfg, "cpu")
    assert on_cpu == pytest.approx(25 + 204 * (3.0 + 4 * 1.4) + 1000 * 0.012 + 2 * 3.0)
