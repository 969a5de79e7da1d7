"""Trains every trainer for an epoch, in as many processes as torchrun starts:  python tests/all_trainers.py ROOT OUT"""
import sys

import torch

from p2c import registry
from p2c.config import extend_cfg
from p2c.engine.distributed import is_main, join, leave
from p2c.framework import build_trainer, get_cfg_default

ATTRIBUTES = ("TRAINER.ATPROMPT.USE_ATPROMPT", True, "TRAINER.ATPROMPT.ATT_NUM", 1,
              "TRAINER.ATPROMPT.ATT1_TEXT", "color")
CASES = {name: (name, ()) for name in registry.TRAINERS} | {
    "attributes": ("MaPLe", ATTRIBUTES), "cloud": ("MaPLe", ("TEST.CLOUD_SAMPLES", 3))}


def train(case: str, root: str, out: str) -> dict:
    """Prompts, metrics and the learning curve's last loss of one case."""
    trainer, pairs = CASES[case]
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.merge_from_file("configs/datasets/oxford_pets.yaml")
    cfg.merge_from_file(f"configs/trainers/{trainer.removesuffix('2')}/tiny_shapes.yaml")
    cfg.merge_from_list([
        "TRAINER.NAME", trainer, "DATASET.ROOT", root, "OUTPUT_DIR", f"{out}/{case}", "SEED", 1, "USE_CUDA", False,
        "DATASET.CHECKS", "partial", "MODEL.BACKBONE.WEIGHTS", "random", "OPTIM.MAX_EPOCH", 1, "OPTIM.WARMUP_EPOCH", -1,
        "TRAINER.PROMPT_DENOISING.ENABLED", trainer in ("CoOp", "P2C"), "DATALOADER.TRAIN_X.BATCH_SIZE", 4, *pairs])
    registry.get_trainer(trainer)
    registry.get_dataset("OxfordPets")
    trainer = build_trainer(cfg)
    losses = {}
    trainer.write_scalar = lambda tag, value, step: losses.update({(tag, step): value})
    trainer.train()
    prompts = {name: value.detach() for name, value in trainer.model.learner.state_dict().items()}
    return {"prompts": prompts, "results": trainer.results, "losses": losses,
            "counts": (trainer.evaluator.correct, trainer.evaluator.total)}


if __name__ == "__main__":
    join(use_cuda=False)
    torch.set_num_threads(1)
    outcome = {case: train(case, *sys.argv[1:]) for case in CASES}
    if is_main():
        torch.save(outcome, f"{sys.argv[2]}/outcome.pt")
    leave()
