"""The report on a set-up: what it finds, what it takes for a fault, and the comparison with published numbers."""
import importlib
import os
import re
from dataclasses import replace
from importlib import metadata

import pytest
import torch
from data_trees import CLASSES, COUNTS, TREES
from messages import naming

from p2c.cli import data, doctor
from p2c.cli.doctor import ABSENT, AGREES, DIFFERS, OK, WRONG
from p2c.clip import loading
from p2c.datasets.base import Sizes
from p2c.download.contents import load_cfg
from p2c.download.sources import SOURCES, Archive

NAMES = ("imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft",
         "sun397", "dtd", "eurosat", "ucf101", "imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
TINY = ("tiny_shapes", ("MODEL.BACKBONE.WEIGHTS", "random", "USE_CUDA", False, "DATASET.CHECKS", "partial"))


@pytest.fixture(autouse=True)
def no_weights_and_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "CLIP_CACHE", tmp_path / "clip")
    monkeypatch.setattr(loading, "try_to_load_from_cache", lambda repository, file: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "nvidia_gpus", lambda: [])


@pytest.fixture
def published_sizes(monkeypatch):
    """Call with names: their miniatures count as the published datasets."""
    def pretend(*names):
        for name in names:
            kind, classes = doctor.benchmark_classes()[name], len(CLASSES[name])
            monkeypatch.setattr(kind, "sizes", Sizes(classes, *(classes * COUNTS[part] for part in COUNTS)))
    return pretend


def marks(findings):
    return [finding.mark for finding in findings]


def lines(capsys, *words):
    """Exit status and the lines of the report."""
    status = doctor.main([str(word) for word in words])
    return status, capsys.readouterr().out.splitlines()


# The report as a whole

def test_where_nothing_is_there_nothing_is_wrong_and_every_line_says_how_to_get_it(tmp_path, capsys):
    status, report = lines(capsys, "--root", tmp_path)
    assert status == 0 and not any("WRONG" in line or "DIFFERS" in line for line in report)
    for name in NAMES:
        assert any(re.match(f"  absent  {name}: .*`python -m p2c data download {name}( --mirror)?`", line)
                   for line in report)
    assert any(re.match("  absent  ViT-B/16: .*https://", line) for line in report)
    assert f"torch {torch.__version__}" in report[2] and "yacs 0" in report[2]
    needed = naming("  absent", "ViT-B/16", "p2c data download dtd", "p2c data download eurosat")
    assert any(re.match(needed, line) for line in report)


def test_the_quick_report_leaves_the_comparison_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "check_accuracy", None)
    assert lines(capsys, "--root", tmp_path, "--quick")[0] == 0


@pytest.mark.parametrize("name, how", [
    ("imagenet", naming("by hand", "image-net.org", "`python -m p2c data download imagenet` unpacks")),
    ("stanford_cars", "`python -m p2c data download stanford_cars --mirror` downloads"),
    ("sun397", "`python -m p2c data download sun397 --mirror` downloads"),
])
def test_where_the_download_alone_gets_nothing_doctor_and_training_say_so(tmp_path, name, how):
    report = {finding.text.partition(":")[0]: finding.text for finding in doctor.check_data(tmp_path)}
    assert re.search(how, report[name])
    with pytest.raises(FileNotFoundError, match=how):
        doctor.benchmark_classes()[name](load_cfg(name, tmp_path))


def test_what_a_failed_download_leaves_is_no_fault(tmp_path):
    source = replace(SOURCES["fgvc_aircraft"], parts=((Archive("aircraft.tar.gz", layout=(("images", "images"),)),),))
    assert data.main(["download", "fgvc_aircraft", "--root", str(tmp_path)], {"fgvc_aircraft": source}) == 1
    assert (tmp_path / "fgvc_aircraft/.download.lock").exists()
    assert set(marks(doctor.check_data(tmp_path))) == {ABSENT}
    (tmp_path / "fgvc_aircraft/images").mkdir()
    assert marks(doctor.check_data(tmp_path)).count(WRONG) == 1


