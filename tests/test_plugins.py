"""Third-party trainers and datasets, found with --plugin."""
import re
import sys
from pathlib import Path

import pytest
from clip_files import make_pets
from messages import naming

from p2c.cli import train
from p2c.engine.registry import Registry
from p2c.engine.results import read_results

ROOT = Path(__file__).resolve().parents[1]
DATASET = """
from p2c.datasets.base import FewShotDataset
from p2c.framework import DATASET_REGISTRY

@DATASET_REGISTRY.register()
class MyPets(FewShotDataset):
    folder, images, split = "oxford_pets", "images", "split_zhou_OxfordPets.json"
"""
TRAINER = """
from p2c.framework import TRAINER_REGISTRY
from p2c.trainers.maple import MaPLe as Published

@TRAINER_REGISTRY.register()
class {name}(Published):
    def forward_backward(self, batch):
        return {{**super().forward_backward(batch), "factor": self.cfg.TRAINER.MINE.FACTOR}}

def extend_cfg(cfg):
    from yacs.config import CfgNode
    cfg.TRAINER.MINE = CfgNode({{"FACTOR": 2.0}})
"""


def write(folder, name, content):
    path = folder / f"{name.replace('.', '/')}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)


def words(plugin, trainer, *options, pairs=()):
    return ["--root", "data", "--seed", "1", "--trainer", trainer, "--plugin", plugin, "--output-dir", "run",
            "--config-file", str(ROOT / "configs/trainers/MaPLe/tiny_shapes.yaml"), *options,
            "MODEL.BACKBONE.WEIGHTS", "random", "OPTIM.MAX_EPOCH", "1", "USE_CUDA", "False",
            "DATASET.CHECKS", "partial", *pairs]


def test_a_five_line_dataset_and_a_trainer_of_our_name_run_from_another_repository(start, tmp_path):
    make_pets(tmp_path / "data")
    write(tmp_path, "my.data", DATASET)
    write(tmp_path, "my.trainers", "import my.data" + TRAINER.format(name="MaPLe"))
    (tmp_path / "my_pets.yaml").write_text("DATASET:\n  NAME: MyPets\n")
    done = start(ROOT / "train.py", *words("my.trainers", "MaPLe", "--dataset-config-file", "my_pets.yaml",
                                           pairs=("TRAINER.MINE.FACTOR", "3.0")), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert any("MaPLe" in line and "my.trainers" in line for line in done.stdout.splitlines())
    results = read_results(str(tmp_path / "run"))
    assert results["finished"] and results["dataset"] == "MyPets"
    assert results["config"]["PLUGIN"] == "my.trainers" and results["config"]["TRAINER"]["MINE"]["FACTOR"] == 3.0


@pytest.fixture
def in_another_repository(tmp_path, monkeypatch, without_dassl):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", {**sys.modules})


@pytest.mark.parametrize("content, named", [
    (None, ("'mine'", "ModuleNotFoundError")), ("1 / 0", ("'mine'", "ZeroDivisionError: division by zero")),
    ("def extend_cfg(cfg):\n    cfg.NOWHERE.KEY = 1", ("'mine'", "AttributeError: NOWHERE")),
    ("", ("--trainer", "'Mine'", "CoCoOp")),
], ids=["missing", "broken", "settings", "nothing registered"])
def test_a_plugin_that_fails_is_one_line(in_another_repository, tmp_path, capsys, content, named):
    if content is not None:
        write(tmp_path, "mine", content)
    assert train.run(train.parse_args(words("mine", "Mine"))) == train.MISTAKE
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and re.search(naming(*named), error)


def test_the_record_of_the_plugin_is_not_a_second_way_to_give_one(in_another_repository, capsys):
    assert train.run(train.parse_args(words("", "MaPLe", pairs=("PLUGIN", "mine")))) == train.MISTAKE
    assert re.search(naming("PLUGIN", "--plugin"), capsys.readouterr().err)


@pytest.mark.parametrize("ours_first", [True, False])
def test_in_a_registry_a_third_party_class_replaces_ours_of_the_same_name(ours_first):
    ours, theirs = (type("Thing", (), {"__module__": module}) for module in ("p2c.trainers.thing", "mine"))
    table = Registry("TABLE")
    for thing in (ours, theirs) if ours_first else (theirs, ours):
        table.register(thing)
    assert table.get("Thing") is theirs
    with pytest.raises(KeyError, match="already registered"):
        table.register(type("Thing", (), {"__module__": "yet.another"}))
