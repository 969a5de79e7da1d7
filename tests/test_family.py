"""CoOp, CoCoOp, VPT, IVLP and PromptSRC: their published quirks; losses and gradients are the oracle's."""
import re

import oracle
import pytest
import torch
from messages import naming
from steps import assert_same_state, batch_of, losses_of, noisy_of
from test_trainers import trained

from p2c.prompts.context import readable
from p2c.trainers import base
from p2c.trainers.promptsrc import TEMPLATES, epoch_weights
from p2c.utils.streams import generator

SOT, EOT = 49406, 49407


@pytest.fixture
def exact(make_trainer, monkeypatch):
    """exact(trainer, key, value, ...): the trainer in float64 before its first step, and a batch."""
    def make(name, *pairs):
        monkeypatch.setattr(base.Precision, "from_name", lambda name, device: base.Precision(torch.float64))
        trainer = make_trainer(name, *pairs)
        trainer.model.learner.double()
        batch = batch_of(trainer)
        return trainer, batch["img"].double(), batch["label"]
    return make


def oracle_clip(trainer):
    """State, heads and activation of the trainer's CLIP, as the oracle takes them."""
    model = trainer.model.backbone.model
    return dict(state=model.state_dict(), quick_gelu=False, heads=(
        model.transformer.resblocks[0].attn.num_heads, model.visual.transformer.resblocks[0].attn.num_heads))


def rows_of(trainer, *before, after="."):
    """For each class the ids of its prompt, parts `before` the name, and the learned tokens' positions."""
    tokenize = trainer.model.backbone.tokenize
    return zip(*(oracle.written([SOT], *before, tokenize(readable(name) + after), [EOT])
                 for name in trainer.dm.dataset.classnames), strict=True)


def assert_equal(trainer, got, expected):
    """Same value, and same gradients of all prompts that train."""
    parameters = [p for p in trainer.model.learner.parameters()]
    pairs = zip([got, *torch.autograd.grad(got, parameters)],
                [expected, *torch.autograd.grad(expected, parameters)], strict=True)
    for a, b in pairs:
        assert (a - b).abs().max() <= 1e-10 * b.abs().max()


# CoOp

@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("per_class", [False, True])
def test_coop_is_the_oracles_wherever_the_name_stands(exact, position, per_class):
    trainer, image, label = exact("CoOp", "TRAINER.COOP.CTX_INIT", "", "TRAINER.COOP.N_CTX", 5,
                                  "TRAINER.COOP.CSC", per_class, "TRAINER.COOP.CLASS_TOKEN_POSITION", position)
    tokenize, rows, slots = trainer.model.backbone.tokenize, [], []
    for name in trainer.dm.dataset.classnames:
        words, stop = tokenize(readable(name)), tokenize(".")
        parts = {"end": (5, words), "middle": (2, words, 3), "front": (words, 5)}[position]
        row, places = oracle.written([SOT], *parts, stop, [EOT])
        rows.append(row)
        slots.append(places)
    assert trainer.model.learner.ctx.shape == ((4, 5) if per_class else (5,)) + (trainer.model.text_tower.width,)
    scores = oracle.prompted_logits(images=image, token_rows=rows, slots=slots, context=trainer.model.learner.ctx,
                                    **oracle_clip(trainer))
    assert_equal(trainer, losses_of(trainer, image, label)["loss_ce"], oracle.cross_entropy(scores, label))


@pytest.mark.parametrize("name, node", [("CoOp", "COOP"), ("CoCoOp", "COCOOP")])
def test_with_words_their_number_counts_and_n_ctx_does_not(make_trainer, name, node):
    trainer = make_trainer(name, f"TRAINER.{node}.CTX_INIT", "a_photo of a", f"TRAINER.{node}.N_CTX", 16)
    ids = trainer.model.backbone.tokenize("a photo of a")
    assert torch.equal(trainer.model.learner.ctx.data, trainer.model.backbone.model.token_embedding.weight[ids])


def test_with_words_coop_has_one_context_for_all_classes(make_trainer):
    trainer = make_trainer("CoOp", "TRAINER.COOP.CTX_INIT", "a photo of a", "TRAINER.COOP.CSC", True)
    assert trainer.model.learner.ctx.ndim == 2


def test_contexts_of_words_with_several_tokens_learn_as_many_as_there_are_words(make_trainer):
    """Published: the pieces beyond stay fixed behind the context."""
    trainer = make_trainer("CoOp", "TRAINER.COOP.CTX_INIT", "a photograph of playfulness")
    ids = trainer.model.backbone.tokenize("a photograph of playfulness")
    assert len(ids) == 5 and len(trainer.model.learner.ctx) == 4
    assert trainer.model.class_prompts.prefix.shape[0] == 1 + 5


