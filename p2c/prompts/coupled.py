"""MaPLe's coupled prompts: text contexts, and mappers from these to visual prompts (arXiv 2210.03117, section 3.3).

Parameters are named as in MaPLe's published checkpoints. Shapes: M context tokens, J layers with prompts, D text width,
D_v vision width.
"""
import copy
from collections.abc import Callable, Sequence

from torch import Generator, Tensor, nn

from p2c.denoising.mapper import MLPMapper
from p2c.prompts.context import ContextLearner, Prompts, random_context, reset_linear


class MultiModalPromptLearner(ContextLearner):
    """A text context for each of the first J layers, and a mapper from each to the image tower.

    Args:
        context: (M, D), the initial context of the input.
        vision_width: D_v.
        depth: J, the input included.
        hidden_width: hidden width of the denoising mapper of the input prompts; None: one Linear, as in MaPLe.
        init: returns the random stream that a parameter group starts from, by its name.
        attributes, used: see ContextLearner.
    """

    def __init__(self, context: Tensor, vision_width: int, depth: int, hidden_width: int | None,
                 init: Callable[[str], Generator], attributes: Sequence[Tensor] = (), used: int = 0):
        super().__init__(context, attributes, used)
        text_width = context.shape[-1]
        deep = init("compound_prompts_text")
        self.compound_prompts_text = nn.ParameterList(random_context(context.shape, deep) for _ in range(depth - 1))
        self.proj: nn.Linear | MLPMapper
        if hidden_width is None:
            self.proj = reset_linear(nn.Linear(text_width, vision_width), init("proj"))
        else:
            self.proj = mapper = MLPMapper(text_width, vision_width, hidden_width)
            generator = init("mapper")
            for layer in mapper:
                if isinstance(layer, nn.Linear):
                    reset_linear(layer, generator)
        # MaPLe starts all its deep projections as copies of one layer.
        first = reset_linear(nn.Linear(text_width, vision_width), init("compound_prompt_projections"))
        self.compound_prompt_projections = nn.ModuleList(copy.deepcopy(first) for _ in range(depth - 1))

    def forward(self) -> Prompts:
        """Return all prompts; the visual ones are mapped from the clean text contexts."""
        return super().forward()._replace(
            deep_text=list(self.compound_prompts_text),
            visual=self.proj(self.ctx),
            deep_visual=[project(context) for project, context in
                         zip(self.compound_prompt_projections, self.compound_prompts_text, strict=True)],
        )
