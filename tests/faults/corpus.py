"""A corpus of bad inputs, each as data: what lies in a folder, which command is called, what its answer must name.

    python tests/faults/corpus.py [--quick] [--only WORD]

For every case must hold: the exit status tells of a mistake (2) or a failure (1); one line says so, names the file or
the key, and the remedy; no traceback; nothing outside the case's folder is made or changed, and nothing that lay in it,
a finished run in the output folder among it; no code of the input's choosing runs.
"""
import argparse
import collections
import contextlib
import fcntl
import functools
import importlib.util
import io
import json
import logging
import os
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO
from unittest import mock

import torch
from PIL import Image
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "tests"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from clip_files import make_pets  # noqa: E402
from data_trees import CLASSES, COUNTS, write_split_tree  # noqa: E402
from download_fixtures import tar_of, zip_of  # noqa: E402

import parse_test_res  # noqa: E402
from p2c.cli import config, convert, data, doctor, interpret, predict, train, verify_run  # noqa: E402
from p2c.clip import loading  # noqa: E402
from p2c.config import config_file  # noqa: E402
from p2c.datasets.base import Sizes  # noqa: E402
from p2c.download.contents import class_of  # noqa: E402
from p2c.download.sources import SOURCES  # noqa: E402
from p2c.engine import lock  # noqa: E402

MISTAKE, FAILURE = 2, 1
CANARY = "canary"  # what a malicious input would make, beside the case's folder
BIG = "Z" * 200_000

Prepare = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """One bad input. In words and answers, {here} is the case's folder and {made} has a dataset and finished runs.

    Args:
        names, remedy: texts that the answer must contain.
        prepare: puts the input into the case's folder.
        report: the answer is the line of a report that begins so, on standard output; "": it is an error's line.
        process: call a process of its own, as a user does.
    """

    kind: str
    name: str
    words: tuple[str, ...]
    names: str
    remedy: str
    prepare: Prepare = lambda here: None
    status: int = MISTAKE
    report: str = ""
    process: bool = False

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


# Commands


