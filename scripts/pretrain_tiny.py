"""Pretrain `tiny-shapes`, the small CLIP that ships with the package, on captions of generated pictures.

    python scripts/pretrain_tiny.py

writes p2c/clip/builtin/tiny-shapes.{json,safetensors}; the defaults are the arguments that made the committed files.
Pictures are clean ones of `datasets/drawing.py`, streamed, each seen once. None belongs to a data set of the shapes
family (their streams have other names) and none is in a style of theirs. Where a caption leaves attributes out, the
same caption may fit several pictures of a batch: equal captions share their targets.

An interrupted run continues from its last checkpoint. Each checkpoint is exported too, so there are usable weights
early on. The styles of the data sets were set after pretraining, looking at the accuracy of these weights on pictures
of a calibration stream that no data set holds; `--measure` measures the exported weights again and trains nothing.
"""

import argparse
import json
import logging
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from p2c.datasets import drawing, shapes  # noqa: E402
from p2c.datasets.drawing import Dice, Wish  # noqa: E402

log = logging.getLogger("pretrain")

MODEL = {
    "embed_dim": 128,
    "quick_gelu": False,
    "vision_cfg": {"image_size": 64, "patch_size": 8, "layers": 4, "width": 128, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4},
}
MEAN, STD = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]
SETTINGS = ("seed", "steps", "batch", "lr", "warmup", "weight_decay", "patch_dropout", "dropout_until")
SOS, EOT = 49406, 49407
TEMPLATES = (
    "a photo of a {}.", "{}.", "itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.",
    "a {} in a video game.", "art of the {}.", "a photo of the small {}.", "a photo of {}.", "a picture of a {}.",
    "a drawing of a {}.", "an image of {}.", "a {}.", "a photo of the {}.", "{}",
)
ATTRIBUTE_WORDS = "color shape shapes pattern size background count number in on and with x"


def words_of_vocabulary() -> str:
    """Every word a caption, a template or a class name may hold ("x" stands where a context is to be learned)."""
    tables = (drawing.COLORS, drawing.FILLS, drawing.SHAPES, drawing.PLURALS, drawing.COUNTS, drawing.BACKGROUNDS,
              drawing.RELATIONS, [size for size in drawing.SIZES if size], TEMPLATES, [ATTRIBUTE_WORDS])
    return " ".join(word.replace("{}", " ") for table in tables for word in table) + " , :"


def random_wish(dice: Dice) -> Wish:
    """A fully determined picture: one shape, a group of equal ones, or a pair."""
    wish = Wish(shape=dice.pick(list(drawing.SHAPES)), color=dice.pick(list(drawing.COLORS)),
                fill=dice.pick(list(drawing.FILLS)), tone=dice.pick(list(drawing.BACKGROUNDS)))
    kind = dice.below(100)
    if kind < 60:
        return wish._replace(count="one", size=dice.pick([None, None, None, "tiny", "big"]))
    if kind < 80:
        return wish._replace(count=dice.pick(list(drawing.COUNTS)[1:]))
    return wish._replace(relation=dice.pick(drawing.RELATIONS), second=dice.pick(list(drawing.SHAPES)),
                         second_color=dice.pick(list(drawing.COLORS)),
                         fill=None if dice.chance(70) else wish.fill)


def mention(dice: Dice, wish: Wish) -> Wish:
    """What a caption says of the picture: `wish` with some attributes left out."""
    if wish.relation:
        colors = dice.chance(35)
        return wish._replace(fill=None, count=None, tone=wish.tone if dice.chance(12) else None,
                             color=wish.color if colors else None, second_color=wish.second_color if colors else None)
    full, single = dice.chance(50), wish.count == "one"
    told = wish._replace(
        color=wish.color if full or dice.chance(60) else None,
        fill=wish.fill if full or dice.chance(60) else None,
        shape=wish.shape if full or dice.chance(85) else None,
        size=wish.size if dice.chance(60) else None,
        tone=wish.tone if dice.chance(15) else None,
        count=wish.count if dice.chance(3 if single else 90) else None,
    )
    if not single and dice.chance(60):
        told = told._replace(color=None)
    return told


