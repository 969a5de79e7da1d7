"""Predictions for arbitrary images: equal to train.py's, without the dataset, for any trainer; and the command."""
import csv
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from clip_files import BREEDS, make_pets
from engine_fixtures import CLASSNAMES
from messages import naming
from PIL import Image

import p2c
from p2c.cli import predict, train
from p2c.engine.files import UnreadableImage, read_image, read_json, write_json
from p2c.inference.predictor import Predictor
from p2c.inference.records import checked_names, recorded_cfg
from p2c.model import PromptedCLIP

TINY = ("MODEL.BACKBONE.WEIGHTS", "random", "OPTIM.MAX_EPOCH", "2", "OPTIM.WARMUP_EPOCH", "-1", "USE_CUDA", "False",
        "TRAIN.CHECKPOINT_FREQ", "1", "VERBOSE", "False", "DATASET.CHECKS", "partial")
TRAINERS = ("P2C", "MaPLe", "ZeroshotCLIP", "ZeroshotCLIP2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs on data that is gone by now, all but the test images: folder `of(trainer, half)`, and what its test saw.

    Halves: base is the training (zero-shot: a test), new the test on the other classes.
    """
    from p2c.engine.evaluation import Classification

    place, stdout = tmp_path_factory.mktemp("runs"), sys.stdout
    make_pets(place / "data")
    split = read_json(place / "data/oxford_pets/split_zhou_OxfordPets.json")
    seen = []
    process = Classification.process

    def call(trainer, half, *words):
        seen.clear()
        status = train.run(train.parse_args([
            "--root", str(place / "data"), "--seed", "1", "--trainer", trainer, "--output-dir",
            str(place / f"{trainer}_{half}"), "--dataset-config-file", "configs/datasets/oxford_pets.yaml",
            "--config-file", f"configs/trainers/{trainer.removesuffix('2')}/tiny_shapes.yaml", *words, *TINY,
            "DATASET.SUBSAMPLE_CLASSES", half]))
        assert status == train.FINISHED
        return torch.cat(seen)

    logits = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "collect_env_info", str)  # takes seconds
        patch.setattr(Classification, "process",
                      lambda self, output, label: (seen.append(output.clone()), process(self, output, label)))
        for trainer in TRAINERS:
            zero_shot = trainer.startswith("Zero")
            logits[trainer, "base"] = call(trainer, "base", *(("--eval-only",) if zero_shot else ()))
            source = () if zero_shot else ("--model-dir", str(place / f"{trainer}_base"))
            logits[trainer, "new"] = call(trainer, "new", "--eval-only", *source)
    sys.stdout = stdout
    images = place / "images"
    shutil.move(place / "data/oxford_pets/images", images)
    shutil.rmtree(place / "data")
    labels = {"base": (0, 1), "new": (2, 3)}
    return SimpleNamespace(
        of=lambda trainer, half="base": place / f"{trainer}_{half}",
        logits=logits,
        images={half: [str(images / path) for path, label, _ in split["test"] if label in chosen]
                for half, chosen in labels.items()},
        classes={half: [BREEDS[label] for label in chosen] for half, chosen in labels.items()})


@pytest.fixture
def command(capsys):
    """command(word, ...): the command's exit status, lines on standard output, and on standard error."""
    def run(*words):
        capsys.readouterr()
        try:
            status = predict.main([str(word) for word in words])
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out.splitlines(), err.splitlines()
    return run


@pytest.fixture
def copy_of(runs, tmp_path):
    """copy_of(trainer, half, change): a copy of a run whose results.json was changed."""
    def make(trainer="P2C", half="base", change=lambda record: None):
        folder = tmp_path / f"{trainer}_{half}"
        shutil.copytree(runs.of(trainer, half), folder)
        record = read_json(folder / "results.json")
        change(record)
        write_json(record, folder / "results.json")
        return folder
    return make


# The same numbers as train.py's

@pytest.mark.parametrize("half", ["base", "new"])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_probabilities_are_those_of_the_runs_own_test(runs, trainer, half):
    predictor = Predictor.from_run(runs.of(trainer, half))
    assert predictor.classnames == runs.classes[half]
    probabilities = predictor.predict(runs.images[half])
    assert torch.equal(probabilities, runs.logits[trainer, half].softmax(1))


@pytest.mark.parametrize("trainer", TRAINERS)
def test_other_classes_are_what_a_test_on_those_classes_sees(runs, trainer):
    predictor = Predictor.from_run(runs.of(trainer), classes=runs.classes["new"])
    assert torch.equal(predictor.predict(runs.images["new"]), runs.logits[trainer, "new"].softmax(1))


def test_the_class_texts_are_encoded_once_for_all_batches(runs, monkeypatch):
    encode, calls = PromptedCLIP.encode_text, []
    monkeypatch.setattr(PromptedCLIP, "encode_text", lambda *inputs: calls.append(1) or encode(*inputs))
    Predictor.from_run(runs.of("P2C")).predict(runs.images["base"], batch_size=1)
    assert len(calls) == 1


def test_batches_workers_and_kinds_of_image_change_nothing(runs):
    predictor = Predictor.from_run(runs.of("P2C"))
    paths = runs.images["base"]
    probabilities = predictor.predict(paths, batch_size=2)
    assert torch.equal(predictor.predict(paths, batch_size=2, workers=1), probabilities)
    assert torch.equal(predictor.predict([Image.open(path).convert("RGBA") for path in paths], 2), probabilities)
    assert torch.equal(predictor.predict(paths[0], 2), predictor.predict([paths[0]], 2))
    assert predictor.predict([]).shape == (0, 2)


def test_arrays_tensors_and_iterators_are_the_same_images(runs):
    predictor = Predictor.from_run(runs.of("P2C"))
    paths = runs.images["base"]
    expected = predictor.predict(paths)
    arrays = np.stack([np.asarray(read_image(path)) for path in paths])
    tensors = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    for images in (arrays, list(arrays), tensors, iter(tensors), (path for path in paths)):
        assert torch.equal(predictor.predict(images), expected)
    for image in (arrays[1], tensors[1]):
        assert torch.allclose(predictor.predict(image), expected[1:2], atol=1e-6)
    taken = []
    batches = predictor.batches((taken.append(path) or path for path in paths), batch_size=2)
    assert next(batches)[0] == [0, 1] and len(taken) == 2 and next(batches)[0] == [2, 3]


@pytest.mark.parametrize("image, named", [
    (np.zeros((8, 8, 3)), ("float64", "uint8")), (torch.zeros(3, 8, 8), ("float32", "uint8")),
    (torch.zeros(8, 8, 3, dtype=torch.uint8), ("(8, 8, 3)",)),
    (np.zeros((8, 8), np.uint8), ("(8, 8)", "height, width, 3")),
    (np.zeros((8, 8, 4), np.uint8), ("(8, 8, 4)",)), (5, ("int", "paths")), ([None], ("NoneType", "paths")),
])
def test_what_is_no_image_is_refused_in_one_line(runs, image, named):
    with pytest.raises((ValueError, TypeError), match=naming("Image 0", *named)) as refused:
        Predictor.from_run(runs.of("P2C")).predict(image)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_cosines_of_features_and_classifier_are_the_logits(runs, trainer):
    predictor = Predictor.from_run(runs.of(trainer))
    features, classifier = predictor.encode_images(runs.images["base"]), predictor.classifier
    assert features.dtype == classifier.dtype == torch.float32 and classifier.shape == (2, features.shape[1])
    assert torch.allclose(features.norm(dim=1), torch.ones(len(features)))
    logits = predictor.model.backbone.logit_scale * features @ classifier.t()
    assert torch.allclose(logits, runs.logits[trainer, "base"], atol=1e-4)
    assert predictor.encode_images([]).shape == (0, features.shape[1])


def test_an_unreadable_image_raises_an_error_that_names_it(runs, tmp_path):
    (tmp_path / "half.png").write_bytes(b"\x89PNG")
    with pytest.raises(UnreadableImage, match="half.png"):
        Predictor.from_run(runs.of("P2C")).predict([runs.images["base"][0], tmp_path / "half.png"])


def test_building_a_predictor_leaves_the_random_generators_alone(runs):
    before = torch.get_rng_state()
    Predictor.from_run(runs.of("P2C"))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_trainer_of_another_package_predicts_as_it_is_tested(tiny_trainer, tmp_path):
    trainer = tiny_trainer("OPTIM.MAX_EPOCH", 1)
    trainer.train()
    items = trainer.dm.dataset.test
    predictor = Predictor.from_run(tmp_path / "run")
    assert predictor.classnames == CLASSNAMES
    with torch.no_grad():
        images = torch.stack([predictor.transform(read_image(item.impath)) for item in items])
        expected = trainer.model(images).softmax(1)
    assert torch.allclose(predictor.predict([item.impath for item in items]), expected, atol=1e-6)
    with pytest.raises(ValueError, match=naming("TinyTrainer", "class")):
        Predictor.from_run(tmp_path / "run", classes=["cat", "dog"])
    with pytest.raises(ValueError, match=naming("TinyTrainer", "export")):
        predictor.export(tmp_path / "classifier.safetensors")


def test_importing_the_package_does_not_import_torch():
    code = "import sys, p2c; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert p2c.Predictor is Predictor and not hasattr(p2c, "Predictors")


# What a run records

def test_settings_are_restored_with_their_types(make_cfg, copy_of):
    def change(record):
        record["config"]["DATASET"]["ROOT"] = "1"
        record["config"]["INPUT"]["TRANSFORMS"] = ["normalize", "random_flip"]

    folder = copy_of(change=change)
    cfg = recorded_cfg(read_json(folder / "results.json"), folder)
    assert cfg.DATASET.ROOT == "1"
    assert cfg.INPUT.TRANSFORMS == ("normalize", "random_flip")
    assert cfg.TRAINER == make_cfg("P2C").TRAINER


@pytest.mark.parametrize("section, key, refused", [
    (("TRAIN",), "FUTURE", False), (("DATALOADER",), "CACHE", False),
    (("TRAINER",), "FUTURE_TRAINER", False), (("TRAINER", "MAPLE"), "FUTURE", False),
    (("INPUT",), "FUTURE", True), (("TRAINER", "P2C"), "FUTURE", True), (("MODEL", "BACKBONE"), "FUTURE", True),
    (("TRAINER",), "ATPROMPT", True), ((), "FUTURE", True),
])
def test_settings_of_another_version_matter_where_predictions_may_depend_on_them(runs, copy_of, section, key, refused):
    def change(record):
        record["versions"]["p2c"] = "9.9"
        node = record["config"]
        for name in section:
            node = node[name]
        node[key] = {"ENABLED": True} if key in ("FUTURE_TRAINER", "ATPROMPT") else 1
        del record["config"]["TRAIN"]["PRINT_FREQ"]

    folder = copy_of(change=change)
    if refused:
        with pytest.raises(ValueError, match=rf"by p2c 9.9 with settings .* not know: {'.'.join([*section, key])}"):
            Predictor.from_run(folder)
    else:
        probabilities = Predictor.from_run(folder).predict(runs.images["base"])
        assert torch.equal(probabilities, runs.logits["P2C", "base"].softmax(1))


def test_the_plugin_of_a_run_is_loaded_before_its_settings(runs, copy_of, tmp_path, monkeypatch, without_dassl):
    (tmp_path / "plugin_of_a_run.py").write_text("def extend_cfg(cfg):\n    cfg.MINE = 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = copy_of(change=lambda record: record["config"].update(PLUGIN="plugin_of_a_run", MINE=1))
    assert Predictor.from_run(folder).cfg.MINE == 1


def test_files_that_the_training_started_from_are_not_needed(runs, copy_of):
    folder = copy_of(change=lambda record: record["config"].update(RESUME="gone", OUTPUT_DIR="gone too"))
    record = read_json(folder / "results.json")
    record["config"]["MODEL"]["INIT_WEIGHTS"] = "gone"
    write_json(record, folder / "results.json")
    assert len(Predictor.from_run(folder).predict(runs.images["base"])) == len(runs.images["base"])


def test_a_training_without_recorded_classes_has_them_from_its_checkpoint(runs, copy_of):
    folder = copy_of(change=lambda record: record["data"].pop("classnames"))
    assert Predictor.from_run(folder).classnames == runs.classes["base"]


def test_an_unfinished_training_predicts_only_from_an_epoch_that_is_chosen(runs, copy_of):
    def change(record):
        for key in ("data", "epoch", "metrics", "split", "device", "seconds"):
            del record[key]
        record["finished"] = False

    folder = copy_of(change=change)
    with pytest.raises(ValueError, match=naming(folder, "finished", "epoch")):
        Predictor.from_run(folder)
    first = Predictor.from_run(folder, epoch=1)
    assert first.classnames == runs.classes["base"]
    assert not torch.equal(first.predict(runs.images["base"]), runs.logits["P2C", "base"].softmax(1))
    last = Predictor.from_run(folder, epoch=2)
    assert torch.equal(last.predict(runs.images["base"]), runs.logits["P2C", "base"].softmax(1))
    with pytest.raises(ValueError, match=naming(folder, "epoch 9")):
        Predictor.from_run(folder, epoch=9)


def test_the_model_of_a_test_is_looked_for_from_where_it_was_tested(runs, copy_of, monkeypatch):
    folder = copy_of(half="new", change=lambda record: record.update(model_dir="P2C_base"))
    monkeypatch.chdir(runs.of("P2C").parent)
    assert Predictor.from_run(folder).classnames == runs.classes["new"]
    monkeypatch.chdir(folder)
    with pytest.raises(FileNotFoundError, match=naming("P2C_base", folder)):
        Predictor.from_run(folder)


@pytest.mark.parametrize("change, named", [
    (lambda record: record.update(model_seconds=1.0), ("P2C_base", "training")),
    (lambda record: record["data"].pop("classnames"), ("classes", "delete")),
    (lambda record: record.update(finished=False), ("finished", "command")),
    (lambda record: record["config"]["TRAINER"].update(NAME="P3C"), ("trainer", "'P3C'", "P2C")),
])
def test_a_test_that_cannot_be_repeated_says_why(copy_of, change, named):
    with pytest.raises(ValueError, match=naming(*named)):
        Predictor.from_run(copy_of(half="new", change=change))


@pytest.mark.parametrize("names, named", [
    ([], ("empty",)), ("cat,dog", ("list",)), (["cat", " "], ("2 of 2", "empty")),
    (["cat", "big_dog", "Big dog "], ("2 and 3", "'big_dog' and 'Big dog'")),
])
def test_class_lists_that_make_no_sense_are_refused(names, named):
    with pytest.raises(ValueError, match=naming(*named)):
        checked_names(names)


def test_a_class_name_beyond_the_text_tower_is_refused_naming_the_label(runs):
    with pytest.raises(ValueError, match=naming("label 1", "tokens", "77")):
        Predictor.from_run(runs.of("P2C"), classes=["cat", "dog " * 80])


@pytest.mark.parametrize("device, named", [("cuda", "GPU"), ("tpu", "'tpu'")])
def test_a_device_that_is_not_there_is_refused(runs, monkeypatch, device, named):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=named):
        Predictor.from_run(runs.of("P2C"), device=device)


def test_a_run_with_class_features_for_each_image_has_no_classifier(runs, monkeypatch):
    predictor = Predictor.from_run(runs.of("MaPLe"))
    monkeypatch.setattr(predictor.model, "per_image_classes", True)
    with pytest.raises(ValueError, match=naming("MaPLe", "classifier")):
        _ = predictor.classifier


# The command

def test_the_command_prints_a_line_an_image_and_nothing_else(runs, command):
    run, images = runs.of("P2C"), runs.images["base"]
    status, out, err = command(run, *images, "--top", 9)
    assert status == 0 and not err and len(out) == len(images)
    best = runs.logits["P2C", "base"].softmax(1)[0].topk(2)
    first, second = (f"{runs.classes['base'][label]} {value:.1%}"
                     for label, value in zip(best.indices.tolist(), best.values.tolist(), strict=True))
    assert out[0] == f"{images[0]}: {first}, {second}"


def test_the_table_has_every_rank_and_unrounded_probabilities(runs, command, tmp_path):
    images = runs.images["base"]
    assert command(runs.of("P2C"), *images, "--csv", tmp_path / "new/table.csv")[0] == 0
    with open(tmp_path / "new/table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "rank", "class", "label", "probability"] and len(rows) == 2 * len(images)
    for image, expected in zip(images, runs.logits["P2C", "base"].softmax(1), strict=True):
        of_image = [row for row in rows if row["path"] == image]
        assert [row["rank"] for row in of_image] == ["1", "2"]
        assert [float(row["probability"]) for row in of_image] == expected.sort(descending=True).values.tolist()
        assert all(row["class"] == runs.classes["base"][int(row["label"])] for row in of_image)


def test_classes_come_from_the_command_line_or_a_file(runs, command, tmp_path):
    (tmp_path / "names.txt").write_text("\ufeffboxer\r\nBengal cat\n\n", encoding="utf-8")
    image = runs.images["new"][0]
    _, typed, _ = command(runs.of("P2C"), image, "--classes", "boxer, Bengal cat")
    _, read, _ = command(runs.of("P2C"), image, "--classes", tmp_path / "names.txt")
    assert typed == read and "boxer" in typed[0] and "Bengal cat" in typed[0]


@pytest.mark.parametrize("name", ["names.csv", "names", "names.TXT", "a,b"])
def test_a_file_of_another_ending_is_no_class(runs, command, tmp_path, monkeypatch, name):
    run, image = Path(runs.of("P2C")).resolve(), Path(runs.images["new"][0]).resolve()
    (tmp_path / name).write_text("boxer\nBengal cat\n")
    monkeypatch.chdir(tmp_path)
    status, out, err = command(run, image, "--classes", name)
    assert status == 2 and not out and len(err) == 1 and name in err[0] and ".txt" in err[0]


def test_images_that_cannot_be_read_are_named_and_passed_over_with_status_1(runs, command, tmp_path):
    good = runs.images["base"][0]
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    shutil.copy(good, tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to("nowhere")
    status, out, err = command(runs.of("P2C"), tmp_path, "--csv", tmp_path / "table.csv")
    assert status == 1 and len(out) == 1 and out[0].startswith(f"{tmp_path}/b.png: ")
    assert len(err) == 3 and "2 of 3" in err[2]
    assert all(f"{tmp_path}/{name}.png" in line for name, line in zip("ac", err, strict=False))
    assert (tmp_path / "table.csv").read_text().count("b.png") == 2


@pytest.mark.parametrize("words, named", [
    ((), ("images", "--export")),
    (("nowhere.jpg",), ("nowhere.jpg",)),
    (("trainers",), ("trainers", ".jpg")),
    (("IMAGE", "--top", "0"), ("--top", "0")),
    (("IMAGE", "--classes", "cat,,dog"), ("2 of 3", "empty")),
    (("IMAGE", "--classes", "nowhere.txt"), ("nowhere.txt",)),
    (("IMAGE", "--load-epoch", "7"), ("model.pth.tar-7",)),
    (("--export", "setup.py/x.safetensors"), ("setup.py",)),
    (("--export", "clf.pt"), ("clf.pt", ".safetensors", ".pt2", ".onnx")),
])
def test_a_mistake_is_one_line_and_status_2(runs, command, words, named):
    status, out, err = command(runs.of("P2C"), *(runs.images["base"][0] if word == "IMAGE" else word for word in words))
    assert status == 2 and not out and len(err) == 1 and err[0].startswith("error: ")
    assert re.search(naming(*named), err[0])


def test_a_folder_that_is_no_run_is_one_line_and_status_2(runs, command, tmp_path):
    status, _, err = command(tmp_path, runs.images["base"][0])
    assert status == 2 and len(err) == 1
    assert err[0].startswith("error: ") and re.search(naming(tmp_path, "results.json", "--output-dir"), err[0])


@pytest.mark.parametrize("option, path", [("--csv", "setup.py/table.csv"), ("--csv", "docs"), ("--export", "docs")])
def test_a_file_that_cannot_be_written_is_one_line_and_status_2_before_any_image_is_read(runs, command, option, path):
    status, out, err = command(runs.of("P2C"), runs.images["base"][0], option, path)
    assert status == 2 and not out and len(err) == 1 and err[0].startswith("error: ") and path in err[0]


def test_the_command_as_a_process_in_another_folder(runs, tmp_path):
    """Warnings and the reader that goes away early included: neither spoils the table."""
    process = subprocess.Popen(
        [sys.executable, "-m", "p2c", "predict", runs.of("P2C"), os.path.dirname(runs.images["base"][0]), "--csv",
         "table.csv", "--export", "classifier.safetensors", "--batch-size", "4"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()})
    process.stdout.readline()
    process.stdout.close()
    warning, = process.stderr.read().splitlines()
    assert process.wait() == 0
    assert re.search(naming("warning: ", "classifier.safetensors", "image"), warning)
    assert (tmp_path / "classifier.safetensors").is_file()
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 1 + 2 * 36


def test_the_logger_is_as_before_after_a_command(runs, command):
    command(runs.of("P2C"), runs.images["base"][0])
    assert logging.getLogger("p2c").level == logging.INFO


def test_folders_are_searched_once_in_order_for_visible_images(tmp_path):
    for name in ("b/2.JPG", "b/1.png", "a.webp", ".hidden/x.png", "b/.x.png", "b/notes.txt", "b/Thumbs.db", "c/z.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b/loop").symlink_to(tmp_path)
    (tmp_path / "d").symlink_to("c")
    found, others = predict.find_images([str(tmp_path), str(tmp_path / "b/notes.txt"), str(tmp_path / "a.webp")])
    assert {os.path.relpath(path, tmp_path) for path in others} == {"b/notes.txt", "b/Thumbs.db"}
    assert [os.path.relpath(path, tmp_path) for path in found] == \
        ["a.webp", "b/1.png", "b/2.JPG", "c/z.tif", "b/notes.txt"]


def turned(path, folder):
    """A copy of an image, stored turned by a quarter with the EXIF note that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(path).convert("RGB").transpose(Image.Transpose.ROTATE_90)
    image.save(folder / "turned.png", exif=exif)
    return folder / "turned.png", image


@pytest.mark.parametrize("recorded, dataset, upright", [
    (None, "OxfordPets", False), (None, "Folder", False), (False, "OxfordPets", True), (False, "Folder", False),
    (True, "Folder", True),
])
def test_photos_are_predicted_as_shown_unless_the_run_reads_otherwise(runs, copy_of, tmp_path, recorded, dataset,
                                                                      upright):
    def change(record):
        record["config"]["DATASET"]["NAME"] = dataset
        del record["config"]["INPUT"]["AS_SHOWN"]
        if recorded is not None:
            record["config"]["INPUT"]["AS_SHOWN"] = recorded

    path, stored = turned(runs.images["base"][0], tmp_path)
    predictor = Predictor.from_run(copy_of(change=change))
    expected = predictor.predict(runs.images["base"][0] if upright else stored)
    assert torch.equal(predictor.predict(path), expected)
    assert torch.equal(predictor.predict(Image.open(path)), expected)


def test_what_a_folder_holds_beside_images_is_counted_and_what_lacks_a_reader_is_named(runs, command, tmp_path,
                                                                                        monkeypatch):
    monkeypatch.setitem(predict.UNREAD, ".heic", "pip install pillow-heif")
    shutil.copy(runs.images["base"][0], tmp_path / "a.png")
    (tmp_path / "IMG_1.HEIC").write_bytes(b"no reader")
    for name in ("notes.txt", "more.txt", "clip.mov"):
        (tmp_path / name).touch()
    status, out, err = command(runs.of("P2C"), tmp_path)
    assert status == 1 and len(out) == 1
    assert re.search(naming("2 .txt", "1 .mov"), err[0]) and "heic" not in err[0].lower()
    assert re.search(naming("skipped", "IMG_1.HEIC", "pip install pillow-heif"), err[1]) and "1 of 2" in err[2]


def test_an_image_is_predicted_once_however_it_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photos/a.jpg", "photos/b.jpg", "c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("photos")
    found, _ = predict.find_images(["photos/b.jpg", "./photos/b.jpg", "photos", "photos/../c.jpg", "c.jpg", "link",
                                    "./photos//a.jpg", str(tmp_path)])
    assert found == ["photos/b.jpg", "photos/a.jpg", "photos/../c.jpg"]


def test_a_name_that_is_no_text_can_be_printed(tmp_path):
    assert predict.printable(os.fsdecode(b"caf\xe9.jpg")) == "caf\N{REPLACEMENT CHARACTER}.jpg"
