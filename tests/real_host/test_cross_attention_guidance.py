"""Cross-attention guidance on the real host: parity, the loop written out, effect, calls, company, failures."""

import re

import pytest
import torch

from real_host.sampling import SEED, STEPS, conditioning, empty_latent, sample

BEFORE, AFTER = "a photo of a fox in the snow", "a photo of a panda in the snow"


@pytest.fixture(scope="module")
def node(host):
    from guided_synthesis.nodes import cross_attention_guidance

    return cross_attention_guidance


@pytest.fixture(scope="module")
def inner(node):
    from guided_synthesis.nodes.host import attention_guidance

    return attention_guidance


def guide(node, tiny, text=BEFORE, **widgets):
    """The node as a graph calls it, with its own defaults."""
    inputs = node.CrossAttentionGuidance.define_schema().inputs
    settings = {entry.id: entry.default for entry in inputs if hasattr(entry, "default")} | widgets
    model, source = settings.pop("model", tiny[0]), settings.pop("source", None)
    with torch.inference_mode():
        return node.CrossAttentionGuidance.execute(
            model, source or conditioning(tiny[1], text), **settings
        ).args[0]


def run(host, tiny, model, text=AFTER, **widgets):
    return sample(host, model, tiny[1], text, **widgets)


@pytest.fixture
def losses(monkeypatch, inner):
    """Every loss that is computed, in order."""
    found, own = [], inner.MapGuidance.loss

    def loss(self):
        total = own(self)
        found.append(total.item())
        return total

    monkeypatch.setattr(inner.MapGuidance, "loss", loss)
    return found


def test_strength_zero_and_no_scales_are_the_host_to_the_bit(host, tiny, node):
    plain = run(host, tiny, tiny[0])
    none = {f"scale_{scale}": False for scale in (1, 2, 4, 8)}
    for widgets in ({"strength": 0.0}, none):
        assert torch.equal(run(host, tiny, guide(node, tiny, **widgets)), plain)


def test_a_range_without_a_step_is_the_host_to_the_bit_and_costs_nothing(host, tiny, node):
    calls = []
    early = guide(node, tiny, model=_counting(tiny[0], calls), end_percent=0.3)
    settings = {"latent": {"samples": torch.ones(1, 4, 16, 16)}, "denoise": 0.4}
    assert torch.equal(run(host, tiny, early, **settings), run(host, tiny, tiny[0], **settings))
    assert len(calls) == STEPS


def test_a_strength_that_moves_nothing_leaves_the_picture(host, tiny, node):
    guided = run(host, tiny, guide(node, tiny, strength=1e-9))
    assert torch.allclose(guided, run(host, tiny, tiny[0]), atol=1e-4)


def test_more_strength_keeps_more_of_the_sources_attention(host, tiny, node, losses):
    found = []
    for strength in (1e-9, 0.1, 0.4, 1.0):
        losses.clear()
        run(host, tiny, guide(node, tiny, strength=strength))
        assert len(losses) == STEPS
        found.append(sum(losses))
    assert found == sorted(found, reverse=True) and found[-1] < 0.9 * found[0]


def test_the_source_itself_is_already_where_it_should_be(host, tiny, node, losses):
    guided = run(host, tiny, guide(node, tiny, strength=1.0), BEFORE)
    assert torch.allclose(guided, run(host, tiny, tiny[0], BEFORE), atol=2e-2)
    assert max(losses) < 1e-4


