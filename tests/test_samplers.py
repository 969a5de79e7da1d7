"""Orders of images, whatever the data: what each sampler promises, its tail, and its parts among processes."""
import random
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from p2c.engine import distributed
from p2c.engine.samplers import FULL_PASS, SAMPLERS, ShardBatchSampler, build_sampler

SEEDS, EPOCHS = st.integers(0, (1 << 63) - 1), st.integers(0, 300) | st.sampled_from(["val", "u.3"])


@st.composite
def samplers(draw, names=tuple(SAMPLERS)):
    """A function that makes the sampler anew, and all that it was made of."""
    name, domains, classes = draw(st.sampled_from(names)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    images = [SimpleNamespace(domain=domain, label=label) for domain, label in draw(
        st.lists(st.tuples(st.integers(0, domains - 1), st.integers(0, classes - 1)), min_size=1, max_size=40))]
    domains, classes = len({image.domain for image in images}), len({image.label for image in images})
    n_ins, n_domain = draw(st.integers(1, 5)), draw(st.integers(0, domains))
    parts = {"RandomDomainSampler": n_domain or domains, "SeqDomainSampler": domains, "RandomClassSampler": n_ins}
    batch_size = parts.get(name, 1) * draw(st.integers(1, classes if name == "RandomClassSampler" else 6))
    seed, epoch = draw(SEEDS), draw(EPOCHS)

    def make():
        sampler = build_sampler(name, SimpleNamespace(SEED=seed), images, batch_size, n_domain, n_ins)
        sampler.set_epoch(epoch)
        return sampler

    return SimpleNamespace(make=make, name=name, images=images, batch_size=batch_size, n_ins=n_ins,
                           n_domain=parts.get("RandomDomainSampler") if name == "RandomDomainSampler" else domains)


@given(samplers(), SEEDS)
def test_an_order_depends_on_seed_and_epoch_alone(case, other):
    order = list(case.make())
    random.seed(other % 2**32), torch.manual_seed(other)
    sampler = case.make()
    state = random.getstate(), torch.get_rng_state().tolist()
    assert list(sampler) == list(sampler) == order and len(sampler) == len(order)
    assert (random.getstate(), torch.get_rng_state().tolist()) == state
    assert set(order) <= set(range(len(case.images)))


@given(samplers(), st.integers(0, 60))
def test_an_order_begun_late_is_the_tail_of_the_whole_one_until_the_next_epoch(case, start):
    sampler = case.make()
    order, length, epoch = list(sampler), len(sampler), sampler.epoch
    sampler.start = start
    assert list(sampler) == order[start:] and len(sampler) == length
    sampler.set_epoch(epoch)
    assert list(sampler) == order


@given(samplers(FULL_PASS))
def test_every_image_comes_once(case):
    order = list(case.make())
    assert sorted(order) == list(range(len(case.images)))
    assert case.name == "RandomSampler" or order == sorted(order)


@given(samplers(("RandomDomainSampler", "SeqDomainSampler")))
def test_batches_take_equally_many_images_of_their_domains_and_none_twice(case):
    order = list(case.make())
    assert len(set(order)) == len(order) and len(order) % case.batch_size == 0
    for first in range(0, len(order), case.batch_size):
        domains = Counter(case.images[index].domain for index in order[first:first + case.batch_size])
        assert len(domains) == case.n_domain and set(domains.values()) == {case.batch_size // case.n_domain}
    if case.name == "SeqDomainSampler":  # as many batches as the smallest domain has images for
        smallest = min(Counter(image.domain for image in case.images).values())
        assert len(order) == smallest // (case.batch_size // case.n_domain) * case.batch_size


@given(samplers(("RandomClassSampler",)))
def test_batches_take_equally_many_images_of_their_classes_and_only_small_classes_repeat_any(case):
    order, sizes = list(case.make()), Counter(image.label for image in case.images)
    assert len(order) % case.batch_size == 0
    for first in range(0, len(order), case.batch_size):
        classes = Counter(case.images[index].label for index in order[first:first + case.batch_size])
        assert len(classes) == case.batch_size // case.n_ins and set(classes.values()) == {case.n_ins}
    for index, times in Counter(order).items():
        assert times == 1 or sizes[case.images[index].label] < case.n_ins


def in_each_process(processes, function):
    """The results of a function in each of several processes that share the data."""
    given = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "processes", lambda: processes)
        for rank in range(processes):
            patch.setattr(distributed, "rank", lambda rank=rank: rank)
            given.append(function())
    return given


@given(st.lists(st.integers()), st.integers(1, 5))
def test_the_parts_of_an_order_follow_each_other_and_are_the_whole(order, processes):
    parts = in_each_process(processes, lambda: distributed.shard(order))
    assert sum(parts, []) == order
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(samplers(), st.integers(1, 5), st.integers(1, 4), st.integers(0, 8))
def test_the_parts_of_batches_make_the_batches_of_one_process_also_when_begun_late(case, processes, share, start):
    """The number of processes does not change what is learned: they see the same batches."""
    batch_size, order = processes * share, list(case.make())
    assume(len(order) >= batch_size)

    def part():
        batches = ShardBatchSampler(case.make(), batch_size)
        whole = list(batches)
        batches.sampler.start = start * batches.batch_size
        assert list(batches) == whole[start:] and len(batches) == len(whole)
        return whole

    parts = in_each_process(processes, part)
    assert all(len(indices) == share for part in parts for indices in part)
    assert [sum(batch, []) for batch in zip(*parts, strict=True)] == [
        order[first:first + batch_size] for first in range(0, len(order) - batch_size + 1, batch_size)]
