"""Predictions of a run for any images: class probabilities, without the dataset of its training.

Shapes: N images, C classes, E feature width.
"""
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from yacs.config import CfgNode

from p2c.cloud import cloud_of
from p2c.engine.files import UnreadableImage, read_image, to_rgb
from p2c.engine.seeds import preserve_random_state
from p2c.framework import build_trainer, build_transform
from p2c.inference.export import export
from p2c.inference.records import RecordedRun
from p2c.model import PromptedCLIP
from p2c.trainers.base import PromptTrainer
from p2c.trainers.building import input_normalization

ImageLike = str | os.PathLike | Image.Image | np.ndarray | Tensor
Images = ImageLike | Iterable[ImageLike]


class Predictor:
    """A classifier of images, as in a run's test; `Predictor.from_run` loads one from a run's folder.

    Args:
        model: the run's model; None: only `scores` is known.
        cfg: the run's configuration.
        scores: maps images (B, 3, height, width), normalised floats on the device, to logits (B, C).
        classnames: C names; column c of the probabilities belongs to classnames[c].
    """

    def __init__(self, model: PromptedCLIP | None, cfg: CfgNode, scores: Callable[[Tensor], Tensor],
                 classnames: Sequence[str], device: torch.device):
        self.model, self.cfg, self.scores, self.device = model, cfg, scores, device
        self.classnames = list(classnames)
        transform = build_transform(cfg, is_train=False)
        if transform is None:
            raise ValueError("Predictions need images as tensors, but the run has INPUT.NO_TRANSFORM True")
        self.transform = transform
        self.normalize = input_normalization(cfg, device)

    @classmethod
    def from_run(cls, run: str | os.PathLike, classes: Sequence[str] | None = None, epoch: int | None = None,
                 device: str | None = None) -> "Predictor":
        """Load a run of train.py, a training or an evaluation.

        A plugin's trainer that does not derive from PromptTrainer needs the run's dataset and keeps its classes.

        Args:
            run, classes, epoch, device: see `p2c.load_model`, whose errors are raised here too.
        """
        recorded = RecordedRun(run, epoch, device)
        if issubclass(recorded.trainer, PromptTrainer):
            with preserve_random_state():
                model = recorded.model(classes)
            cloud = cloud_of(recorded.cfg, model, recorded.cfg.SEED)
            scores = cloud.predict if cloud else model.predict
            return cls(model, recorded.cfg, scores, model.classnames, recorded.device)
        if classes is not None:
            raise ValueError(f"{recorded.cfg.TRAINER.NAME} knows only the classes of its training; leave the class "
                             "list out")
        with preserve_random_state():
            trainer = build_trainer(recorded.cfg)
        if recorded.model_dir is not None:
            trainer.load_model(os.fspath(recorded.model_dir), epoch=recorded.epoch)
        trainer.set_model_mode("eval")
        return cls(None, recorded.cfg, trainer.model_inference, trainer.dm.dataset.classnames, trainer.device)

    def predict(self, images: Images, batch_size: int | None = None, workers: int = 0) -> Tensor:
        """Return the probabilities (N, C) of images, in their order, as float32 on the CPU.

        Args:
            images: one image or N of them. An image is a path, a PIL image, a uint8 array (height, width, 3) or a uint8
                tensor (3, height, width), RGB both; one axis more before these holds several. An iterator is read
                batch by batch, in this process.
            batch_size: None: that of the run's tests.
            workers: processes that read the images; 0: this one reads them.

        Raises:
            UnreadableImage: an image cannot be read; the message names it.
            ValueError: an array of another type or shape.
            TypeError: something else than an image.
        """
        rows = [probabilities for _, probabilities in self.batches(images, batch_size, workers)]
        return torch.cat(rows) if rows else torch.empty(0, len(self.classnames))

    def batches(self, images: Images, batch_size: int | None = None, workers: int = 0,
                unreadable: Callable[[UnreadableImage], None] | None = None) -> Iterator[tuple[list[int], Tensor]]:
        """Yield the indices of images and their probabilities (n, C), batch by batch and in order.

        Args:
            images, batch_size, workers: see `predict`.
            unreadable: called with the error of each image that cannot be read, which is then skipped; None: raise it.
        """
        for indices, pixels in self.read(images, batch_size, workers, unreadable):
            yield indices, self.probabilities(pixels)

    @torch.no_grad()
    def probabilities(self, pixels: Tensor) -> Tensor:
        """Return the probabilities (n, C) of pixels (n, 3, height, width), normalised and on the device."""
        return self.scores(pixels).float().softmax(1).cpu()

    def encode_images(self, images: Images, batch_size: int | None = None, workers: int = 0) -> Tensor:
        """Return the normalised features (N, E) of images by the run's prompts, as float32 on the CPU.

        Their cosines with `classifier`, times CLIP's logit scale, are the logits of `predict`.

        Args:
            images, batch_size, workers: see `predict`, whose errors are raised here too.

        Raises:
            ValueError: the trainer has no model of its own, as it does not derive from PromptTrainer.
        """
        if self.model is None:
            raise ValueError(f"{self.cfg.TRAINER.NAME} has no image features: it does not derive from PromptTrainer")
        with torch.no_grad():
            prompts = self.model.learner()
            rows = [self.model.encode_image(pixels, prompts).float().cpu()
                    for _, pixels in self.read(images, batch_size, workers)]
        return torch.cat(rows) if rows else torch.empty(0, self.model.text_tower.feature_width)

    @property
    def classifier(self) -> Tensor:
        """The normalised features (C, E) of the classes by the run's prompts, as float32 on the CPU.

        Raises:
            ValueError: there is not one classifier for all images, or inference uses a cloud of them.
        """
        model = self.model_with_classes()
        if self.cfg.TEST.CLOUD_SAMPLES:
            raise ValueError("Cloud inference has several text classifiers, not one to read; take a run with "
                             "TEST.CLOUD_SAMPLES 0")
        return model.classifier().float().cpu()

    def read(self, images: Images, batch_size: int | None = None, workers: int = 0,
             unreadable: Callable[[UnreadableImage], None] | None = None) -> Iterator[tuple[list[int], Tensor]]:
        """Yield the indices of images and their pixels (n, 3, height, width), as `scores` takes them."""
        arrays = isinstance(images, np.ndarray | Tensor) and images.ndim > 3
        if isinstance(images, ImageLike) and not arrays or not isinstance(images, Iterable):
            images = [images]
        if isinstance(images, Sequence | np.ndarray | Tensor):
            dataset: Dataset = ReadImages(images, self.transform, self.cfg.INPUT.AS_SHOWN)
        else:
            dataset, workers = ReadStream(images, self.transform, self.cfg.INPUT.AS_SHOWN), 0
        loader = DataLoader(dataset, batch_size or self.cfg.DATALOADER.TEST.BATCH_SIZE, num_workers=workers,
                            collate_fn=separate, pin_memory=self.device.type == "cuda")
        for indices, pixels, errors in loader:
            for error in errors:
                if unreadable is None or not isinstance(error, UnreadableImage):
                    raise error
                unreadable(error)
            if indices:
                yield indices, self.normalize(pixels.to(self.device))

    def export(self, path: str | os.PathLike) -> list[str]:
        """Write the classifier to a .safetensors, .pt2 or .onnx file; see `p2c.inference.export.export`."""
        return export(self, path)

    def model_with_classes(self) -> PromptedCLIP:
        """Return the model. Raise ValueError if it has not the same class features for all images."""
        if self.model is None or self.model.per_image_classes:
            raise ValueError(f"{self.cfg.TRAINER.NAME} has no classifier to read or export: its scores of an image are "
                             "not cosines with the same class features for all images; use `p2c predict` or "
                             "Predictor.predict instead")
        return self.model


