"""Invert and the BELM Sampler on the real host: the photo comes back, what it costs, company, failures."""

import copy
import re
from types import SimpleNamespace

import pytest
import torch

from guided_synthesis.guidance.trajectory import Trajectory
from real_host.models import as_v_prediction
from real_host.sampling import SEED, conditioning, empty_latent, sample, scene_painting
from tiny_sd import data
from tiny_sd.world import draw, make_spec

STEPS, SCHEDULER = 10, "karras"
SCENES = (200, 206)
METHODS = ("ddim", "implicit", "o-belm")
FINE = {"tolerance": 1e-4, "max_iterations": 20}


@pytest.fixture(scope="module")
def node(host):
    from guided_synthesis.nodes import inversion

    return inversion


@pytest.fixture(scope="module")
def photos(tiny):
    """Return two pictures that the model has never seen, as LATENT samples, with their prompts as CONDITIONING."""
    specs = [make_spec(data.HELD_OUT + scene) for scene in SCENES]
    images = torch.stack([torch.from_numpy(draw(spec).image.copy()) for spec in specs]).float() / 255
    with torch.inference_mode():
        latent = tiny[2].encode(images)
    texts = [conditioning(tiny[1], spec.caption)[0][0] for spec in specs]
    return SimpleNamespace(
        latent=latent,
        positive=[[torch.cat(texts), {}]],
        negative=conditioning(tiny[1], ""),
        captions=[spec.caption for spec in specs],
    )


def first(photos, number=0):
    """One of the photos, with its prompt."""
    text, settings = photos.positive[0]
    part = slice(number, number + 1)
    return SimpleNamespace(
        latent=photos.latent[part], positive=[[text[part], settings]], negative=photos.negative
    )


def levels(host, model, steps=STEPS, scheduler=SCHEDULER):
    return host.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)


def run(node, host, model, photos, method="implicit", cfg=1.0, latent=None, **given):
    """The node as a graph calls it, with its own defaults: its output."""
    inputs = {e.id: e.default for e in node.Invert.define_schema().inputs if hasattr(e, "default")}
    settings = {key: value for key, value in inputs.items() if value is not None}
    settings |= {"negative": photos.negative, "sigmas": levels(host, model), "positive": photos.positive}
    settings |= {"method": method, "cfg": cfg} | given
    latent = {"samples": photos.latent} if latent is None else latent
    with torch.inference_mode():
        return node.Invert.execute(model=model, latent=latent, **settings)


def inverted(*args, **given):
    """The trajectory."""
    return run(*args, **given).args[2]


def said(out):
    """What the node says about its run."""
    return out.ui["text"][0]


def sampled(host, model, photos, noise, latent, cfg=1.0, sampler=None, sigmas=None, **given):
    """What a guider makes of noise over a latent, as SamplerCustomAdvanced does: in the model's space."""
    guider = host.comfy.samplers.CFGGuider(model)
    guider.set_conds(photos.positive, photos.negative)
    guider.set_cfg(cfg)
    sampler = sampler or host.comfy.samplers.sampler_object("euler")
    sigmas = levels(host, model) if sigmas is None else sigmas
    with torch.inference_mode():
        out = guider.sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=SEED, **given)
        return model.model.process_latent_in(out)


def rebuilt(host, model, photos, trajectory, **given):
    """What sampling makes of the trajectory's start, (B, C, h, w) in the model's space."""
    with torch.inference_mode():
        start = model.model.process_latent_out(trajectory.latents[0].float())
    return sampled(host, model, photos, torch.zeros_like(start), start, **given)


def belm(node, trajectory=None):
    """The SAMPLER of the BELM Sampler node."""
    return node.BELMSampler.execute(trajectory).args[0]


