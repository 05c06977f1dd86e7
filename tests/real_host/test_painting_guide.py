"""The GradOP painting guide on the real host: parity, effect, company, counts, failures."""

import re

import pytest
import torch

from guided_synthesis.guidance.painting import PaintingObjective, Pixels, gaussian
from guided_synthesis.guidance.seeds import derived_seed
from guided_synthesis.guidance.steering import conjugate, descend
from real_host.sampling import SEED, STEPS, conditioning, empty_latent, sample, scene_painting


@pytest.fixture(scope="module")
def node(host):
    from guided_synthesis.nodes import painting_guide

    return painting_guide


@pytest.fixture(scope="module")
def painting():
    return scene_painting()[0]


def guide(node, tiny, painting, **widgets):
    """The node as a graph calls it, with its own defaults."""
    inputs = node.PaintingGuide.define_schema().inputs
    settings = {entry.id: entry.default for entry in inputs if hasattr(entry, "default")}
    settings |= widgets
    model = settings.pop("model", tiny[0])
    vae = settings.pop("vae", tiny[2])
    with torch.inference_mode():
        return node.PaintingGuide.execute(model, vae, painting, **settings).args[0]


def distance(tiny, latents, painting):
    """Painting distance of decoded latents: both pictures blurred by 6 px."""
    with torch.inference_mode():
        pictures = tiny[2].decode(latents).movedim(-1, 1)
        return (gaussian(pictures, 6.0) - gaussian(painting.movedim(-1, 1), 6.0)).square().mean((1, 2, 3))


def calls_of(model):
    """A clone of `model` that counts the calls of its diffusion model, and the list it counts in."""
    calls = []

    def wrapper(apply_model, args):
        calls.append(args["input"].shape[0])
        return apply_model(args["input"], args["timestep"], **args["c"])

    counting = model.clone()
    counting.set_model_unet_function_wrapper(wrapper)
    return counting, calls


def test_the_picture_comes_closer_to_the_painting(host, tiny, node, painting):
    plain = sample(host, tiny[0], tiny[1])
    guided = sample(host, guide(node, tiny, painting), tiny[1])
    assert distance(tiny, guided, painting).item() < 0.5 * distance(tiny, plain, painting).item()


def test_strength_zero_is_the_host_to_the_bit(host, tiny, node, painting):
    plain = sample(host, tiny[0], tiny[1])
    assert torch.equal(sample(host, guide(node, tiny, painting, strength=0.0), tiny[1]), plain)


def test_a_range_without_a_step_is_the_host_to_the_bit(host, tiny, node, painting):
    with torch.inference_mode():
        latent = {"samples": tiny[2].encode(painting)}
    early = guide(node, tiny, painting, start_percent=0.0, end_percent=0.3)
    plain = sample(host, tiny[0], tiny[1], latent=latent, denoise=0.4)
    assert torch.equal(sample(host, early, tiny[1], latent=latent, denoise=0.4), plain)


def test_more_strength_comes_closer(host, tiny, node, painting):
    distances = [
        distance(tiny, sample(host, guide(node, tiny, painting, strength=strength), tiny[1]), painting).item()
        for strength in (0.3, 1.0)
    ]
    assert distances[1] < distances[0]


def test_the_same_seed_gives_the_same_picture_and_the_model_stays_as_it_was(host, tiny, node, painting):
    before = sample(host, tiny[0], tiny[1])
    guided = guide(node, tiny, painting)
    first, second = sample(host, guided, tiny[1]), sample(host, guided, tiny[1])
    assert torch.equal(first, second)
    assert not torch.equal(first, sample(host, guided, tiny[1], seed=SEED + 1))
    assert torch.equal(sample(host, tiny[0], tiny[1]), before)