def _reproduce(argv: list[str]) -> int:
    spec = importlib.util.spec_from_file_location("reproduce", ROOT / "scripts" / "reproduce.py")
    module = sys.modules.setdefault("reproduce", importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module.main(argv)


def _data(argv: list[str]) -> int:
    """The command without a network, and with UCF101 as small as its miniature."""
    sources = {name: replace(source, parts=tuple(tuple(replace(archive, sources=()) for archive in part)
                                                 for part in source.parts)) for name, source in SOURCES.items()}
    size = len(CLASSES["ucf101"])
    with mock.patch.object(class_of("ucf101"), "sizes", Sizes(size, *(size * count for count in COUNTS.values()))):
        return data.main(argv, sources, drive=None)


COMMANDS: dict[str, tuple[Callable[[list[str]], int], tuple[str, ...]]] = {  # in this process, and as a process
    "train": (lambda argv: train.run(train.parse_args(argv)), (sys.executable, str(ROOT / "train.py"))),
    "parse_test_res": (parse_test_res.main, (sys.executable, str(ROOT / "parse_test_res.py"))),
    "reproduce": (_reproduce, (sys.executable, str(ROOT / "scripts" / "reproduce.py"))),
    "run.sh": (None, ("bash", str(ROOT / "scripts" / "run.sh"))),
    "data": (_data, (sys.executable, "-m", "p2c", "data")),
    **{name: (command.main, (sys.executable, "-m", "p2c", name)) for name, command in {
        "config": config, "convert": convert, "doctor": doctor, "interpret": interpret, "predict": predict,
        "verify_run": verify_run}.items()},
}
TINY = ("MODEL.BACKBONE.WEIGHTS", "random", "OPTIM.MAX_EPOCH", "2", "OPTIM.WARMUP_EPOCH", "-1", "USE_CUDA", "False",
        "DATASET.CHECKS", "partial", "TRAIN.CHECKPOINT_FREQ", "1")
CONTEXT_EACH = ("TRAINER.COOP.CSC", "True", "TRAINER.COOP.CTX_INIT", "")  # a context for each class


def training(*options: str, pairs: Sequence[str] = (), root: str = "{made}", out: str = "{here}/new",
             trainer: str = "P2C", dataset: str = "oxford_pets") -> tuple[str, ...]:
    """A call of train.py on the small dataset; into a folder of its own, so that the input is what it stops at."""
    return ("train", "--root", root, "--seed", "1", "--trainer", trainer, "--output-dir", out,
            "--dataset-config-file", config_file("datasets", dataset),
            "--config-file", config_file("trainers", trainer, "tiny_shapes"), *options, *TINY, *pairs)


def overwriting(*options: str, pairs: Sequence[str] = ()) -> tuple[str, ...]:
    """A call of train.py into the folder of a finished run, which must stay as it is."""
    return training(*options, pairs=pairs, out="{here}/earlier")


# Inputs


def put(name: str, content: str | bytes) -> Prepare:
    """A file in the case's folder."""
    def prepare(here: Path) -> None:
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return prepare


def both(*steps: Prepare) -> Prepare:
    def prepare(here: Path) -> None:
        for step in steps:
            step(here)
    return prepare


def made(here: Path) -> Path:
    """What all cases share."""
    return here.parent / "made"


def earlier(name: str = "P2C") -> Prepare:
    """A copy of a finished run."""
    return lambda here: shutil.copytree(made(here) / name, here / "earlier", symlinks=True)


def pets(here: Path) -> Path:
    """A copy of the small dataset's folder."""
    return Path(shutil.copytree(made(here) / "oxford_pets", here / "oxford_pets"))


class Attack:
    """Makes the canary when it is unpickled without care."""

    def __init__(self, here: Path, call: Callable = open):
        path = str(here.parent / CANARY)
        self.call, self.arguments = call, (path, "w") if call is open else (f"touch {path}",)

    def __reduce__(self):
        return self.call, self.arguments


# Configurations


def yaml(name: str, content: str | bytes, remedy: str = "correct the file", names: str = "{here}/bad.yaml",
         file: str = "bad.yaml") -> Case:
    return Case("config", name, overwriting("--config-file", f"{{here}}/{file}"), names, remedy,
                both(earlier(), put(file, content)))


def pair(key: str, value: str, remedy: str) -> Case:
    return Case("config", f"{key} {value}", overwriting(pairs=(key, value)), key, remedy, earlier())


def fitting(key: str, value: str, remedy: str) -> Case:
    """A value that is in its range, but does not fit the data, the model or what is registered."""
    return Case("config", f"{key} {value}", training(pairs=(key, value)), key.rpartition(".")[2], remedy)


CONFIGS = [
    yaml("damaged", "OPTIM: ["),
    yaml("tab", "OPTIM:\n\tLR: 1.0\n"),
    yaml("a list", "- OPTIM\n- LR\n"),
    yaml("a text", "just words\n"),
    yaml("a number", "5\n"),
    yaml("binary", bytes(range(256))),
    yaml("not UTF-8", "OPTIM: {NAME: sgd} # \xe9\n".encode("latin-1")),
    yaml("a web page", "<!DOCTYPE html><html>quota</html>"),
    yaml("huge nesting", "[" * 100_000),
    yaml("nested mapping", "OPTIM: " + "{a: " * 20_000),
    yaml("unknown key", "OPTIM: {FOO: 1}", names="OPTIM.FOO"),
    yaml("section as value", "OPTIM: 5", names="OPTIM"),
    yaml("value as section", "OPTIM: {LR: {A: 1}}", names="OPTIM.LR"),
    yaml("number key", "5: {a: 1}"),
    yaml("null section", "OPTIM:\n"),
    yaml("wrong type", "OPTIM: {LR: high}", names="OPTIM.LR"),
    yaml("float for a count", "OPTIM: {MAX_EPOCH: 2.5}", names="OPTIM.MAX_EPOCH"),
    yaml("two documents", "OPTIM: {LR: 0.1}\n---\nOPTIM: {LR: 0.2}\n"),
    yaml("python object", "a: !!python/object/apply:os.system ['touch {canary}']"),
    yaml("python name", "OPTIM: {NAME: !!python/name:os.system }"),
    yaml("python module", "a: !!python/module:os"),
    yaml("python new", "a: !!python/object/new:subprocess.Popen [['touch', '{canary}']]"),
    yaml("a .py file", "cfg = open('{canary}', 'w')\n", "YAML", "{here}/bad.py", "bad.py"),
    yaml("a .txt file", "OPTIM: {LR: 0.1}\n", "YAML", "{here}/bad.txt", "bad.txt"),
    Case("config", "missing file", overwriting("--config-file", "{here}/none.yaml"), "{here}/none.yaml",
         "the shipped ones are in", earlier()),
    Case("config", "a folder", overwriting("--dataset-config-file", "{here}/dir.yaml"), "{here}/dir.yaml",
         "the shipped ones are in", both(earlier(), lambda here: (here / "dir.yaml").mkdir())),
    Case("config", "a link to nothing", overwriting("--dataset-config-file", "{here}/l.yaml"), "{here}/l.yaml",
         "the shipped ones are in", both(earlier(), lambda here: (here / "l.yaml").symlink_to("nowhere"))),
    pair("OPTIM.LR", "-1.0", "at least 0"),
    pair("OPTIM.LR", "1e999", "finite number"),
    pair("OPTIM.LR", "None", "finite number"),
    pair("OPTIM.LR", "high", "finite number"),
    pair("OPTIM.FOO", "1", "choose from"),
    pair("OPTIM.MAX_EPOCHS", "1", "OPTIM.MAX_EPOCH"),
    pair("OPTIM", "1", "choose from"),
    pair("optim.lr", "0.1", "OPTIM.LR"),
    pair("OPTIM.MAX_EPOCH", "0", "at least 1"),
    pair("OPTIM.NAME", "lion", "choose from adam"),
    pair("OPTIM.LR_SCHEDULER", "cos", "choose from"),
    pair("OPTIM.GAMMA", "-0.1", "at least 0"),
    pair("OPTIM.ADAM_BETA1", "1.0", "below 1"),
    pair("INPUT.SIZE", "(64,)", "two whole numbers"),
    fitting("INPUT.SIZE", "(32, 32)", "set INPUT.SIZE"),
    pair("INPUT.PIXEL_STD", "[0.0, 1.0, 1.0]", "above 0"),
    fitting("INPUT.TRANSFORMS", "('flip_flop',)", "choose from"),
    pair("INPUT.RRCROP_SCALE", "(0.0, 2.0)", "at most 1"),
    pair("INPUT.INTERPOLATION", "area", "choose from"),
    pair("DATALOADER.NUM_WORKERS", "-1", "at least 0"),
    pair("DATALOADER.TRAIN_X.BATCH_SIZE", "0", "at least 1"),
    fitting("DATALOADER.TRAIN_X.SAMPLER", "Sampler", "choose from"),
    pair("DATALOADER.CACHE", "-2", "choose from"),
    pair("TRAIN.PRINT_FREQ", "0", "at least 1"),
    pair("TRAIN.CHECKPOINT_STEPS", "-5", "at least 0"),
    pair("TEST.FINAL_MODEL", "best", "choose from last_step, best_val"),
    pair("TEST.SPLIT", "train", "choose from test, val"),
    Case("config", "TEST.EVALUATOR Regression", training(pairs=("TEST.EVALUATOR", "Regression")), "[Regression]",
         "do you mean"),  # Dassl's words, which its users know
    pair("SEED", str(1 << 70), "below 2^63"),
    Case("config", "DATASET.NAME Oxford", overwriting(pairs=("DATASET.NAME", "Oxford")), "'Oxford'", "choose from",
         earlier()),
    fitting("DATASET.NUM_SHOTS", "0", "-1 for all"),
    fitting("DATASET.NUM_SHOTS", "-2", "-1 for all"),
    pair("DATASET.SUBSAMPLE_CLASSES", "novel", "choose from all, base, new"),
    pair("DATASET.CHECKS", "none", "choose from"),
    pair("DATASET.FOLDER.TEMPLATE", "a leaf", "one {{}}"),
    fitting("MODEL.BACKBONE.NAME", "ViT-B/17", "choose from"),
    pair("TRAINER.P2C.N_CTX", "0", "at least 1"),
    fitting("TRAINER.P2C.N_CTX", "90", "from 1 to"),
    fitting("TRAINER.P2C.PROMPT_DEPTH", "99", "from 1 to"),
    pair("TRAINER.P2C.PREC", "int8", "choose from"),
    pair("TRAINER.PROMPT_DENOISING.SCHEDULE", "cos", "choose from cosine"),
    pair("TRAINER.PROMPT_DENOISING.NOISE_STD", "-1.0", "at least 0"),
    pair("TRAINER.PROMPT_DENOISING.WARMUP_EPOCHS", "2", "OPTIM.MAX_EPOCH - 1"),
    pair("TRAINER.PROMPT_DENOISING.GMM_STDS", "(0.5, 0.5)", "as many"),
    pair("TRAINER.PROMPT_DENOISING.GMM_WEIGHTS", "(0.0, 0.0, 0.0)", "not all 0"),
    Case("config", "words without an embedding", training(pairs=("TRAINER.P2C.CTX_INIT", "a zebra of a",
                                                                "MODEL.BACKBONE.WEIGHTS", "builtin")),
         "'zebra'", "use other words"),
    pair("PLUGIN", "my.module", "--plugin"),
]


# Command lines


def line(name: str, words: Sequence[str], names: str, remedy: str, prepare: Prepare = lambda here: None,
         **further) -> Case:
    return Case("command line", name, tuple(words), names, remedy, prepare, **further)


HELD: list[TextIO] = []  # the lock of the last case that needed one


def locked(here: Path) -> None:
    """A run's folder that a living process, this one, has."""
    earlier()(here)
    (here / "earlier" / "results.json").unlink()
    HELD[:] = [open(here / "earlier" / lock.FILE, "w")]
    fcntl.flock(HELD[0], fcntl.LOCK_EX)


def dangling(here: Path) -> None:
    (here / "new").symlink_to(here / "nowhere" / "below")


OWN = put("file", "mine")
LINES = [
    line("unknown trainer", overwriting("--trainer", "P3C"), "P3C", "choose from", earlier(), process=True),
    line("unknown option", ("train", "--learning-rate", "1"), "--learning-rate", "--help"),
    line("abbreviated option", ("train", "--out", "x"), "--out", "--help"),
    line("seed that is no number", ("train", "--seed", "x"), "--seed", "--help"),
    line("option without a value", ("train", "--output-dir"), "--output-dir", "--help"),
    line("epoch that is no number", ("train", "--load-epoch", "last"), "--load-epoch", "--help"),
    line("key without a value", overwriting(pairs=("OPTIM.LR",)), "OPTIM.LR", "KEY VALUE", earlier()),
    line("option after pairs", ("train", "OPTIM.LR", "0.1", "--root", "x"), "--root", "must come before"),
    line("pairs taken for transforms", ("train", "--transforms", "normalize", "OPTIM.LR", "0.1"), "OPTIM.LR",
         "put -- before"),
    line("pair with an equals sign", overwriting(pairs=("OPTIM.LR=0.1",)), "OPTIM.LR=0.1", "write OPTIM.LR 0.1",
         earlier()),
    line("nothing at all", ("train",), "--trainer", "choose from"),
    line("missing root", training(root="{here}/nowhere"), "{here}/nowhere", "--root"),
    line("root is a file", training(root="{here}/file"), "{here}/file", "--root", OWN),
    line("output below a file", training(out="{here}/file/run"), "{here}/file/run", "choose another --output-dir", OWN),
    line("output is a file", training(out="{here}/file"), "{here}/file", "choose another --output-dir", OWN),
    line("output is a link to nothing", training(), "{here}/new", "choose another --output-dir", dangling),
    line("output of another run", training(pairs=("OPTIM.LR", "0.5"), out="{here}/earlier"), "OPTIM.LR",
         "choose another --output-dir", earlier()),
    line("training into a test's folder", overwriting("--eval-only", "--model-dir", "{here}/earlier"), "mode",
         "choose another --output-dir", earlier()),
    line("output of a living process", overwriting(), "{here}/earlier", "wait for that run", locked),
    line("lock that is a folder", training(out="{here}/run"), "run.lock", "choose another --output-dir",
         lambda here: (here / "run" / "run.lock").mkdir(parents=True)),
    line("resume of nothing", training("--resume", "{here}/empty"), "{here}/empty", "choose another folder",
         lambda here: (here / "empty" / "MultiModalPromptLearner").mkdir(parents=True)),
    line("resume of no folder", training("--resume", "{here}/nowhere"), "RESUME", "give the folder of a run"),
    line("resume of a file", training("--resume", "{here}/file"), "RESUME", "give the folder of a run", OWN),
    line("resume of another configuration", training("--resume", "{here}/earlier", pairs=("OPTIM.LR", "0.5")),
         "OPTIM.LR", "--resume-anyway", earlier()),
    line("test without a model", training("--eval-only"), "--eval-only", "--model-dir"),
    line("test of no folder", training("--eval-only", "--model-dir", "{here}/nowhere"), "{here}/nowhere",
         "give --model-dir"),
    line("test of an epoch that is not there", training("--eval-only", "--model-dir", "{here}/earlier",
                                                        "--load-epoch", "9"), "model.pth.tar-9", "--load-epoch",
         earlier()),
    line("test of a negative epoch", training("--eval-only", "--model-dir", "{here}/earlier", "--load-epoch", "-1"),
         "model.pth.tar--1", "--load-epoch", earlier()),
    line("plugin that does not exist", training("--plugin", "nowhere.to_be_found"), "nowhere.to_be_found",
         "give a module's name", process=True),
    line("plugin that raises", training("--plugin", "raises"), "raises", "--debug shows",
         put("../cwd/raises.py", "raise RuntimeError('on import')\nopen('{canary}', 'w')"), process=True),
    line("plugin of a relative name", training("--plugin", "..up"), "..up", "give a module's name", process=True),
    line("predict without a run", ("predict",), "RUN", "--help"),
    line("predict without images", ("predict", "{here}/earlier"), "--export", "give images", earlier()),
    line("predict of no run", ("predict", "{here}/nowhere", "{made}"), "{here}/nowhere", "give the --output-dir"),
    line("predict of no image", ("predict", "{here}/earlier", "{here}/none.jpg"), "{here}/none.jpg", "give",
         earlier()),
    line("predict of an empty folder", ("predict", "{here}/earlier", "{here}/empty"), "{here}/empty",
         "names that end in", both(earlier(), lambda here: (here / "empty").mkdir())),
    line("predict for no classes", ("predict", "{here}/earlier", "{made}", "--classes", "cat,,dog"), "Class name 2",
         "give", earlier()),
    line("predict for a class twice", ("predict", "{here}/earlier", "{made}", "--classes", "cat,Cat"), "'Cat'",
         "give each class once", earlier()),
    line("predict for classes in no file", ("predict", "{here}/earlier", "{made}", "--classes", "{here}/none.txt"),
         "{here}/none.txt", "give", earlier()),
    line("predict for classes not in UTF-8", ("predict", "{here}/earlier", "{made}", "--classes", "{here}/c.txt"),
         "{here}/c.txt", "UTF-8", both(earlier(), put("c.txt", b"caf\xe9\n"))),
    line("predict with a wrong number", ("predict", "{here}/earlier", "{made}", "--top", "0"), "--top", "1 or more",
         earlier()),
    line("predict of an epoch that is not there", ("predict", "{here}/earlier", "{made}", "--load-epoch", "7"),
         "model.pth.tar-7", "--load-epoch", earlier()),
    line("predict into no folder", ("predict", "{here}/earlier", "{made}/oxford_pets/images", "--csv",
                                    "{here}/file/x.csv"), "{here}/file/x.csv", "choose another place",
         both(earlier(), OWN)),
    line("predict into a folder", ("predict", "{here}/earlier", "{made}/oxford_pets/images", "--csv", "{here}/file"),
         "{here}/file", "add a file's name", both(earlier(), lambda here: (here / "file").mkdir())),
    line("export into a file as folder", ("predict", "{here}/earlier", "--export", "{here}/file/x.safetensors"),
         "{here}/file/x.safetensors", "choose another place", both(earlier(), OWN)),
    line("export to another kind of file", ("predict", "{here}/earlier", "--export", "{here}/x.pt"), "{here}/x.pt",
         "give a name that ends in"),
    line("convert into a run's folder", ("convert", "{here}/earlier", "{here}/earlier"), "{here}/earlier",
         "choose another", earlier()),
    line("convert of CoOp", ("convert", "{here}/earlier", "{here}/new"), "CoOp", "runs of MaPLe and P2C can",
         earlier("CoOp")),
    line("convert without a target", ("convert", "{here}/earlier"), "OUT", "--help", earlier()),
    line("verify_run of no run", ("verify_run", "{here}"), "{here}", "give the --output-dir"),
    line("verify_run of data that moved", ("verify_run", "{here}/earlier", "--root", "{here}/nowhere"),
         "{here}/nowhere", "--root", earlier()),
    line("interpret of no text", ("interpret", "{here}/nowhere"), "{here}/nowhere", "give the --output-dir"),
    line("interpret with a wrong number", ("interpret", "{here}/earlier", "--top", "many"), "--top", "--help",
         earlier()),
    line("data without a command", ("data",), "download|verify|list", "--help"),
    line("data of an unknown name", ("data", "verify", "oxford_cats"), "oxford_cats", "choose from"),
    line("data with root a file", ("data", "list", "--root", "{here}/file"), "{here}/file", "--root must be a folder",
         OWN),
    line("data of no folder", ("data", "verify", "folder:{here}/nowhere"), "{here}/nowhere", "--help"),
    line("doctor with an unknown option", ("doctor", "--full"), "--full", "--help"),
    line("config of an unknown name", ("config", "path", "P2C/none"), "P2C/none", "choose from"),
    line("config path without a name", ("config", "path"), "NAME", "--help"),
    line("aggregator without a folder", ("parse_test_res",), "directory", "--help"),
    line("aggregator of no folder", ("parse_test_res", "{here}/nowhere"), "{here}/nowhere", "give",
         process=True, status=FAILURE),
    line("aggregator of an empty folder", ("parse_test_res", "{here}/empty"), "{here}/empty", "--test-log",
         lambda here: (here / "empty").mkdir(), status=FAILURE),
    line("aggregator of a run's own folder", ("parse_test_res", "{here}/earlier"), "{here}/earlier",
         "give the folder above", earlier(), status=FAILURE),
    line("aggregator with a wrong keyword", ("parse_test_res", "{here}", "--keyword", "("), "--keyword", "regular"),
    line("aggregator with two tables", ("parse_test_res", "{here}", "--xd", "--dg"), "--dg", "not allowed with"),
    line("aggregator with curves of no kind", ("parse_test_res", "{here}", "--fewshot", "--curves", "x.doc"), "x.doc",
         "must end with"),
    line("aggregator with a format alone", ("parse_test_res", "{here}", "--format", "csv"), "--format", "--base2new"),
    line("reproduce of an unknown trainer", ("reproduce", "P3C", "base2new"), "P3C", "choose from"),
    line("reproduce of an unknown protocol", ("reproduce", "P2C", "base2novel"), "base2novel", "choose from"),
    line("reproduce of an unknown dataset", ("reproduce", "P2C", "xd", "--datasets", "cats"), "cats", "choose from"),
    line("reproduce with a wrong seed", ("reproduce", "P2C", "all", "--seeds", "-1"), "--seeds", "whole numbers"),
    line("reproduce with a GPU twice", ("reproduce", "P2C", "all", "--gpus", "0,0"), "--gpus", "different GPUs"),
    line("script of an unknown dataset", ("run.sh", "P2C", "base2new_train", "cats", "1"), "cats", "choose from",
         process=True),
    line("script without a seed", ("run.sh", "P2C", "base2new_train", "oxford_pets"), "SEED", "for example",
         process=True),
]


# Splits and one's own data


def split(name: str, change: Callable[[dict], object], names: str = "split_zhou_OxfordPets.json",
          remedy: str = "python -m p2c data download oxford_pets") -> Case:
    """The small dataset with another split: what `change` returns, or leaves."""
    def prepare(here: Path) -> None:
        path = pets(here) / "split_zhou_OxfordPets.json"
        parts = json.loads(path.read_text())
        content = change(parts)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(parts).encode())
    return Case("split", name, training(root="{here}"), names, remedy, prepare)


