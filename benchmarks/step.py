"""Time and memory of a training step of MaPLe on ViT-B/16; P2C's towers compute the same.

    python benchmarks/step.py [--classes 10 50 ...] [--batch 4 ...] [--precisions fp32 ...] [--paths plain ours ...]
                              [--steps 3] [--device cpu]
    python benchmarks/step.py --quick          a dry run of a few seconds on a tiny tower

Forward and backward with random weights and the first C of ImageNet's class names. "plain" is a path without our
optimizations: every class is padded to the tower's 77 tokens, in one batch, through open_clip's own blocks. Each path
is a process of its own, to measure its peak memory. Times are medians after warm-up steps; operations are those of the
matrix products. A path that fails, for example for lack of memory, is named and left out.
"""
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from common import Setting, build, machine, made_up, options, peak_memory, precisions, seconds
from open_clip import CLIP
from tabulate import tabulate
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from p2c.prompts.context import Prompts
from p2c.trainers.maple import MaPLe, MaPLeModel

PLAIN_LIMIT = 500  # classes; with 1000 the plain path needs more than 24 GiB


class PlainModel(MaPLeModel):
    """MaPLe through open_clip's own blocks; each class is padded to the tower's full length."""

    def set_classes(self, classnames: Sequence[str]) -> None:
        super().set_classes(classnames)
        rows, _ = self.ids_and_slots(self.layout)
        length = self.text_tower.context_length
        self.tokens = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=self.device)
        self.eot = torch.tensor([len(row) - 1 for row in rows], device=self.device)
        self.embedded = self.clip.token_embedding(self.tokens)                          # (C, 77, D)

    def encode_text(self, prompts: Prompts) -> Tensor:
        return self.features(self.plain_text, prompts)

    def plain_text(self, prompts: Prompts) -> Tensor:
        model: CLIP = self.clip
        dtype = model.text_projection.dtype

        def put(x: Tensor, tokens: Tensor) -> Tensor:
            return torch.cat([x[:, :1], tokens.to(x.dtype).expand(len(x), -1, -1), x[:, 1 + len(tokens):]], dim=1)

        x = (put(self.embedded, prompts.context) + model.positional_embedding).to(dtype)
        for layer, block in enumerate(model.transformer.resblocks):
            if 0 < layer <= len(prompts.deep_text):
                x = put(x, prompts.deep_text[layer - 1])
            x = block(x, attn_mask=model.attn_mask)
        x = model.ln_final(x)[torch.arange(len(x), device=x.device), self.eot]
        return x @ model.text_projection

    def encode_image(self, image: Tensor, prompts: Prompts) -> Tensor:
        return self.features(self.plain_image, image, prompts)

    def plain_image(self, image: Tensor, prompts: Prompts) -> Tensor:
        visual = self.clip.visual
        dtype = visual.proj.dtype

        def appended(x: Tensor, tokens: Tensor) -> Tensor:
            return torch.cat([x, tokens.to(x.dtype).expand(len(x), -1, -1)], dim=1)

        x = appended(visual._embeds(image.to(dtype)), visual.ln_pre(prompts.visual.to(dtype)))
        for layer, block in enumerate(visual.transformer.resblocks):
            if 0 < layer <= len(prompts.deep_visual):
                x = appended(x[:, :-len(prompts.visual)], prompts.deep_visual[layer - 1])
            x = block(x)
        return visual._pool(x)[0] @ visual.proj


class PlainMaPLe(MaPLe):
    """MaPLe's trainer with PlainModel."""

    model_class = PlainModel


PATHS = {  # implementations of the step: a trainer and its settings
    "plain": (PlainMaPLe, ()),
    "ours": (MaPLe, ()),
}


