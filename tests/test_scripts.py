"""The shell scripts: which command they give train.py, and the main job end to end on CLIP's real size and formats."""
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from clip_files import make_pets
from messages import naming

from p2c.cli import train
from p2c.clip.loading import load_backbone
from p2c.engine.results import read_results
from p2c.grid.families import FAMILIES
from p2c.grid.fewshot import plan

ROOT = Path(__file__).resolve().parents[1]
MAIN = "vit_b16_c2_ep5_batch4_2ctx"
MAPLES = {"base2new": MAIN, "xd": f"{MAIN}_cross_datasets", "few_shot": f"{MAIN}_few_shot"}
SRC = "vit_b16_c2_ep20_batch4_4+4ctx"
LANGUAGE = "vit_b16_c2_ep5_batch4_4ctx_language_only"
BENCHMARKS = ("base2new", "xd", "few_shot")
# Folder of scripts -> trainer, and its configuration for each benchmark (few-shot: 16 shots).
METHODS = {
    "p2c": ("P2C", MAPLES),
    "maple": ("MaPLe", MAPLES),
    "coop": ("CoOp", {"base2new": "vit_b16_ctxv1", "xd": "vit_b16_ep50_ctxv1", "few_shot": "vit_b16"}),
    "cocoop": ("CoCoOp", dict.fromkeys(BENCHMARKS, "vit_b16_c4_ep10_batch1_ctxv1")),
    "ivlp": ("IVLP", dict.fromkeys(BENCHMARKS, "vit_b16_c2_ep5_batch4_2+2ctx")),
    "language-prompting": ("IVLP", dict.fromkeys(BENCHMARKS, LANGUAGE)),
    "vpt": ("VPT", dict.fromkeys(BENCHMARKS, "vit_b16_c2_ep5_batch4_4")),
    "promptsrc": ("PromptSRC", {"base2new": SRC, "xd": f"{SRC}_cross_datasets",
                                "few_shot": "vit_b16_c2_ep50_batch4_4+4ctx_few_shot"}),
}
STANDARD = FAMILIES["standard"].datasets


def script(path, *words, cwd, **variables):
    return subprocess.run(["bash", str(ROOT / "scripts" / path), *words], cwd=cwd, capture_output=True, text=True,
                          env={**os.environ, **variables})


def command(path, *words, cwd, **variables):
    """What train.py would be called with."""
    keys = [i for i, word in enumerate(words) if re.fullmatch(r"[A-Z]+(\.[A-Z0-9_]+)+|USE_CUDA", word)]
    first = keys[0] if keys else len(words)
    done = script(path, *words[:first], "--dry-run", *words[first:], cwd=cwd, **variables)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line)[2:] for line in done.stdout.splitlines()]


def option(words, name):
    return words[words.index(name) + 1]


def configuration(words):
    """The file's name, which the folder of the run has too."""
    name = Path(option(words, "--config-file")).stem
    assert re.search(rf"/{re.escape(name)}(_\d+shots)?/", option(words, "--output-dir"))
    return name


def settings_of(words):
    """The KEY VALUE pairs."""
    pairs = words[words.index("--") + 1:]
    return dict(zip(pairs[::2], pairs[1::2], strict=True))


@pytest.mark.parametrize("folder", METHODS)
@pytest.mark.parametrize("protocol, out, model, pairs", [
    ("base2new_train", "output/base2new/train_base/oxford_pets/shots_16/T/CFG/seed2", None,
     "TRAIN.CHECKPOINT_FREQ 1 DATASET.NUM_SHOTS 16 DATASET.SUBSAMPLE_CLASSES base"),
    ("base2new_test", "output/base2new/test_new/oxford_pets/shots_16/T/CFG/seed2",
     "output/base2new/train_base/oxford_pets/shots_16/T/CFG/seed2",
     "DATASET.NUM_SHOTS 16 DATASET.SUBSAMPLE_CLASSES new"),
    ("xd_train", "output/oxford_pets/T/CFG_16shots/seed2", None, "TRAIN.CHECKPOINT_FREQ 1 DATASET.NUM_SHOTS 16"),
    ("xd_test", "output/evaluation/T/CFG_16shots/oxford_pets/seed2", "output/imagenet/T/CFG_16shots/seed2", ""),
])
def test_protocols_use_the_fields_folders_and_settings(tmp_path, folder, protocol, out, model, pairs):
    words, = command(f"{folder}/{protocol}.sh", "oxford_pets", "2", cwd=tmp_path)
    trainer, cfgs = METHODS[folder]
    cfg = cfgs[protocol.partition("_")[0]]

    def fill(text):
        return text.replace("/T/", f"/{trainer}/").replace("CFG", cfg)

    assert option(words, "--output-dir") == fill(out)
    assert option(words, "--trainer") == trainer
    assert option(words, "--seed") == "2" and option(words, "--root") == "data"
    assert option(words, "--config-file") == f"{ROOT}/configs/trainers/{trainer}/{cfg}.yaml"
    assert option(words, "--dataset-config-file").endswith("configs/datasets/oxford_pets.yaml")
    assert ("--eval-only" in words) == (model is not None)
    assert model is None or option(words, "--model-dir") == fill(model)
    assert "--load-epoch" not in words
    assert words[words.index("--") + 1:] == pairs.split()


