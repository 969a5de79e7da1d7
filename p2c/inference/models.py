"""Models without a configuration: created by a method's name, or loaded from a run's folder."""
import os
from collections.abc import Sequence

import torch

from p2c import registry
from p2c.clip.loading import load_backbone
from p2c.clip.precision import PRECISIONS, Precision
from p2c.denoising.noise import PromptDenoising
from p2c.inference.records import RecordedRun
from p2c.model import PromptedCLIP


def create_model(method: str, classnames: Sequence[str], *, backbone: str = "ViT-B/16", weights: str = "openai",
                 precision: str = "fp32", device: str | torch.device = "cpu", epochs: int = 5,
                 denoising: PromptDenoising | bool | None = None, **settings) -> PromptedCLIP:
    """Create a method's model, ready to train.

    Args:
        method: the name of a trainer, such as "P2C".
        classnames: C names, in the order of the logits.
        backbone, weights: see `p2c.clip.loading.load_backbone`.
        precision: CLIP's: fp32, fp16, amp or bf16.
        epochs: length of the training, over which the default denoising anneals.
        denoising: noise on the text context in training; True: the default; None: the method's own choice.
        settings: arguments of the method's model, such as n_ctx or prompt_depth.

    Raises:
        ValueError: a name is unknown, or arguments do not fit together.
        FileNotFoundError: the weights cannot be found or downloaded.
    """
    model_class = registry.get_trainer(method).model_class
    if precision not in PRECISIONS:
        raise ValueError(f"Unknown precision '{precision}'; choose from {', '.join(PRECISIONS)}")
    device = torch.device(device)
    policy = Precision.from_name(precision, device)
    clip = load_backbone(backbone, weights, policy, device)
    if denoising is None:
        denoising = model_class.dpd_by_default
    if denoising is True:
        denoising = PromptDenoising(epochs=epochs, unit=clip.token_std)
    return model_class(clip, classnames, denoising=denoising or None, precision=policy, **settings)


def load_model(run: str | os.PathLike, classes: Sequence[str] | None = None, epoch: int | None = None,
               device: str | None = None) -> PromptedCLIP:
    """Load the model of a run of train.py, a training or an evaluation, in evaluation mode.

    Args:
        run: the run's folder, which holds results.json.
        classes: class names instead of the run's own.
        epoch: that of the checkpoint; None: the one with which the run itself was tested.
        device: "cpu" or "cuda"; None: a GPU if there is one.

    Raises:
        FileNotFoundError: there is no such run, or its checkpoint or CLIP's weights are missing.
        ValueError: the run is not finished or does not fit this version, or the class names are invalid.
    """
    return RecordedRun(run, epoch, device).model(classes)
