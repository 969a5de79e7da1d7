"""A run on one's own images: class probabilities, without the dataset that it was trained on.

Shapes: N images, C classes, E features' width.
"""
import json
import os
from collections.abc import Callable, Iterator, Sequence

import safetensors.torch
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from yacs.config import CfgNode

from p2c.clip.loading import CLIP_NAMES
from p2c.cloud import cloud_of
from p2c.engine.files import UnreadableImage, read_image, to_rgb, write_atomically
from p2c.engine.seeds import preserve_random_state
from p2c.framework import build_trainer, build_transform
from p2c.inference.records import RecordedRun
from p2c.model import PromptedCLIP
from p2c.trainers.base import PromptTrainer
from p2c.trainers.building import input_normalization

CLASSIFIER_FORMAT = "p2c-text-classifier"

ImageLike = str | os.PathLike | Image.Image


class Predictor:
    """Classifies images as a run is tested; `Predictor.from_run` makes one of a run's folder.

    Args:
        model: trained, or for zero-shot CLIP; None: `scores` is all there is.
        cfg: the run's configuration.
        scores: from images (B, 3, height, width), normalised floats on the device, to logits (B, C).
        classnames: C names; column c of what `predict` returns is of classnames[c].
    """

    def __init__(self, model: PromptedCLIP | None, cfg: CfgNode, scores: Callable[[Tensor], Tensor],
                 classnames: Sequence[str], device: torch.device):
        self.model, self.cfg, self.scores, self.device = model, cfg, scores, device
        self.classnames = list(classnames)
        self.transform = build_transform(cfg, is_train=False)
        self.normalize = input_normalization(cfg, device)

    @classmethod
    def from_run(cls, run: str | os.PathLike, classes: Sequence[str] | None = None, epoch: int | None = None,
                 device: str | None = None) -> "Predictor":
        """Load a run of train.py, a training or an evaluation.

        A run of a plugin's trainer that does not derive from PromptTrainer needs its dataset, and has its classes.

        Args:
            run: the run's folder, which holds results.json.
            classes: names to choose from instead of the run's own.
            epoch: of the checkpoint; None: the one that the run itself was tested with.
            device: "cpu" or "cuda"; None: a GPU if there is one.

        Raises:
            FileNotFoundError: there is no such run, or its checkpoint or CLIP's weights are missing.
            ValueError: a run that is not finished or does not fit this program, or class names that make no sense.
        """
        recorded = RecordedRun(run, epoch, device)
        if issubclass(recorded.trainer, PromptTrainer):
            with preserve_random_state():
                model = recorded.model(classes)
            cloud = cloud_of(recorded.cfg, model, recorded.cfg.SEED)
            scores = cloud.predict if cloud else model.predict
            return cls(model, recorded.cfg, scores, model.classnames, recorded.device)
        if classes is not None:
            raise ValueError(f"{recorded.cfg.TRAINER.NAME} knows the classes of its training alone; leave the class "
                             "list out")
        with preserve_random_state():
            trainer = build_trainer(recorded.cfg)
        trainer.load_model(os.fspath(recorded.model_dir), epoch=recorded.epoch)
        trainer.set_model_mode("eval")
        return cls(None, recorded.cfg, trainer.model_inference, trainer.dm.dataset.classnames, trainer.device)

    def predict(self, images: ImageLike | Sequence[ImageLike], batch_size: int | None = None,
                workers: int = 0) -> Tensor:
        """Return probabilities (N, C), float32, on the CPU, of image files or PIL images.

        Args:
            batch_size: None: that of the run's tests.
            workers: processes that read the images; 0: this one.

        Raises:
            UnreadableImage: naming the file.
        """
        if isinstance(images, ImageLike):
            images = [images]
        rows = [probabilities for _, probabilities in self.batches(images, batch_size, workers)]
        return torch.cat(rows) if rows else torch.empty(0, len(self.classnames))

    @torch.no_grad()
    def batches(self, images: Sequence[ImageLike], batch_size: int | None = None, workers: int = 0,
                unreadable: Callable[[UnreadableImage], None] | None = None) -> Iterator[tuple[list[int], Tensor]]:
        """Yield, batch by batch and in order, which of the images these are, and their probabilities (n, C).

        Args:
            unreadable: called with the error of each image that cannot be read, which is passed over; None: raise it.
        """
        loader = DataLoader(ReadImages(images, self.transform), batch_size or self.cfg.DATALOADER.TEST.BATCH_SIZE,
                            num_workers=workers, collate_fn=separate, pin_memory=self.device.type == "cuda")
        for indices, pixels, errors in loader:
            for error in errors:
                if unreadable is None:
                    raise error
                unreadable(error)
            if indices:
                pixels = pixels.to(self.device)
                pixels = self.normalize(pixels) if pixels.dtype == torch.uint8 else pixels
                yield indices, self.scores(pixels).float().softmax(1).cpu()

    def export(self, path: str | os.PathLike) -> bool:
        """Write the text classifier as safetensors; return whether plain open_clip gives the image features for it.

        Tensors: weight (C, E), normalised class features, and logit_scale (), what a cosine with them is multiplied by.
        Metadata: `classifier_metadata`.

        Raises:
            ValueError: the trainer has no one classifier for all images, or a cloud of them.
        """
        if self.model is None or self.model.per_image_classes:
            raise ValueError(f"{self.cfg.TRAINER.NAME} has no text classifier to export: its scores of an image are "
                             "not cosines with the same class features for all images; use `p2c predict` or "
                             "p2c.Predictor instead")
        if self.cfg.TEST.CLOUD_SAMPLES:
            raise ValueError("A cloud has several text classifiers, and a file holds one; export from a run with "
                             "TEST.CLOUD_SAMPLES 0")
        prompts, features = self.model.deployed()
        plain = prompts.visual is None
        tensors = {"weight": features.float().cpu().contiguous(),
                   "logit_scale": torch.tensor(self.model.backbone.logit_scale)}
        write_atomically(path, safetensors.torch.save(tensors, classifier_metadata(self.cfg, self.classnames, plain)))
        return plain


