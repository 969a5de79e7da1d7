"""The default config tree (Dassl's keys, types and defaults) and what can be said about a config as a whole."""
import os
from operator import attrgetter

from yacs.config import CfgNode

from p2c.engine.optim import OPTIMIZERS, SCHEDULES, WARMUPS
from p2c.engine.samplers import WHOLE
from p2c.engine.transforms import INTERPOLATION_MODES
from p2c.utils.ranges import Range, at_least, between, faults, number, one_of, several, whole

DEFAULTS = CfgNode({
    "VERSION": 1,
    "OUTPUT_DIR": "./output",  # log, checkpoints, tensorboard, results.json
    "RESUME": "",  # folder to resume from; empty: OUTPUT_DIR
    "SEED": -1,  # negative: one is drawn
    "USE_CUDA": True,  # if there is a GPU
    "VERBOSE": True,  # name what is loaded and print the summary of the data
    "INPUT": {
        "SIZE": (224, 224),  # height, width
        "INTERPOLATION": "bilinear",  # bilinear, bicubic or nearest
        "TRANSFORMS": (),  # names of operations; their order does not matter
        "NO_TRANSFORM": False,  # hand out PIL images
        "PIXEL_MEAN": [0.485, 0.456, 0.406],
        "PIXEL_STD": [0.229, 0.224, 0.225],
        "CROP_PADDING": 4,  # of random_crop, in pixels
        "RRCROP_SCALE": (0.08, 1.0),  # share of the area that random_resized_crop keeps
        "CUTOUT_N": 1,  # holes
        "CUTOUT_LEN": 16,  # side of a hole, in pixels
        "GN_MEAN": 0.0,  # gaussian_noise
        "GN_STD": 0.15,
        "RANDAUGMENT_N": 2,  # operations per image
        "RANDAUGMENT_M": 10,  # magnitude, 0 to 30
        "COLORJITTER_B": 0.4,  # brightness
        "COLORJITTER_C": 0.4,  # contrast
        "COLORJITTER_S": 0.4,  # saturation
        "COLORJITTER_H": 0.1,  # hue
        "RGS_P": 0.2,  # probability of randomgrayscale
        "GB_P": 0.5,  # probability of gaussian_blur
        "GB_K": 21,  # its kernel size, odd
    },
    "DATASET": {
        "ROOT": "",  # folder that holds all data sets
        "NAME": "",
        "SOURCE_DOMAINS": (),
        "TARGET_DOMAINS": (),
        "NUM_SHOTS": -1,  # training images per class; below 1: all
        "NUM_LABELED": -1,
        "VAL_PERCENT": 0.1,
        "STL10_FOLD": -1,
        "CIFAR_C_TYPE": "",
        "CIFAR_C_LEVEL": 1,
        "ALL_AS_UNLABELED": False,
    },
    "DATALOADER": {
        "NUM_WORKERS": 4,
        "K_TRANSFORMS": 1,  # augmentations of each training image
        "RETURN_IMG0": False,  # also hand out the image without augmentation
        "TRAIN_X": {"SAMPLER": "RandomSampler", "BATCH_SIZE": 32, "N_DOMAIN": 0, "N_INS": 16},
        "TRAIN_U": {"SAME_AS_X": True, "SAMPLER": "RandomSampler", "BATCH_SIZE": 32, "N_DOMAIN": 0, "N_INS": 16},
        # Validation too. SAMPLER: SequentialSampler or RandomSampler, which give every image once.
        "TEST": {"SAMPLER": "SequentialSampler", "BATCH_SIZE": 32},
    },
    "MODEL": {
        "INIT_WEIGHTS": "",  # file of initial weights
        "BACKBONE": {"NAME": "", "PRETRAINED": True},
        "HEAD": {"NAME": "", "HIDDEN_LAYERS": (), "ACTIVATION": "relu", "BN": True, "DROPOUT": 0.0},
    },
    "OPTIM": {
        "NAME": "adam",  # adam, amsgrad, sgd, rmsprop, radam or adamw
        "LR": 0.0003,
        "WEIGHT_DECAY": 5e-4,
        "MOMENTUM": 0.9,  # sgd, rmsprop
        "SGD_DAMPNING": 0,
        "SGD_NESTEROV": False,
        "RMSPROP_ALPHA": 0.99,
        "ADAM_BETA1": 0.9,
        "ADAM_BETA2": 0.999,
        "STAGED_LR": False,  # two groups of parameters with different rates
        "NEW_LAYERS": (),  # names of the child modules at the full rate
        "BASE_LR_MULT": 0.1,  # factor of the rate of the others
        "LR_SCHEDULER": "single_step",  # single_step, multi_step or cosine
        "STEPSIZE": (-1,),  # epochs; single_step takes the last number, 0 or less means MAX_EPOCH
        "GAMMA": 0.1,  # factor of each step
        "MAX_EPOCH": 10,
        "WARMUP_EPOCH": -1,  # above 0: that many epochs of warm-up
        "WARMUP_TYPE": "linear",  # linear or constant
        "WARMUP_CONS_LR": 1e-5,  # rate of a constant warm-up
        "WARMUP_MIN_LR": 1e-5,  # rate of epoch 0 of a linear warm-up
        "WARMUP_RECOUNT": True,  # the main schedule starts at its own epoch 0 after the warm-up
    },
    "TRAIN": {
        "CHECKPOINT_FREQ": 0,  # epochs between checkpoints; 0 or less: the last epoch only
        "PRINT_FREQ": 10,  # batches between progress lines
        "COUNT_ITER": "train_x",  # length of an epoch with unlabeled data: train_x, train_u or smaller_one
    },
    "TEST": {
        "EVALUATOR": "Classification",
        "PER_CLASS_RESULT": False,
        "COMPUTE_CMAT": False,  # write the confusion matrix to cmat.pt
        "NO_TEST": False,  # no evaluation at all, not even to choose the best model
        "SPLIT": "test",  # of the final evaluation: test or val
        "FINAL_MODEL": "last_step",  # last_step or best_val
    },
    "TRAINER": {"NAME": ""},
})

