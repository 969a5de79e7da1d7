"""CLIP's frozen text tower on prompts that share a prefix (shared-prefix encoding, exact up to rounding).

Attention is causal and the feature is read at [EOT]. So nothing after [EOT] is computed, and the tokens that all
classes begin with ([SOS], the learned context, fixed words) are computed once: their states do not depend on the class
names, in no layer, deep prompts included, since these replace positions of the prefix only.

Shapes: C classes, M context tokens at positions 1..M, L tokens of the prefix, S of the longest suffix, D text width,
H heads, E width of the features.
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
    context_positions: Tensor  # (M, D) position embeddings of the M context tokens
    suffix: Tensor  # (C, S, D), padded with zeros after [EOT], in the tower's precision
    eot: Tensor  # (C,) index of [EOT] in the suffix


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
    def prepare(self, rows: Sequence[Sequence[int]], n_ctx: int = 0) -> ClassPrompts:
        """Embed the prompts of all classes; done once, since only the context changes while training.

        Args:
            rows: token ids of each class's prompt with [SOS] and [EOT]; where a context is learned, positions 1..n_ctx
                hold any id, the same in all rows.

        Raises:
            ValueError: no prompts, a prompt longer than the tower's context, or a context outside the shared prefix.
        """
        if not rows:
            raise ValueError("There are no class names to make prompts of")
        longest = max(rows, key=len)
        if len(longest) > self.context_length:
            raise ValueError(f"The prompt of label {rows.index(longest)} has {len(longest)} tokens, but the text tower "
                             f"takes {self.context_length} at most: use a shorter context (N_CTX, CTX_INIT) or shorter "
                             "class names")
        shared = shared_length(rows)
        if shared < 1 + n_ctx:
            raise ValueError(f"The {n_ctx} context tokens must come first and be shared by all classes")
        positions = self._clip.positional_embedding
        device = positions.device

        def embed(ids: Sequence[int], start: int) -> Tensor:
            tokens = self._clip.token_embedding(torch.tensor(ids, dtype=torch.long, device=device))
            return tokens + positions[start:start + len(ids)]

        suffixes = [embed(row[shared:], shared) for row in rows]
        return ClassPrompts(prefix=embed(rows[0][:shared], 0), context_positions=positions[1:1 + n_ctx].clone(),
                            suffix=nn.utils.rnn.pad_sequence(suffixes, batch_first=True).to(self._dtype),
                            eot=torch.tensor([len(suffix) - 1 for suffix in suffixes], device=device))

    def encode(self, prompts: ClassPrompts, context: Tensor | None = None, deep: Sequence[Tensor] = ()) -> Tensor:
        """Text features (C, E), not normalised.

        Args:
            context: (M, D) learned context at the input, without positions; None: the prompts as they were written.
            deep: contexts (M, D) that replace the M context states at the entrance of layers 1, 2, ...
        """
        prefix = prompts.prefix
        n_ctx = len(prompts.context_positions)
        if context is not None:
            prefix = _replace(prefix, context.to(prefix.dtype) + prompts.context_positions)
        features = [
            self._encode_group(prefix.to(self._dtype), suffix, eot, [p.to(self._dtype) for p in deep], n_ctx)
            for suffix, eot in self._groups(prompts)
        ]
        return torch.cat(features)

    def _groups(self, prompts: ClassPrompts) -> list[tuple[Tensor, Tensor]]:
        """How the classes are encoded: in one batch, as long as its longest suffix."""
        return [(prompts.suffix, prompts.eot)]

    def _encode_group(self, prefix: Tensor, suffix: Tensor, eot: Tensor, deep: Sequence[Tensor], n_ctx: int) -> Tensor:
        """Features (C, E) of suffixes (C, S, D) behind one prefix (L, D)."""
        mask = _visible(len(prefix), suffix.shape[1], suffix.device)
        prefix = prefix[None]                                                           # (1, L, D)
        for layer, block in enumerate(self._blocks):
            if 0 < layer <= len(deep):
                assert len(deep[layer - 1]) == n_ctx
                prefix = _replace(prefix[0], deep[layer - 1])[None]
            prefix, suffix = _block(block, prefix, suffix, mask, last=layer == self.layers - 1)
        state = suffix[torch.arange(len(suffix), device=suffix.device), eot]            # (C, D)
        return self._clip.ln_final(state) @ self._clip.text_projection


def shared_length(rows: Sequence[Sequence[int]]) -> int:
    """Length of the longest common prefix of all rows that leaves each row at least one token of its own."""
    limit = min(map(len, rows)) - 1
    first = rows[0]
    return next((i for i in range(limit) if any(row[i] != first[i] for row in rows)), limit)


def _replace(prefix: Tensor, context: Tensor) -> Tensor:
    """The prefix (L, D) with `context` (M, D) at positions 1..M."""
    return torch.cat([prefix[:1], context, prefix[1 + len(context):]])


def _visible(prefix: int, suffix: int, device: torch.device) -> Tensor:
    """Which keys (L + S) a suffix's queries (S) see: the whole prefix, and of the suffix what is not later. Boolean."""
    own = torch.ones(suffix, suffix, dtype=torch.bool, device=device).tril()
    return torch.cat([torch.ones(suffix, prefix, dtype=torch.bool, device=device), own], dim=1)


def _block(block: ResidualAttentionBlock, prefix: Tensor, suffix: Tensor, mask: Tensor,
           last: bool) -> tuple[Tensor, Tensor]:
    """One block on the prefix (1, L, D) and on the suffixes (C, S, D), whose queries also see the prefix's keys.

    In the last block nobody reads the prefix any more, so it only gives keys and values.
    """
    q, k, v = _project(block.attn, block.ln_1(prefix))                                  # (1, H, L, D/H)
    q_own, k_own, v_own = _project(block.attn, block.ln_1(suffix))                      # (C, H, S, D/H)
    k_all, v_all = (torch.cat([shared.expand(len(suffix), -1, -1, -1), own], dim=2)     # (C, H, L + S, D/H)
                    for shared, own in ((k, k_own), (v, v_own)))
    suffix = _residual(block, suffix, F.scaled_dot_product_attention(q_own, k_all, v_all, attn_mask=mask))
    if not last:
        prefix = _residual(block, prefix, F.scaled_dot_product_attention(q, k, v, is_causal=True))
    return prefix, suffix


def _project(attention: nn.MultiheadAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, H, T, D/H) of states (B, T, D)."""
    qkv = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    return tuple(part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))


def _residual(block: ResidualAttentionBlock, x: Tensor, attended: Tensor) -> Tensor:
    """The rest of a block after the attention of its heads (B, H, T, D/H)."""
    x = x + block.ls_1(block.attn.out_proj(attended.transpose(1, 2).flatten(2)))
    return x + block.ls_2(block.mlp(block.ln_2(x)))