@pytest.mark.parametrize("folder", METHODS)
def test_few_shot_loops_the_seeds(tmp_path, folder):
    runs = command(f"{folder}/few_shot.sh", "oxford_pets", "16", cwd=tmp_path)
    trainer, cfgs = METHODS[folder]
    assert [option(words, "--output-dir") for words in runs] == [
        f"output/oxford_pets/{trainer}/{cfgs['few_shot']}_16shots/seed{seed}" for seed in (1, 2, 3)]
    assert [option(words, "--seed") for words in runs] == ["1", "2", "3"]
    assert all(words[words.index("--") + 1:] == ["TRAIN.CHECKPOINT_FREQ", "10", "DATASET.NUM_SHOTS", "16"]
               for words in runs)
    assert len(command(f"{folder}/few_shot.sh", "oxford_pets", "16", cwd=tmp_path, SEEDS="5")) == 1


@pytest.mark.parametrize("folder", METHODS)
def test_own_images_take_the_trainers_configuration_and_a_chosen_one_wins(tmp_path, folder):
    (tmp_path / "imagenet").mkdir()
    trainer, cfgs = METHODS[folder]
    for protocol in ("base2new_train", "few_shot"):
        call = (f"{folder}/{protocol}.sh", "folder:imagenet", "16")
        words, = command(*call, cwd=tmp_path, SEEDS="1")
        assert configuration(words) == cfgs[protocol.removesuffix("_train")]
        assert not {key for key in settings_of(words) if key.startswith("TRAINER.")}
        (tmp_path / "mine.yaml").touch()
        assert configuration(command(*call, cwd=tmp_path, SEEDS="1", CFG="mine.yaml")[0]) == "mine"


@pytest.mark.parametrize("dataset, cfgs", [
    ("dtd", {"1": "vit_b16_ep50", "2": "vit_b16_ep100", "4": "vit_b16_ep100", "8": "vit_b16", "16": "vit_b16"}),
    ("imagenet", dict.fromkeys(["1", "2", "4", "8", "16"], "vit_b16_ep50")),
    ("shapes", dict.fromkeys(["1", "16"], "tiny_shapes")),
])
def test_coop_trains_the_longer_the_more_shots_but_not_on_imagenet(tmp_path, dataset, cfgs):
    for shots, cfg in cfgs.items():
        words, = command("coop/few_shot.sh", dataset, shots, cwd=tmp_path, SEEDS="1")
        assert configuration(words) == cfg and settings_of(words)["DATASET.NUM_SHOTS"] == shots
    words, = command("coop/few_shot.sh", dataset, "16", "DATASET.NUM_SHOTS", "1", cwd=tmp_path, SEEDS="1")
    assert configuration(words) == cfgs["1"]  # what runs counts


def test_coop_trains_a_quarter_as_long_on_imagenet_from_base_to_novel(tmp_path):
    for protocol in ("base2new_train", "base2new_test"):
        words, = command(f"coop/{protocol}.sh", "imagenet", "1", cwd=tmp_path)
        assert configuration(words) == "vit_b16_ep50_ctxv1"


