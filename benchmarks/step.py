"""Time and memory of a training step of MaPLe on ViT-B/16; P2C's towers compute the same.

    python benchmarks/step.py [--classes 10 50 ...] [--batch 4 ...] [--precisions fp32 ...] [--device cpu] [--steps 3]
                              [--compile]
    python benchmarks/step.py --quick          a dry run of a few seconds on a tiny tower

Forward and backward with random weights and the first C of ImageNet's class names, compared with a plain path: every
class is padded to the tower's 77 tokens, in one batch, through open_clip's own blocks. "compiled" is ours with
TRAIN.COMPILE. Each path is a process of its own, to measure its peak memory; they alternate step by step, so that a
busy machine slows all of them. Times are medians after warm-up steps. A path that fails, for example for lack of
memory, is named and left out.

Operations are those of the matrix products that the method needs: ours on real tokens (no padding, the shared prefix
once), the plain path on padded ones. The backward pass counts as much as the forward pass, since no weight has a
gradient. "counted" is the ratio of the counts, an upper bound of "plain / path". "of matmul" is a path's FLOP/s as a
share of the rate of a large matrix product measured beside it.
"""
import multiprocessing
import statistics
from collections.abc import Sequence

import torch
from common import Setting, build, machine, made_up, matmul_rate, options, peak_memory, precisions, seconds
from open_clip import CLIP
from tabulate import tabulate
from torch import Tensor

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


class Path:
    """One implementation of the step."""

    def __init__(self, name: str, setting: Setting):
        trainer, pairs = PATHS[name]
        self.setting, self.peak = setting, 0
        self.trainer = build(trainer, setting, *pairs)
        self.model = self.trainer.model
        self.batch = made_up(self.trainer, setting.batch, setting.classes)

    def step(self) -> float:
        """Return the seconds of forward and backward."""
        device, trainer = self.setting.device, self.trainer
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats(device)  # without the products in `rate`
        time = seconds(self._step, device)
        self.peak = max(self.peak, peak_memory(device))
        trainer.scaler.unscale_(trainer.optim)
        trainer.scaler.update()  # as in training, so that the scale falls until nothing overflows
        return time

    def _step(self) -> None:
        trainer = self.trainer
        torch.compiler.cudagraph_mark_step_begin()
        trainer.optim.zero_grad()
        loss = sum(self.model.losses(*self.batch, self.model.draw(trainer.step)).values())
        trainer.scaler.scale(loss).backward()
        self.loss = loss.detach()

    def results(self) -> tuple[float, list]:
        """Return the loss and the gradients of the last step."""
        return self.loss.item(), [parameter.grad.cpu().numpy() for parameter in self.model.learner.parameters()]

    def peak_memory(self) -> int:
        """Return the peak memory of the steps in bytes."""
        return self.peak

    def rate(self) -> float:
        return matmul_rate(self.setting)

    def tokens(self) -> tuple[int, int, int]:
        """Return the numbers of text tokens: encoded, needed (unpadded, the prefix once), and of one prefix."""
        if isinstance(self.model, PlainModel):
            encoded = self.model.tokens.numel()
            return encoded, encoded, 0
        prompts = self.model.class_prompts
        prefix = len(prompts.prefix)
        ends = sum(int((bucket.last == 0).sum()) - bucket.classes * prefix for bucket in prompts.buckets)
        return prefix + len(prompts.suffix), prefix + ends, prefix

    def operations(self) -> float:
        """Return the FLOPs of the step's matrix products: 24 D^2 per token and layer, and 4 D per query and key."""
        _, needed, prefix = self.tokens()
        model, count = self.model, self.setting.classes
        width, layers = model.text_tower.width, model.text_tower.layers
        keys = prefix + (needed - prefix) / count  # the mean; in the plain path all
        text = layers * needed * (24 * width**2 + 4 * width * keys)
        width, layers = model.image_tower.width, model.image_tower.layers
        visual = model.clip.visual
        patches, kernel = visual.positional_embedding.shape[0] - 1, visual.conv1.weight.numel()
        tokens = patches + 1 + len(model.learner.ctx)
        image = layers * tokens * (24 * width**2 + 4 * width * tokens)
        return 2 * text + self.setting.batch * (2 * image + 2 * patches * kernel)

    @torch.no_grad()
    def against_encode_text(self) -> float:
        """Return the plain path's time for the texts over that of open_clip's encode_text on the same tokens."""
        model, prompts = self.model, self.model.learner()
        pairs = []
        with model.precision.context(model.device):
            for _ in range(4):
                pairs.append([seconds(call, self.setting.device) for call in (
                    lambda: model.plain_text(prompts), lambda: model.clip.encode_text(model.tokens))])
        plain, own = map(statistics.median, zip(*pairs[1:], strict=True))
        return plain / own


PATHS = {  # implementations of the step: a trainer and its settings
    "ours": (MaPLe, ()),
    "compiled": (MaPLe, ("TRAIN.COMPILE", True)),
    "plain": (PlainMaPLe, ()),
}


class Failed(Exception):
    """A path failed."""


class Child:
    """A Path in a process of its own."""

    def __init__(self, name: str, setting: Setting):
        context = multiprocessing.get_context("spawn")
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=serve, args=(end, name, setting), daemon=True)
        self.process.start()
        end.close()

    def __call__(self, method: str):
        """Call a method of the Path and return its result.

        Raises:
            Failed: the method raised an error, or the process ended.
        """
        try:
            self.pipe.send(method)
            result = self.pipe.recv()
        except (EOFError, OSError):
            raise Failed("the process was killed, perhaps for lack of memory") from None
        if isinstance(result, Failed):
            raise result
        return result

    def end(self) -> None:
        self.pipe.close()
        self.process.join()


