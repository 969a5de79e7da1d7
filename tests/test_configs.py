"""Every YAML that ships: it merges, its repeated facts agree, and the scripts and registries know its names."""
import re
from operator import attrgetter
from pathlib import Path

import pytest
import yaml
from messages import naming

from p2c import registry
from p2c.cli import config as config_command
from p2c.config import check_settings, extend_cfg
from p2c.engine.config import check_values, doubts
from p2c.framework import get_cfg_default
from p2c.merging import merge_file, warn_of_unread

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
    assert cfg.DATALOADER.TEST.BATCH_SIZE == 100 and doubts(cfg) == []
    assert path.read_text().startswith("# ") and "bash scripts/" in path.read_text()


@pytest.mark.parametrize("path", TRAINER_FILES, ids=str)
def test_a_trainer_reads_all_of_its_own_files(path, capsys):
    name = path.parent.name
    given = merge_file(merged(), str(path))
    for trainer in (name, "ZeroshotCLIP2") if name == "ZeroshotCLIP" else (name,):
        warn_of_unread(given, registry.get_trainer(trainer))
    assert given and "does not read" not in "".join(capsys.readouterr())
    warn_of_unread(["TRAINER.MAPLE.N_CTX"], type("Foreign", (), {}))
    assert "does not read" not in "".join(capsys.readouterr())
    warn_of_unread(["TRAINER.VPT.PREC" if name != "VPT" else "TRAINER.MAPLE.PREC"], registry.get_trainer(name))
    assert "does not read" in "".join(capsys.readouterr())


@pytest.mark.parametrize("path", [p for p in TRAINER_FILES if "tiny_shapes" not in p.stem], ids=str)
def test_full_clip_files_share_clips_input(path):
    cfg = merged(path)
    assert {key: cfg.INPUT[key] for key in CLIP_INPUT} == CLIP_INPUT
    assert cfg.MODEL.BACKBONE.WEIGHTS == "openai" and cfg.DATALOADER.NUM_WORKERS == 8


@pytest.mark.parametrize("path", DATASET_FILES, ids=str)
def test_dataset_file_names_a_known_dataset_and_nothing_else(path):
    content = yaml.safe_load(path.read_text())
    if path.stem == "folder":
        assert content.pop("INPUT") == {"AS_SHOWN": True}
    assert list(content) == ["DATASET"]
    assert list(content["DATASET"]) == ["NAME"]
    assert merged(path).DATASET.NAME in registry.DATASETS


def test_every_registered_dataset_has_a_file_and_every_trainer_a_folder():
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


def coop(backbone, epochs, **settings):
    return 0.002, epochs, 32, 5, backbone, settings


def cocoop(n_ctx, words):
    return 0.002, 10, 1, 20, "ViT-B/16", dict(N_CTX=n_ctx, CTX_INIT=words, PREC="fp16")


def deep(lr, epochs, **settings):
    return lr, epochs, 4, 20, "ViT-B/16", dict(CTX_INIT=WORDS, PREC="fp16") | settings


def promptsrc(epochs, depth, mean, std):
    return deep(0.0025, epochs, N_CTX_VISION=4, N_CTX_TEXT=4, PROMPT_DEPTH_VISION=depth, PROMPT_DEPTH_TEXT=depth,
                TEXT_LOSS_WEIGHT=25, IMAGE_LOSS_WEIGHT=10, GPA_MEAN=mean, GPA_STD=std)


WORDS = "a photo of a"
RANDOM = dict(N_CTX=16, CSC=False, CTX_INIT="", PREC="fp16", CLASS_TOKEN_POSITION="end")
STARTED = dict(CTX_INIT=WORDS, PREC="fp16", CLASS_TOKEN_POSITION="end")
# Every file of these trainers: learning rate, epochs, batch, print frequency, backbone, settings.
RECIPES = {
    "CoOp": {
        "rn50": coop("RN50", 200, **RANDOM), "rn50_ep100": coop("RN50", 100, **RANDOM),
        "rn50_ep50": coop("RN50", 50, **RANDOM), "rn101": coop("RN101", 200, **RANDOM),
        "rn101_ep50": coop("RN101", 50, **RANDOM), "vit_b32": coop("ViT-B/32", 200, **RANDOM),
        "vit_b32_ep50": coop("ViT-B/32", 50, **RANDOM), "vit_b16": coop("ViT-B/16", 200, **RANDOM),
        "vit_b16_ep100": coop("ViT-B/16", 100, **RANDOM), "vit_b16_ep50": coop("ViT-B/16", 50, **RANDOM),
        "rn50_ctxv1": coop("RN50", 200, **STARTED), "rn50_ep50_ctxv1": coop("RN50", 50, **STARTED),
        "vit_b16_ctxv1": coop("ViT-B/16", 200, **STARTED), "vit_b16_ep100_ctxv1": coop("ViT-B/16", 100, **STARTED),
        "vit_b16_ep50_ctxv1": coop("ViT-B/16", 50, **STARTED),
    },
    "CoCoOp": {
        "vit_b16_c4_ep10_batch1": cocoop(4, ""), "vit_b16_c8_ep10_batch1": cocoop(8, ""),
        "vit_b16_c16_ep10_batch1": cocoop(16, ""), "vit_b16_c4_ep10_batch1_ctxv1": cocoop(4, WORDS),
    },
    "VPT": {"vit_b16_c2_ep5_batch4_4": deep(0.0025, 5, N_CTX_VISION=8, PROMPT_DEPTH_VISION=12)},
    "IVLP": {
        "vit_b16_c2_ep5_batch4_2+2ctx":
            deep(0.0035, 5, N_CTX_VISION=2, N_CTX_TEXT=2, PROMPT_DEPTH_VISION=12, PROMPT_DEPTH_TEXT=12),
        "vit_b16_c2_ep5_batch4_4ctx_language_only":
            deep(0.0025, 5, N_CTX_VISION=0, N_CTX_TEXT=4, PROMPT_DEPTH_VISION=0, PROMPT_DEPTH_TEXT=12),
    },
    "PromptSRC": {
        "vit_b16_c2_ep20_batch4_4+4ctx": promptsrc(20, 9, 15, 1),
        "vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets": promptsrc(20, 3, 6, 10),
        "vit_b16_c2_ep50_batch4_4+4ctx_few_shot": promptsrc(50, 9, 30, 30),
    },
}


