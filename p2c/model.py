"""PromptedCLIP, the base of every method's model: a frozen CLIP whose classes are described by learned prompts.

CLIP scores an image for a class by the cosine between the image's feature and that of a text such as "a photo of a
dog.". Prompt learning replaces words of that text by trained vectors, the context. Deep prompts are such vectors at
later layers; visual prompts stand beside the image's patches.

A model takes plain arguments and knows no configuration, engine or output folder. A training step is two calls:
`draw` makes all its random numbers, and `losses` computes with them and is deterministic.

Shapes: B images, C classes, E width of the features, M context tokens, A tokens of attributes before these, D text
width.
"""
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import torch
import torch.nn.functional as F
from open_clip import CLIP
from torch import Generator, Tensor, nn

from p2c.clip.loading import Backbone
from p2c.clip.precision import Precision
from p2c.clip.text import ClassPrompts, TextTower
from p2c.clip.vision import ImageTower
from p2c.denoising.mixture import Distribution
from p2c.denoising.noise import PromptDenoising
from p2c.prompts.attributes import NO_ATTRIBUTES, Attributes
from p2c.prompts.context import (
    ContextLayout,
    PromptLearner,
    Prompts,
    TemplateLayout,
    add_noise,
    random_context,
    split_context_init,
)
from p2c.prompts.coupled import MultiModalPromptLearner
from p2c.prompts.deep import IndependentPromptLearner
from p2c.utils.logs import get_logger
from p2c.utils.streams import generator

log = get_logger(__name__)

Layout = ContextLayout | TemplateLayout  # the tokens of a class's prompt

LONGEST_START = 4  # tokens; MaPLe and IVLP start a longer context at random, whatever CTX_INIT says


@dataclass(frozen=True)
class Step:
    """One step of a training. All its random numbers are a function of seed and index.

    Attributes:
        seed: the seed of the training.
        index: the number of steps before this one.
        epoch: the number of epochs before the step's own.
        fraction: the part of the step's own epoch that is done, in [0, 1).
    """

    seed: int = 0
    index: int = 0
    epoch: int = 0
    fraction: float = 0.0

    def generator(self, name: str) -> Generator:
        """Return the random numbers called `name` of this step: a generator on the CPU."""
        return generator(self.seed, name, self.index)


