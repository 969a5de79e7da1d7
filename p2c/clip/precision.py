"""In which precision CLIP runs: the one place that sets it, for training and testing alike."""
import contextlib
from dataclasses import dataclass

import torch

from p2c.utils.logs import get_logger

log = get_logger(__name__)


@dataclass(frozen=True)
class Precision:
    """CLIP's dtype, and whether autocast and loss scaling are used. Prompts are float32 in all.

    With autocast the matrices of the transformer blocks are in half already, so that no step casts them.
    """

    dtype: torch.dtype
    autocast: bool = False
    scaling: bool = False

    @property
    def products(self) -> torch.dtype:
        """The dtype of the blocks' matrix products."""
        return torch.float16 if self.autocast else self.dtype

    @classmethod
    def from_name(cls, name: str, device: torch.device) -> "Precision":
        """Return the precision that the configuration calls by this name. Raise ValueError for an unknown one."""
        if name not in PRECISIONS:
            raise ValueError(f"Unknown precision '{name}' (PREC); choose from {', '.join(PRECISIONS)}")
        if device.type == "cpu" and name in ("fp16", "amp"):
            log.info(f"PREC {name} needs a GPU; this run uses fp32")
            name = "fp32"
        return PRECISIONS[name]

    def context(self, device: torch.device) -> contextlib.AbstractContextManager:
        """Return the context that CLIP's towers run in."""
        return torch.autocast(device.type, dtype=torch.float16) if self.autocast else contextlib.nullcontext()


def use_sound_kernels() -> None:
    """Turn off, for this process, what makes a GPU's results wrong or coarser than the precision says.

    cuDNN's attention has NaN gradients reported at our shapes: a mask and a length of 64 modulo 128 (pytorch#196678),
    or a single query (cudnn-frontend#1072). Flash and memory-efficient attention stay. TF32 in cuDNN's convolutions, on
    by default, would leave fp32 with 10 bits of mantissa in the first layer of the image tower.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cudnn.allow_tf32 = False


PRECISIONS = {  # the choices of PREC
    "fp16": Precision(torch.float16, scaling=True),
    "fp32": Precision(torch.float32),
    "amp": Precision(torch.float32, autocast=True, scaling=True),
    "bf16": Precision(torch.bfloat16),
}
