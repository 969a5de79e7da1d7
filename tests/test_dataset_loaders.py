"""Each dataset on a miniature of its real tree, and what each must refuse."""
import hashlib
import os
import re
from pathlib import Path

import pytest
from data_trees import CLASSES, COUNTS, TREES, WNIDS, save_image, write_classnames, write_imagenet, write_variant
from environment import REAL_DATA
from messages import naming

from p2c import registry
from p2c.config import extend_cfg
from p2c.datasets.base import Sizes
from p2c.datasets.draws import draw
from p2c.framework import get_cfg_default
from p2c.grid.families import FAMILIES

STANDARD = FAMILIES["standard"]
TEMPLATES = {
    "oxford_pets": "a photo of a {}, a type of pet.",
    "oxford_flowers": "a photo of a {}, a type of flower.",
    "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
    "dtd": "{} texture.",
    "eurosat": "a centered satellite photo of {}.",
    "food101": "a photo of {}, a type of food.",
    "ucf101": "a photo of a person doing {}.",
}


def make_cfg(name, root, *pairs):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.merge_from_file(f"configs/datasets/{name}.yaml")
    cfg.merge_from_list(["DATASET.ROOT", str(root), "SEED", 1, "DATASET.CHECKS", "partial", *pairs])
    return cfg


def loader(name):
    registered = make_cfg(name, "").DATASET.NAME
    return registry.get_dataset(registered)


def load(name, root, *pairs):
    return loader(name)(make_cfg(name, root, *pairs))


@pytest.mark.parametrize("name", STANDARD.members)
def test_a_dataset_in_coops_layout_has_its_classes_in_order_and_all_its_images(tmp_path, name):
    folder = TREES[name](tmp_path)
    dataset = load(name, tmp_path)
    assert Path(dataset.dataset_dir) == folder
    assert dataset.classnames == CLASSES[name] and dataset.num_classes == len(CLASSES[name])
    assert dataset.template == TEMPLATES.get(name, "a photo of a {}.")
    tested_only = name in STANDARD.domains
    assert len(dataset.test) == len(CLASSES[name]) * COUNTS["test"]
    assert len(dataset.train_x) == len(CLASSES[name]) * COUNTS["test" if tested_only else "train"]
    assert len(dataset.val or ()) == (0 if tested_only else len(CLASSES[name]) * COUNTS["val"])
    for item in (*dataset.train_x, *(dataset.val or ()), *dataset.test):
        assert os.path.isfile(item.impath) and CLASSES[name][item.label] == item.classname
    assert {item.label for item in dataset.test} == set(range(len(CLASSES[name])))


@pytest.mark.parametrize("name", STANDARD.datasets)
def test_base_and_new_classes_are_the_halves_and_shots_are_drawn_before(tmp_path, name):
    TREES[name](tmp_path)
    classes = CLASSES[name]
    m = (len(classes) + 1) // 2
    everything, base, new = (load(name, tmp_path, "DATASET.NUM_SHOTS", 2, "DATASET.SUBSAMPLE_CLASSES", half)
                             for half in ("all", "base", "new"))
    assert base.classnames == classes[:m] and new.classnames == classes[m:]
    halves = [item for half in (range(m), range(m, len(classes))) for item in everything.train_x if item.label in half]
    assert [item.impath for item in (*base.train_x, *new.train_x)] == [item.impath for item in halves]
    assert len(everything.train_x) == 2 * len(classes)


def test_imagenet_is_validated_on_its_test_images_whatever_the_shots(tmp_path):
    write_imagenet(tmp_path)
    dataset = load("imagenet", tmp_path, "DATASET.NUM_SHOTS", 1)
    assert [item.impath for item in dataset.val] == [item.impath for item in dataset.test]
    assert len(dataset.train_x) == len(WNIDS)


def test_classes_of_one_name_stay_two(tmp_path):
    write_imagenet(tmp_path)
    dataset = load("imagenet", tmp_path)
    assert dataset.classnames == ["tench", "cleaver", "missile", "missile"] and dataset.num_classes == 4


@pytest.mark.parametrize("name", STANDARD.domains)
def test_variants_ignore_shots_and_have_no_halves(tmp_path, name):
    TREES[name](tmp_path)
    assert len(load(name, tmp_path, "DATASET.NUM_SHOTS", 1).test) == len(CLASSES[name]) * COUNTS["test"]
    with pytest.raises(ValueError, match=naming("SUBSAMPLE_CLASSES", "all", "'base'")):
        load(name, tmp_path, "DATASET.SUBSAMPLE_CLASSES", "base")


