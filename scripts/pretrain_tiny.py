"""Pretrain `tiny-shapes`, the small CLIP that ships with the package, on generated pictures with captions.

    python scripts/pretrain_tiny.py

writes p2c/clip/builtin/tiny-shapes.{json,safetensors} in about 40 minutes on two CPU cores, with the settings that
made the committed files. Pictures are clean ones of `datasets/drawing.py`, drawn on the fly, each seen once. None
belongs to a dataset of the shapes family (their streams have other names), and none is in the style of one. A caption
that leaves attributes out may fit several pictures of a batch: equal captions share their targets.

The styles of the datasets were chosen after pretraining, by the accuracy of these weights on pictures of a calibration
stream that no dataset holds.
"""

import argparse
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from p2c.datasets import drawing, shapes  # noqa: E402
from p2c.datasets.drawing import PictureSpec, RandomStream  # noqa: E402
from p2c.engine.files import write_atomically  # noqa: E402

MODEL = {
    "embed_dim": 128,
    "quick_gelu": False,
    "vision_cfg": {"image_size": 64, "patch_size": 8, "layers": 4, "width": 128, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4},
}
MEAN, STD = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]
SEED, STEPS, BATCH, LR, WARMUP, WEIGHT_DECAY = 1, 4000, 128, 1e-3, 300, 0.05
PATCH_DROPOUT, DROPOUT_UNTIL = 0.5, 0.75  # the share of patches that is dropped, and of the steps that drop
SOS, EOT = 49406, 49407
SHOTS = 40  # held-out pictures of a class
TEMPLATES = (
    "a photo of a {}.", "{}.", "itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.",
    "a {} in a video game.", "art of the {}.", "a photo of the small {}.", "a photo of {}.", "a picture of a {}.",
    "a drawing of a {}.", "an image of {}.", "a {}.", "a photo of the {}.", "{}",
)
OTHER_WORDS = "color shape shapes pattern size background count number in on and with x , :"  # x: of an initial context


def compact_rows(tokenizer: SimpleTokenizer) -> dict[int, int]:
    """Map CLIP's token ids in use to 0, 1, ... in the same order, so that EOT stays the largest."""
    words = [*drawing.COLORS, *drawing.FILLS, *drawing.SHAPES, *drawing.PLURALS, *drawing.COUNTS, *drawing.BACKGROUNDS,
             *drawing.RELATIONS, *filter(None, drawing.SIZES), *TEMPLATES, OTHER_WORDS]
    ids = tokenizer.encode(" ".join(words).replace("{}", " "))
    return {i: k for k, i in enumerate(sorted({SOS, EOT, *ids}))}


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
                   second_color=rng.pick(list(drawing.COLORS)), fill=None if rng.chance(70) else spec.fill)


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


class CaptionedPictures(Dataset):
    """The batches of the pretraining stream by step: pictures, their captions' tokens, and ids of equal captions."""

    def __init__(self, tokenizer: SimpleTokenizer, rows: dict[int, int]) -> None:
        self.tokenizer, self.rows = tokenizer, rows

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = RandomStream(f"pretraining/{SEED}/{step}")
        pictures, texts, meanings = [], [], []
        for _ in range(BATCH):
            spec = random_spec(rng)
            pictures.append(drawing.draw(rng, spec))
            mentioned = drop_attributes(rng, spec)
            template = TEMPLATES[0] if rng.chance(35) else rng.pick(TEMPLATES)
            texts.append(template.format(phrase(rng, mentioned, plural=spec.count not in (None, "one"))))
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


def tokenize(texts: list[str], tokenizer: SimpleTokenizer, rows: dict[int, int]) -> Tensor:
    """Return the compact ids (texts, L) from SOS to EOT, padded with zeros to the longest text's length L."""
    encoded = [[SOS, *tokenizer.encode(text), EOT] for text in texts]
    return pad_sequence([torch.tensor([rows[i] for i in ids]) for ids in encoded], batch_first=True)


