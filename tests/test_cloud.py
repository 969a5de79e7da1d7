"""Cloud inference: the draws and their averages against a plain loop, what it costs, what a run with it leaves."""
import csv
import math

import numpy as np
import pytest
import torch
from clip_files import BREEDS
from messages import naming
from PIL import Image

from p2c.cli import predict, verify_run
from p2c.cloud import DOUBTS, combine, disagreement, doubt_metrics, mutual_information
from p2c.denoising.mixture import noise_from_config
from p2c.engine.predictions import Predictions
from p2c.engine.results import read_results
from p2c.inference.predictor import Predictor
from p2c.trainers import base
from p2c.utils.reliability import figure_of
from p2c.utils.streams import generator

ATTRIBUTES = ("TRAINER.ATPROMPT.USE_ATPROMPT", True, "TRAINER.ATPROMPT.N_ATT1", 2, "TRAINER.ATPROMPT.ATT_NUM", 1,
              "TRAINER.ATPROMPT.ATT1_TEXT", "color")
CASES = {
    "CoOp": ("CoOp", ()),
    "a context a class": ("CoOp", ("TRAINER.COOP.CSC", True, "TRAINER.COOP.CTX_INIT", "", "TRAINER.COOP.N_CTX", 3)),
    "IVLP": ("IVLP", ()),
    "MaPLe": ("MaPLe", ()),
    "attributes": ("MaPLe", ATTRIBUTES),
    "PromptSRC": ("PromptSRC", ()),
    "P2C": ("P2C", ()),
}
METRICS = {"mutual_information", "dissent", "auroc_mutual_information", "auroc_dissent", "auroc_confidence"}


def cloud_of(samples, level=3.0, average="probabilities"):
    return ("TEST.CLOUD_SAMPLES", samples, "TEST.CLOUD_LEVEL", level, "TEST.CLOUD_AVERAGE", average)


def images_of(trainer):
    """All test images, as a model takes them, and their labels."""
    batches = [trainer.parse_batch_test(batch) for batch in trainer.test_loader]
    return torch.cat([image for image, _ in batches]), torch.cat([label for _, label in batches])


def softmax(row):
    weights = np.exp(row - row.max())
    return weights / weights.sum()


def entropy(probabilities):
    return -sum(p * math.log(p) for p in probabilities if p > 0)


def plain_loop(logits):
    """Mean probabilities, softmax of mean logits, mutual information and dissent of one image's logits (K, C)."""
    each = [softmax(row) for row in logits]
    mean = sum(each) / len(each)
    information = entropy(mean) - sum(map(entropy, each)) / len(each)
    return mean, softmax(sum(logits) / len(logits)), information, \
        sum(p.argmax() != mean.argmax() for p in each) / len(each)


# The mathematics

