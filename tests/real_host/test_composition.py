"""Composition on the real host: parity, the paper's formula, what takes part in it, calls, company, failures."""

from types import SimpleNamespace

import pytest
import torch

from real_host.guiders import (
    counting_calls,
    encoded,
    left_half,
    masked,
    near,
    plain_sampler,
    run,
    seen_after_cfg,
)
from real_host.models import as_v_prediction, control_net
from real_host.sampling import SEED, conditioning

FOX, APPLE, BOTH = "a photo of a fox", "a photo of an apple", "a photo of a fox and an apple"
CFG = 3.0


@pytest.fixture(scope="module")
def pack(host):
    from guided_synthesis.nodes import composition
    from guided_synthesis.nodes.host import gradients

    return SimpleNamespace(nodes=composition, gradients=gradients)


@pytest.fixture(scope="module")
def composed(host, pack, tiny):
    """Return the function that samples a composition of (text or CONDITIONING, weight): (B, C, h, w)."""

    def make(*terms, model=None, cfg=CFG, negative="", **settings):
        guider = make.guider(*terms, model=model, cfg=cfg, negative=negative)
        return run(host, guider, model or tiny[0], **settings)

    def guider(*terms, model=None, cfg=CFG, negative=""):
        chain = None
        for text, weight in terms:
            chain = pack.nodes.Compose.execute(encoded(tiny, text), weight, chain).args[0]
        model, negative = model or tiny[0], encoded(tiny, negative)
        return pack.nodes.ComposeGuider.execute(model, chain, negative, cfg).args[0]

    make.guider = guider
    return make


@pytest.fixture(scope="module")
def plain(host, tiny):
    """Return the function that samples one text as the host does: (B, C, h, w)."""
    return plain_sampler(host, tiny, CFG)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m_sde", "euler_ancestral"])
def test_one_condition_of_weight_one_is_the_host_to_the_bit(composed, plain, cfg, sampler):
    settings = {"cfg": cfg, "sampler": sampler, "batch": 2, "steps": 3}
    assert torch.equal(composed((FOX, 1.0), **settings), plain(FOX, **settings))


def test_a_condition_of_weight_zero_is_as_if_not_there_to_the_bit(composed, plain):
    assert torch.equal(composed((APPLE, 0.0), (FOX, 1.0), (BOTH, 0.0), steps=3), plain(FOX, steps=3))
    assert torch.equal(
        composed((FOX, 0.8), (APPLE, 0.0), (BOTH, -0.3), steps=3),
        composed((FOX, 0.8), (BOTH, -0.3), steps=3),
    )


def test_a_chain_is_never_changed(pack, tiny):
    one = pack.nodes.Compose.execute(encoded(tiny, FOX), 1.0).args[0]
    two = [pack.nodes.Compose.execute(encoded(tiny, APPLE), weight, one).args[0] for weight in (1.0, -1.0)]
    assert len(one) == 1 and [term.weight for term in two[0]] == [1.0, 1.0]
    assert [term.weight for term in two[1]] == [1.0, -1.0] and isinstance(one, tuple)


@pytest.mark.parametrize("weights", [(1.0, 0.7, -0.4), (0.6, 0.5, -6.0)])
def test_a_run_is_the_loop_of_the_paper_written_out(host, pack, composed, tiny, weights):
    """Euler without the host's sampler or guider, the composition in float64 and in the noise estimate."""
    model, clip, _ = tiny
    texts = ("", FOX, BOTH, APPLE)
    sigmas = host.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 4)
    with torch.inference_mode():
        host.comfy.model_management.load_models_gpu([model])
        context = torch.cat([conditioning(clip, text)[0][0] for text in texts])
        noise = host.comfy.sample.prepare_noise(torch.zeros(1, 4, 16, 16), SEED)
        x = model.get_model_object("model_sampling").noise_scaling(sigmas[:1], noise, noise * 0, True)
        bounds = []
        for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
            denoised = pack.gradients.denoise(model, x.repeat(4, 1, 1, 1), sigma.expand(4), context)
            eps = ((x - denoised) / sigma).double()
            wanted, unwanted = (
                (eps[1:3] - eps[:1]) * torch.tensor(weights[:2])[:, None, None, None],
                eps[3] - eps[0],
            )
            unwanted = -weights[2] * unwanted
            bounds.append(min(1.0, (wanted.sum(0).norm() / unwanted.norm()).item()))
            guided = eps[0] + CFG * (wanted.sum(0) - bounds[-1] * unwanted)
            x = x + ((following - sigma) * guided).float()
        expected = model.model.process_latent_out(x)
    found = composed(*zip((FOX, BOTH, APPLE), weights, strict=True), steps=4)
    assert near(found, expected) and not near(found, composed((FOX, weights[0]), (BOTH, weights[1]), steps=4))
    assert (max(bounds) < 1) if weights[2] < -1 else (min(bounds) == 1)


