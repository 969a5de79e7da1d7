"""Two processes on the CPU against one: same prompts, metrics and curves, one writer, one end; two under torchrun."""
import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from all_trainers import CASES, train
from clip_files import make_pets
from messages import naming

from p2c.engine import distributed
from p2c.engine.results import read_results
from p2c.engine.samplers import ShardBatchSampler

ROOT = Path(__file__).resolve().parents[1]
FAILING = """
import torch.distributed
from p2c.framework import TRAINER_REGISTRY
from p2c.trainers.maple import MaPLe

@TRAINER_REGISTRY.register()
class Failing(MaPLe):
    def forward_backward(self, batch):
        if self.epoch == 1 and torch.distributed.get_rank() == 1:
            raise OSError("the disk of rank 1 is gone")
        return super().forward_backward(batch)
"""


SIGNALLED = """
import os, pathlib, signal
import torch.distributed
from p2c.framework import TRAINER_REGISTRY
from p2c.trainers.maple import MaPLe

@TRAINER_REGISTRY.register()
class Signalled(MaPLe):
    def forward_backward(self, batch):
        here = self.epoch, self.batch_idx, torch.distributed.get_rank()
        if here == (0, 1, 1) and not pathlib.Path("sent").exists():
            pathlib.Path("sent").touch()
            os.kill(os.getpid(), signal.SIGTERM)
        return super().forward_backward(batch)
"""


