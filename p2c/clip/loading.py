"""From a backbone's name to a frozen CLIP, its tokenizer and its pixel statistics.

CLIP comes from open_clip, is never edited, and runs in evaluation mode with no parameter to train.
"""
import hashlib
import json
import logging
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

import open_clip
import torch
from huggingface_hub import try_to_load_from_cache
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.pretrained import get_pretrained_cfg
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn

from p2c.clip.precision import PRECISIONS, Precision, use_sound_kernels
from p2c.utils.checksums import check_archive
from p2c.utils.logs import get_logger

log = get_logger(__name__)

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
QUICK = 1.702  # of quick-GELU
TINY = "tiny-shapes"  # the backbone that ships with the package
BUILTIN = Path(__file__).parent / "builtin"
CLIP_CACHE = Path("~/.cache/clip")  # where OpenAI's package keeps its downloads
LAYOUTS = {  # the beginning of a name in files that are not CLIP's own -> whose they are
    "vision_model.": "transformers' CLIPModel",
    "text_model.": "transformers' CLIPTextModel",
    "visual.trunk.": "open_clip's models with an image tower of timm",
    "text.": "open_clip's models with a text tower of their own",
    "prompt_learner.": "a checkpoint of learned prompts, which belongs to --model-dir",
}
RANDOM_SEED = 0  # `random` weights are the same in every run


@dataclass
class Backbone:
    """A frozen CLIP with what prompt learning needs to know about it."""

    name: str
    model: open_clip.CLIP
    tokenizer: SimpleTokenizer
    image_size: tuple[int, int]  # height, width in pixels
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    logit_scale: float  # exp(logit_scale): what the cosine of image and text is multiplied by
    token_std: float  # standard deviation of the token embedding over all elements of all rows that have weights
    sha256: str  # of the weights as they were loaded, whatever file they came in
    stored_ids: frozenset[int] | None = field(default=None, repr=False)  # ids that have a row; None: all

    @property
    def text_width(self) -> int:
        """The width of the text tower."""
        return self.model.token_embedding.weight.shape[1]

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text, without [SOS] and [EOT].

        Raises:
            ValueError: the backbone has no embedding for a word (only a backbone with a reduced vocabulary).
        """
        ids = self.tokenizer.encode(text)
        if self.stored_ids is not None and not self.stored_ids.issuperset(ids):
            lost = [self.tokenizer.decode([i]).strip() for i in ids if i not in self.stored_ids]
            raise ValueError(f"{self.name} has no embedding for {', '.join(map(repr, lost))} in {text!r}; its "
                             f"vocabulary holds {len(self.stored_ids)} tokens only: use other words or a full CLIP")
        return ids

    def word(self, token: int) -> str:
        """Return a token as it is read: a hyphen follows a piece that does not end a word."""
        piece = self.tokenizer.decoder[token]
        text = bytes(self.tokenizer.byte_decoder[letter] for letter in piece.removesuffix("</w>"))
        shown = "".join(letter if letter.isprintable() and letter != " " else f"\\u{ord(letter):04x}"
                        for letter in text.decode("utf-8", "backslashreplace"))
        return shown if piece.endswith("</w>") or token in self.tokenizer.all_special_ids else f"{shown}-"

    def token_embedding(self, ids: list[int]) -> Tensor:
        """Return rows of the token embedding, (len(ids), d_t), in float32 or better."""
        weight = self.model.token_embedding.weight
        return weight[torch.tensor(ids, dtype=torch.long, device=weight.device)].detach()


def load_backbone(name: str, weights: str, precision: Precision = PRECISIONS["fp32"],
                  device: torch.device | str = "cpu") -> Backbone:
    """Build and freeze a CLIP.

    Args:
        name: a name of CLIP's (`ViT-B/16`), of open_clip's, or `tiny-shapes`.
        weights: `openai`, another tag of open_clip's, `random`, `builtin` (tiny-shapes), or a file: OpenAI's own
            archive, a state dict, or safetensors.
        precision: of weights and activations; the token and text position embeddings stay float32.

    Raises:
        ValueError: unknown name or weights, or weights that do not fit.
        FileNotFoundError: weights that are nowhere to be had.
    """
    use_sound_kernels()
    stored_ids = None
    if name == TINY:
        model, statistics, stored_ids = _load_tiny(weights)
    else:
        model, statistics = _load_open_clip(name, weights)
    model.eval().requires_grad_(False)
    rows = model.token_embedding.weight
    token_std = (rows if stored_ids is None else rows[sorted(stored_ids)]).double().std(correction=0).item()
    digest = _digest(model)
    model.to(torch.promote_types(precision.dtype, torch.float32))
    fold_quick_gelu(model)
    _cast(model, precision)
    size = model.visual.image_size
    return Backbone(name, model.to(device), SimpleTokenizer(), (size, size) if isinstance(size, int) else tuple(size),
                    tuple(statistics["mean"]), tuple(statistics["std"]), model.logit_scale.double().exp().item(),
                    token_std, digest, stored_ids)


def named_weights(name: str) -> list[str]:
    """Return the weights of a backbone that have a name; all others are files."""
    if name == TINY:
        return ["builtin", "random"]
    return ["random", *open_clip.list_pretrained_tags_by_model(CLIP_NAMES.get(name, name))]


def _digest(model: open_clip.CLIP) -> str:
    """Return a SHA-256 of a model's tensors and their names."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@torch.no_grad()
