"""Running averages for a training loop."""
from collections import defaultdict

import torch


class AverageMeter:
    """The current value and the average of a number: the mean or, with `ema`, a moving average that starts at 0."""

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
    """One AverageMeter per name. str() gives `name current (average) ...` in order of first appearance."""

    def __init__(self, delimiter: str = " "):
        self.meters: dict[str, AverageMeter] = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, values: dict | None) -> None:
        """Count one value per name, a number or one-element tensor; None is ignored. Raise TypeError for no dict."""
        if values is None:
            return
        if not isinstance(values, dict):
            raise TypeError(f"MetricMeter takes a dict of name to number, but got {type(values).__name__}")
        for name, value in values.items():
            self.meters[name].update(value)

    def __str__(self) -> str:
        return self.delimiter.join(f"{name} {m.val:.4f} ({m.avg:.4f})" for name, m in self.meters.items())