@pytest.mark.parametrize("trainer, name", [(trainer, name) for trainer in RECIPES for name in RECIPES[trainer]])
def test_files_of_the_family_hold_the_published_recipes(trainer, name):
    path = CONFIGS / "trainers" / trainer / f"{name}.yaml"
    cfg, node = merged(path), trainer.upper()
    lr, epochs, batch, print_freq, backbone, settings = RECIPES[trainer][name]
    assert (cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.DATALOADER.TRAIN_X.BATCH_SIZE) == (lr, epochs, batch)
    assert (cfg.OPTIM.NAME, cfg.OPTIM.LR_SCHEDULER, cfg.TRAIN.PRINT_FREQ) == ("sgd", "cosine", print_freq)
    assert (cfg.OPTIM.WARMUP_EPOCH, cfg.OPTIM.WARMUP_TYPE, cfg.OPTIM.WARMUP_CONS_LR) == (1, "constant", 1e-5)
    assert cfg.MODEL.BACKBONE.NAME == backbone
    assert yaml.safe_load(path.read_text())["TRAINER"] == {node: settings}


@pytest.mark.parametrize("trainer", RECIPES)
def test_a_folder_of_the_family_holds_its_recipes_and_one_for_shapes(trainer):
    files = {path.stem for path in CONFIGS.glob(f"trainers/{trainer}/*.yaml")}
    assert files - {"tiny_shapes_language_only"} == {*RECIPES[trainer], "tiny_shapes"}


@pytest.mark.parametrize("trainer", [*RECIPES, "P2C"])
def test_trainers_are_compared_alike_on_shapes(trainer):
    ours, maples = (yaml.safe_load((CONFIGS / "trainers" / name / "tiny_shapes.yaml").read_text())
                    for name in (trainer, "MaPLe"))
    settings = ours.pop("TRAINER")[trainer.upper()]
    maples.pop("TRAINER")
    rate_and_epochs, _ = ((file["OPTIM"].pop("LR"), file["OPTIM"].pop("MAX_EPOCH")) for file in (ours, maples))
    assert ours == maples
    assert trainer in ("CoOp", "MaPLe", "P2C") or rate_and_epochs == (0.0035, 5)  # these three have the study's choice
    assert settings["PREC"] == "fp32" and settings["CTX_INIT"] == WORDS
    assert all(1 <= value <= 4 for key, value in settings.items() if key.startswith("PROMPT_DEPTH"))


@pytest.mark.parametrize("node, published", [
    ("COOP", dict(N_CTX=16, CSC=False, CTX_INIT="", PREC="fp16", CLASS_TOKEN_POSITION="end")),
    ("COCOOP", dict(N_CTX=16, CTX_INIT="", PREC="fp16")),
    ("VPT", dict(N_CTX_VISION=2, CTX_INIT=WORDS, PREC="fp16", PROMPT_DEPTH_VISION=1)),
    ("IVLP", dict(N_CTX_VISION=2, N_CTX_TEXT=2, CTX_INIT=WORDS, PREC="fp16", PROMPT_DEPTH_VISION=9,
                  PROMPT_DEPTH_TEXT=9)),
    ("MAPLE", dict(N_CTX=2, CTX_INIT=WORDS, PREC="fp16", PROMPT_DEPTH=9)),
    ("PROMPTSRC", dict(N_CTX_VISION=4, N_CTX_TEXT=4, CTX_INIT=WORDS, PREC="fp16", PROMPT_DEPTH_VISION=9,
                       PROMPT_DEPTH_TEXT=9, TEXT_LOSS_WEIGHT=25, IMAGE_LOSS_WEIGHT=10, GPA_MEAN=15, GPA_STD=1)),
    ("ATPROMPT", dict(USE_ATPROMPT=False, ATT_NUM=0, N_ATT1=4, N_ATT2=4, N_ATT3=4, ATT1_TEXT="none", ATT2_TEXT="none",
                      ATT3_TEXT="none")),
])
def test_code_defaults_are_the_published_ones(node, published):
    assert merged().TRAINER[node] == published


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("trainers/P2C/*.yaml")), ids=str)
def test_p2c_files_switch_both_denoisers_on_with_the_documented_values(path):
    cfg = merged(path)
    assert cfg.TRAINER.P2C.MAPPER.ENABLED and cfg.TRAINER.PROMPT_DENOISING.ENABLED
    unset = merged().TRAINER
    assert cfg.TRAINER.PROMPT_DENOISING == unset.PROMPT_DENOISING | {"ENABLED": True}
    assert cfg.TRAINER.P2C.MAPPER == unset.P2C.MAPPER | {"ENABLED": True}


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


