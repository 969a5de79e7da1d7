"""Models by themselves: made by name, trained by hand, moved, given other classes, loaded from a run."""
import copy
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import p2c
from p2c.framework import build_transform
from p2c.model import Step

NAMES = ["red fox", "grey wolf", "snow_leopard"]
DEPTHS = {"MaPLe": {"prompt_depth": 3}, "P2C": {"prompt_depth": 3},
          "IVLP": {"prompt_depth_text": 3, "prompt_depth_vision": 3},
          "PromptSRC": {"prompt_depth_text": 3, "prompt_depth_vision": 3}}
TRAINED = ("CoOp", "CoCoOp", "VPT", "IVLP", "MaPLe", "PromptSRC", "P2C")


def create(method, **settings):
    return p2c.create_model(method, NAMES, backbone="tiny-shapes", weights="random",
                            **DEPTHS.get(method, {}), **settings)


@pytest.fixture
def images():
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("method", TRAINED)
def test_a_few_steps_by_hand_lower_the_loss_and_change_the_learner_alone(method, images):
    model = create(method)
    before = {name: value.clone() for name, value in model.clip.state_dict().items()}
    optimizer = torch.optim.SGD(model.learner.parameters(), lr=0.002, momentum=0.9)
    losses = []
    for index in range(6):
        loss = sum(model.losses(images, LABELS, model.draw(Step(seed=1, index=index))).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[3:]) < losses[0]
    assert all(value.equal(before[name]) for name, value in model.clip.state_dict().items())
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in model.learner.parameters()}


@pytest.mark.parametrize("method", TRAINED)
def test_losses_draw_nothing_and_all_noise_is_a_function_of_the_step(method, images):
    model = create(method, denoising=method != "VPT")
    step = Step(seed=3, index=7, epoch=1, fraction=0.5)
    noise = model.draw(step)
    state = torch.get_rng_state()
    first, second = (model.losses(images, LABELS, noise) for _ in range(2))
    assert all(first[name].equal(second[name]) for name in first) and torch.get_rng_state().equal(state)
    assert all(value.equal(model.draw(step)[name]) and value.device.type == "cpu" for name, value in noise.items())
    other = model.draw(Step(seed=3, index=8, epoch=1, fraction=0.5))
    assert bool(noise) == (method != "VPT") and not any(value.equal(other[name]) for name, value in noise.items())


def test_p2c_denoises_by_default_and_maple_on_request(images):
    assert create("P2C").draw(Step()).keys() == {"dpd", "mapper"}
    assert create("P2C", denoising=False, hidden_scale=None).draw(Step()) == {}
    assert create("MaPLe").draw(Step()) == {} and create("MaPLe", denoising=True).draw(Step()).keys() == {"dpd"}
    plain, maple = create("P2C", denoising=False, hidden_scale=None), create("MaPLe")
    assert plain(images).equal(maple(images))


@pytest.mark.parametrize("method", [*TRAINED, "ZeroshotCLIP"])
def test_other_classes_are_those_of_a_model_made_for_them(method, images):
    model = create(method)
    expected = model(images)
    model.set_classes(["grey wolf", "red fox"])
    torch.testing.assert_close(model(images), expected[:, [1, 0]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["CoOp", "P2C", "VPT", "ZeroshotCLIP"])
def test_a_model_moves_with_its_class_prompts(method, images):
    model = create(method)
    expected = model(images)
    precise = model.double()
    assert precise.classifier().dtype == torch.float64
    torch.testing.assert_close(precise(images.double()).float(), expected, rtol=1e-3, atol=1e-3)


def test_classes_are_encoded_anew_only_when_something_has_changed(images, monkeypatch):
    model, calls = create("MaPLe"), []
    encode = model.text_tower.encode
    monkeypatch.setattr(model.text_tower, "encode", lambda *args: calls.append(1) or encode(*args))
    first = model(images)
    assert model(images).equal(first) and len(calls) == 1
    with torch.no_grad():
        model.learner.ctx += 0.1
    assert not model(images).equal(first) and len(calls) == 2
    model.learner.load_state_dict(copy.deepcopy(model.learner.state_dict()))
    model(images)
    assert len(calls) == 3
    model.set_classes(NAMES[:2])
    assert model(images).shape == (4, 2) and len(calls) == 4


def test_clip_stays_in_evaluation_mode():
    model = create("CoOp")
    assert not model.train().clip.training and model.learner.training
    assert not any(parameter.requires_grad for parameter in model.clip.parameters())


def test_images_are_prepared_as_a_run_prepares_them(make_cfg):
    image = Image.effect_noise((90, 70), 80).convert("RGB")
    cfg = make_cfg("CoOp")
    torch.testing.assert_close(create("CoOp").preprocess(image), build_transform(cfg, is_train=False)(image))


@pytest.mark.parametrize("method", ["P2C", "CoCoOp", "ZeroshotCLIP"])
def test_a_runs_model_gives_what_the_run_was_tested_with(make_trainer, method):
    trainer = make_trainer(method, "OPTIM.MAX_EPOCH", 1)
    if trainer.get_model_names():
        trainer.train()
    else:
        trainer.test()
        trainer.write_results("eval")
    image = trainer.parse_batch_test(next(iter(trainer.test_loader)))[0]
    model = p2c.load_model(trainer.output_dir, device="cpu")
    assert model.classnames == trainer.dm.dataset.classnames and not model.training
    assert model(image).equal(trainer.model_inference(image))
    fewer = p2c.load_model(trainer.output_dir, classes=["cat", "dog"], device="cpu")
    assert fewer(image).shape == (len(image), 2)


@pytest.mark.parametrize("arguments, message", [
    (dict(method="P3C"), "Unknown trainer 'P3C'.*; choose from"),
    (dict(method="CoOp", precision="fp8"), "Unknown precision 'fp8'; choose from fp16"),
    (dict(method="MaPLe", prompt_depth=9), "prompt_depth must be from 1 to 4, .* tiny-shapes's tower, but got 9"),
    (dict(method="CoOp", n_ctx=75), "n_ctx must be from 1 to 74"),
    (dict(method="P2C", backbone="ViT-B/17"), "Unknown backbone 'ViT-B/17'"),
])
def test_arguments_that_make_no_sense_are_named(arguments, message):
    method = arguments.pop("method")
    with pytest.raises(ValueError, match=message):
        p2c.create_model(method, NAMES, **{"backbone": "tiny-shapes", "weights": "random", **arguments})


def test_the_readmes_example_runs():
    """Create a model, one step by hand, predict."""
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    example, = re.findall(r"^## In Python\n.*?```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    names = {}
    exec(example, names)
    assert names["losses"].keys() == {"loss_ce", "loss_map"}
    assert all(parameter.grad is not None for parameter in names["model"].learner.parameters())
    torch.testing.assert_close(names["probabilities"].sum(1), torch.ones(2))
