"""The settings of this package: defaults, ranges and meanings.

Checks, error messages and docs/configuration.md come from the table `SETTINGS`. `extend_cfg` adds the settings that a
cfg (the engine's or real Dassl's) lacks, and changes no others.
"""
import os
from collections.abc import Collection
from typing import Any

from yacs.config import CfgNode

from p2c import compat, configs
from p2c.clip.precision import PRECISIONS
from p2c.datasets.splits import CHECKS, HALVES
from p2c.denoising.mixture import NOISE_TYPES
from p2c.denoising.noise import ANNEALS, SCHEDULES, SIGMOID_K
from p2c.prompts.context import POSITIONS
from p2c.utils.ranges import (
    NUMBER,
    SWITCH,
    TEXT,
    Range,
    Setting,
    above,
    at_least,
    faults,
    flatten,
    number,
    one_of,
    whole,
)

PREC = Setting("fp16", one_of(*PRECISIONS), "precision of CLIP; on a CPU fp16 and amp run as fp32")

# CoCoOp's settings, which CoOp shares.
COCOOP = {
    "N_CTX": Setting(16, whole(1), "context tokens; not read if CTX_INIT has words"),
    "CTX_INIT": Setting("", TEXT, 'words that start the context, which has as many tokens; "": random'),
    "PREC": PREC,
}

# MaPLe's settings, which P2C shares.
MAPLE = {
    "N_CTX": Setting(2, whole(1), "context tokens per layer"),
    "CTX_INIT": Setting("a photo of a", TEXT, 'words that start the context (used if N_CTX <= 4); "": random'),
    "PREC": PREC,
    "PROMPT_DEPTH": Setting(9, whole(1), "layers with prompts, at most the shallower tower's number"),
}


def ivlp(node: str, tokens: int) -> dict:
    """Return IVLP's settings, which PromptSRC shares, for a node of TRAINER, with default numbers of tokens."""
    return {
        "N_CTX_VISION": Setting(tokens, Range(
            lambda count, cfg: type(count) is int and count >= (cfg.TRAINER[node].PROMPT_DEPTH_VISION > 0),
            "it must be a whole number, at least 1 unless PROMPT_DEPTH_VISION is 0"), "image prompts per layer"),
        "N_CTX_TEXT": Setting(tokens, whole(1), "context tokens per layer"),
        "CTX_INIT": Setting("a photo of a", TEXT,
                            'words that start the context (used if N_CTX_TEXT <= 4); "": random'),
        "PREC": PREC,
        "PROMPT_DEPTH_VISION": Setting(9, whole(0), "layers with image prompts, at most the tower's number; 0: none"),
        "PROMPT_DEPTH_TEXT": Setting(9, whole(1), "layers with text prompts, at most the tower's number"),
    }


