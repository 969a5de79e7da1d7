"""The shell scripts: which command they give train.py, and the main job end to end on CLIP's real size and formats."""
import os
import re
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from clip_files import make_pets, save_openai_archive

from p2c.clip.loading import load_backbone
from p2c.framework import read_results

ROOT = Path(__file__).resolve().parents[1]
MAIN = "vit_b16_c2_ep5_batch4_2ctx"
METHODS = {"p2c": "P2C", "maple": "MaPLe"}


def script(path, *words, cwd, **variables):
    return subprocess.run(["bash", str(ROOT / "scripts" / path), *words], cwd=cwd, capture_output=True, text=True,
                          env={**os.environ, **variables})


def command(path, *words, cwd, **variables):
    """What train.py would be called with."""
    done = script(path, *words, cwd=cwd, PYTHON="echo", **variables)
    assert done.returncode == 0, done.stderr
    return [line.split()[1:] for line in done.stdout.splitlines()]


def option(words, name):
    return words[words.index(name) + 1]


@pytest.mark.parametrize("folder, trainer", METHODS.items())
@pytest.mark.parametrize("protocol, cfg, out, model, pairs", [
    ("base2new_train", MAIN, "output/base2new/train_base/dtd/shots_16/T/CFG/seed2", None,
     "TRAIN.CHECKPOINT_FREQ 1 DATASET.NUM_SHOTS 16 DATASET.SUBSAMPLE_CLASSES base"),
    ("base2new_test", MAIN, "output/base2new/test_new/dtd/shots_16/T/CFG/seed2",
     "output/base2new/train_base/dtd/shots_16/T/CFG/seed2", "DATASET.NUM_SHOTS 16 DATASET.SUBSAMPLE_CLASSES new"),
    ("xd_train", f"{MAIN}_cross_datasets", "output/dtd/T/CFG_16shots/seed2", None,
     "TRAIN.CHECKPOINT_FREQ 1 DATASET.NUM_SHOTS 16"),
    ("xd_test", f"{MAIN}_cross_datasets", "output/evaluation/T/CFG_16shots/dtd/seed2",
     "output/imagenet/T/CFG_16shots/seed2", ""),
])
def test_protocols_use_the_fields_folders_and_settings(tmp_path, folder, trainer, protocol, cfg, out, model, pairs):
    words, = command(f"{folder}/{protocol}.sh", "oxford_pets", "2", cwd=tmp_path)

    def fill(text):
        return text.replace("/T/", f"/{trainer}/").replace("CFG", cfg).replace("dtd", "oxford_pets")

    assert option(words, "--output-dir") == fill(out)
    assert option(words, "--trainer") == trainer
    assert option(words, "--seed") == "2" and option(words, "--root") == "data"
    assert option(words, "--config-file").endswith(f"configs/trainers/{trainer}/{cfg}.yaml")
    assert option(words, "--dataset-config-file").endswith("configs/datasets/oxford_pets.yaml")
    assert ("--eval-only" in words) == (model is not None)
    assert model is None or option(words, "--model-dir") == fill(model)
    assert words[words.index("--") + 1:] == pairs.split()


def test_few_shot_loops_the_seeds(tmp_path):
    runs = command("p2c/few_shot.sh", "oxford_pets", "4", cwd=tmp_path)
    assert [option(words, "--output-dir") for words in runs] == [
        f"output/oxford_pets/P2C/{MAIN}_few_shot_4shots/seed{seed}" for seed in (1, 2, 3)]
    assert all(words[-2:] == ["DATASET.NUM_SHOTS", "4"] for words in runs)
    assert len(command("p2c/few_shot.sh", "oxford_pets", "4", cwd=tmp_path, SEEDS="5")) == 1


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


def test_the_shapes_family_uses_the_tiny_configuration_and_shapes_as_source(tmp_path):
    words, = command("p2c/base2new_train.sh", "shapes", "1", cwd=tmp_path)
    assert option(words, "--config-file").endswith("P2C/tiny_shapes.yaml")
    words, = command("maple/xd_test.sh", "shapes_dark", "1", cwd=tmp_path)
    assert option(words, "--model-dir") == "output/shapes/MaPLe/tiny_shapes_16shots/seed1"


def test_the_users_options_and_pairs_win(tmp_path):
    words, = command("p2c/base2new_train.sh", "oxford_pets", "1", "--backbone", "RN50", "--debug",
                     "OPTIM.MAX_EPOCH", "1", "DATASET.NUM_SHOTS", "2", cwd=tmp_path)
    assert words.index("--backbone") < words.index("--debug") < words.index("--") < words.index("DATASET.NUM_SHOTS")
    assert words[-4:] == ["OPTIM.MAX_EPOCH", "1", "DATASET.NUM_SHOTS", "2"]


def test_the_folder_tells_the_number_of_shots_that_runs(tmp_path):
    for protocol, folder in (("base2new_train", "/shots_4/"), ("xd_train", "_4shots/")):
        words, = command(f"maple/{protocol}.sh", "oxford_pets", "1", "DATASET.NUM_SHOTS", "4", cwd=tmp_path)
        assert folder in option(words, "--output-dir") and words[-2:] == ["DATASET.NUM_SHOTS", "4"]


def test_ones_own_images_are_a_data_set_of_their_folders_name_and_a_short_hash(tmp_path):
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


