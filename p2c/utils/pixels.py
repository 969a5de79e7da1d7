"""Images as bytes on the host, made floats and normalised on the device.

A batch is then a quarter as large on its way from a worker to the device, and the workers have less to do.
"""
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import functional as F


class Normalization:
    """Makes of images (B, 3, height, width) in uint8 what ToTensor and Normalize make of them, in float32.

    Args:
        statistics: mean and standard deviation of each channel in [0, 1]; None: leave the pixels in [0, 1].
    """

    def __init__(self, statistics: tuple[Sequence[float], Sequence[float]] | None, device: torch.device):
        def on_device(values: float | Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        self.statistics = statistics
        # A tensor: with a number, CUDA multiplies by its rounded inverse. So these are torchvision's operations in
        # torchvision's order, each rounded once, and the result is the same to the bit on a CPU and on a GPU.
        self.white = on_device(255.0)
        self.mean, self.std = (on_device(values).view(-1, 1, 1) for values in statistics or ([0.0], [1.0]))

    def __call__(self, images: Tensor) -> Tensor:
        images = images.to(torch.float32).div_(self.white)
        return images if self.statistics is None else images.sub_(self.mean).div_(self.std)

    def is_all_of(self, steps: Sequence[Callable]) -> bool:
        """Whether operations on a float tensor do just this normalisation."""
        if self.statistics is None:
            return not steps
        return [type(step) for step in steps] == [T.Normalize] and \
            all(list(a) == list(b) for a, b in zip((steps[0].mean, steps[0].std), self.statistics, strict=True))


def as_bytes(transform: Callable | Sequence | None, normalization: Normalization) -> Callable | Sequence | None:
    """The transform without ToTensor and normalisation, for images in uint8; what does more with floats stays as it is.
    """
    if not isinstance(transform, T.Compose):
        return transform
    steps = transform.transforms
    ends = [position for position, step in enumerate(steps) if type(step) is T.ToTensor]
    if len(ends) != 1 or not normalization.is_all_of(steps[ends[0] + 1:]):
        return transform
    return T.Compose([*steps[:ends[0]], to_bytes])


def to_bytes(image: Image.Image) -> Tensor:
    """An image as uint8 (3, height, width)."""
    return torch.from_numpy(np.ascontiguousarray(F.pil_to_tensor(image).numpy()))  # torch copies bytes slowly
