"""Numbers that are not finite: what ends a run, what it leaves, what is skipped and counted."""
import math
import os
import re

import pytest
import torch
from engine_fixtures import TinyTrainer
from messages import naming

from p2c.clip.precision import PRECISIONS, Precision
from p2c.engine import optim
from p2c.engine.checkpoint import UnreadableCheckpoint, load_checkpoint
from p2c.engine.numerics import FILE, NonFiniteLoss, SkippedSteps
from p2c.engine.results import read_results
from p2c.model import Step


class Breaking(TinyTrainer):
    """Its loss is NaN from one batch of the second epoch on."""

    bad = 3

    def forward_backward(self, batch):
        summary = super().forward_backward(batch)
        if self.epoch == 1 and self.batch_idx >= self.bad:
            summary["loss"] = summary["loss"] * torch.nan
        return summary


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize("bad", [3, 11])
def test_the_step_is_named_and_the_state_is_kept_to_look_into(tiny_trainer, bad):
    """Batch 11 is the last of its epoch: the rate that is named was used in it, not the next epoch's."""
    trainer = tiny_trainer(kind=Breaking)
    trainer.bad = bad
    with pytest.raises(NonFiniteLoss) as error:
        trainer.train()
    path = f"{trainer.output_dir}/prompt_learner/{FILE}"
    assert str(error.value).startswith("Loss is infinite or NaN!")  # as Dassl's begins
    assert re.search(naming("loss is nan", f"step {13 + bad}", f"epoch [2/5] batch [{bad + 1}/12]", "3.5000e-03", path),
                     str(error.value))
    state = torch.load(path)
    assert state["nonfinite"] == {"step": 12 + bad, "epoch": 1, "batch": bad, "lr": 0.0035}
    assert state["steps_done"] == 13 + trainer.batch_idx <= 12 + bad + trainer.cfg.TRAIN.PRINT_FREQ
    assert all(value.equal(state["state_dict"][name]) for name, value in weights(trainer).items())
    assert state["optimizer"]["state"] and state["scheduler"] == trainer.sched.state_dict() and state["seed"] == 1
    assert [(step["epoch"], step["batch"]) for step in state["recent"]] == \
        [(1, batch) for batch in range(trainer.batch_idx + 1)]
    assert [step["batch"] for step in state["recent"] if step["loss"] != step["loss"]][0] == bad


def test_a_loss_that_the_engine_checks_at_once_leaves_its_state_too(tiny_trainer):
    class AtOnce(TinyTrainer):
        def model_backward_and_update(self, loss, names=None):
            super().model_backward_and_update(loss * (torch.inf if self.batch_idx == 7 else 1), names)

    trainer = tiny_trainer(kind=AtOnce)
    with pytest.raises(FloatingPointError, match=naming("loss is inf", "epoch [1/5] batch [8/12]", "1.0000e-05", FILE)):
        trainer.train()
    state = torch.load(f"{trainer.output_dir}/prompt_learner/{FILE}")
    assert [step["batch"] for step in state["recent"]] == list(range(7)) and state["nonfinite"]["lr"] == 1e-5


def test_what_is_kept_is_no_checkpoint_and_the_run_goes_on_from_the_last_one(tiny_trainer, tmp_path):
    every = ("TRAIN.CHECKPOINT_FREQ", 1)
    whole = tiny_trainer(*every, output_dir=tmp_path / "whole")
    whole.train()
    broken = tiny_trainer(*every, kind=Breaking)
    with pytest.raises(FloatingPointError):
        broken.train()
    folder = f"{broken.output_dir}/prompt_learner"
    assert sorted(os.listdir(folder)) == ["checkpoint", "model.pth.tar-1", FILE]
    with pytest.raises(UnreadableCheckpoint, match="is no checkpoint"):
        load_checkpoint(f"{folder}/{FILE}")
    again = tiny_trainer(*every)
    again.train()
    assert again.start_epoch == 1
    assert all(value.equal(weights(whole)[name]) for name, value in weights(again).items())


def test_a_run_that_broke_before_its_first_checkpoint_begins_again(tiny_trainer):
    broken = tiny_trainer(kind=Breaking)
    with pytest.raises(FloatingPointError):
        broken.train()
    assert os.listdir(f"{broken.output_dir}/prompt_learner") == [FILE]
    again = tiny_trainer()
    again.train()
    assert again.start_epoch == 0 and again.deployed_epoch == again.max_epoch


def test_a_state_that_cannot_be_written_does_not_hide_the_reason(tiny_trainer, monkeypatch, capsys):
    def full(path, content):
        raise OSError(28, "No space left on device")

    trainer = tiny_trainer(kind=Breaking)
    monkeypatch.setattr("p2c.engine.numerics.write_atomically", full)
    with pytest.raises(FloatingPointError, match=naming("loss is nan", "step 16", "3.5000e-03")):
        trainer.train()
    assert "No space left on device" in capsys.readouterr().out


