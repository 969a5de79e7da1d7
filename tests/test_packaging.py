"""One import name, from a checkout and from a wheel; every module imports; nothing of ours stays on the import path."""
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("p2c", "trainers", "datasets", "configs")
MODULES = sorted(
    ".".join((path.parent if path.name == "__init__.py" else path.with_suffix("")).relative_to(ROOT).parts)
    for path in ROOT.glob("p2c/**/*.py"))
MODULES += [f"p2c.{folder}.{path.stem}" for folder in ("trainers", "datasets") for path in ROOT.glob(f"{folder}/*.py")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the sources, without network; the folder that it is unpacked to."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target, source], check=True,
                   capture_output=True, text=True)
    built, = target.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(target / "site")
    return target / "site"


def test_p2c_is_the_wheels_only_top_level_name(wheel):
    assert {p.name for p in wheel.iterdir() if not p.name.endswith(".dist-info")} == {"p2c"}


@pytest.mark.parametrize("where", ["checkout", "wheel"])
def test_every_module_imports_and_no_name_leaks(where, wheel, tmp_path, start):
    path = ROOT if where == "checkout" else wheel
    code = f"""
import importlib, importlib.util, pathlib
for name in {MODULES!r}:
    importlib.import_module(name)
for name in ("p2c.p2c", "p2c.tests"):
    assert importlib.util.find_spec(name) is None, name
found = pathlib.Path(importlib.util.find_spec("p2c.cli.data").origin)
assert found == pathlib.Path({str(path)!r}, "p2c", "cli", "data.py")
import p2c.configs, p2c.clip.loading, p2c.grid.fewshot, p2c.tables.published, p2c.tables.report
folder = pathlib.Path(list(p2c.configs.__path__)[0])
assert (folder / "trainers/P2C/tiny_shapes.yaml").is_file() and (folder / "datasets/shapes.yaml").is_file()
words = p2c.grid.fewshot.plan("oxford_pets", "P2C", 16, 1, None, None)
assert pathlib.Path(words[words.index("--config-file") + 1]).is_file()
p2c.clip.loading.load_backbone("tiny-shapes", "builtin")
assert p2c.tables.published.references()["backbone"] == "ViT-B/16"
assert p2c.tables.report.template().filename
"""
    done = start("-c", code, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(path)})
    assert done.returncode == 0, done.stderr


def test_top_level_folders_do_not_take_the_names_of_other_packages():
    for name in ("trainers", "datasets", "configs", "tests"):
        assert not (ROOT / name / "__init__.py").exists()


def test_importing_the_trainers_changes_nothing_in_the_process(tmp_path):
    code = """
import logging, os, random, sys
import torch
before = sys.stdout, logging.root.level, os.getcwd(), random.getstate(), torch.random.get_rng_state().tolist()
import p2c.trainers.p2c
from p2c.framework import TRAINER_REGISTRY
assert TRAINER_REGISTRY.registered_names() == ["P2C"]
assert before == (sys.stdout, logging.root.level, os.getcwd(), random.getstate(), torch.random.get_rng_state().tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr


def test_the_mathematics_imports_nothing_of_ours():
    for path in ROOT.glob("p2c/denoising/*.py"):
        lines = [line for line in path.read_text().splitlines() if line.startswith(("import p2c", "from p2c"))]
        assert all(line.startswith("from p2c.denoising") for line in lines), path
    for path in ROOT.glob("p2c/prompts/*.py"):
        lines = [line for line in path.read_text().splitlines() if line.startswith(("import p2c", "from p2c"))]
        assert all(line.startswith(("from p2c.denoising", "from p2c.prompts")) for line in lines), path