def test_a_missing_folder_of_images_is_one_line_and_status_2(tmp_path):
    for variables, dataset in (({}, "folder:nowhere"), ({"SOURCE": "folder:nowhere"}, "dtd")):
        done = script("p2c/xd_test.sh", dataset, "1", cwd=tmp_path, **variables)
        assert done.returncode == 2 and done.stderr == "error: No folder of images, or split file, at 'nowhere'\n"


def test_yaml_files_of_ones_own_name_data_set_trainer_and_configuration(tmp_path):
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
    assert done.returncode == 2 and f"{words[0]} belongs to the script's own arguments" in done.stderr


def test_variables_choose_data_output_and_configuration(tmp_path):
    words, = command("p2c/base2new_train.sh", "oxford_pets", "1", cwd=tmp_path, DATA="/d", OUTPUT="/o",
                     CFG=f"{MAIN}_preview")
    assert option(words, "--root") == "/d"
    assert option(words, "--output-dir").startswith("/o/base2new/train_base/oxford_pets/")
    assert words[-2:] == ["OPTIM.MAX_EPOCH", "10"]  # what the preview sets for this data set


@pytest.mark.parametrize("words, message", [
    ((), "base2new_train of P2C needs DATASET SEED"),
    (("oxford_pets",), "base2new_train of P2C needs DATASET SEED"),
    (("oxford_cats", "1"), "Unknown data set 'oxford_cats'; choose from caltech101 dtd eurosat"),
    (("oxford_pets", "one"), "SEED must be a whole number, but got 'one'"),
])
def test_a_mistaken_call_is_one_line_and_status_2(tmp_path, words, message):
    done = script("p2c/base2new_train.sh", *words, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {message}") and len(done.stderr.splitlines()) == 1


def test_an_unknown_configuration_or_protocol_is_one_line_and_status_2(tmp_path):
    done = script("p2c/base2new_train.sh", "oxford_pets", "1", cwd=tmp_path, CFG="vit_b17")
    assert done.returncode == 2 and "P2C has no configuration 'vit_b17'; choose from tiny_shapes" in done.stderr
    done = script("run.sh", "P3C", "base2new_train", "oxford_pets", "1", cwd=tmp_path)
    assert done.returncode == 2 and "Unknown trainer 'P3C'; choose from MaPLe P2C ZeroshotCLIP" in done.stderr
    done = script("run.sh", "P2C", "base2novel", "oxford_pets", "1", cwd=tmp_path)
    assert done.returncode == 2 and "Unknown protocol 'base2novel'; choose from base2new_train" in done.stderr


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
    assert training.returncode == 75 and "Interrupted" in error
    assert not read_results(str(run))["finished"]
    done = script("p2c/base2new_train.sh", *words, "TRAIN.PRINT_FREQ", "100", cwd=tmp_path, PYTHON=sys.executable,
                  CFG="tiny_shapes")
    assert done.returncode == 0, done.stderr
    assert "Found checkpoint at" in done.stdout and read_results(str(run))["finished"]


def test_p2c_trains_and_tests_on_openais_archive_and_jpegs_through_the_scripts(tmp_path):
    """CLIP's real size and formats: a random ViT-B/16 as OpenAI's archive, real-size JPEGs in OxfordPets' layout."""
    save_openai_archive(load_backbone("ViT-B/16", "random").model, tmp_path / "ViT-B-16.pt")
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
NUMBERS = {"few_shot": "1", "zeroshot": "tiny_shapes"}


def arguments(path, dataset):
    return path, dataset, NUMBERS.get(Path(path).stem, "1")


@pytest.mark.parametrize("path", SCRIPTS)
def test_a_dry_run_prints_what_would_run_and_runs_nothing(tmp_path, path):
    done = script(*arguments(path, "shapes"), "--dry-run", "OPTIM.LR", "1 2", cwd=tmp_path, PYTHON="python")
    assert done.returncode == 0 and not done.stderr
    for line in done.stdout.splitlines():
        words = shlex.split(line)
        assert words[:2] == ["python", str(ROOT / "train.py")] and words[-2:] == ["OPTIM.LR", "1 2"]
    assert len(done.stdout.splitlines()) == {"few_shot": 3, "base2new_test": 2 if path.startswith("zs") else 1}.get(
        Path(path).stem, 1)
    assert not list(tmp_path.iterdir())


def test_every_script_runs_on_shapes(tmp_path):
    """One epoch each; the scripts of a trainer in order, since tests need trainings, and the trainers side by side."""
    chains = {}
    for path in SCRIPTS:
        chains.setdefault(Path(path).parent.name, []).append(path)
    for paths in chains.values():
        paths.sort(key=lambda path: ("test" in path, path))
    settings = {"PYTHON": sys.executable, "DATA": str(tmp_path / "data"), "SEEDS": "1", "OMP_NUM_THREADS": "1"}

    def run(paths):
        for path in paths:
            words = arguments(path, "shapes_dark" if path.endswith("xd_test.sh") else "shapes")
            pairs = () if path.startswith("zsclip") else ("OPTIM.MAX_EPOCH", "1", "DATASET.NUM_SHOTS", "1")
            yield path, script(*words, *pairs, cwd=tmp_path, **settings)

    with ThreadPoolExecutor(len(chains)) as pool:
        ended = [end for chain in pool.map(lambda paths: list(run(paths)), chains.values()) for end in chain]
    assert {path for path, _ in ended} == set(SCRIPTS)
    for path, done in ended:
        assert done.returncode == 0, (path, done.stderr)
        shared = path.endswith("xd_train.sh")  # with these settings the few-shot run, in the same folder
        assert ("Finished before" if shared else "* accuracy: ") in done.stdout
