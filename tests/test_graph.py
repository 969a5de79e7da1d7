"""Training steps as one CUDA graph, on a CPU: a capture is imitated by calling the step again at each replay.

tests/test_gpu.py captures for real.
"""
import pytest
import torch
from all_trainers import CASES
from steps import assert_same_state

from p2c.engine import optim
from p2c.trainers import graph
from p2c.trainers.p2c import P2C
from p2c.utils import trainable

TRAINED = [case for case in CASES if not case.startswith("Zeroshot") and case != "cloud"]


class Captures:
    """Stands in for `graph.capture`; counts captures and replays."""

    def __init__(self):
        self.captured = self.replayed = 0
        self.disturb = lambda step: None  # what else a replay does

    def __call__(self, run, stream):
        run()  # a capture computes nothing, but what it changes would have to be put back all the same
        self.captured += 1

        def replay():
            self.replayed += 1
            run()
            self.disturb(run.__self__)
        return replay


@pytest.fixture
def captures(monkeypatch):
    """The CPU as a device that has graphs and fused optimisers."""
    stand_in = Captures()
    monkeypatch.setattr(graph, "available", lambda device: True)
    monkeypatch.setattr(graph, "capture", stand_in)
    monkeypatch.setattr(optim, "_all_on_gpu", lambda groups: True)
    return stand_in


def trained(make_trainer, case, wish, *pairs, out=None, **options):
    """A trainer after two epochs, with the losses of its steps."""
    name, settings = CASES[case]
    trainer = make_trainer(name, "TRAIN.CUDA_GRAPH", wish, *settings, *pairs, out=out or wish, **options)
    losses, forward_backward = [], trainer.forward_backward

    def noted(batch):
        summary = forward_backward(batch)
        losses.append({name: float(value) for name, value in summary.items()})
        return summary

    trainer.forward_backward = noted
    trainer.train()
    return trainer, losses


def assert_same_training(one, other):
    (trainer, losses), (other_trainer, other_losses) = one, other
    assert losses == other_losses
    assert_same_state(*(trainable.state_dict(x.model.learner) for x in (trainer, other_trainer)))
    for x, y in zip(trainer.optim.state.values(), other_trainer.optim.state.values(), strict=True):
        assert_same_state(x, y)


