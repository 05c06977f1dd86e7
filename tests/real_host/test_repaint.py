"""The RePaint sampler on the real host: parity, the loop done by hand, calls, seeds, masks, company, failures."""

import logging
import re

import pytest
import torch

from guided_synthesis.guidance.repaint import descents, resampled, steps_between
from guided_synthesis.guidance.seeds import derived_seed
from real_host.models import as_v_prediction
from real_host.sampling import SEED, STEPS, conditioning, scene_painting
from tiny_sd.world import draw, make_spec

SETTINGS = {"resamplings": 3, "jump_length": 2, "start_percent": 0.0, "end_percent": 0.8}


@pytest.fixture(scope="module")
def node(host):
    from guided_synthesis.nodes import repaint

    return repaint


@pytest.fixture(scope="module")
def scene(tiny):
    with torch.inference_mode():
        return tiny[2].encode(scene_painting()[0])


def half(batch=1, size=128):
    """The right half is to be painted."""
    mask = torch.zeros(batch, 1, size, size)
    mask[..., size // 2 :] = 1
    return mask


def repainting(host, node, name="euler", **widgets):
    """The node around a sampler of the host."""
    sampler = host.comfy.samplers.sampler_object(name)
    return node.RePaintSampler.execute(sampler, **(SETTINGS | widgets)).args[0]


def schedule(host, model, steps=STEPS):
    return host.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)


def run(
    host, tiny, sampler, latent, mask, model=None, sigmas=None, seed=SEED, callback=None, texts=None, cfg=2.0
):
    """What SamplerCustomAdvanced does: returns the latents (B, 4, h, w)."""
    model = model or tiny[0]
    sigmas = schedule(host, model) if sigmas is None else sigmas
    guider = host.comfy.samplers.CFGGuider(model)
    guider.set_conds(*(texts or (conditioning(tiny[1], "a photo of a fox"), conditioning(tiny[1], ""))))
    guider.set_cfg(cfg)
    with torch.inference_mode():
        noise = host.comfy.sample.prepare_noise(latent, seed)
        return guider.sample(noise, latent, sampler, sigmas, mask, callback, True, seed)


def counted(model):
    """A clone of `model` and the list of (noise level, input) of its calls."""
    calls = []

    def wrapper(apply_model, args):
        calls.append((args["timestep"][0].item(), args["input"][:1].clone()))
        return apply_model(args["input"], args["timestep"], **args["c"])

    clone = model.clone()
    clone.set_model_unet_function_wrapper(wrapper)
    return clone, calls


def as_flow(host, model):
    """`model` sampled as a flow model: what comes out is no picture, but the arithmetic is that of SD 3."""
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    return ModelSamplingSD3().patch(model, 3.0)[0]


def plan(model, sigmas, resamplings=3, jump_length=2, start_percent=0.0, end_percent=0.8):
    """The descents, from the tested schedule."""
    sampling, levels = model.get_model_object("model_sampling"), sigmas.tolist()
    first, last = sampling.percent_to_sigma(start_percent), sampling.percent_to_sigma(end_percent)
    again = resampled(levels, steps_between(levels, first, last))
    return again, descents(len(levels) - 1, again, jump_length, resamplings)


@pytest.mark.parametrize("name", ["euler_ancestral", "uni_pc"])
@pytest.mark.parametrize(
    "mask, widgets, words",
    [
        (half(), {"resamplings": 1}, None),
        (None, {}, "the latent has no noise mask"),
        (torch.ones(1, 1, 128, 128), {}, "the noise mask is the same everywhere"),
        (torch.zeros(1, 1, 128, 128), {}, "the noise mask is the same everywhere"),
        (half(), {"start_percent": 0.97, "end_percent": 1.0}, "no step of the schedule lies between"),
    ],
)
def test_with_nothing_to_do_again_it_is_the_wrapped_sampler_to_the_bit(
    host, tiny, node, scene, caplog, name, mask, widgets, words
):
    plain = run(host, tiny, host.comfy.samplers.sampler_object(name), scene, mask)
    with caplog.at_level(logging.WARNING):
        found = run(host, tiny, repainting(host, node, name, **widgets), scene, mask)
    assert torch.equal(found, plain)
    said = [record.getMessage() for record in caplog.records if "RePaint Sampler" in record.getMessage()]
    assert len(said) == (words is not None) and all(words in sentence for sentence in said)


