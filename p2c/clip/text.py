"""CLIP's frozen text tower on prompts that share a prefix (shared-prefix encoding, exact up to rounding).

Attention is causal and the feature is read at [EOT]. So nothing after [EOT] is computed, and the prefix that all
classes share ([SOS], the learned context, fixed words) is computed once: its states depend on the class names in no
layer. Deep prompts do not change this, since they replace positions of the prefix only. With class-specific contexts,
or a context after the class name, only [SOS] is shared. Suffixes of similar lengths form buckets, and all suffixes are
concatenated: everything but the attention runs on all their tokens at once.

Shapes: C classes, n of them in a bucket, M learned tokens, N of them replaced in deeper layers, L tokens of the prefix,
S of each suffix in a bucket, T of all suffixes, P prefixes (1, or one per image), D text width, E feature width.
"""
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf

import torch
from open_clip import CLIP
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from p2c.clip.blocks import after_attention, attend, keys_values, project, query

# What a bucket costs, in tokens: a few in arithmetic on a CPU, many in launches on a GPU.
BUCKET_COST = {"cpu": 16, "cuda": 512}


@dataclass(frozen=True)
class Bucket:
    """Classes whose suffixes are padded to one length. The masks are added to the products of queries and keys."""

    classes: int  # n
    length: int  # S
    mask: Tensor  # (S, L + S and a few more): a token sees the whole prefix and the suffix up to itself
    last: Tensor  # (n, 1, 1, the same): the row of the mask at each class's [EOT]

    def part(self, start: int, stop: int) -> "Bucket":
        """Return the bucket of the classes from `start` to before `stop`."""
        return Bucket(stop - start, self.length, self.mask, self.last[start:stop])


@dataclass(frozen=True)
class ClassPrompts:
    """The prompts of C classes: embeddings, with positions, of a shared prefix and of each class's own suffix."""

    prefix: Tensor  # (L, D)
    suffix: Tensor  # (T, D), all suffixes in the order of the buckets, in the tower's precision
    buckets: tuple[Bucket, ...]
    eot: Tensor  # (C,) indices of [EOT] in the suffixes, in the order of the buckets
    order: Tensor  # (C,) index of each class in the order of the buckets
    slots: Tensor  # (M,) indices of the learned tokens in the prefix, or (C, M) in the suffixes
    positions: Tensor  # (M, D) or (C, M, D) position embeddings of the learned tokens

    @property
    def per_class(self) -> bool:
        """True if the learned tokens are in each class's suffix, not in the prefix."""
        return self.slots.ndim == 2


