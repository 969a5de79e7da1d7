"""Fixtures that several test files use: a small dataset, and a configuration for any trainer on it."""
import copy
import functools
import json
import signal
import sys

import environment  # noqa: F401 (must come before ours)
import pytest
import torch
from clip_files import make_pets
from engines import report
from hypothesis import settings
from processes import Starter

from p2c import registry
from p2c.cli import train
from p2c.clip import loading
from p2c.config import extend_cfg
from p2c.datasets.shapes import PICTURES
from p2c.engine.datasets import Datum
from p2c.engine.logger import log_to_stdout
from p2c.framework import build_trainer, get_cfg_default

pytest_plugins = ("engine_fixtures", "contract", "download_fixtures", "run_folders")  # more fixtures

TINY = ("MODEL.BACKBONE.WEIGHTS", "random", "OPTIM.MAX_EPOCH", "2", "OPTIM.WARMUP_EPOCH", "-1",
        "DATASET.CHECKS", "partial")

# The same examples in every run, however slow the machine is.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile("suite")

log_to_stdout()  # as programs do


def pytest_report_header() -> str:
    return report()


@pytest.fixture(scope="session", autouse=True)
def made_once():
    """Cache, once a process, what every run builds identically and what takes most of a small run's time.

    These are the tokenizer, the random weights of tiny-shapes, and the report on the machine.
    """
    tiny = json.loads((loading.BUILTIN / f"{loading.TINY}.json").read_text())["model"]
    draw = loading._random
    drawn = functools.cache(lambda: draw(tiny))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "_random", lambda config: copy.deepcopy(drawn()) if config == tiny else draw(config))
        patch.setattr(loading, "SimpleTokenizer", functools.cache(loading.SimpleTokenizer))
        patch.setattr(train, "collect_env_info", functools.cache(train.collect_env_info))
        yield


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """start(word, ..., cwd=, env=): run `python word ...` in a process of its own; see processes.py."""
    starter = Starter(tmp_path_factory.mktemp("started"))
    yield starter
    starter.close()


@pytest.fixture(autouse=True)
def restore_process():
    """Runs tee standard output and, when interrupted, ignore further signals; a test leaves neither behind.

    What a process ignores its children ignore too, so that no later test could end one.
    """
    stdout, hook, threads = sys.stdout, sys.excepthook, torch.get_num_threads()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    sys.stdout, sys.excepthook = stdout, hook
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def without_dassl(monkeypatch):
    """Hide dassl, real or provided, from this process, and restore the modules afterwards."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "dassl"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.setattr(Datum, "__module__", Datum.__module__)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "dassl"]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def pets(tmp_path_factory):
    """Root of a dataset in OxfordPets' layout: 4 classes of 64 x 64 images, 4 train, 2 val, 3 test each."""
    root = tmp_path_factory.mktemp("data")
    make_pets(root)
    return root


@pytest.fixture
def make_cfg(pets, tmp_path):
    """make_cfg(trainer, key, value, ...): the shipped tiny configuration, small data, random weights, 2 epochs."""
    def make(trainer="P2C", *pairs, out="run"):
        cfg = get_cfg_default()
        extend_cfg(cfg)
        cfg.merge_from_file("configs/datasets/oxford_pets.yaml")
        cfg.merge_from_file(f"configs/trainers/{trainer.removesuffix('2')}/tiny_shapes.yaml")
        cfg.merge_from_list([
            "TRAINER.NAME", trainer, "DATASET.ROOT", str(pets), "OUTPUT_DIR", str(tmp_path / out), "SEED", 1,
            "DATASET.CHECKS", "partial",
            "MODEL.BACKBONE.WEIGHTS", "random", "OPTIM.MAX_EPOCH", 2, "OPTIM.WARMUP_EPOCH", -1,
            "USE_CUDA", False, *pairs])
        cfg.freeze()
        return cfg
    return make


@pytest.fixture
def make_trainer(make_cfg):
    """make_trainer(trainer, key, value, ...): the trainer, built."""
    def make(trainer="P2C", *pairs, out="run"):
        cfg = make_cfg(trainer, *pairs, out=out)
        registry.get_trainer(trainer)
        registry.get_dataset(cfg.DATASET.NAME)
        return build_trainer(cfg)
    return make


@pytest.fixture
def call(pets, tmp_path):
    """call(option, value, ..., trainer=, out=): run train.py in this process on the small data; returns its status."""
    def run(*words, trainer="P2C", out="run", root=pets, pairs=()):
        return train.run(train.parse_args([
            "--root", str(root), "--seed", "1", "--trainer", trainer, "--output-dir", str(tmp_path / out),
            "--dataset-config-file", "configs/datasets/oxford_pets.yaml",
            "--config-file", f"configs/trainers/{trainer}/tiny_shapes.yaml", *words, *TINY, *pairs]))
    return run


@pytest.fixture
def few_shapes(tmp_path, monkeypatch):
    """Settings of the shapes dataset with one picture a class and part."""
    for part in PICTURES:
        monkeypatch.setitem(PICTURES, part, 1)
    return "DATASET.NAME", "Shapes", "DATASET.ROOT", str(tmp_path / "data")
