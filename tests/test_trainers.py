"""The trainers: what trains, what is saved, that P2C without denoising is MaPLe, and that testing repeats."""
import math
import re

import oracle
import pytest
import torch
from messages import naming
from steps import assert_same_state, batch_of, losses_of, noisy_of
from torch.utils._python_dispatch import TorchDispatchMode

from p2c.clip.loading import load_backbone
from p2c.prompts.context import add_noise, readable
from p2c.trainers import base
from p2c.utils.streams import generator

COUPLED_TRAINERS = ("MaPLe", "P2C")
TRAINED = ("CoOp", "CoCoOp", "VPT", "IVLP", "MaPLe", "PromptSRC", "P2C")
NOISY = tuple(name for name in TRAINED if name != "VPT")  # VPT learns no text context
OFF = ("TRAINER.PROMPT_DENOISING.ENABLED", False, "TRAINER.P2C.MAPPER.ENABLED", False)
COUPLED = {"ctx", "proj.weight", "proj.bias", *(f"compound_prompts_text.{i}" for i in range(2)),
           *(f"compound_prompt_projections.{i}.{kind}" for i in range(2) for kind in ("weight", "bias"))}
KEYS = {
    "CoOp": {"ctx"},
    "CoCoOp": {"ctx", *(f"meta_net.linear{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias"))},
    "VPT": {f"images.{i}" for i in range(4)},
    "IVLP": {"ctx", *(f"deep_text.{i}" for i in range(3)), *(f"images.{i}" for i in range(4))},
    "MaPLe": COUPLED,
    "PromptSRC": {"ctx", *(f"deep_text.{i}" for i in range(2)), *(f"images.{i}" for i in range(3))},
    "P2C": COUPLED - {"proj.weight", "proj.bias"} |
        {f"proj.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")},
}


def trained(make_trainer, *arguments, **options):
    trainer = make_trainer(*arguments, **options)
    trainer.train()
    return trainer


# P2C and MaPLe

@pytest.mark.parametrize("switches", [
    OFF, ("TRAINER.PROMPT_DENOISING.NOISE_STD", 0.0, "TRAINER.P2C.MAPPER.ENABLED", False)],
    ids=["both off", "noise of level zero"])
def test_p2c_without_denoising_is_maple_bit_for_bit(make_trainer, switches):
    maple = trained(make_trainer, "MaPLe", out="maple")
    p2c = trained(make_trainer, "P2C", *switches, out="p2c")
    assert_same_state(maple.model.learner.state_dict(), p2c.model.learner.state_dict())
    image = batch_of(maple)["img"]
    assert torch.equal(maple.model_inference(image), p2c.model_inference(image))


def test_prompt_denoising_changes_the_training_and_nothing_at_the_start(make_trainer):
    maple = make_trainer("MaPLe", out="maple")
    p2c = make_trainer("P2C", "TRAINER.P2C.MAPPER.ENABLED", False, out="p2c")
    assert_same_state(maple.model.learner.state_dict(), p2c.model.learner.state_dict())
    maple.train()
    p2c.train()
    assert not torch.equal(maple.model.learner.ctx, p2c.model.learner.ctx)


def test_denoising_is_a_component_that_maple_can_switch_on(make_trainer):
    maple = trained(make_trainer, "MaPLe", "TRAINER.PROMPT_DENOISING.ENABLED", True, out="maple")
    p2c = trained(make_trainer, "P2C", "TRAINER.P2C.MAPPER.ENABLED", False, out="p2c")
    assert_same_state(maple.model.learner.state_dict(), p2c.model.learner.state_dict())


def test_p2c_with_both_off_says_that_it_is_maple(make_trainer, capsys):
    make_trainer("P2C", *OFF)
    assert any("P2C" in line and "MaPLe" in line for line in capsys.readouterr().out.splitlines())


