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
    """Of ImageNet's first ten names, with "." and [EOT], five have 3 tokens, three 4 and two 5; 5 are shared.

    Padding all names to 5 tokens costs less than a second bucket.
    """
    done = start(ROOT / "benchmarks/step.py", "--quick", "--classes", "10", "--device", "cpu",
                 env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    _, plain, ours = [line.split() for line in done.stdout.splitlines() if line.startswith(" ")]
    assert plain[2:4] == ["plain", str(77 * 10)] and ours[2:4] == ["ours", str(5 + 10 * 5)]
    fewer_operations, loss_differs, gradients_differ = map(float, ours[-3:])
    assert fewer_operations > 1 and loss_differs <= 1e-5 and gradients_differ <= 1e-4


def test_dry_run_of_the_grid(dry_run, monkeypatch):
    """Base classes with 16 shots in batches of 4, 8 epochs: 32 steps a class."""
    import grid

    monkeypatch.setattr(grid, "start_up", lambda folder, setting: 7.0)
    lines = [line for line in dry_run("grid") if line[:1] in (["eurosat"], ["ucf101"])]
    rows = [[line[position] for position in (0, 1, 2, 3, 6)] for line in lines]
    assert rows == [["eurosat", "10", "5", "160", "8,100"], ["ucf101", "101", "51", "1632", "3,783"]]


def test_a_projection_adds_up(monkeypatch):
    """Per seed: two starts of 10 s; 51 classes make 204 steps in each of 5 epochs."""
    monkeypatch.syspath_prepend("benchmarks")
    import common
    import grid

    pieces = grid.Pieces(start=10, read=0.3, read_test=0.01, computed=0.002, step={51: 1.0}, texts={51: 3.0})
    some, cfg = Sizes(classes=101, train=9999, val=9, test=1000), common.shipped("P2C", "vit_b16_c2_ep5_batch4_2ctx")
    _, on_gpu = grid.project("some", some, pieces, cfg, "cuda")
    assert on_gpu == pytest.approx(20 + 1020 * 1.2 + 1000 * 0.01 + 2 * 3.0)
    _, on_cpu = grid.project("some", some, pieces, cfg, "cpu")
    assert on_cpu == pytest.approx(20 + 1020 * 2.2 + 1000 * 0.012 + 2 * 3.0)


def test_the_check_of_a_gpu_writes_what_its_parts_print_and_ends_one_that_hangs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend("benchmarks")
    import gpu_check

    monkeypatch.setattr(gpu_check, "parts", lambda quick, output: [
        ("Hanging", 1, ["-c", "import time; print('begun', flush=True); time.sleep(60)"]),
        ("Failing", 60, ["-c", "import sys; sys.exit('broken')"]),
        ("Training", 60, ["-c", "print('settings\\n=> Evaluate on the *test* set\\n* accuracy: 50%')"])])
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(tmp_path / "gpu.md")])
    assert gpu_check.main() == 1
    page = (tmp_path / "gpu.md").read_text()
    for words in ("begun", "ended after 1 s", "broken", "exit status 1", "* accuracy: 50%", "exit status 0"):
        assert words in page
    assert "settings" not in page.rpartition("## Training")[2].partition("```text")[2]
