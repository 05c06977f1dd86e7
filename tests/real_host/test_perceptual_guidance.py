"""Perceptual Guidance on the real host: parity, the equation, gradients, masks, calls, company, failures."""

import gc
import re
import urllib.error
import weakref

import numpy as np
import pytest
import torch

from imagenet.weights import install
from real_host.models import as_v_prediction, control_net
from real_host.sampling import SEED, STEPS, conditioning, empty_latent, sample, scene_painting
from tiny_sd.world import draw, make_spec

TEXT = "a photo of a fox"
LIGHT = {"net": "alex", "decoder": "linear", "gradient": "to x0", "strength": 0.3}


@pytest.fixture(scope="module")
def node(host):
    from guided_synthesis.nodes import perceptual_guidance

    return perceptual_guidance


@pytest.fixture(scope="module")
def inner(node):
    from guided_synthesis.nodes.host import perceptual_guidance

    return perceptual_guidance


@pytest.fixture(scope="module", autouse=True)
def weights(host, tmp_path_factory):
    """A folder `models/lpips` with real AlexNet and VGG16; torchvision's own cache is empty."""
    folder, folders = tmp_path_factory.mktemp("lpips"), host.folder_paths
    install(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(folders.folder_names_and_paths, "lpips", ([str(folder)], set()))
        patch.setattr(folders, "models_dir", str(folder))
        patch.setenv("TORCH_HOME", str(folder / "torch"))
        folders.filename_list_cache.pop("lpips", None)
        yield folder
    folders.filename_list_cache.pop("lpips", None)


@pytest.fixture(scope="module")
def reference():
    return scene_painting()[0]


def execute(node, tiny, reference, **widgets):
    """The node as a graph calls it, with its own defaults but for the lightest settings."""
    inputs = node.PerceptualGuidance.define_schema().inputs
    settings = {entry.id: entry.default for entry in inputs if getattr(entry, "default", None) is not None}
    settings |= LIGHT | widgets
    model, vae = settings.pop("model", tiny[0]), settings.pop("vae", tiny[2])
    with torch.inference_mode():
        return node.PerceptualGuidance.execute(model, vae, reference, **settings)


def guide(node, tiny, reference, **widgets):
    return execute(node, tiny, reference, **widgets).args[0]


def watched(model, seen):
    """A clone of `model` whose post-cfg function notes what it gets in `seen`."""

    def note(args):
        seen.append(args | {"denoised": args["denoised"].detach().clone()})
        return args["denoised"]

    clone = model.clone()
    clone.set_model_sampler_post_cfg_function(note)
    return clone


def between(node, tiny, reference, **widgets):
    """The guided model, and what the host says before and after the guidance, filled as it runs."""
    before, after = [], []
    model = watched(widgets.pop("model", tiny[0]), before)
    return watched(guide(node, tiny, reference, model=model, **widgets), after), before, after


def counting(model, calls):
    """A clone of `model` that notes the number of latents in each call of its UNet."""

    def wrapper(apply_model, args):
        calls.append(args["input"].shape[0])
        return apply_model(args["input"], args["timestep"], **args["c"])

    clone = model.clone()
    clone.set_model_unet_function_wrapper(wrapper)
    return clone


@pytest.fixture
def opened(monkeypatch, inner):
    """The decoders and LPIPS networks that are opened, and how often the latter are called."""
    from contextlib import contextmanager

    decoders, networks, calls = [], [], []
    open_decoder, open_lpips = inner.open_decoder, inner.open_lpips

    @contextmanager
    def decoding(*args):
        with open_decoder(*args) as decoder:
            decoders.append(decoder)
            yield decoder

    @contextmanager
    def comparing(net):
        with open_lpips(net) as distance:
            networks.append(distance)

            def counted(first, second):
                calls.append((first.shape, second.shape))
                return distance(first, second)

            yield counted

    monkeypatch.setattr(inner, "open_decoder", decoding)
    monkeypatch.setattr(inner, "open_lpips", comparing)
    return decoders, networks, calls


def distances(tiny, latents, reference):
    """LPIPS (AlexNet) between the pictures of `latents` and the reference: (B,)."""
    from guided_synthesis.nodes.host.perceptual import open_lpips

    with torch.inference_mode(), open_lpips("alex") as distance:
        return distance(tiny[2].decode(latents).movedim(-1, 1), reference.movedim(-1, 1))


def test_strength_zero_returns_the_very_model(host, tiny, node, reference):
    off = execute(node, tiny, reference, strength=0.0)
    assert off.args[0] is tiny[0]
    assert off.ui["text"] == ("Off: strength is 0.",)  # not what an earlier run said


def test_a_range_without_a_step_is_the_host_to_the_bit(host, tiny, node, reference, opened):
    with torch.inference_mode():
        latent = {"samples": tiny[2].encode(reference)}
    early = guide(node, tiny, reference, end_percent=0.3)
    plain = sample(host, tiny[0], tiny[1], latent=latent, denoise=0.4)
    assert torch.equal(sample(host, early, tiny[1], latent=latent, denoise=0.4), plain)
    assert opened == ([], [], [])


def test_steps_that_are_not_chosen_are_the_hosts_to_the_bit(host, tiny, node, reference):
    model, before, after = between(node, tiny, reference, every=3, start_percent=0.1, end_percent=0.9)
    sample(host, model, tiny[1])
    moved = [not torch.equal(a["denoised"], b["denoised"]) for a, b in zip(before, after, strict=True)]
    sampling = tiny[0].get_model_object("model_sampling")
    first, last = (sampling.percent_to_sigma(percent) for percent in (0.1, 0.9))
    inside = [i for i, args in enumerate(before) if last < args["sigma"].item() <= first]
    assert [i for i, is_moved in enumerate(moved) if is_moved] == inside[::3]
    assert 2 <= len(inside[::3]) < len(inside) < STEPS


@pytest.mark.parametrize("decoder", ["vae", "taesd", "linear"])
def test_a_step_is_the_equation_in_four_lines(host, tiny, node, inner, reference, decoder):
    """The gradient by the networks of the node, the rest in float64."""
    from tiny_sd.host_model import install_taesd

    install_taesd()
    strength, cfg, text = 0.4, 3.0, TEXT
    settings = {"decoder": decoder, "strength": strength, "start_percent": 0.2, "end_percent": 0.5}
    model, before, after = between(node, tiny, reference, **settings)
    sample(host, model, tiny[1], text, cfg=cfg)
    index = next(
        i
        for i, (a, b) in enumerate(zip(before, after, strict=True))
        if not torch.equal(a["denoised"], b["denoised"])
    )
    args, y = before[index], reference.movedim(-1, 1)
    d, c, u = (args[key].double() for key in ("denoised", "cond_denoised", "uncond_denoised"))
    with torch.inference_mode(), inner.open_decoder(decoder, tiny[2], tiny[0]) as decode:
        if decoder == "linear":
            decode = decode.around(inner.Encoder(tiny[2], tiny[0])(y), y)
        with inner.open_lpips("alex") as distance, inner.differentiable():
            leaf = d.float().clone().requires_grad_()
            picture = decode(leaf)
            scale = {16: 4, 128: 1}[picture.shape[-1]]  # LPIPS wants 64 px
            target = torch.nn.functional.interpolate(y, picture.shape[-2:], mode="area")
            pair = (
                torch.nn.functional.interpolate(p, scale_factor=scale, mode="bilinear")
                for p in (picture, target)
            )
            g = torch.autograd.grad(distance(*pair).sum(), leaf)[0].double()
    size = lambda t: t.pow(2).mean().sqrt()  # noqa: E731
    expected = d - strength * cfg * size(c - u) / size(g) * g
    moved = after[index]["denoised"].double()
    assert (moved - expected).norm() < 1e-3 * (moved - d).norm() and (moved - d).norm() > 0


def test_at_cfg_1_the_noise_stands_for_the_pull_of_the_prompt(host, tiny, node, reference):
    from guided_synthesis.guidance.perceptual import PULL_OF_NOISE

    model, before, after = between(node, tiny, reference, strength=0.4)
    sample(host, model, tiny[1], cfg=1.0)
    assert before[0]["uncond"] is None
    for a, b in zip(before, after, strict=True):
        move, noise = a["denoised"] - b["denoised"], a["input"] - a["denoised"]
        assert move.square().mean().sqrt().item() == pytest.approx(
            0.4 * PULL_OF_NOISE * noise.square().mean().sqrt().item(), rel=1e-3
        )


@pytest.mark.parametrize("gradient", ["to x0", "through model"])
def test_the_gradient_is_the_slope_of_the_loss(host, tiny, node, inner, reference, monkeypatch, gradient):
    """Against finite differences: of the estimate, or of the noisy latent through UNet, guidance and decoder."""
    own, found = inner._Run.gradient, []

    def checked(run, args, masks):
        result = own(run, args, masks)
        options = {k: v for k, v in args["model_options"].items() if k != "sampler_post_cfg_function"}

        def loss(way):
            denoised = args["denoised"].detach() + way
            if gradient == "through model":
                denoised = host.comfy.samplers.sampling_function(
                    args["model"],
                    args["input"].detach() + way,
                    args["sigma"],
                    args["uncond"],
                    args["cond"],
                    args["cond_scale"],
                    options,
                )
            return run.compare(denoised.clone(), masks).sum().item()

        with torch.no_grad():
            way = result / result.norm() * 0.003 * args["denoised"].norm()
            slope = (loss(way) - loss(-way)) / (2 * way.norm())
        found.append((slope.item(), result.norm().item()))
        return result

    monkeypatch.setattr(inner._Run, "gradient", checked)
    settings = {"gradient": gradient, "start_percent": 0.2, "end_percent": 0.7}
    sample(host, guide(node, tiny, reference, **settings), tiny[1])
    assert len(found) >= 2
    for slope, norm in found:
        assert slope == pytest.approx(norm, rel=0.1)


def test_more_strength_comes_closer(host, tiny, node, reference):
    found = [
        distances(tiny, sample(host, guide(node, tiny, reference, strength=s), tiny[1]), reference).item()
        for s in (0.0, 0.3, 1.0)
    ]
    assert found == sorted(found, reverse=True) and found[-1] < 0.97 * found[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient": "through model"},
        {"step_rule": "rms clip", "gradient": "through model"},
        {"decoder": "vae", "net": "vgg", "every": 2},
    ],
)
def test_every_way_comes_closer(host, tiny, node, reference, settings):
    plain = distances(tiny, sample(host, tiny[0], tiny[1]), reference).item()
    model = guide(node, tiny, reference, strength=1.0, **settings)
    assert distances(tiny, sample(host, model, tiny[1]), reference).item() < 0.97 * plain


