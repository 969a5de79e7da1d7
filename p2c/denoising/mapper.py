"""The vision-language mapper of the input prompts and its denoising loss (paper, "V-L Mapper Denoising").

Shapes: M context tokens, d_t text width, d_v vision width, h hidden width.
"""
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from p2c.denoising.noise import to_device_of


class DenoisingMapper(nn.Sequential):
    """F_0: Linear(d_t, h) - GELU - Linear(h, d_v), maps text prompts (M, d_t) to visual prompts (M, d_v)."""

    def __init__(self, text_width: int, vision_width: int, hidden_width: int):
        super().__init__(nn.Linear(text_width, hidden_width), nn.GELU(), nn.Linear(hidden_width, vision_width))


def mapper_loss(mapper: Callable[[Tensor], Tensor], context: Tensor, sigma: float, generator: Generator) -> Tensor:
    """L_map = mean over elements of (F_0(P_0 + sigma n) - stopgrad(F_0(P_0)))^2, n ~ N(0, I).

    `context` is P_0 (M, d_t), clean; `sigma` is in units of its elements. The gradient reaches the mapper and the
    context. Returns a scalar.
    """
    noise = to_device_of(context, torch.randn(*context.shape, generator=generator))
    with torch.no_grad():
        target = mapper(context)
    return (mapper(context + sigma * noise) - target).square().mean()
