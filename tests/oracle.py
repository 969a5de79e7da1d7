"""Prompted CLIP and the losses of all prompt learners in plain tensor operations: the independent truth of the tests.

Read it beside "From Points to Clouds" (arXiv 2511.22897), MaPLe (2210.03117), CoOp (2109.01134), CoCoOp (2203.05557),
VPT (2203.12119), PromptSRC (2307.06948) and ATPrompt (2412.09442). Nothing here is fast: each class is a prompt padded
to the full context length, encoded alone. It imports torch and math only, uses no module or fused attention, and reads
the weights from a CLIP state dict (OpenAI's names, which are open_clip's). All is differentiable, in the dtype of the
state dict.

Shapes: M learned tokens, N of them replaced in deeper layers, D text width, V vision width, E embedding width,
C classes, B images, S tokens of a sequence.
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


def transformer(state, name, x, heads, quick_gelu, causal, deep, places):
    """Run x (B, S, D) through the blocks; places: M positions of learned tokens. Entering block i = 1..len(deep), the
    tokens of deep[i-1] (N, D) are put at the last N places."""
    blocks = len({key.split(".resblocks.")[1].split(".")[0] for key in state if key.startswith(f"{name}.resblocks.")})
    assert len(deep) < blocks, f"{len(deep)} deep prompts need more than {blocks} blocks"
    for i in range(blocks):
        if 1 <= i <= len(deep):
            x = replaced(x, deep[i - 1], places[-len(deep[i - 1]) :])
        block = f"{name}.resblocks.{i}"
        x = x + attention(state, f"{block}.attn", layer_norm(x, *affine(state, f"{block}.ln_1")), heads, causal)
        hidden = linear(layer_norm(x, *affine(state, f"{block}.ln_2")), *affine(state, f"{block}.mlp.c_fc"))
        x = x + linear(gelu(hidden, quick_gelu), *affine(state, f"{block}.mlp.c_proj"))
    return x


def replaced(x, prompt, places):
    """A copy of x (B, S, D) with the tokens of prompt (M, D) at the M places, in every row."""
    tokens = list(x.unbind(1))
    for place, token in zip(places, prompt, strict=True):
        tokens[place] = token.expand(len(x), -1)
    return torch.stack(tokens, dim=1)


def written(*parts):
    """Token ids of a prompt in its parts, and the positions of its learned tokens: a list stands for itself, a number
    for that many learned tokens, whose ids are 0."""
    row, places = [], []
    for part in parts:
        if isinstance(part, int):
            places += range(len(row), len(row) + part)
            part = [0] * part
        row += part
    return row, places


def encode_text(state, token_rows, heads, quick_gelu, context=None, deep=(), slots=None):
    """Text features (C, E), not normalised.

    token_rows: C lists of token ids, [SOS] first and [EOT] last. slots: for each class the M positions at which the
    tokens of the context (M, D), or of the class's own context[c] of (C, M, D), stand instead of the embeddings of the
    ids there; without slots 1..M. deep: tensors (N, D), which replace the states of the last N learned tokens.
    """
    position = state["positional_embedding"]
    if slots is None:
        slots = [range(1, 1 + (0 if context is None else context.shape[-2]))] * len(token_rows)
    features = []
    for c, (row, places) in enumerate(zip(token_rows, slots, strict=True)):
        padded = torch.tensor(row + [0] * (len(position) - len(row)), device=position.device)
        x = state["token_embedding.weight"][padded][None]  # (1, S, D)
        if context is not None:
            x = replaced(x, context if context.ndim == 2 else context[c], places)
        x = x + position
        x = transformer(state, "transformer", x, heads, quick_gelu, True, deep, places)
        features.append(layer_norm(x[0, len(row) - 1], *affine(state, "ln_final")) @ state["text_projection"])
    return torch.stack(features)


def encode_image(state, images, heads, quick_gelu, prompts=None, deep=()):
    """Image features (B, E), not normalised, of images (B, 3, H, W); prompts (M, V) at the end,
    deep: tensors (M, V)."""
    kernel = state["visual.conv1.weight"]  # (V, 3, P, P)
    width, channels, size, _ = kernel.shape
    batch, _, height, breadth = images.shape
    patches = images.reshape(batch, channels, height // size, size, breadth // size, size)
    patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * size * size)
    cls = state["visual.class_embedding"].expand(batch, 1, width)
    x = torch.cat([cls, patches @ kernel.reshape(width, -1).T], dim=1) + state["visual.positional_embedding"]
    patched = x.shape[1]
    if prompts is not None:
        x = torch.cat([x, prompts.expand(batch, -1, -1)], dim=1)
    x = layer_norm(x, *affine(state, "visual.ln_pre"))
    x = transformer(state, "visual.transformer", x, heads, quick_gelu, False, deep, range(patched, x.shape[1]))
    return layer_norm(x[:, 0], *affine(state, "visual.ln_post")) @ state["visual.proj"]


def normalised(features):
    """Features (..., E) of length 1."""
    return features / features.norm(dim=-1, keepdim=True)


def logits(state, image_features, text_features):
    """(B, C): exp(logit_scale) times the cosine."""
    return torch.exp(state["logit_scale"]) * normalised(image_features) @ normalised(text_features).T


def log_softmax(scores):
    """Logarithms of the probabilities of scores (B, C)."""
    return scores - torch.logsumexp(scores, dim=-1, keepdim=True)


def cross_entropy(scores, labels):
    """Mean over the batch of -log softmax(scores (B, C)) at labels (B,)."""
    return -log_softmax(scores)[torch.arange(len(labels)), labels].mean()


# CoOp, VPT, IVLP: prompts on one tower or both, independent of each other


def prompted_logits(state, images, token_rows, heads, quick_gelu, context=None, deep=(), visual=None, visual_deep=(),
                    slots=None):  # fmt: skip
    """Logits (B, C). heads: (text, vision); context, deep, slots as in encode_text; visual, visual_deep: (M, V).

    CoOp has a context alone, VPT visual prompts alone, IVLP both and deep ones, its language-only form no visual ones.
    """
    text = encode_text(state, token_rows, heads[0], quick_gelu, context, deep, slots)
    return logits(state, encode_image(state, images, heads[1], quick_gelu, visual, visual_deep), text)


# CoCoOp: a context for each image


def meta_net(layers, features):
    """Linear-ReLU-Linear of features (..., E): what is added to every context token (..., D)."""
    hidden = linear(features, *layers[0])
    return linear(torch.where(hidden > 0, hidden, 0.0), *layers[1])


def cocoop_logits(state, images, token_rows, heads, quick_gelu, context, meta_layers):
    """Logits (B, C): each image moves the context (M, D) and has all classes encoded for itself."""
    scores = []
    for image in images:
        feature = normalised(encode_image(state, image[None], heads[1], quick_gelu)[0])  # (E,)
        moved = context + meta_net(meta_layers, feature)
        text = encode_text(state, token_rows, heads[0], quick_gelu, moved)
        scores.append(logits(state, feature[None], text)[0])
    return torch.stack(scores)


# PromptSRC: the losses that keep prompted CLIP near frozen CLIP, and the average of the prompts over the epochs


def text_target(state, template_rows, heads, quick_gelu):
    """Frozen text features (C, E) of length 1: the mean over templates of features not normalised, then normalised.

    template_rows: for each template the token ids of C prompts.
    """
    features = [encode_text(state, rows, heads, quick_gelu) for rows in template_rows]
    return normalised(torch.stack(features).mean(0)).detach()


def kl_to_frozen(frozen_scores, scores):
    """KL(frozen || prompted) of scores (B, C), summed and divided by B * C, as published (not by B)."""
    log_q, log_p = log_softmax(frozen_scores).detach(), log_softmax(scores)
    return (torch.exp(log_q) * (log_q - log_p)).sum() / scores.numel()


def promptsrc_losses(state, images, labels, token_rows, template_rows, heads, quick_gelu, context, deep=(),
                     visual=None, visual_deep=(), text_weight=25.0, image_weight=10.0):  # fmt: skip
    """The step's losses "ce", "text", "image", "kl" (not weighted), and their weighted sum "total"."""
    text = normalised(encode_text(state, token_rows, heads[0], quick_gelu, context, deep))
    image = normalised(encode_image(state, images, heads[1], quick_gelu, visual, visual_deep))
    frozen_text = text_target(state, template_rows, heads[0], quick_gelu)
    frozen_image = normalised(encode_image(state, images, heads[1], quick_gelu)).detach()
    scores = logits(state, image, text)
    losses = {
        "ce": cross_entropy(scores, labels),
        "text": (text - frozen_text).abs().mean(),
        "image": (image - frozen_image).abs().mean(),
        "kl": kl_to_frozen(logits(state, frozen_image, frozen_text), scores),
    }
    losses["total"] = losses["ce"] + text_weight * losses["text"] + image_weight * losses["image"] + losses["kl"]
    return losses


