"""The predictions of a test, image by image: predictions.csv, and the accuracy of each class.

Shapes: N images, B of them in a batch, C classes.
"""
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from p2c.engine.datasets import Datum
from p2c.engine.files import write_csv

FILE = "predictions.csv"
COLUMNS = ("path", "label", "class", "predicted_label", "predicted_class", "probability")


class Predictions:
    """The predictions for the images of a split, gathered batch by batch.

    Args:
        more: names of further columns, with numbers of each image.
    """

    def __init__(self, more: Sequence[str] = ()):
        self.more = tuple(more)
        self._batches: list[tuple[Tensor, ...]] = []
        self._columns: dict[str, Tensor] = {}

    def add(self, output: Tensor, label: Tensor, *more: Tensor) -> None:
        """Add scores (B, C), labels (B,) and further columns (B,) of a batch, without a copy to the host."""
        probability = output.double().softmax(1).max(1)[0]
        self._batches.append((label, output.max(1)[1], probability, *more))

    def arrange(self, index: Tensor) -> None:
        """Put what was added in the split's order; `index` (N,) says which of its images was which."""
        names = ("label", "prediction", "probability", *self.more)
        columns = [torch.cat(parts).cpu() for parts in zip(*self._batches, strict=True)]
        order = index.argsort()
        self._columns = {name: column[order] for name, column in zip(names, columns, strict=True)}
        self._batches.clear()

    def __getitem__(self, name: str) -> Tensor:
        """Return "label", "prediction", "probability" or a further column, (N,), in the split's order."""
        return self._columns[name]

    def class_accuracy(self, num_classes: int) -> list[float | None]:
        """Return the accuracy of each class in percent; None for a class without images."""
        label = self["label"]
        totals = torch.bincount(label, minlength=num_classes)
        correct = torch.bincount(label[self["prediction"] == label], minlength=num_classes)
        return [100 * hits / total if total else None
                for hits, total in zip(correct.tolist(), totals.tolist(), strict=True)]

    def write(self, directory: str, items: Sequence[Datum], root: str, classnames: Sequence[str]) -> None:
        """Write predictions.csv to a folder, a line for each of the split's items; paths are relative to the root."""
        root = os.path.expanduser(root)
        names = dict(enumerate(classnames))
        rows = []
        for item, label, prediction, *numbers in zip(
                items, *(column.tolist() for column in self._columns.values()), strict=True):
            path = os.path.relpath(item.impath, root).replace(os.sep, "/")
            rows.append((path, label, names.get(label, ""), prediction, names.get(prediction, ""), *numbers))
        write_csv(os.path.join(directory, FILE), (*COLUMNS, *self.more), rows)
