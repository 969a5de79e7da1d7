"""results.json, and which differences of a config make another run."""
import hashlib
import os

import pytest
from engine_fixtures import *  # noqa: F403 (its fixtures)
from engine_fixtures import tiny_config

from p2c.engine import DATASET_REGISTRY, read_json
from p2c.engine.results import changed_keys, changes, fingerprint, read_results, write_started


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
    assert list(metrics) == ["accuracy", "error_rate", "macro_f1", "correct", "total"]
    assert metrics["total"] == 24 and metrics["accuracy"] == 100 * metrics["correct"] / 24
    assert record["config"]["INPUT"]["SIZE"] == [32, 32]
    assert set(record["versions"]) == {"python", "torch", "torchvision", "open_clip_torch", "numpy", "p2c", "dassl"}
    assert {key: record["data"][key] for key in ("train_x", "val", "test", "num_classes")} == {
        "train_x": 72, "val": 24, "test": 24, "num_classes": 6
    }
    assert record["seconds"] > 0
    assert started["config"] == record["config"]


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
    with pytest.raises(ValueError, match=rf"{tmp_path}/results.json.*delete it, or choose another folder"):
        read_results(tmp_path)


@pytest.mark.parametrize("options, changed", [
    ((), []),
    (("DATALOADER.NUM_WORKERS", 3, "TRAIN.PRINT_FREQ", 1, "USE_CUDA", True, "VERBOSE", False, "RESUME", "x"), []),
    (("OPTIM.LR", 0.1, "INPUT.SIZE", (48, 32)), ["INPUT.SIZE", "OPTIM.LR"]),
])
def test_changed_keys_tell_another_run(options, changed, tmp_path):
    write_started(tiny_config("data", tmp_path), tmp_path)
    old = read_results(tmp_path)["config"]
    assert bool(changes(old, tiny_config("elsewhere", tmp_path / "b", *options))) == bool(changed)
    assert changed_keys(old, tiny_config("elsewhere", tmp_path / "b", *options)) == changed
    old["TRAINER"]["FUTURE"] = {"KEY": 1}
    assert changed_keys(old, tiny_config("elsewhere", tmp_path / "b", *options)) == changed
