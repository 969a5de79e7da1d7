"""A run's classifier as a file: it gives the probabilities of `predict`, without this package; and what is refused."""
import json
import sys

import open_clip
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from p2c import __version__, registry
from p2c.cli import predict
from p2c.clip.loading import load_backbone
from p2c.clip.precision import Precision
from p2c.engine.files import read_image
from p2c.inference import export
from p2c.inference.predictor import Predictor

IMAGE_PROMPTS = ("VPT", "IVLP", "MaPLe", "PromptSRC", "P2C")
TRAINERS = ("ZeroshotCLIP", "CoOp", *IMAGE_PROMPTS)
SIZE = 64  # pixels
ALONE = """
import sys
sys.modules.update(dict.fromkeys(("p2c", "open_clip"), None))
import torch
torch.set_num_threads(1)
found = {"metadata.json": ""}
program = torch.export.load("model.pt2", extra_files=found).module()
images = torch.load("images.pt")
torch.save([program(images), program(images[:1]), found["metadata.json"]], "found.pt")
"""


@pytest.fixture
def predictor_of(make_trainer):
    """predictor_of(trainer, key, value, ...): a predictor of a model whose prompts are far from where they started."""
    def make(name="P2C", *pairs):
        trainer = make_trainer(name, *pairs)
        model = trainer.model.eval()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in model.learner.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        scores = trainer.cloud.predict if trainer.cloud else model.predict
        return Predictor(model, trainer.cfg, scores, trainer.dm.dataset.classnames, trainer.device)
    return make


@pytest.fixture
def exported(predictor_of, tmp_path):
    """exported(trainer): the tensors and metadata in the text classifier's file, the predictor, and the lines."""
    def run(trainer):
        predictor = predictor_of(trainer)
        lines = predictor.export(tmp_path / "classifier.safetensors")
        with safe_open(tmp_path / "classifier.safetensors", "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata(), predictor, lines  # noqa: SIM118
    return run


@pytest.fixture
def command(capsys, monkeypatch):
    """command(predictor, file): export as the command does; its exit status and lines on standard error."""
    def run(predictor, file):
        monkeypatch.setattr(Predictor, "from_run", lambda *inputs: predictor)
        capsys.readouterr()
        try:
            status = predict.main(["RUN", "--export", str(file)])
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        assert not out
        return status, err.splitlines()
    return run


def pictures(number=3):
    return torch.randn(number, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))


def photos(pets):
    return sorted((pets / "oxford_pets/images").glob("*_test_*.png"))


def probabilities_of(predictor, images):
    with torch.no_grad():
        return predictor.scores(images).float().softmax(1)


def close(found, expected, atol=1e-6):
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=atol)


# The image classifier

@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_exported_module_gives_the_probabilities_of_predict(predictor_of, trainer):
    predictor = predictor_of(trainer)
    found = export.ImageClassifier(predictor.model, None)(pictures())
    assert close(found, probabilities_of(predictor, pictures()))
    plain = predictor.model.logits(predictor.model.encode_image(pictures(), predictor.model.learner()._replace(
        visual=None, deep_visual=())), predictor.model.classifier()).softmax(1)
    assert close(found, plain) == (trainer not in IMAGE_PROMPTS)