def test_language_prompting_on_shapes_is_ivlp_without_image_prompts():
    language, both = (yaml.safe_load((CONFIGS / "trainers/IVLP" / f"{name}.yaml").read_text())
                      for name in ("tiny_shapes_language_only", "tiny_shapes"))
    assert language["TRAINER"]["IVLP"] == both["TRAINER"]["IVLP"] | {"N_CTX_VISION": 0, "PROMPT_DEPTH_VISION": 0}
    assert {**language, "TRAINER": None} == {**both, "TRAINER": None}


# Ranges

@pytest.mark.parametrize("path", [*TRAINER_FILES, *DATASET_FILES], ids=str)
def test_every_file_is_in_range(path):
    check_values(merged(path))
    check_settings(merged(path))


def test_the_page_of_settings_is_what_the_command_prints(capsys):
    assert config_command.main(["settings"]) == 0
    printed = capsys.readouterr().out
    assert printed == Path("docs/configuration.md").read_text(), \
        "write it again: python -m p2c config settings > docs/configuration.md"
    assert "| `TRAINER.COOP.CLASS_TOKEN_POSITION` | `end` | end, middle, front | " in printed
    assert "| `OPTIM.MAX_EPOCH` | `10` | " in printed


NAN, INF = float("nan"), float("inf")
DPD = "TRAINER.PROMPT_DENOISING."


@pytest.mark.parametrize("key, values", [
    ("DATASET.SUBSAMPLE_CLASSES", ("novel", None, 1)), ("DATASET.CHECKS", ("none",)),
    ("DATASET.FOLDER.TEMPLATE", ("a leaf", "{} {}", None)), ("TRAIN.TEXT_MEMORY", (-1.0, NAN, INF, None, "4")),
    (f"{DPD}NOISE_STD", (-1.0, NAN, INF)), (f"{DPD}SIGMOID_K", (0.0, NAN, INF)), (f"{DPD}SCHEDULE", ("cos", None)),
    (f"{DPD}WARMUP_EPOCHS", (-1, 10, 0.5)), (f"{DPD}GMM_COMPONENTS", (0, 2)),
    (f"{DPD}GMM_MEANS", ((), (0.0, NAN, 1.0), ("a", "b", "c"), None)),
    (f"{DPD}GMM_STDS", ((1.0, 1.0), (1.0, 0.0, 1.0), (1.0, INF, 1.0))),
    (f"{DPD}GMM_WEIGHTS", ((1.0,), (0.0, 0.0, 0.0), (1.0, -1.0, 1.0), (NAN, 1.0, 1.0))),
    ("TRAINER.ATPROMPT.ATT_NUM", (-1, 4)), ("TRAINER.ATPROMPT.N_ATT2", (0,)), ("TRAINER.COOP.N_CTX", (0, 1.5)),
    ("TRAINER.IVLP.PROMPT_DEPTH_VISION", (-1,)), ("TRAINER.PROMPTSRC.N_CTX_VISION", (0,)),
    ("TRAINER.PROMPTSRC.GPA_STD", (0, NAN)), ("TRAINER.P2C.MAPPER.HIDDEN_SCALE", (0.0, INF, 10**400)),
    ("TRAINER.P2C.CTX_INIT", (None, 4)), ("TRAINER.P2C.MAPPER.ENABLED", (None, 1, "False")),
])
def test_a_setting_out_of_its_range_is_named_with_value_and_range(key, values):
    for value in values:
        cfg = merged()
        node, leaf = key.rsplit(".", 1)
        attrgetter(node)(cfg)[leaf] = value
        with pytest.raises(ValueError) as error:
            check_settings(cfg)
        assert re.search(naming(key, repr(value)), str(error.value))


def test_settings_of_other_trainers_do_not_stop_one_that_names_its_own():
    cfg = merged()
    cfg.TRAINER.COOP.N_CTX, cfg.TRAINER.P2C.N_CTX = 0, -1
    with pytest.raises(ValueError) as error:
        check_settings(cfg, {"P2C", "PROMPT_DENOISING"})
    assert re.search(naming("TRAINER.P2C.N_CTX", "-1"), str(error.value)) and "COOP" not in str(error.value)