def measure(path: str, setting: Setting, steps: int) -> dict:
    """Measure a path's step in this process.

    Returns:
        tokens: of the text tower; seconds; memory: bytes at the peak; operations; loss; gradients: numpy arrays.
    """
    trainer_class, pairs = PATHS[path]
    trainer = build(trainer_class, setting, *pairs)
    model = trainer.model
    batch = made_up(trainer, setting.batch, setting.classes)

    def forward_backward() -> Tensor:
        trainer.optim.zero_grad()
        loss = sum(model.losses(*batch, model.draw(trainer.step)).values())
        trainer.scaler.scale(loss).backward()
        return loss

    def step() -> None:
        forward_backward()
        trainer.scaler.unscale_(trainer.optim)
        trainer.scaler.update()  # as in training, so that the scale falls until nothing overflows

    warm_up = 1 if setting.device == "cpu" else 4  # a CUDA graph is recorded before it is replayed
    time, memory = seconds(step, setting.device, steps, warm_up), peak_memory(setting.device)
    gradients = [parameter.grad.cpu().numpy() for parameter in model.learner.parameters()]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # others count on some devices only
        loss = forward_backward()
    prompts = model.class_prompts
    tokens = model.tokens.numel() if path == "plain" else len(prompts.prefix) + len(prompts.suffix)
    return {"tokens": tokens, "seconds": time, "memory": memory, "operations": counter.get_total_flops(),
            "loss": loss.item(), "gradients": gradients}


def in_own_process(path: str, setting: Setting, steps: int) -> dict | None:
    """Measure a path in a process of its own; if it fails, say so and return None."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure, path, setting, steps).result()
        except Exception as error:  # the other paths go on
            print(f"{path}, {setting.classes} classes, batch {setting.batch}, {setting.precision} failed: "
                  f"{type(error).__name__}: {error}", flush=True)
            return None


def compare(setting: Setting, paths: Sequence[str], steps: int) -> list[list]:
    """Return the rows of a table of several paths; the last four columns compare each with the plain path."""
    rows, plain = [], None
    for path in paths:
        found = in_own_process(path, setting, steps)
        if found is None:
            continue
        time, operations = found["seconds"], found["operations"]
        row = [setting.classes, setting.batch, path, found["tokens"], f"{time:.4f}", f"{setting.batch / time:.2f}",
               f"{found['memory'] / 2**30:.2f}", f"{operations / 1e12:.3f}"]
        if path == "plain":
            plain = found
        elif plain:
            differences = [np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
                           for ours, theirs in zip(found["gradients"], plain["gradients"], strict=True)]
            row += [f"{plain['seconds'] / time:.2f}", f"{plain['operations'] / operations:.2f}",
                    f"{abs(found['loss'] / plain['loss'] - 1):.1e}", f"{max(differences):.1e}"]
        rows.append(row)
    return rows


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--classes", type=int, nargs="+", help="default: 10 50 100 500 1000")
    parser.add_argument("--batch", type=int, nargs="+", help="default: 4; on a GPU 4 and 32")
    parser.add_argument("--precisions", nargs="+", help="default: fp32; on a GPU fp16, bf16, amp and fp32")
    parser.add_argument("--paths", nargs="+", choices=PATHS, help="default: plain and ours; on a GPU all")
    parser.add_argument("--steps", type=int, help="measured steps of each path (default: 3; on a GPU 10)")
    args = parser.parse_args()
    gpu = args.device != "cpu"
    steps = 1 if args.quick else args.steps or (10 if gpu else 3)
    paths = args.paths or (list(PATHS) if gpu else ["plain", "ours"])
    print(machine(args.device), flush=True)
    for precision in args.precisions or precisions(args.device):
        rows = []
        for batch in args.batch or ([4, 32] if gpu else [4]):
            for classes in args.classes or ([3, 30] if args.quick else [10, 50, 100, 500, 1000]):
                setting = Setting(classes, batch, precision, args.device, args.quick)
                rows += compare(setting, [path for path in paths if path != "plain" or classes <= PLAIN_LIMIT], steps)
        print(f"\n{precision}: forward and backward")
        print(tabulate(rows, ["classes", "batch", "path", "text tokens", "step (s)", "images/s", "peak (GiB)", "TFLOP",
                              "speedup", "fewer TFLOP", "loss differs", "gradients differ"],
                       disable_numparse=True, stralign="right"), flush=True)


if __name__ == "__main__":
    main()
