"""The prompted towers against the plain oracle (float64, 1e-10 relative), and unprompted against open_clip."""
import random

import oracle
import pytest
import torch
from open_clip import CLIP
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from p2c.clip.text import TextTower, shared_length
from p2c.clip.vision import ImageTower

SOT, EOT, VOCABULARY = 58, 59, 60
HEAD_WIDTH = 8


def random_clip(rng: random.Random, quick_gelu: bool, context_length: int = 20):
    """A CLIP of random shape in float64 whose every parameter is random, and the numbers of heads of its towers."""
    text_heads, vision_heads = rng.randint(1, 3), rng.randint(1, 3)
    torch.manual_seed(rng.randrange(10**6))
    model = CLIP(
        embed_dim=rng.randint(5, 12),
        vision_cfg=CLIPVisionCfg(layers=rng.randint(1, 4), width=HEAD_WIDTH * vision_heads, head_width=HEAD_WIDTH,
                                 patch_size=4, image_size=4 * rng.randint(1, 3)),
        text_cfg=CLIPTextCfg(context_length=context_length, vocab_size=VOCABULARY, width=HEAD_WIDTH * text_heads,
                             heads=text_heads, layers=rng.randint(1, 4)),
        quick_gelu=quick_gelu,
    ).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    return model, text_heads, vision_heads


def random_rows(rng: random.Random, n_ctx: int, fixed: int, classes: int, longest: int) -> list[list[int]]:
    """Prompts with n_ctx placeholders and `fixed` common words, and names of random length."""
    words = [rng.randrange(50) for _ in range(fixed)]
    return [[SOT] * (1 + n_ctx) + words + [rng.randrange(50) for _ in range(rng.randint(0, longest))] + [EOT]
            for _ in range(classes)]


def leaves(*shapes):
    return [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def assert_equal(value, expected, inputs):
    """Same outputs, and same gradients of a random functional of them."""
    assert (value - expected).abs().max() <= 1e-10 * expected.abs().max()
    weight = torch.randn_like(expected)
    got = torch.autograd.grad((value * weight).sum(), inputs)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs)
    for a, b in zip(got, wanted, strict=True):
        assert b.abs().max() > 0
        assert (a - b).abs().max() <= 1e-10 * b.abs().max()


@pytest.mark.parametrize("seed", range(24))
def test_prompted_text_and_gradients_equal_the_oracle(seed):
    rng = random.Random(seed)
    quick_gelu = bool(seed % 2)
    model, heads, _ = random_clip(rng, quick_gelu)
    tower = TextTower(model, SOT, EOT)
    n_ctx = rng.randint(1, 5)
    rows = random_rows(rng, n_ctx, fixed=rng.randint(0, 3), classes=rng.randint(1, 6), longest=6)
    depth = rng.randint(1, tower.layers)
    context, *deep = leaves(*[(n_ctx, tower.width)] * depth)
    features = tower.encode(tower.prepare(rows, n_ctx), context, deep)
    assert_equal(features, oracle.encode_text(model.state_dict(), rows, heads, quick_gelu, context, deep),
                 [context, *deep])


@pytest.mark.parametrize("seed", range(24))
def test_prompted_images_and_gradients_equal_the_oracle(seed):
    rng = random.Random(seed)
    quick_gelu = bool(seed % 2)
    model, _, heads = random_clip(rng, quick_gelu)
    tower = ImageTower(model).require_prompts()
    images = torch.randn(rng.randint(1, 4), 3, *model.visual.image_size, dtype=torch.float64)
    n_ctx, depth = rng.randint(1, 5), rng.randint(1, tower.layers)
    prompts, *deep = leaves(*[(n_ctx, tower.width)] * depth)
    features = tower.encode(images, prompts, deep)
    assert_equal(features, oracle.encode_image(model.state_dict(), images, heads, quick_gelu, prompts, deep),
                 [prompts, *deep])


@pytest.mark.parametrize("seed", range(4))
def test_without_prompts_the_towers_are_open_clips(seed):
    rng = random.Random(seed)
    model, _, _ = random_clip(rng, quick_gelu=False)
    tower = TextTower(model, SOT, EOT)
    rows = random_rows(rng, 0, fixed=2, classes=5, longest=8)
    padded = torch.tensor([row + [0] * (tower.context_length - len(row)) for row in rows])
    torch.testing.assert_close(tower.encode(tower.prepare(rows)), model.encode_text(padded), rtol=1e-10, atol=1e-12)
    images = torch.randn(3, 3, *model.visual.image_size, dtype=torch.float64)
    torch.testing.assert_close(ImageTower(model).encode(images), model.encode_image(images), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("names", [[[7]], [[7], [7]], [[], [7, 8]]], ids=["one class", "equal names", "an empty name"])
def test_odd_class_lists_are_encoded_as_the_oracle_does(names):
    model, heads, _ = random_clip(random.Random(3), quick_gelu=False)
    tower = TextTower(model, SOT, EOT)
    rows = [[SOT, SOT, 5, *name, EOT] for name in names]
    context, = leaves((1, tower.width))
    assert_equal(tower.encode(tower.prepare(rows, 1), context),
                 oracle.encode_text(model.state_dict(), rows, heads, False, context), [context])


def test_shared_prefix_is_found_from_the_tokens_and_leaves_every_class_a_token():
    assert shared_length([[1, 2, 3, 9], [1, 2, 4, 9]]) == 2
    assert shared_length([[1, 2, 9], [1, 2, 3, 9]]) == 2
    assert shared_length([[1, 2, 9]]) == 2
    assert shared_length([[1, 2, 9], [1, 2, 9]]) == 2


def test_only_the_tokens_up_to_eot_are_encoded_and_the_prefix_once():
    model, _, _ = random_clip(random.Random(0), quick_gelu=False)
    tower = TextTower(model, SOT, EOT)
    prompts = tower.prepare([[SOT, SOT, 5, 6, EOT], [SOT, SOT, 5, 7, 8, EOT]], n_ctx=1)
    assert prompts.prefix.shape[0] == 3
    assert prompts.suffix.shape[:2] == (2, 3)
    assert prompts.eot.tolist() == [1, 2]


def test_too_long_a_prompt_is_refused_with_both_lengths():
    model, _, _ = random_clip(random.Random(0), quick_gelu=False, context_length=6)
    with pytest.raises(ValueError, match="7 tokens.* 6 at most"):
        TextTower(model, SOT, EOT).prepare([[SOT, 1, 2, 3, 4, 5, EOT]])


def test_a_tower_without_causal_mask_or_with_other_pooling_is_refused():
    model, _, _ = random_clip(random.Random(0), quick_gelu=False)
    model.text_pool_type = "last"
    with pytest.raises(ValueError, match="causal mask.*EOT"):
        TextTower(model, SOT, EOT)
    model.visual.pool_type = "avg"
    with pytest.raises(ValueError, match="VisionTransformer"):
        ImageTower(model).require_prompts()
