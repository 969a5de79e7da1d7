"""Pretrain `tiny-shapes`, the small CLIP that ships with the package, on generated pictures with captions.

    python scripts/pretrain_tiny.py

writes p2c/clip/builtin/tiny-shapes.{json,safetensors}; the defaults are the arguments that made the committed files.
Pictures are clean ones of `datasets/drawing.py`, drawn on the fly, each seen once. None belongs to a dataset of the
shapes family (their streams have other names), and none is in the style of one. A caption that leaves attributes out
may fit several pictures of a batch: equal captions share their targets.

An interrupted run continues from its last checkpoint. The weights are exported with each checkpoint. The styles of the
datasets were chosen after pretraining, by the accuracy of these weights on pictures of a calibration stream that no
dataset holds. `--measure` only evaluates the exported weights.
"""

import argparse
import json
import logging
import math
import os
import sys
import time
from dataclasses import replace
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
from p2c.datasets.drawing import PictureSpec, RandomStream  # noqa: E402

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


def vocabulary() -> str:
    """Return all words of captions, templates and class names in one text ("x" is the placeholder of a context)."""
    words = [*drawing.COLORS, *drawing.FILLS, *drawing.SHAPES, *drawing.PLURALS, *drawing.COUNTS, *drawing.BACKGROUNDS,
             *drawing.RELATIONS, *filter(None, drawing.SIZES), *TEMPLATES, ATTRIBUTE_WORDS]
    return " ".join(words).replace("{}", " ") + " , :"


def random_spec(rng: RandomStream) -> PictureSpec:
    """Draw the specification of a picture: one shape, a group of equal ones, or a pair."""
    spec = PictureSpec(shape=rng.pick(list(drawing.SHAPES)), color=rng.pick(list(drawing.COLORS)),
                       fill=rng.pick(list(drawing.FILLS)), tone=rng.pick(list(drawing.BACKGROUNDS)))
    kind = rng.below(100)
    if kind < 60:
        return replace(spec, count="one", size=rng.pick([None, None, None, "tiny", "big"]))
    if kind < 80:
        return replace(spec, count=rng.pick(list(drawing.COUNTS)[1:]))
    return replace(spec, relation=rng.pick(drawing.RELATIONS), second=rng.pick(list(drawing.SHAPES)),
                         second_color=rng.pick(list(drawing.COLORS)),
                         fill=None if rng.chance(70) else spec.fill)


def drop_attributes(rng: RandomStream, spec: PictureSpec) -> PictureSpec:
    """Return `spec` without some random attributes: what a caption mentions of the picture."""
    if spec.relation:
        colors = rng.chance(35)
        return replace(spec, fill=None, count=None, tone=spec.tone if rng.chance(12) else None,
                             color=spec.color if colors else None, second_color=spec.second_color if colors else None)
    full, single = rng.chance(50), spec.count == "one"
    mentioned = replace(
        spec,
        color=spec.color if full or rng.chance(60) else None,
        fill=spec.fill if full or rng.chance(60) else None,
        shape=spec.shape if full or rng.chance(85) else None,
        size=spec.size if rng.chance(60) else None,
        tone=spec.tone if rng.chance(15) else None,
        count=spec.count if rng.chance(3 if single else 90) else None,
    )
    if not single and rng.chance(60):
        mentioned = replace(mentioned, color=None)
    return mentioned


def phrase(rng: RandomStream, mentioned: PictureSpec, plural: bool) -> str:
    """Express the mentioned attributes in words, such as "big red striped star" or "star shape with red color"."""
    names = {name: word for word, name in drawing.PLURALS.items()} if plural else {}
    noun = names.get(mentioned.shape, mentioned.shape) or ("shapes" if plural else "shape")
    ending = f" on a {mentioned.tone} background" if mentioned.tone else ""
    if mentioned.relation:
        first = " ".join(filter(None, (mentioned.color, noun)))
        second = " ".join(filter(None, (mentioned.second_color, mentioned.second)))
        article = ("an " if second[0] in "aeiou" else "a ") if rng.chance(67) else ""
        return f"{first} {mentioned.relation} {article}{second}{ending}"
    if rng.chance(80):
        return " ".join(filter(None, (mentioned.count, mentioned.size, mentioned.color, mentioned.fill, noun))) + ending
    attributes = {"color": mentioned.color, "pattern": mentioned.fill, "size": mentioned.size,
                  "count": mentioned.count, "background": mentioned.tone}
    parts = [f"{value} {name}" for name, value in attributes.items() if value]
    if plural and mentioned.count and rng.chance(50):
        parts = [part.replace(" count", " in number") for part in parts]
    parts = rng.sample(parts, len(parts))
    head = noun if noun in ("shape", "shapes") or plural else f"{noun} shape"
    return head + (" with " + " and ".join(parts) if parts else "")