def counted(model):
    """A clone, and the list of the inputs (B, C, h, w) that its network gets."""
    inputs = []

    def counting(apply_model, args):
        inputs.append(args["input"].clone())
        return apply_model(args["input"], args["timestep"], **args["c"])

    patched = model.clone()
    patched.set_model_unet_function_wrapper(counting)
    return patched, inputs


def rms(x):
    """Root mean square of each picture, (B,)."""
    return x.double().flatten(1).square().mean(1).sqrt()


def as_half(host, model, dtype):
    """The same weights in half precision, or another."""
    config, device = model.model.model_config, torch.device("cpu")
    config = type(config)(dict(config.unet_config))
    config.set_inference_dtype(dtype, None)
    base = host.comfy.model_base.BaseModel(config)
    with torch.inference_mode():
        base.load_state_dict(model.model.state_dict(), strict=False)
    return host.comfy.model_patcher.ModelPatcher(base.to(dtype), device, device)


def of_sdxl(tiny, pictures=1):
    """Pictures and prompts for the tiny SDXL: noise is as good as a photo for it."""
    generator = torch.Generator().manual_seed(0)
    text = conditioning(tiny[1], "a photo of a fox")[0][0]
    positive = [[text, {"pooled_output": torch.randn(1, 64, generator=generator)}]]
    negative = [[conditioning(tiny[1], "")[0][0], {"pooled_output": torch.zeros(1, 64)}]]
    latent = 5 * torch.randn(pictures, 4, 8, 8, generator=generator)
    return SimpleNamespace(latent=latent, positive=positive, negative=negative)


# --- what comes out


@pytest.mark.parametrize("method", METHODS)
def test_a_trajectory_goes_from_noise_to_the_photo(node, host, tiny, photos, method):
    out = run(node, host, tiny[0], photos, method)
    latent, _, path = out.args
    with torch.inference_mode():
        clean = tiny[0].model.process_latent_in(photos.latent)
    assert torch.equal(path.sigmas, levels(host, tiny[0])) and path.sigmas.device.type == "cpu"
    assert path.latents.shape == (STEPS + 1, 2, 4, 16, 16) and path.residuals.shape == (STEPS, 2)
    assert path.latents.dtype == (torch.float64 if method == "o-belm" else torch.float32)
    assert torch.equal(path.latents[-1].float(), clean) and path.latents.isfinite().all()
    assert (path.method, path.cfg, path.steps, path.pictures) == (method, 1.0, STEPS, 2)
    spread = rms(path.latents[0]) / path.sigmas[0]
    assert ((spread > 0.85) & (spread < 1.2)).all() and (rms(path.latents[-1]) < 2).all()
    with torch.inference_mode():
        assert torch.equal(latent["samples"], tiny[0].model.process_latent_out(path.latents[0].float()))
    assert f"{method}: {path.calls} model calls for {STEPS} steps" in said(out)
    stated = re.search(r"Standard deviation of the noise: ([\d.]+), ([\d.]+) ", said(out))
    assert all(0.85 < float(number) < 1.2 for number in stated.groups())


def test_the_trajectory_knows_the_words_of_its_prompt(node, host, tiny, photos):
    from guided_synthesis.nodes import prompt

    with torch.inference_mode():
        words = prompt.PromptWords.execute(tiny[1], photos.captions[0]).args[0]
    photo = first(photos)
    assert inverted(node, host, tiny[0], photo, "ddim").prompt == ""
    photo.positive = words
    assert inverted(node, host, tiny[0], photo, "ddim").prompt == photos.captions[0]


def test_a_latent_keeps_what_else_it_carries_but_for_its_noise_mask(node, host, tiny, photos):
    latent = {"samples": photos.latent, "batch_index": [3, 4], "noise_mask": torch.ones(2, 1, 16, 16)}
    found = run(node, host, tiny[0], photos, "ddim", latent=latent).args[0]
    assert set(found) == {"samples", "batch_index"} and found["batch_index"] == [3, 4]
    assert torch.equal(latent["samples"], photos.latent) and "noise_mask" in latent