@pytest.mark.parametrize("mode", ["denoised", "released code"])
def test_a_run_is_the_loop_of_the_paper_written_out(host, tiny, node, painting, mode):
    """Euler without the host's sampler: step, move the estimate, noise it afresh, step on."""
    model, clip, vae = tiny
    text, released = "a photo of a fox", mode == "released code"
    widgets = {
        "start_percent": 0.2,
        "iterations": 2,
        "steps_per_iteration": 12,
        "learning_rate": 0.2,
        "tolerance": 0.05,
    }
    result = sample(host, guide(node, tiny, painting, mode=mode, **widgets), clip, text, cfg=1.0)

    from guided_synthesis.nodes.host.decoders import open_decoder

    sampling = model.get_model_object("model_sampling")
    sigmas = host.comfy.samplers.calculate_sigmas(sampling, "normal", STEPS)
    chosen = [i for i, s in enumerate(sigmas[:-1]) if s <= sampling.percent_to_sigma(0.2)][:2]
    context, y = conditioning(clip, text)[0][0], painting.movedim(-1, 1)
    with torch.no_grad(), open_decoder("linear", vae, model) as decoder:
        objective = PaintingObjective(decoder, y, released_code=released)
        encoded = model.model.process_latent_in(vae.encode(painting)).clone()
        near = objective.around(encoded, y)
        x = host.comfy.sample.prepare_noise(torch.zeros(1, 4, 16, 16), SEED) * torch.sqrt(1 + sigmas[0] ** 2)
        for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
            denoised = model.model.apply_model(x, sigma[None], c_crossattn=context)
            x = denoised + following / sigma * (x - denoised)
            if i not in chosen:
                continue
            if released:
                start = x / torch.sqrt(1 + following**2)
                moved = descend(start, objective.around(start), 12, 0.2, elementwise=True)
            else:
                variance = float(sigma**2 / (1 + sigma**2))
                gamma = 4 / 3 * 0.05**2 / variance
                anchor = denoised.clone()

                def relaxed(z, anchor=anchor, gamma=gamma):
                    return near(z) + gamma * (z - anchor).square().mean((1, 2, 3))

                moved = conjugate(anchor, relaxed, 12, 3 * variance**0.5)
            generator = torch.Generator("cpu").manual_seed(derived_seed(SEED, i + 1))
            x = moved + following * torch.randn(moved.shape, generator=generator)
    assert len(chosen) == 2
    expected = model.model.process_latent_out(x)
    assert torch.allclose(result, expected, atol=2e-3 * expected.abs().max().item())


@pytest.mark.parametrize("function", ["median palette", "superpixel"])
def test_every_painting_function_guides(host, tiny, node, painting, function):
    far = []
    for model in (tiny[0], guide(node, tiny, painting, painting_function=function)):
        with torch.inference_mode():
            pictures = tiny[2].decode(sample(host, model, tiny[1])).movedim(-1, 1)
        far.append(
            PaintingObjective(Pixels(), painting.movedim(-1, 1), None, 24.0, function)(pictures).item()
        )
    assert far[1] < 0.7 * far[0]


def test_a_smaller_tolerance_comes_closer(host, tiny, node, painting):
    distances = [
        distance(tiny, sample(host, guide(node, tiny, painting, tolerance=tolerance), tiny[1]), painting)
        for tolerance in (0.02, 0.1, 0.5)
    ]
    assert distances == sorted(distances)


def test_a_grey_mask_pulls_less_than_a_white_one_and_black_not_at_all(host, tiny, node, painting):
    found = {}
    for grey in (0.1, 1.0):
        mask = torch.full((1, 128, 128), grey)
        mask[:, :, 96:] = 1.0
        latents = sample(host, guide(node, tiny, painting, mask=mask), tiny[1])
        found[grey] = distance(tiny, latents, painting).item()
    plain = distance(tiny, sample(host, tiny[0], tiny[1]), painting).item()
    assert found[1.0] < found[0.1] < plain


def test_paintings_in_turn_over_the_schedule_both_leave_their_mark(host, tiny, node):
    layout, colours = scene_painting(3)[0], scene_painting(8)[0]
    first = guide(node, tiny, layout, end_percent=0.5)
    both = guide(node, tiny, colours, start_percent=0.5, model=first)
    one, two = (sample(host, model, tiny[1]) for model in (first, both))
    assert distance(tiny, two, colours).item() < 0.7 * distance(tiny, one, colours).item()
    only = sample(host, guide(node, tiny, colours, start_percent=0.5), tiny[1])
    assert not torch.allclose(two, only, atol=0.1)


def test_a_flat_painting_and_one_with_alpha_are_served(host, tiny, node, caplog):
    flat = torch.full((1, 128, 128, 3), 0.4)
    for function in ("gaussian", "median palette", "superpixel"):
        widgets = {"painting_function": function, "colours": 1}
        latents = sample(host, guide(node, tiny, flat, **widgets), tiny[1], steps=3)
        assert torch.isfinite(latents).all()
    alpha = torch.cat([flat * 0, torch.full((1, 128, 128, 1), 0.6)], -1)  # black at 60 %: 0.4 over white
    with caplog.at_level("INFO"):
        composited = sample(host, guide(node, tiny, alpha), tiny[1], steps=3)
    assert "painting has an alpha channel (RGBA); it was composited over white" in caplog.text
    assert torch.allclose(composited, sample(host, guide(node, tiny, flat), tiny[1], steps=3), atol=1e-4)