def test_one_fault_is_enough_for_status_1(tmp_path, capsys):
    (tmp_path / "dtd/images").mkdir(parents=True)
    status, report = lines(capsys, "--root", tmp_path)
    assert status == 1 and " 1 " in report[-1]


def test_a_check_that_breaks_is_a_fault_and_the_others_go_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loading, "load_backbone", lambda name, weights: 1 / 0)
    status, report = lines(capsys, "--root", tmp_path)
    assert status == 1 and "  WRONG   ZeroDivisionError: division by zero" in report
    assert sum(line.startswith("  absent  ") for line in report) == len(NAMES) + 1


def test_the_command_as_a_process_takes_the_data_root_from_the_environment(start, tmp_path):
    (tmp_path / "here/dtd/images").mkdir(parents=True)
    done = start("-m", "p2c", "doctor", "--quick", env={
        **os.environ, "DATA": str(tmp_path / "here"), "HOME": str(tmp_path)})
    assert done.returncode == 1, done.stderr
    assert f"Data in {tmp_path}/here" in done.stdout
    assert "  WRONG   dtd: DescribableTextures has no split" in done.stdout


def test_a_mistaken_call_is_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as stopped:
        doctor.main(["--rot", "x"])
    assert stopped.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


# Its parts

def test_a_package_that_does_not_import_is_named_and_nothing_else_is_looked_at(capsys, monkeypatch):
    def broken(name):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", broken)
    status, report = lines(capsys)
    assert status == 1 and report[1] == "Software" and report[3] == ""
    assert re.match(naming("  WRONG   torchvision", "operator torchvision::nms does not exist"), report[2])


@pytest.mark.parametrize("requirement, named", [
    ("torch>=99", (metadata.version("torch"), "pip install 'torch>=99'")),
    ("no-such-package-of-ours>=1", ("pip install 'no-such-package-of-ours>=1'",)),
    ("no-such-package-of-ours>=1; extra == 'test'", None), ("torch>=2.6", None),
])
def test_requirements_that_are_not_met_are_named(monkeypatch, requirement, named):
    monkeypatch.setattr(metadata, "requires", lambda name: [requirement])
    found = list(doctor.check_requirements())
    assert marks(found) == ([WRONG] if named else []) and (not named or re.search(naming(*named), found[0].text))


