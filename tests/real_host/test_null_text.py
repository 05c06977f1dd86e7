"""Null-text optimisation on the real host: the photo comes back, what it costs, company, other models, failures."""

import copy
import re
from types import SimpleNamespace

import pytest
import torch

from guided_synthesis.guidance.trajectory import Trajectory
from real_host.models import as_v_prediction, control_net
from real_host.sampling import SEED, conditioning, scene_painting
from tiny_sd import data
from tiny_sd.world import draw, make_spec

STEPS, CFG = 6, 7.5
SCENES = (200, 201)


@pytest.fixture(scope="module")
def node(host):
    from guided_synthesis.nodes import null_text

    return null_text


@pytest.fixture(scope="module")
def inner(node):
    from guided_synthesis.nodes.host import null_text

    return null_text


@pytest.fixture(scope="module")
def photos(host, tiny):
    """Return two pictures that the model has never seen, inverted at CFG 1, and their prompts."""
    model, clip, vae = tiny
    specs = [make_spec(data.HELD_OUT + scene) for scene in SCENES]
    images = torch.stack([torch.from_numpy(draw(spec).image.copy()) for spec in specs]).float() / 255
    positive = joined(clip, [spec.caption for spec in specs])
    with torch.inference_mode():
        clean = model.model.process_latent_in(vae.encode(images))
    return SimpleNamespace(
        positive=positive,
        negative=conditioning(clip, ""),
        trajectory=inverted(host, model, positive[0][0], clean),
    )


def joined(clip, texts):
    """Return CONDITIONING with a text for each picture."""
    return [[torch.cat([conditioning(clip, text)[0][0] for text in texts]), {}]]


def levels(host, model, steps=STEPS):
    return host.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)


@torch.inference_mode()
def inverted(host, model, context, clean, steps=STEPS):
    """DDIM inversion at CFG 1: the network sees the latent as it is at the level that the step goes to."""
    from guided_synthesis.nodes.host.gradients import denoise
    from guided_synthesis.nodes.host.trajectories import fingerprint

    host.comfy.model_management.load_models_gpu([model])
    sigmas, path = levels(host, model, steps), [clean]
    rising = sigmas.flip(0)
    for sigma, following in zip(rising[:-1], rising[1:], strict=True):
        x = path[0]
        seen = x * ((1 + following**2) / (1 + sigma**2)).sqrt()
        eps = (seen - denoise(model, seen, following.expand(len(x)), context)) / following
        path.insert(0, x + (following - sigma) * eps)
    return made_of(sigmas, torch.stack(path), fingerprint(model))


def made_of(sigmas, latents, model=""):
    return Trajectory(
        sigmas, latents, torch.full((len(sigmas) - 1, latents.shape[1]), torch.nan), "ddim", 1.0, 0, model
    )


def sampled(host, model, positive, negative, steps=STEPS, batch=1):
    """A trajectory that any model can follow: what the host samples at CFG 1 from noise."""
    seen, latent = [], torch.zeros(batch, 4, 8, 8)
    with torch.inference_mode():
        noise = host.comfy.sample.prepare_noise(latent, SEED)
        result = host.comfy.sample.sample_custom(
            model,
            noise,
            1.0,
            host.comfy.samplers.sampler_object("euler"),
            levels(host, model, steps),
            positive,
            negative,
            latent,
            callback=lambda step, denoised, x, total: seen.append(x.clone()),
            disable_pbar=True,
        )
        clean = model.model.process_latent_in(result)
    return made_of(levels(host, model, steps), torch.stack([*seen, clean]))


def first(trajectory, number=0):
    """The trajectory of one of its pictures."""
    return made_of(trajectory.sigmas, trajectory.latents[:, number : number + 1].clone(), trajectory.model)


def optimised(node, model, photos, trajectory=None, positive=None, negative=None, cfg=CFG, **widgets):
    """The node as a graph calls it, with its own defaults."""
    inputs = node.NullText.define_schema().inputs
    settings = {entry.id: entry.default for entry in inputs if getattr(entry, "default", None) is not None}
    settings |= {"cfg": cfg, "trajectory": trajectory or photos.trajectory} | widgets
    positive, negative = positive or photos.positive, negative or photos.negative
    with torch.inference_mode():
        return node.NullText.execute(model, positive, negative, **settings).args


