"""Cloud inference: tests with several classifiers from noisy copies of one trained context. TEST.CLOUD_SAMPLES sets it.

It is ours, not the paper's. The classifiers are averaged like an ensemble (Lakshminarayanan et al., arXiv 1612.01474).
Where they disagree about an image, the prediction is in doubt; the measure is the mutual information between
prediction and draw (Houlsby et al., arXiv 1112.5745).

Shapes: N images, B of them in a batch, K draws, C classes, E width of the features.
"""
import functools
import math
import os
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from yacs.config import CfgNode

from p2c.denoising.mixture import Distribution, noise_from_config
from p2c.denoising.noise import noise_unit
from p2c.engine.distributed import is_main
from p2c.engine.predictions import Predictions
from p2c.framework import TrainerX
from p2c.model import PromptedCLIP, Step
from p2c.prompts.context import Prompts, add_noise

DOUBTS = "mutual_information", "dissent"  # of each image, in predictions.csv


def combine(logits: Tensor, average: str) -> Tensor:
    """Average a cloud's logits (B, K, C) to scores (B, C), whose softmax gives the cloud's probabilities.

    Args:
        average: what is averaged over the draws: "probabilities" (the scores are logarithms of their mean) or "logits".
    """
    if average == "logits":
        return logits.mean(1)
    return logits.log_softmax(-1).logsumexp(1) - math.log(logits.shape[1])


def mutual_information(logits: Tensor) -> Tensor:
    """Return the mutual information (B,) between prediction and draw, in nats, of logits (B, K, C).

    It is the entropy of the draws' mean probabilities less the mean of their entropies. It is computed as the mean
    divergence of the draws from their mean, whose terms do not cancel, in float64.
    """
    each = logits.double().log_softmax(-1)
    mean = each.logsumexp(1, keepdim=True) - math.log(logits.shape[1])
    return (each.exp() * (each - mean)).sum(-1).mean(1).clamp(min=0)


def disagreement(logits: Tensor, output: Tensor) -> Tensor:
    """Return the share (B,) of the draws, with logits (B, K, C), that predict another class than the scores (B, C)."""
    return (logits.argmax(-1) != output.argmax(1, keepdim=True)).double().mean(1)


class Cloud:
    """K classifiers of a model, each from its trained context with other noise.

    Args:
        samples: K. Draw k is the same for every K.
        noise: the distribution of the noise.
        sigma: the noise level, an absolute value.
        average: how the classifiers are averaged, see `combine`.
        seed: seed of the draws.
    """

    def __init__(self, model: PromptedCLIP, samples: int, noise: Distribution, sigma: float, average: str, seed: int):
        self.model, self.samples, self.noise, self.sigma = model, samples, noise, sigma
        self.average, self.seed = average, seed

    def encode(self, prompts: Prompts) -> Tensor:
        """Encode all classes by each draw: normalised features (K, C, E)."""
        features = []
        for k in range(self.samples):
            noise = self.model.text_noise(self.noise, self.sigma, "cloud", Step(self.seed, k))
            features.append(self.model.encode_text(add_noise(prompts, noise)))
        return torch.stack(features)

    def features(self) -> Tensor:
        """Return the normalised features (K, C, E) of the classes by each draw; encode them once."""
        return self.model.deployed(self.encode)[1]

    @torch.no_grad()
    def logits(self, image: Tensor) -> Tensor:
        """Return logits (B, K, C) of images by each classifier; the images are encoded once."""
        prompts, features = self.model.deployed(self.encode)
        logits = self.model.logits(self.model.encode_image(image, prompts), features.flatten(0, 1))  # (B, K * C)
        return logits.unflatten(1, features.shape[:2])

    def predict(self, image: Tensor) -> Tensor:
        """Return the cloud's scores (B, C) of images."""
        return combine(self.logits(image), self.average)


