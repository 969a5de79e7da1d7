"""Loading of trained prompts from a checkpoint file into a model, after checks that the two belong together."""
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from p2c.checkpoints.published import class_differences, differences, learned_entries, per_class
from p2c.clip.loading import CLIP_NAMES, named_weights
from p2c.engine.checkpoint import load_checkpoint
from p2c.model import PromptedCLIP
from p2c.utils import trainable
from p2c.utils.logs import get_logger
from p2c.utils.ranges import flatten

log = get_logger(__name__)


def load_prompts(model: PromptedCLIP, path: Path, method: str, settings: Collection[str], weights: str) -> int:
    """Load prompts into a model from a checkpoint of ours or of the published code; return the checkpoint's epoch.

    Args:
        method: the method's name, for messages.
        settings: the keys of the method's settings, which messages may name.
        weights: MODEL.BACKBONE.WEIGHTS of the model: a name or a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds prompts of another method, size, class list or CLIP; the model is unchanged.
    """
    try:
        checkpoint = load_checkpoint(str(path))
    except ValueError as error:
        raise ValueError(f"{error}; choose another checkpoint") from error
    saved, trained = learned_entries(checkpoint["state_dict"]), checkpoint.get("classnames")
    try:
        faults = differences(saved, trainable.state_dict(model.learner), settings, model.backbone.name)
        faults = faults or class_differences(saved, trained, model.classnames)
        faults = faults or other_backbone(model, checkpoint, weights)
        if faults:
            raise ValueError("; ".join(faults))
        trainable.load_state_dict(model.learner, saved)
    except ValueError as error:
        raise ValueError(f"{path} does not fit {method} with these settings: {error}") from error
    if per_class(saved) and trained is None:
        log.warning(f"{path} does not say which classes its contexts belong to; they are taken for those of the "
                    "model, in order")
    return checkpoint["epoch"]


def other_backbone(model: PromptedCLIP, checkpoint: Mapping, weights: str) -> list[str]:
    """Describe how the CLIP of a checkpoint's training differs from the model's; [] if it does not.

    Only what the checkpoint records is compared: backbone and weights by name, the digest of the weights or, in
    published checkpoints, the position embeddings.
    """
    saved_config = checkpoint.get("config")
    config = flatten(saved_config) if isinstance(saved_config, dict) else {}
    clip = model.backbone
    here, there = clip.name, config.get("MODEL.BACKBONE.NAME", clip.name)
    if CLIP_NAMES.get(here, here) != CLIP_NAMES.get(there, there):
        return [f"it was trained with the backbone {there}, the settings say {here} (MODEL.BACKBONE.NAME)"]
    trained, digest = config.get("MODEL.BACKBONE.WEIGHTS", weights), checkpoint.get("backbone_sha256")
    if digest:
        others = digest != clip.sha256
    else:  # a checkpoint of an earlier version; names can be compared, but the name of a file says nothing
        others = trained != weights and {trained, weights} <= set(named_weights(here))
    if others:
        how = f"the settings say '{weights}'"
        if trained == weights:
            how = f"but '{weights}' now holds others"
        return [f"it was trained with the weights '{trained}' of {here}, {how} (MODEL.BACKBONE.WEIGHTS)"]
    state, tensors = checkpoint["state_dict"], clip.model.state_dict()
    for tower, part in (("image", "visual."), ("text", "")):
        saved = state.get(f"{tower}_encoder.positional_embedding")
        known = tensors.get(f"{part}positional_embedding")
        if saved is not None and known is not None and not _same(saved.double(), known.double().cpu()):
            return [f"the {tower} tower in it is not {here}'s: another backbone or other weights (MODEL.BACKBONE)"]
    return []


def _same(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are equal up to the rounding of half precision."""
    return a.shape == b.shape and bool((a - b).norm() <= 0.01 * b.norm())


def find_checkpoint(folder: Path, epoch: int | None) -> Path:
    """Return the path of a checkpoint in a learner's folder.

    Args:
        epoch: the number of epochs after which it was saved; None: the best one if there is one, else the last.

    Raises:
        FileNotFoundError: it is not there; the message lists what is.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"No trained prompts at {folder}: there is no such folder; give --model-dir the folder "
                                "of a run")
    if epoch is not None:
        path = folder / f"model.pth.tar-{epoch}"
    elif (folder / "model-best.pth.tar").is_file() or not (folder / "checkpoint").is_file():
        path = folder / "model-best.pth.tar"
    else:
        path = folder / (folder / "checkpoint").read_text(encoding="utf-8", errors="replace").strip()
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in folder.glob("model*"))) or "nothing"
        raise FileNotFoundError(f"No checkpoint at {path} (the folder holds {there}); train first, or give --model-dir "
                                "a run's folder and --load-epoch an epoch that was saved")
    return path