class TextTower:
    """The frozen text tower of a CLIP, run with prompts.

    Args:
        model: an open_clip CLIP.
        sot, eot: ids of [SOS] and [EOT].
        memory: bytes that the suffixes' activations may take.

    Raises:
        ValueError: the tower is not causal, or its pooling or blocks do not allow shared-prefix encoding.
    """

    def __init__(self, model: CLIP, sot: int, eot: int, memory: float = inf):
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
        self._memory = memory

    @property
    def width(self) -> int:
        """The text width D."""
        return self._clip.token_embedding.weight.shape[1]

    @property
    def feature_width(self) -> int:
        """The feature width E."""
        return self._clip.text_projection.shape[1]

    @property
    def layers(self) -> int:
        """The number of transformer blocks."""
        return len(self._blocks)

    @property
    def context_length(self) -> int:
        """The largest number of tokens of a text, [SOS] and [EOT] included."""
        return self._clip.positional_embedding.shape[0]

    @property
    def _dtype(self) -> torch.dtype:
        return self._clip.text_projection.dtype

    @torch.no_grad()
    def prepare(self, rows: Sequence[Sequence[int]], slots: Sequence[Sequence[int]] = (),
                per_class: bool = False) -> ClassPrompts:
        """Embed the prompts of all classes, once: only the context changes during training.

        Args:
            rows: token ids of each class's prompt with [SOS] and [EOT]; learned tokens hold any id.
            slots: for each class the positions of its learned tokens, in the context's order; (): nothing is learned.
            per_class: True for class-specific contexts.

        Raises:
            ValueError: no prompts, or a prompt longer than the tower's context.
        """
        if not rows:
            raise ValueError("There are no class names to make prompts from")
        longest = max(rows, key=len)
        if len(longest) > self.context_length:
            raise ValueError(f"The prompt of label {rows.index(longest)} has {len(longest)} tokens, but the text tower "
                             f"takes {self.context_length} at most: use a shorter context (N_CTX, CTX_INIT) or shorter "
                             "class names")
        slots = [list(places) for places in slots] or [[]] * len(rows)
        shared = shared_length(rows)
        if any(places != slots[0] or max(places, default=0) >= shared for places in slots):
            per_class = True  # the learned tokens are not all in the shared prefix
        shared = 1 if per_class else shared
        positions = self._clip.positional_embedding
        device = positions.device
        lengths = [len(row) - shared for row in rows]
        sizes = bucket_lengths(lengths, BUCKET_COST.get(device.type, 0))
        padded = [min(size for size in sizes if size >= length) for length in lengths]
        by_length = sorted(range(len(rows)), key=padded.__getitem__)
        starts = dict(zip(by_length, accumulate((padded[c] for c in by_length), initial=0), strict=False))

        def on_device(numbers: Sequence) -> Tensor:
            return torch.tensor(numbers, dtype=torch.long, device=device)

        def embed(rows: Sequence[Sequence[int]], start: int) -> Tensor:
            ids = on_device([i for row in rows for i in row])
            places = on_device([place for row in rows for place in range(start, start + len(row))])
            return self._clip.token_embedding(ids) + positions[places]

        buckets = []
        for size in sizes:
            mask = _mask(shared, size, self._blocks[0].attn.in_proj_weight.dtype, device)
            ends = [lengths[c] - 1 for c in by_length if padded[c] == size]
            buckets.append(Bucket(len(ends), size, mask, mask[on_device(ends)][:, None, None]))
        suffixes = [[*rows[c][shared:], *[self.eot] * (padded[c] - lengths[c])] for c in by_length]
        places: Sequence = slots[0]
        if per_class:
            places = [[starts[c] + place - shared for place in slots[c]] for c in range(len(rows))]
        order = [0] * len(rows)  # the inverse of by_length
        for index, c in enumerate(by_length):
            order[c] = index
        return ClassPrompts(prefix=embed([rows[0][:shared]], 0), suffix=embed(suffixes, shared).to(self._dtype),
                            buckets=tuple(buckets), eot=on_device([starts[c] + lengths[c] - 1 for c in by_length]),
                            order=on_device(order), slots=on_device(places),
                            positions=positions[on_device(slots if per_class else slots[0])])

    def encode(self, prompts: ClassPrompts, context: Tensor | None = None, deep: Sequence[Tensor] = ()) -> Tensor:
        """Return text features (C, E), not normalised; (P, C, E) for P contexts.

        The memory of activations is bounded: suffixes that do not fit are encoded in parts, which in training are
        encoded again in the backward pass.

        Args:
            context: learned tokens at the input, without positions: (M, D); or class-specific ones, (C, M, D), if the
                prompts were prepared for these; or else (P, M, D), with each of which all classes are encoded. None:
                the prompts as they were written.
            deep: prompts (N, D) that replace the states of the last N learned tokens at the input of layers 1, 2, ...;
                only if all classes share the context.
        """
        prefix, suffix = prompts.prefix, prompts.suffix
        several = context is not None and context.ndim == 3 and not prompts.per_class
        if context is not None:
            context = context.to(prefix.dtype) + prompts.positions
            if prompts.per_class:
                suffix = suffix.index_copy(0, prompts.slots.flatten(), context.to(suffix.dtype).flatten(0, 1))
            else:
                prefix = _put(prefix, prompts.slots, context)
        prefix = prefix.to(self._dtype) if several else prefix.to(self._dtype)[None]    # (P, L, D)
        assert not (deep and prompts.per_class), "deep prompts need a context that all classes share"
        shared = self._encode_prefix(prefix, [prompt.to(self._dtype) for prompt in deep], prompts.slots)
        training = any(states.requires_grad for states in (suffix, *shared))
        parts = self._parts(prompts.buckets, prefix.shape[0], prefix.shape[1], training)
        tokens = list(map(_tokens, parts))
        ends = prompts.eot.split([sum(bucket.classes for bucket in buckets) for buckets in parts])
        starts = accumulate(tokens[:-1], initial=0)
        features = []
        for buckets, states, eot, start in zip(parts, suffix.split(tokens), ends, starts, strict=True):
            inputs = states, eot - start, buckets, shared
            # The last part keeps its activations: the backward pass starts with it, and frees them before other parts.
            features.append(self._encode_suffixes(*inputs) if buckets is parts[-1] or not training else
                            checkpoint(self._encode_suffixes, *inputs, use_reentrant=False, preserve_rng_state=False))
        ordered = _join(features).index_select(1, prompts.order)                        # (P, C, E)
        return ordered if several else ordered[0]

    def _encode_prefix(self, prefix: Tensor, deep: Sequence[Tensor], slots: Tensor) -> list[Tensor]:
        """Return the keys and values (P, L, 2 D) of prefixes (P, L, D) in each layer, for the suffixes."""
        shared = []
        for layer, block in enumerate(self._blocks):
            if 0 < layer <= len(deep):
                prefix = _put(prefix, slots[-len(deep[layer - 1]):], deep[layer - 1])
            normed = block.ln_1(prefix)
            if layer == self.layers - 1:  # the last block's states of the prefix are never read
                shared.append(keys_values(block, normed))
            else:
                q, kv = project(block, normed)
                shared.append(kv)
                prefix = after_attention(block, prefix, attend(block, q, kv, causal=True))
        return shared

    def _encode_suffixes(self, x: Tensor, eot: Tensor, buckets: Sequence[Bucket], shared: Sequence[Tensor]) -> Tensor:
        """Return features (P, C, E) of the suffixes x (T, D) of C classes, after each of P prefixes.

        Args:
            eot: (C,) indices of [EOT] in x.
            shared: the prefixes' keys and values (P, L, 2 D) in each layer.
        """
        x = x[None]                                                                     # (1 or P, T, D)
        for layer, (block, prefix) in enumerate(zip(self._blocks, shared, strict=True)):
            last = layer == self.layers - 1
            normed = block.ln_1(x)
            if last:  # only the states at [EOT] are read
                x, kv = x.index_select(1, eot), keys_values(block, normed)              # (P, C, D)
                q = query(block, normed.index_select(1, eot))
            else:
                q, kv = project(block, normed)
            x = after_attention(block, x, _attend_buckets(block, q, kv, prefix, buckets, last))
        return self._clip.ln_final(x) @ self._clip.text_projection

    def _parts(self, buckets: Sequence[Bucket], prefixes: int, shared: int, training: bool) -> list[list[Bucket]]:
        """Divide the buckets into as few parts as fit into the memory; the last part is as large as possible."""
        limit = self._memory / (prefixes * self._token_bytes(buckets, shared, training))
        parts: list[list[Bucket]] = [[]]
        for bucket in reversed(buckets):
            stop = bucket.classes
            while stop:
                room = int(min(stop, (limit - _tokens(parts[-1])) / bucket.length))
                if room < 1 and parts[-1]:
                    parts.append([])
                    continue
                start = max(0, stop - max(1, room))
                parts[-1].insert(0, bucket.part(start, stop))
                stop = start
        return parts[::-1]

    def _token_bytes(self, buckets: Sequence[Bucket], shared: int, training: bool) -> float:
        """Estimate the bytes of activations per token of the suffixes and prefix.

        In training every layer keeps: the states before both layer norms (2 D, in the residual stream's precision); the
        queries (D), the keys and values of prefix and suffix (2 D (L + S) / S), the attention's result (D) and the
        input of the activation (4 D), in the precision of matrix products; and in float32 the layer norms' statistics
        and the attention's normalisers (4 + H, for H heads). Without gradients only the running block has activations:
        its states, and at most twice the activation's input.
        """
        residual = self._clip.text_projection.element_size()
        product = self._blocks[0].attn.in_proj_weight.element_size()
        classes = sum(bucket.classes for bucket in buckets)
        attention = 2 + 2 * (1 + shared * classes / _tokens(buckets))
        hidden = self._blocks[0].mlp.c_fc.out_features / self.width
        block = self.width * (2 * residual + (attention + hidden) * product) + 4 * (4 + self._blocks[0].attn.num_heads)
        return block * self.layers if training else block + self.width * hidden * product


