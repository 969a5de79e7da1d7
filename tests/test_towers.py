"""The prompted towers against the plain oracle (float64, 1e-10 relative), and unprompted against open_clip."""
import itertools
import random

import oracle
import pytest
import torch
from open_clip import CLIP, IMAGENET_CLASSNAMES
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer

from p2c.clip.loading import fold_quick_gelu
from p2c.clip.text import BUCKET_COST, TextTower, bucket_lengths, shared_length
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


def random_ids(rng: random.Random, least: int, most: int) -> list[int]:
    """Ids of a text of random length."""
    return [rng.randrange(50) for _ in range(rng.randint(least, most))]


def random_prompts(rng: random.Random, learned: int, place: str = "end"):
    """Token ids and slots of random classes, whose names stand at the end, in the middle or in front of the context."""
    words, prompts = random_ids(rng, 0, 3), []
    for name in (random_ids(rng, 0, 6) for _ in range(rng.randint(1, 6))):
        prompts.append(oracle.written(*{
            "end": ([SOT], learned, words + name + [EOT]),
            "middle": ([SOT], learned // 2, name, learned - learned // 2, words + [EOT]),
            "front": ([SOT], name, learned, words + [EOT])}[place]))
    return zip(*prompts, strict=True)


def attribute_prompts(rng: random.Random, learned: int):
    """Prompts as ATPrompt's: one to three attributes, each learned tokens and a word of one or more; the context; the
    name. Returns the number of the attributes' learned tokens, the token ids and the slots."""
    attributes = [(rng.randint(1, 2), random_ids(rng, 1, 2)) for _ in range(rng.randint(1, 3))]
    parts = [part for attribute in attributes for part in attribute]
    prompts = [oracle.written([SOT], *parts, learned, random_ids(rng, 0, 3) + [EOT]) for _ in range(rng.randint(1, 6))]
    return sum(count for count, _ in attributes), *zip(*prompts, strict=True)


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


class TextPair:
    """The text tower of a random CLIP and the oracle's."""

    def __init__(self, seed: int):
        self.rng, self.quick_gelu = random.Random(seed), bool(seed % 2)
        self.model, self.heads, _ = random_clip(self.rng, self.quick_gelu)
        self.tower = TextTower(self.model, SOT, EOT)

    def oracle(self, rows, slots, context, deep=()):
        return oracle.encode_text(self.model.state_dict(), rows, self.heads, self.quick_gelu, context, deep, slots)

    def random_deep(self, n_ctx: int) -> list[torch.Tensor]:
        """Prompts of some of the deeper layers, none to all."""
        return leaves(*[(n_ctx, self.tower.width)] * self.rng.randint(0, self.tower.layers - 1))


@pytest.mark.parametrize("seed", range(24))
def test_prompted_text_and_gradients_equal_the_oracle(seed):
    pair = TextPair(seed)
    n_ctx = pair.rng.randint(1, 5)
    rows, slots = random_prompts(pair.rng, n_ctx)
    (context,), deep = leaves((n_ctx, pair.tower.width)), pair.random_deep(n_ctx)
    assert_equal(pair.tower.encode(pair.tower.prepare(rows, slots), context, deep),
                 pair.oracle(rows, slots, context, deep), [context, *deep])


@pytest.mark.parametrize("place", ["middle", "front"])
@pytest.mark.parametrize("seed", range(8))
def test_a_context_around_or_behind_the_names_is_encoded_as_the_oracle_does(seed, place):
    pair = TextPair(seed)
    n_ctx = pair.rng.randint(1, 5)
    rows, slots = random_prompts(pair.rng, n_ctx, place)
    context, = leaves((n_ctx, pair.tower.width))
    assert_equal(pair.tower.encode(pair.tower.prepare(rows, slots), context),
                 pair.oracle(rows, slots, context), [context])


@pytest.mark.parametrize("place", ["end", "middle", "front"])
@pytest.mark.parametrize("seed", range(8))
def test_contexts_of_each_class_are_encoded_as_the_oracle_does(seed, place):
    pair = TextPair(seed)
    n_ctx = pair.rng.randint(1, 5)
    rows, slots = random_prompts(pair.rng, n_ctx, place)
    context, = leaves((len(rows), n_ctx, pair.tower.width))
    assert_equal(pair.tower.encode(pair.tower.prepare(rows, slots, per_class=True), context),
                 pair.oracle(rows, slots, context), [context])


@pytest.mark.parametrize("seed", range(12))
def test_several_contexts_at_once_equal_the_oracles_one_by_one(seed):
    pair = TextPair(seed)
    n_ctx = pair.rng.randint(1, 5)
    rows, slots = random_prompts(pair.rng, n_ctx)
    (contexts,), deep = leaves((1 + seed % 4, n_ctx, pair.tower.width)), pair.random_deep(n_ctx)
    features = pair.tower.encode(pair.tower.prepare(rows, slots), contexts, deep)
    assert features.shape[:2] == (len(contexts), len(rows))
    assert_equal(features, torch.stack([pair.oracle(rows, slots, context, deep) for context in contexts]),
                 [contexts, *deep])


@pytest.mark.parametrize("seed", range(12))
def test_learned_tokens_before_attribute_words_are_encoded_as_the_oracle_does(seed):
    """Deep prompts replace the context alone; the attributes' tokens and words flow on."""
    pair = TextPair(seed)
    n_ctx = pair.rng.randint(1, 3)
    before, rows, slots = attribute_prompts(pair.rng, n_ctx)
    (context,), deep = leaves((before + n_ctx, pair.tower.width)), pair.random_deep(n_ctx)
    prompts = pair.tower.prepare(rows, slots)
    assert len(prompts.prefix) > slots[0][-1]
    assert_equal(pair.tower.encode(prompts, context, deep), pair.oracle(rows, slots, context, deep), [context, *deep])


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
    rows, _ = random_prompts(rng, 0)
    padded = torch.tensor([row + [0] * (tower.context_length - len(row)) for row in rows])
    torch.testing.assert_close(tower.encode(tower.prepare(rows)), model.encode_text(padded), rtol=1e-10, atol=1e-12)
    images = torch.randn(3, 3, *model.visual.image_size, dtype=torch.float64)
    torch.testing.assert_close(ImageTower(model).encode(images), model.encode_image(images), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("own", [False, True], ids=["one context", "one a class"])
@pytest.mark.parametrize("behind", [False, True], ids=["before the names", "behind the names"])
@pytest.mark.parametrize("names", [[[7]], [[7], [7]], [[], [7, 8]], [[7, 7], [7]]],
                         ids=["one class", "equal names", "an empty name", "a name that begins another"])
def test_odd_class_lists_are_encoded_as_the_oracle_does(names, behind, own):
    pair = TextPair(3)
    prompts = [oracle.written([SOT], *((name, 1) if behind else (1, [5, *name])), [EOT]) for name in names]
    rows, slots = zip(*prompts, strict=True)
    context, = leaves((len(names), 1, pair.tower.width) if own else (1, pair.tower.width))
    assert_equal(pair.tower.encode(pair.tower.prepare(rows, slots, own), context),
                 pair.oracle(rows, slots, context), [context])


@pytest.mark.parametrize("rows, slots", [
    ([[SOT, 1, 5, EOT], [SOT, 2, 5, EOT]], [[1], [1]]),
    ([[SOT, 1, 1, 5, EOT], [SOT, 1, 1, 6, EOT]], [[1], [2]]),
], ids=["other ids, same places", "same ids, other places"])
def test_what_is_shared_does_not_rest_on_the_ids_at_learned_places(rows, slots):
    pair = TextPair(3)
    context, = leaves((1, pair.tower.width))
    assert_equal(pair.tower.encode(pair.tower.prepare(rows, slots), context),
                 pair.oracle(rows, slots, context), [context])


def test_shared_prefix_is_found_from_the_tokens_and_leaves_every_class_a_token():
    assert shared_length([[1, 2, 3, 9], [1, 2, 4, 9]]) == 2
    assert shared_length([[1, 2, 9], [1, 2, 3, 9]]) == 2
    assert shared_length([[1, 2, 9]]) == 2
    assert shared_length([[1, 2, 9], [1, 2, 9]]) == 2


def test_only_the_tokens_up_to_eot_are_encoded_and_the_prefix_once():
    model, _, _ = random_clip(random.Random(0), quick_gelu=False)
    tower = TextTower(model, SOT, EOT)
    prompts = tower.prepare([[SOT, SOT, 5, 6, EOT]] * 20 + [[SOT, SOT, 5, 7, 8, 9, EOT]], [[1]] * 21)
    assert prompts.prefix.shape[0] == 3
    assert prompts.suffix.shape[0] == 20 * 2 + 4
    assert prompts.eot.tolist() == [*range(1, 40, 2), 43]


def test_where_classes_differ_in_their_learned_tokens_only_the_start_is_shared():
    model, _, _ = random_clip(random.Random(0), quick_gelu=False)
    tower = TextTower(model, SOT, EOT)
    of_each = tower.prepare([[SOT, SOT, 5, 6, EOT], [SOT, SOT, 5, 7, 8, EOT]], [[1], [1]], per_class=True)
    behind = tower.prepare([[SOT, 6, SOT, EOT], [SOT, 7, 8, SOT, EOT]], [[2], [3]])
    for prompts, longest in ((of_each, 5), (behind, 4)):
        assert prompts.per_class and prompts.prefix.shape[0] == 1
        assert prompts.suffix.shape[0] == 2 * longest  # a token of padding costs less than a bucket


# Buckets

@pytest.mark.parametrize("seed", range(20))
def test_buckets_cost_least_of_all(seed):
    rng = random.Random(seed)
    lengths = [rng.choice([2, 3, 4, 6, 9, 12]) for _ in range(rng.randint(1, 30))]
    cost, distinct = rng.choice([0, 1, 8, 60, 1000]), sorted(set(lengths))

    def total(sizes):
        tokens = sum(min((size for size in sizes if size >= length), default=1000) for length in lengths)
        return tokens + cost * len(sizes)

    every = itertools.chain.from_iterable(itertools.combinations(distinct, count + 1) for count in range(len(distinct)))
    assert total(bucket_lengths(lengths, cost)) == min(map(total, every))


def test_a_gpu_gets_fewer_buckets_than_a_cpu():
    tokenizer = SimpleTokenizer()
    lengths = [len(tokenizer.encode(f"{name}.")) + 1 for name in IMAGENET_CLASSNAMES]
    few, many = (bucket_lengths(lengths, BUCKET_COST[kind]) for kind in ("cuda", "cpu"))
    assert len(few) < len(many)
    padded = sum(min(size for size in many if size >= length) for length in lengths)
    assert sum(lengths) > 0.95 * padded


# Memory

class Counting:
    """Counts the tokens that go through the first block of a text tower, the prefix's included."""

    def __init__(self, tower: TextTower):
        self.tokens = 0
        tower._blocks[0].ln_2.register_forward_pre_hook(self)

    def __call__(self, module, inputs):
        self.tokens += inputs[0].shape[:-1].numel()


NAMES = [[7] * length for length in (5, 1, 1, 2, 9, 3, 1, 2, 2, 1, 6)]


@pytest.mark.parametrize("kind", ["one context", "several contexts", "one a class"])
@pytest.mark.parametrize("share", [0, 0.3, 0.6, 0.9])
def test_little_memory_changes_neither_features_nor_gradients(kind, share):
    pair = TextPair(13)
    assert pair.tower.layers > 1
    rows, slots = zip(*(oracle.written([SOT], 2, name, [EOT]) for name in NAMES), strict=True)
    own = kind == "one a class"
    prompts = pair.tower.prepare(rows, slots, own)
    assert len(prompts.buckets) > 1
    width, count = pair.tower.width, {"one context": (), "several contexts": (3,), "one a class": (len(NAMES),)}[kind]
    (context,), deep = leaves((*count, 2, width)), [] if own else leaves(*[(2, width)] * (pair.tower.layers - 1))
    all_bytes = len(prompts.suffix) * pair.tower._token_bytes(prompts.buckets, len(prompts.prefix), training=True)
    tower = TextTower(pair.model, SOT, EOT, share * all_bytes * (3 if kind == "several contexts" else 1))
    counting = Counting(tower)
    features = tower.encode(prompts, context, deep)
    once = counting.tokens
    contexts = context if kind == "several contexts" else [context]
    truth = torch.stack([pair.oracle(rows, slots, one, deep) for one in contexts])
    assert_equal(features, truth if len(contexts) > 1 else truth[0], [context, *deep])
    again, suffixes = counting.tokens - once, once - len(contexts) * len(prompts.prefix)
    assert suffixes == len(contexts) * len(prompts.suffix)
    # What does not fit is encoded again: a class or two more where the memory ends between two.
    longest = len(contexts) * prompts.buckets[-1].length
    assert (1 - share) * suffixes - longest <= again <= (1 - share) * suffixes + longest


@pytest.mark.parametrize("n_ctx", [1, 9])
def test_memory_is_estimated_as_what_is_kept_for_the_backward_pass(n_ctx):
    pair = TextPair(13)
    model = pair.model.float()
    fold_quick_gelu(model)
    prompts = pair.tower.prepare(*zip(*(oracle.written([SOT], n_ctx, name, [EOT]) for name in 9 * NAMES), strict=True))
    context = torch.randn(n_ctx, pair.tower.width, requires_grad=True)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        pair.tower.encode(prompts, context)
    measured = sum(storage.nbytes() for address, storage in kept.items() if address not in weights)
    estimated = len(prompts.suffix) * pair.tower._token_bytes(prompts.buckets, len(prompts.prefix), training=True)
    # The last block, which only [EOT] passes, keeps less than it is taken for.
    assert (pair.tower.layers - 1) / pair.tower.layers * estimated <= measured <= 1.05 * estimated