def by_hand(host, tiny, model, scene, mask, sigmas, resample):
    """Euler with the paper's rule on whole latents, in the model's own space; nothing of the host's inpainting.

    One picture, of which the known part is `mask` == 0, and noise mixed as `signal * x0 + sigma * n`.
    """
    flow = not hasattr(model.get_model_object("model_sampling"), "sigma_data")
    guider = host.comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning(tiny[1], "a photo of a fox"), conditioning(tiny[1], ""))
    guider.set_cfg(2.0)

    def signal(sigma):
        return 1 - sigma if flow else torch.ones(())

    class ByHand(host.comfy.samplers.Sampler):
        def sample(self, guider, sigmas, extra_args, callback, noise, known, mask, disable):
            def inpainted(x, sigma, noise):
                return torch.where(mask > 0, x, signal(sigma) * known + sigma * noise)

            scale = (
                (1 + sigmas[0] ** 2).sqrt() if not flow and self.max_denoise(guider, sigmas) else sigmas[0]
            )
            x = signal(sigmas[0]) * known + scale * noise
            for index, part in enumerate(resample):
                if index:
                    at, to = sigmas[resample[index - 1].stop], sigmas[part.start]
                    generator = torch.Generator().manual_seed(derived_seed(SEED, index))
                    noise = torch.randn(x.shape, generator=generator)
                    kept = signal(to) / signal(at)
                    x = kept * x + (to**2 - (kept * at) ** 2).sqrt() * noise
                for step in part:
                    sigma, following = sigmas[step], sigmas[step + 1]
                    x = inpainted(x, sigma, noise)
                    estimate = guider(x, sigma.reshape(1), extra_args["model_options"], extra_args["seed"])
                    x = x + (following - sigma) * (x - estimate) / sigma
            return torch.where(mask > 0, x, known)

    with torch.inference_mode():
        noise = host.comfy.sample.prepare_noise(scene, SEED)
        return guider.sample(noise, scene, ByHand(), sigmas, mask, None, True, SEED)


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_it_is_the_papers_loop_done_by_hand(host, tiny, node, scene, kind):
    model = {"eps": tiny[0], "v": as_v_prediction(host, tiny[0]), "flow": as_flow(host, tiny[0])}[kind]
    sigmas = schedule(host, model)
    _, parts = plan(model, sigmas)
    assert len(parts) > 4
    expected = by_hand(host, tiny, model, scene, half(), sigmas, parts)
    found = run(host, tiny, repainting(host, node), scene, half(), model)
    assert torch.allclose(found, expected, atol=3e-3 * expected.abs().max().item())


@pytest.mark.parametrize(
    "widgets",
    [
        {},
        {"jump_length": 1, "resamplings": 2},
        {"jump_length": 99},
        {"start_percent": 0.3, "end_percent": 0.7},
        {"end_percent": 1.0},
    ],
)
def test_model_calls_are_the_steps_and_those_of_the_range_again(host, tiny, node, scene, widgets):
    model, calls = counted(tiny[0])
    run(host, tiny, repainting(host, node, **widgets), scene, half(), model)
    sigmas, settings = schedule(host, tiny[0]), SETTINGS | widgets
    again, parts = plan(tiny[0], sigmas, **settings)
    assert len(calls) == STEPS + (settings["resamplings"] - 1) * len(again)
    levels = [sigmas[step].item() for part in parts for step in part]
    assert [level for level, _ in calls] == pytest.approx(levels)


def test_known_pixels_reach_the_model_at_their_noise_level_with_other_noise_after_each_jump(
    host, tiny, node, scene
):
    model, calls = counted(tiny[0])
    run(host, tiny, repainting(host, node), scene, half(), model)
    sigmas = schedule(host, model)
    with torch.inference_mode():
        known = model.model.process_latent_in(scene)[..., :8]
    noises = []
    for index, part in enumerate(plan(model, sigmas)[1]):
        for step in part:
            noises.append((index, (calls[len(noises)][1][..., :8] - known) / sigmas[step]))
    for (first, one), (second, other) in zip(noises, noises[1:], strict=False):
        assert one.std().item() == pytest.approx(1, abs=0.15)
        correlation = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].item()
        assert correlation > 0.99 if first == second else correlation < 0.3


