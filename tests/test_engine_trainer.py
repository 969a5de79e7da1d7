"""The training loop: order of calls, lines printed, evaluation, what is refused."""
import re

import pytest
import torch
from engine_fixtures import *  # noqa: F403 (its fixtures)
from engine_fixtures import Pooled, TinyTrainer, rates
from torch import nn

from p2c.engine import (
    DATASET_REGISTRY,
    TRAINER_REGISTRY,
    DatasetBase,
    SimpleNet,
    TrainerBase,
    TrainerX,
    TrainerXU,
    build_optimizer,
    read_json,
)
from p2c.engine import trainer as trainer_module

MAPLE_RATES = [1e-05, 0.0035, 0.0031657797401561582, 0.002290779740156158, 0.001209220259843842]

NUMBER = r"\d+\.\d{4} \(\d+\.\d{4}\)"
PROGRESS = re.compile(
    r"epoch \[\d+/\d+\] batch \[\d+/\d+\] time \d+\.\d{3} \(\d+\.\d{3}\) data \d+\.\d{3} \(\d+\.\d{3}\) "
    rf"loss {NUMBER} acc {NUMBER} lr \d\.\d{{4}}e[+-]\d\d eta \d+:\d\d:\d\d"
)


def progress_lines(out):
    return [line for line in out.splitlines() if line.startswith("epoch [")]


@TRAINER_REGISTRY.register()
class Narrator(TinyTrainer):
    """Notes the calls that the engine makes."""

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


def test_order_of_construction(tiny_trainer, monkeypatch):
    """Check 24."""
    order, build_evaluator = [], trainer_module.build_evaluator
    monkeypatch.setattr(Narrator, "note", lambda self, name: order.append(name))
    monkeypatch.setattr(
        trainer_module, "build_evaluator",
        lambda cfg, **kwargs: order.extend(["evaluator", kwargs]) or build_evaluator(cfg, **kwargs),
    )
    trainer = tiny_trainer("TRAINER.NAME", "Narrator")
    lab2cname = trainer.dm.dataset.lab2cname
    assert order == ["check_cfg", "build_data_loader", "build_model", "evaluator", {"lab2cname": lab2cname}]
    assert trainer.best_result == -float("inf")
    assert (trainer.start_epoch, trainer.epoch, trainer.max_epoch) == (0, 0, 5)
    assert trainer.device == torch.device("cpu") and trainer.output_dir == trainer.cfg.OUTPUT_DIR
    assert trainer.num_classes == 6 and trainer.num_source_domains == 0 and trainer.train_loader_u is None
    assert len(trainer.train_loader_x) == 12 and len(trainer.val_loader) == len(trainer.test_loader) == 3


def test_order_of_hooks_and_batches(tiny_trainer):
    """Check 25."""
    trainer = tiny_trainer("TRAINER.NAME", "Narrator", "OPTIM.MAX_EPOCH", 2)
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


def test_progress_lines_average_every_batch(tiny_trainer, capsys):
    """A line shows the last batch's loss and the mean over all batches of the epoch so far."""
    losses = []

    class Listening(TinyTrainer):
        def forward_backward(self, batch):
            summary = super().forward_backward(batch)
            losses.append(summary["loss"].item())
            return summary

    trainer = Listening(tiny_trainer().cfg)
    trainer.max_epoch = 1
    trainer.train()
    line = progress_lines(capsys.readouterr().out)[1]
    assert f"loss {losses[9]:.4f} ({sum(losses[:10]) / 10:.4f})" in line


def test_numbers_that_change_in_place_are_shown_as_they_were(tiny_trainer, capsys):
    class Reporting(TinyTrainer):
        def forward_backward(self, batch):
            bias = self.model.linear.bias[0]
            self.seen_bias.append(bias.item())
            return {"bias": bias, **super().forward_backward(batch)}

    trainer = Reporting(tiny_trainer("OPTIM.WARMUP_EPOCH", -1).cfg)
    trainer.seen_bias, trainer.max_epoch = [], 1
    trainer.train()
    after = [*trainer.seen_bias[1:6]]  # as each batch left it
    assert f"bias {after[-1]:.4f} ({sum(after) / 5:.4f})" in progress_lines(capsys.readouterr().out)[0]


def test_every_number_becomes_a_curve(tiny_trainer, monkeypatch):
    points = {}
    monkeypatch.setattr(TrainerBase, "write_scalar", lambda self, tag, value, step: points.update({(tag, step): value}))
    trainer = tiny_trainer("OPTIM.MAX_EPOCH", 2)
    trainer.train()
    steps = range(24)
    assert {key for key in points if key[0].startswith("train/")} == {
        (f"train/{name}", step) for name in ("loss", "acc", "lr") for step in steps
    }
    assert points["train/lr", 10] == 1e-5 and points["train/lr", 11] == pytest.approx(0.0035)
    assert points["test/accuracy", 1] == trainer.results["accuracy"]