def test_the_gradient_through_the_model_is_another_one_and_checkpointed(host, tiny, node, reference):
    """The blocks run once more for the backward pass, so nothing of them is kept."""
    seen, spied = [], tiny[0].clone()

    def spy(q, k, v, extra_options):
        seen.append(torch.is_grad_enabled())
        return q, k, v

    spied.set_model_attn2_patch(spy)
    found = {}
    for gradient in ("to x0", "through model"):
        seen.clear()
        model = guide(node, tiny, reference, model=spied, gradient=gradient, end_percent=0.5)
        found[gradient] = sample(host, model, tiny[1]), seen.count(False), seen.count(True)
    assert not torch.allclose(found["to x0"][0], found["through model"][0], atol=1e-2)
    calls = found["to x0"][1]
    guided = calls // STEPS * round((calls - found["through model"][1]) / (calls / STEPS))
    assert found["to x0"][2] == 0 and guided > 0
    assert found["through model"][2] == 2 * guided  # forwards, and again on the way back


def test_a_masked_part_keeps_the_hosts_estimate_to_the_bit(host, tiny, node, reference):
    mask = torch.zeros(1, 128, 128)
    mask[:, :, 64:] = 1
    model, before, after = between(node, tiny, reference, mask=mask)
    sample(host, model, tiny[1])
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a["denoised"][..., :8], b["denoised"][..., :8])
        assert not torch.equal(a["denoised"][..., 8:], b["denoised"][..., 8:])


