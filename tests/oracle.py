"""Prompted CLIP and the losses of P2C in plain tensor operations: the independent truth of the tests.

Read it beside "From Points to Clouds" (arXiv 2511.22897) and MaPLe (arXiv 2210.03117). Nothing here is fast: each
class is a prompt padded to the full context length, encoded alone. It imports torch and math only, uses no module or
fused attention, and reads the weights from a CLIP state dict (OpenAI's names, which are open_clip's). All is
differentiable, in the dtype of the state dict.

Shapes: M context tokens, D text width, V vision width, E embedding width, C classes, B images, S tokens of a sequence.
State: dict of CLIP's tensors. Linear layers are pairs (weight (out, in), bias (out,)).
"""

import math

import torch


def linear(x, weight, bias):
    return x @ weight.T + bias


def layer_norm(x, weight, bias, eps=1e-5):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps) * weight + bias


def gelu(x, quick=False):
    """CLIP's quick approximation, or the exact x * Phi(x)."""
    return x * torch.sigmoid(1.702 * x) if quick else x * (1 + torch.erf(x / math.sqrt(2))) / 2


def affine(state, name):
    return state[f"{name}.weight"], state[f"{name}.bias"]


def attention(state, name, x, heads, causal):
    """Multi-head self-attention of x (B, S, D)."""
    batch, length, width = x.shape
    qkv = linear(x, state[f"{name}.in_proj_weight"], state[f"{name}.in_proj_bias"])
    query, key, value = (
        part.reshape(batch, length, heads, width // heads).transpose(1, 2) for part in qkv.split(width, dim=-1)
    )
    scores = query @ key.transpose(2, 3) / math.sqrt(width // heads)  # (B, heads, S, S)
    if causal:
        future = torch.arange(length)[None, :] > torch.arange(length)[:, None]
        scores = scores.masked_fill(future.to(scores.device), -math.inf)
    mixed = torch.softmax(scores, dim=-1) @ value
    return linear(mixed.transpose(1, 2).reshape(batch, length, width), *affine(state, f"{name}.out_proj"))


def transformer(state, name, x, heads, quick_gelu, causal, deep, place):
    """Run x (B, S, D) through the blocks; entering block i = 1..len(deep), deep[i-1] (M, D) is put at place(M)."""
    blocks = len({key.split(".resblocks.")[1].split(".")[0] for key in state if key.startswith(f"{name}.resblocks.")})
    assert len(deep) < blocks, f"{len(deep)} deep prompts need more than {blocks} blocks"
    for i in range(blocks):
        if 1 <= i <= len(deep):
            x = replaced(x, deep[i - 1], place(len(deep[i - 1])))
        block = f"{name}.resblocks.{i}"
        x = x + attention(state, f"{block}.attn", layer_norm(x, *affine(state, f"{block}.ln_1")), heads, causal)
        hidden = linear(layer_norm(x, *affine(state, f"{block}.ln_2")), *affine(state, f"{block}.mlp.c_fc"))
        x = x + linear(gelu(hidden, quick_gelu), *affine(state, f"{block}.mlp.c_proj"))
    return x


def replaced(x, prompt, where):
    """A copy of x (B, S, D) with prompt (M, D) at the tokens of the slice, in every row."""
    start, stop, _ = where.indices(x.shape[1])
    return torch.cat([x[:, :start], prompt.expand(len(x), -1, -1), x[:, stop:]], dim=1)


def encode_text(state, token_rows, heads, quick_gelu, context=None, deep=()):
    """Text features (C, E), not normalised.

    token_rows: C lists of token ids, [SOS] first and [EOT] last. With a context (M, D) their ids at 1..M are place
    holders: the context stands there instead of their embeddings. deep: tensors (M, D).
    """
    position = state["positional_embedding"]
    features = []
    for row in token_rows:
        padded = torch.tensor(row + [0] * (len(position) - len(row)), device=position.device)
        x = state["token_embedding.weight"][padded][None]  # (1, S, D)
        if context is not None:
            x = replaced(x, context, slice(1, 1 + len(context)))
        x = x + position
        x = transformer(state, "transformer", x, heads, quick_gelu, True, deep, lambda m: slice(1, 1 + m))
        features.append(layer_norm(x[0, len(row) - 1], *affine(state, "ln_final")) @ state["text_projection"])
    return torch.stack(features)


def encode_image(state, images, heads, quick_gelu, prompts=None, deep=()):
    """Image features (B, E), not normalised, of images (B, 3, H, W); prompts (M, V), deep: tensors (M, V)."""
    kernel = state["visual.conv1.weight"]  # (V, 3, P, P)
    width, channels, size, _ = kernel.shape
    batch, _, height, breadth = images.shape
    patches = images.reshape(batch, channels, height // size, size, breadth // size, size)
    patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * size * size)
    cls = state["visual.class_embedding"].expand(batch, 1, width)
    x = torch.cat([cls, patches @ kernel.reshape(width, -1).T], dim=1) + state["visual.positional_embedding"]
    if prompts is not None:
        x = torch.cat([x, prompts.expand(batch, -1, -1)], dim=1)
    x = layer_norm(x, *affine(state, "visual.ln_pre"))
    x = transformer(state, "visual.transformer", x, heads, quick_gelu, False, deep, lambda m: slice(-m, None))
    return layer_norm(x[:, 0], *affine(state, "visual.ln_post")) @ state["visual.proj"]


def logits(state, image_features, text_features):
    """(B, C): exp(logit_scale) times the cosine."""
    image_features = image_features / image_features.norm(dim=-1, keepdim=True)
    text_features = text_features / text_features.norm(dim=-1, keepdim=True)
    return torch.exp(state["logit_scale"]) * image_features @ text_features.T


def cross_entropy(scores, labels):
    """Mean over the batch of -log softmax(scores (B, C)) at labels (B,)."""
    return (torch.logsumexp(scores, dim=-1) - scores[torch.arange(len(labels)), labels]).mean()


# Dynamic Prompt Denoising: the level sigma(e) and the perturbed context


def progress(epoch, epochs, warmup=0):
    """tau: 0 until the noise warm-up ends, 1 at the end of training; epoch counts from 0 and may be a fraction."""
    return min(max((epoch - warmup) / (epochs - warmup), 0.0), 1.0)


def cosine(tau):
    return (1 + math.cos(math.pi * tau)) / 2


def linear_decay(tau):
    return 1 - tau


def sigmoid(tau, k=10.0):
    def s(t):
        return 1 / (1 + math.exp(k * (t - 1 / 2)))

    return (s(tau) - s(1)) / (s(0) - s(1))


def constant(tau):
    return 1.0


SCHEDULES = {"cosine": cosine, "linear": linear_decay, "sigmoid": sigmoid, "constant": constant}


def mixture_noise(component, normal, means, stds):
    """eps of a Gaussian mixture: each element from its drawn component (long) and a standard normal of that shape."""
    means, stds = (torch.tensor(values, dtype=normal.dtype, device=normal.device) for values in (means, stds))
    return means[component] + stds[component] * normal


def mixture_std(means, stds, weights):
    """Standard deviation of the mixture; weights sum to 1."""
    mean = sum(w * m for w, m in zip(weights, means, strict=True))
    return math.sqrt(sum(w * (s**2 + m**2) for w, m, s in zip(weights, means, stds, strict=True)) - mean**2)


def perturbed(context, eps, sigma):
    return context + sigma * eps


# Vision-language mapper, its denoising loss, and the loss of a training step


def mapped(layers, context):
    """F_0(context) (M, V): Linear-GELU-Linear for two layers, one Linear (MaPLe) for one."""
    x = linear(context, *layers[0])
    return linear(gelu(x), *layers[1]) if len(layers) == 2 else x


def mapper_loss(layers, context, normal, sigma_a):
    """Mean squared distance of F_0(noisy context) from F_0(context), which is the target and gets no gradient."""
    target = mapped(layers, context).detach()
    return ((mapped(layers, context + sigma_a * normal) - target) ** 2).mean()


def p2c_logits(state, images, token_rows, heads, quick_gelu, context, deep, mapper, projections, eps=None, sigma=0.0):
    """Logits (B, C) of the prompted model. heads: (text, vision); deep: P_1.. (M, D); mapper: layers of F_0;
    projections: one Linear F_i for each deep prompt; eps (M, D) moves the text context alone."""
    text_context = context if eps is None else perturbed(context, eps, sigma)
    text = encode_text(state, token_rows, heads[0], quick_gelu, text_context, deep)
    visual_deep = [linear(prompt, *layer) for prompt, layer in zip(deep, projections, strict=True)]
    image = encode_image(state, images, heads[1], quick_gelu, mapped(mapper, context), visual_deep)
    return logits(state, image, text)


def p2c_losses(state, images, labels, token_rows, heads, quick_gelu, context, deep, mapper, projections,
               eps=None, sigma=0.0, mapper_normal=None, sigma_a=0.0, weight=1.0):  # fmt: skip
    """The step's losses: "ce", with mapper_normal (M, D) also "map", and their weighted sum "total"."""
    scores = p2c_logits(state, images, token_rows, heads, quick_gelu, context, deep, mapper, projections, eps, sigma)
    losses = {"ce": cross_entropy(scores, labels)}
    losses["total"] = losses["ce"]
    if mapper_normal is not None:
        losses["map"] = mapper_loss(mapper, context, mapper_normal, sigma_a)
        losses["total"] = losses["ce"] + weight * losses["map"]
    return losses
