"""P2C: robust prompt learning for CLIP as a Dassl plugin (arXiv 2511.22897).

    predictor = p2c.train("photos/", method="P2C", shots=16)  # or p2c.load(RUN), of a run that is there already
    predictor.predict(["a.jpg", "b.jpg"])                     # probabilities, one column for each of
    predictor.classnames
    predictor.encode_images(["a.jpg"])                        # normalised features
    predictor.classifier                                      # those of the classes
    predictor.model                                           # the torch.nn.Module

Nothing is printed; the logger "p2c" tells what happens.

    train                       train on a folder of images, or on a dataset, and return its Predictor
    load                        return the Predictor of a run
    Predictor                   classifies images
    load_model, create_model    the model of a run; a new one, for a training loop of your own
    Step                        a step of such a loop
"""
import importlib
from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p2c.cli.train import train
    from p2c.inference.models import create_model, load_model
    from p2c.inference.predictor import Predictor
    from p2c.model import Step

    load = Predictor.from_run

__all__ = ["Predictor", "Step", "__version__", "create_model", "load", "load_model", "train"]

__version__ = "0.2.0"

_PLACES = {  # imported on first use, since p2c alone needs no torch
    "Predictor": ("p2c.inference.predictor", "Predictor"),
    "Step": ("p2c.model", "Step"),
    "create_model": ("p2c.inference.models", "create_model"),
    "load": ("p2c.inference.predictor", "Predictor.from_run"),
    "load_model": ("p2c.inference.models", "load_model"),
    "train": ("p2c.cli.train", "train"),
}


def __getattr__(name: str):
    if name in _PLACES:
        module, place = _PLACES[name]
        return attrgetter(place)(importlib.import_module(module))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
