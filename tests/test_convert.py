"""Runs of MaPLe and P2C in MaPLe's layout: the same predictions by MaPLe, whatever the mapper was; and the command."""
import re
import shlex
import sys
from types import SimpleNamespace

import pytest
import torch
from clip_files import make_pets
from messages import naming

from p2c.cli import convert, train
from p2c.denoising.mapper import MLPMapper
from p2c.inference.models import load_model

SMALL = ("MODEL.BACKBONE.WEIGHTS", "random", "OPTIM.MAX_EPOCH", "2", "OPTIM.WARMUP_EPOCH", "-1", "USE_CUDA", "False",
         "TRAIN.CHECKPOINT_FREQ", "1", "VERBOSE", "False", "DATASET.CHECKS", "partial")
ATTRIBUTES = ("TRAINER.ATPROMPT.USE_ATPROMPT", "True", "TRAINER.ATPROMPT.ATT_NUM", "1", "TRAINER.ATPROMPT.ATT1_TEXT",
              "color")
RUNS = {"P2C": ("P2C",), "MaPLe": ("MaPLe",), "CoOp": ("CoOp",), "zero-shot": ("ZeroshotCLIP", "--eval-only"),
        "attributes": ("MaPLe", *ATTRIBUTES),
        "P2C of four": ("P2C", "TRAINER.P2C.N_CTX", "4", "TRAINER.P2C.CTX_INIT", "", "TRAINER.P2C.PROMPT_DEPTH", "1",
                        "TRAINER.P2C.MAPPER.HIDDEN_SCALE", "0.5")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """call(trainer, folder, word, ...): a run of train.py; of(name): the folder of one of RUNS."""
    place = tmp_path_factory.mktemp("runs")
    make_pets(place / "data")

    def call(trainer, folder, *words):
        stdout = sys.stdout
        status = train.run(train.parse_args([
            "--root", str(place / "data"), "--seed", "1", "--trainer", trainer, "--output-dir", str(folder),
            "--dataset-config-file", "configs/datasets/oxford_pets.yaml", "--config-file",
            f"configs/trainers/{trainer}/tiny_shapes.yaml", *words, *SMALL]))
        sys.stdout = stdout
        return status

    def of(name):
        folder = place / name
        if not folder.is_dir():
            assert call(RUNS[name][0], folder, *RUNS[name][1:]) == train.FINISHED
        return folder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "collect_env_info", str)  # takes seconds
        yield SimpleNamespace(call=call, of=of)


@pytest.fixture
def command(capsys):
    """command(word, ...): the command's exit status, lines on standard output, and on standard error."""
    def run(*words):
        capsys.readouterr()
        try:
            status = convert.main([str(word) for word in words])
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out.splitlines(), err.splitlines()
    return run


def settings_in(lines):
    """The KEY VALUE pairs that the command's last line gives."""
    assert lines[-1].startswith("Its settings: ")
    return shlex.split(lines[-1].removeprefix("Its settings: "))


# The same predictions

@pytest.mark.parametrize("name", ["P2C", "MaPLe", "P2C of four"])
def test_maple_predicts_from_a_converted_run_what_the_run_predicts(runs, command, tmp_path, name):
    run, out = runs.of(name), tmp_path / "converted"
    status, lines, errors = command(run, out)
    assert status == 0 and not errors and lines[0] == f"Written to {out}/MultiModalPromptLearner/model.pth.tar-2"
    assert runs.call("MaPLe", tmp_path / "test", "--eval-only", "--model-dir", str(out), "--load-epoch", "2",
                     *settings_in(lines)) == train.FINISHED
    images = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    original, converted = (load_model(folder) for folder in (run, tmp_path / "test"))
    assert type(converted).__name__ == "MaPLeModel"
    expected, got = original(images), converted(images)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    if name == "MaPLe":
        assert torch.equal(got, expected)


def test_the_file_is_as_maple_writes_it(runs, command, tmp_path):
    assert command(runs.of("P2C"), tmp_path, "--load-epoch", "1")[0] == 0
    folder = tmp_path / "MultiModalPromptLearner"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint", "model.pth.tar-1"]
    assert (folder / "checkpoint").read_text() == "model.pth.tar-1\n"
    checkpoint = torch.load(folder / "model.pth.tar-1", weights_only=True)
    assert {key: value for key, value in checkpoint.items() if key != "state_dict"} == \
        {"epoch": 1, "optimizer": None, "scheduler": None, "val_result": None}
    shapes = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    assert shapes == {f"prompt_learner.{name}": shape for name, shape in {
        "ctx": (2, 128), "proj.weight": (128, 128), "proj.bias": (128,),
        **{f"compound_prompts_text.{i}": (2, 128) for i in (0, 1)},
        **{f"compound_prompt_projections.{i}.weight": (128, 128) for i in (0, 1)},
        **{f"compound_prompt_projections.{i}.bias": (128,) for i in (0, 1)}}.items()}