def test_v2_folders_are_numbers_not_words(tmp_path):
    """Sorted as words, folder 10 would come before folder 2."""
    wnids = {f"n{number:08d}": f"class {number}" for number in range(12)}
    folder = write_variant(tmp_path / "imagenetv2", "imagenetv2-matched-frequency-format-val", map(str, range(12)),
                           "jpeg")
    write_classnames(folder, wnids)
    dataset = load("imagenetv2", tmp_path)
    assert dataset.classnames == list(wnids.values())
    assert {Path(item.impath).parent.name for item in dataset.test if item.label == 10} == {"10"}
    os.rename(dataset.image_dir / "7", dataset.image_dir / "n00000007")
    with pytest.raises(ValueError, match=naming("0 to 11", "'n00000007'")):
        load("imagenetv2", tmp_path)


def test_a_variant_uses_imagenets_class_names_where_it_has_no_copy(tmp_path):
    (TREES["imagenet_r"](tmp_path) / "classnames.txt").unlink()
    with pytest.raises(FileNotFoundError, match=naming("ImageNetR", "classnames.txt", "drive.google")):
        load("imagenet_r", tmp_path)
    write_classnames(tmp_path / "imagenet")
    assert load("imagenet_r", tmp_path).classnames == CLASSES["imagenet_r"]


def test_a_folder_without_a_class_name_is_named(tmp_path):
    folder = TREES["imagenet_a"](tmp_path)
    save_image(folder / "imagenet-a" / "n99999999" / "0.jpg")
    with pytest.raises(ValueError, match=naming("classnames.txt", "'n99999999'")):
        load("imagenet_a", tmp_path)


def test_unsorted_validation_images_are_recognised(tmp_path):
    folder = write_imagenet(tmp_path)
    for path in list((folder / "images/val").glob("*/*")):
        path.rename(folder / "images/val" / path.name)
    for path in (folder / "images/val").iterdir():
        if path.is_dir():
            path.rmdir()
    with pytest.raises(FileNotFoundError, match=naming("images/val", "8 images", "download")):
        load("imagenet", tmp_path)


def test_training_and_validation_folders_must_be_the_same(tmp_path):
    folder = write_imagenet(tmp_path)
    save_image(folder / "images/train/n00000001/0.JPEG")
    with pytest.raises(ValueError, match="'n00000001'"):
        load("imagenet", tmp_path)


def test_an_empty_class_folder_is_named(tmp_path):
    folder = write_imagenet(tmp_path)
    (folder / "images/train/n00000001").mkdir()
    with pytest.raises(FileNotFoundError, match="n00000001 holds no images"):
        load("imagenet", tmp_path)


def test_stray_files_and_folders_are_no_images_and_no_classes(tmp_path):
    folder = write_imagenet(tmp_path)
    place = folder / "images/train"
    for stray in ("README.txt", ".DS_Store", "Thumbs.db", "n01440764/._n01440764_0.JPEG", "n01440764/desktop.ini",
                  "n01440764/labels.mat", "__MACOSX/x.JPEG", ".cache/x.JPEG"):
        (place / stray).parent.mkdir(exist_ok=True)
        (place / stray).write_bytes(b"?")
    assert len(load("imagenet", tmp_path).train_x) == len(WNIDS) * COUNTS["train"]


def test_text_files_with_a_byte_order_mark_crlf_blank_lines_and_two_spaces_read_the_same(tmp_path):
    for name in ("fgvc_aircraft", "imagenet"):
        folder = TREES[name](tmp_path)
        for path in folder.glob("*.txt"):
            spaced = re.sub(rb"(?m)^(n?\d{7,}) ", rb"\1  ", path.read_bytes())
            path.write_bytes(b"\xef\xbb\xbf" + spaced.replace(b"\n", b"\r\n") + b"\r\n\r\n")
        assert load(name, tmp_path).classnames == CLASSES[name]


def test_an_aircraft_of_no_variant_is_named(tmp_path):
    folder = TREES["fgvc_aircraft"](tmp_path)
    with open(folder / "images_variant_val.txt", "a") as file:
        file.write("0000001 Concorde\n")
    with pytest.raises(ValueError, match=naming("'Concorde'", "variants.txt")):
        load("fgvc_aircraft", tmp_path)


# The real split files