def rebuilt(host, model, trajectory, positive, negative, cfg=CFG, **widgets):
    """What the host's own KSampler makes of the trajectory's start, in the model's space (B, C, h, w)."""
    settings = {"sampler_name": "euler", "scheduler": "normal"} | widgets
    with torch.inference_mode():
        start = {"samples": model.model.process_latent_out(trajectory.latents[0])}
        out = host.nodes.common_ksampler(
            model,
            seed=SEED,
            steps=trajectory.steps,
            cfg=cfg,
            positive=positive,
            negative=negative,
            latent=start,
            disable_noise=True,
            **settings,
        )
        return model.model.process_latent_in(out[0]["samples"])


def error(latents, trajectory):
    """Mean squared distance (B,) from the clean picture."""
    return (latents - trajectory.latents[-1]).square().mean((1, 2, 3))


def counting(model, calls):
    def wrapper(apply_model, args):
        calls.append((list(args["cond_or_uncond"]), args["c"]))
        return apply_model(args["input"], args["timestep"], **args["c"])

    counted = model.clone()
    counted.set_model_unet_function_wrapper(wrapper)
    return counted


def test_a_plain_ksampler_with_the_texts_follows_the_node_and_gives_the_photo_back(
    host, tiny, node, inner, photos, monkeypatch
):
    ends, own = [], inner.NullTextSampler.sample

    def noted(self, *args, **kwargs):
        ends.append(own(self, *args, **kwargs))
        return ends[-1]

    monkeypatch.setattr(inner.NullTextSampler, "sample", noted)
    negative, found, worst = optimised(node, tiny[0], photos)
    latents = rebuilt(host, tiny[0], found, photos.positive, negative)
    assert torch.allclose(latents, ends[0], atol=1e-3 * ends[0].std().item())
    plain = rebuilt(host, tiny[0], found, photos.positive, photos.negative)
    gained = 10 * (error(plain, found) / error(latents, found)).log10()
    assert (gained > 8).all()
    for name in ("ddim", "euler"):
        again = rebuilt(host, tiny[0], found, photos.positive, negative, sampler_name=name)
        assert torch.equal(again, latents)
    misses = (ends[0] - found.latents[-1]).square().mean((1, 2, 3)).sqrt()
    assert torch.allclose(found.residuals[-1], misses, rtol=1e-3)
    assert worst == found.residuals.max().item()


def test_the_trajectory_carries_the_texts_and_is_else_as_it_was(tiny, node, photos):
    negative, found, _ = optimised(node, tiny[0], photos, inner_steps=1)
    assert found.null_text.shape == (STEPS, 2, *photos.negative[0][0].shape[1:])
    for kept in (found.null_text, found.residuals):
        assert kept.dtype == torch.float32 and kept.device.type == "cpu"
    assert found.residuals.shape == (STEPS, 2)
    assert all(torch.equal(entry[0], text) for entry, text in zip(negative, found.null_text, strict=True))
    assert torch.equal(found.latents, photos.trajectory.latents)
    assert found.cfg == CFG and found.method == "ddim"
    assert (found.sigmas is photos.trajectory.sigmas) and found.model == photos.trajectory.model
    assert photos.trajectory.null_text is None


@pytest.mark.parametrize("scheduler", ["normal", "karras", "simple", "sgm_uniform", "ddim_uniform", "beta"])
@pytest.mark.parametrize("steps", [1, 10, 50])
def test_each_text_is_active_at_its_own_step_alone(host, tiny, inner, photos, scheduler, steps):
    sampling = tiny[0].get_model_object("model_sampling")
    sigmas = host.comfy.samplers.calculate_sigmas(sampling, scheduler, steps)
    ranges = inner.step_ranges(sigmas, sampling)
    texts = torch.zeros(len(sigmas) - 1, 1, 77, 64)
    entries = inner.scheduled(photos.negative, texts, ranges)
    conds = [{"model_conds": {}, "uuid": i, **settings} for i, (_, settings) in enumerate(entries)]
    host.comfy.samplers.calculate_start_end_timesteps(SimpleNamespace(model_sampling=sampling), conds)
    x = torch.zeros(1, 4, 8, 8)
    for index, sigma in enumerate(sigmas[:-1]):
        active = [host.comfy.samplers.get_area_and_mult(cond, x, sigma.reshape(1)) for cond in conds]
        assert [found.uuid for found in active if found is not None] == [index]


