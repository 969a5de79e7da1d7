"""Users' own images: folder layouts, split files, class names, and what is refused."""
import json
import os
import re

import pytest
from data_trees import save_image
from messages import naming

from p2c.config import extend_cfg
from p2c.datasets.folder import Folder
from p2c.datasets.splits import read_split
from p2c.framework import get_cfg_default

CLASSES = ("ash tree", "beech", "oak")


def load(root, *pairs):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.merge_from_list(["DATASET.NAME", "Folder", "DATASET.ROOT", str(root), "SEED", 1, *pairs])
    return Folder(cfg)


def fill(root, parts=("",), count=10, classes=CLASSES):
    for part in parts:
        for name in classes:
            for index in range(count):
                save_image(root / part / name / f"{index}.jpg")


def paths(items, root):
    return [os.path.relpath(item.impath, root) for item in items]


def test_train_and_test_folders_are_used_as_they_are(tmp_path):
    fill(tmp_path, ("train", "test"), 3)
    dataset = load(tmp_path)
    assert dataset.classnames == list(CLASSES) and not dataset.val
    assert paths(dataset.train_x, tmp_path)[:4] == ["train/ash tree/0.jpg", "train/ash tree/1.jpg",
                                                    "train/ash tree/2.jpg", "train/beech/0.jpg"]
    assert {path.split("/")[0] for path in paths(dataset.test, tmp_path)} == {"test"}
    fill(tmp_path, ("val",), 2)
    assert len(load(tmp_path).val) == 6


def test_class_folders_are_divided_once_whatever_the_runs_seed(tmp_path):
    fill(tmp_path)
    first = load(tmp_path, "SEED", 1)
    assert [len(part) for part in (first.train_x, first.val, first.test)] == [15, 6, 9]
    assert len({*paths(first.train_x, tmp_path), *paths(first.val, tmp_path), *paths(first.test, tmp_path)}) == 30
    second = load(tmp_path, "SEED", 2)
    assert paths(second.train_x, tmp_path) == paths(first.train_x, tmp_path)
    assert paths(second.test, tmp_path) == paths(first.test, tmp_path)
    split = json.loads((tmp_path / "split_seed1.json").read_text())
    assert [path for path, *_ in split["train"]] == paths(first.train_x, tmp_path)
    assert {item.label for item in first.test} == {0, 1, 2}


def test_a_draw_of_shots_leaves_no_class_behind(tmp_path):
    fill(tmp_path)
    load(tmp_path, "DATASET.NUM_SHOTS", 2)
    again = load(tmp_path, "DATASET.NUM_SHOTS", 2)
    assert len(again.train_x) == 6 and again.classnames == list(CLASSES)


def test_images_added_later_are_reported_as_unused(tmp_path, monkeypatch):
    fill(tmp_path)
    load(tmp_path)
    save_image(tmp_path / "oak/later.jpg")
    messages = []
    monkeypatch.setattr("p2c.datasets.folder.log.warning", messages.append)
    assert sum(map(len, (load(tmp_path).train_x, load(tmp_path).val, load(tmp_path).test))) == 30
    assert re.search(naming("split_seed1.json", "30", "31"), messages[0])


def write_csv(root, rows, header="path,class,split"):
    (root / "images.csv").write_text("\n".join([header, *rows]) + "\n")


def test_a_csv_says_what_belongs_where(tmp_path):
    for index in range(6):
        save_image(tmp_path / f"photos/{index}.png")
    write_csv(tmp_path, ["photos/0.png,oak,train", "photos/1.png,beech,train", '"photos/2.png","oak",test',
                         "photos/3.png,beech,test", "photos/4.png,oak,val"])
    dataset = load(tmp_path, "DATASET.FOLDER.SPLIT", "images.csv")
    assert dataset.classnames == ["beech", "oak"]
    assert [(path, item.label) for path, item in zip(paths(dataset.train_x, tmp_path), dataset.train_x, strict=True)] \
        == [("photos/0.png", 1), ("photos/1.png", 0)]
    assert paths(dataset.val, tmp_path) == ["photos/4.png"]


def test_a_csv_without_parts_is_divided_the_same_way_each_time(tmp_path):
    rows = []
    for index in range(12):
        save_image(tmp_path / f"{index}.png")
        rows.append(f"{index}.png,{CLASSES[index % 3]}")
    write_csv(tmp_path, rows, "path,class")
    first, second = (load(tmp_path, "DATASET.FOLDER.SPLIT", "images.csv", "SEED", seed) for seed in (1, 2))
    assert paths(first.test, tmp_path) == paths(second.test, tmp_path) and len(first.test) == 3


def test_a_split_json_of_coops_form_is_read(tmp_path):
    for part in ("train", "val", "test"):
        save_image(tmp_path / f"{part}.png")
    (tmp_path / "mine.json").write_text(json.dumps({part: [[f"{part}.png", 0, "oak"]]
                                                    for part in ("train", "val", "test")}))
    assert load(tmp_path, "DATASET.FOLDER.SPLIT", "mine.json").classnames == ["oak"]


