"""Write a run of MaPLe or P2C as a checkpoint in MaPLe's layout, which MaPLe's own code reads.

    python -m p2c convert output/RUN converted
    python -m p2c convert output/RUN converted --load-epoch 3

RUN is the folder of a training or an evaluation by train.py; its dataset is not needed. The result is
converted/MultiModalPromptLearner/model.pth.tar-EPOCH. If P2C's mapper of the input prompts is an MLP, it is replaced by
one Linear that maps the trained context to the same visual prompts. The layout has no place for attributes.

Exit status: 0 written, 1 the file could not be written, 2 a usage error.
"""
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
from p2c.utils.console import DONE, FAILED, MISTAKE, MISTAKES, exit_on, run_parser

FOLDER = "MultiModalPromptLearner"  # the name under which MaPLe registers its learner
PREFIX = "prompt_learner."  # of the learner's keys in MaPLe's model
KEYS = ("N_CTX", "CTX_INIT", "PROMPT_DEPTH", "PREC")  # settings with which MaPLe makes the same predictions
TOLERANCE = 1e-5  # largest error of a folded mapper, relative to the largest element of the visual prompts


def main(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    parser = run_parser("convert", __doc__)
    parser.add_argument("out", metavar="OUT", help="folder to write to")
    args = parser.parse_args(argv)
    with exit_on(*MISTAKES, torch.OutOfMemoryError, status=MISTAKE), only_warnings():
        if read_results(args.out) is not None:  # checkpoints must not be mixed with others
            raise ValueError(f"{args.out} is the folder of a run; choose another one to write to")
        run = RecordedRun(args.run, args.load_epoch, device="cpu")
        state, notes = maple_state(run)
        path = Path(args.out, FOLDER, f"model.pth.tar-{run.epoch}")
        if path.exists():
            raise ValueError(f"{path} exists already; choose another folder, or delete it")
    checkpoint = {"state_dict": state, "epoch": run.epoch, "optimizer": None, "scheduler": None, "val_result": None}
    with exit_on(OSError, status=FAILED), only_warnings():
        save_checkpoint(checkpoint, os.fspath(path.parent))
    settings = run.cfg.TRAINER[run.trainer.node]
    pairs = [word for key in KEYS for word in (f"TRAINER.MAPLE.{key}", str(settings[key]))]
    print("\n".join([f"Written to {path}", *notes, f"Its settings: {shlex.join(pairs)}"]))
    return DONE


def maple_state(run: RecordedRun) -> tuple[dict[str, Tensor], list[str]]:
    """Return what a run has learned under the keys of MaPLe's model, and notes for the user."""
    prompts = run.model().learner if issubclass(run.trainer, PromptTrainer) else None
    if not isinstance(prompts, MultiModalPromptLearner):
        raise ValueError(f"What {run.cfg.TRAINER.NAME} learns cannot be written in MaPLe's layout; runs of MaPLe and "
                         "P2C can")
    if run.cfg.TRAINER.ATPROMPT.USE_ATPROMPT:
        raise ValueError("MaPLe's layout has no place for attributes, which this run was trained with "
                         "(TRAINER.ATPROMPT.USE_ATPROMPT)")
    state = trainable.state_dict(prompts)
    notes: list[str] = []
    if not isinstance(prompts.proj, nn.Linear):
        state = {key: value for key, value in state.items() if not key.startswith("proj.")}
        state["proj.weight"], state["proj.bias"], error = fold(prompts.proj, prompts.ctx.detach())
        notes.append("Its mapper is one Linear, which gives the same visual prompts for this context (relative error "
                     f"{error:.0e})")
    return {f"{PREFIX}{key}": value for key, value in state.items()}, notes


@torch.no_grad()
def fold(mapper: nn.Module, context: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return the affine map that equals a mapper F on a trained context: W p + b = F(p) for each token p.

    Of all such W it is the one with the least norm. M tokens, none of which is an affine combination of the others (so
    M <= D + 1), can be mapped to anything. Shapes: D text width, D_v vision width.

    Args:
        context: (M, D).

    Returns:
        W (D_v, D), b (D_v,), and the largest error of W p + b relative to the largest element of F(p).

    Raises:
        ValueError: there is no such map, or the prompts are not finite.
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
        raise ValueError(f"No Linear equals the run's mapper on its context: the {len(points)} tokens are affinely "
                         f"dependent, and their visual prompts are not (relative error {error:.0e})")
    return weight, bias, error.item()