def test_an_unknown_position_is_refused(make_trainer):
    with pytest.raises(ValueError, match=naming("CLASS_TOKEN_POSITION", "'start'", "end, middle, front")):
        make_trainer("CoOp", "TRAINER.COOP.CLASS_TOKEN_POSITION", "start")


# CoCoOp

def test_cocoop_is_the_oracles_loop_over_images(exact):
    trainer, image, label = exact("CoCoOp")
    rows, _ = rows_of(trainer, 4)
    meta = trainer.model.learner.meta_net
    scores = oracle.cocoop_logits(
        images=image, token_rows=rows, context=trainer.model.learner.ctx,
        meta_layers=[(layer.weight, layer.bias) for layer in (meta.linear1, meta.linear2)], **oracle_clip(trainer))
    assert_equal(trainer, losses_of(trainer, image, label)["loss_ce"], oracle.cross_entropy(scores, label))


def test_cocoops_batches_are_its_images_one_by_one(make_trainer):
    trainer = make_trainer("CoCoOp")
    image = batch_of(trainer)["img"]
    together = trainer.model_inference(image)
    alone = torch.cat([trainer.model_inference(one[None]) for one in image])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    sparing = make_trainer("CoCoOp", "TRAIN.TEXT_MEMORY", 1e-6, out="sparing")  # one class at a time
    torch.testing.assert_close(sparing.model_inference(image), together, rtol=1e-5, atol=1e-5)


def test_cocoops_noise_is_on_the_context_before_the_images_shift_it(make_trainer):
    trainer = make_trainer("CoCoOp", "TRAINER.PROMPT_DENOISING.ENABLED", True)
    noisy = noisy_of(trainer)
    assert noisy.context.shape == trainer.model.learner.ctx.shape


# Deep prompts

def test_vpt_is_the_oracles_and_its_text_is_a_photo_of_a_whatever_the_settings_say(exact):
    trainer, image, label = exact("VPT", "TRAINER.VPT.CTX_INIT", "a drawing of a")
    rows, _ = rows_of(trainer, trainer.model.backbone.tokenize("a photo of a"))
    visual, *deep = trainer.model.learner.images
    scores = oracle.prompted_logits(images=image, token_rows=rows, visual=visual, visual_deep=deep,
                                    **oracle_clip(trainer))
    assert_equal(trainer, losses_of(trainer, image, label)["loss_ce"], oracle.cross_entropy(scores, label))


def test_vpt_encodes_its_texts_once(make_trainer, monkeypatch):
    trainer = make_trainer("VPT")
    calls = []
    encode = trainer.model.text_tower.encode
    monkeypatch.setattr(trainer.model.text_tower, "encode", lambda *args: calls.append(1) or encode(*args))
    trainer.train()
    assert len(calls) == 1


def test_ivlp_is_the_oracles(exact):
    trainer, image, label = exact("IVLP", "TRAINER.IVLP.N_CTX_TEXT", 2, "TRAINER.IVLP.N_CTX_VISION", 3)
    rows, slots = rows_of(trainer, 2, trainer.model.backbone.tokenize("of a"))
    visual, *visual_deep = trainer.model.learner.images
    scores = oracle.prompted_logits(
        images=image, token_rows=rows, slots=slots, context=trainer.model.learner.ctx,
        deep=list(trainer.model.learner.deep_text),
        visual=visual, visual_deep=visual_deep, **oracle_clip(trainer))
    assert_equal(trainer, losses_of(trainer, image, label)["loss_ce"], oracle.cross_entropy(scores, label))


def test_without_vision_depth_ivlp_prompts_the_text_alone(exact):
    trainer, image, label = exact("IVLP", "TRAINER.IVLP.N_CTX_TEXT", 4, "TRAINER.IVLP.N_CTX_VISION", 0,
                                  "TRAINER.IVLP.PROMPT_DEPTH_VISION", 0)
    assert not len(trainer.model.learner.images) and trainer.model.learner().visual is None
    rows, slots = rows_of(trainer, 4)
    scores = oracle.prompted_logits(images=image, token_rows=rows, slots=slots, context=trainer.model.learner.ctx,
                                    deep=list(trainer.model.learner.deep_text), **oracle_clip(trainer))
    assert_equal(trainer, losses_of(trainer, image, label)["loss_ce"], oracle.cross_entropy(scores, label))


