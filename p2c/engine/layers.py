"""Helpers for the layers of a model: count, freeze and initialise their parameters."""
from collections.abc import Iterable

from torch import nn


def count_num_param(model: nn.Module | None = None, params: Iterable | None = None) -> int:
    """Count the elements of a module's parameters, or of an iterable of tensors or {"params": tensor} dicts."""
    if model is not None:
        return sum(parameter.numel() for parameter in model.parameters())
    if params is None:
        raise ValueError("count_num_param needs a model or params, but got neither")
    return sum((item["params"] if isinstance(item, dict) else item).numel() for item in params)


def open_all_layers(model: nn.Module) -> None:
    """Make every parameter trainable and set training mode."""
    model.train()
    model.requires_grad_(True)


def open_specified_layers(model: nn.Module, open_layers: str | list[str]) -> None:
    """Make the named children trainable and freeze the others. Raise ValueError for an unknown name."""
    names = [open_layers] if isinstance(open_layers, str) else list(open_layers)
    children = dict(model.named_children())
    if unknown := [name for name in names if name not in children]:
        raise ValueError(f"No child module is called {', '.join(unknown)}; choose from {', '.join(children)}")
    for name, child in children.items():
        child.train(name in names)
        child.requires_grad_(name in names)


_INITIALISERS = {
    "normal": lambda weight, gain: nn.init.normal_(weight, 0.0, gain),
    "xavier": lambda weight, gain: nn.init.xavier_normal_(weight, gain=gain),
    "kaiming": lambda weight, gain: nn.init.kaiming_normal_(weight, a=0, mode="fan_in"),
    "orthogonal": lambda weight, gain: nn.init.orthogonal_(weight, gain=gain),
}


def init_network_weights(model: nn.Module, init_type: str = "normal", gain: float = 0.02) -> None:
    """Reinitialise linear and convolutional weights, set biases to 0 and normalisation layers to the identity."""
    if init_type not in _INITIALISERS:
        raise ValueError(f"Unknown init_type {init_type!r}; choose from {', '.join(_INITIALISERS)}")
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            _INITIALISERS[init_type](module.weight.data, gain)
        elif isinstance(module, nn.modules.batchnorm._NormBase) and module.affine:
            nn.init.ones_(module.weight)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