# Nodes of TRAINER that belong to several trainers.
SHARED_NODES = ("PROMPT_DENOISING", "ATPROMPT")

# Keys of Dassl that nothing here reads; they exist so that configs written for it merge.
UNUSED_KEYS = (
    "VERSION", "DATASET.NUM_LABELED", "DATASET.VAL_PERCENT", "DATASET.STL10_FOLD", "DATASET.CIFAR_C_TYPE",
    "DATASET.CIFAR_C_LEVEL", "DATASET.ALL_AS_UNLABELED", "MODEL.BACKBONE.PRETRAINED", "MODEL.HEAD.NAME",
    "MODEL.HEAD.HIDDEN_LAYERS", "MODEL.HEAD.ACTIVATION", "MODEL.HEAD.BN", "MODEL.HEAD.DROPOUT",
)

BETA = Range(lambda beta, cfg: number(beta) and 0 <= beta < 1, "it must be a number from 0 to below 1")

# What the keys may be, where that is not said by their type. Numbers are finite.
RANGES = {
    "SEED": Range(lambda seed, cfg: type(seed) is int and seed < 1 << 63, "it must be a whole number below 2^63"),
    "INPUT.SIZE": several(lambda side: type(side) is int and side >= 1, 2, "two whole numbers, at least 1"),
    "INPUT.INTERPOLATION": one_of(*INTERPOLATION_MODES),
    "INPUT.PIXEL_MEAN": several(lambda mean: True, 3, "three finite numbers"),
    "INPUT.PIXEL_STD": several(lambda std: std > 0, 3, "three finite numbers above 0"),
    "INPUT.CROP_PADDING": whole(0),
    "INPUT.RRCROP_SCALE": several(lambda share: 0 < share <= 1, 2, "two numbers above 0, at most 1"),
    "INPUT.CUTOUT_N": whole(0),
    "INPUT.CUTOUT_LEN": whole(0),
    "INPUT.GN_STD": at_least(0),
    "INPUT.RANDAUGMENT_N": whole(0),
    "INPUT.RANDAUGMENT_M": whole(0, 30),
    "INPUT.COLORJITTER_B": at_least(0),
    "INPUT.COLORJITTER_C": at_least(0),
    "INPUT.COLORJITTER_S": at_least(0),
    "INPUT.COLORJITTER_H": between(0, 0.5),
    "INPUT.RGS_P": between(0, 1),
    "INPUT.GB_P": between(0, 1),
    "INPUT.GB_K": Range(lambda size, cfg: size >= 1 and size % 2 == 1, "it must be an odd whole number, at least 1"),
    "DATALOADER.NUM_WORKERS": whole(0),
    "DATALOADER.K_TRANSFORMS": whole(1),
    "DATALOADER.TRAIN_X.BATCH_SIZE": whole(1),
    "DATALOADER.TRAIN_X.N_DOMAIN": whole(0),
    "DATALOADER.TRAIN_X.N_INS": whole(1),
    "DATALOADER.TRAIN_U.BATCH_SIZE": whole(1),
    "DATALOADER.TRAIN_U.N_DOMAIN": whole(0),
    "DATALOADER.TRAIN_U.N_INS": whole(1),
    "DATALOADER.TEST.SAMPLER": one_of(*WHOLE),
    "DATALOADER.TEST.BATCH_SIZE": whole(1),
    "OPTIM.NAME": one_of(*OPTIMIZERS),
    "OPTIM.LR": at_least(0),
    "OPTIM.WEIGHT_DECAY": at_least(0),
    "OPTIM.MOMENTUM": at_least(0),
    "OPTIM.RMSPROP_ALPHA": at_least(0),
    "OPTIM.ADAM_BETA1": BETA,
    "OPTIM.ADAM_BETA2": BETA,
    "OPTIM.BASE_LR_MULT": at_least(0),
    "OPTIM.LR_SCHEDULER": one_of(*SCHEDULES),
    "OPTIM.GAMMA": at_least(0),
    "OPTIM.MAX_EPOCH": whole(1),
    "OPTIM.WARMUP_TYPE": one_of(*WARMUPS),
    "OPTIM.WARMUP_CONS_LR": at_least(0),
    "OPTIM.WARMUP_MIN_LR": at_least(0),
    "TRAIN.PRINT_FREQ": whole(1),
    "TRAIN.COUNT_ITER": one_of("train_x", "train_u", "smaller_one"),
    "TEST.SPLIT": one_of("test", "val"),
    "TEST.FINAL_MODEL": one_of("last_step", "best_val"),
}


def get_cfg_default() -> CfgNode:
    """A copy of the default tree, independent of every other."""
    return DEFAULTS.clone()


def clean_cfg(cfg: CfgNode, trainer: str) -> None:
    """Drop from cfg.TRAINER, in place, the settings of every trainer but this one; shared nodes stay."""
    keep = {"NAME", trainer.upper(), *SHARED_NODES}
    for name in [name for name in cfg.TRAINER if name not in keep]:
        cfg.TRAINER.pop(name)


def unused_keys(cfg: CfgNode) -> list[str]:
    """The keys that were changed from their default although nothing reads them."""
    return [key for key in UNUSED_KEYS if attrgetter(key)(cfg) != attrgetter(key)(DEFAULTS)]


def check_values(cfg: CfgNode) -> None:
    """Raise ValueError with every engine setting out of its range, or FileNotFoundError for RESUME."""
    if found := faults(cfg, DEFAULTS, RANGES):
        raise ValueError("; ".join(found))
    if cfg.RESUME and not os.path.isdir(cfg.RESUME):
        raise FileNotFoundError(f'RESUME names a folder that does not exist: "{cfg.RESUME}"; give the folder of a run')
