"""Checkpoints: what is in them, what is refused, and which runs can be resumed."""
import collections
import io
import os
import pickle
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_fixtures import BEST_VAL, TinyTrainer, tiny_config
from messages import naming
from pickles import setting, spoil_archive, spoilt
from torch import nn
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from p2c.engine import (
    build_lr_scheduler,
    build_optimizer,
    load_checkpoint,
    load_pretrained_weights,
    restricted,
    resume_from_checkpoint,
    save_checkpoint,
)
from p2c.engine.checkpoint import CannotResume, UnreadableCheckpoint, plain
from p2c.utils import trainable


def test_resume_needs_a_checkpoint_in_the_given_folder(tiny_trainer, tmp_path):
    """Check 33."""
    with pytest.raises(FileNotFoundError, match="no checkpoint") as error:
        tiny_trainer("RESUME", str(tmp_path)).train()
    assert isinstance(error.value, CannotResume)
    (tmp_path / "run/prompt_learner").mkdir(parents=True)
    with pytest.raises(CannotResume):
        tiny_trainer().train()


def test_weights_of_another_model_are_named(tiny_trainer, tmp_path):
    """Check 35."""
    trainer = tiny_trainer()
    save_checkpoint({"state_dict": {"ctx": torch.zeros(2)}, "epoch": 3}, str(tmp_path / "prompt_learner"))
    with pytest.raises(ValueError, match="missing: linear.weight, linear.bias; unexpected: ctx"):
        trainer.load_model(str(tmp_path), epoch=3)


