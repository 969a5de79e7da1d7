"""Image transforms for training and test, named in INPUT.TRANSFORMS.

They are applied in a fixed order, whatever the order of the names. Sizes are (height, width) in pixels.
"""
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import functional as F
from torchvision.transforms.v2 import GaussianNoise

from p2c.utils.logs import get_logger

log = get_logger(__name__)

INTERPOLATION_MODES = {name: T.InterpolationMode(name) for name in ("bilinear", "bicubic", "nearest")}


Step = tuple[str, Callable]  # line to log, operation

# In the order of application. center_crop is always part of the test transform, and has no effect in training.
AVAILABLE_CHOICES = (
    "random_translation", "random_crop", "random_resized_crop", "random_flip", "imagenet_policy", "cifar10_policy",
    "svhn_policy", "randaugment", "colorjitter", "randomgrayscale", "gaussian_blur", "cutout", "normalize",
    "gaussian_noise", "instance_norm", "center_crop",
)


def random_translation(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize to `size` or, with probability 0.5, to 9/8 of it, followed by a random crop of `size`."""
    height, width = size
    if random.random() >= 0.5:
        return F.resize(image, [height, width], INTERPOLATION_MODES["bilinear"])
    tall, wide = round(height * 1.125), round(width * 1.125)
    top, left = random.randint(0, tall - height), random.randint(0, wide - width)
    return F.crop(F.resize(image, [tall, wide], INTERPOLATION_MODES["bilinear"]), top, left, height, width)


def cutout(image: Tensor, n_holes: int, length: int) -> Tensor:
    """Set `n_holes` squares of side `length`, centred inside an image (C, H, W), to 0."""
    image = image.clone()
    height, width = image.shape[1:]
    for _ in range(n_holes):
        top = np.random.randint(height) - length // 2
        left = np.random.randint(width) - length // 2
        image[:, max(top, 0):max(top + length, 0), max(left, 0):max(left + length, 0)] = 0
    return image


def instance_norm(image: Tensor) -> Tensor:
    """Normalise each channel of an image (C, H, W) to mean 0 and standard deviation 1."""
    mean, std = image.mean((1, 2), keepdim=True), image.std((1, 2), keepdim=True)
    return (image - mean) / (std + 1e-8)


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
        raise KeyError(f"INPUT.INTERPOLATION is {cfg.INPUT.INTERPOLATION!r}; choose from "
                       f"{', '.join(INTERPOLATION_MODES)}")
    log.info(f"Building transform_{'train' if is_train else 'test'}")
    steps = list(_train_steps(cfg.INPUT, choices) if is_train else _test_steps(cfg.INPUT, choices))
    for text, _ in steps:
        log.info(f"+ {text}")
    return T.Compose([operation for _, operation in steps])


def _train_steps(opts, choices: Sequence[str]) -> Iterator[Step]:
    size, mode = tuple(opts.SIZE), INTERPOLATION_MODES[opts.INTERPOLATION]
    if "random_crop" not in choices and "random_resized_crop" not in choices:
        yield f"resize to {size[0]}x{size[1]}", T.Resize(size, interpolation=mode)
    if "random_translation" in choices:
        yield "random translation", partial(random_translation, size=size)
    if "random_crop" in choices:
        yield f"random crop (padding={opts.CROP_PADDING})", T.RandomCrop(size, padding=opts.CROP_PADDING)
    if "random_resized_crop" in choices:
        scale = tuple(opts.RRCROP_SCALE)
        crop = T.RandomResizedCrop(size, scale=scale, interpolation=mode)
        yield f"random resized crop (size={size}, scale={scale})", crop
    if "random_flip" in choices:
        yield "random flip", T.RandomHorizontalFlip()
    for policy in ("imagenet", "cifar10", "svhn"):
        if f"{policy}_policy" in choices:
            yield f"{policy} auto augment policy", T.AutoAugment(T.AutoAugmentPolicy(policy))
    if "randaugment" in choices:
        number, magnitude = opts.RANDAUGMENT_N, opts.RANDAUGMENT_M
        yield f"randaugment (n={number}, m={magnitude})", T.RandAugment(number, magnitude)
    if "colorjitter" in choices:
        values = opts.COLORJITTER_B, opts.COLORJITTER_C, opts.COLORJITTER_S, opts.COLORJITTER_H
        text = "color jitter (brightness={}, contrast={}, saturation={}, hue={})".format(*values)
        yield text, T.ColorJitter(*values)
    if "randomgrayscale" in choices:
        yield f"random gray scale (p={opts.RGS_P})", T.RandomGrayscale(opts.RGS_P)
    if "gaussian_blur" in choices:
        blur = T.RandomApply([T.GaussianBlur(opts.GB_K)], p=opts.GB_P)
        yield f"gaussian blur (kernel={opts.GB_K}, p={opts.GB_P})", blur
    yield from _tensor_steps(opts, choices)


def _tensor_steps(opts, choices: Sequence[str]) -> Iterator[Step]:
    yield "to torch tensor of range [0, 1]", T.ToTensor()
    if "cutout" in choices:
        number, length = opts.CUTOUT_N, opts.CUTOUT_LEN
        yield f"cutout (n_holes={number}, length={length})", partial(cutout, n_holes=number, length=length)
    if "normalize" in choices:
        mean, std = list(opts.PIXEL_MEAN), list(opts.PIXEL_STD)
        yield f"normalization (mean={mean}, std={std})", T.Normalize(mean, std)
    if "gaussian_noise" in choices:
        noise = T.RandomApply([GaussianNoise(opts.GN_MEAN, opts.GN_STD, clip=False)], p=0.5)
        yield f"gaussian noise (mean={opts.GN_MEAN}, std={opts.GN_STD})", noise
    if "instance_norm" in choices:
        yield "instance normalization", instance_norm


def _test_steps(opts, choices: Sequence[str]) -> Iterator[Step]:
    size, mode = tuple(opts.SIZE), INTERPOLATION_MODES[opts.INTERPOLATION]
    yield f"resize the smaller edge to {max(size)}", T.Resize(max(size), interpolation=mode)
    yield f"{size[0]}x{size[1]} center crop", T.CenterCrop(size)
    yield from _tensor_steps(opts, [name for name in choices if name in ("normalize", "instance_norm")])
