"""results.json: the machine-readable record of a run, with unrounded metrics and the versions of code and packages."""
import functools
import hashlib
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import numpy as np
import PIL
import torch

import p2c
from p2c.engine.distributed import is_main, processes
from p2c.engine.files import read_json, write_json
from p2c.engine.seeds import run_seed
from p2c.utils import trainable
from p2c.utils.ranges import flatten

FILE = "results.json"
FORMAT = "p2c-results"

# Keys whose values may differ between a run and its continuation: places, speed and what is written.
MAY_CHANGE = (
    "OUTPUT_DIR", "RESUME", "DATASET.ROOT", "DATALOADER.NUM_WORKERS", "TRAIN.PRINT_FREQ", "TRAIN.CHECKPOINT_FREQ",
    "TRAIN.CHECKPOINT_STEPS", "TRAIN.CUDA_GRAPH", "TRAIN.TEXT_MEMORY", "TEST.PER_CLASS_RESULT", "TEST.COMPUTE_CMAT",
    "TEST.VAL_EVERY", "USE_CUDA", "VERBOSE",
)


def write_started(cfg, directory: str, mode: str = "train", started: float | None = None, dassl: str | None = None,
                  **source) -> None:
    """Record a run that starts now, or did at the Unix time `started`; `source` is the origin of an evaluated model."""
    if is_main():
        record = {**_describe(cfg, dassl), "finished": False, "mode": mode, **source, "started": _timestamp(started)}
        write_json(record, os.path.join(directory, FILE))


def write_finished(trainer, mode: str, **source) -> None:
    """Record in the trainer's output folder that a run has finished ("train") or a model was evaluated ("eval")."""
    if not is_main():
        return
    cfg = trainer.cfg
    record = {**_describe(cfg, trainer.dassl_version), "finished": True, "mode": mode, **source}
    record["epoch"] = trainer.deployed_epoch
    record["weights"] = digest_weights(trainer)
    if trainer.results is not None:
        record["split"], record["metrics"] = trainer.tested_split, measured(trainer)
    if mode == "train" and hasattr(trainer, "skipped_steps"):
        record["skipped_steps"] = trainer.skipped_steps
    record["device"] = str(trainer.device)
    record["gpu"] = torch.cuda.get_device_name(trainer.device) if trainer.device.type == "cuda" else None
    record["threads"], record["processes"] = torch.get_num_threads(), processes()  # sums may depend on them
    record["data"] = describe_data(trainer.dm.dataset, cfg.DATASET.ROOT)
    record["started"], record["ended"] = _timestamp(trainer.started), _timestamp()
    record["seconds"] = trainer.elapsed()
    if trainer.resumed_anyway:
        record["resumed_anyway"] = trainer.resumed_anyway
    write_json(record, os.path.join(trainer.output_dir, FILE))


def measured(trainer) -> dict:
    """Return the metrics and counts of a trainer's last test, the accuracy of each class and the calibration.

    Real Dassl's evaluator gives no calibration.
    """
    evaluator = trainer.evaluator  # real Dassl's keeps the counts under private names
    counts = {name: getattr(evaluator, name, getattr(evaluator, f"_{name}", None)) for name in ("correct", "total")}
    counts = {name: count for name, count in counts.items() if count is not None}
    predictions = trainer.predictions
    classes = {} if predictions is None else {"class_accuracy": predictions.class_accuracy(trainer.num_classes)}
    return {**trainer.results, **counts, **getattr(evaluator, "calibration", {}), **classes}


def read_results(directory: str) -> dict | None:
    """Read the results.json of a run folder, None if there is none; raise ValueError if it is damaged or not ours."""
    path = os.path.join(directory, FILE)
    if not os.path.isfile(path):
        return None
    remedy = "delete it, or choose another folder"
    try:
        record = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); {remedy}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT or "finished" not in record \
            or not isinstance(record.get("config"), dict):
        raise ValueError(f'{path} is not of this program: it needs "format": "{FORMAT}", "finished" and "config"; '
                         f"{remedy}")
    return record


def changed_keys(old: dict, cfg, length_matters: bool = True) -> list[str]:
    """Return the dotted keys, MAY_CHANGE aside, whose values differ between the "config" of a results.json and a cfg.

    A key that only one of the two has is ignored: the program changed, not the run. A larger MAX_EPOCH counts if the
    trainer, the learning rates or the noise of earlier epochs depend on it.
    """
    old, new = flatten(old), flatten(to_plain(cfg))
    keys = [key for key in new if key in old and key not in MAY_CHANGE and old[key] != new[key]]
    if not length_matters and "OPTIM.MAX_EPOCH" in keys and new["OPTIM.MAX_EPOCH"] > old["OPTIM.MAX_EPOCH"]:
        noise = cfg.TRAINER.get("PROMPT_DENOISING")
        constant_noise = not noise or not noise.ENABLED or noise.SCHEDULE == "constant"
        if constant_noise and cfg.OPTIM.LR_SCHEDULER in ("single_step", "multi_step"):  # they depend on the epoch alone
            keys.remove("OPTIM.MAX_EPOCH")
    return keys