def test_averages_and_disagreement_are_those_of_a_plain_loop():
    logits = 5 * torch.randn(40, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    output = combine(logits, "probabilities")
    rows = zip(output.softmax(1), combine(logits, "logits").softmax(1), mutual_information(logits),
               disagreement(logits, output), strict=True)
    for found, image in zip(rows, logits.numpy(), strict=True):
        for value, expected in zip(found, plain_loop(image), strict=True):
            np.testing.assert_allclose(value, expected, atol=1e-12)
    assert 0 < disagreement(logits, output).mean() < 1


def test_draws_that_are_sure_of_different_classes_disagree_by_the_logarithm_of_their_number():
    logits = torch.tensor([[[1e4, 0, 0], [0, 1e4, 0]], [[1e4, 0, 0], [1e4, 0, 0]]])
    assert mutual_information(logits).tolist() == pytest.approx([math.log(2), 0])
    output = combine(logits, "probabilities")
    assert output.isfinite().all()
    torch.testing.assert_close(output.softmax(1), torch.tensor([[0.5, 0.5, 0], [1, 0, 0]]))
    assert disagreement(logits, output).tolist() == [0.5, 0]


def test_areas_under_the_curve_count_pairs_of_a_wrong_and_a_right_prediction():
    random = torch.Generator().manual_seed(1)
    output, label = torch.randn(30, 3, generator=random), torch.randint(0, 3, (30,), generator=random)
    doubts = {"mutual_information": torch.rand(30, generator=random),
              "dissent": torch.randint(0, 4, (30,), generator=random) / 4}
    predictions = Predictions(DOUBTS)
    for part in torch.arange(30).split(8):
        predictions.add(output[part], label[part], *(values[part] for values in doubts.values()))
    predictions.arrange(torch.arange(30))
    found = doubt_metrics(predictions)
    wrong = output.argmax(1) != label
    for name, values in {**doubts, "confidence": -output.softmax(1).max(1)[0]}.items():
        pairs = [(a > b) + (a == b) / 2 for a in values[wrong] for b in values[~wrong]]
        assert found[f"auroc_{name}"] == pytest.approx(100 * float(sum(pairs)) / len(pairs))
    assert found["mutual_information"] == pytest.approx(doubts["mutual_information"].mean().item())
    assert found["dissent"] == pytest.approx(100 * doubts["dissent"].mean().item())


def test_without_a_wrong_prediction_there_is_no_area():
    predictions = Predictions(DOUBTS)
    predictions.add(torch.eye(2), torch.arange(2), torch.zeros(2), torch.zeros(2))
    predictions.arrange(torch.arange(2))
    assert doubt_metrics(predictions) == {"mutual_information": 0, "dissent": 0}


# Trainers

@pytest.mark.parametrize("case, average", [*((case, "probabilities") for case in CASES), ("P2C", "logits")])
def test_a_cloud_is_the_average_of_classifiers_from_noisy_contexts(make_trainer, monkeypatch, case, average):
    monkeypatch.setattr(base.Precision, "from_name", lambda name, device: base.Precision(torch.float64))
    name, pairs = CASES[case]
    pairs = (*pairs, "TRAINER.PROMPT_DENOISING.ENABLED", False)
    trainer = make_trainer(name, *cloud_of(4, average=average), *pairs)
    trainer.model.learner.double()
    images, _ = images_of(trainer)
    images = images.double()
    prompts = trainer.model.learner()
    sigma = 3.0 * trainer.model.backbone.token_std
    noise = noise_from_config(trainer.cfg.TRAINER.PROMPT_DENOISING)

    def moved(tokens, stream, k):
        return tokens + (sigma * noise.sample(tokens.shape[-2:], generator(1, stream, k))).double()

    with torch.no_grad():
        image_features = trainer.model.encode_image(images, prompts)
        logits = []
        for k in range(4):
            attributes = [moved(tokens, f"cloud.attribute{i}", k) for i, tokens in enumerate(prompts.attributes, 1)]
            text = trainer.model.encode_text(prompts._replace(context=moved(prompts.context, "cloud", k),
                                                        attributes=attributes))
            logits.append(trainer.model.backbone.logit_scale * image_features @ text.T)
        found = trainer.model_inference(images).softmax(1).numpy()
    which = ["probabilities", "logits"].index(average)
    for row, image in zip(found, torch.stack(logits, dim=1).numpy(), strict=True):
        np.testing.assert_allclose(row, plain_loop(image)[which], rtol=1e-9)
    assert torch.stack(logits).std(0).max() > 1e-3


@pytest.mark.parametrize("case, average", [("CoOp", "logits"), ("attributes", "probabilities"), ("P2C", "logits")])
def test_a_cloud_of_level_zero_is_the_trained_classifier(make_trainer, case, average):
    name, pairs = CASES[case]
    plain, cloud = (make_trainer(name, *pairs, *options, out=out) for options, out in
                    (((), "plain"), (cloud_of(1, 0.0, average), "cloud")))
    images, _ = images_of(plain)
    expected, found = plain.model_inference(images), cloud.model_inference(images)
    if average == "logits":
        assert torch.equal(found, expected)
    torch.testing.assert_close(found.softmax(1), expected.softmax(1))
    assert plain.test() == cloud.test()
    assert (cloud.results["mutual_information"], cloud.results["dissent"]) == (0, 0)


def test_each_image_is_encoded_once_and_each_draw_once_an_evaluation(make_trainer, monkeypatch):
    trainer = make_trainer("P2C", *cloud_of(5), "DATALOADER.TEST.BATCH_SIZE", 4)
    calls = {"image": 0, "text": 0}
    for kind, tower in (("image", trainer.model.image_tower), ("text", trainer.model.text_tower)):
        def count(*args, kind=kind, encode=tower.encode):
            calls[kind] += 1
            return encode(*args)
        monkeypatch.setattr(tower, "encode", count)
    trainer.test()
    assert calls == {"image": 3, "text": 5}  # 12 images
    trainer.test()
    assert calls == {"image": 6, "text": 5}  # nothing has been trained since
    trainer.train()
    trainer.test()
    assert calls["text"] > 5


def test_a_cloud_is_the_same_in_every_evaluation_and_a_larger_one_begins_with_it(make_trainer):
    small, again, large = (make_trainer("MaPLe", *cloud_of(k), out=out) for k, out in ((2, "a"), (2, "b"), (5, "c")))
    other = make_trainer("MaPLe", *cloud_of(2), "SEED", 2, out="d")
    before = torch.get_rng_state()
    features = small.cloud.features()
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(features, again.cloud.features()) and torch.equal(features, large.cloud.features()[:2])
    small.test()
    assert torch.equal(features, small.cloud.features())
    other.model.learner.load_state_dict(small.model.learner.state_dict())
    assert not torch.allclose(features, other.cloud.features())


def test_the_training_is_that_without_a_cloud(make_trainer):
    once = ("OPTIM.MAX_EPOCH", 1, "TEST.FINAL_MODEL", "best_val")
    plain, cloud = make_trainer("P2C", *once, out="plain"), make_trainer("P2C", *once, *cloud_of(3), out="cloud")
    plain.train()
    cloud.train()
    for name, value in plain.model.learner.state_dict().items():
        assert torch.equal(value, cloud.model.learner.state_dict()[name]), name


@pytest.mark.parametrize("name", ["CoCoOp", "VPT", "ZeroshotCLIP"])
def test_trainers_that_cannot_have_a_cloud_refuse_it(make_trainer, name):
    with pytest.raises(ValueError, match=naming(name, "TEST.CLOUD_SAMPLES 0")):
        make_trainer(name, *cloud_of(2))


@pytest.mark.parametrize("key, value", [("SAMPLES", -1), ("SAMPLES", 1.5), ("LEVEL", -0.1), ("AVERAGE", "votes")])
def test_settings_out_of_their_range_are_named(make_trainer, key, value):
    with pytest.raises((ValueError, TypeError), match=f"CLOUD_{key}"):
        make_trainer("MaPLe", f"TEST.CLOUD_{key}", value)


# Runs

def test_a_trained_model_is_tested_with_a_cloud(call, tmp_path, capsys, pets):
    assert call(trainer="MaPLe", out="trained") == 0
    options = ("--eval-only", "--model-dir", str(tmp_path / "trained"))
    pairs = [str(word) for word in cloud_of(4)]
    assert call(*options, trainer="MaPLe", out="cloud", pairs=pairs) == 0
    plain = read_results(tmp_path / "trained")["metrics"]
    metrics = read_results(tmp_path / "cloud")["metrics"]
    assert {"ece", "nll", "reliability"} <= plain.keys() and not METRICS & plain.keys()
    assert plain.keys() | METRICS == metrics.keys() and next(iter(metrics)) == "accuracy"
    with open(tmp_path / "trained/predictions.csv", newline="") as file:
        assert not set(DOUBTS) & set(csv.DictReader(file).fieldnames)
    assert not (tmp_path / "trained/reliability.png").exists()
    assert Image.open(tmp_path / "cloud/reliability.png").format == "PNG"

    with open(tmp_path / "cloud/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == metrics["total"] == 12
    assert sum(row["label"] == row["predicted_label"] for row in rows) == metrics["correct"]
    assert np.mean([float(row["mutual_information"]) for row in rows]) == pytest.approx(metrics["mutual_information"])
    assert 100 * np.mean([float(row["dissent"]) for row in rows]) == pytest.approx(metrics["dissent"])
    assert all(row["class"] == BREEDS[int(row["label"])] for row in rows)

    assert verify_run.main([str(tmp_path / "cloud")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("Confirmed")
    predictor = Predictor.from_run(tmp_path / "cloud")
    probabilities = predictor.predict([pets / row["path"] for row in rows]).max(1)
    assert probabilities.indices.tolist() == [int(row["predicted_label"]) for row in rows]
    assert probabilities.values.tolist() == pytest.approx([float(row["probability"]) for row in rows], abs=1e-5)
    with pytest.raises(SystemExit, match="2"):
        predict.main([str(tmp_path / "cloud"), "--export", str(tmp_path / "file.safetensors")])
    assert "TEST.CLOUD_SAMPLES 0" in capsys.readouterr().err

    other = [str(word) for word in cloud_of(8)]
    assert call(*options, trainer="MaPLe", out="cloud", pairs=other) == 2
    assert "TEST.CLOUD_SAMPLES" in capsys.readouterr().err


def test_the_picture_of_reliability_leaves_empty_bins_out():
    figure = figure_of(count=[0, 3, 0, 1], confidence=[None, 40.0, None, 90.0], accuracy=[None, 100 / 3, None, 100.0])
    above, below = figure.axes
    assert above.lines[1].get_xydata().tolist() == [[40, 100 / 3], [90, 100]]
    assert [bar.get_height() for bar in below.patches] == [0, 3, 0, 1]