@pytest.mark.parametrize("inner_steps", [0, 3])
def test_calls_and_backward_passes_are_what_the_help_page_says(tiny, node, photos, monkeypatch, inner_steps):
    from guided_synthesis.guidance import null_text

    calls, gradients, own = [], [], null_text._gradient
    monkeypatch.setattr(null_text, "_gradient", lambda *args: gradients.append(1) or own(*args))
    optimised(node, counting(tiny[0], calls), photos, inner_steps=inner_steps)
    kinds = [kind for kind, _ in calls]
    assert kinds == ([[0]] + [[1]] * (inner_steps + 1)) * STEPS
    assert len(gradients) == inner_steps * STEPS


def test_a_stop_that_is_reached_costs_no_backward_pass(tiny, node, photos):
    calls = []
    found = optimised(node, counting(tiny[0], calls), photos, stop=100.0)[1]
    assert len(calls) == 2 * STEPS
    assert all(torch.equal(text, photos.negative[0][0].expand_as(text)) for text in found.null_text)


def test_no_inner_steps_are_the_negative_as_it_is(host, tiny, node, photos):
    negative, found, _ = optimised(node, tiny[0], photos, inner_steps=0)
    own = photos.negative[0][0]
    assert all(torch.equal(text, own.expand_as(text)) for text, _ in negative)
    plain, same = (rebuilt(host, tiny[0], found, photos.positive, n) for n in (photos.negative, negative))
    assert torch.allclose(plain, same, atol=1e-4 * plain.std().item())


def test_a_batch_finds_what_its_pictures_find_alone(tiny, node, photos):
    together = optimised(node, tiny[0], photos, inner_steps=3)[1]
    for number in range(2):
        one = [[photos.positive[0][0][number : number + 1], {}]]
        alone = optimised(
            node, tiny[0], photos, first(photos.trajectory, number), positive=one, inner_steps=3
        )[1]
        assert torch.allclose(alone.residuals[:, 0], together.residuals[:, number], rtol=2e-2)


def test_a_picture_that_is_done_is_not_moved_by_the_others(tiny, node, photos):
    """With a bound between the two pictures' first losses, one of them is done at once."""
    before = optimised(node, tiny[0], photos, inner_steps=0)[1]
    losses = before.residuals[0] ** 2 / (1 + before.sigmas[1] ** 2)
    done = int(losses.argmin())
    found = optimised(node, tiny[0], photos, stop=losses.mean().item(), inner_steps=2)[1]
    own = photos.negative[0][0][0]
    assert torch.equal(found.null_text[0, done], own)
    assert not torch.equal(found.null_text[0, 1 - done], own)


def test_the_source_prompt_as_negative_starts_and_ends_closer(host, tiny, node, photos):
    """Negative-prompt inversion."""
    errors = {}
    for name, negative in (("empty", photos.negative), ("source", photos.positive)):
        for steps in (0, 3):
            found = optimised(node, tiny[0], photos, negative=negative, inner_steps=steps)
            latents = rebuilt(host, tiny[0], photos.trajectory, photos.positive, found[0])
            errors[name, steps] = error(latents, photos.trajectory).mean().item()
    assert errors["source", 0] < 0.5 * errors["empty", 0]
    assert errors["source", 3] < min(errors["source", 0], errors["empty", 3])