def test_a_latent_in_half_precision_is_inverted_as_the_picture_that_it_holds(node, host, tiny, photos):
    half = {"samples": photos.latent.half()}
    whole = inverted(node, host, tiny[0], photos, "ddim", latent={"samples": photos.latent.half().float()})
    found = inverted(node, host, tiny[0], photos, "ddim", latent=half)
    assert found.latents.dtype == torch.float32
    assert (rms(found.latents[0] - whole.latents[0]) < 1e-2 * rms(whole.latents[0])).all()


# --- how exact it is


@pytest.mark.parametrize("cfg, scene", [(1.0, 0), (1.0, 1), (3.0, 1)])
def test_implicit_gives_the_photo_back_to_its_tolerance(node, host, tiny, photos, cfg, scene):
    photo, errors = first(photos, scene), []
    for tolerance in (1e-3, 1e-5):
        out = run(node, host, tiny[0], photo, cfg=cfg, tolerance=tolerance, max_iterations=40)
        path = out.args[2]
        assert (path.residuals <= tolerance).all() and "NOT SOLVED" not in said(out)
        errors.append(rms(rebuilt(host, tiny[0], photo, path, cfg=cfg) - path.latents[-1]).item())
    assert errors[0] < 30 * 1e-3 * cfg and errors[1] < 30 * 1e-5 * cfg
    ddim = inverted(node, host, tiny[0], photo, "ddim", cfg=cfg)
    assert rms(rebuilt(host, tiny[0], photo, ddim, cfg=cfg) - ddim.latents[-1]).item() > 30 * errors[0]


@pytest.mark.parametrize("cfg, most", [(1.0, 3), (7.5, 4)])
def test_the_errors_that_implicit_claims_are_those_of_the_hosts_own_steps(
    node, host, tiny, photos, cfg, most
):
    path = inverted(node, host, tiny[0], photos, cfg=cfg, tolerance=1e-6, max_iterations=most)
    for i in range(STEPS):
        with torch.inference_mode():
            start = tiny[0].model.process_latent_out(path.latents[i])
        zero, two = torch.zeros_like(start), path.sigmas[i : i + 2]
        below = sampled(host, tiny[0], photos, zero, start, cfg=cfg, sigmas=two)
        assert torch.allclose(
            rms(below - path.latents[i + 1]).float(), path.residuals[i], rtol=2e-2, atol=2e-5
        )
    assert path.residuals.max() > 1e-4


def test_steps_that_were_not_solved_are_reported_and_solved_ones_are_not(node, host, tiny, photos):
    short = run(node, host, tiny[0], photos, cfg=7.5, max_iterations=2, tolerance=1e-4)
    unsolved = int((short.args[2].residuals > 1e-4).any(1).sum())
    assert unsolved > 1 and f"NOT SOLVED to 0.0001: {unsolved} steps" in said(short)
    assert "Raise max_iterations or steps, or lower cfg" in said(short)
    worst = float(re.search(r"Worst error of a step: ([\d.e-]+)\. ", said(short))[1])
    assert worst == pytest.approx(short.args[2].residuals.max().item(), rel=0.05)
    assert "does not measure its error" in said(run(node, host, tiny[0], photos, "ddim"))


def test_what_a_round_trip_of_implicit_misses_is_told(node, host, tiny, photos):
    """The host's own sampling from the noise, measured here, too."""
    out = run(node, host, tiny[0], photos, cfg=7.5, max_iterations=2)
    back = rebuilt(host, tiny[0], photos, out.args[2], cfg=7.5)
    missed = rms(back - out.args[2].latents[-1])
    told = re.search(
        rf"Sampled again \({STEPS} more calls\) it misses the photo by ([\d.e-]+), ([\d.e-]+)\.", said(out)
    )
    assert [float(number) for number in told.groups()] == pytest.approx(missed.tolist(), rel=0.06)
    assert "THE PHOTO WILL NOT COME BACK" in said(out) and missed.max() > 0.1
    exact = run(node, host, tiny[0], first(photos, 1), cfg=3.0, tolerance=1e-5, max_iterations=40)
    assert "Sampled again" in said(exact) and "WILL NOT COME BACK" not in said(exact)
    for method in ("ddim", "o-belm"):
        assert "Sampled again" not in said(run(node, host, tiny[0], photos, method, cfg=7.5))


