"""CLIP's frozen image tower with prompts.

Shapes: B images, M visual prompts, D vision width, E feature width.
"""
from collections.abc import Sequence

import torch
from open_clip import CLIP
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor

from p2c.clip.blocks import self_attention


class ImageTower:
    """Any image tower of open_clip; a VisionTransformer with [CLS] pooling can also run with visual prompts."""

    def __init__(self, model: CLIP):
        self._visual = visual = model.visual
        self._takes_prompts = isinstance(visual, VisionTransformer) and visual.attn_pool is None and \
            visual.pool_type == "tok" and visual.proj is not None and visual.transformer.batch_first and \
            all(type(block) is ResidualAttentionBlock for block in visual.transformer.resblocks)

    def require_prompts(self) -> "ImageTower":
        """Return this tower after checking that it can run with visual prompts.

        Raises:
            ValueError: the tower is not a VisionTransformer with [CLS] pooling.
        """
        if not self._takes_prompts:
            raise ValueError("Visual prompts need open_clip's VisionTransformer with [CLS] pooling, but the image "
                             f"tower is a {type(self._visual).__name__}: choose a ViT (ViT-B/16, ...) or a method with "
                             "text prompts only")
        return self

    @property
    def width(self) -> int:
        """The vision width D."""
        return self._visual.transformer.width

    @property
    def layers(self) -> int:
        """The number of transformer blocks."""
        return len(self._visual.transformer.resblocks)

    def encode(self, images: Tensor, prompts: Tensor | None = None, deep: Sequence[Tensor] = ()) -> Tensor:
        """Return image features (B, E), not normalised.

        Args:
            images: (B, 3, height, width), normalised.
            prompts: (M, D), appended to the patches without position embeddings, before `ln_pre`; None: no prompts.
            deep: prompts (M, D) that replace the last M states at the input of layers 1, 2, ...; only with `prompts`.
        """
        visual = self._visual
        images = images.to(next(visual.parameters()).dtype)
        if not self._takes_prompts:
            return visual(images)
        x = visual._embeds(images)  # (B, 1 + patches, D), after ln_pre
        if prompts is not None:  # ln_pre acts on each token separately, so the prompts can be normalised on their own
            x = _append(x, visual.ln_pre(prompts.to(images.dtype)))
        for layer, block in enumerate(visual.transformer.resblocks):
            if 0 < layer <= len(deep):
                prompt = deep[layer - 1]
                x = _append(x[:, :-len(prompt)], prompt.to(x.dtype))
            x = self_attention(block, x, first_only=layer == self.layers - 1)  # only [CLS] is read
        pooled, _ = visual._pool(x)
        return pooled @ visual.proj


def _append(x: Tensor, prompts: Tensor) -> Tensor:
    """Append the same prompts (M, D) to the states (B, T, D) of each image."""
    return torch.cat([x, prompts.expand(x.shape[0], -1, -1)], dim=1)
