"""Evaluation of predictions: accuracy, macro F1, per-class accuracy, confusion matrix, calibration.

Calibration is that of Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599, section 2.

Shapes: N samples, C classes.
"""
import os
from collections import OrderedDict

import torch
from torch import Tensor

from p2c.engine.checkpoint import serialize
from p2c.engine.files import write_atomically
from p2c.engine.registry import EVALUATOR_REGISTRY, build_evaluator
from p2c.utils.logs import get_logger

__all__ = ["EVALUATOR_REGISTRY", "Classification", "EvaluatorBase", "build_evaluator", "compute_accuracy"]

log = get_logger(__name__)

CONFUSION = "cmat.pt"  # file of the confusion matrix
BINS = 15  # of equal width over confidence, each with its upper end


class EvaluatorBase:
    """Base of the evaluators: collects the outputs of a split batch by batch, then computes metrics."""

    def __init__(self, cfg):
        self.cfg = cfg

    def reset(self) -> None:
        """Forget all outputs so far."""
        raise NotImplementedError

    def process(self, output: Tensor, label: Tensor) -> None:
        """Add the outputs and labels of one batch."""
        raise NotImplementedError

    def evaluate(self) -> OrderedDict:
        """Return a dict from metric to value, the main metric first."""
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Top-1 classification.

    After `evaluate`, `correct` and `total` hold the counts, and `calibration` the result of `calibration` with the
    scores as logits, empty if these are not finite.
    """

    def __init__(self, cfg, lab2cname: dict[int, str] | None = None, **kwargs):
        super().__init__(cfg)
        if cfg.TEST.PER_CLASS_RESULT and lab2cname is None:
            raise ValueError("TEST.PER_CLASS_RESULT needs the class names (lab2cname), but got None")
        self.lab2cname = lab2cname or {}
        self.reset()

    def reset(self) -> None:
        self.correct = self.total = 0
        self.calibration: dict = {}
        self._batches: list[tuple[Tensor, ...]] = []  # what evaluate reads, (N,) each

    def process(self, output: Tensor, label: Tensor) -> None:
        """Add scores (N, C) and labels (N,), without a copy to the host."""
        likelihood = output.double().log_softmax(1)
        self._batches.append((label, output.max(1)[1], output.isnan().any(1), likelihood.max(1)[0].exp(),
                              likelihood.gather(1, label[:, None]).flatten()))

    def evaluate(self) -> OrderedDict:
        """Return accuracy, error_rate, macro_f1 and, with TEST.PER_CLASS_RESULT, perclass_accuracy, in percent."""
        self.total = sum(len(label) for label, *_ in self._batches)
        if not self.total:
            raise ValueError("There is nothing to evaluate: no sample was processed")
        columns = (torch.cat(column).cpu() for column in zip(*self._batches, strict=True))
        truth, prediction, has_nan, confidence, likelihood = columns
        self.correct = int((prediction == truth).sum())
        if confidence.isfinite().all() and likelihood.isfinite().all():
            self.calibration = calibration(confidence, prediction == truth, likelihood)
        accuracy = 100.0 * self.correct / self.total
        matrix = confusion_matrix(truth, prediction)
        results = OrderedDict(accuracy=accuracy, error_rate=100.0 - accuracy, macro_f1=100.0 * macro_f1(matrix))

        log.info("=> result")
        log.info(f"* total: {self.total:,}")
        log.info(f"* correct: {self.correct:,}")
        log.info(f"* accuracy: {results['accuracy']:.1f}%")
        log.info(f"* error: {results['error_rate']:.1f}%")
        log.info(f"* macro_f1: {results['macro_f1']:.1f}%")
        if nan_rows := int(has_nan.sum()):
            log.warning(f"{nan_rows:,} of {self.total:,} samples have NaN among their scores: do not trust this result")
        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._per_class(matrix)
        if self.cfg.TEST.COMPUTE_CMAT:
            self._save(matrix)
        return results

    def _per_class(self, matrix: Tensor) -> float:
        log.info("=> per-class result")
        accuracies = []
        for label, total in enumerate(matrix.sum(1).tolist()):
            if not total:
                continue
            if label not in self.lab2cname:
                raise KeyError(f"The test data have label {label}, but class names only for {sorted(self.lab2cname)}")
            correct = int(matrix[label, label])
            accuracies.append(100.0 * correct / total)
            log.info(f"* class: {label} ({self.lab2cname[label]})\ttotal: {total:,}\tcorrect: {correct:,}\t"
                     f"acc: {accuracies[-1]:.1f}%")
        average = sum(accuracies) / len(accuracies)
        log.info(f"* average: {average:.1f}%")
        return average

    def _save(self, matrix: Tensor) -> None:
        labels = (matrix.sum(0) + matrix.sum(1)).nonzero().flatten()
        matrix = matrix[labels][:, labels].double()
        rows = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
        path = os.path.join(self.cfg.OUTPUT_DIR, CONFUSION)
        names = [self.lab2cname.get(label) for label in labels.tolist()]
        write_atomically(path, serialize({"labels": labels.tolist(), "classnames": names, "matrix": rows}))
        log.info(f"Confusion matrix is saved to {path}")


def confusion_matrix(truth: Tensor, prediction: Tensor) -> Tensor:
    """Return the counts (C, C) of true (rows) and predicted (columns) labels (N,); C is the largest label plus 1."""
    size = int(torch.maximum(truth.max(), prediction.max())) + 1
    return torch.bincount(truth * size + prediction, minlength=size * size).reshape(size, size)


def macro_f1(matrix: Tensor) -> float:
    """Return the mean F1, 0 to 1, over the classes with samples, from a confusion matrix (C, C)."""
    true, predicted = matrix.sum(1), matrix.sum(0)
    return (2 * matrix.diag().double() / (true + predicted))[true > 0].mean().item()


def compute_accuracy(output: Tensor, target: Tensor, topk: tuple[int, ...] = (1,)) -> list[Tensor]:
    """Return the top-k accuracy of scores (N, C) against labels (N,) in percent, a tensor of shape (1,) for each k.

    If the output is a tuple or list, its first element is used.
    """
    if isinstance(output, tuple | list):
        output = output[0]
    ranked = output.topk(max(topk), dim=1).indices  # (N, K)
    hits = ranked == target[:, None]
    return [hits[:, :k].any(1, keepdim=True).float().mean(0) * 100 for k in topk]


def calibration(confidence: Tensor, correct: Tensor, likelihood: Tensor) -> dict:
    """Measure the calibration of predictions on the CPU, in float64.

    Args:
        confidence: (N,) probabilities of the predicted classes, finite.
        correct: (N,) True where the predicted class is the true one.
        likelihood: (N,) log-probabilities of the true classes.

    Returns:
        ece: expected calibration error in percent, the mean over samples of the gap between the accuracy and the mean
            confidence of their bin; nll: mean negative log-likelihood in nats; reliability: count, mean confidence and
            accuracy (in percent, None for an empty bin) of each bin.
    """
    bins = torch.bucketize(confidence, torch.linspace(0, 1, BINS + 1, dtype=torch.float64)[1:-1])
    count = torch.bincount(bins, minlength=BINS)
    confidences, hits = (torch.bincount(bins, weights=values.double(), minlength=BINS)
                         for values in (confidence, correct))

    def percentages(totals: Tensor) -> list[float | None]:
        return [100 * total / number if number else None
                for total, number in zip(totals.tolist(), count.tolist(), strict=True)]

    return {
        "ece": 100 * ((confidences - hits).abs().sum() / len(bins)).item(),
        "nll": -likelihood.mean().item(),
        "reliability": {"count": count.tolist(), "confidence": percentages(confidences),
                        "accuracy": percentages(hits)},
    }