def test_a_truncated_checkpoint_is_passed_over(tiny_trainer, capsys):
    """Check 33."""
    trainer = tiny_trainer("TRAIN.CHECKPOINT_FREQ", 2)
    trainer.train()
    weights = trainer.model.linear.weight.clone()
    folder = Path(trainer.output_dir, "prompt_learner")
    newest = folder / "model.pth.tar-5"
    content = newest.read_bytes()
    for size in (len(content) // 2, 10, 0):
        newest.write_bytes(content[:size])
        again = tiny_trainer("TRAIN.CHECKPOINT_FREQ", 2)
        again.train()
        assert {epoch for epoch, *_ in again.seen} == {4} and again.model.linear.weight.equal(weights)
        assert f'Unable to load checkpoint from "{newest}"' in capsys.readouterr().out
    newest.write_bytes(content)
    edit_checkpoint(newest, lambda checkpoint: checkpoint.pop("epoch"))
    tiny_trainer("TRAIN.CHECKPOINT_FREQ", 2).train()
    assert f'"{newest}" is no checkpoint' in capsys.readouterr().out
    for path in folder.glob("model*"):
        path.write_bytes(b"PK")
    (folder / "checkpoint").write_bytes(b"\xff\0")
    with pytest.raises(CannotResume, match=naming(folder, "remove")):
        tiny_trainer().train()


def test_models_resume_from_a_common_epoch(tiny_trainer):
    class Two(TinyTrainer):
        def build_model(self):
            super().build_model()
            self.other = nn.Linear(2, 2)
            self.register_model("other", self.other)

    cfg = tiny_trainer("TRAIN.CHECKPOINT_FREQ", 2).cfg
    trainer = Two(cfg)
    trainer.train()
    Path(cfg.OUTPUT_DIR, "other", "model.pth.tar-5").unlink()
    again = Two(cfg)
    again.train()
    assert {epoch for epoch, *_ in again.seen} == {4}
    shutil.rmtree(Path(cfg.OUTPUT_DIR, "other"))
    afresh = Two(cfg)
    afresh.train()
    assert {epoch for epoch, *_ in afresh.seen} == set(range(5))


def test_resuming_with_other_classes_is_refused(tiny_trainer):
    trainer = tiny_trainer("OPTIM.MAX_EPOCH", 1)
    trainer.train()
    again = tiny_trainer("OPTIM.MAX_EPOCH", 1)
    again.dm.dataset._classnames = ["ant", "bee"]
    with pytest.raises(CannotResume, match=r"trained on 6 classes \(cat, dog, fox, ...\).*\(ant, bee"):
        again.train()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_resuming_under_another_configuration_is_refused_before_anything_is_loaded(tiny_trainer, tmp_path, elsewhere):
    first = tiny_trainer("OPTIM.MAX_EPOCH", 2)
    first.train()
    place = {"output_dir": tmp_path / "other"} if elsewhere else {}
    resume = ("RESUME", first.output_dir) if elsewhere else ()
    again = tiny_trainer(
        "OPTIM.MAX_EPOCH", 3, "OPTIM.LR", 0.5, "INPUT.SIZE", (32, 48), "OPTIM.GAMMA", 0.2, *resume, **place
    )
    before = again.model.linear.weight.clone()
    with pytest.raises(CannotResume) as error:
        again.train()
    message = str(error.value)
    assert str(first.output_dir) in message
    assert re.search(naming("OPTIM.LR was 0.0035, is 0.5", "INPUT.SIZE was [32, 32], is [32, 48]"), message)
    assert re.search(naming("1 more (OPTIM.MAX_EPOCH)", "--output-dir"), message)
    assert again.model.linear.weight.equal(before) and not again.optim.state
    same = tiny_trainer("OPTIM.MAX_EPOCH", 2, "TRAIN.PRINT_FREQ", 1, "DATALOADER.NUM_WORKERS", 1, *resume, **place)
    same.train()
    assert same.seen == [] and same.results == first.results


def test_a_checkpoint_of_an_unknown_configuration_is_resumed_if_it_fits(tiny_trainer):
    first = tiny_trainer("OPTIM.MAX_EPOCH", 1)
    first.train()
    edit_checkpoint(f"{first.output_dir}/prompt_learner/model.pth.tar-1", lambda checkpoint: checkpoint.pop("config"))
    again = tiny_trainer("OPTIM.MAX_EPOCH", 2)
    again.train()
    assert {epoch for epoch, *_ in again.seen} == {1}


def test_resuming_from_a_published_checkpoint_names_the_ways_to_use_it(tiny_trainer):
    """MaPLe's hold all of CLIP."""
    trainer = tiny_trainer("OPTIM.MAX_EPOCH", 1)
    names = ["prompt_learner.ctx", *(f"image_encoder.layer.{i}" for i in range(300))]
    state = {"state_dict": {name: torch.zeros(1) for name in names}, "epoch": 1, "val_result": None}
    save_checkpoint(state, f"{trainer.output_dir}/prompt_learner")
    with pytest.raises(CannotResume, match=r"weights only.*MODEL.INIT_WEIGHTS.*--eval-only") as error:
        trainer.train()
    assert "\n" not in str(error.value) and len(str(error.value)) < 600 and "and 297 more" in str(error.value)


def test_an_optimiser_of_other_parameters_cannot_be_resumed(tiny_trainer):
    first = tiny_trainer("OPTIM.MAX_EPOCH", 1)
    first.train()
    edit_checkpoint(
        f"{first.output_dir}/prompt_learner/model.pth.tar-1",
        lambda checkpoint: checkpoint["optimizer"]["param_groups"][0]["params"].append(9),
    )
    with pytest.raises(CannotResume, match="model.pth.tar-1.*another --output-dir"):
        tiny_trainer("OPTIM.MAX_EPOCH", 1).train()


def test_resume_from_another_folder_takes_the_best_model_along(tiny_trainer, tmp_path):
    options = (*BEST_VAL, "OPTIM.MAX_EPOCH", 2)
    first = tiny_trainer(*options, output_dir=tmp_path / "first")
    first.train()
    second = tiny_trainer(*options, "RESUME", str(tmp_path / "first"), output_dir=tmp_path / "second")
    second.train()
    assert second.seen == [] and second.best_result == first.best_result and second.results == first.results


def edit_checkpoint(path, change):
    checkpoint = torch.load(path)
    change(checkpoint)
    torch.save(checkpoint, path)


def test_the_best_result_of_a_checkpoint_without_one_is_that_of_the_best_model(tiny_trainer):
    options = (*BEST_VAL, "OPTIM.MAX_EPOCH", 2)
    first = tiny_trainer(*options)
    first.train()
    folder = Path(first.output_dir, "prompt_learner")
    edit_checkpoint(folder / "model.pth.tar-2", lambda checkpoint: checkpoint.pop("best_result"))
    edit_checkpoint(folder / "model-best.pth.tar", lambda checkpoint: checkpoint.update(val_result=99.0))
    second = tiny_trainer(*options)
    second.train()
    assert second.seen == [] and second.best_result == 99.0
    edit_checkpoint(folder / "model-best.pth.tar", lambda checkpoint: checkpoint.update(val_result=None))
    third = tiny_trainer(*options)
    third.train()
    assert third.best_result == -float("inf")


def test_elapsed_time_goes_on_where_a_resumed_run_stopped(tiny_trainer, capsys):
    first = tiny_trainer("OPTIM.MAX_EPOCH", 1)
    first.train()
    path = Path(first.output_dir, "prompt_learner", "model.pth.tar-1")
    edit_checkpoint(path, lambda checkpoint: checkpoint.update(seconds=3600.0))
    capsys.readouterr()
    tiny_trainer("OPTIM.MAX_EPOCH", 1).train()
    assert "Elapsed: 1:00:0" in capsys.readouterr().out


class PromptLearner(nn.Module):
    """A context and, as CoOp's, the embeddings of the class names as buffers."""

    def __init__(self, num_classes):
        super().__init__()
        self.ctx = nn.Parameter(torch.randn(2, 4))
        self.register_buffer("token_prefix", torch.randn(num_classes, 1, 4))
        self.register_buffer("token_suffix", torch.randn(num_classes, 5, 4))


class Clip(nn.Module):
    """A trained part inside a frozen model 200 times its size, with a buffer."""

    def __init__(self):
        super().__init__()
        self.prompt_learner = PromptLearner(3)
        self.frozen = nn.Linear(40, 39).requires_grad_(False)
        self.register_buffer("average", torch.zeros(2))


def test_prompts_move_to_other_classes(tmp_path):
    """Check 38."""
    base, new = PromptLearner(3), PromptLearner(5)
    save_checkpoint({"state_dict": trainable.state_dict(base), "epoch": 1}, str(tmp_path))
    suffix = new.token_suffix.clone()
    trainable.load_state_dict(new, load_checkpoint(tmp_path / "model.pth.tar-1")["state_dict"])
    assert new.ctx.equal(base.ctx) and new.token_suffix.equal(suffix)
    trainable.load_state_dict(new, base.state_dict())  # as CoOp saves it
    assert new.token_suffix.equal(suffix)


def test_only_what_trains_is_saved(tmp_path):
    """Check 40."""
    model, other = Clip(), Clip()
    state = trainable.state_dict(model)
    assert set(state) == {"prompt_learner.ctx", "average"}
    save_checkpoint({"state_dict": state, "epoch": 1}, str(tmp_path / "own"))
    save_checkpoint({"state_dict": model.state_dict(), "epoch": 1}, str(tmp_path / "full"))
    sizes = [sum(v.nbytes for v in load_checkpoint(tmp_path / kind / "model.pth.tar-1")["state_dict"].values())
             for kind in ("own", "full")]
    assert sizes[0] < 0.05 * sizes[1]
    for kind in ("own", "full"):
        frozen = other.frozen.weight.clone()
        nn.init.zeros_(other.prompt_learner.ctx)
        trainable.load_state_dict(other, load_checkpoint(tmp_path / kind / "model.pth.tar-1")["state_dict"])
        assert other.prompt_learner.ctx.equal(model.prompt_learner.ctx) and other.frozen.weight.equal(frozen)


def test_weights_of_another_shape_change_nothing():
    model = Clip()
    before = model.prompt_learner.ctx.clone()
    with pytest.raises(ValueError, match=r"prompt_learner.ctx is \(3, 4\) instead of \(2, 4\)"):
        trainable.load_state_dict(model, {"prompt_learner.ctx": torch.zeros(3, 4), "average": torch.ones(2)})
    assert model.prompt_learner.ctx.equal(before) and model.average.equal(torch.zeros(2))


def legacy_checkpoint(model, path):
    """A file as real Dassl writes it with warm-up: the inner schedule, and through it the optimiser, as objects."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    successor.tables = collections.defaultdict(dict, {"a": {"b": successor}})
    torch.save({
        "state_dict": collections.OrderedDict((f"module.{name}", value) for name, value in model.state_dict().items()),
        "epoch": 2,
        "optimizer": optimizer.state_dict(),
        "scheduler": {"successor": successor, "warmup_epoch": 1, "last_epoch": 1, "base_lrs": [0.1]},
        "val_result": 71.5,
    }, path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_of_real_dassl_is_read_without_its_objects(tmp_path, monkeypatch, zipped):
    """Check 36."""
    model = nn.Linear(2, 3)
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda *args: save(*args, _use_new_zipfile_serialization=zipped))
    legacy_checkpoint(model, tmp_path / "model.pth.tar-2")
    (tmp_path / "checkpoint").write_text("model.pth.tar-2\n")

    with monkeypatch.context() as patch:  # whoever looks these classes up fails
        patch.delattr(sys.modules["torch.optim.sgd"], "SGD")
        patch.delattr(torch.optim.lr_scheduler, "CosineAnnealingLR")
        checkpoint = load_checkpoint(tmp_path / "model.pth.tar-2")
    assert checkpoint["epoch"] == 2 and checkpoint["val_result"] == 71.5
    assert checkpoint["state_dict"]["module.weight"].equal(model.weight)
    assert checkpoint["scheduler"] == {"successor": None, "warmup_epoch": 1, "last_epoch": 1, "base_lrs": [0.1]}

    opts = tiny_config("data", tmp_path).OPTIM
    fresh = nn.Linear(2, 3)
    optimizer = build_optimizer(fresh, opts)
    scheduler = build_lr_scheduler(optimizer, opts)
    assert resume_from_checkpoint(str(tmp_path), fresh, optimizer, scheduler) == 2
    assert fresh.weight.equal(model.weight) and scheduler.last_epoch == 2
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0031657797401561582)


def of_the_old_format(content):
    """A file of torch's old format with this pickle, and without tensors."""
    header = (MAGIC_NUMBER, PROTOCOL_VERSION, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
    return b"".join(pickle.dumps(part, protocol=2) for part in header) + content + pickle.dumps([], protocol=2)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_nothing_in_a_checkpoint_runs(tmp_path):
    torch.save({"state_dict": {}, "epoch": 1, "scheduler": Bomb(tmp_path / "ran")}, tmp_path / "bomb")
    assert load_checkpoint(tmp_path / "bomb")["scheduler"] is None
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("module, name", [
    ("torch._utils", "_rebuild_tensor"), ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter"),
    ("any", "thing"),
])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_changes_nothing_of_the_process(tmp_path, monkeypatch, module, name, zipped):
    """A file that sets attributes of what its reader hands out spoils no later reading."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    if zipped:
        legacy_checkpoint(nn.Linear(2, 3), good)
        shutil.copy(good, bad)
        spoil_archive(bad, setting(module, name, __defaults__=(), extend=None))
    else:
        save_checkpoint({"state_dict": {"weight": torch.ones(1)}, "epoch": 2}, str(tmp_path), model_name="good")
        bad.write_bytes(of_the_old_format(spoilt(pickle.dumps({"state_dict": {}, "epoch": 2}, protocol=2),
                                                 setting(module, name, __defaults__=(), extend=None))))
    functions = {function: (function.__defaults__, dict(vars(function))) for function in restricted.TENSORS.values()}
    inert = dict(vars(restricted.Inert))
    expected = load_checkpoint(good)["state_dict"]
    with pytest.raises(UnreadableCheckpoint, match=str(bad)):
        load_checkpoint(bad)
    for function, attributes in functions.items():
        assert (function.__defaults__, dict(vars(function))) == attributes
    assert dict(vars(restricted.Inert)) == inert
    for _ in range(2):
        found = load_checkpoint(good)["state_dict"]
        assert all(found[key].equal(value) for key, value in expected.items()) and found.keys() == expected.keys()


def test_each_read_hands_out_its_own(tmp_path):
    first, second = (restricted.Unpickler(io.BytesIO()) for _ in range(2))
    for place in (*restricted.TENSORS, ("os", "system")):
        assert first.find_class(*place) is first.find_class(*place) is not second.find_class(*place)


def test_a_checkpoint_writes_no_patch(tmp_path, monkeypatch):
    """torch writes the difference of source codes to a file, if what a file of the old format names says so."""
    monkeypatch.chdir(tmp_path)
    named = b"ctorch._utils\n_rebuild_tensor_v2\n"
    change = setting("torch._utils", "_rebuild_tensor_v2", dump_patches=True, __name__="ran")
    identity = b"(" + pickle.dumps("module", 2)[2:-1] + named + pickle.dumps("f", 2)[2:-1] + \
        pickle.dumps("source", 2)[2:-1] + b"tQ0"
    content = spoilt(pickle.dumps({"state_dict": {}, "epoch": 2}, protocol=2), change, identity)
    (tmp_path / "bad").write_bytes(of_the_old_format(content))
    with pytest.raises(UnreadableCheckpoint, match="bad"):
        load_checkpoint("bad")
    assert os.listdir() == ["bad"]


@pytest.mark.filterwarnings("ignore")  # torch's own about its archives
def test_files_that_are_no_checkpoints(tmp_path):
    (tmp_path / "text").write_text("no checkpoint")
    with pytest.raises(UnreadableCheckpoint, match="text"):
        load_checkpoint(tmp_path / "text")
    torch.jit.script(nn.Linear(1, 1)).save(tmp_path / "script")
    with pytest.raises(UnreadableCheckpoint, match="script"):
        load_checkpoint(tmp_path / "script")
    for content in ([1], {"epoch": 1}, {"state_dict": {}}, {"state_dict": {"a": 1}, "epoch": 1}):
        torch.save(content, tmp_path / "other")
        with pytest.raises(UnreadableCheckpoint, match='other" is no checkpoint'):
            load_checkpoint(tmp_path / "other")


@pytest.mark.parametrize("content", [
    b"\x80\x02.",  # IndexError: nothing on the stack
    b"\x80\x02J\x01",  # struct.error: half a number
    b"\x80\x02K\x01Q.",  # AssertionError: no storage
    b"\x80\x02\x8e" + b"\xff" * 8 + b".",  # OverflowError: a length beyond all measure
])
def test_damage_of_any_kind_is_one_exception(tmp_path, content):
    """Files of the old format are pickles throughout."""
    path = tmp_path / "model"
    path.write_bytes(of_the_old_format(content))
    with pytest.raises(UnreadableCheckpoint, match=str(path)):
        load_checkpoint(path)


def test_checkpoints_hold_plain_values_only():
    view = torch.zeros(1000)[:2]
    state = plain({"a": [np.float64(1.5), (np.int64(2),)], "b": np.zeros(2), "c": view, "d": {"e": None}})
    assert state["a"] == [1.5, (2,)] and type(state["a"][0]) is float
    assert state["b"].equal(torch.zeros(2, dtype=torch.float64))
    assert state["c"].untyped_storage().nbytes() == 8
    with pytest.raises(TypeError, match=naming("checkpoint.scheduler.inner", "Bomb")):
        plain({"scheduler": {"inner": Bomb("x")}})


def test_saving_leaves_the_callers_dict_alone(tmp_path):
    state = {"state_dict": {"module.weight": torch.ones(1)}, "epoch": 3}
    save_checkpoint(state, str(tmp_path))
    assert list(state["state_dict"]) == ["module.weight"]


def test_pretrained_weights_are_counted_and_may_not_be_something_else(tmp_path):
    model = nn.Linear(2, 3)
    torch.save({"state_dict": {"module.weight": torch.ones(3, 2), "bias": torch.ones(4)}}, tmp_path / "weights")
    assert load_pretrained_weights(model, tmp_path / "weights") == 1
    torch.save({"state_dict": [1]}, tmp_path / "weights")
    with pytest.raises(UnreadableCheckpoint, match="weights"):
        load_pretrained_weights(model, tmp_path / "weights")