def test_a_mask_of_the_whole_picture_is_none(host, tiny, node, reference):
    whole = sample(host, guide(node, tiny, reference, mask=torch.ones(1, 32, 32)), tiny[1])
    assert torch.allclose(whole, sample(host, guide(node, tiny, reference), tiny[1]), atol=1e-2)


@pytest.mark.parametrize("every, source, guided", [(1, False, 8), (3, False, 3), (1, True, 8), (3, True, 3)])
def test_calls_are_what_the_help_page_says(host, tiny, node, reference, opened, every, source, guided):
    calls, (decoders, networks, compared) = [], opened
    source = conditioning(tiny[1], "a photo of a cat") if source else None
    model = guide(
        node,
        tiny,
        reference,
        model=counting(tiny[0], calls),
        every=every,
        source=source,
        auto_mask=bool(source),
    )
    sample(host, model, tiny[1])
    assert len(decoders) == len(networks) == 1
    assert decoders[0].calls == len(compared) == guided
    assert len(calls) == STEPS + (guided if source else 0)
    assert sum(calls) == 2 * STEPS + (guided if source else 0)


def test_the_text_guidance_guider_tells_its_estimates_so_no_call_is_made(
    host, tiny, node, inner, reference, monkeypatch
):
    """A guider that tells: the source's estimate is the one that it says, whatever is connected to source."""
    from guided_synthesis.nodes.host.predictions import telling

    told, found = [], []

    class Telling(host.comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            pair = torch.zeros_like(x), torch.ones_like(x)
            told.append(pair)
            return super().predict_noise(x, timestep, telling(model_options, *pair), seed)

    own = inner.EditRegion.untouched
    monkeypatch.setattr(
        inner.EditRegion, "untouched", lambda self, *pair: found.append(pair) or own(self, *pair)
    )
    calls = []
    model = guide(node, tiny, reference, model=counting(tiny[0], calls), auto_mask=True)
    _custom(host, tiny, Telling(model), cfg=3.0)
    assert len(found) == len(told) == len(calls) == STEPS
    for a, b in zip(found, told, strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@pytest.mark.parametrize("gradient", ["to x0", "through model"])
def test_text_guidance_and_its_automatic_mask_take_no_call_more(
    host, tiny, node, reference, opened, gradient
):
    from guided_synthesis.nodes.text_guidance import TextGuidanceGuider

    texts = [conditioning(tiny[1], text) for text in ("a photo of a cat", TEXT, "")]
    inputs = TextGuidanceGuider.define_schema().inputs
    widgets = {e.id: e.default for e in inputs if getattr(e, "default", None) is not None} | {
        "end_percent": 1.0
    }
    calls = []
    model = guide(node, tiny, reference, model=counting(tiny[0], calls), auto_mask=True, gradient=gradient)
    latents = _custom(host, tiny, TextGuidanceGuider.execute(model, *texts, **widgets).args[0])
    assert latents.isfinite().all() and opened[0][0].calls == STEPS
    assert calls == [3] * STEPS


def _custom(host, tiny, guider, cfg=None, text=TEXT):
    """Run `guider` as SamplerCustomAdvanced does."""
    if cfg is not None:
        guider.set_conds(conditioning(tiny[1], text), conditioning(tiny[1], ""))
        guider.set_cfg(cfg)
    sampling = guider.model_patcher.get_model_object("model_sampling")
    sigmas = host.comfy.samplers.calculate_sigmas(sampling, "normal", STEPS)
    latent = empty_latent()["samples"]
    with torch.inference_mode():
        noise = host.comfy.sample.prepare_noise(latent, SEED)
        return guider.sample(noise, latent, host.comfy.samplers.sampler_object("euler"), sigmas, seed=SEED)


def test_the_automatic_mask_covers_a_swapped_object(host, tiny, node, inner, monkeypatch):
    """Drawn scenes, noised; source and edit differ in the noun of one object, whose true mask is known."""
    own, found = inner.EditRegion.untouched, []
    monkeypatch.setattr(
        inner.EditRegion, "untouched", lambda self, *pair: found.append(own(self, *pair)) or found[-1]
    )
    hits = edits = objects = 0
    for seed in (300_000, 300_001, 300_002, 300_003):
        scene = draw(make_spec(seed, things=1))
        image = torch.from_numpy(scene.image.copy()).float()[None] / 255
        before = scene.spec.caption
        after = before.replace(scene.spec.things[0].words, "a cat")
        with torch.inference_mode():
            latent = {"samples": tiny[2].encode(image)}
        model = guide(node, tiny, image, auto_mask=True, source=conditioning(tiny[1], before))
        sample(host, model, tiny[1], after, latent=latent, denoise=0.5)
        edit = 1 - found[-1][0, 0]
        thing = (
            torch.from_numpy(scene.masks[0].astype(np.float32)).unflatten(0, (16, 8)).unflatten(2, (16, 8))
        )
        thing = thing.mean((1, 3)) > 0.5
        hits, edits, objects = hits + (edit * thing).sum(), edits + edit.sum(), objects + thing.sum()
    assert hits / objects > 0.6 and hits / edits > 0.6, (hits / objects, hits / edits)


def test_what_the_automatic_mask_frees_stays_as_the_model_wants_it_to_the_bit(
    host, tiny, node, inner, reference, monkeypatch
):
    own, found = inner.EditRegion.untouched, []
    monkeypatch.setattr(
        inner.EditRegion, "untouched", lambda self, *pair: found.append(own(self, *pair)) or found[-1]
    )
    source = conditioning(tiny[1], "a photo of a cat on a beach")
    widgets = {"auto_mask": True, "auto_mask_threshold": 0.8, "gradient": "to x0"}
    model, before, after = between(node, tiny, reference, source=source, **widgets)
    sample(host, model, tiny[1], TEXT)
    assert len(found) == len(before) == len(after) == STEPS
    for untouched, plain, guided in zip(found, before, after, strict=True):
        same = (guided["denoised"] == plain["denoised"]).all(1, keepdim=True)
        assert 0 < untouched.mean() < 1
        assert same[untouched == 0].all() and not same[untouched == 1].any()


def test_the_source_beside_the_hosts_conditions_changes_nothing_else(host, tiny, node, reference):
    """With hardly any strength a run with a source is the plain run, with areas and ControlNet as well."""
    clip = tiny[1]
    area = [[entry[0], entry[1] | {"area": (8, 8, 4, 4)}] for entry in conditioning(clip, "a cat")]
    with torch.inference_mode():
        control = control_net(host, tiny[0]).set_cond_hint(torch.rand(1, 3, 128, 128), 0.5)
    positive = [
        [t, s | {"control": control, "control_apply_to_uncond": True}] for t, s in conditioning(clip, TEXT)
    ]
    positive += area
    source = conditioning(clip, "a photo of a panda")
    plain = sample(host, tiny[0], clip, positive=positive)
    model = guide(node, tiny, reference, strength=1e-8, auto_mask=True, source=source)
    assert torch.allclose(sample(host, model, clip, positive=positive), plain, atol=1e-4)
    strong = guide(node, tiny, reference, strength=1.0, auto_mask=True, source=source)
    assert not torch.allclose(sample(host, strong, clip, positive=positive), plain, atol=1e-2)


def test_a_batch_is_what_its_pictures_are_alone(host, tiny, node, reference, monkeypatch):
    references = torch.cat([reference, reference.flip(2)])
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    source = conditioning(tiny[1], "a photo of a cat")
    monkeypatch.setattr(host.comfy.sample, "prepare_noise", lambda latent, *_: noise[: len(latent)])
    model = guide(node, tiny, references, auto_mask=True, source=source)
    both = sample(host, model, tiny[1], latent=empty_latent(batch=2))
    for i in range(2):
        monkeypatch.setattr(host.comfy.sample, "prepare_noise", lambda *_, i=i: noise[i : i + 1])
        model = guide(node, tiny, references[i : i + 1], auto_mask=True, source=source)
        assert torch.allclose(both[i], sample(host, model, tiny[1])[0], atol=3e-2)


def test_every_sampler_of_the_host_is_guided(host, tiny, node, reference, opened):
    settings = {"steps": 4, "cfg": 1.0}
    names = [name for name in host.comfy.samplers.KSampler.SAMPLERS if not name.endswith("_gpu")]
    for name in names:
        opened[2].clear()
        model = guide(node, tiny, reference, every=2)
        latents = sample(host, model, tiny[1], sampler_name=name, **settings)
        assert torch.isfinite(latents).all() and opened[2], name


@pytest.mark.parametrize("gradient", ["to x0", "through model"])
def test_other_guiders_of_the_host(host, tiny, node, reference, opened, gradient):
    from comfy_extras.nodes_custom_sampler import Guider_Basic, Guider_DualCFG
    from comfy_extras.nodes_perpneg import Guider_PerpNeg

    model, clip = guide(node, tiny, reference, every=4, gradient=gradient), tiny[1]
    positive, negative = conditioning(clip, TEXT), conditioning(clip, "")
    basic, dual, perp = Guider_Basic(model), Guider_DualCFG(model), Guider_PerpNeg(model)
    basic.set_conds(positive)
    dual.set_conds(positive, conditioning(clip, "a panda"), negative)
    dual.set_cfg(3.0, 2.0)
    perp.set_conds(positive, conditioning(clip, "a cat"), negative)
    perp.set_cfg(3.0, 1.0)
    for guider in (basic, dual, perp):
        opened[2].clear()
        assert torch.isfinite(_custom(host, tiny, guider)).all() and len(opened[2]) == 2


def as_flow(host, model):
    """`model` sampled as a flow model: what comes out is no picture, but the arithmetic is that of SD 3."""
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    return ModelSamplingSD3().patch(model, 3.0)[0]


@pytest.mark.parametrize("gradient", ["to x0", "through model"])
@pytest.mark.parametrize("kind", ["v-prediction", "flow"])
def test_other_kinds_of_models_come_closer(host, tiny, node, reference, kind, gradient):
    base = as_v_prediction(host, tiny[0]) if kind == "v-prediction" else as_flow(host, tiny[0])
    model, before, after = between(node, tiny, reference, model=base, gradient=gradient)
    latents = sample(host, model, tiny[1])
    assert torch.isfinite(latents).all() and len(before) == STEPS
    for a, b in zip(before, after, strict=True):
        pull = a["cond_scale"] * (a["cond_denoised"] - a["uncond_denoised"]).detach()
        move = a["denoised"] - b["denoised"]
        assert move.norm() / pull.norm() == pytest.approx(0.3, rel=1e-3)


@pytest.mark.parametrize("gradient", ["to x0", "through model"])
def test_sdxl_is_guided_with_its_source_too(host, tiny, node, xl, reference, opened, gradient):
    def text(seed):
        generator = torch.Generator().manual_seed(seed)
        pooled = {"pooled_output": torch.randn(1, 64, generator=generator)}
        return [[torch.randn(1, 77, 64, generator=generator), pooled]]

    model = guide(node, tiny, reference, model=xl, auto_mask=True, source=text(1), gradient=gradient, every=4)
    with torch.inference_mode():
        out = host.nodes.common_ksampler(
            model, SEED, 4, 3.0, "euler", "normal", text(2), text(3), empty_latent()
        )[0]["samples"]
    assert torch.isfinite(out).all() and opened[0][0].calls == 1


@pytest.mark.parametrize("height, width", [(72, 136), (200, 64)])
def test_any_size_in_steps_of_eight_with_a_reference_of_another_size(host, tiny, node, height, width):
    picture = torch.rand(1, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    reference = torch.nn.functional.interpolate(picture, (3 * height, 3 * width)).movedim(1, -1)
    latent, mask = empty_latent(height, width), torch.ones(1, height // 2, width // 2)
    settings = {"mask": mask, "strength": 1.0, "gradient": "through model"}
    plain = sample(host, tiny[0], tiny[1], latent=latent)
    found = sample(host, guide(node, tiny, reference, **settings), tiny[1], latent=latent)
    assert found.shape == plain.shape and found.isfinite().all()
    assert not torch.allclose(found, plain, atol=0.1)


def test_it_composes_with_restarts_and_itself(host, tiny, node, reference, opened):
    from guided_synthesis.nodes.low_pass_guide import LowPassGuide

    inputs = LowPassGuide.define_schema().inputs
    widgets = {entry.id: entry.default for entry in inputs if hasattr(entry, "default")}
    with torch.inference_mode():
        low = LowPassGuide.execute(tiny[0], tiny[2], reference, **widgets).args[0]
    sample(host, guide(node, tiny, reference, model=low), tiny[1])
    assert len(opened[0]) == 1 and opened[0][0].calls == STEPS
    twice = guide(node, tiny, reference, model=guide(node, tiny, reference))
    once = sample(host, guide(node, tiny, reference), tiny[1])
    assert not torch.allclose(sample(host, twice, tiny[1]), once, atol=1e-2)


def test_two_of_them_through_the_model_say_what_to_do(host, tiny, node, reference):
    first = guide(node, tiny, reference, gradient="through model")
    second = guide(node, tiny, reference, model=first, gradient="through model")
    with pytest.raises(ValueError, match="Choose the gradient to x0"):
        sample(host, second, tiny[1])


def test_the_same_seed_gives_the_same_picture_and_the_model_stays_as_it_was(host, tiny, node, reference):
    before = sample(host, tiny[0], tiny[1])
    guided = guide(node, tiny, reference, auto_mask=True, source=conditioning(tiny[1], "a cat"))
    first = sample(host, guided, tiny[1])
    clone = guided.clone()
    clone.model_options["transformer_options"]["foreign"] = 1
    assert torch.equal(sample(host, guided, tiny[1]), first)
    assert torch.equal(sample(host, clone, tiny[1]), first)
    assert torch.equal(sample(host, tiny[0], tiny[1]), before)


@pytest.mark.parametrize("gradient", ["to x0", "through model"])
@pytest.mark.parametrize("how", ["interrupt", "error"])
def test_a_run_that_ends_early_leaves_nothing_behind(
    host, tiny, node, inner, reference, opened, monkeypatch, how, gradient
):
    runs, own, calls = [], inner._Run.__init__, []

    def noted(run, *args):
        own(run, *args)
        runs.append(weakref.ref(run))

    monkeypatch.setattr(inner._Run, "__init__", noted)
    before, management = sample(host, tiny[0], tiny[1]), host.comfy.model_management

    def end(apply_model, args):
        calls.append(1)
        if len(calls) == 4:
            if how == "error":
                raise KeyError("foreign")
            management.interrupt_current_processing()
        return apply_model(args["input"], args["timestep"], **args["c"])

    ended = tiny[0].clone()
    ended.set_model_unet_function_wrapper(end)
    source = conditioning(tiny[1], "a cat")
    model = guide(node, tiny, reference, model=ended, auto_mask=True, source=source, gradient=gradient)
    kind = KeyError if how == "error" else management.InterruptProcessingException
    with pytest.raises(kind):
        sample(host, model, tiny[1])
    assert len(calls) == 4 and len(runs) == 1 and opened[1]
    assert not hasattr(opened[1][0], "_patcher") and not hasattr(opened[0][0].exact, "_patcher")
    network = tiny[0].model.diffusion_model
    assert not any("forward" in module.__dict__ for module in network.modules())
    gc.collect()
    assert runs[0]() is None
    assert torch.equal(sample(host, tiny[0], tiny[1]), before)


def test_out_of_memory_says_what_to_choose(host, tiny, node, inner, reference, monkeypatch):
    kind = host.comfy.model_management.OOM_EXCEPTION

    def greedy(*_):
        raise kind("CUDA out of memory")

    monkeypatch.setattr(inner.PerceptualObjective, "__call__", greedy)
    with pytest.raises(kind, match="choose the gradient to x0, the decoder taesd or linear"):
        sample(host, guide(node, tiny, reference), tiny[1])


@pytest.mark.parametrize(
    "where, sentence", [("model", "Start ComfyUI with --fp32-unet"), ("vae", "--fp32-vae")]
)
def test_numbers_that_are_not_finite_end_the_run_with_a_sentence(
    host, tiny, node, inner, reference, monkeypatch, where, sentence
):
    def broken(args):
        return args["denoised"] * float("nan")

    model = tiny[0].clone()
    if where == "model":
        model.set_model_sampler_post_cfg_function(broken)
    else:
        own = inner.PerceptualObjective.__call__
        monkeypatch.setattr(inner.PerceptualObjective, "__call__", lambda *args: own(*args) * float("nan"))
    with pytest.raises(ValueError, match=sentence):
        sample(host, guide(node, tiny, reference, model=model), tiny[1])


def test_offline_without_weights_it_says_so_when_it_runs_and_not_while_it_is_off(
    host, tiny, node, reference, monkeypatch
):
    def offline(*_):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    assert guide(node, tiny, reference, net="squeeze", strength=0.0) is tiny[0]
    with pytest.raises(ValueError, match=r"LPIPS needs squeezenet1_1-.*no route to host.*models/lpips"):
        guide(node, tiny, reference, net="squeeze")


def test_the_preview_shows_how_much_must_stay(host, tiny, node, reference):
    def shown(**widgets):
        return execute(node, tiny, reference, **widgets).ui

    quarter = torch.zeros(1, 64, 64)
    quarter[:, :32, :32] = 1
    some = shown(mask=quarter)
    assert "25% of the picture must stay" in some["text"][0] and "Invert Mask" in some["text"][0]
    assert len(some["images"]) == 1
    assert "white everywhere" in shown(mask=torch.ones(1, 64, 64))["text"][0]
    none = shown()
    assert "all of it must stay" in none["text"][0] and "images" not in none
    assert "auto_mask" in shown(auto_mask=True)["text"][0]


def test_the_preview_is_red_where_the_picture_must_stay(host, node, reference, monkeypatch):
    pictures, region = reference.movedim(-1, 1), torch.zeros(1, 1, 128, 128)
    region[..., :64] = 1
    kept = []
    monkeypatch.setattr(
        node.ui, "PreviewImage", lambda image, cls: kept.append(image) or node.ui.PreviewText("")
    )
    node._preview(node.PerceptualGuidance, pictures, region, False)
    assert torch.equal(kept[0][:, :, 64:], reference[:, :, 64:])
    assert (kept[0][:, :, :64, 0] >= 0.6).all() and (kept[0][:, :, :64, 1] <= 0.4 + 1e-6).all()


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            {"reference": torch.rand(1, 64, 128, 3)},
            "reference is 128x64 px but the picture to be made is 128x128 px",
        ),
        ({"reference": torch.rand(3, 128, 128, 3)}, "reference has 3 pictures but 1 are sampled"),
        ({"reference": torch.rand(1, 128, 128, 1)}, "reference has a single grey channel"),
        (
            {"mask": torch.zeros(1, 128, 128)},
            "mask is empty (all zero), so the reference would count nowhere",
        ),
        ({"mask": torch.ones(1, 64, 128)}, "mask is 128x64 px but the reference is 128x128 px"),
        ({"mask": torch.ones(2, 128, 128)}, "mask has 2 pictures but 1 are sampled"),
        ({"start_percent": 0.7, "end_percent": 0.2}, "start_percent (0.7) must be smaller than end_percent"),
        ({"vae": None}, "connect the VAE output"),
        ({"decoder": "taesd"}, "taesd_decoder"),
        ({"auto_mask": True}, "auto_mask needs to know the text of the reference"),
        ({"net": "resnet"}, "There is no LPIPS network 'resnet'"),
    ],
)
def test_bad_input_is_one_clear_sentence(host, tiny, node, reference, monkeypatch, change, sentence):
    names = host.folder_paths.get_filename_list
    monkeypatch.setattr(
        host.folder_paths, "get_filename_list", lambda folder: [] if folder == "vae_approx" else names(folder)
    )
    calls, settings = [], {"reference": reference} | change
    with pytest.raises(ValueError, match=re.escape(sentence)):
        model = guide(node, tiny, settings.pop("reference"), model=counting(tiny[0], calls), **settings)
        sample(host, model, tiny[1])
    assert len(calls) <= ("auto_mask" in change)  # only a guider could have told


def test_a_reversed_range_is_refused_before_the_graph_runs(node):
    validate = node.PerceptualGuidance.validate_inputs
    assert "must be smaller" in validate(start_percent=0.8, end_percent=0.8)
    assert validate(start_percent=0.1, end_percent=None) is True
