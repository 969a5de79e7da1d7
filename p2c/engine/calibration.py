"""How far the probabilities of predictions can be trusted (Guo et al., "On Calibration of Modern Neural Networks",
arXiv 1706.04599, section 2).

Shapes: N samples.
"""
import torch
from torch import Tensor

BINS = 15  # of confidence, of equal width, the upper end included


def calibration(confidence: Tensor, correct: Tensor, likelihood: Tensor) -> dict:
    """What predictions of some confidence are worth, in float64 on the CPU.

    Args:
        confidence: (N,) probabilities of the predicted classes, finite.
        correct: (N,) whether these are the true ones.
        likelihood: (N,) logarithms of the probabilities of the true classes.

    Returns:
        ece: expected calibration error in percent, the mean over samples of how far their bin's accuracy is from its
            mean confidence; nll: mean negative log-likelihood in nats; reliability: count, mean confidence and
            accuracy, in percent, of each bin, None for those of an empty one.
    """
    ends = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)[1:-1]
    bins = torch.bucketize(confidence, ends)
    count = torch.bincount(bins, minlength=BINS)
    sums = [torch.bincount(bins, weights=values.double(), minlength=BINS) for values in (confidence, correct)]
    return {
        "ece": 100 * ((sums[0] - sums[1]).abs().sum() / len(bins)).item(),
        "nll": -likelihood.mean().item(),
        "reliability": {
            "count": count.tolist(),
            **{name: [100 * total / number if number else None
                      for total, number in zip(values.tolist(), count.tolist(), strict=True)]
               for name, values in zip(("confidence", "accuracy"), sums, strict=True)},
        },
    }
