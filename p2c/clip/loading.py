"""From a backbone's name to a frozen CLIP, its tokenizer and its pixel statistics.

CLIP comes from open_clip, is never edited, and runs in evaluation mode with no parameter to train.
"""
import hashlib
import json
import logging
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import open_clip
import torch
from open_clip.pretrained import get_pretrained_cfg
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

log = logging.getLogger(__name__)

# CLIP's own names. OpenAI trained with quick-GELU; open_clip's plain `ViT-B-16` would run another activation.
CLIP_NAMES = {
    "RN50": "RN50-quickgelu",
    "RN101": "RN101-quickgelu",
    "RN50x4": "RN50x4-quickgelu",
    "RN50x16": "RN50x16-quickgelu",
    "RN50x64": "RN50x64-quickgelu",
    "ViT-B/32": "ViT-B-32-quickgelu",
    "ViT-B/16": "ViT-B-16-quickgelu",
    "ViT-L/14": "ViT-L-14-quickgelu",
    "ViT-L/14@336px": "ViT-L-14-336-quickgelu",
}
TINY = "tiny-shapes"  # the backbone that ships with the package
BUILTIN = Path(__file__).parent / "builtin"
CLIP_CACHE = Path("~/.cache/clip")  # where OpenAI's package keeps its downloads
RANDOM_SEED = 0  # `random` weights are the same in every run


@dataclass
class Backbone:
    """A frozen CLIP with what prompt learning needs to know about it."""

    name: str
    model: nn.Module
    tokenizer: SimpleTokenizer
    image_size: tuple[int, int]  # height, width in pixels
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    token_std: float  # standard deviation of the token embedding over all elements of all rows that have weights
    stored_ids: frozenset[int] | None = field(default=None, repr=False)  # ids that have a row; None: all

    @property
    def logit_scale(self) -> float:
        """exp(logit_scale): what the cosine of image and text is multiplied by."""
        return self.model.logit_scale.double().exp().item()

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.model.logit_scale.device

    def tokenize(self, text: str) -> list[int]:
        """The token ids of a text, without [SOS] and [EOT].

        Raises:
            ValueError: the backbone has no embedding for a word (only a backbone with a reduced vocabulary).
        """
        ids = self.tokenizer.encode(text)
        if self.stored_ids is not None and not self.stored_ids.issuperset(ids):
            lost = [self.tokenizer.decode([i]).strip() for i in ids if i not in self.stored_ids]
            raise ValueError(f"{self.name} has no embedding for {', '.join(map(repr, lost))} in {text!r}; its vocabulary "
                             f"holds {len(self.stored_ids)} tokens only: use other words or a full CLIP")
        return ids

    def token_embedding(self, ids: list[int]) -> Tensor:
        """Rows of the token embedding, (len(ids), d_t), in float32 or better."""
        weight = _text_part(self.model).token_embedding.weight
        return weight[torch.tensor(ids, dtype=torch.long, device=weight.device)].detach()


def load_backbone(name: str, weights: str, dtype: torch.dtype = torch.float32,
                  device: torch.device | str = "cpu") -> Backbone:
    """Build and freeze a CLIP.

    Args:
        name: a name of CLIP's (`ViT-B/16`), of open_clip's, or `tiny-shapes`.
        weights: `openai`, another tag of open_clip's, `random`, `builtin` (tiny-shapes), or a file: OpenAI's TorchScript
            archive, a state dict, or safetensors.
        dtype: of weights and activations; the token and text position embeddings stay float32.

    Raises:
        ValueError: unknown name or weights, or weights that do not fit.
        FileNotFoundError: weights that are nowhere to be had.
    """
    stored_ids = None
    if name == TINY:
        model, image_mean, image_std, stored_ids = _load_tiny(weights)
    else:
        model, image_mean, image_std = _load_open_clip(name, weights)
    tokenizer = SimpleTokenizer() if name == TINY else open_clip.get_tokenizer(_open_clip_name(name))
    if not isinstance(tokenizer, SimpleTokenizer):
        raise ValueError(f"{name} has a tokenizer of its own ({type(tokenizer).__name__}); prompts need CLIP's. Choose one of "
                         f"{', '.join(CLIP_NAMES)}")
    model.eval().requires_grad_(False)
    rows = _text_part(model).token_embedding.weight
    rows = rows if stored_ids is None else rows[sorted(stored_ids)]
    token_std = rows.double().std(correction=0).item()
    _cast(model, dtype)
    return Backbone(name, model.to(device), tokenizer, tuple(model.visual.image_size), tuple(image_mean), tuple(image_std),
                    token_std, stored_ids)