class PromptedCLIP(nn.Module):
    """CLIP's two frozen towers, and a learner of the prompts with which they run.

    Only the learner is trained and saved. A subclass is called as Model(clip, classnames, **arguments), where those
    arguments that are not its own are options of this class. Its constructor sets `layout`, makes a learner, and ends
    with `finish`.

    Args:
        clip: a frozen CLIP, from `load_backbone`.
        seed: seed of the learner's start.
        denoising: noise on the text context while training (Dynamic Prompt Denoising); None: no noise.
        precision: the precision of the towers; None: that of the weights.
        text_memory: bytes that the activations of the class texts may take.

    Attributes:
        learner: the trained module; a call of it returns `Prompts`.
        layout: the tokens of a class's prompt.
        classnames: C names, in the order of the labels and logits.
        class_prompts: the classes' prompts without the learned tokens, embedded.
    """

    learner: PromptLearner
    layout: Layout
    classnames: list[str]
    class_prompts: ClassPrompts | list[ClassPrompts]

    dpd_by_default = False  # True if Dynamic Prompt Denoising is part of the method
    prompts_text = True  # False if no text context is learned, so that there is nothing to put noise on
    per_image_classes = False  # True if the features of the classes depend on the image, so that no classifier is fixed

    def __init__(self, clip: Backbone, *, seed: int = 0, denoising: PromptDenoising | None = None,
                 precision: Precision | None = None, text_memory: float = inf):
        super().__init__()
        self.backbone = clip
        self.clip: CLIP = clip.model
        self.seed = seed
        self.denoising = denoising
        self.precision = precision or Precision(self.clip.text_projection.dtype)
        self.text_tower = TextTower(self.clip, clip.tokenizer.sot_token_id, clip.tokenizer.eot_token_id, text_memory)
        self.image_tower = ImageTower(self.clip)
        self._deployed: tuple[tuple, Prompts, Tensor] | None = None  # what `deployed` depends on, and what it returns

    def finish(self, learner: PromptLearner, classnames: Sequence[str]) -> None:
        """Take the learner, which moves to CLIP's device, and the classes; the last step of a constructor."""
        self.learner = learner.to(self.device)
        self.set_classes(classnames)

    # Classes

    def set_classes(self, classnames: Sequence[str]) -> None:
        """Classify into these classes from now on.

        Raises:
            ValueError: no names, a prompt longer than the tower's context, or a word that the backbone does not know.
        """
        self.classnames = list(classnames)
        self.class_prompts = self.prepare_classes()
        self._deployed = None

    def prepare_classes(self) -> ClassPrompts | list[ClassPrompts]:
        """Return the classes' prompts, ready for `encode_text`."""
        return self.prepare(self.layout)

    def prepare(self, layout: Layout) -> ClassPrompts:
        """Embed the classes' prompts in a layout; the learned tokens are put in when the prompts are encoded."""
        return self.text_tower.prepare(*self.ids_and_slots(layout), per_class=layout.per_class)

    def ids_and_slots(self, layout: Layout) -> tuple[list[list[int]], list[list[int]]]:
        """Return the token ids of the classes' prompts in a layout, and the positions of their learned tokens."""
        return layout.ids_and_slots(self.classnames, self.backbone.tokenize, self.text_tower.sot, self.text_tower.eot)

    @property
    def device(self) -> torch.device:
        """The device of the towers."""
        return self.clip.text_projection.device

    def _apply(self, fn, *args, **kwargs):
        """Move or cast the module as torch does, and the classes' prompts with it."""
        super()._apply(fn, *args, **kwargs)
        self.set_classes(self.classnames)
        return self

    def train(self, mode: bool = True) -> "PromptedCLIP":
        """Set the learner's mode; CLIP stays in evaluation mode."""
        super().train(mode)
        self.clip.eval()
        return self

    # Features

    def encode_text(self, prompts: Prompts) -> Tensor:
        """Encode all classes: normalised features (C, E), in float32 or better."""
        context = prompts.context
        if context is not None and prompts.attributes:
            context = torch.cat([*prompts.attributes, context])
        return self.features(self.text_tower.encode, self.class_prompts, context, prompts.deep_text)

    def encode_image(self, image: Tensor, prompts: Prompts) -> Tensor:
        """Encode images (B, 3, height, width), as `preprocess` makes them: normalised features (B, E).

        The features are in float32 or better.
        """
        assert image.is_floating_point(), "Images in uint8 must be normalised first"
        return self.features(self.image_tower.encode, image, prompts.visual, prompts.deep_visual)

    def features(self, encode: Callable[..., Tensor], *inputs) -> Tensor:
        """Run a tower's function as `run_tower` does, and normalise each feature to length 1."""
        return F.normalize(self.run_tower(encode, *inputs), dim=-1)

    def run_tower(self, encode: Callable[..., Tensor], *inputs) -> Tensor:
        """Run a tower's function in the model's precision; return its features in float32 or better."""
        with self.precision.context(self.device):
            features = encode(*inputs)
        return features.to(torch.promote_types(features.dtype, torch.float32))

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Return logits (B, C), CLIP's logit scale times the cosines of normalised features (B, E) and (C, E)."""
        return self.backbone.logit_scale * image_features @ text_features.t()

    # Training

    def noise_level(self, step: Step) -> float:
        """Return sigma, the level of the noise on the text context, an absolute value; 0 without denoising."""
        return 0.0 if self.denoising is None else self.denoising.sigma(step.epoch, step.fraction)

    def draw(self, step: Step) -> dict[str, Tensor]:
        """Draw all random numbers of a step, on the CPU.

        Returns:
            With denoising {"dpd": the noise (A + M, D) on the text context}, else {}.
        """
        if self.denoising is None:
            return {}
        return {"dpd": self.text_noise(self.denoising.distribution, self.noise_level(step), "dpd", step)}

    def text_noise(self, distribution: Distribution, sigma: float, stream: str, step: Step) -> Tensor:
        """Draw noise (A + M, D) for the learned tokens of the text input: sigma times samples of a distribution.

        The context's is from the step's random stream `stream`, that of attribute i from `stream`.attribute`i`.
        """
        *attributes, context = self.learner.text_tokens()
        streams = [*(f"{stream}.attribute{i}" for i in range(1, 1 + len(attributes))), stream]
        return sigma * torch.cat([distribution.sample(tokens.shape[-2:], step.generator(name))
                                  for name, tokens in zip(streams, [*attributes, context], strict=True)])

    def losses(self, image: Tensor, label: Tensor, noise: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses of a batch by name, scalars whose sum is minimised. Draw nothing.

        Args:
            image: (B, 3, height, width), as for `encode_image`.
            label: (B,).
            noise: what `draw` returned for the step.
        """
        prompts = add_noise(self.learner(), noise.get("dpd"))
        return {"loss_ce": F.cross_entropy(self.scores(image, prompts), label)}

    def scores(self, image: Tensor, prompts: Prompts) -> Tensor:
        """Return logits (B, C) of images by prompts."""
        return self.logits(self.encode_image(image, prompts), self.encode_text(prompts))

    # Inference

    def forward(self, image: Tensor, label: Tensor | None = None, noise: dict[str, Tensor] | None = None) \
            -> Tensor | dict[str, Tensor]:
        """Return `predict` of images; with labels return `losses`, for DistributedDataParallel, which calls this."""
        return self.predict(image) if label is None else self.losses(image, label, noise or {})

    @torch.no_grad()
    def predict(self, image: Tensor) -> Tensor:
        """Return logits (B, C) of images (B, 3, height, width) by the prompts without noise.

        The classes are encoded once for all calls.
        """
        prompts, features = self.deployed()
        return self.logits(self.encode_image(image, prompts), features)

    def classifier(self) -> Tensor:
        """Return the normalised features (C, E) of the classes by the prompts without noise, see `logits`."""
        return self.deployed()[1]

    @torch.no_grad()
    def deployed(self, encode: Callable[[Prompts], Tensor] | None = None) -> tuple[Prompts, Tensor]:
        """Return what inference runs with: the prompts without noise, and the features of the classes.

        The features are kept until the learner, the classes or `encode` change.

        Args:
            encode: makes features of prompts; None: `encode_text`.
        """
        encode = encode or self.encode_text
        state = encode, [(parameter.data_ptr(), parameter._version) for parameter in self.learner.parameters()]
        if self._deployed is None or self._deployed[0] != state:
            prompts = self.learner()
            self._deployed = state, prompts, encode(prompts)
        return self._deployed[1:]

    @functools.cached_property
    def preprocess(self) -> Callable:
        """The transform from a PIL image to a tensor (3, height, width): CLIP's resizing, cropping and statistics."""
        from torchvision import transforms as T

        size = list(self.backbone.image_size)
        return T.Compose([T.Resize(max(size), T.InterpolationMode.BICUBIC), T.CenterCrop(size),
                          lambda image: image.convert("RGB"), T.ToTensor(),
                          T.Normalize(self.backbone.pixel_mean, self.backbone.pixel_std)])

    # For constructors of subclasses

    def init_stream(self, name: str) -> Generator:
        """Return the random numbers with which a group of parameters starts: a generator on the CPU."""
        return generator(self.seed, f"init.{name}")

    def start_context(self, n_ctx: int, words: str, *,
                      attributes: Attributes = NO_ATTRIBUTES, position: str = "end", classes: int = 0,
                      argument: str = "n_ctx") -> tuple[Tensor, ContextLayout]:
        """Return an initial text context (M, D), or class-specific ones (C, M, D), and the layout of its prompts.

        Args:
            n_ctx: M.
            words: text whose first M tokens start the context, and whose others follow it unlearned; "": the context
                starts from N(0, 0.02^2).
            attributes: words in the prompt with learned tokens of their own.
            position: the class name's, see `ContextLayout`.
            classes: C, for class-specific contexts; 0: one context for all classes.
            argument: the name of `n_ctx` in messages.

        Raises:
            ValueError: a length that the text tower cannot take, or fewer words than M.
        """
        text = self.text_tower
        if attributes.used and words:
            log.info("With attributes the context starts at random, as published, whatever CTX_INIT says")
            words = ""
        if not 1 <= n_ctx <= text.context_length - 3:  # [SOS], a name, [EOT]
            raise ValueError(f"{argument} must be from 1 to {text.context_length - 3}, since the text tower takes "
                             f"{text.context_length} tokens, but got {n_ctx}")
        start, fixed = split_context_init(words, n_ctx, self.backbone.tokenize)
        shape = (classes, n_ctx, text.width) if classes else (n_ctx, text.width)
        if start:
            context = self.backbone.token_embedding(start).float()
        else:
            context = random_context(shape, self.init_stream("ctx"))
        return context, ContextLayout(n_ctx, tuple(fixed), position, attributes.used, per_class=bool(classes))

    def check_depth(self, argument: str, depth: int, layers: int, least: int = 1) -> int:
        """Return a depth of prompts if a tower of so many layers can have it.

        Args:
            argument: the depth's name in messages.
            least: the smallest depth that makes sense.

        Raises:
            ValueError: it cannot.
        """
        if not least <= depth <= layers:
            raise ValueError(f"{argument} must be from {least} to {layers}, the layers of {self.backbone.name}'s "
                             f"tower, but got {depth}")
        return depth

    def image_prompts(self, tokens: int, depth: int, least: int) -> tuple[int, int, int]:
        """Return the number of image prompts in each layer, their width, and the number of layers with prompts.

        Args:
            least: the smallest depth; 0 allows a model without image prompts.

        Raises:
            ValueError: a number or depth that makes no sense, or a tower that takes no prompts.
        """
        if least == depth == 0:
            return 0, 0, 0
        tower = self.image_tower.require_prompts()
        if tokens < 1:
            raise ValueError(f"n_ctx_vision must be at least 1, but got {tokens}")
        return tokens, tower.width, self.check_depth("prompt_depth_vision", depth, tower.layers, least)


class CoupledCLIP(PromptedCLIP):
    """MaPLe's coupled prompts (arXiv 2210.03117): text contexts, and mappers that make visual prompts of them.

    Args:
        clip, classnames, options: see PromptedCLIP.
        n_ctx: M, tokens in each layer.
        ctx_init: words that start the context, if M is at most 4; "": random.
        prompt_depth: layers with prompts, the input included.
        hidden_width: width of the hidden layer in the mapper of the input prompts; None: that mapper is one Linear.
        attributes: words in the prompt with learned tokens of their own.
    """

    learner: MultiModalPromptLearner

    def __init__(self, clip: Backbone, classnames: Sequence[str], *, n_ctx: int = 2, ctx_init: str = "a photo of a",
                 prompt_depth: int = 9, hidden_width: int | None = None, attributes: Attributes = NO_ATTRIBUTES,
                 **options):
        super().__init__(clip, **options)
        image = self.image_tower.require_prompts()
        depth = self.check_depth("prompt_depth", prompt_depth, min(self.text_tower.layers, image.layers))
        words = ctx_init if n_ctx <= LONGEST_START else ""
        context, self.layout = self.start_context(n_ctx, words, attributes=attributes)
        tokens = attributes.tokens(self.text_tower.width, self.init_stream("attributes"))
        learner = MultiModalPromptLearner(context, image.width, depth, hidden_width, self.init_stream, *tokens)
        self.finish(learner, classnames)


class IndependentCLIP(PromptedCLIP):
    """Deep prompts of both towers, learned independently (IVLP, the baseline of arXiv 2210.03117, section 4.1).

    Args:
        clip, classnames, options: see PromptedCLIP.
        n_ctx_vision, n_ctx_text: tokens in each layer.
        ctx_init: words that start the context, if it has at most 4 tokens; "": random.
        prompt_depth_vision: layers with image prompts; 0: none.
        prompt_depth_text: layers with text prompts, the input included.
    """

    def __init__(self, clip: Backbone, classnames: Sequence[str], *, n_ctx_vision: int = 2, n_ctx_text: int = 2,
                 ctx_init: str = "a photo of a", prompt_depth_vision: int = 9, prompt_depth_text: int = 9, **options):
        super().__init__(clip, **options)
        words = ctx_init if n_ctx_text <= LONGEST_START else ""
        context, self.layout = self.start_context(n_ctx_text, words, argument="n_ctx_text")
        depth = self.check_depth("prompt_depth_text", prompt_depth_text, self.text_tower.layers)
        images = self.image_prompts(n_ctx_vision, prompt_depth_vision, least=0)
        self.finish(IndependentPromptLearner(context, depth, *images, self.init_stream), classnames)
