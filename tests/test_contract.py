"""The contract of an engine: configuration, registries, optimisers, evaluation, the log, utilities."""
import copy
import gc
import inspect
import io
import os
import pickle
import random
import re
import sys

import numpy as np
import pytest
import torch
from contract import dassl_fails
from engine_fixtures import MAPLE_RATES, console_text, own_console, tiny_config
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from yacs.config import CfgNode

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
def test_unknown_names_are_refused_with_the_choices_and_a_suggestion(engine, build, registry, key, wrong, right):
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


@dassl_fails("F7: the folder of a bare file name cannot be made; then (F6) the console is closed", FileNotFoundError)
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
