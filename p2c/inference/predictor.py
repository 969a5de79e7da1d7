"""A run on one's own images: class probabilities, without the data set that it was trained on.

Shapes: N images, C classes, E features' width.
"""
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import safetensors.torch
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from yacs.config import CfgNode

import p2c
from p2c import registry
from p2c.clip.loading import CLIP_NAMES
from p2c.config import extend_cfg
from p2c.framework import (
    BEST,
    SHARED_NODES,
    TRAINER_REGISTRY,
    SimpleTrainer,
    UnreadableImage,
    build_transform,
    get_cfg_default,
    load_checkpoint,
    random_state_kept,
    read_image,
    read_results,
    set_random_seed,
    to_plain,
    to_rgb,
    write_atomically,
)
from p2c.merging import merge_values
from p2c.prompts.context import readable
from p2c.trainers.base import PromptTrainer
from p2c.utils.ranges import flatten

RECORDED = {"mode": str, "seed": int, "versions": dict}  # what a record must have besides
CLASSIFIER_FORMAT = "p2c-text-classifier"
WITHOUT_PREDICTIONS = ("DATASET", "DATALOADER", "OPTIM", "TRAIN")  # sections that no prediction depends on

ImageLike = str | os.PathLike | Image.Image


class Predictor:
    """Classifies images as a trainer does when it is tested.

    Args:
        trainer: built, with trained weights loaded; `Predictor.from_run` makes one of a run's folder.

    Attributes:
        classnames: C names; column c of what `predict` returns is of classnames[c].
    """

    def __init__(self, trainer: SimpleTrainer):
        self.trainer = trainer
        self.classnames: list[str] = list(trainer.dm.dataset.classnames)
        self.transform = build_transform(trainer.cfg, is_train=False)
        trainer.set_model_mode("eval")

    @classmethod
    def from_run(cls, run: str | os.PathLike, classes: Sequence[str] | None = None, epoch: int | None = None,
                 device: str | None = None) -> "Predictor":
        """The model of a run of train.py, a training or an evaluation.

        Args:
            run: the run's folder, which holds results.json.
            classes: names to choose from instead of the run's own.
            epoch: of the checkpoint; None: the one that the run itself was tested with.
            device: "cpu" or "cuda"; None: a GPU if there is one.

        Raises:
            FileNotFoundError: there is no such run, or its checkpoint or CLIP's weights are missing.
            ValueError: a run that is not finished or does not fit this program, or class names that make no sense.
        """
        record = read_record(run)
        cfg = recorded_cfg(record, run)
        model_dir, epoch = recorded_model(record, run, epoch)
        names, template = recorded_classes(record, run, model_dir, epoch)
        if classes is not None:
            names = checked_names(classes)
        cfg.USE_CUDA = use_cuda(device)
        cfg.OUTPUT_DIR, cfg.RESUME, cfg.MODEL.INIT_WEIGHTS = os.fspath(run), "", ""  # the checkpoint has all there is
        cfg.SEED = record["seed"]
        cfg.freeze()
        trainer = deploy(cfg, names, template)
        if trainer.get_model_names():
            try:
                trainer.load_model(os.fspath(model_dir), epoch=epoch)
            except ValueError as error:
                if classes is None:
                    raise
                raise ValueError(f"{error}; if what {cfg.TRAINER.NAME} learned belongs to the classes of its training, "
                                 "it has no prediction for others: leave the class list out") from error
        return cls(trainer)

    def predict(self, images: ImageLike | Sequence[ImageLike], batch_size: int | None = None,
                workers: int = 0) -> Tensor:
        """Probabilities (N, C), float32, on the CPU, of image files or PIL images.

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
        """Batch by batch, in order: which of the images these are, and their probabilities (n, C).

        Args:
            unreadable: called with the error of each image that cannot be read, which is passed over; None: raise it.
        """
        trainer = self.trainer
        loader = DataLoader(ReadImages(images, self.transform), batch_size or trainer.cfg.DATALOADER.TEST.BATCH_SIZE,
                            num_workers=workers, collate_fn=separate, pin_memory=trainer.device.type == "cuda")
        for indices, pixels, errors in loader:
            for error in errors:
                if unreadable is None:
                    raise error
                unreadable(error)
            if indices:
                batch = {"img": pixels, "label": torch.zeros(len(indices), dtype=torch.long)}
                logits = trainer.model_inference(trainer.parse_batch_test(batch)[0])
                yield indices, logits.float().softmax(1).cpu()

    @torch.no_grad()
    def export(self, path: str | os.PathLike) -> bool:
        """Write the text classifier as safetensors; returns whether plain open_clip gives the image features for it.

        Tensors: weight (C, E), normalised class features, and logit_scale (), what a cosine with them is multiplied by.
        Metadata: `classifier_metadata`.

        Raises:
            ValueError: the trainer has no one classifier for all images, or a cloud of them.
        """
        trainer = self.trainer
        name = trainer.cfg.TRAINER.NAME
        if not isinstance(trainer, PromptTrainer) or trainer.per_image_classes:
            raise ValueError(f"{name} has no text classifier to export: its scores of an image are not cosines with "
                             "the same class features for all images; use `p2c predict` or p2c.Predictor instead")
        if trainer.cfg.TEST.CLOUD_SAMPLES:
            raise ValueError("A cloud has several text classifiers, and a file holds one; export from a run with "
                             "TEST.CLOUD_SAMPLES 0")
        prompts, features = trainer.deployed()
        plain = prompts.visual is None
        tensors = {"weight": features.float().cpu().contiguous(), "logit_scale": torch.tensor(trainer.clip.logit_scale)}
        write_atomically(path, safetensors.torch.save(tensors, classifier_metadata(trainer, self.classnames, plain)))
        return plain


def classifier_metadata(trainer: PromptTrainer, classnames: Sequence[str], plain: bool) -> dict[str, str]:
    """What is needed to use an exported classifier; lists as JSON."""
    backbone, images = trainer.cfg.MODEL.BACKBONE, trainer.cfg.INPUT
    normalised = "normalize" in images.TRANSFORMS
    return {
        "format": CLASSIFIER_FORMAT,
        "version": "1",
        "classnames": json.dumps(list(classnames)),
        "trainer": trainer.cfg.TRAINER.NAME,
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


# What a run records


def read_record(run: str | os.PathLike) -> dict:
    """What a run's results.json says.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or another program's.
    """
    record = read_results(run)
    if record is None:
        raise FileNotFoundError(f"No run at {run}: it has no results.json; give the --output-dir of a run of train.py")
    settings = flatten(record["config"])
    kinds = {**{name: (record.get(name), kind) for name, kind in RECORDED.items()},
             "config": (settings.get("TRAINER.NAME"), str), "data": (record.get("data", {}), dict)}
    if wrong := [name for name, (value, kind) in kinds.items() if not isinstance(value, kind)]:
        raise ValueError(f"{Path(run) / 'results.json'} is damaged at {', '.join(wrong)}; delete it and repeat the "
                         "run, or give another")
    return record


def recorded_cfg(record: dict, run: str | os.PathLike) -> CfgNode:
    """The configuration of a run, not frozen; keys that it lacks have their defaults.

    Raises:
        ValueError: settings of another version that predictions may depend on, or a trainer that is nowhere.
    """
    cfg = get_cfg_default()
    extend_cfg(cfg)
    if plugin := record["config"].get("PLUGIN"):
        registry.load_plugin(plugin, cfg)
    settings = flatten(record["config"])
    name = settings["TRAINER.NAME"]
    try:
        registry.require(name, registry.TRAINERS, "trainer", TRAINER_REGISTRY.registered_names())
    except ValueError as error:
        raise ValueError(f"{run} cannot be rebuilt: {error}") from error
    known = flatten(to_plain(cfg))
    own_nodes = {name.upper(), getattr(TRAINER_REGISTRY.get(name), "node", ""), *SHARED_NODES}

    def matters(key: str) -> bool:
        section, _, rest = key.partition(".")
        return rest.partition(".")[0] in own_nodes if section == "TRAINER" else section not in WITHOUT_PREDICTIONS

    if lost := [key for key in settings if key not in known and matters(key)]:
        raise ValueError(f"{run} was made by p2c {record['versions']['p2c']} with settings that p2c {p2c.__version__} "
                         f"does not know: {', '.join(lost[:5])}; use that version")
    try:
        merge_values(cfg, {key: value for key, value in settings.items() if key in known})
    except ValueError as error:
        raise ValueError(f"{Path(run) / 'results.json'} is damaged: {error}; delete it and repeat the run, or give "
                         "another") from error
    return cfg


def recorded_model(record: dict, run: str | os.PathLike, epoch: int | None) -> tuple[Path | None, int | None]:
    """The folder whose checkpoints a run was tested with (None: there are none), and the epoch to load from it.

    Raises:
        FileNotFoundError: the folder is not there.
        ValueError: the run is not finished, or the model was trained anew since.
    """
    training = record["mode"] == "train"
    if not record["finished"] and not (training and epoch is not None):
        raise ValueError(f"{run} is not finished: repeat its command, which continues it"
                         + (", or choose a saved epoch (--load-epoch)" if training else ""))
    if training:
        last = None if record["config"]["TEST"]["FINAL_MODEL"] == "best_val" else record.get("epoch")
        return Path(run), last if epoch is None else epoch
    if not record.get("model_dir"):
        return None, None
    model_dir = Path(record["model_dir"])
    trained = read_results(model_dir)
    if not model_dir.is_dir():
        hint = "" if model_dir.is_absolute() else f", looked for from {Path.cwd()}: call this from where it was tested"
        raise FileNotFoundError(f"{run} is the test of the model in {model_dir}, which is not there{hint}; or give "
                                "the folder of the training")
    if trained and record.get("model_seconds") not in (None, trained.get("seconds")):
        raise ValueError(f"{run} is the test of an earlier training in {model_dir}; test the new one, or give "
                         f"{model_dir} itself")
    return model_dir, record.get("load_epoch") if epoch is None else epoch


def recorded_classes(record: dict, run: str | os.PathLike, model_dir: Path | None,
                     epoch: int | None) -> tuple[list[str], str | None]:
    """Class names and prompt template of a run, or, of a training that is not finished, of its checkpoint.

    Raises:
        ValueError: the classes are not recorded, as in evaluations by early versions.
    """
    known = record.get("data", {})
    if "classnames" not in known and record["mode"] == "train":
        file = BEST if epoch is None else f"model.pth.tar-{epoch}"
        known = next((load_checkpoint(path) for path in sorted(model_dir.glob(f"*/{file}"))), {})
    names = known.get("classnames")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{run} does not say which its classes are; "
                         + ("delete it and repeat the test" if record["mode"] == "eval" else
                            f"it has no checkpoint that does{'' if epoch is None else f' for epoch {epoch}'}"))
    return names, known.get("template")


def checked_names(classes: Sequence[str]) -> list[str]:
    """Class names to choose from, trimmed.

    Raises:
        ValueError: none, or names that are empty or that say the same.
    """
    if isinstance(classes, str):
        raise ValueError(f"The classes must be a list of names, but are the text {classes!r}")
    names = [name.strip() for name in classes]
    if not names:
        raise ValueError("The list of classes is empty")
    seen: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if not name:
            raise ValueError(f"Class name {number} of {len(names)} is empty; give each class a name")
        first = seen.setdefault(readable(name).lower(), number)
        if first != number:
            raise ValueError(f"Class names {first} and {number}, {names[first - 1]!r} and {name!r}, are the same to "
                             "CLIP; give each class once")
    return names


def use_cuda(device: str | None) -> bool:
    """Whether to run on the GPU. Raises ValueError for a device that is not there."""
    available = torch.cuda.is_available()
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"Unknown device {device!r}; choose from cpu, cuda")
    if device == "cuda" and not available:
        raise ValueError("There is no GPU that torch can use; choose the device cpu (python -m p2c doctor tells more)")
    return available and device != "cpu"


# The trainer without its data


class OnlyClasses:
    """Stands in for a DataManager where the classes are all that is known of the data set."""

    train_loader_x = train_loader_u = val_loader = test_loader = None
    num_source_domains = 0

    def __init__(self, classnames: Sequence[str], template: str | None):
        self.lab2cname = dict(enumerate(classnames))
        self.num_classes = len(classnames)
        self.dataset = SimpleNamespace(classnames=list(classnames), lab2cname=self.lab2cname,
                                       num_classes=self.num_classes)
        if template is not None:
            self.dataset.template = template


def deploy(cfg: CfgNode, classnames: Sequence[str], template: str | None) -> SimpleTrainer:
    """The trainer of a configuration, built as train.py builds it, but for the data."""
    trainer_class = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)

    class Deployed(trainer_class):
        def build_data_loader(self) -> None:
            self.use_data(OnlyClasses(classnames, template))

    Deployed.__name__ = trainer_class.__name__
    with random_state_kept():
        set_random_seed(cfg.SEED)
        return Deployed(cfg)