def test_a_batch_of_two_is_each_photo_alone(node, host, tiny, photos):
    for method in METHODS:
        both = inverted(node, host, tiny[0], photos, method, **FINE)
        for number in range(2):
            alone = inverted(node, host, tiny[0], first(photos, number), method, **FINE)
            difference = rms(both.latents[0, number : number + 1] - alone.latents[0])
            assert difference < 2e-3 * rms(alone.latents[0])


@pytest.mark.parametrize("cfg", [1.0, 7.5])
def test_the_model_is_called_as_often_as_the_node_says(node, host, tiny, photos, cfg):
    for method, widgets in (
        ("ddim", {}),
        ("o-belm", {}),
        ("implicit", {"max_iterations": 3, "tolerance": 1e-6}),
    ):
        model, inputs = counted(tiny[0])
        path = inverted(node, host, model, photos, method, cfg=cfg, **widgets)
        checks = STEPS if widgets else 0
        assert path.calls == len(inputs) - checks == (3 * STEPS if widgets else STEPS)
        assert all(len(x) == (2 if cfg == 1 else 4) for x in inputs)
        inputs.clear()
    loose = inverted(node, host, model, photos, tolerance=0.1, cfg=1.0)
    assert loose.calls == len(inputs) - STEPS < 3 * STEPS


@pytest.mark.parametrize("cfg", [1.0, 7.5])
def test_o_belm_gives_the_photo_back_to_the_rounding_of_its_output(node, host, tiny, photos, cfg):
    """Far closer than any tolerance, at any cfg, with one call a step down and one less in sampling."""
    path = inverted(node, host, tiny[0], photos, "o-belm", cfg=cfg)
    model, inputs = counted(tiny[0])
    found = rebuilt(host, model, photos, path, cfg=cfg, sampler=belm(node, path))
    assert (rms(found - path.latents[-1]) < 1e-5).all()
    assert len(inputs) == STEPS - 1
    plain = rebuilt(host, tiny[0], photos, path, cfg=cfg, sampler=belm(node))
    assert (rms(plain - path.latents[-1]) > 1e-2).all()  # its first step is not that of the inversion


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_o_belm_combines_in_float64_whatever_the_model_computes_in(node, host, tiny, photos, dtype):
    """The same combinations written out in float64, with the slopes that the model gave; and in `dtype`."""
    model, seen, photo = as_half(host, tiny[0], dtype), [], first(photos)

    def keep(args):
        seen.append((args["input"] - args["denoised"]) / args["sigma"].view(-1, 1, 1, 1))
        return args["denoised"]

    watched = model.clone()
    watched.set_model_sampler_post_cfg_function(keep)
    path = inverted(node, host, watched, photo, "o-belm", cfg=3.0)
    assert len(seen) == STEPS and all(slope.dtype == torch.float32 for slope in seen)

    def combined(kind):
        s = [float(sigma) for sigma in path.sigmas.flip(0)]  # rising
        x = [path.latents[-1].to(kind)]
        x.append(x[0] + (s[1] - s[0]) * seen[0].to(kind))
        for i in range(1, STEPS):
            down, up = s[i] - s[i - 1], s[i + 1] - s[i]
            a, c = (up / down) ** 2, up * (1 + up / down)
            x.append(a * x[-2] + (1 - a) * x[-1] + c * seen[i].to(kind))
        return x[-1]

    exact, size = combined(torch.float64), rms(path.latents[0])
    assert (rms(path.latents[0] - exact) < 1e-5 * size).all()
    assert (rms(combined(dtype) - exact) > 1e-3 * size).all()
    found = rebuilt(host, model, photo, path, cfg=3.0, sampler=belm(node, path))
    assert (rms(found - path.latents[-1]) < 1e-4).all()


