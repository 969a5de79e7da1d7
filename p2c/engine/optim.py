"""Optimisers and learning-rate schedules from a config's OPTIM node.

Learning rates are closed-form functions of the epoch e = 0, 1, 2, ..., so the state of a schedule is one number.
"""
import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from p2c.utils import trainable
from p2c.utils.logs import get_logger

log = get_logger(__name__)

# Their fused kernels skip a step on the device itself; for the others loss scaling has to wait for the device.
FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
KERNELS = ("fused", "foreach", "capturable")  # options that select how a step is computed

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam, "amsgrad": torch.optim.Adam, "sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop,
    "radam": torch.optim.RAdam, "adamw": torch.optim.AdamW,
}


def _options(opts) -> dict:
    """Return the arguments of the optimiser NAME."""
    options = {"lr": opts.LR, "weight_decay": opts.WEIGHT_DECAY}
    if opts.NAME == "sgd":
        return options | {"momentum": opts.MOMENTUM, "dampening": opts.SGD_DAMPNING, "nesterov": opts.SGD_NESTEROV}
    if opts.NAME == "rmsprop":
        return options | {"momentum": opts.MOMENTUM, "alpha": opts.RMSPROP_ALPHA}
    options["betas"] = (opts.ADAM_BETA1, opts.ADAM_BETA2)
    if opts.NAME == "amsgrad":
        options["amsgrad"] = True
    return options


def build_optimizer(model: nn.Module | Iterable, optim_cfg, param_groups=None) -> torch.optim.Optimizer:
    """Build the optimiser for the trainable parameters of a module, or for an iterable of parameters or groups.

    `param_groups` takes precedence over the model. With STAGED_LR the module's children in NEW_LAYERS train at the full
    learning rate, the others at BASE_LR_MULT times that.

    Raises:
        ValueError: an unknown NAME, a setting that torch's optimiser rejects, or no trainable parameter.
        TypeError: STAGED_LR without a module.
    """
    if optim_cfg.NAME not in OPTIMIZERS:
        raise ValueError(f"optim must be one of {list(OPTIMIZERS)}, but got {optim_cfg.NAME}")
    if param_groups is not None:
        if optim_cfg.STAGED_LR:
            log.warning("STAGED_LR is ignored, since param_groups is given")
    elif optim_cfg.STAGED_LR:
        param_groups = _staged_groups(model, optim_cfg)
    else:
        param_groups = trainable.parameters(model) if isinstance(model, nn.Module) else model
    groups = list(param_groups)
    if groups and not isinstance(groups[0], dict):
        groups = [{"params": groups}]
    groups = [{**group, "params": _as_list(group["params"])} for group in groups]
    optimizer_class, options = OPTIMIZERS[optim_cfg.NAME], _options(optim_cfg)
    # torch's first step ignores dampening; with the initial momentum of _start_momentum there is no such step.
    if optimizer_class in FUSED and not options.get("dampening") and _all_on_gpu(groups):
        options["fused"] = True
    optimizer = optimizer_class(groups, **options)
    optimizer.register_load_state_dict_pre_hook(_keep_kernels)
    optimizer.register_load_state_dict_post_hook(_start_momentum)
    _start_momentum(optimizer)
    return optimizer


def _keep_kernels(optimizer: torch.optim.Optimizer, state: dict) -> dict:
    """Return a state with the KERNELS of this optimiser, since the state may come from another device."""
    groups = [dict(group) for group in state["param_groups"]]
    for group, here in zip(groups, optimizer.param_groups, strict=False):  # torch rejects another number of groups
        group.update({name: here[name] for name in KERNELS if name in here})
    return {**state, "param_groups": groups}


def _start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Initialise the momentum of fused SGD with zeros where there is none yet.

    torch allocates it in the first step but leaves it uninitialised if loss scaling skips that step, and the next step
    reads it. From zeros, the first step is the same as torch's: momentum * 0 + gradient.
    """
    for group in optimizer.param_groups:
        if isinstance(optimizer, torch.optim.SGD) and group["fused"] and group["momentum"]:
            for parameter in group["params"]:
                if optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _as_list(parameters) -> list:
    """Return the parameters of a group, given as one tensor or as any iterable, as a list."""
    return [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)


def _all_on_gpu(groups: list[dict]) -> bool:
    return all(parameter.is_cuda and parameter.is_floating_point() for group in groups for parameter in group["params"])


def _staged_groups(model: nn.Module | Iterable, opts) -> list[dict]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"STAGED_LR needs a module, whose children have names, but got {type(model).__name__}")
    module = model.module if isinstance(model, nn.DataParallel) else model
    new_layers = [opts.NEW_LAYERS] if isinstance(opts.NEW_LAYERS, str) else list(opts.NEW_LAYERS)
    layers: dict[str, list] = {}  # child, or parameter of the module itself -> its trainable parameters
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            layers.setdefault(name.partition(".")[0], []).append(parameter)
    unmatched = [name for name in new_layers if name not in layers]
    if unmatched or not new_layers:
        log.warning(f"OPTIM.NEW_LAYERS {new_layers} does not name layers that train ({', '.join(layers)}); "
                    f"those not named train at {opts.BASE_LR_MULT} times the rate")
    base = [parameter for name, group in layers.items() if name not in new_layers for parameter in group]
    new = [parameter for name, group in layers.items() if name in new_layers for parameter in group]
    return [{"params": base, "lr": opts.LR * opts.BASE_LR_MULT}, {"params": new}]


class EpochSchedule:
    """Sets the learning rate of every parameter group, when constructed and at each step; one step per epoch.

    `rate(base_lr, epoch)` is the learning rate of an epoch. The state is `last_epoch` alone: learning rates come from
    the config, also after a resume.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, rate: Callable[[float, int], float]):
        self.optimizer = optimizer
        self.rate = rate
        self.base_lrs = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
        self.last_epoch = 0
        self._apply()

    def step(self) -> None:
        """Advance to the next epoch."""
        self.last_epoch += 1
        self._apply()

    def get_last_lr(self) -> list[float]:
        """Return the current learning rate of each parameter group."""
        return [self.rate(base_lr, self.last_epoch) for base_lr in self.base_lrs]

    def state_dict(self) -> dict:
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state: dict) -> None:
        self.last_epoch = state["last_epoch"]
        self._apply()

    def _apply(self) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.get_last_lr(), strict=True):
            group["lr"] = lr