def torchrun(*arguments, cwd=ROOT):
    """Start two processes; what they left on standard output and error, and the status."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(cwd)]), "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="session")
def two_processes(start):
    """two_processes(program, argument, ..., cwd=): as torchrun would start them, which takes several times as long."""
    return lambda *words, cwd=ROOT: start(*words, cwd=cwd, processes=2, env={
        **os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(cwd)])})


@pytest.fixture(scope="module")
def nine_pets(tmp_path_factory):
    """3 classes, 12 training images, and 9 test images, which 2 processes cannot share equally."""
    root = tmp_path_factory.mktemp("pets")
    make_pets(root, classes=3)
    return root


@pytest.fixture(scope="module")
def by_two(two_processes, nine_pets):
    done = two_processes(ROOT / "tests/all_trainers.py", nine_pets, nine_pets)
    assert done.returncode == [0, 0], done.stderr
    return torch.load(nine_pets / "outcome.pt", weights_only=False)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_what_one_learns(by_two, nine_pets, tmp_path, case):
    torch.set_num_threads(1)
    one, two = train(case, str(nine_pets), str(tmp_path)), by_two[case]
    assert two["prompts"].keys() == one["prompts"].keys()
    for name, value in one["prompts"].items():
        torch.testing.assert_close(two["prompts"][name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert two["counts"] == one["counts"] and one["counts"][1] == 9
    counted = ("accuracy", "error_rate", "macro_f1")
    assert [two["results"][name] for name in counted] == [one["results"][name] for name in counted]
    assert two["results"] == pytest.approx(one["results"], rel=1e-3)  # a cloud's entropies are no counts
    assert two["losses"].keys() == one["losses"].keys()
    for key, value in one["losses"].items():
        assert two["losses"][key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


def options(folder, root, trainer="P2C"):
    return [ROOT / "train.py", "--root", root, "--output-dir", folder, "--trainer", trainer,
            "--dataset-config-file", ROOT / "configs/datasets/oxford_pets.yaml",
            "--config-file", ROOT / f"configs/trainers/{'P2C' if trainer == 'P2C' else 'MaPLe'}/tiny_shapes.yaml"]


SMALL = ("MODEL.BACKBONE.WEIGHTS", "random", "USE_CUDA", "False", "DATASET.CHECKS", "partial", "OPTIM.MAX_EPOCH", "2",
         "DATASET.NUM_SHOTS", "4", "TRAIN.CHECKPOINT_FREQ", "1")


def test_one_process_writes_and_all_draw_one_seed(nine_pets, tmp_path):
    done = torchrun(*options("run", nine_pets), *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "MultiModalPromptLearner", "log.txt", "predictions.csv", "results.json", "tensorboard"]
    with open(tmp_path / "run/predictions.csv", newline="") as file:
        assert len({row["path"] for row in csv.DictReader(file)}) == 9
    assert done.stdout.count("Finish training") == 1 and done.stdout.count("SEED is negative, drew") == 1
    record = read_results(str(tmp_path / "run"))
    assert record["processes"] == 2 and record["metrics"]["total"] == 9


def test_batches_that_the_processes_do_not_divide_are_refused(two_processes, nine_pets, tmp_path):
    done = two_processes(*options("run", nine_pets), *SMALL, "DATALOADER.TRAIN_X.BATCH_SIZE", "3", cwd=tmp_path)
    assert done.returncode == [2, 2]
    assert re.search(naming("error: ", "DATALOADER.TRAIN_X.BATCH_SIZE", "3", "2 processes"), done.stderr)


def test_a_process_that_fails_ends_the_job(nine_pets, tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    done = torchrun(*options("run", nine_pets, "Failing"), "--plugin", "failing", *SMALL, cwd=tmp_path)
    assert done.returncode != 0
    assert "[rank 1] error: the disk of rank 1 is gone" in done.stderr
    assert not read_results(str(tmp_path / "run"))["finished"]
    assert (tmp_path / "run/MultiModalPromptLearner/model.pth.tar-1").is_file()


def test_all_processes_stop_after_the_step_in_which_one_is_signalled(two_processes, nine_pets, tmp_path):
    (tmp_path / "signalled.py").write_text(SIGNALLED)
    command = (*options("run", nine_pets, "Signalled"), "--seed", 1, "--plugin", "signalled", *SMALL,
               "DATALOADER.TRAIN_X.BATCH_SIZE", "2")
    stopped = two_processes(*command, cwd=tmp_path)
    assert stopped.returncode == [75, 75]
    for rank in ("", "[rank 1] "):
        assert re.search(f"(?m)^{re.escape(rank)}[^[].*epoch .1/2. batch .2/6.", stopped.stderr)
    assert (tmp_path / "run/MultiModalPromptLearner/resume.pth.tar").is_file()
    done = two_processes(*command, cwd=tmp_path)
    assert done.returncode == [0, 0] and "batch 2 of epoch 1" in done.stdout
    assert read_results(str(tmp_path / "run"))["finished"]


# Shares


@pytest.fixture
def as_rank(monkeypatch):
    """as_rank(rank, processes): act as one of several processes when data is shared out."""
    def become(rank, processes):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "processes", lambda: processes)
    return become


@pytest.mark.parametrize("size, processes", [(9, 2), (10, 4), (3, 4), (0, 2), (7, 7)])
def test_shares_are_a_partition_in_order(as_rank, size, processes):
    parts = []
    for rank in range(processes):
        as_rank(rank, processes)
        parts.append(list(distributed.shard(range(size))))
    assert sum(parts, []) == list(range(size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("size, batch, expected", [(9, 4, [[0, 1, 2, 3], [4, 5, 6, 7]]), (2, 4, [[0, 1]])])
def test_each_batch_is_shared_out_whole(as_rank, size, batch, expected):
    shares = []
    for rank in range(2):
        as_rank(rank, 2)
        batches = ShardBatchSampler(range(size), batch)
        shares.append(list(batches))
        assert len(batches) == len(shares[-1]) == len(expected)
    assert [first + second for first, second in zip(*shares, strict=True)] == expected


def test_too_few_images_for_the_processes_are_refused(as_rank):
    as_rank(0, 2)
    with pytest.raises(ValueError, match=naming("3", "2 processes")):
        ShardBatchSampler(range(3), 4)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name in distributed.VARIABLES:
        monkeypatch.setenv(name, "4" if name.endswith("SIZE") else "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=naming("4 processes", "2 GPUs", "--nproc-per-node 2")):
        distributed.join(use_cuda=True)
