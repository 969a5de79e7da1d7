"""The vision-language mapper of the input prompts and its denoising loss (paper, "V-L Mapper Denoising").

Shapes: M context tokens, d_t text width, d_v vision width, h hidden width.
"""
from collections.abc import Callable

import torch
from torch import Tensor, nn

from p2c.denoising.noise import to_device_of


class MLPMapper(nn.Sequential):
    """F_0: Linear(d_t, h) - GELU - Linear(h, d_v). Maps text prompts (M, d_t) to visual prompts (M, d_v)."""

    def __init__(self, text_width: int, vision_width: int, hidden_width: int):
        super().__init__(nn.Linear(text_width, hidden_width), nn.GELU(), nn.Linear(hidden_width, vision_width))


def mapper_loss(mapper: Callable[[Tensor], Tensor], context: Tensor, noise: Tensor) -> Tensor:
    """Return L_map, the mean over elements of (F_0(P_0 + sigma_a n) - stopgrad(F_0(P_0)))^2, a scalar.

    Its gradient reaches the mapper and the context, through the noisy branch only. Index 0 stands for the first layer.

    Args:
        mapper: F_0.
        context: P_0 (M, d_t), clean.
        noise: sigma_a n (M, d_t), with n ~ N(0, I).
    """
    with torch.no_grad():
        target = mapper(context)
    return (mapper(context + to_device_of(context, noise)) - target).square().mean()