@pytest.mark.parametrize("name, pairs, named", [
    ("IVLP", ("TRAINER.IVLP.PROMPT_DEPTH_TEXT", 0), ("PROMPT_DEPTH_TEXT", "0")),
    ("IVLP", ("TRAINER.IVLP.PROMPT_DEPTH_VISION", 5), ("PROMPT_DEPTH_VISION", "0 to 4")),
    ("IVLP", ("TRAINER.IVLP.N_CTX_VISION", 0), ("N_CTX_VISION", "0", "PROMPT_DEPTH_VISION")),
    ("IVLP", ("TRAINER.IVLP.N_CTX_TEXT", 75), ("TRAINER.IVLP.N_CTX_TEXT", "1 to 74")),
    ("VPT", ("TRAINER.VPT.PROMPT_DEPTH_VISION", 5), ("PROMPT_DEPTH_VISION", "1 to 4")),
    ("CoOp", ("TRAINER.COOP.CTX_INIT", "", "TRAINER.COOP.N_CTX", 75), ("TRAINER.COOP.N_CTX", "1 to 74")),
    ("PromptSRC", ("TRAINER.PROMPTSRC.GPA_STD", 0), ("GPA_STD", "0")),
    ("PromptSRC", ("TRAINER.PROMPTSRC.TEXT_LOSS_WEIGHT", -1), ("TEXT_LOSS_WEIGHT", "-1")),
])
def test_invalid_settings_are_refused_by_name(make_trainer, name, pairs, named):
    with pytest.raises(ValueError, match=naming(*named)):
        make_trainer(name, *pairs)


# PromptSRC

def test_promptsrcs_losses_are_the_oracles(exact):
    trainer, image, label = exact("PromptSRC")
    rows, _ = rows_of(trainer, 4)
    tokenize, names = trainer.model.backbone.tokenize, trainer.dm.dataset.classnames
    templates = [[[SOT, *tokenize(template.replace("{}", readable(name))), EOT] for name in names]
                 for template in TEMPLATES]
    visual, *visual_deep = trainer.model.learner.images
    expected = oracle.promptsrc_losses(
        images=image, labels=label, token_rows=rows, template_rows=templates, context=trainer.model.learner.ctx,
        deep=list(trainer.model.learner.deep_text), visual=visual, visual_deep=visual_deep, **oracle_clip(trainer))
    got = losses_of(trainer, image, label)
    assert got["loss_text"].item() == pytest.approx(25 * expected["text"].item(), rel=1e-9)
    assert got["loss_image"].item() == pytest.approx(10 * expected["image"].item(), rel=1e-9)
    assert got["loss_kl"].item() == pytest.approx(expected["kl"].item(), rel=1e-9)
    assert_equal(trainer, sum(got.values()), expected["total"])


def test_its_templates_are_the_first_sixty_of_clips():
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    assert {template("x") for template in OPENAI_IMAGENET_TEMPLATES[:60]} == \
        {template.replace("{}", "x") for template in TEMPLATES} and len(TEMPLATES) == 60


@pytest.mark.parametrize("epochs, mean, std", [(20, 15, 1), (20, 6, 10), (50, 45, 5), (2, 400, 1)])
def test_epochs_are_weighted_by_a_gaussian(epochs, mean, std):
    torch.testing.assert_close(epoch_weights(epochs, mean, std).tolist(), oracle.gaussian_weights(epochs, mean, std))


def test_what_is_kept_is_the_average_of_the_epochs(make_trainer, monkeypatch):
    states = []
    trainer = make_trainer("PromptSRC", "TRAINER.PROMPTSRC.GPA_MEAN", 1)
    after_epoch = trainer.after_epoch
    monkeypatch.setattr(trainer, "after_epoch", lambda: states.append(
        {key: value.clone() for key, value in trainer.model.learner.state_dict().items()}) or after_epoch())
    trainer.train()
    expected = oracle.averaged(states, oracle.gaussian_weights(2, 1, 1))
    for key, value in trainer.model.learner.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-8)
    saved = torch.load(f"{trainer.output_dir}/VLPromptLearner/model.pth.tar-2")["state_dict"]
    assert_same_state(dict(saved), dict(trainer.model.learner.state_dict()))


