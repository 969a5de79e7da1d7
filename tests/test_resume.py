"""Resuming within an epoch: an interrupted run ends exactly as an uninterrupted one."""
import gc
from pathlib import Path

import pytest
import torch
from outcomes import assert_equal, outcome

from p2c.engine.checkpoint import CannotResume
from p2c.engine.data import end_workers
from p2c.engine.results import read_results
from p2c.engine.trainer import Stopped
from p2c.trainers.base import PromptTrainer

BEST_VAL = ("TEST.FINAL_MODEL", "best_val")
AUGMENTED = ("INPUT.TRANSFORMS", ("random_resized_crop", "random_flip", "normalize"))
SMALL = ("DATALOADER.TRAIN_X.BATCH_SIZE", 2, "TRAIN.PRINT_FREQ", 3, *AUGMENTED)  # 8 batches an epoch


class Killed(BaseException):
    """End a run where it is, with its files as SIGKILL would leave them."""


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def before_step(monkeypatch):
    """before_step(function): call it with the trainer before each step; None: undo."""
    step, act = PromptTrainer.forward_backward, [None]

    def forward_backward(self, batch):
        if act[0] is not None:
            act[0](self)
        return step(self, batch)

    monkeypatch.setattr(PromptTrainer, "forward_backward", forward_backward)
    return lambda function: act.__setitem__(0, function)


def killed_at(*places):
    """Raise at each (epoch, batch), once."""
    places = list(places)

    def act(trainer):
        if places and (trainer.epoch, trainer.batch_idx) == places[0]:
            places.pop(0)
            raise Killed
    return act


def averages(text):
    """The parts of the progress lines that are no times."""
    lines = [line.split(" time ")[0] + line[line.index(" loss "):line.index(" eta ")]
             for line in text.splitlines() if line.startswith("epoch [")]
    return {line.split(" loss ")[0]: line for line in lines}


def train_through(make_trainer, name, options, out):
    """Restart a run until it finishes; returns how often it was killed."""
    for kills in range(10):
        trainer = make_trainer(name, *options, out=out)
        try:
            trainer.train()
            return kills
        except Killed:
            end_workers(trainer.train_loader_x)
        del trainer
        gc.collect()  # its open files hand over what they hold now, and not when the next run has begun
    raise AssertionError("never ends")


@pytest.mark.parametrize("name, options", [
    ("P2C", ("DATALOADER.NUM_WORKERS", 0)),
    ("P2C", ("DATALOADER.NUM_WORKERS", 2, "TEST.FINAL_MODEL", "best_val")),
    ("CoCoOp", ("DATALOADER.NUM_WORKERS", 0, "OPTIM.NAME", "adam")),
    ("PromptSRC", ("DATALOADER.NUM_WORKERS", 0, "TEST.FINAL_MODEL", "best_val", "TRAIN.CHECKPOINT_FREQ", 1)),
])
def test_a_run_killed_inside_epochs_ends_as_the_undisturbed_one(
        make_trainer, before_step, tmp_path, capsys, name, options):
    options = (*SMALL, "TRAIN.CHECKPOINT_STEPS", 3, *options)
    whole = make_trainer(name, *options, out="whole")
    whole.train()
    told = averages(capsys.readouterr().out)
    before_step(killed_at((0, 1), (0, 5), (1, 2), (1, 6)))
    assert train_through(make_trainer, name, options, "cut") == 4
    assert_equal(outcome(tmp_path / "cut"), outcome(tmp_path / "whole"))
    assert averages(capsys.readouterr().out) == told and len(told) == 4


def stop_at(place):
    """Request a stop before a step, as a signal would."""
    def act(trainer):
        if (trainer.epoch, trainer.batch_idx) == place:
            assert trainer.ask_to_stop()
    return act


@pytest.fixture(scope="module")
def undisturbed():
    """The outcome of the undisturbed run of the next test, shared by its cases."""
    return {}


