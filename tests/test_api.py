"""`p2c train` and `import p2c`: from a folder of images to a trained run and its predictions, in a few words."""
import logging
import os
import re

import pytest
import torch
from messages import naming
from test_own_data import ROOT, draw_photos

import p2c
from p2c.cli import train
from p2c.engine.logger import log_to_file
from p2c.engine.results import read_results
from p2c.inference.predictor import Predictor

SHORT = ("DATALOADER.NUM_WORKERS", "0", "OPTIM.MAX_EPOCH", "1", "USE_CUDA", "False")
RUN = r"output/photos-[0-9a-f]{8}/P2C/tiny_shapes_2shots/seed1"


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder of images in the working folder, and a quick report on the machine."""
    draw_photos(tmp_path / "photos", (0, 6), 8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "collect_env_info", str)
    return tmp_path / "photos"


@pytest.fixture
def command(capsys):
    """command(word, ...): the status of `p2c train`, the lines on standard output, and on standard error."""
    def run(*words):
        capsys.readouterr()
        try:
            status = train.main(words)
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out.splitlines(), err.splitlines()
    return run


def test_the_package_shows_its_interface_and_imports_it_when_it_is_used():
    assert dir(p2c) == sorted(p2c.__all__) and all(hasattr(p2c, name) for name in p2c.__all__)
    assert p2c.load == Predictor.from_run and p2c.train is train.train


def test_training_and_loading_print_nothing_and_leave_a_whole_run(tmp_path, start):
    draw_photos(tmp_path / "photos", (0, 6), 8)
    program = f"""
import p2c, p2c.cli.train, torch
p2c.cli.train.collect_env_info = str  # takes seconds
settings = {dict(zip(SHORT[::2], map(eval, SHORT[1::2]), strict=True))!r}
state = torch.get_rng_state()
predictor = p2c.train("photos/", shots=2, backbone="tiny-shapes", output="run", settings=settings)
assert torch.equal(torch.get_rng_state(), state)
images = [f"photos/red_solid_star/{{number}}.png" for number in range(3)]
probabilities = predictor.predict(images)
assert probabilities.shape == (3, 2) and predictor.classnames == ["blue_hollow_circle", "red_solid_star"]
assert torch.equal(p2c.load("run").predict(images), probabilities)
assert p2c.load_model("run")(torch.zeros(1, 3, 64, 64)).shape == (1, 2)
again = p2c.train("photos/", shots=2, backbone="tiny-shapes", output="run", settings=settings)
assert torch.equal(again.predict(images), probabilities)
"""
    done = start("-c", program, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    results = read_results(str(tmp_path / "run"))
    assert results["finished"] and results["num_shots"] == 2 and results["epoch"] == 1
    log = (tmp_path / "run/log.txt").read_text()
    assert "epoch [1/1] batch" in log and "* accuracy: " in log and len(list(tmp_path.glob("run/log.txt*"))) == 1


def test_python_raises_what_the_commands_report(photos):
    with pytest.raises(FileNotFoundError, match="'nowhere'"):
        p2c.train("nowhere")
    with pytest.raises(ValueError, match=naming("'P3C'", "CoOp")):
        p2c.train("photos", method="P3C")
    with pytest.raises(ValueError, match=naming("SEED", "--seed")):
        p2c.train("photos", settings={"SEED": 2})
    with pytest.raises(ValueError, match="OPTIM.FOO"):
        p2c.train("photos", settings={"OPTIM.FOO": 2})
    assert sorted(os.listdir()) == ["photos"]


def test_one_command_trains_tells_where_and_does_not_repeat(photos, command):
    words = ("photos/", "--shots", "2", "--backbone", "tiny-shapes", *SHORT)
    status, out, _ = command(*words)
    assert status == 0 and any(line.startswith("* accuracy: ") for line in out)
    run = re.fullmatch(rf"Classify images with this run:  p2c predict ({RUN}) IMAGES", out[-1])[1]
    assert read_results(run)["finished"] and read_results(run)["config"]["DATASET"]["NUM_SHOTS"] == 2
    status, again, _ = command(*words)
    assert status == 0 and "Finished before" in again[0] and again[-1] == out[-1]


def test_zero_shot_clip_is_tested_without_training(photos):
    predictor = p2c.train("photos", method="ZeroshotCLIP", backbone="tiny-shapes", settings={"USE_CUDA": False})
    assert re.fullmatch(r"output/ZeroshotCLIP/tiny_shapes/photos-[0-9a-f]{8}", predictor.cfg.OUTPUT_DIR)
    assert predictor.predict(photos / "red_solid_star/0.png").argmax() == 1


@pytest.mark.parametrize("words, named", [
    (("nowhere",), ("'nowhere'", "oxford_pets")), (("photos", "--method", "P3C"), ("'P3C'", "CoOp")),
    (("photos", "--shots", "many"), ("--shots", "many")), (("photos", "--seed", "-1"), ("--seed", "-1")),
    (("photos", "DATASET.NUM_SHOTS", "4"), ("DATASET.NUM_SHOTS", "--shots")),
    (("photos", "OPTIM.LR=1"), ("OPTIM.LR 1",)), (("photos", "OPTIM.LR", "1", "--seed", "2"), ("--seed",)),
    (("photos", "USE_CUDA"), ("USE_CUDA",)), (("photos", "--backbone", "ViT-B/17"), ("ViT-B/17",)), ((), ("DATA",)),
])
def test_a_mistake_is_one_line_and_status_2(photos, command, words, named):
    status, _, error = command(*words)
    assert status == 2 and len(error) == 1 and error[0].startswith("error: ")
    assert re.search(naming(*named), error[0])


def test_the_users_handlers_get_what_they_ask_for_while_a_file_gets_everything(tmp_path, monkeypatch):
    package, heard = logging.getLogger("p2c"), []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    parent = logging.Logger("parent")
    parent.handlers = [handler]
    for name, value in (("parent", parent), ("handlers", []), ("propagate", True)):
        monkeypatch.setattr(package, name, value)
    level = package.level
    try:
        for asked, expected in ((logging.WARNING, ["late"]), (logging.INFO, ["early", "late"])):
            package.setLevel(asked)
            heard.clear()
            with log_to_file(str(tmp_path / f"{asked}.log")):
                logging.getLogger("p2c.test").info("early")
                logging.getLogger("p2c.test").warning("late")
            assert heard == expected and (tmp_path / f"{asked}.log").read_text() == "early\nlate\n"
            assert package.level == asked and package.handlers == [] and package.propagate
    finally:
        package.setLevel(level)


def test_gradients_stay_on_for_whoever_reads_batches(photos):
    predictor = p2c.train("photos", method="ZeroshotCLIP", backbone="tiny-shapes", settings={"USE_CUDA": False})
    for _ in predictor.batches([photos / "red_solid_star/0.png"]):
        assert torch.is_grad_enabled()