def _text_part(model: nn.Module) -> nn.Module:
    """The module that holds the text tower: open_clip keeps it apart in some models and inside CLIP itself in others."""
    return getattr(model, "text", model)


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Weights and activations to `dtype`, except the embeddings that prompts are added to."""
    text = _text_part(model)
    kept = [p for p in (getattr(text, "token_embedding", nn.Module()).parameters())]
    kept += [text.positional_embedding, model.logit_scale]
    originals = [p.data for p in kept]
    model.to(dtype)
    for parameter, original in zip(kept, originals, strict=True):
        parameter.data = original if dtype.itemsize < original.dtype.itemsize else original.to(dtype)


def _open_clip_name(name: str) -> str:
    known = CLIP_NAMES.get(name, name)
    if known not in open_clip.list_models():
        raise ValueError(f"Unknown backbone '{name}'; choose from {', '.join((*CLIP_NAMES, TINY))}, or a model of open_clip's "
                         "(open_clip.list_models())")
    return known


def _load_open_clip(name: str, weights: str) -> tuple[nn.Module, tuple, tuple]:
    architecture = _open_clip_name(name)
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if weights == "random":
        model = _random(lambda: open_clip.create_model(architecture, pretrained_text=False))
    elif weights in tags:
        model = _load_tag(name, architecture, weights)
    elif weights == "builtin":
        raise ValueError(f"Only {TINY} has builtin weights, but the backbone is '{name}'; give openai, random or a file")
    else:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"No weights '{weights}' for {name}: it is neither a file nor one of random, "
                                    f"{', '.join(tags)}")
        model = _random(lambda: open_clip.create_model(architecture, pretrained_text=False))
        _load_state(model, read_state_dict(path), name, path)
    statistics = open_clip.get_model_preprocess_cfg(model)
    return model, statistics["mean"], statistics["std"]


def _random(build) -> nn.Module:
    """Build with seeded weights, leaving the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        return build()


def _load_tag(name: str, architecture: str, tag: str) -> nn.Module:
    source = get_pretrained_cfg(architecture, tag)
    url = source.get("url", "")
    if tag == "openai" and url:
        cached = CLIP_CACHE.expanduser() / url.rsplit("/", 1)[-1]
        if cached.is_file():
            expected, found = url.split("/")[-2], _sha256(cached)
            if found != expected:
                raise ValueError(f"{cached} is damaged: its SHA-256 is {found}, expected {expected}; delete it and "
                                 "download it again")
            model = _random(lambda: open_clip.create_model(architecture, pretrained_text=False))
            _load_state(model, read_state_dict(cached), name, cached)
            return model
    log.info(f"Fetching the weights '{tag}' of {name} through open_clip")
    try:
        return open_clip.create_model(architecture, pretrained=tag)
    except (OSError, RuntimeError) as error:
        hint = f" put the file of {url} at {CLIP_CACHE / url.rsplit('/', 1)[-1]}, or" if tag == "openai" and url else ""
        raise FileNotFoundError(f"The weights '{tag}' of {name} could not be fetched ({error});{hint} set "
                                "MODEL.BACKBONE.WEIGHTS to a file") from error


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors in OpenAI's TorchScript archive, a saved state dict (bare or under `state_dict`) or a safetensors file.

    Raises:
        ValueError: the file is none of these.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file
            state = load_file(path)
        elif _is_torchscript(path):
            with warnings.catch_warnings():  # its deprecation says nothing to the user of an archive from 2021
                warnings.simplefilter("ignore")
                state = torch.jit.load(path, map_location="cpu").state_dict()
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as CLIP weights ({str(error).splitlines()[0]}); give OpenAI's archive, a "
                         "state dict saved by torch, or safetensors") from error
    state = state.get("state_dict", state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict (names to tensors); give CLIP's weights")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    for scalar in ("input_resolution", "context_length", "vocab_size"):  # OpenAI's archives carry these beside the weights
        state.pop(scalar, None)
    return state


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _load_state(model: nn.Module, state: dict[str, Tensor], name: str, source: Path) -> None:
    own = model.state_dict()
    faults = [f"lacks {key}" for key in own if key not in state]
    faults += [f"has an unknown {key}" for key in state if key not in own]
    faults += [f"has {key} of shape {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
               for key in own if key in state and state[key].shape != own[key].shape]
    if faults:
        raise ValueError(f"{source} does not fit {name}: it {'; '.join(faults[:3])}"
                         + (f"; and {len(faults) - 3} faults more" if len(faults) > 3 else "")
                         + ". Set MODEL.BACKBONE.NAME to the model that the weights belong to")
    model.load_state_dict(state)


def _load_tiny(weights: str) -> tuple[nn.Module, tuple, tuple, frozenset[int] | None]:
    description = json.loads((BUILTIN / f"{TINY}.json").read_text(encoding="utf-8"))
    model = _random(lambda: open_clip.CLIP(**description["model"]))
    stored_ids = None
    if weights != "random":
        path = BUILTIN / f"{TINY}.safetensors" if weights == "builtin" else Path(weights).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"No weights '{weights}' for {TINY}; set MODEL.BACKBONE.WEIGHTS to builtin, random or a "
                                    "file")
        state = read_state_dict(path)
        ids, rows = state.pop("token_embedding.ids", None), state.pop("token_embedding.rows", None)
        if ids is not None and rows is not None:
            stored_ids = frozenset(ids.tolist())
            state["token_embedding.weight"] = torch.zeros_like(model.token_embedding.weight).index_copy_(0, ids, rows)
        _load_state(model, state, TINY, path)
    return model, description["preprocess"]["mean"], description["preprocess"]["std"], stored_ids
