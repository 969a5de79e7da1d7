"""The grid runner: which runs a benchmark is, in which order and where they run, and what becomes of failures.

In place of Python, run.sh gets a small program that behaves as train.py does towards it.
"""
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from messages import naming

from p2c.grid.families import FAMILIES

ROOT = Path(__file__).resolve().parents[1]
SHAPES = FAMILIES["shapes"]
# Writes down its call; needs the model that it is to test; refuses to share an output folder or a GPU with another at
# work; repeats no finished run; fails where FAILING, a pattern, says so; with HANG set, runs until it is terminated.
TRAIN = """#!/bin/sh
printf '%s|%s|' "$CUDA_VISIBLE_DEVICES" "$OMP_NUM_THREADS" >> "$HERE/calls.$$"
printf '%s\\t' "$@" >> "$HERE/calls.$$"
for word; do
    case $before in --output-dir) out=$word ;; --model-dir) model=$word ;; esac
    before=$word
done
case "$*" in $FAILING) echo 'starting'; echo 'error: out of luck' >&2; echo 'ending'; exit ${STATUS:-1} ;; esac
[ -z "$model" ] || [ -e "$model/finished" ] || { echo "error: no model in $model" >&2; exit 1; }
if [ -e "$out/finished" ]; then echo "Finished before, see $out"; exit 0; fi
mkdir -p "$out" && mkdir "$out/busy" || exit 1
[ -z "$CUDA_VISIBLE_DEVICES" ] || mkdir "$HERE/gpu$CUDA_VISIBLE_DEVICES" || exit 1
if [ -n "$HANG" ]; then
    trap 'rmdir "$out/busy"; exit 75' TERM
    sleep 100 &
    echo $! >> "$HERE/sleeping"
    wait
fi
sleep 0.02
touch "$out/finished"
[ -z "$CUDA_VISIBLE_DEVICES" ] || rmdir "$HERE/gpu$CUDA_VISIBLE_DEVICES"
rmdir "$out/busy"
"""


@pytest.fixture
def here(tmp_path):
    """Where commands are given: a folder with the stand-in for train.py."""
    (tmp_path / "train").write_text(TRAIN)
    (tmp_path / "train").chmod(0o755)
    return tmp_path


