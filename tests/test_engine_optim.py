"""Optimisers and schedules: what is trained, and what of the settings is said."""
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from messages import naming
from torch import nn

from p2c.engine import build_lr_scheduler, build_optimizer, get_cfg_default, optim


def optim_config(**settings):
    opts = get_cfg_default().OPTIM
    opts.update(settings)
    return opts


class Staged(nn.Module):
    def __init__(self):
        super().__init__()
        self.ctx = nn.Parameter(torch.zeros(2))
        self.base, self.mid, self.new = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)


def test_a_warm_up_may_last_all_of_the_training():
    opts = optim_config(NAME="sgd", LR=0.0035, MAX_EPOCH=5, LR_SCHEDULER="cosine", WARMUP_EPOCH=5,
                        WARMUP_TYPE="constant", WARMUP_RECOUNT=False)
    optimizer = build_optimizer(nn.Linear(2, 2), opts)
    scheduler = build_lr_scheduler(optimizer, opts)
    for _ in range(5):
        assert optimizer.param_groups[0]["lr"] == 1e-05
        optimizer.step(), scheduler.step()
    assert scheduler.get_last_lr() == [0.0035]


def expected_rate(opts, e):
    """The rate of an epoch, in other words than the program's: what each epoch did to the rate, counted."""
    warm = max(opts.WARMUP_EPOCH, 0)
    if e < warm and opts.WARMUP_TYPE == "constant":
        return opts.WARMUP_CONS_LR
    if e < warm:
        return opts.LR * e / warm if e else opts.WARMUP_MIN_LR
    first, last = (warm, e) if warm and not opts.WARMUP_RECOUNT else (0, e - warm)  # what the main schedule sees go by
    if opts.LR_SCHEDULER == "cosine":
        start, end = (math.cos(math.pi * epoch / opts.MAX_EPOCH / 2) ** 2 for epoch in (first, last))
        return opts.LR if first == last else opts.LR * end / start
    size = opts.STEPSIZE[-1] if opts.STEPSIZE[-1] > 0 else opts.MAX_EPOCH
    falls = [epoch for epoch in range(first + bool(first), last + 1) for fall in opts.STEPSIZE if epoch == fall] \
        if opts.LR_SCHEDULER == "multi_step" else range(size * (first // size + 1), last + 1, size)
    return opts.LR * opts.GAMMA ** len(falls)


SCHEDULED = st.fixed_dictionaries(dict(
    NAME=st.just("sgd"), LR=st.floats(1e-6, 10), MAX_EPOCH=st.integers(1, 20),
    LR_SCHEDULER=st.sampled_from(["cosine", "single_step", "multi_step"]),
    STEPSIZE=st.lists(st.integers(-1, 25), min_size=1, max_size=4).map(tuple),
    GAMMA=st.floats(0, 2), WARMUP_EPOCH=st.integers(-1, 20), WARMUP_TYPE=st.sampled_from(["constant", "linear"]),
    WARMUP_CONS_LR=st.floats(0, 1), WARMUP_MIN_LR=st.floats(0, 1), WARMUP_RECOUNT=st.booleans()))


@given(SCHEDULED)
def test_every_rate_is_the_closed_form_also_after_a_resume(settings):
    opts = optim_config(**settings)
    optimizer, other = (build_optimizer([nn.Parameter(torch.zeros(1))], opts) for _ in range(2))
    scheduler, resumed = build_lr_scheduler(optimizer, opts), build_lr_scheduler(other, opts)
    for epoch in range(opts.MAX_EPOCH + 1):
        if epoch:
            optimizer.step(), scheduler.step()
        rate, = scheduler.get_last_lr()
        assert rate == optimizer.param_groups[0]["lr"] == pytest.approx(expected_rate(opts, epoch), rel=1e-9, abs=1e-12)
        resumed.load_state_dict(scheduler.state_dict())
        assert other.param_groups[0]["lr"] == rate


def test_an_unknown_warm_up_is_named():
    optimizer = build_optimizer(nn.Linear(2, 2), optim_config())
    with pytest.raises(ValueError, match="but got exponential"):
        build_lr_scheduler(optimizer, optim_config(WARMUP_EPOCH=1, WARMUP_TYPE="exponential"))


def test_staged_groups_lose_no_parameter(capsys):
    """Check 22."""
    groups = build_optimizer(Staged(), optim_config(LR=0.01, STAGED_LR=True, NEW_LAYERS=("new",))).param_groups
    assert [(group["lr"], len(group["params"])) for group in groups] == [(0.001, 5), (0.01, 2)]
    assert capsys.readouterr().out == ""
    groups = build_optimizer(Staged(), optim_config(LR=0.01, STAGED_LR=True, NEW_LAYERS=("new", "nwe"))).param_groups
    assert [(group["lr"], len(group["params"])) for group in groups] == [(0.001, 5), (0.01, 2)]
    assert re.search(naming("NEW_LAYERS", "'nwe'", "ctx, base, mid, new"), capsys.readouterr().out)


def test_only_parameters_that_require_gradients_are_optimised():
    """Check 40."""
    model = Staged()
    model.base.requires_grad_(False)
    (group,) = build_optimizer(model, optim_config()).param_groups
    assert {id(parameter) for parameter in group["params"]} == {
        id(parameter) for parameter in (model.ctx, *model.mid.parameters(), *model.new.parameters())
    }


def test_groups_may_give_their_parameters_by_a_generator_or_one_alone():
    model = torch.nn.Linear(2, 3)
    opts = get_cfg_default().OPTIM
    built = build_optimizer(None, opts, [{"params": model.parameters()}])
    assert [len(group["params"]) for group in built.param_groups] == [2]
    assert build_optimizer(None, opts, [{"params": model.bias}]).param_groups[0]["params"][0] is model.bias


# Fused kernels, as on a GPU; torch has them for the CPU too

@pytest.fixture
def fuse(monkeypatch):
    """fuse(whether): have optimisers built from here on as for parameters on a GPU, or on a CPU."""
    return lambda whether: monkeypatch.setattr(optim, "_all_on_gpu", lambda groups: whether)


def steps(optimizer, parameter, gradients):
    """Take a step with loss scaling for each gradient; the parameter after each."""
    scaler, values = torch.amp.GradScaler("cpu", init_scale=4.0), []
    for gradient in gradients:
        optimizer.zero_grad()
        scaler.scale(parameter @ torch.as_tensor(gradient)).backward()
        scaler.step(optimizer)
        scaler.update()
        values.append(parameter.detach().clone())
    return torch.stack(values)


INF = math.inf
OVERFLOWING = [[INF, 1.0], [1.0, INF], [0.5, -1.0], [2.0, 0.5], [INF, INF], [1.0, 1.0]]
KINDS = [dict(NAME="sgd"), dict(NAME="sgd", SGD_NESTEROV=True, WEIGHT_DECAY=0.1), dict(NAME="sgd", SGD_DAMPNING=0.5),
         dict(NAME="sgd", MOMENTUM=0.0), dict(NAME="adam"), dict(NAME="amsgrad"), dict(NAME="adamw")]


@pytest.mark.parametrize("settings", KINDS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_fused_optimisers_train_as_the_others_do_when_loss_scaling_leaves_the_first_steps_out(fuse, settings):
    results = []
    for fused in (False, True):
        fuse(fused)
        parameter = nn.Parameter(torch.ones(2))
        torch.full((2,), math.nan)  # freed at once: what is allocated next and not written may hold this
        optimizer = build_optimizer([parameter], optim_config(LR=0.1, **settings))
        assert bool(optimizer.param_groups[0]["fused"]) == (fused and "SGD_DAMPNING" not in settings)
        results.append(steps(optimizer, parameter, OVERFLOWING))
    assert results[1][:2].equal(torch.ones(2, 2)) and not results[1][2].equal(torch.ones(2))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("settings", KINDS, ids=lambda settings: "-".join(map(str, settings.values())))
@pytest.mark.parametrize("first, then", [(False, True), (True, False)], ids=["onto a GPU", "onto a CPU"])
@pytest.mark.parametrize("done", [1, 3], ids="after {} steps".format)
def test_a_state_saved_on_another_device_goes_on_with_the_kernels_of_this_one(fuse, settings, first, then, done):
    def built(fused, start):
        fuse(fused)
        parameter = nn.Parameter(start.clone())
        return parameter, build_optimizer([parameter], optim_config(LR=0.1, **settings))

    parameter, optimizer = built(first, torch.ones(2))
    expected = steps(optimizer, parameter, OVERFLOWING)
    parameter, optimizer = built(first, torch.ones(2))
    steps(optimizer, parameter, OVERFLOWING[:done])
    resumed, other = built(then, parameter.detach())
    kernels = {name: other.param_groups[0][name] for name in ("fused", "foreach")}
    other.load_state_dict(optimizer.state_dict())
    assert {name: other.param_groups[0][name] for name in kernels} == kernels
    torch.testing.assert_close(steps(other, resumed, OVERFLOWING[done:]), expected[done:])
