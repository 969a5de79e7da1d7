"""CONTRIBUTING.md's example of a new method: its four pieces of text, put where they belong, train."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import oracle
import pytest
import torch
import yaml

from p2c.clip.loading import load_backbone
from p2c.engine.checkpoint import load_checkpoint
from p2c.engine.results import read_results

ROOT = Path(__file__).resolve().parents[1]
# Each code block behind a line that begins with the file it belongs to.
BLOCKS = dict(re.findall(r"^`([^`\n]+)`[^\n]*:\n```\w+\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(),
                         re.MULTILINE | re.DOTALL))
YAML = "configs/trainers/KgCoOp/tiny_shapes.yaml"
TABLES = {"p2c/config.py": '    "TRAINER": {\n', "p2c/registry.py": "TRAINERS = {\n"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the sources with the example in it."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("p2c", "trainers", "datasets", "configs", "scripts"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", copy)
    for name, block in BLOCKS.items():
        path = copy / name
        if name in TABLES:
            before, opening, after = path.read_text().partition(TABLES[name])
            assert opening, f"{name} has no {TABLES[name]!r}"
            path.write_text(before + opening + block + after)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(block)
    return copy


@pytest.fixture(scope="module")
def trained(checkout):
    """The folder of a run by the command in the YAML's header, and its log."""
    command = "bash scripts/run.sh KgCoOp base2new_train shapes"
    assert command in BLOCKS[YAML]
    done = subprocess.run([*command.split(), "1", "OPTIM.LR", "0.05", "TRAIN.PRINT_FREQ", "1", "DATASET.NUM_SHOTS", "2",
                           "USE_CUDA", "False"], cwd=checkout, capture_output=True, text=True,
                          env={**os.environ, "PYTHON": sys.executable, "DATA": "data", "OUTPUT": "output"})
    assert done.returncode == 0, done.stderr
    return checkout / "output/base2new/train_base/shapes/shots_2/KgCoOp/tiny_shapes/seed1", done.stdout


def logged(log, name):
    """A loss by epoch: its values, batch by batch."""
    values = {}
    for epoch, value in re.findall(rf"^epoch \[(\d+)/5\].* {name} (\S+) ", log, re.MULTILINE):
        values.setdefault(int(epoch), []).append(float(value))
    return values


def test_the_example_is_one_file_one_block_one_line_and_one_yaml():
    assert list(BLOCKS) == ["trainers/kgcoop.py", *TABLES, YAML]
    assert BLOCKS["p2c/registry.py"].count("\n") == 1
    ours, coops = (yaml.safe_load(text) for text in (
        BLOCKS[YAML], (ROOT / "configs/trainers/CoOp/tiny_shapes.yaml").read_text()))
    assert ours.pop("TRAINER").keys() == {"KGCOOP"} and coops.pop("TRAINER")
    for key in ("LR", "MAX_EPOCH"):  # CoOp's were chosen by the study
        assert ours["OPTIM"].pop(key) and coops["OPTIM"].pop(key)
    assert ours == coops


def test_the_example_trains_and_saves_its_context_alone(trained):
    folder, log = trained
    results = read_results(folder)
    assert results["finished"] and results["config"]["TRAINER"]["KGCOOP"]["W"] == 8.0
    losses = logged(log, "loss")
    assert list(losses) == [1, 2, 3, 4, 5] and sum(losses[5]) < 0.9 * sum(losses[1])
    (name, context), = load_checkpoint(folder / "prompt_learner/model.pth.tar-5")["state_dict"].items()
    assert name == "ctx" and context.shape == (4, 128)


def test_the_examples_second_loss_is_eight_times_the_missing_cosine_to_the_written_texts(trained):
    folder, log = trained
    clip = load_backbone("tiny-shapes", "builtin")
    names = [clip.tokenize(f"{name}.") for name in read_results(folder)["data"]["classnames"]]

    def encode(words, context=None):
        rows = [[49406, *words, *name, 49407] for name in names]
        return oracle.encode_text(clip.model.state_dict(), rows, 4, False, context)

    written = encode(clip.tokenize("a photo of a"))
    for epoch in (2, 4):  # the first batch of the next one sees what the epoch saved
        context = load_checkpoint(folder / f"prompt_learner/model.pth.tar-{epoch}")["state_dict"]["ctx"]
        cosines = torch.nn.functional.cosine_similarity(encode([0] * 4, context), written)
        assert cosines.mean() < 0.99
        assert logged(log, "loss_kg")[epoch + 1][0] == pytest.approx(8 * (1 - cosines.mean().item()), abs=1e-4)
