"""What a run is on any engine: resumable, evaluated without side effects, recorded in results.json.

These are the parts of a trainer that do not depend on who runs the loop, this engine's trainers or real Dassl's.
"""
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor
from tqdm import tqdm

from p2c.engine.checkpoint import (
    BEST,
    CannotResume,
    NothingToResume,
    load_checkpoint,
    load_resumable,
    restore,
    save_checkpoint,
)
from p2c.engine.config import check_values, unused_keys
from p2c.engine.distributed import barrier, collect, from_main, is_main, processes
from p2c.engine.files import mkdir_if_missing
from p2c.engine.logger import on_terminal
from p2c.engine.numerics import FILE as NONFINITE
from p2c.engine.position import InsideEpoch, checkpoint_steps
from p2c.engine.results import changed_keys, changes, describe_classes, to_plain, write_finished, write_started
from p2c.engine.seeds import random_state_kept, run_seed, use_deterministic_algorithms
from p2c.utils import trainable
from p2c.utils.logs import get_logger

log = get_logger(__name__)


def noting_indices(batches: Iterable, seen: list[Tensor]) -> Iterator:
    """Yield the batches as they come; append to `seen` the indices of each one's images, where it has them."""
    for batch in batches:
        if isinstance(batch, Mapping) and "index" in batch:  # others' datasets may give none
            seen.append(batch["index"].cpu())
        yield batch


def check_each_once(split: str, total: int, counted: int, seen: list[Tensor]) -> None:
    """Raise ValueError, in every process, unless a test has counted each image of its split once.

    Args:
        total: images of the split.
        counted: images that the main process has processed the outputs of.
        seen: indices of this process's images; where batches have none, the number alone is compared.
    """
    indices = [part for part, in collect([(torch.cat(seen),)] if seen else [])]
    left_out = total - len(torch.cat(indices).unique()) if indices else max(0, total - counted)
    left_out, repeated = from_main(lambda: (left_out, counted - (total - left_out)))
    if left_out or repeated:
        raise ValueError(f"The test on the {split} images is void: of {total} images {left_out} were left out, and "
                         f"{repeated} were counted again; give the test a loader that has each image once")


class Checkpoints:
    """Saves and resumes the models that a TrainerBase has registered."""

    def save_model(
        self, epoch: int, directory: str, is_best: bool = False, val_result: float | None = None, model_name: str = ""
    ) -> None:
        """Write a checkpoint of each registered model after the epoch with this index."""
        for name in self.get_model_names() if is_main() else ():
            state = {**self.model_state(name), "epoch": epoch + 1, "val_result": val_result}
            save_checkpoint(state, os.path.join(directory, name), is_best=is_best, model_name=model_name)
        barrier()

    def model_state(self, name: str) -> dict:
        """What a checkpoint of a registered model holds, but for when it was saved."""
        optim, sched = self._optims[name], self._scheds[name]
        return {
            "state_dict": trainable.state_dict(self._models[name]),
            "optimizer": None if optim is None else optim.state_dict(),
            "scheduler": None if sched is None else sched.state_dict(),
            **self.run_state(),
        }

    def resume_model_if_exist(self, directory: str) -> int:
        """Continue from the checkpoints under a folder, if there are any; returns the epoch to start with.

        Raises CannotResume if they are another run's, do not fit or cannot be read.
        """
        names = self.get_model_names()
        if not names:
            log.info("There is nothing to train: no model is registered")
            return self.max_epoch
        folders = [os.path.join(directory, name) for name in names]
        if missing := [folder for folder in folders if not os.path.isdir(folder) or os.listdir(folder) == [NONFINITE]]:
            if len(missing) < len(folders):
                log.warning(f"There are checkpoints in {directory}, but none in {', '.join(missing)}")
            log.info("No checkpoint found, train from scratch")
            return 0
        log.info(f"Found checkpoint at {directory} (will resume training)")
        paths, checkpoints = self.load_resumable(folders)
        self.check_run_state(checkpoints[-1])
        for name, path, checkpoint in zip(names, paths, checkpoints, strict=True):
            restore(path, checkpoint, self._models[name], self._optims[name], self._scheds[name])
        self.load_run_state(checkpoints[-1])
        return checkpoints[-1]["epoch"]

    def load_resumable(self, folders: list[str]) -> tuple[list[str], list[dict]]:
        """Paths and contents of the checkpoints to continue from."""
        return load_resumable(folders)

    def run_state(self) -> dict:
        """What a checkpoint holds about the run as a whole."""
        return {"extra_state": self.extra_state()}

    def check_run_state(self, checkpoint: dict) -> None:
        """Raise CannotResume if a checkpoint is of another run; nothing has been loaded yet."""

    def load_run_state(self, checkpoint: dict) -> None:
        """Take back what `run_state` gave; a checkpoint of another engine lacks it."""
        if checkpoint.get("extra_state") is not None:
            self.load_extra_state(checkpoint["extra_state"])

    def extra_state(self) -> dict | None:
        """Hook: what else a trainer must keep to resume, as plain tensors and values."""
        return None

    def load_extra_state(self, state: dict) -> None:
        """Hook: take back what `extra_state` gave."""

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load the weights of each registered model: the best ones, or those after `epoch` epochs.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            ValueError: it cannot be read, or its weights are not those of the model.
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


