"""Image transforms for training and test, named in INPUT.TRANSFORMS.

They are applied in a fixed order, whatever the order of the names. Sizes are (height, width) in pixels.
"""
import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import functional as F

from p2c.utils.logs import get_logger

log = get_logger(__name__)

INTERPOLATION_MODES = {
    "bilinear": T.InterpolationMode.BILINEAR,
    "bicubic": T.InterpolationMode.BICUBIC,
    "nearest": T.InterpolationMode.NEAREST,
}


class RandomTranslation:
    """Resize to `size` or, with probability p, to 9/8 of it, followed by a random crop of `size`."""

    def __init__(self, size: tuple[int, int], p: float = 0.5):
        self.size = size
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        if random.random() >= self.p:
            return F.resize(image, [height, width], INTERPOLATION_MODES["bilinear"])
        tall, wide = round(height * 1.125), round(width * 1.125)
        top, left = random.randint(0, tall - height), random.randint(0, wide - width)
        return F.crop(F.resize(image, [tall, wide], INTERPOLATION_MODES["bilinear"]), top, left, height, width)


class Cutout:
    """Set `n_holes` squares of side `length`, centred inside an image (C, H, W), to 0."""

    def __init__(self, n_holes: int, length: int):
        self.n_holes = n_holes
        self.length = length

    def __call__(self, image: Tensor) -> Tensor:
        image = image.clone()
        height, width = image.shape[1:]
        for _ in range(self.n_holes):
            top = np.random.randint(height) - self.length // 2
            left = np.random.randint(width) - self.length // 2
            image[:, max(top, 0):max(top + self.length, 0), max(left, 0):max(left + self.length, 0)] = 0
        return image


class GaussianNoise:
    """Add Gaussian noise to an image (C, H, W) with probability p."""

    def __init__(self, mean: float, std: float, p: float = 0.5):
        self.mean = mean
        self.std = std
        self.p = p

    def __call__(self, image: Tensor) -> Tensor:
        if torch.rand(()) >= self.p:
            return image
        return image + self.mean + self.std * torch.randn(image.shape)


class InstanceNormalization:
    """Normalise each channel of an image (C, H, W) to mean 0 and standard deviation 1."""

    def __call__(self, image: Tensor) -> Tensor:
        mean, std = image.mean((1, 2), keepdim=True), image.std((1, 2), keepdim=True)
        return (image - mean) / (std + 1e-8)


def _random_crop(size, mode, opts):
    return f"random crop (padding={opts.CROP_PADDING})", T.RandomCrop(size, padding=opts.CROP_PADDING)


def _random_resized_crop(size, mode, opts):
    scale = tuple(opts.RRCROP_SCALE)
    operation = T.RandomResizedCrop(size, scale=scale, interpolation=mode)
    return f"random resized crop (size={size}, scale={scale})", operation


def _color_jitter(size, mode, opts):
    values = opts.COLORJITTER_B, opts.COLORJITTER_C, opts.COLORJITTER_S, opts.COLORJITTER_H
    text = "color jitter (brightness={}, contrast={}, saturation={}, hue={})".format(*values)
    return text, T.ColorJitter(*values)


def _gaussian_blur(size, mode, opts):
    text = f"gaussian blur (kernel={opts.GB_K}, p={opts.GB_P})"
    return text, T.RandomApply([T.GaussianBlur(opts.GB_K)], p=opts.GB_P)


def _normalize(size, mode, opts):
    mean, std = list(opts.PIXEL_MEAN), list(opts.PIXEL_STD)
    return f"normalization (mean={mean}, std={std})", T.Normalize(mean, std)


def _auto_augment(policy):
    return lambda size, mode, opts: (f"{policy} auto augment policy", T.AutoAugment(T.AutoAugmentPolicy(policy)))


