"""Every YAML that ships: it merges, its repeated facts agree, and the scripts and registries know its names."""
from pathlib import Path

import pytest
import yaml

from p2c import registry
from p2c.config import SETTINGS, extend_cfg
from p2c.framework import get_cfg_default

CONFIGS = Path("configs")
TRAINER_FILES = sorted(CONFIGS.glob("trainers/*/*.yaml"))
DATASET_FILES = sorted(CONFIGS.glob("datasets/*.yaml"))
CLIP_INPUT = {"SIZE": (224, 224), "INTERPOLATION": "bicubic", "PIXEL_MEAN": [0.48145466, 0.4578275, 0.40821073],
              "PIXEL_STD": [0.26862954, 0.26130258, 0.27577711],
              "TRANSFORMS": ("random_resized_crop", "random_flip", "normalize")}


def merged(*paths):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    for path in paths:
        cfg.merge_from_file(str(path))
    return cfg


@pytest.mark.parametrize("path", TRAINER_FILES, ids=str)
def test_trainer_file_merges_and_belongs_to_its_folder(path):
    cfg = merged(path)
    assert path.parent.name in registry.TRAINERS
    node = path.parent.name.upper()
    assert yaml.safe_load(path.read_text())["TRAINER"].keys() <= {node, "PROMPT_DENOISING"}
    assert cfg.DATALOADER.TEST.BATCH_SIZE == 100
    assert path.read_text().startswith("# ") and "bash scripts/" in path.read_text()


@pytest.mark.parametrize("path", [p for p in TRAINER_FILES if p.stem != "tiny_shapes"], ids=str)
def test_full_clip_files_share_clips_input(path):
    cfg = merged(path)
    assert {key: cfg.INPUT[key] for key in CLIP_INPUT} == CLIP_INPUT
    assert cfg.MODEL.BACKBONE.WEIGHTS == "openai" and cfg.DATALOADER.NUM_WORKERS == 8


@pytest.mark.parametrize("path", DATASET_FILES, ids=str)
def test_dataset_file_names_a_known_data_set_and_nothing_else(path):
    assert list(yaml.safe_load(path.read_text())) == ["DATASET"]
    assert list(yaml.safe_load(path.read_text())["DATASET"]) == ["NAME"]
    assert merged(path).DATASET.NAME in registry.DATASETS


def test_every_registered_data_set_has_a_file_and_every_trainer_a_folder():
    assert {merged(path).DATASET.NAME for path in DATASET_FILES} == set(registry.DATASETS)
    assert {path.parent.name for path in TRAINER_FILES} == \
        {name.removesuffix("2") for name in registry.TRAINERS} | {"P2C"}


@pytest.mark.parametrize("name, optim, node", [
    ("vit_b16_c2_ep5_batch4_2ctx", (0.0035, 5), dict(N_CTX=2, CTX_INIT="a photo of a", PROMPT_DEPTH=9)),
    ("vit_b16_c2_ep5_batch4_2ctx_cross_datasets", (0.0026, 2), dict(N_CTX=2, CTX_INIT="a photo of a", PROMPT_DEPTH=3)),
    ("vit_b16_c2_ep5_batch4_2ctx_few_shot", (0.0025, 50), dict(N_CTX=2, CTX_INIT="a photo of a", PROMPT_DEPTH=9)),
])
def test_p2c_and_maple_share_maples_recipe(name, optim, node):
    for trainer in ("MaPLe", "P2C"):
        cfg = merged(CONFIGS / "trainers" / trainer / f"{name}.yaml")
        assert (cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH) == optim
        assert (cfg.OPTIM.NAME, cfg.OPTIM.LR_SCHEDULER, cfg.DATALOADER.TRAIN_X.BATCH_SIZE) == ("sgd", "cosine", 4)
        assert (cfg.OPTIM.WARMUP_EPOCH, cfg.OPTIM.WARMUP_TYPE, cfg.OPTIM.WARMUP_CONS_LR) == (1, "constant", 1e-5)
        assert {key: cfg.TRAINER[trainer.upper()][key] for key in node} == node


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("trainers/P2C/*.yaml")), ids=str)
def test_p2c_files_switch_both_denoisers_on_with_the_documented_values(path):
    cfg = merged(path)
    assert cfg.TRAINER.P2C.MAPPER.ENABLED and cfg.TRAINER.PROMPT_DENOISING.ENABLED
    shared = SETTINGS["TRAINER"]["PROMPT_DENOISING"]
    assert {key: cfg.TRAINER.PROMPT_DENOISING[key] for key in shared} == shared | {"ENABLED": True}
    mapper = SETTINGS["TRAINER"]["P2C"]["MAPPER"]
    assert {key: cfg.TRAINER.P2C.MAPPER[key] for key in mapper} == mapper | {"ENABLED": True}


def test_preview_file_starts_four_tokens_at_random():
    node = merged(CONFIGS / "trainers/P2C/vit_b16_c2_ep5_batch4_2ctx_preview.yaml").TRAINER.P2C
    assert (node.N_CTX, node.CTX_INIT, node.PROMPT_DEPTH) == (4, "", 9)


def test_extending_twice_or_over_a_users_own_value_changes_nothing():
    cfg = merged()
    cfg.TRAINER.P2C.N_CTX = 7
    before = cfg.dump()
    extend_cfg(cfg)
    assert cfg.dump() == before


def test_denoisers_are_off_unless_asked_for():
    cfg = merged()
    assert not cfg.TRAINER.PROMPT_DENOISING.ENABLED and not cfg.TRAINER.P2C.MAPPER.ENABLED
