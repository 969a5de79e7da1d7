"""The config tree: Dassl's keys, its merging rules, and what is refused or reported."""
import pytest
from yacs.config import CfgNode

from p2c.engine import clean_cfg, get_cfg_default
from p2c.engine.config import check_values, unused_keys

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
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def merge_yaml(cfg, tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    cfg.merge_from_file(str(path))


def test_default_tree_has_every_key_with_its_type_and_value():
    """Check 1."""
    tree = dict(flat(get_cfg_default()))
    assert tree == FACTS
    assert {key: type(value) for key, value in tree.items()} == {key: type(value) for key, value in FACTS.items()}


def test_default_trees_are_independent():
    """Check 1."""
    one, other = get_cfg_default(), get_cfg_default()
    one.OPTIM.LR = 1.0
    one.INPUT.PIXEL_MEAN.append(0.0)
    assert dict(flat(other)) == FACTS


def test_values_in_a_yaml_become_the_types_of_the_defaults(tmp_path):
    """Check 2."""
    cfg = get_cfg_default()
    merge_yaml(cfg, tmp_path, PUBLISHED)
    assert cfg.INPUT.SIZE == (224, 224)
    assert isinstance(cfg.OPTIM.WARMUP_CONS_LR, float) and cfg.OPTIM.WARMUP_CONS_LR == 1e-05
    assert cfg.INPUT.TRANSFORMS == ("random_resized_crop", "random_flip", "normalize")


def test_faults_in_a_config_name_the_key(tmp_path):
    """Check 3."""
    with pytest.raises(KeyError, match="OPTIM.FOO"):
        merge_yaml(get_cfg_default(), tmp_path, "OPTIM: {FOO: 1}")
    with pytest.raises(AssertionError, match="DATASET.FOO"):
        get_cfg_default().merge_from_list(["DATASET.FOO", "1"])
    with pytest.raises(ValueError, match="OPTIM.LR"):
        merge_yaml(get_cfg_default(), tmp_path, "OPTIM: {LR: 1}")


@pytest.mark.parametrize("method", METHODS)
def test_keys_of_the_published_configs_merge(method, tmp_path):
    """Check 4."""
    cfg = get_cfg_default()
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    cfg.TRAINER[method] = CfgNode(METHODS[method])
    settings = ", ".join(f"{key}: {value!r}" for key, value in METHODS[method].items())
    merge_yaml(cfg, tmp_path, f"{PUBLISHED}\nTRAINER: {{{method}: {{{settings}}}}}")
    assert dict(cfg.TRAINER[method]) == METHODS[method]


def test_clean_cfg_keeps_the_trainers_own_and_the_shared_nodes():
    """Check 5, with the departure for shared nodes."""
    cfg = get_cfg_default()
    for name in ("P2C", "MAPLE", "COOP", "PROMPT_DENOISING", "ATPROMPT"):
        cfg.TRAINER[name] = CfgNode({"X": 1})
    cfg.freeze()
    clean_cfg(cfg, "P2C")
    assert set(cfg.TRAINER) == {"NAME", "P2C", "PROMPT_DENOISING", "ATPROMPT"}


def test_values_out_of_range_are_refused_all_at_once():
    cfg = get_cfg_default()
    check_values(cfg)
    cfg.merge_from_list(["TEST.FINAL_MODEL", "best", "TEST.SPLIT", "tset", "TRAIN.PRINT_FREQ", 0])
    with pytest.raises(ValueError, match="FINAL_MODEL.*'best'|SPLIT") as error:
        check_values(cfg)
    for part in ("TEST.SPLIT is 'tset'; choose from test, val", "last_step, best_val", "TRAIN.PRINT_FREQ is 0"):
        assert part in str(error.value)


@pytest.mark.parametrize("key, value", [
    ("OPTIM.MAX_EPOCH", 0), ("OPTIM.LR", -0.1), ("OPTIM.LR", float("nan")), ("OPTIM.LR", float("inf")),
    ("OPTIM.WEIGHT_DECAY", -1.0), ("OPTIM.GAMMA", -0.1), ("OPTIM.WARMUP_CONS_LR", float("nan")),
    ("DATALOADER.TRAIN_X.N_INS", 0),
])
def test_numbers_out_of_range_are_refused(key, value):
    cfg = get_cfg_default()
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=f"{key} is {value}; it must be a finite number, at least"):
        check_values(cfg)


def test_keys_that_nothing_reads_are_named_when_changed():
    cfg = get_cfg_default()
    assert unused_keys(cfg) == []
    cfg.merge_from_list(["MODEL.HEAD.DROPOUT", 0.5, "DATASET.STL10_FOLD", 2])
    assert unused_keys(cfg) == ["DATASET.STL10_FOLD", "MODEL.HEAD.DROPOUT"]