def entry(position: int, value) -> Callable[[dict], object]:
    """Sets the path, label or class name (0, 1, 2) of the first training image."""
    return lambda parts: parts["train"][0].__setitem__(position, value)


def own(name: str, prepare: Prepare, names: str, remedy: str, *pairs: str) -> Case:
    """One's own images in {here}/photos."""
    return Case("own data", name, training(root="{here}/photos", dataset="folder", pairs=pairs), names, remedy,
                both(lambda here: (here / "photos").mkdir(), prepare))


def photos(*folders: str, count: int = 4) -> Prepare:
    def prepare(here: Path) -> None:
        for name in folders:
            (here / "photos" / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                Image.new("RGB", (8, 8), (index, 90, 90)).save(here / "photos" / name / f"{index}.png")
    return prepare


def table(name: str, content: str | bytes, names: str = "{here}/photos/list.csv", remedy: str = "correct the file") \
        -> Case:
    return own(f"CSV: {name}", both(photos("cat", "dog"), put("photos/list.csv", content)), names, remedy,
               "DATASET.FOLDER.SPLIT", "list.csv")


ROWS = "path,class\n" + "".join(f"{name}/{index}.png,{name}\n" for name in ("cat", "dog") for index in range(4))
SPLITS = [
    split("a web page", lambda parts: b"<!DOCTYPE html><html>Quota exceeded</html>", remedy="download"),
    split("truncated", lambda parts: json.dumps(parts).encode()[:-100]),
    split("empty", lambda parts: b""),
    split("binary", lambda parts: bytes(range(256))),
    split("not UTF-8", lambda parts: json.dumps(parts).replace("boxer", "\xe9").encode("latin-1")),
    split("huge nesting", lambda parts: b"[" * 100_000),
    split("a list", lambda parts: b"[1, 2]"),
    split("without val", lambda parts: parts.pop("val")),
    split("items of two", lambda parts: parts["train"][0].pop()),
    split("items that are texts", lambda parts: parts["train"].__setitem__(0, "abc")),
    split("a part that is a number", lambda parts: parts.__setitem__("train", 5)),
    split("absolute path", entry(0, "/etc/passwd"), "/etc/passwd", "must be a path below"),
    split("parent folder", entry(0, "../../made/P2C/log.txt"), "..", "must be a path below"),
    split("drive letter", entry(0, "C:/secret.png"), "C:/secret.png", "must be a path below"),
    split("back-slashes", entry(0, "a\\b.png"), "a\\\\b.png", "forward slashes"),
    split("path with a zero byte", entry(0, "a\0.png")),
    split("path that is no text", entry(0, 7)),
    split("missing image", entry(0, "none.png"), "none.png"),
    split("label gap", lambda parts: [item.__setitem__(1, 9) for part in parts.values() for item in part
                                      if item[1] == 3], remedy="without gaps"),
    split("two names of a label", entry(2, "other"), "label 0"),
    split("negative label", entry(1, -1)),
    split("label that is a text", entry(1, "0")),
    split("label that is a fraction", entry(1, 0.5)),
    split("label that is true", entry(1, True)),
    split("huge label", entry(1, 10**12)),
    split("no class name", entry(2, " ")),
    split("image twice", lambda parts: parts["val"].__setitem__(0, parts["test"][0])),
    split("empty test", lambda parts: parts.__setitem__("test", [])),
    split("empty train", lambda parts: parts.__setitem__("train", [])),
    split("class without test images", lambda parts: parts.__setitem__(
        "test", [item for item in parts["test"] if item[1] < 3])),
    Case("split", "other numbers than published", training(root="{made}", pairs=("DATASET.CHECKS", "published")),
         "{made}/oxford_pets", "DATASET.CHECKS partial"),
    Case("split", "missing", training(root="{here}"), "split_zhou_OxfordPets.json", "drive.google.com",
         lambda here: (pets(here) / "split_zhou_OxfordPets.json").unlink()),
    Case("split", "is a folder", training(root="{here}"), "split_zhou_OxfordPets.json", "download",
         lambda here: ((pets(here) / "split_zhou_OxfordPets.json").unlink(),
                       (here / "oxford_pets" / "split_zhou_OxfordPets.json").mkdir())),
    Case("split", "dataset is a link to nothing", training(root="{here}"), "{here}/oxford_pets", "broken link",
         lambda here: (here / "oxford_pets").symlink_to("nowhere")),
]
OWN_DATA = [
    table("no header", "cat/0.png,cat\n", remedy="needs a first line"),
    table("other columns", "image,label\ncat/0.png,cat\n", remedy="needs a first line"),
    table("header alone", "path,class\n", remedy="needs a first line"),
    table("empty", "", remedy="needs a first line"),
    table("row without a class", "path,class\ncat/0.png\n"),
    table("too many values", ROWS + "cat/0.png,cat,train,more\n"),
    table("unknown part", "path,class,split\ncat/0.png,cat,dev\n", remedy="choose from"),
    table("not UTF-8", ROWS.encode() + b"caf\xe9/0.png,caf\xe9\n", remedy="UTF-8"),
    table("zero bytes", ROWS.encode() + b"\0\0,cat\n"),
    table("huge field", ROWS + f'{BIG},cat\n"'),
    table("missing image", ROWS + "cat/9.png,cat\n", "9.png"),
    table("parent folder", ROWS + "../../made/x.png,cat\n", remedy="must be a path below"),
    table("absolute path", ROWS + "/etc/passwd,cat\n", remedy="must be a path below"),
    table("image twice", ROWS + "cat/0.png,dog\n", remedy="once"),
    table("class of two images", ROWS + "bird/0.png,bird\n", remedy="at least 3"),
    own("split of another kind", both(photos("cat", "dog"), put("photos/list.txt", ROWS)), "list.txt", ".csv",
        "DATASET.FOLDER.SPLIT", "list.txt"),
    own("split that is not there", photos("cat", "dog"), "none.json", "DATASET.FOLDER.SPLIT",
        "DATASET.FOLDER.SPLIT", "none.json"),
    own("kept split is damaged", both(photos("cat", "dog"), put("photos/split_seed1.json", "{")),
        "split_seed1.json", "correct the file"),
    own("empty folder", lambda here: None, "{here}/photos", "one folder of images a class"),
    own("images without folders", photos(""), "{here}/photos", "one folder of images a class"),
    own("class without images", both(photos("cat"), lambda here: (here / "photos" / "dog").mkdir()),
        "{here}/photos/dog", "holds no images"),
    own("class of two images", photos("cat", "dog", count=2), "'cat'", "at least 3"),
    own("one class, new classes", photos("cat"), "1 class", "set DATASET.SUBSAMPLE_CLASSES all",
        "DATASET.SUBSAMPLE_CLASSES", "new"),
    own("more shots than images, strict", photos("cat", "dog"), "DATASET.NUM_SHOTS", "use fewer shots",
        "DATASET.CHECKS", "strict", "DATASET.NUM_SHOTS", "64"),
    own("train without test", photos("train/cat", "train/dog"), "{here}/photos", "make a folder test"),
    own("test of other classes", photos("train/cat", "train/dog", "test/cat", "test/cow"), "'cow'",
        "the same classes"),
    own("names of other classes", both(photos("cat", "dog"), put("photos/classnames.txt", "cat house cat\n")),
        "classnames.txt", "one line"),
    own("names of one word", both(photos("cat", "dog"), put("photos/classnames.txt", "cat\ndog\n")),
        "classnames.txt", "should be a folder"),
    own("names not in UTF-8", both(photos("cat", "dog"), put("photos/classnames.txt", b"cat caf\xe9\ndog dog\n")),
        "classnames.txt", "UTF-8"),
    own("names that are not there", photos("cat", "dog"), "none.txt", "DATASET.FOLDER.CLASSNAMES",
        "DATASET.FOLDER.CLASSNAMES", "none.txt"),
    own("case of an image's name", both(photos("cat", "dog"), put("photos/list.csv", ROWS.replace("cat/0.png",
                                                                                               "cat/0.PNG"))),
        "0.PNG", "upper and lower case", "DATASET.FOLDER.SPLIT", "list.csv"),
]


def pickled(content: Callable[[Path], object] | bytes) -> Prepare:
    """The small dataset with an upstream few-shot cache."""
    def prepare(here: Path) -> None:
        folder = pets(here) / "split_fewshot"
        folder.mkdir()
        raw = content if isinstance(content, bytes) else pickle.dumps(content(here))
        (folder / "shot_1-seed_1.pkl").write_bytes(raw)
    return prepare


def cached(name: str, content: Callable[[Path], object] | bytes) -> Case:
    return Case("few-shot cache", name, training(root="{here}", pairs=("DATASET.NUM_SHOTS", "1")),
                "shot_1-seed_1.pkl", "delete it", pickled(content))


CACHES = [
    cached("opens a file", Attack),
    cached("calls a shell", lambda here: Attack(here, os.system)),
    cached("attack inside", lambda here: {"train": [Attack(here)], "val": []}),
    cached("builtin eval", b"cbuiltins\neval\n(S'1'\ntR."),
    cached("nested name", b"\x80\x04\x8c\x08builtins\x8c\x10list.__class__.x\x93."),
    cached("extension code", b"\x80\x02\x82\x01."),
    cached("truncated", pickle.dumps({"train": [], "val": []})[:-3]),
    cached("no pickle", b"<html></html>"),
    cached("empty", b""),
    cached("a list", lambda here: [1, 2]),
    cached("numbers for images", lambda here: {"train": [1, 2], "val": []}),
]


# Images


def bomb_png(side: int = 60_000) -> bytes:
    """A PNG that says it is of side x side pixels."""
    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
    header = side.to_bytes(4, "big") * 2 + bytes((8, 2, 0, 0, 0))
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def spoil(path: Path, how: Callable[[bytes], bytes] | None) -> None:
    """Change what is in a file; None: make a folder of it."""
    content = path.read_bytes()
    path.unlink()
    path.mkdir() if how is None else path.write_bytes(how(content))


def image(name: str, how: Callable[[bytes], bytes] | None) -> list[Case]:
    """An image that is trained on, verified, predicted."""
    mine = both(photos("cat", "dog"), lambda here: spoil(here / "photos" / "cat" / "3.png", how))
    cases = [
        Case("image", f"{name}, trained on", training(root="{here}"), "boxer_train_0.png", "replace the file",
             lambda here: spoil(pets(here) / "images" / "boxer_train_0.png", how), FAILURE),
        Case("image", f"{name}, verified", ("data", "verify", "folder:{here}/photos"), "photos/cat/3.png",
             "replace the file", mine, FAILURE, "error: "),
        Case("image", f"{name}, predicted", ("predict", "{here}/earlier", "{here}/photos/cat/3.png"),
             "photos/cat/3.png", "cannot be read as an image", both(earlier(), mine), FAILURE, "skipped: "),
    ]
    return cases if how else cases[:1]  # the others take a folder for one of images


def linked(here: Path) -> None:
    path = pets(here) / "images" / "boxer_train_0.png"
    path.unlink()
    path.symlink_to("nowhere.png")


IMAGES = [
    *image("zero bytes", lambda content: b""),
    *image("text", lambda content: b"not an image\n"),
    *image("truncated", lambda content: content[:40]),
    *image("too many pixels", lambda content: bomb_png()),
    *image("folder", None),
    Case("image", "link to nothing", training(root="{here}"), "boxer_train_0.png", "is a link to", linked),
    Case("image", "missing folder", training(root="{here}"), "{here}/oxford_pets", "download oxford_pets",
         lambda here: shutil.rmtree(pets(here) / "images")),
]


# Archives


def archive(name: str, content: bytes | Callable[[Path], bytes], says: str) -> Case:
    """UCF101 is to be unpacked from an archive that lies in its folder."""
    def prepare(here: Path) -> None:
        folder = write_split_tree(here, "ucf101")
        shutil.rmtree(folder / "UCF-101-midframes")
        (folder / "UCF-101-midframes.zip").write_bytes(content if isinstance(content, bytes) else content(here))
    return Case("archive", name, ("data", "download", "ucf101", "--root", "{here}"),
                "{here}/ucf101/UCF-101-midframes.zip", says, prepare, FAILURE, "error: ")


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_link(target: str) -> bytes:
    info = zipfile.ZipInfo("UCF-101-midframes/link")
    info.external_attr = 0o120777 << 16
    return zip_of({info: target.encode()})


def zip_device() -> bytes:
    info = zipfile.ZipInfo("UCF-101-midframes/null")
    info.external_attr = 0o020666 << 16
    return zip_of({info: b""})


def zip_bomb() -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("UCF-101-midframes/zeros.jpg", bytes(80 * 2**20))
    return target.getvalue()


def in_place_split(here: Path) -> None:
    """A split of Oxford Pets that passes for the published one."""
    sizes = class_of("oxford_pets").sizes
    parts = {part: [(f"{part}_{index}.jpg", index % sizes.classes, f"breed {index % sizes.classes}")
                    for index in range(count)] for part, count in zip(COUNTS, sizes[1:], strict=True)}
    put("oxford_pets/split_zhou_OxfordPets.json", json.dumps(parts))(here)


GOOD = {f"UCF-101-midframes/Yo_Yo/{index}.jpg": random.Random(index).randbytes(3000) for index in range(20)}
GOOD_TAR, GOOD_ZIP = tar_of(GOOD), zip_of(GOOD)
OUT = "leads out of the folder"
ARCHIVES = [
    archive("tar: parent folder", lambda here: tar_of({f"../../{CANARY}": b"x"}), OUT),
    archive("tar: parent folder behind good members", lambda here: tar_of(
        {"UCF-101-midframes/a.jpg": b"x", f"UCF-101-midframes/../../../{CANARY}": b"x"}), OUT),
    archive("tar: absolute name", lambda here: tar_of({f"{here.parent}/{CANARY}": b"x"}), OUT),
    archive("tar: drive letter", tar_of({"C:/canary": b"x"}), OUT),
    archive("tar: back-slashes", tar_of({"..\\canary": b"x"}), OUT),
    archive("tar: link outside", tar_of({member("UCF-101-midframes", tarfile.SYMTYPE, "/etc"): None}), OUT),
    archive("tar: link, then through it", lambda here: tar_of(
        {member("out", tarfile.SYMTYPE, "../../.."): None, f"out/{CANARY}": b"x"}), OUT),
    archive("tar: hard link outside", tar_of({member("passwd", tarfile.LNKTYPE, "/etc/passwd"): None}), OUT),
    archive("tar: device", tar_of({member("null", tarfile.CHRTYPE): None}), "is a device"),
    archive("tar: pipe", tar_of({member("pipe", tarfile.FIFOTYPE): None}), "is a device"),
    archive("tar: bomb", lambda here: tar_of({"UCF-101-midframes/zeros.jpg": bytes(80 * 2**20)}),
            "unpacks to more than"),
    archive("tar: truncated", GOOD_TAR[:len(GOOD_TAR) // 2], "damaged"),
    archive("tar: damaged inside", GOOD_TAR[:20_000] + bytes(1000) + GOOD_TAR[21_000:], "damaged"),
    archive("tar: a file as a folder", tar_of({"a": b"x", "a/b": b"x"}), "damaged"),
    archive("tar: another dataset's", tar_of({"images/a.jpg": b"x"}), "should hold UCF-101-midframes"),
    archive("zip: parent folder", zip_of({f"../../{CANARY}": b"x"}), OUT),
    archive("zip: absolute name", lambda here: zip_of({f"{here.parent}/{CANARY}": b"x"}), OUT),
    archive("zip: back-slashes", zip_of({f"..\\..\\{CANARY}": b"x"}), OUT),
    archive("zip: link outside", zip_link("../../../made"), OUT),
    archive("zip: absolute link", zip_link("/etc/passwd"), OUT),
    archive("zip: device", zip_device(), "is a device"),
    archive("zip: bomb", lambda here: zip_bomb(), "unpacks to more than"),
    archive("zip: truncated", GOOD_ZIP[:len(GOOD_ZIP) // 2], "not an archive, or an incomplete"),
    archive("zip: damaged inside", GOOD_ZIP[:20_000] + bytes(1000) + GOOD_ZIP[21_000:], "damaged"),
    archive("a web page", b"<!DOCTYPE html><html>login</html>", "web page"),
    archive("empty", b"", "empty"),
    archive("no archive", b"Rar!" + bytes(5000), "not an archive"),
    Case("archive", "other size than published", ("data", "download", "oxford_pets", "--root", "{here}"),
         "images.tar.gz", "expected", both(put("oxford_pets/images.tar.gz", GOOD_TAR), in_place_split), FAILURE,
         "error: "),
]


# CLIP's weights


def weights(name: str, content: Callable[[Path], bytes | None], remedy: str, file: str = "clip.pt") -> Case:
    def prepare(here: Path) -> None:
        if (raw := content(here)) is not None:
            (here / file).write_bytes(raw)
    return Case("CLIP weights", name, training(pairs=("MODEL.BACKBONE.WEIGHTS", f"{{here}}/{file}")),
                f"{{here}}/{file}", remedy, prepare)


def torch_bytes(value, **options) -> bytes:
    content = io.BytesIO()
    torch.save(value, content, **options)
    return content.getvalue()


@functools.cache
def script_bytes() -> bytes:
    """A TorchScript archive whose code, run when torch.jit loads it, writes a file."""
    class Evil(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("x", torch.zeros(1))

        def forward(self, x: torch.Tensor):
            return x

        @torch.jit.export
        def __getstate__(self):
            return self.x, self.training

        @torch.jit.export
        def __setstate__(self, state: tuple[torch.Tensor, bool]):
            self.x, self.training = state
            torch.save(state[0], "CANARY")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(Evil()).save_to_buffer()


def script_attack(here: Path) -> bytes:
    source, target = io.BytesIO(script_bytes()), io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b'"CANARY"', f'"{here.parent / CANARY}"'.encode()))
    return target.getvalue()


def builtin() -> dict:
    return loading.read_state_dict(loading.BUILTIN / f"{loading.TINY}.safetensors")


def without(state: dict, key: str) -> dict:
    return {name: value for name, value in state.items() if name != key}


WEIGHTS = [
    weights("malicious pickle", lambda here: pickle.dumps(Attack(here)), "give OpenAI's archive"),
    weights("malicious, saved by torch", lambda here: torch_bytes({"a": Attack(here)}), "give OpenAI's archive"),
    weights("malicious, old form", lambda here: torch_bytes(
        {"a": Attack(here)}, _use_new_zipfile_serialization=False), "give OpenAI's archive"),
    weights("malicious TorchScript", script_attack, "convert it"),
    weights("truncated", lambda here: torch_bytes({"a": torch.zeros(1000)})[:900], "give OpenAI's archive"),
    weights("text", lambda here: b"words", "give OpenAI's archive"),
    weights("empty", lambda here: b"", "give OpenAI's archive"),
    weights("a zip of nothing", lambda here: zip_of({"x/data.pkl": b""}), "give OpenAI's archive"),
    weights("a bare tensor", lambda here: torch_bytes(torch.zeros(3)), "give CLIP's weights"),
    weights("a list", lambda here: torch_bytes([1, 2]), "give CLIP's weights"),
    weights("other entries", lambda here: torch_bytes({"a": torch.zeros(3)}), "MODEL.BACKBONE.NAME"),
    weights("missing", lambda here: None, "MODEL.BACKBONE.WEIGHTS"),
    weights("damaged safetensors", lambda here: b"\xff" * 64, "give OpenAI's archive", "clip.safetensors"),
    weights("safetensors of another model", lambda here: (made(here) / "other.safetensors").read_bytes(),
            "MODEL.BACKBONE.NAME", "clip.safetensors"),
    weights("another shape", lambda here: torch_bytes({**builtin(), "visual.proj": torch.zeros(3, 3)}),
            "MODEL.BACKBONE.NAME"),
    weights("lacks an entry", lambda here: torch_bytes(without(builtin(), "visual.proj")), "MODEL.BACKBONE.NAME"),
    weights("rows that do not fit their ids", lambda here: torch_bytes(
        {**builtin(), "token_embedding.ids": torch.tensor([1, 2])}), "MODEL.BACKBONE"),
    weights("rows missing", lambda here: torch_bytes(without(builtin(), "token_embedding.rows")), "MODEL.BACKBONE"),
    weights("no ids", lambda here: torch_bytes({**builtin(), "token_embedding.ids": torch.zeros(0, dtype=torch.long),
                                                "token_embedding.rows": torch.zeros(0)}), "MODEL.BACKBONE"),
    Case("CLIP weights", "OpenAI's download is damaged",
         training(pairs=("MODEL.BACKBONE.WEIGHTS", "openai", "MODEL.BACKBONE.NAME", "ViT-B/16")),
         "ViT-B-16.pt", "delete it and download it again",
         lambda here: put("../home/.cache/clip/ViT-B-16.pt", "half of it")(here)),
]


# Checkpoints


LEARNER = "MultiModalPromptLearner"


def change(how: Callable[[Path, dict], object], run: str) -> Prepare:
    """A finished run whose last checkpoint is what `how` makes of its content: bytes, or what torch.save gets."""
    def prepare(here: Path) -> None:
        earlier(run)(here)
        path, = (here / "earlier").glob("*/model.pth.tar-2")
        content = how(here, torch.load(path, weights_only=True))
        path.write_bytes(content if isinstance(content, bytes) else torch_bytes(content))
    return prepare


def checkpoint(name: str, how: Callable[[Path, dict], object], remedy: str = "choose another checkpoint",
               trainer: str = "P2C", commands: Sequence[str] = ("train",), pairs: Sequence[str] = ()) -> list[Case]:
    """A run whose last checkpoint is bad, tested by train.py and read by other commands."""
    words = {
        "train": training("--eval-only", "--model-dir", "{here}/earlier", trainer=trainer, pairs=pairs),
        "predict": ("predict", "{here}/earlier", "{made}/oxford_pets/images"),
        "interpret": ("interpret", "{here}/earlier"),
        "convert": ("convert", "{here}/earlier", "{here}/new"),
        "verify_run": ("verify_run", "{here}/earlier"),
    }
    return [Case("checkpoint", f"{name}, {command}", words[command], "model.pth.tar-2", remedy,
                 change(how, trainer),
                 FAILURE if command == "verify_run" else MISTAKE) for command in commands]


def entries(content: dict, **changes) -> dict:
    return {**content, "state_dict": {**content["state_dict"], **changes}}


EVERY = ("train", "predict", "interpret", "convert", "verify_run")


def spoil_all(content: bytes | Callable[[Path], bytes], name: str = "model*") -> Prepare:
    """A run that is to go on, without a checkpoint that can be read."""
    def prepare(here: Path) -> None:
        earlier()(here)
        (here / "earlier" / "results.json").unlink()
        for path in (here / "earlier" / LEARNER).glob(name):
            path.write_bytes(content if isinstance(content, bytes) else content(here))
    return prepare


def rewrite(how: Callable[[dict], object], here: Path) -> None:
    """A finished run whose record is what `how` makes of it, or leaves."""
    earlier()(here)
    path = here / "earlier" / "results.json"
    content = json.loads(path.read_text())
    changed = how(content)
    path.write_bytes(changed if isinstance(changed, bytes) else json.dumps(content).encode())


CHECKPOINTS = [
    *checkpoint("malicious pickle", lambda here, content: pickle.dumps(Attack(here)), commands=EVERY),
    *checkpoint("malicious, saved by torch", lambda here, content: Attack(here)),
    *checkpoint("malicious state", lambda here, content: {**content, "state_dict": Attack(here, os.system)}),
    *checkpoint("malicious entry", lambda here, content: entries(content, ctx=Attack(here))),
    *checkpoint("malicious, old form", lambda here, content: torch_bytes(
        {**content, "state_dict": Attack(here)}, _use_new_zipfile_serialization=False)),
    *checkpoint("malicious TorchScript", lambda here, content: script_attack(here)),
    *checkpoint("truncated", lambda here, content: torch_bytes(content)[:-200], commands=EVERY),
    *checkpoint("empty", lambda here, content: b""),
    *checkpoint("text", lambda here, content: b"words"),
    *checkpoint("a bare tensor", lambda here, content: torch.zeros(3)),
    *checkpoint("a list", lambda here, content: [content]),
    *checkpoint("a bare state dict", lambda here, content: content["state_dict"]),
    *checkpoint("no epoch", lambda here, content: without(content, "epoch")),
    *checkpoint("a text for the state", lambda here, content: {**content, "state_dict": "weights"}),
    *checkpoint("lacks an entry", lambda here, content: {**content, "state_dict": without(
        content["state_dict"], "ctx")}, "settings"),
    *checkpoint("lacks all entries", lambda here, content: {**content, "state_dict": {}}, "settings", commands=EVERY),
    *checkpoint("unknown entry", lambda here, content: entries(content, other=torch.zeros(2)), "settings"),
    *checkpoint("another shape", lambda here, content: entries(
        content, ctx=torch.zeros(7, content["state_dict"]["ctx"].shape[1])), "N_CTX", commands=EVERY),
    *checkpoint("another width", lambda here, content: entries(content, ctx=torch.zeros(2, 512)), "another backbone"),
    *checkpoint("a number for a tensor's shape", lambda here, content: entries(content, ctx=torch.tensor(1.0)),
                "settings"),
    *checkpoint("another backbone", lambda here, content: {**content, "config": {
        "MODEL": {"BACKBONE": {"NAME": "RN50"}}}}, "MODEL.BACKBONE.NAME"),
    *checkpoint("whole numbers for weights", lambda here, content: entries(content, ctx=torch.zeros(2, 3, 4, 5)),
                "settings"),
    *checkpoint("a CoOp run's", lambda here, content: (
        made(here) / "CoOp" / "prompt_learner" / "model.pth.tar-2").read_bytes(), "prompts of CoOp"),
    *checkpoint("other classes", lambda here, content: {**content, "classnames": ["a", "b", "c", "d"]}, "same",
                "CoOp", pairs=CONTEXT_EACH),
    *checkpoint("fewer classes", lambda here, content: entries(content, ctx=content["state_dict"]["ctx"][:2]), "same",
                "CoOp", pairs=CONTEXT_EACH),
    Case("checkpoint", "not finite", ("convert", "{here}/earlier", "{here}/new"), "prompts are not finite",
         "choose an earlier epoch", change(lambda here, content: entries(
             content, ctx=content["state_dict"]["ctx"] * float("nan")), "P2C")),
    Case("checkpoint", "pointer that leads away", training("--eval-only", "--model-dir", "{here}/earlier"),
         "{here}/earlier", "--model-dir", both(earlier(), put(f"earlier/{LEARNER}/checkpoint", "../../../x\n"))),
    Case("checkpoint", "pointer not in UTF-8", training("--eval-only", "--model-dir", "{here}/earlier"),
         "{here}/earlier", "--model-dir", both(earlier(), put(f"earlier/{LEARNER}/checkpoint", b"\xff\xfe\n"))),
    Case("checkpoint", "nothing readable to resume", training(out="{here}/earlier"), "{here}/earlier",
         "start from scratch", spoil_all(b"half")),
    Case("checkpoint", "malicious to resume", training(out="{here}/earlier"), "{here}/earlier", "start from scratch",
         spoil_all(lambda here: pickle.dumps(Attack(here)))),
    Case("checkpoint", "initial weights missing", training(pairs=("MODEL.INIT_WEIGHTS", "{here}/none.pt")),
         "{here}/none.pt", "MODEL.INIT_WEIGHTS"),
    Case("checkpoint", "initial weights malicious", training(pairs=("MODEL.INIT_WEIGHTS", "{here}/w.pt")),
         "{here}/w.pt", "choose another checkpoint", lambda here: put("w.pt", pickle.dumps(Attack(here)))(here)),
    Case("checkpoint", "initial weights a folder", training(pairs=("MODEL.INIT_WEIGHTS", "{here}/w.pt")),
         "{here}/w.pt", "give", lambda here: (here / "w.pt").mkdir()),
]


# Records of runs


def record(name: str, how: Callable[[dict], object], remedy: str = "delete it", commands: Sequence[str] = (
        "predict", "verify_run")) -> list[Case]:
    words = {
        "train": training(out="{here}/earlier"),
        "predict": ("predict", "{here}/earlier", "{made}/oxford_pets/images"),
        "verify_run": ("verify_run", "{here}/earlier"),
        "evaluate": training("--eval-only", "--model-dir", "{here}/earlier"),
    }
    return [Case("record", f"{name}, {command}", words[command], "{here}/earlier", remedy,
                 functools.partial(rewrite, how)) for command in commands]


def averaged(name: str, how: Callable[[dict], object]) -> Case:
    """A record that is all that is left of a run."""
    return Case("record", f"{name}, averaged", ("parse_test_res", "{here}"), "Nothing found in {here}", "--test-log",
                both(functools.partial(rewrite, how), lambda here: (here / "earlier" / "log.txt").unlink()), FAILURE)


ALL_READERS = ("train", "predict", "verify_run", "evaluate")
RECORDS = [
    *record("truncated", lambda content: json.dumps(content).encode()[:100], commands=ALL_READERS),
    *record("empty", lambda content: b"", commands=ALL_READERS),
    *record("binary", lambda content: bytes(range(256)), commands=ALL_READERS),
    *record("huge nesting", lambda content: b"[" * 100_000, commands=ALL_READERS),
    *record("another program's", lambda content: b'{"accuracy": 90}', commands=ALL_READERS),
    *record("a list", lambda content: b"[1]", commands=ALL_READERS),
    *record("a config that is a list", lambda content: content.__setitem__("config", [1]), commands=ALL_READERS),
    *record("an empty config", lambda content: content.__setitem__("config", {}), "", ("predict", "verify_run")),
    *record("no mode", lambda content: content.pop("mode"), ""),
    *record("no data", lambda content: content.pop("data"), "", ("verify_run",)),
    *record("data that are a list", lambda content: content.__setitem__("data", [1])),
    *record("a seed that is a text", lambda content: content.__setitem__("seed", "one"), ""),
    *record("a value of another type", lambda content: content["config"]["MODEL"]["BACKBONE"].__setitem__("NAME", 5),
            ""),
    *record("a trainer that is nowhere", lambda content: content["config"]["TRAINER"].__setitem__("NAME", "P3C"),
            "choose from"),
    *record("classes that are numbers", lambda content: content["data"].__setitem__("classnames", [1, 2]), "",
            ("predict",)),
    averaged("truncated", lambda content: json.dumps(content).encode()[:100]),
    averaged("huge nesting", lambda content: b"[" * 100_000),
    averaged("metrics that are a list", lambda content: content.__setitem__("metrics", [1])),
    averaged("an accuracy that is a text", lambda content: content["metrics"].__setitem__("accuracy", "high")),
    averaged("a config that is a list", lambda content: (content.__setitem__("config", [1]), content.pop("metrics"))),
    *record("not finished", lambda content: content.__setitem__("finished", False), "repeat its command"),
]

CASES = [*CONFIGS, *LINES, *SPLITS, *OWN_DATA, *CACHES, *IMAGES, *ARCHIVES, *WEIGHTS, *CHECKPOINTS, *RECORDS]


# Running


@dataclass
class Answer:
    """What a call gave."""

    status: int
    out: str
    err: str


def snapshot(folder: Path) -> dict[str, object]:
    """Each path below a folder, and what is there: a file's content, a link's target."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        found[name] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


class Sandbox:
    """A folder with everything that a call may see: home, working folder, temporary files, and a folder a case."""

    def __init__(self, folder: Path):
        self.folder, self.here, self.made = folder, folder / "here", folder / "made"
        for name in ("home", "cwd", "tmp"):
            (folder / name).mkdir()
        self.environ = {"HOME": str(folder / "home"), "XDG_CACHE_HOME": "", "TMPDIR": str(folder / "tmp"),
                        "PYTHONPATH": str(ROOT), "DATA": str(folder / "none"), "PYTHONDONTWRITEBYTECODE": "1"}
        make_pets(self.made)
        for trainer, pairs in {"P2C": (), "CoOp": CONTEXT_EACH}.items():
            words = training(trainer=trainer, out=f"{{made}}/{trainer}", pairs=pairs)
            answer = self.call(Case("", "", words, "", ""))
            if answer.status:
                raise RuntimeError(f"The run that the cases need failed: {answer.err}")
        save_file({"a": torch.zeros(2)}, self.made / "other.safetensors")

    def fill(self, text: str) -> str:
        return text.replace("{here}", str(self.here)).replace("{made}", str(self.made)).replace("{{}}", "{}")

    def prepare(self, case: Case) -> None:
        for name in ("here", "home", "cwd", "tmp"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / name).mkdir()
        case.prepare(self.here)
        for path in self.here.glob("bad.*"):
            path.write_bytes(path.read_bytes().replace(b"{canary}", str(self.folder / CANARY).encode()))

    def call(self, case: Case) -> Answer:
        command, *words = map(self.fill, case.words)
        here, process = COMMANDS[command]
        if case.process:
            done = subprocess.run([*process, *words], cwd=self.folder / "cwd", env={**os.environ, **self.environ},
                                  capture_output=True, text=True, errors="replace")
            return Answer(done.returncode, done.stdout, done.stderr)
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)
                    for _ in range(2))
        with self.as_if(out, err):
            try:
                status = here(words)
            except SystemExit as stopped:
                status = stopped.code or 0
            except Exception:
                traceback.print_exc()
                status = FAILURE
        return Answer(status, *(stream.buffer.getvalue().decode(errors="replace") for stream in (out, err)))

    @contextlib.contextmanager
    def as_if(self, out, err) -> Iterator[None]:
        """This process as if it had just been started in the sandbox."""
        cwd, hook, path, loggers = os.getcwd(), sys.excepthook, [*sys.path], logging.root.manager.loggerDict
        levels = {name: each.level for name, each in loggers.items() if isinstance(each, logging.Logger)}
        with mock.patch.dict(os.environ, self.environ), mock.patch.object(tempfile, "tempdir", None), \
                mock.patch.object(train, "collect_env_info", str), \
                contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            os.chdir(self.folder / "cwd")
            try:
                yield
            finally:
                os.chdir(cwd)
                sys.excepthook, sys.path[:] = hook, path
                for name, level in levels.items():
                    logging.getLogger(name).setLevel(level)

    def faults(self, case: Case) -> list[str]:
        """What does not hold of a case."""
        self.prepare(case)
        before = snapshot(self.folder)
        answer = self.call(case)
        after = snapshot(self.folder)
        found = list(faults_of_answer(answer, case.report, [self.fill(case.names), self.fill(case.remedy)]))
        if answer.status != case.status:
            found.append(f"the exit status is {answer.status}, expected {case.status}")
        outside = sorted(name for name in before.keys() | after.keys() if not name.startswith("here")
                         and (before.get(name, 0) != after.get(name, 0)))
        if outside:
            found.append(f"changed outside its folder: {', '.join(outside[:5])}")
        changed = sorted(name for name in before if name.startswith("here") and after.get(name, 0) != before[name])
        if changed:
            found.append(f"changed: {', '.join(changed[:5])}")
        new = sorted(name for name in after.keys() - before.keys() if name.startswith("here"))
        if case.kind == "archive" and (unpacked := [name for name in new if not name.endswith((".lock", "fetched"))]):
            found.append(f"left by the archive: {', '.join(unpacked[:5])}")
        done = (name for name in new if name.endswith("results.json"))
        if any(json.loads(after[name])["finished"] for name in done):
            found.append("it says that it is finished")
        if found:
            found.append("standard error was: " + " | ".join(answer.err.strip().splitlines()[-6:])[:1500])
        return found


def faults_of_answer(answer: Answer, report: str, texts: Sequence[str]) -> Iterator[str]:
    """What is wrong with an answer."""
    if "Traceback" in answer.err + answer.out:
        yield "a traceback"
        return
    lines = answer.err.splitlines()
    if report:
        lines = [line for line in (*answer.out.splitlines(), *lines) if line.startswith(report)]
    if len(lines) != 1:
        yield f"{len(lines)} lines, expected one"
        return
    for text in texts:
        if text not in lines[0]:
            yield f"{text!r} is not in it: {lines[0][:600]}"


def check(cases: Sequence[Case]) -> dict[str, list[str]]:
    """Run cases; gives what does not hold, by case."""
    with tempfile.TemporaryDirectory() as folder:
        sandbox = Sandbox(Path(os.path.realpath(folder)))
        return {str(case): found for case in cases if (found := sandbox.faults(case))}


def main(seed: int = 0, quick: bool = False, only: str = "") -> bool:
    """Run the corpus, of which nothing is drawn, and print what does not hold; `quick`: what needs no process."""
    cases = [case for case in CASES if not (quick and case.process) and only in str(case)]
    found = check(cases)
    for name, faults in found.items():
        print(f"FAILED {name}: {'; '.join(faults)}")
    counts = collections.Counter(case.kind for case in cases)
    print(f"{len(cases) - len(found)} of {len(cases)} bad inputs answered as they should be: "
          + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    return not found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    sys.exit(not main(quick=args.quick, only=args.only))
