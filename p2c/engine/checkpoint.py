"""Checkpoints: plain tensors and values, written atomically and read without executing code from the file."""
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
POSITION = "resume.pth.tar"  # checkpoint inside an epoch, after "epoch" whole epochs and "batch" batches of the next


class UnreadableCheckpoint(ValueError):
    """A file that is not a checkpoint, or is damaged."""


class CannotResume(ValueError):
    """A run cannot resume from the given checkpoints."""


class NothingToResume(FileNotFoundError, CannotResume):
    """There is no checkpoint to resume from."""


def plain(value, name: str = "checkpoint"):
    """Return a copy of nested containers with tensors on the CPU, numbers and text, as torch.load reads by default.

    Raise TypeError, which says where, for any other value.
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
        return value if whole else value.clone()  # torch.save writes the whole storage of a view
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"Checkpoints hold plain tensors and values, but {name} is a {type(value).__name__}")


def save_checkpoint(
    state: dict, save_dir: str, is_best: bool = False, remove_module_from_keys: bool = True, model_name: str = ""
) -> None:
    """Write `state` to `save_dir` as `model_name` or model.pth.tar-{epoch}, and record it there as the newest.

    With `is_best` a copy is written as model-best.pth.tar. `remove_module_from_keys` strips the prefix of DataParallel
    from the keys of state["state_dict"].
    """
    state = plain(state)
    if remove_module_from_keys:
        state["state_dict"] = _without_module(state["state_dict"])
    content = serialize(state)
    name = model_name or f"model.pth.tar-{state['epoch']}"
    path = os.path.join(save_dir, name)
    write_atomically(path, content)
    log.info(f"Checkpoint saved to {path}")
    write_atomically(os.path.join(save_dir, POINTER), f"{name}\n")
    if is_best:
        best = os.path.join(save_dir, BEST)
        write_atomically(best, content)
        log.info(f'Best checkpoint saved to "{best}"')


def serialize(state: dict) -> bytes:
    """Return the bytes that torch.save writes for `state`."""
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


def load_checkpoint(fpath: str) -> dict:
    """Read a checkpoint, which has at least "state_dict" and "epoch"; raise as `read`.

    Objects of other classes in a file that real Dassl wrote become None.
    """
    checkpoint = read(fpath)
    if not _is_state_dict(checkpoint.get("state_dict")) or not isinstance(checkpoint.get("epoch"), int):
        raise UnreadableCheckpoint(f'"{fpath}" is no checkpoint: it needs a "state_dict" of tensors and an "epoch"')
    return checkpoint


def read(fpath: str) -> dict:
    """Return the dict in a file that torch.save wrote, its tensors on the CPU.

    Raise FileNotFoundError if there is none, UnreadableCheckpoint if it cannot be read or does not hold a dict.
    """
    if fpath is None:
        raise ValueError("File path is None")
    if not os.path.exists(fpath):
        raise FileNotFoundError(f'File is not found at "{fpath}"')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about how foreign files were written
            check_archive(fpath)
            try:
                content = torch.load(fpath, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:
                content = torch.load(fpath, map_location="cpu", weights_only=False, pickle_module=restricted)
                content = restricted.plain(content)
    except Exception as error:  # damaged files make torch and pickle raise almost any exception
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__  # without torch's advice
        raise UnreadableCheckpoint(f'Unable to load checkpoint from "{fpath}": {reason}') from error
    if not isinstance(content, dict):
        raise UnreadableCheckpoint(f'"{fpath}" is no checkpoint: it holds a {type(content).__name__}, not a dict')
    return content


def _is_state_dict(value) -> bool:
    return isinstance(value, dict) and all(isinstance(entry, Tensor) for entry in value.values())


def load_resumable(folders: list[str], inside_epoch: bool = False) -> tuple[list[str], list[dict]]:
    """Return paths and contents of the newest checkpoint that can be read in all folders; warn of unreadable ones.

    With `inside_epoch` position files count too. Raise NothingToResume if there is none.
    """
    found = []
    for name in _newest_first(folders[0]):
        if whole := _load_all(folders, name):
            found.append(whole)
            break
    if inside_epoch and os.path.isfile(os.path.join(folders[0], POSITION)):
        if position := _load_all(folders, POSITION):
            found.append(position)
    if found:
        return max(found, key=lambda each: _trained(each[1][0]))  # of two equal ones the whole epoch
    raise NothingToResume(f"Cannot resume: no checkpoint can be read in {', '.join(folders)}, where "
                          f"{os.path.join(folders[0], POINTER)} names the newest; choose another folder, or remove "
                          "these to start from scratch")


def _load_all(folders: list[str], name: str) -> tuple[list[str], list[dict]] | None:
    """Return paths and contents of the checkpoints `name`; warn and return None if they are no common state."""
    paths = [os.path.join(folder, name) for folder in folders]
    try:
        checkpoints = [load_checkpoint(path) for path in paths]
        if len(set(map(_trained, checkpoints))) > 1:
            raise UnreadableCheckpoint(f"{' and '.join(paths)} were saved after different batches")
    except (UnreadableCheckpoint, FileNotFoundError) as error:
        log.warning(f"{error}; trying an older one")
        return None
    return paths, checkpoints


def _trained(checkpoint: dict) -> tuple[int, int]:
    """Return how many epochs, and batches of the next one, a checkpoint has been trained for."""
    return checkpoint["epoch"], checkpoint.get("batch", 0)


def _newest_first(folder: str) -> list[str]:
    """Return the names of a folder's checkpoints of whole epochs, the newest first."""
    names = [name for name in os.listdir(folder) if re.fullmatch(r"model\.pth\.tar-\d+", name)]
    names.sort(key=lambda name: int(name.rpartition("-")[2]), reverse=True)
    pointer = os.path.join(folder, POINTER)
    if os.path.isfile(pointer):
        with open(pointer, encoding="utf-8", errors="replace") as file:
            names.insert(0, file.readline().strip())
    if os.path.isfile(os.path.join(folder, BEST)):
        names.append(BEST)
    return list(dict.fromkeys(names))


