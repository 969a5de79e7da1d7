"""The shared base of the datasets: CoOp's few-shot draw item for item, upstream's cache, base and new classes."""
import hashlib
import json
import pickle
import random
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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


# The draw's own file

def cached(folder):
    return folder / "split_fewshot/shot_2-seed_1.json"


def test_a_draw_is_kept_with_relative_paths_and_the_splits_hash(tmp_path, capsys):
    folder = make(tmp_path, [2, 0, 1])
    load(tmp_path, "DATASET.NUM_SHOTS", 2)
    kept = json.loads(cached(folder).read_text())
    split = folder / "split_zhou_OxfordPets.json"
    assert kept["split_sha256"] == hashlib.sha256(split.read_bytes()).hexdigest()
    assert kept["train"][:2] == [["2_train_2.png", 2, "Bengal cat"], ["2_train_1.png", 2, "Bengal cat"]]
    assert (kept["seed"], kept["shots"], kept["val_shots"], kept["counts"]) == (1, 2, 2, {"train": 6, "val": 6})
    assert "Saving preprocessed few-shot data to" in capsys.readouterr().out


def test_a_kept_draw_is_used_after_the_data_moved(tmp_path, capsys):
    folder = make(tmp_path / "here", [2, 0, 1])
    first = load(tmp_path / "here", "DATASET.NUM_SHOTS", 2)
    (tmp_path / "here").rename(tmp_path / "there")
    capsys.readouterr()
    second = load(tmp_path / "there", "DATASET.NUM_SHOTS", 2)
    assert "Loading preprocessed few-shot data" in capsys.readouterr().out
    assert [item.impath for item in second.train_x] == \
        [item.impath.replace(str(folder.parent), str(tmp_path / "there")) for item in first.train_x]


def test_the_digest_in_an_earlier_programs_draw_is_ignored(tmp_path, capsys):
    folder = make(tmp_path, [2, 0, 1])
    first = load(tmp_path, "DATASET.NUM_SHOTS", 2)
    cached(folder).write_text(json.dumps({**json.loads(cached(folder).read_text()), "sha256": "0" * 64}))
    capsys.readouterr()
    second = load(tmp_path, "DATASET.NUM_SHOTS", 2)
    assert "Loading preprocessed few-shot data" in capsys.readouterr().out
    assert [item.impath for item in second.train_x] == [item.impath for item in first.train_x]


@pytest.mark.parametrize("change", [
    lambda kept: kept.update(split_sha256="0" * 64),
    lambda kept: kept.update(seed=2),
    lambda kept: kept.update(shots=3),
    lambda kept: kept.update(format="other"),
    lambda kept: kept["train"].pop(),
    lambda kept: kept["train"].__setitem__(0, kept["train"][1]),
    lambda kept: kept["train"].__setitem__(0, ["../../secret.png", 2, "Bengal cat"]),
    lambda kept: kept["train"].__setitem__(0, ["/etc/passwd", 2, "Bengal cat"]),
    lambda kept: kept["train"].__setitem__(0, kept["val"][0]),
    lambda kept: kept["train"].__setitem__(0, [["nested"], 2, "Bengal cat"]),
    lambda kept: kept.pop("val"),
    lambda kept: kept["val"].__setitem__(0, 7),
], ids=["split", "seed", "shots", "format", "count", "twice", "parent folder", "absolute path", "other part", "nested",
        "no val", "no item"])
def test_a_kept_draw_that_disagrees_is_drawn_again(tmp_path, capsys, change):
    folder = make(tmp_path, [2, 0, 1])
    first = load(tmp_path, "DATASET.NUM_SHOTS", 2)
    right = cached(folder).read_text()
    kept = json.loads(right)
    change(kept)
    cached(folder).write_text(json.dumps(kept))
    capsys.readouterr()
    second = load(tmp_path, "DATASET.NUM_SHOTS", 2)
    assert [item.impath for item in second.train_x] == [item.impath for item in first.train_x]
    assert str(cached(folder)) in capsys.readouterr().out
    assert cached(folder).read_text() == right


def test_a_draw_half_written_by_a_crash_does_not_count(tmp_path):
    folder = make(tmp_path, [2, 0, 1])
    first = load(tmp_path, "DATASET.NUM_SHOTS", 2)
    whole = cached(folder).read_bytes()
    for end in range(0, len(whole) - 1, 97):
        cached(folder).write_bytes(whole[:end])
        assert [item.impath for item in load(tmp_path, "DATASET.NUM_SHOTS", 2).train_x] == \
            [item.impath for item in first.train_x]


def test_a_process_killed_while_it_keeps_a_draw_leaves_the_old_file_or_none(tmp_path):
    """Killed inside the write: what is under the final name is absent, never a part."""
    folder = make(tmp_path, [0, 1])
    code = f"""
import os, sys
sys.path[:0] = {[str(Path.cwd()), str(Path.cwd() / "tests")]!r}
import p2c.engine.files as files
files.os.fsync = lambda handle: os.kill(os.getpid(), 9)
from pathlib import Path
from test_datasets import load
load(Path({str(tmp_path)!r}), "DATASET.NUM_SHOTS", 2)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -9
    assert not cached(folder).exists() and list(cached(folder).parent.iterdir())
    load(tmp_path, "DATASET.NUM_SHOTS", 2)
    assert json.loads(cached(folder).read_text())["counts"] == {"train": 4, "val": 4}


def test_runs_that_draw_at_the_same_time_do_not_disturb_each_other(tmp_path):
    folder = make(tmp_path, [2, 0, 1])
    with ThreadPoolExecutor(8) as pool:
        draws = list(pool.map(lambda _: [item.impath for item in load(tmp_path, "DATASET.NUM_SHOTS", 2).train_x],
                              range(24)))
    assert all(draw == draws[0] for draw in draws)
    assert [path.name for path in cached(folder).parent.iterdir()] == [cached(folder).name]
    assert json.loads(cached(folder).read_text())["counts"] == {"train": 6, "val": 6}


def test_a_folder_that_cannot_be_written_to_leaves_its_draws_in_the_users_cache(tmp_path, monkeypatch):
    folder = make(tmp_path / "data", [0, 1])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("p2c.datasets.base.os.access", lambda path, mode: not str(path).startswith(str(folder)))
    first = load(tmp_path / "data", "DATASET.NUM_SHOTS", 2)
    assert not (folder / "split_fewshot").exists()
    kept, = (tmp_path / "cache/p2c").glob("oxford_pets-*/shot_2-seed_1.json")
    again = load(tmp_path / "data", "DATASET.NUM_SHOTS", 2)
    assert [item.impath for item in again.train_x] == [item.impath for item in first.train_x] and kept.is_file()


def test_no_room_for_the_draws_file_is_no_error(tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    make(tmp_path, [2, 0, 1])
    monkeypatch.setattr("p2c.datasets.draws.write_json", full)
    assert drawn(load(tmp_path, "DATASET.NUM_SHOTS", 2).train_x, 2) == [2, 1]
    assert "No space left on device" in capsys.readouterr().out
