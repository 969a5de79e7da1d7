"""The transformer blocks of both towers, divided into queries, keys and values, attention, and the rest.

open_clip's own block attends from all its tokens to all its tokens. Here a block may have fewer queries than keys (only
one token of the last block is read), and its keys may begin with those of a prefix. Weights are frozen, so a block
keeps only what its attention, layer norms and activation need for the backward pass.

Shapes: N sequences, T tokens, S of them with queries, D width, H heads.
"""
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor


def project(block: ResidualAttentionBlock, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return queries (..., D), and keys and values (..., 2 D), of states (..., D) that have passed `ln_1`."""
    width = x.shape[-1]
    projected = F.linear(x, block.attn.in_proj_weight, block.attn.in_proj_bias)
    return projected.split([width, 2 * width], dim=-1)


def query(block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """Return queries (..., D) of states (..., D) that have passed `ln_1`."""
    width = x.shape[-1]
    return F.linear(x, block.attn.in_proj_weight[:width], block.attn.in_proj_bias[:width])


def keys_values(block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """Return keys and values, concatenated to (..., 2 D), of states (..., D) that have passed `ln_1`."""
    width = x.shape[-1]
    return F.linear(x, block.attn.in_proj_weight[width:], block.attn.in_proj_bias[width:])


def attend(block: ResidualAttentionBlock, q: Tensor, kv: Tensor, mask: Tensor | None = None,
           causal: bool = False) -> Tensor:
    """Return the attention (N, S, D) of queries (N, S, D) to keys and values (N, T, 2 D), before its output projection.

    Args:
        mask: (S, T') or (N, 1, S, T'), whose first T columns are added to the products of queries and keys.
        causal: a query does not see the keys after its own position; needs S = T.
    """
    heads = block.attn.num_heads
    queries = q.unflatten(-1, (heads, -1)).transpose(1, 2)                              # (N, H, S, D / H)
    keys, values = kv.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)              # (N, H, T, D / H) each
    if mask is not None:
        mask = mask[..., :keys.shape[2]]
    attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=causal)
    return attended.transpose(1, 2).flatten(2)


def after_attention(block: ResidualAttentionBlock, x: Tensor, attended: Tensor) -> Tensor:
    """Apply the rest of a block to states (..., D), given the result (..., D) of `attend`."""
    x = x + block.ls_1(block.attn.out_proj(attended))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def self_attention(block: ResidualAttentionBlock, x: Tensor, first_only: bool = False) -> Tensor:
    """Apply a whole block to states (N, T, D); with `first_only` return only the first token's new state (N, 1, D)."""
    normed = block.ln_1(x)
    if first_only:
        x = x[:, :1]
        q, kv = query(block, normed[:, :1]), keys_values(block, normed)
    else:
        q, kv = project(block, normed)
    return after_attention(block, x, attend(block, q, kv))
