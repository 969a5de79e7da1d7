"""The paper's own ideas: schedules, mixtures, noise on the context, the mapper's loss (p2c_method: dual denoising)."""
import math

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from messages import naming

from p2c.denoising.mapper import MLPMapper, mapper_loss
from p2c.denoising.mixture import GaussianMixture, StandardNormal, noise_from_config
from p2c.denoising.noise import SCHEDULES, PromptDenoising, progress, schedule_from_config, sigmoid
from p2c.prompts.context import Prompts, add_noise
from p2c.utils.streams import generator, seed_of

ANNEALED = ("cosine", "linear", "sigmoid")
unit = st.floats(0, 1)


@pytest.mark.parametrize("name", ANNEALED)
def test_schedules_start_at_one_and_end_at_zero(name):
    schedule = SCHEDULES[name]
    assert schedule(0.0) == pytest.approx(1, abs=1e-15)
    assert schedule(1.0) == pytest.approx(0, abs=1e-15)


@given(a=unit, b=unit, name=st.sampled_from(sorted(SCHEDULES)), k=st.floats(0.1, 50))
def test_schedules_never_rise(a, b, name, k):
    schedule = schedule_from_config({"SCHEDULE": name, "SIGMOID_K": k})
    assert schedule(max(a, b)) <= schedule(min(a, b)) + 1e-12


@given(tau=unit, name=st.sampled_from(sorted(SCHEDULES)))
def test_schedules_are_the_formulas(tau, name):
    assert SCHEDULES[name](tau) == pytest.approx(oracle.SCHEDULES[name](tau), abs=1e-12)


@given(tau=unit, k=st.floats(0.1, 40))
def test_sigmoid_steepness_is_honoured(tau, k):
    schedule = schedule_from_config({"SCHEDULE": "sigmoid", "SIGMOID_K": k})
    assert schedule(tau) == pytest.approx(oracle.sigmoid(tau, k), abs=1e-9)


@pytest.mark.parametrize("k", [1e-20, 1e5])
def test_extreme_steepness_neither_overflows_nor_divides_by_zero(k):
    assert (sigmoid(0, k), sigmoid(0.5, k), sigmoid(1, k)) == pytest.approx((1, 0.5, 0))


def test_five_cosine_epochs_give_the_known_levels():
    denoising = PromptDenoising(StandardNormal(), 1.0, SCHEDULES["cosine"], epochs=5)
    assert [round(denoising.sigma(e), 2) for e in range(5)] == [1.0, 0.9, 0.65, 0.35, 0.1]


@given(epochs=st.integers(1, 50), warmup=st.integers(0, 49), e=st.floats(0, 60))
def test_progress_is_the_clipped_fraction_after_warm_up(epochs, warmup, e):
    if warmup >= epochs:
        with pytest.raises(ValueError, match=naming(warmup, epochs)):
            progress(e, epochs, warmup)
    else:
        assert progress(e, epochs, warmup) == pytest.approx(min(max((e - warmup) / (epochs - warmup), 0), 1))


def test_warm_up_keeps_the_full_level():
    denoising = PromptDenoising(StandardNormal(), 2.0, SCHEDULES["linear"], epochs=6, warmup_epochs=2)
    assert [denoising.sigma(e) for e in range(6)] == [2.0, 2.0, 2.0, 1.5, 1.0, 0.5]


def test_stepwise_annealing_moves_within_an_epoch_and_epochwise_does_not():
    arguments = dict(distribution=StandardNormal(), noise_std=1.0, schedule=SCHEDULES["linear"], epochs=2)
    by_epoch, by_step = PromptDenoising(**arguments), PromptDenoising(**arguments, anneal="step")
    assert by_epoch.sigma(1, 0.5) == by_epoch.sigma(1) == 0.5
    assert by_step.sigma(1, 0.5) == 0.25 and by_step.sigma(1) == 0.5
    assert by_step.sigma(1, 127 / 128) < 0.01


@given(name=st.sampled_from(sorted(SCHEDULES)), epochs=st.integers(1, 40), warmup=st.integers(0, 39),
       start=st.floats(0, 100), part=st.floats(0, 1, exclude_max=True))
