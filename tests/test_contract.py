"""What code written against Dassl relies on, checked on this package's engine and on real Dassl where it is there.

A test that real Dassl fails by its own fault says which fault that is; the numbers are those of Dassl's known faults on
current torch (F) and on any version (G). What only this package's engine promises is in test_engine_*.py.
"""
import contextlib
import copy
import functools
import gc
import inspect
import io
import json
import os
import pickle
import random
import re
import subprocess
import sys
from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_fixtures import *  # noqa: F403 (its fixtures)
from engine_fixtures import Pooled, console_text, own_console, rates, tiny_config, tiny_engine
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torchvision import transforms as T
from yacs.config import CfgNode

from p2c.compat import EngineError


def available(name):
    """An engine with the tiny data and trainer; where real Dassl cannot be imported the test is skipped."""
    try:
        return tiny_engine(name)
    except EngineError as error:
        pytest.skip(f"real Dassl cannot be imported: {error.__cause__}")


@pytest.fixture(scope="session", params=["p2c", "dassl"])
def engine(request):
    return available(request.param)


def dassl_fails(fault: str, raises, when: bool = True):
    """Mark a test that real Dassl fails, in this way, because of a fault of its own."""
    mark = pytest.mark.xfail(when, reason=fault, raises=raises, strict=True)
    return pytest.mark.parametrize("engine", ["p2c", pytest.param("dassl", marks=mark)], indirect=True)


# Configuration

# Section by section, the keys of Dassl with their defaults, as dotted names.
FACTS = {
    "VERSION": 1, "OUTPUT_DIR": "./output", "RESUME": "", "SEED": -1, "USE_CUDA": True, "VERBOSE": True,
    "INPUT.SIZE": (224, 224), "INPUT.INTERPOLATION": "bilinear", "INPUT.TRANSFORMS": (), "INPUT.NO_TRANSFORM": False,
    "INPUT.PIXEL_MEAN": [0.485, 0.456, 0.406], "INPUT.PIXEL_STD": [0.229, 0.224, 0.225], "INPUT.CROP_PADDING": 4,
    "INPUT.RRCROP_SCALE": (0.08, 1.0), "INPUT.CUTOUT_N": 1, "INPUT.CUTOUT_LEN": 16, "INPUT.GN_MEAN": 0.0,
    "INPUT.GN_STD": 0.15, "INPUT.RANDAUGMENT_N": 2, "INPUT.RANDAUGMENT_M": 10, "INPUT.COLORJITTER_B": 0.4,
    "INPUT.COLORJITTER_C": 0.4, "INPUT.COLORJITTER_S": 0.4, "INPUT.COLORJITTER_H": 0.1, "INPUT.RGS_P": 0.2,
    "INPUT.GB_P": 0.5, "INPUT.GB_K": 21,
    "DATASET.ROOT": "", "DATASET.NAME": "", "DATASET.SOURCE_DOMAINS": (), "DATASET.TARGET_DOMAINS": (),
    "DATASET.NUM_SHOTS": -1, "DATASET.NUM_LABELED": -1, "DATASET.VAL_PERCENT": 0.1, "DATASET.STL10_FOLD": -1,
    "DATASET.CIFAR_C_TYPE": "", "DATASET.CIFAR_C_LEVEL": 1, "DATASET.ALL_AS_UNLABELED": False,
    "DATALOADER.NUM_WORKERS": 4, "DATALOADER.K_TRANSFORMS": 1, "DATALOADER.RETURN_IMG0": False,
    "DATALOADER.TRAIN_X.SAMPLER": "RandomSampler", "DATALOADER.TRAIN_X.BATCH_SIZE": 32,
    "DATALOADER.TRAIN_X.N_DOMAIN": 0, "DATALOADER.TRAIN_X.N_INS": 16, "DATALOADER.TRAIN_U.SAME_AS_X": True,
    "DATALOADER.TRAIN_U.SAMPLER": "RandomSampler", "DATALOADER.TRAIN_U.BATCH_SIZE": 32,
    "DATALOADER.TRAIN_U.N_DOMAIN": 0, "DATALOADER.TRAIN_U.N_INS": 16,
    "DATALOADER.TEST.SAMPLER": "SequentialSampler", "DATALOADER.TEST.BATCH_SIZE": 32,
    "MODEL.INIT_WEIGHTS": "", "MODEL.BACKBONE.NAME": "", "MODEL.BACKBONE.PRETRAINED": True, "MODEL.HEAD.NAME": "",
    "MODEL.HEAD.HIDDEN_LAYERS": (), "MODEL.HEAD.ACTIVATION": "relu", "MODEL.HEAD.BN": True, "MODEL.HEAD.DROPOUT": 0.0,
    "OPTIM.NAME": "adam", "OPTIM.LR": 0.0003, "OPTIM.WEIGHT_DECAY": 5e-4, "OPTIM.MOMENTUM": 0.9,
    "OPTIM.SGD_DAMPNING": 0, "OPTIM.SGD_NESTEROV": False, "OPTIM.RMSPROP_ALPHA": 0.99, "OPTIM.ADAM_BETA1": 0.9,
    "OPTIM.ADAM_BETA2": 0.999, "OPTIM.STAGED_LR": False, "OPTIM.NEW_LAYERS": (), "OPTIM.BASE_LR_MULT": 0.1,
    "OPTIM.LR_SCHEDULER": "single_step", "OPTIM.STEPSIZE": (-1,), "OPTIM.GAMMA": 0.1, "OPTIM.MAX_EPOCH": 10,
    "OPTIM.WARMUP_EPOCH": -1, "OPTIM.WARMUP_TYPE": "linear", "OPTIM.WARMUP_CONS_LR": 1e-5,
    "OPTIM.WARMUP_MIN_LR": 1e-5, "OPTIM.WARMUP_RECOUNT": True,
    "TRAIN.CHECKPOINT_FREQ": 0, "TRAIN.PRINT_FREQ": 10, "TRAIN.COUNT_ITER": "train_x",
    "TEST.EVALUATOR": "Classification", "TEST.PER_CLASS_RESULT": False, "TEST.COMPUTE_CMAT": False,
    "TEST.NO_TEST": False, "TEST.SPLIT": "test", "TEST.FINAL_MODEL": "last_step", "TRAINER.NAME": "",
}

# What the published training scripts of CoOp, CoCoOp, MaPLe and PromptSRC add to TRAINER before merging.
METHODS = {
    "COOP": {"N_CTX": 16, "CSC": False, "CTX_INIT": "", "PREC": "fp16", "CLASS_TOKEN_POSITION": "end"},
    "COCOOP": {"N_CTX": 16, "CTX_INIT": "", "PREC": "fp16"},
    "MAPLE": {"N_CTX": 2, "CTX_INIT": "a photo of a", "PREC": "fp16", "PROMPT_DEPTH": 9},
    "IVLP": {
        "N_CTX_VISION": 2, "N_CTX_TEXT": 2, "CTX_INIT": "a photo of a", "PREC": "fp16",
        "PROMPT_DEPTH_VISION": 9, "PROMPT_DEPTH_TEXT": 9,
    },
    "VPT": {"N_CTX_VISION": 2, "CTX_INIT": "a photo of a", "PREC": "fp16", "PROMPT_DEPTH_VISION": 1},
    "PROMPTSRC": {
        "N_CTX_VISION": 4, "N_CTX_TEXT": 4, "CTX_INIT": "a photo of a", "PREC": "fp16", "PROMPT_DEPTH_VISION": 9,
        "PROMPT_DEPTH_TEXT": 9, "TEXT_LOSS_WEIGHT": 25, "IMAGE_LOSS_WEIGHT": 10, "GPA_MEAN": 15, "GPA_STD": 1,
    },
}