def test_other_settings_of_the_negative_stay_and_its_times_and_words_go(tiny, node, inner, photos):
    from guided_synthesis.nodes.host.prompts import PROMPT_KEY

    own = {"pooled_output": torch.ones(1, 3), "strength": 0.5, "start_percent": 0.3, PROMPT_KEY: "words"}
    ranges = [(0.0, 0.4), (0.4, 1.0)]
    negative = inner.prepared([[photos.negative[0][0], own]], photos.positive)
    assert negative[0][1] == {"pooled_output": own["pooled_output"], "strength": 0.5}
    entries = inner.scheduled(negative, torch.zeros(2, 1, 77, 64), ranges)
    for (_, settings), times in zip(entries, ranges, strict=True):
        assert (settings["start_percent"], settings["end_percent"]) == times
        assert settings["pooled_output"] is own["pooled_output"] and settings["strength"] == 0.5
    assert own["start_percent"] == 0.3 and PROMPT_KEY in own


@pytest.mark.parametrize("both", [False, True])
def test_a_control_net_acts_in_the_search_as_in_the_sampler(host, tiny, node, photos, both):
    """Given to both prompts, or to the positive alone, from where the host gives it to the negative."""
    positive, negative = [[photos.positive[0][0][:1], {}]], photos.negative
    hint = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    net = control_net(host, tiny[0], 0.1)
    with torch.inference_mode():
        if both:
            apply = host.nodes.ControlNetApplyAdvanced().apply_controlnet
            positive, negative = apply(positive, negative, net, hint, 1.0, 0.0, 1.0)
        else:
            positive = host.nodes.ControlNetApply().apply_controlnet(positive, net, hint, 1.0)[0]
    one = first(photos.trajectory)
    entries, found, _ = optimised(node, tiny[0], photos, one, positive=positive, negative=negative)
    latents = rebuilt(host, tiny[0], one, positive, entries)
    assert torch.allclose(found.residuals[-1], error(latents, one).sqrt(), rtol=1e-2)
    bare = [[text, {k: v for k, v in settings.items() if "control" not in k}] for text, settings in entries]
    without = rebuilt(host, tiny[0], one, photos.positive, bare)
    assert not torch.allclose(without, latents, atol=0.1)
    assert not any("forward" in vars(module) for module in net.control_model.modules())


def test_what_patches_do_to_weights_and_guidance_acts_in_the_search(host, tiny, node, photos):
    """A weight patch as of a LoRA, and another pack's guidance: the KSampler with both lands where the node did."""
    patched, key = tiny[0].clone(), "diffusion_model.out.2.bias"
    shift = torch.full_like(tiny[0].model.state_dict()[key], 0.2)
    assert patched.add_patches({key: ("diff", (shift,))}, 1.0) == [key]
    patched.set_model_sampler_cfg_function(
        lambda args: args["uncond"] + 0.8 * args["cond_scale"] * (args["cond"] - args["uncond"])
    )
    patched.set_model_sampler_pre_cfg_function(
        lambda args: [args["conds_out"][0], 0.9 * args["conds_out"][1] + 0.1 * args["input"]]
    )
    one, positive = first(photos.trajectory), [[photos.positive[0][0][:1], {}]]
    negative, found, _ = optimised(node, patched, photos, one, positive=positive)
    other = optimised(node, tiny[0], photos, one, positive=positive)[1]
    assert not torch.allclose(found.null_text, other.null_text, atol=1e-2)
    latents = rebuilt(host, patched, one, positive, negative)
    misses = error(latents, one).sqrt()
    assert torch.allclose(found.residuals[-1], misses, rtol=1e-2)
    plain = rebuilt(host, patched, one, positive, photos.negative)
    assert (error(plain, one) > 3 * error(latents, one)).all()


def test_a_guide_in_the_graph_does_not_take_the_search_off_the_trajectory(tiny, node, photos):
    from guided_synthesis.nodes.low_pass_guide import LowPassGuide

    inputs = LowPassGuide.define_schema().inputs
    settings = {entry.id: entry.default for entry in inputs if hasattr(entry, "default")}
    with torch.inference_mode():
        guided = LowPassGuide.execute(tiny[0], tiny[2], scene_painting()[0], **settings).args[0]
    found, plain = (optimised(node, model, photos, inner_steps=1)[1] for model in (guided, tiny[0]))
    assert torch.equal(found.residuals, plain.residuals)