# Images


Transform = Callable[[Image.Image], Tensor]
Read = tuple[int, Tensor | Exception]  # an image's index, and its transformed tensor or why there is none


class ReadImages(Dataset):
    """Images that can be read in any order; `as_shown`: see `to_rgb`."""

    def __init__(self, images: Sequence[ImageLike] | np.ndarray | Tensor, transform: Transform, as_shown: bool):
        self.images, self.transform, self.as_shown = images, transform, as_shown

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Read:
        return read(index, self.images[index], self.transform, self.as_shown)


class ReadStream(IterableDataset):
    """Images of an iterable, read in its order."""

    def __init__(self, images: Iterable[ImageLike], transform: Transform, as_shown: bool):
        self.images, self.transform, self.as_shown = images, transform, as_shown

    def __iter__(self) -> Iterator[Read]:
        for index, image in enumerate(self.images):
            yield read(index, image, self.transform, self.as_shown)


def read(index: int, image: ImageLike, transform: Transform, as_shown: bool) -> Read:
    """Read and transform an image."""
    try:
        rgb = to_pil(image, index, as_shown)
    except (UnreadableImage, TypeError, ValueError) as error:
        return index, error
    return index, transform(rgb)


def to_pil(image: Any, index: int, as_shown: bool) -> Image.Image:
    """Return an image of any kind as 8-bit RGB; `index` names it in messages.

    Raises:
        UnreadableImage: its file cannot be read.
        ValueError: an array of another type or shape than `Predictor.predict` takes.
        TypeError: no image.
    """
    if isinstance(image, Image.Image):
        return to_rgb(image, as_shown)
    if isinstance(image, str | os.PathLike):
        return read_image(image, as_shown)
    array: Any = image
    if isinstance(image, Tensor) and image.ndim == 3:
        array = image.detach().permute(1, 2, 0).cpu().numpy()
    if not isinstance(array, np.ndarray | Tensor):
        raise TypeError(f"Image {index} is of type {type(image).__name__}; give paths, PIL images, uint8 arrays or "
                        "uint8 tensors")
    if str(image.dtype).rpartition(".")[2] != "uint8" or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"Image {index} is of {image.dtype} and shape {tuple(image.shape)}; give RGB in uint8, 0 to "
                         "255: an array (height, width, 3) or a tensor (3, height, width)")
    return Image.fromarray(np.ascontiguousarray(array))


def separate(items: list[Read]) -> tuple[list[int], Tensor | None, list]:
    """Collate the indices and pixels of images that could be read, and the errors of the others."""
    indices = [index for index, pixels in items if isinstance(pixels, Tensor)]
    read = [pixels for _, pixels in items if isinstance(pixels, Tensor)]
    errors = [error for _, error in items if not isinstance(error, Tensor)]
    return indices, torch.stack(read) if read else None, errors
