"""The training loop: what this engine says, records and refuses beyond what Dassl does."""
import pytest
import torch
from engine_fixtures import Pooled, TinyTrainer
from messages import naming
from torch import nn

from p2c.engine import SimpleNet, TrainerBase, TrainerX, read_json


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
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ["))
    assert f"bias {after[-1]:.4f} ({sum(after) / 5:.4f})" in line


def test_curves_are_optional(tiny_trainer, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "tensorboard.compat.proto", None)
    tiny_trainer("OPTIM.MAX_EPOCH", 1).train()
    assert "tensorboard" in capsys.readouterr().out


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


def test_a_loss_handed_to_the_engine_is_named_with_its_batch(tiny_trainer):
    """Check 37."""
    trainer = tiny_trainer()
    trainer.batch_idx = 2
    with pytest.raises(FloatingPointError, match=r"epoch \[1/5\] batch \[3/12\]"):
        trainer.model_backward_and_update(torch.tensor(torch.nan))


@pytest.mark.parametrize("indices, different", [
    (range(20), 20), ([0, *range(24)], 24), ([0, *range(23)], 23)], ids=["too few", "too many", "as many"])
def test_a_test_that_did_not_count_each_image_once_is_void(tiny_trainer, indices, different):
    trainer = tiny_trainer()
    some = torch.utils.data.Subset(trainer.test_loader.dataset, list(indices))
    trainer.test_loader = torch.utils.data.DataLoader(some, 7)
    with pytest.raises(ValueError, match=naming(f"{len(indices)} images", f"{different} of them", "24")):
        trainer.test()


def test_batches_without_indices_are_counted(tiny_trainer):
    trainer = tiny_trainer()
    batches = [{name: batch[name] for name in ("img", "label")} for batch in trainer.test_loader]
    trainer.test_loader = batches
    trainer.test()
    trainer.test_loader = batches[1:]
    with pytest.raises(ValueError, match=naming("14 images", "24")):
        trainer.test()


def test_a_test_that_drops_its_last_batch_is_void(tiny_trainer):
    trainer = tiny_trainer()
    trainer.test_loader = torch.utils.data.DataLoader(trainer.test_loader.dataset, 10, drop_last=True)
    with pytest.raises(ValueError, match=naming("20 images", "24")):
        trainer.test()


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


def test_the_record_of_a_run_says_which_weights_were_tested(tiny_trainer):
    """Check 29."""
    results = iter([50.0, 70.0, 60.0])

    class Scripted(TinyTrainer):
        def test(self, split=None):
            result = super().test(split)
            return next(results) if split == "val" else result

    trainer = tiny_trainer("TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 3, kind=Scripted)
    trainer.train()
    assert read_json(f"{trainer.output_dir}/results.json")["epoch"] == 2


def test_a_run_without_a_test_is_finished_without_metrics(tiny_trainer):
    """Check 30."""
    trainer = tiny_trainer("TEST.NO_TEST", True, "OPTIM.MAX_EPOCH", 1)
    trainer.train()
    record = read_json(f"{trainer.output_dir}/results.json")
    assert record["finished"] and "metrics" not in record


def test_training_without_models_says_so(tiny_trainer, capsys):
    """Check 34."""
    class Untrained(TrainerX):
        def build_model(self):
            self.model = Pooled(self.num_classes)

    trainer = tiny_trainer(kind=Untrained)
    trainer.train()
    assert trainer.results["accuracy"] == trainer.test()
    assert "nothing to train" in capsys.readouterr().out


def test_unknown_models_and_modes_are_refused_with_the_choices():
    trainer = TrainerBase()
    trainer.register_model("a", nn.Linear(1, 1))
    with pytest.raises(AssertionError, match="choose from a"):
        trainer.get_model_names("b")
    with pytest.raises(KeyError, match="trian"):
        trainer.set_model_mode("trian")
