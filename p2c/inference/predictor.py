"""Predictions of a run for any images: class probabilities, without the dataset of its training.

Shapes: N images, C classes, E feature width.
"""
import os
from collections.abc import Callable, Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
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

ImageLike = str | os.PathLike | Image.Image


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

    def predict(self, images: ImageLike | Sequence[ImageLike], batch_size: int | None = None,
                workers: int = 0) -> Tensor:
        """Return the probabilities (N, C) of image files or PIL images, as float32 on the CPU.

        Args:
            batch_size: None: that of the run's tests.
            workers: processes that read the images; 0: this one reads them.

        Raises:
            UnreadableImage: an image cannot be read; the message names it.
        """
        if isinstance(images, ImageLike):
            images = [images]
        rows = [probabilities for _, probabilities in self.batches(images, batch_size, workers)]
        return torch.cat(rows) if rows else torch.empty(0, len(self.classnames))

    @torch.no_grad()
    def batches(self, images: Sequence[ImageLike], batch_size: int | None = None, workers: int = 0,
                unreadable: Callable[[UnreadableImage], None] | None = None) -> Iterator[tuple[list[int], Tensor]]:
        """Yield the indices of the images and their probabilities (n, C), batch by batch and in order.

        Args:
            unreadable: called with the error of each image that cannot be read, which is then skipped; None: raise it.
        """
        loader = DataLoader(ReadImages(images, self.transform, self.cfg.INPUT.AS_SHOWN),
                            batch_size or self.cfg.DATALOADER.TEST.BATCH_SIZE, num_workers=workers,
                            collate_fn=separate, pin_memory=self.device.type == "cuda")
        for indices, pixels, errors in loader:
            for error in errors:
                if unreadable is None:
                    raise error
                unreadable(error)
            if indices:
                pixels = self.normalize(pixels.to(self.device))
                yield indices, self.scores(pixels).float().softmax(1).cpu()

    def export(self, path: str | os.PathLike) -> list[str]:
        """Write the classifier to a .safetensors, .pt2 or .onnx file; see `p2c.inference.export.export`."""
        return export(self, path)


# Images


class ReadImages(Dataset):
    """The index and the transformed tensor of each image, or its UnreadableImage error instead of the tensor.

    Args:
        as_shown: see `to_rgb`.
    """

    def __init__(self, images: Sequence[ImageLike], transform: Callable[[Image.Image], Tensor], as_shown: bool):
        self.images = images
        self.transform = transform
        self.as_shown = as_shown

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, Tensor | UnreadableImage]:
        image = self.images[index]
        try:
            if isinstance(image, Image.Image):
                return index, self.transform(to_rgb(image, self.as_shown))
            return index, self.transform(read_image(image, self.as_shown))
        except UnreadableImage as error:
            return index, error


def separate(items: list[tuple[int, Tensor | UnreadableImage]]) -> tuple[list[int], Tensor | None, list]:
    """Collate the indices and pixels of the images that could be read, and the errors of the others."""
    indices = [index for index, pixels in items if isinstance(pixels, Tensor)]
    read = [pixels for _, pixels in items if isinstance(pixels, Tensor)]
    errors = [error for _, error in items if not isinstance(error, Tensor)]
    return indices, torch.stack(read) if read else None, errors