def test_curves_are_optional(tiny_trainer, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    tiny_trainer("OPTIM.MAX_EPOCH", 1).train()
    assert "tensorboard is not installed" in capsys.readouterr().out


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


def test_best_model_on_validation_data_is_deployed(tiny_trainer, monkeypatch, capsys):
    """Check 29."""
    results = iter([50.0, 60.0, 60.0, 70.0, 65.0])
    saved, test = [], TinyTrainer.test

    def scripted(self, split=None):
        result = test(self, split)
        return next(results) if split == "val" else result

    monkeypatch.setattr(TinyTrainer, "test", scripted)
    save_model = TinyTrainer.save_model
    monkeypatch.setattr(
        TinyTrainer, "save_model",
        lambda self, epoch, *args, **kwargs: saved.append((epoch, kwargs)) or save_model(self, epoch, *args, **kwargs),
    )
    trainer = tiny_trainer("TEST.FINAL_MODEL", "best_val")
    trainer.train()
    out = capsys.readouterr().out
    assert out.count("Evaluate on the *val* set") == 5
    assert [(epoch, kwargs["val_result"]) for epoch, kwargs in saved if kwargs] == [(0, 50.0), (1, 60.0), (3, 70.0)]
    best = best_file(trainer)
    assert (best["epoch"], best["val_result"]) == (4, 70.0)
    assert trainer.model.linear.weight.equal(best["state_dict"]["linear.weight"])
    loaded = f"Load {trainer.output_dir}/prompt_learner/model-best.pth.tar to prompt_learner (epoch=4, val_result=70.0)"
    assert out.index("Deploy the model with the best val performance") < out.index(loaded) < out.index("*test* set")
    assert read_json(f"{trainer.output_dir}/results.json")["epoch"] == 4


def test_val_result_is_the_accuracy_before_rounding(tiny_trainer, capsys):
    """Check 29."""
    trainer = tiny_trainer("TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 1)
    trainer.train()
    printed = float(re.search(r"\* accuracy: ([\d.]+)%", capsys.readouterr().out)[1])
    value = best_file(trainer)["val_result"]
    assert round(value, 1) == printed and value * 24 / 100 == pytest.approx(round(value * 24 / 100))


def test_without_validation_data_the_test_data_are_used_and_named(tiny_trainer, capsys):
    """Check 29."""
    tiny_trainer("DATASET.NAME", "TinyDataWithoutVal", "TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 1).train()
    out = capsys.readouterr().out
    assert out.count("Evaluate on the *test* set") == 2 and "*val*" not in out


def test_no_test_means_no_evaluation(tiny_trainer, tmp_path, capsys):
    """Check 30."""
    tiny_trainer("TEST.NO_TEST", True, "TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 1).train()
    assert "Evaluate" not in capsys.readouterr().out
    assert not (tmp_path / "run/prompt_learner/model-best.pth.tar").exists()
    record = read_json(tmp_path / "run/results.json")
    assert record["finished"] and "metrics" not in record


@TRAINER_REGISTRY.register()
class Untrained(TrainerX):
    def build_model(self):
        self.model = Pooled(self.num_classes)


def test_a_trainer_without_models_tests(tiny_trainer, capsys):
    """Check 34."""
    trainer = tiny_trainer("TRAINER.NAME", "Untrained")
    accuracy = trainer.test()
    trainer.train()
    assert trainer.results["accuracy"] == accuracy
    assert "nothing to train" in capsys.readouterr().out


@pytest.mark.parametrize("bad, found", [(3, 3), (6, 6), (11, 11)])
def test_a_loss_that_is_not_finite_is_found_with_its_batch(tiny_trainer, bad, found):
    """Check 37."""
    class Breaking(TinyTrainer):
        def forward_backward(self, batch):
            summary = super().forward_backward(batch)
            if self.epoch == 1 and self.batch_idx >= bad:
                summary["loss"] = summary["loss"] * torch.nan
            return summary

    trainer = Breaking(tiny_trainer().cfg)
    with pytest.raises(FloatingPointError, match=rf"Loss is infinite or NaN!.*epoch \[2/5\] batch \[{found + 1}/12\]"):
        trainer.train()
    assert trainer.batch_idx < bad + trainer.cfg.TRAIN.PRINT_FREQ


def test_a_loss_handed_to_the_engine_is_checked_at_once(tiny_trainer):
    """Check 37."""
    class Breaking(TinyTrainer):
        def model_backward_and_update(self, loss, names=None):
            super().model_backward_and_update(loss * (torch.nan if self.batch_idx == 2 else 1), names)

    trainer = Breaking(tiny_trainer().cfg)
    with pytest.raises(FloatingPointError, match="epoch 1, batch 3"):
        trainer.train()


def test_evaluations_do_not_change_training(tiny_trainer, tmp_path):
    one = tiny_trainer(output_dir=tmp_path / "one")
    one.train()
    other = tiny_trainer("TEST.FINAL_MODEL", "best_val", "DATALOADER.NUM_WORKERS", 1, output_dir=tmp_path / "other")
    other.train()
    assert one.seen == other.seen
    last = [torch.load(f"{t.output_dir}/prompt_learner/model.pth.tar-5")["state_dict"] for t in (one, other)]
    assert all(last[0][name].equal(last[1][name]) for name in last[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_evaluation_leaves_the_global_generators_alone(tiny_trainer, workers):
    class Drawing(TinyTrainer):
        def model_inference(self, image):
            return self.model(image + torch.rand(image.shape))

    trainer = Drawing(tiny_trainer("DATALOADER.NUM_WORKERS", workers).cfg)
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


def test_modes_tell_when_prompts_are_fixed(tiny_trainer):
    """Check 39: one encoding per test, and a new one after training."""
    class Keeping(TinyTrainer):
        def build_model(self):
            super().build_model()
            self.model = FixedPrompts(self.num_classes)
            self.optim = build_optimizer(self.model, self.cfg.OPTIM)
            self._models["prompt_learner"], self._optims["prompt_learner"] = self.model, self.optim
            self._scheds["prompt_learner"] = None

    trainer = Keeping(tiny_trainer().cfg)
    first = trainer.test()
    assert trainer.model.encoded == 1
    trainer.max_epoch = 1
    trainer.train()
    assert trainer.model.encoded == 1 + 12 + 1
    assert trainer.results["accuracy"] != first


def test_registering_models():
    class Bare(TrainerBase):
        def __init__(self):
            pass

    with pytest.raises(AttributeError, match="super"):
        Bare().register_model("a")
    trainer = TrainerBase()
    model = nn.Linear(1, 1)
    trainer.register_model("a", model)
    with pytest.raises(AssertionError, match="Found duplicate model names"):
        trainer.register_model("a", model)
    with pytest.raises(AssertionError, match="choose from a"):
        trainer.get_model_names("b")
    with pytest.raises(KeyError, match="trian"):
        trainer.set_model_mode("trian")
    trainer.set_model_mode("test")
    assert not model.training


def test_settings_out_of_range_are_refused_before_anything_is_built(tiny_trainer, tmp_path, capsys):
    with pytest.raises(ValueError, match="TEST.FINAL_MODEL is 'best'"):
        tiny_trainer("TEST.FINAL_MODEL", "best")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        tiny_trainer("RESUME", str(tmp_path / "nowhere"))
    capsys.readouterr()
    tiny_trainer("MODEL.HEAD.DROPOUT", 0.5)
    assert "Nothing reads MODEL.HEAD.DROPOUT" in capsys.readouterr().out


def test_what_this_engine_does_not_have_says_so(tiny_trainer):
    with pytest.raises(NotImplementedError, match="build_model"):
        SimpleNet()
    with pytest.raises(NotImplementedError, match="TrainerX must define build_model"):
        TrainerX(tiny_trainer().cfg)


@DATASET_REGISTRY.register()
class TinyUnlabeled(DatasetBase):
    """24 labeled images beside all 72 without labels."""

    def __init__(self, cfg):
        tiny = DATASET_REGISTRY.get("TinyData")(cfg)
        super().__init__(train_x=tiny.train_x[::3], train_u=tiny.train_x, test=tiny.test)


@TRAINER_REGISTRY.register()
class TinySemiSupervised(TrainerXU):
    build_model = TinyTrainer.build_model

    def forward_backward(self, batch_x, batch_u):
        self.seen.append((batch_x["index"].tolist(), batch_u["index"].tolist()))
        image, label, unlabeled = self.parse_batch_train(batch_x, batch_u)
        loss = nn.functional.cross_entropy(self.model(image), label)
        self.model_backward_and_update(loss)
        return {"loss": loss, "unlabeled": unlabeled.mean()}


@pytest.mark.parametrize("count, batches", [("train_x", 4), ("train_u", 12), ("smaller_one", 4)])
def test_unlabeled_data_beside_labeled(tiny_trainer, count, batches):
    trainer = tiny_trainer(
        "TRAINER.NAME", "TinySemiSupervised", "DATASET.NAME", "TinyUnlabeled", "TRAIN.COUNT_ITER", count,
        "OPTIM.MAX_EPOCH", 1,
    )
    trainer.train()
    assert len(trainer.seen) == batches
    if count == "train_u":
        passes = [sum((x for x, _ in trainer.seen[first:first + 4]), []) for first in (0, 4, 8)]
        assert all(sorted(order) == list(range(24)) for order in passes)
        assert passes[0] != passes[1] != passes[2]
        assert sorted(sum((u for _, u in trainer.seen), [])) == list(range(72))