def test_every_sampler_of_the_host_keeps_its_noise_level_over_all_jumps(host, tiny, node, scene):
    """What the model sees has the variance of its level, and the result is finite and keeps what is known."""
    wrong = {}
    sigmas = schedule(host, tiny[0], 5)
    names = host.comfy.samplers.KSampler.SAMPLERS
    for name, jump in [(name, 2) for name in names] + [(name, 1) for name in ("uni_pc", "sa_solver", "deis")]:
        model, calls = counted(tiny[0])
        sampler = repainting(host, node, name, jump_length=jump, resamplings=2)
        found = run(host, tiny, sampler, scene, half(), model, sigmas)
        powers = [(x[..., 8:].std() / (1 + level**2) ** 0.5).item() for level, x in calls]
        kept = (found - scene)[..., :8].abs().max().item()
        if not (torch.isfinite(found).all() and max(powers) < 1.7 and min(powers) > 0.6 and kept < 1e-4):
            wrong[name, jump] = min(powers), max(powers), kept
    assert not wrong


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "euler_ancestral", "dpmpp_2m_sde", "uni_pc", "lcm"])
def test_what_is_known_stays_and_the_rest_is_new(host, tiny, node, scene, name):
    found = run(host, tiny, repainting(host, node, name), scene, half())
    plain = run(host, tiny, host.comfy.samplers.sampler_object(name), scene, half())
    assert torch.allclose(found[..., :8], scene[..., :8], atol=1e-4)
    assert not torch.allclose(found[..., 8:], scene[..., 8:], atol=0.1)
    assert not torch.allclose(found[..., 8:], plain[..., 8:], atol=0.1)


def test_without_a_prompt_resampling_makes_the_seam_smoother(host, tiny, node):
    """The step across the border of the hole beside the steps next to it, above that of the scenes themselves."""
    scenes = [torch.from_numpy(draw(make_spec(seed, things=1)).image).float() / 255 for seed in range(40, 50)]
    empty = conditioning(tiny[1], "")
    with torch.inference_mode():
        latents = tiny[2].encode(torch.stack(scenes))

    def seam(found):
        with torch.inference_mode():
            image = tiny[2].decode(found)
        a, b, c, d = (image[:, :, start : start + 2].mean(2) for start in (60, 62, 64, 66))
        return ((c - b) - ((b - a) + (d - c)) / 2).abs().mean().item()

    euler, again = host.comfy.samplers.sampler_object("euler"), repainting(host, node, resamplings=6)
    plain, smoother = (
        seam(run(host, tiny, sampler, latents, half(10), texts=(empty, empty), cfg=1.0)) - seam(latents)
        for sampler in (euler, again)
    )
    assert plain > 0
    assert smoother < 0.6 * plain


def test_a_soft_mask_changes_its_grey_part_in_between(host, tiny, node, scene):
    mask = torch.linspace(-0.5, 1.5, 16).clamp(0, 1).repeat_interleave(8).expand(1, 1, 128, 128)
    found = run(host, tiny, repainting(host, node), scene, mask)
    changes = (found - scene).abs().mean((0, 1, 2))
    assert changes[:4].max() < 1e-4 < changes[5] < changes[9:].mean()
    assert found.std() < 2 * scene.std()


def test_differential_diffusion_sees_the_whole_schedule_and_keeps_its_meaning(host, tiny, node, scene):
    """Its mask is cut at a level that falls over the run; a descent by itself would start it anew."""
    from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion

    seen, inner = [], DifferentialDiffusion.execute(tiny[0]).args[0]
    given = inner.model_options["denoise_mask_function"]

    def noted(sigma, mask, extra_options):
        found = given(sigma, mask, extra_options=extra_options)
        seen.append((sigma.item(), found.mean().item()))
        return found

    inner.set_model_denoise_mask_function(noted)
    mask = torch.linspace(0, 1, 16).repeat_interleave(8).expand(1, 1, 128, 128)
    run(host, tiny, repainting(host, node), scene, mask, inner)
    shares = {}
    for sigma, share in seen:
        shares.setdefault(round(sigma, 3), set()).add(round(share, 6))
    assert len(shares) == STEPS and all(len(values) == 1 for values in shares.values())
    ordered = [shares[sigma].pop() for sigma in sorted(shares)]
    assert ordered == sorted(ordered, reverse=True) and ordered[0] > 0.9 > 0.1 > ordered[-1]