def fold_quick_gelu(model: open_clip.CLIP) -> None:
    """Replace quick-GELU, x sigmoid(a x) = silu(a x) / a, by SiLU, with the factors a in the weights around it.

    The model computes what it did, with one kernel instead of three over its widest states, and keeps one tensor of
    these instead of two for the backward pass.
    """
    for module in model.modules():
        if isinstance(module, ResidualAttentionBlock) and isinstance(module.mlp.gelu, QuickGELU):
            module.mlp.c_fc.weight.mul_(QUICK)
            module.mlp.c_fc.bias.mul_(QUICK)
            module.mlp.c_proj.weight.div_(QUICK)
            module.mlp.gelu = nn.SiLU()


def _cast(model: open_clip.CLIP, precision: Precision) -> None:
    """Cast weights and activations, except the embeddings that prompts are added to and the logits' scale."""
    kept = (model.token_embedding.weight, model.positional_embedding, model.logit_scale)
    originals = [parameter.data for parameter in kept]
    model.to(precision.dtype)
    for module in model.modules():
        if isinstance(module, ResidualAttentionBlock):
            module.attn.to(precision.products)
            module.mlp.to(precision.products)
    for parameter, original in zip(kept, originals, strict=True):
        parameter.data = original.to(torch.promote_types(precision.dtype, torch.float32))


def _load_open_clip(name: str, weights: str) -> tuple[open_clip.CLIP, dict]:
    """Return a model of open_clip's with its weights, and the statistics of its pixels."""
    architecture = CLIP_NAMES.get(name, name)
    config = open_clip.get_model_config(architecture)
    if config is None:
        raise ValueError(f"Unknown backbone '{name}' (MODEL.BACKBONE.NAME); choose from "
                         f"{', '.join((*CLIP_NAMES, TINY))}, or a model of open_clip's (open_clip.list_models())")
    if config.get("custom_text") or "hf_tokenizer_name" in config["text_cfg"] or "multimodal_cfg" in config:
        raise ValueError(f"{name} has a text tower or tokenizer other than CLIP's, which prompts need; choose one of "
                         f"{', '.join(CLIP_NAMES)}, or another model of open_clip's with CLIP's text tower")
    statistics = {"mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD}
    if weights == "random":
        return _random(config), statistics
    if weights in named_weights(name):
        _check_activation(name, config, weights, bool(get_pretrained_cfg(architecture, weights).get("quick_gelu")))
        path = _cached_openai_file(architecture) if weights == "openai" else None
        if path is None:
            model = _fetch(name, architecture, weights)
            return model, open_clip.get_model_preprocess_cfg(model)
        published = True
    else:
        path = Path(weights).expanduser()
        if weights == "builtin":
            raise ValueError(f"Only {TINY} has builtin weights, but the backbone is '{name}'; give openai, random or a "
                             "file")
        if not path.is_file():
            raise FileNotFoundError(f"No weights '{weights}' for {name}: it is neither a file nor one of "
                                    f"{', '.join(named_weights(name))}{_others_with(architecture, weights)}")
        published = _is_openais(path)
        if published:
            _check_activation(name, config, weights, quick=True)
    model = _random(config)
    _load_state(model, read_state_dict(path, published), name, path)
    return model, statistics


def _others_with(architecture: str, tag: str) -> str:
    """Return the end of a message, naming other models of open_clip's that have weights of a name; "" if none has."""
    models = open_clip.list_pretrained_models_by_tag(tag)
    family = architecture.removesuffix("-quickgelu")
    same = [model for model in models if model.removesuffix("-quickgelu") == family]
    return f"; MODEL.BACKBONE.NAME {' or '.join((same or models)[:5])} has weights '{tag}'" if models else ""


def _check_activation(name: str, config: dict, weights: str, quick: bool) -> None:
    """Refuse weights that were trained with another GELU than the model runs; open_clip only warns."""
    if quick != bool(config.get("quick_gelu")):
        other = CLIP_NAMES.get(name, name).removesuffix("-quickgelu") + ("-quickgelu" if quick else "")
        raise ValueError(f"The weights '{weights}' were trained with {'quick-' if quick else 'plain '}GELU, which "
                         f"{name} does not run; set MODEL.BACKBONE.NAME to {other}")


def _random(config: dict) -> open_clip.CLIP:
    """Build a CLIP of an open_clip configuration with seeded weights; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        return open_clip.CLIP(**config)


def openai_file(name: str) -> Path | None:
    """Return the file of OpenAI's weights of a model on this machine; None: they would be fetched.

    Raises:
        ValueError: OpenAI's own download is damaged.
    """
    architecture = CLIP_NAMES.get(name, name)
    repository = get_pretrained_cfg(architecture, "openai").get("hf_hub", "").rstrip("/")
    files = (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME) if repository else ()
    fetched = (try_to_load_from_cache(repository, file) for file in files)
    return _cached_openai_file(architecture) or next((Path(path) for path in fetched if isinstance(path, str)), None)


def openai_url(name: str) -> str:
    """Return the URL of OpenAI's weights of a model."""
    return get_pretrained_cfg(CLIP_NAMES.get(name, name), "openai").get("url", "")


def _cached_openai_file(architecture: str) -> Path | None:
    """Return the file of OpenAI's own download of a model, if CLIP's cache has it.

    Raises:
        ValueError: it is damaged.
    """
    url = openai_url(architecture)
    cached = CLIP_CACHE.expanduser() / url.rsplit("/", 1)[-1]
    if not cached.is_file():
        return None
    expected, found = url.split("/")[-2], _sha256(cached)
    if found != expected:
        raise ValueError(f"{cached} is damaged: its SHA-256 is {found}, expected {expected}; delete it and download it "
                         "again")
    return cached


def _is_openais(path: Path) -> bool:
    """Return whether a file is, by its hash, the archive that OpenAI published of any model."""
    digest = _sha256(path)
    return any(f"/{digest}/" in openai_url(name) for name in CLIP_NAMES)


def _fetch(name: str, architecture: str, tag: str) -> open_clip.CLIP:
    """Download through open_clip, which keeps its own cache."""
    log.info(f"Fetching the weights '{tag}' of {name} through open_clip (gives up after a minute without a network)")
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)  # the libraries tell of each of a dozen attempts; the error below says it once
    try:
        return open_clip.create_model(architecture, pretrained=tag)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(f"The weights '{tag}' of {name} could not be fetched ({_root_cause(error)}); set "
                                "MODEL.BACKBONE.WEIGHTS to a file, or put OpenAI's archive (such as ViT-B-16.pt) into "
                                f"{CLIP_CACHE}") from error
    finally:
        logging.disable(disabled)