# (e, start) -> learning rate of epoch e divided by that of epoch `start`, or by the base rate if start is 0.
Factor = Callable[[int, int], float]


def _cosine(opts) -> Factor:
    """Return the factor that falls from 1 at epoch 0 to 0 at MAX_EPOCH; `start` must differ from MAX_EPOCH."""
    def height(e: int) -> float:
        return 1 + math.cos(math.pi * e / opts.MAX_EPOCH)

    return lambda e, start: height(e) / height(start)


def _single_step(opts) -> Factor:
    """Return the factor that is multiplied by GAMMA every STEPSIZE epochs."""
    size = opts.STEPSIZE[-1] if isinstance(opts.STEPSIZE, list | tuple) else opts.STEPSIZE
    if not isinstance(size, int):
        raise TypeError(f"OPTIM.STEPSIZE must be an integer (or end with one) for single_step, but got {size!r}")
    period = size if size > 0 else opts.MAX_EPOCH
    return lambda e, start: opts.GAMMA ** (e // period - start // period)


def _multi_step(opts) -> Factor:
    """Return the factor that is multiplied by GAMMA at each epoch of STEPSIZE from 0 on."""
    if not isinstance(opts.STEPSIZE, list | tuple):
        raise TypeError(f"OPTIM.STEPSIZE must be a list of epochs for multi_step, but got {opts.STEPSIZE!r}")

    def steps(e: int) -> int:
        return sum(0 <= milestone <= e for milestone in opts.STEPSIZE)

    # A milestone at 0 counts against the base rate.
    return lambda e, start: opts.GAMMA ** (steps(e) - steps(start or -1))


SCHEDULES = {"single_step": _single_step, "multi_step": _multi_step, "cosine": _cosine}

# (OPTIM node, base learning rate, epoch) -> learning rate of a warm-up epoch.
WARMUPS = {
    "constant": lambda opts, base_lr, e: opts.WARMUP_CONS_LR,
    "linear": lambda opts, base_lr, e: opts.WARMUP_MIN_LR if e == 0 else base_lr * e / opts.WARMUP_EPOCH,
}


def build_lr_scheduler(optimizer: torch.optim.Optimizer, optim_cfg) -> EpochSchedule:
    """Build the schedule LR_SCHEDULER, preceded by WARMUP_EPOCH epochs of warm-up if that is above 0.

    Raises:
        ValueError: an unknown LR_SCHEDULER or WARMUP_TYPE.
        TypeError: a STEPSIZE that the schedule cannot use.
    """
    opts, warmup_epochs = optim_cfg, max(optim_cfg.WARMUP_EPOCH, 0)
    if opts.LR_SCHEDULER not in SCHEDULES:
        raise ValueError(f"OPTIM.LR_SCHEDULER must be one of {list(SCHEDULES)}, but got {opts.LR_SCHEDULER}")
    if warmup_epochs and opts.WARMUP_TYPE not in WARMUPS:
        raise ValueError(f"OPTIM.WARMUP_TYPE must be one of {list(WARMUPS)}, but got {opts.WARMUP_TYPE}")
    factor = SCHEDULES[opts.LR_SCHEDULER](opts)

    def rate(base_lr: float, epoch: int) -> float:
        if epoch < warmup_epochs:
            return WARMUPS[opts.WARMUP_TYPE](opts, base_lr, epoch)
        if opts.WARMUP_RECOUNT or not warmup_epochs:
            return base_lr * factor(epoch - warmup_epochs, 0)
        # As in Dassl: recursively from the base rate, counting from the length of the warm-up.
        return base_lr if epoch == warmup_epochs else base_lr * factor(epoch, warmup_epochs)

    return EpochSchedule(optimizer, rate)
