"""The loopback sampler on the real host: parity, passes, counts, masks, progress, company, failures."""

import re

import pytest
import torch

from guided_synthesis.guidance.seeds import derived_seed
from real_host.sampling import SEED, STEPS, conditioning, empty_latent, scene_painting

COARSE = [0, 1, 2, 3, 4, 5, 8]  # of a schedule: without its last small steps
REPEATS = {"repeats": 3, "denoise": 0.5, "denoise_change": 1.0, "noise_seed": 5}


@pytest.fixture(scope="module")
def node(host):
    from guided_synthesis.nodes import loopback

    return loopback


@pytest.fixture(scope="module")
def painted(tiny):
    with torch.inference_mode():
        return tiny[2].encode(scene_painting()[0])


def looped(host, node, name="euler", **widgets):
    """The node around a sampler of the host."""
    inner = host.comfy.samplers.sampler_object(name)
    return node.Loopback.execute(inner, **(REPEATS | widgets)).args[0]


def run(host, tiny, sampler, model=None, latent=None, sigmas=None, mask=None, seed=SEED, callback=None):
    """What SamplerCustomAdvanced does: returns the latents (B, 4, h, w)."""
    model = model or tiny[0]
    latent = empty_latent()["samples"] if latent is None else latent
    sigmas = schedule(host, model) if sigmas is None else sigmas
    guider = host.comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning(tiny[1], "a photo of a fox"), conditioning(tiny[1], ""))
    guider.set_cfg(2.0)
    with torch.inference_mode():
        noise = host.comfy.sample.prepare_noise(latent, seed)
        return guider.sample(noise, latent, sampler, sigmas, mask, callback, True, seed)


def schedule(host, model, steps=STEPS):
    return host.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)


def counted(model):
    """A clone of `model` and the list of the noise levels of its calls."""
    levels = []

    def wrapper(apply_model, args):
        levels.append(args["timestep"][0].item())
        return apply_model(args["input"], args["timestep"], **args["c"])

    clone = model.clone()
    clone.set_model_unet_function_wrapper(wrapper)
    return clone, levels


def as_flow(host, model):
    """`model` sampled as a flow model: what comes out is no picture, but the arithmetic is that of SD 3."""
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    return ModelSamplingSD3().patch(model, 3.0)[0]


def test_one_pass_is_the_sampler_itself_to_the_bit(host, tiny, node):
    plain = run(host, tiny, host.comfy.samplers.sampler_object("dpmpp_2m"))
    assert torch.equal(run(host, tiny, looped(host, node, "dpmpp_2m", repeats=1, denoise=0.0)), plain)
    from guided_synthesis.nodes.host.repeats import Repeated

    wrapped = Repeated(host.comfy.samplers.sampler_object("dpmpp_2m"), 1, 0.5, 1.0, 0)
    assert torch.equal(run(host, tiny, wrapped), plain)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("name", ["euler", "euler_ancestral", "uni_pc", "dpmpp_2m_sde"])
def test_every_repeat_is_a_run_of_the_hosts_own_img2img(host, tiny, node, name, flow):
    """Done by hand: the last part of the schedule, on the result, with the seed of the repeat."""
    model = as_flow(host, tiny[0]) if flow else tiny[0]
    found = run(host, tiny, looped(host, node, name, denoise_change=0.6), model)
    sampler = host.comfy.samplers.sampler_object(name)
    expected = run(host, tiny, sampler, model)
    sampling = model.get_model_object("model_sampling")
    for index, denoise in ((1, 0.5), (2, 0.3)):
        sigmas = schedule(host, model)
        part = sigmas[sigmas <= sampling.percent_to_sigma(1 - denoise)].clone()
        assert 2 < len(part) < STEPS
        seed = derived_seed(5, index)
        expected = run(host, tiny, sampler, model, expected, part, seed=seed)
    assert torch.allclose(found, expected, atol=2e-3 * expected.abs().max().item())


def test_model_calls_are_the_steps_of_all_passes(host, tiny, node):
    model, levels = counted(tiny[0])
    run(host, tiny, looped(host, node, repeats=4), model)
    sigmas = schedule(host, tiny[0])[:-1]
    level = tiny[0].get_model_object("model_sampling").percent_to_sigma(0.5)
    part = sigmas[sigmas <= level].tolist()
    assert levels == pytest.approx(sigmas.tolist() + 3 * part)


