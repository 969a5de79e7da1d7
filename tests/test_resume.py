"""Going on inside an epoch: an interrupted run ends as the undisturbed one does, bit for bit."""
from pathlib import Path

import pytest
import torch
from engine_fixtures import *  # noqa: F403 (its fixtures)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from p2c.framework import read_results
from p2c.trainers.base import PromptTrainer

BEST_VAL = ("TEST.FINAL_MODEL", "best_val", "DATALOADER.TRAIN_X.BATCH_SIZE", 2)
AUGMENTED = ("INPUT.TRANSFORMS", ("random_resized_crop", "random_flip", "normalize"))
SMALL = ("DATALOADER.TRAIN_X.BATCH_SIZE", 2, "TRAIN.PRINT_FREQ", 3, *AUGMENTED)  # 8 batches an epoch


class Killed(BaseException):
    """What SIGKILL does, as far as files go."""


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def before_step(monkeypatch):
    """before_step(function): call it with the trainer before each step; None: undo."""
    step, act = PromptTrainer.forward_backward, [None]

    def forward_backward(self, batch):
        if act[0] is not None:
            act[0](self)
        return step(self, batch)

    monkeypatch.setattr(PromptTrainer, "forward_backward", forward_backward)
    return lambda function: act.__setitem__(0, function)


def killed_at(*places):
    """Raise at each (epoch, batch), once."""
    places = list(places)

    def act(trainer):
        if places and (trainer.epoch, trainer.batch_idx) == places[0]:
            places.pop(0)
            raise Killed
    return act


def curves(folder):
    """Every point of TensorBoard's files, as a list, so that a double entry shows."""
    events = EventAccumulator(str(Path(folder) / "tensorboard"), {"scalars": 0}, purge_orphaned_data=False)
    events.Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def averages(text):
    """The parts of the progress lines that are no times."""
    lines = [line.split(" time ")[0] + line[line.index(" loss "):line.index(" eta ")]
             for line in text.splitlines() if line.startswith("epoch [")]
    return {line.split(" loss ")[0]: line for line in lines}


def outcome(folder, learner, capsys=None):
    record = read_results(str(folder))
    files = {path.name for path in (folder / learner).iterdir()}
    last = torch.load(folder / learner / f"model.pth.tar-{record['config']['OPTIM']['MAX_EPOCH']}")
    return {"metrics": record["metrics"], "files": files, "curves": curves(folder), "best": last["best_result"],
            "state": {name: last[name] for name in ("state_dict", "optimizer", "scheduler", "extra_state", "scaler")}}


def assert_equal(a, b):
    """Nested containers and tensors are equal to the last bit."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_equal(one, other)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def train_through(make_trainer, name, options, out):
    """Start a run again until it ends; how often it was killed."""
    for kills in range(10):
        try:
            make_trainer(name, *options, out=out).train()
            return kills
        except Killed:
            pass
    raise AssertionError("never ends")


@pytest.mark.parametrize("name, options", [
    ("P2C", ("DATALOADER.NUM_WORKERS", 0)),
    ("P2C", ("DATALOADER.NUM_WORKERS", 2, "TEST.FINAL_MODEL", "best_val")),
    ("CoCoOp", ("DATALOADER.NUM_WORKERS", 0, "OPTIM.NAME", "adam")),
    ("PromptSRC", ("DATALOADER.NUM_WORKERS", 0, "TEST.FINAL_MODEL", "best_val", "TRAIN.CHECKPOINT_FREQ", 1)),
])
def test_a_run_killed_inside_epochs_ends_as_the_undisturbed_one(
        make_trainer, before_step, tmp_path, capsys, name, options):
    options = (*SMALL, "TRAIN.CHECKPOINT_STEPS", 3, *options)
    whole = make_trainer(name, *options, out="whole")
    whole.train()
    told = averages(capsys.readouterr().out)
    before_step(killed_at((0, 1), (0, 5), (1, 2), (1, 6)))
    assert train_through(make_trainer, name, options, "cut") == 4
    assert_equal(outcome(tmp_path / "cut", whole.learner_name), outcome(tmp_path / "whole", whole.learner_name))
    assert averages(capsys.readouterr().out) == told and len(told) == 4