def test_sdxl_keeps_its_pooled_text_and_sizes(host, node, photos, xl):
    generator = torch.Generator().manual_seed(0)
    text, pooled = torch.randn(2, 77, 64, generator=generator), torch.randn(2, 64, generator=generator)
    positive, negative = ([[text[i : i + 1], {"pooled_output": pooled[i : i + 1]}]] for i in range(2))
    trajectory, calls = sampled(host, xl, positive, negative, batch=2), []
    plain = optimised(
        node, counting(xl, calls), photos, trajectory, positive=positive, negative=negative, inner_steps=0
    )[1]
    own = [c["y"] for kind, c in calls if kind == [1]][0]
    calls.clear()
    entries, found, _ = optimised(
        node, counting(xl, calls), photos, trajectory, positive=positive, negative=negative
    )
    assert all(torch.equal(c["y"], own) for kind, c in calls if kind == [1])
    assert torch.equal(own[0, :64], pooled[1])
    assert all(torch.equal(entry[1]["pooled_output"], pooled[1:]) for entry in entries)
    assert (found.residuals[:-1] < plain.residuals[:-1]).all()
    latents = rebuilt(host, xl, trajectory, positive, entries)
    assert torch.allclose(error(latents, trajectory).sqrt(), found.residuals[-1], rtol=1e-2, atol=1e-4)


def test_v_prediction(host, tiny, node, photos):
    """The estimate is all that counts, whatever the network predicts."""
    model, positive = as_v_prediction(host, tiny[0]), [[photos.positive[0][0][:1], {}]]
    trajectory = sampled(host, model, positive, photos.negative)
    before = optimised(node, model, photos, trajectory, positive=positive, inner_steps=0)[1]
    negative, found, _ = optimised(node, model, photos, trajectory, positive=positive)
    latents = rebuilt(host, model, trajectory, positive, negative)
    assert torch.allclose(error(latents, trajectory).sqrt(), found.residuals[-1], rtol=1e-2)
    assert found.residuals.square().mean() < 0.5 * before.residuals.square().mean()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(host, tiny, node, photos, dtype):
    from tiny_sd.host_model import CHECKPOINT

    with torch.inference_mode():
        options = {"dtype": dtype}
        model = host.comfy.sd.load_checkpoint_guess_config(
            str(CHECKPOINT), model_options=options, output_vae=False
        )[0]
    assert {weight.dtype for weight in model.model.diffusion_model.parameters()} == {dtype}
    one, positive = first(photos.trajectory), [[photos.positive[0][0][:1], {}]]
    one = made_of(one.sigmas, one.latents)
    before = optimised(node, model, photos, one, positive=positive, inner_steps=0)[1]
    negative, found, _ = optimised(node, model, photos, one, positive=positive, inner_steps=3)
    exact = optimised(node, tiny[0], photos, one, positive=positive, inner_steps=3)[1]
    assert found.null_text.dtype == torch.float32
    assert (found.residuals < before.residuals).all()
    assert found.residuals.square().mean() < 1.5 * exact.residuals.square().mean()
    plain = rebuilt(host, model, one, positive, photos.negative)
    assert (error(plain, one) > 3 * error(rebuilt(host, model, one, positive, negative), one)).all()


@pytest.mark.parametrize("interrupt", [False, True])
def test_an_error_inside_leaves_nothing_behind(host, tiny, node, photos, interrupt):
    model, management = tiny[0], host.comfy.model_management
    before = rebuilt(host, model, photos.trajectory, photos.positive, photos.negative)
    options = copy.deepcopy(model.model_options)
    kind = management.InterruptProcessingException if interrupt else ZeroDivisionError
    calls = []

    def failing(apply_model, args):
        calls.append(1)
        if len(calls) == 9:
            if not interrupt:
                raise kind
            management.interrupt_current_processing()
        return apply_model(args["input"], args["timestep"], **args["c"])

    patched = model.clone()
    patched.set_model_unet_function_wrapper(failing)
    with pytest.raises(kind):
        optimised(node, patched, photos)
    assert len(calls) == 9  # within an inner step
    assert model.model_options == options
    assert not any("forward" in vars(module) for module in model.model.diffusion_model.modules())
    assert not any(weight.requires_grad and weight.grad is not None for weight in model.model.parameters())
    assert torch.equal(rebuilt(host, model, photos.trajectory, photos.positive, photos.negative), before)