def test_every_sampler_of_the_host_is_guided(host, tiny, node, painting):
    plain = distance(tiny, sample(host, tiny[0], tiny[1]), painting).item()
    guided = guide(node, tiny, painting)
    far = {}
    for name in host.comfy.samplers.KSampler.SAMPLERS:
        latents = sample(host, guided, tiny[1], sampler_name=name, cfg=1.0)
        assert torch.isfinite(latents).all(), name
        found = distance(tiny, latents, painting).item()
        if not found < 0.8 * plain:
            far[name] = found
    assert not far, f"unguided distance {plain:.4f}, but {far}"


@pytest.mark.parametrize(
    "scheduler", ["karras", "exponential", "sgm_uniform", "simple", "ddim_uniform", "beta"]
)
def test_schedulers_are_guided(host, tiny, node, painting, scheduler):
    plain = sample(host, tiny[0], tiny[1], scheduler=scheduler)
    guided = sample(host, guide(node, tiny, painting), tiny[1], scheduler=scheduler)
    assert distance(tiny, guided, painting).item() < 0.7 * distance(tiny, plain, painting).item()


def test_a_sampler_that_reports_nothing_is_refused_by_name(host, tiny, node, painting):
    def silent(model, x, sigmas, extra_args=None, callback=None, disable=None):
        return model(x, sigmas[0] * x.new_ones([x.shape[0]]), **extra_args)

    guider = host.comfy.samplers.CFGGuider(guide(node, tiny, painting))
    guider.set_conds(conditioning(tiny[1], "a fox"), conditioning(tiny[1], ""))
    latent = empty_latent()["samples"]
    sampler = host.comfy.samplers.KSAMPLER(silent)
    with torch.inference_mode(), pytest.raises(ValueError, match="KSAMPLER does not report its estimate"):
        guider.sample(torch.randn_like(latent), latent, sampler, torch.tensor([5.0, 1.0, 0.0]), seed=1)


def test_sampler_custom_advanced_is_guided(host, tiny, node, painting):
    from comfy_extras import nodes_custom_sampler as custom

    def run(model):
        guider = host.comfy.samplers.CFGGuider(model)
        guider.set_conds(conditioning(tiny[1], "a photo of a fox"), conditioning(tiny[1], ""))
        guider.set_cfg(3.0)
        noise = custom.Noise_RandomNoise(SEED)
        sampling = model.get_model_object("model_sampling")
        sigmas = host.comfy.samplers.calculate_sigmas(sampling, "normal", STEPS)
        sampler = host.comfy.samplers.sampler_object("dpmpp_2m")
        latent = empty_latent()["samples"]
        with torch.inference_mode():
            return guider.sample(
                noise.generate_noise({"samples": latent}), latent, sampler, sigmas, seed=SEED
            )

    plain, guided = run(tiny[0]), run(guide(node, tiny, painting))
    assert distance(tiny, guided, painting).item() < 0.7 * distance(tiny, plain, painting).item()