def gaussian_weights(epochs, mean, std):
    """Weights of the epochs 1..epochs, a Gaussian in the epoch, with sum 1."""
    exponents = [-(((epoch - mean) / std) ** 2) / 2 for epoch in range(1, epochs + 1)]
    heights = [math.exp(exponent - max(exponents)) for exponent in exponents]  # the largest is 1, however far the mean
    return [height / sum(heights) for height in heights]


def averaged(states, weights):
    """Weighted sum of state dicts, one an epoch."""
    return {key: sum(weight * state[key] for weight, state in zip(weights, states, strict=True)) for key in states[0]}


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


def p2c_logits(state, images, token_rows, heads, quick_gelu, context, deep, mapper, projections, eps=None, sigma=0.0,
               attributes=None, slots=None):  # fmt: skip
    """Logits (B, C) of the prompted model. heads: (text, vision); deep: P_1.. (M, D); mapper: layers of F_0;
    projections: one Linear F_i for each deep prompt. attributes (A, D): learned tokens that stand in the text before
    the context, at the first A slots, have no visual counterpart and are replaced in no layer. eps (A + M, D) moves
    the learned tokens of the text alone."""
    learned = context if attributes is None else torch.cat([attributes, context])
    if eps is not None:
        learned = perturbed(learned, eps, sigma)
    visual_deep = [linear(prompt, *layer) for prompt, layer in zip(deep, projections, strict=True)]
    return prompted_logits(state, images, token_rows, heads, quick_gelu, learned, deep, mapped(mapper, context),
                           visual_deep, slots)  # fmt: skip


def p2c_losses(state, images, labels, token_rows, heads, quick_gelu, context, deep, mapper, projections,
               eps=None, sigma=0.0, mapper_normal=None, sigma_a=0.0, weight=1.0,
               attributes=None, slots=None):  # fmt: skip
    """The step's losses: "ce", with mapper_normal (M, D) also "map", and their weighted sum "total"."""
    scores = p2c_logits(state, images, token_rows, heads, quick_gelu, context, deep, mapper, projections, eps, sigma,
                        attributes, slots)  # fmt: skip
    losses = {"ce": cross_entropy(scores, labels)}
    losses["total"] = losses["ce"]
    if mapper_normal is not None:
        losses["map"] = mapper_loss(mapper, context, mapper_normal, sigma_a)
        losses["total"] = losses["ce"] + weight * losses["map"]
    return losses