def test_implicit_is_honest_about_half_precision(node, host, tiny, photos):
    """The steps of such a model are rough at their last digits, which no solver gets below."""
    model, photo = as_half(host, tiny[0], torch.bfloat16), first(photos)
    path = inverted(node, host, model, photo, tolerance=1e-7, max_iterations=4)
    assert path.latents.dtype == torch.float32 and (path.residuals > 1e-7).any()
    assert path.calls == 4 * STEPS
    error = rms(rebuilt(host, model, photo, path) - path.latents[-1])
    assert (error < 30 * path.residuals.max(0).values).all() and (error < 0.2).all()


# --- NOISE and LATENT


@pytest.mark.parametrize("kind", ["photo", "empty"])
@pytest.mark.parametrize("scheduler, skipped", [("karras", 0), ("normal", 0), ("normal", 3)])
def test_sampling_from_the_noise_begins_where_the_trajectory_does(
    node, host, tiny, photos, kind, scheduler, skipped
):
    """Also where a schedule begins below the model's highest level, which the host noises in another way."""
    from comfy_extras import nodes_custom_sampler as custom

    sigmas = levels(host, tiny[0], scheduler=scheduler)[skipped:]
    _, noise, path = run(node, host, tiny[0], photos, "ddim", sigmas=sigmas).args
    model, inputs = counted(tiny[0])
    guider = host.comfy.samplers.CFGGuider(model)
    guider.set_conds(photos.positive, photos.negative)
    latent = {"samples": photos.latent} if kind == "photo" else empty_latent(batch=2)
    sampler = host.comfy.samplers.sampler_object("euler")
    call = custom.SamplerCustomAdvanced
    call = call.execute if hasattr(call, "execute") else call().sample
    with torch.inference_mode():
        call(noise, guider, sampler, sigmas, latent)
    assert torch.allclose(inputs[0], path.latents[0], atol=1e-5 * path.sigmas[0].item(), rtol=0)


def test_the_hosts_advanced_ksampler_makes_the_photo_of_the_latent(node, host, tiny, photos):
    latent, _, path = run(node, host, tiny[0], photos, **FINE).args
    with torch.inference_mode():
        conditions = photos.positive, photos.negative
        found = host.nodes.KSamplerAdvanced().sample(
            tiny[0], "disable", SEED, STEPS, 1.0, "euler", SCHEDULER, *conditions, latent, 0, 10000, "disable"
        )[0]["samples"]
    assert (rms(found - photos.latent) < 1e-3 * rms(photos.latent)).all()


@pytest.mark.parametrize("name", ["euler", "ddim"])
def test_samplers_of_both_names_take_the_inverted_steps(node, host, tiny, photos, name):
    path = inverted(node, host, tiny[0], photos, **FINE)
    found = rebuilt(host, tiny[0], photos, path, sampler=host.comfy.samplers.sampler_object(name))
    assert (rms(found - path.latents[-1]) < 1e-3).all()


def test_noise_for_a_latent_of_another_size_is_one_sentence(node, host, tiny, photos):
    noise = run(node, host, tiny[0], photos, "ddim").args[1]
    for latent, size in (
        (empty_latent(128, 160, 2), "2 x 20x16 cells"),
        (empty_latent(), "1 x 16x16 cells"),
        ({"samples": torch.zeros(2, 16, 16, 16)}, "16 channels"),
    ):
        with pytest.raises(ValueError, match=f"The latent is .*{size}.* trajectory is of 2 x 16x16 cells"):
            noise.generate_noise(latent)


