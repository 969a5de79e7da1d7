"""The contract of an engine: training, and the checkpoints that it leaves and resumes from."""
import contextlib
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from contract import available, dassl_fails
from engine_fixtures import BEST_VAL, MAPLE_RATES, Pooled, rates, tiny_config, tiny_engine
from messages import naming
from torch import nn

# Training

NUMBER = r"\d+\.\d{4} \(\d+\.\d{4}\)"
PROGRESS = re.compile(
    r"epoch \[\d+/\d+\] batch \[\d+/\d+\] time \d+\.\d{3} \(\d+\.\d{3}\) data \d+\.\d{3} \(\d+\.\d{3}\) "
    rf"loss {NUMBER} acc {NUMBER} lr \d\.\d{{4}}e[+-]\d\d eta \d+:\d\d:\d\d"
)


def progress_lines(out):
    return [line for line in out.splitlines() if line.startswith("epoch [")]


def narrator(engine):
    """A trainer that notes the calls that the engine makes."""
    class Narrator(engine.TinyTrainer):
        def __init__(self, cfg):
            self.calls = []
            super().__init__(cfg)

        def note(self, name):
            self.calls.append((name, getattr(self, "epoch", None)))

        def check_cfg(self, cfg):
            assert not hasattr(self, "cfg")
            self.note("check_cfg")

        def build_data_loader(self):
            self.note("build_data_loader")
            super().build_data_loader()

        def build_model(self):
            self.note("build_model")
            super().build_model()

        def before_train(self):
            self.note("before_train")
            super().before_train()

        def before_epoch(self):
            self.note("before_epoch")

        def run_epoch(self):
            self.note("run_epoch")
            super().run_epoch()

        def after_epoch(self):
            self.note("after_epoch")
            super().after_epoch()

        def after_train(self):
            self.note("after_train")
            super().after_train()

        def test(self, split=None):
            self.note(f"test {split}")
            return super().test(split)
    return Narrator


def test_order_of_construction(engine, tiny_trainer, monkeypatch):
    """Check 24."""
    order, build_evaluator = [], engine.build_evaluator
    kind = narrator(engine)
    monkeypatch.setattr(kind, "note", lambda self, name: order.append(name))
    monkeypatch.setitem(
        engine.SimpleTrainer.__init__.__globals__, "build_evaluator",
        lambda cfg, **kwargs: order.extend(["evaluator", kwargs]) or build_evaluator(cfg, **kwargs),
    )
    trainer = tiny_trainer(kind=kind)
    lab2cname = trainer.dm.dataset.lab2cname
    assert order == ["check_cfg", "build_data_loader", "build_model", "evaluator", {"lab2cname": lab2cname}]
    assert trainer.best_result == -float("inf")
    assert (trainer.start_epoch, trainer.epoch, trainer.max_epoch) == (0, 0, 5)
    assert trainer.device == torch.device("cpu") and trainer.output_dir == trainer.cfg.OUTPUT_DIR
    assert trainer.num_classes == 6 and trainer.num_source_domains == 0 and trainer.train_loader_u is None
    assert len(trainer.train_loader_x) == 12 and len(trainer.val_loader) == len(trainer.test_loader) == 3


def test_order_of_hooks_and_batches(engine, tiny_trainer):
    """Check 25."""
    trainer = tiny_trainer("OPTIM.MAX_EPOCH", 2, kind=narrator(engine))
    trainer.calls.clear()
    trainer.train()
    assert trainer.calls == [
        ("before_train", 0), ("before_epoch", 0), ("run_epoch", 0), ("after_epoch", 0), ("before_epoch", 1),
        ("run_epoch", 1), ("after_epoch", 1), ("after_train", 1), ("test None", 1),
    ]
    assert trainer.num_batches == 12
    assert [(epoch, batch) for epoch, batch, _, _ in trainer.seen] == [(e, b) for e in range(2) for b in range(12)]
    first, second = ([i for epoch, _, _, indices in trainer.seen if epoch == e for i in indices] for e in range(2))
    assert sorted(first) == sorted(second) == list(range(72)) and first != second