def _root_cause(error: BaseException) -> str:
    """Return the message of the error that an error began with, without line breaks."""
    while previous := error.__cause__ or error.__context__:
        error = previous
    return " ".join(str(error).split()) or type(error).__name__


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_state_dict(path: Path, published: bool = False) -> dict[str, Tensor]:
    """Read the tensors of OpenAI's TorchScript archive, a saved state dict (bare or under `state_dict`) or safetensors.

    Args:
        published: the file is known to be OpenAI's own by its hash, so that torch may run the code in it.

    Raises:
        ValueError: the file is none of these.
    """
    content: object
    try:
        script = _is_torchscript(path)
        if not published:  # its hash has been compared, and every start of a run would read hundreds of MB once more
            check_archive(path)
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        elif not script or published:
            with warnings.catch_warnings():  # of how a foreign file was written; what matters raises
                warnings.simplefilter("ignore")
                content = torch.jit.load(path, map_location="cpu").state_dict() if script else _load_plain(path)
    except Exception as error:
        remedy = "give OpenAI's archive, a state dict saved by torch, or safetensors"
        if objects := _other_objects(path, error):
            raise ValueError(f"{path} cannot be read as CLIP weights: it also holds other objects ({objects}), and "
                             f"loading these may run code; {remedy}. Of a file that you trust, torch.save(torch.load("
                             f"{str(path)!r}, weights_only=False)['state_dict'], FILE) saves the state dict; if it "
                             "holds a whole model, write .state_dict() in place of ['state_dict']") from error
        raise ValueError(f"{path} cannot be read as CLIP weights ({type(error).__name__}); {remedy}") from error
    if script and not published:
        raise ValueError(f"{path} is a TorchScript archive other than OpenAI's, and loading one runs the code in it; "
                         f"if you trust it, convert it by torch.save(torch.jit.load({str(path)!r}).state_dict(), FILE) "
                         "and set MODEL.BACKBONE.WEIGHTS to FILE")
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not _is_state_dict(state):
        raise ValueError(f"{path} holds no state dict (names to tensors), bare or as 'state_dict': "
                         f"{_describe(content, path)}")
    tensors = {key.removeprefix("module."): value for key, value in state.items()}
    for scalar in ("input_resolution", "context_length", "vocab_size"):  # OpenAI's archives carry these as well
        tensors.pop(scalar, None)
    return tensors


