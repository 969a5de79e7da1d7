"""The contract of an engine: lists of images, and what becomes of their files."""
import json
import os
import random
from operator import itemgetter

import pytest
import torch
from contract import dassl_fails
from torchvision import transforms as T

# Lists of images

# (seed, shots): items drawn of train class 0, train class 5, val class 0, val class 5.
GOLDEN = {
    (1, 1): ("4", "15", "7", "7"),
    (1, 4): ("4 18 2 8", "10 0 18 17", "0 3 5 1", "1 7 5 2"),
    (1, 16): (
        "4 18 2 8 3 7 12 14 13 10 6 15 1 16 0 9", "3 5 16 12 11 7 15 0 14 17 4 6 2 1 9 8", "0 6 1 4", "6 0 3 2",
    ),
    (2, 16): (
        "1 2 18 11 5 16 12 10 4 14 9 3 0 13 15 19", "19 8 15 9 16 12 11 18 14 13 10 6 4 5 1 3", "5 7 4 0", "3 0 7 6",
    ),
    (3, 4): ("7 18 17 4", "16 12 0 2", "2 6 4 0", "0 1 3 6"),
}


@pytest.fixture
def items(engine, tmp_path):
    """items(labels): one item per label; its file's name is its position among the items of the label."""
    for number in range(20):
        (tmp_path / str(number)).touch()

    def make(labels):
        counts = {label: iter(range(20)) for label in labels}
        return [engine.Datum(str(tmp_path / str(next(counts[label]))), label, classname=f"name {label}")
                for label in labels]
    return make


def drawn(sample, label):
    return " ".join(os.path.basename(item.impath) for item in sample if item.label == label)


@pytest.mark.parametrize("seed, shots", GOLDEN)
def test_few_shot_draw(engine, items, seed, shots):
    """Check 8."""
    train = items([label for label in range(6) for _ in range(20)])
    val = items([label for label in range(6) for _ in range(8)])
    dataset = engine.DatasetBase(train_x=train)
    random.seed(seed)
    train = dataset.generate_fewshot_dataset(train, num_shots=shots)
    val = dataset.generate_fewshot_dataset(val, num_shots=min(shots, 4))
    assert (drawn(train, 0), drawn(train, 5), drawn(val, 0), drawn(val, 5)) == GOLDEN[seed, shots]


def test_labels_with_few_images(engine, items):
    """Check 9."""
    source = items([2, 2, 2, 0, 0, 1])
    dataset = engine.DatasetBase(train_x=source)
    sample = dataset.generate_fewshot_dataset(source, num_shots=2)
    assert [item.label for item in sample] == [2, 2, 0, 0, 1]
    assert len(dataset.generate_fewshot_dataset(source, num_shots=2, repeat=True)) == 6
    state = random.getstate()
    assert dataset.generate_fewshot_dataset(source, num_shots=0) is source
    assert dataset.generate_fewshot_dataset(source, source, num_shots=0) == (source, source)
    assert random.getstate() == state


def test_several_sources_give_several_samples(engine, items, capsys):
    source = items([0, 0, 1])
    first, second = engine.DatasetBase(train_x=source).generate_fewshot_dataset(source, source, num_shots=1)
    assert [item.label for item in first] == [item.label for item in second] == [0, 1]
    assert capsys.readouterr().out == "Creating a 1-shot dataset\n"


def test_classes_of_labels_with_gaps(engine, items):
    """Check 11."""
    dataset = engine.DatasetBase(train_x=items([5, 2, 5]))
    assert dataset.num_classes == 6
    assert dataset.classnames == ["name 2", "name 5"]
    assert dataset.lab2cname == {2: "name 2", 5: "name 5"}


def test_a_split_is_written_as_dassl_writes_it(engine, tmp_path):
    """Check 13."""
    path = tmp_path / "split_zhou_Pets.json"
    engine.write_json({"train": [["a/b.jpg", 0, "caf\u00e9"]], "val": []}, str(path))
    assert path.read_bytes() == (
        b'{\n    "train": [\n        [\n            "a/b.jpg",\n            0,\n            "caf\\u00e9"\n'
        b'        ]\n    ],\n    "val": []\n}'
    )
    assert json.loads(path.read_text())["train"][0][2] == "caf\u00e9"