def test_a_torch_program_runs_without_this_package_for_any_number_of_images(predictor_of, pets, tmp_path, start):
    predictor = predictor_of("P2C")
    lines = predictor.export(tmp_path / "model.pt2")
    assert len(lines) == 2 and "64, 64" in lines[0] and "checked" in lines[1]
    paths = photos(pets)
    images = torch.stack([predictor.transform(read_image(path)) for path in paths])
    torch.save(images, tmp_path / "images.pt")
    done = start("-c", ALONE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found, of_one, text = torch.load(tmp_path / "found.pt")
    expected = predictor.predict(paths)
    assert close(found, expected) and close(of_one, expected[:1])
    check_metadata(json.loads(text), predictor)
    assert str(tmp_path).encode() not in (tmp_path / "model.pt2").read_bytes()
    assert export.__file__.encode() not in (tmp_path / "model.pt2").read_bytes()


def check_metadata(about, predictor):
    assert about["classnames"] == predictor.classnames and about["p2c_version"] == __version__
    assert about["image_size"] == [SIZE, SIZE] and about["interpolation"] == "bicubic"
    assert about["pixel_mean"] == list(predictor.cfg.INPUT.PIXEL_MEAN)
    assert about["pixel_std"] == list(predictor.cfg.INPUT.PIXEL_STD)
    assert about["trainer"] == predictor.cfg.TRAINER.NAME


@pytest.mark.parametrize("trainer", ["CoOp", "IVLP", "P2C"])
def test_an_onnx_program_gives_the_probabilities_of_predict(predictor_of, tmp_path, trainer):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    predictor = predictor_of(trainer)
    lines = predictor.export(tmp_path / "model.onnx")
    assert len(lines) == 2 and "checked" in lines[1]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for number in (1, 2, 5):
        found, = session.run(["probabilities"], {"images": pictures(number).numpy()})
        assert close(torch.from_numpy(found), probabilities_of(predictor, pictures(number)))
    texts = session.get_modelmeta().custom_metadata_map
    lists = {"classnames", "image_size", "pixel_mean", "pixel_std"}
    check_metadata({key: json.loads(text) if key in lists else text for key, text in texts.items()}, predictor)


def test_a_cloud_is_exported_with_all_its_classifiers(predictor_of):
    predictor = predictor_of("MaPLe", "TEST.CLOUD_SAMPLES", 3, "TEST.CLOUD_LEVEL", 3.0)
    classifier = export.ImageClassifier(predictor.model, predictor.scores.__self__)
    expected = probabilities_of(predictor, pictures())
    assert close(classifier(pictures()), expected)
    assert not close(predictor.model.predict(pictures()).softmax(1), expected)
    program = export.load_torch(export.torch_file(classifier, pictures(2), {}))
    assert close(program(pictures()), expected)


def test_a_run_in_half_precision_is_exported_in_float32_and_says_so(predictor_of, tmp_path):
    predictor = predictor_of("P2C", "TRAINER.P2C.PREC", "bf16")
    lines = predictor.export(tmp_path / "model.pt2")
    assert "bf16" in lines[-1] and "float32" in lines[-1]
    program = torch.export.load(tmp_path / "model.pt2")
    assert {value.dtype for value in program.state_dict.values()} == {torch.float32}
    assert close(program.module()(pictures()), probabilities_of(predictor, pictures()), atol=0.05)
    assert predictor.model.precision == Precision(torch.bfloat16)


def test_an_export_leaves_the_model_as_it_was(predictor_of):
    predictor = predictor_of("IVLP")
    before = probabilities_of(predictor, pictures())
    export.ImageClassifier(predictor.model, None).to(torch.float64)
    assert torch.equal(probabilities_of(predictor, pictures()), before)
    assert all(parameter.requires_grad for parameter in predictor.model.learner.parameters())


@pytest.mark.parametrize("wrong", ["scaled", "nan"])
def test_a_program_that_differs_is_not_written(predictor_of, command, tmp_path, monkeypatch, wrong):
    predictor = predictor_of("ZeroshotCLIP")
    factor = {"scaled": 1.01, "nan": float("nan")}[wrong]

    def program(images):
        return factor * probabilities_of(predictor, images)

    monkeypatch.setattr(export, "torch_file", lambda *inputs: b"")
    monkeypatch.setattr(export, "load_torch", lambda content: program)
    status, lines = command(predictor, tmp_path / "model.pt2")
    assert status == 1 and len(lines) == 1 and "model.pt2" in lines[0] and not (tmp_path / "model.pt2").exists()


# The text classifier

@pytest.mark.parametrize("trainer", ["ZeroshotCLIP", "ZeroshotCLIP2"])
def test_plain_open_clip_and_the_exported_classifier_give_the_same_probabilities(pets, exported, trainer):
    tensors, about, predictor, lines = exported(trainer)
    assert not lines and about["image_tower"] == "plain"
    assert json.loads(about["classnames"]) == predictor.classnames
    model = load_backbone(about["backbone"], about["weights"]).model  # an open_clip.CLIP
    preprocess = open_clip.image_transform(
        tuple(json.loads(about["image_size"])), is_train=False, mean=json.loads(about["pixel_mean"]),
        std=json.loads(about["pixel_std"]), interpolation=about["interpolation"])
    images = torch.stack([preprocess(Image.open(path)) for path in photos(pets)])
    with torch.no_grad():
        features = model.encode_image(images, normalize=True)
    probabilities = (tensors["logit_scale"] * features @ tensors["weight"].t()).softmax(-1)
    assert torch.allclose(probabilities, predictor.predict(photos(pets)), atol=1e-5)


def test_a_classifier_for_prompted_images_is_written_and_says_so(exported):
    tensors, about, predictor, lines = exported("P2C")
    assert about["image_tower"] == "prompted"
    warning, = lines
    assert warning.startswith("warning: ") and "classifier.safetensors" in warning
    with torch.no_grad():
        features = predictor.model.encode_image(pictures(), predictor.model.learner())
    probabilities = (tensors["logit_scale"] * features @ tensors["weight"].t()).softmax(-1)
    assert torch.allclose(probabilities, probabilities_of(predictor, pictures()), atol=1e-5)


# What is refused

@pytest.mark.parametrize("ending", export.ENDINGS)
def test_class_features_for_each_image_are_no_classifier(predictor_of, command, monkeypatch, tmp_path, ending):
    monkeypatch.setattr(export, "find_spec", lambda name: name)
    status, lines = command(predictor_of("CoCoOp"), tmp_path / f"model{ending}")
    assert status == 2 and len(lines) == 1 and "CoCoOp" in lines[0] and "p2c predict" in lines[0]
    assert not list(tmp_path.glob("model*"))


@pytest.mark.parametrize("name", ["clf.pt", "clf", "clf.ONNX", "clf.onnx.zip"])
def test_another_ending_is_refused_before_the_run_is_loaded(command, tmp_path, name):
    status, lines = command(None, tmp_path / name)
    assert status == 2 and len(lines) == 1 and not (tmp_path / name).exists()
    assert all(word in lines[0] for word in (name, *export.ENDINGS))


def test_without_onnx_the_line_names_the_extra(command, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    status, lines = command(None, tmp_path / "model.onnx")
    assert status == 2 and len(lines) == 1 and "p2c[onnx]" in lines[0]


def test_without_onnxruntime_the_file_is_written_and_not_checked(predictor_of, command, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    status, lines = command(predictor_of("ZeroshotCLIP"), tmp_path / "model.onnx")
    assert status == 0 and (tmp_path / "model.onnx").is_file()
    assert any("onnxruntime" in line and "not checked" in line for line in lines)


def test_a_tower_too_large_for_onnx_is_refused(predictor_of, command, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.setattr(export, "LARGEST_ONNX", 1 << 20)
    status, lines = command(predictor_of("ZeroshotCLIP"), tmp_path / "model.onnx")
    assert status == 2 and len(lines) == 1 and ".pt2" in lines[0] and not (tmp_path / "model.onnx").exists()


def test_every_trainer_is_exported_or_refused():
    assert {*TRAINERS, "CoCoOp", "ZeroshotCLIP2"} == set(registry.TRAINERS)