def classifier_metadata(cfg: CfgNode, classnames: Sequence[str], plain: bool) -> dict[str, str]:
    """Return what is needed to use an exported classifier; lists as JSON."""
    backbone, images = cfg.MODEL.BACKBONE, cfg.INPUT
    normalised = "normalize" in images.TRANSFORMS
    return {
        "format": CLASSIFIER_FORMAT,
        "version": "1",
        "classnames": json.dumps(list(classnames)),
        "trainer": cfg.TRAINER.NAME,
        "backbone": backbone.NAME,
        "weights": backbone.WEIGHTS,
        "open_clip_model": CLIP_NAMES.get(backbone.NAME, backbone.NAME),
        "image_tower": "plain" if plain else "prompted",
        "image_size": json.dumps(list(images.SIZE)),
        "interpolation": images.INTERPOLATION,
        "pixel_mean": json.dumps(list(images.PIXEL_MEAN) if normalised else [0.0] * 3),
        "pixel_std": json.dumps(list(images.PIXEL_STD) if normalised else [1.0] * 3),
    }


# Images


class ReadImages(Dataset):
    """(index, tensor) of each image, transformed; an UnreadableImage in place of the tensor if that is what it is."""

    def __init__(self, images: Sequence[ImageLike], transform: Callable[[Image.Image], Tensor]):
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, Tensor | UnreadableImage]:
        image = self.images[index]
        try:
            return index, self.transform(to_rgb(image) if isinstance(image, Image.Image) else read_image(image))
        except UnreadableImage as error:
            return index, error


def separate(items: list[tuple[int, Tensor | UnreadableImage]]) -> tuple[list[int], Tensor | None, list]:
    """Indices and pixels of the images that could be read, and the errors of the others."""
    read = [(index, pixels) for index, pixels in items if isinstance(pixels, Tensor)]
    errors = [error for _, error in items if not isinstance(error, Tensor)]
    return [index for index, _ in read], torch.stack([pixels for _, pixels in read]) if read else None, errors
