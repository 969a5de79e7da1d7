"""In which precision CLIP runs: the one place that sets it, for training and testing alike."""
import contextlib
from dataclasses import dataclass

import torch

from p2c.logs import get_logger

log = get_logger(__name__)


@dataclass(frozen=True)
class Precision:
    """CLIP's dtype, and whether autocast and loss scaling are used. Prompts are float32 in all."""

    dtype: torch.dtype
    autocast: bool = False
    scaling: bool = False

    @classmethod
    def from_name(cls, name: str, device: torch.device) -> "Precision":
        """The policy called PREC in the configuration. Raises ValueError for a name that is none."""
        if name not in PRECISIONS:
            raise ValueError(f"Unknown precision '{name}' (PREC); choose from {', '.join(PRECISIONS)}")
        if device.type == "cpu" and name in ("fp16", "amp"):
            log.info(f"PREC {name} needs a GPU; this run uses fp32")
            name = "fp32"
        return PRECISIONS[name]

    def context(self, device: torch.device) -> contextlib.AbstractContextManager:
        """What CLIP's towers run in."""
        return torch.autocast(device.type, dtype=torch.float16) if self.autocast else contextlib.nullcontext()


PRECISIONS = {  # the choices of PREC
    "fp16": Precision(torch.float16, scaling=True),
    "fp32": Precision(torch.float32),
    "amp": Precision(torch.float32, autocast=True, scaling=True),
    "bf16": Precision(torch.bfloat16),
}
