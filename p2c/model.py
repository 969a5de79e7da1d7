"""PromptedCLIP, a frozen CLIP whose classes are described by learned prompts: what every method's model derives from.

A model takes plain arguments and knows no configuration, engine or folder. A training step is two calls, `draw` and
`losses`, of which the second is deterministic. Shapes: B images, C classes, E width of the features, M context tokens,
A tokens of attributes before them, D text width.
"""
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from p2c.clip.loading import Backbone
from p2c.clip.precision import Precision
from p2c.clip.text import TextTower
from p2c.clip.vision import ImageTower
from p2c.denoising.mixture import Noise
from p2c.denoising.noise import PromptDenoising
from p2c.prompts.attributes import NO_ATTRIBUTES, Attributes
from p2c.prompts.context import (
    ContextLayout,
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

MOST_WORDS = 4  # MaPLe and its relatives start longer contexts at random, whatever CTX_INIT says


@dataclass(frozen=True)
class Step:
    """One step of a training; everything random in it is a function of seed and index.

    Attributes:
        seed: of the training.
        index: steps before this one.
        epoch: whole epochs before it.
        fraction: of its epoch that is done, in [0, 1).
    """

    seed: int = 0
    index: int = 0
    epoch: int = 0
    fraction: float = 0.0

    def generator(self, name: str) -> Generator:
        """Return the random stream `name` of this step, on the CPU."""
        return generator(self.seed, name, self.index)


class PromptedCLIP(nn.Module):
    """Two frozen towers, the classes' prompts, and a learner of prompts. A subclass makes `learner` and the classes.

    Only the learner trains, and only its state is saved.

    Args:
        clip: a frozen CLIP, from `load_backbone`.
        denoising: noise on the text context while training (DPD); None: none.
        precision: in which the towers run; None: that of the weights.
        text_memory: bytes that the activations of the class texts may take.
        compiled: whether torch compiles the towers for training.

    Attributes:
        learner: a module whose call returns `Prompts`.
        classnames: C names, in the order of the logits.
    """

    learner: nn.Module
    denoises_text = False  # whether the method denoises its text context by itself (DPD)
    prompts_text = True  # whether a text context is learned, which prompt noise needs
    per_image_classes = False  # whether the class features depend on the image: then there is no one classifier

    def __init__(self, clip: Backbone, *, denoising: PromptDenoising | None = None, precision: Precision | None = None,
                 text_memory: float = inf, compiled: bool = False):
        super().__init__()
        self.backbone = clip
        self.clip = clip.model
        self.denoising = denoising
        self.precision = precision or Precision(self.clip.text_projection.dtype)
        self.text_tower = TextTower(self.clip, clip.tokenizer.sot_token_id, clip.tokenizer.eot_token_id, text_memory)
        self.image_tower = ImageTower(self.clip)
        self._compiled: dict[Callable, Callable] | None = {} if compiled else None
        self._classifier: tuple[tuple, Prompts, Tensor] | None = None

    # Classes

    def set_classes(self, classnames: Sequence[str]) -> None:
        """Take these classes from here on.

        Raises:
            ValueError: no names, a prompt longer than the tower's context, or a word that the backbone does not know.
        """
        self.classnames = list(classnames)
        self.class_prompts = self.prepare(self.layout)
        self._classifier = None

    def prepare(self, layout: ContextLayout | TemplateLayout):
        """Return the classes' prompts by a layout, embedded once since only the context changes."""
        return self.text_tower.prepare(*self.rows(layout), own=layout.per_class)

    def rows(self, layout: ContextLayout | TemplateLayout) -> tuple[list[list[int]], list[list[int]]]:
        """Return the token ids of the classes' prompts by a layout, and where their learned tokens stand."""
        return layout.rows(self.classnames, self.backbone.tokenize, self.text_tower.sot, self.text_tower.eot)

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        return self.clip.text_projection.device

    def _apply(self, fn, *args, **kwargs):
        """Move everything, the classes' prompts too."""
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
        context = torch.cat([*prompts.attributes, prompts.context]) if prompts.attributes else prompts.context
        return self.features(self.text_tower.encode, self.class_prompts, context, prompts.deep_text)

    def encode_image(self, image: Tensor, prompts: Prompts) -> Tensor:
        """Encode images (B, 3, height, width), normalised floats: normalised features (B, E), in float32 or better."""
        assert image.is_floating_point(), "Images in uint8 must be normalised first"
        return self.features(self.image_tower.encode, image, prompts.visual, prompts.deep_visual)

    def features(self, encode: Callable[..., Tensor], *inputs) -> Tensor:
        """Run a tower as `run_tower`, and normalise its rows to length 1."""
        return F.normalize(self.run_tower(encode, *inputs), dim=-1)

    def run_tower(self, encode: Callable[..., Tensor], *inputs) -> Tensor:
        """Run a tower in the model's precision; features in float32 or better."""
        if self._compiled is not None and torch.is_grad_enabled():
            encode = self._compile(encode)
        with self.precision.context(self.device):
            features = encode(*inputs)
        return features.to(torch.promote_types(features.dtype, torch.float32))

    def _compile(self, encode: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Compile a tower's function for the shapes of training; on a GPU its kernels are launched as one graph."""
        if encode not in self._compiled:
            mode = "reduce-overhead" if self.device.type == "cuda" else None
            self._compiled[encode] = torch.compile(encode, dynamic=False, mode=mode)
        return self._compiled[encode]

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Return exp(logit_scale) times the cosines (B, C) of normalised features (B, E) and (C, E)."""
        return self.backbone.logit_scale * image_features @ text_features.t()

    # Training

    def noise_level(self, step: Step) -> float:
        """Return sigma of a step, in the embedding's numbers; 0 without denoising."""
        return 0.0 if self.denoising is None else self.denoising.sigma(step.epoch, step.fraction)

    def draw(self, step: Step) -> dict[str, Tensor]:
        """Draw all noise of a step, on the CPU: "dpd" (A + M, D) where the text context is denoised."""
        if self.denoising is None:
            return {}
        return {"dpd": self.text_noise(self.denoising.noise, self.noise_level(step), "dpd", step)}

    def text_noise(self, noise: Noise, sigma: float, stream: str, step: Step) -> Tensor:
        """Draw sigma times noise (A + M, D) for the attributes' tokens and the context, each from a stream of its own.
        """
        *attributes, context = self.learner.text_tokens()
        streams = [*(f"{stream}.attribute{i}" for i in range(1, 1 + len(attributes))), stream]
        return sigma * torch.cat([noise.sample(tokens.shape[-2:], step.generator(name))
                                  for name, tokens in zip(streams, [*attributes, context], strict=True)])

    def losses(self, image: Tensor, label: Tensor, noise: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return named losses of a batch (B, 3, height, width), (B,) with a step's noise; their sum is minimised."""
        prompts = add_noise(self.learner(), noise.get("dpd"))
        return {"loss_ce": F.cross_entropy(self.scores(image, prompts), label)}

    def scores(self, image: Tensor, prompts: Prompts) -> Tensor:
        """Return logits (B, C) of images by prompts."""
        return self.logits(self.encode_image(image, prompts), self.encode_text(prompts))

    # Inference

    def forward(self, image: Tensor, label: Tensor | None = None, noise: dict[str, Tensor] | None = None):
        """Return logits (B, C) of images, without gradients; with labels and noise the losses, for data parallelism."""
        return self.predict(image) if label is None else self.losses(image, label, noise or {})

    @torch.no_grad()
    def predict(self, image: Tensor) -> Tensor:
        """Return logits (B, C) of images (B, 3, height, width); the classes are encoded once."""
        prompts, features = self.deployed()
        return self.logits(self.encode_image(image, prompts), features)

    def classifier(self) -> Tensor:
        """Return the normalised features (C, E) of the classes: exp(logit_scale) times cosines with them are logits."""
        return self.deployed()[1]

    @torch.no_grad()
    def deployed(self, encode: Callable[[Prompts], Tensor] | None = None) -> tuple[Prompts, Tensor]:
        """Return the prompts and what `encode`, by default `encode_text`, makes of them.

        It is encoded anew only if the learner, the classes or `encode` have changed.
        """
        encode = encode or self.encode_text
        state = encode, [(parameter.data_ptr(), parameter._version) for parameter in self.learner.parameters()]
        if self._classifier is None or self._classifier[0] != state:
            prompts = self.learner()
            self._classifier = state, prompts, encode(prompts)
        return self._classifier[1:]

    @functools.cached_property
    def preprocess(self) -> Callable:
        """The transform from a PIL image to a tensor (3, height, width): CLIP's resizing, cropping and statistics."""
        from torchvision import transforms as T

        size = list(self.backbone.image_size)
        return T.Compose([T.Resize(max(size), T.InterpolationMode.BICUBIC), T.CenterCrop(size),
                          lambda image: image.convert("RGB"), T.ToTensor(),
                          T.Normalize(self.backbone.pixel_mean, self.backbone.pixel_std)])

    # What the subclasses are made of

    def start_context(self, n_ctx: int, words: str, init: Callable[[str], Generator], *,
                      attributes: Attributes = NO_ATTRIBUTES, position: str = "end", classes: int = 0,
                      argument: str = "n_ctx") -> tuple[Tensor, ContextLayout]:
        """Return the start (M, D) of a text context, or (C, M, D) of one a class, and where its tokens stand.

        Args:
            words: text whose first M tokens start the context, and whose others stay; "": N(0, 0.02^2).
            init: gives the random stream that starts a parameter group.
            position: of the class name, see `ContextLayout`.
            classes: C, for a context of each class; 0: one for all.
            argument: what M is called, for messages.

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
        context = self.backbone.token_embedding(start).float() if start else random_context(shape, init("ctx"))
        return context, ContextLayout(n_ctx, tuple(fixed), position, attributes.used,
                                      per_class=bool(classes))

    def check_depth(self, argument: str, depth: int, layers: int, least: int = 1) -> int:
        """Return a depth of prompts. Raise ValueError if a tower of so many layers cannot have it."""
        if not least <= depth <= layers:
            raise ValueError(f"{argument} must be from {least} to {layers}, the layers of {self.backbone.name}'s "
                             f"tower, but got {depth}")
        return depth

    def image_prompts(self, tokens: int, depth: int, least: int) -> tuple[int, int, int]:
        """Return number, width and depth of image prompts.

        Args:
            least: the least depth; 0 allows none.

        Raises:
            ValueError: a depth or number that makes no sense, or a tower that takes no prompts.
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
        clip, classnames: see PromptedCLIP.
        n_ctx: M, tokens in each layer.
        ctx_init: words that start the context, if M is at most 4; "": random.
        prompt_depth: layers with prompts, the input included.
        hidden_width: of the input prompts' mapper as a denoising autoencoder; None: one Linear.
        attributes: words in the prompt with learned tokens of their own.
        seed: of the initial prompts.
    """

    def __init__(self, clip: Backbone, classnames: Sequence[str], *, n_ctx: int = 2, ctx_init: str = "a photo of a",
                 prompt_depth: int = 9, hidden_width: int | None = None, attributes: Attributes = NO_ATTRIBUTES,
                 seed: int = 0, **options):
        super().__init__(clip, **options)
        init = functools.partial(init_stream, seed)
        image = self.image_tower.require_prompts()
        depth = self.check_depth("prompt_depth", prompt_depth, min(self.text_tower.layers, image.layers))
        context, self.layout = self.start_context(n_ctx, ctx_init if n_ctx <= MOST_WORDS else "", init,
                                                  attributes=attributes)
        tokens = attributes.tokens(self.text_tower.width, init("attributes"))
        learner = MultiModalPromptLearner(context, image.width, depth, hidden_width, init, *tokens)
        self.learner = learner.to(self.device)
        self.set_classes(classnames)


class IndependentCLIP(PromptedCLIP):
    """Deep prompts of both towers, learned independently (IVLP, the baseline of arXiv 2210.03117, section 4.1).

    Args:
        clip, classnames: see PromptedCLIP.
        n_ctx_vision, n_ctx_text: tokens in each layer.
        ctx_init: words that start the context, if it has at most 4 tokens; "": random.
        prompt_depth_vision: layers with image prompts; 0: none.
        prompt_depth_text: layers with text prompts, the input included.
        seed: of the initial prompts.
    """

    def __init__(self, clip: Backbone, classnames: Sequence[str], *, n_ctx_vision: int = 2, n_ctx_text: int = 2,
                 ctx_init: str = "a photo of a", prompt_depth_vision: int = 9, prompt_depth_text: int = 9,
                 seed: int = 0, **options):
        super().__init__(clip, **options)
        init = functools.partial(init_stream, seed)
        words = ctx_init if n_ctx_text <= MOST_WORDS else ""
        context, self.layout = self.start_context(n_ctx_text, words, init, argument="n_ctx_text")
        depth = self.check_depth("prompt_depth_text", prompt_depth_text, self.text_tower.layers)
        images = self.image_prompts(n_ctx_vision, prompt_depth_vision, least=0)
        self.learner = IndependentPromptLearner(context, depth, *images, init).to(self.device)
        self.set_classes(classnames)


def init_stream(seed: int, name: str) -> Generator:
    """Return the random stream that starts a parameter group."""
    return generator(seed, f"init.{name}")