def test_promptsrc_averages_late_epochs_where_published_so(tmp_path):
    late = {"TRAINER.PROMPTSRC.GPA_MEAN": "45", "TRAINER.PROMPTSRC.GPA_STD": "5"}
    as_in_file = {"imagenet", "caltech101", "oxford_pets", "food101", "ucf101", "sun397"}
    for dataset in STANDARD:
        words, = command("promptsrc/few_shot.sh", dataset, "4", cwd=tmp_path, SEEDS="1")
        extra = {key: value for key, value in settings_of(words).items() if key.startswith("TRAINER.")}
        assert extra == ({} if dataset in as_in_file else late)
    words, = command("promptsrc/few_shot.sh", "dtd", "4", "TRAINER.PROMPTSRC.GPA_STD", "9", cwd=tmp_path, SEEDS="1")
    assert words[-2:] == ["TRAINER.PROMPTSRC.GPA_STD", "9"]
    words, = command("promptsrc/base2new_train.sh", "dtd", "1", cwd=tmp_path)
    assert "TRAINER.PROMPTSRC.GPA_STD" not in words


def test_cocoops_transfer_trains_on_imagenet_by_a_seed_alone(tmp_path):
    both = command("cocoop/xd_train.sh", "imagenet", "2", "OPTIM.LR", "1", cwd=tmp_path)
    assert command("cocoop/xd_train.sh", "2", "OPTIM.LR", "1", cwd=tmp_path) == both
    assert option(both[0], "--output-dir").startswith("output/imagenet/CoCoOp/") and option(both[0], "--seed") == "2"


def test_coops_main_puts_its_arguments_into_folder_and_settings(tmp_path):
    runs = command("coop/main.sh", "dtd", "rn50_ep100", "middle", "4", "2", "True", cwd=tmp_path)
    assert [option(words, "--output-dir") for words in runs] == [
        f"output/dtd/CoOp/rn50_ep100_2shots/nctx4_cscTrue_ctpmiddle/seed{seed}" for seed in (1, 2, 3)]
    assert [option(words, "--seed") for words in runs] == ["1", "2", "3"]
    for words in runs:
        assert option(words, "--config-file").endswith("trainers/CoOp/rn50_ep100.yaml")
        assert settings_of(words) == {
            "TRAINER.COOP.N_CTX": "4", "TRAINER.COOP.CSC": "True", "TRAINER.COOP.CLASS_TOKEN_POSITION": "middle",
            "DATASET.NUM_SHOTS": "2", "TRAIN.CHECKPOINT_FREQ": "10"}
    words, = command("coop/main.sh", "dtd", "rn50", "end", "16", "8", "False", "DATASET.NUM_SHOTS", "4", cwd=tmp_path,
                     SEEDS="5", CFG="vit_b32")
    assert option(words, "--output-dir") == "output/dtd/CoOp/rn50_4shots/nctx16_cscFalse_ctpend/seed5"


def test_coops_eval_tests_mains_run_on_imagenet(tmp_path):
    trained = command("coop/main.sh", "imagenet", "rn50_ep50", "end", "16", "16", "False", cwd=tmp_path)
    runs = command("coop/eval.sh", "imagenet_a", "rn50_ep50", cwd=tmp_path)
    assert [option(words, "--model-dir") for words in runs] == [option(words, "--output-dir") for words in trained]
    variant = "rn50_ep50_16shots/nctx16_cscFalse_ctpend"
    assert [option(words, "--output-dir") for words in runs] == [
        f"output/evaluation/CoOp/{variant}/imagenet_a/seed{seed}" for seed in (1, 2, 3)]
    for words in runs:
        assert "--eval-only" in words and "--load-epoch" not in words
        assert settings_of(words).items() <= settings_of(trained[0]).items()
        assert settings_of(words).keys() == {f"TRAINER.COOP.{key}" for key in ("N_CTX", "CSC", "CLASS_TOKEN_POSITION")}
    words, = command("coop/eval.sh", "shapes_dark", "tiny_shapes", cwd=tmp_path, SEEDS="2")
    assert option(words, "--model-dir") == "output/shapes/CoOp/tiny_shapes_16shots/nctx16_cscFalse_ctpend/seed2"


