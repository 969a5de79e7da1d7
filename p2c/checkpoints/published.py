"""Published checkpoints: their entries under our names, and messages for those that do not fit.

Files of CoOp and CoCoOp hold only the learner. Those of MaPLe, IVLP, VPT and PromptSRC hold all of CLIP as well as
`prompt_learner.*`; the deep prompts of the last three are inside the towers (`VPT`, `VPT_shallow`). Files of ATPrompt
and of P2C's preview are like CoOp's or MaPLe's.
"""
import re
from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

DEEP = re.compile(r"(image|text)_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow")
CLIP = ("image_encoder.", "text_encoder.", "ZS_image_encoder.", "logit_scale")  # prefixes of CLIP's own tensors


def learned_entries(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the learned entries, under our names, of a state dict of ours or of the published code.

    CLIP's own tensors are left out. Embeddings of class names are kept: `trainable.load_state_dict` ignores them.
    """
    names = {key: _our_name(key) for key in state}
    return {name: state[key] for key, name in names.items() if name is not None}


def _our_name(key: str) -> str | None:
    """Return our name of an entry of the published code or of ours; None for CLIP's own tensors."""
    name = key.removeprefix("prompt_learner.")
    if name == "image_encoder.VPT":
        return "images.0"
    if layer := DEEP.fullmatch(name):
        return f"images.{layer[2]}" if layer[1] == "image" else f"deep_text.{int(layer[2]) - 1}"
    if name.startswith(CLIP):
        return None
    return name.replace("proj.fc1.", "proj.0.").replace("proj.fc2.", "proj.2.")


def differences(saved: Mapping[str, Tensor], learner: Mapping[str, Tensor], settings: Collection[str],
                backbone: str) -> list[str]:
    """Describe how the prompts in a file differ from a learner's in method, backbone or size; [] if they do not.

    Args:
        saved, learner: entries under our names.
        settings: the keys of the settings that the learner was built from, which messages may name.
        backbone: name of the learner's backbone.
    """
    kinds = _kind(saved), _kind(learner)
    if not all(kinds):
        return []
    if kinds[0] != kinds[1]:
        return [f"it holds prompts of {kinds[0]}, but the learner is of {kinds[1]}"]
    file, here = _sizes(saved), _sizes(learner)

    def compare(what: str, sentence: str, *keys: str) -> list[str]:
        if None in (file[what], here[what]) or file[what] == here[what]:
            return []
        key = next((f" ({key})" for key in keys if key in settings), "")
        return [sentence.format(file[what], here[what]) + key]

    return [
        *(fault for what in ("text", "vision", "feature") for fault in
          compare(f"{what} width", f"its {what} width is {{}}, {backbone}'s is {{}}: another backbone")),
        *compare("layers", "it has text prompts in {} layers, the settings say {}", "PROMPT_DEPTH_TEXT",
                 "PROMPT_DEPTH"),
        *compare("image layers", "it has image prompts in {} layers, the settings say {}", "PROMPT_DEPTH_VISION"),
        *compare("tokens", "its context has {} tokens, here {}", "N_CTX_TEXT", "N_CTX"),
        *compare("image tokens", "it has {} image prompts in a layer, here {}", "N_CTX_VISION"),
        *compare("mapper", "its mapper of the input prompts is {}, here {}", "MAPPER"),
        *compare("contexts", "it has {}, here {}", "CSC"),
        *compare("classes", "its contexts belong to the {} classes of its training, here are {}; with class-specific "
                 "contexts, class count and order must be the same", "CSC"),
        *compare("attributes", "it has {}, here {} (TRAINER.ATPROMPT.USE_ATPROMPT)"),
        *(fault for i in (1, 2, 3) for fault in
          compare(f"attribute {i}", f"its attribute {i} has {{}} tokens, here {{}} (TRAINER.ATPROMPT.N_ATT{i})")),
    ]


def class_differences(saved: Mapping[str, Tensor], trained: Sequence[str] | None, here: Sequence[str]) -> list[str]:
    """Describe the first class that is not that of the training, if contexts are class-specific; [] if all agree.

    Args:
        trained: class names in the file; None if it has none.
        here: class names of the learner.
    """
    if not per_class(saved) or trained is None:
        return []
    for label, (old, new) in enumerate(zip(trained, here, strict=False)):
        if old != new:
            return [f"its contexts belong to the {len(trained)} classes of its training, and class {label} was {old!r} "
                    f"there, here it is {new!r}; with class-specific contexts (CSC), class count and order must be the "
                    "same"]
    return []


def per_class(entries: Mapping[str, Tensor]) -> bool:
    """Return whether the contexts are class-specific (CoOp's CSC)."""
    return "ctx" in entries and entries["ctx"].ndim == 3


def _kind(names: Collection[str]) -> str:
    """Return which method's prompts these are, by their names; "" if unknown."""
    def some(*starts: str) -> bool:
        return any(name.startswith(starts) for name in names)

    if some("meta_net."):
        return "CoCoOp"
    if some("proj.", "compound_prompt"):
        return "MaPLe or P2C"
    if some("images.", "deep_text."):
        return "IVLP or PromptSRC" if "ctx" in names else "VPT"
    return "CoOp" if "ctx" in names else ""


def _sizes(entries: Mapping[str, Tensor]) -> dict[str, int | str | None]:
    """Return the sizes that can be read from the entries' shapes; None for each other one."""
    def size(name: str, axis: int) -> int | None:
        return entries[name].shape[axis] if name in entries and entries[name].ndim in (2, 3) else None

    def count(*starts: str) -> int:
        return sum(name.startswith(starts) for name in entries)

    hidden, linear = size("proj.0.weight", 0), size("proj.weight", 0)
    mapper = None
    if hidden:
        mapper = f"an MLP with {hidden} hidden units (proj.0, proj.2)"
    elif linear:
        mapper = "one Linear (proj.weight)"
    classes = size("ctx", 0) if per_class(entries) else None
    return {
        "text width": size("ctx", -1),
        "vision width": size("images.0", 1) or size("proj.2.weight", 0) or linear,
        "feature width": size("meta_net.linear1.weight", 1),
        "layers": 1 + count("compound_prompts_text.", "deep_text."),
        "image layers": count("images."),
        "tokens": size("ctx", -2),
        "image tokens": size("images.0", 0),
        "mapper": mapper,
        "contexts": "class-specific contexts" if classes else "one context for all classes",
        "classes": classes,
        "attributes": "attributes" if count("ctx_att") else "no attributes",
        **{f"attribute {i}": size(f"ctx_att{i}", 0) for i in (1, 2, 3)},
    }
