"""Users' own images: folder layouts, split files, class names, and what is refused."""
import json
import os
import re
import shlex

import pytest
from data_trees import save_image
from messages import naming

from p2c.cli import data
from p2c.config import extend_cfg
from p2c.datasets.folder import Folder
from p2c.datasets.splits import read_split
from p2c.engine.data import DatasetWrapper
from p2c.engine.files import UNREAD, UnreadableImage
from p2c.framework import get_cfg_default

CLASSES = ("ash tree", "beech", "oak")


def load(root, *pairs):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.merge_from_list(["DATASET.NAME", "Folder", "DATASET.ROOT", str(root), "SEED", 1, *pairs])
    return Folder(cfg)


@pytest.fixture
def warnings(monkeypatch):
    """The warnings about the folder."""
    messages = []
    monkeypatch.setattr("p2c.datasets.folder.log.warning", messages.append)
    return messages


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


def test_images_added_later_are_reported_as_unused(tmp_path, warnings):
    fill(tmp_path)
    load(tmp_path)
    save_image(tmp_path / "oak/later.jpg")
    assert sum(map(len, (load(tmp_path).train_x, load(tmp_path).val, load(tmp_path).test))) == 30
    assert re.search(naming("split_seed1.json", "30", "31"), warnings[0])


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


# What users' folders look like

@pytest.mark.parametrize("names", [("train", "valid", "test"), ("Train", "Val", "Test"),
                                   ("Training", "Validation", "Testing"), ("TRAIN", "dev", "TEST")])
def test_the_usual_names_of_the_parts_are_known(tmp_path, names):
    fill(tmp_path, names, 3)
    dataset = load(tmp_path)
    for items, name in zip((dataset.train_x, dataset.val, dataset.test), names, strict=True):
        assert len(items) == 9 and {path.split("/")[0] for path in paths(items, tmp_path)} == {name}
    assert not (tmp_path / "split_seed1.json").exists()


def test_two_folders_for_one_part_are_refused(tmp_path):
    fill(tmp_path, ("train", "val", "valid", "test"), 3)
    with pytest.raises(ValueError, match=naming("val and valid")):
        load(tmp_path)


def test_folders_that_are_not_read_are_named(tmp_path, warnings):
    fill(tmp_path, ("train", "test", "unlabelled"), 3)
    (tmp_path / "docs").mkdir()
    assert len(load(tmp_path).train_x) == 9
    assert len(warnings) == 1 and re.search(naming("unlabelled", "train, test"), warnings[0])
    assert "docs" not in warnings[0]


def test_a_class_may_be_called_like_a_part(tmp_path):
    fill(tmp_path, classes=("train", "car", "valid"))
    assert load(tmp_path).classnames == ["car", "train", "valid"]


def test_images_in_folders_of_a_class_folder_belong_to_the_class(tmp_path, warnings):
    fill(tmp_path)
    for index in range(9):
        save_image(tmp_path / f"oak/session2/day{index}/b.JPG")
    save_image(tmp_path / "oak/session2/b.jfif")
    dataset = load(tmp_path)
    assert len([*dataset.train_x, *dataset.val, *dataset.test]) == 40 and not warnings
    oaks = [path for path in paths([*dataset.train_x, *dataset.val, *dataset.test], tmp_path) if "session2" in path]
    assert len(oaks) == 10 and {item.label for item in dataset.train_x if "session2" in item.impath} == {2}


def test_what_is_left_out_is_said_with_its_number(tmp_path, warnings):
    fill(tmp_path)
    for name in ("oak/a.heic", "oak/b.HEIC", "beech/notes.txt", "beech/.DS_Store"):
        (tmp_path / name).touch()
    save_image(tmp_path / "loose.jpg")
    assert load(tmp_path).num_classes == 3
    files, loose = warnings
    heic = ("3 files", "2 .heic", UNREAD[".heic"]) if ".heic" in UNREAD else ()
    assert re.search(naming("1 .txt", *heic), files) and re.search(naming("1 image", "loose.jpg"), loose)


def test_a_class_of_files_that_cannot_be_read_says_so(tmp_path):
    fill(tmp_path)
    (tmp_path / "elm").mkdir()
    (tmp_path / "elm/clip.mp4").touch()
    with pytest.raises(FileNotFoundError, match=naming("elm", "1 .mp4")):
        load(tmp_path)


