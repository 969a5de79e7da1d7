"""The oracle without prompts is open_clip's CLIP: what the prompted towers are compared with starts from the truth."""

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


def prompted_by_hooks(model: CLIP, text, visual, text_deep, visual_deep) -> None:
    """Make open_clip's own towers run with prompts: a second, hooked way of doing what the oracle does."""

    def in_text(x, prompt):
        return torch.cat([x[:, :1], prompt.expand(len(x), -1, -1), x[:, 1 + len(prompt) :]], dim=1)

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


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_prompted_features_and_gradients_equal_hooked_open_clip(depth, quick_gelu):
    model = tiny_clip(quick_gelu, text_layers=3, vision_layers=3).requires_grad_(False)
    rows = [row for row in ROWS if len(row) > 3]
    images = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    text, *text_deep = (torch.randn(2, 16, dtype=torch.float64, requires_grad=True) for _ in range(depth))
    visual, *visual_deep = (torch.randn(2, 24, dtype=torch.float64, requires_grad=True) for _ in range(depth))
    prompts = [text, visual, *text_deep, *visual_deep]

    state = model.state_dict()
    text_features = oracle.encode_text(state, rows, TEXT_HEADS, quick_gelu, text, text_deep)
    image_features = oracle.encode_image(state, images, VISION_HEADS, quick_gelu, visual, visual_deep)
    scores = oracle.logits(state, image_features, text_features)
    gradients = torch.autograd.grad(oracle.cross_entropy(scores, torch.tensor([1, 0])), prompts)

    prompted_by_hooks(model, text, visual, text_deep, visual_deep)
    expected, _ = model.get_logits(images, padded(rows, model.context_length))
    loss = torch.nn.functional.cross_entropy(expected, torch.tensor([1, 0]))
    assert relative(scores, expected) < 1e-10
    for got, truth in zip(gradients, torch.autograd.grad(loss, prompts), strict=True):
        assert relative(got, truth) < 1e-9


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
