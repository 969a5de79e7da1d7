"""Both directions between this package and Dassl: our trainers in its processes, its users' code on our engine.

Where real Dassl can be imported these tests run on it, else on tests/stand_in.py.
"""
import importlib.util
import os
import pickle
import re
from pathlib import Path

import pytest
from clip_files import make_pets
from messages import naming
from stand_in import write_dassl

from p2c import compat
from p2c.engine import Datum, EvaluatorBase, TrainerX, load_checkpoint
from p2c.engine.results import read_results

ROOT = Path(__file__).resolve().parents[1]
P2C_YAML = ROOT / "configs/trainers/P2C/tiny_shapes.yaml"
SMALL = ["MODEL.BACKBONE.WEIGHTS", "random", "USE_CUDA", "False", "DATASET.CHECKS", "partial", "OPTIM.MAX_EPOCH", "2",
         "TRAIN.PRINT_FREQ", "1", "TRAIN.CHECKPOINT_FREQ", "1"]

# A third-party repository: a trainer and a dataset in CoOp's style, which know only Dassl.
THEIRS = """
import json
import torch
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint

@DATASET_REGISTRY.register()
class OxfordPets(DatasetBase):
    def __init__(self, cfg):
        root = cfg.DATASET.ROOT + "/oxford_pets"
        split = json.load(open(root + "/split_zhou_OxfordPets.json"))
        parts = [[Datum(f"{root}/images/{path}", label, 0, name) for path, label, name in split[part]]
                 for part in ("train", "val", "test")]
        super().__init__(train_x=parts[0], val=parts[1], test=parts[2])

@TRAINER_REGISTRY.register()
class MaPLe(TrainerX):
    def build_model(self):
        self.model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(),
                                         torch.nn.Linear(12, self.num_classes))
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("theirs", self.model, self.optim, self.sched)

    def forward_backward(self, batch):
        image, label = batch["img"], batch["label"]
        assert image.dtype == torch.float32
        output = self.model(image)
        loss = torch.nn.functional.cross_entropy(output, label)
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}
"""

# Their train.py, with the two lines, and what must hold about these.
STOCK = """
import logging, os, random, shutil, sys
import numpy, torch
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import set_random_seed, setup_logger
import theirs

def process():
    return (sys.stdout, logging.root.level, logging.root.manager.disable, os.getcwd(), random.getstate(),
            str(numpy.random.get_state()), torch.get_rng_state().tolist())

set_random_seed(3)
before, names = process(), TRAINER_REGISTRY.registered_names()
import p2c.trainers.p2c
assert process() == before and logging.root.manager.disable == logging.WARNING
assert TRAINER_REGISTRY.registered_names() == names + ["P2C"] and TRAINER_REGISTRY.get("MaPLe") is theirs.MaPLe
import p2c.config

root, yaml, out, *pairs = sys.argv[1:]

def settings(folder, *more):
    cfg = get_cfg_default()
    p2c.config.extend_cfg(cfg)
    cfg.merge_from_file(yaml)
    cfg.merge_from_list(["DATASET.ROOT", root, "DATASET.NAME", "OxfordPets", "TRAINER.NAME", "P2C", "SEED", 1,
                         "OUTPUT_DIR", f"{out}/{folder}", *pairs, *more])
    cfg.freeze()
    return cfg

setup_logger(out + "/run")
trainer = build_trainer(settings("run"))
trainer.train()
os.makedirs(out + "/resumed/MultiModalPromptLearner")
shutil.copy(out + "/run/MultiModalPromptLearner/model.pth.tar-1", out + "/resumed/MultiModalPromptLearner")
open(out + "/resumed/MultiModalPromptLearner/checkpoint", "w").write("model.pth.tar-1")
resumed = build_trainer(settings("resumed"))
resumed.train()
assert resumed.start_epoch == 1 and resumed.sched.last_epoch == 2
assert resumed.get_current_lr() == trainer.get_current_lr()
tested = build_trainer(settings("test", "TRAINER.PROMPT_DENOISING.ENABLED", False))
tested.load_model(out + "/run", epoch=2)
assert tested.test() == trainer.results["accuracy"]

broken = build_trainer(settings("broken"))
broken.model.backbone.logit_scale = float("nan")
try:
    broken.train()
except FloatingPointError as error:
    print(error)

import p2c.trainers.maple
assert TRAINER_REGISTRY.get("MaPLe") is theirs.MaPLe
"""