@pytest.mark.parametrize("height, width", [(64, 128), (72, 136), (200, 128)])
def test_any_size_in_steps_of_eight(host, tiny, node, height, width):
    painting = torch.rand(1, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    painting = (
        torch.nn.functional.interpolate(painting, (height, width), mode="bicubic").clamp(0, 1).movedim(1, -1)
    )
    latent = empty_latent(height, width)
    plain = sample(host, tiny[0], tiny[1], latent=latent)
    guided = sample(host, guide(node, tiny, painting), tiny[1], latent=latent)
    assert distance(tiny, guided, painting).item() < 0.7 * distance(tiny, plain, painting).item()


def test_each_picture_of_a_batch_follows_its_own_painting(host, tiny, node):
    paintings = torch.cat([scene_painting(3)[0], scene_painting(8)[0]])
    guided = guide(node, tiny, paintings)
    latents = sample(host, guided, tiny[1], latent=empty_latent(batch=2), cfg=1.0)
    own, other = distance(tiny, latents, paintings), distance(tiny, latents, paintings.flip(0))
    assert (own < other).all()


def test_company_cfg_one_areas_and_several_positives(host, tiny, node, painting):
    clip = tiny[1]
    area = [
        [entry[0], entry[1] | {"area": (8, 8, 4, 4), "strength": 1.0}]
        for entry in conditioning(clip, "a cat")
    ]
    positives = conditioning(clip, "a photo of a fox") + area
    for widgets in ({"cfg": 1.0}, {"positive": positives}, {"cfg": 7.5, "positive": positives}):
        plain = sample(host, tiny[0], clip, **widgets)
        guided = sample(host, guide(node, tiny, painting), clip, **widgets)
        assert distance(tiny, guided, painting).item() < 0.7 * distance(tiny, plain, painting).item()


def test_outside_the_mask_the_painting_does_not_count(host, tiny, node, painting):
    mask = torch.zeros(1, 128, 128)
    mask[:, :, :64] = 1
    outside, inside = painting.clone(), painting.clone()
    outside[:, :, 96:] = 1 - outside[:, :, 96:]  # further from the mask than the blur reaches
    inside[:, :, :32] = 1 - inside[:, :, :32]
    latents, other, changed = (
        sample(host, guide(node, tiny, y, mask=mask), tiny[1]) for y in (painting, outside, inside)
    )
    # the VAE sees the whole painting when the linear decoder is fitted to it, so a trace of the outside is left
    assert (other - latents).square().mean() < 0.05 * (changed - latents).square().mean()


def test_outside_the_mask_each_estimate_stays_the_models_own(host, tiny, node, painting):
    from guided_synthesis.nodes.host.restarts import Moment

    mask = torch.zeros(1, 1, 128, 128)
    mask[..., :64] = 1
    settings = node.Settings(1.0, 0.05, 8, 0.1, "gaussian", 7.0, 8, "linear", "denoised")
    sampling, estimate = tiny[0].get_model_object("model_sampling"), torch.randn(1, 4, 16, 16)
    sigmas = torch.tensor([2.0]), torch.tensor([1.5])
    moment = Moment(estimate, estimate, *sigmas, torch.randn_like(estimate), sampling)
    with node._painting_run(tiny[0], tiny[2], painting.movedim(-1, 1), mask, settings) as move:
        moved = move(moment).latent
    assert torch.equal(moved[..., 8:], estimate[..., 8:])
    assert not torch.allclose(moved[..., :8], estimate[..., :8], atol=0.1)


def test_an_inpainting_mask_still_keeps_the_known_pixels(host, tiny, node, painting):
    with torch.inference_mode():
        known = tiny[2].encode(1 - painting)
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., 64:] = 1  # only the right half is painted anew
    latents = sample(
        host, guide(node, tiny, painting), tiny[1], latent={"samples": known, "noise_mask": mask}
    )
    assert torch.allclose(latents[..., :8], known[..., :8], atol=1e-4)
    assert not torch.allclose(latents[..., 8:], known[..., 8:], atol=0.1)


def test_two_guides_in_a_row_both_count(host, tiny, node, painting):
    mask = torch.zeros(1, 128, 128)
    mask[:, :, :64] = 1
    first = guide(node, tiny, painting, mask=mask)
    both = guide(node, tiny, painting, mask=1 - mask, model=first)
    one, two = (distance(tiny, sample(host, m, tiny[1]), painting).item() for m in (first, both))
    assert two < 0.8 * one


def test_model_and_decoder_calls_are_what_the_node_says(host, tiny, node, painting, monkeypatch):
    opened = []
    original = node.open_decoder

    def spy(*args):
        manager = original(*args)

        class Opened:
            def __enter__(self):
                opened.append(manager.__enter__())
                return opened[-1]

            def __exit__(self, *error):
                return manager.__exit__(*error)

        return Opened()

    monkeypatch.setattr(node, "open_decoder", spy)
    counting, calls = calls_of(tiny[0])
    sample(host, counting, tiny[1])
    plain = len(calls)
    calls.clear()
    sample(host, guide(node, tiny, painting, model=counting, iterations=3, steps_per_iteration=5), tiny[1])
    assert len(calls) == plain == STEPS
    assert [(decoder.calls, decoder.exact.calls) for decoder in opened] == [(3 * (1 + 2 * 5), 0)]


