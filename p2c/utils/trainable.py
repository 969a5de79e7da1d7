"""The parameters that are trained and saved, for both optimisers and checkpoints.

Parameters that require a gradient are trained. They are saved together with the persistent buffers; frozen parameters
are not, since they come from the backbone's own weights.
"""
from collections.abc import Mapping

from torch import Tensor, nn

# Embeddings of class names and attributes, which prompt learners in CoOp's style keep as buffers.
CLASS_BUFFERS = ("token_prefix", "token_suffix", "token_middle1", "token_middle2", "token_middle3")


def parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the trained parameters."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's state as a checkpoint holds it."""
    return {
        name: value.detach() for name, value in model.state_dict(keep_vars=True).items()
        if not _is_class_buffer(name) and (value.requires_grad or not isinstance(value, nn.Parameter))
    }


def load_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the result of `state_dict`, or the state of the whole model without its frozen part.

    Raises:
        ValueError: an entry is missing, unknown or of another shape; nothing is loaded.
    """
    state = {name.removeprefix("module."): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if not _is_class_buffer(name)}
    expected, known = state_dict(model), model.state_dict()
    kinds = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in known],
        "of another shape": [f"{name} is {tuple(state[name].shape)} instead of {tuple(value.shape)}"
                             for name, value in expected.items() if name in state and state[name].shape != value.shape],
    }
    if faults := [f"{kind}: {_first(names)}" for kind, names in kinds.items() if names]:
        raise ValueError(f"The saved weights are not those of {type(model).__name__}; {'; '.join(faults)}")
    model.load_state_dict({name: state[name] for name in expected}, strict=False)


def _first(parts: list[str], most: int = 4) -> str:
    """Join the first few parts and count the others."""
    more = f" and {len(parts) - most} more" if len(parts) > most else ""
    return ", ".join(parts[:most]) + more


def _is_class_buffer(name: str) -> bool:
    return name.rpartition(".")[2] in CLASS_BUFFERS
