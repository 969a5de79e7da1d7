"""Every configuration key that is ours, with its meaning and range.

`extend_cfg` adds to any cfg (the engine's or real Dassl's) what it lacks and leaves the rest alone.
"""
import os
from collections.abc import Collection

from yacs.config import CfgNode

from p2c import compat, configs
from p2c.utils.ranges import Range, above, at_least, faults, number, one_of, whole

SETTINGS = {
    "PLUGIN": "",  # module with trainers or data sets of one's own; train.py --plugin sets it
    "DATASET": {
        # all, base (first half of the classes) or new (the other half); dev_base, dev_new: the halves of the base half
        "SUBSAMPLE_CLASSES": "all",
        # What a data set must fulfil. published: its published numbers of classes and images; partial: any number, for
        # a part of a data set; strict: also as many images of each class as shots.
        "CHECKS": "published",
        "FOLDER": {  # one's own images, DATASET.NAME Folder: DATASET.ROOT is their folder
            "SPLIT": "",  # split JSON or CSV in it; "": by the folders
            "CLASSNAMES": "",  # file in it with lines "folder name"; "": classnames.txt if there is one
            "TEMPLATE": "a photo of a {}.",  # of zero-shot CLIP; one {} for the class name
        },
    },
    "MODEL": {
        "BACKBONE": {
            "WEIGHTS": "openai",  # openai, another tag of open_clip's, random, builtin (tiny-shapes), or a file
        },
    },
    "TRAIN": {
        # torch.compile of both towers for training steps, with CUDA graphs on a GPU. The first step then takes minutes;
        # results differ by no more than rounding.
        "COMPILE": False,
        # Steps, >= 0, between the points inside an epoch that a training can go on from; 0: none. For this package's
        # trainers on its own engine; CHECKPOINT_FREQ is for whole epochs.
        "CHECKPOINT_STEPS": 0,
        # Sums in one order on a GPU too, so that equal runs are bit-equal there; slower. On a CPU they are so anyway.
        "DETERMINISTIC": False,
        "INIT_SEED": -1,  # of the initial prompts alone, >= 0; -1: SEED, as for everything else
        # GiB, >= 0 (such as 4.0), that the class texts' activations may take; what exceeds it is encoded in parts, and
        # again in the backward pass. 0: a quarter of the device's memory. Results differ by no more than rounding.
        "TEXT_MEMORY": 0.0,
    },
    # Cloud inference: predictions averaged over text classifiers from noisy contexts around the trained one, drawn as
    # PROMPT_DENOISING says (whether it is on or not). For trainers that learn a text context alike for all images.
    "TEST": {
        "CLOUD_SAMPLES": 0,  # classifiers, >= 0; 0: off
        "CLOUD_LEVEL": 0.5,  # noise level >= 0, in PROMPT_DENOISING.NOISE_UNIT
        "CLOUD_AVERAGE": "probabilities",  # of the classifiers: probabilities or logits
    },
    "TRAINER": {
        # Annealed noise on the text context while training, a component of any learner that has one (P2C, section DPD).
        "PROMPT_DENOISING": {
            "ENABLED": False,
            "NOISE_TYPE": "gaussian_mixture",  # gaussian_mixture or gaussian
            "NOISE_STD": 9.0,  # sigma_0 >= 0, the level at the start, in NOISE_UNIT
            "NOISE_UNIT": "embedding",  # embedding (std of the model's token embedding) or absolute
            "SCHEDULE": "cosine",  # cosine, linear, sigmoid or constant
            "ANNEAL": "epoch",  # the level changes once an epoch, or with every step: epoch or step
            "WARMUP_EPOCHS": 0,  # epochs at full level, 0 .. OPTIM.MAX_EPOCH - 1
            "SIGMOID_K": 10.0,  # steepness of the sigmoid schedule, > 0
            "GMM_COMPONENTS": 3,  # number of entries of the next two
            "GMM_MEANS": (-1.0, 0.0, 1.0),
            "GMM_STDS": (0.5, 1.0, 0.5),  # > 0
            "GMM_WEIGHTS": (),  # >= 0, not all 0; (): equal
        },
        # Attribute words in the text prompt, each behind learnable tokens of its own, a component of CoOp, MaPLe and
        # P2C (ATPrompt, arXiv 2412.09442).
        "ATPROMPT": {
            "USE_ATPROMPT": False,
            "ATT_NUM": 0,  # attributes in use, 1 .. 3; 0: those published for the data set
            "N_ATT1": 4,  # learnable tokens before the first attribute's words, >= 1
            "N_ATT2": 4,
            "N_ATT3": 4,
            "ATT1_TEXT": "none",  # the first attribute's words, read where ATT_NUM is not 0
            "ATT2_TEXT": "none",
            "ATT3_TEXT": "none",
        },
        "ZEROSHOTCLIP": {  # serves ZeroshotCLIP2 too
            "PREC": "fp16",  # fp16, fp32, amp or bf16
        },
        "COOP": {
            "N_CTX": 16,  # context tokens, >= 1; not read if CTX_INIT has words
            "CSC": False,  # one context a class instead of one for all; not read if CTX_INIT has words
            "CTX_INIT": "",  # words that start the context, as many tokens as words; "": random
            "PREC": "fp16",
            "CLASS_TOKEN_POSITION": "end",  # of the class name in the context: end, middle or front
        },
        "COCOOP": {
            "N_CTX": 16,  # context tokens, >= 1; not read if CTX_INIT has words
            "CTX_INIT": "",
            "PREC": "fp16",
        },
        "VPT": {
            "N_CTX_VISION": 2,  # image prompts per layer, >= 1
            "CTX_INIT": "a photo of a",  # not read: the text is always "a photo of a NAME.", as published
            "PREC": "fp16",
            "PROMPT_DEPTH_VISION": 1,  # layers with image prompts, 1 .. layers of the tower
        },
        "IVLP": {
            "N_CTX_VISION": 2,  # image prompts per layer, >= 1 unless their depth is 0
            "N_CTX_TEXT": 2,  # context tokens per layer, >= 1
            "CTX_INIT": "a photo of a",  # words that start the context (used if N_CTX_TEXT <= 4); "": random
            "PREC": "fp16",
            "PROMPT_DEPTH_VISION": 9,  # layers with image prompts, 0 (none) .. layers of the tower
            "PROMPT_DEPTH_TEXT": 9,  # layers with text prompts, 1 .. layers of the tower
        },
        "MAPLE": {
            "N_CTX": 2,  # context tokens per layer, >= 1
            "CTX_INIT": "a photo of a",  # words that start the context (used if N_CTX <= 4); "": random
            "PREC": "fp16",
            "PROMPT_DEPTH": 9,  # layers with prompts, 1 .. layers of the shallower tower
        },
        "PROMPTSRC": {
            "N_CTX_VISION": 4,  # down to PROMPT_DEPTH_TEXT: as IVLP's
            "N_CTX_TEXT": 4,
            "CTX_INIT": "a photo of a",
            "PREC": "fp16",
            "PROMPT_DEPTH_VISION": 9,
            "PROMPT_DEPTH_TEXT": 9,
            # Distance to frozen CLIP's features: weights, >= 0, of the mean absolute difference.
            "TEXT_LOSS_WEIGHT": 25,
            "IMAGE_LOSS_WEIGHT": 10,
            # Gaussian weights of the epochs 1 .. OPTIM.MAX_EPOCH in the average of their prompts.
            "GPA_MEAN": 15,  # the epoch with the largest weight; any number
            "GPA_STD": 1,  # in epochs, > 0
        },
        "P2C": {
            "N_CTX": 2,
            "CTX_INIT": "a photo of a",
            "PREC": "fp16",
            "PROMPT_DEPTH": 9,
            # The input prompts' mapper as a denoising autoencoder; off: MaPLe's single Linear.
            "MAPPER": {
                "ENABLED": False,
                "HIDDEN_SCALE": 1.0,  # hidden width / text width, > 0
                "LOSS_WEIGHT": 1.0,  # of the denoising loss, >= 0
                "NOISE_STD": 2.0,  # sigma_a >= 0, in PROMPT_DENOISING.NOISE_UNIT
            },
        },
    },
}