# Bounds that depend on the model or the dataset (layers, tokens) are checked when those are built.
SETTINGS: dict[str, Any] = {  # keys of nested sections -> Setting
    "PLUGIN": Setting("", TEXT, "module with your own trainers or datasets; train.py --plugin sets it"),
    "DATASET": {
        "SUBSAMPLE_CLASSES": Setting("all", one_of(*HALVES), "base: the first half of the classes; new: the second "
                                     "half; dev_base, dev_new: the halves of the base half"),
        "CHECKS": Setting("published", one_of(*CHECKS), "how a dataset is checked. published: its numbers of classes "
                          "and images must be the published ones; partial: they may differ, for part of a dataset; "
                          "strict: as published, and each class must have as many images as shots"),
        "FOLDER": {  # your own images, DATASET.NAME Folder
            "SPLIT": Setting("", TEXT, 'split JSON or CSV in DATASET.ROOT, the folder of your own images; "": classes '
                             "are its folders"),
            "CLASSNAMES": Setting("", TEXT, 'file in DATASET.ROOT with lines "folder name"; "": classnames.txt if it '
                                  "exists"),
            "TEMPLATE": Setting("a photo of a {}.", Range(
                lambda text, cfg: isinstance(text, str) and text.count("{}") == 1,
                "it must be text with one {}, where the class name stands"), "prompt of zero-shot CLIP"),
        },
    },
    "INPUT": {
        "AS_SHOWN": Setting(False, SWITCH, "read images as a viewer shows them: turned by their EXIF orientation, "
                            "transparent parts white, more than 8 bits scaled by their range; False: as in Dassl. "
                            "configs/datasets/folder.yaml sets True, and predict does so for new runs"),
    },
    "MODEL": {
        "BACKBONE": {
            "WEIGHTS": Setting("openai", TEXT, "openai, another tag of open_clip, random, builtin (tiny-shapes), or a "
                               "file"),
        },
    },
    "TRAIN": {
        "CUDA_GRAPH": Setting("auto", one_of("auto", "on", "off"), "launch a training step as one CUDA graph; auto: on "
                              "a GPU, for this package's trainers; on: also for others, whose steps must not depend on "
                              "anything but batch, noise and learning rate. Results differ only by rounding"),
        "CHECKPOINT_STEPS": Setting(0, whole(0), "steps between the points inside an epoch from which a training can "
                                    "resume; 0: none. For this package's trainers on its own engine; CHECKPOINT_FREQ "
                                    "counts whole epochs"),
        "DETERMINISTIC": Setting(False, SWITCH, "the same order of summation in every run on a GPU, so that equal "
                                 "runs are bit-equal; slower. On a CPU they always are"),
        "INIT_SEED": Setting(-1, whole(-1), "seed of the initial prompts only; -1: SEED"),
        "TEXT_MEMORY": Setting(0.0, at_least(0), "GiB for the activations of the class texts; if that is too little, "
                               "they are encoded in parts, and again in the backward pass. 0: a quarter of the "
                               "device's memory. Results differ only by rounding"),
    },
    "TEST": {
        "CLOUD_SAMPLES": Setting(0, whole(0), "cloud inference: number of text classifiers, from noisy contexts "
                                 "around the trained one, whose predictions are averaged; 0: off. The noise "
                                 "is that of PROMPT_DENOISING, even if not enabled. For trainers with the same text "
                                 "context for all images"),
        "CLOUD_LEVEL": Setting(0.5, at_least(0), "noise level of these contexts, in PROMPT_DENOISING.NOISE_UNIT"),
        "CLOUD_AVERAGE": Setting("probabilities", one_of("probabilities", "logits"), "what the classifiers average"),
        "VAL_EVERY": Setting(0, whole(0), "epochs between tests on the validation images, for curves val/...; no model "
                             "is chosen by them; 0: none. FINAL_MODEL best_val tests after every epoch"),
    },
    "TRAINER": {
        "PROMPT_DENOISING": {
            "ENABLED": Setting(False, SWITCH, "annealed noise on the text context in training, for any method that "
                               "learns one (P2C, section DPD)"),
            "NOISE_TYPE": Setting("gaussian_mixture", one_of(*NOISE_TYPES), "distribution of the noise"),
            "NOISE_STD": Setting(9.0, at_least(0), "sigma_0, the level at the start, in NOISE_UNIT"),
            "NOISE_UNIT": Setting("embedding", one_of("embedding", "absolute"),
                                  "embedding: standard deviation of the model's token embedding; absolute: 1"),
            "SCHEDULE": Setting("cosine", one_of(*SCHEDULES), "how the level falls"),
            "ANNEAL": Setting("epoch", one_of(*ANNEALS), "whether the level changes after each epoch or each step"),
            "WARMUP_EPOCHS": Setting(0, Range(
                lambda epochs, cfg: type(epochs) is int and 0 <= epochs < cfg.OPTIM.MAX_EPOCH,
                "it must be a whole number from 0 to OPTIM.MAX_EPOCH - 1"), "first epochs, which keep the full level"),
            "SIGMOID_K": Setting(SIGMOID_K, above(0), "steepness of the sigmoid schedule"),
            "GMM_COMPONENTS": Setting(3, Range(
                lambda count, cfg: type(count) is int and count == len(cfg.TRAINER.PROMPT_DENOISING.GMM_MEANS) > 0,
                "it must be the number of entries of GMM_MEANS, at least 1"), "number of components of the mixture"),
            "GMM_MEANS": Setting((-1.0, 0.0, 1.0), Range(
                lambda means, cfg: len(means) > 0 and all(map(number, means)),
                "it must be a list of finite numbers, at least one"), "their means"),
            "GMM_STDS": Setting((0.5, 1.0, 0.5), Range(
                lambda stds, cfg: len(stds) == len(cfg.TRAINER.PROMPT_DENOISING.GMM_MEANS)
                and all(number(std) and std > 0 for std in stds),
                "it must be as many finite numbers above 0 as GMM_MEANS has entries"), "their standard deviations"),
            "GMM_WEIGHTS": Setting((), Range(
                lambda weights, cfg: len(weights) == 0 or len(weights) == len(cfg.TRAINER.PROMPT_DENOISING.GMM_MEANS)
                and all(number(weight) and weight >= 0 for weight in weights) and sum(weights) > 0,
                "it must be empty, or as many finite numbers as GMM_MEANS has entries, none below 0 and not all 0"),
                "their weights; empty: equal"),
        },
        "ATPROMPT": {
            "USE_ATPROMPT": Setting(False, SWITCH, "attribute words in the text prompt, each after its own learnable "
                                    "tokens, for CoOp, MaPLe and P2C (ATPrompt, arXiv 2412.09442)"),
            "ATT_NUM": Setting(0, whole(0, 3), "number of attributes; 0: those published for the dataset"),
            **{f"N_ATT{i}": Setting(4, whole(1), f"learnable tokens before the words of attribute {i}")
               for i in (1, 2, 3)},
            **{f"ATT{i}_TEXT": Setting("none", TEXT, f"words of attribute {i}, read unless ATT_NUM is 0")
               for i in (1, 2, 3)},
        },
        "ZEROSHOTCLIP": {  # also of ZeroshotCLIP2
            "PREC": PREC,
        },
        "COOP": {
            **COCOOP,
            "CSC": Setting(False, SWITCH, "class-specific contexts; not read if CTX_INIT has words"),
            "CLASS_TOKEN_POSITION": Setting("end", one_of(*POSITIONS), "position of the class name"),
        },
        "COCOOP": COCOOP,
        "VPT": {
            "N_CTX_VISION": Setting(2, whole(1), "image prompts per layer"),
            "CTX_INIT": Setting("a photo of a", TEXT, 'not read: the text is "a photo of a NAME.", as published'),
            "PREC": PREC,
            "PROMPT_DEPTH_VISION": Setting(1, whole(1), "layers with image prompts, at most the tower's number"),
        },
        "IVLP": ivlp("IVLP", 2),
        "MAPLE": MAPLE,
        "PROMPTSRC": {
            **ivlp("PROMPTSRC", 4),
            "TEXT_LOSS_WEIGHT": Setting(25, at_least(0), "weight of the mean absolute difference between the text "
                                        "features and frozen CLIP's"),
            "IMAGE_LOSS_WEIGHT": Setting(10, at_least(0), "weight of the same for the image features"),
            "GPA_MEAN": Setting(15, NUMBER, "epoch (from 1) whose prompts weigh most in the average over all epochs"),
            "GPA_STD": Setting(1, above(0), "standard deviation of these Gaussian weights in epochs"),
        },
        "P2C": {
            **MAPLE,
            "MAPPER": {
                "ENABLED": Setting(False, SWITCH, "the mapper of the input prompts is a denoising autoencoder; False: "
                                   "MaPLe's single Linear"),
                "HIDDEN_SCALE": Setting(1.0, above(0), "ratio of its hidden width to the text width"),
                "LOSS_WEIGHT": Setting(1.0, at_least(0), "weight of its denoising loss"),
                "NOISE_STD": Setting(2.0, at_least(0), "sigma_a, its noise level, in PROMPT_DENOISING.NOISE_UNIT"),
            },
        },
    },
}


def check_settings(cfg: CfgNode, nodes: Collection[str] | None = None) -> None:
    """Raise ValueError naming every setting that is out of range; of TRAINER, check only `nodes`, if given."""
    settings = SETTINGS
    if nodes is not None:
        trainers = {name: node for name, node in SETTINGS["TRAINER"].items() if name in nodes}
        settings = {**SETTINGS, "TRAINER": trainers}
    if found := faults(cfg, settings):
        raise ValueError("; ".join(found))


def config_file(*parts: str) -> str:
    """Return the path of configs/PARTS.yaml."""
    return os.path.join(list(configs.__path__)[0], *parts) + ".yaml"


def extend_cfg(cfg: CfgNode) -> None:
    """Add every key of SETTINGS that `cfg` lacks, in place. A second call changes nothing.

    Raises:
        EngineError: `cfg` is real Dassl's, but our trainers were imported before Dassl.
    """
    compat.check_cfg(cfg)
    for key, setting in flatten(SETTINGS).items():
        *sections, leaf = key.split(".")
        node = cfg
        for section in sections:
            node = node.setdefault(section, CfgNode())
        node.setdefault(leaf, setting.default)