def caption(rng: RandomStream, mentioned: PictureSpec, plural: bool) -> str:
    """Return a random template filled with the mentioned attributes."""
    template = TEMPLATES[0] if rng.chance(35) else rng.pick(TEMPLATES)
    return template.format(phrase(rng, mentioned, plural))


class CaptionedPictures(Dataset):
    """The batches of the pretraining stream by step: pictures, their captions' tokens, and ids of equal captions."""

    def __init__(self, seed: int, steps: int, batch: int, rows: dict[int, int]) -> None:
        self.seed, self.steps, self.batch, self.rows = seed, steps, batch, rows
        self.tokenizer = SimpleTokenizer()

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rng = RandomStream(f"pretraining/{self.seed}/{step}")
        pictures, texts, meanings = [], [], []
        for _ in range(self.batch):
            spec = random_spec(rng)
            pictures.append(drawing.draw(rng, spec))
            mentioned = drop_attributes(rng, spec)
            texts.append(caption(rng, mentioned, spec.count not in (None, "one")))
            if mentioned.relation == "beside":  # either shape may be named first
                first = mentioned.shape, mentioned.color or ""
                second = mentioned.second, mentioned.second_color or ""
                meanings.append((*sorted([first, second]), mentioned.tone))
            else:
                meanings.append(mentioned)
        ids = {meaning: k for k, meaning in enumerate(dict.fromkeys(meanings))}
        caption_ids = torch.tensor([ids[meaning] for meaning in meanings])
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
        return pixels, tokenize(texts, self.tokenizer, self.rows), caption_ids


def tokenize(texts: list[str], tokenizer: SimpleTokenizer, rows: dict[int, int]) -> torch.Tensor:
    """Return the compact ids (texts, L) from SOS to EOT, padded with zeros to the longest text's length L."""
    encoded = [[SOS, *tokenizer.encode(text), EOT] for text in texts]
    tokens = torch.zeros(len(encoded), max(map(len, encoded)), dtype=torch.int64)
    for row, ids in zip(tokens, encoded, strict=True):
        row[: len(ids)] = torch.tensor([rows[i] for i in ids])
    return tokens


def compact_rows(tokenizer: SimpleTokenizer) -> dict[int, int]:
    """Map CLIP's token ids in use to 0, 1, ... in the same order, so that EOT stays the largest."""
    return {i: k for k, i in enumerate(sorted({SOS, EOT, *tokenizer.encode(vocabulary())}))}


def build(rows: int, patch_dropout: float = 0.0) -> open_clip.CLIP:
    """Build the model with a vocabulary of `rows` tokens."""
    vision, text = dict(MODEL["vision_cfg"], patch_dropout=patch_dropout), dict(MODEL["text_cfg"], vocab_size=rows)
    return open_clip.CLIP(MODEL["embed_dim"], vision, text, quick_gelu=MODEL["quick_gelu"])


def encode_image(model: open_clip.CLIP, pixels: torch.Tensor) -> torch.Tensor:
    """Encode pixels (B, 3, 64, 64), uint8, as normalised features (B, embed_dim)."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return F.normalize(model.visual((pixels / 255 - mean) / std).float(), dim=-1)


def encode_text(model: open_clip.CLIP, tokens: torch.Tensor) -> torch.Tensor:
    """Encode compact ids (B, L) as normalised features (B, embed_dim); open_clip's encode_text needs L = 77."""
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x[torch.arange(len(x)), tokens.argmax(1)])
    return F.normalize((x @ model.text_projection).float(), dim=-1)