def test_epochs_lie_side_by_side_and_none_is_overwritten(runs, command, tmp_path):
    assert command(runs.of("P2C"), tmp_path, "--load-epoch", "1")[0] == 0
    assert command(runs.of("P2C"), tmp_path)[0] == 0
    first = torch.load(tmp_path / "MultiModalPromptLearner/model.pth.tar-1")["state_dict"]
    last = torch.load(tmp_path / "MultiModalPromptLearner/model.pth.tar-2")["state_dict"]
    assert not torch.equal(first["prompt_learner.ctx"], last["prompt_learner.ctx"])
    status, _, errors = command(runs.of("MaPLe"), tmp_path)
    assert status == 2 and len(errors) == 1 and "model.pth.tar-2" in errors[0]
    assert torch.load(tmp_path / "MultiModalPromptLearner/model.pth.tar-2")["state_dict"].keys() == last.keys()


# Folding

def mapper(seed=0):
    torch.manual_seed(seed)
    return MLPMapper(6, 5, 7)


@pytest.mark.parametrize("tokens", [1, 2, 6, 7])
def test_a_folded_mapper_is_the_mapper_on_the_context(tokens):
    context = 0.02 * torch.randn(tokens, 6)
    weight, bias, error = convert.fold(mapper(), context)
    expected = mapper()(context)
    assert weight.dtype == bias.dtype == torch.float32
    assert (context @ weight.t() + bias - expected).abs().max() <= 2e-6 * expected.abs().max()
    assert error <= 2e-6


def test_a_folded_mapper_has_the_least_weights_of_all_that_do(tmp_path):
    context = torch.randn(3, 6)
    weight, _, _ = convert.fold(mapper(), context)
    directions = context[1:] - context[0]
    outside = torch.eye(6) - torch.linalg.pinv(directions) @ directions
    assert (weight @ outside).abs().max() <= 1e-5 * weight.abs().max()


def test_equal_tokens_fold_as_they_are_mapped_alike():
    context = torch.randn(2, 6)[[0, 1, 0]]
    weight, bias, _ = convert.fold(mapper(), context)
    assert torch.allclose(context @ weight.t() + bias, mapper()(context), atol=1e-5)


def test_tokens_on_a_line_cannot_be_folded_and_diverged_ones_neither():
    step = torch.randn(6)
    with pytest.raises(ValueError, match=naming("Linear", "3 tokens")):
        convert.fold(mapper(), torch.stack([step, 2 * step, 3 * step]))
    with pytest.raises(ValueError, match=naming("not finite", "epoch")):
        convert.fold(mapper(), torch.full((2, 6), torch.nan))


# The command

@pytest.mark.parametrize("name, named", [
    ("CoOp", ("CoOp", "MaPLe")),
    ("zero-shot", ("ZeroshotCLIP", "MaPLe")),
    ("attributes", ("MaPLe", "attributes")),
])
def test_what_has_no_place_in_the_layout_is_refused(runs, command, tmp_path, name, named):
    status, lines, errors = command(runs.of(name), tmp_path / "out")
    assert status == 2 and not lines and len(errors) == 1 and errors[0].startswith("error: ")
    assert re.search(naming(*named), errors[0])
    assert not (tmp_path / "out").exists()


def test_a_mistake_is_one_line_and_status_2(runs, command, tmp_path):
    run = runs.of("P2C")
    for words, message in (((run, run), "is the folder of a run; choose another one"),
                           ((tmp_path, tmp_path / "out"), "it has no results.json"),
                           ((run, tmp_path / "out", "--load-epoch", "9"), "No checkpoint at"),
                           ((run,), "the following arguments are required: OUT")):
        status, lines, errors = command(*words)
        assert status == 2 and not lines and len(errors) == 1 and errors[0].startswith("error: ")
        assert message in errors[0]
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_line_and_status_1(runs, command, tmp_path):
    (tmp_path / "file").touch()
    status, lines, errors = command(runs.of("P2C"), tmp_path / "file")
    assert status == 1 and not lines and len(errors) == 1 and errors[0].startswith("error: ")
