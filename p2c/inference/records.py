"""The record of a run of train.py, and the model with which it was tested."""
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from yacs.config import CfgNode

import p2c
from p2c import registry
from p2c.checkpoints.prompts import find_checkpoint, load_prompts
from p2c.clip.precision import Precision
from p2c.config import extend_cfg
from p2c.engine.checkpoint import BEST, load_checkpoint
from p2c.engine.config import SHARED_NODES
from p2c.engine.results import read_results, to_plain
from p2c.framework import get_cfg_default
from p2c.merging import merge_values
from p2c.model import PromptedCLIP
from p2c.prompts.context import find_same
from p2c.trainers.base import PromptTrainer
from p2c.trainers.building import init_seed, load_clip
from p2c.utils.ranges import flatten

RECORDED = {"mode": str, "seed": int, "versions": dict}  # other entries that a record must have
WITHOUT_PREDICTIONS = ("DATASET", "DATALOADER", "OPTIM", "TRAIN")  # sections that have no effect on predictions


class RecordedRun:
    """A run's folder, as far as predictions need it.

    Args:
        run: the folder, which holds results.json.
        epoch: that of the checkpoint; None: the one with which the run itself was tested.

    Attributes:
        cfg: the run's frozen configuration.
        trainer: the class of its trainer.

    Raises:
        FileNotFoundError: there is no such run, or its model is missing.
        ValueError: the run is not finished, or does not fit this version.
    """

    def __init__(self, run: str | os.PathLike, epoch: int | None = None, device: str | None = None):
        record = read_record(run)
        cfg = recorded_cfg(record, run)
        self.model_dir, self.epoch = recorded_model(record, run, epoch)
        self.classnames, self.template = recorded_classes(record, run, self.model_dir, self.epoch)
        cfg.INPUT.AS_SHOWN = predicts_as_shown(record)
        cfg.USE_CUDA = use_cuda(device)
        cfg.OUTPUT_DIR, cfg.RESUME, cfg.MODEL.INIT_WEIGHTS = os.fspath(run), "", ""  # the checkpoint holds everything
        cfg.SEED = record["seed"]
        cfg.freeze()
        self.cfg, self.trainer = cfg, registry.get_trainer(cfg.TRAINER.NAME)
        self.device = torch.device("cuda" if cfg.USE_CUDA else "cpu")

    def model(self, classes: Sequence[str] | None = None) -> PromptedCLIP:
        """Load the model in evaluation mode; `classes` are class names instead of the run's own.

        Raises:
            FileNotFoundError: the checkpoint or CLIP's weights are missing.
            ValueError: the class names are invalid, or the trainer does not derive from PromptTrainer.
        """
        cfg, trainer = self.cfg, self.trainer
        names = self.classnames if classes is None else checked_names(classes)
        if not issubclass(trainer, PromptTrainer):
            raise ValueError(f"{cfg.TRAINER.NAME} has no model of its own: it does not derive from PromptTrainer")
        precision = Precision.from_name(cfg.TRAINER[trainer.node].PREC, self.device)
        clip = load_clip(cfg, precision, self.device)
        data = SimpleNamespace(classnames=names)
        if self.template is not None:
            data.template = self.template
        model = trainer.create_model(cfg, clip, precision, data, init_seed(cfg, cfg.SEED)).eval()
        if self.model_dir is not None:
            path = find_checkpoint(self.model_dir / trainer.learner_name, self.epoch)
            try:
                self.epoch = load_prompts(model, path, trainer.__name__, cfg.TRAINER[trainer.node],
                                          cfg.MODEL.BACKBONE.WEIGHTS)
            except ValueError as error:
                if classes is None:
                    raise
                raise ValueError(f"{error}; if what {cfg.TRAINER.NAME} learned is class-specific, it cannot predict "
                                 "other classes than those of its training: leave the class list out") from error
        return model


def read_record(run: str | os.PathLike) -> dict:
    """Read a run's results.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or was written by another program.
    """
    record = read_results(os.fspath(run))
    if record is None:
        raise FileNotFoundError(f"No run at {run}: it has no results.json; give the --output-dir of a run of train.py")
    settings = flatten(record["config"])
    kinds = {**{name: (record.get(name), kind) for name, kind in RECORDED.items()},
             "config": (settings.get("TRAINER.NAME"), str), "data": (record.get("data", {}), dict)}
    if wrong := [name for name, (value, kind) in kinds.items() if not isinstance(value, kind)]:
        raise ValueError(f"{Path(run) / 'results.json'} is damaged at {', '.join(wrong)}; delete it and repeat the "
                         "run, or give another")
    return record