@pytest.mark.parametrize("kind", ["eps", "v", "sdxl"])
def test_two_halves_of_a_condition_are_the_host_s_one(host, composed, plain, tiny, xl, kind):
    """Also for a velocity, and with the pooled text and sizes of SDXL; a weight is a share of cfg."""
    texts = [text_of(kind, seed) for seed in range(2)]
    texts = [FOX, ""] if kind != "sdxl" else texts
    model = {"eps": tiny[0], "v": as_v_prediction(host, tiny[0]), "sdxl": xl}[kind]
    settings = {"model": model, "negative": texts[1], "steps": 3, "batch": 2}
    expected = plain(texts[0], **settings)
    assert near(composed((texts[0], 0.5), (texts[0], 0.5), **settings), expected)
    assert near(composed((texts[0], 2.0), **(settings | {"cfg": CFG / 2})), expected)
    assert near(composed((texts[0], 3.0), (texts[0], -2.0), **settings), expected)
    assert not near(composed((texts[0], 0.5), **settings), expected)


def text_of(kind, seed):
    """Return CONDITIONING of random numbers, with a pooled text."""
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn(1, 64, generator=generator)
    return [[torch.randn(1, 77, 64, generator=generator), {"pooled_output": pooled}]]


def test_order_does_not_matter(composed):
    terms = [(FOX, 1.0), (APPLE, -1.5), (BOTH, 0.5)]
    expected = composed(*terms, steps=4)
    assert near(composed(*reversed(terms), steps=4), expected)
    assert not near(composed(*terms[:2], steps=4), expected)


def test_all_conditions_take_one_call_of_the_unet_where_memory_allows(composed, tiny, monkeypatch):
    terms, calls = [(APPLE, -0.5), (FOX, 1.0), (BOTH, 0.5)], []
    model = counting_calls(tiny[0], calls)
    together = composed(*terms, model=model, steps=3)
    assert [sorted(call) for call in calls] == [[0, 1, 2, 3]] * 3
    monkeypatch.setattr(tiny[0].model, "memory_required", lambda *_, **__: 1e30)
    calls.clear()
    apart = composed(*terms, model=model, steps=3)
    assert len(calls) == 12 and near(apart, together)


def test_patches_see_the_unconditional_as_number_one_as_in_any_run(host, composed, tiny):
    def note(executor, model, conds, *args):
        seen.append([conds[0][0]["cross_attn"], conds[1][0]["cross_attn"]])
        return executor(model, conds, *args)

    seen, model = [], tiny[0].clone()
    kind = host.comfy.patcher_extension.WrappersMP.CALC_COND_BATCH
    model.add_wrapper_with_key(kind, "test", note)
    composed((APPLE, -1.0), (FOX, 1.0), model=model, steps=1)
    assert torch.equal(seen[0][0], encoded(tiny, FOX)[0][0])
    assert torch.equal(seen[0][1], encoded(tiny, "")[0][0])


def test_every_sample_of_a_batch_is_as_alone(host, composed):
    """The bound is each sample's own."""
    terms, settings = [(FOX, 0.5), (APPLE, -3.0)], {"denoise": 0.6, "steps": 3}
    latents = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    noise = host.comfy.sample.prepare_noise(latents, SEED)
    together = composed(*terms, latent=latents, **settings)
    own = host.comfy.sample.prepare_noise
    for number, latent in enumerate(latents):
        host.comfy.sample.prepare_noise = lambda *_, number=number: noise[number : number + 1]
        try:
            alone = composed(*terms, latent=latent[None], **settings)
        finally:
            host.comfy.sample.prepare_noise = own
        assert near(together[number : number + 1], alone)


def test_functions_around_cfg_run_and_see_the_composed_estimate_as_the_positive(composed, tiny):
    before, after = [], []
    model = seen_after_cfg(tiny[0], after)
    model.set_model_sampler_pre_cfg_function(lambda args: before.append(args) or args["conds_out"])
    for cfg in (1.0, CFG):
        before.clear(), after.clear()
        composed((FOX, 1.0), (BOTH, 1.0), (APPLE, -1.0), model=model, cfg=cfg, steps=2)
        assert len(before) == len(after) == 2
        (args, late) = before[0], after[0]
        assert len(args["conds_out"]) == len(args["conds"]) == 2
        positive, unconditional = late["cond_denoised"], late["uncond_denoised"]
        expected = unconditional + cfg * (positive - unconditional)
        assert torch.allclose(late["denoised"], expected, atol=1e-4)
        assert torch.equal(args["conds_out"][0], positive)
        texts = [entry["cross_attn"] for entry in late["cond"]]
        assert [torch.equal(a, encoded(tiny, b)[0][0]) for a, b in zip(texts, (FOX, BOTH), strict=True)] == [
            True
        ] * 2


