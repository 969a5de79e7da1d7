"""A run's classifier as one file: the text classifier as safetensors, or the whole image classifier as a program.

The program holds the prompted image tower and the features of the classes, and runs without this package: `.pt2` is
torch.export's, `.onnx` is read by onnxruntime and others.

Shapes: N images, C classes, E feature width, K draws of a cloud.
"""
import copy
import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import p2c
from p2c import registry
from p2c.clip.loading import CLIP_NAMES
from p2c.cloud import Cloud, cloud_of, combine
from p2c.engine.files import write_atomically
from p2c.model import PromptedCLIP

if TYPE_CHECKING:
    from p2c.inference.predictor import Predictor

ENDINGS = (".safetensors", ".pt2", ".onnx")
CLASSIFIER_FORMAT = "p2c-text-classifier"
PROGRAM_FORMAT = "p2c-image-classifier"
METADATA = "metadata.json"  # the extra file of a .pt2
INPUT, OUTPUT = "images", "probabilities"  # names in a program

OPSET = 17  # of ONNX; the first with layer norms
LARGEST_ONNX = 2 << 30  # bytes; a limit of its file format
LARGEST_BATCH = 1 << 20  # images; torch 2.6 takes no batch of unlimited size for a dynamic one
CHECKED_BATCHES = (1, 4)  # random images, on which a program is compared with `predict`
RELATIVE, ABSOLUTE = 1e-3, 1e-5  # differences of probabilities that are rounding in float32


def check_destination(path: str | os.PathLike) -> str:
    """Return the ending of a file to export to, one of ENDINGS.

    Raises:
        ValueError: it has another ending, or a package to write it is missing.
    """
    ending = Path(path).suffix
    if ending not in ENDINGS:
        raise ValueError(f"Cannot export to {os.fspath(path)}: give a name that ends in .safetensors (the text "
                         "classifier), .pt2 or .onnx (the image classifier for torch.export or ONNX)")
    if ending == ".onnx" and find_spec("onnx") is None:
        raise ValueError(f"Cannot write {os.fspath(path)} without the package onnx; install the extra p2c[onnx] "
                         "(`pip install onnx onnxruntime`), or export to a .pt2")
    return ending


def export(predictor: "Predictor", path: str | os.PathLike) -> list[str]:
    """Write a run's classifier to a file, whose ending chooses the kind; return lines that the user should read.

    Raises:
        ValueError: an ending other than ENDINGS, a package is missing, or the run has no such classifier.
        RuntimeError: the program does not give the probabilities of `predict`; no file is written then.
    """
    ending = check_destination(path)
    model = predictor.model_with_classes()
    if ending == ".safetensors":
        return export_text_classifier(predictor, model, path)
    return export_program(predictor, model, path, ending)


def about(predictor: "Predictor", kind: str) -> dict[str, str | list]:
    """Return what a user of an exported file needs to know: the classes, and how images are prepared."""
    cfg, images = predictor.cfg, predictor.cfg.INPUT
    normalised = "normalize" in images.TRANSFORMS
    return {
        "format": kind,
        "version": "1",
        "p2c_version": p2c.__version__,
        "classnames": predictor.classnames,
        "trainer": cfg.TRAINER.NAME,
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "weights": cfg.MODEL.BACKBONE.WEIGHTS,
        "image_size": list(images.SIZE),
        "interpolation": images.INTERPOLATION,
        "pixel_mean": list(images.PIXEL_MEAN) if normalised else [0.0] * 3,
        "pixel_std": list(images.PIXEL_STD) if normalised else [1.0] * 3,
    }