def test_zero_shot_tests_both_halves_or_everything(tmp_path):
    base, new = command("zsclip/base2new_test.sh", "oxford_pets", "1", cwd=tmp_path)
    assert option(base, "--output-dir") == "output/base2new/test_base/oxford_pets/shots_16/ZeroshotCLIP/vit_b16/seed1"
    assert option(new, "--output-dir") == "output/base2new/test_new/oxford_pets/shots_16/ZeroshotCLIP/vit_b16/seed1"
    assert base[-1] == "base" and new[-1] == "new" and "--eval-only" in base
    words, = command("zsclip/zeroshot.sh", "oxford_pets", "rn50", cwd=tmp_path)
    assert option(words, "--output-dir") == "output/ZeroshotCLIP/rn50/oxford_pets"
    assert option(words, "--config-file").endswith("ZeroshotCLIP/rn50.yaml")


def test_the_template_ensemble_shares_zero_shots_configurations(tmp_path):
    base, _ = command("run.sh", "ZeroshotCLIP2", "base2new_test", "oxford_pets", "1", cwd=tmp_path)
    assert option(base, "--trainer") == "ZeroshotCLIP2" and "/ZeroshotCLIP2/" in option(base, "--output-dir")
    assert option(base, "--config-file").endswith("trainers/ZeroshotCLIP/vit_b16.yaml")


@pytest.mark.parametrize("folder", METHODS)
def test_the_shapes_family_uses_the_tiny_configuration_and_shapes_as_source(tmp_path, folder):
    trainer, _ = METHODS[folder]
    cfg = "tiny_shapes_language_only" if folder == "language-prompting" else "tiny_shapes"
    for protocol in ("base2new_train", "few_shot", "xd_test"):
        words, = command(f"{folder}/{protocol}.sh", "shapes_dark", "1", cwd=tmp_path, SEEDS="1")
        assert option(words, "--config-file").endswith(f"{trainer}/{cfg}.yaml")
    assert option(words, "--model-dir") == f"output/shapes/{trainer}/{cfg}_16shots/seed1"


def test_the_users_options_and_pairs_win(tmp_path):
    words, = command("p2c/base2new_train.sh", "oxford_pets", "1", "--backbone", "RN50", "--debug",
                     "OPTIM.MAX_EPOCH", "1", "DATASET.NUM_SHOTS", "2", cwd=tmp_path)
    assert words.index("--backbone") < words.index("--debug") < words.index("--") < words.index("DATASET.NUM_SHOTS")
    assert words[-4:] == ["OPTIM.MAX_EPOCH", "1", "DATASET.NUM_SHOTS", "2"]


def test_the_folder_tells_the_number_of_shots_that_runs(tmp_path):
    for protocol, folder in (("base2new_train", "/shots_4/"), ("xd_train", "_4shots/")):
        words, = command(f"maple/{protocol}.sh", "oxford_pets", "1", "DATASET.NUM_SHOTS", "4", cwd=tmp_path)
        assert folder in option(words, "--output-dir") and words[-2:] == ["DATASET.NUM_SHOTS", "4"]


def test_a_folder_of_images_is_a_dataset_of_the_folders_name_and_a_short_hash(tmp_path):
    folder = tmp_path / "my leaves"
    (folder / "oak").mkdir(parents=True)
    (folder / "list.csv").touch()
    named = script("p2c/few_shot.sh", f"folder:{folder}", "4", cwd=tmp_path, PYTHON=sys.executable, SEEDS="1")
    assert named.returncode == 2 and "holds no images" in named.stderr  # the root reaches train.py whole, space and all
    run, = (tmp_path / "output").iterdir()
    assert re.fullmatch(r"my_leaves-[0-9a-f]{8}", run.name)
    (tmp_path / "link").symlink_to(folder)
    words, = command("p2c/few_shot.sh", "folder:link", "4", cwd=tmp_path, SEEDS="1")
    assert option(words, "--output-dir").split("/")[1] == run.name  # whichever way the folder is written
    assert option(words, "--dataset-config-file").endswith("configs/datasets/folder.yaml")
    words, = command("p2c/base2new_train.sh", f"folder:{folder}/list.csv", "1", cwd=tmp_path)
    label = option(words, "--output-dir").split("/")[3]
    assert re.fullmatch(r"list.csv-[0-9a-f]{8}", label)
    assert words[words.index("--") + 1:][:2] == ["DATASET.FOLDER.SPLIT", "list.csv"]
    words, = command("p2c/xd_test.sh", "dtd", "1", cwd=tmp_path, SOURCE=f"folder:{folder}")
    assert option(words, "--model-dir").split("/")[1] == run.name and option(words, "--root") == "data"


