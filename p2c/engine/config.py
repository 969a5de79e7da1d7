"""The default config tree, with Dassl's keys, types and defaults, and checks of a whole config.

Checks, error messages and docs/configuration.md come from the table `SETTINGS`.
"""
import os
from operator import attrgetter

from yacs.config import CfgNode

from p2c.engine.optim import OPTIMIZERS, SCHEDULES, WARMUPS
from p2c.engine.samplers import FULL_PASS, SAMPLERS
from p2c.engine.transforms import AVAILABLE_CHOICES, INTERPOLATION_MODES
from p2c.utils.ranges import (
    LIST,
    NUMBER,
    SWITCH,
    TEXT,
    Range,
    Setting,
    at_least,
    between,
    defaults,
    faults,
    flatten,
    number,
    one_of,
    several,
    whole,
)

UNREAD = "not read; it is here so that configurations written for Dassl merge"
BETA = Range(lambda beta, cfg: number(beta) and 0 <= beta < 1, "it must be a number from 0 to below 1")

TRAIN_LOADER = {
    "SAMPLER": Setting("RandomSampler", one_of(*SAMPLERS), "order of the images"),
    "BATCH_SIZE": Setting(32, whole(1), "images in a batch"),
    "N_DOMAIN": Setting(0, whole(0), "domains in a batch of RandomDomainSampler; 0: all"),
    "N_INS": Setting(16, whole(1), "images of a class in a batch of RandomClassSampler"),
}

