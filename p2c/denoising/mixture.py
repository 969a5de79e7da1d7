"""Distributions of the prompt noise: a Gaussian mixture or the standard normal (paper, "Dynamic Prompt Denoising").

All elements of a sample are independent. Samples are drawn on the CPU, in float32, from the caller's generator.
"""
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StandardNormal:
    """N(0, 1)."""

    mean = 0.0
    std = 1.0

    def sample(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Draw independent samples of the given shape, float32 on the CPU."""
        return torch.randn(*shape, generator=generator)


class GaussianMixture:
    """The mixture sum_k w_k N(mu_k, s_k^2), with `weights` normalised to sum to 1 (uniform by default).

    Each element of a sample has a component of its own.

    Raises:
        ValueError: different lengths, no component, a number that is not finite, a std that is not positive, or weights
            that are negative or all zero.
    """

    def __init__(self, means: Sequence[float], stds: Sequence[float], weights: Sequence[float] = ()):
        weights = tuple(weights) or (1.0,) * len(means)
        if not (len(means) == len(stds) == len(weights) > 0):
            raise ValueError("A Gaussian mixture needs as many means as stds (and weights, if given) and at least one, "
                             f"but got means {tuple(means)}, stds {tuple(stds)}, weights {weights}")
        if not all(map(math.isfinite, (*means, *stds, *weights))):
            raise ValueError(f"A Gaussian mixture needs finite numbers, but got means {tuple(means)}, stds "
                             f"{tuple(stds)}, weights {weights}")
        if min(stds) <= 0:
            raise ValueError(f"The stds of a Gaussian mixture must be positive, but got {tuple(stds)}")
        if min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(f"The weights of a Gaussian mixture must not be negative or all zero, but got {weights}")
        self.means, self.stds = tuple(means), tuple(stds)
        self.weights = tuple(w / sum(weights) for w in weights)

    @property
    def mean(self) -> float:
        """The mean, sum_k w_k mu_k."""
        return sum(w * mu for w, mu in zip(self.weights, self.means, strict=True))

    @property
    def std(self) -> float:
        """The standard deviation, sqrt(sum_k w_k (s_k^2 + (mu_k - mean)^2)); this form avoids cancellation."""
        mean = self.mean
        return math.sqrt(sum(w * (s * s + (mu - mean) ** 2)
                             for w, mu, s in zip(self.weights, self.means, self.stds, strict=True)))

    def sample(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Draw independent samples of the given shape, float32 on the CPU: first all components, then the normals."""
        k = torch.multinomial(torch.tensor(self.weights), math.prod(shape), replacement=True, generator=generator)
        eps = torch.randn(math.prod(shape), generator=generator)
        return (torch.tensor(self.means)[k] + torch.tensor(self.stds)[k] * eps).reshape(*shape)


Distribution = GaussianMixture | StandardNormal
NOISE_TYPES = ("gaussian_mixture", "gaussian")


def noise_from_config(settings: Mapping) -> Distribution:
    """Return the distribution that the settings of TRAINER.PROMPT_DENOISING describe.

    Raises:
        ValueError: an invalid mixture, see GaussianMixture.
    """
    if settings["NOISE_TYPE"] == "gaussian":
        return StandardNormal()
    mixture = GaussianMixture(settings["GMM_MEANS"], settings["GMM_STDS"], settings["GMM_WEIGHTS"])
    if abs(mixture.mean) > 1e-6:
        warnings.warn(f"The noise mixture has mean {mixture.mean:.4g}, so it also shifts the prompt; choose means and "
                      "weights whose weighted sum is 0 to avoid that", stacklevel=2)
    return mixture