@pytest.mark.parametrize("place", [(0, 0), (0, 7), (1, 3), (1, 7)])
def test_a_run_that_is_asked_to_stop_saves_after_the_step_and_goes_on_there(
        make_trainer, before_step, tmp_path, undisturbed, place):
    options = (*SMALL, *BEST_VAL)
    seen = []
    if not undisturbed:
        whole = make_trainer("PromptSRC", *options, out="whole")
        whole.train()
        undisturbed.update(outcome(tmp_path / "whole"))
    before_step(stop_at(place))
    with pytest.raises(Stopped, match=rf"Stopped after epoch \[{place[0] + 1}/2\] batch \[{place[1] + 1}/8\]"):
        make_trainer("PromptSRC", *options, out="cut").train()
    before_step(lambda trainer: seen.append((trainer.epoch, trainer.batch_idx)))
    again = make_trainer("PromptSRC", *options, out="cut")
    again.train()
    assert seen == [(epoch, batch) for epoch in range(2) for batch in range(8)][place[0] * 8 + place[1] + 1:]
    assert_equal(outcome(tmp_path / "cut"), undisturbed)


def test_a_stop_during_the_evaluation_between_epochs_is_heeded_after_it(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer("P2C", *SMALL, *BEST_VAL)
    test = trainer.test
    monkeypatch.setattr(trainer, "test", lambda split=None: trainer.ask_to_stop() and test(split))
    with pytest.raises(Stopped, match=r"Stopped after epoch \[1/2\]$"):
        trainer.train()
    again = make_trainer("P2C", *SMALL, *BEST_VAL)
    again.train()
    assert (again.start_epoch, again.start_batch) == (1, 0) and not again.ask_to_stop()


def test_skipped_images_are_not_read(make_trainer, before_step, monkeypatch):
    from p2c.engine import data

    options = (*SMALL, "TRAIN.CHECKPOINT_STEPS", 1, "OPTIM.MAX_EPOCH", 1)
    before_step(killed_at((0, 6)))
    with pytest.raises(Killed):
        make_trainer("CoOp", *options).train()
    again, read, read_image = make_trainer("CoOp", *options), [], data.read_image
    monkeypatch.setattr(data, "read_image", lambda path, *options: "/images/" in path and "_train_" in path
                        and read.append(path) or read_image(path, *options))
    again.train()
    assert len(read) == 4


def test_a_damaged_position_falls_back_to_the_epoch_before(make_trainer, before_step, tmp_path, capsys):
    options = (*SMALL, "TRAIN.CHECKPOINT_STEPS", 3, "TRAIN.CHECKPOINT_FREQ", 1)
    make_trainer("P2C", *options, out="whole").train()
    before_step(killed_at((1, 5)))
    with pytest.raises(Killed):
        make_trainer("P2C", *options, out="cut").train()
    path = tmp_path / "cut" / "MultiModalPromptLearner" / "resume.pth.tar"
    path.write_bytes(path.read_bytes()[:1000])
    again = make_trainer("P2C", *options, out="cut")
    again.train()
    assert (again.start_epoch, again.start_batch) == (1, 0)
    assert f'Unable to load checkpoint from "{path}"' in capsys.readouterr().out
    assert_equal(*(outcome(tmp_path / run) for run in ("cut", "whole")))


def test_a_position_that_a_checkpoint_has_superseded_is_not_used(make_trainer, before_step, tmp_path):
    options = (*SMALL, "TRAIN.CHECKPOINT_STEPS", 3, "TRAIN.CHECKPOINT_FREQ", 1)
    before_step(killed_at((0, 5)))
    with pytest.raises(Killed):
        make_trainer("P2C", *options).train()
    path = tmp_path / "run" / "MultiModalPromptLearner" / "resume.pth.tar"
    stale = path.read_bytes()
    make_trainer("P2C", *options).train()
    assert not path.exists()
    path.write_bytes(stale)
    again = make_trainer("P2C", *options)
    again.train()
    assert (again.start_epoch, again.start_batch) == (2, 0)


def test_a_run_killed_between_the_best_and_the_last_checkpoint_has_both_in_the_end(make_trainer, tmp_path, monkeypatch):
    options = (*SMALL, *BEST_VAL, "TRAIN.CHECKPOINT_FREQ", 1, "OPTIM.MAX_EPOCH", 1)
    make_trainer("P2C", *options, out="whole").train()
    trainer = make_trainer("P2C", *options, out="cut")
    save = trainer.save_model

    def only_best(*args, model_name="", **kwargs):
        if not model_name:
            raise Killed
        save(*args, model_name=model_name, **kwargs)

    monkeypatch.setattr(trainer, "save_model", only_best)
    with pytest.raises(Killed):
        trainer.train()
    make_trainer("P2C", *options, out="cut").train()
    assert_equal(*(outcome(tmp_path / run) for run in ("cut", "whole")))


def test_trainers_with_other_generators_say_that_they_resume_at_whole_epochs(tiny_trainer, capsys):
    trainer = tiny_trainer()
    trainer.cfg.defrost()
    trainer.cfg.TRAIN.CHECKPOINT_STEPS = 5
    trainer.open_run(trainer.cfg)
    assert "TRAIN.CHECKPOINT_STEPS has no effect" in capsys.readouterr().out
    trainer.train()
    assert not (Path(trainer.output_dir) / "prompt_learner" / "resume.pth.tar").exists() and not trainer.ask_to_stop()


# Another configuration


def test_resuming_anyway_takes_the_new_settings_and_is_recorded(make_trainer, before_step, tmp_path, capsys):
    options = (*SMALL, "TRAIN.CHECKPOINT_STEPS", 3)
    before_step(killed_at((0, 5)))
    with pytest.raises(Killed):
        make_trainer("P2C", *options).train()
    changed = (*options, "OPTIM.WEIGHT_DECAY", 0.1, "OPTIM.LR", 0.01)
    with pytest.raises(CannotResume, match="OPTIM.LR was 0.0035, is 0.01; OPTIM.WEIGHT_DECAY was 0.0005, is 0.1"):
        make_trainer("P2C", *changed).train()
    again = make_trainer("P2C", *changed)
    again.resume_anyway = True
    again.train()
    assert again.start_batch == 3 and again.optim.param_groups[0]["weight_decay"] == 0.1
    words = "OPTIM.LR was 0.0035, is 0.01; OPTIM.WEIGHT_DECAY was 0.0005, is 0.1"
    assert read_results(str(tmp_path / "run"))["resumed_anyway"] == [words]
    assert f"Resuming from {tmp_path / 'run'} anyway: {words}\n" in capsys.readouterr().out


def test_weights_that_do_not_fit_are_refused_anyway(make_trainer, before_step):
    before_step(killed_at((0, 5)))
    with pytest.raises(Killed):
        make_trainer("P2C", *SMALL, "TRAIN.CHECKPOINT_STEPS", 3).train()
    for pairs in (("TRAINER.P2C.N_CTX", 3), ("OPTIM.NAME", "adam"), ("DATALOADER.TRAIN_X.BATCH_SIZE", 4)):
        again = make_trainer("P2C", *SMALL, *pairs)
        again.resume_anyway = True
        with pytest.raises(CannotResume):
            again.train()


@pytest.mark.parametrize("name, pairs, free", [
    ("MaPLe", ("OPTIM.LR_SCHEDULER", "single_step"), True),
    ("P2C", ("OPTIM.LR_SCHEDULER", "single_step", "TRAINER.PROMPT_DENOISING.SCHEDULE", "constant"), True),
    ("P2C", ("OPTIM.LR_SCHEDULER", "single_step"), False),
    ("MaPLe", ("OPTIM.LR_SCHEDULER", "cosine"), False),
    ("PromptSRC", ("OPTIM.LR_SCHEDULER", "single_step"), False),
])
def test_more_epochs_are_allowed_where_nothing_depends_on_their_number(make_trainer, tmp_path, name, pairs, free):
    options = ("DATALOADER.TRAIN_X.BATCH_SIZE", 4, *pairs)
    make_trainer(name, *options, "OPTIM.MAX_EPOCH", 1).train()
    longer = make_trainer(name, *options)
    if not free:
        with pytest.raises(CannotResume, match="OPTIM.MAX_EPOCH was 1, is 2"):
            longer.train()
        return
    longer.train()
    make_trainer(name, *options, out="whole").train()
    states = [torch.load(tmp_path / run / longer.learner_name / "model.pth.tar-2")["state_dict"]
              for run in ("run", "whole")]
    assert_equal(*states)
    with pytest.raises(CannotResume, match="OPTIM.MAX_EPOCH was 2, is 1"):
        make_trainer(name, *options, "OPTIM.MAX_EPOCH", 1).train()