def test_rates_during_training(tiny_trainer, capsys):
    """Check 26."""
    trainer = tiny_trainer("TRAIN.PRINT_FREQ", 12)
    trainer.train()
    assert rates(trainer) == pytest.approx(MAPLE_RATES, rel=1e-9)
    assert "lr 3.5000e-03" in progress_lines(capsys.readouterr().out)[0]


@pytest.mark.parametrize("freq, batches", [(5, [5, 10]), (20, list(range(1, 13))), (12, [12])])
def test_progress_lines(tiny_trainer, capsys, freq, batches):
    """Check 27."""
    tiny_trainer("TRAIN.PRINT_FREQ", freq, "OPTIM.MAX_EPOCH", 1).train()
    lines = progress_lines(capsys.readouterr().out)
    assert [int(re.search(r"batch \[(\d+)/12\]", line)[1]) for line in lines] == batches
    assert all(PROGRESS.fullmatch(line) for line in lines)


def test_progress_lines_average_every_batch(engine, tiny_trainer, capsys):
    """A line shows the last batch's loss and the mean over all batches of the epoch so far."""
    losses = []

    class Listening(engine.TinyTrainer):
        def forward_backward(self, batch):
            summary = super().forward_backward(batch)
            losses.append(summary["loss"].item())
            return summary

    tiny_trainer("OPTIM.MAX_EPOCH", 1, kind=Listening).train()
    line = progress_lines(capsys.readouterr().out)[1]
    assert f"loss {losses[9]:.4f} ({sum(losses[:10]) / 10:.4f})" in line


def test_every_number_becomes_a_curve(engine, tiny_trainer, monkeypatch):
    points = {}
    monkeypatch.setattr(engine.TrainerBase, "write_scalar",
                        lambda self, tag, value, step: points.update({(tag, step): value}))
    trainer = tiny_trainer("OPTIM.MAX_EPOCH", 2)
    trainer.train()
    steps = range(24)
    assert {key for key in points if key[0].startswith("train/")} == {
        (f"train/{name}", step) for name in ("loss", "acc", "lr") for step in steps
    }
    assert points["train/lr", 10] == 1e-5 and points["train/lr", 11] == pytest.approx(0.0035)
    assert points["test/accuracy", 1] == trainer.test()


def test_lines_at_the_end_of_a_run(tiny_trainer, capsys):
    """Check 28."""
    tiny_trainer("OPTIM.MAX_EPOCH", 2).train()
    out = capsys.readouterr().out
    assert out.count("Evaluate on") == 1
    landmarks = [
        "Finish training\n", "Deploy the last-epoch model\n", "Evaluate on the *test* set\n", "=> result\n",
        "Elapsed: 0:0",
    ]
    positions = [out.index(landmark) for landmark in landmarks]
    assert positions == sorted(positions)


def best_file(trainer):
    return torch.load(f"{trainer.output_dir}/prompt_learner/model-best.pth.tar")


def test_best_model_on_validation_data_is_deployed(engine, tiny_trainer, capsys):
    """Check 29."""
    results, saved = iter([50.0, 60.0, 60.0, 70.0, 65.0]), []

    class Scripted(engine.TinyTrainer):
        def test(self, split=None):
            result = super().test(split)
            return next(results) if split == "val" else result

        def save_model(self, epoch, *args, **kwargs):
            saved.append((epoch, kwargs))
            super().save_model(epoch, *args, **kwargs)

    trainer = tiny_trainer("TEST.FINAL_MODEL", "best_val", kind=Scripted)
    trainer.train()
    out = capsys.readouterr().out
    assert out.count("Evaluate on the *val* set") == 5
    assert [(epoch, kwargs["val_result"]) for epoch, kwargs in saved if kwargs] == [(0, 50.0), (1, 60.0), (3, 70.0)]
    best = best_file(trainer)
    assert (best["epoch"], best["val_result"]) == (4, 70.0)
    assert trainer.model.linear.weight.equal(best["state_dict"]["linear.weight"])
    loaded = f"Load {trainer.output_dir}/prompt_learner/model-best.pth.tar to prompt_learner (epoch=4, val_result=70.0)"
    assert out.index("Deploy the model with the best val performance") < out.index(loaded) < out.index("*test* set")


