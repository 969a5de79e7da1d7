"""Checkpoints: written whole or not at all, as plain tensors and values, and read without running what is in them."""
import contextlib
import io
import os
import pickle
import re
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from p2c.engine import restricted
from p2c.engine.files import write_atomically
from p2c.utils import trainable
from p2c.utils.checksums import check_archive
from p2c.utils.logs import get_logger

log = get_logger(__name__)

BEST = "model-best.pth.tar"
POINTER = "checkpoint"  # text file that names the newest checkpoint of its folder
POSITION = "resume.pth.tar"  # where a training stands inside an epoch: "epoch" whole ones and "batch" batches are done


class UnreadableCheckpoint(ValueError):
    """A file that is no checkpoint, or only a part of one."""


class CannotResume(ValueError):
    """A run cannot go on from the checkpoints that it was pointed to."""


class NothingToResume(FileNotFoundError, CannotResume):
    """Nothing is where the checkpoints to go on from should be."""


def plain(value, name: str = "checkpoint"):
    """A copy of nested containers that torch.load reads by default: tensors (on the CPU), numbers, text.

    Anything else raises TypeError saying where it is.
    """
    if isinstance(value, Mapping):
        return {key: plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        whole = value.untyped_storage().nbytes() == value.nbytes
        return value if whole else value.clone()  # a view would be saved with all that it views
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"Checkpoints hold plain tensors and values, but {name} is a {type(value).__name__}")


def save_checkpoint(
    state: dict, save_dir: str, is_best: bool = False, remove_module_from_keys: bool = True, model_name: str = ""
) -> None:
    """Write `state` to `save_dir` as `model_name` or model.pth.tar-{epoch}, and name it there as the newest.

    With `is_best` a copy becomes model-best.pth.tar. `remove_module_from_keys` strips DataParallel's prefix from the
    keys of state["state_dict"].
    """
    state = plain(state)
    if remove_module_from_keys:
        state["state_dict"] = _without_module(state["state_dict"])
    content = serialised(state)
    name = model_name or f"model.pth.tar-{state['epoch']}"
    path = os.path.join(save_dir, name)
    write_atomically(path, content)
    log.info(f"Checkpoint saved to {path}")
    write_atomically(os.path.join(save_dir, POINTER), f"{name}\n")
    if is_best:
        best = os.path.join(save_dir, BEST)
        write_atomically(best, content)
        log.info(f'Best checkpoint saved to "{best}"')


def save_position(state: dict, save_dir: str) -> None:
    """Write `state`, which has "epoch" and "batch" beside what a checkpoint has, as the position in `save_dir`."""
    write_atomically(os.path.join(save_dir, POSITION), serialised(plain(state)))


def remove_position(save_dir: str) -> None:
    """Delete the position in `save_dir`, if there is one: a checkpoint has superseded it."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(os.path.join(save_dir, POSITION))


def serialised(state: dict) -> bytes:
    """What a file of torch.save's with `state` in it would hold."""
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


def load_checkpoint(fpath: str) -> dict:
    """What is in a checkpoint, tensors on the CPU: at least "state_dict" and "epoch".

    Of a file of real Dassl that holds objects, those are None.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableCheckpoint: it cannot be read, or is no checkpoint.
    """
    checkpoint = read(fpath)
    if not _is_state_dict(checkpoint.get("state_dict")) or not isinstance(checkpoint.get("epoch"), int):
        raise UnreadableCheckpoint(f'"{fpath}" is no checkpoint: it needs a "state_dict" of tensors and an "epoch"')
    return checkpoint


def is_readable(fpath: str) -> bool:
    """Whether there is a checkpoint that can be read."""
    try:
        load_checkpoint(fpath)
    except (FileNotFoundError, UnreadableCheckpoint):
        return False
    return True


