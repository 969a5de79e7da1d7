"""Time, launches and memory of a training step of MaPLe on ViT-B/16; P2C's towers compute the same.

    python benchmarks/step.py [--classes 10 50 ...] [--batch 4 ...] [--precisions fp32 ...] [--paths plain ours ...]
                              [--steps 3] [--device cpu]
    python benchmarks/step.py --quick          a dry run of a few seconds on a tiny tower

A step is forward, backward, loss scaling and update, with random weights and the first C of ImageNet's class names.
"plain" is a path without our optimizations: every class is padded to the tower's 77 tokens, in one batch, through
open_clip's own blocks. "graph" is ours as one CUDA graph. Each path has a process of its own, since the peak of a
process's memory never falls; the paths alternate step by step, so that a busy machine slows all of them. Times are
medians after warm-up steps; "launching" is what the host needs before it could go on. Operations are those of the
matrix products, and "of matmul" is their rate as a share of that of one large product. A path that fails, for example
for lack of memory, is named and left out.
"""
import copy
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from common import Setting, build, machine, made_up, options, peak_memory, seconds
from open_clip import CLIP
from tabulate import tabulate
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from p2c.prompts.context import Prompts
from p2c.trainers.graph import GraphedStep
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


PATHS = {  # implementations of the step: a trainer and TRAIN.CUDA_GRAPH
    "plain": (PlainMaPLe, "off"),
    "ours": (MaPLe, "off"),
    "graph": (MaPLe, "auto"),
}
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")
SCALE = 128.0  # of the loss where gradients are compared: small ones are 0 in half precision


class Path:
    """One implementation of the step, in this process."""

    def __init__(self, name: str, setting: Setting):
        trainer, self.graph = PATHS[name]
        self.setting, self.trainer = setting, build(trainer, setting, "TRAIN.CUDA_GRAPH", self.graph)
        self.start = copy.deepcopy(self.trainer.model.learner.state_dict())
        image, label = made_up(self.trainer, setting.batch, setting.classes)
        self.batch = {"img": image, "label": label}

    def step(self) -> tuple[float, float]:
        """Do a step; return the seconds until it is launched, and until it is done."""
        start = time.perf_counter()
        self.trainer.forward_backward(self.batch)
        launched = time.perf_counter() - start
        if self.setting.device != "cpu":
            torch.cuda.synchronize(self.setting.device)
        return launched, time.perf_counter() - start

    def launches(self) -> int:
        """Return the number of kernels, graphs, copies and fills that the host launches in a step on a GPU."""
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            self.step()
        return sum(event.count for event in profiled.key_averages() if event.key.startswith(LAUNCHES))

    def finish(self) -> dict:
        """Return what the table needs beside the times; loss and gradients are those of the first step."""
        model, device, launch = self.trainer.model, self.setting.device, self.trainer.launch
        if self.graph == "auto" and not isinstance(launch, GraphedStep):
            raise RuntimeError("the step was not captured")
        found = {"memory": peak_memory(device)}
        if device != "cpu":
            found["launches"] = self.launches()
        model.learner.load_state_dict(self.start)
        self.trainer.optim.zero_grad()
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # others are not always counted
            loss = sum(model.losses(*self.batch.values(), model.draw(self.trainer.step)).values())
            (SCALE * loss).backward()
        prompts = model.class_prompts
        tokens = model.tokens.numel() if isinstance(model, PlainModel) else len(prompts.prefix) + len(prompts.suffix)
        gradients = [parameter.grad.double().cpu().numpy() / SCALE for parameter in model.learner.parameters()]
        return found | {"tokens": tokens, "operations": counter.get_total_flops(), "loss": np.float64(loss.item()),
                        "gradients": gradients, "rate": self.matmul_rate()}

    def matmul_rate(self) -> float:
        """Return the FLOP/s of a product of two large matrices in the towers' dtype."""
        size = 256 if self.setting.tiny else 2048 if self.setting.device == "cpu" else 8192
        a, b = torch.randn(2, size, size, device=self.setting.device).to(self.trainer.model.precision.products)
        return 2 * size**3 / seconds(lambda: a @ b, self.setting.device, 5)