def phrase(dice: Dice, told: Wish, plural: bool) -> str:
    """The told attributes in words, as in "big red striped star" or "star shape with red color"."""
    names = {name: word for word, name in drawing.PLURALS.items()} if plural else {}
    noun = names.get(told.shape, told.shape) or ("shapes" if plural else "shape")
    ending = f" on a {told.tone} background" if told.tone else ""
    if told.relation:
        first = " ".join(filter(None, (told.color, noun)))
        second = " ".join(filter(None, (told.second_color, told.second)))
        article = ("an " if second[0] in "aeiou" else "a ") if dice.chance(67) else ""
        return f"{first} {told.relation} {article}{second}{ending}"
    if dice.chance(80):
        return " ".join(filter(None, (told.count, told.size, told.color, told.fill, noun))) + ending
    parts = [f"{value} {name}" for value, name in
             ((told.color, "color"), (told.fill, "pattern"), (told.size, "size"), (told.count, "count"),
              (told.tone, "background")) if value]
    if plural and told.count and dice.chance(50):
        parts = [part.replace(" count", " in number") for part in parts]
    parts = dice.sample(parts, len(parts))
    head = noun if noun in ("shape", "shapes") or plural else f"{noun} shape"
    return head + (" with " + " and ".join(parts) if parts else "")


def caption(dice: Dice, told: Wish, plural: bool) -> str:
    template = TEMPLATES[0] if dice.chance(35) else dice.pick(TEMPLATES)
    return template.format(phrase(dice, told, plural))


class Stream(Dataset):
    """Batch number `step` of the pretraining stream: pictures, captions' tokens, marks of equal captions."""

    def __init__(self, seed: int, steps: int, batch: int, rows: dict[int, int]) -> None:
        self.seed, self.steps, self.batch, self.rows = seed, steps, batch, rows
        self.tokenizer = SimpleTokenizer()

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        dice = Dice(f"pretraining/{self.seed}/{step}")
        pictures, texts, marks = [], [], []
        for _ in range(self.batch):
            wish = random_wish(dice)
            pictures.append(drawing.draw(dice, wish))
            told = mention(dice, wish)
            texts.append(caption(dice, told, wish.count not in (None, "one")))
            if told.relation == "beside":  # either shape may be named first
                ends = sorted([(told.shape, told.color or ""), (told.second, told.second_color or "")])
                marks.append((*ends, told.tone))
            else:
                marks.append(told)
        index = {mark: k for k, mark in enumerate(dict.fromkeys(marks))}
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
        return pixels, tokens_of(texts, self.tokenizer, self.rows), torch.tensor([index[mark] for mark in marks])


def tokens_of(texts: list[str], tokenizer: SimpleTokenizer, rows: dict[int, int]) -> torch.Tensor:
    """(number of texts, longest) compact ids, SOS first and EOT last, cut to the longest and filled with zeros."""
    coded = [[SOS, *tokenizer.encode(text), EOT] for text in texts]
    tokens = torch.zeros(len(coded), max(map(len, coded)), dtype=torch.int64)
    for row, ids in zip(tokens, coded, strict=True):
        row[: len(ids)] = torch.tensor([rows[i] for i in ids])
    return tokens


def compact_rows(tokenizer: SimpleTokenizer) -> dict[int, int]:
    """CLIP's token ids in use -> places 0, 1, ... in the same order, so that EOT stays the largest."""
    return {i: k for k, i in enumerate(sorted({SOS, EOT, *tokenizer.encode(words_of_vocabulary())}))}


def build(rows: int, patch_dropout: float = 0.0) -> open_clip.CLIP:
    vision, text = dict(MODEL["vision_cfg"], patch_dropout=patch_dropout), dict(MODEL["text_cfg"], vocab_size=rows)
    return open_clip.CLIP(MODEL["embed_dim"], vision, text, quick_gelu=MODEL["quick_gelu"])