def doubt_metrics(predictions: Predictions) -> dict[str, float]:
    """Return the means over the images of "mutual_information" (nats) and "dissent" (disagreement, percent).

    Also return how well each of them tells wrong predictions from right ones, and how well low confidence does:
    "auroc_...", areas under the ROC curve in percent, where 50 is chance. These are left out if all predictions are
    right or all are wrong, and if a score is not finite.
    """
    from sklearn.metrics import roc_auc_score  # here: it takes a second to import

    information, disagreement = (predictions[name] for name in DOUBTS)
    confidence, wrong = predictions["probability"], predictions["prediction"] != predictions["label"]
    metrics = {"mutual_information": information.mean().item(), "dissent": 100 * disagreement.mean().item()}
    if wrong.any() and not wrong.all() and (information + confidence).isfinite().all():
        doubts = {"mutual_information": information, "dissent": disagreement, "confidence": -confidence}
        for name, doubt in doubts.items():
            metrics[f"auroc_{name}"] = 100 * float(roc_auc_score(wrong, doubt))
    return metrics


class CloudTests(TrainerX):
    """A trainer of a PromptedCLIP, which tests with a cloud if TEST.CLOUD_SAMPLES asks for one."""

    model_class: type[PromptedCLIP]
    model: PromptedCLIP

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise ValueError also if a cloud is asked for that the method cannot have."""
        super().check_cfg(cfg)
        model = self.model_class
        if cfg.TEST.CLOUD_SAMPLES and (model.per_image_classes or not model.prompts_text):
            reason = ("encodes the classes for each image, which a cloud would repeat for each draw"
                      if model.prompts_text else "learns no text context to draw a cloud around")
            raise ValueError(f"{type(self).__name__} {reason}; set TEST.CLOUD_SAMPLES 0")

    @functools.cached_property
    def cloud(self) -> Cloud | None:
        """The cloud around the trained context; None if none is asked for."""
        return cloud_of(self.cfg, self.model, self.seed)

    def model_inference(self, input: Tensor) -> Tensor:
        """Return logits (B, C) of images, with a cloud its scores."""
        return super().model_inference(input) if self.cloud is None else self.cloud.predict(input)

    @property
    def output_columns(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names of what the `outputs` have behind the labels: a cloud's doubts."""
        return DOUBTS if self.cloud else ()

    def outputs(self, loader: Iterable[dict]) -> Iterator[tuple[Tensor, ...]]:
        """Yield the output and the labels of each batch, with a cloud also what DOUBTS names."""
        if self.cloud is None:
            yield from super().outputs(loader)
            return
        for batch in loader:
            image, label = self.parse_batch_test(batch)
            logits = self.cloud.logits(image)
            output = combine(logits, self.cloud.average)
            yield output, label, mutual_information(logits), disagreement(logits, output)

    def evaluate_outputs(self) -> dict[str, float]:
        """Return the metrics, with a cloud also its own."""
        doubts = doubt_metrics(self.predictions) if self.cloud and self.predictions else {}
        return {**super().evaluate_outputs(), **doubts}

    def write_results(self, mode: str, **source) -> None:
        """Write predictions.csv and results.json, with a cloud also reliability.png."""
        if self.cloud and is_main() and (calibration := getattr(self.evaluator, "calibration", None)):
            from p2c.utils.reliability import draw  # here: matplotlib takes a second to import

            draw(calibration["reliability"], os.path.join(self.output_dir, "reliability.png"))
        super().write_results(mode, **source)


def cloud_of(cfg: CfgNode, model: PromptedCLIP, seed: int) -> Cloud | None:
    """Return the cloud that the TEST settings ask for; None if they ask for none."""
    settings, denoising = cfg.TEST, cfg.TRAINER.PROMPT_DENOISING
    if not settings.CLOUD_SAMPLES:
        return None
    sigma = settings.CLOUD_LEVEL * noise_unit(denoising, model.backbone.token_std)
    return Cloud(model, settings.CLOUD_SAMPLES, noise_from_config(denoising), sigma, settings.CLOUD_AVERAGE, seed)
