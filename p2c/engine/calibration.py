"""Calibration of predicted probabilities (Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599,
section 2).

Shapes: N samples.
"""
import torch
from torch import Tensor

BINS = 15  # of equal width over confidence, each with its upper end


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
    ends = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)[1:-1]
    bins = torch.bucketize(confidence, ends)
    count = torch.bincount(bins, minlength=BINS)
    confidences, hits = (torch.bincount(bins, weights=values.double(), minlength=BINS)
                         for values in (confidence, correct))

    def percentages(totals: Tensor) -> list[float | None]:
        return [100 * total / number if number else None
                for total, number in zip(totals.tolist(), count.tolist(), strict=True)]

    return {
        "ece": 100 * ((confidences - hits).abs().sum() / len(bins)).item(),
        "nll": -likelihood.mean().item(),
        "reliability": {
            "count": count.tolist(), "confidence": percentages(confidences), "accuracy": percentages(hits),
        },
    }