def serve(pipe, name: str, setting: Setting) -> None:
    """Call the methods of a Path that come through the pipe, until it closes or one fails."""
    path = None
    while True:
        try:
            method = pipe.recv()
        except EOFError:
            return
        try:
            path = path or Path(name, setting)
            pipe.send(getattr(path, method)())
        except Exception as error:  # the other paths go on
            pipe.send(Failed(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"))
            return


def measure(setting: Setting, names: Sequence[str], steps: int) -> tuple[list, list, float]:
    """Return the rows of both tables (the second needs the plain path) and our median step in seconds."""
    children = {name: Child(name, setting) for name in names}
    times, rates = {name: [] for name in names}, []
    warm_up = 1 if setting.device == "cpu" else 4  # a CUDA graph is recorded before it is replayed
    for step in range(warm_up + steps):
        for name, child in list(children.items()):
            try:
                times[name].append(child("step"))
            except Failed as error:
                text = f"{name}, {setting.classes} classes, batch {setting.batch}, {setting.precision}: {error}"
                if name == "ours":
                    raise SystemExit(text) from None
                print(text, flush=True)
                children.pop(name).end()
        if step >= warm_up:
            rates.append(children["ours"]("rate"))
    rate = statistics.median(rates)
    median = {name: statistics.median(times[name][warm_up:]) for name in children}
    memory = {name: child("peak_memory") for name, child in children.items()}
    count = {name: child("operations") for name, child in children.items()}
    rows = [[setting.classes, setting.batch, name, child("tokens")[0], f"{median[name]:.4f}",
             f"{setting.batch / median[name]:.2f}", f"{memory[name] / 2**30:.2f}", f"{count[name] / 1e12:.3f}",
             f"{count[name] / median[name] / rate:.0%}"] for name, child in children.items()]
    comparisons = []
    if "plain" in children:
        plain_loss, plain_gradients = children["plain"]("results")
        against_own = children["plain"]("against_encode_text")
        for name in [name for name in children if name != "plain"]:
            loss, gradients = children[name]("results")
            allowed, reached = count["plain"] / count[name], median["plain"] / median[name]
            comparisons.append([
                setting.classes, setting.batch, name, f"{reached:.2f}", f"{allowed:.2f}", f"{reached / allowed:.0%}",
                f"{memory[name] / memory['plain']:.0%}", f"{loss:.6f}", f"{abs(loss / plain_loss - 1):.1e}",
                f"{difference(gradients, plain_gradients):.1e}", f"{against_own:.2f}"])
    for child in children.values():
        child.end()
    return rows, comparisons, median["ours"]


def difference(gradients: Sequence, expected: Sequence) -> float:
    """Return the largest difference of a gradient from the expected one, relative to its norm."""
    pairs = [[torch.from_numpy(x).double() for x in pair] for pair in zip(gradients, expected, strict=True)]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--classes", type=int, nargs="+", help="default: 10 50 100 500 1000")
    parser.add_argument("--batch", type=int, nargs="+", help="default: 4; on a GPU 4 and 32")
    parser.add_argument("--precisions", nargs="+", help="default: fp32; on a GPU fp16, bf16, amp and fp32")
    parser.add_argument("--steps", type=int, help="measured steps of each path (default: 3; on a GPU 10)")
    parser.add_argument("--compile", action="store_true", help="also ours with TRAIN.COMPILE (default on a GPU)")
    args = parser.parse_args()
    gpu = args.device != "cpu"
    args.steps = 1 if args.quick else args.steps or (10 if gpu else 3)
    args.classes = args.classes or ([3, 30] if args.quick else [10, 50, 100, 500, 1000])
    print(machine(args.device), flush=True)
    for precision in args.precisions or precisions(args.device):
        rows, comparisons, medians = [], [], {}
        for batch in args.batch or ([4, 32] if gpu else [4]):
            for classes in args.classes:
                left_out = {"plain"} if classes > PLAIN_LIMIT else set()
                left_out |= set() if gpu or args.compile else {"compiled"}
                measured, compared, medians[batch, classes] = measure(
                    Setting(classes, batch, precision, args.device, args.quick),
                    [name for name in PATHS if name not in left_out], args.steps)
                rows += measured
                comparisons += compared
        print(f"\n{precision}: forward and backward")
        print(tabulate(rows, ["classes", "batch", "path", "text tokens", "step (s)", "images/s", "peak (GiB)",
                              "TFLOP", "of matmul"], disable_numparse=True, stralign="right"))
        print(f"\n{precision}: against the plain path")
        print(tabulate(comparisons, ["classes", "batch", "path", "plain / path", "counted", "reached", "memory", "loss",
                                     "loss differs", "gradients differ", "plain / encode_text"],
                       disable_numparse=True, stralign="right"), flush=True)
        for (batch, classes), median in medians.items():
            if classes == max(args.classes) and (batch, min(args.classes)) in medians:
                print(f"Step with {classes} classes / with {min(args.classes)}, batch {batch}: "
                      f"{median / medians[batch, min(args.classes)]:.2f}")
    print(machine(args.device))


if __name__ == "__main__":
    main()
