"""python -m p2c verify_run: runs that are confirmed, and each way in which one is not."""
import os
import re
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from clip_files import make_pets
from messages import naming

from p2c.cli import train, verify_run
from p2c.engine.files import read_json, write_json

TINY = ("MODEL.BACKBONE.WEIGHTS", "random", "OPTIM.MAX_EPOCH", "2", "OPTIM.WARMUP_EPOCH", "-1", "USE_CUDA", "False",
        "VERBOSE", "False", "DATASET.CHECKS", "partial", "TEST.COMPUTE_CMAT", "True")
LEARNER = "MultiModalPromptLearner"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a training, of its test on half of the classes, and of a test of zero-shot CLIP; and the data."""
    place, stdout = tmp_path_factory.mktemp("runs"), sys.stdout
    make_pets(place / "data")

    def call(trainer, out, *words):
        status = train.run(train.parse_args([
            "--root", str(place / "data"), "--seed", "1", "--trainer", trainer, "--output-dir", str(place / out),
            "--dataset-config-file", "configs/datasets/oxford_pets.yaml",
            "--config-file", f"configs/trainers/{trainer}/tiny_shapes.yaml", *words]))
        assert status == train.FINISHED

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "collect_env_info", str)  # takes seconds
        call("P2C", "trained", *TINY)
        call("P2C", "tested", "--eval-only", "--model-dir", str(place / "trained"), *TINY,
             "DATASET.SUBSAMPLE_CLASSES", "new")
        call("ZeroshotCLIP", "zeroshot", "--eval-only", *TINY)
    sys.stdout = stdout
    return SimpleNamespace(place=place, data=place / "data")


@pytest.fixture
def verify(capsys):
    """verify(word, ...): exit status, lines on standard output, lines on standard error."""
    def run(*words):
        capsys.readouterr()
        try:
            status = verify_run.main([str(word) for word in words])
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out.splitlines(), err.splitlines()
    return run


@pytest.fixture
def copy(runs, tmp_path):
    """copy(change): a copy of the training whose record was changed."""
    def make(change=lambda record: None):
        folder = tmp_path / "copy"
        shutil.copytree(runs.place / "trained", folder)
        record = read_json(folder / "results.json")
        change(record)
        write_json(record, folder / "results.json")
        return folder
    return make


@pytest.fixture
def data(runs, tmp_path):
    """A copy of the data: its root, split, and test images."""
    shutil.copytree(runs.data, tmp_path / "data")
    split = read_json(runs.data / "oxford_pets/split_zhou_OxfordPets.json")
    images = tmp_path / "data/oxford_pets/images"
    return SimpleNamespace(root=tmp_path / "data", split=images.parent / "split_zhou_OxfordPets.json",
                           tested=[images / path for path, _, _ in split["test"]])


def state_of(folder):
    return {os.path.relpath(path, folder): (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
            for path in [folder, *folder.rglob("*")]}


@pytest.mark.parametrize("name", ["trained", "tested", "zeroshot"])
def test_a_run_is_confirmed_and_its_folder_stays_as_it_was(runs, verify, name):
    folder = runs.place / name
    before = state_of(folder)
    status, out, err = verify(folder)
    assert (status, err) == (0, []) and state_of(folder) == before
    assert out[-1].startswith("Confirmed") and "cpu" in out[-1]
    record = read_json(folder / "results.json")
    shown = {line.split("  ")[0].strip(): line for line in out[2:-1]}
    assert {*record["metrics"], "weights", "fingerprint", "torch"} <= set(shown)
    assert str(record["metrics"]["correct"]) in shown["correct"] and all(line.endswith("same") for line in out[2:-1])


def test_a_run_with_a_setting_of_an_earlier_version_is_confirmed(copy, verify):
    status, out, err = verify(copy(lambda record: record["config"]["DATALOADER"].update(CACHE=-1)))
    assert (status, err) == (0, []) and out[-1].startswith("Confirmed")


def test_data_that_have_moved_are_confirmed_where_they_are_now(runs, copy, data, verify):
    folder = copy(lambda record: record["config"]["DATASET"].update(ROOT="/nowhere"))
    status, out, err = verify(folder)
    assert (status, out) == (2, [])
    assert len(err) == 1 and re.match(naming("error: ", "/nowhere", "--root"), err[0])
    status, out, _ = verify(folder, "--root", data.root)
    assert status == 0 and out[-1].startswith("Confirmed")


@pytest.mark.parametrize("change, message", [
    (lambda record: record["metrics"].update(accuracy=record["metrics"]["accuracy"] + 1e-12), "numbers (accuracy)"),
    (lambda record: record["metrics"].update(correct=99), "numbers (correct)"),
    (lambda record: record.update(weights="0" * 64), "weights (weights)"),
    (lambda record: record["data"].update(fingerprint="0" * 64, val=5), "data (val, fingerprint)"),
    (lambda record: record["data"].update(classnames=["cat", "dog"]), "data (classnames)"),
    (lambda record: record["versions"].update(torch="1.0", numpy=None),
     "versions (torch, numpy)"),
])
def test_a_record_that_was_changed_is_not_confirmed(copy, verify, change, message):
    status, out, err = verify(copy(change))
    assert status == 1 and out[-1].startswith("Not confirmed") and message in out[-1] and out[-1].count("(") == 1
    assert sum(line.endswith("DIFFERS") for line in out) == message.count(",") + 1 and not err


def test_a_checkpoint_that_was_changed_is_not_confirmed(copy, verify):
    folder = copy()
    path = folder / LEARNER / "model.pth.tar-2"
    checkpoint = torch.load(path)
    checkpoint["state_dict"]["ctx"][0, 0] += 1e-6
    torch.save(checkpoint, path)
    status, out, _ = verify(folder)
    assert status == 1 and "weights (weights)" in out[-1]


def test_a_damaged_checkpoint_is_not_confirmed_and_a_missing_one_a_mistake(copy, verify):
    folder = copy()
    path = folder / LEARNER / "model.pth.tar-2"
    path.write_bytes(path.read_bytes()[:1000])
    status, out, (error,) = verify(folder)
    assert (status, out) == (1, []) and error.startswith("Not confirmed: ") and str(path) in error
    path.unlink()
    status, out, (error,) = verify(folder)
    assert (status, out) == (2, []) and error.startswith("error: ") and str(path) in error


def test_images_that_were_changed_are_seen_in_the_numbers(copy, data, verify):
    for path in data.tested[1:]:
        shutil.copy(data.tested[0], path)
    status, out, _ = verify(copy(), "--root", data.root)
    assert status == 1 and out[-1].startswith("Not confirmed") and "numbers (" in out[-1] and "data" not in out[-1]


def test_a_damaged_image_is_not_confirmed_and_a_missing_one_a_mistake(copy, data, verify):
    folder = copy()
    data.tested[0].write_bytes(b"\x89PNG")
    status, _, (error,) = verify(folder, "--root", data.root)
    assert status == 1 and error.startswith("Not confirmed: ") and str(data.tested[0]) in error
    data.tested[0].unlink()
    status, _, (error,) = verify(folder, "--root", data.root)
    assert status == 2 and "1 of 36" in error


def test_another_split_is_not_confirmed(copy, data, verify):
    split = read_json(data.split)
    split["train"].append(split["val"].pop(1))
    write_json(split, data.split)
    status, out, _ = verify(copy(), "--root", data.root)
    assert status == 1 and "data (train_x, val, fingerprint)" in out[-1]


@pytest.mark.parametrize("change, named", [
    (lambda record: record.update(finished=False), "finished"),
    (lambda record: record.pop("metrics"), "metrics"),
    (lambda record: record["config"]["DATASET"].update(NAME="Nothing"), "'Nothing'"),
])
def test_a_run_that_cannot_be_verified_is_a_mistake(copy, verify, change, named):
    status, out, (error,) = verify(copy(change))
    assert (status, out) == (2, []) and error.startswith("error: ") and named in error


def test_a_folder_that_is_no_run_is_a_mistake(tmp_path, verify):
    status, _, (error,) = verify(tmp_path)
    assert status == 2 and error.startswith("error: ") and str(tmp_path) in error


def test_on_another_device_a_remark_tells_what_rounding_may_do():
    rows = [verify_run.Row("numbers", "correct", 7, 8)]
    verdict = verify_run.verdict(rows, "cuda", "cpu")
    assert re.match(naming("Not confirmed", "numbers (correct)", "cuda", "cpu"), verdict)
    assert re.match("Not confirmed.*numbers \\(correct\\)$", verify_run.verdict(rows, "cpu", "cpu"))