def describe_changes(old: dict, cfg, length_matters: bool = True) -> str:
    """Describe the `changed_keys` for a message, such as "OPTIM.LR was 0.0035, is 0.5"; return "" if there are none."""
    keys = changed_keys(old, cfg, length_matters)
    old, new = flatten(old), flatten(to_plain(cfg))
    parts = [f"{key} was {old[key]!r}, is {new[key]!r}" for key in keys[:3]]
    if more := keys[3:]:
        parts.append(f"and {len(more)} more ({', '.join(more)})")
    return "; ".join(parts)


def to_plain(node):
    """Return a config tree as nested dicts and lists."""
    if isinstance(node, dict):
        return {key: to_plain(value) for key, value in node.items()}
    return [to_plain(value) for value in node] if isinstance(node, list | tuple) else node


def fingerprint(dataset, root: str) -> str:
    """Return the SHA-256 of the images of train_x, val and test: path below the data root, label, class name.

    Paths are compared as text, so that a root written with "..", or a link to it, gives the same result.
    """
    root = os.path.expanduser(root)
    digest = hashlib.sha256()
    for items in (dataset.train_x, dataset.val, dataset.test):
        for item in items or ():
            path = os.path.relpath(item.impath, root).replace(os.sep, "/")
            digest.update(f"{path}\t{item.label}\t{item.classname}\n".encode())
    return digest.hexdigest()


def digest_weights(trainer) -> str | None:
    """Return the SHA-256 of the trained weights (names, types, shapes and values), None if nothing is trained."""
    names = trainer.get_model_names()
    digest = hashlib.sha256()
    for name in names:
        for key, value in trainable.state_dict(trainer._models[name]).items():
            value = value.detach().cpu().contiguous()
            digest.update(f"{name}\t{key}\t{value.dtype}\t{tuple(value.shape)}\n".encode())
            digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest() if names else None


def describe_classes(dataset) -> dict:
    """Return a dataset's class names by label and its prompt template, None if it has none."""
    return {"classnames": list(dataset.classnames), "template": getattr(dataset, "template", None)}


def _describe(cfg, dassl: str | None) -> dict:
    return {
        "format": FORMAT,
        "version": 1,
        "engine": "dassl" if dassl else "p2c",
        "trainer": cfg.TRAINER.NAME,
        "dataset": cfg.DATASET.NAME,
        "subsample_classes": cfg.DATASET.get("SUBSAMPLE_CLASSES", "all"),
        "num_shots": cfg.DATASET.NUM_SHOTS,
        "seed": run_seed(cfg),
        "config": to_plain(cfg),
        "code": code(),
        "versions": versions(dassl),
    }


def describe_data(dataset, root: str) -> dict:
    """Return the sizes of a run's splits, its classes, and the fingerprint of its images."""
    sizes = {split: len(getattr(dataset, split) or ()) for split in ("train_x", "val", "test")}
    return {
        **sizes,
        "num_classes": dataset.num_classes,
        **describe_classes(dataset),
        "fingerprint": fingerprint(dataset, root),
    }


def _timestamp(seconds: float | None = None) -> str:
    """Format a Unix time, or now, in UTC: 2026-01-31T12:00:00+00:00."""
    moment = datetime.now(timezone.utc) if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)
    return moment.isoformat(timespec="seconds")


# Provenance


def versions(dassl: str | None = None) -> dict[str, str | None]:
    """Return the versions of Python and packages; `dassl` is the version of real Dassl if that runs the trainer."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": metadata.version("torchvision"),
        "open_clip_torch": metadata.version("open_clip_torch"),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "cuda": torch.version.cuda,
        "p2c": p2c.__version__,
        "dassl": dassl,
    }


@functools.cache
def code() -> dict:
    """Return this package's version and, None if git cannot tell, the commit and whether tracked files differ."""
    described = describe_checkout(Path(p2c.__file__).resolve().parents[1])
    commit, _, dirty = (described or "").partition("-")
    return {"version": p2c.__version__, "commit": commit or None, "dirty": bool(dirty) if commit else None}


def describe_checkout(root: Path) -> str | None:
    """Return a checkout's commit, with "-dirty" if tracked files differ; None if `root` is not one's, or git fails."""
    if not (root / ".git").exists():
        return None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