# All the keys that the published YAML files of CoOp and MaPLe set outside TRAINER, with values of theirs.
PUBLISHED = """
DATALOADER: {NUM_WORKERS: 8, TRAIN_X: {BATCH_SIZE: 4}, TEST: {BATCH_SIZE: 100}}
DATASET: {NAME: "OxfordPets"}
INPUT:
  SIZE: (224, 224)
  INTERPOLATION: "bicubic"
  PIXEL_MEAN: [0.48145466, 0.4578275, 0.40821073]
  PIXEL_STD: [0.26862954, 0.26130258, 0.27577711]
  TRANSFORMS: ["random_resized_crop", "random_flip", "normalize"]
OPTIM:
  NAME: "sgd"
  LR: 0.0035
  MAX_EPOCH: 5
  LR_SCHEDULER: "cosine"
  WARMUP_EPOCH: 1
  WARMUP_TYPE: "constant"
  WARMUP_CONS_LR: 1e-5
TRAIN: {PRINT_FREQ: 20}
MODEL: {BACKBONE: {NAME: "ViT-B/16"}}
"""


def flat(node, prefix=""):
    """The settings of a tree by their dotted names, without those of Dassl's own methods."""
    for key, value in node.items():
        if not isinstance(value, CfgNode):
            yield f"{prefix}{key}", value
        elif prefix != "TRAINER.":
            yield from flat(value, f"{prefix}{key}.")


def merge_yaml(cfg, tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    cfg.merge_from_file(str(path))


def test_default_tree_has_every_key_with_its_type_and_value(engine):
    """Check 1."""
    tree = dict(flat(engine.get_cfg_default()))
    assert tree == FACTS
    assert {key: type(value) for key, value in tree.items()} == {key: type(value) for key, value in FACTS.items()}


def test_default_trees_are_independent(engine):
    """Check 1."""
    one, other = engine.get_cfg_default(), engine.get_cfg_default()
    one.OPTIM.LR = 1.0
    one.INPUT.PIXEL_MEAN.append(0.0)
    assert dict(flat(other)) == FACTS


def test_values_in_a_yaml_become_the_types_of_the_defaults(engine, tmp_path):
    """Check 2."""
    cfg = engine.get_cfg_default()
    merge_yaml(cfg, tmp_path, PUBLISHED)
    assert cfg.INPUT.SIZE == (224, 224)
    assert isinstance(cfg.OPTIM.WARMUP_CONS_LR, float) and cfg.OPTIM.WARMUP_CONS_LR == 1e-05
    assert cfg.INPUT.TRANSFORMS == ("random_resized_crop", "random_flip", "normalize")


def test_faults_in_a_config_name_the_key(engine, tmp_path):
    """Check 3."""
    with pytest.raises(KeyError, match="OPTIM.FOO"):
        merge_yaml(engine.get_cfg_default(), tmp_path, "OPTIM: {FOO: 1}")
    with pytest.raises(AssertionError, match="DATASET.FOO"):
        engine.get_cfg_default().merge_from_list(["DATASET.FOO", "1"])
    with pytest.raises(ValueError, match="OPTIM.LR"):
        merge_yaml(engine.get_cfg_default(), tmp_path, "OPTIM: {LR: 1}")


@pytest.mark.parametrize("method", METHODS)
def test_keys_of_the_published_configs_merge(engine, method, tmp_path):
    """Check 4."""
    cfg = engine.get_cfg_default()
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    cfg.TRAINER[method] = CfgNode(METHODS[method])
    settings = ", ".join(f"{key}: {value!r}" for key, value in METHODS[method].items())
    merge_yaml(cfg, tmp_path, f"{PUBLISHED}\nTRAINER: {{{method}: {{{settings}}}}}")
    assert dict(cfg.TRAINER[method]) == METHODS[method]


def test_clean_cfg_removes_the_nodes_of_other_trainers(engine):
    """Check 5."""
    cfg = engine.get_cfg_default()
    for name in ("P2C", "MAPLE", "COOP"):
        cfg.TRAINER[name] = CfgNode({"X": 1})
    cfg.freeze()
    engine.clean_cfg(cfg, "P2C")
    assert set(cfg.TRAINER) == {"NAME", "P2C"}


def test_a_trainer_is_buildable_from_a_pickled_config(engine, tiny_root, tmp_path):
    """Workers started by spawn receive the config that way."""
    cfg = pickle.loads(pickle.dumps(tiny_config(tiny_root, tmp_path, engine=engine)))
    assert cfg.is_frozen() and engine.build_trainer(cfg).num_classes == 6


# Registries


def test_a_name_is_registered_once_unless_forced(engine):
    """Check 6."""
    registry = engine.Registry("FOO")

    @registry.register()
    class A:
        pass

    assert registry.get("A") is A and isinstance(A, type)
    with pytest.raises(KeyError, match='An object named "A" was already registered in "FOO" registry'):
        registry.register(A)
    replacement = type("A", (), {})
    assert registry.register(replacement, force=True) is None
    assert registry.get("A") is replacement
    with pytest.raises(KeyError, match='Object name "B" does not exist in "FOO" registry'):
        registry.get("B")


def test_names_come_in_order_of_registration(engine):
    registry = engine.Registry("FOO")
    for name in ("b", "c", "a"):
        registry.register(type(name, (), {}))
    assert registry.registered_names() == ["b", "c", "a"]


@pytest.mark.parametrize("build, registry, key, wrong, right", [
    ("build_trainer", "TRAINER_REGISTRY", "TRAINER.NAME", "TinyTrianer", "TinyTrainer"),
    ("build_dataset", "DATASET_REGISTRY", "DATASET.NAME", "TinyUnlabelled", "TinyUnlabeled"),
    ("build_evaluator", "EVALUATOR_REGISTRY", "TEST.EVALUATOR", "Clasification", "Classification"),
])
def test_unknown_names_are_answered_with_the_choices_and_a_guess(engine, build, registry, key, wrong, right):
    """Check 7."""
    cfg = engine.get_cfg_default()
    cfg.merge_from_list([key, wrong])
    with pytest.raises(ValueError) as error:
        getattr(engine, build)(cfg)
    names = getattr(engine, registry).registered_names()
    assert str(error.value) == (
        f"The requested one is expected to belong to {names}, but got [{wrong}] (do you mean [{right}]?)"
    )


def test_the_last_of_equally_similar_names_is_guessed(engine):
    assert engine.get_most_similar_str_to_a_from_b("ab", ["ax", "ay", "zz"]) == "ay"
    assert engine.get_most_similar_str_to_a_from_b("ab", []) is None
    assert engine.check_availability("ab", ["ab"]) is None


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


def test_a_data_set_needs_training_images(engine):
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


# Optimisers and schedules

NO_VERBOSE = "verbose" not in inspect.signature(LRScheduler.__init__).parameters  # torch has removed the argument


@pytest.fixture
def mended_warm_up(monkeypatch):
    """Lets real Dassl's warm-up schedules be built although they give torch an argument that it has removed (F1)."""
    init = LRScheduler.__init__
    monkeypatch.setattr(LRScheduler, "__init__", lambda self, optimizer, last_epoch=-1, _verbose=False:
                        init(self, optimizer, last_epoch))


def optim_config(engine, **settings):
    opts = engine.get_cfg_default().OPTIM
    opts.merge_from_list([item for pair in settings.items() for item in pair])
    return opts


def rates_of_steps(optimizer, scheduler, epochs):
    """The rate of each parameter group in each epoch, and after the last."""
    seen = []
    for _ in range(epochs):
        seen.append([group["lr"] for group in optimizer.param_groups])
        assert scheduler.get_last_lr() == seen[-1]
        optimizer.step()
        scheduler.step()
    return seen, scheduler.get_last_lr()


MAPLE = dict(LR=0.0035, MAX_EPOCH=5, LR_SCHEDULER="cosine", WARMUP_EPOCH=1, WARMUP_TYPE="constant")
MAPLE_RATES = [1e-05, 0.0035, 0.0031657797401561582, 0.002290779740156158, 0.001209220259843842]
STEP = dict(LR=0.0035, MAX_EPOCH=6, LR_SCHEDULER="single_step", STEPSIZE=(2,))
STEPS = dict(LR=0.0035, MAX_EPOCH=6, LR_SCHEDULER="multi_step", STEPSIZE=(2, 4))
ONE = dict(WARMUP_EPOCH=1, WARMUP_TYPE="constant")

MEASURED = [
    (MAPLE, MAPLE_RATES),
    (MAPLE | dict(LR=0.0026, MAX_EPOCH=2), [1e-05, 0.0026]),
    (MAPLE | dict(LR=0.0025), [
        1e-05, 0.0025, 0.0022612712429686843, 0.0016362712429686841, 0.0008637287570313157]),
    (MAPLE | dict(LR=0.002, MAX_EPOCH=10), [
        1e-05, 0.002, 0.0019510565162951536, 0.0018090169943749473, 0.0015877852522924731, 0.0013090169943749475, 0.001,
        0.0006909830056250527, 0.000412214747707527, 0.00019098300562505268]),
    (MAPLE | dict(WARMUP_EPOCH=-1), [
        0.0035, 0.0031657797401561582, 0.002290779740156158, 0.001209220259843842, 0.0003342202598438421]),
    (MAPLE | dict(WARMUP_RECOUNT=False), [
        1e-05, 0.0035, 0.0025326237921249263, 0.001336881039375368, 0.00036950483150029455]),
    (MAPLE | dict(MAX_EPOCH=6, WARMUP_EPOCH=2), [
        1e-05, 1e-05, 0.0035, 0.003265544456622768, 0.002625, 0.00175]),
    (MAPLE | dict(MAX_EPOCH=6, WARMUP_EPOCH=2, WARMUP_RECOUNT=False), [
        1e-05, 1e-05, 0.0035, 0.002333333333333333, 0.001166666666666667, 0.00031260739116964297]),
    (MAPLE | dict(MAX_EPOCH=8, WARMUP_EPOCH=3, WARMUP_TYPE="linear"), [
        1e-05, 0.0011666666666666668, 0.0023333333333333335, 0.0035, 0.0033667891818947517, 0.002987436867076458,
        0.002419696006638907, 0.00175]),
    (STEP, [0.0035, 0.0035, 0.00035, 0.00035, 3.5e-05, 3.5e-05]),
    (STEP | ONE, [1e-05, 0.0035, 0.0035, 0.00035, 0.00035, 3.5e-05]),
    (STEPS, [0.0035, 0.0035, 0.00035, 0.00035, 3.5e-05, 3.5e-05]),
    (STEPS | ONE, [1e-05, 0.0035, 0.0035, 0.00035, 0.00035, 3.5e-05]),
    (STEPS | ONE | dict(WARMUP_RECOUNT=False), [1e-05, 0.0035, 0.00035, 0.00035, 3.5e-05, 3.5e-05]),
]


@dassl_fails("F1: a schedule with warm-up gives torch an argument that it has removed", TypeError, when=NO_VERBOSE)
def test_a_schedule_with_warm_up_can_be_built(engine):
    opts = optim_config(engine, NAME="sgd", **MAPLE)
    optimizer = engine.build_optimizer(nn.Linear(2, 2), opts)
    assert engine.build_lr_scheduler(optimizer, opts).get_last_lr() == [1e-05]


@pytest.mark.parametrize("settings, expected", MEASURED)
def test_rates_of_the_schedules(engine, mended_warm_up, settings, expected):
    """Check 20."""
    opts = optim_config(engine, NAME="sgd", **settings)
    optimizer = engine.build_optimizer(nn.Linear(2, 2), opts)
    seen, _ = rates_of_steps(optimizer, engine.build_lr_scheduler(optimizer, opts), len(expected))
    assert [lr for (lr,) in seen] == pytest.approx(expected, rel=1e-9)


def test_rate_after_the_last_epoch(engine, mended_warm_up):
    """Check 20."""
    opts = optim_config(engine, NAME="sgd", **MAPLE)
    optimizer = engine.build_optimizer(nn.Linear(2, 2), opts)
    _, last = rates_of_steps(optimizer, engine.build_lr_scheduler(optimizer, opts), 5)
    assert last == pytest.approx([0.0003342202598438421], rel=1e-9)


class Staged(nn.Module):
    def __init__(self):
        super().__init__()
        self.base, self.mid, self.new = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)


