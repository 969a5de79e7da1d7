"""A sample of `make faults`, and what torch does not notice by itself."""
import random
import re
import zipfile
from pathlib import Path

import pytest
import torch
from messages import naming

from p2c.clip.loading import read_state_dict
from p2c.engine.checkpoint import UnreadableCheckpoint, load_checkpoint, save_checkpoint
from p2c.engine.curves import CurveWriter, truncate_curves
from p2c.utils.checksums import check_archive

RUN = Path(__file__).parent / "faults" / "run.py"


def test_a_sample_of_the_fault_harness_holds(start):
    ended = start(RUN, "kills", "full_disk", "damage", "--quick", "--seed", "3")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    kills, full, damages = (int(re.search(rf"^{section}: (\d+) .*all held$", ended.stdout, re.M)[1])
                            for section in ("kills", "full_disk", "damage"))
    assert kills >= 3 and full >= 1 and damages >= 4


@pytest.fixture
def checkpoint(tmp_path):
    save_checkpoint({"state_dict": {"ctx": torch.arange(2000.0)}, "epoch": 1}, str(tmp_path))
    return tmp_path / "model.pth.tar-1"


def test_every_flipped_bit_that_changes_a_checkpoint_is_noticed(checkpoint):
    content, rng = checkpoint.read_bytes(), random.Random(1)
    refused = 0
    for _ in range(200):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        checkpoint.write_bytes(damaged)
        try:
            assert torch.equal(load_checkpoint(str(checkpoint))["state_dict"]["ctx"], torch.arange(2000.0))
        except UnreadableCheckpoint as error:
            assert str(checkpoint) in str(error)
            refused += 1
    assert refused > 150


def test_an_archive_without_checksums_passes(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weight": torch.ones(3)}, tmp_path / "clip.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(tmp_path / "clip.pt") as archive:
        assert archive.testzip()
    check_archive(tmp_path / "clip.pt")
    assert torch.equal(read_state_dict(tmp_path / "clip.pt")["weight"], torch.ones(3))


def test_clip_weights_that_are_damaged_are_refused(tmp_path):
    path = tmp_path / "clip.pt"
    torch.save({"weight": torch.ones(3000)}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=naming(path, "BadZipFile")):
        read_state_dict(path)


def test_a_damaged_point_of_a_curve_is_dropped_with_a_line(tmp_path, capsys):
    writer = CurveWriter(str(tmp_path))
    for step in range(3):
        writer.add_scalar("train/loss", 1.0, step)
    writer.close()
    path, = tmp_path.iterdir()
    content, steps = bytearray(path.read_bytes()), []
    content[-6] ^= 1  # the last point's value
    path.write_bytes(content)
    truncate_curves(str(tmp_path), lambda tag, step: steps.append(step) or True)
    assert steps == [0, 1] and f"{path} is damaged" in capsys.readouterr().out
    assert len(path.read_bytes()) < len(content)