def encode_image(model: open_clip.CLIP, pixels: torch.Tensor) -> torch.Tensor:
    """(B, 3, 64, 64) uint8 -> (B, embed_dim) of length 1."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return F.normalize(model.visual((pixels / 255 - mean) / std).float(), dim=-1)


def encode_text(model: open_clip.CLIP, tokens: torch.Tensor) -> torch.Tensor:
    """(B, L) compact ids -> (B, embed_dim) of length 1; open_clip's own encode_text wants all 77 places."""
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x[torch.arange(len(x)), tokens.argmax(1)])
    return F.normalize((x @ model.text_projection).float(), dim=-1)


def contrastive_loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric loss; pairs whose captions say the same are all right answers, with equal shares."""
    same = (marks[:, None] == marks[None]).float()
    target = same / same.sum(1, keepdim=True)
    logits = scale * image @ text.T
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    return args.lr * (1 + math.cos(math.pi * (step - args.warmup) / (args.steps - args.warmup))) / 2


def optimizer_of(model: open_clip.CLIP, args: argparse.Namespace) -> torch.optim.AdamW:
    matrices = [p for n, p in model.named_parameters() if p.ndim >= 2 and "embedding" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim < 2 or "embedding" in n]
    groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))


@torch.no_grad()
def accuracy(model: open_clip.CLIP, rows: dict[int, int], name: str, stream: str, style: bool, shots: int) -> dict:
    """Zero-shot accuracy in percent with "a photo of a {}.": over all classes, within base, within novel."""
    classnames = shapes.FAMILY[name].contents
    text = encode_text(model, tokens_of([TEMPLATES[0].format(c) for c in classnames], SimpleTokenizer(), rows))
    pictures = [shapes.picture(name, stream, label, k, styled=style)
                for label in range(len(classnames)) for k in range(shots)]
    labels = torch.arange(len(classnames)).repeat_interleave(shots)
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    logits = torch.cat([encode_image(model, chunk) for chunk in pixels.split(240)]) @ text.T
    half = (len(classnames) + 1) // 2
    base = labels < half
    score = {"all": logits.argmax(1) == labels,
             "base": logits[base, :half].argmax(1) == labels[base],
             "novel": logits[~base, half:].argmax(1) + half == labels[~base]}
    return {part: round(100 * hits.float().mean().item(), 1) for part, hits in score.items()}


def measure(model: open_clip.CLIP, rows: dict[int, int], stream: str, shots: int) -> dict:
    """Accuracies on every data set's classes, in its own style and drawn clean."""
    model.eval()
    return {name: {"own style": accuracy(model, rows, name, stream, True, shots),
                   "clean": accuracy(model, rows, name, stream, False, shots)} for name in shapes.FAMILY}


def export(model: open_clip.CLIP, rows: dict[int, int], folder: Path, pretraining: dict) -> None:
    """Write both files, each whole or not at all; the token embedding keeps only the rows in use."""
    state = {k: v.detach().float().contiguous().clone() for k, v in model.state_dict().items()}
    state["token_embedding.rows"] = state.pop("token_embedding.weight")
    state["token_embedding.ids"] = torch.tensor(list(rows))
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "tiny-shapes.safetensors.part"
    save_file(state, part)
    part.chmod(0o644)
    os.replace(part, folder / "tiny-shapes.safetensors")
    write_json(folder, {"model": MODEL, "preprocess": {"mean": MEAN, "std": STD}, "pretraining": pretraining})


def write_json(folder: Path, content: dict) -> None:
    part = folder / "tiny-shapes.json.part"
    part.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(part, folder / "tiny-shapes.json")


def load(folder: Path) -> tuple[open_clip.CLIP, dict[int, int]]:
    """The exported model, with the rows in use as its whole vocabulary."""
    state = load_file(folder / "tiny-shapes.safetensors")
    rows = {i: k for k, i in enumerate(state.pop("token_embedding.ids").tolist())}
    state["token_embedding.weight"] = state.pop("token_embedding.rows")
    model = build(len(rows))
    model.load_state_dict(state)
    return model.eval(), rows