def test_val_result_is_the_accuracy_before_rounding(tiny_trainer, capsys):
    """Check 29."""
    trainer = tiny_trainer("TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 1)
    trainer.train()
    printed = float(re.search(r"\* accuracy: ([\d.]+)%", capsys.readouterr().out)[1])
    value = best_file(trainer)["val_result"]
    assert round(value, 1) == printed and value * 24 / 100 == pytest.approx(round(value * 24 / 100))


def test_without_validation_data_dassl_takes_the_test_data_and_this_engine_refuses(engine, tiny_trainer, capsys):
    """Check 29; the engines differ on purpose: a model chosen on test images is no result."""
    trainer = tiny_trainer("DATASET.NAME", "TinyDataWithoutVal", "TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 1)
    if engine.name == "dassl":
        trainer.train()
        out = capsys.readouterr().out
        assert out.count("Evaluate on the *test* set") == 2 and "*val*" not in out
        return
    with pytest.raises(ValueError, match=naming("TEST.FINAL_MODEL best_val", "TinyDataWithoutVal", "validation")):
        trainer.train()
    assert not Path(trainer.output_dir).exists()
    with pytest.raises(ValueError, match=naming("TinyDataWithoutVal", "validation")):
        trainer.test(split="val")
    with pytest.raises(ValueError, match=naming("TEST.SPLIT val", "TEST.SPLIT test")):
        tiny_trainer("DATASET.NAME", "TinyDataWithoutVal", "TEST.SPLIT", "val")


def test_no_test_means_no_evaluation(tiny_trainer, tmp_path, capsys):
    """Check 30."""
    tiny_trainer("TEST.NO_TEST", True, "TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 1).train()
    assert "Evaluate" not in capsys.readouterr().out
    assert not (tmp_path / "run/prompt_learner/model-best.pth.tar").exists()


def untrained(engine):
    class Untrained(engine.TrainerX):
        def build_model(self):
            self.model = Pooled(self.num_classes)
    return Untrained


def test_a_trainer_without_models_can_be_tested(engine, tiny_trainer, capsys):
    """Check 34."""
    accuracy = tiny_trainer(kind=untrained(engine)).test()
    assert f"* accuracy: {accuracy:.1f}%" in capsys.readouterr().out


@dassl_fails("F11: training without a registered model uses a variable that nothing has set", UnboundLocalError)
def test_training_without_models_only_tests(engine, tiny_trainer, capsys):
    """Check 34."""
    tiny_trainer(kind=untrained(engine)).train()
    assert capsys.readouterr().out.count("Evaluate on the *test* set") == 1


def test_a_loss_that_is_not_finite_ends_the_run(engine, tiny_trainer):
    """Check 37."""
    class Breaking(engine.TinyTrainer):
        def model_backward_and_update(self, loss, names=None):
            super().model_backward_and_update(loss * (torch.nan if self.batch_idx == 2 else 1), names)

    trainer = tiny_trainer(kind=Breaking)
    with pytest.raises(FloatingPointError, match="Loss is infinite or NaN!"):
        trainer.train()
    assert (trainer.epoch, trainer.batch_idx) == (0, 2)


G13 = "G13: an evaluation draws from the generator that training draws from"


@dassl_fails(G13, AssertionError)
def test_evaluations_do_not_change_training(tiny_trainer, tmp_path):
    one = tiny_trainer(output_dir=tmp_path / "one")
    one.train()
    other = tiny_trainer("TEST.FINAL_MODEL", "best_val", "DATALOADER.NUM_WORKERS", 1, output_dir=tmp_path / "other")
    other.train()
    assert one.seen == other.seen
    last = [torch.load(f"{t.output_dir}/prompt_learner/model.pth.tar-5")["state_dict"] for t in (one, other)]
    assert all(last[0][name].equal(last[1][name]) for name in last[0])


@dassl_fails(G13, AssertionError)
@pytest.mark.parametrize("workers", [0, 1])
def test_an_evaluation_leaves_the_global_generators_alone(engine, tiny_trainer, workers):
    class Drawing(engine.TinyTrainer):
        def model_inference(self, image):
            return self.model(image + torch.rand(image.shape))

    trainer = tiny_trainer("DATALOADER.NUM_WORKERS", workers, kind=Drawing)
    state = torch.get_rng_state()
    trainer.test()
    assert torch.get_rng_state().equal(state)


class FixedPrompts(nn.Module):
    """Class features that are expensive, hence kept while the prompts cannot change."""

    def __init__(self, num_classes):
        super().__init__()
        self.context = nn.Parameter(torch.zeros(num_classes, 48))
        self.encoded, self.kept = 0, None

    def train(self, mode=True):
        self.kept = None
        return super().train(mode)

    def forward(self, image):
        if self.training or self.kept is None:
            self.encoded += 1
            self.kept = self.context * 1
        return nn.functional.adaptive_avg_pool2d(image, 4).flatten(1) @ self.kept.T


def test_modes_tell_when_prompts_are_fixed(engine, tiny_trainer):
    """Check 39: one encoding per test, and a new one after training."""
    class Keeping(engine.TinyTrainer):
        def build_model(self):
            super().build_model()
            self.model = FixedPrompts(self.num_classes)
            self.optim = engine.build_optimizer(self.model, self.cfg.OPTIM)
            self._models["prompt_learner"], self._optims["prompt_learner"] = self.model, self.optim
            self._scheds["prompt_learner"] = None

    trainer = tiny_trainer("OPTIM.MAX_EPOCH", 1, kind=Keeping)
    first = trainer.test()
    assert trainer.model.encoded == 1
    trainer.train()
    assert trainer.model.encoded == 1 + 12 + 1
    assert trainer.test() != first


def test_registering_models(engine):
    class Bare(engine.TrainerBase):
        def __init__(self):
            pass

    with pytest.raises(AttributeError, match="super"):
        Bare().register_model("a")
    trainer = engine.TrainerBase()
    model = nn.Linear(1, 1)
    trainer.register_model("a", model)
    with pytest.raises(AssertionError, match="Found duplicate model names"):
        trainer.register_model("a", model)
    with pytest.raises(AssertionError):
        trainer.get_model_names("b")
    with pytest.raises(KeyError):
        trainer.set_model_mode("trian")
    trainer.set_model_mode("test")
    assert not model.training


@pytest.mark.parametrize("count, batches", [("train_x", 4), ("train_u", 12), ("smaller_one", 4)])
def test_unlabeled_data_beside_labeled(engine, tiny_trainer, count, batches):
    class TinySemiSupervised(engine.TrainerXU):
        build_model = engine.TinyTrainer.build_model

        def forward_backward(self, batch_x, batch_u):
            self.seen.append((batch_x["index"].tolist(), batch_u["index"].tolist()))
            image, label, unlabeled = self.parse_batch_train(batch_x, batch_u)
            loss = nn.functional.cross_entropy(self.model(image), label)
            self.model_backward_and_update(loss)
            return {"loss": loss, "unlabeled": unlabeled.mean()}

    trainer = tiny_trainer("DATASET.NAME", "TinyUnlabeled", "TRAIN.COUNT_ITER", count, "OPTIM.MAX_EPOCH", 1,
                           kind=TinySemiSupervised)
    trainer.train()
    assert len(trainer.seen) == batches
    if count == "train_u":
        passes = [sum((x for x, _ in trainer.seen[first:first + 4]), []) for first in (0, 4, 8)]
        assert all(sorted(order) == list(range(24)) for order in passes)
        assert passes[0] != passes[1] != passes[2]
        assert sorted(sum((u for _, u in trainer.seen), [])) == list(range(72))


def test_both_engines_train_alike(tiny_root, tmp_path):
    """Check 50: on the same batches from the same start, the same losses, rates and accuracy."""
    batches, runs = None, []
    for name in ("p2c", "dassl"):
        engine = available(name)

        class Recording(engine.TinyTrainer):
            def before_epoch(self):
                torch.manual_seed(self.epoch)  # for the noise that the trainer adds

            def forward_backward(self, batch):
                summary = super().forward_backward(batch)
                self.losses.append(summary["loss"].item())
                return summary

        cfg = tiny_config(tiny_root, tmp_path / name, engine=engine)
        engine.set_random_seed(cfg.SEED)
        trainer = Recording(cfg)
        trainer.losses = []
        batches = trainer.train_loader_x = batches or list(trainer.train_loader_x)
        trainer.train()
        runs.append((trainer.losses, trainer.seen, trainer.test(), trainer.model.linear.weight.tolist()))
    assert len(runs[0][0]) == 60 and runs[0] == runs[1]


# Checkpoints


def test_files_of_a_run(tiny_trainer):
    """Check 31."""
    trainer = tiny_trainer("TRAIN.CHECKPOINT_FREQ", 2)
    trainer.train()
    folder = Path(trainer.output_dir, "prompt_learner")
    names = {path.name for path in folder.iterdir()}
    assert names == {"checkpoint", "model.pth.tar-2", "model.pth.tar-4", "model.pth.tar-5"}
    assert (folder / "checkpoint").read_text() == "model.pth.tar-5\n"
    for epoch in (2, 4, 5):
        checkpoint = torch.load(folder / f"model.pth.tar-{epoch}")
        assert {"state_dict", "epoch", "optimizer", "scheduler", "val_result"} <= set(checkpoint)
        assert checkpoint["epoch"] == epoch and checkpoint["val_result"] is None


class Interrupted(Exception):
    pass


class Counting:
    """A loss scaler's interface."""

    steps = 0

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


@functools.cache
def stopping(engine_name):
    """A trainer that can be interrupted before an epoch, and keeps a count of batches and a loss scaler."""
    class Stopping(tiny_engine(engine_name).TinyTrainer):
        stops_before = None

        def build_model(self):
            super().build_model()
            self.batches_seen = 0
            self.scaler = Counting()

        def before_epoch(self):
            if self.epoch == self.stops_before:
                raise Interrupted

        def forward_backward(self, batch):
            self.batches_seen += 1
            self.scaler.steps += 1
            return super().forward_backward(batch)

        def extra_state(self):
            return {"batches_seen": torch.tensor(self.batches_seen)}

        def load_extra_state(self, state):
            self.batches_seen = int(state["batches_seen"])
    return Stopping


def train_stopping(engine_name, root, output_dir, workers, stops_before=None):
    """What a run, interrupted or not, has seen from the third epoch on and what it ends with; numbers in full."""
    engine = tiny_engine(engine_name)
    cfg = tiny_config(root, output_dir, *BEST_VAL, "DATALOADER.NUM_WORKERS", workers, engine=engine)
    engine.set_random_seed(cfg.SEED)
    trainer = stopping(engine_name)(cfg)
    trainer.stops_before = stops_before
    with contextlib.suppress(Interrupted):
        trainer.train()
    return {
        "weights": [value.double().tolist() for value in trainer.model.state_dict().values()],
        "momentum": [state["momentum_buffer"].tolist() for state in trainer.optim.state_dict()["state"].values()],
        "order": [indices for epoch, _, _, indices in trainer.seen if epoch >= 2],
        "rates": rates(trainer)[-3:],
        "best": trainer.best_result,
        "accuracy": trainer.test(),
        "batches": [trainer.batches_seen, trainer.scaler.steps],
    }


RESUME = """
import json, sys
name, root, folder, *paths = sys.argv[1:]
if name == "p2c":
    for missing in ("wilds", "pandas", "gdown"):
        sys.modules[missing] = None  # must not be needed
sys.path[:0] = paths
import torch
torch.set_num_threads(1)
from p2c.engine import setup_logger
from test_contract_training import train_stopping
setup_logger()
for workers in (0, 2):
    print("SUMMARY", json.dumps(train_stopping(name, root, f"{folder}/{workers}", workers)))
"""


@pytest.fixture(scope="session")
def resumed(engine, tiny_root, tmp_path_factory):
    """An uninterrupted run, and two that were stopped after epoch 2 of 5 and resumed in a new process."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(f"resumed_{engine.name}")
    whole = train_stopping(engine.name, tiny_root, folder / "whole", 0)
    for workers in (0, 2):
        train_stopping(engine.name, tiny_root, folder / str(workers), workers, stops_before=2)
    here = Path(__file__).parent
    process = subprocess.run(
        [sys.executable, "-c", RESUME, engine.name, tiny_root, str(folder), str(here), str(here.parent)],
        capture_output=True, text=True, timeout=120,
    )
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert lines.count("Previous epoch: 2") == 2
    runs = [json.loads(line.removeprefix("SUMMARY ")) for line in lines if line.startswith("SUMMARY ")]
    assert len(runs) == 2
    return json.loads(json.dumps(whole)), runs


def test_a_resumed_run_goes_on_at_the_rates_of_the_schedule(resumed):
    """Check 32."""
    whole, runs = resumed
    for run in (whole, *runs):
        assert run["rates"] == pytest.approx([0.0031657797, 0.0022907797, 0.0012092203], abs=1e-10)


@dassl_fails("G1: a resumed run has other random numbers and forgets what the trainer keeps", AssertionError)
def test_a_resumed_run_equals_the_uninterrupted_one(resumed):
    """Checks 32 and 48: in a new process, with 0 and 2 workers, bit for bit."""
    whole, runs = resumed
    for run in runs:
        assert run == whole


@dassl_fails("G2: a resumed run has forgotten the best result", AssertionError)
def test_a_resumed_run_knows_the_best_result(tiny_trainer):
    first, again = (tiny_trainer(*BEST_VAL, "OPTIM.MAX_EPOCH", 1) for _ in range(2))
    first.train()
    again.train()
    assert again.seen == [] and again.best_result == first.best_result


def test_a_finished_run_is_only_tested_again(tiny_trainer, capsys):
    """Check 33."""
    first = tiny_trainer()
    first.train()
    accuracy = first.test()
    capsys.readouterr()
    again = tiny_trainer()
    again.train()
    out = capsys.readouterr().out
    assert again.seen == [] and again.epoch == 0 and again.test() == accuracy
    assert out.count("Evaluate on") == 1 and f"Found checkpoint at {first.output_dir} (will resume training)" in out


@dassl_fails("G3: resuming from a folder that does not exist silently trains from scratch", pytest.fail.Exception)
def test_resume_needs_a_folder_that_exists(tiny_trainer, tmp_path):
    """Check 33."""
    with pytest.raises(FileNotFoundError, match="nowhere"):
        tiny_trainer("RESUME", str(tmp_path / "nowhere"), "OPTIM.MAX_EPOCH", 1).train()


def test_resume_needs_the_file_that_names_the_newest_checkpoint(tiny_trainer, tmp_path):
    """Check 33."""
    (tmp_path / "run/prompt_learner").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="run/prompt_learner/checkpoint"):
        tiny_trainer().train()


def test_the_weights_of_no_folder_of_the_best_epoch_and_of_none(tiny_trainer, tmp_path, capsys):
    """Check 35."""
    trainer = tiny_trainer(*BEST_VAL, "OPTIM.MAX_EPOCH", 1)
    trainer.train()
    fresh = tiny_trainer(output_dir=tmp_path / "fresh")
    torch.nn.init.zeros_(fresh.model.linear.weight)
    capsys.readouterr()
    fresh.load_model("")
    assert "Note that load_model() is skipped as no pretrained model is given" in capsys.readouterr().out
    assert not fresh.model.linear.weight.any()
    fresh.load_model(trainer.output_dir)
    assert fresh.model.linear.weight.equal(trainer.model.linear.weight)
    with pytest.raises(FileNotFoundError, match="model.pth.tar-3"):
        fresh.load_model(trainer.output_dir, epoch=3)
    state = {"state_dict": {"ctx": torch.zeros(2)}, "epoch": 3, "val_result": 1.0}
    torch.save(state, f"{trainer.output_dir}/prompt_learner/model.pth.tar-3")
    with pytest.raises((ValueError, RuntimeError), match="(?s)linear.weight.*ctx"):
        fresh.load_model(trainer.output_dir, epoch=3)


@dassl_fails("F10: loading the weights of an epoch formats their val_result, which is None", TypeError)
def test_the_weights_of_an_epoch(tiny_trainer, tmp_path, capsys):
    """Check 35."""
    trainer = tiny_trainer("TRAIN.CHECKPOINT_FREQ", 2)
    trainer.train()
    path = f"{trainer.output_dir}/prompt_learner/model.pth.tar-2"
    after_two = torch.load(path)
    fresh = tiny_trainer(output_dir=tmp_path / "fresh")
    fresh.load_model(trainer.output_dir, epoch=2)
    assert fresh.model.linear.weight.equal(after_two["state_dict"]["linear.weight"])
    assert f"Load {path} to prompt_learner (epoch=2)" in capsys.readouterr().out
    del after_two["val_result"]  # as before August 2022
    torch.save(after_two, path)
    fresh.load_model(trainer.output_dir, epoch=2)


def test_files_that_save_checkpoint_writes(engine, tmp_path):
    state = {"state_dict": {"module.weight": torch.ones(1)}, "epoch": 3}
    engine.save_checkpoint(state, str(tmp_path), is_best=True)
    for name in ("model.pth.tar-3", "model-best.pth.tar"):
        assert list(torch.load(tmp_path / name)["state_dict"]) == ["weight"]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "model.pth.tar-3", "model-best.pth.tar"}


def test_a_checkpoint_that_is_not_there(engine, tmp_path):
    with pytest.raises(ValueError, match="File path is None"):
        engine.load_checkpoint(None)
    with pytest.raises(FileNotFoundError, match='File is not found at ".*missing"'):
        engine.load_checkpoint(tmp_path / "missing")


def test_pretrained_weights_load_where_they_fit(engine, tmp_path, capsys):
    model = nn.Linear(2, 3)
    torch.save({"state_dict": {"module.weight": torch.ones(3, 2), "bias": torch.ones(4)}}, tmp_path / "weights")
    engine.load_pretrained_weights(model, tmp_path / "weights")
    assert model.weight.equal(torch.ones(3, 2))
    out = capsys.readouterr().out
    assert f"Successfully loaded pretrained weights from {tmp_path}/weights" in out
    assert "Layers discarded due to unmatched keys or size: ['bias']" in out
    torch.save({"other": torch.ones(1)}, tmp_path / "weights")
    with pytest.warns(UserWarning, match="check the key names manually"):
        engine.load_pretrained_weights(model, tmp_path / "weights")
