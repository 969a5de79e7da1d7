"""The config tree of this engine: its nodes, and what is refused or reported."""
import re

import pytest
from messages import naming
from yacs.config import CfgNode

from p2c.engine import clean_cfg, get_cfg_default
from p2c.engine.config import check_values, doubts, unused_keys


def test_no_method_has_settings_before_it_adds_them():
    """Check 1."""
    assert set(get_cfg_default().TRAINER) == {"NAME"}


def test_clean_cfg_keeps_the_nodes_that_trainers_share():
    """Check 5, with the departure for shared nodes."""
    cfg = get_cfg_default()
    for name in ("P2C", "MAPLE", "PROMPT_DENOISING", "ATPROMPT"):
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
    ("DATALOADER.TRAIN_X.N_INS", 0), ("OPTIM.MAX_EPOCH", None),
])
def test_numbers_out_of_range_are_refused(key, value):
    cfg = get_cfg_default()
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=naming(key, value)):
        check_values(cfg)


@pytest.mark.parametrize("key, value, allowed", [
    ("OPTIM.NAME", "lion", "adam"), ("OPTIM.LR_SCHEDULER", "step", "single_step"),
    ("OPTIM.WARMUP_TYPE", "cubic", "constant, linear"), ("INPUT.INTERPOLATION", "lanczos", "bicubic"),
    ("OPTIM.ADAM_BETA2", 1.0, "0 to"), ("INPUT.RANDAUGMENT_M", 31, "0 to 30"),
    ("INPUT.SIZE", (224,), "two"), ("INPUT.PIXEL_STD", [1.0, 0.0, 1.0], "above 0"),
    ("INPUT.GB_K", 20, "odd"), ("INPUT.GB_P", 1.5, "0 to 1"),
    ("INPUT.GN_MEAN", float("nan"), "number"), ("OUTPUT_DIR", None, "text"),
    ("TEST.NO_TEST", None, "True or False"), ("SEED", None, "whole number"),
    ("SEED", 1 << 63, "63"), ("OPTIM.SGD_DAMPNING", None, "number"),
    ("DATASET.SOURCE_DOMAINS", None, "list"),
])
def test_values_are_refused_with_what_they_may_be(key, value, allowed):
    cfg = get_cfg_default()
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=naming(key, repr(value), allowed)):
        check_values(cfg)


def test_keys_that_nothing_reads_are_named_when_changed():
    cfg = get_cfg_default()
    assert unused_keys(cfg) == []
    cfg.merge_from_list(["MODEL.HEAD.DROPOUT", 0.5, "DATASET.STL10_FOLD", 2])
    assert unused_keys(cfg) == ["DATASET.STL10_FOLD", "MODEL.HEAD.DROPOUT"]


@pytest.mark.parametrize("pairs, named", [
    (("OPTIM.WARMUP_EPOCH", 5, "OPTIM.MAX_EPOCH", 5), ("OPTIM.WARMUP_EPOCH 5", "OPTIM.MAX_EPOCH 5", "OPTIM.LR")),
    (("OPTIM.LR_SCHEDULER", "multi_step"), ("OPTIM.STEPSIZE (-1,)", "multi_step")),
    (("OPTIM.LR_SCHEDULER", "multi_step", "OPTIM.STEPSIZE", (10, 20)), ("OPTIM.STEPSIZE (10, 20)", "multi_step")),
    (("INPUT.TRANSFORMS", ("random_flip",)), ("INPUT.TRANSFORMS ('random_flip',)", "normalize", "test")),
    (("OPTIM.WARMUP_EPOCH", 4, "OPTIM.MAX_EPOCH", 5), None),
    (("OPTIM.LR_SCHEDULER", "multi_step", "OPTIM.STEPSIZE", (9, 20)), None),
    (("INPUT.TRANSFORMS", ("instance_norm",)), None),
])
def test_what_would_ruin_a_run_is_named(pairs, named):
    cfg = get_cfg_default()
    cfg.merge_from_list(["INPUT.TRANSFORMS", ("normalize",), *pairs])
    check_values(cfg)
    lines = doubts(cfg)
    assert len(lines) == (named is not None) and (not named or re.search(naming(*named), lines[0]))