def restore(
    path: str, checkpoint: dict, model: nn.Module, optimizer=None, scheduler=None, keep_options: bool = False
) -> int:
    """Load a checkpoint, read from `path`, into a model and, where given and saved, its optimiser and schedule.

    With `keep_options` the optimiser keeps its own options, such as weight decay, in place of the checkpoint's. Return
    the checkpoint's epoch. Raise CannotResume if it does not fit the model or the optimiser.
    """
    log.info(f'Loading checkpoint from "{path}"')
    try:
        trainable.load_state_dict(model, checkpoint["state_dict"])
        log.info("Loaded model weights")
        if optimizer is not None and checkpoint.get("optimizer") is not None:
            options = [{key: group[key] for key in group if key not in ("params", "lr")}
                       for group in optimizer.param_groups]
            optimizer.load_state_dict(checkpoint["optimizer"])
            if keep_options:
                for group, here in zip(optimizer.param_groups, options, strict=True):
                    group.update(here)
            log.info("Loaded optimizer")
    except ValueError as error:
        remedy = "choose another --output-dir"
        if "config" not in checkpoint:
            remedy = ("this program did not write it, so it serves for its weights only: give it as "
                      "MODEL.INIT_WEIGHTS, or test it with --eval-only")
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
    """Load a folder's newest readable checkpoint and return its epoch; raise CannotResume if none is there or fits."""
    (path,), (checkpoint,) = load_resumable([fdir])
    return restore(path, checkpoint, model, optimizer, scheduler)


def load_pretrained_weights(model: nn.Module, weight_path: str) -> int:
    """Copy the weights of a checkpoint or bare state dict whose names and shapes match the model's; log the others.

    Return how many matched; warn if none did. Raise as `read`, also if the file does not hold weights.
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
