"""The oracle without prompts is open_clip's CLIP, with prompts a hooked one, and its losses have their closed forms:
what towers and trainers are compared with starts from the truth."""

import math

import oracle
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

SOS, EOT = 58, 59
ROWS = [[SOS, 3, 4, 5, EOT], [SOS, 7, 1, EOT], [SOS, *range(5, 25), EOT], [SOS, EOT]]
TEXT_HEADS, VISION_HEADS = 4, 3


def tiny_clip(quick_gelu: bool, text_layers: int = 3, vision_layers: int = 2) -> CLIP:
    """A random CLIP in float64 in which no weight, bias or gain keeps a value that could hide its absence."""
    torch.manual_seed(text_layers)
    model = CLIP(
        embed_dim=10,
        vision_cfg=CLIPVisionCfg(layers=vision_layers, width=24, head_width=8, patch_size=4, image_size=12),
        text_cfg=CLIPTextCfg(context_length=24, vocab_size=60, width=16, heads=TEXT_HEADS, layers=text_layers),
        quick_gelu=quick_gelu,
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def padded(rows: list[list[int]], length: int) -> torch.Tensor:
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("layers", [(3, 2), (2, 3)])
def test_text_features_equal_open_clip(quick_gelu, layers):
    model = tiny_clip(quick_gelu, *layers)
    expected = model.encode_text(padded(ROWS, model.context_length))
    got = oracle.encode_text(model.state_dict(), ROWS, TEXT_HEADS, quick_gelu)
    assert got.shape == (4, 10) and got.dtype == torch.float64
    assert relative(got, expected) < 1e-10


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("layers", [(3, 2), (2, 3)])
def test_image_features_equal_open_clip(quick_gelu, layers):
    model = tiny_clip(quick_gelu, *layers)
    images = torch.randn(3, 3, 12, 12, dtype=torch.float64)
    got = oracle.encode_image(model.state_dict(), images, VISION_HEADS, quick_gelu)
    assert relative(got, model.encode_image(images)) < 1e-10


def test_logits_equal_open_clip():
    model = tiny_clip(quick_gelu=True)
    images = torch.randn(3, 3, 12, 12, dtype=torch.float64)
    state = model.state_dict()
    image = oracle.encode_image(state, images, VISION_HEADS, True)
    text = oracle.encode_text(state, ROWS, TEXT_HEADS, True)
    expected, _ = model.get_logits(images, padded(ROWS, model.context_length))
    assert relative(oracle.logits(state, image, text), expected) < 1e-10


def test_the_two_gelus_differ():
    x = torch.linspace(-3, 3, 25, dtype=torch.float64)
    assert relative(oracle.gelu(x), torch.nn.functional.gelu(x)) < 1e-14
    assert (oracle.gelu(x) - oracle.gelu(x, quick=True)).abs().max() > 0.01


def test_the_tokens_own_embeddings_as_context_change_nothing():
    model = tiny_clip(quick_gelu=False)
    state, rows = model.state_dict(), [[SOS, 3, 4, 5, EOT], [SOS, 3, 4, EOT]]
    context = state["token_embedding.weight"][[3, 4]]
    plain = oracle.encode_text(state, rows, TEXT_HEADS, False)
    assert torch.equal(oracle.encode_text(state, rows, TEXT_HEADS, False, context), plain)
    assert relative(oracle.encode_text(state, rows, TEXT_HEADS, False, 2 * context), plain) > 1e-3


def prompted_by_hooks(model: CLIP, text, visual, text_deep, visual_deep, slots) -> None:
    """Make open_clip's own towers run with prompts: a second, hooked way of doing what the oracle does.

    text (M, D) or (C, M, D) stands at the slots (C, M) of each class's row, text_deep (N, D) at the last N of them.
    """
    classes = torch.arange(len(slots))[:, None]

    def in_text(x, prompt):
        return x.index_put((classes, slots[:, -prompt.shape[-2] :]), prompt)

    def in_image(x, prompt):
        return torch.cat([x[:, : -len(prompt)], prompt.expand(len(x), -1, -1)], dim=1)

    def appended(x, prompt):
        return torch.cat([x, prompt.expand(len(x), -1, -1)], dim=1)

    def entering(module, put, prompt):
        module.register_forward_pre_hook(lambda _, inputs: (put(inputs[0], prompt), *inputs[1:]))

    model.token_embedding.register_forward_hook(lambda _, inputs, x: in_text(x, text))
    entering(model.visual.ln_pre, appended, visual)
    for block, prompt in zip(model.transformer.resblocks[1:], text_deep, strict=False):
        entering(block, in_text, prompt)
    for block, prompt in zip(model.visual.transformer.resblocks[1:], visual_deep, strict=False):
        entering(block, in_image, prompt)


def leaves(count, *shape):
    return [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for _ in range(count)]


NAMES = [[3, 4, 5], [7], [*range(5, 15)]]
LAYOUTS = {
    "from position 1": [([SOS], 4, [9, *name, EOT]) for name in NAMES],
    "around the name": [([SOS], 2, name, 2, [EOT]) for name in NAMES],
    "behind the name": [([SOS], name, 4, [9, EOT]) for name in NAMES],
    "before words": [([SOS], 1, [8, 2], 1, [6], 2, [*name, EOT]) for name in NAMES],
}


def prompts_of(layout):
    """Rows and slots of all classes."""
    return zip(*(oracle.written(*parts) for parts in LAYOUTS[layout]), strict=True)


@pytest.mark.parametrize("context_of", ["all", "each class"])
@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_prompted_logits_and_gradients_equal_hooked_open_clip(layout, depth, quick_gelu, context_of):
    """Deep text prompts are two tokens, the last two of the four that are learned at the input."""
    model = tiny_clip(quick_gelu, text_layers=3, vision_layers=3).requires_grad_(False)
    rows, slots = prompts_of(layout)
    images = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    (text,) = leaves(1, 4, 16) if context_of == "all" else leaves(1, 3, 4, 16)
    text_deep = leaves(depth - 1, 2, 16)
    visual, *visual_deep = leaves(depth, 3, 24)
    prompts = [text, visual, *text_deep, *visual_deep]

    scores = oracle.prompted_logits(
        model.state_dict(), images, rows, (TEXT_HEADS, VISION_HEADS), quick_gelu, text, text_deep, visual, visual_deep,
        slots,
    )  # fmt: skip
    gradients = torch.autograd.grad(oracle.cross_entropy(scores, torch.tensor([1, 0])), prompts)

    prompted_by_hooks(model, text, visual, text_deep, visual_deep, torch.tensor(slots))
    expected, _ = model.get_logits(images, padded(rows, model.context_length))
    loss = torch.nn.functional.cross_entropy(expected, torch.tensor([1, 0]))
    assert relative(scores, expected) < 1e-10
    for got, truth in zip(gradients, torch.autograd.grad(loss, prompts), strict=True):
        assert relative(got, truth) < 1e-9


def test_without_slots_the_context_stands_behind_the_start():
    state = tiny_clip(quick_gelu=False).state_dict()
    rows, slots = prompts_of("from position 1")
    (context,) = leaves(1, 4, 16)
    with_slots = oracle.encode_text(state, rows, TEXT_HEADS, False, context, slots=slots)
    assert torch.equal(oracle.encode_text(state, rows, TEXT_HEADS, False, context), with_slots)


def test_a_prompt_is_written_in_parts():
    row, places = oracle.written([SOS], 2, [7, 8], 1, [EOT])
    assert row == [SOS, 0, 0, 7, 8, 0, EOT] and places == [1, 2, 5]


# CoCoOp


def cocoop(meta_layers, images):
    model = tiny_clip(quick_gelu=False)
    context = torch.linspace(-1, 1, 2 * 16, dtype=torch.float64).reshape(2, 16)
    rows = [[SOS, 0, 0, *name, EOT] for name in NAMES]
    heads = TEXT_HEADS, VISION_HEADS
    with_bias = oracle.prompted_logits(model.state_dict(), images, rows, heads, False, context + meta_layers[1][1])
    return oracle.cocoop_logits(model.state_dict(), images, rows, heads, False, context, meta_layers), with_bias


def random_meta_layers():
    torch.manual_seed(0)
    shapes = ((4, 10), (4,)), ((16, 4), (16,))
    return [tuple(torch.randn(*shape, dtype=torch.float64) for shape in layer) for layer in shapes]


def test_the_meta_net_is_linear_relu_linear():
    first, second = random_meta_layers()
    features = torch.randn(5, 10, dtype=torch.float64)
    hidden = torch.nn.functional.relu(torch.nn.functional.linear(features, *first))
    assert (hidden == 0).any() and (hidden > 0).any()
    assert relative(oracle.meta_net([first, second], features), torch.nn.functional.linear(hidden, *second)) < 1e-14


def test_a_meta_net_of_its_last_bias_alone_moves_the_context_of_all_images_by_it():
    (first, (weight, bias)), images = random_meta_layers(), torch.randn(3, 3, 12, 12, dtype=torch.float64)
    scores, expected = cocoop([first, (0 * weight, bias)], images)
    assert relative(scores, expected) < 1e-10


def test_each_image_has_its_own_context_whatever_stands_beside_it():
    layers, images = random_meta_layers(), torch.randn(3, 3, 12, 12, dtype=torch.float64)
    scores, without = cocoop(layers, images)
    assert relative(scores, without) > 1e-3
    assert relative(torch.cat([cocoop(layers, image[None])[0] for image in images]), scores) < 1e-10


def test_the_meta_net_reads_the_image_features_direction_alone():
    layers, image = random_meta_layers(), torch.randn(1, 3, 12, 12, dtype=torch.float64)
    model = tiny_clip(quick_gelu=False)
    state, rows, heads = model.state_dict(), [[SOS, 0, 0, 5, EOT], [SOS, 0, 0, 8, EOT]], (TEXT_HEADS, VISION_HEADS)
    longer = state | {"visual.proj": 3 * state["visual.proj"]}
    (context,) = leaves(1, 2, 16)
    scores = oracle.cocoop_logits(state, image, rows, heads, False, context, layers)
    assert relative(oracle.cocoop_logits(longer, image, rows, heads, False, context, layers), scores) < 1e-10


# PromptSRC


def test_text_target_averages_features_of_their_own_lengths():
    model = tiny_clip(quick_gelu=False)
    templates = [[[SOS, *start, *name, EOT] for name in NAMES] for start in ([], [9], [2, 2])]
    features = torch.stack([model.encode_text(padded(rows, model.context_length)) for rows in templates])
    expected = torch.nn.functional.normalize(features.sum(0), dim=-1)
    got = oracle.text_target(model.state_dict(), templates, TEXT_HEADS, False)
    assert relative(got, expected) < 1e-10 and not got.requires_grad
    of_directions = torch.nn.functional.normalize(torch.nn.functional.normalize(features, dim=-1).sum(0), dim=-1)
    assert relative(got, of_directions) > 1e-3


def test_kl_is_divided_by_images_times_classes_and_0_for_equal_logits():
    even, uneven = torch.tensor([[[0, 0]] * 3, [[math.log(3), 0]] * 3], dtype=torch.float64)
    assert oracle.kl_to_frozen(even, uneven).item() == pytest.approx(math.log(4 / 3) / 4)
    assert oracle.kl_to_frozen(uneven, even).item() == pytest.approx((3 * math.log(1.5) - math.log(2)) / 8)
    assert oracle.kl_to_frozen(uneven, uneven + 5).item() == pytest.approx(0, abs=1e-12)


def test_kl_moves_the_prompted_logits_towards_the_frozen_ones_which_get_no_gradient():
    frozen, scores = leaves(2, 4, 5)
    (gradient,) = torch.autograd.grad(oracle.kl_to_frozen(frozen, scores), scores)
    assert relative(gradient, (scores.softmax(-1) - frozen.softmax(-1)) / 20) < 1e-12
    assert not oracle.kl_to_frozen(frozen, scores.detach()).requires_grad


def test_promptsrc_losses_of_prompts_that_change_nothing_are_the_cross_entropy():
    model = tiny_clip(quick_gelu=False)
    state, heads = model.state_dict(), (TEXT_HEADS, VISION_HEADS)
    images, labels = torch.randn(2, 3, 12, 12, dtype=torch.float64), torch.tensor([2, 0])
    rows = [[SOS, 9, 2, *name, EOT] for name in NAMES]
    losses = oracle.promptsrc_losses(state, images, labels, rows, [rows], heads, False,
                                     state["token_embedding.weight"][[9, 2]])  # fmt: skip
    expected, _ = model.get_logits(images, padded(rows, model.context_length))
    truth = torch.nn.functional.cross_entropy(expected, labels)
    assert losses["ce"].item() == losses["total"].item() == pytest.approx(truth.item(), rel=1e-10)
    assert losses["text"] == losses["image"] == 0 and losses["kl"].abs() < 1e-12


def test_promptsrc_losses_are_means_over_all_classes_and_images_and_widths():
    model = tiny_clip(quick_gelu=False)
    state, heads = model.state_dict(), (TEXT_HEADS, VISION_HEADS)
    images, labels = torch.randn(2, 3, 12, 12, dtype=torch.float64), torch.tensor([2, 0])
    rows = [[SOS, 0, 0, *name, EOT] for name in NAMES]
    templates = [[[SOS, word, *name, EOT] for name in NAMES] for word in (9, 2)]
    context, *deep = leaves(2, 2, 16)
    visual, *visual_deep = leaves(2, 3, 24)
    losses = oracle.promptsrc_losses(state, images, labels, rows, templates, heads, False, context, deep, visual,
                                     visual_deep, text_weight=7.0, image_weight=3.0)  # fmt: skip
    text = oracle.normalised(oracle.encode_text(state, rows, TEXT_HEADS, False, context, deep))
    image = oracle.normalised(oracle.encode_image(state, images, VISION_HEADS, False, visual, visual_deep))
    frozen_text = oracle.text_target(state, templates, TEXT_HEADS, False)
    frozen_image = torch.nn.functional.normalize(model.encode_image(images), dim=-1)
    scale = state["logit_scale"].exp()
    scores, frozen = scale * image @ text.T, scale * frozen_image @ frozen_text.T
    functional = torch.nn.functional
    expected = {
        "ce": functional.cross_entropy(scores, labels),
        "text": functional.l1_loss(text, frozen_text),
        "image": functional.l1_loss(image, frozen_image),
        "kl": functional.kl_div(scores.log_softmax(-1), frozen.log_softmax(-1), reduction="sum", log_target=True) / 6,
    }
    expected["total"] = expected["ce"] + 7 * expected["text"] + 3 * expected["image"] + expected["kl"]
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-10), name