def test_a_run_is_the_loop_of_the_paper_written_out(host, tiny, node):
    """Euler without the host's sampler: record, then step down the gradient of the maps, then denoise."""
    from guided_synthesis.nodes.host import attention_hook, gradients

    model, clip, _ = tiny
    guided = guide(node, tiny, strength=0.5, start_percent=0.1, end_percent=0.7)
    result = run(host, tiny, guided, cfg=1.0)

    sampling = model.get_model_object("model_sampling")
    sigmas = host.comfy.samplers.calculate_sigmas(sampling, "normal", STEPS)
    first, last = sampling.percent_to_sigma(0.1), sampling.percent_to_sigma(0.7)
    chosen = [i for i, sigma in enumerate(sigmas[:-1]) if last < sigma <= first]
    texts = [conditioning(clip, text)[0][0] for text in (BEFORE, AFTER)]
    keys = attention_hook.cross_attention_layers(model.model.diffusion_model)

    def maps_and_estimate(x, sigma, context):
        found = []

        def look(q, k, v, options):
            heads = [part.unflatten(-1, (options["n_heads"], -1)).transpose(1, 2) for part in (q, k)]
            found.append((heads[0] @ heads[1].mT / heads[0].shape[-1] ** 0.5).softmax(-1).mean(1))
            function = host.comfy.ldm.modules.attention.attention_pytorch
            return function(q, k, v, options["n_heads"])

        slots = {key: look for key, layer in keys.items() if layer.scale in (2, 4)}
        options = {"patches_replace": {"attn2": slots}}
        return found, gradients.denoise(model, x, sigma[None], context, transformer_options=options)

    with torch.inference_mode():
        host.comfy.model_management.load_models_gpu([model])
        latent = torch.zeros(1, 4, 16, 16)
        noise = host.comfy.sample.prepare_noise(latent, SEED)
        start = sampling.noise_scaling(sigmas[:1], noise, latent, True)
        x, kept = start, []
        for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
            maps, denoised = maps_and_estimate(x, sigma, texts[0])
            kept.append(maps)
            x = x + (following - sigma) * (x - denoised) / sigma
        x = start
        for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
            if i in chosen:
                with gradients.differentiable():
                    leaf = x.clone().requires_grad_()
                    maps, _ = maps_and_estimate(leaf, sigma, texts[1])
                    loss = sum((a - b).square().sum() for a, b in zip(maps, kept[i], strict=True))
                    (gradient,) = torch.autograd.grad(loss, leaf)
                x = x - 0.5 * (1 + sigma**2) * gradient
            _, denoised = maps_and_estimate(x, sigma, texts[1])
            x = x + (following - sigma) * (x - denoised) / sigma
    assert 2 <= len(chosen) <= STEPS - 2
    expected = model.model.process_latent_out(x)
    plain = run(host, tiny, tiny[0], cfg=1.0)
    error = (result - expected).norm()
    assert error < 0.02 * (result - plain).norm() and (result - plain).norm() > 0.1


@pytest.mark.parametrize("cfg, batches", [(1.0, 1), (3.0, 1)])
def test_calls_are_what_the_help_page_says(host, tiny, node, cfg, batches):
    """A source run, the edit's run, and one call of the positive alone for each gradient."""
    calls = []
    guided = guide(node, tiny, model=_counting(tiny[0], calls), end_percent=0.8)
    run(host, tiny, guided, cfg=cfg)
    guided_steps = 6
    assert len(calls) == 2 * STEPS + guided_steps
    conditions = 1 if cfg == 1.0 else 2
    assert sum(calls) == conditions * 2 * STEPS + guided_steps


def test_gradients_are_checkpointed(host, tiny, node):
    """The blocks up to the last compared layer run once more for the backward pass: nothing of them is kept."""
    seen, model = [], tiny[0].clone()

    def spy(q, k, v, extra_options):
        seen.append(torch.is_grad_enabled())
        return q, k, v

    model.set_model_attn2_patch(spy)
    run(host, tiny, model, cfg=1.0)
    plain = len(seen)
    seen.clear()
    run(host, tiny, guide(node, tiny, model=model), cfg=1.0)
    assert seen.count(False) == 2 * plain
    compared = 5  # of 7: the demo model goes on at scale 1, which is not
    assert seen.count(True) == plain + compared * STEPS


def test_every_sampler_of_the_host_is_guided(host, tiny, node, losses):
    weak = []
    names = host.comfy.samplers.KSampler.SAMPLERS
    for name in [name for name in names if not name.endswith("_gpu")]:  # the same, with noise made elsewhere
        found = []
        for strength in (1e-9, 0.5):
            losses.clear()
            few = {"steps": 5, "sampler_name": name, "cfg": 1.0}
            latents = run(host, tiny, guide(node, tiny, strength=strength), **few)
            assert torch.isfinite(latents).all(), name
            assert len(losses) >= 4, name
            found.append(sum(losses) / len(losses))
        if not found[1] < 0.995 * found[0]:
            weak.append((name, found))
    assert not weak, weak


def test_a_batch_is_what_its_pictures_are_alone(host, tiny, node, monkeypatch):
    model = guide(node, tiny, strength=0.5)
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    latents = {"samples": torch.zeros(2, 4, 16, 16)}
    monkeypatch.setattr(host.comfy.sample, "prepare_noise", lambda latent, *_: noise[: len(latent)])
    both = run(host, tiny, model, latent=latents)
    for i in range(2):
        monkeypatch.setattr(host.comfy.sample, "prepare_noise", lambda *_, i=i: noise[i : i + 1])
        alone = run(host, tiny, model)
        assert torch.allclose(both[i], alone[0], atol=2e-2)