def as_texts(metadata: dict[str, str | list]) -> dict[str, str]:
    """Return metadata for formats that hold only texts; lists are JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}


# The text classifier


def export_text_classifier(predictor: "Predictor", model: PromptedCLIP, path: str | os.PathLike) -> list[str]:
    """Write the text classifier as safetensors; return a warning if plain open_clip gives no image features for it.

    Tensors: weight (C, E), the normalised class features, and logit_scale (), the factor of their cosines.
    Metadata: `about`, and open_clip's name of the backbone and whether its image tower is prompted.
    """
    if predictor.cfg.TEST.CLOUD_SAMPLES:
        raise ValueError("Cloud inference has several text classifiers, and a .safetensors file holds one; export to "
                         "a .pt2 or .onnx, or from a run with TEST.CLOUD_SAMPLES 0")
    prompts, features = model.deployed()
    plain = prompts.visual is None
    backbone = predictor.cfg.MODEL.BACKBONE.NAME
    metadata = about(predictor, CLASSIFIER_FORMAT) | {
        "open_clip_model": CLIP_NAMES.get(backbone, backbone),
        "image_tower": "plain" if plain else "prompted",
    }
    tensors = {"weight": features.float().cpu().contiguous(), "logit_scale": torch.tensor(model.backbone.logit_scale)}
    write_atomically(path, safetensors.torch.save(tensors, as_texts(metadata)))
    if plain:
        return []
    return [f"warning: the image features for {os.fspath(path)} need this package too, since the image tower is "
            "prompted; a .pt2 or .onnx holds both"]


# The image classifier


class ImageClassifier(nn.Module):
    """A model's image tower with its prompts and the features of its classes, copied in float32 to the CPU.

    A call maps images (N, 3, height, width), as the run's test transform makes them, to probabilities (N, C).

    Args:
        cloud: the cloud with which the model predicts; None: it predicts with one classifier.
    """

    features: Tensor

    def __init__(self, model: PromptedCLIP, cloud: Cloud | None):
        super().__init__()
        prompts, features = model.deployed(cloud.encode if cloud else None)
        self.visual, self._tower = copy.deepcopy((model.clip.visual, model.image_tower))  # the tower runs this visual
        visual = [] if prompts.visual is None else [prompts.visual, *prompts.deep_visual]
        self.prompts = nn.ParameterList([prompt.detach().clone() for prompt in visual])
        self.register_buffer("features", features.flatten(0, -2))  # (C, E) or, with a cloud, (K * C, E)
        self.logit_scale = model.backbone.logit_scale
        self.draws, self.average = (cloud.samples, cloud.average) if cloud else (0, "")
        self.requires_grad_(False).float().cpu().eval()

    def forward(self, images: Tensor) -> Tensor:
        prompts = list(self.prompts)
        image_features = self._tower.encode(images, prompts[0] if prompts else None, prompts[1:])
        logits = self.logit_scale * F.normalize(image_features, dim=-1) @ self.features.t()
        if self.draws:
            logits = combine(logits.unflatten(1, (self.draws, -1)), self.average)
        return logits.softmax(1)


def export_program(predictor: "Predictor", model: PromptedCLIP, path: str | os.PathLike, ending: str) -> list[str]:
    """Write the image classifier as a program; return what it takes and gives, and how it was checked."""
    cfg, name = predictor.cfg, os.fspath(path)
    size = tuple(cfg.INPUT.SIZE)
    precision = cfg.TRAINER[registry.get_trainer(cfg.TRAINER.NAME).node].PREC
    classifier = ImageClassifier(model, cloud_of(cfg, model, cfg.SEED))
    write, load = (onnx_file, load_onnx) if ending == ".onnx" else (torch_file, load_torch)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn about themselves
        content = write(classifier, torch.zeros(2, 3, *size), about(predictor, PROGRAM_FORMAT))
        program = load(content)
        images = torch.randn(sum(CHECKED_BATCHES), 3, *size, generator=torch.Generator().manual_seed(0))
        predicted = predictor.scores(images.to(predictor.device)).float().softmax(1).cpu()
        in_float32 = predicted if precision == "fp32" else classifier(images)
        found = None if program is None else torch.cat([program(batch) for batch in images.split(CHECKED_BATCHES)])
    lines = [f"{name} takes images (N, 3, {size[0]}, {size[1]}) and gives probabilities (N, {predicted.shape[1]})"]
    if found is None:
        lines.append(f"warning: {name} was not checked, since the package onnxruntime is not installed")
    elif not torch.allclose(found, in_float32, RELATIVE, ABSOLUTE):
        raise RuntimeError(f"{name} is not written: on random images its probabilities differ from the run's by up to "
                           f"{largest(found - in_float32):.1g}, which is more than rounding; use `p2c predict` "
                           "instead, and please report it")
    else:
        of = "`p2c predict`" if precision == "fp32" else "the same model in float32"
        lines.append(f"checked on {len(images)} random images: the probabilities are those of {of} to within "
                     f"{largest(found - in_float32):.1g}")
    if precision != "fp32":
        lines.append(f"warning: {name} computes in float32, but the run in {precision}: `p2c predict` gives "
                     f"probabilities that differ by up to {largest(in_float32 - predicted):.1g}")
    write_atomically(path, content)
    return lines


def largest(differences: Tensor) -> float:
    """Return the largest of the absolute values."""
    return differences.abs().max().item()


def torch_file(classifier: ImageClassifier, example: Tensor, metadata: dict[str, str | list]) -> bytes:
    """Return a torch.export program with dynamic batch size as the content of a .pt2."""
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    program = torch.export.export(classifier, (example,), dynamic_shapes={INPUT: {0: batch}}, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names folders of this machine
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={METADATA: json.dumps(metadata)})
    return content.getvalue()


def load_torch(content: bytes) -> Callable[[Tensor], Tensor]:
    """Return the function of a .pt2."""
    return torch.export.load(io.BytesIO(content)).module()


def onnx_file(classifier: ImageClassifier, example: Tensor, metadata: dict[str, str | list]) -> bytes:
    """Return an ONNX program with dynamic batch size as the content of a file.

    It is made by the exporter that traces. That of torch.export fails on these towers in torch 2.6.
    """
    import onnx  # here: it is an extra

    size = sum(value.nbytes for value in classifier.state_dict().values())
    if size >= LARGEST_ONNX:
        raise ValueError(f"An .onnx file holds at most {LARGEST_ONNX >> 30} GiB, but the image tower has "
                         f"{size / (1 << 30):.1f} GiB; export to a .pt2")
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "model.onnx")
        torch.onnx.export(classifier, (example,), file, dynamo=False, verbose=False, opset_version=OPSET,
                          input_names=[INPUT], output_names=[OUTPUT],
                          dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}})
        program = onnx.load(file)
    onnx.helper.set_model_props(program, as_texts(metadata))
    return program.SerializeToString()


def load_onnx(content: bytes) -> Callable[[Tensor], Tensor] | None:
    """Return the function of an ONNX file; None if onnxruntime is not installed."""
    try:
        import onnxruntime  # here: it is an extra
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])
