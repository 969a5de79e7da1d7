"""A run on either engine: checkpoints and resuming, evaluation without side effects, the record in results.json.

These parts of a trainer do not depend on whether this engine or real Dassl runs the loop.
"""
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from yacs.config import CfgNode

from p2c.engine.checkpoint import (
    BEST,
    CannotResume,
    NothingToResume,
    load_checkpoint,
    load_resumable,
    restore,
    save_checkpoint,
)
from p2c.engine.config import check_values, doubts, unused_keys
from p2c.engine.distributed import barrier, from_main, gather, is_main, processes
from p2c.engine.evaluation import EvaluatorBase
from p2c.engine.files import mkdir_if_missing
from p2c.engine.logger import on_terminal, print_on_terminal
from p2c.engine.numerics import FILE as NONFINITE
from p2c.engine.predictions import Predictions
from p2c.engine.progress import header
from p2c.engine.results import changed_keys, describe_changes, describe_classes, to_plain, write_finished, write_started
from p2c.engine.seeds import preserve_random_state, run_seed, use_deterministic_algorithms
from p2c.utils import trainable
from p2c.utils.logs import get_logger

log = get_logger(__name__)


def noting_indices(batches: Iterable, seen: list[Tensor]) -> Iterator:
    """Yield the batches; append the indices of their images, which those of a plugin may lack, to `seen`."""
    for batch in batches:
        if isinstance(batch, Mapping) and "index" in batch:
            seen.append(batch["index"].cpu())
        yield batch


