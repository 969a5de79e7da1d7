"""results.json, and which differences of a config make another run."""
import csv
import hashlib
import json
import os
import subprocess
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
import torch
from engine_fixtures import tiny_config
from messages import naming

import p2c
from p2c.engine import DATASET_REGISTRY, read_json
from p2c.engine.files import read_image
from p2c.engine.predictions import Predictions
from p2c.engine.results import (
    changed_keys,
    describe_changes,
    describe_checkout,
    digest_weights,
    fingerprint,
    read_results,
    to_plain,
    write_started,
)


def test_results_of_a_training_run(tiny_trainer, tmp_path):
    trainer = tiny_trainer("OPTIM.MAX_EPOCH", 2)
    write_started(trainer.cfg, trainer.output_dir)
    started = read_results(trainer.output_dir)
    assert not started["finished"] and "metrics" not in started
    trainer.train()
    record = read_json(tmp_path / "run/results.json")
    assert record["format"] == "p2c-results" and record["version"] == 1
    assert record["finished"] and record["mode"] == "train" and record["epoch"] == 2 and record["split"] == "test"
    assert (record["trainer"], record["dataset"], record["seed"]) == ("TinyTrainer", "TinyData", 1)
    assert (record["subsample_classes"], record["num_shots"], record["device"]) == ("all", -1, "cpu")
    metrics = record["metrics"]
    assert list(metrics) == ["accuracy", "error_rate", "macro_f1", "correct", "total", "ece", "nll", "reliability",
                             "class_accuracy"]
    assert metrics["total"] == 24 and metrics["accuracy"] == 100 * metrics["correct"] / 24
    assert record["config"]["INPUT"]["SIZE"] == [32, 32]
    assert set(record["versions"]) == {"python", "torch", "torchvision", "open_clip_torch", "numpy", "pillow", "cuda",
                                       "p2c", "dassl"}
    assert record["code"]["version"] == p2c.__version__ and record["gpu"] is None and record["threads"] == 1
    began, ended = (datetime.fromisoformat(record[name]) for name in ("started", "ended"))
    assert timedelta() <= ended - began < timedelta(minutes=5) and ended.utcoffset() == timedelta()
    assert datetime.now(timezone.utc) - ended < timedelta(minutes=5)
    assert {key: record["data"][key] for key in ("train_x", "val", "test", "num_classes")} == {
        "train_x": 72, "val": 24, "test": 24, "num_classes": 6
    }
    assert record["seconds"] > 0
    assert started["config"] == record["config"]


def test_every_test_leaves_its_predictions_and_the_accuracy_of_each_class(tiny_trainer, tmp_path):
    trainer = tiny_trainer("OPTIM.MAX_EPOCH", 1, "DATALOADER.TEST.BATCH_SIZE", 5)
    trainer.train()
    metrics = read_results(trainer.output_dir)["metrics"]
    with open(tmp_path / "run/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    root = trainer.cfg.DATASET.ROOT
    assert [f"{root}/{row['path']}" for row in rows] == [item.impath for item in trainer.dm.dataset.test]
    for row, item in zip(rows, trainer.dm.dataset.test, strict=True):
        image = trainer.dm.test_loader.dataset.transform(read_image(item.impath))
        with torch.no_grad():
            scores = trainer.model(image[None]).softmax(1)[0]
        assert int(row["predicted_label"]) == scores.argmax() and row["class"] == item.classname
        assert float(row["probability"]) == pytest.approx(scores.max().item(), abs=1e-5)
        assert row["predicted_class"] == trainer.dm.dataset.classnames[int(row["predicted_label"])]
    right = [row["class"] for row in rows if row["label"] == row["predicted_label"]]
    assert len(right) == metrics["correct"]
    assert metrics["class_accuracy"] == [100 * right.count(name) / 4 for name in trainer.dm.dataset.classnames]


def test_a_class_without_images_has_no_accuracy_and_one_without_a_name_can_be_predicted(tmp_path):
    predictions = Predictions()
    predictions.add(torch.eye(4)[[1, 3]], torch.tensor([1, 0]))
    predictions.arrange(torch.tensor([1, 0]))
    assert predictions.class_accuracy(3) == [0, 100, None]
    items = [SimpleNamespace(impath=str(tmp_path / name)) for name in ("a.png", "b, 1.png")]
    predictions.write(str(tmp_path), items, str(tmp_path), ["cat", "dog", "fox"])
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = [tuple(row.values())[:5] for row in csv.DictReader(file)]
    assert rows == [("a.png", "0", "cat", "3", ""), ("b, 1.png", "1", "dog", "1", "dog")]


def test_a_setting_that_only_adds_output_is_no_other_setting():
    plain = tiny_config("data", "run")
    more = tiny_config("data", "run", "TEST.COMPUTE_CMAT", True, "TEST.PER_CLASS_RESULT", True)
    assert changed_keys(to_plain(plain), more) == []


def test_results_of_an_evaluation(tiny_trainer, tmp_path):
    trained = tiny_trainer("OPTIM.MAX_EPOCH", 2)
    trained.train()
    trainer = tiny_trainer(output_dir=tmp_path / "eval")
    trainer.load_model(trained.output_dir, epoch=2)
    trainer.test()
    trainer.write_results("eval", model_dir="somewhere")
    record = read_results(tmp_path / "eval")
    assert record["mode"] == "eval" and record["epoch"] == 2 and record["finished"]
    assert record["model_dir"] == "somewhere"
    assert record["metrics"] == read_results(trained.output_dir)["metrics"]
    assert read_results(tmp_path / "nowhere") is None


def test_the_digest_in_an_earlier_programs_record_is_ignored(tiny_trainer, tmp_path):
    trainer = tiny_trainer()
    write_started(trainer.cfg, trainer.output_dir)
    path = tmp_path / "run/results.json"
    path.write_text(json.dumps({**read_json(path), "sha256": "0" * 64}))
    assert read_results(trainer.output_dir)["sha256"] == "0" * 64
    trainer.train()
    assert "sha256" not in read_results(trainer.output_dir)


def test_a_resumed_run_began_when_it_was_first_started(tiny_trainer, monkeypatch):
    first = tiny_trainer("TRAIN.CHECKPOINT_FREQ", 1)
    first.started = first.max_epoch = 2
    first.train()
    tiny_trainer("TRAIN.CHECKPOINT_FREQ", 1).train()
    assert read_results(first.output_dir)["started"] == "1970-01-01T00:00:02+00:00"


def test_the_digest_of_weights_tells_any_bit_of_them_apart(tiny_trainer):
    trainer = tiny_trainer("OPTIM.MAX_EPOCH", 1)
    trainer.train()
    record = read_results(trainer.output_dir)
    assert record["weights"] == digest_weights(trainer) and len(record["weights"]) == 64
    with torch.no_grad():
        trainer.model.linear.bias[0] = torch.nextafter(trainer.model.linear.bias[0], torch.tensor(torch.inf))
    assert record["weights"] != digest_weights(trainer)


def git(folder, *words):
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=folder, check=True,
                   capture_output=True)


