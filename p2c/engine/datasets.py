"""Datasets as lists of `Datum` for training, validation and test, and few-shot sampling from them."""
import os
import random
from collections import defaultdict
from collections.abc import Sequence
from operator import attrgetter
from typing import TypeVar

from p2c.utils.logs import get_logger

log = get_logger(__name__)

T = TypeVar("T")  # Datum, or another item with a label


class Datum:
    """One image file with its label, domain and class name.

    `check=False` does not check that the file exists, for a dataset that has checked its folder as a whole.
    """

    def __init__(
        self, impath: str | os.PathLike = "", label: int = 0, domain: int = 0, classname: str = "", check: bool = True
    ):
        impath = os.fspath(impath)
        if check and not os.path.isfile(impath):
            raise FileNotFoundError(f'No image file at "{impath}"')
        # Dassl's pickled few-shot files, which p2c.engine.restricted reads, have these names.
        self._impath = impath
        self._label = label
        self._domain = domain
        self._classname = classname

    @property
    def impath(self) -> str:
        return self._impath

    @property
    def label(self) -> int:
        return self._label

    @property
    def domain(self) -> int:
        return self._domain

    @property
    def classname(self) -> str:
        return self._classname


class DatasetBase:
    """Lists of Datum for labeled and unlabeled training, validation (may be None) and test."""

    dataset_dir: str | os.PathLike[str] = ""  # folder inside DATASET.ROOT
    domains: list[str] = []  # names of all domains

    def __init__(self, train_x=None, train_u=None, val=None, test=None):
        self._train_x = train_x
        self._train_u = train_u
        self._val = val
        self._test = test
        self._num_classes = self.get_num_classes(train_x)
        self._lab2cname, self._classnames = self.get_lab2cname(train_x)
        if gaps := [str(label) for label in range(self._num_classes) if label not in self._lab2cname]:
            log.warning(f"{type(self).__name__}: no training image has label {', '.join(gaps)}: num_classes is "
                        f"{self._num_classes} but there are {len(self._classnames)} class names")

    train_x = property(attrgetter("_train_x"))
    train_u = property(attrgetter("_train_u"))
    val = property(attrgetter("_val"))
    test = property(attrgetter("_test"))

    @property
    def lab2cname(self) -> dict[int, str]:
        return self._lab2cname

    @property
    def classnames(self) -> list[str]:
        return self._classnames

    @property
    def num_classes(self) -> int:
        return self._num_classes

    @staticmethod
    def get_num_classes(data_source: list[Datum]) -> int:
        """Return the largest label plus 1. Raise TypeError for None, ValueError for an empty list."""
        if data_source is None:
            raise TypeError("A dataset needs a list train_x, but got None")
        if not data_source:
            raise ValueError("A dataset needs training images, but train_x is empty")
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source: list[Datum]) -> tuple[dict[int, str], list[str]]:
        """Return a dict from label to class name, sorted by label, and its names. The first name of a label counts."""
        names: dict[int, dict[str, None]] = defaultdict(dict)  # label -> its names in order of appearance, as dict keys
        for item in data_source:
            names[item.label][item.classname] = None
        for label, several in names.items():
            if len(several) > 1:
                log.warning(f"Label {label} has the names {', '.join(several)}; the first counts")
        lab2cname = {label: next(iter(names[label])) for label in sorted(names)}
        return lab2cname, list(lab2cname.values())

    def check_input_domains(self, source_domains: Sequence[str], target_domains: Sequence[str]) -> None:
        """Raise AssertionError if either is empty, ValueError for a domain that the dataset does not have."""
        assert source_domains and target_domains, "source_domains or target_domains is empty"
        self.is_input_domain_valid([*source_domains, *target_domains])

    def is_input_domain_valid(self, input_domains: Sequence[str]) -> None:
        """Raise ValueError for a domain that the dataset does not have."""
        for domain in input_domains:
            if domain not in self.domains:
                raise ValueError(f"Input domain must belong to {self.domains}, but got [{domain}]")

    def generate_fewshot_dataset(self, *data_sources, num_shots: int = -1, repeat: bool = False):
        """Draw `sample_shots` from each source: a list for one source, a list of lists for several.

        With num_shots below 1 the sources are returned unchanged.
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else data_sources
        log.info(f"Creating a {num_shots}-shot dataset")
        samples = [sample_shots(source, num_shots, repeat) for source in data_sources]
        return samples[0] if len(samples) == 1 else samples

    def split_dataset_by_label(self, data_source: list[Datum]) -> dict[int, list[Datum]]:
        """Return a dict from label to items, both in order of appearance."""
        return _group_by(data_source, "label")

    def split_dataset_by_domain(self, data_source: list[Datum]) -> dict[int, list[Datum]]:
        """Return a dict from domain to items, both in order of appearance."""
        return _group_by(data_source, "domain")


def sample_shots(items: Sequence[T], num_shots: int, repeat: bool = False, rng=random) -> list[T]:
    """Draw `num_shots` items of each label, the labels in order of first appearance.

    A label with fewer items contributes all of them in order or, with `repeat`, a draw with replacement. `rng` is a
    random.Random, or the module `random`; random.Random(seed) draws what Dassl draws for that seed.
    """
    chosen: list[T] = []
    for group in _group_by(items, "label").values():
        if len(group) >= num_shots:
            chosen += rng.sample(group, num_shots)
        else:
            chosen += rng.choices(group, k=num_shots) if repeat else group
    return chosen


def _group_by(items: Sequence[T], attribute: str) -> dict[int, list[T]]:
    groups: dict[int, list[T]] = defaultdict(list)
    for item in items:
        groups[getattr(item, attribute)].append(item)
    return groups
