"""Tiny data and a tiny prompt-learner-like trainer for the tests of an engine."""
import contextlib
import functools
import io
import os
import sys

import numpy as np
import pytest
import torch
from engines import names_of
from PIL import Image
from torch import nn
from torch.nn import functional as F

from p2c.engine import build_lr_scheduler

CLASSNAMES = ["cat", "dog", "fox", "owl", "rat", "yak"]
SIZES = [(50, 30), (32, 64), (40, 40)]  # width, height
COUNTS = {"train": 12, "val": 4, "test": 4}  # images of each class
MAPLE_RATES = [1e-05, 0.0035, 0.0031657797401561582, 0.002290779740156158, 0.001209220259843842]  # see tiny_config
BEST_VAL = ("TEST.FINAL_MODEL", "best_val", "TRAIN.CHECKPOINT_FREQ", 1)


def write_images(root) -> None:
    """Make the images, whose colour tells the class through some noise."""
    rng = np.random.default_rng(0)
    colours = rng.integers(40, 216, (len(CLASSNAMES), 3))
    for split, count in COUNTS.items():
        os.makedirs(f"{root}/{split}")
        for label, colour in enumerate(colours):
            for i in range(count):
                width, height = SIZES[i % len(SIZES)]
                pixels = colour + rng.normal(0, 60, (height, width, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(f"{root}/{split}/{label}_{i}.png")


class Pooled(nn.Module):
    """Average-pools an image to 4 x 4 and maps it linearly to scores."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.linear = nn.Linear(48, num_classes)

    def forward(self, image):
        return self.linear(F.adaptive_avg_pool2d(image, 4).flatten(1))


@functools.cache
def tiny_engine(name: str):
    """The names of an engine (see engines.py) and, registered with it, tiny datasets and a tiny trainer.

    The schedule is this package's on either engine: real Dassl's raises on current torch (F1).
    """
    engine = names_of(name)

    @engine.DATASET_REGISTRY.register()
    class TinyData(engine.DatasetBase):
        def __init__(self, cfg):
            items = {
                split: [
                    engine.Datum(f"{cfg.DATASET.ROOT}/{split}/{label}_{i}.png", label, classname=name)
                    for label, name in enumerate(CLASSNAMES) for i in range(count)
                ]
                for split, count in COUNTS.items()
            }
            super().__init__(train_x=items["train"], val=items["val"], test=items["test"])

    @engine.DATASET_REGISTRY.register()
    class TinyDataWithoutVal(TinyData):
        @property
        def val(self):
            return None

    @engine.DATASET_REGISTRY.register()
    class TinyUnlabeled(engine.DatasetBase):
        """24 labeled images beside all 72 without labels."""

        def __init__(self, cfg):
            tiny = TinyData(cfg)
            super().__init__(train_x=tiny.train_x[::3], train_u=tiny.train_x, test=tiny.test)

    @engine.TRAINER_REGISTRY.register()
    class TinyTrainer(engine.TrainerX):
        def build_model(self):
            self.model = Pooled(self.num_classes).to(self.device)
            self.optim = engine.build_optimizer(self.model, self.cfg.OPTIM)
            self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
            self.register_model("prompt_learner", self.model, self.optim, self.sched)
            self.seen = []  # (epoch, batch, rate, indices) of each batch

        def forward_backward(self, batch):
            image, label = self.parse_batch_train(batch)
            image = image + 0.1 * torch.randn(image.shape)  # from the global generator, as other people's trainers do
            self.seen.append((self.epoch, self.batch_idx, self.get_current_lr(), batch["index"].tolist()))
            output = self.model(image)
            loss = F.cross_entropy(output, label)
            self.model_backward_and_update(loss)
            if self.batch_idx + 1 == self.num_batches:
                self.update_lr()
            return {"loss": loss, "acc": engine.compute_accuracy(output, label)[0]}

        def parse_batch_train(self, batch):
            return batch["img"].to(self.device), batch["label"].to(self.device)

    engine.TinyData, engine.TinyTrainer = TinyData, TinyTrainer
    return engine


OURS = tiny_engine("p2c")
TinyData, TinyTrainer = OURS.TinyData, OURS.TinyTrainer


@contextlib.contextmanager
def own_console():
    """Replace standard output for the test, and restore it afterwards."""
    stdout, excepthook = sys.stdout, sys.excepthook
    sys.stdout = console = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    try:
        yield console
    finally:
        sys.stdout, sys.excepthook = stdout, excepthook


def console_text(console) -> str:
    return console.buffer.getvalue().decode()


def rates(trainer) -> list[float]:
    """The rate in force during each epoch that a TinyTrainer trained."""
    return list({epoch: lr for epoch, _, lr, _ in trainer.seen}.values())


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny_data")
    write_images(root)
    return str(root)


def tiny_config(root, output_dir, *options, engine=OURS):
    """MaPLe's optimiser settings on tiny data, 12 batches of 6 images; `options` are KEY, value pairs."""
    cfg = engine.get_cfg_default()
    cfg.merge_from_list([
        "OUTPUT_DIR", str(output_dir), "SEED", 1, "USE_CUDA", False,
        "INPUT.SIZE", (32, 32), "INPUT.TRANSFORMS", ("random_resized_crop", "random_flip", "normalize"),
        "DATASET.ROOT", str(root), "DATASET.NAME", "TinyData",
        "DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", 6, "DATALOADER.TEST.BATCH_SIZE", 10,
        "OPTIM.NAME", "sgd", "OPTIM.LR", 0.0035, "OPTIM.MAX_EPOCH", 5, "OPTIM.LR_SCHEDULER", "cosine",
        "OPTIM.WARMUP_EPOCH", 1, "OPTIM.WARMUP_TYPE", "constant",
        "TRAIN.PRINT_FREQ", 5, "TRAINER.NAME", "TinyTrainer", *options,
    ])
    cfg.freeze()
    return cfg


@pytest.fixture
def config(engine, tiny_root, tmp_path):
    return lambda *options: tiny_config(tiny_root, tmp_path, *options, engine=engine)


@pytest.fixture
def images(engine, tiny_root):
    """48 training images of 4 classes."""
    return [engine.Datum(f"{tiny_root}/train/{i // 12}_{i % 12}.png", i // 12, domain=i % 3) for i in range(48)]


@pytest.fixture
def tiny_trainer(engine, tiny_root, tmp_path):
    """tiny_trainer(key, value, ...): a seeded TinyTrainer, or the one that TRAINER.NAME or `kind` asks for."""
    torch.set_num_threads(1)

    def make(*options, output_dir=tmp_path / "run", kind=None):
        cfg = tiny_config(tiny_root, output_dir, *options, engine=engine)
        engine.set_random_seed(cfg.SEED)
        return engine.build_trainer(cfg) if kind is None else kind(cfg)
    return make
