"""P2C: robust prompt learning for CLIP as a Dassl plugin (arXiv 2511.22897)."""
import importlib

__version__ = "0.1.0"


_PLACES = {  # imported on first use, since p2c alone needs no torch
    "Predictor": "p2c.inference.predictor",
    "create_model": "p2c.inference.models",
    "load_model": "p2c.inference.models",
    "Step": "p2c.model",
}


def __getattr__(name: str):
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