def test_levels_by_step_begin_at_those_by_epoch_and_stay_above_the_next(name, epochs, warmup, start, part):
    warmup %= epochs
    by_epoch, by_step = (PromptDenoising(StandardNormal(), start, SCHEDULES[name], epochs, warmup, anneal)
                         for anneal in ("epoch", "step"))
    levels = [by_epoch.sigma(epoch) for epoch in range(epochs + 1)]
    assert levels[:warmup + 1] == [start] * (warmup + 1)
    assert levels[-1] == pytest.approx(start if name == "constant" else 0, abs=1e-12)
    assert all(0 <= level <= start for level in levels)
    for epoch, (level, following) in enumerate(zip(levels, levels[1:], strict=False)):
        assert by_step.sigma(epoch) == by_epoch.sigma(epoch, part) == level
        assert following - 1e-12 <= by_step.sigma(epoch, part) <= level + 1e-12


@given(means=st.lists(st.floats(-3, 3), min_size=1, max_size=4), data=st.data())
def test_moments_of_a_mixture_are_the_formulas(means, data):
    numbers = st.lists(st.floats(1e-3, 2), min_size=len(means), max_size=len(means))
    stds, weights = data.draw(numbers), data.draw(numbers)
    mixture = GaussianMixture(means, stds, weights)
    assert sum(mixture.weights) == pytest.approx(1)
    assert mixture.weights == pytest.approx([weight / math.fsum(weights) for weight in weights])
    assert mixture.mean == pytest.approx(math.fsum(map(math.prod, zip(mixture.weights, means, strict=True))), abs=1e-12)
    assert mixture.std == pytest.approx(oracle.mixture_std(means, stds, mixture.weights), rel=1e-6, abs=1e-6)
    uniform = GaussianMixture(means, stds)
    assert uniform.weights == (1 / len(means),) * len(means)
    assert uniform.mean == pytest.approx(math.fsum(means) / len(means), abs=1e-12)


@given(mean=st.floats(-1e6, 1e6), weights=st.lists(st.floats(0.1, 1), min_size=2, max_size=5))
def test_components_with_one_mean_have_the_spread_of_their_stds(mean, weights):
    """Far from 0 the mean's square leaves the difference of the moments no digit."""
    mixture = GaussianMixture([mean] * len(weights), [1e-3] * len(weights), weights)
    assert mixture.std == pytest.approx(1e-3, rel=1e-6)


def test_moments_and_modes_of_draws_are_the_mixtures():
    mixture = GaussianMixture((-1.0, 0.0, 3.0), (0.1, 0.1, 0.2), (0.2, 0.3, 0.5))
    draws = mixture.sample((400, 500), generator(1, "test"))
    n = draws.numel()
    assert draws.shape == (400, 500)
    assert draws.mean().item() == pytest.approx(mixture.mean, abs=5 * mixture.std / math.sqrt(n))
    assert draws.std().item() == pytest.approx(mixture.std, rel=0.01)
    for low, high, share in ((-1.5, -0.5, 0.2), (-0.5, 0.5, 0.3), (2, 4, 0.5)):
        assert ((draws > low) & (draws < high)).float().mean().item() == pytest.approx(share, abs=0.005)


def test_elements_of_a_draw_are_independent():
    draws = GaussianMixture((-1, 1), (0.5, 0.5)).sample((2, 100_000), generator(3, "test"))
    assert abs(torch.corrcoef(draws)[0, 1].item()) < 5 / math.sqrt(100_000)


@pytest.mark.parametrize("arguments, message", [
    (dict(means=(), stds=()), "at least one"),
    (dict(means=(0, 1), stds=(1,)), "as many means as stds"),
    (dict(means=(0, 1), stds=(1, 0)), "positive"),
    (dict(means=(0, 1), stds=(1, 1), weights=(1, -1)), "not be negative"),
    (dict(means=(0, 1), stds=(1, 1), weights=(0, 0)), "all zero"),
    (dict(means=(0, 1), stds=(1, 1), weights=(1,)), "as many"),
    (dict(means=(0, math.nan), stds=(1, 1)), "finite"),
])
def test_faulty_mixtures_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(**arguments)