def test_the_level_of_a_repeat_falls_and_never_rises_above_the_whole_schedule(host, tiny, node):
    lengths = {}
    for change in (0.5, 1.0, 2.0):
        model, levels = counted(tiny[0])
        run(host, tiny, looped(host, node, denoise_change=change, repeats=4), model)
        starts = [i for i in range(1, len(levels)) if levels[i] > levels[i - 1]] + [len(levels)]
        lengths[change] = [b - a for a, b in zip(starts, starts[1:], strict=False)]
    assert lengths[0.5] == sorted(lengths[0.5], reverse=True) and lengths[0.5][0] > lengths[0.5][-1]
    assert len(set(lengths[1.0])) == 1
    assert lengths[2.0][0] < lengths[2.0][1] == lengths[2.0][2] == STEPS


def test_a_denoise_above_the_given_schedule_repeats_the_whole_of_it(host, tiny, node, painted):
    model, levels = counted(tiny[0])
    sigmas = schedule(host, tiny[0])[4:]
    run(host, tiny, looped(host, node, denoise=1.0), model, painted, sigmas)
    assert levels == pytest.approx(3 * sigmas[:-1].tolist())


def test_seeds_decide_and_every_repeat_has_its_own(host, tiny, node):
    first = run(host, tiny, looped(host, node))
    assert torch.equal(run(host, tiny, looped(host, node)), first)
    assert not torch.equal(run(host, tiny, looped(host, node, noise_seed=6)), first)
    assert not torch.equal(run(host, tiny, looped(host, node), seed=SEED + 1), first)
    from guided_synthesis.nodes.host.repeats import Repeated

    loop = Repeated(None, 4, 0.5, 1.0, 2**64 - 1)
    latent, extra = torch.zeros(1, 4, 8, 8), {"model_options": {}}
    noises = [loop._afresh(index, torch.ones(2), latent, extra)[0] for index in (1, 2, 3)]
    assert not torch.equal(noises[0], noises[1]) and not torch.equal(noises[1], noises[2])
    assert torch.equal(loop._afresh(2, torch.ones(2), latent, extra)[0], noises[1])
    assert extra == {"model_options": {}}


def test_a_batch_is_looped_as_a_whole(host, tiny, node):
    latents = run(host, tiny, looped(host, node), latent=empty_latent(72, 136, batch=3)["samples"])
    assert latents.shape == (3, 4, 9, 17)
    assert not torch.allclose(latents[0], latents[1], atol=0.1)


def test_the_loop_goes_further_from_a_painting_than_one_pass(host, tiny, node, painted):
    sigmas = schedule(host, tiny[0])[5:]
    once, often = (
        run(host, tiny, looped(host, node, repeats=n, denoise=0.4), latent=painted, sigmas=sigmas)
        for n in (1, 6)
    )
    assert (often - painted).square().mean() > (once - painted).square().mean()


def test_an_inpainting_mask_keeps_the_known_latent_over_all_repeats(host, tiny, node, painted):
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., 64:] = 1
    for name in ("euler", "dpmpp_2m", "euler_ancestral"):
        latents = run(host, tiny, looped(host, node, name, repeats=4), latent=painted, mask=mask)
        assert torch.allclose(latents[..., :8], painted[..., :8], atol=1e-4), name
        assert not torch.allclose(latents[..., 8:], painted[..., 8:], atol=0.1), name


def test_progress_runs_through_all_repeats(host, tiny, node):
    for name in ("euler", "dpm_adaptive"):
        seen = []
        run(
            host,
            tiny,
            looped(host, node, name),
            callback=lambda step, denoised, x, total, seen=seen: seen.append((step, total)),
        )
        total = seen[0][1]
        assert total == STEPS + 2 * 4
        assert {entry[1] for entry in seen} == {total}
        steps = [step for step, _ in seen]
        assert steps == sorted(steps) and steps[-1] == total - 1
        if name == "euler":
            assert steps == list(range(total))