class Run:
    """State of a trainer's run. Call `open_run` before anything else, and `begin_run` when training begins."""

    # Attributes of the trainer's loop, this engine's or real Dassl's
    cfg: CfgNode
    device: torch.device
    output_dir: str
    evaluator: EvaluatorBase
    start_epoch: int
    max_epoch: int
    epoch: int
    batch_idx: int
    num_batches: int
    best_result: float
    dm: Any
    val_loader: Any
    test_loader: Any
    num_classes: int
    _models: dict[str, nn.Module]
    _optims: dict[str, Any]  # optimisers or None, as the schedules
    _scheds: dict[str, Any]
    get_model_names: Callable[..., list[str]]
    set_model_mode: Callable[..., None]
    write_scalar: Callable[..., None]
    parse_batch_test: Callable[..., Any]
    model_inference: Callable[..., Tensor]
    scaler: torch.amp.GradScaler | None = None

    dassl_version: str | None = None  # set if real Dassl runs the loop
    start_batch = 0  # batches of start_epoch that have been trained already
    length_matters = True  # whether what the trainer does in an epoch depends on MAX_EPOCH
    resumes_inside_epoch = False  # whether all random numbers of a step are functions of (seed, name, step or epoch)
    resume_anyway = False  # whether to resume with another configuration or other classes
    resumed_anyway: list[str] = []  # descriptions of what differed
    resumed_from: list[str] = []  # paths of the checkpoints
    supports_distributed = False  # whether the trainer averages its gradients over the processes of torchrun
    results: dict | None = None  # of the last test
    tested_split: str | None = None
    output_columns: tuple[str, ...] = ()  # names of what a trainer's `outputs` have behind the labels, (B,) each
    predictions: Predictions | None = None  # of the last test; None if the batches have no "index"

    def open_run(self, cfg) -> None:
        """Check the engine's settings, as `check_values` does, and start the clock."""
        check_values(cfg)
        if processes() > 1 and not self.supports_distributed:
            raise ValueError(f"{type(self).__name__} trains in one process, since it does not average gradients over "
                             "several; start it without torchrun")
        self.saves_inside_epoch = self.resumes_inside_epoch and self.dassl_version is None
        if cfg.TRAIN.get("CHECKPOINT_STEPS", 0) and not self.saves_inside_epoch:
            log.warning(f"TRAIN.CHECKPOINT_STEPS has no effect: {type(self).__name__} resumes at whole epochs here")
        if keys := unused_keys(cfg):
            log.warning(f"Nothing reads {', '.join(keys)}: the values given have no effect")
        for doubt in doubts(cfg):
            log.warning(doubt)
        if cfg.TRAIN.get("DETERMINISTIC", False):
            use_deterministic_algorithms()
        self.seed = run_seed(cfg)
        self.time_start = self.started = time.time()
        self.seconds_before = 0.0  # training time of the runs that this one continues
        self.deployed_epoch = 0  # epochs that the current weights have been trained for

    def begin_run(self) -> None:
        """Record that training starts at start_epoch."""
        self.deployed_epoch = self.start_epoch if self._models else 0
        write_started(self.cfg, self.output_dir, started=self.started, dassl=self.dassl_version)
        self.time_start = time.time() - self.seconds_before
        self.introduce(training=True)

    def introduce(self, training: bool) -> None:
        """Show on a terminal what the run does; nowhere else, where the log says it in full."""
        if on_terminal():
            print_on_terminal(header(self, training))

    def checked(self, summary: dict) -> dict:
        """Return the numbers of a training step unchanged: this engine checks the losses when it reads them."""
        return summary

    def ask_to_stop(self) -> bool:
        """Return False: this loop cannot save and stop after the current step."""
        return False

    # Evaluation

    def check_validation(self, training: bool) -> None:
        """Raise ValueError if the test or, with `training`, the training needs validation images that are missing."""
        settings = self.cfg.TEST
        if training and settings.NO_TEST:
            return
        if settings.SPLIT == "val":
            self.require_validation("TEST.SPLIT val", "set TEST.SPLIT test")
        if training and settings.FINAL_MODEL == "best_val":
            self.require_validation("TEST.FINAL_MODEL best_val", "set TEST.FINAL_MODEL last_step")
        if training and settings.get("VAL_EVERY", 0):
            self.require_validation(f"TEST.VAL_EVERY {settings.VAL_EVERY}", "set TEST.VAL_EVERY 0")

    def validates_after(self, epochs: int) -> bool:
        """Return whether the validation images are tested after this number of epochs."""
        settings = self.cfg.TEST
        every = settings.get("VAL_EVERY", 0)
        return not settings.NO_TEST and (settings.FINAL_MODEL == "best_val" or every > 0 and epochs % every == 0)

    def require_validation(self, reader: str, remedy: str) -> None:
        """Raise ValueError if the dataset has no validation images of its own."""
        dataset = self.dm.dataset
        val, test = ({item.impath for item in items or ()} for items in (dataset.val, dataset.test))
        if self.val_loader is None or not val.isdisjoint(test):
            raise ValueError(f"{reader} needs validation images, but {self.cfg.DATASET.NAME} has none that it is not "
                             f"tested on; {remedy}")

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on the split "val" or "test", by default TEST.SPLIT, and return the first metric.

        Raise ValueError if there are no validation images for "val", or the loader does not give each image once.
        """
        split = split or self.cfg.TEST.SPLIT
        if split == "val":
            self.require_validation("A test on the split val", "test on the split test")
        loader = self.val_loader if split == "val" else self.test_loader
        self.set_model_mode("eval")
        self.evaluator.reset()
        log.info(f"Evaluate on the *{split}* set")
        counted, seen = 0, list[Tensor]()
        predictions = Predictions(self.output_columns)
        with preserve_random_state():
            bar = tqdm(loader, desc=split, unit="batch", leave=False, disable=not on_terminal())
            for batch in gather(self.outputs(noting_indices(bar, seen))):
                self.process_outputs(*batch)
                predictions.add(*batch)
                counted += len(batch[1])
        indices = list(gather([(torch.cat(seen),)] if seen else []))
        given, total = from_main(lambda: counted), len(getattr(self.dm.dataset, split))
        different = from_main(lambda: len(torch.cat([part for part, in indices]).unique()) if indices else counted)
        if not given == different == total:
            raise ValueError(f"The test on the {split} images is invalid: its loader gave {given} images, {different} "
                             f"of them different, but there are {total}; give the test a loader that has each image "
                             "once")
        self.predictions = predictions if indices else None
        if indices:
            predictions.arrange(torch.cat([part for part, in indices]))
        results = from_main(self.evaluate_outputs)
        epoch = self.epoch if self.start_epoch < self.max_epoch else self.max_epoch - 1  # nothing was left to train
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, epoch)
        self.results, self.tested_split = dict(results), split
        return next(iter(results.values()))

    def outputs(self, loader: Iterable) -> Iterator[tuple[Tensor, ...]]:
        """Yield the model's output and the labels of each batch, and its `output_columns`, as tensors."""
        for batch in loader:
            input, label = self.parse_batch_test(batch)
            yield self.model_inference(input), label

    def process_outputs(self, output: Tensor, label: Tensor, *more: Tensor) -> None:
        """Pass one of the `outputs` to the evaluator; the main process gets those of all processes."""
        self.evaluator.process(output, label)

    def evaluate_outputs(self) -> dict[str, float]:
        """Return a dict from metric to value, the main metric first; called in the main process after all `outputs`."""
        return self.evaluator.evaluate()

    def elapsed(self) -> float:
        """Return the seconds of training, including resumed runs, or before training the seconds since construction."""
        return time.time() - self.time_start

    def write_results(self, mode: str, **source) -> None:
        """Write predictions.csv, then results.json; mode is "train", or "eval" for a model loaded from `source`."""
        if self.predictions is not None and self.tested_split is not None:
            data = self.dm.dataset
            self.predictions.write(self.output_dir, getattr(data, self.tested_split), self.cfg.DATASET.ROOT,
                                   data.classnames)
        write_finished(self, mode, **source)

    # Checkpoints

    def save_model(
        self, epoch: int, directory: str, is_best: bool = False, val_result: float | None = None, model_name: str = ""
    ) -> None:
        """Write a checkpoint of each registered model after the epoch with this index."""
        if is_main():
            for name in self.get_model_names():
                state = {**self.model_state(name), "epoch": epoch + 1, "val_result": val_result}
                save_checkpoint(state, os.path.join(directory, name), is_best=is_best, model_name=model_name)
        barrier()

    def model_state(self, name: str) -> dict:
        """Return the content of a registered model's checkpoint, except for the epoch."""
        optim, sched = self._optims[name], self._scheds[name]
        return {
            "state_dict": trainable.state_dict(self._models[name]),
            "optimizer": None if optim is None else optim.state_dict(),
            "scheduler": None if sched is None else sched.state_dict(),
            **self.run_state(),
        }

    def run_state(self) -> dict:
        """Return what a checkpoint holds about the run as a whole."""
        return {
            "extra_state": self.extra_state(),
            "config": to_plain(self.cfg),
            "best_result": self.best_result,
            "seconds": self.elapsed(),
            "started": self.started,
            "resumed_anyway": self.resumed_anyway,
            **describe_classes(self.dm.dataset),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }

    def extra_state(self) -> dict | None:
        """Return what else a trainer needs to resume, as plain tensors and values; a hook."""
        return None

    def load_extra_state(self, state: dict) -> None:
        """Restore the result of `extra_state`; a hook."""

    def resume_model_if_exist(self, directory: str) -> int:
        """Resume from the checkpoints in a folder, if there are any, and return the epoch to start with.

        Raise CannotResume if they belong to another run, do not fit or cannot be read, or RESUME names none.
        """
        names = self.get_model_names()
        if not names:
            log.info("There is nothing to train: no model is registered")
            return self.max_epoch
        folders = [os.path.join(directory, name) for name in names]
        if missing := [folder for folder in folders if not os.path.isdir(folder) or os.listdir(folder) == [NONFINITE]]:
            if self.cfg.RESUME:
                raise NothingToResume(f'RESUME asks for "{directory}", but no checkpoint of this trainer is in it')
            if len(missing) < len(folders):
                log.warning(f"There are checkpoints in {directory}, but none in {', '.join(missing)}")
            log.info("No checkpoint found, train from scratch")
            return 0
        log.info(f"Found checkpoint at {directory} (will resume training)")
        self.resumed_from, checkpoints = load_resumable(folders, self.saves_inside_epoch)
        self.check_run_state(checkpoints[-1])
        for name, path, checkpoint in zip(names, self.resumed_from, checkpoints, strict=True):
            restore(path, checkpoint, self._models[name], self._optims[name], self._scheds[name],
                    keep_options=bool(self.resumed_anyway))
        self.load_run_state(checkpoints[-1])
        return checkpoints[-1]["epoch"]

    def check_run_state(self, checkpoint: dict) -> None:
        """Raise CannotResume if a checkpoint belongs to another run; called before anything is loaded."""
        source = self.cfg.RESUME or self.output_dir
        config, classes = checkpoint.get("config") or {}, checkpoint.get("classnames")
        here = list(self.dm.dataset.classnames)
        faults = []
        if changed := describe_changes(config, self.cfg, self.length_matters):
            faults.append(changed)
        if classes is not None and classes != here:
            differing = [f"; the first that differs, {label}, was {old!r}, is {new!r}"
                         for label, (old, new) in enumerate(zip(classes, here, strict=False)) if old != new]
            faults.append(f"it was trained on {len(classes)} classes ({', '.join(classes[:3])}, ...), this dataset has "
                          f"{self.num_classes} ({', '.join(here[:3])}, ...){''.join(differing[:1])}")
        if not faults:
            return
        if not self.resume_anyway or "OPTIM.NAME" in changed_keys(config, self.cfg):
            raise CannotResume(f"Cannot resume from {source}, another run: {'; '.join(faults)}; choose another "
                               "--output-dir (and no --resume), give the old settings, or give --resume-anyway")
        self.resumed_anyway = faults
        log.warning(f"Resuming from {source} anyway: {'; '.join(faults)}")

    def load_run_state(self, checkpoint: dict) -> None:
        """Restore the result of `run_state`, of which a checkpoint of another engine lacks parts."""
        if checkpoint.get("extra_state") is not None:
            self.load_extra_state(checkpoint["extra_state"])
        if checkpoint.get("scaler") and self.scaler is not None:
            self.scaler.load_state_dict(checkpoint["scaler"])
        self.seconds_before = checkpoint.get("seconds", 0.0)
        self.started = checkpoint.get("started", self.started)
        self.resumed_anyway = [*checkpoint.get("resumed_anyway", ()), *self.resumed_anyway]
        self._restore_best_model(checkpoint)

    def _restore_best_model(self, checkpoint: dict) -> None:
        """Restore the best result so far, and copy the best model from the folder RESUME if it is not here yet."""
        self.best_result = checkpoint.get("best_result", self.best_result)
        for name in self.get_model_names():
            source = os.path.join(self.cfg.RESUME or self.output_dir, name, BEST)
            target = os.path.join(self.output_dir, name, BEST)
            if not os.path.isfile(source):
                continue
            if "best_result" not in checkpoint:  # written by real Dassl
                val_result = load_checkpoint(source).get("val_result")
                self.best_result = self.best_result if val_result is None else val_result
            if is_main() and not os.path.isfile(target):
                mkdir_if_missing(os.path.dirname(target))
                shutil.copyfile(source, target)

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load the weights of each registered model: the best ones, or those after `epoch` epochs.

        Raise FileNotFoundError if there is no such checkpoint, ValueError if it cannot be read or does not fit.
        """
        if not directory:
            log.info("Note that load_model() is skipped as no pretrained model is given")
            return
        for name in self.get_model_names():
            path = os.path.join(directory, name, BEST if epoch is None else f"model.pth.tar-{epoch}")
            checkpoint = load_checkpoint(path)
            trainable.load_state_dict(self._models[name], checkpoint["state_dict"])
            details = f"epoch={checkpoint['epoch']}"
            if checkpoint.get("val_result") is not None:
                details += f", val_result={checkpoint['val_result']:.1f}"
            log.info(f"Load {path} to {name} ({details})")
            self.deployed_epoch = checkpoint["epoch"]
