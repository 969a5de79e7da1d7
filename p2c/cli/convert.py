"""Write a run of MaPLe or P2C as a checkpoint in MaPLe's layout, which MaPLe's own code reads.

    python -m p2c convert output/RUN converted
    python -m p2c convert output/RUN converted --load-epoch 3

RUN is the folder of a training or an evaluation by train.py; its data set is not needed. The result is
converted/MultiModalPromptLearner/model.pth.tar-EPOCH. P2C's mapper of the input prompts, where it is an MLP, becomes
one Linear that makes the same visual prompts of the trained context. Attributes have no place in that layout.

Exit status: 0 written, 1 it could not be written, 2 a mistaken call.
"""
import argparse
import copy
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p2c.engine.checkpoint import save_checkpoint
from p2c.engine.logger import only_warnings
from p2c.engine.results import read_results
from p2c.inference.records import RecordedRun
from p2c.prompts.coupled import MultiModalPromptLearner
from p2c.trainers.base import PromptTrainer
from p2c.utils import trainable
from p2c.utils.console import DONE, FAILED, MISTAKE, MISTAKES, one_line, run_parser, say

FOLDER = "MultiModalPromptLearner"  # as MaPLe registers its learner
PREFIX = "prompt_learner."  # where its model holds it
TOLERANCE = 1e-5  # largest error of a folded mapper, relative to the largest visual prompt element


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = run_parser("convert", __doc__)
    parser.add_argument("out", metavar="OUT", help="folder to write to")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    args = parse_args(argv)
    try:
        check_target(args.out)
        with only_warnings():
            run = RecordedRun(args.run, args.load_epoch, device="cpu")
            state, notes = maple_state(run)
        path = Path(args.out, FOLDER, f"model.pth.tar-{run.epoch}")
        if path.exists():
            raise ValueError(f"{path} is there already; choose another folder, or delete it")
    except (*MISTAKES, torch.OutOfMemoryError) as error:
        say(f"error: {one_line(error)}")
        return MISTAKE
    checkpoint = {"state_dict": state, "epoch": run.epoch, "optimizer": None, "scheduler": None,
                  "val_result": None}
    try:
        with only_warnings():
            save_checkpoint(checkpoint, os.fspath(path.parent))
    except OSError as error:
        say(f"error: {one_line(error)}")
        return FAILED
    print("\n".join([f"Written to {path}", *notes, f"Its settings: {maple_settings(run)}"]))
    return DONE


def check_target(out: str) -> None:
    """Raises ValueError if a folder is that of a run, whose checkpoints must not mix with others."""
    if read_results(out) is not None:
        raise ValueError(f"{out} is the folder of a run; choose another one to write to")


def maple_state(run: RecordedRun) -> tuple[dict[str, Tensor], list[str]]:
    """Return what a run has learned as MaPLe's model names it, and what there is to say of it.

    Raises:
        ValueError: prompts that MaPLe's layout has no place for.
    """
    prompts = run.model().learner if issubclass(run.trainer, PromptTrainer) else None
    if not isinstance(prompts, MultiModalPromptLearner):
        raise ValueError(f"What {run.cfg.TRAINER.NAME} learns cannot be written in MaPLe's layout; runs of MaPLe and "
                         "P2C can")
    if run.cfg.TRAINER.ATPROMPT.USE_ATPROMPT:
        raise ValueError("MaPLe's layout has no place for attributes, which this run was trained with "
                         "(TRAINER.ATPROMPT.USE_ATPROMPT)")
    state, notes = trainable.state_dict(prompts), []
    if not isinstance(prompts.proj, nn.Linear):
        state = {key: value for key, value in state.items() if not key.startswith("proj.")}
        state["proj.weight"], state["proj.bias"], error = fold(prompts.proj, prompts.ctx.detach())
        notes.append(f"Its mapper is one Linear, which makes the same visual prompts of this context to {error:.0e}")
    return {f"{PREFIX}{key}": value for key, value in state.items()}, notes


@torch.no_grad()
def fold(mapper: nn.Module, context: Tensor) -> tuple[Tensor, Tensor, float]:
    """The affine map that is a mapper F on a trained context: W p + b = F(p) for each token p, W with the least norm.

    Shapes: M tokens, D text width, D_v vision width. M <= D + 1 tokens of which none is an affine combination of the
    others can be mapped to anything.

    Args:
        context: (M, D).

    Returns:
        W (D_v, D) and b (D_v,), and the largest error of W p + b as computed with them, relative to the largest
        element of F(p).

    Raises:
        ValueError: no affine map does it, or something is not finite.
    """
    points = context.double()                                                           # (M, D)
    images = copy.deepcopy(mapper).double()(points)                                     # (M, D_v)
    if not (points.isfinite().all() and images.isfinite().all()):
        raise ValueError("The run's prompts are not finite: its training diverged; choose an earlier epoch")
    centre, target = points.mean(0), images.mean(0)
    weight = (torch.linalg.pinv(points - centre) @ (images - target)).t().to(context.dtype)
    bias = (target - weight.double() @ centre).to(context.dtype)
    error = (F.linear(context, weight, bias).double() - images).abs().max() / images.abs().max()
    if not error <= TOLERANCE:
        raise ValueError(f"No Linear does what the run's mapper does: the {len(points)} context tokens depend on one "
                         f"another (affinely), and their visual prompts do not (relative error {error:.0e})")
    return weight, bias, error.item()


def maple_settings(run: RecordedRun) -> str:
    """Return the settings of MaPLe's trainer under which it makes the same predictions, as KEY VALUE pairs."""
    keys = ("N_CTX", "CTX_INIT", "PROMPT_DEPTH", "PREC")
    settings = run.cfg.TRAINER[run.trainer.node]
    return shlex.join(word for key in keys for word in (f"TRAINER.MAPLE.{key}", str(settings[key])))