def test_every_sampler_of_the_host_can_be_looped(host, tiny, node):
    for name in host.comfy.samplers.KSampler.SAMPLERS:
        latents = run(host, tiny, looped(host, node, name, repeats=2), sigmas=schedule(host, tiny[0], 6))
        assert torch.isfinite(latents).all(), name
        assert latents.std() < 20, name


def test_it_plugs_into_the_hosts_sampler_nodes(host, tiny, node):
    from comfy_extras import nodes_custom_sampler as custom

    guider = custom.BasicGuider.execute(tiny[0], conditioning(tiny[1], "a fox")).args[0]
    with torch.inference_mode():
        out = custom.SamplerCustomAdvanced.execute(
            custom.Noise_RandomNoise(SEED),
            guider,
            looped(host, node),
            schedule(host, tiny[0]),
            empty_latent(),
        )
    assert out.args[0]["samples"].shape == (1, 4, 16, 16)


def test_a_guide_works_in_every_pass(host, tiny, node):
    """A guide cuts the schedule of each pass, not that of the loop."""
    from guided_synthesis.nodes.low_pass_guide import LowPassGuide

    settings = {
        entry.id: entry.default for entry in LowPassGuide.define_schema().inputs if hasattr(entry, "default")
    }
    reference = scene_painting()[0]
    model, levels = counted(tiny[0])
    with torch.inference_mode():
        guided = LowPassGuide.execute(model, tiny[2], reference, **settings).args[0]
    found = run(host, tiny, looped(host, node), guided)
    assert len(levels) == STEPS + 2 * 4
    sampling, sampler = (
        tiny[0].get_model_object("model_sampling"),
        host.comfy.samplers.sampler_object("euler"),
    )
    expected = run(host, tiny, sampler, guided)
    for index in (1, 2):
        sigmas = schedule(host, guided)
        part = sigmas[sigmas <= sampling.percent_to_sigma(0.5)].clone()
        expected = run(host, tiny, sampler, guided, expected, part, seed=derived_seed(5, index))
    assert torch.allclose(found, expected, atol=2e-3 * expected.abs().max().item())


def test_loops_may_be_nested(host, tiny, node):
    model, levels = counted(tiny[0])
    inner = looped(host, node, repeats=2)
    run(host, tiny, node.Loopback.execute(inner, **(REPEATS | {"repeats": 2})).args[0], model)
    assert len(levels) == (STEPS + 4) + (4 + 4)


def test_an_interrupt_leaves_nothing_behind(host, tiny, node):
    before = run(host, tiny, looped(host, node))
    management, calls = host.comfy.model_management, []

    def cancel(args):
        calls.append(1)
        if len(calls) == STEPS + 2:
            management.interrupt_current_processing()
        return args["denoised"]

    cancelled = tiny[0].clone()
    cancelled.set_model_sampler_post_cfg_function(cancel)
    with pytest.raises(management.InterruptProcessingException):
        run(host, tiny, looped(host, node), cancelled)
    assert len(calls) == STEPS + 2
    assert torch.equal(run(host, tiny, looped(host, node)), before)


@pytest.mark.parametrize(
    "widgets, cut, sentence",
    [
        ({"denoise": 0.01}, COARSE, "Repeat 1 of the Loopback Sampler has denoise 0.01"),
        ({"denoise_change": 0.1}, COARSE, "Repeat 2 of the Loopback Sampler has denoise 0.05"),
        ({}, slice(0, 4), "the picture is not finished, so it cannot be repeated"),
        ({"denoise": 0.0}, slice(None), "denoise is 0, so the repeats"),
    ],
)
def test_bad_input_is_one_clear_sentence_before_sampling(host, tiny, node, widgets, cut, sentence):
    model, levels = counted(tiny[0])
    with pytest.raises(ValueError, match=re.escape(sentence)):
        run(host, tiny, looped(host, node, **widgets), model, sigmas=schedule(host, tiny[0])[cut])
    assert not levels


def test_a_denoise_of_zero_is_refused_before_the_graph_runs(node):
    assert "denoise is 0" in node.Loopback.validate_inputs(repeats=3, denoise=0.0)
    assert node.Loopback.validate_inputs(repeats=3, denoise=0.4) is True
    assert node.Loopback.validate_inputs(repeats=1, denoise=0.0) is True
    assert node.Loopback.validate_inputs(repeats=3, denoise=None) is True
