"""Time of an evaluation relative to the bare image tower: 200 images, 397 classes (as in SUN397).

    python benchmarks/evaluation.py [--images 200] [--classes 397] [--precisions fp32] [--device cpu] [--repeats 1]
    python benchmarks/evaluation.py --quick    a dry run of a few seconds on a tiny tower

"ours" is a trainer's test: the classes (the first of ImageNet's) are encoded once, and the logits of the images are
computed with prompts, in the batches of the shipped configuration. The bare image tower is open_clip's on the same
batches. Weights and images are random; reading images is not counted.
"""
import torch
from common import Setting, build, machine, made_up, options, precisions, seconds
from tabulate import tabulate

from p2c.trainers.maple import MaPLe


@torch.no_grad()
def measure(setting: Setting, count: int, repeats: int) -> tuple[float, float, float]:
    """Return the seconds of encoding the classes, of our logits of `count` images, and of the bare image tower."""
    trainer = build(MaPLe, setting)
    trainer.set_model_mode("eval")
    model, visual = trainer.model, trainer.model.clip.visual
    batches = made_up(trainer, count, 1)[0].split(trainer.cfg.DATALOADER.TEST.BATCH_SIZE)

    def texts() -> None:
        model.encode_text(model.learner())

    def images() -> None:
        for batch in batches:
            trainer.model_inference(batch)

    def bare() -> None:
        with model.precision.context(trainer.device):
            for batch in batches:
                visual(batch.to(visual.proj.dtype))

    model.deployed()
    return tuple(seconds(call, setting.device, repeats) for call in (texts, images, bare))


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--classes", type=int, default=397)
    parser.add_argument("--precisions", nargs="+", help="default: fp32; on a GPU fp16, bf16, amp and fp32")
    parser.add_argument("--repeats", type=int, help="evaluations, whose median is reported (default: 1; on a GPU 5)")
    args = parser.parse_args()
    if args.quick:
        args.images, args.classes, args.repeats = 8, 30, 1
    print(machine(args.device), flush=True)
    rows = []
    for precision in args.precisions or precisions(args.device):
        setting = Setting(args.classes, 4, precision, args.device, args.quick)
        texts, images, bare = measure(setting, args.images, args.repeats or (1 if args.device == "cpu" else 5))
        rows.append([args.images, args.classes, precision, f"{texts + images:.3f}", f"{texts:.3f}", f"{bare:.3f}",
                     f"{(texts + images) / bare:.2f}"])
    print(tabulate(rows, ["images", "classes", "precision", "ours (s)", "of that texts", "bare tower (s)",
                          "ours / bare"], disable_numparse=True, stralign="right"))


if __name__ == "__main__":
    main()