# --- the BELM Sampler


def test_without_a_trajectory_o_belm_samples_what_euler_samples_with_many_steps(node, host, tiny):
    texts = SimpleNamespace(
        positive=conditioning(tiny[1], "a photo of a fox in the snow"), negative=conditioning(tiny[1], "")
    )
    latent = empty_latent()["samples"]
    noise, sigmas = host.comfy.sample.prepare_noise(latent, SEED), levels(host, tiny[0], 30)

    def picture(sampler):
        with torch.inference_mode():
            found = sampled(host, tiny[0], texts, noise, latent, cfg=3.0, sampler=sampler, sigmas=sigmas)
            return tiny[2].decode(tiny[0].model.process_latent_out(found))

    ours, eulers = picture(belm(node)), picture(host.comfy.samplers.sampler_object("euler"))
    assert (ours - eulers).abs().mean() < 0.03 and ours.std() > 0.1


def test_a_trajectory_of_two_is_sampled_as_a_batch_of_four(node, host, tiny, photos):
    path = inverted(node, host, tiny[0], photos, "o-belm", cfg=3.0)
    four = SimpleNamespace(positive=[[photos.positive[0][0].repeat(2, 1, 1), {}]], negative=photos.negative)
    with torch.inference_mode():
        start = tiny[0].model.process_latent_out(path.latents[0].float()).repeat(2, 1, 1, 1)
    found = sampled(host, tiny[0], four, torch.zeros_like(start), start, cfg=3.0, sampler=belm(node, path))
    assert (rms(found - path.latents[-1].repeat(2, 1, 1, 1)) < 5e-3).all()


def test_every_step_of_o_belm_is_reported_with_an_estimate_for_previews(node, host, tiny, photos):
    path, seen = inverted(node, host, tiny[0], photos, "o-belm"), []

    def callback(step, denoised, x, total):
        seen.append((step, total))
        assert denoised.shape == x.shape == (2, 4, 16, 16)

    rebuilt(host, tiny[0], photos, path, sampler=belm(node, path), callback=callback)
    assert [step for step, _ in seen] == sorted(step for step, _ in seen) and len(seen) >= STEPS - 1
    assert all(total == STEPS for _, total in seen)


def test_what_the_belm_sampler_cannot_follow_is_one_sentence(node, host, tiny, photos):
    path = inverted(node, host, tiny[0], photos, "o-belm")
    model, inputs = counted(tiny[0])

    def fails(match, trajectory=path, **given):
        with pytest.raises(ValueError, match=match):
            rebuilt(host, model, photos, trajectory, sampler=belm(node, trajectory), **given)

    for method in ("ddim", "implicit"):
        fails(
            f"was inverted with {method}, .* Invert with o-belm, or sample with euler",
            inverted(node, host, tiny[0], photos, method),
        )
    fails(
        "sampler runs 12 steps .* made for 10 steps .* Connect the same SIGMAS",
        sigmas=levels(host, tiny[0], 12),
    )
    fails("runs 10 steps .* Connect the same SIGMAS", sigmas=levels(host, tiny[0], scheduler="normal"))
    fails(
        "made with another model, .* Connect the model",
        Trajectory(**(vars(path) | {"model": "0123456789abcdef"})),
    )
    latent = empty_latent(batch=2)["samples"]
    noise = host.comfy.sample.prepare_noise(latent, SEED)
    with pytest.raises(
        ValueError, match="does not start from the noise .* Connect the NOISE of the inversion"
    ):
        sampled(host, model, photos, noise, latent, sampler=belm(node, path))
    for shape in ((1, 4, 16, 16), (3, 4, 16, 16), (2, 4, 16, 24)):
        zero = torch.zeros(shape)
        with pytest.raises(ValueError, match="The latent is .* trajectory is of 2 x 16x16 cells"):
            sampled(host, model, first(photos), zero, zero, sampler=belm(node, path))
    assert inputs == []


