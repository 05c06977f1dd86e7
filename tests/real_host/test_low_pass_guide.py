"""The low-pass guide (ILVR) on the real host: parity, the paper's loop, effect, company, failures."""

import re

import pytest
import torch

from guided_synthesis.guidance.low_pass import low_pass
from guided_synthesis.guidance.painting import fitted
from guided_synthesis.guidance.seeds import derived_seed
from real_host.sampling import SEED, STEPS, conditioning, empty_latent, sample, scene_painting


@pytest.fixture(scope="module")
def node(host):
    from guided_synthesis.nodes import low_pass_guide

    return low_pass_guide


@pytest.fixture(scope="module")
def reference():
    return scene_painting()[0]


def guide(node, tiny, reference, **widgets):
    """The node as a graph calls it, with its own defaults."""
    inputs = node.LowPassGuide.define_schema().inputs
    settings = {entry.id: entry.default for entry in inputs if hasattr(entry, "default")} | widgets
    model, vae = settings.pop("model", tiny[0]), settings.pop("vae", tiny[2])
    with torch.inference_mode():
        return node.LowPassGuide.execute(model, vae, reference, **settings).args[0]


def distance(tiny, latents, reference, factor=32):
    """How different the pictures and the reference are once both are reduced by `factor`: (B,)."""
    with torch.inference_mode():
        pictures = tiny[2].decode(latents).movedim(-1, 1)
        target = fitted(reference.movedim(-1, 1), *pictures.shape[-2:])
        return low_pass(pictures - target, factor).square().mean((1, 2, 3))


def as_flow(host, model):
    """`model` sampled as a flow model: what comes out is no picture, but the arithmetic is that of SD 3."""
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    return ModelSamplingSD3().patch(model, 3.0)[0]


@pytest.mark.parametrize("space", ["latent", "pixel"])
def test_the_coarse_picture_becomes_the_reference_and_the_rest_is_the_models(
    host, tiny, node, reference, space
):
    plain = sample(host, tiny[0], tiny[1])
    guided = sample(host, guide(node, tiny, reference, space=space), tiny[1])
    assert distance(tiny, guided, reference).item() < 0.5 * distance(tiny, plain, reference).item()
    with torch.inference_mode():
        copied = tiny[2].encode(reference)
    assert (guided - copied).std() > 0.3 * copied.std()  # not simply the reference


def test_a_larger_factor_leaves_more_to_the_model(host, tiny, node, reference):
    distances = [
        distance(
            tiny, sample(host, guide(node, tiny, reference, factor=factor), tiny[1]), reference, 8
        ).item()
        for factor in (16, 40, 128)
    ]
    assert distances == sorted(distances)


@pytest.mark.parametrize("space", ["latent", "pixel"])
def test_strength_zero_is_the_host_to_the_bit(host, tiny, node, reference, space):
    plain = sample(host, tiny[0], tiny[1])
    off = guide(node, tiny, reference, strength=0.0, space=space)
    assert torch.equal(sample(host, off, tiny[1]), plain)


def test_more_strength_comes_closer(host, tiny, node, reference):
    distances = [
        distance(tiny, sample(host, guide(node, tiny, reference, strength=s), tiny[1]), reference).item()
        for s in (0.0, 0.2, 1.0)
    ]
    assert distances == sorted(distances, reverse=True)


def test_a_range_without_a_step_is_the_host_to_the_bit(host, tiny, node, reference):
    with torch.inference_mode():
        latent = {"samples": tiny[2].encode(reference)}
    early = guide(node, tiny, reference, end_percent=0.3)
    plain = sample(host, tiny[0], tiny[1], latent=latent, denoise=0.4)
    assert torch.equal(sample(host, early, tiny[1], latent=latent, denoise=0.4), plain)


def test_the_same_seed_gives_the_same_picture_and_the_model_stays_as_it_was(host, tiny, node, reference):
    before = sample(host, tiny[0], tiny[1])
    guided = guide(node, tiny, reference, space="pixel")
    first = sample(host, guided, tiny[1])
    assert torch.equal(first, sample(host, guided, tiny[1]))
    assert not torch.equal(first, sample(host, guided, tiny[1], seed=SEED + 1))
    assert torch.equal(sample(host, tiny[0], tiny[1]), before)


