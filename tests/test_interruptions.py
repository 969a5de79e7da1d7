"""train.py under signals, on a full disk, and beside another process in its folder."""
import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY
from messages import naming

from p2c.cli import train
from p2c.engine.files import read_json, write_json
from p2c.engine.lock import FILE, OWNER, folder_lock
from p2c.engine.results import read_results
from p2c.trainers.base import PromptTrainer

ROOT = Path(__file__).resolve().parents[1]
LEARNER = "MultiModalPromptLearner"
PLUGIN = """
import os
import subprocess
os.setsid()
from p2c.framework import TRAINER_REGISTRY
from p2c.trainers.maple import MaPLe

@TRAINER_REGISTRY.register()
class Signalled(MaPLe):
    def forward_backward(self, batch):
        if (self.epoch, self.batch_idx) == (0, 1):
            for number in os.environ.get("SIGNALS", "").split():
                subprocess.run(["kill", "-" + number, "--", f"-{os.getpgrp()}"])
        return super().forward_backward(batch)
"""


@pytest.fixture
def at_step(monkeypatch):
    """at_step((epoch, batch), function): call it with the trainer before that step, once."""
    step = PromptTrainer.forward_backward

    def arrange(place, function):
        places = [place]

        def forward_backward(self, batch):
            if (self.epoch, self.batch_idx) in places:
                places.clear()
                function(self)
            return step(self, batch)

        monkeypatch.setattr(PromptTrainer, "forward_backward", forward_backward)
    return arrange


def tensors(folder, epoch=2):
    return torch.load(folder / LEARNER / f"model.pth.tar-{epoch}")["state_dict"]


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_after_the_step_in_progress_and_the_same_command_continues(
        call, tmp_path, at_step, capsys, number):
    assert call(out="whole") == 0
    for each in train.SIGNALS:
        signal.signal(each, train.interrupt)
    at_step((1, 1), lambda trainer: os.kill(os.getpid(), number))
    assert call(out="cut") == train.INTERRUPTED
    assert "epoch [2/2] batch [2/4]" in capsys.readouterr().err
    assert files(tmp_path / "cut") == [LEARNER, "log.txt", "results.json", "tensorboard"]
    assert files(tmp_path / "cut" / LEARNER) == ["resume.pth.tar"]
    assert not read_results(str(tmp_path / "cut"))["finished"]
    assert call(out="cut") == 0
    assert re.search(naming("batch 2", "epoch 2"), capsys.readouterr().out)
    assert same(tensors(tmp_path / "cut"), tensors(tmp_path / "whole"))
    first, second = (read_results(str(tmp_path / out)) for out in ("cut", "whole"))
    assert first["metrics"] == second["metrics"] and files(tmp_path / "cut" / LEARNER) == ["checkpoint",
                                                                                           "model.pth.tar-2"]


@pytest.mark.parametrize("together", [1000, 0])
def test_a_second_signal_ends_at_once_unless_it_is_the_first_one_again(
        call, tmp_path, at_step, monkeypatch, together):
    monkeypatch.setattr(train, "TOGETHER", together)
    at_step((0, 1), lambda trainer: [train.interrupt(None, None) for _ in range(2)])
    assert call() == train.INTERRUPTED
    assert (tmp_path / "run" / LEARNER / "resume.pth.tar").exists() == bool(together)