# name -> function that returns (line to log, operation). Applied in this order before the image becomes a tensor:
ON_IMAGES = {
    "random_translation": lambda size, mode, opts: ("random translation", RandomTranslation(size)),
    "random_crop": _random_crop,
    "random_resized_crop": _random_resized_crop,
    "random_flip": lambda size, mode, opts: ("random flip", T.RandomHorizontalFlip()),
    "imagenet_policy": _auto_augment("imagenet"),
    "cifar10_policy": _auto_augment("cifar10"),
    "svhn_policy": _auto_augment("svhn"),
    "randaugment": lambda size, mode, opts: (
        f"randaugment (n={opts.RANDAUGMENT_N}, m={opts.RANDAUGMENT_M})",
        T.RandAugment(opts.RANDAUGMENT_N, opts.RANDAUGMENT_M),
    ),
    "colorjitter": _color_jitter,
    "randomgrayscale": lambda size, mode, opts: (f"random gray scale (p={opts.RGS_P})", T.RandomGrayscale(opts.RGS_P)),
    "gaussian_blur": _gaussian_blur,
}

# and after it has become one:
ON_TENSORS = {
    "cutout": lambda size, mode, opts: (
        f"cutout (n_holes={opts.CUTOUT_N}, length={opts.CUTOUT_LEN})", Cutout(opts.CUTOUT_N, opts.CUTOUT_LEN)
    ),
    "normalize": _normalize,
    "gaussian_noise": lambda size, mode, opts: (
        f"gaussian noise (mean={opts.GN_MEAN}, std={opts.GN_STD})", GaussianNoise(opts.GN_MEAN, opts.GN_STD)
    ),
    "instance_norm": lambda size, mode, opts: ("instance normalization", InstanceNormalization()),
}

# center_crop is always part of the test transform, and has no effect in training.
AVAILABLE_CHOICES = [*ON_IMAGES, *ON_TENSORS, "center_crop"]


def build_transform(cfg, is_train: bool = True, choices: Sequence[str] | None = None) -> Callable | None:
    """Build the transform for training or test from `choices` or INPUT.TRANSFORMS; return None with NO_TRANSFORM.

    Raises:
        ValueError: an unknown transform.
        KeyError: an unknown interpolation.
    """
    if cfg.INPUT.NO_TRANSFORM:
        log.info("Note: no transform is applied!")
        return None
    choices = cfg.INPUT.TRANSFORMS if choices is None else choices
    if unknown := [name for name in choices if name not in AVAILABLE_CHOICES]:
        raise ValueError(f"Unknown transform {', '.join(unknown)}; choose from "
                         f"{', '.join(AVAILABLE_CHOICES)} as INPUT.TRANSFORMS")
    if cfg.INPUT.INTERPOLATION not in INTERPOLATION_MODES:
        raise KeyError(
            f"INPUT.INTERPOLATION is {cfg.INPUT.INTERPOLATION!r}; choose from {', '.join(INTERPOLATION_MODES)}"
        )
    log.info(f"Building transform_{'train' if is_train else 'test'}")
    steps = _train_steps(cfg.INPUT, choices) if is_train else _test_steps(cfg.INPUT, choices)
    for text, _ in steps:
        log.info(f"+ {text}")
    return T.Compose([operation for _, operation in steps])


def _train_steps(opts, choices: Sequence[str]) -> list[tuple[str, Callable]]:
    size, mode = tuple(opts.SIZE), INTERPOLATION_MODES[opts.INTERPOLATION]
    steps = []
    if "random_crop" not in choices and "random_resized_crop" not in choices:
        steps.append((f"resize to {size[0]}x{size[1]}", T.Resize(size, interpolation=mode)))
    steps += [build(size, mode, opts) for name, build in ON_IMAGES.items() if name in choices]
    steps.append(("to torch tensor of range [0, 1]", T.ToTensor()))
    steps += [build(size, mode, opts) for name, build in ON_TENSORS.items() if name in choices]
    return steps


def _test_steps(opts, choices: Sequence[str]) -> list[tuple[str, Callable]]:
    size, mode = tuple(opts.SIZE), INTERPOLATION_MODES[opts.INTERPOLATION]
    steps = [
        (f"resize the smaller edge to {max(size)}", T.Resize(max(size), interpolation=mode)),
        (f"{size[0]}x{size[1]} center crop", T.CenterCrop(size)),
        ("to torch tensor of range [0, 1]", T.ToTensor()),
    ]
    return steps + [ON_TENSORS[name](size, mode, opts) for name in ("normalize", "instance_norm") if name in choices]