def test_an_item_cannot_be_changed(engine, items):
    (item,) = items([3])
    assert (item.label, item.domain, item.classname) == (3, 0, "name 3")
    with pytest.raises(AttributeError):
        item.label = 4


def test_a_dataset_needs_training_images(engine):
    with pytest.raises(ValueError, match="empty"):
        engine.DatasetBase(train_x=[])
    with pytest.raises(TypeError, match="None"):
        engine.DatasetBase()


def test_domains_are_checked(engine, items):
    dataset = engine.DatasetBase(train_x=items([0]))
    dataset.domains = ["photo", "sketch"]
    dataset.check_input_domains(["photo"], ["sketch"])
    with pytest.raises(AssertionError):
        dataset.check_input_domains([], ["sketch"])
    with pytest.raises(ValueError, match="clipart"):
        dataset.check_input_domains(["photo"], ["clipart"])


def test_splitting_keeps_the_order_of_appearance(engine, items):
    source = items([2, 0, 2])
    dataset = engine.DatasetBase(train_x=source)
    by_label = dataset.split_dataset_by_label(source)
    assert list(by_label) == [2, 0] and by_label[2] == [source[0], source[2]]
    assert dataset.split_dataset_by_domain(source) == {0: source}


# From files to batches


def test_items_of_the_wrapper(engine, config, images):
    """Check 14."""
    cfg = config("DATALOADER.K_TRANSFORMS", 3, "DATALOADER.RETURN_IMG0", True)
    tfm = engine.build_transform(cfg)
    item = engine.DatasetWrapper(cfg, images, tfm, is_train=True)[13]
    assert set(item) == {"label", "domain", "impath", "index", "img", "img0"}
    assert itemgetter("label", "domain", "impath", "index")(item) == (1, 1, images[13].impath, 13)
    assert [image.shape for image in item["img"]] == [(3, 32, 32)] * 3
    assert not item["img"][0].equal(item["img"][1])
    assert item["img0"].shape == (3, 32, 32)

    item = engine.DatasetWrapper(config(), images, [tfm, tfm], is_train=True)[0]
    assert set(item) == {"label", "domain", "impath", "index", "img", "img2"}
    assert engine.DatasetWrapper(cfg, images, tfm, is_train=False)[0]["img"].shape == (3, 32, 32)
    assert engine.DatasetWrapper(config(), images)[0]["img"].size == (50, 30)
    with pytest.raises(ValueError, match="transform|TRANSFORM"):
        engine.DatasetWrapper(cfg, images, None, is_train=True)


@pytest.mark.parametrize("size, edge", [((32, 32), 32), ((32, 48), 48)])
def test_test_transform_resizes_the_smaller_edge_and_crops_the_centre(engine, config, images, size, edge):
    """Check 15."""
    cfg = config("INPUT.SIZE", size)
    image = engine.read_image(images[0].impath)
    assert image.size == (50, 30)
    expected = T.Compose([
        T.Resize(edge), T.CenterCrop(size), T.ToTensor(), T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)
    ])(image)
    assert engine.build_transform(cfg, is_train=False)(image).equal(expected)


def test_training_transform_of_clip(engine, config):
    """Check 15."""
    steps = engine.build_transform(config("INPUT.INTERPOLATION", "bicubic")).transforms
    assert [type(step) for step in steps] == [T.RandomResizedCrop, T.RandomHorizontalFlip, T.ToTensor, T.Normalize]
    crop, flip = steps[:2]
    assert crop.size == (32, 32) and tuple(crop.scale) == (0.08, 1.0) and tuple(crop.ratio) == (3 / 4, 4 / 3)
    assert crop.interpolation is T.InterpolationMode.BICUBIC and flip.p == 0.5


