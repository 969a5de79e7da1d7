"""A stand-in for real Dassl on machines without it: its modules, its plain loop, and its faults.

`write_dassl(folder)` makes a package `dassl`. It registers, loops, prints and saves as Dassl does; its warm-up schedule
raises, its checkpoints cannot be read back by default, and importing it disables logging and needs wilds.
"""
from pathlib import Path

FILES = {
    "__init__": '__version__ = "0.6.3"',
    "config/__init__": """
from yacs.config import CfgNode
from p2c.engine.config import get_cfg_default as ours

def get_cfg_default():
    cfg = ours()
    cfg.TRAINER.MCD = CfgNode({"N_STEP_F": 4})
    return cfg
""",
    "utils/__init__": """
import sys
from p2c.engine.utils import collect_env_info, set_random_seed
from .torchtools import load_checkpoint, load_pretrained_weights, resume_from_checkpoint, save_checkpoint

class Registry:
    def __init__(self, name):
        self.name, self.objects = name, {}
    def register(self, obj=None, force=False):
        if obj is None:
            return lambda decorated: self.register(decorated, force) or decorated
        if obj.__name__ in self.objects and not force:
            raise KeyError(f'An object named "{obj.__name__}" was already registered in "{self.name}" registry')
        self.objects[obj.__name__] = obj
    def get(self, name):
        return self.objects[name]
    def registered_names(self):
        return list(self.objects)

class Logger:
    def __init__(self, path):
        self.console, self.file = sys.stdout, open(path, "w")
    def write(self, text):
        self.console.write(text)
        self.file.write(text)
    def flush(self):
        self.console.flush()
        self.file.flush()

def setup_logger(folder):
    import os
    os.makedirs(folder, exist_ok=True)
    path = f"{folder}/log.txt"
    sys.stdout = Logger(path + "-again" if os.path.exists(path) else path)
""",
    "utils/torchtools": """
import os
import torch

def save_checkpoint(state, folder, name):
    os.makedirs(folder, exist_ok=True)
    torch.save(state, f"{folder}/{name}")
    open(f"{folder}/checkpoint", "w").write(name)

def load_checkpoint(path):
    return torch.load(path)

def resume_from_checkpoint(folder, model, optimizer=None, scheduler=None):
    checkpoint = load_checkpoint(f"{folder}/{open(f'{folder}/checkpoint').read()}")
    model.load_state_dict(checkpoint["state_dict"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    scheduler.load_state_dict(checkpoint["scheduler"])
    return checkpoint["epoch"]

def load_pretrained_weights(model, path):
    model.load_state_dict(load_checkpoint(path), strict=False)
""",
    "metrics/__init__": "from .accuracy import compute_accuracy",
    "metrics/accuracy": """
def compute_accuracy(output, target, topk=(1,)):
    assert topk == (1,)
    return [100 * (output.argmax(1) == target).float().mean()[None]]
""",
    "optim/__init__": "from .lr_scheduler import build_lr_scheduler\nfrom p2c.engine.optim import build_optimizer",
    "optim/lr_scheduler": """
def build_lr_scheduler(optimizer, cfg):
    raise TypeError("LRScheduler.__init__() takes from 2 to 3 positional arguments but 4 were given")
""",
    "data/__init__": "from .data_manager import DataManager, DatasetWrapper",
    "data/data_manager": """
import torch
from p2c.engine.data import DatasetWrapper
from .datasets import build_dataset
from .transforms import build_transform

class DataManager:
    def __init__(self, cfg):
        self.dataset = build_dataset(cfg)
        def loader(items, options, is_train):
            wrapper = DatasetWrapper(cfg, items, transform=build_transform(cfg, is_train), is_train=is_train)
            return torch.utils.data.DataLoader(wrapper, options.BATCH_SIZE, shuffle=is_train, drop_last=is_train)
        self.train_loader_x = loader(self.dataset.train_x, cfg.DATALOADER.TRAIN_X, True)
        self.train_loader_u = self.val_loader = None
        self.test_loader = loader(self.dataset.test, cfg.DATALOADER.TEST, False)
        self.num_classes, self.lab2cname = self.dataset.num_classes, self.dataset.lab2cname
        self.num_source_domains = 0
""",
    "data/transforms/__init__": "from p2c.engine.transforms import INTERPOLATION_MODES, build_transform",
    "data/datasets/__init__": """
from .build import DATASET_REGISTRY, build_dataset
from .base_dataset import Datum, DatasetBase
from .dg import *
""",
    "data/datasets/build": """
from dassl.utils import Registry
DATASET_REGISTRY = Registry("DATASET")

def build_dataset(cfg):
    return DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)
""",
    "data/datasets/base_dataset": "from p2c.engine.datasets import DatasetBase, Datum",
    "data/datasets/dg/__init__": "from .wilds import *",
    "data/datasets/dg/wilds/__init__": "import logging\nlogging.disable(logging.WARNING)\nimport wilds",
    "evaluation/__init__": """
from dassl.utils import Registry
EVALUATOR_REGISTRY = Registry("EVALUATOR")

class Classification:
    def __init__(self, cfg, lab2cname=None):
        self.reset()
    def reset(self):
        self._correct = self._total = 0
    def process(self, output, label):
        self._correct += int((output.argmax(1) == label).sum())
        self._total += len(label)
    def evaluate(self):
        accuracy = 100 * self._correct / self._total
        print(f"=> result\\n* accuracy: {accuracy:.1f}%")
        return {"accuracy": accuracy}

def build_evaluator(cfg, **kwargs):
    return Classification(cfg, **kwargs)
""",
    "engine/__init__": """
from .build import TRAINER_REGISTRY, build_trainer
from .trainer import SimpleTrainer, TrainerBase, TrainerX
""",
    "engine/build": """
from dassl.utils import Registry
TRAINER_REGISTRY = Registry("TRAINER")

def build_trainer(cfg):
    return TRAINER_REGISTRY.get(cfg.TRAINER.NAME)(cfg)
""",
    "engine/trainer": """
import torch
from dassl.data import DataManager
from dassl.evaluation import build_evaluator
from dassl.optim import build_lr_scheduler
from dassl.utils import resume_from_checkpoint, save_checkpoint

class TrainerBase:
    def __init__(self):
        self._models, self._optims, self._scheds = {}, {}, {}

    def register_model(self, name="model", model=None, optim=None, sched=None):
        self._models[name], self._optims[name], self._scheds[name] = model, optim, sched

    def get_model_names(self, names=None):
        return list(self._models)

    def set_model_mode(self, mode="train", names=None):
        for model in self._models.values():
            model.train(mode == "train")

    def update_lr(self):
        for sched in self._scheds.values():
            sched.step()

    def write_scalar(self, tag, value, step=None):
        pass

    def resume_model_if_exist(self, directory):
        import os
        start = 0
        for name in self._models:
            if os.path.isdir(f"{directory}/{name}"):
                start = resume_from_checkpoint(f"{directory}/{name}", self._models[name], self._optims[name],
                                               self._scheds[name])
        return start

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name=""):
        for name in self._models:
            state = {"state_dict": self._models[name].state_dict(), "epoch": epoch + 1, "val_result": val_result,
                     "optimizer": self._optims[name].state_dict(), "scheduler": self._scheds[name].state_dict()}
            save_checkpoint(state, f"{directory}/{name}", f"model.pth.tar-{epoch + 1}")

class SimpleTrainer(TrainerBase):
    def __init__(self, cfg):
        super().__init__()
        self.check_cfg(cfg)
        self.device = torch.device("cpu")
        self.start_epoch = self.epoch = 0
        self.max_epoch, self.output_dir, self.cfg = cfg.OPTIM.MAX_EPOCH, cfg.OUTPUT_DIR, cfg
        self.build_data_loader()
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)
        self.best_result = float("-inf")

    def check_cfg(self, cfg):
        pass

    def build_data_loader(self):
        self.dm = dm = DataManager(self.cfg)
        self.train_loader_x, self.train_loader_u = dm.train_loader_x, dm.train_loader_u
        self.val_loader, self.test_loader = dm.val_loader, dm.test_loader
        self.num_classes, self.num_source_domains, self.lab2cname = dm.num_classes, 0, dm.lab2cname

    def before_train(self):
        self.start_epoch = self.resume_model_if_exist(self.cfg.RESUME or self.output_dir)
        self.time_start = 0.0

    def train(self):
        self.before_train()
        for self.epoch in range(self.start_epoch, self.max_epoch):
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def after_epoch(self):
        frequency = self.cfg.TRAIN.CHECKPOINT_FREQ
        if self.epoch + 1 == self.max_epoch or frequency > 0 and (self.epoch + 1) % frequency == 0:
            self.save_model(self.epoch, self.output_dir)

    def after_train(self):
        print("Finish training")
        self.test()

    @torch.no_grad()
    def test(self, split=None):
        self.set_model_mode("eval")
        self.evaluator.reset()
        for batch in self.test_loader:
            self.evaluator.process(self.model_inference(batch["img"]), batch["label"])
        return self.evaluator.evaluate()["accuracy"]

    def model_inference(self, input):
        return self.model(input)

    def parse_batch_test(self, batch):
        return batch["img"], batch["label"]

    def get_current_lr(self, names=None):
        return next(iter(self._optims.values())).param_groups[0]["lr"]

class TrainerX(SimpleTrainer):
    def run_epoch(self):
        self.set_model_mode("train")
        self.num_batches = len(self.train_loader_x)
        for self.batch_idx, batch in enumerate(self.train_loader_x):
            summary = self.forward_backward(batch)
            print(f"epoch [{self.epoch + 1}/{self.max_epoch}] batch [{self.batch_idx + 1}/{self.num_batches}] "
                  f"loss {float(summary['loss']):.4f} lr {self.get_current_lr():.4e}")
""",
}


def write_dassl(folder: Path) -> None:
    """Write the package to a folder that goes on PYTHONPATH."""
    for name, content in FILES.items():
        path = folder / "dassl" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
