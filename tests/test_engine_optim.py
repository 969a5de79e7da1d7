"""Optimisers, and learning rates measured on Dassl."""
import io

import pytest
import torch
from torch import nn

from p2c.engine import build_lr_scheduler, build_optimizer, get_cfg_default


def optim_config(**settings):
    opts = get_cfg_default().OPTIM
    opts.merge_from_list([item for pair in settings.items() for item in pair])
    return opts


def rates(optimizer, scheduler, epochs):
    """The rate of each parameter group in each epoch, and after the last."""
    seen = []
    for _ in range(epochs):
        seen.append([group["lr"] for group in optimizer.param_groups])
        assert scheduler.get_last_lr() == seen[-1]
        optimizer.step()
        scheduler.step()
    return seen, scheduler.get_last_lr()


MAPLE = dict(LR=0.0035, MAX_EPOCH=5, LR_SCHEDULER="cosine", WARMUP_EPOCH=1, WARMUP_TYPE="constant")
STEP = dict(LR=0.0035, MAX_EPOCH=6, LR_SCHEDULER="single_step", STEPSIZE=(2,))
STEPS = dict(LR=0.0035, MAX_EPOCH=6, LR_SCHEDULER="multi_step", STEPSIZE=(2, 4))
ONE = dict(WARMUP_EPOCH=1, WARMUP_TYPE="constant")

MEASURED = [
    (MAPLE, [1e-05, 0.0035, 0.0031657797401561582, 0.002290779740156158, 0.001209220259843842]),
    (MAPLE | dict(LR=0.0026, MAX_EPOCH=2), [1e-05, 0.0026]),
    (MAPLE | dict(LR=0.0025), [
        1e-05, 0.0025, 0.0022612712429686843, 0.0016362712429686841, 0.0008637287570313157]),
    (MAPLE | dict(LR=0.002, MAX_EPOCH=10), [
        1e-05, 0.002, 0.0019510565162951536, 0.0018090169943749473, 0.0015877852522924731, 0.0013090169943749475, 0.001,
        0.0006909830056250527, 0.000412214747707527, 0.00019098300562505268]),
    (MAPLE | dict(WARMUP_EPOCH=-1), [
        0.0035, 0.0031657797401561582, 0.002290779740156158, 0.001209220259843842, 0.0003342202598438421]),
    (MAPLE | dict(WARMUP_RECOUNT=False), [
        1e-05, 0.0035, 0.0025326237921249263, 0.001336881039375368, 0.00036950483150029455]),
    (MAPLE | dict(MAX_EPOCH=6, WARMUP_EPOCH=2), [
        1e-05, 1e-05, 0.0035, 0.003265544456622768, 0.002625, 0.00175]),
    (MAPLE | dict(MAX_EPOCH=6, WARMUP_EPOCH=2, WARMUP_RECOUNT=False), [
        1e-05, 1e-05, 0.0035, 0.002333333333333333, 0.001166666666666667, 0.00031260739116964297]),
    (MAPLE | dict(MAX_EPOCH=8, WARMUP_EPOCH=3, WARMUP_TYPE="linear"), [
        1e-05, 0.0011666666666666668, 0.0023333333333333335, 0.0035, 0.0033667891818947517, 0.002987436867076458,
        0.002419696006638907, 0.00175]),
    (STEP, [0.0035, 0.0035, 0.00035, 0.00035, 3.5e-05, 3.5e-05]),
    (STEP | ONE, [1e-05, 0.0035, 0.0035, 0.00035, 0.00035, 3.5e-05]),
    (STEPS, [0.0035, 0.0035, 0.00035, 0.00035, 3.5e-05, 3.5e-05]),
    (STEPS | ONE, [1e-05, 0.0035, 0.0035, 0.00035, 0.00035, 3.5e-05]),
    (STEPS | ONE | dict(WARMUP_RECOUNT=False), [1e-05, 0.0035, 0.00035, 0.00035, 3.5e-05, 3.5e-05]),
]


@pytest.mark.parametrize("settings, expected", MEASURED)
def test_rates_are_dassls(settings, expected):
    """Check 20."""
    opts = optim_config(NAME="sgd", **settings)
    optimizer = build_optimizer(nn.Linear(2, 2), opts)
    seen, _ = rates(optimizer, build_lr_scheduler(optimizer, opts), len(expected))
    assert [lr for (lr,) in seen] == pytest.approx(expected, rel=1e-9)


def test_rate_after_the_last_epoch():
    """Check 20."""
    opts = optim_config(NAME="sgd", **MAPLE)
    optimizer = build_optimizer(nn.Linear(2, 2), opts)
    _, last = rates(optimizer, build_lr_scheduler(optimizer, opts), 5)
    assert last == pytest.approx([0.0003342202598438421], rel=1e-9)


class Staged(nn.Module):
    def __init__(self):
        super().__init__()
        self.ctx = nn.Parameter(torch.zeros(2))
        self.base, self.mid, self.new = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)


def test_a_warm_up_may_last_all_of_the_training():
    opts = optim_config(NAME="sgd", **MAPLE | dict(WARMUP_EPOCH=5, WARMUP_RECOUNT=False))
    optimizer = build_optimizer(nn.Linear(2, 2), opts)
    seen, last = rates(optimizer, build_lr_scheduler(optimizer, opts), 5)
    assert seen == [[1e-05]] * 5 and last == [0.0035]