SETTINGS = {
    "VERSION": Setting(1, whole(), UNREAD),
    "OUTPUT_DIR": Setting("./output", TEXT, "folder of log, checkpoints, tensorboard and results.json"),
    "RESUME": Setting("", TEXT, 'folder to resume from; "": OUTPUT_DIR'),
    "SEED": Setting(-1, Range(lambda seed, cfg: type(seed) is int and seed < 1 << 63,
                              "it must be a whole number below 2^63"), "seed of everything; negative: one is drawn"),
    "USE_CUDA": Setting(True, SWITCH, "run on the GPU if there is one"),
    "VERBOSE": Setting(True, SWITCH, "name what is loaded and print the summary of the data"),
    "INPUT": {
        "SIZE": Setting((224, 224), several(lambda side: type(side) is int and side >= 1, 2,
                                            "two whole numbers, at least 1"), "height and width"),
        "INTERPOLATION": Setting("bilinear", one_of(*INTERPOLATION_MODES), "of resizing"),
        "TRANSFORMS": Setting((), LIST, f"names of operations, in any order: {', '.join(AVAILABLE_CHOICES)}"),
        "NO_TRANSFORM": Setting(False, SWITCH, "hand out PIL images"),
        "PIXEL_MEAN": Setting([0.485, 0.456, 0.406], several(lambda mean: True, 3, "three finite numbers"),
                              "of normalize, for red, green and blue"),
        "PIXEL_STD": Setting([0.229, 0.224, 0.225], several(lambda std: std > 0, 3, "three finite numbers above 0"),
                             "likewise"),
        "CROP_PADDING": Setting(4, whole(0), "of random_crop, in pixels"),
        "RRCROP_SCALE": Setting((0.08, 1.0), several(lambda share: 0 < share <= 1, 2, "two numbers above 0, at most 1"),
                                "share of the area that random_resized_crop keeps, least and most"),
        "CUTOUT_N": Setting(1, whole(0), "holes of cutout"),
        "CUTOUT_LEN": Setting(16, whole(0), "side of a hole, in pixels"),
        "GN_MEAN": Setting(0.0, NUMBER, "mean of gaussian_noise"),
        "GN_STD": Setting(0.15, at_least(0), "standard deviation of gaussian_noise"),
        "RANDAUGMENT_N": Setting(2, whole(0), "operations of randaugment per image"),
        "RANDAUGMENT_M": Setting(10, whole(0, 30), "their magnitude"),
        "COLORJITTER_B": Setting(0.4, at_least(0), "brightness of colorjitter"),
        "COLORJITTER_C": Setting(0.4, at_least(0), "its contrast"),
        "COLORJITTER_S": Setting(0.4, at_least(0), "its saturation"),
        "COLORJITTER_H": Setting(0.1, between(0, 0.5), "its hue"),
        "RGS_P": Setting(0.2, between(0, 1), "probability of randomgrayscale"),
        "GB_P": Setting(0.5, between(0, 1), "probability of gaussian_blur"),
        "GB_K": Setting(21, Range(lambda size, cfg: type(size) is int and size >= 1 and size % 2 == 1,
                                  "it must be an odd whole number, at least 1"), "its kernel size"),
    },
    "DATASET": {
        "ROOT": Setting("", TEXT, "folder that holds all datasets"),
        "NAME": Setting("", TEXT, "name of the dataset's class"),
        "SOURCE_DOMAINS": Setting((), LIST, "names of domains, for datasets that have some"),
        "TARGET_DOMAINS": Setting((), LIST, "likewise"),
        "NUM_SHOTS": Setting(-1, whole(), "training images per class; -1: all"),
        "NUM_LABELED": Setting(-1, whole(), UNREAD),
        "VAL_PERCENT": Setting(0.1, NUMBER, UNREAD),
        "STL10_FOLD": Setting(-1, whole(), UNREAD),
        "CIFAR_C_TYPE": Setting("", TEXT, UNREAD),
        "CIFAR_C_LEVEL": Setting(1, whole(), UNREAD),
        "ALL_AS_UNLABELED": Setting(False, SWITCH, UNREAD),
    },
    "DATALOADER": {
        "NUM_WORKERS": Setting(4, whole(0), "processes that load images; 0: the training's own"),
        "K_TRANSFORMS": Setting(1, whole(1), "augmentations of each training image"),
        "RETURN_IMG0": Setting(False, SWITCH, "also hand out the image without augmentation"),
        "TRAIN_X": TRAIN_LOADER,
        "TRAIN_U": {"SAME_AS_X": Setting(True, SWITCH, "load unlabeled data as TRAIN_X says"), **TRAIN_LOADER},
        "TEST": {  # validation too
            "SAMPLER": Setting("SequentialSampler", one_of(*FULL_PASS), "order of the images, in validation too"),
            "BATCH_SIZE": Setting(32, whole(1), "images in a batch, in validation too"),
        },
    },
    "MODEL": {
        "INIT_WEIGHTS": Setting("", TEXT, "file of initial weights"),
        "BACKBONE": {
            "NAME": Setting("", TEXT, "name of CLIP's architecture"),
            "PRETRAINED": Setting(True, SWITCH, UNREAD),
        },
        "HEAD": {
            "NAME": Setting("", TEXT, UNREAD),
            "HIDDEN_LAYERS": Setting((), LIST, UNREAD),
            "ACTIVATION": Setting("relu", TEXT, UNREAD),
            "BN": Setting(True, SWITCH, UNREAD),
            "DROPOUT": Setting(0.0, NUMBER, UNREAD),
        },
    },
    "OPTIM": {
        "NAME": Setting("adam", one_of(*OPTIMIZERS), "optimiser"),
        "LR": Setting(0.0003, at_least(0), "learning rate"),
        "WEIGHT_DECAY": Setting(5e-4, at_least(0), "weight decay"),
        "MOMENTUM": Setting(0.9, at_least(0), "of sgd and rmsprop"),
        "SGD_DAMPNING": Setting(0, NUMBER, "dampening of sgd's momentum"),
        "SGD_NESTEROV": Setting(False, SWITCH, "Nesterov's momentum for sgd"),
        "RMSPROP_ALPHA": Setting(0.99, at_least(0), "smoothing of rmsprop"),
        "ADAM_BETA1": Setting(0.9, BETA, "decay of the mean of gradients, for optimisers of Adam's kind"),
        "ADAM_BETA2": Setting(0.999, BETA, "decay of the mean of their squares"),
        "STAGED_LR": Setting(False, SWITCH, "two groups of parameters with different rates"),
        "NEW_LAYERS": Setting((), LIST, "names of the child modules at the full rate"),
        "BASE_LR_MULT": Setting(0.1, at_least(0), "factor of the rate of the others"),
        "LR_SCHEDULER": Setting("single_step", one_of(*SCHEDULES), "how the rate falls"),
        "STEPSIZE": Setting((-1,), LIST, "epochs of the steps; single_step takes the last number, 0 or less means "
                            "MAX_EPOCH"),
        "GAMMA": Setting(0.1, at_least(0), "factor of each step"),
        "MAX_EPOCH": Setting(10, whole(1), "length of the training, in epochs"),
        "WARMUP_EPOCH": Setting(-1, whole(), "epochs of warm-up; 0 or less: none"),
        "WARMUP_TYPE": Setting("linear", one_of(*WARMUPS), "how the rate rises in the warm-up"),
        "WARMUP_CONS_LR": Setting(1e-5, at_least(0), "rate of a constant warm-up"),
        "WARMUP_MIN_LR": Setting(1e-5, at_least(0), "rate of epoch 0 of a linear warm-up"),
        "WARMUP_RECOUNT": Setting(True, SWITCH, "the main schedule starts at its own epoch 0 after the warm-up"),
    },
    "TRAIN": {
        "CHECKPOINT_FREQ": Setting(0, whole(), "epochs between checkpoints; 0 or less: the last epoch only"),
        "PRINT_FREQ": Setting(10, whole(1), "batches between progress lines"),
        "COUNT_ITER": Setting("train_x", one_of("train_x", "train_u", "smaller_one"),
                              "what gives the length of an epoch with unlabeled data"),
    },
    "TEST": {
        "EVALUATOR": Setting("Classification", TEXT, "name of the evaluator's class"),
        "PER_CLASS_RESULT": Setting(False, SWITCH, "also print the accuracy of each class"),
        "COMPUTE_CMAT": Setting(False, SWITCH, "write the confusion matrix, with the class names, to cmat.pt"),
        "NO_TEST": Setting(False, SWITCH, "no evaluation at all, not even to choose the best model"),
        "SPLIT": Setting("test", one_of("test", "val"), "data of the final evaluation"),
        "FINAL_MODEL": Setting("last_step", one_of("last_step", "best_val"), "checkpoint of the final evaluation"),
    },
    "TRAINER": {
        "NAME": Setting("", TEXT, "name of the trainer's class"),
    },
}