def test_staged_rates_follow_the_schedule(engine, mended_warm_up):
    """Check 20."""
    settings = MAPLE | dict(LR=0.01, MAX_EPOCH=4, STAGED_LR=True, NEW_LAYERS=("new",))
    opts = optim_config(engine, NAME="sgd", **settings)
    optimizer = engine.build_optimizer(Staged(), opts)
    seen, _ = rates_of_steps(optimizer, engine.build_lr_scheduler(optimizer, opts), 4)
    expected = [(1e-05, 1e-05), (0.001, 0.01), (0.0008535533905932737, 0.008535533905932738), (0.0005, 0.005)]
    for got, wanted in zip(seen, expected, strict=True):
        assert got == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("name, kind, expected", [
    ("adam", "Adam", dict(betas=(0.9, 0.999), amsgrad=False)),
    ("amsgrad", "Adam", dict(betas=(0.9, 0.999), amsgrad=True)),
    ("sgd", "SGD", dict(momentum=0.9, dampening=0, nesterov=False)),
    ("rmsprop", "RMSprop", dict(momentum=0.9, alpha=0.99)),
    ("radam", "RAdam", dict(betas=(0.9, 0.999))),
    ("adamw", "AdamW", dict(betas=(0.9, 0.999))),
])
def test_optimiser_names(engine, name, kind, expected):
    """Check 21; real Dassl has a RAdam of its own."""
    optimizer = engine.build_optimizer(nn.Linear(2, 2), optim_config(engine, NAME=name))
    assert isinstance(optimizer, torch.optim.Optimizer) and type(optimizer).__name__ == kind
    expected = {"lr": 0.0003, "weight_decay": 5e-4, **expected}
    assert {key: optimizer.defaults[key] for key in expected} == expected


def test_unknown_optimisers_and_schedules_are_refused(engine):
    """Check 21."""
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="'adam', 'amsgrad', 'sgd', 'rmsprop', 'radam', 'adamw'.*but got SGD"):
        engine.build_optimizer(model, optim_config(engine, NAME="SGD"))
    optimizer = engine.build_optimizer(model, optim_config(engine))
    with pytest.raises(ValueError, match="but got step"):
        engine.build_lr_scheduler(optimizer, optim_config(engine, LR_SCHEDULER="step"))
    with pytest.raises(ValueError):
        engine.build_lr_scheduler(optimizer, optim_config(engine, WARMUP_EPOCH=1, WARMUP_TYPE="exponential"))
    with pytest.raises(TypeError, match="(?i)stepsize"):
        engine.build_lr_scheduler(optimizer, optim_config(engine, STEPSIZE=(1.5,)))
    opts = optim_config(engine, LR_SCHEDULER="multi_step")
    opts.STEPSIZE = 3
    with pytest.raises(TypeError, match="(?i)stepsize"):
        engine.build_lr_scheduler(optimizer, opts)


