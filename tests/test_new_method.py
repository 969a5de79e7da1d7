"""CONTRIBUTING.md's example of a new method: its four pieces of text, put where they belong, train."""
import os
import re
import shutil
import subprocess
from pathlib import Path

import oracle
import pytest
import torch
import yaml

from p2c.clip.loading import load_backbone
from p2c.framework import load_checkpoint, read_results

ROOT = Path(__file__).resolve().parents[1]
# Each code block behind a line that begins with the file it belongs to.
BLOCKS = dict(re.findall(r"^`([^`\n]+)`[^\n]*:\n```\w+\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(),
                         re.MULTILINE | re.DOTALL))
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
def train(checkout):
    """train(out, key, value, ...): a run by the command in the YAML's header; its folder and its log."""
    def run(out, *pairs):
        script = "scripts/run.sh", "KgCoOp", "base2new_train", "shapes", "1"
        assert f"bash {' '.join(script[:-1])}" in BLOCKS["configs/trainers/KgCoOp/tiny_shapes.yaml"]
        done = subprocess.run(["bash", *script, "DATASET.NUM_SHOTS", "2", "USE_CUDA", "False", *pairs], cwd=checkout,
                              capture_output=True, text=True, env={**os.environ, "OUTPUT": out})
        assert done.returncode == 0, done.stderr
        return checkout / out / "base2new/train_base/shapes/shots_2/KgCoOp/tiny_shapes/seed1", done.stdout
    return run


def averages(log, name):
    """What a loss came to over each epoch."""
    last = {epoch: float(mean) for epoch, mean in
            re.findall(rf"^epoch \[(\d+)/\d+\].*\b{name} \S+ \((\S+)\)", log, re.MULTILINE)}
    return list(last.values())


def test_the_example_is_one_file_one_block_one_line_and_one_yaml():
    assert list(BLOCKS) == ["trainers/kgcoop.py", *TABLES, "configs/trainers/KgCoOp/tiny_shapes.yaml"]
    assert BLOCKS["p2c/registry.py"].count("\n") == 1
    ours, coops = (yaml.safe_load(text) for text in (
        BLOCKS["configs/trainers/KgCoOp/tiny_shapes.yaml"],
        (ROOT / "configs/trainers/CoOp/tiny_shapes.yaml").read_text()))
    assert ours.pop("TRAINER").keys() == {"KGCOOP"} and coops.pop("TRAINER")
    assert ours == coops


def test_the_example_trains_and_saves_its_context_alone(train):
    folder, log = train("output")
    results = read_results(folder)
    assert results["finished"] and results["config"]["TRAINER"]["KGCOOP"]["W"] == 8.0
    losses = averages(log, "loss")
    assert len(losses) == 5 and losses[-1] < losses[0]
    context, = load_checkpoint(folder / "prompt_learner/model.pth.tar-5")["state_dict"].items()
    assert context[0] == "ctx" and context[1].shape == (4, 128)


def test_the_examples_second_loss_is_eight_times_the_missing_cosine_to_the_written_texts(train):
    folder, log = train("still", "OPTIM.LR", "0.0", "OPTIM.WARMUP_EPOCH", "-1", "OPTIM.MAX_EPOCH", "1",
                        "TRAINER.KGCOOP.CTX_INIT", "")
    clip = load_backbone("tiny-shapes", "builtin")
    state = clip.model.state_dict()
    context = load_checkpoint(folder / "prompt_learner/model.pth.tar-1")["state_dict"]["ctx"]
    names = [clip.tokenize(f"{name}.") for name in read_results(folder)["data"]["classnames"]]
    learned = oracle.encode_text(state, [[49406] * 5 + name + [49407] for name in names], 4, False, context)
    written = oracle.encode_text(
        state, [[49406, *clip.tokenize("a photo of a"), *name, 49407] for name in names], 4, False)
    missing = 1 - torch.nn.functional.cosine_similarity(learned, written).mean().item()
    assert missing > 0.01
    assert averages(log, "loss_kg") == pytest.approx([8 * missing], abs=2e-4)