def test_a_signal_to_all_processes_of_a_job_spares_the_workers(pets, tmp_path, start):
    (tmp_path / "signalled.py").write_text(PLUGIN)
    command = [ROOT / "train.py", "--plugin", "signalled", "--root", pets, "--seed", "1", "--trainer",
               "Signalled", "--output-dir", "run", "--dataset-config-file", ROOT / "configs/datasets/oxford_pets.yaml",
               "--config-file", ROOT / "configs/trainers/MaPLe/tiny_shapes.yaml", *TINY, "DATALOADER.NUM_WORKERS", "2"]

    def run(signals):
        return start(*command, cwd=tmp_path, env={**os.environ, "SIGNALS": signals, "PYTHONPATH": f"{ROOT}:{tmp_path}",
                                                  "OMP_NUM_THREADS": "1"})

    stopped = run(f"{signal.SIGINT:d} {signal.SIGTERM:d}")
    assert stopped.returncode == 75, stopped.stderr
    assert "epoch [1/2] batch [2/4]" in stopped.stderr and "Traceback" not in stopped.stderr
    done = run("")
    assert done.returncode == 0 and re.search("batch 2 of epoch 1", done.stdout)


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_run_and_its_workers_end_however_the_workers_were_started(pets, tmp_path, method):
    """Python 3.14 on Linux starts them by a fork server, which is then their parent."""
    (tmp_path / "starting.py").write_text(f"import multiprocessing\nmultiprocessing.set_start_method({method!r})\n")
    command = [sys.executable, ROOT / "train.py", "--plugin", "starting", "--root", pets, "--seed", "1", "--trainer",
               "MaPLe", "--output-dir", "run", "--dataset-config-file", ROOT / "configs/datasets/oxford_pets.yaml",
               "--config-file", ROOT / "configs/trainers/MaPLe/tiny_shapes.yaml", *TINY, "OPTIM.MAX_EPOCH", "1",
               "DATALOADER.NUM_WORKERS", "1"]
    with subprocess.Popen(list(map(str, command)), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, start_new_session=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}) as process:
        try:
            out, _ = process.communicate(timeout=200)
            assert process.returncode == 0 and "Results: " in out, out
            wait_until(lambda: not alive(process.pid), seconds=30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def alive(group):
    """Return whether any process of the group is still alive."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(holds, seconds):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


# Another configuration


def test_resuming_anyway_is_an_option_and_leaves_its_mark(call, tmp_path, at_step, capsys):
    at_step((0, 2), lambda trainer: train.interrupt(None, None))
    assert call() == train.INTERRUPTED
    assert call(pairs=("OPTIM.LR", "0.5")) == train.MISTAKE
    assert "OPTIM.LR" in capsys.readouterr().err
    assert call("--resume-anyway", pairs=("OPTIM.LR", "0.5")) == train.FINISHED
    assert "anyway: OPTIM.LR was 0.0035, is 0.5" in capsys.readouterr().out
    record = read_results(str(tmp_path / "run"))
    assert record["resumed_anyway"] == ["OPTIM.LR was 0.0035, is 0.5"] and record["config"]["OPTIM"]["LR"] == 0.5
    with pytest.raises(SystemExit) as stopped:
        call("--resume-anyway", "--eval-only", "--model-dir", str(tmp_path / "run"))
    assert stopped.value.code == train.MISTAKE


def test_a_finished_run_of_constant_rates_can_be_trained_longer(call, tmp_path):
    constant = ("OPTIM.LR_SCHEDULER", "single_step")
    longer = (*constant, "OPTIM.MAX_EPOCH", "3")
    assert call(trainer="MaPLe", pairs=constant) == call(trainer="MaPLe", pairs=longer) == 0
    record = read_results(str(tmp_path / "run"))
    assert record["epoch"] == 3 and "resumed_anyway" not in record
    assert call(trainer="MaPLe", pairs=constant) == train.MISTAKE


def test_a_run_whose_records_have_a_setting_of_an_earlier_version_continues_and_is_tested(
        call, tmp_path, at_step, capsys):
    assert call(out="whole") == 0
    at_step((1, 2), lambda trainer: train.interrupt(None, None))
    assert call(out="cut") == train.INTERRUPTED
    record, position = tmp_path / "cut/results.json", tmp_path / "cut" / LEARNER / "resume.pth.tar"
    content, saved = read_json(record), torch.load(position)
    for config in (content["config"], saved["config"]):
        config["DATALOADER"]["CACHE"] = -1
    write_json(content, record)
    torch.save(saved, position)
    assert call(out="cut") == 0
    assert "batch 3 of epoch 2" in capsys.readouterr().out
    assert same(tensors(tmp_path / "cut"), tensors(tmp_path / "whole"))
    content, path = read_json(record), tmp_path / "cut" / LEARNER / "model.pth.tar-2"
    saved = torch.load(path)
    for config in (content["config"], saved["config"]):
        config["DATALOADER"]["CACHE"] = -1
    write_json(content, record)
    torch.save(saved, path)
    assert call(out="cut") == 0 and "Finished before" in capsys.readouterr().out
    assert call("--eval-only", "--model-dir", str(tmp_path / "cut"), out="test") == 0
    assert read_results(str(tmp_path / "test"))["metrics"] == content["metrics"]


# Another process


@pytest.mark.parametrize("evaluation", [False, True])
def test_a_folder_in_use_is_refused_before_anything_is_written(call, tmp_path, capsys, evaluation):
    options = ("--eval-only", "--model-dir", str(tmp_path / "trained")) if evaluation else ()
    with folder_lock(tmp_path / "run"):
        assert call(*options) == train.MISTAKE
        assert files(tmp_path / "run") == [FILE, OWNER]
    error = capsys.readouterr().err
    assert f"{os.uname().nodename}, process {os.getpid()}, since " in error and error.count("\n") == 1


def test_the_folder_of_a_killed_run_is_taken_over_with_a_line_in_the_log(call, tmp_path):
    (tmp_path / "run" / LEARNER).mkdir(parents=True)
    (tmp_path / "run" / LEARNER / f"model.pth.tar-1.{'0' * 32}.tmp").write_bytes(b"half")
    (tmp_path / "run" / FILE).touch()
    (tmp_path / "run" / OWNER).write_text("node7, process 12, since 2026-01-01 00:00:00")
    assert call() == 0
    assert "(node7, process 12, since" in (tmp_path / "run" / "log.txt").read_text()
    assert files(tmp_path / "run") == [LEARNER, "log.txt", "predictions.csv", "results.json", "tensorboard"]
    assert files(tmp_path / "run" / LEARNER) == ["checkpoint", "model.pth.tar-2"]


# A full disk


@pytest.mark.parametrize("name, kept", [
    ("resume.pth.tar", ["resume.pth.tar"]), ("model.pth.tar-2", ["checkpoint", "model.pth.tar-1", "resume.pth.tar"])])
def test_a_full_disk_is_one_line_and_leaves_the_last_good_state(call, tmp_path, monkeypatch, capsys, name, kept):
    saves = ("TRAIN.CHECKPOINT_STEPS", "2", "TRAIN.CHECKPOINT_FREQ", "1")
    assert call(out="whole", pairs=saves) == 0
    fsync, written = os.fsync, []

    def full(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if f"/{name}." in path:
            written.append(path)
            if len(written) == (2 if name == "resume.pth.tar" else 1):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    capsys.readouterr()
    assert call(pairs=saves) == train.FAILED
    error = capsys.readouterr().err
    assert re.search(naming("error: ", tmp_path / "run" / LEARNER / name, "space"), error) and error.count("\n") == 1
    assert files(tmp_path / "run" / LEARNER) == kept and not {FILE, OWNER} & {*files(tmp_path / "run")}
    assert call(pairs=saves) == 0
    assert same(tensors(tmp_path / "run"), tensors(tmp_path / "whole"))


def test_a_log_that_cannot_be_written_ends_the_run_in_one_line(call, tmp_path, at_step, capsys):
    def fill(trainer):
        sys.stdout.file = open("/dev/full", "w", buffering=1)

    at_step((0, 2), fill)
    assert call() == train.FAILED
    error = capsys.readouterr().err
    assert re.match(naming("error: ", "space", "/dev/full"), error) and error.count("\n") == 1


def test_a_full_disk_at_the_start_is_a_failure_and_no_mistake(call, tmp_path, monkeypatch, capsys):
    fsync = os.fsync

    def full(descriptor):
        if f"/{OWNER}." not in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert call() == train.FAILED
    error = capsys.readouterr().err
    assert "results.json" in error and error.count("\n") == 1
