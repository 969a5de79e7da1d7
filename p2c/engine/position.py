"""The loop over batches, which can save, stop and resume inside an epoch.

That needs no state of random generators, since random numbers are functions of (seed, name, step or epoch), see
p2c/utils/streams.py. Trainers that draw other random numbers resume at the start of an epoch.
"""
import os
from collections.abc import Iterable

from p2c.engine.base import SimpleTrainer
from p2c.engine.checkpoint import CannotResume, load_resumable, remove_position, save_position
from p2c.engine.data import end_workers, start_at
from p2c.engine.distributed import any_process, barrier, is_main
from p2c.engine.numerics import NonFiniteLoss, save_nonfinite_state
from p2c.engine.progress import EpochProgress
from p2c.engine.run import checkpoint_steps
from p2c.utils.logs import get_logger

log = get_logger(__name__)


class Stopped(Exception):
    """Training was asked to stop, and has saved its position."""


class BatchLoop(SimpleTrainer):
    """A trainer that runs batch by batch and can save, stop and resume after any of them."""

    resumes_inside_epoch = False  # whether all random numbers of a step are functions of (seed, name, step or epoch)
    _progress_before: dict | None = None  # averages over the first start_batch batches of start_epoch
    _can_stop = _stop_asked = False

    @property
    def saves_inside_epoch(self) -> bool:
        return self.resumes_inside_epoch

    def ask_to_stop(self) -> bool:
        """Make training save and raise Stopped after the current step; return whether it can. For signals."""
        self._stop_asked = self._stop_asked or self._can_stop
        return self._can_stop

    # The loop

    def run_batches(self, batches: Iterable[tuple], num_batches: int) -> None:
        """Run an epoch over tuples of arguments for `forward_backward`, with progress lines and curves.

        `batches` starts with number `first_batch`; those before it have been trained already.
        """
        self.set_model_mode("train")
        self.num_batches = num_batches
        freq = self.cfg.TRAIN.PRINT_FREQ
        first = self.first_batch
        progress = EpochProgress(self.epoch, self.max_epoch, num_batches, freq, self.write_scalar, first,
                                 self.progress_before)
        try:
            with progress:
                for self.batch_idx, batch in enumerate(progress.timed(batches), first):
                    used_lr = self.get_current_lr()
                    summary = self.forward_backward(*batch)
                    progress.record(self.batch_idx, summary, self.get_current_lr(), used_lr)
                    self.after_step(progress)
        except NonFiniteLoss as error:
            raise save_nonfinite_state(self, error, progress.recent()) from error

    def begin_epoch(self) -> None:
        super().begin_epoch()
        if self.first_batch:
            start_at(self.train_loader_x, self.first_batch)
        self._can_stop = self.resumes_inside_epoch

    @property
    def first_batch(self) -> int:
        """Return the index of the first batch to train in this epoch."""
        return self.start_batch if self.epoch == self.start_epoch else 0

    @property
    def progress_before(self) -> dict | None:
        """Return the averages over the batches before the first one."""
        return self._progress_before if self.first_batch else None

    def after_step(self, progress: EpochProgress) -> None:
        """Save the position if it is due, and stop if that was asked for."""
        if not self.resumes_inside_epoch:
            return
        stop, every = any_process(self._stop_asked), checkpoint_steps(self.cfg)
        done = self.batch_idx + 1
        if stop or (every and (self.epoch * self.num_batches + done) % every == 0):
            self.save_position(self.epoch, done, progress.state())
        if stop:
            end_workers(self.train_loader_x)
            raise Stopped(f"Stopped after epoch [{self.epoch + 1}/{self.max_epoch}] batch [{done}/{self.num_batches}]")

    def end_epoch(self) -> None:
        super().end_epoch()
        if self.epoch + 1 == self.max_epoch:
            self._can_stop = False  # before the last check of _stop_asked, so that no request is lost
        if self.resumes_inside_epoch and any_process(self._stop_asked):
            if not self.saves_after(self.epoch + 1):
                self.save_position(self.epoch + 1, 0, None)
            end_workers(self.train_loader_x)
            raise Stopped(f"Stopped after epoch [{self.epoch + 1}/{self.max_epoch}]")

    # Position files

    def save_position(self, epoch: int, batch: int, progress: dict | None) -> None:
        """Save the state after `epoch` whole epochs and `batch` batches of the next one."""
        self.flush_writer()
        position = {"epoch": epoch, "batch": batch, "num_batches": self.num_batches, "progress": progress}
        if is_main():
            for name in self.get_model_names():
                save_position({**self.model_state(name), **position}, os.path.join(self.output_dir, name))
        barrier()

    def after_epoch(self) -> None:
        super().after_epoch()
        if self.saves_after(self.epoch + 1):
            self.remove_positions()

    def save_missing_model(self) -> None:
        super().save_missing_model()
        if self.start_epoch and not self.start_batch and self.saves_after(self.start_epoch):
            self.remove_positions()  # left by a run that was killed before it removed them

    def remove_positions(self) -> None:
        """Delete the position files, once a checkpoint has superseded them."""
        if is_main():
            for name in self.get_model_names():
                remove_position(os.path.join(self.output_dir, name))

    def load_resumable(self, folders: list[str]) -> tuple[list[str], list[dict]]:
        return load_resumable(folders, self.resumes_inside_epoch)

    def check_run_state(self, checkpoint: dict) -> None:
        super().check_run_state(checkpoint)
        batches = self.batches_per_epoch()
        if checkpoint.get("batch") and checkpoint.get("num_batches") != batches:
            raise CannotResume(
                f"Cannot resume from {self.cfg.RESUME or self.output_dir}: it was saved after batch "
                f"{checkpoint['batch']} of {checkpoint.get('num_batches')}, but this dataset has {batches} per epoch; "
                "choose another --output-dir"
            )

    def load_run_state(self, checkpoint: dict) -> None:
        super().load_run_state(checkpoint)
        self.start_batch, self._progress_before = checkpoint.get("batch", 0), checkpoint.get("progress")
        if self.start_batch:
            log.info(f"Resuming after batch {self.start_batch} of epoch {checkpoint['epoch'] + 1}")
