"""train.py as a user calls it: what it prints, writes and returns, and how it reports mistakes."""
import json
import logging
import os
import re
import shutil

import pytest
import torch
from clip_files import BREEDS, make_pets
from messages import naming

import p2c
from p2c.cli import train
from p2c.clip.loading import load_backbone
from p2c.engine.files import write_json
from p2c.engine.results import read_results
from p2c.utils.ranges import flatten


def tensors(folder, epoch=2):
    return torch.load(folder / "MultiModalPromptLearner" / f"model.pth.tar-{epoch}")["state_dict"]


def accuracy(folder):
    return read_results(str(folder))["metrics"]["accuracy"]


# What a run leaves behind

def test_a_run_leaves_dassls_files_and_results_with_every_fact(call, tmp_path):
    assert call() == train.FINISHED
    run = tmp_path / "run"
    log = (run / "log.txt").read_text()
    for line in ("Loading trainer: P2C", "Loading dataset: OxfordPets", "No checkpoint found, train from scratch",
                 "Finish training", "Deploy the last-epoch model", "Evaluate on the *test* set", "=> result",
                 "* total: 12", "Elapsed: 0:00:"):
        assert line in log
    assert "epoch [2/2] batch [4/4] time" in log and "loss_map" in log
    assert sorted(p.name for p in (run / "MultiModalPromptLearner").iterdir()) == ["checkpoint", "model.pth.tar-2"]
    assert list((run / "tensorboard").glob("events.*"))
    results = json.loads((run / "results.json").read_text())
    assert results["finished"] and results["trainer"] == "P2C" and results["seed"] == 1 and results["epoch"] == 2
    assert results["metrics"]["total"] == 12
    assert results["metrics"]["accuracy"] == 100 * results["metrics"]["correct"] / 12
    assert results["data"]["train_x"] == 16 and len(results["data"]["fingerprint"]) == 64
    assert results["skipped_steps"] == 0 and len(results["weights"]) == 64 and results["ended"] >= results["started"]
    assert results["config"]["TRAINER"]["P2C"]["N_CTX"] == 2 and results["versions"]["torch"] == torch.__version__


def test_the_same_command_elsewhere_gives_equal_metrics_and_bit_equal_tensors(call, tmp_path):
    assert call(out="a") == call(out="b") == train.FINISHED
    a, b = tensors(tmp_path / "a"), tensors(tmp_path / "b")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert read_results(str(tmp_path / "a"))["metrics"] == read_results(str(tmp_path / "b"))["metrics"]


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_change_neither_metrics_nor_tensors(call, tmp_path, workers):
    augmented = ("INPUT.TRANSFORMS", "('random_resized_crop','random_flip','normalize')", "DATALOADER.NUM_WORKERS")
    assert call(out="none", pairs=(*augmented, "0")) == call(out="some", pairs=(*augmented, str(workers))) == 0
    a, b = tensors(tmp_path / "none"), tensors(tmp_path / "some")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert accuracy(tmp_path / "none") == accuracy(tmp_path / "some")


