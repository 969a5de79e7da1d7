"""Images as bytes on the host, converted to floats and normalised on the device.

This quarters the transfer from workers to the device, and leaves the workers less to do.
"""
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import functional as F


class Normalization:
    """ToTensor and Normalize for batches of images (B, 3, height, width) in uint8, with float32 results.

    Other images have been normalised by their transform, and are returned as they are.

    Args:
        statistics: means and standard deviations of the channels, for pixels in [0, 1]; None: do not normalise.
        device: where the images are.
    """

    def __init__(self, statistics: tuple[Sequence[float], Sequence[float]] | None, device: torch.device):
        self.statistics = statistics
        # A tensor, since CUDA replaces division by a number with multiplication by its rounded inverse. With a tensor
        # the operations and roundings are torchvision's, and the result is bitwise equal on CPU and GPU.
        self.white = torch.tensor(255.0, device=device)
        self.mean, self.std = (torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
                               for values in statistics or ([0.0], [1.0]))

    def __call__(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            return images
        return images.to(torch.float32).div_(self.white).sub_(self.mean).div_(self.std)

    def is_all_of(self, steps: Sequence[Any]) -> bool:
        """Return whether these transforms of a float tensor are exactly this normalisation."""
        if self.statistics is None:
            return not steps
        return (len(steps) == 1 and type(steps[0]) is T.Normalize
                and [list(steps[0].mean), list(steps[0].std)] == list(map(list, self.statistics)))


def as_bytes(transform: Callable | Sequence | None, normalization: Normalization) -> Callable | Sequence | None:
    """Return the transform with `to_bytes` in place of ToTensor and normalisation.

    Any transform that does something else with floats is returned unchanged.
    """
    if not isinstance(transform, T.Compose):
        return transform
    steps = transform.transforms
    ends = [position for position, step in enumerate(steps) if type(step) is T.ToTensor]
    if len(ends) != 1 or not normalization.is_all_of(steps[ends[0] + 1:]):
        return transform
    return T.Compose([*steps[:ends[0]], to_bytes])


def to_bytes(image: Image.Image) -> Tensor:
    """Convert an image to a uint8 tensor (3, height, width)."""
    return torch.from_numpy(np.ascontiguousarray(F.pil_to_tensor(image).numpy()))  # torch copies bytes slowly