def test_faulty_arguments_of_the_denoising_are_refused():
    with pytest.raises(ValueError, match=naming("'batch'", "epoch, step")):
        PromptDenoising(StandardNormal(), 1.0, SCHEDULES["linear"], 5, anneal="batch")
    with pytest.raises(ValueError, match="at least 0"):
        PromptDenoising(StandardNormal(), -1.0, SCHEDULES["linear"], 5)


def test_a_mixture_that_shifts_the_prompt_is_warned_about():
    with pytest.warns(UserWarning, match="shifts the prompt"):
        noise_from_config({"NOISE_TYPE": "gaussian_mixture", "GMM_MEANS": (0, 1), "GMM_STDS": (1, 1),
                           "GMM_WEIGHTS": ()})


def test_perturbed_context_is_context_plus_level_times_the_draw_and_passes_its_gradient():
    context = torch.randn(2, 8, requires_grad=True)
    eps = GaussianMixture((-1, 1), (0.5, 0.5)).sample((2, 8), generator(1, "dpd", 7))
    noisy = add_noise(Prompts(context), 0.5 * eps).context
    assert torch.equal(noisy, oracle.perturbed(context, eps, 0.5))
    assert torch.equal(torch.autograd.grad(noisy.sum(), context)[0], torch.ones(2, 8))


def test_level_zero_leaves_the_context_bit_for_bit():
    context = torch.randn(4, 16)
    denoising = PromptDenoising(GaussianMixture((-1, 0, 1), (0.5, 1, 0.5)), 0.0, SCHEDULES["cosine"], 5)
    noise = denoising.sigma(0) * denoising.distribution.sample((4, 16), generator(1, "dpd", 0))
    assert torch.equal(add_noise(Prompts(context), noise).context, context)


def test_mapper_loss_and_gradients_equal_the_oracle():
    mapper = MLPMapper(6, 5, 7).double()
    context = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(2, 6, generator=generator(1, "mapper", 3)).double()
    layers = [(mapper[0].weight, mapper[0].bias), (mapper[2].weight, mapper[2].bias)]
    got = mapper_loss(mapper, context, 0.7 * noise)
    expected = oracle.mapper_loss(layers, context, noise, 0.7)
    inputs = [context, *mapper.parameters()]
    for a, b in zip([got, *torch.autograd.grad(got, inputs)], [expected, *torch.autograd.grad(expected, inputs)],
                    strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def test_mapper_target_gets_no_gradient():
    """With the target's gradient included, the context's gradient at equal inputs would vanish for a linear map."""
    mapper = torch.nn.Linear(3, 3).double()
    context = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(2, 3, generator=generator(1, "mapper"))
    gradient, = torch.autograd.grad(mapper_loss(mapper, context, noise), context)
    assert gradient.abs().max() > 1e-3


def test_streams_differ_by_seed_name_and_step_and_repeat():
    draws = {key: tuple(torch.randn(3, generator=generator(*key)).tolist())
             for key in [(1, "dpd", 0), (2, "dpd", 0), (1, "mapper", 0), (1, "dpd", 1)]}
    assert len(set(draws.values())) == 4
    assert tuple(torch.randn(3, generator=generator(1, "dpd", 0)).tolist()) == draws[1, "dpd", 0]


keys = st.tuples(st.integers(0, 1 << 63), st.text(max_size=8), st.integers(0, 1 << 40))


@given(st.lists(keys, unique=True, max_size=30))
def test_seeds_of_streams_are_as_distinct_as_their_keys(keys):
    seeds = [seed_of(*key) for key in keys]
    assert len(set(seeds)) == len(keys) and all(0 <= seed < 1 << 63 for seed in seeds)
    assert seeds == [seed_of(*key) for key in keys]


@pytest.mark.parametrize("key, seed", [
    ((1, "dpd"), 2204431010118467478), ((1, "dpd", 7), 3609029418591778198),
    ((2, "augment.3", 12), 1065642586046471424)])
def test_seeds_of_streams_stay_the_same_in_all_versions(key, seed):
    """Else published numbers could not be repeated."""
    assert seed_of(*key) == seed