def train(args: argparse.Namespace) -> None:
    tokenizer = SimpleTokenizer()
    rows = compact_rows(tokenizer)
    torch.manual_seed(args.seed)
    model = build(len(rows), args.patch_dropout)
    optimizer = optimizer_of(model, args)
    start, seconds, settings = 0, 0.0, {name: getattr(args, name) for name in SETTINGS}
    if args.checkpoint.exists():
        saved = torch.load(args.checkpoint, weights_only=True)
        if saved["settings"] != settings:
            raise SystemExit(f"error: {args.checkpoint} is of a run with {saved['settings']}, this one has {settings}; "
                             "delete it or name another with --checkpoint")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start, seconds = saved["step"], saved["seconds"]
        log.info(f"continuing at step {start}")
    loader = DataLoader(Stream(args.seed, args.steps, args.batch, rows), batch_size=None,
                        sampler=range(start, args.steps), num_workers=1, prefetch_factor=8)
    began, losses = time.monotonic() - seconds, []
    for step, (pixels, tokens, marks) in enumerate(loader, start):
        torch.manual_seed(args.seed + 1 + step)  # patch dropout repeats itself after an interruption
        model.train()
        model.visual.patch_dropout.prob = args.patch_dropout if step < args.steps * args.dropout_until else 0.0
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        optimizer.zero_grad(set_to_none=True)
        with sdpa_kernel(SDPBackend.MATH):  # at this size twice as fast as the fused kernel
            with torch.autocast("cpu", torch.bfloat16):
                image, text = encode_image(model, pixels), encode_text(model, tokens)
            loss = contrastive_loss(image, text, model.logit_scale.exp(), marks)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        losses.append(loss.item())
        done = step + 1
        if done % args.log_every == 0:
            seconds = time.monotonic() - began
            log.info(f"step {done}/{args.steps} loss {sum(losses) / len(losses):.4f} "
                     f"scale {model.logit_scale.exp().item():.1f} minutes {seconds / 60:.1f}")
            losses.clear()
        if done % args.save_every == 0 or done == args.steps:
            model.eval()
            clean = accuracy(model, rows, "shapes", "calibration", False, 20)
            seconds = time.monotonic() - began
            log.info(f"step {done} zero-shot on clean pictures {clean}")
            export(model, rows, args.out, {"command": "python scripts/pretrain_tiny.py", **settings, "step": done,
                                           "minutes": round(seconds / 60, 1), "loss": round(loss.item(), 4)})
            part = args.checkpoint.with_suffix(".part")
            torch.save({"settings": settings, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                        "step": done, "seconds": seconds}, part)
            os.replace(part, args.checkpoint)


def record_metrics(folder: Path) -> None:
    """Measure the exported weights on a stream that neither pretraining nor any data set draws from; note it beside."""
    model, rows = load(folder)
    content = json.loads((folder / "tiny-shapes.json").read_text())
    content["pretraining"]["metrics"] = {
        "what": "zero-shot accuracy in percent, 'a photo of a {}.', 40 held-out pictures a class",
        "zero_shot": measure(model, rows, "held-out", 40),
    }
    write_json(folder, content)
    for name, scores in content["pretraining"]["metrics"]["zero_shot"].items():
        log.info(f"{name:16s} own style {scores['own style']}  clean {scores['clean']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "p2c" / "clip" / "builtin", help="folder of the two files")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "output" / "pretrain_tiny.pt")
    parser.add_argument("--measure", action="store_true", help="measure the exported weights; train nothing")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=300, help="steps of linear warm-up")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--patch-dropout", type=float, default=0.5, help="share of patches left out early on")
    parser.add_argument("--dropout-until", type=float, default=0.75, help="share of the steps with patch dropout")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log-every", type=int, default=50, help="steps")
    parser.add_argument("--save-every", type=int, default=500, help="steps")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    torch.set_num_threads(args.threads)
    if not args.measure:
        args.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        train(args)
    record_metrics(args.out)


if __name__ == "__main__":
    main()
