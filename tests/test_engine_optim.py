"""Optimisers and schedules: what is trained, and what of the settings is said."""
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from p2c.engine import build_lr_scheduler, build_optimizer, get_cfg_default


def optim_config(**settings):
    opts = get_cfg_default().OPTIM
    opts.merge_from_list([item for pair in settings.items() for item in pair])
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
    assert "NEW_LAYERS ['new', 'nwe'] does not name layers that train (ctx, base, mid, new)" in capsys.readouterr().out


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
