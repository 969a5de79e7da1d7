"""Trees of settings, whatever they hold: merging, comparing, flattening, and what their ranges let through."""
import json
import math
import re
import sys
from functools import reduce
from operator import attrgetter, getitem

from hypothesis import given, settings
from hypothesis import strategies as st
from yacs.config import CfgNode

from p2c import config
from p2c.config import extend_cfg
from p2c.engine import config as engine_config
from p2c.engine.results import MAY_CHANGE, changed_keys, to_plain
from p2c.framework import get_cfg_default
from p2c.utils.ranges import (
    Setting,
    above,
    at_least,
    between,
    defaults,
    faults,
    flatten,
    one_of,
    several,
    whole,
)

OURS = flatten(defaults(config.SETTINGS))


def whole_tree():
    cfg = get_cfg_default()
    extend_cfg(cfg)
    return cfg


KEYS = flatten(whole_tree())
TABLES = engine_config.SETTINGS, config.SETTINGS
SETTINGS = {key: setting for table in TABLES for key, setting in flatten(table).items()}
FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8)
ANY = st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | TEXT | st.lists(FINITE, max_size=3)


def like(value):
    """Values of the type of another."""
    if isinstance(value, list | tuple):
        return st.lists(FINITE | TEXT, max_size=3).map(type(value))
    # yacs takes texts that are Python's words for something else for that.
    return {bool: st.booleans(), int: st.integers(), float: FINITE, str: TEXT.map("x{}".format)}[type(value)]


@st.composite
def some_settings(draw, keys=tuple(KEYS)):
    """New values, of the right type, for a few keys."""
    return {key: draw(like(KEYS[key])) for key in draw(st.lists(st.sampled_from(keys), max_size=5, unique=True))}


def merged(values):
    cfg = whole_tree()
    for key, value in values.items():
        node, _, leaf = key.rpartition(".")
        (attrgetter(node)(cfg) if node else cfg)[leaf] = value
    return cfg


@given(some_settings(tuple(OURS)), st.sets(st.sampled_from(sorted(OURS))))
def test_extending_adds_what_is_missing_and_changes_nothing_that_is_there(values, removed):
    cfg = merged(values)
    removed = removed - values.keys()
    for key in removed:
        node, _, leaf = key.rpartition(".")
        del (attrgetter(node)(cfg) if node else cfg)[leaf]
    before = flatten(cfg)
    extend_cfg(cfg)
    after = flatten(cfg)
    assert after == {**OURS, **before} and after.keys() == KEYS.keys()
    extend_cfg(cfg)
    assert flatten(cfg) == after and flatten(defaults(config.SETTINGS)) == OURS


@given(some_settings())
def test_merging_takes_every_value_whatever_the_order_and_once_more_changes_nothing(values):
    pairs = [(key, repr(value) if isinstance(value, str) else value) for key, value in values.items()]
    trees = []
    for order in (pairs, pairs[::-1], pairs * 2):
        cfg = whole_tree()
        cfg.merge_from_list([part for pair in order for part in pair])
        trees.append(flatten(cfg))
    assert trees[0] == trees[1] == trees[2] == {**KEYS, **values}
    assert {key: type(value) for key, value in trees[0].items()} == {key: type(value) for key, value in KEYS.items()}


@settings(max_examples=8)  # YAML is slow
@given(some_settings())
def test_a_tree_survives_its_own_yaml_and_json(values):
    cfg, other = merged(values), whole_tree()
    other.merge_from_other_cfg(CfgNode.load_cfg(cfg.dump()))
    assert flatten(other) == flatten(cfg)
    record = json.loads(json.dumps(to_plain(cfg)))
    assert changed_keys(record, cfg) == [] and to_plain(record) == record
    assert {key: tuple(value) if isinstance(value, list) else value for key, value in flatten(record).items()} == \
        {key: tuple(value) if isinstance(value, list) else value for key, value in flatten(cfg).items()}


@given(some_settings())
def test_exactly_the_keys_that_differ_and_matter_have_changed(values):
    cfg, record = merged(values), json.loads(json.dumps(to_plain(whole_tree())))
    differ = {key for key, value in values.items() if value != KEYS[key] and key not in MAY_CHANGE}
    assert set(changed_keys(record, cfg)) == differ
    assert set(changed_keys(to_plain(cfg), whole_tree())) == differ


TREES = st.recursive(
    st.integers(), lambda trees: st.dictionaries(st.text("abc", min_size=1), trees, min_size=1), max_leaves=8)


@given(TREES)
def test_a_flat_tree_has_every_leaf_under_its_path(tree):
    tree = {"a": tree}
    flat, leaves = flatten(tree), 0
    stack = [tree]
    while stack:
        for value in stack.pop().values():
            stack.append(value) if isinstance(value, dict) else (leaves := leaves + 1)
    assert len(flat) == leaves and all(reduce(getitem, key.split("."), tree) == value for key, value in flat.items())


# Ranges


def finite(value):
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


@given(ANY, FINITE, FINITE, st.integers(), st.integers())
def test_a_range_lets_through_its_own_and_nothing_else(value, low, high, least, most):
    def holds(range_):
        return not faults({"KEY": value}, {"KEY": Setting(1, range_, "")})

    assert holds(at_least(low)) == (finite(value) and value >= low)
    assert holds(above(low)) == (finite(value) and value > low)
    assert holds(between(low, high)) == (finite(value) and low <= value <= high)
    assert holds(whole(least)) == (type(value) is int and value >= least)
    assert holds(whole(least, most)) == (type(value) is int and least <= value <= most)
    assert holds(one_of("a", "b")) == (type(value) is str and value in ("a", "b"))
    assert holds(several(lambda entry: entry >= low, 2, "")) == (
        type(value) is list and len(value) == 2 and min(value) >= low)


@given(st.sampled_from(sorted(KEYS)), ANY)
def test_a_setting_of_any_value_is_in_its_range_or_named_with_it(key, value):
    cfg = merged({key: value})
    found = [fault for table in TABLES for fault in faults(cfg, table)]
    named = any(fault.startswith(f"{key} is {value!r}; ") for fault in found)
    assert named != SETTINGS[key].range.holds(value, cfg)
    if value is None or isinstance(value, float) and not math.isfinite(value):
        assert named
    if value == KEYS[key] and type(value) is type(KEYS[key]):
        assert found == []


def test_whole_numbers_are_bounded_where_their_words_say():
    for key, setting in SETTINGS.items():
        if words := re.fullmatch(r"it must be a whole number, at least (\d+)", setting.range.words):
            least = int(words[1])
            assert setting.range.holds(least, None) and not setting.range.holds(least - 1, None), key