class Run(Checkpoints):
    """What a SimpleTrainer's run keeps; `open_run` comes before anything else, `begin_run` when training begins."""

    dassl_version: str | None = None  # of real Dassl, where its loop runs
    start_batch = 0  # batches of start_epoch that are done already
    length_matters = True  # whether the trainer itself does something else in an epoch if more are to come
    resume_anyway = False  # whether another configuration or class list is no reason not to resume
    resumed_anyway: list[str] = []  # in words, what differed
    own_options: dict[str, list[dict]] = {}  # by model, the optimiser's settings where a checkpoint's are others
    several_processes = False  # whether the trainer averages its gradients over the processes of torchrun

    def open_run(self, cfg) -> None:
        """Check the engine's settings and begin the books. Raises ValueError or FileNotFoundError naming the key."""
        check_values(cfg)
        if processes() > 1 and not self.several_processes:
            raise ValueError(f"{type(self).__name__} trains in one process, since it does not average gradients over "
                             "several; start it without torchrun")
        if checkpoint_steps(cfg) and not (isinstance(self, InsideEpoch) and self.resumes_inside_epoch):
            log.warning(f"TRAIN.CHECKPOINT_STEPS has no effect: {type(self).__name__} resumes at whole epochs here")
        if keys := unused_keys(cfg):
            log.warning(f"Nothing reads {', '.join(keys)}: the values given have no effect")
        if cfg.TRAIN.get("DETERMINISTIC", False):
            use_deterministic_algorithms()
        self.seed = run_seed(cfg)
        self.time_built = self.started = time.time()
        self.seconds_before = 0.0  # training time of the runs that this one continues
        self.deployed_epoch = 0  # epochs of training behind the weights in use
        self.results = self.tested_split = None  # of the last test

    def begin_run(self) -> None:
        """Record that training begins at start_epoch."""
        self.deployed_epoch = self.start_epoch if self._models else 0
        write_started(self.cfg, self.output_dir, started=self.started, dassl=self.dassl_version)
        self.time_start = time.time() - self.seconds_before

    def use_data(self, dm) -> None:
        """Take loaders and classes from a DataManager, or from what has its attributes."""
        self.train_loader_x = dm.train_loader_x
        self.train_loader_u = dm.train_loader_u
        self.val_loader = dm.val_loader
        self.test_loader = dm.test_loader
        self.num_classes = dm.num_classes
        self.num_source_domains = dm.num_source_domains
        self.lab2cname = dm.lab2cname
        self.dm = dm

    def checked(self, summary: dict) -> dict:
        """What a training step reports, as it is: this engine looks at the losses when it reads them."""
        return summary

    def ask_to_stop(self) -> bool:
        """Have the training save and stop after the step in progress; False if it cannot, as it is without a loop that
        looks. For signals."""
        return False

    # Evaluation

    def check_validation(self, training: bool) -> None:
        """Raise ValueError if a test, or a training and its tests, would need validation images that are not there."""
        settings = self.cfg.TEST
        if training and settings.NO_TEST:
            return
        if settings.SPLIT == "val":
            self.require_validation("TEST.SPLIT val", "set TEST.SPLIT test")
        if training and settings.FINAL_MODEL == "best_val":
            self.require_validation("TEST.FINAL_MODEL best_val", "set TEST.FINAL_MODEL last_step")

    def require_validation(self, reader: str, remedy: str) -> None:
        """Raise ValueError if the dataset has no validation images, or has its test images in their place."""
        dataset = self.dm.dataset
        paths = [{item.impath for item in items or ()} for items in (dataset.val, dataset.test)]
        if self.val_loader is not None and paths[0].isdisjoint(paths[1]):
            return
        sizes = getattr(dataset, "sizes", None)
        reason = "has no validation images"
        if self.val_loader is not None:
            reason = "has no validation images but those that it is tested on"
        if sizes is not None and not sizes.val:
            reason = "has no validation images: its protocol has no validation split"
        raise ValueError(f"{reader} needs validation images, but {self.cfg.DATASET.NAME} {reason}; {remedy}")

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on the "val" or the "test" images, by default those of TEST.SPLIT; returns the first metric.

        Raises:
            ValueError: "val" without validation images.
        """
        split = split or self.cfg.TEST.SPLIT
        if split == "val":
            self.require_validation("A test on the split val", "test on the split test")
        loader = self.val_loader if split == "val" else self.test_loader
        self.set_model_mode("eval")
        self.evaluator.reset()
        log.info(f"Evaluate on the *{split}* set")
        with random_state_kept():
            bar = tqdm(loader, desc=split, unit="batch", leave=False, disable=not on_terminal())
            seen: list[Tensor] = []
            counted = 0
            for batch in collect(self.outputs(noting_indices(bar, seen))):
                self.process_outputs(*batch)
                counted += len(batch[1])
            check_each_once(split, len(getattr(self.dm.dataset, split)), counted, seen)
        results = from_main(self.evaluate_outputs)
        epoch = self.epoch if self.start_epoch < self.max_epoch else self.max_epoch - 1  # all were trained before
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, epoch)
        self.results, self.tested_split = dict(results), split
        return next(iter(results.values()))

    def outputs(self, loader: Iterable) -> Iterator[tuple[Tensor, ...]]:
        """What the model makes of each batch, and the labels: tensors, which `process_outputs` takes."""
        for batch in loader:
            input, label = self.parse_batch_test(batch)
            yield self.model_inference(input), label

    def process_outputs(self, output: Tensor, label: Tensor) -> None:
        """Take one of the `outputs`; in the main process, which gets all of them."""
        self.evaluator.process(output, label)

    def evaluate_outputs(self) -> dict[str, float]:
        """Name to number, the main result first; in the main process, when it has all `outputs`."""
        return self.evaluator.evaluate()

    def elapsed(self) -> float:
        """Seconds of training, resumed runs included; before training, seconds since construction."""
        return time.time() - getattr(self, "time_start", self.time_built)

    def write_results(self, mode: str, **source) -> None:
        """Write results.json to the output folder; mode is "train" or, for the test of a model that was loaded from
        `source`, "eval"."""
        write_finished(self, mode, **source)

    def to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    # Resuming

    def resume_model_if_exist(self, directory: str) -> int:
        start_epoch = super().resume_model_if_exist(directory)
        if self._models and self.cfg.RESUME and not (start_epoch or self.start_batch):
            raise NothingToResume(f'RESUME asks for "{directory}", but there is no checkpoint of this trainer in it')
        return start_epoch

    def run_state(self) -> dict:
        scaler = getattr(self, "scaler", None)
        return {
            **super().run_state(),
            "config": to_plain(self.cfg),
            "best_result": self.best_result,
            "seconds": self.elapsed(),
            "started": self.started,
            "resumed_anyway": self.resumed_anyway,
            **describe_classes(self.dm.dataset),
            "scaler": scaler.state_dict() if hasattr(scaler, "state_dict") else None,
        }

    def check_run_state(self, checkpoint: dict) -> None:
        source = self.cfg.RESUME or self.output_dir
        config, classnames = checkpoint.get("config") or {}, checkpoint.get("classnames")
        here = list(self.dm.dataset.classnames)
        faults = []
        if changed := changes(config, self.cfg, self.length_matters):
            faults.append((f", a run with other settings: {changed}",
                           " (and no --resume), give the old values, or give --resume-anyway"))
        if classnames is not None and classnames != here:
            pairs = enumerate(zip(classnames, here, strict=False))
            first = next((f"; the first that differs, {label}, was {old!r}, is {new!r}" for label, (old, new) in pairs
                          if old != new), "")
            faults.append((
                f": it was trained on {len(classnames)} classes ({', '.join(classnames[:3])}, ...), this data set has "
                f"{self.num_classes} ({', '.join(here[:3])}, ...){first}", ", or give --resume-anyway"
            ))
        if not faults:
            return
        if not self.resume_anyway or "OPTIM.NAME" in changed_keys(config, self.cfg):
            fault, remedy = faults[0]
            raise CannotResume(f"Cannot resume from {source}{fault}; choose another --output-dir{remedy}")
        self.resumed_anyway = [fault.partition(": ")[2] for fault, _ in faults]
        self.own_options = {name: [{key: value for key, value in group.items() if key not in ("params", "lr")}
                                   for group in optim.param_groups] for name, optim in self._optims.items() if optim}
        log.warning(f"Resuming from {source} anyway: {'; '.join(self.resumed_anyway)}")

    def load_run_state(self, checkpoint: dict) -> None:
        super().load_run_state(checkpoint)
        if checkpoint.get("scaler") and hasattr(getattr(self, "scaler", None), "load_state_dict"):
            self.scaler.load_state_dict(checkpoint["scaler"])
        self.seconds_before = checkpoint.get("seconds", 0.0)
        self.started = checkpoint.get("started", self.started)
        for name, options in self.own_options.items():
            for group, own in zip(self._optims[name].param_groups, options, strict=True):
                group.update(own)
        self.resumed_anyway = [*checkpoint.get("resumed_anyway", ()), *self.resumed_anyway]
        self._take_over_best_model(checkpoint)

    def _take_over_best_model(self, checkpoint: dict) -> None:
        """Go on comparing with the best model so far, which may lie in the folder that RESUME names."""
        self.best_result = checkpoint.get("best_result", self.best_result)
        for name in self.get_model_names():
            source = os.path.join(self.cfg.RESUME or self.output_dir, name, BEST)
            target = os.path.join(self.output_dir, name, BEST)
            if not os.path.isfile(source):
                continue
            if "best_result" not in checkpoint:  # one of real Dassl
                val_result = load_checkpoint(source).get("val_result")
                self.best_result = self.best_result if val_result is None else val_result
            if is_main() and not os.path.isfile(target):
                mkdir_if_missing(os.path.dirname(target))
                shutil.copyfile(source, target)
