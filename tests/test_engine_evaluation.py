"""The evaluator: what it returns and saves, and what is an error."""
import math

import numpy as np
import pytest
import torch
from engine_fixtures import tiny_config

from p2c.engine import Classification

TRUTH = torch.tensor([0, 0, 0, 1, 1, 2])
PREDICTION = torch.tensor([0, 0, 1, 1, 3, 2])
NAMES = {0: "cat", 1: "dog", 2: "fox", 3: "owl"}


def evaluator(tmp_path, *options, names=NAMES):
    return Classification(tiny_config("data", tmp_path, *options), lab2cname=names)


def scores(prediction):
    return torch.nn.functional.one_hot(prediction, 4).float()


def test_results_are_plain_numbers_and_the_matrix_says_its_labels(tmp_path):
    """Check 41."""
    judge = evaluator(tmp_path, "TEST.PER_CLASS_RESULT", True, "TEST.COMPUTE_CMAT", True)
    judge.process(scores(PREDICTION), TRUTH)
    assert all(type(value) is float for value in judge.evaluate().values())
    assert (judge.correct, judge.total) == (4, 6)
    saved = torch.load(tmp_path / "cmat.pt")
    assert saved["labels"] == [0, 1, 2, 3] and saved["matrix"].shape == (4, 4)
    assert saved["classnames"] == [NAMES[label] for label in saved["labels"]]


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


# Calibration

def judged(tmp_path, logits, labels, batch=7):
    judge = evaluator(tmp_path)
    for rows, truth in zip(logits.split(batch), labels.split(batch), strict=True):
        judge.process(rows, truth)
    return judge.evaluate(), judge.calibration


def test_calibration_of_a_case_by_hand(tmp_path):
    """Two images at confidence 0.9, one of them right, and one at 0.6, right."""
    probabilities = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4]], dtype=torch.float64)
    results, calibration = judged(tmp_path, probabilities.log(), torch.tensor([0, 0, 0]))
    assert calibration["ece"] == pytest.approx(100 * (2 / 3 * 0.4 + 1 / 3 * 0.4))
    assert calibration["nll"] == pytest.approx(-(math.log(0.9) + math.log(0.1) + math.log(0.6)) / 3)
    reliability = calibration["reliability"]
    assert reliability["count"] == [0] * 8 + [1] + [0] * 4 + [2, 0]
    assert reliability["confidence"][8::5] == pytest.approx([60, 90]) and reliability["confidence"][0] is None
    assert reliability["accuracy"][8::5] == pytest.approx([100, 50]) and reliability["accuracy"][14] is None
    assert list(results) == ["accuracy", "error_rate", "macro_f1"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_calibration_is_the_published_formula(tmp_path, dtype):
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(200, 6, generator=generator)).to(dtype)
    labels = torch.where(torch.rand(200, generator=generator) < 0.6, logits.argmax(1),
                         torch.randint(0, 6, (200,), generator=generator))
    bins = [[] for _ in range(15)]
    nll = 0
    for row, label in zip(logits.double().numpy(), labels.tolist(), strict=True):
        probabilities = np.exp(row) / np.exp(row).sum()
        nll -= math.log(probabilities[label]) / 200
        place = next(m for m in range(15) if m / 15 < probabilities.max() <= (m + 1) / 15)
        bins[place].append((probabilities.max(), probabilities.argmax() == label))
    ece = sum(len(members) / 200 * abs(np.mean([right for _, right in members]) - np.mean([p for p, _ in members]))
              for members in bins if members)
    _, calibration = judged(tmp_path, logits, labels)
    assert calibration["ece"] == pytest.approx(100 * ece) and calibration["nll"] == pytest.approx(nll)
    assert calibration["reliability"]["count"] == [len(members) for members in bins]


def test_certain_predictions_are_in_the_last_bin_and_large_logits_do_not_overflow(tmp_path):
    logits = torch.tensor([[60000.0, 0], [60000.0, 0]]).half()
    _, calibration = judged(tmp_path, logits, torch.tensor([0, 1]))
    assert calibration["reliability"]["count"] == [0] * 14 + [2]
    assert (calibration["ece"], calibration["nll"]) == (50.0, 60000.0 / 2)


def test_scores_that_are_not_finite_have_no_calibration(tmp_path):
    output = scores(PREDICTION)
    output[1] = torch.nan
    judge = evaluator(tmp_path)
    judge.process(output, TRUTH)
    judge.evaluate()
    assert judge.calibration == {}