def test_new_layers_train_at_the_full_rate(engine):
    """Check 22."""
    opts = optim_config(engine, LR=0.01, STAGED_LR=True, NEW_LAYERS=("new",))
    groups = engine.build_optimizer(Staged(), opts).param_groups
    assert [(group["lr"], len(group["params"])) for group in groups] == [(0.001, 4), (0.01, 2)]
    with pytest.raises(TypeError, match="(?i)staged_lr"):
        engine.build_optimizer([torch.zeros(1)], opts)


def test_given_groups_replace_the_model(engine):
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": 0.5}]
    optimizer = engine.build_optimizer(Staged(), optim_config(engine), param_groups=groups)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5]


@pytest.fixture
def resumed_schedule(engine, mended_warm_up):
    """resumed_schedule(copied): a new schedule and its optimiser, given a copy of the state after two epochs."""
    def make(copied):
        opts = optim_config(engine, NAME="sgd", **MAPLE)
        optimizer = engine.build_optimizer(nn.Linear(2, 2), opts)
        scheduler = engine.build_lr_scheduler(optimizer, opts)
        optimizer.step(), scheduler.step(), scheduler.step()
        live = engine.build_optimizer(nn.Linear(2, 2), opts)
        resumed = engine.build_lr_scheduler(live, opts)
        resumed.load_state_dict(copied(scheduler.state_dict()))
        return live, resumed
    return make


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


@dassl_fails("F2: the state of a schedule with warm-up holds objects, which torch.load refuses", pickle.UnpicklingError)
def test_the_state_of_a_schedule_survives_a_file(resumed_schedule):
    """Check 23."""
    _, resumed = resumed_schedule(through_a_file)
    resumed.step()
    assert resumed.get_last_lr() == pytest.approx([0.002290779740156158], rel=1e-9)
    assert resumed.last_epoch == 3 and resumed.base_lrs == [0.0035]


@dassl_fails("F3: a resumed schedule with warm-up acts on a copy of the optimiser, and the rate stays", AssertionError)
def test_a_resumed_schedule_acts_on_the_live_optimiser(resumed_schedule):
    """Check 23."""
    live, resumed = resumed_schedule(copy.deepcopy)
    live.step(), resumed.step()
    assert live.param_groups[0]["lr"] == pytest.approx(0.002290779740156158, rel=1e-9)


# Training

NUMBER = r"\d+\.\d{4} \(\d+\.\d{4}\)"
PROGRESS = re.compile(
    r"epoch \[\d+/\d+\] batch \[\d+/\d+\] time \d+\.\d{3} \(\d+\.\d{3}\) data \d+\.\d{3} \(\d+\.\d{3}\) "
    rf"loss {NUMBER} acc {NUMBER} lr \d\.\d{{4}}e[+-]\d\d eta \d+:\d\d:\d\d"
)


def progress_lines(out):
    return [line for line in out.splitlines() if line.startswith("epoch [")]


def narrator(engine):
    """A trainer that notes the calls that the engine makes."""
    class Narrator(engine.TinyTrainer):
        def __init__(self, cfg):
            self.calls = []
            super().__init__(cfg)

        def note(self, name):
            self.calls.append((name, getattr(self, "epoch", None)))

        def check_cfg(self, cfg):
            assert not hasattr(self, "cfg")
            self.note("check_cfg")

        def build_data_loader(self):
            self.note("build_data_loader")
            super().build_data_loader()

        def build_model(self):
            self.note("build_model")
            super().build_model()

        def before_train(self):
            self.note("before_train")
            super().before_train()

        def before_epoch(self):
            self.note("before_epoch")

        def run_epoch(self):
            self.note("run_epoch")
            super().run_epoch()

        def after_epoch(self):
            self.note("after_epoch")
            super().after_epoch()

        def after_train(self):
            self.note("after_train")
            super().after_train()

        def test(self, split=None):
            self.note(f"test {split}")
            return super().test(split)
    return Narrator


def test_order_of_construction(engine, tiny_trainer, monkeypatch):
    """Check 24."""
    order, build_evaluator = [], engine.build_evaluator
    kind = narrator(engine)
    monkeypatch.setattr(kind, "note", lambda self, name: order.append(name))
    monkeypatch.setitem(
        engine.SimpleTrainer.__init__.__globals__, "build_evaluator",
        lambda cfg, **kwargs: order.extend(["evaluator", kwargs]) or build_evaluator(cfg, **kwargs),
    )
    trainer = tiny_trainer(kind=kind)
    lab2cname = trainer.dm.dataset.lab2cname
    assert order == ["check_cfg", "build_data_loader", "build_model", "evaluator", {"lab2cname": lab2cname}]
    assert trainer.best_result == -float("inf")
    assert (trainer.start_epoch, trainer.epoch, trainer.max_epoch) == (0, 0, 5)
    assert trainer.device == torch.device("cpu") and trainer.output_dir == trainer.cfg.OUTPUT_DIR
    assert trainer.num_classes == 6 and trainer.num_source_domains == 0 and trainer.train_loader_u is None
    assert len(trainer.train_loader_x) == 12 and len(trainer.val_loader) == len(trainer.test_loader) == 3


def test_order_of_hooks_and_batches(engine, tiny_trainer):
    """Check 25."""
    trainer = tiny_trainer("OPTIM.MAX_EPOCH", 2, kind=narrator(engine))
    trainer.calls.clear()
    trainer.train()
    assert trainer.calls == [
        ("before_train", 0), ("before_epoch", 0), ("run_epoch", 0), ("after_epoch", 0), ("before_epoch", 1),
        ("run_epoch", 1), ("after_epoch", 1), ("after_train", 1), ("test None", 1),
    ]
    assert trainer.num_batches == 12
    assert [(epoch, batch) for epoch, batch, _, _ in trainer.seen] == [(e, b) for e in range(2) for b in range(12)]
    first, second = ([i for epoch, _, _, indices in trainer.seen if epoch == e for i in indices] for e in range(2))
    assert sorted(first) == sorted(second) == list(range(72)) and first != second


def test_rates_during_training(tiny_trainer, capsys):
    """Check 26."""
    trainer = tiny_trainer("TRAIN.PRINT_FREQ", 12)
    trainer.train()
    assert rates(trainer) == pytest.approx(MAPLE_RATES, rel=1e-9)
    assert "lr 3.5000e-03" in progress_lines(capsys.readouterr().out)[0]


@pytest.mark.parametrize("freq, batches", [(5, [5, 10]), (20, list(range(1, 13))), (12, [12])])
def test_progress_lines(tiny_trainer, capsys, freq, batches):
    """Check 27."""
    tiny_trainer("TRAIN.PRINT_FREQ", freq, "OPTIM.MAX_EPOCH", 1).train()
    lines = progress_lines(capsys.readouterr().out)
    assert [int(re.search(r"batch \[(\d+)/12\]", line)[1]) for line in lines] == batches
    assert all(PROGRESS.fullmatch(line) for line in lines)


def test_progress_lines_average_every_batch(engine, tiny_trainer, capsys):
    """A line shows the last batch's loss and the mean over all batches of the epoch so far."""
    losses = []

    class Listening(engine.TinyTrainer):
        def forward_backward(self, batch):
            summary = super().forward_backward(batch)
            losses.append(summary["loss"].item())
            return summary

    tiny_trainer("OPTIM.MAX_EPOCH", 1, kind=Listening).train()
    line = progress_lines(capsys.readouterr().out)[1]
    assert f"loss {losses[9]:.4f} ({sum(losses[:10]) / 10:.4f})" in line


def test_every_number_becomes_a_curve(engine, tiny_trainer, monkeypatch):
    points = {}
    monkeypatch.setattr(engine.TrainerBase, "write_scalar",
                        lambda self, tag, value, step: points.update({(tag, step): value}))
    trainer = tiny_trainer("OPTIM.MAX_EPOCH", 2)
    trainer.train()
    steps = range(24)
    assert {key for key in points if key[0].startswith("train/")} == {
        (f"train/{name}", step) for name in ("loss", "acc", "lr") for step in steps
    }
    assert points["train/lr", 10] == 1e-5 and points["train/lr", 11] == pytest.approx(0.0035)
    assert points["test/accuracy", 1] == trainer.test()