def read(fpath: str) -> dict:
    """The dict that a file of torch.save's holds, tensors on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableCheckpoint: it cannot be read, or holds no dict.
    """
    if fpath is None:
        raise ValueError("File path is None")
    if not os.path.exists(fpath):
        raise FileNotFoundError(f'File is not found at "{fpath}"')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how a foreign file was written; what matters raises
            check_archive(fpath)
            try:
                content = torch.load(fpath, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:
                content = _load_with_objects(fpath)
    except Exception as error:  # damaged bytes drive the readers of torch and pickle into almost any exception
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__  # torch goes on with advice
        raise UnreadableCheckpoint(f'Unable to load checkpoint from "{fpath}": {reason}') from error
    if not isinstance(content, dict):
        raise UnreadableCheckpoint(f'"{fpath}" is no checkpoint: it holds a {type(content).__name__}, not a dict')
    return content


def _is_state_dict(value) -> bool:
    return isinstance(value, dict) and all(isinstance(entry, Tensor) for entry in value.values())


def _load_with_objects(fpath: str) -> dict:
    content = torch.load(fpath, map_location="cpu", weights_only=False, pickle_module=restricted)
    return restricted.plain(content)


def load_resumable(folders: list[str], inside_epoch: bool = False) -> tuple[list[str], list[dict]]:
    """The newest checkpoint that is readable in every one of these folders: its paths and contents.

    Unreadable files are warned of and passed over. With `inside_epoch` a position counts too.

    Raises:
        NothingToResume: the first folder has no checkpoint.
        CannotResume: nothing can be read.
    """
    position = _load_position(folders) if inside_epoch else None
    names = _newest_first(folders[0])
    for name in names:
        paths = [os.path.join(folder, name) for folder in folders]
        try:
            checkpoints = [load_checkpoint(path) for path in paths]
        except (UnreadableCheckpoint, FileNotFoundError) as error:
            log.warning(f"{error}; trying an older one")
            continue
        if position is not None and _stands_at(position[1][-1]) > _stands_at(checkpoints[-1]):
            return position
        return paths, checkpoints
    if position is not None:
        return position
    if not names:
        raise NothingToResume(
            f'Cannot resume: there is no file "{os.path.join(folders[0], POINTER)}", which names the newest '
            f"checkpoint; choose another folder, or remove {folders[0]} to start afresh"
        )
    raise CannotResume(
        f"Cannot resume: no checkpoint can be read in {', '.join(folders)}; choose another folder, "
        "or remove these to start afresh"
    )


def _load_position(folders: list[str]) -> tuple[list[str], list[dict]] | None:
    """Paths and contents of the position files, if all folders have one of the same moment."""
    paths = [os.path.join(folder, POSITION) for folder in folders]
    try:
        checkpoints = [load_checkpoint(path) for path in paths]
        for path, checkpoint in zip(paths, checkpoints, strict=True):
            if not isinstance(checkpoint.get("batch"), int):
                raise UnreadableCheckpoint(f'"{path}" does not say after which batch it was saved')
            if _stands_at(checkpoint) != _stands_at(checkpoints[0]):
                raise UnreadableCheckpoint(f'"{path}" and "{paths[0]}" were saved after different batches')
    except FileNotFoundError:
        return None
    except UnreadableCheckpoint as error:
        log.warning(f"{error}; trying an older one")
        return None
    return paths, checkpoints


def _stands_at(checkpoint: dict) -> tuple[int, int]:
    """Whole epochs, and batches of the next one, that have been trained."""
    return checkpoint["epoch"], checkpoint.get("batch", 0)


def _newest_first(folder: str) -> list[str]:
    """The names of a folder's checkpoints of whole epochs; none if there are none."""
    numbered = [match for match in map(re.compile(r"model\.pth\.tar-(\d+)").fullmatch, os.listdir(folder)) if match]
    numbered.sort(key=lambda match: int(match[1]), reverse=True)
    names = [match[0] for match in numbered]
    pointer = os.path.join(folder, POINTER)
    if os.path.isfile(pointer):
        with open(pointer, encoding="utf-8", errors="replace") as file:
            names.insert(0, file.readline().strip())
    if names or os.path.isfile(os.path.join(folder, BEST)):
        names.append(BEST)
    return list(dict.fromkeys(names))


def restore(path: str, checkpoint: dict, model: nn.Module, optimizer=None, scheduler=None) -> int:
    """Load the checkpoint read from `path` into a model and, where given and saved, optimiser and schedule.

    Returns its epoch. Raises CannotResume if it does not fit the model or the optimiser.
    """
    log.info(f'Loading checkpoint from "{path}"')
    try:
        trainable.load_state_dict(model, checkpoint["state_dict"])
        log.info("Loaded model weights")
        if optimizer is not None and checkpoint.get("optimizer") is not None:
            optimizer.load_state_dict(checkpoint["optimizer"])
            log.info("Loaded optimizer")
    except ValueError as error:
        ours = "config" in checkpoint
        remedy = "choose another --output-dir" if ours else (
            "this program did not write it, so it serves for its weights only: give it as MODEL.INIT_WEIGHTS, "
            "or test it with --eval-only"
        )
        raise CannotResume(f'Cannot resume from "{path}": {error}; {remedy}') from error
    if scheduler is not None and checkpoint.get("scheduler") is not None:
        state = checkpoint["scheduler"]
        if "successor" in state:  # Dassl's warm-up, whose own count stops when the main schedule begins
            state = {"last_epoch": checkpoint["epoch"]}
        scheduler.load_state_dict(state)
        log.info("Loaded scheduler")
    log.info(f"Previous epoch: {checkpoint['epoch']}")
    return checkpoint["epoch"]


def resume_from_checkpoint(fdir: str, model: nn.Module, optimizer=None, scheduler=None) -> int:
    """Load the newest readable checkpoint of a folder; returns the number of epochs trained.

    Raises CannotResume (NothingToResume, also a FileNotFoundError) if there is none, or none that fits.
    """
    (path,), (checkpoint,) = load_resumable([fdir])
    return restore(path, checkpoint, model, optimizer, scheduler)


def load_pretrained_weights(model: nn.Module, weight_path: str) -> int:
    """Copy the entries of a file (a checkpoint, or a bare state dict) whose name and shape fit the model.

    Says which do not. Returns how many fit; none is a warning, not an error.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableCheckpoint: it cannot be read, or holds no weights.
    """
    saved = read(weight_path)
    saved = saved.get("state_dict", saved)
    if not _is_state_dict(saved):
        raise UnreadableCheckpoint(f'"{weight_path}" holds no weights: it needs a dict of tensors')
    saved = _without_module(saved)
    current = model.state_dict()
    matched = {name: value for name, value in saved.items() if name in current and value.shape == current[name].shape}
    if not matched:
        warnings.warn(f"Cannot load {weight_path} (check the key names manually)", stacklevel=2)
        return 0
    model.load_state_dict(matched, strict=False)
    log.info(f"Successfully loaded pretrained weights from {weight_path}")
    if discarded := [name for name in saved if name not in matched]:
        log.info(f"Layers discarded due to unmatched keys or size: {discarded}")
    return len(matched)


def _without_module(state: Mapping) -> dict:
    return {name.removeprefix("module."): value for name, value in state.items()}