@pytest.mark.parametrize("flow", [False, True])
def test_a_run_is_the_loop_of_the_paper_written_out(host, tiny, node, reference, flow):
    """Euler without the host's sampler; after each step x <- x - A x + A q(y), in the letters of the paper."""
    (model, clip, vae), text = tiny, "a photo of a fox"
    model = as_flow(host, model) if flow else model
    guided = guide(node, tiny, reference, model=model, factor=24, start_percent=0.1, end_percent=0.7)
    result = sample(host, guided, clip, text, cfg=1.0)

    sampling = model.get_model_object("model_sampling")
    sigmas = host.comfy.samplers.calculate_sigmas(sampling, "normal", STEPS)
    first, last = sampling.percent_to_sigma(0.1), sampling.percent_to_sigma(0.7)
    chosen = [i for i, sigma in enumerate(sigmas[:-1]) if last < sigma <= first]
    context = conditioning(clip, text)[0][0]
    try:
        model.patch_model()  # puts the flow model's sampling in its place
        with torch.inference_mode():
            y = model.model.process_latent_in(vae.encode(reference))
            x = sampling.noise_scaling(
                sigmas[:1], host.comfy.sample.prepare_noise(y, SEED), torch.zeros_like(y), True
            )
            for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
                denoised = model.model.apply_model(x, sigma[None], c_crossattn=context)
                x = x + (following - sigma) * (x - denoised) / sigma
                if i in chosen:
                    generator = torch.Generator("cpu").manual_seed(derived_seed(SEED, i + 1))
                    noise = torch.randn(y.shape, generator=generator)
                    noised = (1 - following if flow else 1) * y + following * noise
                    x = x - low_pass(x, 3) + low_pass(noised, 3)  # 24 px are 3 cells
    finally:
        model.unpatch_model()
    assert 2 <= len(chosen) <= STEPS - 2
    expected = model.model.process_latent_out(x)
    assert torch.allclose(result, expected, atol=2e-3 * expected.abs().max().item())


def test_in_pixels_a_step_is_the_formula_written_out(host, tiny, node, reference):
    """The clean part through the VAE, by the host's own encode and decode; the noise in latent cells."""
    model, clip, vae = tiny
    reports = []
    guided = guide(node, tiny, reference, space="pixel", factor=32, start_percent=0.1, end_percent=0.3)
    guider = host.comfy.samplers.CFGGuider(guided)
    guider.set_conds(conditioning(clip, "a fox"), conditioning(clip, ""))
    guider.set_cfg(1.0)
    sigmas = host.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", STEPS)
    latent = empty_latent()["samples"]
    plain = []

    def run(seen, guider):
        with torch.inference_mode():
            guider.sample(
                host.comfy.sample.prepare_noise(latent, SEED),
                latent,
                host.comfy.samplers.sampler_object("euler"),
                sigmas,
                callback=lambda step, denoised, x, total: seen.append(denoised.clone()),
                seed=SEED,
            )

    run(reports, guider)
    unguided = host.comfy.samplers.CFGGuider(model)
    unguided.set_conds(conditioning(clip, "a fox"), conditioning(clip, ""))
    unguided.set_cfg(1.0)
    run(plain, unguided)
    step = next(i for i, (a, b) in enumerate(zip(reports, plain, strict=True)) if not torch.equal(a, b))
    with torch.inference_mode():
        to_pixels, to_latent = model.model.process_latent_out, model.model.process_latent_in
        picture = vae.first_stage_model.decode(to_pixels(plain[step])) / 2 + 0.5  # unclamped
        assert torch.allclose(
            picture.clamp(0, 1), vae.decode(to_pixels(plain[step])).movedim(-1, 1), atol=1e-5
        )
        changed = picture + low_pass(reference.movedim(-1, 1) - picture, 32)
        encoded = [to_latent(vae.encode(p.movedim(1, -1))) for p in (changed, picture)]
    expected = plain[step] + encoded[0] - encoded[1]
    assert torch.allclose(reports[step], expected, atol=1e-3)
    assert not torch.allclose(reports[step], plain[step], atol=0.1)


def test_every_sampler_of_the_host_is_guided(host, tiny, node, reference):
    plain = distance(tiny, sample(host, tiny[0], tiny[1]), reference).item()
    guided = guide(node, tiny, reference)
    far = {}
    for name in host.comfy.samplers.KSampler.SAMPLERS:
        latents = sample(host, guided, tiny[1], sampler_name=name, cfg=1.0)
        assert torch.isfinite(latents).all(), name
        found = distance(tiny, latents, reference).item()
        if not found < 0.5 * plain:
            far[name] = found
    assert not far, f"unguided distance {plain:.4f}, but {far}"