def test_company_of_several_positives_areas_and_split_batches(host, tiny, node, losses, monkeypatch):
    clip = tiny[1]
    area = [[entry[0], entry[1] | {"area": (8, 8, 4, 4)}] for entry in conditioning(clip, "a cat")]
    long = conditioning(clip, "a photo of " + ", ".join(["a fox"] * 60))
    positives = area + conditioning(clip, AFTER) + conditioning(clip, "a panda") + long
    together = run(host, tiny, guide(node, tiny, strength=0.5), positive=positives)
    assert len(losses) == STEPS and min(losses) > 0
    monkeypatch.setattr(tiny[0].model, "memory_required", lambda *_, **__: 1e30)
    split = run(host, tiny, guide(node, tiny, strength=0.5), positive=positives)
    assert torch.allclose(together, split, atol=2e-2)


def test_company_of_a_control_net(host, tiny, node, losses):
    from comfy.cldm.cldm import ControlNet as Network
    from comfy.controlnet import ControlNet

    from tiny_sd.comfy_node.config import UNET

    shape = {
        key: value
        for key, value in UNET.items()
        if not key.startswith(("out_channels", "transformer_depth_o"))
    }
    torch.manual_seed(0)
    with torch.inference_mode():
        network = Network(hint_channels=3, operations=host.comfy.ops.disable_weight_init, **shape)
        for parameter in network.parameters():
            parameter.normal_(0, 0.02)
        network.dtype = torch.float32
        control = ControlNet(network, load_device=torch.device("cpu"))
        both = []
        for text in (BEFORE, AFTER):
            own = control.copy().set_cond_hint(torch.rand(1, 3, 128, 128), 0.5)
            both.append(
                [
                    [t, {**s, "control": own, "control_apply_to_uncond": True}]
                    for t, s in conditioning(tiny[1], text)
                ]
            )
    plain = run(host, tiny, tiny[0], positive=both[1])
    assert not torch.allclose(plain, run(host, tiny, tiny[0]), atol=1e-2)  # the control net does something
    found = []
    for strength in (1e-9, 0.5):
        losses.clear()
        latents = run(host, tiny, guide(node, tiny, source=both[0], strength=strength), positive=both[1])
        found.append(sum(losses))
        if strength < 1e-6:
            assert torch.allclose(latents, plain, atol=1e-3)
    assert found[1] < 0.95 * found[0]
    assert not any("forward" in module.__dict__ for module in network.modules())


def test_other_guiders_of_the_host(host, tiny, node, losses):
    from comfy_extras.nodes_custom_sampler import Guider_Basic, Guider_DualCFG
    from comfy_extras.nodes_perpneg import Guider_PerpNeg

    model, clip = guide(node, tiny, strength=0.5), tiny[1]
    positive, negative = conditioning(clip, AFTER), conditioning(clip, "")
    basic, dual, perp = Guider_Basic(model), Guider_DualCFG(model), Guider_PerpNeg(model)
    basic.set_conds(positive)
    dual.set_conds(positive, conditioning(clip, "a panda"), negative)
    dual.set_cfg(3.0, 2.0)
    perp.set_conds(positive, conditioning(clip, "a cat"), negative)
    perp.set_cfg(3.0, 1.0)
    sigmas = host.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", STEPS)
    latent = torch.zeros(1, 4, 16, 16)
    for guider in (basic, dual, perp):
        losses.clear()
        with torch.inference_mode():
            noise = host.comfy.sample.prepare_noise(latent, SEED)
            sampler = host.comfy.samplers.sampler_object("euler")
            out = guider.sample(noise, latent, sampler, sigmas, seed=SEED)
        assert torch.isfinite(out).all() and len(losses) == STEPS and 0 < sum(losses) < 1000


@pytest.mark.parametrize("height, width", [(72, 136), (200, 72)])
def test_any_size_in_steps_of_eight(host, tiny, node, losses, height, width):
    found = []
    for strength in (1e-9, 0.5):
        losses.clear()
        run(host, tiny, guide(node, tiny, strength=strength), latent=empty_latent(height, width))
        found.append(sum(losses))
    assert found[1] < 0.95 * found[0]


def test_progress_runs_once_through_both_passes(host, tiny, node):
    reports = []
    model = guide(node, tiny)
    sigmas = host.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", STEPS)
    guider = host.comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning(tiny[1], AFTER), conditioning(tiny[1], ""))
    latent = torch.zeros(1, 4, 16, 16)
    with torch.inference_mode():
        guider.sample(
            host.comfy.sample.prepare_noise(latent, SEED),
            latent,
            host.comfy.samplers.sampler_object("euler"),
            sigmas,
            callback=lambda step, denoised, x, total: reports.append((step, total)),
            seed=SEED,
        )
    assert reports == [(step, 2 * STEPS) for step in range(2 * STEPS)]


