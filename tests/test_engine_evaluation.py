"""The evaluator: what it returns and saves, and what is an error."""
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
