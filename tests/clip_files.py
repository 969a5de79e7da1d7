"""Makes files in the real formats: a random CLIP as OpenAI's archive, a small dataset in OxfordPets' layout."""
import json
import random

import torch
from PIL import Image
from torch import nn

BREEDS = ("abyssinian", "american_bulldog", "Bengal cat", "boxer", "russian_blue", "samoyed")


class Holder(nn.Module):
    """A module tree that holds tensors under given names and computes nothing."""

    def put(self, name: str, tensor: torch.Tensor) -> None:
        first, _, rest = name.partition(".")
        if rest:
            if first not in self._modules:
                self.add_module(first, Holder())
            self._modules[first].put(rest, tensor)
        else:
            self.register_buffer(first, tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def save_openai_archive(model: nn.Module, path) -> None:
    """Write CLIP's weights as OpenAI's TorchScript archive: weights in half precision, three numbers beside them."""
    holder = Holder()
    for name, value in model.state_dict().items():
        holder.put(name, value if value.ndim < 2 else value.half())
    for name, value in (("input_resolution", 224), ("context_length", 77), ("vocab_size", 49408)):
        holder.put(name, torch.tensor(value))
    torch.jit.trace(holder, torch.zeros(1)).save(str(path))


def make_pets(root, images_per_class=(4, 2, 3), size=(64, 64), classes=4, suffix="png") -> None:
    """A dataset in OxfordPets' layout: coloured noise, a class having its own mean colour."""
    folder = root / "oxford_pets"
    (folder / "images").mkdir(parents=True)
    rng = random.Random(7)
    split = {}
    for part, count in zip(("train", "val", "test"), images_per_class, strict=True):
        split[part] = []
        for label, breed in enumerate(BREEDS[:classes]):
            for index in range(count):
                name = f"{breed.replace(' ', '_')}_{part}_{index}.{suffix}"
                colour = [(label * 60 + 20 * channel + rng.randrange(40)) % 256 for channel in range(3)]
                noise = Image.frombytes("L", size, rng.randbytes(size[0] * size[1])).convert("RGB")
                Image.blend(Image.new("RGB", size, tuple(colour)), noise, 0.3).save(folder / "images" / name)
                split[part].append([name, label, breed])
    (folder / "split_zhou_OxfordPets.json").write_text(json.dumps(split, indent=4, separators=(",", ": ")))
