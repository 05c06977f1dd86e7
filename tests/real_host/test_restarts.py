"""Restarts on the real host: the noise a technique gives, the noise it finds, stretches and their seeds."""

from contextlib import contextmanager

import pytest
import torch

from real_host.sampling import SEED, STEPS, empty_latent, sample


@pytest.fixture(scope="module")
def restarts(host):
    from guided_synthesis.nodes.host import restarts

    return restarts


def guided(restarts, model, move, start=0.2, end=0.9, iterations=0):
    """`model` with `move` at the steps between `start` and `end`."""

    @contextmanager
    def begin():
        yield move

    return restarts.restart_sampling(model, begin, start, end, iterations)


def as_flow(host, model):
    """`model` sampled as a flow model: what comes out is no picture, but the arithmetic is that of SD 3."""
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    return ModelSamplingSD3().patch(model, 3.0)[0]


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun"])
def test_going_on_with_the_noise_that_was_found_is_an_undisturbed_step(host, tiny, restarts, flow, sampler):
    """A moment split into estimate and noise, put together again; Euler and Heun remember no earlier step."""
    model = as_flow(host, tiny[0]) if flow else tiny[0]
    plain = sample(host, model, tiny[1], sampler_name=sampler)
    same = guided(restarts, model, lambda moment: restarts.Restart(moment.denoised, moment.noise()))
    found = sample(host, same, tiny[1], sampler_name=sampler)
    difference = (found - plain).abs().max().item()
    if sampler == "dpmpp_2m":  # its memory starts anew: another picture, but none that falls apart
        assert 0 < difference
        assert found.std().item() < 1.5 * plain.std().item()
    else:
        assert difference < 1e-3 * plain.abs().max().item()


@pytest.mark.parametrize("flow", [False, True])
def test_the_next_stretch_starts_from_exactly_the_noise_that_was_given(host, tiny, restarts, flow):
    model, seen, moments = (as_flow(host, tiny[0]) if flow else tiny[0]), [], []
    ones = torch.ones(1, 4, 16, 16)

    def wrapper(apply_model, args):
        seen.append((args["timestep"][0].clone(), args["input"][:1].clone()))
        return apply_model(args["input"], args["timestep"], **args["c"])

    def move(moment):
        moments.append(moment)
        return restarts.Restart(2 * ones, 3 * ones)

    counting = model.clone()
    counting.set_model_unet_function_wrapper(wrapper)
    sample(host, guided(restarts, counting, move, iterations=1), tiny[1])
    sigma = moments[0].next_sigma
    started = [x for s, x in seen if torch.isclose(s, sigma)]
    assert len(started) == 1 and len(seen) == STEPS
    clean = (1 - sigma) * 2 if flow else 2
    assert torch.allclose(started[0], clean + sigma * 3 * ones, atol=1e-6)


@pytest.mark.parametrize("flow", [False, True])
def test_what_a_moment_holds_fits_together(host, tiny, restarts, flow):
    moments = []

    def move(moment):
        moments.append(moment)
        return restarts.Restart(moment.denoised)

    model = as_flow(host, tiny[0]) if flow else tiny[0]
    sample(host, guided(restarts, model, move, start=0.0, end=1.0), tiny[1], cfg=1.0)
    assert len(moments) == STEPS
    for moment in moments[:-1]:
        sigma = moment.next_sigma
        clean = moment.denoised * (1 - sigma if flow else 1)
        assert torch.allclose(clean + sigma * moment.noise(), moment.following, atol=1e-4)
        assert moment.fresh_noise.std().item() == pytest.approx(1, abs=0.1)
    assert torch.equal(moments[-1].noise(), torch.zeros(1, 4, 16, 16))  # at level 0 there is none
    assert not torch.equal(moments[0].fresh_noise, moments[1].fresh_noise)


def test_every_sampler_of_the_host_ends_a_stretch_at_the_level_it_was_asked_for(host, tiny, restarts):
    wrong = {}

    def move(moment):
        moments.append(moment)
        return restarts.Restart(moment.denoised, moment.noise())

    model = guided(restarts, tiny[0], move, start=0.2, end=0.8)
    for name in host.comfy.samplers.KSampler.SAMPLERS:
        moments = []
        sample(host, model, tiny[1], sampler_name=name, cfg=1.0, steps=6)
        powers = [moment.noise().std().item() for moment in moments]
        if len(powers) < 3 or not all(0.6 < power < 1.5 for power in powers):
            wrong[name] = powers
    assert not wrong


def test_without_noise_of_its_own_a_restart_takes_the_fresh_noise_of_the_step(host, tiny, restarts):
    default = guided(restarts, tiny[0], lambda m: restarts.Restart(m.denoised))
    explicit = guided(restarts, tiny[0], lambda m: restarts.Restart(m.denoised, m.fresh_noise))
    latents = sample(host, default, tiny[1])
    assert torch.equal(sample(host, explicit, tiny[1]), latents)
    assert not torch.equal(sample(host, default, tiny[1], seed=SEED + 1), latents)


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m_sde", "lcm"])
def test_a_stochastic_sampler_adds_other_noise_in_each_stretch(host, tiny, restarts, sampler):
    """With one seed for all stretches the noise of neighbouring steps had a correlation of 0.8 to 1."""
    noises = []

    def move(moment):
        noises.append(moment.noise())
        return restarts.Restart(moment.denoised, torch.zeros_like(moment.denoised))  # only the sampler's own

    latent = empty_latent(batch=4)
    model = guided(restarts, tiny[0], move, start=0.1, end=0.8)
    sample(host, model, tiny[1], latent=latent, sampler_name=sampler, cfg=1.0)
    for first, second in zip(noises[1:], noises[2:], strict=False):
        correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
        assert correlation.item() < 0.3