def test_lines_at_the_end_of_a_run(tiny_trainer, capsys):
    """Check 28."""
    tiny_trainer("OPTIM.MAX_EPOCH", 2).train()
    out = capsys.readouterr().out
    assert out.count("Evaluate on") == 1
    landmarks = [
        "Finish training\n", "Deploy the last-epoch model\n", "Evaluate on the *test* set\n", "=> result\n",
        "Elapsed: 0:0",
    ]
    positions = [out.index(landmark) for landmark in landmarks]
    assert positions == sorted(positions)


def best_file(trainer):
    return torch.load(f"{trainer.output_dir}/prompt_learner/model-best.pth.tar")


def test_best_model_on_validation_data_is_deployed(engine, tiny_trainer, capsys):
    """Check 29."""
    results, saved = iter([50.0, 60.0, 60.0, 70.0, 65.0]), []

    class Scripted(engine.TinyTrainer):
        def test(self, split=None):
            result = super().test(split)
            return next(results) if split == "val" else result

        def save_model(self, epoch, *args, **kwargs):
            saved.append((epoch, kwargs))
            super().save_model(epoch, *args, **kwargs)

    trainer = tiny_trainer("TEST.FINAL_MODEL", "best_val", kind=Scripted)
    trainer.train()
    out = capsys.readouterr().out
    assert out.count("Evaluate on the *val* set") == 5
    assert [(epoch, kwargs["val_result"]) for epoch, kwargs in saved if kwargs] == [(0, 50.0), (1, 60.0), (3, 70.0)]
    best = best_file(trainer)
    assert (best["epoch"], best["val_result"]) == (4, 70.0)
    assert trainer.model.linear.weight.equal(best["state_dict"]["linear.weight"])
    loaded = f"Load {trainer.output_dir}/prompt_learner/model-best.pth.tar to prompt_learner (epoch=4, val_result=70.0)"
    assert out.index("Deploy the model with the best val performance") < out.index(loaded) < out.index("*test* set")