def encode_image(model: open_clip.CLIP, pixels: Tensor) -> Tensor:
    """Encode pixels (B, 3, 64, 64), uint8, as normalised features (B, embed_dim)."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return F.normalize(model.visual((pixels / 255 - mean) / std).float(), dim=-1)


def encode_text(model: open_clip.CLIP, tokens: Tensor) -> Tensor:
    """Encode compact ids (B, L) as normalised features (B, embed_dim); open_clip's encode_text needs L = 77."""
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x[torch.arange(len(x)), tokens.argmax(1)])
    return F.normalize((x @ model.text_projection).float(), dim=-1)


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, caption_ids: Tensor) -> Tensor:
    """Return CLIP's symmetric loss; all pairs with equal captions are targets, with equal probabilities."""
    same = (caption_ids[:, None] == caption_ids[None]).float()
    target = same / same.sum(1, keepdim=True)
    logits = scale * image @ text.T
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def learning_rate(step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine to zero."""
    if step < WARMUP:
        return LR * (step + 1) / WARMUP
    return LR * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))) / 2


@torch.no_grad()
def accuracy(model: open_clip.CLIP, tokenizer: SimpleTokenizer, rows: dict[int, int], name: str, style: bool) -> dict:
    """Return the zero-shot accuracy (percent) on held-out pictures: over all classes, within base, within novel."""
    classnames = shapes.FAMILY[name].contents
    text = encode_text(model, tokenize([TEMPLATES[0].format(c) for c in classnames], tokenizer, rows))
    pictures = [shapes.picture(name, "held-out", label, k, styled=style)
                for label in range(len(classnames)) for k in range(SHOTS)]
    labels = torch.arange(len(classnames)).repeat_interleave(SHOTS)
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    logits = torch.cat([encode_image(model, chunk) for chunk in pixels.split(240)]) @ text.T
    half = (len(classnames) + 1) // 2
    base = labels < half
    score = {"all": logits.argmax(1) == labels,
             "base": logits[base, :half].argmax(1) == labels[base],
             "novel": logits[~base, half:].argmax(1) + half == labels[~base]}
    return {part: round(100 * hits.float().mean().item(), 1) for part, hits in score.items()}


def train(model: open_clip.CLIP, loader: DataLoader) -> dict:
    """Train the model on the batches of a loader; return the minutes that it took and the last loss."""
    matrices = [p for n, p in model.named_parameters() if p.ndim >= 2 and "embedding" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim < 2 or "embedding" in n]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": WEIGHT_DECAY},
                                   {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.98))
    began, losses = time.monotonic(), []
    model.train()
    for step, (pixels, tokens, caption_ids) in enumerate(loader):
        torch.manual_seed(SEED + 1 + step)
        model.visual.patch_dropout.prob = PATCH_DROPOUT if step < STEPS * DROPOUT_UNTIL else 0.0
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
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
        minutes = (time.monotonic() - began) / 60
        if len(losses) == 50:
            print(f"step {step + 1}/{STEPS} loss {sum(losses) / len(losses):.4f} "
                  f"scale {model.logit_scale.exp().item():.1f} minutes {minutes:.1f}", flush=True)
            losses.clear()
    return {"minutes": round(minutes, 1), "loss": round(loss.item(), 4)}


def export(model: open_clip.CLIP, rows: dict[int, int], folder: Path, pretraining: dict) -> None:
    """Write both files; the token embedding keeps only the rows in use."""
    state = {k: v.detach().float().contiguous().clone() for k, v in model.state_dict().items()}
    state["token_embedding.rows"] = state.pop("token_embedding.weight")
    state["token_embedding.ids"] = torch.tensor(list(rows))
    write_atomically(folder / "tiny-shapes.safetensors", save(state))
    about = {"model": MODEL, "preprocess": {"mean": MEAN, "std": STD}, "pretraining": pretraining}
    write_atomically(folder / "tiny-shapes.json", json.dumps(about, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "p2c" / "clip" / "builtin", help="folder of the two files")
    args = parser.parse_args()
    torch.set_num_threads(2)
    tokenizer = SimpleTokenizer()
    rows = compact_rows(tokenizer)
    torch.manual_seed(SEED)
    vision, text = dict(MODEL["vision_cfg"], patch_dropout=PATCH_DROPOUT), dict(MODEL["text_cfg"], vocab_size=len(rows))
    model = open_clip.CLIP(MODEL["embed_dim"], vision, text, quick_gelu=MODEL["quick_gelu"])
    loader = DataLoader(CaptionedPictures(tokenizer, rows), batch_size=None, sampler=range(STEPS), num_workers=1,
                        prefetch_factor=8)
    outcome = train(model, loader)
    model.eval()
    zero_shot = {name: {"own style": accuracy(model, tokenizer, rows, name, True),
                        "clean": accuracy(model, tokenizer, rows, name, False)} for name in shapes.FAMILY}
    for name, scores in zero_shot.items():
        print(f"{name:16s} own style {scores['own style']}  clean {scores['clean']}")
    metrics = {"what": f"zero-shot accuracy in percent, 'a photo of a {{}}.', {SHOTS} held-out pictures a class",
               "zero_shot": zero_shot}
    export(model, rows, args.out, {
        "command": "python scripts/pretrain_tiny.py", "seed": SEED, "steps": STEPS, "batch": BATCH, "lr": LR,
        "warmup": WARMUP, "weight_decay": WEIGHT_DECAY, "patch_dropout": PATCH_DROPOUT, "dropout_until": DROPOUT_UNTIL,
        "step": STEPS, **outcome, "metrics": metrics})


if __name__ == "__main__":
    main()
