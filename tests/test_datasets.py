"""The shared base of the datasets: CoOp's few-shot draw item for item, upstream's cache, base and new classes."""
import json
import pickle
import random
import sys
import types

import pytest
from clip_files import BREEDS
from PIL import Image

from p2c.config import extend_cfg
from p2c.datasets.oxford_pets import OxfordPets
from p2c.framework import get_cfg_default


def make(root, labels, per_class=10, val_per_class=10):
    """A dataset whose labels first appear in the given order; images 0..n-1 of a class in order."""
    folder = root / "oxford_pets"
    (folder / "images").mkdir(parents=True)
    split = {"train": [], "val": [], "test": []}
    for part, count in (("train", per_class), ("val", val_per_class), ("test", 1)):
        for label in labels:
            for index in range(count):
                name = f"{label}_{part}_{index}.png"
                Image.new("RGB", (2, 2)).save(folder / "images" / name)
                split[part].append([name, label, BREEDS[label]])
    (folder / "split_zhou_OxfordPets.json").write_text(json.dumps(split))
    return folder


def load(root, *pairs):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.merge_from_list(["DATASET.NAME", "OxfordPets", "DATASET.ROOT", str(root), "SEED", 1,
                         "DATASET.CHECKS", "partial", *pairs])
    return OxfordPets(cfg)


def drawn(items, label):
    """Numbers of the images drawn for a label, in drawn order."""
    names = [item.impath.rsplit("/", 1)[1] for item in items if item.label == label]
    return [int(name.removesuffix(".png").rsplit("_", 1)[1]) for name in names]


def test_the_draw_is_coops_in_file_order_and_validation_continues_the_generator(tmp_path):
    """The data-free vector: labels first seen as 2, 0, 1, ten items each, seed 1, two shots, drawn twice."""
    make(tmp_path, [2, 0, 1])
    dataset = load(tmp_path, "DATASET.NUM_SHOTS", 2)
    assert [drawn(dataset.train_x, label) for label in (2, 0, 1)] == [[2, 1], [4, 1], [7, 9]]
    assert [drawn(dataset.val, label) for label in (2, 0, 1)] == [[7, 6], [3, 1], [7, 0]]
    assert [item.label for item in dataset.train_x] == [2, 2, 0, 0, 1, 1]


def test_drawing_leaves_the_global_generator_alone(tmp_path):
    make(tmp_path, [0, 1])
    state = random.getstate()
    load(tmp_path, "DATASET.NUM_SHOTS", 4)
    assert random.getstate() == state


def test_validation_has_at_most_four_shots_and_all_shots_mean_everything(tmp_path):
    make(tmp_path, [0, 1])
    assert len(load(tmp_path, "DATASET.NUM_SHOTS", 8).val) == 2 * 4
    everything = load(tmp_path)
    assert len(everything.train_x) == 20 and len(everything.val) == 20


def test_base_and_new_classes_partition_all_and_keep_the_draw(tmp_path):
    make(tmp_path, [1, 0, 4, 2, 3])
    everything, base, new = (load(tmp_path, "DATASET.NUM_SHOTS", 3, "DATASET.SUBSAMPLE_CLASSES", half)
                             for half in ("all", "base", "new"))
    assert base.classnames == list(BREEDS[:3]) and new.classnames == list(BREEDS[3:5])
    for label in range(3):
        assert drawn(base.train_x, label) == drawn(everything.train_x, label)
    for label in range(2):
        assert drawn(new.train_x, label) == drawn(everything.train_x, label + 3)
    assert {item.label for item in new.test} == {0, 1}


def test_one_class_has_no_new_half(tmp_path):
    make(tmp_path, [0])
    with pytest.raises(ValueError, match="no classes for DATASET.SUBSAMPLE_CLASSES new"):
        load(tmp_path, "DATASET.SUBSAMPLE_CLASSES", "new")


@pytest.fixture
def upstream_cache(monkeypatch):
    """Writes a few-shot cache as CoOp does: a pickle of Dassl's own objects with absolute paths."""
    module = types.ModuleType("dassl.data.datasets.base_dataset")

    class Datum:
        def __init__(self, impath, label, classname):
            self._impath, self._label, self._domain, self._classname = impath, label, 0, classname

    Datum.__module__, Datum.__qualname__ = module.__name__, "Datum"
    module.Datum = Datum

    def write(folder, shots, train, val, root="/home/someone/data/oxford_pets/images"):
        for name in ("dassl", "dassl.data", "dassl.data.datasets", module.__name__):
            monkeypatch.setitem(sys.modules, name, module)
        path = folder / "split_fewshot" / f"shot_{shots}-seed_1.pkl"
        path.parent.mkdir()
        content = {part: [Datum(f"{root}/{name}", label, BREEDS[label]) for name, label in items]
                   for part, items in (("train", train), ("val", val))}
        path.write_bytes(pickle.dumps(content, protocol=5))
        for name in ("dassl", "dassl.data", "dassl.data.datasets", module.__name__):
            monkeypatch.delitem(sys.modules, name)
        return path
    return write


def test_an_upstream_cache_of_this_split_is_used_and_reported(tmp_path, upstream_cache, capsys):
    folder = make(tmp_path, [0, 1])
    path = upstream_cache(folder, 1, [("0_train_9.png", 0), ("1_train_8.png", 1)],
                          [("0_val_7.png", 0), ("1_val_6.png", 1)])
    dataset = load(tmp_path, "DATASET.NUM_SHOTS", 1)
    assert [drawn(dataset.train_x, label) for label in (0, 1)] == [[9], [8]]
    assert [drawn(dataset.val, label) for label in (0, 1)] == [[7], [6]]
    assert all(item.impath.startswith(str(folder)) for item in dataset.train_x)
    assert f"Loading preprocessed few-shot data from {path}" in capsys.readouterr().out


def test_an_upstream_cache_is_of_this_split_however_the_split_writes_its_paths(tmp_path, upstream_cache):
    folder = make(tmp_path, [0, 1])
    path = folder / "split_zhou_OxfordPets.json"
    split = json.loads(path.read_text())
    for item in (item for part in split.values() for item in part):
        item[0] = f"./{item[0]}"
    path.write_text(json.dumps(split))
    upstream_cache(folder, 1, [("0_train_9.png", 0), ("1_train_8.png", 1)], [("0_val_7.png", 0), ("1_val_6.png", 1)])
    dataset = load(tmp_path, "DATASET.NUM_SHOTS", 1)
    assert [drawn(dataset.train_x, label) for label in (0, 1)] == [[9], [8]]


def test_an_upstream_cache_of_another_split_is_ignored_and_reported(tmp_path, upstream_cache, capsys):
    folder = make(tmp_path, [2, 0, 1])
    path = upstream_cache(folder, 2, [("0_train_77.png", 0)], [("0_val_7.png", 0)])
    dataset = load(tmp_path, "DATASET.NUM_SHOTS", 2)
    assert drawn(dataset.train_x, 2) == [2, 1]
    assert f"{path} is not used" in capsys.readouterr().out


def test_a_draw_writes_nothing_and_is_the_same_each_time(tmp_path):
    folder = make(tmp_path, [2, 0, 1])
    before = sorted(folder.rglob("*"))
    first, second = (load(tmp_path, "DATASET.NUM_SHOTS", 2) for _ in range(2))
    assert [item.impath for item in second.train_x] == [item.impath for item in first.train_x]
    assert sorted(folder.rglob("*")) == before
