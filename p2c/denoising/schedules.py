"""Annealing schedules of the prompt noise (paper, "Dynamic Prompt Denoising").

Each schedule maps tau, the training progress in [0, 1] after the noise warm-up, to the noise level as a fraction of its
initial value. All but `constant` start at 1, never rise and end at 0.
"""
import math
from collections.abc import Callable

SIGMOID_K = 10.0  # default steepness of the sigmoid schedule

Schedule = Callable[[float], float]


def cosine(tau: float) -> float:
    """Return (1 + cos(pi tau)) / 2."""
    return (1 + math.cos(math.pi * tau)) / 2


def linear(tau: float) -> float:
    """Return 1 - tau."""
    return 1 - tau


def sigmoid(tau: float, k: float = SIGMOID_K) -> float:
    """Return a falling logistic curve of steepness k > 0, rescaled to run from exactly 1 to exactly 0.

    (The authors' preview subtracts this curve from one, so that its noise grows during training; we take that for a
    mistake.)
    """
    # S(t) = 1 / (1 + exp(k (t - 1/2))) = (1 - tanh(k (t - 1/2) / 2)) / 2; the tanh form neither overflows nor cancels.
    end = math.tanh(k / 4)
    return (end - math.tanh(k * (tau - 0.5) / 2)) / (2 * end)


def constant(tau: float) -> float:
    """Return 1: no annealing."""
    return 1.0


SCHEDULES: dict[str, Schedule] = {"cosine": cosine, "linear": linear, "sigmoid": sigmoid, "constant": constant}


def build_schedule(name: str, sigmoid_k: float = SIGMOID_K) -> Schedule:
    """Return the schedule called `name`; `sigmoid_k` is the steepness of the sigmoid.

    Raises:
        ValueError: an unknown name, or a steepness that is not positive.
    """
    if name not in SCHEDULES:
        raise ValueError(f"Unknown noise schedule '{name}'; choose from {', '.join(SCHEDULES)}")
    if name != "sigmoid":
        return SCHEDULES[name]
    if not sigmoid_k > 0:
        raise ValueError(f"The steepness of the sigmoid noise schedule must be positive, but got {sigmoid_k}")
    return lambda tau: sigmoid(tau, sigmoid_k)


def progress(epoch: float, epochs: int, warmup_epochs: int = 0) -> float:
    """Return tau = clip((e - E_w) / (E - E_w), 0, 1) for epoch e, which counts from 0 and may be fractional.

    Raises:
        ValueError: the warm-up E_w is negative, or not shorter than the training of E epochs.
    """
    if not 0 <= warmup_epochs < epochs:
        raise ValueError(f"Noise warm-up of {warmup_epochs} epochs must be at least 0 and shorter than the training of "
                         f"{epochs} epochs")
    return min(max((epoch - warmup_epochs) / (epochs - warmup_epochs), 0.0), 1.0)
