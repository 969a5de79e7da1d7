"""Training images kept decoded, and workers kept from epoch to epoch: neither changes a batch."""
import copy
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_fixtures import *  # noqa: F403 (its fixtures)
from engine_fixtures import tiny_config, write_images

from p2c.config import extend_cfg
from p2c.engine import DataManager, DatasetWrapper, Datum, build_data_loader, read_image
from p2c.engine import cache as cache_module
from p2c.engine.cache import ImageCache, cache_budget
from p2c.engine.data import set_epoch

EPOCHS = (0, 1, "unlabeled.2")


@pytest.fixture
def config(tmp_path):
    """config(workers, cache, key, value, ...): tiny data of this test's own."""
    root = tmp_path / "data"
    write_images(root)

    def make(workers=0, cache=0, *options):
        cfg = tiny_config(root, tmp_path, "DATALOADER.NUM_WORKERS", workers, "INPUT.TRANSFORMS",
                          ("random_resized_crop", "random_translation", "colorjitter", "cutout"), *options).clone()
        cfg.defrost()
        extend_cfg(cfg)
        cfg.DATALOADER.CACHE = cache
        return cfg
    return make


def batches(data, after_first_epoch=lambda: None):
    """Indices and pixels of all batches, and what the global generator gives a trainer meanwhile."""
    torch.manual_seed(0)
    seen = []
    for epoch in EPOCHS:
        set_epoch(data.train_loader_x, epoch)
        for batch in data.train_loader_x:
            seen += [batch["index"], batch["img"], torch.rand(2)]
        if epoch == 0:
            after_first_epoch()
    return seen