class _Ignored:
    """Stands for a NumPy number or array in a checkpoint: harmless, but not among the weights."""

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        pass


# The functions that pickles call for these; NumPy 2 has moved two of them.
NUMPY = ("numpy.dtype", "numpy.ndarray", *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core")
                                           for name in ("scalar", "_reconstruct")))  # fmt: skip


def _load_plain(path: Path) -> object:
    """Read a file of torch.save without running code from it; NumPy's numbers and arrays in it are ignored."""
    with torch.serialization.safe_globals([(_Ignored, name) for name in NUMPY]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _other_objects(path: Path, error: Exception) -> str:
    """Return the names of the first objects for which torch refused a file; "" if it had another reason."""
    if not isinstance(error, pickle.UnpicklingError) or not zipfile.is_zipfile(path):
        return ""
    names = [name for name in torch.serialization.get_unsafe_globals_in_checkpoint(path) if name not in NUMPY]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _is_state_dict(content: object) -> TypeGuard[Mapping[str, Tensor]]:
    """Return whether an object is a non-empty dict from names to tensors."""
    return isinstance(content, Mapping) and bool(content) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())


def _describe(content: object, path: Path) -> str:
    """Return what a file holds, and how to save a state dict in it alone."""
    if not isinstance(content, Mapping):
        return f"it holds a {type(content).__name__}; give CLIP's weights"
    keys = ", ".join(map(repr, list(content)[:5])) or "nothing"
    named = [key for key, value in content.items() if _is_state_dict(value)]
    if not named:
        return f"it holds {keys}{' and more' if len(content) > 5 else ''}; give CLIP's weights"
    return (f"it holds {keys}; save its {named[0]!r} alone by torch.save(torch.load({str(path)!r})[{named[0]!r}], FILE)"
            " and set MODEL.BACKBONE.WEIGHTS to FILE")


def _is_torchscript(path: Path) -> bool:
    """Return whether a file is a zip with the constants that only a TorchScript archive has."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _load_state(model: open_clip.CLIP, state: dict[str, Tensor], name: str, source: Path) -> None:
    """Load weights from a file. Raise ValueError if they are not those of the model, naming a few differences."""
    own = model.state_dict()
    faults = [f"lacks {key}" for key in own if key not in state]
    faults += [f"has an unknown {key}" for key in state if key not in own]
    faults += [f"has {key} of shape {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
               for key in own if key in state and state[key].shape != own[key].shape]
    if faults:
        for start, layout in LAYOUTS.items():
            if any(key.startswith(start) for key in state):
                raise ValueError(f"{source} has the layout of {layout}; set MODEL.BACKBONE.WEIGHTS to a file in "
                                 f"OpenAI's or open_clip's layout, or to one of {', '.join(named_weights(name))}")
        raise ValueError(f"{source} does not fit {name}: it {'; '.join(faults[:3])}"
                         + (f"; and {len(faults) - 3} faults more" if len(faults) > 3 else "")
                         + ". Set MODEL.BACKBONE.NAME to the model that the weights belong to")
    model.load_state_dict(state)


def _load_tiny(weights: str) -> tuple[open_clip.CLIP, dict, frozenset[int] | None]:
    """Return tiny-shapes with its weights, the statistics of its pixels, and the ids of tokens that have weights."""
    description = json.loads((BUILTIN / f"{TINY}.json").read_text(encoding="utf-8"))
    model, statistics = _random(description["model"]), description["preprocess"]
    if weights == "random":
        return model, statistics, None
    path = BUILTIN / f"{TINY}.safetensors" if weights == "builtin" else Path(weights).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"No weights '{weights}' for {TINY}; set MODEL.BACKBONE.WEIGHTS to builtin, random or "
                                "a file")
    state = read_state_dict(path)
    stored_ids = None
    if "token_embedding.ids" in state:  # only the rows that its captions needed are stored
        ids, rows = state.pop("token_embedding.ids"), state.pop("token_embedding.rows", torch.empty(0))
        count, width = model.token_embedding.weight.shape
        if ids.dtype != torch.int64 or not len(ids) or rows.shape != (*ids.shape, width) or \
                not 0 <= ids.min() <= ids.max() < count:
            raise ValueError(f"{path} does not fit {TINY}: its token ids and rows do not belong together; set "
                             "MODEL.BACKBONE.WEIGHTS to builtin, random or another file")
        state["token_embedding.weight"] = torch.zeros_like(model.token_embedding.weight).index_copy_(0, ids, rows)
        stored_ids = frozenset(ids.tolist())
    _load_state(model, state, TINY, path)
    return model, statistics, stored_ids