def test_what_a_post_cfg_function_returns_is_what_is_sampled(composed, tiny):
    model = tiny[0].clone()
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 0)
    assert composed((FOX, 1.0), (APPLE, 1.0), model=model, steps=3).abs().max() < 1e-5


def test_a_function_in_the_place_of_the_host_s_prediction_is_asked_for_all_conditions(host, composed, tiny):
    def calculate(args):
        seen.append((len(args["conds"]), set(args["model_options"]) >= {"sampler_calc_cond_batch_function"}))
        names = ("model", "conds", "input", "sigma", "model_options")
        return host.comfy.samplers.calc_cond_batch(*(args[name] for name in names))

    seen, model = [], tiny[0].clone()
    model.model_options["sampler_calc_cond_batch_function"] = calculate
    terms = (FOX, 1.0), (APPLE, -1.0)
    assert torch.equal(composed(*terms, model=model, steps=2), composed(*terms, steps=2))
    assert seen == [(3, True)] * 2


def test_a_patch_that_samples_another_positive_gets_its_own(host, composed, plain, tiny):
    """As Cross-Attention Guidance does for its run of the source."""

    def swap(executor, noise, *args, **kwargs):
        guider = executor.class_obj
        guider.conds = guider.conds | {
            "positive": host.comfy.sampler_helpers.convert_cond(encoded(tiny, FOX))
        }
        return executor(noise, *args, **kwargs)

    model = tiny[0].clone()
    model.add_wrapper_with_key(host.comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, "test", swap)
    found = composed((BOTH, 1.0), (APPLE, -1.0), model=model, steps=2)
    assert torch.equal(found, plain(FOX, steps=2))


def test_outside_of_its_mask_a_condition_is_as_if_not_there(composed, tiny):
    def composed_estimate(*terms):
        seen = []
        composed(*terms, model=seen_after_cfg(tiny[0], seen), steps=1)
        return seen[0]["cond_denoised"]

    mask = left_half()
    for weight in (1.0, -0.5):
        partly = composed_estimate((FOX, 1.0), (masked(encoded(tiny, APPLE), mask), weight))
        nowhere, everywhere = composed_estimate((FOX, 1.0)), composed_estimate((FOX, 1.0), (APPLE, weight))
        assert near(partly[..., 8:], nowhere[..., 8:]) and near(partly[..., :8], everywhere[..., :8])
    soft = composed_estimate((FOX, 1.0), (masked(encoded(tiny, APPLE), mask * 0.5), 1.0))
    half = composed_estimate((FOX, 1.0), (APPLE, 0.5))
    assert near(soft[..., :8], half[..., :8]) and near(soft[..., 8:], nowhere[..., 8:])


def test_an_area_holds_its_condition_and_leaves_the_other_alone(host, composed, tiny):
    area = [[text, {**own, "area": (16, 8, 0, 8), "strength": 1.0}] for text, own in encoded(tiny, APPLE)]
    seen, calls = [], []
    model = seen_after_cfg(counting_calls(tiny[0], calls), seen)
    composed((FOX, 1.0), (area, 1.0), model=model, steps=1)
    base, estimate = seen[0]["uncond_denoised"], seen[0]["cond_denoised"]
    alone = []
    composed((FOX, 2.0), model=seen_after_cfg(tiny[0], alone), steps=1)
    d = (alone[0]["cond_denoised"] - alone[0]["uncond_denoised"]) / 2
    assert near((estimate - base)[..., :8], d[..., :8]) and not near(estimate - base, d)
    assert sorted(number for call in calls for number in call) == [
        0,
        1,
        1,
        2,
    ]  # the host adds the area to number 1


def test_outside_of_its_step_range_a_condition_is_as_if_not_there(composed, tiny):
    never = [[text, {**own, "start_percent": 0.3, "end_percent": 0.3}] for text, own in encoded(tiny, APPLE)]
    for weight in (1.0, -2.0):
        assert torch.equal(composed((FOX, 0.8), (never, weight), steps=3), composed((FOX, 0.8), steps=3))
    early = [[text, {**own, "start_percent": 0.0, "end_percent": 0.4}] for text, own in encoded(tiny, APPLE)]
    calls = []
    composed((FOX, 1.0), (early, 1.0), model=counting_calls(tiny[0], calls), steps=8)
    sizes = [len(call) for call in calls]
    assert sizes == sorted(sizes, reverse=True) and set(sizes) == {3, 2}


