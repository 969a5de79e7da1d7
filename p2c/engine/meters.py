"""Running averages of what a training loop measures."""
from collections import defaultdict

import torch


class AverageMeter:
    """The current value of a number and its average: the plain mean or, with `ema`, a moving one that starts at 0."""

    def __init__(self, ema: bool = False):
        self.ema = ema
        self.reset()

    def reset(self) -> None:
        self.val = self.avg = self.sum = 0.0
        self.count = 0

    def update(self, val: float, n: int = 1) -> None:
        """Count `val` as the mean of `n` observations."""
        if isinstance(val, torch.Tensor):
            val = val.item()
        self.val = val
        self.sum += val * n
        self.count += n
        self.avg = 0.9 * self.avg + 0.1 * val if self.ema else self.sum / self.count


class MetricMeter:
    """One average per name; as a string `name current (average) ...` in the order of first appearance."""

    def __init__(self, delimiter: str = " "):
        self.meters = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, values: dict | None) -> None:
        """Count one value per name: numbers or one-element tensors. None counts nothing; no dict: TypeError."""
        if values is None:
            return
        if not isinstance(values, dict):
            raise TypeError(f"MetricMeter takes a dict of name to number, but got {type(values).__name__}")
        for name, value in values.items():
            self.meters[name].update(value)

    def __str__(self) -> str:
        return self.delimiter.join(f"{name} {m.val:.4f} ({m.avg:.4f})" for name, m in self.meters.items())
