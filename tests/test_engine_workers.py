"""Workers kept from epoch to epoch: they change no batch."""
import copy
import os
import pickle

import pytest
import torch
from engine_fixtures import tiny_config, write_images

from p2c.engine import DataManager, Datum, build_data_loader
from p2c.engine.data import set_epoch

EPOCHS = (0, 1, "unlabeled.2")


@pytest.fixture
def config(tmp_path):
    """config(workers, key, value, ...): tiny data of this test's own."""
    root = tmp_path / "data"
    write_images(root)

    def make(workers=0, *options):
        return tiny_config(root, tmp_path, "DATALOADER.NUM_WORKERS", workers, "INPUT.TRANSFORMS",
                           ("random_resized_crop", "random_translation", "colorjitter", "cutout"), *options)
    return make


def batches(data):
    """Indices and pixels of all batches, and what the global generator gives a trainer meanwhile."""
    torch.manual_seed(0)
    seen = []
    for epoch in EPOCHS:
        set_epoch(data.train_loader_x, epoch)
        for batch in data.train_loader_x:
            seen += [batch["index"], batch["img"], torch.rand(2)]
    return seen


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_those_of_a_run_without_workers(config, workers):
    expected = batches(DataManager(config()))
    found = batches(DataManager(config(workers)))
    assert len(found) == len(expected) and all(a.equal(b) for a, b in zip(found, expected, strict=True))
    first, second = expected[1::3][:12], expected[1::3][12:24]
    assert len({image.numpy().tobytes() for batch in first + second for image in batch}) == 144  # all augmented anew


def test_a_copy_of_a_dataset_has_an_epoch_of_its_own(config):
    dataset = DataManager(config()).train_loader_x.dataset
    for other in (copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):
        assert other[3]["img"].equal(dataset[3]["img"])
        other.set_epoch(1)
        assert not other[3]["img"].equal(dataset[3]["img"])


def test_workers_of_other_peoples_wrappers_are_not_kept(config):
    class Wrapper(torch.utils.data.Dataset):
        def __init__(self, cfg, data_source, transform=None, is_train=False):
            self.data_source = data_source

        def __len__(self):
            return len(self.data_source)

        def __getitem__(self, index):
            return {"process": os.getpid()}

    loader = DataManager(config(1), dataset_wrapper=Wrapper).train_loader_x
    assert len({int(batch["process"][0]) for _ in range(2) for batch in loader}) == 2


class Process:
    """Instead of an image, the process that read it and a number."""

    def __init__(self, number):
        self.number = number

    def __call__(self, image):
        return torch.tensor([os.getpid(), self.number])


def test_workers_stay_for_all_epochs_unless_the_dataset_is_changed(config):
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
    dataset, other = (DataManager(config()).train_loader_x.dataset for _ in range(2))
    dataset.set_epoch("unlabeled.3.1")
    text = dataset[3]["img"]
    for each in (dataset, other):
        each.set_epoch(12)
    assert dataset[3]["img"].equal(other[3]["img"]) and not dataset[3]["img"].equal(text)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_trainer_that_draws_by_itself_learns_the_same_and_resumes_the_same(tiny_trainer, tmp_path, workers):
    def weights(trainer):
        trainer.train()
        return trainer.model.linear.weight.detach().clone()

    def options(workers):
        return "DATALOADER.NUM_WORKERS", workers

    expected = weights(tiny_trainer(*options(0), output_dir=tmp_path / "plain"))
    assert weights(tiny_trainer(*options(workers), output_dir=tmp_path / "other")).equal(expected)
    resumed = tiny_trainer(*options(workers), "TRAIN.CHECKPOINT_FREQ", 1, output_dir=tmp_path / "resumed")
    resumed.max_epoch = 3
    resumed.train()
    assert weights(tiny_trainer(*options(workers), output_dir=tmp_path / "resumed")).equal(expected)