def assert_equal(one, other):
    assert len(one) == len(other) and all(a.equal(b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_file_is_read_once_and_batches_are_those_of_a_run_without_cache(config, workers):
    cfg = config(workers, 1)
    expected = batches(DataManager(config()))

    def delete_files():
        for path in Path(cfg.DATASET.ROOT).glob("train/*"):
            path.unlink()

    assert_equal(batches(DataManager(cfg), delete_files), expected)
    first, second = expected[1::3][:12], expected[1::3][12:24]
    assert len({image.numpy().tobytes() for batch in first + second for image in batch}) == 144  # all augmented anew


@pytest.mark.parametrize("workers", [0, 2])
def test_what_finds_no_room_is_read_again_and_said_once(config, monkeypatch, capsys, workers):
    expected = batches(DataManager(config()))
    room = 3 * (50 * 30 + 32 * 64 + 40 * 40)  # of the first three; which are read first is chance
    monkeypatch.setattr("p2c.engine.data.cache_budget", lambda cfg: room)
    data = DataManager(config(workers))
    assert_equal(batches(data), expected)
    cache = data.train_loader_x.dataset.cache
    assert 0 < cache.totals[0] <= room == len(cache.pixels)
    kept = np.count_nonzero(cache.table[:-1, 1])
    assert 2 <= kept <= 3
    assert capsys.readouterr().out.count(f"{kept} of 72 training images are kept decoded, in 0.0 GiB; the others") == 1


def test_kept_images_are_those_of_the_files_and_nobody_elses(config):
    cfg = config()
    paths = [f"{cfg.DATASET.ROOT}/train/0_{i}.png" for i in range(3)]
    cache = ImageCache(paths[:2], 1 << 20)
    for _ in range(2):
        for path in paths:  # the third is not its own
            image = cache.read(path)
            assert image.mode == "RGB" and image.tobytes() == read_image(path).tobytes()
            image.paste((0, 0, 0), (0, 0, 9, 9))
    assert cache.totals[0] == sum(len(read_image(path).tobytes()) for path in paths[:2])


def test_copies_of_a_cache_read_files(config):
    cfg = config(cache=1)
    dataset = DataManager(cfg).train_loader_x.dataset
    path = dataset.data_source[0].impath
    dataset.cache.read(path)
    for other in (copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):
        assert other.cache.totals.tolist() == [0, 0, 0]
        assert other.cache.read(path).tobytes() == read_image(path).tobytes()
        assert other[3]["img"].equal(dataset[3]["img"])
        other.set_epoch(1)
        assert not other[3]["img"].equal(dataset[3]["img"])


def test_how_much_memory_may_be_taken(config, monkeypatch):
    monkeypatch.setattr(cache_module, "free_memory", lambda: 1000)
    assert cache_budget(config(2, -1)) == 250
    assert cache_budget(config(2, 3)) == 3 << 30
    assert cache_budget(config(2, 0)) == 0
    assert cache_budget(tiny_config("", "")) == 0  # a program that does not know the key
    monkeypatch.setattr(cache_module, "local_processes", lambda: 2)
    assert cache_budget(config(2, -1)) == 125
    monkeypatch.setattr(cache_module, "start_method", lambda: "spawn")
    assert cache_budget(config(2, -1)) == 0
    assert cache_budget(config(0, -1)) == 125


def test_more_than_the_system_gives_is_refused(config):
    with pytest.raises(ValueError, match="lower DATALOADER.CACHE"):
        DataManager(config(0, 1 << 40))


def test_other_peoples_wrappers_stay_without_cache_and_kept_workers(config):
    class Wrapper(torch.utils.data.Dataset):
        def __init__(self, cfg, data_source, transform=None, is_train=False):
            self.data_source = data_source

        def __len__(self):
            return len(self.data_source)

        def __getitem__(self, index):
            return {"process": os.getpid()}

    loader = DataManager(config(1, 1), dataset_wrapper=Wrapper).train_loader_x
    assert not hasattr(loader.dataset, "cache")
    assert len({int(batch["process"][0]) for _ in range(2) for batch in loader}) == 2


class Process:
    """Instead of an image, the process that read it and a number."""

    def __init__(self, number):
        self.number = number

    def __call__(self, image):
        return torch.tensor([os.getpid(), self.number])


def test_workers_stay_for_all_epochs_unless_the_data_set_is_changed(config):
    images = [Datum(f"{config().DATASET.ROOT}/train/0_{i}.png") for i in range(8)]
    loader = build_data_loader(config(2), "RandomSampler", images, 2, tfm=Process(1), is_train=True)

    def processes(number):
        seen = torch.cat([batch["img"] for batch in loader])
        assert set(seen[:, 1].tolist()) == {number}
        return set(seen[:, 0].tolist())

    first = processes(1)
    assert len(first) == 2 and os.getpid() not in first
    next(iter(loader))  # a pass that is given up
    assert processes(1) == first
    loader.dataset.transform = Process(2)
    assert processes(2).isdisjoint(first)


def test_the_epochs_label_may_be_text(config):
    cfg = config()
    dataset = DatasetWrapper(cfg, [], is_train=True)
    for label in (0, 12, "unlabeled.3.1", 5):
        dataset.set_epoch(label)
        assert dataset.epoch == label


@pytest.mark.parametrize("workers, cache", [(0, 1), (1, 0), (2, 1)])
def test_a_trainer_that_draws_by_itself_learns_the_same_and_resumes_the_same(tiny_trainer, config, tmp_path, workers,
                                                                            cache):
    def weights(trainer):
        trainer.train()
        return trainer.model.linear.weight.detach().clone()

    def options(workers):
        return "DATALOADER.NUM_WORKERS", workers

    expected = weights(tiny_trainer(*options(0), output_dir=tmp_path / "plain"))
    trainer = tiny_trainer(*options(workers), output_dir=tmp_path / "other")
    if cache:
        dataset = trainer.train_loader_x.dataset
        dataset.cache = ImageCache([item.impath for item in dataset.data_source], 1 << 20)
    assert weights(trainer).equal(expected)
    resumed = tiny_trainer(*options(workers), "TRAIN.CHECKPOINT_FREQ", 1, output_dir=tmp_path / "resumed")
    resumed.max_epoch = 3
    resumed.train()
    assert weights(tiny_trainer(*options(workers), output_dir=tmp_path / "resumed")).equal(expected)