# --- other models


@pytest.mark.parametrize("kind", ["v-prediction", "SDXL"])
def test_other_models_are_inverted_by_all_methods(node, host, tiny, photos, xl, kind):
    model = xl if kind == "SDXL" else as_v_prediction(host, tiny[0])
    photo = of_sdxl(tiny) if kind == "SDXL" else first(photos)
    for cfg in (1.0, 3.0):
        ddim = inverted(node, host, model, photo, "ddim", cfg=cfg)
        path = inverted(node, host, model, photo, cfg=cfg, tolerance=1e-4, max_iterations=12)
        solved = (path.residuals <= 1e-4).all(0)
        errors = [rms(rebuilt(host, model, photo, p, cfg=cfg) - p.latents[-1]) for p in (path, ddim)]
        assert ddim.latents.isfinite().all() and path.latents.isfinite().all()
        assert (errors[0][solved] < 1e-2).all() and (errors[0] < 0.5 * errors[1]).all()
        exact = inverted(node, host, model, photo, "o-belm", cfg=cfg)
        back = rebuilt(host, model, photo, exact, cfg=cfg, sampler=belm(node, exact))
        assert (rms(back - exact.latents[-1]) < 1e-4).all()


# --- company


@pytest.mark.parametrize("method", METHODS)
def test_a_guide_of_this_pack_does_not_cut_the_inversions_schedule(node, host, tiny, photos, method):
    from guided_synthesis.nodes import painting_guide

    guide = painting_guide.PaintingGuide
    inputs = {
        e.id: e.default for e in guide.define_schema().inputs if getattr(e, "default", None) is not None
    }
    with torch.inference_mode():
        guided = guide.execute(tiny[0], tiny[2], scene_painting()[0], **inputs).args[0]
    (plain, calls), (model, guided_calls) = counted(tiny[0]), counted(guided)
    expected = inverted(node, host, plain, photos, method, cfg=3.0)
    found = inverted(node, host, model, photos, method, cfg=3.0)
    checks = STEPS if method == "implicit" else 0
    assert len(calls) == len(guided_calls) == found.calls + checks == expected.calls + checks
    assert torch.equal(found.latents, expected.latents)


@pytest.mark.parametrize("method", METHODS)
def test_patches_of_the_model_count(node, host, tiny, photos, method):
    """Here one that halves the estimate: the inversion sees it, and its noise is for it."""
    patched = tiny[0].clone()
    patched.set_model_sampler_post_cfg_function(lambda args: 0.5 * args["denoised"])
    assert not torch.allclose(
        inverted(node, host, patched, photos, method).latents[0],
        inverted(node, host, tiny[0], photos, method).latents[0],
        atol=0.1,
    )


def test_the_same_again_is_the_same_to_the_bit(node, host, tiny, photos):
    for method in METHODS:
        one, two = (
            inverted(node, host, tiny[0], photos, method, cfg=3.0, max_iterations=3) for _ in range(2)
        )
        assert torch.equal(one.latents, two.latents)