def test_val_result_is_the_accuracy_before_rounding(tiny_trainer, capsys):
    """Check 29."""
    trainer = tiny_trainer("TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 1)
    trainer.train()
    printed = float(re.search(r"\* accuracy: ([\d.]+)%", capsys.readouterr().out)[1])
    value = best_file(trainer)["val_result"]
    assert round(value, 1) == printed and value * 24 / 100 == pytest.approx(round(value * 24 / 100))


def test_without_validation_data_the_test_data_are_used_and_named(tiny_trainer, capsys):
    """Check 29."""
    tiny_trainer("DATASET.NAME", "TinyDataWithoutVal", "TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 1).train()
    out = capsys.readouterr().out
    assert out.count("Evaluate on the *test* set") == 2 and "*val*" not in out


def test_no_test_means_no_evaluation(tiny_trainer, tmp_path, capsys):
    """Check 30."""
    tiny_trainer("TEST.NO_TEST", True, "TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 1).train()
    assert "Evaluate" not in capsys.readouterr().out
    assert not (tmp_path / "run/prompt_learner/model-best.pth.tar").exists()


def untrained(engine):
    class Untrained(engine.TrainerX):
        def build_model(self):
            self.model = Pooled(self.num_classes)
    return Untrained


def test_a_trainer_without_models_can_be_tested(engine, tiny_trainer, capsys):
    """Check 34."""
    accuracy = tiny_trainer(kind=untrained(engine)).test()
    assert f"* accuracy: {accuracy:.1f}%" in capsys.readouterr().out


@dassl_fails("F11: training without a registered model uses a variable that nothing has set", UnboundLocalError)
def test_training_without_models_only_tests(engine, tiny_trainer, capsys):
    """Check 34."""
    tiny_trainer(kind=untrained(engine)).train()
    assert capsys.readouterr().out.count("Evaluate on the *test* set") == 1


def test_a_loss_that_is_not_finite_ends_the_run(engine, tiny_trainer):
    """Check 37."""
    class Breaking(engine.TinyTrainer):
        def model_backward_and_update(self, loss, names=None):
            super().model_backward_and_update(loss * (torch.nan if self.batch_idx == 2 else 1), names)

    trainer = tiny_trainer(kind=Breaking)
    with pytest.raises(FloatingPointError, match="Loss is infinite or NaN!"):
        trainer.train()
    assert (trainer.epoch, trainer.batch_idx) == (0, 2)


G13 = "G13: an evaluation draws from the generator that training draws from"


@dassl_fails(G13, AssertionError)
def test_evaluations_do_not_change_training(tiny_trainer, tmp_path):
    one = tiny_trainer(output_dir=tmp_path / "one")
    one.train()
    other = tiny_trainer("TEST.FINAL_MODEL", "best_val", "DATALOADER.NUM_WORKERS", 1, output_dir=tmp_path / "other")
    other.train()
    assert one.seen == other.seen
    last = [torch.load(f"{t.output_dir}/prompt_learner/model.pth.tar-5")["state_dict"] for t in (one, other)]
    assert all(last[0][name].equal(last[1][name]) for name in last[0])


@dassl_fails(G13, AssertionError)
@pytest.mark.parametrize("workers", [0, 1])
def test_an_evaluation_leaves_the_global_generators_alone(engine, tiny_trainer, workers):
    class Drawing(engine.TinyTrainer):
        def model_inference(self, image):
            return self.model(image + torch.rand(image.shape))

    trainer = tiny_trainer("DATALOADER.NUM_WORKERS", workers, kind=Drawing)
    state = torch.get_rng_state()
    trainer.test()
    assert torch.get_rng_state().equal(state)


class FixedPrompts(nn.Module):
    """Class features that are expensive, hence kept while the prompts cannot change."""

    def __init__(self, num_classes):
        super().__init__()
        self.context = nn.Parameter(torch.zeros(num_classes, 48))
        self.encoded, self.kept = 0, None

    def train(self, mode=True):
        self.kept = None
        return super().train(mode)

    def forward(self, image):
        if self.training or self.kept is None:
            self.encoded += 1
            self.kept = self.context * 1
        return nn.functional.adaptive_avg_pool2d(image, 4).flatten(1) @ self.kept.T


def test_modes_tell_when_prompts_are_fixed(engine, tiny_trainer):
    """Check 39: one encoding per test, and a new one after training."""
    class Keeping(engine.TinyTrainer):
        def build_model(self):
            super().build_model()
            self.model = FixedPrompts(self.num_classes)
            self.optim = engine.build_optimizer(self.model, self.cfg.OPTIM)
            self._models["prompt_learner"], self._optims["prompt_learner"] = self.model, self.optim
            self._scheds["prompt_learner"] = None

    trainer = tiny_trainer("OPTIM.MAX_EPOCH", 1, kind=Keeping)
    first = trainer.test()
    assert trainer.model.encoded == 1
    trainer.train()
    assert trainer.model.encoded == 1 + 12 + 1
    assert trainer.test() != first


def test_registering_models(engine):
    class Bare(engine.TrainerBase):
        def __init__(self):
            pass

    with pytest.raises(AttributeError, match="super"):
        Bare().register_model("a")
    trainer = engine.TrainerBase()
    model = nn.Linear(1, 1)
    trainer.register_model("a", model)
    with pytest.raises(AssertionError, match="Found duplicate model names"):
        trainer.register_model("a", model)
    with pytest.raises(AssertionError):
        trainer.get_model_names("b")
    with pytest.raises(KeyError):
        trainer.set_model_mode("trian")
    trainer.set_model_mode("test")
    assert not model.training


@pytest.mark.parametrize("count, batches", [("train_x", 4), ("train_u", 12), ("smaller_one", 4)])
def test_unlabeled_data_beside_labeled(engine, tiny_trainer, count, batches):
    class TinySemiSupervised(engine.TrainerXU):
        build_model = engine.TinyTrainer.build_model

        def forward_backward(self, batch_x, batch_u):
            self.seen.append((batch_x["index"].tolist(), batch_u["index"].tolist()))
            image, label, unlabeled = self.parse_batch_train(batch_x, batch_u)
            loss = nn.functional.cross_entropy(self.model(image), label)
            self.model_backward_and_update(loss)
            return {"loss": loss, "unlabeled": unlabeled.mean()}

    trainer = tiny_trainer("DATASET.NAME", "TinyUnlabeled", "TRAIN.COUNT_ITER", count, "OPTIM.MAX_EPOCH", 1,
                           kind=TinySemiSupervised)
    trainer.train()
    assert len(trainer.seen) == batches
    if count == "train_u":
        passes = [sum((x for x, _ in trainer.seen[first:first + 4]), []) for first in (0, 4, 8)]
        assert all(sorted(order) == list(range(24)) for order in passes)
        assert passes[0] != passes[1] != passes[2]
        assert sorted(sum((u for _, u in trainer.seen), [])) == list(range(72))


def test_both_engines_train_alike(tiny_root, tmp_path):
    """Check 50: on the same batches from the same start, the same losses, rates and accuracy."""
    batches, runs = None, []
    for name in ("p2c", "dassl"):
        engine = available(name)

        class Recording(engine.TinyTrainer):
            def before_epoch(self):
                torch.manual_seed(self.epoch)  # for the noise that the trainer adds

            def forward_backward(self, batch):
                summary = super().forward_backward(batch)
                self.losses.append(summary["loss"].item())
                return summary

        cfg = tiny_config(tiny_root, tmp_path / name, engine=engine)
        engine.set_random_seed(cfg.SEED)
        trainer = Recording(cfg)
        trainer.losses = []
        batches = trainer.train_loader_x = batches or list(trainer.train_loader_x)
        trainer.train()
        runs.append((trainer.losses, trainer.seen, trainer.test(), trainer.model.linear.weight.tolist()))
    assert len(runs[0][0]) == 60 and runs[0] == runs[1]


# Checkpoints


def test_files_of_a_run(tiny_trainer):
    """Check 31."""
    trainer = tiny_trainer("TRAIN.CHECKPOINT_FREQ", 2)
    trainer.train()
    folder = Path(trainer.output_dir, "prompt_learner")
    names = {path.name for path in folder.iterdir()}
    assert names == {"checkpoint", "model.pth.tar-2", "model.pth.tar-4", "model.pth.tar-5"}
    assert (folder / "checkpoint").read_text() == "model.pth.tar-5\n"
    for epoch in (2, 4, 5):
        checkpoint = torch.load(folder / f"model.pth.tar-{epoch}")
        assert {"state_dict", "epoch", "optimizer", "scheduler", "val_result"} <= set(checkpoint)
        assert checkpoint["epoch"] == epoch and checkpoint["val_result"] is None


BEST_VAL = ("TEST.FINAL_MODEL", "best_val", "TRAIN.CHECKPOINT_FREQ", 1)


class Interrupted(Exception):
    pass


class Counting:
    """A loss scaler's interface."""

    steps = 0

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


@functools.cache
def stopping(engine_name):
    """A trainer that can be interrupted before an epoch, and keeps a count of batches and a loss scaler."""
    class Stopping(tiny_engine(engine_name).TinyTrainer):
        stops_before = None

        def build_model(self):
            super().build_model()
            self.batches_seen = 0
            self.scaler = Counting()

        def before_epoch(self):
            if self.epoch == self.stops_before:
                raise Interrupted

        def forward_backward(self, batch):
            self.batches_seen += 1
            self.scaler.steps += 1
            return super().forward_backward(batch)

        def extra_state(self):
            return {"batches_seen": torch.tensor(self.batches_seen)}

        def load_extra_state(self, state):
            self.batches_seen = int(state["batches_seen"])
    return Stopping


def train_stopping(engine_name, root, output_dir, workers, stops_before=None):
    """What a run, interrupted or not, has seen from the third epoch on and what it ends with; numbers in full."""
    engine = tiny_engine(engine_name)
    cfg = tiny_config(root, output_dir, *BEST_VAL, "DATALOADER.NUM_WORKERS", workers, engine=engine)
    engine.set_random_seed(cfg.SEED)
    trainer = stopping(engine_name)(cfg)
    trainer.stops_before = stops_before
    with contextlib.suppress(Interrupted):
        trainer.train()
    return {
        "weights": [value.double().tolist() for value in trainer.model.state_dict().values()],
        "momentum": [state["momentum_buffer"].tolist() for state in trainer.optim.state_dict()["state"].values()],
        "order": [indices for epoch, _, _, indices in trainer.seen if epoch >= 2],
        "rates": rates(trainer)[-3:],
        "best": trainer.best_result,
        "accuracy": trainer.test(),
        "batches": [trainer.batches_seen, trainer.scaler.steps],
    }


RESUME = """
import json, sys
name, root, folder, *paths = sys.argv[1:]
if name == "p2c":
    for missing in ("wilds", "pandas", "gdown"):
        sys.modules[missing] = None  # must not be needed
sys.path[:0] = paths
import torch
torch.set_num_threads(1)
from test_contract import train_stopping
for workers in (0, 2):
    print("SUMMARY", json.dumps(train_stopping(name, root, f"{folder}/{workers}", workers)))
"""


@pytest.fixture(scope="session")
def resumed(engine, tiny_root, tmp_path_factory):
    """An uninterrupted run, and two that were stopped after epoch 2 of 5 and resumed in a new process."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(f"resumed_{engine.name}")
    whole = train_stopping(engine.name, tiny_root, folder / "whole", 0)
    for workers in (0, 2):
        train_stopping(engine.name, tiny_root, folder / str(workers), workers, stops_before=2)
    here = Path(__file__).parent
    process = subprocess.run(
        [sys.executable, "-c", RESUME, engine.name, tiny_root, str(folder), str(here), str(here.parent)],
        capture_output=True, text=True, timeout=120,
    )
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert lines.count("Previous epoch: 2") == 2
    runs = [json.loads(line.removeprefix("SUMMARY ")) for line in lines if line.startswith("SUMMARY ")]
    assert len(runs) == 2
    return json.loads(json.dumps(whole)), runs


def test_a_resumed_run_goes_on_at_the_rates_of_the_schedule(resumed):
    """Check 32."""
    whole, runs = resumed
    for run in (whole, *runs):
        assert run["rates"] == pytest.approx([0.0031657797, 0.0022907797, 0.0012092203], abs=1e-10)


@dassl_fails("G1: a resumed run has other random numbers and forgets what the trainer keeps", AssertionError)
def test_a_resumed_run_equals_the_uninterrupted_one(resumed):
    """Checks 32 and 48: in a new process, with 0 and 2 workers, bit for bit."""
    whole, runs = resumed
    for run in runs:
        assert run == whole


@dassl_fails("G2: a resumed run has forgotten the best result", AssertionError)
def test_a_resumed_run_knows_the_best_result(tiny_trainer):
    first, again = (tiny_trainer(*BEST_VAL, "OPTIM.MAX_EPOCH", 1) for _ in range(2))
    first.train()
    again.train()
    assert again.seen == [] and again.best_result == first.best_result


def test_a_finished_run_is_only_tested_again(tiny_trainer, capsys):
    """Check 33."""
    first = tiny_trainer()
    first.train()
    accuracy = first.test()
    capsys.readouterr()
    again = tiny_trainer()
    again.train()
    out = capsys.readouterr().out
    assert again.seen == [] and again.epoch == 0 and again.test() == accuracy
    assert out.count("Evaluate on") == 1 and f"Found checkpoint at {first.output_dir} (will resume training)" in out


@dassl_fails("G3: resuming from a folder that does not exist silently trains from scratch", pytest.fail.Exception)
def test_resume_needs_a_folder_that_exists(tiny_trainer, tmp_path):
    """Check 33."""
    with pytest.raises(FileNotFoundError, match="nowhere"):
        tiny_trainer("RESUME", str(tmp_path / "nowhere"), "OPTIM.MAX_EPOCH", 1).train()


def test_resume_needs_the_file_that_names_the_newest_checkpoint(tiny_trainer, tmp_path):
    """Check 33."""
    (tmp_path / "run/prompt_learner").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="run/prompt_learner/checkpoint"):
        tiny_trainer().train()


def test_the_weights_of_no_folder_of_the_best_epoch_and_of_none(tiny_trainer, tmp_path, capsys):
    """Check 35."""
    trainer = tiny_trainer(*BEST_VAL, "OPTIM.MAX_EPOCH", 1)
    trainer.train()
    fresh = tiny_trainer(output_dir=tmp_path / "fresh")
    torch.nn.init.zeros_(fresh.model.linear.weight)
    capsys.readouterr()
    fresh.load_model("")
    assert "Note that load_model() is skipped as no pretrained model is given" in capsys.readouterr().out
    assert not fresh.model.linear.weight.any()
    fresh.load_model(trainer.output_dir)
    assert fresh.model.linear.weight.equal(trainer.model.linear.weight)
    with pytest.raises(FileNotFoundError, match="model.pth.tar-3"):
        fresh.load_model(trainer.output_dir, epoch=3)
    state = {"state_dict": {"ctx": torch.zeros(2)}, "epoch": 3, "val_result": 1.0}
    torch.save(state, f"{trainer.output_dir}/prompt_learner/model.pth.tar-3")
    with pytest.raises((ValueError, RuntimeError), match="(?s)linear.weight.*ctx"):
        fresh.load_model(trainer.output_dir, epoch=3)


@dassl_fails("F10: the weights of an epoch are loaded, then their missing val_result is formatted", TypeError)
def test_the_weights_of_an_epoch(tiny_trainer, tmp_path, capsys):
    """Check 35."""
    trainer = tiny_trainer("TRAIN.CHECKPOINT_FREQ", 2)
    trainer.train()
    path = f"{trainer.output_dir}/prompt_learner/model.pth.tar-2"
    after_two = torch.load(path)
    fresh = tiny_trainer(output_dir=tmp_path / "fresh")
    fresh.load_model(trainer.output_dir, epoch=2)
    assert fresh.model.linear.weight.equal(after_two["state_dict"]["linear.weight"])
    assert f"Load {path} to prompt_learner (epoch=2)" in capsys.readouterr().out
    del after_two["val_result"]  # as before August 2022
    torch.save(after_two, path)
    fresh.load_model(trainer.output_dir, epoch=2)


def test_files_that_save_checkpoint_writes(engine, tmp_path):
    state = {"state_dict": {"module.weight": torch.ones(1)}, "epoch": 3}
    engine.save_checkpoint(state, str(tmp_path), is_best=True)
    for name in ("model.pth.tar-3", "model-best.pth.tar"):
        assert list(torch.load(tmp_path / name)["state_dict"]) == ["weight"]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "model.pth.tar-3", "model-best.pth.tar"}


def test_a_checkpoint_that_is_not_there(engine, tmp_path):
    with pytest.raises(ValueError, match="File path is None"):
        engine.load_checkpoint(None)
    with pytest.raises(FileNotFoundError, match='File is not found at ".*missing"'):
        engine.load_checkpoint(tmp_path / "missing")


def test_pretrained_weights_load_where_they_fit(engine, tmp_path, capsys):
    model = nn.Linear(2, 3)
    torch.save({"state_dict": {"module.weight": torch.ones(3, 2), "bias": torch.ones(4)}}, tmp_path / "weights")
    engine.load_pretrained_weights(model, tmp_path / "weights")
    assert model.weight.equal(torch.ones(3, 2))
    out = capsys.readouterr().out
    assert f"Successfully loaded pretrained weights from {tmp_path}/weights" in out
    assert "Layers discarded due to unmatched keys or size: ['bias']" in out
    torch.save({"other": torch.ones(1)}, tmp_path / "weights")
    with pytest.warns(UserWarning, match="check the key names manually"):
        engine.load_pretrained_weights(model, tmp_path / "weights")


# Evaluation

TRUTH = torch.tensor([0, 0, 0, 1, 1, 2])
PREDICTION = torch.tensor([0, 0, 1, 1, 3, 2])
NAMES = {0: "cat", 1: "dog", 2: "fox", 3: "owl"}


def scores(prediction):
    return nn.functional.one_hot(prediction, 4).float()


def test_golden_case_of_the_evaluator(engine, config, tmp_path, capsys):
    """Check 41."""
    judge = engine.Classification(config("TEST.PER_CLASS_RESULT", True, "TEST.COMPUTE_CMAT", True), lab2cname=NAMES)
    judge.process(scores(PREDICTION[:4]), TRUTH[:4])
    judge.process(scores(PREDICTION[4:]), TRUTH[4:])
    results = judge.evaluate()
    assert capsys.readouterr().out.splitlines() == [
        "=> result",
        "* total: 6",
        "* correct: 4",
        "* accuracy: 66.7%",
        "* error: 33.3%",
        "* macro_f1: 76.7%",
        "=> per-class result",
        "* class: 0 (cat)\ttotal: 3\tcorrect: 2\tacc: 66.7%",
        "* class: 1 (dog)\ttotal: 2\tcorrect: 1\tacc: 50.0%",
        "* class: 2 (fox)\ttotal: 1\tcorrect: 1\tacc: 100.0%",
        "* average: 72.2%",
        f"Confusion matrix is saved to {tmp_path}/cmat.pt",
    ]
    assert list(results) == ["accuracy", "error_rate", "macro_f1", "perclass_accuracy"]
    assert type(results["accuracy"]) is float
    assert list(results.values()) == pytest.approx([200 / 3, 100 / 3, (0.8 + 0.5 + 1) / 3 * 100, 650 / 9])
    saved = torch.load(tmp_path / "cmat.pt", weights_only=False)
    matrix = saved["matrix"] if isinstance(saved, dict) else saved  # this engine's has the labels beside it
    expected = [[2 / 3, 1 / 3, 0, 0], [0, 1 / 2, 0, 1 / 2], [0, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(matrix, expected, atol=1e-7)


def test_macro_f1_is_that_of_scikit_learn(engine, config):
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 5, (200,), generator=generator) * 2
    output = torch.rand(200, 10, generator=generator)
    judge = engine.Classification(config())
    judge.process(output, truth)
    expected = metrics.f1_score(truth, output.argmax(1), average="macro", labels=np.unique(truth))
    assert judge.evaluate()["macro_f1"] == pytest.approx(100 * expected)


def test_reset_forgets_what_was_processed(engine, config):
    judge = engine.Classification(config())
    judge.process(scores(PREDICTION), TRUTH)
    judge.reset()
    judge.process(scores(PREDICTION[:2]), TRUTH[:2])
    assert judge.evaluate()["accuracy"] == 100.0


OUTPUT = torch.tensor([[0.1, 0.9, 0], [0.8, 0.15, 0.05], [0, 0.2, 0.8]])
TARGET = torch.tensor([1, 1, 2])


def test_accuracy_of_a_batch(engine):
    """Check 42."""
    for output in (OUTPUT, (OUTPUT, None)):
        (accuracy,) = engine.compute_accuracy(output, TARGET)
        assert accuracy.shape == (1,) and accuracy.item() == pytest.approx(66.6667, abs=1e-4)


@dassl_fails("F9: accuracy within the top k > 1 is computed through an impossible view", RuntimeError)
def test_accuracy_within_the_top_k(engine):
    """Check 42."""
    first, second = engine.compute_accuracy(OUTPUT, TARGET, topk=(1, 2))
    assert first.shape == second.shape == (1,)
    assert first.item() == pytest.approx(66.6667, abs=1e-4) and second.item() == 100


def test_metric_meter(engine):
    """Check 43."""
    meter = engine.MetricMeter()
    meter.update({"loss": 1.5, "acc": torch.tensor([2.0])})
    meter.update({"loss": 0.5})
    meter.update(None)
    assert str(meter) == "loss 0.5000 (1.0000) acc 2.0000 (2.0000)"
    with pytest.raises(TypeError, match="MetricMeter|list"):
        meter.update([1])


def test_average_meter(engine):
    meter = engine.AverageMeter()
    meter.update(1.0, n=3)
    meter.update(5.0)
    assert (meter.val, meter.avg, meter.sum, meter.count) == (5.0, 2.0, 8.0, 4)
    meter = engine.AverageMeter(ema=True)
    meter.update(10.0)
    meter.update(10.0)
    assert meter.avg == pytest.approx(1.9)


# The log


def test_log_files_are_never_overwritten(engine, tmp_path):
    """Check 45."""
    with own_console() as console:
        for line in ("first", "second"):
            engine.setup_logger(str(tmp_path / "run"))
            print(line)
            sys.stdout.flush()
        names = sorted(os.listdir(tmp_path / "run"))
        assert names[0] == "log.txt" and re.fullmatch(r"log\.txt-\d{4}-\d\d-\d\d-\d\d-\d\d-\d\d", names[1])
        assert (tmp_path / "run/log.txt").read_text().startswith("first\n")
        assert (tmp_path / "run" / names[1]).read_text() == "second\n"
        assert console_text(console) == "first\nsecond\n"


@dassl_fails("F6: the logger of a second run still writes to the log of the first", AssertionError)
def test_loggers_are_not_nested(engine, tmp_path):
    with own_console():
        for line in ("first", "second"):
            engine.setup_logger(str(tmp_path / line))
            print(line)
            sys.stdout.flush()
        assert (tmp_path / "first/log.txt").read_text() == "first\n"


@dassl_fails("F6: a log file in the current folder cannot be opened (F7), and the console is closed", FileNotFoundError)
def test_a_bare_file_name_is_a_file_in_the_current_folder(engine, tmp_path, monkeypatch):
    """Check 45."""
    with own_console():
        monkeypatch.chdir(tmp_path)
        engine.setup_logger("x.log")
        print("hello")
        assert (tmp_path / "x.log").read_text() == "hello\n"
        engine.setup_logger(None)
        assert isinstance(sys.stdout, engine.Logger)


@dassl_fails("F6: the logger closes the real standard output when it goes", ValueError)
def test_the_console_outlives_the_logger(engine, tmp_path):
    """Check 45."""
    with own_console() as console:
        engine.setup_logger(str(tmp_path))
        sys.stdout = console
        gc.collect()
        with pytest.raises(IsADirectoryError):
            engine.Logger(str(tmp_path))
        gc.collect()
        logger = engine.Logger(str(tmp_path / "a.log"))
        with logger:
            logger.write("in both\n")
        logger.write("on the console\n")
        print("still here")
        assert console_text(console) == "in both\non the console\nstill here\n"
        assert (tmp_path / "a.log").read_text() == "in both\n"


@dassl_fails("F6: the logger has no isatty, encoding or buffer", AttributeError)
def test_the_logger_looks_like_a_standard_output(engine, tmp_path):
    """Check 45."""
    with own_console() as console:
        engine.setup_logger(str(tmp_path))
        assert sys.stdout.isatty() is False and sys.stdout.encoding == "utf-8" and sys.stdout.writable()
        assert sys.stdout.buffer is console.buffer
        sys.stdout.flush()


@dassl_fails("F6: a killed run leaves an empty log", AssertionError)
def test_lines_of_a_killed_run_are_in_the_file(engine, tmp_path):
    """Check 45."""
    child = os.fork()
    if child == 0:
        try:
            sys.stdout = open(os.devnull, "w")
            engine.setup_logger(str(tmp_path))
            print("printed")
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert (tmp_path / "log.txt").read_text() == "printed\n"


@dassl_fails("F6: tracebacks are not logged", AssertionError)
def test_the_traceback_of_an_uncaught_exception_is_in_the_file(engine, tmp_path, capsys):
    """Check 45."""
    with own_console() as console:
        engine.setup_logger(str(tmp_path / "one"))
        engine.setup_logger(str(tmp_path / "two"))
        try:
            raise RuntimeError("no luck")
        except RuntimeError:
            sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        logged = (tmp_path / "two/log.txt").read_text()
        assert logged.startswith("Traceback") and logged.endswith("RuntimeError: no luck\n")
        assert capsys.readouterr().err.count("RuntimeError: no luck") == 1
        assert console_text(console) == "" and (tmp_path / "one/log.txt").read_text() == ""


# Utilities


def test_seeding_repeats_every_global_generator(engine):
    def draw():
        return random.random(), np.random.rand(), torch.rand(2).tolist()

    engine.set_random_seed(7)
    first = draw()
    engine.set_random_seed(7)
    assert draw() == first


def test_files_in_a_folder(engine, tmp_path):
    engine.write_json({"a": 1}, str(tmp_path / "deep/x.json"))
    assert engine.read_json(str(tmp_path / "deep/x.json")) == {"a": 1}
    for name in (".hidden", "a.json"):
        (tmp_path / "deep" / name).touch()
    assert engine.listdir_nohidden(str(tmp_path / "deep"), sort=True) == ["a.json", "x.json"]
    assert engine.check_isfile(str(tmp_path / "deep/x.json"))
    with pytest.warns(UserWarning, match='No file found at "y.json"'):
        assert not engine.check_isfile("y.json")


@dassl_fails("F7: no folder in a path, which is the current one, cannot be made", FileNotFoundError)
def test_files_in_the_current_folder(engine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    engine.mkdir_if_missing("")
    engine.write_json({"a": 1}, "x.json")
    assert engine.read_json("x.json") == {"a": 1}


def test_counting_parameters(engine):
    model = nn.Linear(2, 3)
    assert engine.count_num_param(model) == 9
    assert engine.count_num_param(params=[model.weight, {"params": model.bias}]) == 9
    with pytest.raises(ValueError, match="model.*params"):
        engine.count_num_param()


def test_opening_layers(engine):
    model = nn.ModuleDict({"base": nn.Linear(1, 1), "head": nn.Linear(1, 1)})
    engine.open_specified_layers(model, "head")
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    assert model["head"].training and not model["base"].training
    engine.open_all_layers(model)
    assert all(p.requires_grad for p in model.parameters()) and model["base"].training


@pytest.mark.parametrize("init_type", ["normal", "xavier", "kaiming", "orthogonal"])
def test_initialising_weights(engine, init_type):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2, bias=False))
    before = model[0].weight.clone()
    engine.init_network_weights(model, init_type)
    assert not model[0].weight.equal(before) and not model[0].bias.any() and model[1].weight.eq(1).all()


def test_lists(engine):
    assert engine.tolist_if_not([1]) == [1] and engine.tolist_if_not((1, 2)) == [(1, 2)]
    assert engine.tolist_if_not("a") == ["a"]
