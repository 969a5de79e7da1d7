"""Inside an epoch: a training that saves where it stands, stops there when it is asked to, and goes on from there.

Random numbers need no state: they are functions of (seed, name, step or epoch), see p2c/utils/streams.py. So only
trainers that draw from these streams alone can do it.
"""
import os

from p2c.engine.checkpoint import CannotResume, load_resumable, remove_position, save_position
from p2c.engine.data import end_workers, start_at
from p2c.engine.distributed import anywhere, barrier, is_main
from p2c.engine.progress import EpochProgress
from p2c.utils.logs import get_logger

log = get_logger(__name__)


class Stopped(Exception):
    """A training was asked to stop, and has saved where it stands."""


def checkpoint_steps(cfg) -> int:
    """TRAIN.CHECKPOINT_STEPS, 0 if the configuration lacks it."""
    return cfg.TRAIN.get("CHECKPOINT_STEPS", 0)


class InsideEpoch:
    """What a loop over batches, beside a SimpleTrainer, needs for it."""

    # Whether every random number of a step is a function of (seed, name, step or epoch). Other people's trainers draw
    # from the global generators, whose state at a step nobody keeps: they resume at the start of an epoch.
    resumes_inside_epoch = False
    _progress_before: dict | None = None  # the averages of start_epoch's first start_batch batches
    _heeds_stop = _stop_asked = False

    def ask_to_stop(self) -> bool:
        """Have the training save and raise Stopped after the step in progress; False if it cannot. For signals."""
        self._stop_asked = self._stop_asked or self._heeds_stop
        return self._heeds_stop

    # Hooks of the loop, from its first epoch to its last

    def begin_epoch(self) -> None:
        super().begin_epoch()
        if self.first_batch:
            start_at(self.train_loader_x, self.first_batch)
        self._heeds_stop = self.resumes_inside_epoch

    @property
    def first_batch(self) -> int:
        """The batch that the present epoch goes on with."""
        return self.start_batch if self.epoch == self.start_epoch else 0

    @property
    def progress_before(self) -> dict | None:
        """The averages of the batches before the first one."""
        return self._progress_before if self.first_batch else None

    def after_step(self, progress: EpochProgress) -> None:
        """Save where it is due, and stop where that was asked for."""
        if not self.resumes_inside_epoch:
            return
        stop, every = anywhere(self._stop_asked), checkpoint_steps(self.cfg)
        done = self.batch_idx + 1
        if stop or (every and (self.epoch * self.num_batches + done) % every == 0):
            self.save_position(self.epoch, done, progress.state())
        if stop:
            end_workers(self.train_loader_x)
            raise Stopped(f"Stopped after epoch [{self.epoch + 1}/{self.max_epoch}] batch [{done}/{self.num_batches}]")

    def end_epoch(self) -> None:
        super().end_epoch()
        if self.epoch + 1 == self.max_epoch:
            self._heeds_stop = False  # before the last look: no request is lost in between
        if self.resumes_inside_epoch and anywhere(self._stop_asked):
            if not self.saves_after(self.epoch + 1):
                self.save_position(self.epoch + 1, 0, None)
            end_workers(self.train_loader_x)
            raise Stopped(f"Stopped after epoch [{self.epoch + 1}/{self.max_epoch}]")

    # Files

    def save_position(self, epoch: int, batch: int, progress: dict | None) -> None:
        """Write that `epoch` whole epochs and `batch` batches of the next one are done."""
        self.flush_writer()
        for name in self.get_model_names() if is_main() else ():
            position = {"epoch": epoch, "batch": batch, "num_batches": self.num_batches, "progress": progress}
            save_position({**self.model_state(name), **position}, os.path.join(self.output_dir, name))
        barrier()

    def after_epoch(self) -> None:
        super().after_epoch()
        if self.saves_after(self.epoch + 1):
            self.remove_positions()

    def save_missing_model(self) -> None:
        super().save_missing_model()
        if self.start_epoch and not self.start_batch and self.saves_after(self.start_epoch):
            self.remove_positions()  # of a run that died before it could

    def remove_positions(self) -> None:
        for name in self.get_model_names() if is_main() else ():
            remove_position(os.path.join(self.output_dir, name))

    def load_resumable(self, folders: list[str]) -> tuple[list[str], list[dict]]:
        return load_resumable(folders, self.resumes_inside_epoch)

    def check_run_state(self, checkpoint: dict) -> None:
        super().check_run_state(checkpoint)
        batches = self.batches_per_epoch()
        if checkpoint.get("batch") and checkpoint.get("num_batches") != batches:
            raise CannotResume(
                f"Cannot resume from {self.cfg.RESUME or self.output_dir}: it stands at batch {checkpoint['batch']} of "
                f"{checkpoint.get('num_batches')} in an epoch, of which this data set makes {batches}; choose another "
                "--output-dir"
            )

    def load_run_state(self, checkpoint: dict) -> None:
        super().load_run_state(checkpoint)
        self.start_batch, self._progress_before = checkpoint.get("batch", 0), checkpoint.get("progress")
        if self.start_batch:
            log.info(f"Going on after batch {self.start_batch} of epoch {checkpoint['epoch'] + 1}")