def test_staged_rates_follow_the_schedule():
    """Check 20."""
    settings = MAPLE | dict(LR=0.01, MAX_EPOCH=4, STAGED_LR=True, NEW_LAYERS=("new",))
    opts = optim_config(NAME="sgd", **settings)
    optimizer = build_optimizer(Staged(), opts)
    seen, _ = rates(optimizer, build_lr_scheduler(optimizer, opts), 4)
    expected = [(1e-05, 1e-05), (0.001, 0.01), (0.0008535533905932737, 0.008535533905932738), (0.0005, 0.005)]
    for got, wanted in zip(seen, expected, strict=True):
        assert got == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("name, kind, expected", [
    ("adam", torch.optim.Adam, dict(betas=(0.9, 0.999), amsgrad=False)),
    ("amsgrad", torch.optim.Adam, dict(betas=(0.9, 0.999), amsgrad=True)),
    ("sgd", torch.optim.SGD, dict(momentum=0.9, dampening=0, nesterov=False)),
    ("rmsprop", torch.optim.RMSprop, dict(momentum=0.9, alpha=0.99)),
    ("radam", torch.optim.RAdam, dict(betas=(0.9, 0.999))),
    ("adamw", torch.optim.AdamW, dict(betas=(0.9, 0.999))),
])
def test_optimiser_names(name, kind, expected):
    """Check 21."""
    optimizer = build_optimizer(nn.Linear(2, 2), optim_config(NAME=name))
    assert type(optimizer) is kind
    expected = {"lr": 0.0003, "weight_decay": 5e-4, **expected}
    assert {key: optimizer.defaults[key] for key in expected} == expected


def test_unknown_optimisers_and_schedules_are_refused():
    """Check 21."""
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="'adam', 'amsgrad', 'sgd', 'rmsprop', 'radam', 'adamw'.*but got SGD"):
        build_optimizer(model, optim_config(NAME="SGD"))
    optimizer = build_optimizer(model, optim_config())
    with pytest.raises(ValueError, match="but got step"):
        build_lr_scheduler(optimizer, optim_config(LR_SCHEDULER="step"))
    with pytest.raises(ValueError, match="but got exponential"):
        build_lr_scheduler(optimizer, optim_config(WARMUP_EPOCH=1, WARMUP_TYPE="exponential"))
    with pytest.raises(TypeError, match="STEPSIZE"):
        build_lr_scheduler(optimizer, optim_config(STEPSIZE=(1.5,)))
    opts = optim_config(LR_SCHEDULER="multi_step")
    opts.STEPSIZE = 3
    with pytest.raises(TypeError, match="STEPSIZE"):
        build_lr_scheduler(optimizer, opts)


def test_staged_groups_lose_no_parameter(capsys):
    """Check 22."""
    model = Staged()
    del model.ctx
    groups = build_optimizer(model, optim_config(LR=0.01, STAGED_LR=True, NEW_LAYERS=("new",))).param_groups
    assert [(group["lr"], len(group["params"])) for group in groups] == [(0.001, 4), (0.01, 2)]
    assert capsys.readouterr().out == ""

    groups = build_optimizer(Staged(), optim_config(LR=0.01, STAGED_LR=True, NEW_LAYERS=("new", "nwe"))).param_groups
    assert [(group["lr"], len(group["params"])) for group in groups] == [(0.001, 5), (0.01, 2)]
    assert "NEW_LAYERS ['new', 'nwe'] does not name layers that train (ctx, base, mid, new)" in capsys.readouterr().out
    with pytest.raises(TypeError, match="STAGED_LR"):
        build_optimizer([torch.zeros(1)], optim_config(STAGED_LR=True, NEW_LAYERS=("new",)))


def test_only_parameters_that_require_gradients_are_optimised():
    """Check 40."""
    model = Staged()
    model.base.requires_grad_(False)
    (group,) = build_optimizer(model, optim_config()).param_groups
    assert {id(parameter) for parameter in group["params"]} == {
        id(parameter) for parameter in (model.ctx, *model.mid.parameters(), *model.new.parameters())
    }


def test_given_groups_replace_the_model():
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": 0.5}]
    optimizer = build_optimizer(Staged(), optim_config(), param_groups=groups)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5]


def test_schedule_state_acts_on_the_live_optimiser():
    """Check 23."""
    opts = optim_config(NAME="sgd", **MAPLE)
    optimizer = build_optimizer(nn.Linear(2, 2), opts)
    scheduler = build_lr_scheduler(optimizer, opts)
    optimizer.step(), scheduler.step(), scheduler.step()
    file = io.BytesIO()
    torch.save(scheduler.state_dict(), file)
    file.seek(0)

    live = build_optimizer(nn.Linear(2, 2), opts)
    resumed = build_lr_scheduler(live, opts)
    resumed.load_state_dict(torch.load(file))
    live.step(), resumed.step()
    assert live.param_groups[0]["lr"] == pytest.approx(0.002290779740156158, rel=1e-9)
    assert resumed.last_epoch == 3 and resumed.base_lrs == [0.0035]