GOLDEN = {  # first 12 digits of SHA-256 of the draws: train, val for 1 shot and seeds 1, 2, 3, then for 16 shots
    "caltech101": "55bfc57f765c 9267b42aeafe 7f36ab0995cf 820bc151614c ec9645719e1d d5354436abf6 "
                  "f76611cad128 0b87d6a706df b45e8146b362 0907ca54213e d980c051a7a9 3f12d9c318bb",
    "oxford_pets": "bc71d3dbb7fb c1062d0a36bd 6ff81706ac42 cdba912e462f 63b231f20f4b 0020909a5a89 "
                   "05c79dbb7753 e9cb00508b45 562a1787bc7d 9f67a4490c4f b294ae5ad285 694b077a41d3",
    "stanford_cars": "fbc7ee59103d 43fe5a7a095f add0e0fbae70 67a18fba5532 88c91509fc34 3b36ae1eb5b1 "
                     "6f4197f02339 9813b593a987 7a6e90d9af3d 9d405d43f73c cd9e6ef73395 ca37e519ae47",
    "oxford_flowers": "60f7056fa988 b396120ab515 fd011cbc009f 453bf3c87f52 253c326cc7d5 c7b9b492481f "
                      "8e138912292f d034b2f9142f cc7563910b41 6f7d0e3c5290 ea66b0c4b4ef 57352160a40e",
    "dtd": "e2a9bc8ddef7 8e3730958ffa 5a88ba3a28fa b496298c5b8b fee0ea7ffd71 4203b0a5c10f "
           "7237f748d7df fbf09a58cab9 adc7a4d30cd2 3fadd9d6db81 3d6925815a5e 562076e41565",
    "eurosat": "b25a05091377 a3a630410d0d b2b87348edaf b52a93276197 629dd55f0327 d157734c620e "
               "fe093ab4564b 804a88002087 72dabbe6a522 c6698a87a1c5 25a036fbc672 49432be23611",
    "ucf101": "796971042adf 1b5849722a68 6e7d92a876cb c7c4e4a5abd1 53b290f7f194 fe634a2d2644 "
              "bed1bf264700 f5e3688a32e0 1946d5b040f3 7e06eec1bc8d 19894c754173 7de54ac1fbdd",
    "food101": "b12fba072d00 e56b9dcda5b1 61184dd0f450 ab15056b8656 5ed09469cf9e 37f3a68ab7bf "
               "1161cf96a010 f535de7d4789 5c0962791b2a b936a9591adc 611129486ef6 447d70106b5a",
    "fgvc_aircraft": "b78fd471b6c0 314d919cda7d f8b8c4915cb7 426610547392 b754ad75f080 f766db7a0aec "
                     "22eb3451079c b548da6b0a1e 9e9926eaab07 88015f9da58c 9c63027fcf8c 98a6b62fb582",
    "sun397": "bc87a70bfa10 22e4f20719c8 391a8481cc3f c1cf6603fd4a 74fd0ca8a85d 11c2020a434c "
              "45e14a78bf4e 45f6daa7304b adac3e158430 5ca63a6415db ad45fe0cf523 9a7c405f487c",
}


def digest(items):
    return hashlib.sha256("\n".join(f"{item.path}\t{item.label}" for item in items).encode()).hexdigest()[:12]


@pytest.mark.parametrize("name", GOLDEN)
def test_draws_from_the_published_split_are_coops(name, monkeypatch):
    """Needs the real split file (not the images) below $DATA."""
    root = Path(os.environ.get(REAL_DATA, "data"))
    if not (root / loader(name).folder / loader(name).split).is_file():
        pytest.skip(f"the split of {name} is not in {root} ($DATA)")
    for module in ("base", "fgvc_aircraft"):
        monkeypatch.setattr(f"p2c.datasets.{module}.check_images_exist", lambda *arguments: None)
    split = load(name, root, "DATASET.CHECKS", "published").read()
    drawn = [digest(items) for shots in (1, 16) for seed in (1, 2, 3) for items in draw(split, shots, seed)[:2]]
    assert drawn == GOLDEN[name].split()


# What is refused

def test_a_missing_split_is_never_invented(tmp_path):
    for name in STANDARD.datasets:
        folder = TREES[name](tmp_path)
        dataset = loader(name)
        (folder / dataset.split).unlink()
        with pytest.raises(FileNotFoundError, match=f"{dataset.split}.*`python -m p2c data download {name}"):
            load(name, tmp_path)
        assert not (folder / dataset.split).exists()