@pytest.mark.parametrize("case, optimiser", [*((case, "sgd") for case in TRAINED), ("P2C", "adam"), ("P2C", "adamw")])
def test_a_graph_trains_as_eager_steps_do(make_trainer, captures, case, optimiser):
    eager = trained(make_trainer, case, "off", "OPTIM.NAME", optimiser)
    assert captures.captured == 0
    graphed = trained(make_trainer, case, "auto", "OPTIM.NAME", optimiser)
    assert captures.captured == 1 and captures.replayed == 1 + len(graphed[1])  # one for the comparison
    for name in graphed[1][0]:
        values, expected = ([losses[name] for losses in of] for of in (graphed[1], eager[1]))
        assert values == pytest.approx(expected, rel=1e-4)  # the rate is a float32 tensor, not a number
    for a, b in zip(*(x[0].model.learner.parameters() for x in (graphed, eager)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert [group["lr"] for group in graphed[0].optim.param_groups] == [
        group["lr"] for group in eager[0].optim.param_groups]


def test_loss_scaling_goes_on_as_in_eager_steps(make_trainer, captures):
    """With a scale that overflows at first; the graph is compared at a scale that does not."""
    results = []
    for wish in ("off", "auto"):
        trainer = make_trainer("P2C", "TRAIN.CUDA_GRAPH", wish, out=wish)
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        trainer.skipped.scaler = trainer.scaler
        batch = next(iter(trainer.train_loader_x))
        losses = [trainer.forward_backward(batch)["loss"].item() for _ in range(8)]
        results.append((trainer.skipped_steps, trainer.scaler.get_scale(), losses))
    assert captures.replayed == 1 + 8
    (skipped, scale, losses), (skipped_eager, scale_eager, losses_eager) = reversed(results)
    assert 0 < skipped == skipped_eager < 8 and scale == scale_eager
    assert losses == pytest.approx(losses_eager, rel=1e-5)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_step_that_cannot_be_captured_is_run_eagerly_with_the_same_results(
        make_trainer, captures, monkeypatch, caplog, optimiser):
    eager = trained(make_trainer, "P2C", "off", "OPTIM.NAME", optimiser)

    def refuse(run, stream):
        run()
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    monkeypatch.setattr(graph, "capture", refuse)
    refused = trained(make_trainer, "P2C", "auto", "OPTIM.NAME", optimiser)
    assert_same_training(refused, eager)
    [line] = [record.message for record in caplog.records if "CUDA graph" in record.message]
    assert "operation not permitted when stream is capturing" in line and "more lines" not in line


@pytest.mark.parametrize("fault", ["loss", "gradient", "nan"])
def test_a_graph_that_computes_something_else_is_not_used(make_trainer, captures, caplog, fault):
    eager = trained(make_trainer, "MaPLe", "off")

    def disturb(step):
        if fault == "gradient":
            next(parameter for parameter in step._parameters() if parameter.grad is not None).grad.mul_(1.5)
        else:
            step.losses[0] += float("nan") if fault == "nan" else 0.01

    captures.disturb = disturb
    assert_same_training(trained(make_trainer, "MaPLe", "auto"), eager)
    assert captures.replayed == 1 and sum("differ" in record.message for record in caplog.records) == 1


def test_a_batch_of_another_size_is_run_eagerly(make_trainer, captures):
    trainer = make_trainer("P2C", "TRAIN.CUDA_GRAPH", "auto")
    batch = next(iter(trainer.train_loader_x))
    for _ in range(2):
        trainer.forward_backward(batch)
    before = [parameter.clone() for parameter in trainer.model.learner.parameters()]
    trainer.forward_backward({"img": batch["img"][:2], "label": batch["label"][:2]})
    assert captures.replayed == 1 + 2
    assert not all(map(torch.equal, before, trainer.model.learner.parameters()))
    trainer.forward_backward(batch)
    assert captures.replayed == 1 + 3


def test_a_run_resumed_with_a_graph_goes_on_bit_for_bit(make_trainer, captures):
    whole, losses = trained(make_trainer, "P2C", "auto", "TRAIN.CHECKPOINT_FREQ", 1, out="whole")
    first = make_trainer("P2C", "TRAIN.CUDA_GRAPH", "auto", "TRAIN.CHECKPOINT_FREQ", 1, out="parts")
    first.max_epoch = 1
    first.train()
    second, rest = trained(make_trainer, "P2C", "auto", "TRAIN.CHECKPOINT_FREQ", 1, out="parts")
    assert second.start_epoch == 1
    assert_same_training((second, rest), (whole, losses[-len(rest):]))


def test_what_is_deployed_follows_the_replays(make_trainer, captures):
    """A graph changes the prompts where torch does not see it; here a replay hides it as well."""
    trainer = make_trainer("MaPLe", "TRAIN.CUDA_GRAPH", "auto")
    batch = next(iter(trainer.train_loader_x))
    trainer.forward_backward(batch)
    replay = trainer.launch.replay
    parameters = list(trainer.model.learner.parameters())

    def hidden():
        versions = [parameter._version for parameter in parameters]
        replay()
        for parameter, version in zip(parameters, versions, strict=True):
            torch._C._autograd._unsafe_set_version_counter((parameter,), (version,))

    trainer.launch.replay = hidden
    before = trainer.model.classifier()
    trainer.forward_backward(batch)
    assert not torch.equal(trainer.model.classifier(), before)


class Changing(P2C):
    """A trainer of somebody else: a step of it may depend on anything."""


def test_steps_of_other_trainers_are_captured_only_if_that_is_asked_for(make_cfg, captures, caplog):
    for wish, count in (("auto", 0), ("on", 1)):
        trainer = Changing(make_cfg("P2C", "TRAIN.CUDA_GRAPH", wish, out=wish))
        trainer.forward_backward(next(iter(trainer.train_loader_x)))
        assert captures.captured == count
    assert sum("Changing" in record.message for record in caplog.records) == 1


def test_processes_that_average_their_gradients_are_not_captured(make_trainer, captures, monkeypatch, caplog):
    trainer = make_trainer("P2C", "TRAIN.CUDA_GRAPH", "on")
    monkeypatch.setattr("p2c.trainers.base.processes", lambda: 2)
    for batch in trainer.train_loader_x:
        trainer.forward_backward(batch)
    assert captures.captured == 0 and sum("several processes" in record.message for record in caplog.records) == 1


def test_without_a_gpu_or_fused_kernels_there_is_no_graph(make_trainer, captures, monkeypatch, caplog):
    trained(make_trainer, "P2C", "auto", "OPTIM.NAME", "rmsprop", out="rmsprop")
    monkeypatch.undo()
    trained(make_trainer, "P2C", "auto", out="cpu")
    trained(make_trainer, "P2C", "on", out="on")
    assert captures.captured == 0
    lines = [record.message for record in caplog.records if "CUDA graph" in record.message]
    assert len(lines) == 2 and "RMSprop" in lines[0] and "GPU" in lines[1]