def settings(here, **variables):
    kept = {name: value for name, value in os.environ.items() if name not in (
        "CFG", "DATA", "OUTPUT", "SEEDS", "SOURCE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
    return {"cwd": here, "text": True, "env": {**kept, "HERE": str(here), "PYTHON": str(here / "train"), **variables}}


def reproduce(here, *words, **variables):
    return subprocess.run([sys.executable, str(ROOT / "scripts/reproduce.py"), *map(str, words)], capture_output=True,
                          **settings(here, **variables))


def listed(here, *words, **variables):
    """The calls of --dry-run without their variables: (protocol, dataset, number)."""
    done = reproduce(here, *words, "--dry-run", **variables)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    calls = [shlex.split(line.partition(" bash ")[2]) for line in lines[1:]]
    assert lines[0].startswith(f"# {len(calls)} run")
    assert not list(here.glob("output*")), "it only lists"
    return [tuple(call[2:5]) for call in calls]


def calls(here):
    """(GPU, threads, words of train.py) of each run, and forget them."""
    found = []
    for file in sorted(here.glob("calls.*")):
        gpu, threads, words = file.read_text().split("|", 2)
        found.append((gpu, threads, tuple(words.split("\t")[1:-1])))
        file.unlink()
    return found


@pytest.mark.parametrize("trainer, protocol, family, count", [
    ("P2C", "base2new", "standard", {"base2new_train": 33, "base2new_test": 33}),
    ("P2C", "xd", "standard", {"xd_train": 3, "xd_test": 30}),
    ("MaPLe", "dg", "standard", {"xd_train": 3, "xd_test": 12}),
    ("MaPLe", "fewshot", "standard", {"few_shot": 165}),
    ("P2C", "all", "standard", {"xd_train": 3, "base2new_train": 33, "base2new_test": 33, "xd_test": 42,
                                "few_shot": 165}),
    ("MaPLe", "all", "shapes", {"xd_train": 3, "base2new_train": 9, "base2new_test": 9, "xd_test": 27,
                                "few_shot": 45}),
    ("ZeroshotCLIP", "base2new", "standard", {"base2new_test": 11}),
    ("ZeroshotCLIP", "xd", "standard", {"zeroshot": 11}),
    ("ZeroshotCLIP2", "dg", "standard", {"zeroshot": 5}),
    ("ZeroshotCLIP2", "fewshot", "shapes", {"zeroshot": 3}),
    ("ZeroshotCLIP", "all", "standard", {"base2new_test": 11, "zeroshot": 15}),
])
def test_a_grid_has_each_run_once(here, trainer, protocol, family, count):
    grid = listed(here, trainer, protocol, "--family", family)
    assert Counter(protocol for protocol, _, _ in grid) == count
    if protocol != "fewshot" and (trainer, protocol) != ("P2C", "all") and family == "standard":
        assert len(set(grid)) == len(grid)


def test_cross_dataset_and_domains_test_one_training_on_the_source(here):
    grid = listed(here, "P2C", "all", "--family", "shapes", "--seeds", 2)
    assert grid[0] == ("xd_train", "shapes", "2") and "xd_train" not in [protocol for protocol, _, _ in grid[1:]]
    tested = [name for protocol, name, _ in grid if protocol == "xd_test"]
    assert tested == [*SHAPES.targets, *SHAPES.domains] and "shapes" not in tested


@pytest.mark.parametrize("words", [("--seeds", 1, 2, "--shots", 1, 16), ("--seeds", "1,2", "--shots", "1,16")])
def test_few_shot_runs_each_seed_and_number_of_shots(here, words):
    done = reproduce(here, "P2C", "fewshot", "--datasets", "dtd", *words, "--dry-run")
    lines = [line.partition("SEEDS=")[2] for line in done.stdout.splitlines()[1:]]
    assert [line[0] + line.rpartition(" ")[2] for line in lines] == ["11", "116", "21", "216"]
    default = listed(here, "P2C", "fewshot", "--datasets", "dtd", "--seeds", 1)
    assert [number for _, _, number in default] == ["1", "2", "4", "8", "16"]


@pytest.mark.parametrize("trainer, cfgs", [
    ("CoOp", {"xd_test": "vit_b16_ep50_ctxv1", "base2new": "vit_b16_ctxv1", "1": "vit_b16_ep50", "2": "vit_b16_ep100",
              "16": "vit_b16"}),
    ("CoCoOp", dict.fromkeys(["xd_test", "base2new", "1", "2", "16"], "vit_b16_c4_ep10_batch1_ctxv1")),
])
def test_a_grid_leaves_the_configurations_to_run_sh(here, trainer, cfgs):
    """CoOp's depend on protocol and shots."""
    done = reproduce(here, trainer, "all", "--datasets", "dtd", "--seeds", 1, "--shots", 1, 2, 16)
    assert done.returncode == 0, done.stdout
    ran = {}
    for _, _, words in calls(here):
        out = Path(words[words.index("--output-dir") + 1]).relative_to("output")
        if out.parts[0] != "imagenet":  # the source's
            ran[str(out)] = Path(words[words.index("--config-file") + 1]).stem
    assert ran == {
        f"evaluation/{trainer}/{cfgs['xd_test']}_16shots/dtd/seed1": cfgs["xd_test"],
        f"base2new/train_base/dtd/shots_16/{trainer}/{cfgs['base2new']}/seed1": cfgs["base2new"],
        f"base2new/test_new/dtd/shots_16/{trainer}/{cfgs['base2new']}/seed1": cfgs["base2new"],
        **{f"dtd/{trainer}/{cfgs[shots]}_{shots}shots/seed1": cfgs[shots] for shots in ("1", "2", "16")},
    }


def test_zero_shot_uses_its_own_configuration_and_one_seed(here):
    assert set(listed(here, "ZeroshotCLIP", "xd", "--datasets", "dtd", "--seeds", 3, 4)) == {
        ("zeroshot", "imagenet", "vit_b16"), ("zeroshot", "dtd", "vit_b16")}
    halves = listed(here, "ZeroshotCLIP", "base2new", "--datasets", "dtd", "--seeds", 3, 4)
    assert halves == [("base2new_test", "dtd", "3")]
    assert {cfg for _, _, cfg in listed(here, "ZeroshotCLIP", "dg", "--family", "shapes")} == {"tiny_shapes"}
    assert {cfg for _, _, cfg in listed(here, "ZeroshotCLIP", "dg", CFG="rn50")} == {"rn50"}


def test_a_subset_limits_the_tests_but_not_the_source(here):
    assert listed(here, "P2C", "xd", "--datasets", "eurosat", "dtd", "--seeds", 1) == [
        ("xd_train", "imagenet", "1"), ("xd_test", "dtd", "1"), ("xd_test", "eurosat", "1")]
    everything = listed(here, "P2C", "all", "--datasets", "imagenet_a", "--seeds", 1)
    assert everything == [("xd_train", "imagenet", "1"), ("xd_test", "imagenet_a", "1")]


def test_own_folders_take_part_where_a_dataset_is_trained_on(here):
    grid = listed(here, "P2C", "all", "--datasets", "folder:/my data/birds", "--seeds", 1, "--shots", 4)
    assert grid == [("base2new_train", "folder:/my data/birds", "1"), ("base2new_test", "folder:/my data/birds", "1"),
                    ("few_shot", "folder:/my data/birds", "4")]


def test_a_folder_named_in_two_ways_runs_once(here):
    words = ["folder:birds", "folder:./birds/", f"folder:{here}/birds", "folder:fish", "shapes", "shapes"]
    grid = listed(here, "P2C", "base2new", "--family", "shapes", "--datasets", *words, "--seeds", 1)
    assert [dataset for protocol, dataset, _ in grid if protocol == "base2new_train"] == \
        ["shapes", "folder:birds", "folder:fish"]


def test_the_listed_commands_are_what_runs(here):
    """Quoting and variables included: run in a shell that has none of them, the list calls train.py the same way."""
    words = ("P2C", "all", "--family", "shapes", "--datasets", "shapes", "shapes_dark", "--seeds", 1, "--shots", 2,
             "--", "--backbone", "my $HOME's", "INPUT.TRANSFORMS", "['a b']")
    variables = {"OUTPUT": "out 1", "DATA": "d'1"}
    done = reproduce(here, *words, **variables)
    assert done.returncode == 0, done.stdout
    ran = {call[2] for call in calls(here)}
    assert len(ran) == 5 and all("my $HOME's" in call and call[-1] == "['a b']" for call in ran)

    lines = reproduce(here, *words[:-5], "--dry-run", *words[-5:], **variables).stdout
    assert "OUTPUT='out 1'" in lines
    subprocess.run(["bash", "-e"], input=lines, check=True, capture_output=True, **settings(here))
    assert {call[2] for call in calls(here)} == ran


@pytest.mark.parametrize("slots", [("--jobs", 4), ("--gpus", "0,2,GPU-7a"), ("--gpus", "0", "2", "GPU-7a")])
def test_everything_runs_once_in_an_order_that_works(here, slots):
    """The stand-in fails if a model is missing, or a folder or a GPU is in use."""
    grid = ("P2C", "all", "--family", "shapes", "--seeds", 1, "--shots", 2, 16, *slots)
    done = reproduce(here, *grid)
    assert done.returncode == 0 and "failed" not in done.stdout, done.stdout
    ran = calls(here)
    assert len(ran) == 1 + 2 * 3 + 9 + 2 * 3
    assert {gpu for gpu, _, _ in ran} == ({"0", "2", "GPU-7a"} if slots[0] == "--gpus" else {""})
    # under one configuration, few-shot with 16 shots on the source is the training of xd and dg
    assert "P2C few_shot shapes 16 shots, seed 1: finished before" in done.stdout
    assert "22 runs: 21 done, 1 finished before" in done.stdout.splitlines()
    tables = [shlex.split(line) for line in done.stdout.splitlines() if "parse_test_res.py" in line]
    assert [words[2:] for words in tables] == [[f"--{name}", "output"] for name in ("base2new", "xd", "dg", "fewshot")]

    again = reproduce(here, *grid)
    assert again.returncode == 0 and "22 runs: 22 finished before" in again.stdout


def test_zero_shot_finishes_when_both_halves_have(here):
    grid = ("ZeroshotCLIP", "base2new", "--family", "shapes", "--datasets", "shapes")
    assert "1 run: 1 done" in reproduce(here, *grid).stdout
    (here / "output/base2new/test_new/shapes/shots_16/ZeroshotCLIP/tiny_shapes/seed1/finished").unlink()
    assert "1 run: 1 done" in reproduce(here, *grid).stdout
    assert "1 run: 1 finished before" in reproduce(here, *grid).stdout


def test_a_failure_stops_only_what_needs_it_and_is_reported(here):
    grid = ("P2C", "base2new", "--family", "shapes", "--seeds", 1, 2, "--jobs", 2)
    done = reproduce(here, *grid, FAILING="*train_base/shapes_counts/*seed2*")
    assert done.returncode == 1
    assert "12 runs: 10 done, 1 failed, 1 not run" in done.stdout
    log = "output/reproduce/P2C-base2new_train-shapes_counts-seed2.log"
    assert f"P2C base2new_train shapes_counts seed 2: failed (status 1), see {log}\n" in done.stdout
    end = done.stdout.partition("12 runs: 10 done")[2]
    assert f"failed: P2C base2new_train shapes_counts seed 2: error: out of luck\n    see {log}\n" in end
    assert "not run: P2C base2new_test shapes_counts seed 2: needs base2new_train shapes_counts seed 2\n" in end
    assert "starting\nerror: out of luck\nending\n" in (here / log).read_text()

    assert reproduce(here, *grid).stdout.count("finished before") == 10 + 1, "and only the rest runs again"


def test_a_source_that_fails_takes_its_tests_along_but_not_the_rest(here):
    done = reproduce(here, "P2C", "all", "--family", "shapes", "--seeds", 1, "--shots", 1, "--jobs", 3,
                     FAILING="*shapes/P2C/tiny_shapes_16shots/*", STATUS="2")
    assert done.returncode == 1 and "19 runs: 1 failed, 9 done, 9 not run" in done.stdout
    assert done.stdout.count(": needs xd_train shapes seed 1\n") == 2 * 9


def test_an_interrupted_run_is_no_failure(here):
    done = reproduce(here, "P2C", "xd", "--family", "shapes", "--seeds", 1, FAILING="*train.py*", STATUS="75")
    assert done.returncode == 75 and "5 runs: 1 interrupted, 4 not run" in done.stdout
    assert "same command" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_running_ones_and_the_same_command_continues(here, number):
    command = [sys.executable, str(ROOT / "scripts/reproduce.py"), "P2C", "base2new", "--family", "shapes",
               "--seeds", "1", "--jobs", "2"]
    sleeping = here / "sleeping"
    # Where the tests run in the background, the shell has them ignore SIGINT, and a child inherits that.
    with subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
                          **settings(here, HANG="1")) as grid:
        deadline = time.monotonic() + 60
        while len(sleeping.read_text().split() if sleeping.exists() else ()) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        grid.send_signal(number)
        out, _ = grid.communicate(timeout=60)
    assert grid.returncode == 75
    assert "[1/6] P2C base2new_train shapes seed 1: interrupted" in out and "The tables" not in out
    assert "6 runs: 2 interrupted, 4 not started\n" in out and "same command" in out
    assert all(gone(int(process)) for process in sleeping.read_text().split())

    done = subprocess.run(command, capture_output=True, **settings(here))
    assert done.returncode == 0 and "6 runs: 6 done" in done.stdout


def gone(process):
    """Whether a process ends, or has; a zombie without a parent to collect it counts as ended."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout.strip()
        if not state or state.startswith("Z"):
            return True
        time.sleep(0.02)
    return False


def test_runs_at_the_same_time_share_the_cores(here):
    grid = ("P2C", "base2new", "--family", "shapes", "--datasets", "shapes", "--seeds", 1, "--jobs")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for jobs, variables, threads in ((2, {}, str(max(1, cores // 2))), (1, {}, ""), (3, {"OMP_NUM_THREADS": "5"}, "5")):
        assert reproduce(here, *grid, jobs, **variables).returncode == 0
        assert {call[1] for call in calls(here)} == {threads}


@pytest.mark.parametrize("words, named", [
    (("P3C", "all"), ("trainer", "'P3C'", "CoCoOp, CoOp, IVLP, MaPLe, P2C, PromptSRC, VPT")),
    (("P2C", "base2novel"), ("PROTOCOL", "'base2novel'", "base2new", "xd", "dg", "fewshot", "all")),
    (("P2C", "xd", "--family", "circles"), ("'circles'", "standard", "shapes")),
    (("P2C", "dg", "--datasets", "dtd"), ("'dtd'", "dg", "imagenet, imagenetv2")),
    (("P2C", "all", "--datasets", "oxford_cats"), ("'oxford_cats'", "base2new, xd, dg, fewshot")),
    (("P2C", "xd", "--datasets", "folder:/x"), ("'folder:/x'", "xd")),
    (("P2C", "xd", "--seeds", "1", "two"), ("--seeds", "'two'")),
    (("P2C", "fewshot", "--shots", "0"), ("--shots", "'0'")),
    (("P2C", "xd", "--shots", "4"), ("--shots", "fewshot")),
    (("P2C", "fewshot", "--", "DATASET.NUM_SHOTS", "4"), ("DATASET.NUM_SHOTS",)),
    (("P2C", "xd", "--gpus", "0,1,0"), ("--gpus", "'0,1,0'")),
    (("P2C", "xd", "--gpus", "0-3"), ("--gpus", "'0-3'")),
    (("P2C", "xd", "--gpus", "0", "--jobs", "2"), ("--gpus", "--jobs")),
    (("P2C", "xd", "--jobs", "-1"), ("--jobs", "'-1'")),
    (("P2C",), ("PROTOCOL",)),
])
def test_a_mistaken_call_is_one_line_and_status_2(here, words, named):
    done = reproduce(here, *words)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert re.search(naming(*named), done.stderr)
    assert not done.stdout and not calls(here)


def test_a_plugins_trainer_needs_no_folder_of_configurations(here):
    """train.py knows it; its configuration is a file of its own."""
    assert len(listed(here, "Mine", "base2new", "--seeds", 1, CFG="mine.yaml")) == 22


def test_the_shell_script_starts_it(here):
    done = subprocess.run(["bash", str(ROOT / "scripts/reproduce.sh"), "P2C", "xd", "--datasets", "dtd", "--seeds", "1",
                           "--dry-run"], capture_output=True, **settings(here, PYTHON=sys.executable))
    assert done.stdout.splitlines()[0] == "# 2 runs: 1 xd_train, 1 xd_test"
    assert shlex.split(done.stdout.splitlines()[1])[-6:] == \
        ["bash", f"{ROOT}/scripts/run.sh", "P2C", "xd_train", "imagenet", "1"]