def test_other_sizes_than_the_published_are_refused_unless_a_part_is_meant(tmp_path):
    TREES["dtd"](tmp_path)
    with pytest.raises(ValueError, match=naming("3 classes", "9 training", "47 classes", "2,820 training")):
        load("dtd", tmp_path, "DATASET.CHECKS", "published")
    assert load("dtd", tmp_path, "DATASET.CHECKS", "partial").num_classes == 3
    with pytest.raises(ValueError, match=naming("DATASET.CHECKS", "partial, published, strict", "'none'")):
        load("dtd", tmp_path, "DATASET.CHECKS", "none")


def test_a_split_other_than_the_published_one_is_reported_with_both_hashes(tmp_path, monkeypatch):
    folder = TREES["dtd"](tmp_path)
    monkeypatch.setattr(loader("dtd"), "sizes", Sizes(3, 9, 6, 6))
    found = hashlib.sha256((folder / loader("dtd").split).read_bytes()).hexdigest()
    messages = []
    monkeypatch.setattr("p2c.datasets.base.log.warning", messages.append)
    load("dtd", tmp_path, "DATASET.CHECKS", "published")
    assert any(found in message and loader("dtd").split_sha256 in message for message in messages)
    messages.clear()
    monkeypatch.setattr(loader("dtd"), "split_sha256", found)
    load("dtd", tmp_path, "DATASET.CHECKS", "published")
    assert not messages


def test_short_classes_give_all_they_have_with_a_warning_or_are_refused_if_strict(tmp_path, monkeypatch):
    TREES["dtd"](tmp_path)
    messages = []
    monkeypatch.setattr("p2c.datasets.base.log.warning", messages.append)
    dataset = load("dtd", tmp_path, "DATASET.NUM_SHOTS", 4)
    assert len(dataset.train_x) == 9
    message, = messages
    assert re.search(naming("3 classes", "4", "banded (0) has 3, blotchy (1) has 3, polka-dotted (2) has 3"), message)
    monkeypatch.setattr(loader("dtd"), "sizes", None)
    with pytest.raises(ValueError, match=naming("3 classes", "4", "banded (0) has 3")):
        load("dtd", tmp_path, "DATASET.NUM_SHOTS", 4, "DATASET.CHECKS", "strict")


@pytest.mark.parametrize("shots", [0, -2])
def test_shots_below_one_other_than_all_are_refused(tmp_path, shots):
    TREES["dtd"](tmp_path)
    with pytest.raises(ValueError, match=naming("NUM_SHOTS", "-1", shots)):
        load("dtd", tmp_path, "DATASET.NUM_SHOTS", shots)


@pytest.mark.parametrize("name, deep, hint", [
    ("stanford_cars", "cars_test/cars_test", "cars_test/cars_test"),
    ("eurosat", "EuroSAT/2750", "EuroSAT/2750"),
    ("caltech101", "caltech-101/101_ObjectCategories", "caltech-101/caltech-101"),
    ("food101", "food-101/images", "food-101/food-101"),
])
def test_an_archive_extracted_one_level_too_deep_is_recognised(tmp_path, name, deep, hint):
    folder = TREES[name](tmp_path)
    images = folder / ("cars_test" if name == "stanford_cars" else loader(name).images)
    images.rename(tmp_path / "moved")
    (folder / deep).parent.mkdir(parents=True)
    (tmp_path / "moved").rename(folder / deep)
    with pytest.raises(FileNotFoundError, match=naming("missing", hint)):
        load(name, tmp_path)


def test_names_that_differ_in_case_and_dangling_links_are_distinguished(tmp_path):
    folder = TREES["dtd"](tmp_path)
    path = folder / "images/banded/banded_0001.jpg"
    path.rename(path.with_name("Banded_0001.jpg"))
    with pytest.raises(FileNotFoundError, match=naming("1 of 21", "Banded_0001.jpg", "banded_0001.jpg")):
        load("dtd", tmp_path)
    path.symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(FileNotFoundError, match=naming("banded_0001.jpg", tmp_path / "gone.jpg")):
        load("dtd", tmp_path)


def test_links_spaces_quotes_and_unicode_in_the_root_work(tmp_path):
    root = tmp_path / "my \"data\" für 数据"
    TREES["dtd"](tmp_path / "real")
    root.mkdir()
    (root / "dtd").symlink_to(tmp_path / "real" / "dtd")
    assert len(load("dtd", root, "DATASET.NUM_SHOTS", 1).train_x) == 3
    (root / "eurosat").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=naming(root / "eurosat", "link")):
        load("eurosat", root)