PRECISION = one_of("fp16", "fp32", "amp", "bf16")

# The ranges that SETTINGS tells of. What a model or a data set bounds (layers, tokens) is refused when that is known.
RANGES = {
    "DATASET.SUBSAMPLE_CLASSES": one_of("all", "base", "new", "dev_base", "dev_new"),
    "DATASET.CHECKS": one_of("partial", "published", "strict"),
    "DATASET.FOLDER.TEMPLATE": Range(lambda text, cfg: isinstance(text, str) and text.count("{}") == 1,
                                     "it needs one {} where the class name stands"),
    "TRAIN.CHECKPOINT_STEPS": whole(0),
    "TRAIN.INIT_SEED": whole(-1),
    "TRAIN.TEXT_MEMORY": at_least(0),
    "TEST.CLOUD_SAMPLES": whole(0),
    "TEST.CLOUD_LEVEL": at_least(0),
    "TEST.CLOUD_AVERAGE": one_of("probabilities", "logits"),
    "TRAINER.PROMPT_DENOISING.NOISE_TYPE": one_of("gaussian_mixture", "gaussian"),
    "TRAINER.PROMPT_DENOISING.NOISE_STD": at_least(0),
    "TRAINER.PROMPT_DENOISING.NOISE_UNIT": one_of("embedding", "absolute"),
    "TRAINER.PROMPT_DENOISING.SCHEDULE": one_of("cosine", "linear", "sigmoid", "constant"),
    "TRAINER.PROMPT_DENOISING.ANNEAL": one_of("epoch", "step"),
    "TRAINER.PROMPT_DENOISING.WARMUP_EPOCHS": Range(
        lambda epochs, cfg: type(epochs) is int and 0 <= epochs < cfg.OPTIM.MAX_EPOCH,
        "it must be a whole number from 0 to OPTIM.MAX_EPOCH - 1"),
    "TRAINER.PROMPT_DENOISING.SIGMOID_K": above(0),
    "TRAINER.PROMPT_DENOISING.GMM_COMPONENTS": Range(
        lambda count, cfg: count == len(cfg.TRAINER.PROMPT_DENOISING.GMM_MEANS) > 0,
        "it must be the number of entries of GMM_MEANS, at least 1"),
    "TRAINER.PROMPT_DENOISING.GMM_MEANS": Range(lambda means, cfg: len(means) > 0 and all(map(number, means)),
                                                "it must be a list of finite numbers, at least one"),
    "TRAINER.PROMPT_DENOISING.GMM_STDS": Range(
        lambda stds, cfg: len(stds) == len(cfg.TRAINER.PROMPT_DENOISING.GMM_MEANS)
        and all(number(std) and std > 0 for std in stds),
        "it must be as many finite numbers above 0 as GMM_MEANS has entries"),
    "TRAINER.PROMPT_DENOISING.GMM_WEIGHTS": Range(
        lambda weights, cfg: len(weights) == 0 or len(weights) == len(cfg.TRAINER.PROMPT_DENOISING.GMM_MEANS)
        and all(number(weight) and weight >= 0 for weight in weights) and sum(weights) > 0,
        "it must be empty, or as many finite numbers as GMM_MEANS has entries, none below 0 and not all 0"),
    "TRAINER.ATPROMPT.ATT_NUM": whole(0, 3),
    "TRAINER.ATPROMPT.N_ATT1": whole(1),
    "TRAINER.ATPROMPT.N_ATT2": whole(1),
    "TRAINER.ATPROMPT.N_ATT3": whole(1),
    "TRAINER.ZEROSHOTCLIP.PREC": PRECISION,
    "TRAINER.COOP.N_CTX": whole(1),
    "TRAINER.COOP.PREC": PRECISION,
    "TRAINER.COOP.CLASS_TOKEN_POSITION": one_of("end", "middle", "front"),
    "TRAINER.COCOOP.N_CTX": whole(1),
    "TRAINER.COCOOP.PREC": PRECISION,
    "TRAINER.VPT.N_CTX_VISION": whole(1),
    "TRAINER.VPT.PREC": PRECISION,
    "TRAINER.VPT.PROMPT_DEPTH_VISION": whole(1),
    **{f"TRAINER.{node}.{key}": range_ for node in ("IVLP", "PROMPTSRC") for key, range_ in {
        "N_CTX_VISION": Range(lambda count, cfg, node=node: type(count) is int
                              and count >= (cfg.TRAINER[node].PROMPT_DEPTH_VISION > 0),
                              "it must be a whole number, at least 1 unless PROMPT_DEPTH_VISION is 0"),
        "N_CTX_TEXT": whole(1),
        "PREC": PRECISION,
        "PROMPT_DEPTH_VISION": whole(0),
        "PROMPT_DEPTH_TEXT": whole(1),
    }.items()},
    "TRAINER.MAPLE.N_CTX": whole(1),
    "TRAINER.MAPLE.PREC": PRECISION,
    "TRAINER.MAPLE.PROMPT_DEPTH": whole(1),
    "TRAINER.PROMPTSRC.TEXT_LOSS_WEIGHT": at_least(0),
    "TRAINER.PROMPTSRC.IMAGE_LOSS_WEIGHT": at_least(0),
    "TRAINER.PROMPTSRC.GPA_STD": above(0),
    "TRAINER.P2C.N_CTX": whole(1),
    "TRAINER.P2C.PREC": PRECISION,
    "TRAINER.P2C.PROMPT_DEPTH": whole(1),
    "TRAINER.P2C.MAPPER.HIDDEN_SCALE": above(0),
    "TRAINER.P2C.MAPPER.LOSS_WEIGHT": at_least(0),
    "TRAINER.P2C.MAPPER.NOISE_STD": at_least(0),
}


def check_settings(cfg: CfgNode, nodes: Collection[str] | None = None) -> None:
    """Raise ValueError with every setting of SETTINGS out of its range, but for nodes of TRAINER not among `nodes`."""
    settings = SETTINGS if nodes is None else {
        **SETTINGS, "TRAINER": {name: node for name, node in SETTINGS["TRAINER"].items() if name in nodes}}
    if found := faults(cfg, settings, RANGES):
        raise ValueError("; ".join(found))


def config_file(*parts: str) -> str:
    """The path of configs/PARTS.yaml."""
    return os.path.join(list(configs.__path__)[0], *parts) + ".yaml"


def extend_cfg(cfg: CfgNode) -> None:
    """Add every key of SETTINGS that `cfg` lacks, in place; calling it again changes nothing.

    Raises:
        EngineError: `cfg` is real Dassl's, but our trainers were imported before Dassl was.
    """
    compat.check_cfg(cfg)
    _add_missing(cfg, SETTINGS)


def _add_missing(node: CfgNode, settings: dict) -> None:
    for key, value in settings.items():
        if isinstance(value, dict):
            if key not in node:
                node[key] = CfgNode()
            _add_missing(node[key], value)
        elif key not in node:
            node[key] = value