def bucket_lengths(lengths: Sequence[int], cost: int) -> list[int]:
    """Return the lengths to which sequences are padded, such that tokens and buckets together cost the least.

    Args:
        cost: of a bucket, in tokens.
    """
    counts = sorted(Counter(lengths).items())
    best: list[tuple[int, list[int]]] = [(0, [])]  # [j]: cost and buckets of the sequences with the j shortest lengths
    for j, (longest, _) in enumerate(counts, 1):
        candidates = []
        for i in range(j):  # the last bucket holds the sequences of the lengths i to j - 1, padded to the longest
            before, buckets = best[i]
            sequences = sum(count for _, count in counts[i:j])
            candidates.append((before + sequences * longest + cost, [*buckets, longest]))
        best.append(min(candidates))
    return best[-1][1]


def shared_length(rows: Sequence[Sequence[int]]) -> int:
    """Return the length of the longest common prefix of all rows that leaves each row at least one token."""
    limit = min(map(len, rows)) - 1
    for i in range(limit):
        if any(row[i] != rows[0][i] for row in rows):
            return i
    return limit


def _put(states: Tensor, slots: Tensor, tokens: Tensor) -> Tensor:
    """Return states (L, D) or (P, L, D) with tokens (M, D) or (P, M, D) in their slots (M,)."""
    if tokens.ndim > states.ndim:
        states = states.expand(len(tokens), -1, -1)
    elif tokens.ndim < states.ndim:
        tokens = tokens.expand(len(states), -1, -1)
    return states.index_copy(-2, slots, tokens)