def in_process(name: str, setting: Setting, method: str):
    """Call a method of this process's Path, which the first call makes."""
    global path
    if method == "prepare":
        path = Path(name, setting)
        return None
    return getattr(path, method)()


def measure(setting: Setting, names: Sequence[str], steps: int) -> dict[str, dict]:
    """Measure some paths side by side; return what `Path.finish` returns, with the times, by path."""
    context, times = multiprocessing.get_context("spawn"), {name: [] for name in names}
    pools = {name: ProcessPoolExecutor(1, context) for name in names}

    def call(method: str) -> dict:
        futures, results = {}, {}
        for name, pool in pools.items():
            futures[name] = pool.submit(in_process, name, setting, method)
            if method == "step":
                futures[name].exception()  # wait: one path runs at a time
        for name, future in futures.items():
            try:
                results[name] = future.result()
            except Exception as error:  # the other paths go on
                print(f"{name}, {setting.classes} classes, batch {setting.batch}, {setting.precision} failed: "
                      f"{type(error).__name__}: {error}", flush=True)
                pools.pop(name).shutdown()
        return results

    call("prepare")
    warm_up = 1 if setting.device == "cpu" else 3  # fewer steps leave kernels to be loaded
    for step in range(warm_up + steps):
        for name, result in call("step").items():
            if step >= warm_up:
                times[name].append(result)
    found = call("finish")
    for name, values in found.items():
        values["launching"], values["seconds"] = map(statistics.median, zip(*times[name], strict=True))
    for pool in pools.values():
        pool.shutdown()
    return found


def rows_of(setting: Setting, found: dict[str, dict]) -> list[list]:
    """Return the rows of a table; the last four columns compare each path with the plain one."""
    rows, plain = [], found.get("plain")
    for name, values in found.items():
        time, operations = values["seconds"], values["operations"]
        gpu = setting.device != "cpu"
        row = [setting.classes, setting.batch, name, values["tokens"], f"{1000 * time:.1f}",
               f"{1000 * values['launching']:.1f}" if gpu else "", values.get("launches", ""),
               f"{values['memory'] / 2**30:.2f}", f"{operations / 1e12:.3f}",
               f"{operations / time / values['rate']:.0%}"]
        if plain and name != "plain":
            differences = [np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
                           for ours, theirs in zip(values["gradients"], plain["gradients"], strict=True)]
            row += [f"{plain['seconds'] / time:.2f}", f"{plain['operations'] / operations:.2f}",
                    f"{abs(values['loss'] / plain['loss'] - 1):.1e}", f"{max(differences):.1e}"]
        rows.append(row)
    return rows


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--classes", type=int, nargs="+", help="default: 10 50 100 500 1000; on a GPU without 50")
    parser.add_argument("--batch", type=int, nargs="+", default=[4], help="default: 4")
    parser.add_argument("--precisions", nargs="+", help="default: fp32; on a GPU fp16")
    parser.add_argument("--paths", nargs="+", choices=PATHS, help="default: plain and ours; on a GPU all")
    parser.add_argument("--steps", type=int, help="measured steps of each path (default: 3; on a GPU 20)")
    args = parser.parse_args()
    gpu = args.device != "cpu"
    steps = 1 if args.quick else args.steps or (20 if gpu else 3)
    names = args.paths or (list(PATHS) if gpu else ["plain", "ours"])
    usual = [10, 100, 500, 1000] if gpu else [10, 50, 100, 500, 1000]
    print(machine(args.device), flush=True)
    for precision in args.precisions or ["fp16" if gpu else "fp32"]:
        rows = []
        for batch in args.batch:
            for classes in args.classes or ([3, 30] if args.quick else usual):
                setting = Setting(classes, batch, precision, args.device, args.quick)
                rows += rows_of(setting, measure(
                    setting, [name for name in names if name != "plain" or classes <= PLAIN_LIMIT], steps))
        print(f"\nA training step in {precision}")
        print(tabulate(rows, ["classes", "batch", "path", "text tokens", "step (ms)", "launching (ms)", "launches",
                              "peak (GiB)", "TFLOP", "of matmul", "speedup", "fewer TFLOP", "loss differs",
                              "gradients differ"], disable_numparse=True, stralign="right"), flush=True)


if __name__ == "__main__":
    main()