def test_without_an_and_in_its_step_range_a_step_is_unconditional(composed, plain, tiny):
    never = [[text, {**own, "start_percent": 0.3, "end_percent": 0.3}] for text, own in encoded(tiny, FOX)]
    assert near(composed((never, 1.0), (APPLE, -2.0), steps=3), plain("", cfg=1.0, steps=3))


def test_a_condition_of_several_entries_is_one_condition(host, composed, tiny):
    """As the host's Conditioning (Combine): the mean of its entries."""
    mixed = [*encoded(tiny, FOX), *encoded(tiny, APPLE)]
    terms = (mixed, 1.0), (BOTH, -0.3)
    expected = composed((FOX, 0.5), (APPLE, 0.5), (BOTH, -0.3), steps=3)
    assert near(composed(*terms, steps=3), expected)
    filling = [*masked(encoded(tiny, FOX), left_half()), [encoded(tiny, APPLE)[0][0], {"default": True}]]
    found = composed((filling, 1.0), (BOTH, -0.3), steps=3)
    assert not near(found, expected) and found.isfinite().all()


def test_control_nets_act_on_their_own_condition(host, composed, plain, tiny):
    control = control_net(host, tiny[0])
    with torch.inference_mode():
        hint = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(1))
        steered, negative = host.nodes.ControlNetApplyAdvanced().apply_controlnet(
            encoded(tiny, FOX), encoded(tiny, ""), control, hint, 1.0, 0.0, 1.0
        )
    expected = plain(steered, negative=negative, steps=2)
    assert near(composed((steered, 0.5), (steered, 0.5), negative=negative, steps=2), expected)
    assert not near(composed((steered, 0.5), (FOX, 0.5), negative=negative, steps=2), expected)


def test_inpainting_keeps_what_is_known(composed):
    latent = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    found = composed((FOX, 1.0), (APPLE, -1.0), latent=latent, mask=left_half()[:, None], steps=3)
    assert torch.allclose(found[..., 8:], latent[..., 8:], atol=1e-4)
    assert not near(found[..., :8], latent[..., :8])


def test_not_takes_the_apple_out_of_the_picture_and_leaves_the_fox(host, composed, plain, tiny):
    from tiny_sd import classifier

    judge, settings = classifier.load(), {"batch": 4, "cfg": 5.0, "steps": 14}
    with_both, without = plain(BOTH, **settings), composed((BOTH, 1.0), (APPLE, -1.0), **settings)
    with torch.inference_mode():
        pictures = [tiny[2].decode(latent).movedim(-1, 1).clone() for latent in (with_both, without)]
    both, left = (judge.names(images, 2) for images in pictures)
    assert sum({"fox", "apple"} == set(names) for names in both) >= 3
    assert sum("fox" in names for names in left) >= 3 and sum("apple" in names for names in left) <= 1


def test_a_huge_not_does_not_explode(composed, plain):
    usual = plain(BOTH, cfg=5.0).std()
    for weight in (-1.0, -10.0):
        assert composed((BOTH, 1.0), (APPLE, weight), cfg=5.0).std() < 1.5 * usual


def test_nothing_stays_patched_after_a_failure(host, composed, plain, tiny):
    before = plain(FOX, steps=2)
    options = repr(tiny[0].model_options)

    def fail(args):
        raise RuntimeError("stop")

    model = tiny[0].clone()
    model.set_model_sampler_post_cfg_function(fail)
    guider = composed.guider((FOX, 1.0), (APPLE, -1.0), model=model)
    with pytest.raises(RuntimeError, match="stop"):
        run(host, guider, model, steps=2)
    assert torch.equal(plain(FOX, steps=2), before) and repr(tiny[0].model_options) == options


def test_a_guider_samples_twice_alike(host, composed, tiny):
    guider = composed.guider((FOX, 1.0), (APPLE, -1.0))
    first, second = (run(host, guider, tiny[0], steps=2) for _ in range(2))
    assert torch.equal(first, second)


def test_what_does_not_fit_is_one_sentence(pack, tiny):
    node, negative = pack.nodes.ComposeGuider, encoded(tiny, "")

    def chain(*weights):
        found = None
        for weight in weights:
            found = pack.nodes.Compose.execute(encoded(tiny, FOX), weight, found).args[0]
        return found

    for nothing in ((), None, chain(0.0), chain(0.0, 0.0)):
        with pytest.raises(ValueError, match="composition is empty"):
            node.execute(tiny[0], nothing, negative, CFG)
    with pytest.raises(ValueError, match="only NOT prompts"):
        node.execute(tiny[0], chain(-1.0, 0.0), negative, CFG)