PATCHED = """
import logging
import p2c.compat
{early}
p2c.compat.patch_dassl()
import dassl.engine, theirs
from dassl.optim.lr_scheduler import build_lr_scheduler
import torch, sys
from torch import nn
p2c.compat.patch_dassl()  # once more changes nothing
assert logging.root.manager.disable == 0
assert theirs.build_lr_scheduler is build_lr_scheduler is dassl.engine.trainer.build_lr_scheduler
from dassl.config import get_cfg_default
opts = get_cfg_default().OPTIM
opts.merge_from_list(["NAME", "sgd", "LR", 0.0035, "LR_SCHEDULER", "cosine", "WARMUP_EPOCH", 1, "WARMUP_TYPE",
                      "constant", "MAX_EPOCH", 5])

def start():
    model = nn.Linear(2, 2)
    optim = theirs.build_optimizer(model, opts)
    return model, optim, theirs.build_lr_scheduler(optim, opts)

model, optim, sched = start()
rates = [optim.param_groups[0]["lr"]]
for epoch in range(2):
    optim.step(), sched.step()
    rates.append(optim.param_groups[0]["lr"])

class Successor:  # what the warm-up's state of real Dassl holds: an object, and through it the optimiser
    pass

torch.save({{"state_dict": model.state_dict(), "optimizer": optim.state_dict(), "epoch": 2, "val_result": None,
            "scheduler": {{"successor": Successor(), "last_epoch": 1}}}}, "run.model.pth.tar-2")
import os
os.makedirs("run/model"), os.rename("run.model.pth.tar-2", "run/model/model.pth.tar-2")
open("run/model/checkpoint", "w").write("model.pth.tar-2")
model, optim, sched = start()
assert theirs.load_checkpoint("run/model/model.pth.tar-2")["epoch"] == 2
assert dassl.engine.trainer.resume_from_checkpoint("run/model", model, optim, sched) == 2
for epoch in range(2):
    rates.append(optim.param_groups[0]["lr"])
    optim.step(), sched.step()
print(rates)
assert rates == [1e-05, 0.0035, 0.0031657797401561582, 0.0031657797401561582, 0.002290779740156158]
assert theirs.compute_accuracy(torch.tensor([[.1, .9, 0], [.8, .15, .05], [0, .2, .8]]), torch.tensor([1, 1, 2]),
                               topk=(1, 2))[1].item() == 100
"""

TOO_LATE = """
import pytest
import p2c.config, p2c.compat, p2c.trainers.p2c
p2c.compat.import_dassl()
from dassl.config import get_cfg_default
with pytest.raises(p2c.compat.EngineError, match="move `import p2c.trainers.p2c` below all imports of dassl"):
    p2c.config.extend_cfg(get_cfg_default())
with pytest.raises(p2c.compat.EngineError, match="call provide_dassl.. before anything imports dassl"):
    p2c.compat.provide_dassl()
"""


