"""Data loading: from lists of Datum to batches of tensors.

A batch is a function of (seed, epoch, index of each image): it depends neither on the number of workers nor on other
uses of random numbers, and a resumed run gets the same.
"""
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from p2c.engine.datasets import Datum
from p2c.engine.distributed import processes, shard
from p2c.engine.files import UnreadableImage, read_image
from p2c.engine.registry import DATASET_REGISTRY, build_dataset
from p2c.engine.samplers import ShardBatchSampler, build_sampler
from p2c.engine.seeds import preserve_random_state, run_seed
from p2c.engine.transforms import INTERPOLATION_MODES, build_transform
from p2c.utils.logs import get_logger
from p2c.utils.streams import seed_of

log = get_logger(__name__)


class DatasetWrapper(Dataset):
    """Reads and transforms the images of a list of Datum.

    An item is a dict with label, domain and index (int), impath (str) and img, the transformed image: with
    `build_transform` a float32 tensor (3, H, W), where INPUT.SIZE is (H, W); without a transform the PIL image. A list
    of transforms also gives img2, img3, ... In training, K_TRANSFORMS above 1 makes each of these a list of that many
    draws. RETURN_IMG0 adds img0 (3, H, W), the image resized and, if INPUT.TRANSFORMS has normalize, normalised.

    Raises:
        ValueError: K_TRANSFORMS without a transform; on access, an image that cannot be read (UnreadableImage).
    """

    def __init__(self, cfg, data_source: list[Datum], transform: Callable | list | None = None, is_train: bool = False):
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        self.as_shown = cfg.INPUT.get("AS_SHOWN", False)
        self.seed = run_seed(cfg)
        self._epoch = torch.zeros(64, dtype=torch.uint8)  # the epoch's label as text
        if is_train and cfg.DATALOADER.NUM_WORKERS:
            self._epoch.share_memory_()  # so that running workers see it change
        self.set_epoch(0)
        if self.k_tfm > 1 and transform is None:
            raise ValueError(f"K_TRANSFORMS is {self.k_tfm}, but there is no transform to repeat")
        resize = T.Resize(tuple(cfg.INPUT.SIZE), INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION])
        steps: list[Callable] = [resize, T.ToTensor()]
        if "normalize" in cfg.INPUT.TRANSFORMS:
            steps.append(T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
        self.to_tensor = T.Compose(steps)

    def __len__(self) -> int:
        return len(self.data_source)

    def set_epoch(self, epoch: int | str) -> None:
        """Choose the augmentations, also in worker processes; equal labels give equal augmentations."""
        self._epoch.numpy()[:] = list(str(epoch).encode().ljust(len(self._epoch), b"\0"))

    def __getitem__(self, idx: int) -> dict:
        item = self.data_source[idx]
        output = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": idx}
        image = self._read(item.impath)
        if self.is_train:
            with preserve_random_state(gpu=False):
                self._seed_augmentation(idx)
                output.update(self._images(image))
        else:
            output.update(self._images(image))
        if self.return_img0:
            output["img0"] = self.to_tensor(image)
        return output

    def _read(self, path: str):
        try:
            return read_image(path, self.as_shown)
        except UnreadableImage as error:
            name = self.cfg.DATASET.NAME
            known = name in DATASET_REGISTRY.registered_names()
            command = getattr(DATASET_REGISTRY.get(name), "verification", lambda cfg: "")(self.cfg) if known else ""
            raise UnreadableImage(f"{error} (`{command}` finds all such)" if command else str(error)) from None

    def _seed_augmentation(self, idx: int) -> None:
        epoch = self._epoch.numpy().tobytes().rstrip(b"\0").decode()
        seed = seed_of(self.seed, f"augment.{epoch}", idx)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs

    def _images(self, image) -> dict:
        images = {}
        transforms = self.transform if isinstance(self.transform, list | tuple) else [self.transform]
        for number, tfm in enumerate(transforms, 1):
            draws = [image if tfm is None else tfm(image) for _ in range(self.k_tfm)]
            images["img" if number == 1 else f"img{number}"] = draws if self.k_tfm > 1 else draws[0]
        return images


class TrainingLoader(DataLoader):
    """A loader whose workers persist from epoch to epoch, since starting them takes longer than many batches.

    Workers hold the dataset as it was when they started, except for its epoch; they are restarted if one of its
    attributes has been replaced. Each pass draws one number from the global generator, as a DataLoader whose workers do
    not persist, so that a trainer's own random numbers depend neither on the number of workers nor on resumes.
    """

    def __init__(self, dataset: Dataset, **options):
        super().__init__(dataset, persistent_workers=True, generator=torch.Generator(), **options)
        self._attributes = vars(dataset).copy()

    def __iter__(self):
        self.generator.manual_seed(torch.empty((), dtype=torch.int64).random_().item())
        before, self._attributes = self._attributes, vars(self.dataset).copy()
        if before.keys() != self._attributes.keys() or any(before[key] is not self._attributes[key] for key in before):
            self._iterator = None
        return super().__iter__()


def build_data_loader(
    cfg, sampler_type: str = "SequentialSampler", data_source: list[Datum] | None = None, batch_size: int = 64,
    n_domain: int = 0, n_ins: int = 2, tfm: Callable | list | None = None, is_train: bool = True, dataset_wrapper=None,
) -> DataLoader:
    """Build a loader over a list of Datum; in training an incomplete last batch is dropped, unless it is the only one.

    If several processes train together, it loads this process's shard of each training batch, or of the test images.
    """
    if not data_source:
        raise ValueError(f"{cfg.DATASET.NAME} has no {'training' if is_train else 'test'} images: the list is empty")
    sampler = build_sampler(sampler_type, cfg, data_source, batch_size, n_domain, n_ins)
    workers = cfg.DATALOADER.NUM_WORKERS
    keep_workers = is_train and workers > 0 and dataset_wrapper is None  # a wrapper may rely on new workers
    options: dict[str, Any] = {"num_workers": workers, "worker_init_fn": _ignore_job_signals,
                               "pin_memory": torch.cuda.is_available() and cfg.USE_CUDA}
    if processes() > 1 and is_train:
        options["batch_sampler"] = ShardBatchSampler(sampler, batch_size)
    else:
        options |= {"sampler": shard(list(sampler)) if processes() > 1 else sampler, "batch_size": batch_size,
                    "drop_last": is_train and len(data_source) >= batch_size}
    dataset = (dataset_wrapper or DatasetWrapper)(cfg, data_source, transform=tfm, is_train=is_train)
    return TrainingLoader(dataset, **options) if keep_workers else DataLoader(dataset, **options)


def _ignore_job_signals(worker: int) -> None:
    """Ignore signals that a scheduler or terminal sends to all processes of a job: the trainer ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS and Windows lack it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        trainer = multiprocessing.parent_process()  # not os.getppid(): that may be a fork server
        assert trainer is not None, "a worker process has a parent"
        threading.Thread(target=_exit_on_sigterm_from, args=(trainer.pid,), daemon=True).start()


def _exit_on_sigterm_from(trainer: int) -> None:
    """End this worker on a SIGTERM from its trainer's process, which sends it as a last resort."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
        pass
    os._exit(0)


def set_epoch(loader, epoch: int | str) -> None:
    """Pass the new epoch to those parts of a loader that have a `set_epoch`."""
    batches = getattr(loader, "batch_sampler", None)
    parts: list[Any] = [loader, getattr(loader, "dataset", None), batches, getattr(batches, "sampler", None)]
    for part in parts:
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def start_at(loader: DataLoader, batch: int) -> None:
    """Start the epoch set by `set_epoch` at this batch, without reading those before it."""
    batches: Any = loader.batch_sampler  # a BatchSampler or ShardBatchSampler
    batches.sampler.start = batch * batches.batch_size


def end_workers(loader: DataLoader) -> None:
    """Release persistent workers: they then end with the current pass, where garbage collection would kill them."""
    if isinstance(loader, TrainingLoader):
        loader._iterator = None


class DataManager:
    """The dataset of a config and its loaders; building it leaves the global random generators as they were."""

    def __init__(self, cfg, custom_tfm_train=None, custom_tfm_test=None, dataset_wrapper=None):
        with preserve_random_state():
            self.dataset = build_dataset(cfg)
        self.num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)

        tfm_train = _transform(cfg, custom_tfm_train, is_train=True)
        tfm_test = _transform(cfg, custom_tfm_test, is_train=False)
        build = partial(build_data_loader, cfg, dataset_wrapper=dataset_wrapper)

        def train_loader(data_source, opts):
            return build(opts.SAMPLER, data_source, opts.BATCH_SIZE, opts.N_DOMAIN, opts.N_INS, tfm=tfm_train)

        def test_loader(data_source):
            opts = cfg.DATALOADER.TEST
            return build(opts.SAMPLER, data_source, opts.BATCH_SIZE, tfm=tfm_test, is_train=False)

        opts_x, opts_u = cfg.DATALOADER.TRAIN_X, cfg.DATALOADER.TRAIN_U
        self.train_loader_x = train_loader(self.dataset.train_x, opts_x)
        self.train_loader_u = None
        if self.dataset.train_u:
            self.train_loader_u = train_loader(self.dataset.train_u, opts_x if opts_u.SAME_AS_X else opts_u)
        self.val_loader = test_loader(self.dataset.val) if self.dataset.val else None
        self.test_loader = test_loader(self.dataset.test)

        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)
        batches: Any = self.train_loader_x.batch_sampler
        if len(batches) and batches.drop_last and (dropped := len(batches.sampler) % batches.batch_size):
            log.info(f"Each epoch leaves out {dropped} of {len(self.dataset.train_x)} training images: they do not "
                     "fill a batch")

    @property
    def num_classes(self) -> int:
        return self.dataset.num_classes

    @property
    def lab2cname(self) -> dict[int, str]:
        return self.dataset.lab2cname

    def show_dataset_summary(self, cfg) -> None:
        """Log a table of the dataset's sizes."""
        rows = [["Dataset", cfg.DATASET.NAME]]
        if cfg.DATASET.SOURCE_DOMAINS:
            rows.append(["Source", list(cfg.DATASET.SOURCE_DOMAINS)])
        if cfg.DATASET.TARGET_DOMAINS:
            rows.append(["Target", list(cfg.DATASET.TARGET_DOMAINS)])
        rows.append(["# classes", f"{self.num_classes:,}"])
        for split in ("train_x", "train_u", "val", "test"):
            if items := getattr(self.dataset, split):
                rows.append([f"# {split}", f"{len(items):,}"])
        log.info(tabulate(rows))


def _transform(cfg, custom: Callable | list | None, is_train: bool) -> Callable | list | None:
    if custom is None:
        return build_transform(cfg, is_train)
    log.info(f"* Using custom transform for {'training' if is_train else 'testing'}")
    return custom
