"""Files, seeds, modules."""
import functools
import random

import numpy as np
import pytest
import torch
from engine_fixtures import tiny_config
from torch import nn

from p2c.engine import (
    check_isfile,
    collect_env_info,
    count_num_param,
    download_url,
    init_network_weights,
    listdir_nohidden,
    mkdir_if_missing,
    open_all_layers,
    open_specified_layers,
    read_json,
    run_seed,
    seeds,
    set_random_seed,
    tolist_if_not,
    write_atomically,
    write_json,
)


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "deep/file"
    write_atomically(path, "old")

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["file"]


def test_files_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mkdir_if_missing("")
    write_json({"a": 1}, "x.json")
    assert read_json("x.json") == {"a": 1}
    write_json([], ".hidden")
    write_json([], "a.json")
    assert listdir_nohidden(".", sort=True) == ["a.json", "x.json"]
    assert check_isfile("x.json")
    with pytest.warns(UserWarning, match='No file found at "y.json"'):
        assert not check_isfile("y.json")
    download_url((tmp_path / "x.json").as_uri(), "copy.json")
    assert read_json("copy.json") == {"a": 1}


def test_seeding_repeats_every_global_generator():
    def draw():
        return random.random(), np.random.rand(), torch.rand(2).tolist()

    set_random_seed(7)
    first = draw()
    set_random_seed(7)
    assert draw() == first
    set_random_seed(2**62)


def test_a_negative_seed_is_drawn_once_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(seeds, "_drawn_seed", functools.cache(seeds._drawn_seed.__wrapped__))
    cfg = tiny_config("data", tmp_path, "SEED", -1)
    seed = run_seed(cfg)
    assert seed >= 0 and run_seed(cfg) == seed
    assert capsys.readouterr().out == f"SEED is negative, drew {seed}\n"
    assert run_seed(tiny_config("data", tmp_path)) == 1


def test_counting_parameters():
    model = nn.Linear(2, 3)
    assert count_num_param(model) == 9
    assert count_num_param(params=[model.weight, {"params": model.bias}]) == 9
    with pytest.raises(ValueError, match="neither"):
        count_num_param()


def test_opening_layers():
    model = nn.ModuleDict({"base": nn.Linear(1, 1), "head": nn.Linear(1, 1)})
    open_specified_layers(model, "head")
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    assert model["head"].training and not model["base"].training
    open_all_layers(model)
    assert all(p.requires_grad for p in model.parameters()) and model["base"].training
    with pytest.raises(ValueError, match="heads; choose from base, head"):
        open_specified_layers(model, ["heads"])


@pytest.mark.parametrize("init_type", ["normal", "xavier", "kaiming", "orthogonal"])
def test_initialising_weights(init_type):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2, bias=False))
    before = model[0].weight.clone()
    init_network_weights(model, init_type)
    assert not model[0].weight.equal(before) and not model[0].bias.any() and model[1].weight.eq(1).all()
    with pytest.raises(ValueError, match="'he'; choose from normal"):
        init_network_weights(model, "he")


def test_lists():
    assert tolist_if_not([1]) == [1] and tolist_if_not((1, 2)) == [(1, 2)] and tolist_if_not("a") == ["a"]


def test_the_report_on_the_machine_names_pillow(monkeypatch):
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "report")
    assert collect_env_info().startswith("report\n        Pillow (")