@pytest.mark.parametrize("pair", [("red_fox", "red fox"), ("Cat", "cat"), ("caf\u00e9", "cafe\u0301")])
def test_classes_that_are_the_same_to_clip_are_refused(tmp_path, pair):
    rows = []
    for index, name in enumerate(pair * 3):
        save_image(tmp_path / f"{index}.png")
        rows.append(f"{index}.png,{name}")
    (tmp_path / "images.csv").write_text("\n".join(["path,class", *rows]))
    with pytest.raises(ValueError, match=naming(*map(repr, sorted(pair)), "the same to CLIP")):
        load(tmp_path, "DATASET.FOLDER.SPLIT", "images.csv")


def test_a_class_folder_that_came_later_is_named(tmp_path, warnings):
    fill(tmp_path)
    load(tmp_path)
    fill(tmp_path, classes=("elm",))
    assert load(tmp_path).num_classes == 3
    assert len(warnings) == 1 and re.search(naming("elm", "split_seed1.json"), warnings[0])


@pytest.mark.parametrize("name", [os.fsdecode(b"caf\xe9.jpg"), "a\\b.jpg"])
def test_a_name_that_cannot_be_written_is_refused_before_the_split_is_made(tmp_path, name):
    fill(tmp_path)
    save_image(tmp_path / "good.jpg")
    (tmp_path / "good.jpg").rename(tmp_path / "oak" / name)
    with pytest.raises(ValueError, match=naming(repr(f"oak/{name}"), "rename")):
        load(tmp_path)
    (tmp_path / "oak" / name).unlink()
    assert load(tmp_path).num_classes == 3


def test_a_dangling_link_is_refused_before_the_split_is_made(tmp_path):
    fill(tmp_path)
    (tmp_path / "oak/link.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(FileNotFoundError, match=naming("oak/link.jpg", "nowhere.jpg")):
        load(tmp_path)
    (tmp_path / "oak/link.jpg").unlink()
    assert load(tmp_path).num_classes == 3


def test_a_class_of_one_part_is_named(tmp_path):
    for index in range(5):
        save_image(tmp_path / f"{index}.png")
    write_csv(tmp_path, ["0.png,oak,train", "1.png,oak,test", "2.png,Ash,test"])
    with pytest.raises(ValueError, match=naming("images.csv", "'Ash'", "no training")):
        load(tmp_path, "DATASET.FOLDER.SPLIT", "images.csv")


@pytest.mark.parametrize("stored, written", [("cafe\u0301/0.png", "caf\u00e9/0.png"),
                                             ("oak/e\u0301.png", "oak/\u00e9.png")])
def test_names_in_another_unicode_form_are_hinted_at(tmp_path, stored, written):
    save_image(tmp_path / stored)
    save_image(tmp_path / "1.png")
    write_csv(tmp_path, [f"{written},oak,train", "1.png,oak,test"])
    with pytest.raises(FileNotFoundError, match=naming("1 of 2", "decomposed")):
        load(tmp_path, "DATASET.FOLDER.SPLIT", "images.csv")


def test_one_class_gives_a_warning(tmp_path, monkeypatch):
    fill(tmp_path, classes=("oak",))
    messages = []
    monkeypatch.setattr("p2c.datasets.base.log.warning", messages.append)
    load(tmp_path)
    assert re.search(naming("one class", "'oak'"), messages[0])


def test_the_hint_after_a_damaged_image_runs_as_written(tmp_path, capsys):
    fill(tmp_path / "my photos")
    dataset = load(tmp_path / "my photos")
    damaged = dataset.train_x[0].impath
    with open(damaged, "w") as file:
        file.write("no image")
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.merge_from_list(["DATASET.NAME", "Folder", "DATASET.ROOT", str(tmp_path / "my photos")])
    with pytest.raises(UnreadableImage) as error:
        DatasetWrapper(cfg, dataset.train_x)[0]
    words = shlex.split(re.search("`(.+)`", str(error.value))[1])
    assert words[:4] == ["python", "-m", "p2c", "data"]
    assert data.main(words[4:]) == 1
    assert damaged in capsys.readouterr().out