def test_it_leaves_the_model_and_its_inputs_as_they_were_and_repeats_itself(host, tiny, node, photos):
    before = rebuilt(host, tiny[0], photos.trajectory, photos.positive, photos.negative)
    texts = photos.negative[0][0].clone(), photos.positive[0][0].clone()
    runs = [optimised(node, tiny[0], photos, inner_steps=2)[1] for _ in range(2)]
    assert torch.equal(runs[0].null_text, runs[1].null_text)
    assert torch.equal(photos.negative[0][0], texts[0]) and torch.equal(photos.positive[0][0], texts[1])
    assert torch.equal(rebuilt(host, tiny[0], photos.trajectory, photos.positive, photos.negative), before)


def test_the_preview_shows_the_residuals(host, tiny, node, photos):
    settings = (CFG, photos.trajectory, 0, 0.1, 0.5, 0.0)
    with torch.inference_mode():
        shown = node.NullText.execute(tiny[0], photos.positive, photos.negative, *settings).ui.as_dict()
    assert len(shown["images"]) == 1


def test_progress_is_told_at_each_step(host, tiny, node, inner, photos, monkeypatch):
    told = []
    monkeypatch.setattr(
        inner.latent_preview,
        "prepare_callback",
        lambda model, steps: lambda step, denoised, x, total: told.append((steps, step, total)),
    )
    optimised(node, tiny[0], photos, inner_steps=0)
    assert told == [(STEPS, step, STEPS) for step in range(STEPS)]


def test_out_of_memory_says_what_to_do(host, tiny, node, inner, photos, monkeypatch):
    kind = host.comfy.model_management.OOM_EXCEPTION

    def greedy(*_):
        raise kind("CUDA out of memory")

    monkeypatch.setattr(inner._Step, "estimate", greedy)
    with pytest.raises(kind, match="invert a smaller picture"):
        optimised(node, tiny[0], photos)


def test_what_does_not_fit_is_one_sentence_before_anything_runs(host, tiny, node, photos):
    calls = []
    area = {"area": (8, 8, 0, 0), "strength": 1.0}
    bounds = {"mask": torch.ones(1, 64, 64), "set_area_to_bounds": True}
    foreign = made_of(photos.trajectory.sigmas, photos.trajectory.latents, "0123456789abcdef")
    sigmas = photos.trajectory.sigmas.clone()
    sigmas[-2], sigmas[-3] = 0.01, 0.02
    low = made_of(sigmas, photos.trajectory.latents, photos.trajectory.model)
    for change, sentence in (
        ({"trajectory": foreign}, "The trajectory was made with another model"),
        ({"cfg": 1.0}, "cfg is 1; up to 1 the negative does not count"),
        ({"cfg": 0.0}, "cfg is 0; up to 1"),
        ({"negative": photos.negative * 2}, "negative has 2 conditions, but one text is fitted"),
        ({"positive": [[photos.positive[0][0], area]]}, "positive has a condition for an area"),
        ({"positive": [[photos.positive[0][0], bounds]]}, "positive has a condition for an area"),
        (
            {"trajectory": low},
            "the noise levels 0.02 and 0.01, which start and end percent cannot tell apart",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            optimised(node, counting(tiny[0], calls), photos, **change)
    other = SimpleNamespace(model=SimpleNamespace(diffusion_model=torch.nn.Linear(1, 1)))
    with pytest.raises(ValueError, match="families SD 1.x, SD 2.x or SDXL"):
        optimised(node, other, photos)
    assert not calls


def test_everything_has_a_tooltip_and_the_help_page_names_it(node):
    from comfy_host.places import ROOT

    schema = node.NullText.define_schema()
    page = (ROOT / "js" / "docs" / schema.node_id / "en.md").read_text()
    for entry in schema.inputs:
        assert entry.tooltip and f"**{entry.id}**" in page
    for entry in schema.outputs:
        assert entry.tooltip and f"**{entry.display_name}**" in page