@pytest.mark.parametrize(
    "height, width, factor", [(64, 128, 32), (72, 136, 24), (200, 128, 20), (200, 72, 64)]
)
@pytest.mark.parametrize("space", ["latent", "pixel"])
def test_any_size_in_steps_of_eight_and_any_factor(host, tiny, node, height, width, factor, space):
    reference = torch.rand(1, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    reference = fitted(reference, height, width).movedim(1, -1)
    latent = empty_latent(height, width)
    guided = guide(node, tiny, reference, factor=factor, space=space)
    plain, found = (sample(host, model, tiny[1], latent=latent) for model in (tiny[0], guided))
    if space == "pixel":
        plain, found = (distance(tiny, latents, reference, factor) for latents in (plain, found))
    else:  # the space it works in
        with torch.inference_mode():
            target = tiny[2].encode(reference)
        plain, found = (low_pass(x - target, factor / 8).square().mean() for x in (plain, found))
    assert found.item() < 0.5 * plain.item()


def test_each_picture_of_a_batch_follows_its_own_reference_or_all_follow_one(host, tiny, node):
    references = torch.cat([scene_painting(3)[0], scene_painting(8)[0]])
    latents = sample(host, guide(node, tiny, references), tiny[1], latent=empty_latent(batch=2), cfg=1.0)
    own, other = distance(tiny, latents, references), distance(tiny, latents, references.flip(0))
    assert (own < 0.5 * other).all()
    one = guide(node, tiny, references[:1], space="pixel")
    latents = sample(host, one, tiny[1], latent=empty_latent(batch=2), cfg=1.0)
    assert (distance(tiny, latents, references[:1]) < distance(tiny, latents, references[1:])).all()


def test_company_cfg_areas_and_several_positives(host, tiny, node, reference):
    clip = tiny[1]
    area = [
        [entry[0], entry[1] | {"area": (8, 8, 4, 4), "strength": 1.0}]
        for entry in conditioning(clip, "a cat")
    ]
    positives = conditioning(clip, "a photo of a fox") + area
    for widgets in ({"cfg": 1.0}, {"cfg": 7.5, "positive": positives}):
        plain = sample(host, tiny[0], clip, **widgets)
        guided = sample(host, guide(node, tiny, reference, end_percent=0.9), clip, **widgets)
        assert distance(tiny, guided, reference).item() < 0.5 * distance(tiny, plain, reference).item()


def test_a_patched_model_stays_patched(host, tiny, node, reference):
    """What a LoRA does to the weights, it does under the guide as well."""
    key = "diffusion_model.out.2.bias"
    patched = tiny[0].clone()
    shift = torch.full_like(tiny[0].model.state_dict()[key], 0.5)
    assert patched.add_patches({key: ("diff", (shift,))}, 1.0) == [key]
    with_patch = sample(host, guide(node, tiny, reference, model=patched), tiny[1])
    assert not torch.allclose(with_patch, sample(host, guide(node, tiny, reference), tiny[1]), atol=0.1)
    plain = sample(host, patched, tiny[1])
    assert distance(tiny, with_patch, reference).item() < 0.5 * distance(tiny, plain, reference).item()


def test_an_inpainting_mask_still_keeps_the_known_pixels(host, tiny, node, reference):
    with torch.inference_mode():
        known = tiny[2].encode(1 - reference)
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., 64:] = 1
    latents = sample(
        host, guide(node, tiny, reference), tiny[1], latent={"samples": known, "noise_mask": mask}
    )
    assert torch.allclose(latents[..., :8], known[..., :8], atol=1e-4)
    assert not torch.allclose(latents[..., 8:], known[..., 8:], atol=0.1)


def test_it_composes_with_the_painting_guide(host, tiny, node, reference):
    from guided_synthesis.nodes.painting_guide import PaintingGuide

    settings = {
        entry.id: entry.default for entry in PaintingGuide.define_schema().inputs if hasattr(entry, "default")
    }
    with torch.inference_mode():
        painted = PaintingGuide.execute(tiny[0], tiny[2], reference, **settings).args[0]
    both = sample(host, guide(node, tiny, reference, model=painted, factor=64), tiny[1])
    one = sample(host, guide(node, tiny, reference, factor=64), tiny[1])
    assert distance(tiny, both, reference, 16).item() < distance(tiny, one, reference, 16).item()