def test_the_commit_is_that_of_the_checkout_itself(tmp_path, monkeypatch):
    assert describe_checkout(tmp_path) is None
    git(tmp_path, "init", "-b", "main")
    assert describe_checkout(tmp_path) is None  # there is none yet
    git(tmp_path, "commit", "--allow-empty", "-m", "one")
    first = (tmp_path / ".git/refs/heads/main").read_text().strip()
    assert describe_checkout(tmp_path) == first
    git(tmp_path, "worktree", "add", "side", "-b", "other")
    git(tmp_path / "side", "commit", "--allow-empty", "-m", "two")
    assert describe_checkout(tmp_path / "side") == (tmp_path / ".git/refs/heads/other").read_text().strip() != first
    (tmp_path / "installed").mkdir()
    assert describe_checkout(tmp_path / "installed") is None  # a package in an environment below somebody's repository
    (tmp_path / "installed/file").touch()
    git(tmp_path, "add", "installed/file")
    assert describe_checkout(tmp_path) == f"{first}-dirty"
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    assert describe_checkout(tmp_path) == f"{first}-dirty"
    monkeypatch.setenv("PATH", "")
    assert describe_checkout(tmp_path) is None


def test_fingerprint_is_of_paths_below_the_data_root(tiny_trainer, tiny_root):
    trainer = tiny_trainer("OPTIM.MAX_EPOCH", 1)
    trainer.train()
    dataset = trainer.dm.dataset
    lines = "".join(
        f"{item.impath[len(tiny_root) + 1:]}\t{item.label}\t{item.classname}\n"
        for items in (dataset.train_x, dataset.val, dataset.test) for item in items
    )
    assert lines.startswith("train/0_0.png\t0\tcat\n")
    expected = hashlib.sha256(lines.encode()).hexdigest()
    assert read_results(trainer.output_dir)["data"]["fingerprint"] == expected


def test_fingerprint_does_not_depend_on_how_the_root_is_written(tiny_root, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tiny_root)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def of(root, root_of_items):
        dataset = DATASET_REGISTRY.get("TinyData")(tiny_config(root_of_items, tmp_path))
        return fingerprint(dataset, root)

    expected = of(tiny_root, tiny_root)
    for root in (f"{tiny_root}/", f"{tiny_root}/train/..", "../link", os.path.relpath(tiny_root)):
        assert of(root, root) == of(root, f"{os.getcwd()}/{root}" if root[0] == "." else root) == expected


@pytest.mark.parametrize("content", [
    '{"format": "p2c-results", "finished": tr', "", "[1]", '{"format": "other", "finished": true, "config": {}}',
    '{"format": "p2c-results"}',
])
def test_results_that_are_damaged_or_not_ours_are_refused(content, tmp_path):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=naming(tmp_path / "results.json", "delete")):
        read_results(tmp_path)


@pytest.mark.parametrize("options, changed", [
    ((), []),
    (("DATALOADER.NUM_WORKERS", 3, "TRAIN.PRINT_FREQ", 1, "USE_CUDA", True, "VERBOSE", False, "RESUME", "x"), []),
    (("OPTIM.LR", 0.1, "INPUT.SIZE", (48, 32)), ["INPUT.SIZE", "OPTIM.LR"]),
])
def test_changed_keys_tell_another_run(options, changed, tmp_path):
    write_started(tiny_config("data", tmp_path), tmp_path)
    old = read_results(tmp_path)["config"]
    assert bool(describe_changes(old, tiny_config("elsewhere", tmp_path / "b", *options))) == bool(changed)
    assert changed_keys(old, tiny_config("elsewhere", tmp_path / "b", *options)) == changed
    old["TRAINER"]["FUTURE"] = {"KEY": 1}
    assert changed_keys(old, tiny_config("elsewhere", tmp_path / "b", *options)) == changed