def test_deterministic_algorithms_are_an_option_that_changes_nothing_on_a_cpu(call, tmp_path, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert call(out="usual") == 0 and not torch.are_deterministic_algorithms_enabled()
    try:
        assert call(pairs=("TRAIN.DETERMINISTIC", "True")) == 0
        assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    a, b = (tensors(tmp_path / out) for out in ("usual", "run"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_neither_log_frequency_nor_evaluations_between_epochs_change_tensors(call, tmp_path):
    pairs = ("INPUT.TRANSFORMS", "('random_resized_crop','random_flip','normalize')", "TRAIN.PRINT_FREQ")
    assert call(out="plain", pairs=(*pairs, "3")) == 0
    assert call(out="busy", pairs=(*pairs, "1", "TEST.FINAL_MODEL", "best_val", "TRAIN.CHECKPOINT_FREQ", "1")) == 0
    a, b = tensors(tmp_path / "plain"), tensors(tmp_path / "busy")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert "Evaluate on the *val* set" in (tmp_path / "busy" / "log.txt").read_text()


def test_evaluation_only_repeats_the_training_runs_accuracy(call, tmp_path):
    assert call() == 0
    options = ("--eval-only", "--model-dir", str(tmp_path / "run"), "--load-epoch", "2")
    assert call(*options, out="eval") == 0
    assert accuracy(tmp_path / "eval") == accuracy(tmp_path / "run")
    assert read_results(str(tmp_path / "eval"))["mode"] == "eval"


# Doing it again

def test_a_finished_run_is_not_repeated(call, tmp_path, capsys):
    assert call() == 0
    before = (tmp_path / "run" / "results.json").read_text()
    assert call() == train.FINISHED
    assert "Finished before" in capsys.readouterr().out
    assert (tmp_path / "run" / "results.json").read_text() == before
    assert len(list((tmp_path / "run").glob("log.txt*"))) == 1


def test_a_run_without_a_recorded_way_of_reading_images_keeps_its_own(call, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "collect_env_info", str)  # takes seconds
    every_epoch, run = ("TRAIN.CHECKPOINT_FREQ", "1"), tmp_path / "run"
    shown = (*every_epoch, "INPUT.AS_SHOWN", "True")
    assert call(pairs=every_epoch) == 0
    before = tensors(run)
    record = read_results(str(run))
    del record["config"]["INPUT"]["AS_SHOWN"]
    write_json(record, run / "results.json")
    assert call(pairs=shown) == train.FINISHED
    assert "Finished before" in capsys.readouterr().out
    assert call("--eval-only", "--model-dir", str(run), out="test", pairs=shown) == 0
    write_json({**record, "finished": False}, run / "results.json")
    (run / "MultiModalPromptLearner/model.pth.tar-2").unlink()
    assert call(pairs=shown) == 0
    for name in ("test", "run"):
        assert read_results(str(tmp_path / name))["config"]["INPUT"]["AS_SHOWN"] is False
    assert all(torch.equal(before[key], value) for key, value in tensors(run).items())


def test_outputs_that_a_finished_run_lacks_are_made_without_training_again(call, tmp_path):
    assert call() == 0
    before, record = tensors(tmp_path / "run"), read_results(str(tmp_path / "run"))
    more = ("TEST.COMPUTE_CMAT", "True", "TEST.PER_CLASS_RESULT", "True")
    assert call(pairs=more) == train.FINISHED
    after = read_results(str(tmp_path / "run"))
    assert after["metrics"].items() >= record["metrics"].items() and "perclass_accuracy" in after["metrics"]
    assert after["weights"] == record["weights"] and all(torch.equal(before[key], value) for key, value
                                                         in tensors(tmp_path / "run").items())
    saved = torch.load(tmp_path / "run/cmat.pt")
    assert saved["classnames"] == [BREEDS[label] for label in saved["labels"]]
    assert call(pairs=more) == call() == train.FINISHED
    assert len(list((tmp_path / "run").glob("log.txt*"))) == 2


@pytest.mark.parametrize("data", ["", "elsewhere"])
def test_without_a_root_the_datasets_are_where_the_scripts_look(monkeypatch, data):
    monkeypatch.setenv("DATA", data)
    args = train.parse_args(["--seed", "1", "--trainer", "P2C", "DATASET.NAME", "OxfordPets"])
    assert train.setup_cfg(args)[0].DATASET.ROOT == (data or "data")


def test_a_folder_of_images_has_no_default(call, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.run(train.parse_args(["--seed", "1", "--trainer", "P2C", "DATASET.NAME", "Folder"])) == train.MISTAKE
    assert "--root" in capsys.readouterr().err and not os.listdir()


def test_another_configuration_in_a_used_folder_is_refused_naming_the_key(call, tmp_path, capsys):
    assert call() == 0
    assert call(pairs=("OPTIM.LR", "0.5")) == train.MISTAKE
    assert "OPTIM.LR" in capsys.readouterr().err
    assert call("--eval-only", "--model-dir", str(tmp_path / "run")) == train.MISTAKE


def test_an_evaluation_of_a_model_that_was_trained_anew_is_not_taken_for_the_old_one(call, tmp_path, capsys):
    options = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    assert call() == call(*options, out="eval") == call(*options, out="eval") == 0
    shutil.rmtree(tmp_path / "run")
    assert call(pairs=("OPTIM.LR", "0.1")) == 0
    assert call(*options, out="eval") == train.MISTAKE
    assert re.search(naming(tmp_path / "eval", tmp_path / "run"), capsys.readouterr().err)


def test_an_unfinished_training_is_not_tested_unless_an_epoch_is_chosen(call, tmp_path, monkeypatch, capsys):
    from p2c.trainers.base import PromptTrainer

    step = PromptTrainer.forward_backward
    monkeypatch.setattr(PromptTrainer, "forward_backward",
                        lambda self, batch: train.interrupt(None, None) if self.epoch else step(self, batch))
    assert call(pairs=("TRAIN.CHECKPOINT_FREQ", "1")) == train.INTERRUPTED
    options = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    assert call(*options, out="eval") == train.MISTAKE
    assert re.search(naming(tmp_path / "run", "--load-epoch"), capsys.readouterr().err)
    assert call(*options, "--load-epoch", "1", out="eval") == train.FINISHED
    assert read_results(str(tmp_path / "eval"))["epoch"] == 1


def test_an_interrupted_run_exits_75_and_continues_to_the_same_end(call, tmp_path, monkeypatch, capsys):
    from p2c.trainers.base import PromptTrainer

    every_epoch = ("TRAIN.CHECKPOINT_FREQ", "1")
    assert call(out="whole", pairs=every_epoch) == 0
    step = PromptTrainer.forward_backward

    def interrupted(self, batch):
        if self.epoch == 1 and self.batch_idx == 2:
            train.interrupt(None, None)
        return step(self, batch)

    monkeypatch.setattr(PromptTrainer, "forward_backward", interrupted)
    assert call(out="cut", pairs=every_epoch) == train.INTERRUPTED
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not read_results(str(tmp_path / "cut"))["finished"]
    monkeypatch.setattr(PromptTrainer, "forward_backward", step)
    assert call(out="cut", pairs=every_epoch) == 0
    a, b = tensors(tmp_path / "whole"), tensors(tmp_path / "cut")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert accuracy(tmp_path / "whole") == accuracy(tmp_path / "cut")


def test_without_a_seed_one_is_drawn_and_recorded(call, tmp_path):
    assert call("--seed", "-1") == 0
    results = read_results(str(tmp_path / "run"))
    assert results["seed"] == results["config"]["SEED"] >= 0


def test_numbers_of_either_kind_train_and_are_predicted_with(call, tmp_path):
    numbers = ("TRAINER.PROMPTSRC.TEXT_LOSS_WEIGHT", "12.5", "TRAINER.PROMPTSRC.GPA_MEAN", "1.5", "OPTIM.LR", "1",
               "OPTIM.SGD_DAMPNING", "0.5")
    assert call(trainer="PromptSRC", pairs=numbers) == 0
    settings = flatten(read_results(str(tmp_path / "run"))["config"])
    assert [settings[key] for key in numbers[::2]] == [12.5, 1.5, 1.0, 0.5]
    assert p2c.Predictor.from_run(tmp_path / "run").classnames


def test_seed_zero_is_a_seed(call, tmp_path):
    assert call("--seed", "0", "--no-train") == 0
    args = train.parse_args(["--seed", "0", "--trainer", "P2C", "DATASET.NAME", "OxfordPets"])
    assert train.setup_cfg(args)[0].SEED == 0


# Mistakes

@pytest.mark.parametrize("words, named", [
    (dict(trainer="P2C", words=("--trainer", "P3C")), ("--trainer", "'P3C'", "MaPLe")),
    (dict(words=("--backbone", "ViT-B/17")), ("MODEL.BACKBONE.NAME", "'ViT-B/17'", "ViT-B/16")),
    (dict(pairs=("DATASET.NAME", "Shape")), ("--dataset-config-file", "'Shape'", "OxfordPets")),
    (dict(pairs=("OPTIM.FOO", "1")), ("OPTIM.FOO",)),
    (dict(pairs=("OPTIM.LR",)), ("OPTIM.LR",)),
    (dict(pairs=("OPTIM.MAX_EPOCH", "five")), ("OPTIM.MAX_EPOCH", "'five'")),
    (dict(pairs=("OPTIM.MAX_EPOCH", "2.5")), ("OPTIM.MAX_EPOCH", "2.5")),
    (dict(pairs=("OPTIM.WARMUP_EPOCH", "0.5")), ("OPTIM.WARMUP_EPOCH", "0.5")),
    (dict(pairs=("OPTIM.SGD_NESTEROV", "1")), ("OPTIM.SGD_NESTEROV", "1", "True", "False")),
    (dict(pairs=("OPTIM.STEPSIZE", "3")), ("OPTIM.STEPSIZE", "3", "list")),
    (dict(pairs=("TRAINER.P2C.CTX_INIT", "5")), ("TRAINER.P2C.CTX_INIT", "5", "text")),
    (dict(pairs=("OPTIM", "3")), ("3", "OPTIM.NAME", "OPTIM.LR")),
    (dict(pairs=("OPTIM.LR.A", "3")), ("OPTIM.LR", "A", "number")),
    (dict(pairs=("OPTIM.LR", "{'A': 1}")), ("OPTIM.LR", "number")),
    (dict(pairs=("TRAINER.PROMPT_DENOISING.SCHEDULE", "cos")), ("SCHEDULE", "'cos'", "cosine")),
    (dict(pairs=("TRAINER.P2C.N_CTX", "90")), ("TRAINER.P2C.N_CTX", "74", "77")),
    (dict(pairs=("TRAINER.P2C.N_CTX", "74")), ("tokens", "77")),
    (dict(words=("--eval-only",)), ("--model-dir",)),
    (dict(words=("--config-file", "train.py")), ("train.py", "YAML")),
    (dict(pairs=("TRAINER.PROMPT_DENOISING.NOISE_STD", "-1.0")), ("NOISE_STD", "-1.0")),
    (dict(pairs=("DATASET.SUBSAMPLE_CLASSES", "novel")), ("SUBSAMPLE_CLASSES", "'novel'", "all, base, new")),
    (dict(pairs=("DATASET.NUM_SHOTS", "0")), ("DATASET.NUM_SHOTS", "0")),
    (dict(words=("--config-file", "nowhere.yaml")), ("nowhere.yaml",)),
    (dict(words=("--eval-only", "--model-dir", "nowhere")), ("nowhere/MultiModalPromptLearner",)),
    (dict(root="nowhere"), ("OxfordPets", "nowhere")),
])
def test_a_mistake_is_one_line_and_status_2(call, capsys, words, named):
    assert call(*words.pop("words", ()), **words) == train.MISTAKE
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and re.search(naming(*named), error[0])


@pytest.mark.parametrize("pairs, named", [
    (("OPTIM.LR", "float('nan')"), ("OPTIM.LR", "nan")), (("OPTIM.LR", "1e999"), ("OPTIM.LR", "inf")),
    (("DATALOADER.CACHE", "0"), ("DATALOADER.CACHE",)), (("OPTIM.LR", "None"), ("OPTIM.LR", "None")),
    (("DATALOADER.TEST.SAMPLER", "RandomClassSampler"), ("DATALOADER.TEST.SAMPLER", "SequentialSampler, Random")),
    (("DATALOADER.TEST.SAMPLER", "SeqDomainSampler"), ("DATALOADER.TEST.SAMPLER", "SequentialSampler, Random")),
    (("DATASET.FOLDER.TEMPLATE", "a leaf"), ("TEMPLATE", "'a leaf'", "{}")),
    (("TRAINER.COOP.N_CTX", "0", "OPTIM.MAX_EPOCH", "1"), ("TRAINER.COOP.N_CTX", "0")),
    (("OPTIM.LR", "-1.0", "TRAIN.PRINT_FREQ", "0"), ("OPTIM.LR", "-1.0", "TRAIN.PRINT_FREQ", "0")),
])
def test_a_value_out_of_range_is_refused_before_anything_is_read_or_written(call, tmp_path, capsys, pairs, named):
    assert call(root="nowhere", pairs=pairs) == train.MISTAKE
    error, = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("error: ") and re.search(naming(*named), error) and not (tmp_path / "run").exists()


def test_an_output_folder_that_cannot_be_is_one_line(call, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert call(out="file/run") == train.MISTAKE
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and "file/run" in error[0]


def test_a_test_with_other_weights_of_clip_than_those_of_the_training_is_refused(call, tmp_path, capsys):
    assert call(pairs=("OPTIM.MAX_EPOCH", "1")) == 0
    state = load_backbone("tiny-shapes", "random").model.state_dict()
    torch.save({name: value + 1e-3 for name, value in state.items()}, tmp_path / "other.pt")
    options = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    assert call(*options, out="test", pairs=("MODEL.BACKBONE.WEIGHTS", str(tmp_path / "other.pt"))) == train.MISTAKE
    error = capsys.readouterr().err
    assert "'random'" in error and "other.pt" in error and "MODEL.BACKBONE.WEIGHTS" in error
    assert not (tmp_path / "test/results.json").exists()


@pytest.mark.parametrize("trainer", ["CoOp", "P2C"])
def test_several_views_of_an_image_are_refused_by_a_trainer_that_takes_one(call, capsys, trainer):
    assert call(trainer=trainer, pairs=("DATALOADER.K_TRANSFORMS", "2")) == train.MISTAKE
    error, = capsys.readouterr().err.splitlines()
    assert "DATALOADER.K_TRANSFORMS is 2" in error and "set DATALOADER.K_TRANSFORMS 1" in error


def test_a_trainer_that_takes_several_views_gets_them(call, monkeypatch):
    from p2c.trainers.p2c import P2C

    monkeypatch.setattr(P2C, "parse_batch_train", lambda self, batch: self.parse_batch({
        "img": torch.cat(batch["img"]), "label": batch["label"].repeat(2)}))
    assert call(pairs=("DATALOADER.K_TRANSFORMS", "2")) == 0


@pytest.mark.parametrize("trainer", ["CoOp", "P2C", "ZeroshotCLIP"])
def test_images_that_make_no_batch_are_refused(call, capsys, trainer):
    assert call(trainer=trainer, pairs=("INPUT.NO_TRANSFORM", "True")) == train.MISTAKE
    error, = capsys.readouterr().err.splitlines()
    assert "set INPUT.NO_TRANSFORM False" in error


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("trainer, more", [
    ("CoOp", ("DATALOADER.RETURN_IMG0", "True")), ("P2C", ("DATALOADER.RETURN_IMG0", "True")),
    ("ZeroshotCLIP", ("DATALOADER.RETURN_IMG0", "True", "DATALOADER.K_TRANSFORMS", "2")),
], ids=["CoOp", "P2C", "ZeroshotCLIP"])
def test_further_images_in_a_batch_change_nothing(call, tmp_path, trainer, more, workers):
    pairs = ("DATALOADER.NUM_WORKERS", workers, "OPTIM.MAX_EPOCH", "1")
    assert call(trainer=trainer, out="plain", pairs=pairs) == call(trainer=trainer, pairs=(*pairs, *more)) == 0
    plain, run = (read_results(str(tmp_path / out)) for out in ("plain", "run"))
    assert plain["metrics"] == run["metrics"] and plain["weights"] == run["weights"]


def without_validation(tmp_path) -> None:
    """Make the small data with no validation images."""
    broken(tmp_path, lambda split: split["val"].clear())


@pytest.mark.parametrize("pairs, words", [
    (("TEST.FINAL_MODEL", "best_val"), ()), (("TEST.FINAL_MODEL", "best_val"), ("--no-train",)),
    (("TEST.SPLIT", "val"), ()), (("TEST.SPLIT", "val"), ("--eval-only",)),
], ids=["best_val", "best_val without training", "split", "split of an evaluation"])
def test_validation_that_is_not_there_is_refused_before_anything_is_trained(call, tmp_path, capsys, pairs, words):
    without_validation(tmp_path)
    trainer = "ZeroshotCLIP" if "--eval-only" in words else "P2C"
    assert call(*words, root=tmp_path, trainer=trainer, pairs=pairs) == train.MISTAKE
    error, = capsys.readouterr().err.splitlines()
    assert re.search(naming(" ".join(pairs), "OxfordPets", "validation", pairs[0]), error)
    assert not list((tmp_path / "run").glob("*/*")) and read_results(str(tmp_path / "run")) is None


def test_settings_of_validation_that_nothing_reads_stop_nothing(call, tmp_path):
    without_validation(tmp_path)
    assert call(root=tmp_path, pairs=("TEST.FINAL_MODEL", "best_val", "TEST.SPLIT", "val", "TEST.NO_TEST", "True")) == 0
    assert call(root=tmp_path, out="trained") == 0
    assert call("--eval-only", "--model-dir", str(tmp_path / "trained"), root=tmp_path, out="eval",
                pairs=("TEST.FINAL_MODEL", "best_val")) == 0


def test_test_images_in_the_place_of_validation_images_choose_no_model(call, capsys, tmp_path, monkeypatch):
    from p2c.datasets.oxford_pets import OxfordPets

    monkeypatch.setattr(OxfordPets, "draw_shots", lambda self, split, shots, seed: split._replace(val=split.test))
    monkeypatch.setattr(OxfordPets, "sizes", OxfordPets.sizes._replace(val=0))
    assert call(pairs=("TEST.FINAL_MODEL", "best_val")) == train.MISTAKE
    assert re.search(naming("TEST.FINAL_MODEL best_val", "validation"), capsys.readouterr().err)
    assert call() == 0


def test_resuming_another_configuration_is_refused_naming_the_key(call, tmp_path, capsys):
    assert call() == 0
    options = ("--resume", str(tmp_path / "run"))
    assert call(*options, out="more", pairs=("OPTIM.LR", "0.5")) == train.MISTAKE
    assert "OPTIM.LR" in capsys.readouterr().err


def test_checkpoints_of_another_configuration_are_not_continued_and_stay_as_they_were(call, tmp_path, capsys):
    assert call() == 0
    (tmp_path / "run" / "results.json").unlink()
    assert call(pairs=("OPTIM.LR", "0.5")) == train.MISTAKE
    assert "OPTIM.LR" in capsys.readouterr().err and not (tmp_path / "run" / "results.json").exists()
    assert call() == train.FINISHED
    assert "Found checkpoint at" in capsys.readouterr().out


def test_the_reason_of_a_failure_is_in_the_runs_log_too(call, tmp_path, capsys):
    assert call("--backbone", "ViT-B/17") == train.MISTAKE
    assert capsys.readouterr().err in (tmp_path / "run" / "log.txt").read_text()


def test_values_of_an_option_end_at_two_dashes():
    args = train.parse_args(["--transforms", "random_flip", "normalize", "--", "DATASET.NUM_SHOTS", "16"])
    assert args.transforms == ["random_flip", "normalize"] and args.opts == ["DATASET.NUM_SHOTS", "16"]


@pytest.mark.parametrize("content, named", [
    ("OPTIM:\n\tLR: 1.0\n", ("\\t",)), ("- a\n- b\n", ("list",)), ("just words", ("'just words'",)),
    ("OPTIM: {FOO: 1}", ("OPTIM.FOO", "OPTIM.LR")),
    ("OPTIM: {LR: high}", ("OPTIM.LR", "'high'", "number")),
    ("OPTIM: {LR: {A: 1}}", ("OPTIM.LR", "A")), ("OPTIM: 5", ("5", "OPTIM.LR")),
    ("OPTIM: {MAX_EPOCH: 2.5}", ("OPTIM.MAX_EPOCH", "2.5")), ("5: {a: 1}", ("5.a",)),
    ("OPTIM: {NAME: 2020-01-31}", ("OPTIM.NAME", "datetime.date(2020, 1, 31)", "adam")),
    ("a: !!python/object/apply:os.getcwd []", ("python/object",)), ("OPTIM: [", ())],
    ids=["tab", "list", "text", "unknown key", "type", "section in a setting", "value for a section", "float",
         "number key", "date", "python tag", "syntax"])
def test_a_faulty_yaml_is_named(call, tmp_path, capsys, content, named):
    path = tmp_path / "faulty.yaml"
    path.write_text(content)
    assert call("--config-file", str(path)) == train.MISTAKE
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and re.search(naming(path, *named), error[0])


def test_pairs_taken_for_values_of_an_option_are_pointed_out(capsys):
    with pytest.raises(SystemExit):
        train.parse_args(["--transforms", "random_flip", "OPTIM.MAX_EPOCH", "1"])
    error = capsys.readouterr().err
    assert re.search(naming("OPTIM.MAX_EPOCH", "option"), error) and len(error.splitlines()) == 1


@pytest.mark.parametrize("words", [
    ("OPTIM.LR=0.1",), ("OPTIM.LR=0.1", "--", "OPTIM.MAX_EPOCH", "1"), ("OPTIM.LR=0.1", "--root", "x"),
    ("OPTIM.MAX_EPOCH", "1", "OPTIM.LR=0.1"), ("--transforms", "normalize", "--", "OPTIM.LR=0.1")])
def test_an_equals_sign_between_key_and_value_is_pointed_out(capsys, words):
    with pytest.raises(SystemExit) as stopped:
        train.parse_args([*words])
    assert stopped.value.code == train.MISTAKE
    error, = capsys.readouterr().err.splitlines()
    assert re.search(naming("OPTIM.LR=0.1", "OPTIM.LR 0.1"), error)


@pytest.mark.parametrize("words, option", [
    (("--model-dir", "run"), "--model-dir"), (("--load-epoch", "2"), "--load-epoch"),
    (("--no-train", "--model-dir", "run"), "--model-dir"), (("--eval-only", "--load-epoch", "0"), "--load-epoch"),
    (("--eval-only", "--model-dir", "run", "--resume", "run"), "--resume"),
    (("--eval-only", "--model-dir", "run", "--resume-anyway"), "--resume-anyway"),
])
def test_an_option_that_would_be_ignored_is_a_mistake(call, tmp_path, capsys, words, option):
    with pytest.raises(SystemExit) as stopped:
        call(*words)
    error, = capsys.readouterr().err.splitlines()
    assert stopped.value.code == train.MISTAKE and f"error: {option} " in error and not (tmp_path / "run").exists()


def test_a_model_for_a_trainer_that_learns_nothing_is_a_mistake(call, capsys):
    assert call("--eval-only", "--model-dir", "run", trainer="ZeroshotCLIP") == train.MISTAKE
    assert "leave out --model-dir" in capsys.readouterr().err


def unread(folder):
    """The lines in a run's log about settings that its trainer does not read."""
    return [line for line in (folder / "log.txt").read_text().splitlines() if " does not read " in line]


def test_given_settings_of_another_method_are_named_once(call, tmp_path):
    mine = ("TRAINER.MAPLE.N_CTX", "2", "TRAINER.P2C.N_CTX", "2", "TRAINER.PROMPT_DENOISING.SIGMOID_K", "10")
    assert call("--no-train", pairs=mine) == 0
    line, = unread(tmp_path / "run")
    assert "P2C does not read TRAINER.MAPLE.N_CTX: " in line
    assert call("--no-train", "--trainer", "CoOp", out="coop") == 0  # with P2C's file
    line, = unread(tmp_path / "coop")
    assert "CoOp does not read TRAINER.P2C." in line and "PROMPT_DENOISING" not in line


def test_debug_shows_the_traceback(call):
    with pytest.raises(ValueError, match="P3C"):
        call("--debug", "--trainer", "P3C")


def test_options_after_pairs_are_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        train.parse_args(["DATASET.NUM_SHOTS", "16", "--root", "x"])
    assert stopped.value.code == train.MISTAKE
    assert re.search(naming("--root", "KEY VALUE"), capsys.readouterr().err)


def broken(tmp_path, change):
    """A copy of the small data whose split was changed."""
    make_pets(tmp_path)
    path = tmp_path / "oxford_pets" / "split_zhou_OxfordPets.json"
    split = json.loads(path.read_text())
    content = change(split)
    path.write_text(content if isinstance(content, str) else json.dumps(split))


@pytest.mark.parametrize("change, named", [
    (lambda split: "<html>quota</html>", ("web page",)),
    (lambda split: split.pop("val"), ("split file",)),
    (lambda split: "[" * 100_000, ("split file",)),
    (lambda split: split["train"][0].__setitem__(1, 10**9), ("train", "test", str(10**9))),
    (lambda split: split["train"][0].__setitem__(2, " "), ("label 0", "class name")),
    (lambda split: split["train"][0].__setitem__(0, "../secret.png"), ("../secret.png",)),
    (lambda split: split["train"][0].__setitem__(0, "/etc/passwd"), ("/etc/passwd",)),
    (lambda split: split["train"][0].__setitem__(0, "C:/secret.png"), ("C:/secret.png",)),
    (lambda split: split["val"].__setitem__(0, split["test"][0]), ("twice",)),
    (lambda split: split["train"][0].__setitem__(2, "other"), ("label 0", "'other'", "'abyssinian'")),
    (lambda split: [item.__setitem__(1, 9) for part in split.values() for item in part if item[1] == 3],
     ("labels", "0 to")),
    (lambda split: split.__setitem__("test", [item for item in split["test"] if item[1] < 3]),
     ("train", "test", "(3)")),
    (lambda split: split.__setitem__("train", []), ("no train",)),
    (lambda split: split["train"][0].__setitem__(1, "0"), ("'0'",)),
], ids=["no JSON", "no val", "nested", "huge label", "no name", "parent folder", "absolute path", "drive letter",
        "twice", "two names", "gap",
        "class count",
        "empty", "label as text"])
def test_a_broken_split_is_one_line_naming_the_file(call, tmp_path, capsys, change, named):
    broken(tmp_path, change)
    assert call(root=tmp_path) == train.MISTAKE
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and re.search(naming("oxford_pets", *named), error[0])


def test_missing_images_are_counted_and_named(call, tmp_path, capsys):
    make_pets(tmp_path)
    lost = sorted((tmp_path / "oxford_pets" / "images").iterdir())[:5]
    for path in lost:
        path.unlink()
    assert call(root=tmp_path) == train.MISTAKE
    error = capsys.readouterr().err
    assert re.search(naming("5 of 36", lost[0]), error) and str(lost[4]) not in error


def test_a_missing_split_says_where_to_get_it(call, tmp_path, capsys):
    make_pets(tmp_path)
    (tmp_path / "oxford_pets" / "split_zhou_OxfordPets.json").unlink()
    assert call(root=tmp_path) == train.MISTAKE
    error = capsys.readouterr().err
    assert "drive.google.com/file/d/1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs" in error
    assert "python -m p2c data download oxford_pets" in error


def test_a_failure_while_training_is_status_1(call, monkeypatch, capsys):
    from p2c.model import PromptedCLIP

    def diverge(self, image, label, noise):
        return {"loss_ce": self.learner.ctx.sum() * float("nan")}

    monkeypatch.setattr(PromptedCLIP, "losses", diverge)
    assert call(trainer="MaPLe") == train.FAILED
    assert "error: " in capsys.readouterr().err


def test_nothing_is_logged_by_the_root_logger(call, caplog):
    assert call() == 0
    assert not [record for record in caplog.records if record.name == "root" and record.levelno >= logging.WARNING]