def test_all_images_and_another_backbone_are_in_the_folders_name(tmp_path):
    for words, name in ((("-1",), f"{MAPLES['few_shot']}_-1shots"),
                        (("4", "MODEL.BACKBONE.NAME", "ViT-B/32"), "vit_b32_c2_ep5_batch4_2ctx_few_shot_4shots"),
                        (("4", "--backbone", "ViT-L/14@336px"), "vit_l14_336px_c2_ep5_batch4_2ctx_few_shot_4shots"),
                        (("4", "--backbone", "tiny-shapes"), "tiny_shapes_4shots")):
        words, = command("p2c/few_shot.sh", "dtd", *words, cwd=tmp_path, SEEDS="1")
        assert option(words, "--output-dir") == f"output/dtd/P2C/{name}/seed1"
    words, = command("p2c/few_shot.sh", "shapes", "4", "--backbone", "ViT-B/16", cwd=tmp_path, SEEDS="1")
    assert configuration(words) == MAPLES["few_shot"]


@pytest.mark.parametrize("folder, data, shots, backbone", [
    ("p2c", "folder:my leaves", 16, None), ("p2c", "folder:my leaves/list.csv", -1, "tiny-shapes"),
    ("coop", "dtd", 4, "ViT-B/32"), ("coop", "imagenet", 16, None), ("promptsrc", "eurosat", 16, "RN50"),
    ("language-prompting", "shapes_dark", 1, None), ("cocoop", "shapes", 2, "ViT-B/16"), ("vpt", "mine.yaml", 8, None),
])
def test_one_command_plans_the_run_of_the_few_shot_script(tmp_path, monkeypatch, folder, data, shots, backbone):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my leaves/oak").mkdir(parents=True)
    for name in ("my leaves/list.csv", "mine.yaml"):
        (tmp_path / name).touch()
    options = ("--backbone", backbone) if backbone else ()
    script, = command(f"{folder}/few_shot.sh", data, str(shots), *options, cwd=tmp_path, SEEDS="3")
    method = "IVLP:language_only" if folder == "language-prompting" else METHODS[folder][0]
    ours = train.parse_args(plan(data.removeprefix("folder:"), method, shots, 3, backbone, None))
    theirs = train.parse_args(script)
    for args in (ours, theirs):  # a checkout's configs/ has two paths
        args.config_file, args.dataset_config_file = map(os.path.realpath, (args.config_file, args.dataset_config_file))
        args.opts = dict(zip(args.opts[::2], args.opts[1::2], strict=True))
    assert ours == theirs


def test_a_missing_folder_of_images_is_one_line_and_status_2(tmp_path):
    for variables, dataset in (({}, "folder:nowhere"), ({"SOURCE": "folder:nowhere"}, "dtd")):
        done = script("p2c/xd_test.sh", dataset, "1", cwd=tmp_path, **variables)
        assert done.returncode == 2 and re.fullmatch("error: .*'nowhere'.*\n", done.stderr)


def test_user_yaml_files_name_dataset_trainer_and_configuration(tmp_path):
    for name in ("mine", "settings"):
        (tmp_path / f"{name}.yaml").touch()
    words, = command("run.sh", "MyTrainer", "base2new_train", "mine.yaml", "1", "--plugin", "my.module", cwd=tmp_path,
                     CFG="settings.yaml")
    assert option(words, "--output-dir") == "output/base2new/train_base/mine/shots_16/MyTrainer/settings/seed1"
    assert option(words, "--config-file") == "settings.yaml" and option(words, "--plugin") == "my.module"
    assert option(words, "--dataset-config-file") == "mine.yaml"


@pytest.mark.parametrize("words", [("--seed", "2"), ("SEED", "2"), ("TRAINER.NAME", "MaPLe")])
def test_what_the_folder_says_cannot_be_overruled(tmp_path, words):
    done = script("p2c/base2new_train.sh", "oxford_pets", "1", *words, cwd=tmp_path)
    assert done.returncode == 2 and words[0] in done.stderr