def test_seeds_decide_and_each_descent_has_its_own(host, tiny, node, scene):
    first = run(host, tiny, repainting(host, node), scene, half())
    assert torch.equal(run(host, tiny, repainting(host, node), scene, half()), first)
    assert not torch.equal(run(host, tiny, repainting(host, node), scene, half(), seed=SEED + 1), first)
    seeds = []

    class Noting(host.comfy.samplers.KSAMPLER):
        def sample(self, guider, sigmas, extra_args, *rest):
            seeds.append(extra_args["seed"])
            return super().sample(guider, sigmas, extra_args, *rest)

    euler = host.comfy.samplers.sampler_object("euler")
    run(
        host,
        tiny,
        node.RePaintSampler.execute(Noting(euler.sampler_function), **SETTINGS).args[0],
        scene,
        half(),
    )
    assert seeds == [SEED, *(derived_seed(SEED, index) for index in range(1, len(seeds)))]
    assert len(seeds) == len(plan(tiny[0], schedule(host, tiny[0]))[1])


def test_a_batch_is_repainted_picture_by_picture_with_masks_of_their_own(host, tiny, node, scene):
    latent = torch.cat([scene, scene, 0.5 * scene])
    masks = torch.cat([half(), 1 - half(), half()])
    found = run(host, tiny, repainting(host, node), latent, masks)
    assert torch.allclose(found[0, ..., :8], latent[0, ..., :8], atol=1e-4)
    assert torch.allclose(found[1, ..., 8:], latent[1, ..., 8:], atol=1e-4)
    assert torch.allclose(found[2, ..., :8], latent[2, ..., :8], atol=1e-4)
    assert not torch.allclose(found[0, ..., 8:], found[2, ..., 8:], atol=0.1)
    assert not torch.allclose(found[1, ..., :8], latent[1, ..., :8], atol=0.1)


def test_odd_sizes_work(host, tiny, node):
    latent = torch.randn(2, 4, 9, 17, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 1, 72, 136)
    mask[..., 24:48, 40:96] = 1
    found = run(host, tiny, repainting(host, node), latent, mask)
    assert torch.isfinite(found).all()
    assert torch.allclose(found[..., :2, :], latent[..., :2, :], atol=1e-4)


def test_a_model_of_sdxls_class_works(host, tiny, node, xl):
    embedding = torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(3))
    text = [[embedding, {"pooled_output": torch.zeros(1, 64)}]]
    latent = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    found = run(host, tiny, repainting(host, node), latent, half(2, 64), xl, texts=(text, text))
    assert torch.isfinite(found).all()
    assert torch.allclose(found[..., :4], latent[..., :4], atol=1e-4)
    assert not torch.allclose(found[..., 4:], latent[..., 4:], atol=0.1)


def test_part_of_a_schedule_works_and_leaves_the_rest_to_another_sampler(host, tiny, node, scene):
    """High sigmas here, low sigmas with the plain sampler: the usual pair of SplitSigmas."""
    sigmas = schedule(host, tiny[0])
    model, calls = counted(tiny[0])
    upper = run(host, tiny, repainting(host, node), scene, half(), model, sigmas[:6])
    assert len(calls) == 5 + 2 * 5
    lower = run(host, tiny, repainting(host, node), scene, half(), sigmas=sigmas[6:])
    assert torch.isfinite(lower).all()
    noise = (upper - scene)[..., :8] * tiny[0].model.latent_format.scale_factor / sigmas[5]
    assert noise.std().item() == pytest.approx(1, abs=0.1)


def test_progress_runs_through_all_descents(host, tiny, node, scene):
    for name in ("euler", "dpm_adaptive"):
        seen = []
        run(
            host,
            tiny,
            repainting(host, node, name),
            scene,
            half(),
            callback=lambda step, denoised, x, total, seen=seen: seen.append((step, total)),
        )
        parts = plan(tiny[0], schedule(host, tiny[0]))[1]
        total = sum(map(len, parts))
        assert {entry[1] for entry in seen} == {total}
        steps = [step for step, _ in seen]
        assert steps == sorted(steps) and steps[-1] == total - 1
        if name == "euler":
            assert steps == list(range(total))


