"""The papers' numbers, from reference_results.yaml: accuracies with CLIP's ViT-B/16."""

import functools
import re
from pathlib import Path

import yaml

from p2c.tables.folders import Group
from p2c.tables.runs import Run

STATEMENT = "published: the papers' numbers, CLIP ViT-B/16"
AVERAGE = "average"  # used in place of a dataset's name
KEYS = {
    "ZeroshotCLIP": ("clip", "clip_zero_shot"),
    "CoOp": ("coop",),
    "CoCoOp": ("cocoop",),
    "MaPLe": ("maple",),
    "PromptSRC": ("promptsrc",),
    "P2C": ("p2c",),
}
BLOCKS = {"xd": "cross_dataset", "dg": "domain_generalization"}
MEASURES = ("base", "novel", "hm")
STANDARD_SHOTS = 16  # in all benchmarks but few-shot


@functools.cache
def references() -> dict:
    """Read reference_results.yaml."""
    path = Path(__file__).with_name("reference_results.yaml")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def published(benchmark: str, group: Group) -> dict[str, tuple[float, ...]]:
    """Return a trainer's published numbers in percent: dataset or "average" -> (base, novel, HM) or (accuracy,)."""
    if benchmark == "fewshot":
        return _few_shot(group)
    trained = benchmark == "base2new" or group.trainer != "ZeroshotCLIP"
    if group.shots != (STANDARD_SHOTS if trained else 0):
        return {}
    if benchmark == "base2new":
        entry = _entry(references()["base_to_novel"], group.trainer) or {"average": None, "datasets": {}}
        numbers = {**entry["datasets"], AVERAGE: entry["average"]}
        return {name: tuple(values[measure] for measure in MEASURES) for name, values in numbers.items() if values}
    entry = _entry(references()[BLOCKS[benchmark]], group.trainer) or {}
    numbers = {**entry, **entry.get("targets", {})}
    return {name: (value,) for name, value in numbers.items() if isinstance(value, (int, float))}


def _few_shot(group: Group) -> dict[str, tuple[float, ...]]:
    block = references()["few_shot_average"]
    numbers = _entry(block, group.trainer)  # one for each number of shots, or a single one for zero-shot
    by_shots = dict(zip(block["shots"], numbers, strict=True)) if isinstance(numbers, list) else {0: numbers}
    value = by_shots.get(group.shots)
    return {} if value is None else {AVERAGE: (value,)}


def _entry(block: dict, trainer: str):
    for key in KEYS.get(trainer, ()):
        if block.get(key) is not None:
            return block[key]
    return None


def comparable(config: str, runs: list[Run]) -> bool:
    """Return False if the configurations of runs, or their config's name, show another CLIP than the papers'."""
    backbones = [run.config["MODEL"]["BACKBONE"] for run in runs if "MODEL" in run.config]
    return not re.match(r"rn\d|vit_(?!b16)", config) and all(map(_is_vit_b16, backbones))


def _is_vit_b16(backbone: dict) -> bool:
    """Return whether a backbone may be CLIP's ViT-B/16; a file of weights may be CLIP's, weights of other names not."""
    weights = backbone.get("WEIGHTS", "openai")
    may_be_clips = weights == "openai" or "/" in weights or "." in weights
    return backbone["NAME"] in ("ViT-B/16", "ViT-B-16-quickgelu") and may_be_clips