@pytest.mark.parametrize("other", ["./imgs/test.png", "imgs//test.png", "imgs/./test.png", ".//imgs/test.png"])
@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_test_image_written_in_another_way_cannot_be_a_training_image(tmp_path, kind, other):
    for part in ("train", "test"):
        save_image(tmp_path / f"imgs/{part}.png")
    listed = {"train": [["imgs/train.png", 0, "oak"], [other, 0, "oak"]], "val": [],
              "test": [["imgs/test.png", 0, "oak"]]}
    (tmp_path / "images.json").write_text(json.dumps(listed))
    write_csv(tmp_path, [f"{path},oak,{part}" for part, items in listed.items() for path, *_ in items])
    with pytest.raises(ValueError, match=naming(f"images.{kind}", "'imgs/test.png'", other)):
        load(tmp_path, "DATASET.FOLDER.SPLIT", f"images.{kind}")


def test_paths_stay_as_the_file_has_them(tmp_path):
    for part in ("train", "test"):
        save_image(tmp_path / f"imgs/{part}.png")
    content = json.dumps({"train": [["./imgs//train.png", 0, "oak"]], "val": [],
                          "test": [["imgs/./test.png", 0, "oak"]]})
    (tmp_path / "images.json").write_text(content)
    split = read_split(tmp_path / "images.json", tmp_path, "")
    assert split.paths == ["./imgs//train.png", "imgs/./test.png"]
    assert load(tmp_path, "DATASET.FOLDER.SPLIT", "images.json").train_x[0].impath == f"{tmp_path}/./imgs//train.png"


def test_class_names_come_from_a_text_file(tmp_path):
    fill(tmp_path)
    (tmp_path / "classnames.txt").write_text("oak\tEnglish oak\nash tree\tcommon ash\nbeech\tbeech\n")
    assert load(tmp_path).classnames == ["common ash", "beech", "English oak"]
    (tmp_path / "short.txt").write_text("oak English oak\nbeech copper beech\n")
    with pytest.raises(ValueError, match=naming("short.txt", "['ash tree']")):
        load(tmp_path, "DATASET.FOLDER.CLASSNAMES", "short.txt")
    with pytest.raises(FileNotFoundError, match="none.txt"):
        load(tmp_path, "DATASET.FOLDER.CLASSNAMES", "none.txt")


def test_the_template_is_a_setting(tmp_path):
    fill(tmp_path)
    assert load(tmp_path).template == "a photo of a {}."
    assert load(tmp_path, "DATASET.FOLDER.TEMPLATE", "a leaf of {}.").template == "a leaf of {}."


def spoil(root, what):
    """Make the folder an invalid dataset."""
    if what == "loose images":
        save_image(root / "0.jpg")
    elif what == "no test":
        fill(root, ("train",), 3)
    elif what == "other classes":
        fill(root, ("train",), 3)
        fill(root, ("test",), 3, ("oak", "elm"))
    elif what == "two images":
        fill(root, count=2)
    elif what == "columns":
        write_csv(root, ["a.png,oak"], "file,label")
    elif what == "part":
        write_csv(root, ["a.png,oak,training"])
    elif what == "no class":
        write_csv(root, ["a.png,,train"])
    elif what == "outside":
        write_csv(root, ["../a.png,oak,train", "b.png,oak,test"])
    elif what == "not there":
        write_csv(root, ["a.png,oak,train", "b.png,oak,test"])


@pytest.mark.parametrize("what, named", [
    ("empty", ("folder", "empty")),
    ("loose images", ("1 image", "class")),
    ("no test", ("folder", "test")),
    ("other classes", ("'ash tree', 'beech', 'elm'",)),
    ("two images", ("'ash tree'", "2 images", "3")),
    ("columns", ("images.csv", "path, class")),
    ("part", ("images.csv", "line 2", "'training'", "train, val, test")),
    ("no class", ("images.csv", "line 2", "class")),
    ("outside", ("'../a.png'",)),
    ("not there", ("2 of 2",)),
])
def test_a_folder_that_makes_no_dataset_is_refused(tmp_path, what, named):
    spoil(tmp_path, what)
    split = ("DATASET.FOLDER.SPLIT", "images.csv") if (tmp_path / "images.csv").exists() else ()
    with pytest.raises((ValueError, FileNotFoundError), match=naming(*named)):
        load(tmp_path, *split)
    assert not (tmp_path / "split_seed1.json").exists()


def test_another_kind_of_split_file_or_none_is_refused(tmp_path):
    (tmp_path / "split.txt").write_text("")
    with pytest.raises(ValueError, match=naming("split.txt", ".json", ".csv")):
        load(tmp_path, "DATASET.FOLDER.SPLIT", "split.txt")
    with pytest.raises(FileNotFoundError, match=naming(tmp_path / "none.csv")):
        load(tmp_path, "DATASET.FOLDER.SPLIT", "none.csv")
    with pytest.raises(FileNotFoundError, match=naming(tmp_path / "nowhere", "folder:PATH")):
        load(tmp_path / "nowhere")