def _mask(prefix: int, suffix: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a bucket's mask (S, W) for S tokens after L: 0 where a token sees another, else -inf.

    W is L + S rounded up to a multiple of 8, which memory-efficient attention needs and would make by copies.
    """
    width = (prefix + suffix + 7) // 8 * 8
    return torch.full((suffix, width), -inf, dtype=dtype, device=device).triu(prefix + 1)


def _tokens(buckets: Sequence[Bucket]) -> int:
    """Count the tokens of some buckets' suffixes, T."""
    return sum(bucket.classes * bucket.length for bucket in buckets)


def _attend_buckets(block: ResidualAttentionBlock, q: Tensor, kv: Tensor, prefix: Tensor, buckets: Sequence[Bucket],
                    last: bool) -> Tensor:
    """Return the attention (P, T, D) of all buckets; in the last block only [EOT] has queries, (P, C, D).

    Args:
        q, kv: (1 or P, T or C, D) and (1 or P, T, 2 D), the queries, keys and values of all suffixes.
        prefix: (P, L, 2 D), keys and values of the prefixes.
    """
    prefixes, attended = len(prefix), []
    sizes = [bucket.classes * bucket.length for bucket in buckets]
    query_sizes = [bucket.classes for bucket in buckets] if last else sizes
    for bucket, bucket_q, bucket_kv in zip(buckets, q.split(query_sizes, 1), kv.split(sizes, 1), strict=True):
        n = bucket.classes
        bucket_q = bucket_q.expand(prefixes, -1, -1).unflatten(1, (n, -1))              # (P, n, S or 1, D)
        bucket_kv = bucket_kv.expand(prefixes, -1, -1).unflatten(1, (n, -1))            # (P, n, S, 2 D)
        seen = torch.cat([prefix[:, None].expand(-1, n, -1, -1), bucket_kv], dim=2)     # (P, n, L + S, 2 D)
        mask = bucket.last if last else bucket.mask
        if last and prefixes > 1:
            mask = mask.repeat(prefixes, 1, 1, 1)
        result = attend(block, bucket_q.flatten(0, 1), seen.flatten(0, 1), mask)        # (P n, S or 1, D)
        attended.append(result.unflatten(0, (prefixes, n)).flatten(1, 2))
    return _join(attended)


def _join(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate along the second dimension; torch would copy a single tensor."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)  # type: ignore[arg-type]
