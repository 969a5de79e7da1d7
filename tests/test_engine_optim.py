"""Optimisers and schedules: what is trained, and what of the settings is said."""
import pytest
import torch
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
