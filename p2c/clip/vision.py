"""CLIP's frozen image tower with prompts.

Shapes: B images, M visual prompts, D vision width, E width of the features.
"""
from collections.abc import Sequence

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from p2c.clip.blocks import self_attention


class ImageTower:
    """Runs any image tower of open_clip's as it is, and a VisionTransformer with visual prompts too."""

    def __init__(self, model: nn.Module):
        self._visual = visual = model.visual
        self._plain = isinstance(visual, VisionTransformer) and visual.attn_pool is None and \
            visual.pool_type == "tok" and visual.proj is not None and visual.transformer.batch_first and \
            all(type(block) is ResidualAttentionBlock for block in visual.transformer.resblocks)

    def require_prompts(self) -> "ImageTower":
        """Check that visual prompts can be used; returns itself.

        Raises:
            ValueError: the tower is no VisionTransformer that reads its feature at [CLS].
        """
        if not self._plain:
            raise ValueError("Visual prompts need open_clip's VisionTransformer with [CLS] pooling, but the image "
                             f"tower is a {type(self._visual).__name__}: choose a ViT (ViT-B/16, ...) or a method that "
                             "prompts the text only")
        return self

    @property
    def width(self) -> int:
        """D."""
        return self._visual.transformer.width

    @property
    def layers(self) -> int:
        """Number of transformer blocks."""
        return len(self._visual.transformer.resblocks)

    def encode(self, images: Tensor, prompts: Tensor | None = None, deep: Sequence[Tensor] = ()) -> Tensor:
        """Image features (B, E), not normalised.

        Args:
            images: (B, 3, height, width), normalised.
            prompts: (M, D) appended after the patches (no position embedding), before `ln_pre`; None: no prompts.
            deep: prompts (M, D) that replace the last M states at the entrance of layers 1, 2, ...
        """
        visual = self._visual
        images = images.to(next(visual.parameters()).dtype)
        if not self._plain:
            return visual(images)
        x = visual._embeds(images)  # (B, 1 + patches, D), after ln_pre
        if prompts is not None:  # ln_pre treats every token by itself, so they may pass through it on their own
            x = _append(x, visual.ln_pre(prompts.to(images.dtype)))
        for layer, block in enumerate(visual.transformer.resblocks):
            if 0 < layer <= len(deep):
                x = _append(x[:, :-len(prompts)], deep[layer - 1].to(x.dtype))
            x = self_attention(block, x, first_only=layer == self.layers - 1)  # nothing but [CLS] is read
        pooled, _ = visual._pool(x)
        return pooled @ visual.proj


def _append(x: Tensor, prompts: Tensor) -> Tensor:
    """States (B, T, D) followed by the same prompts (M, D) for each image."""
    return torch.cat([x, prompts.expand(len(x), -1, -1)], dim=1)
