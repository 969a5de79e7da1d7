"""CoCoOp: a text context that each image shifts (Conditional Prompt Learning, arXiv 2203.05557)."""
import torch
from torch import Tensor

from p2c.framework import TRAINER_REGISTRY
from p2c.prompts.conditional import ConditionalContextLearner
from p2c.prompts.context import Prompts
from p2c.trainers.base import PromptTrainer, length_and_words


@TRAINER_REGISTRY.register()
class CoCoOp(PromptTrainer):
    """CoOp's context, plus what a small network makes of the image's feature."""

    node = "COCOOP"
    per_image_classes = True

    def build_prompts(self):
        context, class_prompts = self.text_context("N_CTX", *length_and_words(self.settings))
        return ConditionalContextLearner(context, self.text_tower.feature_width, self.init_stream("meta_net")), \
            class_prompts

    def scores(self, image: Tensor, prompts: Prompts) -> Tensor:
        """Logits (B, C): the classes are encoded once for each image."""
        image_features = self.encode_image(image, prompts)                              # (B, E)
        contexts = self.prompts.shifted(prompts.context, image_features)                # (B, M, D)
        text_features = self.encode_text(prompts._replace(context=contexts))            # (B, C, E)
        # Not a matrix product: its backward pass would be an outer product, which torch 2.14 compiles at run time.
        return self.clip.logit_scale * (text_features * image_features[:, None]).sum(-1)

    @torch.no_grad()
    def model_inference(self, input: Tensor) -> Tensor:
        return self.scores(input, self.prompts())