def test_what_coops_folders_say_cannot_be_overruled_but_elsewhere_it_can(tmp_path):
    pair = ("TRAINER.COOP.N_CTX", "4")
    for name, numbers in (("main", ("vit_b16", "end", "16", "1", "False")), ("eval", ("vit_b16_ep50",))):
        done = script(f"coop/{name}.sh", "imagenet", *numbers, *pair, cwd=tmp_path)
        assert done.returncode == 2 and pair[0] in done.stderr
    assert command("coop/few_shot.sh", "imagenet", "1", *pair, cwd=tmp_path, SEEDS="1")[0][-2:] == [*pair]


def test_variables_choose_data_output_and_configuration(tmp_path):
    words, = command("p2c/base2new_train.sh", "oxford_pets", "1", cwd=tmp_path, DATA="/d", OUTPUT="/o",
                     CFG=f"{MAIN}_preview")
    assert option(words, "--root") == "/d"
    assert option(words, "--output-dir").startswith("/o/base2new/train_base/oxford_pets/")
    assert words[-2:] == ["OPTIM.MAX_EPOCH", "10"]  # what the preview sets for this dataset


def test_the_preview_tests_transfer_with_the_tokens_of_its_training(tmp_path):
    words, = command("p2c/base2new_train.sh", "ucf101", "1", cwd=tmp_path, CFG=f"{MAIN}_preview")
    assert words[-2:] == ["TRAINER.P2C.N_CTX", "2"]
    for protocol, dataset in (("xd_train", "imagenet"), ("xd_test", "ucf101")):
        words, = command(f"p2c/{protocol}.sh", dataset, "1", cwd=tmp_path, CFG=f"{MAIN}_preview")
        assert words[-2:] == ["OPTIM.MAX_EPOCH", "2"] and "TRAINER.P2C.N_CTX" not in words