@pytest.fixture
def theirs(tmp_path):
    """theirs(wilds): make a third-party module, a Dassl to import, and a small dataset; returns the environment.

    Without `wilds`, which Dassl imports, that package is missing.
    """
    def make(wilds: bool = True):
        (tmp_path / "theirs.py").write_text(THEIRS)
        if importlib.util.find_spec("dassl") is None:
            write_dassl(tmp_path)
        if wilds:
            (tmp_path / "wilds.py").write_text("get_dataset = None")
            (tmp_path / "pandas.py").write_text("DataFrame = Series = Index = type('Nothing', (), {})")
        return {**os.environ, "PYTHONPATH": os.pathsep.join(
            [str(tmp_path), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}

    make_pets(tmp_path)
    return make


@pytest.fixture
def run_python(start):
    def run(code, folder, env, *arguments):
        done = start("-c", code, *arguments, cwd=folder, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    return run


@pytest.fixture
def run_train(start):
    def run(folder, env, trainer, yaml, *options, **variables):
        return start(ROOT / "train.py", "--root", folder, "--seed", "1", "--trainer", trainer, "--output-dir",
                     folder / trainer, "--config-file", yaml, "--dataset-config-file",
                     ROOT / "configs/datasets/oxford_pets.yaml", *options, *SMALL, cwd=folder,
                     env={**env, **variables})
    return run


def test_two_lines_bring_p2c_into_a_stock_train_script(theirs, tmp_path, run_python):
    out = run_python(STOCK, tmp_path, theirs(), tmp_path, P2C_YAML, tmp_path / "out", *SMALL)
    assert re.search(naming("Loss is infinite or NaN!", "step 1", "epoch [1/2] batch [1/4]"), out)
    log = (tmp_path / "out/run/log.txt").read_text()
    for line in ("Noise levels are in units of", "No checkpoint found, train from scratch", "epoch [2/2] batch [4/4]",
                 "Checkpoint saved to", "Finish training", "Found checkpoint at", "Loaded scheduler"):
        assert line in log, line
    record = read_results(str(tmp_path / "out/run"))
    assert record["finished"] and record["engine"] == "dassl" and record["versions"]["dassl"] == "0.6.3"
    assert record["metrics"]["accuracy"] == 100 * record["metrics"]["correct"] / record["metrics"]["total"]
    saved = load_checkpoint(str(tmp_path / "out/run/MultiModalPromptLearner/model.pth.tar-2"))
    assert saved["scheduler"] == {"last_epoch": 2} and saved["config"]["TRAINER"]["NAME"] == "P2C"


def test_our_entry_point_runs_on_real_dassl_when_asked_to(theirs, tmp_path, run_train):
    env = theirs(wilds=False)
    done = run_train(tmp_path, env, "P2C", P2C_YAML, P2C_ENGINE="dassl")
    assert done.returncode == 0, done.stderr
    assert "Engine: real Dassl 0.6.3" in done.stdout
    assert read_results(str(tmp_path / "P2C"))["engine"] == "dassl"
    refused = run_train(tmp_path, env, "P2C", P2C_YAML)
    assert refused.returncode == 2 and "(engine)" in refused.stderr


def test_a_third_party_trainer_runs_on_real_dassl_through_our_entry_point(theirs, tmp_path, run_train):
    (tmp_path / "mine.py").write_text("import p2c.compat\np2c.compat.patch_dassl()\nfrom theirs import *\n")
    done = run_train(tmp_path, theirs(wilds=False), "MaPLe", ROOT / "configs/trainers/MaPLe/tiny_shapes.yaml",
                     "--plugin", "mine", P2C_ENGINE="dassl")
    assert done.returncode == 0, done.stderr
    assert f"Results: {tmp_path / 'MaPLe' / 'log.txt'}" in done.stdout
    assert not (tmp_path / "MaPLe/results.json").exists()


def test_a_third_party_trainer_runs_on_our_engine_whatever_is_installed(theirs, tmp_path, run_train):
    env = theirs()
    (tmp_path / "dassl").mkdir(exist_ok=True)
    (tmp_path / "dassl/__init__.py").write_text("raise RuntimeError('real Dassl was imported')")
    done = run_train(tmp_path, env, "MaPLe", ROOT / "configs/trainers/MaPLe/tiny_shapes.yaml", "--plugin", "theirs",
                     "DATALOADER.NUM_WORKERS", "1")
    assert done.returncode == 0, done.stderr
    assert "Engine: p2c" in done.stdout
    assert any("OxfordPets" in line and "(theirs)" in line for line in done.stdout.splitlines())
    record = read_results(str(tmp_path / "MaPLe"))
    assert record["finished"] and record["engine"] == "p2c" and record["metrics"]["total"] == 12
    asked = run_train(tmp_path, env, "P2C", P2C_YAML, P2C_ENGINE="dassl")
    assert asked.returncode == 2 and len(asked.stderr.splitlines()) == 1
    assert asked.stderr.startswith("error: ") and "RuntimeError: real Dassl was imported" in asked.stderr


@pytest.mark.parametrize("wilds", [True, False])
def test_patching_mends_schedules_and_checkpoints_wherever_they_are_known_by_name(theirs, tmp_path, wilds, run_python):
    early = "import theirs, logging; logging.disable(0)" if wilds else ""
    run_python(PATCHED.format(early=early), tmp_path, theirs(wilds))


def test_importing_in_the_wrong_order_is_explained(theirs, tmp_path, run_python):
    run_python(TOO_LATE, tmp_path, theirs(wilds=False))


def test_an_engine_that_cannot_be_chosen_is_refused(monkeypatch):
    monkeypatch.setenv("P2C_ENGINE", "dasl")
    with pytest.raises(compat.EngineError, match=naming("P2C_ENGINE", "'dasl'", "p2c, dassl")):
        compat.choose_engine()


# Standing in


def test_dassl_is_our_engine_only_after_it_was_asked_for(without_dassl):
    if importlib.util.find_spec("dassl") is None:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("dassl")
    compat.provide_dassl()
    compat.provide_dassl()
    import dassl.data.datasets.base_dataset as base
    import dassl.evaluation
    from dassl.data import DataManager  # noqa: F401 (that it is there)
    from dassl.engine import TRAINER_REGISTRY, build_trainer  # noqa: F401
    from dassl.engine import TrainerX as Theirs
    from dassl.utils import Registry, setup_logger  # noqa: F401
    assert Theirs is TrainerX and base.Datum is Datum and dassl.evaluation.EvaluatorBase is EvaluatorBase
    with pytest.raises(ModuleNotFoundError, match=naming("dassl.modeling", "P2C_ENGINE=dassl")):
        importlib.import_module("dassl.modeling")
    assert compat.engine() == compat.OURS
    compat.patch_dassl()
    assert Theirs is TrainerX


def test_every_name_that_other_projects_import_is_provided(without_dassl):
    """dassl_api.md, sections 1.1 and 1.2."""
    compat.provide_dassl()
    for module, names in NAMES.items():
        for name in names.split():
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


NAMES = {
    "dassl.config": "get_cfg_default clean_cfg",
    "dassl.engine": "build_trainer TRAINER_REGISTRY TrainerX TrainerBase SimpleTrainer TrainerXU SimpleNet",
    "dassl.engine.trainer": "TrainerX TrainerBase SimpleTrainer TrainerXU SimpleNet",
    "dassl.data": "DatasetWrapper DataManager",
    "dassl.data.data_manager": "DataManager DatasetWrapper build_data_loader build_transform",
    "dassl.data.datasets": "DATASET_REGISTRY Datum DatasetBase build_dataset",
    "dassl.data.datasets.base_dataset": "Datum DatasetBase",
    "dassl.data.datasets.build": "DATASET_REGISTRY build_dataset",
    "dassl.data.samplers": "build_sampler RandomDomainSampler SeqDomainSampler RandomClassSampler",
    "dassl.data.transforms": "build_transform INTERPOLATION_MODES",
    "dassl.data.transforms.transforms": "build_transform",
    "dassl.evaluation": "build_evaluator EVALUATOR_REGISTRY EvaluatorBase Classification",
    "dassl.metrics": "compute_accuracy",
    "dassl.optim": "build_optimizer build_lr_scheduler",
    "dassl.utils": "setup_logger set_random_seed collect_env_info load_pretrained_weights load_checkpoint check_isfile "
                   "listdir_nohidden mkdir_if_missing read_json write_json Registry check_availability save_checkpoint "
                   "resume_from_checkpoint count_num_param tolist_if_not read_image MetricMeter AverageMeter Logger "
                   "open_all_layers open_specified_layers init_network_weights get_most_similar_str_to_a_from_b "
                   "download_url",
    "dassl.utils.torchtools": "load_checkpoint save_checkpoint load_pretrained_weights",
}


def test_few_shot_files_that_a_plugin_pickles_are_dassls(without_dassl):
    compat.provide_dassl()
    content = pickle.dumps([Datum("p.jpg", 3, 1, "cat", check=False)])
    assert b"dassl.data.datasets.base_dataset" in content and b"p2c" not in content
    item, = pickle.loads(content)
    assert (item.impath, item.label, item.domain, item.classname) == ("p.jpg", 3, 1, "cat")


def test_worker_processes_that_know_nothing_of_dassl_get_our_items(without_dassl):
    from multiprocessing.reduction import ForkingPickler

    compat.provide_dassl()
    content = bytes(ForkingPickler.dumps(Datum("gone.png", 3, 1, "cat", check=False)))
    assert b"dassl" not in content and pickle.loads(content).classname == "cat"


# Where the shipped configurations are


def test_the_path_of_a_shipped_configuration(capsys):
    from p2c.cli.config import main

    assert main(["path", "P2C/vit_b16_c2_ep5_batch4_2ctx"]) == 0
    assert Path(capsys.readouterr().out.strip()).samefile(
        ROOT / "configs/trainers/P2C/vit_b16_c2_ep5_batch4_2ctx.yaml")
    assert main(["path", "datasets/dtd"]) == 0
    assert Path(capsys.readouterr().out.strip()).samefile(ROOT / "configs/datasets/dtd.yaml")
    assert main(["path", "P2C/vit_b16_c2"]) == 2
    out, error = capsys.readouterr()
    assert out == "" and re.search(naming("P2C/vit_b16_c2", "P2C/vit_b16_c2_ep5_batch4_2ctx"), error)