def oracle_arguments(trainer, image):
    """The trainer's CLIP, prompts and class prompts as the plain tensors that the oracle takes."""
    prompts, clip = trainer.model.learner, trainer.model.backbone
    fixed = clip.tokenize("of a")
    rows = [[49406] * 3 + fixed + clip.tokenize(readable(name) + ".") + [49407]
            for name in trainer.dm.dataset.classnames]
    mapper = [prompts.proj] if isinstance(prompts.proj, torch.nn.Linear) else [prompts.proj[0], prompts.proj[2]]
    text_heads = trainer.model.backbone.model.transformer.resblocks[0].attn.num_heads
    vision_heads = trainer.model.backbone.model.visual.transformer.resblocks[0].attn.num_heads
    return dict(
        state=clip.model.state_dict(), images=image, token_rows=rows, heads=(text_heads, vision_heads),
        quick_gelu=False, context=prompts.ctx, deep=list(prompts.compound_prompts_text),
        mapper=[(f.weight, f.bias) for f in mapper],
        projections=[(f.weight, f.bias) for f in prompts.compound_prompt_projections])


@pytest.mark.parametrize("name", COUPLED_TRAINERS)
def test_losses_and_gradients_are_the_oracles(make_trainer, monkeypatch, name):
    monkeypatch.setattr(base.Precision, "from_name", lambda name, device: base.Precision(torch.float64))
    trainer = make_trainer(name)
    trainer.model.learner.double()
    batch = batch_of(trainer)
    image, label = batch["img"].double(), batch["label"]
    noise = {}
    if name == "P2C":
        shape = trainer.model.learner.ctx.shape
        std = trainer.model.backbone.token_std
        eps = trainer.model.denoising.distribution.sample(shape, generator(1, "dpd", 0))
        normal = torch.randn(shape, generator=generator(1, "mapper", 0))
        # The noise is scaled in float32, as it is drawn.
        noise = dict(eps=(9.0 * std * eps).double(), sigma=1.0, mapper_normal=(2.0 * std * normal).double(),
                     sigma_a=1.0, weight=1.0)
    expected = oracle.p2c_losses(labels=label, **oracle_arguments(trainer, image), **noise)["total"]
    got = sum(losses_of(trainer, image, label).values())
    parameters = list(trainer.model.learner.parameters())
    pairs = zip([got, *torch.autograd.grad(got, parameters)],
                [expected, *torch.autograd.grad(expected, parameters)], strict=True)
    for a, b in pairs:
        assert (a - b).abs().max() <= 1e-10 * b.abs().max()


# Noise

def denoising(enabled, *pairs):
    return ("TRAINER.PROMPT_DENOISING.ENABLED", enabled, "TRAINER.P2C.MAPPER.ENABLED", False, *pairs)


@pytest.mark.parametrize("name", NOISY)
def test_denoising_is_a_component_of_every_learner_of_a_text_context(make_trainer, name):
    """On differs from off; on at level zero equals off, bit for bit."""
    off = trained(make_trainer, name, *denoising(False), out="off").model.learner.state_dict()
    on = trained(make_trainer, name, *denoising(True), out="on").model.learner.state_dict()
    zero = trained(make_trainer, name, *denoising(True, "TRAINER.PROMPT_DENOISING.NOISE_STD", 0.0), out="zero")
    assert not torch.equal(on["ctx"], off["ctx"])
    assert_same_state(zero.model.learner.state_dict(), off)


@pytest.mark.parametrize("name", ["VPT", "ZeroshotCLIP"])
def test_where_no_text_context_is_learned_denoising_is_refused(make_trainer, name):
    with pytest.raises(ValueError, match=name):
        make_trainer(name, *denoising(True))


def test_contexts_of_each_class_get_one_draw(make_trainer):
    trainer = make_trainer("CoOp", *denoising(True), "TRAINER.COOP.CTX_INIT", "", "TRAINER.COOP.CSC", True,
                           "TRAINER.COOP.N_CTX", 3)
    moved = noisy_of(trainer).context - trainer.model.learner.ctx
    assert moved.shape == (4, 3, trainer.model.text_tower.width)
    torch.testing.assert_close(moved, moved[:1].expand_as(moved), rtol=1e-3, atol=1e-6)