def test_gaussian_weights_are_the_published_ones_and_sum_to_1():
    weights = oracle.gaussian_weights(20, 15, 1)
    assert [round(weight, 3) for weight in weights[12:17]] == [0.054, 0.242, 0.399, 0.242, 0.054]
    assert sum(weights) == pytest.approx(1, rel=1e-15)
    assert oracle.gaussian_weights(1, 15, 1) == [1] and oracle.gaussian_weights(3, 60, 1)[2] == pytest.approx(1)


def test_averaged_states_are_sums_by_weight():
    states = [{"ctx": torch.full((2,), value)} for value in (1.0, 4.0)]
    assert torch.equal(oracle.averaged(states, [0.25, 0.75])["ctx"], torch.full((2,), 3.25))


# P2C


def test_attribute_tokens_stand_before_the_context_and_do_not_reach_the_images():
    state = tiny_clip(quick_gelu=False).state_dict()
    rows, slots = prompts_of("before words")
    images = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    attributes, context, deep = leaves(3, 2, 16)
    eps = torch.randn(4, 16, dtype=torch.float64)
    mapper, projection = ((torch.randn(24, 16, dtype=torch.float64), torch.randn(24, dtype=torch.float64)),) * 2
    got = oracle.p2c_logits(state, images, rows, (TEXT_HEADS, VISION_HEADS), False, context, [deep], [mapper],
                            [projection], eps, 0.5, attributes, slots)  # fmt: skip
    learned = torch.cat([attributes + 0.5 * eps[:2], context + 0.5 * eps[2:]])
    text = oracle.encode_text(state, rows, TEXT_HEADS, False, learned, [deep], slots)
    visual, visual_deep = (prompt @ mapper[0].T + mapper[1] for prompt in (context, deep))
    image = oracle.encode_image(state, images, VISION_HEADS, False, visual, [visual_deep])
    assert relative(got, oracle.logits(state, image, text)) < 1e-12


def test_mapper_target_gets_no_gradient():
    torch.manual_seed(0)
    context, normal = torch.randn(2, 2, 6, dtype=torch.float64)
    layer = (torch.randn(5, 6, dtype=torch.float64), torch.randn(5, dtype=torch.float64, requires_grad=True))
    loss = oracle.mapper_loss([layer], context, normal, 0.3)
    moved = (0.3 * normal) @ layer[0].T
    assert torch.allclose(loss, (moved**2).mean())
    loss.backward()
    assert torch.allclose(layer[1].grad, 2 * moved.sum(0) / moved.numel())


@pytest.mark.parametrize("name", oracle.SCHEDULES)
def test_schedules_start_at_one_and_never_rise(name):
    levels = [oracle.SCHEDULES[name](oracle.progress(e, 10)) for e in range(11)]
    assert levels[0] == pytest.approx(1) and all(a >= b for a, b in zip(levels, levels[1:], strict=False))
    assert levels[-1] == pytest.approx(1 if name == "constant" else 0)
