"""Dynamic Prompt Denoising (DPD): noise on the text context while training, whose level falls (paper, same title).

Any method that learns a text context can train with it. A schedule maps tau, the training progress in [0, 1] after the
warm-up, to the noise level as a fraction of its start. All but `constant` start at 1, never rise and end at 0, which a
level by epoch does not reach: the last epoch has tau < 1.
"""
import functools
import math
from collections.abc import Callable, Mapping

from torch import Tensor

from p2c.denoising.mixture import Distribution, GaussianMixture

ANNEALS = ("epoch", "step")
SIGMOID_K = 10.0  # default steepness of the sigmoid schedule
MIXTURE = GaussianMixture((-1.0, 0.0, 1.0), (0.5, 1.0, 0.5))  # ours: the paper names no numbers

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


def schedule_from_config(settings: Mapping) -> Schedule:
    """Return the schedule that the settings of TRAINER.PROMPT_DENOISING describe."""
    if settings["SCHEDULE"] == "sigmoid":
        return functools.partial(sigmoid, k=settings["SIGMOID_K"])
    return SCHEDULES[settings["SCHEDULE"]]


def progress(epoch: float, epochs: int, warmup_epochs: int = 0) -> float:
    """Return tau = clip((e - E_w) / (E - E_w), 0, 1) for epoch e, which counts from 0 and may be fractional.

    Raises:
        ValueError: the warm-up E_w is negative, or not shorter than the training of E epochs.
    """
    if not 0 <= warmup_epochs < epochs:
        raise ValueError(f"Noise warm-up of {warmup_epochs} epochs must be at least 0 and shorter than the training of "
                         f"{epochs} epochs")
    return min(max((epoch - warmup_epochs) / (epochs - warmup_epochs), 0.0), 1.0)


class PromptDenoising:
    """Noise on the text context while training: P_0 becomes P_0 + sigma(e) eps, with a level sigma that falls.

    Args:
        distribution: that of eps.
        noise_std: sigma_0 >= 0, the level at the start, in multiples of `unit`.
        schedule: maps progress in [0, 1] to the fraction of sigma_0.
        epochs: E, the length of the training.
        warmup_epochs: E_w, epochs at full level before the annealing begins; less than E.
        unit: the absolute value of a level of 1; the default level is meant for that of CLIP's token embedding.
        anneal: `epoch`: the level changes once an epoch; `step`: with every batch.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(self, distribution: Distribution = MIXTURE, noise_std: float = 9.0, schedule: Schedule = cosine,
                 epochs: int = 5, warmup_epochs: int = 0, anneal: str = "epoch", unit: float = 1.0):
        if not noise_std >= 0:
            raise ValueError(f"The prompt noise's NOISE_STD must be at least 0, but got {noise_std}")
        if anneal not in ANNEALS:
            raise ValueError(f"Unknown ANNEAL '{anneal}'; choose from {', '.join(ANNEALS)}")
        progress(0, epochs, warmup_epochs)  # checks the two lengths
        self.distribution, self.sigma_0, self.schedule = distribution, noise_std * unit, schedule
        self.epochs, self.warmup_epochs, self.anneal = epochs, warmup_epochs, anneal

    def sigma(self, epoch: int, epoch_fraction: float = 0.0) -> float:
        """Return the noise level in an epoch, an absolute value.

        Args:
            epoch: the number of epochs before it.
            epoch_fraction: the part of the epoch that is done, in [0, 1); only annealing by step reads it.
        """
        e = epoch + epoch_fraction if self.anneal == "step" else epoch
        return self.sigma_0 * self.schedule(progress(e, self.epochs, self.warmup_epochs))


def noise_unit(settings: Mapping, token_std: float) -> float:
    """Return the absolute value of a noise level of 1 in the settings: 1 or `token_std`, as NOISE_UNIT says.

    Args:
        settings: TRAINER.PROMPT_DENOISING.
        token_std: the standard deviation of the token embedding.
    """
    return 1.0 if settings["NOISE_UNIT"] == "absolute" else token_std


def to_device_of(context: Tensor, draw: Tensor) -> Tensor:
    """Return a draw, which is made on the CPU, on the context's device and in its precision.

    The host does not wait for the copy: from pinned memory it is queued like a kernel.
    """
    if context.is_cuda and not draw.is_cuda:
        draw = draw.pin_memory()
    return draw.to(context, non_blocking=True)
