"""Files, seeds, modules."""
import functools

import numpy as np
import pytest
from engine_fixtures import tiny_config
from messages import naming
from torch import nn

from p2c.engine import (
    collect_env_info,
    download_url,
    init_network_weights,
    open_specified_layers,
    read_json,
    seeds,
    set_random_seed,
    write_json,
)
from p2c.engine.files import write_atomically
from p2c.engine.seeds import run_seed


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "deep/file"
    write_atomically(path, "old")

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_file_is_fetched_into_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_json({"a": 1}, "x.json")
    download_url((tmp_path / "x.json").as_uri(), "copy.json")
    assert read_json("copy.json") == {"a": 1}


def test_a_seed_may_be_larger_than_numpys():
    set_random_seed(2**62)
    first = np.random.rand()
    set_random_seed(2**62)
    assert np.random.rand() == first


def test_a_negative_seed_is_drawn_once_and_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(seeds, "_drawn_seed", functools.cache(seeds._drawn_seed.__wrapped__))
    cfg = tiny_config("data", tmp_path, "SEED", -1)
    seed = run_seed(cfg)
    assert seed >= 0 and run_seed(cfg) == seed
    assert capsys.readouterr().out == f"SEED is negative, drew {seed}\n"
    assert run_seed(tiny_config("data", tmp_path)) == 1


def test_unknown_layers_and_initialisations_are_refused_with_the_choices():
    model = nn.ModuleDict({"base": nn.Linear(1, 1), "head": nn.Linear(1, 1)})
    with pytest.raises(ValueError, match=naming("heads", "base, head")):
        open_specified_layers(model, ["heads"])
    with pytest.raises(ValueError, match=naming("'he'", "normal")):
        init_network_weights(model, "he")


def test_the_report_on_the_machine_names_pillow(monkeypatch):
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "report")
    assert collect_env_info().startswith("report\n        Pillow (")
