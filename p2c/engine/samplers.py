"""Samplers whose order is a function of (seed, epoch), drawn from a generator of their own."""
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import BatchSampler, Sampler

from p2c.engine import distributed
from p2c.engine.seeds import run_seed
from p2c.utils.streams import generator, seed_of


class EpochSampler(Sampler):
    """Base of the samplers: a new order in each epoch. An epoch may have any label; equal labels give equal orders."""

    def __init__(self, data_source: Sequence, seed: int = 0):
        self.data_source = data_source
        self.seed = seed
        self.epoch: int | str = 0
        self.start = 0  # images to skip in the epoch set by `set_epoch`; the length is still that of the whole epoch

    def set_epoch(self, epoch: int | str) -> None:
        self.epoch, self.start = epoch, 0

    def order(self) -> list[int]:
        """Return the indices of the epoch's images in order."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        return iter(self.order()[self.start:])

    def __len__(self) -> int:
        return len(self.order())  # which may depend on the draw

    def rng(self) -> random.Random:
        return random.Random(seed_of(self.seed, "order", self.epoch))


class RandomSampler(EpochSampler):
    """Every image once, in random order."""

    def order(self) -> list[int]:
        return torch.randperm(len(self.data_source), generator=generator(self.seed, "order", self.epoch)).tolist()

    def __len__(self) -> int:
        return len(self.data_source)


class SequentialSampler(EpochSampler):
    """Every image once, in the order of the data."""

    def order(self) -> list[int]:
        return list(range(len(self.data_source)))

    def __len__(self) -> int:
        return len(self.data_source)


class RandomDomainSampler(EpochSampler):
    """Batches with equally many images of `n_domain` random domains (below 1: of all); no image is repeated.

    Raises:
        ValueError: the data have fewer domains, or the batch size is not a multiple of their number.
    """

    def __init__(self, data_source: Sequence, batch_size: int, n_domain: int, seed: int = 0):
        super().__init__(data_source, seed)
        self.indices = _indices_by(data_source, "domain")
        self.n_domain = n_domain if n_domain > 0 else len(self.indices)
        if self.n_domain > len(self.indices):
            raise ValueError(f"Batches of {n_domain} domains need as many, but the data have {len(self.indices)}")
        if batch_size % self.n_domain:
            raise ValueError(f"A batch of {batch_size} cannot be shared equally by {self.n_domain} domains")
        self.images_per_domain = batch_size // self.n_domain

    def choose(self, rng: random.Random) -> list[int]:
        """Return the domains of a batch."""
        return rng.sample(list(self.indices), self.n_domain)

    def order(self) -> list[int]:
        rng = self.rng()
        remaining = {domain: rng.sample(indices, len(indices)) for domain, indices in self.indices.items()}
        order: list[int] = []
        while True:
            chosen = self.choose(rng)
            if any(len(remaining[domain]) < self.images_per_domain for domain in chosen):
                return order
            for domain in chosen:
                order += [remaining[domain].pop() for _ in range(self.images_per_domain)]


class SeqDomainSampler(RandomDomainSampler):
    """Batches with equally many random images of each domain, in sorted order; no image is repeated."""

    def __init__(self, data_source: Sequence, batch_size: int, seed: int = 0):
        super().__init__(data_source, batch_size, 0, seed)
        self.indices = dict(sorted(self.indices.items()))

    def choose(self, rng: random.Random) -> list[int]:
        return list(self.indices)


class RandomClassSampler(EpochSampler):
    """Batches with `n_ins` images of each of batch_size // n_ins random classes; small classes repeat images.

    Raises:
        ValueError: a batch is smaller than n_ins, or has more classes than the data.
    """

    def __init__(self, data_source: Sequence, batch_size: int, n_ins: int, seed: int = 0):
        super().__init__(data_source, seed)
        if batch_size < n_ins:
            raise ValueError(f"A batch of {batch_size} cannot hold {n_ins} images of a class; lower N_INS")
        self.indices = _indices_by(data_source, "label")
        self.n_ins = n_ins
        self.n_classes = batch_size // n_ins
        if len(self.indices) < self.n_classes:
            raise ValueError(f"Batches of {self.n_classes} classes need as many, but the data have {len(self.indices)}")

    def order(self) -> list[int]:
        rng = self.rng()
        groups = {}
        for label, indices in self.indices.items():
            missing = max(0, self.n_ins - len(indices))
            indices = rng.sample(indices, len(indices)) + rng.choices(indices, k=missing)
            whole = len(indices) - len(indices) % self.n_ins
            groups[label] = [indices[i:i + self.n_ins] for i in range(0, whole, self.n_ins)]
        order: list[int] = []
        while len(groups) >= self.n_classes:
            for label in rng.sample(list(groups), self.n_classes):
                order += groups[label].pop()
                if not groups[label]:
                    del groups[label]
        return order


def _indices_by(data_source: Sequence, attribute: str) -> dict[int, list[int]]:
    indices = defaultdict(list)
    for index, item in enumerate(data_source):
        indices[getattr(item, attribute)].append(index)
    return dict(indices)


FULL_PASS = ("SequentialSampler", "RandomSampler")  # samplers that give every image once, as a test needs
SAMPLERS: dict[str, Callable[..., EpochSampler]] = {sampler.__name__: sampler for sampler in (
    RandomSampler, SequentialSampler, RandomDomainSampler, SeqDomainSampler, RandomClassSampler)}


def build_sampler(
    sampler_type: str, cfg=None, data_source=None, batch_size: int = 32, n_domain: int = 0, n_ins: int = 16
) -> EpochSampler:
    """Build the named sampler over a list of Datum; without a cfg its seed is torch's initial seed.

    Raises:
        ValueError: an unknown name, or settings that the sampler rejects.
    """
    if sampler_type not in SAMPLERS:
        raise ValueError(f"Unknown sampler type: {sampler_type}; choose from {', '.join(SAMPLERS)} as DATALOADER's "
                         "SAMPLER")
    options = {"seed": torch.initial_seed() if cfg is None else run_seed(cfg)}
    if sampler_type not in FULL_PASS:
        options["batch_size"] = batch_size
    if sampler_type == "RandomDomainSampler":
        options["n_domain"] = n_domain
    if sampler_type == "RandomClassSampler":
        options["n_ins"] = n_ins
    return SAMPLERS[sampler_type](data_source, **options)


class ShardBatchSampler(BatchSampler):
    """This process's shard of each batch of `batch_size` indices of a sampler.

    An incomplete last batch is dropped, unless it is the only one.

    Raises:
        ValueError: the batch size is not a multiple of the number of processes.
    """

    def __init__(self, sampler: EpochSampler, batch_size: int):
        super().__init__(sampler, min(batch_size, len(sampler)), drop_last=True)
        if self.batch_size % distributed.processes():
            key = "DATALOADER.TRAIN_X.BATCH_SIZE" if self.batch_size == batch_size else "The number of training images"
            raise ValueError(f"{key} is {self.batch_size}, which {distributed.processes()} processes cannot divide "
                             "equally; choose a multiple, or another number of processes (torchrun --nproc-per-node)")

    def __iter__(self) -> Iterator[list[int]]:
        for batch in super().__iter__():
            yield list(distributed.shard(batch))