@pytest.mark.parametrize("words, named", [
    ((), ("base2new_train", "DATASET SEED")),
    (("oxford_pets",), ("base2new_train", "DATASET SEED")),
    (("oxford_cats", "1"), ("'oxford_cats'", "caltech101 dtd eurosat")),
    (("oxford_pets", "one"), ("SEED", "'one'")),
])
def test_a_mistaken_call_is_one_line_and_status_2(tmp_path, words, named):
    done = script("p2c/base2new_train.sh", *words, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert re.search(naming(*named), done.stderr)


@pytest.mark.parametrize("words, named", [
    (("vit_b16", "end", "16", "1"), ("DATASET CFG CTP NCTX SHOTS CSC", "oxford_pets vit")),
    (("vit_b16", "back", "16", "1", "False"), ("CTP", "'back'", "end, middle or front")),
    (("vit_b16", "16", "end", "1", "False"), ("CTP", "'16'", "end, middle or front")),
    (("vit_b16", "end", "many", "1", "False"), ("NCTX", "'many'")),
    (("vit_b16", "end", "16", "all", "False"), ("SHOTS", "'all'")),
    (("vit_b16", "end", "16", "1", "yes"), ("CSC", "'yes'", "True or False")),
    (("vit_b17", "end", "16", "1", "True"), ("CoOp", "'vit_b17'", "rn101 rn101_ep50 rn50")),
])
def test_a_mistaken_call_of_coops_main_is_one_line_and_status_2(tmp_path, words, named):
    done = script("coop/main.sh", "oxford_pets", *words, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert re.search(naming(*named), done.stderr)


def test_an_unknown_configuration_or_protocol_is_one_line_and_status_2(tmp_path):
    done = script("p2c/base2new_train.sh", "oxford_pets", "1", cwd=tmp_path, CFG="vit_b17")
    assert done.returncode == 2 and re.search(naming("P2C", "'vit_b17'", "tiny_shapes"), done.stderr)
    done = script("run.sh", "P3C", "base2new_train", "oxford_pets", "1", cwd=tmp_path)
    assert done.returncode == 2 and re.search(naming("'P3C'", "CoCoOp CoOp IVLP MaPLe"), done.stderr)
    done = script("run.sh", "P2C", "base2novel", "oxford_pets", "1", cwd=tmp_path)
    assert done.returncode == 2 and re.search(naming("'base2novel'", "base2new_train"), done.stderr)
    done = script("run.sh", "IVLP:image_only", "base2new_train", "oxford_pets", "1", cwd=tmp_path)
    assert done.returncode == 2 and re.search(naming("IVLP", "tiny_shapes_language_only"), done.stderr)
    done = script("run.sh", "MaPLe", "eval", "imagenet_a", MAIN, cwd=tmp_path)
    assert done.returncode == 2 and re.search(naming("eval", "CoOp", "'MaPLe'"), done.stderr)


@pytest.mark.parametrize("path, words, trains", [
    ("p2c/base2new_test.sh", ("shapes", "7", "OPTIM.LR", "1 2"), "P2C base2new_train shapes 7 OPTIM.LR '1 2'"),
    ("p2c/xd_test.sh", ("shapes_dark", "7"), "P2C xd_train shapes 7"),
    ("coop/eval.sh", ("shapes_dark", "tiny_shapes"), "CoOp main shapes tiny_shapes end 16 16 False"),
])
def test_a_test_without_its_training_names_the_command_that_trains(tmp_path, path, words, trains):
    done = script(path, *words, cwd=tmp_path, OUTPUT="my out", SEEDS="1,2")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())
    command = shlex.split(done.stderr.rpartition("train first: ")[2])
    assert command == ["OUTPUT=my out", "SEEDS=1,2", "bash", f"{ROOT}/scripts/run.sh", *shlex.split(trains)]
    tested = script(path, *words[:2], "--dry-run", *words[2:], cwd=tmp_path, OUTPUT="my out", SEEDS="1").stdout
    trained = subprocess.run([*command[2:], "--dry-run"] if "OPTIM.LR" not in words else
                             [*command[2:8], "--dry-run", *command[8:]], cwd=tmp_path, capture_output=True, text=True,
                             env={**os.environ, "OUTPUT": "my out", "SEEDS": "1"}).stdout
    assert option(shlex.split(tested), "--model-dir") == option(shlex.split(trained), "--output-dir")


@pytest.mark.parametrize("words", [("--help",), ("P2C", "--help"), ("P2C", "few_shot", "-h")])
def test_help_explains_the_protocols(tmp_path, words):
    done = script("run.sh", *words, cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr and "set -" not in done.stdout
    assert all(f" {protocol} " in done.stdout for protocol in ("base2new_test", "xd_train", "few_shot", "zeroshot"))


def test_seeds_are_separated_by_spaces_or_commas(tmp_path):
    spaces, commas = (command("p2c/few_shot.sh", "shapes", "1", cwd=tmp_path, SEEDS=seeds) for seeds in ("2 3", "2,3"))
    assert spaces == commas and len(commas) == 2


def test_a_terminated_script_stops_its_training_and_a_second_call_continues_it(tmp_path):
    """Slurm ends a job with SIGTERM to the script."""
    make_pets(tmp_path / "data")
    words = ("oxford_pets", "1", "MODEL.BACKBONE.WEIGHTS", "random", "OPTIM.MAX_EPOCH", "60", "USE_CUDA", "False",
             "DATASET.CHECKS", "partial")
    command = ["bash", str(ROOT / "scripts/p2c/base2new_train.sh"), *words]
    settings = dict(cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                    env={**os.environ, "PYTHON": sys.executable, "CFG": "tiny_shapes"})
    run = tmp_path / "output/base2new/train_base/oxford_pets/shots_16/P2C/tiny_shapes/seed1"
    with subprocess.Popen(command, **settings) as training:
        deadline = time.monotonic() + 120
        while not list(run.glob("MultiModalPromptLearner/model.pth.tar-*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        training.terminate()
        _, error = training.communicate(timeout=60)
    assert training.returncode == 75 and "Stopped after epoch" in error
    assert not read_results(str(run))["finished"]
    done = script("p2c/base2new_train.sh", *words, "TRAIN.PRINT_FREQ", "100", cwd=tmp_path, PYTHON=sys.executable,
                  CFG="tiny_shapes")
    assert done.returncode == 0, done.stderr
    assert "Found checkpoint at" in done.stdout and read_results(str(run))["finished"]


def test_p2c_trains_and_tests_on_clips_weights_and_jpegs_through_the_scripts(tmp_path):
    """CLIP's real size: a random ViT-B/16 as a file of weights, real-size JPEGs in OxfordPets' layout."""
    torch.save(load_backbone("ViT-B/16", "random").model.half().state_dict(), tmp_path / "ViT-B-16.pt")
    make_pets(tmp_path / "my data", images_per_class=(2, 1, 1), size=(500, 375), suffix="jpg")
    words = ("oxford_pets", "1", "OPTIM.MAX_EPOCH", "1", "DATALOADER.NUM_WORKERS", "0", "MODEL.BACKBONE.WEIGHTS",
             str(tmp_path / "ViT-B-16.pt"), "DATASET.CHECKS", "partial")
    for protocol, half, names in (("base2new_train", "train_base", 2), ("base2new_test", "test_new", 2)):
        done = script(f"p2c/{protocol}.sh", *words, cwd=tmp_path, DATA=str(tmp_path / "my data"), PYTHON=sys.executable)
        assert done.returncode == 0, done.stderr
        run = tmp_path / "output/base2new" / half / "oxford_pets/shots_16/P2C" / MAIN / "seed1"
        results = read_results(str(run))
        assert results["finished"] and results["metrics"]["total"] == names and results["epoch"] == 1
    checkpoint = tmp_path / "output/base2new/train_base/oxford_pets/shots_16/P2C" / MAIN / \
        "seed1/MultiModalPromptLearner/model.pth.tar-1"
    assert checkpoint.stat().st_size < 32_000_000
    state = torch.load(checkpoint)["state_dict"]
    assert state["ctx"].shape == (2, 512) and state["proj.2.weight"].shape == (768, 512) and len(state) == 29


# Every script there is

SCRIPTS = sorted(str(path.relative_to(ROOT / "scripts")) for path in (ROOT / "scripts").glob("*/*.sh"))
NUMBERS = {"few_shot": ("1",), "zeroshot": ("tiny_shapes",), "eval": ("tiny_shapes",),
           "main": ("tiny_shapes", "end", "16", "1", "False")}


def arguments(path, dataset):
    return path, dataset, *NUMBERS.get(Path(path).stem, ("1",))


def test_every_trainer_has_a_script_of_each_protocol():
    protocols = ("base2new_train", "base2new_test", "xd_train", "xd_test", "few_shot")
    more = {"coop/main.sh", "coop/eval.sh", "zsclip/base2new_test.sh", "zsclip/zeroshot.sh"}
    assert set(SCRIPTS) == {f"{folder}/{protocol}.sh" for folder in METHODS for protocol in protocols} | more
    assert all(os.access(ROOT / "scripts" / path, os.X_OK) for path in SCRIPTS)


@pytest.mark.parametrize("path", SCRIPTS)
def test_a_dry_run_prints_what_would_run_and_runs_nothing(tmp_path, path):
    done = script(*arguments(path, "shapes"), "--dry-run", "OPTIM.LR", "1 2", cwd=tmp_path, PYTHON="python")
    assert done.returncode == 0 and not done.stderr
    for line in done.stdout.splitlines():
        words = shlex.split(line)
        assert words[:2] == ["python", str(ROOT / "train.py")] and words[-2:] == ["OPTIM.LR", "1 2"]
    counts = {"few_shot": 3, "main": 3, "eval": 3, "base2new_test": 2 if path.startswith("zs") else 1}
    assert len(done.stdout.splitlines()) == counts.get(Path(path).stem, 1)
    assert not list(tmp_path.iterdir())


def test_scripts_run_on_shapes(tmp_path, monkeypatch, few_shapes, capsys):
    """One epoch each, of what the scripts call; the scripts of a trainer in order, since tests need trainings.

    All of P2C's and zero-shot CLIP's scripts, and those that only CoOp has; the others' call the same lines of run.sh.
    """
    ours = [path for path in SCRIPTS if Path(path).parent.name in ("p2c", "zsclip")
            or Path(path).stem in ("main", "eval")]
    monkeypatch.chdir(tmp_path)
    for path in sorted(ours, key=lambda path: ("test" in path or "eval" in path, path)):
        words = arguments(path, "shapes_dark" if path.endswith(("xd_test.sh", "eval.sh")) else "shapes")
        pairs = () if path.startswith("zsclip") else ("OPTIM.MAX_EPOCH", "1", "DATASET.NUM_SHOTS", "1")
        for run in command(*words, *pairs, cwd=tmp_path, SEEDS="1", DATA=str(tmp_path / "data")):
            assert train.run(train.parse_args(run)) == train.FINISHED, path
            shared = path.endswith("xd_train.sh")  # with these settings the few-shot run, in the same folder
            assert ("Finished before" if shared else "* accuracy: ") in capsys.readouterr().out
