"""P2C: robust prompt learning for CLIP as a Dassl plugin (arXiv 2511.22897)."""

__version__ = "0.1.0"


def __getattr__(name: str):
    if name == "Predictor":  # imported when asked for: p2c alone needs no torch
        from p2c.inference.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