def test_the_average_survives_an_interruption(make_trainer, monkeypatch):
    whole = trained(make_trainer, "PromptSRC", out="whole")
    pairs = ("TRAIN.CHECKPOINT_FREQ", 1)
    broken = make_trainer("PromptSRC", *pairs, out="broken")
    begin_epoch = broken.begin_epoch

    def interrupted():
        if broken.epoch == 1:
            raise KeyboardInterrupt
        begin_epoch()

    monkeypatch.setattr(broken, "begin_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = trained(make_trainer, "PromptSRC", *pairs, out="broken")
    assert_same_state(resumed.model.learner.state_dict(), whole.model.learner.state_dict())


def test_templates_without_words_in_the_backbone_are_left_out_with_a_line(make_trainer, few_shapes, capsys):
    trainer = make_trainer("PromptSRC", "MODEL.BACKBONE.WEIGHTS", "builtin", *few_shapes)
    assert trainer.model.frozen_text().shape[0] == trainer.num_classes
    assert re.search(naming("14 of 60", "tiny-shapes"), capsys.readouterr().out)


# Attributes

ATTRIBUTES = ("TRAINER.ATPROMPT.USE_ATPROMPT", True, "TRAINER.ATPROMPT.N_ATT1", 2, "TRAINER.ATPROMPT.N_ATT2", 3)


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("name", ["MaPLe", "P2C"])
def test_attributes_stand_before_the_context_and_flow_through_the_layers(exact, name, noise):
    """OxfordPets: playfulness is two tokens, both of which stay."""
    trainer, image, label = exact(name, *ATTRIBUTES, "TRAINER.PROMPT_DENOISING.ENABLED", noise,
                                  "TRAINER.P2C.MAPPER.ENABLED", False)
    tokenize, prompts = trainer.model.backbone.tokenize, trainer.model.learner
    assert len(tokenize("playfulness")) == 2
    rows, slots = rows_of(trainer, 2, tokenize("playfulness"), 3, tokenize("energy"), 2)
    std = trainer.model.backbone.token_std
    eps = (9.0 * std * torch.cat([  # scaled in float32, as it is drawn
        trainer.model.denoising.distribution.sample((number, trainer.model.text_tower.width), generator(1, stream, 0))
        for number, stream in ((2, "dpd.attribute1"), (3, "dpd.attribute2"), (2, "dpd"))])).double() if noise else None
    expected = oracle.p2c_losses(
        images=image, labels=label, token_rows=rows, slots=slots, context=prompts.ctx,
        attributes=torch.cat([prompts.ctx_att1, prompts.ctx_att2]), deep=list(prompts.compound_prompts_text),
        mapper=[(prompts.proj.weight, prompts.proj.bias)],
        projections=[(f.weight, f.bias) for f in prompts.compound_prompt_projections],
        eps=eps, sigma=1.0 if noise else 0.0, **oracle_clip(trainer))["total"]
    prompts.ctx_att3.requires_grad_(False)  # not in use
    used = [p for p in prompts.parameters() if p.requires_grad]
    got = sum(losses_of(trainer, image, label).values())
    for a, b in zip(torch.autograd.grad(got, used), torch.autograd.grad(expected, used), strict=True):
        assert (a - b).abs().max() <= 1e-10 * b.abs().max()


def test_attribute_tokens_train_those_in_use_alone(make_trainer):
    trainer = make_trainer("CoOp", *ATTRIBUTES)
    start = {key: value.clone() for key, value in trainer.model.learner.state_dict().items()}
    assert start["ctx_att1"].std().item() == pytest.approx(0.01, rel=0.2)
    trainer.train()
    changed = {key for key, value in trainer.model.learner.state_dict().items() if not torch.equal(value, start[key])}
    assert changed == {"ctx", "ctx_att1", "ctx_att2"} and set(start) == changed | {"ctx_att3"}


def test_the_attributes_and_their_number_are_settings(make_trainer):
    trainer = make_trainer("CoOp", *ATTRIBUTES, "TRAINER.ATPROMPT.ATT_NUM", 1,
                           "TRAINER.ATPROMPT.ATT1_TEXT", "fur color")
    assert trainer.model.layout.attributes == ((2, "fur color"),)
    assert trainer.model.class_prompts.prefix.shape[0] == 1 + 2 + 2 + 4  # [SOS], tokens, words, context


@pytest.mark.parametrize("name, pairs, named", [
    ("IVLP", (), ("IVLP", "TRAINER.ATPROMPT.USE_ATPROMPT False")),
    ("CoOp", ("TRAINER.COOP.CSC", True), ("ttributes", "one context")),
    ("CoOp", ("TRAINER.COOP.CLASS_TOKEN_POSITION", "front"), ("ttributes", "one context")),
    ("CoOp", ("TRAINER.ATPROMPT.ATT_NUM", 4), ("ATT_NUM", "4", "0 to 3")),
    ("CoOp", ("TRAINER.ATPROMPT.ATT_NUM", 2, "TRAINER.ATPROMPT.ATT1_TEXT", "color"),
     ("ATT2_TEXT", "'none'")),
    ("MaPLe", ("TRAINER.ATPROMPT.N_ATT3", 0), ("N_ATT3", "0")),
])
def test_attributes_that_make_no_sense_are_refused(make_trainer, name, pairs, named):
    with pytest.raises(ValueError, match=naming(*named)):
        make_trainer(name, *ATTRIBUTES, *pairs)


def test_a_dataset_without_published_attributes_needs_them_set(make_trainer, few_shapes):
    with pytest.raises(ValueError, match=naming("Shapes", "TRAINER.ATPROMPT.ATT_NUM")):
        make_trainer("P2C", *ATTRIBUTES, *few_shapes)