def test_lines_about_the_transforms(engine, config, capsys):
    """Check 16."""
    cfg = config("INPUT.SIZE", (224, 224), "INPUT.INTERPOLATION", "bicubic")
    engine.build_transform(cfg, is_train=True)
    engine.build_transform(cfg, is_train=False)
    engine.build_transform(cfg, is_train=True, choices=())
    assert capsys.readouterr().out.splitlines() == [
        "Building transform_train",
        "+ random resized crop (size=(224, 224), scale=(0.08, 1.0))",
        "+ random flip",
        "+ to torch tensor of range [0, 1]",
        "+ normalization (mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])",
        "Building transform_test",
        "+ resize the smaller edge to 224",
        "+ 224x224 center crop",
        "+ to torch tensor of range [0, 1]",
        "+ normalization (mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])",
        "Building transform_train",
        "+ resize to 224x224",
        "+ to torch tensor of range [0, 1]",
    ]


TRANSFORMS = [
    "random_translation", "random_crop", "random_flip", "colorjitter", "randomgrayscale", "gaussian_blur", "cutout",
    "normalize", "gaussian_noise", "instance_norm", "center_crop",
]
POLICIES = ["imagenet_policy", "cifar10_policy", "svhn_policy", "randaugment"]


def check_size(engine, cfg, image, choices):
    transform = engine.build_transform(cfg, choices=choices)
    for _ in range(50):  # so that each of a random choice of operations has its turn
        assert transform(image).shape == (3, 32, 32)


@pytest.mark.parametrize("choices", [TRANSFORMS, *([name] for name in TRANSFORMS)], ids=itemgetter(-1))
def test_every_transform_gives_an_image_of_the_size_asked_for(engine, config, images, choices):
    check_size(engine, config("INPUT.GB_K", 5), engine.read_image(images[0].impath), choices)


@dassl_fails("F8: automatic augmentation uses numpy.int, which numpy has removed", AttributeError)
@pytest.mark.parametrize("name", POLICIES)
def test_automatic_augmentation_gives_an_image_of_the_size_asked_for(engine, config, images, name):
    check_size(engine, config(), engine.read_image(images[0].impath), [name])


def test_cutout_sets_a_square_to_zero(engine, config):
    transform = engine.build_transform(config("INPUT.CUTOUT_LEN", 8), choices=["cutout"])
    white = T.ToPILImage()(torch.ones(3, 32, 32))
    holes = [int((transform(white)[0] == 0).sum()) for _ in range(50)]
    assert max(holes) == 64 and min(holes) >= 16  # at the border a part of the square is outside


def test_no_transform_and_unknown_interpolations(engine, config):
    assert engine.build_transform(config("INPUT.NO_TRANSFORM", True)) is None
    with pytest.raises(KeyError, match="lanczos"):
        engine.build_transform(config("INPUT.INTERPOLATION", "lanczos"))


@pytest.mark.parametrize("batch_size, batches, visited", [(4, 12, 48), (48, 1, 48), (30, 1, 30), (100, 1, 48)])
def test_length_of_a_training_loader(engine, config, images, batch_size, batches, visited):
    """Check 17."""
    tfm = T.Compose([T.Resize((8, 8)), T.ToTensor()])
    loader = engine.build_data_loader(config(), "RandomSampler", images, batch_size, tfm=tfm, is_train=True)
    assert len(loader) == batches
    assert sum(len(batch["label"]) for batch in loader) == visited


def test_a_test_loader_drops_nothing(engine, config, images):
    """Check 17."""
    assert len(engine.build_data_loader(config(), data_source=images[:24], batch_size=10, is_train=False)) == 3


def test_summary_of_the_data(engine, config, capsys):
    engine.DataManager(config())
    table = [
        "---------  --------", "Dataset    TinyData", "# classes  6", "# train_x  72", "# val      24", "# test     24",
        "---------  --------",
    ]
    assert "\n".join(table) in capsys.readouterr().out
    engine.DataManager(config("VERBOSE", False))
    assert "Dataset" not in capsys.readouterr().out


def test_custom_transforms_are_used(engine, config, capsys):
    transform = T.ToTensor()
    manager = engine.DataManager(config(), custom_tfm_train=transform, custom_tfm_test=transform)
    assert manager.train_loader_x.dataset.transform is manager.test_loader.dataset.transform is transform
    out = capsys.readouterr().out
    assert "* Using custom transform for training\n* Using custom transform for testing\n" in out


def test_unknown_samplers_are_refused(engine, config, images):
    with pytest.raises(ValueError, match="Unknown sampler type: X"):
        engine.build_sampler("X", config(), images)
