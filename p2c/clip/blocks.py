"""The transformer blocks of both towers, divided into queries, keys and values, attention, and the rest.

open_clip's own block attends from all its tokens to all its tokens. Here a block may have fewer queries than keys (only
one token of the last block is read), and its keys may begin with those of a prefix. Weights are frozen, so a block
keeps only what its attention, layer norms and activation need for the backward pass.

Shapes: N sequences, T tokens, S of them with queries, D width, H heads.
"""
import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor

QUICK = 1.702  # of quick-GELU, x * sigmoid(1.702 x)


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
        mask: (S, T) or (N, 1, S, T), added to the products of queries and keys.
        causal: a query does not see the keys after its own position; needs S = T.
    """
    queries, keys, values = (x.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2)
                             for x in (q, *kv.chunk(2, dim=-1)))                        # (N, H, S or T, D / H)
    attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=causal)
    return attended.transpose(1, 2).flatten(2)


def finish(block: ResidualAttentionBlock, x: Tensor, attended: Tensor) -> Tensor:
    """Apply the rest of a block to states (..., D), given the result (..., D) of `attend`."""
    x = x + block.ls_1(block.attn.out_proj(attended))
    return x + block.ls_2(_mlp(block, block.ln_2(x)))


def self_attention(block: ResidualAttentionBlock, x: Tensor, first_only: bool = False) -> Tensor:
    """Apply a whole block to states (N, T, D); with `first_only` return only the first token's new state (N, 1, D)."""
    normed = block.ln_1(x)
    kv = keys_values(block, normed)
    if first_only:
        x, normed = x[:, :1], normed[:, :1]
    return finish(block, x, attend(block, query(block, normed), kv))


def _mlp(block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """Apply the two linear layers of a block and the activation between them to states (..., D) after `ln_2`.

    Quick-GELU is silu(1.702 x) / 1.702. The factors are folded into the matrix products: that takes one pass instead of
    three over the widest states, and keeps one tensor instead of two for the backward pass.
    """
    mlp = block.mlp
    if not isinstance(mlp.gelu, QuickGELU):
        return mlp(x)
    first, second = mlp.c_fc, mlp.c_proj
    hidden = torch.addmm(first.bias, x.flatten(0, -2), first.weight.t(), beta=QUICK, alpha=QUICK)
    hidden = torch.addmm(second.bias, F.silu(hidden), second.weight.t(), alpha=1 / QUICK)
    return hidden.unflatten(0, x.shape[:-1])
