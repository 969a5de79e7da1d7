"""Users' values in a configuration: numbers of either kind, records, and mistakes that change nothing."""
import pytest
from test_config_merge import whole_tree

from p2c import merging
from p2c.config import check_settings
from p2c.engine.config import check_values
from p2c.engine.results import changed_keys, to_plain
from p2c.utils.ranges import flatten

FLOATS = [key for key, value in flatten(whole_tree()).items() if type(value) is float]
NUMBERS = ("OPTIM.SGD_DAMPNING", "TRAINER.PROMPTSRC.TEXT_LOSS_WEIGHT", "TRAINER.PROMPTSRC.IMAGE_LOSS_WEIGHT",
           "TRAINER.PROMPTSRC.GPA_MEAN", "TRAINER.PROMPTSRC.GPA_STD")
WHOLE = [key for key, value in flatten(whole_tree()).items() if type(value) is int and key not in NUMBERS]


def from_file(tmp_path, key, text):
    cfg, sections = whole_tree(), key.split(".")
    path = tmp_path / "settings.yaml"
    path.write_text(": {".join(sections) + f": {text}" + "}" * (len(sections) - 1))
    assert merging.merge_file(cfg, str(path)) == [key]
    return flatten(cfg)[key]


def from_pairs(tmp_path, key, text):
    cfg = whole_tree()
    assert merging.merge_pairs(cfg, [key, text]) == [key]
    return flatten(cfg)[key]


@pytest.mark.parametrize("merge", [from_file, from_pairs])
@pytest.mark.parametrize("key", FLOATS)
def test_a_whole_number_serves_where_a_float_is_meant(tmp_path, merge, key):
    value = merge(tmp_path, key, "1")
    assert type(value) is float and value == 1


@pytest.mark.parametrize("merge", [from_file, from_pairs])
@pytest.mark.parametrize("key", NUMBERS)
def test_a_float_serves_where_a_number_is_no_count(tmp_path, merge, key):
    assert merge(tmp_path, key, "0.5") == 0.5 and merge(tmp_path, key, "2") == 2


@pytest.mark.parametrize("key", WHOLE)
def test_a_count_takes_no_float(key):
    with pytest.raises(ValueError, match=f"^{key} is 1.5; "):
        merging.merge_pairs(whole_tree(), [key, "1.5"])


def test_settings_with_floats_are_in_their_ranges_and_equal_recorded_whole_numbers():
    cfg = whole_tree()
    merging.merge_pairs(cfg, ["TRAINER.PROMPTSRC.TEXT_LOSS_WEIGHT", "25.0", "TRAINER.PROMPTSRC.GPA_STD", "0.5"])
    check_values(cfg), check_settings(cfg)
    assert changed_keys(to_plain(whole_tree()), cfg) == ["TRAINER.PROMPTSRC.GPA_STD"]


def test_a_mistake_in_one_pair_merges_none():
    cfg = whole_tree()
    with pytest.raises(ValueError, match="OPTIM.MAX_EPOCH"):
        merging.merge_pairs(cfg, ["OPTIM.LR", "1", "OPTIM.MAX_EPOCH", "five"])
    assert cfg == whole_tree()


def test_values_of_a_record_are_no_literals():
    cfg = whole_tree()
    merging.merge_values(cfg, {"DATASET.ROOT": "1", "INPUT.SIZE": [8, 8], "OPTIM.LR": 1})
    assert cfg.DATASET.ROOT == "1" and cfg.INPUT.SIZE == (8, 8) and type(cfg.OPTIM.LR) is float