def test_it_plugs_into_the_hosts_nodes(host, tiny, node, scene):
    from comfy_extras import nodes_custom_sampler as custom

    latent = host.nodes.SetLatentNoiseMask().set_mask({"samples": scene}, half()[0])[0]
    guider = custom.BasicGuider.execute(tiny[0], conditioning(tiny[1], "a fox")).args[0]
    with torch.inference_mode():
        out = custom.SamplerCustomAdvanced.execute(
            custom.Noise_RandomNoise(SEED), guider, repainting(host, node), schedule(host, tiny[0]), latent
        )
    assert torch.allclose(out.args[0]["samples"][..., :8], scene[..., :8], atol=1e-4)
    assert not torch.allclose(out.args[0]["samples"][..., 8:], scene[..., 8:], atol=0.1)


def test_a_guide_works_in_every_descent_and_sees_the_whole_schedule(host, tiny, node, scene):
    from guided_synthesis.nodes.low_pass_guide import LowPassGuide

    settings = {
        entry.id: entry.default for entry in LowPassGuide.define_schema().inputs if hasattr(entry, "default")
    }
    with torch.inference_mode():
        guided = LowPassGuide.execute(tiny[0], tiny[2], scene_painting(8)[0], **settings).args[0]
    model, calls = counted(guided)
    found = run(host, tiny, repainting(host, node), scene, half(), model)
    again, _ = plan(tiny[0], schedule(host, tiny[0]))
    assert len(calls) == STEPS + 2 * len(again)
    assert torch.allclose(found[..., :8], scene[..., :8], atol=1e-4)
    with torch.inference_mode():
        wanted = tiny[2].encode(scene_painting(8)[0])[..., 8:].mean((2, 3))
    plain = run(host, tiny, repainting(host, node), scene, half())
    distances = [(latent[..., 8:].mean((2, 3)) - wanted).norm().item() for latent in (found, plain)]
    assert distances[0] < 0.5 * distances[1]


def test_it_may_be_looped(host, tiny, node, scene):
    from guided_synthesis.nodes.loopback import Loopback

    model, calls = counted(tiny[0])
    looped = Loopback.execute(repainting(host, node), 2, 1.0, 1.0, 0).args[0]
    found = run(host, tiny, looped, scene, half(), model)
    again, _ = plan(tiny[0], schedule(host, tiny[0]))
    assert len(calls) == 2 * (STEPS + 2 * len(again))
    assert torch.allclose(found[..., :8], scene[..., :8], atol=1e-4)


def test_an_interrupt_leaves_nothing_behind(host, tiny, node, scene):
    before = run(host, tiny, repainting(host, node), scene, half())
    management, calls = host.comfy.model_management, []

    def cancel(args):
        calls.append(1)
        if len(calls) == STEPS:
            management.interrupt_current_processing()
        return args["denoised"]

    cancelled = tiny[0].clone()
    cancelled.set_model_sampler_post_cfg_function(cancel)
    with pytest.raises(management.InterruptProcessingException):
        run(host, tiny, repainting(host, node), scene, half(), cancelled)
    assert len(calls) == STEPS
    assert torch.equal(run(host, tiny, repainting(host, node), scene, half()), before)


def test_a_model_without_noise_on_its_latents_is_sampled_plainly(host, tiny, node, scene, caplog):
    """As the host's image-to-image flow models are."""

    class Noiseless(type(tiny[0].get_model_object("model_sampling"))):
        def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
            return latent_image.clone()

    model = tiny[0].clone()
    model.add_object_patch("model_sampling", Noiseless(model.model.model_config))
    plain = run(host, tiny, host.comfy.samplers.sampler_object("euler"), scene, half(), model)
    with caplog.at_level(logging.WARNING):
        found = run(host, tiny, repainting(host, node), scene, half(), model)
    assert torch.equal(found, plain) and torch.isfinite(found).all()
    assert "this model puts no noise on its latents" in caplog.text


def test_a_reversed_range_is_refused_before_anything_runs(host, node):
    sentence = "start_percent (0.8) must be smaller than end_percent (0.2)"
    reversed_range = {"start_percent": 0.8, "end_percent": 0.2}
    assert sentence in node.RePaintSampler.validate_inputs(**reversed_range)
    assert node.RePaintSampler.validate_inputs(start_percent=0.2, end_percent=None) is True
    with pytest.raises(ValueError, match=re.escape(sentence)):
        repainting(host, node, **reversed_range)


def test_the_tooltip_tells_what_it_costs(node):
    tooltips = {entry.id: entry.tooltip for entry in node.RePaintSampler.define_schema().inputs}
    assert "(resamplings - 1) x those in the range" in tooltips["resamplings"]
