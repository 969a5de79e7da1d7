"""Time of an evaluation relative to the bare image tower: 200 images, 397 classes (as in SUN397).

    python benchmarks/evaluation.py [--images 200] [--classes 397] [--precisions fp32] [--device cpu] [--repeats 1]
    python benchmarks/evaluation.py --quick    a dry run of a few seconds on a tiny tower

"ours" is a trainer's test: the classes (the first of ImageNet's) are encoded once, and the logits of the images are
computed with prompts, in the batches of the shipped configuration. The bare image tower is open_clip's on the same
batches. The two alternate batch by batch. Weights and images are random; reading images is not counted.
"""
import statistics

import torch
from common import Setting, build, machine, made_up, options, precisions, seconds
from tabulate import tabulate

from p2c.trainers.maple import MaPLe


@torch.no_grad()
def evaluate(trainer: MaPLe, images: torch.Tensor, device: str) -> tuple[float, float, float]:
    """Return the seconds of our evaluation of images (N, 3, height, width), of its texts, and of the bare tower."""
    trainer.set_model_mode("eval")
    visual = trainer.model.clip.visual
    dtype = next(visual.parameters()).dtype

    def bare(batch: torch.Tensor) -> None:
        with trainer.model.precision.context(trainer.device):
            visual(batch.to(dtype))

    texts = seconds(lambda: trainer.model.encode_text(trainer.model.learner()), device)
    trainer.model.deployed()
    ours = tower = 0.0
    for batch in images.split(trainer.cfg.DATALOADER.TEST.BATCH_SIZE):
        ours += seconds(lambda batch=batch: trainer.model_inference(batch), device)
        tower += seconds(lambda batch=batch: bare(batch), device)
    return ours + texts, texts, tower


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--classes", type=int, default=397)
    parser.add_argument("--precisions", nargs="+", help="default: fp32; on a GPU fp16, bf16, amp and fp32")
    parser.add_argument("--repeats", type=int, help="evaluations, whose median is reported (default: 1; on a GPU 5)")
    args = parser.parse_args()
    gpu = args.device != "cpu"
    if args.quick:
        args.images, args.classes, args.repeats = 8, 30, 1
    print(machine(args.device), flush=True)
    rows = []
    for precision in args.precisions or precisions(args.device):
        trainer = build(MaPLe, Setting(args.classes, 4, precision, args.device, args.quick))
        images, _ = made_up(trainer, args.images, args.classes)
        evaluate(trainer, images if gpu else images[:2], args.device)  # warm-up, on a GPU for each size of a batch
        repeats = args.repeats or (5 if gpu else 1)
        ours, texts, tower = map(statistics.median, zip(
            *[evaluate(trainer, images, args.device) for _ in range(repeats)], strict=True))
        rows.append([args.images, args.classes, precision, f"{ours:.3f}", f"{texts:.3f}", f"{tower:.3f}",
                     f"{ours / tower:.2f}"])
    print(tabulate(rows, ["images", "classes", "precision", "ours (s)", "of that texts", "bare tower (s)",
                          "ours / bare"], disable_numparse=True, stralign="right"))


if __name__ == "__main__":
    main()
