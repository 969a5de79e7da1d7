"""Read what a training run leaves in its folder, for bit-exact comparison of two runs."""
import re
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from p2c.engine.results import read_results

SEVERAL = re.compile(r"(log\.txt|events\.out\.tfevents\.).*")  # one for each start


def curves(folder):
    """Every point of TensorBoard's files, as a list, so that a double entry shows."""
    events = EventAccumulator(str(Path(folder) / "tensorboard"), {"scalars": 0}, purge_orphaned_data=False)
    events.Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def outcome(folder):
    """All that must not depend on how often a training was interrupted, of a folder in which it has ended."""
    record = read_results(str(folder))
    kept = ("state_dict", "optimizer", "scheduler", "extra_state", "scaler", "best_result", "epoch", "val_result")
    checkpoints = {str(path.relative_to(folder)): torch.load(path) for path in sorted(folder.glob("*/*.pth.tar*"))}
    return {
        "record": {name: record.get(name) for name in ("finished", "metrics", "epoch", "weights", "skipped_steps")},
        "files": sorted({SEVERAL.sub(r"\1", str(path.relative_to(folder))) for path in folder.rglob("*")}),
        "curves": curves(folder),
        "checkpoints": {name: {key: saved.get(key) for key in kept} for name, saved in checkpoints.items()},
    }


def assert_equal(a, b, where=""):
    """Assert that nested containers and tensors are bit-identical."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), f"{where}: {sorted(a.keys() ^ b.keys())}"
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), f"{where}: {a} {b}"
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_equal(one, other, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, f"{where}: {a} {b}"
