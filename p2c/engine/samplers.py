"""Orders in which images are visited: each a function of (seed, epoch), drawn from a generator of its own."""
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from p2c.engine.seeds import run_seed
from p2c.utils.streams import generator, seed_of


class EpochSampler(Sampler):
    """A sampler that orders the data anew in each epoch; epochs may have any label, equal labels give equal orders."""

    def __init__(self, data_source: Sequence, seed: int = 0):
        self.data_source = data_source
        self.seed = seed
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int | str) -> None:
        self.epoch, self.start = epoch, 0

    def start_at(self, position: int) -> None:
        """Pass over so many images of the epoch that `set_epoch` has announced; its length stays the whole one."""
        self.start = position

    def order(self) -> list[int]:
        """The epoch's images."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        return iter(self.order()[self.start:])

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


class _BatchwiseSampler(EpochSampler):
    """An order whose length depends on the draw."""

    def __len__(self) -> int:
        return len(self.order())


class RandomDomainSampler(_BatchwiseSampler):
    """Batches from `n_domain` random domains (below 1: all), equally many images of each, none twice.

    Raises ValueError for more domains than the data have, or a batch that they cannot share equally.
    """

    def __init__(self, data_source: Sequence, batch_size: int, n_domain: int, seed: int = 0):
        super().__init__(data_source, seed)
        self.indices = _indices_by(data_source, "domain")
        self.n_domain = n_domain if n_domain > 0 else len(self.indices)
        if self.n_domain > len(self.indices):
            raise ValueError(f"Batches of {n_domain} domains need as many, but the data have {len(self.indices)}")
        self.images_per_domain = _equal_share(batch_size, self.n_domain, "domains")

    def order(self) -> list[int]:
        rng = self.rng()
        remaining = {domain: rng.sample(indices, len(indices)) for domain, indices in self.indices.items()}
        order = []
        while True:
            chosen = rng.sample(list(remaining), self.n_domain)
            if any(len(remaining[domain]) < self.images_per_domain for domain in chosen):
                return order
            for domain in chosen:
                order += [remaining[domain].pop() for _ in range(self.images_per_domain)]


class SeqDomainSampler(_BatchwiseSampler):
    """Batches from all domains in sorted order, equally many random images of each, none twice.

    Raises ValueError for a batch that the domains cannot share equally.
    """

    def __init__(self, data_source: Sequence, batch_size: int, seed: int = 0):
        super().__init__(data_source, seed)
        self.indices = _indices_by(data_source, "domain")
        self.images_per_domain = _equal_share(batch_size, len(self.indices), "domains")

    def order(self) -> list[int]:
        rng = self.rng()
        remaining = [rng.sample(self.indices[domain], len(self.indices[domain])) for domain in sorted(self.indices)]
        order = []
        while all(len(indices) >= self.images_per_domain for indices in remaining):
            for indices in remaining:
                order += [indices.pop() for _ in range(self.images_per_domain)]
        return order


class RandomClassSampler(_BatchwiseSampler):
    """Batches of `n_ins` images of each of batch_size // n_ins random classes; small classes repeat images.

    Raises ValueError for a batch smaller than n_ins, or of more classes than the data have.
    """

    def __init__(self, data_source: Sequence, batch_size: int, n_ins: int, seed: int = 0):
        super().__init__(data_source, seed)
        if batch_size < n_ins:
            raise ValueError(f"A batch of {batch_size} cannot hold {n_ins} images of a class; lower N_INS")
        self.indices = _indices_by(data_source, "label")
        self.n_ins = n_ins
        self.n_classes = batch_size // n_ins
        if len(self.indices) < self.n_classes:
            raise ValueError(
                f"Batches of {self.n_classes} classes need as many classes, but the data have {len(self.indices)}"
            )

    def order(self) -> list[int]:
        rng = self.rng()
        groups = {}
        for label, indices in self.indices.items():
            missing = max(0, self.n_ins - len(indices))
            indices = rng.sample(indices, len(indices)) + rng.choices(indices, k=missing)
            whole = len(indices) - len(indices) % self.n_ins
            groups[label] = [indices[i:i + self.n_ins] for i in range(0, whole, self.n_ins)]
        order = []
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


def _equal_share(batch_size: int, parts: int, what: str) -> int:
    if batch_size % parts:
        raise ValueError(f"A batch of {batch_size} cannot be shared equally by {parts} {what}")
    return batch_size // parts


WHOLE = ("SequentialSampler", "RandomSampler")  # those that give every image once, as a test needs
SAMPLERS = {
    "RandomSampler": lambda data, batch_size, n_domain, n_ins, seed: RandomSampler(data, seed),
    "SequentialSampler": lambda data, batch_size, n_domain, n_ins, seed: SequentialSampler(data),
    "RandomDomainSampler":
        lambda data, batch_size, n_domain, n_ins, seed: RandomDomainSampler(data, batch_size, n_domain, seed),
    "SeqDomainSampler": lambda data, batch_size, n_domain, n_ins, seed: SeqDomainSampler(data, batch_size, seed),
    "RandomClassSampler":
        lambda data, batch_size, n_domain, n_ins, seed: RandomClassSampler(data, batch_size, n_ins, seed),
}


def build_sampler(
    sampler_type: str, cfg=None, data_source=None, batch_size: int = 32, n_domain: int = 0, n_ins: int = 16
) -> Sampler:
    """The sampler of that name over a list of Datum; without a cfg it is seeded as torch is.

    Raises ValueError for an unknown name, and what the sampler raises.
    """
    if sampler_type not in SAMPLERS:
        raise ValueError(f"Unknown sampler type: {sampler_type}; choose from {', '.join(SAMPLERS)} as DATALOADER's "
                         "SAMPLER")
    seed = torch.initial_seed() if cfg is None else run_seed(cfg)
    return SAMPLERS[sampler_type](data_source, batch_size, n_domain, n_ins, seed)
