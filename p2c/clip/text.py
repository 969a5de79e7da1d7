"""CLIP's frozen text tower on prompts that share a prefix (shared-prefix encoding, exact up to rounding).

Attention is causal and the feature is read at [EOT]. So nothing after [EOT] is computed, and the tokens that all
classes begin with ([SOS], the learned context, fixed words) are computed once: their states do not depend on the class
names, in no layer, deep prompts included, since these replace positions of the prefix only. Where classes have contexts
of their own, or the context stands behind the class name, only [SOS] is shared.

Shapes: C classes, M learned tokens, N of them replaced in deeper layers, L tokens of the prefix, S of the longest
suffix, P prefixes (1, or one an image), D text width, H heads, E width of the features.
"""
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from open_clip import CLIP
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn


@dataclass(frozen=True)
class ClassPrompts:
    """The prompts of C classes as embeddings of a shared prefix and of each class's own suffix, positions added."""

    prefix: Tensor  # (L, D)
    suffix: Tensor  # (C, S, D), padded with zeros after [EOT], in the tower's precision
    eot: Tensor  # (C,) index of [EOT] in the suffix
    slots: Tensor  # (M,) places of the learned tokens in the prefix, or (C, M) in each class's suffix
    positions: Tensor  # (M, D) or (C, M, D) position embeddings of the learned tokens

    @property
    def own(self) -> bool:
        """Whether the learned tokens stand in each class's suffix."""
        return self.slots.ndim == 2


class TextTower:
    """Runs the frozen text tower of a CLIP with prompts.

    Args:
        model: an open_clip CLIP.
        sot, eot: ids of the tokens that begin and end every text.

    Raises:
        ValueError: a tower whose causality or pooling the shared-prefix encoding cannot rely on.
    """

    def __init__(self, model: nn.Module, sot: int, eot: int):
        pooling = getattr(model, "text_pool_type", None)
        if not isinstance(model, CLIP) or model.attn_mask is None or pooling not in ("argmax", "eos") or \
                not isinstance(model.text_projection, nn.Parameter):
            raise ValueError("Prompt learning needs a text tower with a causal mask, pooling at [EOT] and a linear "
                             f"projection, as CLIP has, but {type(model).__name__} has none (pooling: {pooling})")
        blocks = model.transformer.resblocks
        if not all(type(block) is ResidualAttentionBlock for block in blocks):
            raise ValueError("Prompt learning needs CLIP's plain attention blocks in the text tower, but got "
                             f"{', '.join(sorted({type(block).__name__ for block in blocks}))}")
        self.sot, self.eot = sot, eot
        self._clip, self._blocks = model, blocks

    @property
    def width(self) -> int:
        """D."""
        return self._clip.token_embedding.weight.shape[1]

    @property
    def feature_width(self) -> int:
        """E."""
        return self._clip.text_projection.shape[1]

    @property
    def layers(self) -> int:
        """Number of transformer blocks."""
        return len(self._blocks)

    @property
    def context_length(self) -> int:
        """The most tokens a text may have, [SOS] and [EOT] included."""
        return self._clip.positional_embedding.shape[0]

    @property
    def _dtype(self) -> torch.dtype:
        return self._clip.text_projection.dtype

    @torch.no_grad()
    def prepare(self, rows: Sequence[Sequence[int]], slots: Sequence[Sequence[int]] = (), own: bool = False) \
            -> ClassPrompts:
        """Embed the prompts of all classes; done once, since only the context changes while training.

        Args:
            rows: token ids of each class's prompt with [SOS] and [EOT]; learned tokens hold any id.
            slots: for each class the positions of its learned tokens, in the context's order; (): nothing is learned.
            own: whether each class has a context of its own.

        Raises:
            ValueError: no prompts, or a prompt longer than the tower's context.
        """
        if not rows:
            raise ValueError("There are no class names to make prompts of")
        longest = max(rows, key=len)
        if len(longest) > self.context_length:
            raise ValueError(f"The prompt of label {rows.index(longest)} has {len(longest)} tokens, but the text tower "
                             f"takes {self.context_length} at most: use a shorter context (N_CTX, CTX_INIT) or shorter "
                             "class names")
        slots = [list(places) for places in slots] or [[]] * len(rows)
        shared = shared_length(rows)
        own = own or any(places != slots[0] or max(places, default=0) >= shared for places in slots)
        shared = 1 if own else shared
        positions = self._clip.positional_embedding
        device = positions.device

        def embed(ids: Sequence[int], start: int) -> Tensor:
            tokens = self._clip.token_embedding(torch.tensor(ids, dtype=torch.long, device=device))
            return tokens + positions[start:start + len(ids)]

        suffixes = [embed(row[shared:], shared) for row in rows]
        places = torch.tensor(slots if own else slots[0], dtype=torch.long, device=device)
        return ClassPrompts(prefix=embed(rows[0][:shared], 0),
                            suffix=nn.utils.rnn.pad_sequence(suffixes, batch_first=True).to(self._dtype),
                            eot=torch.tensor([len(suffix) - 1 for suffix in suffixes], device=device),
                            slots=places - shared if own else places, positions=positions[places])

    def encode(self, prompts: ClassPrompts, context: Tensor | None = None, deep: Sequence[Tensor] = ()) -> Tensor:
        """Text features (C, E), not normalised; (P, C, E) for P contexts.

        Args:
            context: learned tokens at the input, without positions: (M, D); or (C, M, D), one of each class, where the
                prompts were prepared as such; or (P, M, D), several to encode all classes with, where these share the
                places of the learned tokens. None: the prompts as they were written.
            deep: prompts (N, D) that replace the states of the last N learned tokens at the entrance of layers 1, 2,
                ...; only where all classes share the context.
        """
        prefix, suffix, eot = prompts.prefix, prompts.suffix, prompts.eot
        several = context is not None and context.ndim == 3 and not prompts.own
        if context is not None:
            context = context.to(prefix.dtype) + prompts.positions
            if prompts.own:
                classes = torch.arange(len(suffix), device=suffix.device)[:, None]
                suffix = suffix.index_put((classes, prompts.slots), context.to(suffix.dtype))
            else:
                prefix = _put(prefix, prompts.slots, context)
        prefix = prefix.to(self._dtype) if several else prefix.to(self._dtype)[None]    # (P, L, D)
        assert not (deep and prompts.own), "deep prompts need a context that all classes share"
        deep = [prompt.to(self._dtype) for prompt in deep]
        features = torch.cat([self._encode_group(prefix, part, ends, deep, prompts.slots)
                              for part, ends in self._groups(suffix, eot)], dim=1)
        return features if several else features[0]

    def _groups(self, suffix: Tensor, eot: Tensor) -> list[tuple[Tensor, Tensor]]:
        """How the classes are encoded: in one batch, as long as its longest suffix."""
        return [(suffix, eot)]

    def _encode_group(self, prefix: Tensor, suffix: Tensor, eot: Tensor, deep: Sequence[Tensor],
                      slots: Tensor) -> Tensor:
        """Features (P, C, E) of suffixes (C, S, D), each behind each of the prefixes (P, L, D)."""
        mask = _visible(prefix.shape[1], suffix.shape[1], suffix.device)
        suffix = suffix.expand(len(prefix), -1, -1, -1)                                 # (P, C, S, D)
        for layer, block in enumerate(self._blocks):
            if 0 < layer <= len(deep):
                prefix = _put(prefix, slots[-len(deep[layer - 1]):], deep[layer - 1])
            prefix, suffix = _block(block, prefix, suffix, mask, last=layer == self.layers - 1)
        state = suffix[:, torch.arange(len(eot), device=suffix.device), eot]            # (P, C, D)
        return self._clip.ln_final(state) @ self._clip.text_projection