# Nodes of TRAINER that belong to several trainers.
SHARED_NODES = ("PROMPT_DENOISING", "ATPROMPT")


def get_cfg_default() -> CfgNode:
    """Return a new copy of the default tree."""
    return CfgNode(defaults(SETTINGS))


def clean_cfg(cfg: CfgNode, trainer: str) -> None:
    """Remove the settings of all other trainers from cfg.TRAINER, in place; shared nodes stay."""
    keep = {"NAME", trainer.upper(), *SHARED_NODES}
    for name in [name for name in cfg.TRAINER if name not in keep]:
        cfg.TRAINER.pop(name)


def unused_keys(cfg: CfgNode) -> list[str]:
    """Return the keys whose values differ from the defaults although nothing reads them."""
    return [key for key, setting in flatten(SETTINGS).items()
            if setting.meaning == UNREAD and attrgetter(key)(cfg) != setting.default]


def doubts(cfg: CfgNode) -> list[str]:
    """Return a line about each setting that is in its range but spoils the run."""
    optim, found = cfg.OPTIM, []
    if optim.WARMUP_EPOCH >= optim.MAX_EPOCH:
        found.append(f"OPTIM.WARMUP_EPOCH {optim.WARMUP_EPOCH} is not below OPTIM.MAX_EPOCH {optim.MAX_EPOCH}: all of "
                     "the training is warm-up, and the learning rate never reaches OPTIM.LR")
    steps = [step for step in optim.STEPSIZE if number(step) and 0 <= step < optim.MAX_EPOCH]
    if optim.LR_SCHEDULER == "multi_step" and not steps:
        found.append(f"OPTIM.STEPSIZE {tuple(optim.STEPSIZE)} has no epoch of the training, so the learning rate of "
                     "OPTIM.LR_SCHEDULER multi_step never falls")
    if not {"normalize", "instance_norm"}.intersection(cfg.INPUT.TRANSFORMS) and not cfg.INPUT.NO_TRANSFORM:
        found.append(f"INPUT.TRANSFORMS {tuple(cfg.INPUT.TRANSFORMS)} lacks normalize: the images are not normalized, "
                     "in training and in the test")
    return found


def check_values(cfg: CfgNode) -> None:
    """Raise ValueError naming all engine settings out of range, FileNotFoundError if RESUME is not a folder."""
    if found := faults(cfg, SETTINGS):
        raise ValueError("; ".join(found))
    if cfg.RESUME and not os.path.isdir(cfg.RESUME):
        raise FileNotFoundError(f'RESUME names a folder that does not exist: "{cfg.RESUME}"; give the folder of a run')