def test_noise_is_drawn_once_a_step_and_moves_the_input_context_only(make_trainer, monkeypatch):
    trainer = make_trainer("P2C")
    calls = []
    draw = trainer.model.draw
    monkeypatch.setattr(trainer.model, "draw", lambda step: calls.append(step) or draw(step))
    clean = trainer.model.learner()
    noisy = add_noise(clean, draw(trainer.step)["dpd"])
    assert not torch.equal(noisy.context, clean.context)
    assert noisy.visual is clean.visual
    assert noisy.deep_text is clean.deep_text and noisy.deep_visual is clean.deep_visual
    trainer.forward_backward(batch_of(trainer))
    assert calls == [trainer.step]


def test_noise_differs_by_step_and_not_by_class_or_run(make_trainer):
    trainer, again = make_trainer("P2C", out="a"), make_trainer("P2C", out="b")
    contexts = []
    for run, step in ((trainer, 0), (trainer, 1), (again, 0)):
        run.batch_idx = step
        contexts.append(noisy_of(run).context)
    assert torch.equal(contexts[0], contexts[2]) and not torch.equal(contexts[0], contexts[1])


def test_testing_draws_no_noise(make_trainer, monkeypatch):
    trainer = make_trainer("P2C")
    monkeypatch.setattr(trainer.model, "draw", None)
    monkeypatch.setattr(trainer.model, "text_noise", None)
    assert trainer.test() == trainer.test()


def test_noise_level_is_in_units_of_the_token_embedding(make_trainer):
    absolute = make_trainer("P2C", "TRAINER.PROMPT_DENOISING.NOISE_UNIT", "absolute", out="a")
    embedding = make_trainer("P2C", out="b")
    std = embedding.model.backbone.model.token_embedding.weight.double().std(correction=0).item()
    assert absolute.model.noise_level(absolute.step) == 9.0
    assert embedding.model.noise_level(embedding.step) == pytest.approx(9.0 * std)
    assert embedding.model.mapper_std == pytest.approx(2.0 * std)


def test_stepwise_annealing_lowers_the_level_within_an_epoch(make_trainer):
    trainer = make_trainer("P2C", "TRAINER.PROMPT_DENOISING.ANNEAL", "step",
                           "TRAINER.PROMPT_DENOISING.SCHEDULE", "linear")
    start = trainer.model.noise_level(trainer.step)
    trainer.batch_idx = trainer.num_batches // 2
    assert trainer.model.noise_level(trainer.step) == pytest.approx(0.75 * start)