def test_the_same_seed_gives_the_same_picture_and_the_model_stays_as_it_was(host, tiny, node):
    before = run(host, tiny, tiny[0])
    guided = guide(node, tiny, strength=0.5)
    first = run(host, tiny, guided)
    assert torch.equal(first, run(host, tiny, guided))
    assert not torch.allclose(first, before, atol=1e-2)
    assert torch.equal(run(host, tiny, tiny[0]), before)


def test_a_clone_and_two_samplers_of_one_patch_are_guided_alike(host, tiny, node):
    guided = guide(node, tiny, strength=0.5)
    first = run(host, tiny, guided)
    clone = guided.clone()
    clone.model_options["transformer_options"]["foreign"] = 1
    assert torch.equal(run(host, tiny, clone.clone()), first)
    assert torch.equal(run(host, tiny, guided), first)


def test_an_interrupt_leaves_nothing_behind(host, tiny, node, inner, monkeypatch):
    made = []
    own = inner.MapGuidance

    def noted(*args):
        made.append(own(*args))
        return made[-1]

    monkeypatch.setattr(inner, "MapGuidance", noted)
    before, management, calls = run(host, tiny, tiny[0]), host.comfy.model_management, []
    network = tiny[0].model.diffusion_model
    for moment in (3, STEPS + 1, STEPS + 4):  # in the source's run, at a gradient, at a step of the edit

        def cancel(apply_model, args, moment=moment):
            calls.append(1)
            if len(calls) == moment:
                management.interrupt_current_processing()
            return apply_model(args["input"], args["timestep"], **args["c"])

        calls.clear()
        cancelled = tiny[0].clone()
        cancelled.set_model_unet_function_wrapper(cancel)
        with pytest.raises(management.InterruptProcessingException):
            run(host, tiny, guide(node, tiny, model=cancelled))
        assert len(calls) == moment
        assert made[-1].stored_bytes == 0
        assert not any("forward" in module.__dict__ for module in network.modules())
    assert torch.equal(run(host, tiny, tiny[0]), before)


def test_out_of_memory_says_what_to_choose(host, tiny, node, inner, monkeypatch):
    kind = host.comfy.model_management.OOM_EXCEPTION

    def greedy(*_):
        raise kind("CUDA out of memory")

    monkeypatch.setattr(inner, "calc_conds", greedy)
    with pytest.raises(kind, match="switch off scale_1"):
        run(host, tiny, guide(node, tiny))


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            {"source": "long"},
            "The source has 154 tokens, but no positive conditioning has as many (77 tokens)",
        ),
        ({"source": "area"}, "The source has no text for the whole picture"),
        ({"source": []}, "The source has no text for the whole picture"),
        ({"start_percent": 0.7, "end_percent": 0.2}, "start_percent (0.7) must be smaller than end_percent"),
        ({"model": object()}, "The model (object) has no cross-attention"),
    ],
)
def test_bad_input_is_one_clear_sentence_before_sampling(host, tiny, node, change, sentence):
    calls, clip = [], tiny[1]
    sources = {
        "long": conditioning(clip, "a photo of " + ", ".join(["a fox"] * 30)),
        "area": [[conditioning(clip, BEFORE)[0][0], {"area": (8, 8, 0, 0)}]],
    }
    change = {"model": _counting(tiny[0], calls)} | change
    if isinstance(change.get("source"), str):
        change["source"] = sources[change["source"]]
    inputs = node.CrossAttentionGuidance.define_schema().inputs
    settings = {entry.id: entry.default for entry in inputs if hasattr(entry, "default")} | change
    settings.setdefault("source", conditioning(clip, BEFORE))
    with pytest.raises(ValueError, match=re.escape(sentence)), torch.inference_mode():
        run(host, tiny, node.CrossAttentionGuidance.execute(**settings).args[0])
    assert not calls


def test_a_reversed_range_is_refused_before_the_graph_runs(node):
    validate = node.CrossAttentionGuidance.validate_inputs
    assert "must be smaller" in validate(start_percent=0.8, end_percent=0.8)
    assert validate(start_percent=0.1, end_percent=None) is True


def _counting(model, calls):
    """A clone of `model` that notes the number of latents in each call of its UNet."""

    def wrapper(apply_model, args):
        calls.append(args["input"].shape[0])
        return apply_model(args["input"], args["timestep"], **args["c"])

    counting = model.clone()
    counting.set_model_unet_function_wrapper(wrapper)
    return counting