def test_progress_and_previews_run_through(host, tiny, node, painting):
    seen = []
    model = guide(node, tiny, painting)
    guider = host.comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning(tiny[1], "a fox"), conditioning(tiny[1], ""))
    guider.set_cfg(2.0)
    sigmas = host.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", STEPS)
    latent = empty_latent()["samples"]
    with torch.inference_mode():
        guider.sample(
            host.comfy.sample.prepare_noise(latent, SEED),
            latent,
            host.comfy.samplers.sampler_object("euler"),
            sigmas,
            callback=lambda step, denoised, x, total: seen.append((step, total, tuple(denoised.shape))),
            seed=SEED,
        )
    assert seen == [(step, STEPS, (1, 4, 16, 16)) for step in range(STEPS)]


def test_an_error_or_an_interrupt_in_the_guide_leaves_nothing_behind(host, tiny, node, painting, monkeypatch):
    before = sample(host, tiny[0], tiny[1])
    guided = guide(node, tiny, painting)
    management = host.comfy.model_management
    monkeypatch.setattr(
        node, "check_interrupt", lambda: management.interrupt_current_processing() or _check(host)
    )
    with pytest.raises(management.InterruptProcessingException):
        sample(host, guided, tiny[1])
    monkeypatch.undo()
    assert torch.equal(sample(host, tiny[0], tiny[1]), before)

    def broken(*_, **__):
        raise RuntimeError("out of paint")

    monkeypatch.setattr(node, "conjugate", broken)
    with pytest.raises(RuntimeError, match="out of paint"):
        sample(host, guided, tiny[1])
    monkeypatch.undo()
    assert torch.equal(sample(host, tiny[0], tiny[1]), before)
    assert torch.equal(sample(host, guided, tiny[1]), sample(host, guide(node, tiny, painting), tiny[1]))


def test_out_of_memory_says_which_decoder_to_choose(host, tiny, node, painting, monkeypatch):
    kind = host.comfy.model_management.OOM_EXCEPTION

    def greedy(*_, **__):
        raise kind("CUDA out of memory")

    monkeypatch.setattr(node, "conjugate", greedy)
    with pytest.raises(kind, match="choose the decoder linear"):
        sample(host, guide(node, tiny, painting), tiny[1])


def _check(host):
    host.comfy.model_management.throw_exception_if_processing_interrupted()


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            {"painting": torch.rand(1, 64, 128, 3)},
            "painting is 128x64 px but the picture to be made is 128x128 px",
        ),
        ({"painting": torch.rand(3, 128, 128, 3)}, "painting has 3 pictures but 1 are sampled"),
        ({"painting": torch.rand(1, 128, 128, 1)}, "painting has a single grey channel; it must be RGB"),
        (
            {"mode": "released code", "painting_function": "superpixel"},
            "Set painting_function to gaussian, or mode to denoised",
        ),
        ({"painting": torch.rand(128, 128, 3)}, "connect an IMAGE (batch, height, width, 3)"),
        ({"mask": torch.zeros(1, 128, 128)}, "mask is empty (all zero)"),
        ({"mask": torch.ones(1, 64, 128)}, "mask is 128x64 px but the painting is 128x128 px"),
        (
            {"start_percent": 0.7, "end_percent": 0.2},
            "start_percent (0.7) must be smaller than end_percent (0.2)",
        ),
        ({"vae": None}, "connect the VAE output"),
        ({"model": object()}, "does not paint single pictures"),
        ({"decoder": "taesd"}, "taesd_decoder"),
    ],
)
def test_bad_input_is_one_clear_sentence_before_sampling(
    host, tiny, node, painting, monkeypatch, change, sentence
):
    monkeypatch.setattr(host.folder_paths, "get_filename_list", lambda folder: [])
    counting, calls = calls_of(tiny[0])
    settings = {"painting": painting, "model": counting} | change
    with pytest.raises(ValueError, match=re.escape(sentence)):
        sample(host, guide(node, tiny, settings.pop("painting"), **settings), tiny[1])
    assert not calls


def test_a_vae_of_another_family_is_named(host, tiny, node, painting, monkeypatch):
    monkeypatch.setattr(tiny[2], "latent_channels", 16)
    with pytest.raises(ValueError, match="16 channels.*Connect the VAE"):
        guide(node, tiny, painting)


def test_a_reversed_range_is_refused_before_the_graph_runs(node):
    assert "must be smaller" in node.PaintingGuide.validate_inputs(start_percent=0.8, end_percent=0.8)
    assert node.PaintingGuide.validate_inputs(start_percent=0.1, end_percent=0.8) is True
    assert node.PaintingGuide.validate_inputs(start_percent=None, end_percent=0.8) is True
