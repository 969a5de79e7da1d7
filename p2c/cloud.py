"""Cloud inference, which is ours: several text classifiers from draws around one trained context, and what their
disagreement tells.

Their average is an ensemble's, and the mutual information between prediction and draw its measure of doubt
(Lakshminarayanan et al., arXiv 1612.01474; Houlsby et al., arXiv 1112.5745). Shapes: N images, B of them in a batch, K
draws, C classes.
"""
import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from p2c.framework import Datum, write_csv

COLUMNS = ("path", "label", "class", "predicted_label", "predicted_class", "probability", "mutual_information",
           "dissent")


def combine(logits: Tensor, average: str) -> Tensor:
    """Scores (B, C) of a cloud's logits (B, K, C), whose softmax gives its probabilities.

    These are the mean "probabilities" of the draws, given by their logarithms, or those of their mean "logits".
    """
    if average == "logits":
        return logits.mean(1)
    return logits.log_softmax(-1).logsumexp(1) - math.log(logits.shape[1])


def mutual_information(logits: Tensor) -> Tensor:
    """Entropy of the mean of the draws' probabilities less the mean of their entropies, (B,), in nats.

    Computed as the mean divergence of the draws from their mean, whose terms do not cancel, in float64.
    """
    each = logits.double().log_softmax(-1)
    mean = each.logsumexp(1, keepdim=True) - math.log(logits.shape[1])
    return (each.exp() * (each - mean)).sum(-1).mean(1).clamp(min=0)


def dissent(logits: Tensor, output: Tensor) -> Tensor:
    """The share (B,) of the draws that predict another class than the cloud's scores (B, C) do."""
    return (logits.argmax(-1) != output.argmax(1, keepdim=True)).double().mean(1)


class CloudRecord:
    """What a cloud made of each image of a split."""

    def __init__(self):
        self._batches: list[tuple[Tensor, ...]] = []

    def add(self, output: Tensor, label: Tensor, index: Tensor, information: Tensor, dissent: Tensor) -> None:
        """Take a batch: scores (B, C), labels and places in the split (B,), what the functions above give (B,)."""
        confidence = output.double().softmax(1)
        self._batches.append((index, label, *reversed(confidence.max(1)), information, dissent))

    def _columns(self) -> list[Tensor]:
        """Index, label, prediction, confidence, information and dissent, (N,) each, in the order of the split."""
        columns = [torch.cat(parts).cpu() for parts in zip(*self._batches, strict=True)]
        order = columns[0].argsort()
        return [column[order] for column in columns]

    def metrics(self) -> dict[str, float]:
        """The means over the images of mutual_information (nats) and dissent (percent), and how well these and, to
        compare with, low confidence tell wrong predictions from right ones.

        This is the area under the ROC curve, in percent: 50 is chance. It is left out where there are only right
        predictions, or only wrong ones, or where scores are not finite.
        """
        from sklearn.metrics import roc_auc_score  # here: it takes a second to import

        _, label, prediction, confidence, information, dissent = self._columns()
        metrics = {"mutual_information": information.mean().item(), "dissent": 100 * dissent.mean().item()}
        wrong = prediction != label
        if wrong.any() and not wrong.all() and (information + confidence).isfinite().all():
            for name, doubt in (("mutual_information", information), ("dissent", dissent), ("confidence", -confidence)):
                metrics[f"auroc_{name}"] = 100 * float(roc_auc_score(wrong, doubt))
        return metrics

    def write(self, directory: str, items: Sequence[Datum], root: str, classnames: Sequence[str]) -> None:
        """Write predictions.csv to a folder: a line for each of the split's items, with paths below the data root."""
        rows = []
        for index, label, prediction, *numbers in zip(*(column.tolist() for column in self._columns()), strict=True):
            path = os.path.relpath(items[index].impath, os.path.expanduser(root)).replace(os.sep, "/")
            rows.append((path, label, classnames[label], prediction, classnames[prediction], *numbers))
        write_csv(os.path.join(directory, "predictions.csv"), COLUMNS, rows)