@pytest.mark.parametrize("space, encodes", [("latent", 1), ("pixel", 2 * 6)])
def test_calls_are_what_the_help_page_says(host, tiny, node, reference, monkeypatch, space, encodes):
    made, calls = [], []

    class Counted(node.Encoder):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    def wrapper(apply_model, args):
        calls.append(args["input"].shape[0])
        return apply_model(args["input"], args["timestep"], **args["c"])

    monkeypatch.setattr(node, "Encoder", Counted)
    counting = tiny[0].clone()
    counting.set_model_unet_function_wrapper(wrapper)
    sample(host, guide(node, tiny, reference, model=counting, space=space, end_percent=0.8), tiny[1])
    sigmas = host.comfy.samplers.calculate_sigmas(tiny[0].get_model_object("model_sampling"), "normal", STEPS)
    last = tiny[0].get_model_object("model_sampling").percent_to_sigma(0.8)
    assert int((sigmas > last).sum()) == 6
    assert [encoder.calls for encoder in made] == [encodes]
    assert len(calls) == STEPS


def test_taesd_serves_as_the_decoder(host, tiny, node, reference):
    from tiny_sd.host_model import install_taesd

    install_taesd()
    exact = sample(host, guide(node, tiny, reference, space="pixel"), tiny[1])
    light = sample(host, guide(node, tiny, reference, space="pixel", decoder="taesd"), tiny[1])
    # the demo model's VAE is of TAESD's class: the same decoder
    assert torch.allclose(exact, light, atol=2e-2 * exact.abs().max().item())


def test_out_of_memory_says_what_to_choose(host, tiny, node, reference, monkeypatch):
    kind = host.comfy.model_management.OOM_EXCEPTION

    def greedy(*_):
        raise kind("CUDA out of memory")

    monkeypatch.setattr(node.Encoder, "__call__", greedy)
    before = guide(node, tiny, reference)
    with pytest.raises(kind, match="choose the space latent"):
        sample(host, before, tiny[1])


def test_an_interrupt_leaves_nothing_behind(host, tiny, node, reference):
    before = sample(host, tiny[0], tiny[1])
    management, calls = host.comfy.model_management, []

    def cancel(args):
        calls.append(1)
        if len(calls) == 3:
            management.interrupt_current_processing()
        return args["denoised"]

    cancelled = tiny[0].clone()
    cancelled.set_model_sampler_post_cfg_function(cancel)
    with pytest.raises(management.InterruptProcessingException):
        sample(host, guide(node, tiny, reference, model=cancelled, space="pixel"), tiny[1])
    assert len(calls) == 3
    assert torch.equal(sample(host, tiny[0], tiny[1]), before)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            {"reference": torch.rand(1, 64, 128, 3)},
            "reference is 128x64 px but the picture to be made is 128x128 px",
        ),
        ({"reference": torch.rand(3, 128, 128, 3)}, "reference has 3 pictures but 1 are sampled"),
        ({"reference": torch.rand(1, 128, 128, 1)}, "reference has a single grey channel; it must be RGB"),
        ({"reference": torch.rand(128, 128, 3)}, "connect an IMAGE (batch, height, width, 3)"),
        ({"start_percent": 0.7, "end_percent": 0.2}, "start_percent (0.7) must be smaller than end_percent"),
        ({"vae": None}, "connect the VAE output"),
        ({"factor": 12}, "factor is 12 px, but a latent cell is 8 px"),
        ({"decoder": "taesd", "space": "pixel"}, "taesd_decoder"),
    ],
)
def test_bad_input_is_one_clear_sentence_before_sampling(
    host, tiny, node, reference, monkeypatch, change, sentence
):
    monkeypatch.setattr(host.folder_paths, "get_filename_list", lambda folder: [])
    calls = []

    def counted(args):
        calls.append(1)
        return args["denoised"]

    model = tiny[0].clone()
    model.set_model_sampler_post_cfg_function(counted)
    settings = {"reference": reference, "model": model} | change
    with pytest.raises(ValueError, match=re.escape(sentence)):
        sample(host, guide(node, tiny, settings.pop("reference"), **settings), tiny[1])
    assert not calls


def test_a_small_factor_is_fine_in_pixels_and_a_missing_taesd_does_not_matter_in_latents(
    host, tiny, node, reference, monkeypatch
):
    monkeypatch.setattr(host.folder_paths, "get_filename_list", lambda folder: [])
    assert guide(node, tiny, reference, decoder="taesd") is not tiny[0]
    fine, coarse = (
        sample(host, guide(node, tiny, reference, space="pixel", factor=factor, end_percent=1.0), tiny[1])
        for factor in (4, 64)
    )
    near, far = (distance(tiny, latents, reference, 4).item() for latents in (fine, coarse))
    assert near < 0.2 * far


def test_a_reversed_range_is_refused_before_the_graph_runs(node):
    assert "must be smaller" in node.LowPassGuide.validate_inputs(start_percent=0.8, end_percent=0.8)
    assert node.LowPassGuide.validate_inputs(start_percent=0.1, end_percent=None) is True