@pytest.mark.parametrize("visible, mark, message", [
    (None, WRONG, "NVIDIA H100, 550.1"), ("", OK, "CPU"), ("-1", OK, "CPU"),
])
def test_a_gpu_that_torch_cannot_use_is_a_fault_unless_it_is_hidden_on_purpose(monkeypatch, visible, mark, message):
    monkeypatch.setattr(doctor, "nvidia_gpus", lambda: ["NVIDIA H100, 550.1"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    finding, = doctor.check_device()
    assert finding.mark == mark and message in finding.text


def test_weights_in_clips_cache_are_named_and_damaged_ones_are_a_fault(monkeypatch, tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip/ViT-B-16.pt").write_bytes(b"half a download")
    found = {finding.text.partition(":")[0]: finding for finding in doctor.check_weights()}
    assert found["tiny-shapes"].mark == OK and found["ViT-B/16"].mark == WRONG
    assert f"{tmp_path}/clip/ViT-B-16.pt" in found["ViT-B/16"].text
    monkeypatch.setattr(loading, "_sha256", lambda path: loading.openai_url("ViT-B/16").split("/")[-2])
    assert (OK, f"ViT-B/16: {tmp_path}/clip/ViT-B-16.pt") in list(doctor.check_weights())


def test_weights_that_open_clip_fetched_are_named(monkeypatch):
    monkeypatch.setattr(loading, "try_to_load_from_cache", lambda repository, file:
                        f"/hub/{repository}/{file}" if "base_patch32" in repository else None)
    assert (OK, "ViT-B/32: /hub/timm/vit_base_patch32_clip_224.openai/open_clip_model.safetensors") in list(
        doctor.check_weights())


def test_data_is_absent_whole_or_wrong_and_a_missing_split_says_where_to_get_it(tmp_path, published_sizes):
    for name in ("dtd", "eurosat", "food101", "imagenet"):
        TREES[name](tmp_path)
    published_sizes("dtd")
    (tmp_path / "eurosat/split_zhou_EuroSAT.json").unlink()
    found = {finding.text.partition(":")[0]: finding for finding in doctor.check_data(tmp_path)}
    assert list(found) == list(NAMES)
    assert found["dtd"].mark == OK and re.search(naming(*"3966"), found["dtd"].text)
    assert found["eurosat"].mark == WRONG and "no split file" in found["eurosat"].text
    assert "drive.google.com/file/d/1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o" in found["eurosat"].text
    assert found["food101"].mark == WRONG and "101 classes" in found["food101"].text
    assert found["imagenet"].mark == WRONG and found["ucf101"].mark == ABSENT


# The comparison

@pytest.fixture(scope="module")
def textures(tmp_path_factory):
    """Root with a miniature of DTD."""
    root = tmp_path_factory.mktemp("data")
    TREES["dtd"](root)
    return root


def test_random_weights_differ_from_the_published_accuracy(textures):
    kind = doctor.benchmark_classes()["dtd"]
    found = list(doctor.compare(kind, textures, {"base": 53.24, "new": 59.90}, *TINY))
    assert marks(found) == [DIFFERS, DIFFERS]
    assert "dtd, base classes: " in found[0].text and ", published 53.24, more than 0.3 apart; " in found[0].text


@pytest.mark.parametrize("apart, mark", [(0, AGREES), (0.29, AGREES), (-0.29, AGREES), (0.31, DIFFERS), (-1, DIFFERS)])
def test_a_measurement_agrees_within_three_tenths(textures, monkeypatch, apart, mark):
    monkeypatch.setattr(doctor, "zero_shot_accuracy", lambda kind, root, half, config, pairs: 53.24 + apart)
    finding, = doctor.compare(doctor.benchmark_classes()["dtd"], textures, {"base": 53.24})
    assert finding.mark == mark


def test_the_accuracy_is_that_of_a_test_of_train_py(textures, tmp_path, monkeypatch):
    from p2c.cli import train
    from p2c.engine.results import read_results

    monkeypatch.setattr(train, "collect_env_info", str)  # takes seconds
    kind, config = doctor.benchmark_classes()["dtd"], "configs/trainers/ZeroshotCLIP/tiny_shapes.yaml"
    for half in ("base", "new"):
        assert train.run(train.parse_args([
            "--root", str(textures), "--seed", "1", "--trainer", "ZeroshotCLIP", "--output-dir", str(tmp_path / half),
            "--dataset-config-file", "configs/datasets/dtd.yaml", "--config-file", config, "--eval-only",
            *map(str, TINY[1]), "DATASET.SUBSAMPLE_CLASSES", half])) == train.FINISHED
        accuracy = read_results(str(tmp_path / half))["metrics"]["accuracy"]
        assert doctor.zero_shot_accuracy(kind, textures, half, *TINY) == accuracy
        assert marks(doctor.compare(kind, textures, {half: accuracy}, *TINY)) == [AGREES]


@pytest.mark.parametrize("here, numbers", [
    (("dtd", "eurosat"), {"base": 53.24, "new": 59.90}), (("eurosat",), {"base": 56.48, "new": 64.05}),
])
def test_with_weights_and_data_the_published_numbers_are_asked_for(tmp_path, monkeypatch, published_sizes, here,
                                                                   numbers):
    for name in here:
        TREES[name](tmp_path)
    published_sizes(*here)
    monkeypatch.setattr(loading, "openai_file", lambda name: "somewhere")
    monkeypatch.setattr(doctor, "compare", lambda kind, root, published: iter([(kind.name, root, published)]))
    assert list(doctor.check_accuracy(tmp_path)) == [(here[0], tmp_path, numbers)]


def test_data_that_is_wrong_is_not_compared(tmp_path, monkeypatch):
    TREES["dtd"](tmp_path)
    monkeypatch.setattr(loading, "openai_file", lambda name: "somewhere")
    assert marks(doctor.check_accuracy(tmp_path)) == [ABSENT]
