"""The evaluator's numbers and text, and accuracy of a batch."""
import numpy as np
import pytest
import torch
from engine_fixtures import tiny_config

from p2c.engine import AverageMeter, Classification, MetricMeter, compute_accuracy

TRUTH = torch.tensor([0, 0, 0, 1, 1, 2])
PREDICTION = torch.tensor([0, 0, 1, 1, 3, 2])
NAMES = {0: "cat", 1: "dog", 2: "fox", 3: "owl"}


def evaluator(tmp_path, *options, names=NAMES):
    return Classification(tiny_config("data", tmp_path, *options), lab2cname=names)


def scores(prediction):
    return torch.nn.functional.one_hot(prediction, 4).float()


def test_golden_case(tmp_path, capsys):
    """Check 41."""
    judge = evaluator(tmp_path, "TEST.PER_CLASS_RESULT", True, "TEST.COMPUTE_CMAT", True)
    judge.process(scores(PREDICTION[:4]), TRUTH[:4])
    judge.process(scores(PREDICTION[4:]), TRUTH[4:])
    results = judge.evaluate()
    assert capsys.readouterr().out.splitlines() == [
        "=> result",
        "* total: 6",
        "* correct: 4",
        "* accuracy: 66.7%",
        "* error: 33.3%",
        "* macro_f1: 76.7%",
        "=> per-class result",
        "* class: 0 (cat)\ttotal: 3\tcorrect: 2\tacc: 66.7%",
        "* class: 1 (dog)\ttotal: 2\tcorrect: 1\tacc: 50.0%",
        "* class: 2 (fox)\ttotal: 1\tcorrect: 1\tacc: 100.0%",
        "* average: 72.2%",
        f"Confusion matrix is saved to {tmp_path}/cmat.pt",
    ]
    assert list(results) == ["accuracy", "error_rate", "macro_f1", "perclass_accuracy"]
    assert all(type(value) is float for value in results.values())
    assert list(results.values()) == pytest.approx([200 / 3, 100 / 3, (0.8 + 0.5 + 1) / 3 * 100, 650 / 9])
    assert (judge.correct, judge.total) == (4, 6)
    saved = torch.load(tmp_path / "cmat.pt")
    assert saved["labels"] == [0, 1, 2, 3]
    expected = torch.tensor([[2 / 3, 1 / 3, 0, 0], [0, 1 / 2, 0, 1 / 2], [0, 0, 1, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(saved["matrix"], expected.double(), atol=1e-7, rtol=0)


def test_macro_f1_is_that_of_scikit_learn(tmp_path):
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 5, (200,), generator=generator) * 2
    output = torch.rand(200, 10, generator=generator)
    judge = evaluator(tmp_path)
    judge.process(output, truth)
    expected = metrics.f1_score(truth, output.argmax(1), average="macro", labels=np.unique(truth))
    assert judge.evaluate()["macro_f1"] == pytest.approx(100 * expected)


def test_reset_forgets_what_was_processed(tmp_path):
    judge = evaluator(tmp_path)
    judge.process(scores(PREDICTION), TRUTH)
    judge.reset()
    judge.process(scores(PREDICTION[:2]), TRUTH[:2])
    assert judge.evaluate()["accuracy"] == 100.0


def test_nothing_to_evaluate_is_an_error(tmp_path):
    """Check 44."""
    with pytest.raises(ValueError, match="no sample"):
        evaluator(tmp_path).evaluate()


def test_nan_scores_are_reported(tmp_path, capsys):
    """Check 44."""
    judge = evaluator(tmp_path)
    output = scores(PREDICTION)
    output[1] = torch.nan
    judge.process(output, TRUTH)
    judge.evaluate()
    assert "1 of 6 samples have NaN among their scores" in capsys.readouterr().out


def test_per_class_results_need_every_name(tmp_path):
    with pytest.raises(ValueError, match="PER_CLASS_RESULT"):
        evaluator(tmp_path, "TEST.PER_CLASS_RESULT", True, names=None)
    judge = evaluator(tmp_path, "TEST.PER_CLASS_RESULT", True, names={0: "cat", 1: "dog"})
    judge.process(scores(PREDICTION), TRUTH)
    with pytest.raises(KeyError, match="label 2"):
        judge.evaluate()


def test_compute_accuracy():
    """Check 42."""
    output = torch.tensor([[0.1, 0.9, 0], [0.8, 0.15, 0.05], [0, 0.2, 0.8]])
    target = torch.tensor([1, 1, 2])
    first, second = compute_accuracy(output, target, topk=(1, 2))
    assert first.shape == second.shape == (1,)
    assert first.item() == pytest.approx(66.6667, abs=1e-4) and second.item() == 100
    assert compute_accuracy((output, None), target)[0].equal(first)


def test_metric_meter():
    """Check 43."""
    meter = MetricMeter()
    meter.update({"loss": 1.5, "acc": torch.tensor([2.0])})
    meter.update({"loss": 0.5})
    meter.update(None)
    assert str(meter) == "loss 0.5000 (1.0000) acc 2.0000 (2.0000)"
    with pytest.raises(TypeError, match="list"):
        meter.update([1])


def test_average_meter():
    meter = AverageMeter()
    meter.update(1.0, n=3)
    meter.update(5.0)
    assert (meter.val, meter.avg, meter.sum, meter.count) == (5.0, 2.0, 8.0, 4)
    meter = AverageMeter(ema=True)
    meter.update(10.0)
    meter.update(10.0)
    assert meter.avg == pytest.approx(1.9)
