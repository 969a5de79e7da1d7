"""Published checkpoints by our names, and in words what about a file does not fit.

Files of CoOp and CoCoOp hold the learner alone; those of MaPLe, IVLP, VPT and PromptSRC hold all of CLIP beside
`prompt_learner.*`, the deep prompts of the last three inside the towers (`VPT`, `VPT_shallow`). ATPrompt's and those of
P2C's preview are like CoOp's or MaPLe's.
"""
import re
from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

DEEP = re.compile(r"(image|text)_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow")
CLIP = ("image_encoder.", "text_encoder.", "ZS_image_encoder.", "logit_scale")  # CLIP's own tensors start so


def learned_entries(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is learned in a state dict of ours or of the published code, by our names.

    CLIP's own tensors are left out. The embeddings of class names stay: `trainable.load_state_dict` ignores them.
    """
    names = {key: _our_name(key) for key in state}
    return {name: state[key] for key, name in names.items() if name is not None}


def _our_name(key: str) -> str | None:
    """Our name of a published entry, or of one of ours; None for CLIP's own tensors."""
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
    """In words, how prompts in a file are of another method, backbone or size than a learner's; none: nothing is seen.

    Args:
        saved, learner: entries by our names.
        settings: the keys that the learner was built by, to be named.
        backbone: name of the learner's.
    """
    kinds = _kind(saved), _kind(learner)
    if not all(kinds):
        return []
    if kinds[0] != kinds[1]:
        return [f"it holds prompts as {kinds[0]} learns them, here are prompts as {kinds[1]} learns them"]
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
        *compare("classes", "its contexts belong to the {} classes of its training, here are {}; with a context for "
                 "each class, class count and order must be the same", "CSC"),
        *compare("attributes", "it has {}, here {} (TRAINER.ATPROMPT.USE_ATPROMPT)"),
        *(fault for i in (1, 2, 3) for fault in
          compare(f"attribute {i}", f"its attribute {i} has {{}} tokens, here {{}} (TRAINER.ATPROMPT.N_ATT{i})")),
    ]


def class_differences(saved: Mapping[str, Tensor], trained: Sequence[str] | None, here: Sequence[str]) -> list[str]:
    """In words, the first class that is not the one of the training, where each has a context of its own.

    Args:
        trained: the names that a file gives; None: it gives none.
    """
    if not per_class(saved) or trained is None:
        return []
    pairs = enumerate(zip(trained, here, strict=False))
    return next(([f"its contexts belong to the {len(trained)} classes of its training, and class {label} was {old!r} "
                  f"there, here it is {new!r}; with a context for each class (CSC), class count and order must be the "
                  "same"] for label, (old, new) in pairs if old != new), [])


def per_class(entries: Mapping[str, Tensor]) -> bool:
    """Whether each class has a context of its own (CoOp's CSC)."""
    return "ctx" in entries and entries["ctx"].ndim == 3


def _kind(names: Collection[str]) -> str:
    """Whose prompts these are, by their names; "" if unknown."""
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
    """What the shapes say; None where nothing does."""
    def size(name: str, axis: int) -> int | None:
        return entries[name].shape[axis] if name in entries and entries[name].ndim in (2, 3) else None

    def count(*starts: str) -> int:
        return sum(name.startswith(starts) for name in entries)

    hidden, linear = size("proj.0.weight", 0), size("proj.weight", 0)
    classes = size("ctx", 0) if per_class(entries) else None
    return {
        "text width": size("ctx", -1),
        "vision width": size("images.0", 1) or size("proj.2.weight", 0) or linear,
        "feature width": size("meta_net.linear1.weight", 1),
        "layers": 1 + count("compound_prompts_text.", "deep_text."),
        "image layers": count("images."),
        "tokens": size("ctx", -2),
        "image tokens": size("images.0", 0),
        "mapper": f"an MLP with {hidden} hidden units (proj.0, proj.2)" if hidden else linear and
            "one Linear (proj.weight)",
        "contexts": "a context for each class" if classes else "one context for all classes",
        "classes": classes,
        "attributes": "attributes" if count("ctx_att") else "no attributes",
        **{f"attribute {i}": size(f"ctx_att{i}", 0) for i in (1, 2, 3)},
    }
