"""The papers' numbers, from reference_results.yaml: accuracies with CLIP's ViT-B/16."""

import functools
import re
from pathlib import Path

import yaml

from p2c.tables.folders import Group
from p2c.tables.runs import Run

STATEMENT = "published: the papers' numbers, CLIP ViT-B/16"
AVERAGE = "average"  # used in place of a dataset's name
KEYS = {"ZeroshotCLIP": "clip", "CoOp": "coop", "CoCoOp": "cocoop", "MaPLe": "maple", "PromptSRC": "promptsrc",
        "P2C": "p2c"}  # fmt: skip
BLOCKS = {
    "base2new": "base_to_novel", "xd": "cross_dataset", "dg": "domain_generalization", "fewshot": "few_shot_average",
}  # fmt: skip
STANDARD_SHOTS = 16  # in all benchmarks but few-shot


@functools.cache
def references() -> dict:
    """Read reference_results.yaml."""
    path = Path(__file__).with_name("reference_results.yaml")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def published(benchmark: str, group: Group) -> dict[str, tuple[float, ...]]:
    """Return a trainer's published numbers in percent: dataset or "average" -> (base, novel, HM) or (accuracy,)."""
    block = references()[BLOCKS[benchmark]]
    entry = block.get(KEYS.get(group.trainer))
    if not entry:
        return {}
    if benchmark == "fewshot":
        by_shots = dict(zip(block["shots"], entry, strict=True)) if isinstance(entry, list) else {0: entry}
        return {AVERAGE: (by_shots[group.shots],)} if group.shots in by_shots else {}
    trained = benchmark == "base2new" or group.trainer != "ZeroshotCLIP"
    if group.shots != (STANDARD_SHOTS if trained else 0):
        return {}
    if benchmark == "base2new":
        numbers = {**entry["datasets"], AVERAGE: entry["average"]}
        return {name: (value["base"], value["novel"], value["hm"]) for name, value in numbers.items()}
    numbers = {**entry, **entry.get("targets", {})}
    return {name: (value,) for name, value in numbers.items() if isinstance(value, (int, float))}


def comparable(config: str, runs: list[Run]) -> bool:
    """Return False if the configurations of runs, or their config's name, show another CLIP than the papers'."""
    for backbone in (run.config["MODEL"]["BACKBONE"] for run in runs if "MODEL" in run.config):
        weights = backbone.get("WEIGHTS", "openai")
        may_be_clips = weights == "openai" or "/" in weights or "." in weights  # as the name of a file has
        if backbone["NAME"] not in ("ViT-B/16", "ViT-B-16-quickgelu") or not may_be_clips:
            return False
    return not re.match(r"rn\d|vit_(?!b16)", config)