def shared_length(rows: Sequence[Sequence[int]]) -> int:
    """Length of the longest common prefix of all rows that leaves each row at least one token of its own."""
    limit = min(map(len, rows)) - 1
    first = rows[0]
    return next((i for i in range(limit) if any(row[i] != first[i] for row in rows)), limit)


def _put(states: Tensor, slots: Tensor, tokens: Tensor) -> Tensor:
    """States (L, D) or (P, L, D) with tokens (M, D) or (P, M, D) in their slots (M,)."""
    if tokens.ndim > states.ndim:
        states = states.expand(len(tokens), -1, -1)
    elif tokens.ndim < states.ndim:
        tokens = tokens.expand(len(states), -1, -1)
    return states.index_copy(-2, slots, tokens)


def _visible(prefix: int, suffix: int, device: torch.device) -> Tensor:
    """Which keys (L + S) a suffix's queries (S) see: the whole prefix, and of the suffix what is not later. Boolean."""
    own = torch.ones(suffix, suffix, dtype=torch.bool, device=device).tril()
    return torch.cat([torch.ones(suffix, prefix, dtype=torch.bool, device=device), own], dim=1)


def _block(block: ResidualAttentionBlock, prefix: Tensor, suffix: Tensor, mask: Tensor,
           last: bool) -> tuple[Tensor, Tensor]:
    """One block on prefixes (P, L, D) and suffixes (P, C, S, D), whose queries also see their prefix's keys.

    In the last block nobody reads the prefix any more, so it only gives keys and values.
    """
    q, k, v = _project(block.attn, block.ln_1(prefix))                                  # (P, H, L, D/H)
    q_own, k_own, v_own = _project(block.attn, block.ln_1(suffix))                      # (P, C, H, S, D/H)
    classes = suffix.shape[1]
    k_all, v_all = (torch.cat([shared[:, None].expand(-1, classes, -1, -1, -1), own], dim=3)
                    for shared, own in ((k, k_own), (v, v_own)))                        # (P, C, H, L + S, D/H)
    attended = F.scaled_dot_product_attention(*(x.flatten(0, 1) for x in (q_own, k_all, v_all)), attn_mask=mask)
    suffix = _residual(block, suffix, attended.unflatten(0, (-1, classes)))
    if not last:
        prefix = _residual(block, prefix, F.scaled_dot_product_attention(q, k, v, is_causal=True))
    return prefix, suffix


def _project(attention: nn.MultiheadAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (..., H, T, D/H) of states (..., T, D)."""
    qkv = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    return tuple(part.unflatten(-1, (attention.num_heads, -1)).transpose(-2, -3) for part in qkv.chunk(3, dim=-1))


def _residual(block: ResidualAttentionBlock, x: Tensor, attended: Tensor) -> Tensor:
    """The rest of a block after the attention of its heads (..., H, T, D/H)."""
    x = x + block.ls_1(block.attn.out_proj(attended.transpose(-2, -3).flatten(-2)))
    return x + block.ls_2(block.mlp(block.ln_2(x)))