def test_a_fingerprint_stays_under_patches_and_tells_other_weights(host, tiny):
    from guided_synthesis.nodes.host.trajectories import fingerprint

    own = fingerprint(tiny[0])
    keys = ("out.2.weight", "input_blocks.0.0.weight", "middle_block.1.proj_in.weight")
    patched = tiny[0].clone()
    weights = tiny[0].model.state_dict()
    added = {f"diffusion_model.{key}": (torch.ones_like(weights[f"diffusion_model.{key}"]),) for key in keys}
    assert len(patched.add_patches(added, 0.5)) == 3
    management = host.comfy.model_management
    before = weights["diffusion_model.out.2.weight"].clone()
    with torch.inference_mode():
        management.load_models_gpu([patched], force_patch_weights=True, force_full_load=True)
        loaded = fingerprint(patched), fingerprint(tiny[0])
        management.load_models_gpu([tiny[0]], force_full_load=True)
    assert loaded == (own, own) and fingerprint(patched) == fingerprint(tiny[0]) == own
    assert torch.equal(tiny[0].model.state_dict()["diffusion_model.out.2.weight"], before)
    other = as_half(host, tiny[0], torch.float32)
    assert fingerprint(other) == own
    with torch.inference_mode():
        other.model.diffusion_model.out[2].weight += 1e-2
    assert fingerprint(other) != own


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", ["error", "interrupt", "in the callback"])
def test_an_end_in_the_middle_leaves_nothing_behind(node, host, tiny, photos, monkeypatch, method, how):
    management = host.comfy.model_management
    before, options = sample(host, tiny[0], tiny[1]), copy.deepcopy(tiny[0].model_options)
    kind = ZeroDivisionError if how == "error" else management.InterruptProcessingException
    model, calls = tiny[0].clone(), []

    def failing(apply_model, args):
        calls.append(1)
        if len(calls) == 4:
            if how == "error":
                raise kind
            management.interrupt_current_processing()
        return apply_model(args["input"], args["timestep"], **args["c"])

    def report(step, *_):
        if step == 2:
            raise kind

    if how == "in the callback":
        monkeypatch.setattr(node.Progress, "phase", lambda self, steps: report)
    else:
        model.set_model_unet_function_wrapper(failing)
    with pytest.raises(kind):
        run(node, host, model, photos, method, cfg=3.0)
    management.interrupt_current_processing(False)
    monkeypatch.undo()
    assert len(calls) in (0, 4) and tiny[0].model_options == options
    assert torch.equal(sample(host, tiny[0], tiny[1]), before)


# --- bad input


def test_what_cannot_be_inverted_is_one_sentence_before_any_model_call(node, host, tiny, photos):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    model, inputs = counted(tiny[0])
    sigmas = levels(host, model)

    def fails(match, model=model, **given):
        with pytest.raises(ValueError, match=match) as error:
            run(node, host, model, photos, **given)
        assert "\n" not in str(error.value)

    fails("latent is empty, .* VAE Encode", latent=empty_latent())
    for shape in ((1, 16, 16, 16), (1, 4, 1, 16, 16), (4, 16, 16)):
        fails(
            re.escape(f"latent has the shape {shape}") + ".* VAE of this model",
            latent={"samples": torch.ones(shape)},
        )
    fails("sigmas do not fall.* without Flip Sigmas", sigmas=sigmas.flip(0))
    fails("schedule ends at sigma .* ends at 0", sigmas=sigmas[:-1])
    fails("schedule starts at sigma .* raise denoise", sigmas=levels(host, model, 40)[-8:])
    fails("schedule has 1 steps; .* Raise steps", sigmas=torch.tensor([14.6, 0.0]))
    fails("schedule has 0 steps; .* Raise steps", sigmas=torch.tensor([]))
    fails("tolerance is 0, .* 0.0003", tolerance=0.0)
    fails("cfg is 7.5, .* connect negative, or set cfg to 1", cfg=7.5, negative=None)
    flow = ModelSamplingSD3().patch(model, 3.0)[0]
    fails("The model .* mixes picture and noise .* SD 1.x, SD 2.x or SDXL", model=flow, sigmas=sigmas)
    assert inputs == []


def test_a_tolerance_of_zero_is_refused_before_anything_runs(node):
    assert "tolerance is 0" in node.Invert.validate_inputs(tolerance=0.0)
    assert node.Invert.validate_inputs(tolerance=1e-4) is True and node.Invert.validate_inputs() is True


def test_cfg_1_needs_no_negative(node, host, tiny, photos):
    with_one = inverted(node, host, tiny[0], photos, "ddim")
    assert torch.equal(inverted(node, host, tiny[0], photos, "ddim", negative=None).latents, with_one.latents)