def test_losses_and_noise_level_reach_the_log_and_tensorboard(make_trainer, tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained(make_trainer, "P2C")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {"train/loss", "train/loss_ce", "train/loss_map", "train/noise", "train/lr"} <= set(events.Tags()["scalars"])
    levels = [event.value for event in events.Scalars("train/noise")]
    assert len(levels) == 8 and levels[-1] == pytest.approx(levels[0] / 2, rel=1e-3)
    assert "noise" in capsys.readouterr().out


# What trains and what is saved

@pytest.mark.parametrize("name", TRAINED)
def test_only_the_prompts_train_and_clip_stays_as_loaded(make_trainer, name):
    trainer = trained(make_trainer, name)
    fresh = load_backbone("tiny-shapes", "random")
    assert_same_state(trainer.model.backbone.model.state_dict(), fresh.model.state_dict())
    assert not any(p.requires_grad or p.grad is not None for p in trainer.model.backbone.model.parameters())
    assert not trainer.model.backbone.model.training
    optimised = {id(p) for group in trainer.optim.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in trainer.model.learner.parameters()}
    start = make_trainer(name, out="other").model.learner.state_dict()
    for key, value in trainer.model.learner.state_dict().items():
        assert not torch.equal(value, start[key]), key


@pytest.mark.parametrize("name", TRAINED)
def test_the_loss_falls_on_the_built_in_data(make_trainer, few_shapes, capsys, name):
    """The mean loss of the last of five epochs is below that of the first; learners of the text alone are slow."""
    rate = 0.05 if name in ("CoOp", "CoCoOp") else 0.0035
    trainer = make_trainer(name, *few_shapes, "MODEL.BACKBONE.WEIGHTS", "builtin", "OPTIM.MAX_EPOCH", 5,
                           "OPTIM.LR", rate, "TRAINER.PROMPT_DENOISING.ENABLED", False, "TRAIN.PRINT_FREQ", 6)
    trainer.train()
    means = [float(mean) for mean in re.findall(r"batch \[6/6\].*? loss [\d.]+ \(([\d.]+)\)", capsys.readouterr().out)]
    assert len(means) == 5 and means[-1] < 0.9 * means[0]


@pytest.mark.parametrize("name", TRAINED)
def test_checkpoint_holds_exactly_the_prompts(make_trainer, tmp_path, name):
    trainer = trained(make_trainer, name)
    path = tmp_path / "run" / trainer.learner_name / "model.pth.tar-2"
    checkpoint = torch.load(path)
    assert set(checkpoint["state_dict"]) == KEYS[name]
    assert_same_state(dict(checkpoint["state_dict"]), dict(trainer.model.learner.state_dict()))
    assert path.stat().st_size < 3_000_000


@pytest.mark.parametrize("name", TRAINED)
def test_loaded_checkpoint_repeats_the_training_runs_own_result(make_trainer, tmp_path, name):
    trainer = trained(make_trainer, name)
    image = batch_of(trainer)["img"]
    logits = trainer.model_inference(image)
    for epoch in (None, 2):
        other = make_trainer(name, out=f"eval{epoch}")
        assert not torch.equal(other.model_inference(image), logits)
        other.load_model(str(tmp_path / "run"), epoch=epoch)
        assert torch.equal(other.model_inference(image), logits)
        assert other.test() == trainer.test()


def test_loading_another_methods_prompts_is_refused_naming_the_keys(make_trainer, tmp_path):
    trained(make_trainer, "P2C")
    with pytest.raises(ValueError, match=r"model.pth.tar-2 does not fit MaPLe.*proj.weight"):
        make_trainer("MaPLe", out="other").load_model(str(tmp_path / "run"))


def test_a_missing_checkpoint_is_reported_with_what_is_there(make_trainer, tmp_path):
    trained(make_trainer, "MaPLe")
    with pytest.raises(FileNotFoundError, match=naming("model.pth.tar-7", "model.pth.tar-2")):
        make_trainer("MaPLe", out="other").load_model(str(tmp_path / "run"), epoch=7)


def test_published_maple_checkpoints_load(make_trainer, tmp_path):
    """Their files hold all of CLIP, token buffers of their classes, and half-precision tensors."""
    trainer = make_trainer("MaPLe")
    wanted = {key: torch.randn_like(value).half() for key, value in trainer.model.learner.state_dict().items()}
    published = {f"prompt_learner.{key}": value for key, value in wanted.items()}
    published |= {"prompt_learner.token_prefix": torch.zeros(9, 1, 8),
                  "prompt_learner.token_suffix": torch.zeros(9, 2, 8),
                  "image_encoder.proj": torch.zeros(3), "text_encoder.ln_final.weight": torch.zeros(3)}
    folder = tmp_path / "published" / "MultiModalPromptLearner"
    folder.mkdir(parents=True)
    torch.save({"state_dict": published, "epoch": 5, "optimizer": None, "scheduler": None}, folder / "model.pth.tar-5")
    trainer.load_model(str(tmp_path / "published"), epoch=5)
    assert_same_state(dict(trainer.model.learner.state_dict()), {key: value.float() for key, value in wanted.items()})


def test_initial_weights_of_other_prompts_are_refused(make_trainer, tmp_path):
    trained(make_trainer, "P2C")
    path = tmp_path / "run" / "MultiModalPromptLearner" / "model.pth.tar-2"
    with pytest.raises(ValueError, match="model.pth.tar-2 does not fit MaPLe"):
        make_trainer("MaPLe", "MODEL.INIT_WEIGHTS", str(path), out="second")


def test_initial_weights_are_taken_from_a_checkpoint(make_trainer, tmp_path):
    first = trained(make_trainer, "MaPLe")
    path = tmp_path / "run" / "MultiModalPromptLearner" / "model.pth.tar-2"
    second = make_trainer("MaPLe", "MODEL.INIT_WEIGHTS", str(path), out="second")
    assert_same_state(dict(first.model.learner.state_dict()), dict(second.model.learner.state_dict()))


# Testing

@pytest.mark.parametrize("name", ["CoOp", "IVLP", *COUPLED_TRAINERS])
def test_classes_are_encoded_once_an_evaluation_and_again_after_training(make_trainer, monkeypatch, name):
    trainer = make_trainer(name, "DATALOADER.TEST.BATCH_SIZE", 5)
    calls = []
    encode = trainer.model.text_tower.encode
    monkeypatch.setattr(trainer.model.text_tower, "encode", lambda *args: calls.append(1) or encode(*args))
    trainer.test()
    assert len(trainer.test_loader) == 3 and len(calls) == 1
    trainer.forward_backward(batch_of(trainer))
    trainer.test()
    assert len(calls) == 3


def test_prompts_of_base_classes_are_used_with_new_ones(make_trainer, tmp_path):
    base_run = trained(make_trainer, "P2C", "DATASET.SUBSAMPLE_CLASSES", "base")
    new = make_trainer("P2C", "DATASET.SUBSAMPLE_CLASSES", "new", out="new")
    new.load_model(str(tmp_path / "run"))
    assert base_run.dm.dataset.classnames == ["abyssinian", "american_bulldog"]
    assert new.dm.dataset.classnames == ["Bengal cat", "boxer"]
    assert new.test() == new.test()


def test_other_pixel_statistics_than_clips_are_reported(make_trainer, capsys):
    make_trainer("P2C", "INPUT.PIXEL_MEAN", [0.4, 0.5, 0.5])
    assert "INPUT.PIXEL_MEAN and PIXEL_STD differ from tiny-shapes's" in capsys.readouterr().out


def test_zero_shot_logits_are_clips_own(make_trainer):
    trainer = make_trainer("ZeroshotCLIP")
    image, _ = trainer.parse_batch_test(next(iter(trainer.test_loader)))
    texts = [f"a photo of a {readable(name)}, a type of pet." for name in trainer.dm.dataset.classnames]
    model, tokens = trainer.model.backbone.model, trainer.model.backbone.tokenizer(texts)
    with torch.no_grad():
        expected = model.logit_scale.exp() * model.encode_image(image, normalize=True) @ \
            model.encode_text(tokens, normalize=True).T
    torch.testing.assert_close(trainer.model_inference(image), expected, rtol=1e-4, atol=1e-4)


def test_template_ensemble_averages_normalised_features_and_building_it_twice_changes_nothing(make_trainer):
    first, second = make_trainer("ZeroshotCLIP2", out="a"), make_trainer("ZeroshotCLIP2", out="b")
    templates = first.model.templates
    assert len(templates) == len(second.model.templates) == 8
    name = readable(first.dm.dataset.classnames[0])
    with torch.no_grad():
        rows = first.model.backbone.tokenizer([template.replace("{}", name) for template in templates])
        mean = first.model.backbone.model.encode_text(rows, normalize=True).mean(0)
        got = first.model.encode_text(first.model.learner())[0]
    torch.testing.assert_close(got, mean / mean.norm(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ZeroshotCLIP", "ZeroshotCLIP2"])
def test_zero_shot_tests_and_has_nothing_to_train(make_trainer, name):
    trainer = make_trainer(name)
    accuracy = trainer.test()
    trainer.train()
    assert trainer.test() == accuracy and trainer.get_model_names() == []


# Memory

@pytest.mark.parametrize("name", TRAINED)
def test_little_text_memory_changes_the_step_by_rounding_only(make_trainer, name):
    plain, sparing = make_trainer(name, out="plain"), make_trainer(name, "TRAIN.TEXT_MEMORY", 1e-6, out="sparing")
    losses = []
    for trainer in (plain, sparing):
        losses.append(trainer.forward_backward(batch_of(trainer))["loss"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for a, b in zip(plain.model.learner.parameters(), sparing.model.learner.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4 * a.grad.abs().max().item())
    torch.testing.assert_close(plain.model_inference(batch_of(plain)["img"]),
                               sparing.model_inference(batch_of(plain)["img"]), rtol=1e-3, atol=1e-3)


# Settings

@pytest.mark.parametrize("pairs, named", [
    (("TRAINER.P2C.PREC", "fp8"), ("TRAINER.P2C.PREC", "'fp8'", "fp16, fp32, amp, bf16")),
    (("TRAINER.P2C.PROMPT_DEPTH", 0), ("PROMPT_DEPTH", "0")),
    (("TRAINER.P2C.PROMPT_DEPTH", 5), ("PROMPT_DEPTH", "1 to 4")),
    (("TRAIN.TEXT_MEMORY", -1.0), ("TRAIN.TEXT_MEMORY", "-1.0")),
    (("TRAIN.TEXT_MEMORY", float("nan")), ("TRAIN.TEXT_MEMORY", "nan")),
    (("TRAINER.P2C.N_CTX", 75), ("N_CTX", "1 to 74")),
    (("TRAINER.P2C.N_CTX", 74), ("tokens", "77")),
    (("TRAINER.P2C.CTX_INIT", "photo"), ("photo", "1 token", "2")),
    (("TRAINER.P2C.MAPPER.HIDDEN_SCALE", 0.0), ("HIDDEN_SCALE", "0.0")),
    (("TRAINER.P2C.MAPPER.LOSS_WEIGHT", -1.0), ("LOSS_WEIGHT", "-1.0")),
    (("TRAINER.PROMPT_DENOISING.SCHEDULE", "cos"), ("SCHEDULE", "'cos'", "cosine, linear")),
    (("TRAINER.PROMPT_DENOISING.NOISE_TYPE", "poisson"), ("NOISE_TYPE", "'poisson'", "gaussian_mixture")),
    (("TRAINER.PROMPT_DENOISING.NOISE_UNIT", "metres"), ("NOISE_UNIT", "'metres'", "embedding, absolute")),
    (("TRAINER.PROMPT_DENOISING.WARMUP_EPOCHS", 2), ("WARMUP_EPOCHS", "2", "OPTIM.MAX_EPOCH")),
    (("TRAINER.PROMPT_DENOISING.GMM_COMPONENTS", 2), ("GMM_COMPONENTS", "2", "GMM_MEANS")),
    (("INPUT.SIZE", "(32, 32)"), ("INPUT.SIZE", "(32, 32)", "tiny-shapes", "(64, 64)")),
    (("MODEL.BACKBONE.NAME", "ViT-B/17"), ("MODEL.BACKBONE.NAME", "'ViT-B/17'", "RN50")),
    (("MODEL.BACKBONE.WEIGHTS", "nowhere.pt"), ("'nowhere.pt'",)),
])
def test_invalid_settings_are_refused_by_name(make_trainer, pairs, named):
    with pytest.raises((ValueError, FileNotFoundError), match=naming(*named)):
        make_trainer("P2C", *pairs)


def test_the_number_of_class_names_must_equal_that_of_labels(make_trainer, monkeypatch):
    from p2c.datasets.oxford_pets import OxfordPets

    monkeypatch.setattr(OxfordPets, "classnames", ["one", "two", "three"])
    with pytest.raises(ValueError, match=naming("OxfordPets", "4 classes", "3 class names")):
        make_trainer("P2C")


def test_a_missing_settings_node_stops_the_trainer(make_cfg):
    from p2c.framework import build_trainer

    cfg = make_cfg("P2C").clone()
    cfg.defrost()
    del cfg.TRAINER["PROMPT_DENOISING"]
    cfg.freeze()
    with pytest.raises(ValueError, match="lacks TRAINER.PROMPT_DENOISING; call p2c.config.extend_cfg"):
        build_trainer(cfg)


def test_long_contexts_start_at_random_with_no_fixed_words(make_trainer):
    trainer = make_trainer("P2C", "TRAINER.P2C.N_CTX", 6)
    assert trainer.model.class_prompts.prefix.shape[0] == 7
    assert trainer.model.learner.ctx.std().item() == pytest.approx(0.02, rel=0.2)


def test_contexts_start_from_words(make_trainer):
    trainer = make_trainer("P2C")
    ids = trainer.model.backbone.tokenize("a photo")
    assert torch.equal(trainer.model.learner.ctx.data, trainer.model.backbone.model.token_embedding.weight[ids])
    assert trainer.model.class_prompts.prefix.shape[0] == 1 + 2 + 2


def test_deep_projections_start_as_copies_of_one_layer(make_trainer):
    first, second = make_trainer("MaPLe").model.learner.compound_prompt_projections
    assert torch.equal(first.weight, second.weight) and first.weight is not second.weight
    assert first.weight.abs().max() <= 1 / math.sqrt(first.in_features)


@pytest.mark.parametrize("precision", ["fp16", "amp"])
def test_half_precision_on_a_cpu_becomes_fp32_with_one_line(make_trainer, capsys, precision):
    trainer = make_trainer("P2C", "TRAINER.P2C.PREC", precision)
    assert capsys.readouterr().out.count("needs a GPU; this run uses fp32") == 1
    assert trainer.model.precision == base.Precision(torch.float32)


def test_bf16_runs_clip_in_bf16_and_keeps_the_prompts_in_fp32(make_trainer):
    trainer = trained(make_trainer, "P2C", "TRAINER.P2C.PREC", "bf16")
    assert trainer.model.backbone.model.visual.proj.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in trainer.model.learner.parameters())
    exact = make_trainer("P2C", out="exact")
    exact.load_model(trainer.output_dir)
    image = batch_of(trainer)["img"]
    torch.testing.assert_close(trainer.model_inference(image), exact.model_inference(image), rtol=0.1, atol=1.0)


@pytest.mark.parametrize("precision", [base.Precision(torch.float16), base.Precision(torch.float32, autocast=True)],
                         ids=["fp16", "amp"])
@pytest.mark.parametrize("name", ["ZeroshotCLIP", *TRAINED])
def test_half_precision_arithmetic_agrees_with_fp32(make_trainer, monkeypatch, name, precision):
    """With a GPU's path forced onto the CPU, every dtype on the way fits, and prompts and logits stay fp32."""
    exact = make_trainer(name, out="exact")
    monkeypatch.setattr(base.Precision, "from_name", lambda name, device: precision)
    half = make_trainer(name, out="half")
    batch = batch_of(exact)
    expected, got = exact.model_inference(batch["img"]), half.model_inference(batch["img"])
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=0.05, atol=0.2)
    if name != "ZeroshotCLIP":
        loss = half.forward_backward(batch)["loss"]
        assert loss.item() == pytest.approx(exact.forward_backward(batch)["loss"].item(), rel=0.05)
        assert all(p.grad.dtype == p.dtype == torch.float32 for p in half.model.learner.parameters())


class BatchedProducts(TorchDispatchMode):
    """Record the shapes of all batched matrix products."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.bmm.default:
            self.shapes.append((tuple(args[0].shape), tuple(args[1].shape)))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_has_no_batched_outer_product_for_which_a_gpu_would_need_a_compiler(make_trainer, name):
    """torch 2.14 compiles a kernel for such products at run time (torch._native.ops.bmm_outer_product)."""
    trainer = make_trainer(name)
    batch = next(iter(trainer.train_loader_x))
    torch.autograd.set_multithreading_enabled(False)  # a dispatch mode sees its own thread
    try:
        with BatchedProducts() as products:
            trainer.forward_backward(batch)
    finally:
        torch.autograd.set_multithreading_enabled(True)
    assert not [(a, b) for a, b in products.shapes if a[2] == b[1] == 1]