def recorded_cfg(record: dict, run: str | os.PathLike) -> CfgNode:
    """Return the configuration of a run, not frozen, with defaults for keys that the record lacks.

    Raises:
        ValueError: this version lacks settings on which predictions may depend, or the trainer.
    """
    cfg = get_cfg_default()
    extend_cfg(cfg)
    if plugin := record["config"].get("PLUGIN"):
        registry.load_plugin(plugin, cfg)
    settings = flatten(record["config"])
    name = settings["TRAINER.NAME"]
    try:
        node = getattr(registry.get_trainer(name), "node", "")
    except ValueError as error:
        raise ValueError(f"{run} cannot be rebuilt: {error}") from error
    known = flatten(to_plain(cfg))
    own_nodes = {name.upper(), node, *SHARED_NODES}

    def matters(key: str) -> bool:
        section, _, rest = key.partition(".")
        return rest.partition(".")[0] in own_nodes if section == "TRAINER" else section not in WITHOUT_PREDICTIONS

    if lost := [key for key in settings if key not in known and matters(key)]:
        raise ValueError(f"{run} was made by p2c {record['versions']['p2c']} with settings that p2c {p2c.__version__} "
                         f"does not know: {', '.join(lost[:5])}; use that version")
    try:
        merge_values(cfg, {key: value for key, value in settings.items() if key in known})
    except ValueError as error:
        raise ValueError(f"{Path(run) / 'results.json'} is damaged: {error}; delete it and repeat the run, or give "
                         "another") from error
    return cfg


def predicts_as_shown(record: dict) -> bool:
    """Return whether photos are predicted as a viewer shows them: as a folder's own, otherwise unless the run is older.

    Real Dassl read the images of a folder as they are stored.
    """
    shown = record["config"].get("INPUT", {}).get("AS_SHOWN")
    if record["config"]["DATASET"].get("NAME") == "Folder":
        return bool(shown) and record.get("engine") != "dassl"
    return shown is not None


def recorded_model(record: dict, run: str | os.PathLike, epoch: int | None) -> tuple[Path | None, int | None]:
    """Return the folder with the checkpoints of a run's test (None: there are none), and the epoch to load.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: the run is not finished, or the model has been trained again since.
    """
    training = record["mode"] == "train"
    if not record["finished"] and not (training and epoch is not None):
        hint = ", or choose a saved epoch (--load-epoch)" if training else ""
        raise ValueError(f"{run} is not finished: repeat its command, which continues it{hint}")
    if training:
        last = None if record["config"]["TEST"]["FINAL_MODEL"] == "best_val" else record.get("epoch")
        return Path(run), last if epoch is None else epoch
    if not record.get("model_dir"):
        return None, None
    model_dir = Path(record["model_dir"])
    trained = read_results(os.fspath(model_dir))
    if not model_dir.is_dir():
        hint = "" if model_dir.is_absolute() else f", looked for from {Path.cwd()}: run this where the test was run"
        raise FileNotFoundError(f"{run} is the test of the model in {model_dir}, which does not exist{hint}; or "
                                "give the folder of the training")
    if trained and record.get("model_seconds") not in (None, trained.get("seconds")):
        raise ValueError(f"{run} is the test of an earlier training in {model_dir}; test the new one, or give "
                         f"{model_dir} itself")
    return model_dir, record.get("load_epoch") if epoch is None else epoch


def recorded_classes(record: dict, run: str | os.PathLike, model_dir: Path | None,
                     epoch: int | None) -> tuple[list[str], str | None]:
    """Return the class names and the prompt template of a run; those of an unfinished training are in its checkpoint.

    Raises:
        ValueError: the classes are not recorded, as in evaluations by early versions.
    """
    known = record.get("data", {})
    if "classnames" not in known and record["mode"] == "train" and model_dir:
        file = BEST if epoch is None else f"model.pth.tar-{epoch}"
        known = next((load_checkpoint(os.fspath(path)) for path in sorted(model_dir.glob(f"*/{file}"))), {})
    names = known.get("classnames")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        if record["mode"] == "eval":
            raise ValueError(f"{run} does not record its classes; delete it and repeat the test")
        of_epoch = "" if epoch is None else f" for epoch {epoch}"
        raise ValueError(f"{run} does not record its classes, and it has no checkpoint that does{of_epoch}")
    return names, known.get("template")


def checked_names(classes: Sequence[str]) -> list[str]:
    """Return class names without surrounding blanks.

    Raises:
        ValueError: there are none, or names are empty or equal.
    """
    if isinstance(classes, str):
        raise ValueError(f"The classes must be a list of names, but are the text {classes!r}")
    names = [name.strip() for name in classes]
    if not names:
        raise ValueError("The list of classes is empty")
    if "" in names:
        raise ValueError(f"Class name {names.index('') + 1} of {len(names)} is empty; give each class a name")
    if same := find_same(names):
        first, second = same
        raise ValueError(f"Class names {first + 1} and {second + 1}, {names[first]!r} and {names[second]!r}, are the "
                         "same to CLIP; give each class once")
    return names


def use_cuda(device: str | None) -> bool:
    """Return whether to run on the GPU. Raise ValueError if the device is unknown or missing."""
    available = torch.cuda.is_available()
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"Unknown device {device!r}; choose from cpu, cuda")
    if device == "cuda" and not available:
        raise ValueError("There is no GPU that torch can use; choose the device cpu (python -m p2c doctor tells more)")
    return available and device != "cpu"