def test_the_noise_level_and_each_loss_at_fault_are_named(make_trainer, monkeypatch):
    trainer = make_trainer("P2C", "OPTIM.MAX_EPOCH", 3)
    losses = trainer.model.losses

    def breaking(*batch):
        found = losses(*batch)
        if trainer.epoch == 1:
            found["loss_map"] = found["loss_map"] * torch.inf
        return found

    monkeypatch.setattr(trainer.model, "losses", breaking)
    level = trainer.model.noise_level(Step(epoch=1))
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    assert re.search(naming("loss is inf", "loss_map is inf", "step 5", "epoch [2/3] batch [1/4]", f"{level:.4e}"),
                     str(error.value)) and level > 0
    assert torch.load(re.search(rf"/\S*{FILE}", str(error.value))[0])["nonfinite"]["noise"] == level


# Loss scaling

def scaled(trainer, bad):
    """Have loss scaling on the CPU, and gradients that are infinite in some steps; the changes of the context."""
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    trainer.skipped = SkippedSteps(trainer.scaler, trainer.device)
    context = trainer.model.learner.ctx
    context.register_hook(lambda gradient: gradient + torch.inf if trainer.step.index in bad else gradient)
    changed, step = {}, trainer.forward_backward

    def watched(batch):
        before, number = trainer.model.learner.ctx.detach().clone(), trainer.step.index
        summary = step(batch)
        changed[number] = not before.equal(trainer.model.learner.ctx)
        return summary

    trainer.forward_backward = watched
    return changed


def test_steps_that_loss_scaling_skips_are_counted_and_reported_and_are_no_error(make_trainer, capsys):
    trainer = make_trainer("MaPLe")
    changed = scaled(trainer, {1, 2, 6})
    trainer.train()
    assert [number for number, moved in changed.items() if not moved] == [1, 2, 6] and len(changed) == 8
    assert read_results(trainer.output_dir)["skipped_steps"] == 3
    out = capsys.readouterr().out
    assert "left out 2 of 4 steps so far" in out and "left out 3 of 8 steps so far" in out
    assert trainer.scaler.get_scale() == 0.5


def test_the_count_of_skipped_steps_goes_on_where_a_resumed_run_stopped(make_trainer):
    first = make_trainer("MaPLe", "TRAIN.CHECKPOINT_FREQ", 1)
    scaled(first, {1, 2})
    first.max_epoch = 1
    first.train()
    second = make_trainer("MaPLe", "TRAIN.CHECKPOINT_FREQ", 1)
    scaled(second, {5})
    second.train()
    assert second.start_epoch == 1 and read_results(second.output_dir)["skipped_steps"] == 3


def test_a_loss_that_is_not_finite_is_an_error_with_loss_scaling_too(make_trainer, monkeypatch):
    trainer = make_trainer("MaPLe")
    scaled(trainer, ())
    losses = trainer.model.losses
    monkeypatch.setattr(trainer.model, "losses", lambda *batch: {
        name: loss * (torch.nan if trainer.step.index == 2 else 1) for name, loss in losses(*batch).items()})
    with pytest.raises(FloatingPointError, match="step 3, epoch"):
        trainer.train()


@pytest.mark.parametrize("name", ["MaPLe", "P2C"])
def test_half_precision_with_fused_kernels_trains_as_without(make_trainer, few_shapes, monkeypatch, name):
    """A GPU's default, on the CPU: of the first steps from the shipped weights some overflow, the very first too."""
    monkeypatch.setattr(Precision, "from_name", lambda name, device: PRECISIONS["fp16"])
    losses = []
    for fused in (False, True):
        monkeypatch.setattr(optim, "_all_on_gpu", lambda groups, fused=fused: fused)
        trainer = make_trainer(name, *few_shapes, "DATALOADER.TRAIN_X.BATCH_SIZE", 2, "MODEL.BACKBONE.WEIGHTS",
                               "builtin", out=f"fused{fused}")
        losses.append([float(trainer.forward_backward(batch)["loss"])
                       for trainer.batch_idx, batch in enumerate(trainer.train_loader_x)])
        assert trainer.skipped_steps >= 2 and trainer.scaler.get_scale() < 2**16
    assert all(map(math.isfinite, losses[1])) and len(losses[1]) == 12
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)


def test_a_run_without_loss_scaling_has_skipped_nothing(make_trainer):
    trainer = make_trainer("MaPLe", "OPTIM.MAX_EPOCH", 1)
    trainer.train()
    assert read_results(trainer.output_dir)["skipped_steps"] == 0