def contrastive_loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor,
                     caption_ids: torch.Tensor) -> torch.Tensor:
    """Return CLIP's symmetric loss; all pairs with equal captions are targets, with equal probabilities."""
    same = (caption_ids[:, None] == caption_ids[None]).float()
    target = same / same.sum(1, keepdim=True)
    logits = scale * image @ text.T
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine to zero."""
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    return args.lr * (1 + math.cos(math.pi * (step - args.warmup) / (args.steps - args.warmup))) / 2


def build_optimizer(model: open_clip.CLIP, args: argparse.Namespace) -> torch.optim.AdamW:
    """Build the optimiser; only weight matrices other than embeddings are decayed."""
    matrices = [p for n, p in model.named_parameters() if p.ndim >= 2 and "embedding" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim < 2 or "embedding" in n]
    groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))


@torch.no_grad()
def accuracy(model: open_clip.CLIP, rows: dict[int, int], name: str, stream: str, style: bool, shots: int) -> dict:
    """Return the zero-shot accuracy (percent) with "a photo of a {}.": over all classes, within base, within novel."""
    classnames = shapes.FAMILY[name].contents
    text = encode_text(model, tokenize([TEMPLATES[0].format(c) for c in classnames], SimpleTokenizer(), rows))
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
    """Return the accuracies on every dataset's classes, in its own style and clean."""
    model.eval()
    return {name: {"own style": accuracy(model, rows, name, stream, True, shots),
                   "clean": accuracy(model, rows, name, stream, False, shots)} for name in shapes.FAMILY}


def export(model: open_clip.CLIP, rows: dict[int, int], folder: Path, pretraining: dict) -> None:
    """Write both files, each atomically; the token embedding keeps only the rows in use."""
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
    """Write tiny-shapes.json atomically."""
    part = folder / "tiny-shapes.json.part"
    part.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(part, folder / "tiny-shapes.json")


def load(folder: Path) -> tuple[open_clip.CLIP, dict[int, int]]:
    """Load the exported model, with the rows in use as its whole vocabulary."""
    state = load_file(folder / "tiny-shapes.safetensors")
    rows = {i: k for k, i in enumerate(state.pop("token_embedding.ids").tolist())}
    state["token_embedding.weight"] = state.pop("token_embedding.rows")
    model = build(len(rows))
    model.load_state_dict(state)
    return model.eval(), rows


def train(args: argparse.Namespace) -> None:
    """Train from the last checkpoint, if any, to the last step, and export the weights."""
    tokenizer = SimpleTokenizer()
    rows = compact_rows(tokenizer)
    torch.manual_seed(args.seed)
    model = build(len(rows), args.patch_dropout)
    optimizer = build_optimizer(model, args)
    start, seconds, settings = 0, 0.0, {name: getattr(args, name) for name in SETTINGS}
    if args.checkpoint.exists():
        saved = torch.load(args.checkpoint, weights_only=True)
        if saved["settings"] != settings:
            raise SystemExit(f"error: {args.checkpoint} is from a run with {saved['settings']}, but this run has "
                             f"{settings}; delete it or give another with --checkpoint")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start, seconds = saved["step"], saved["seconds"]
        log.info(f"continuing at step {start}")
    loader = DataLoader(CaptionedPictures(args.seed, args.steps, args.batch, rows), batch_size=None,
                        sampler=range(start, args.steps), num_workers=1, prefetch_factor=8)
    began, losses = time.monotonic() - seconds, []
    for step, (pixels, tokens, caption_ids) in enumerate(loader, start):
        torch.manual_seed(args.seed + 1 + step)  # so that a resumed run repeats the same patch dropout
        model.train()
        model.visual.patch_dropout.prob = args.patch_dropout if step < args.steps * args.dropout_until else 0.0
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        optimizer.zero_grad(set_to_none=True)
        with sdpa_kernel(SDPBackend.MATH):  # twice as fast as the fused kernel at this size
            with torch.autocast("cpu", torch.bfloat16):
                image, text = encode_image(model, pixels), encode_text(model, tokens)
            loss = contrastive_loss(image, text, model.logit_scale.exp(), caption_ids)
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
    """Evaluate the exported weights on a stream that pretraining and datasets do not use, and record the result."""
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
    parser.add_argument("--measure", action="store_true", help="only evaluate the exported weights")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=300, help="steps of linear warm-up")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--patch-dropout", type=float, default=0.5, help="share of patches dropped early on")
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
