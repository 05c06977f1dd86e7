"""Anagrams on the real host: parity, the paper's formula, calls, conditions of each view, company, pixels, failures."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import interpolate

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
from real_host.sampling import SEED, empty_latent

FOX, APPLE = "a photo of a fox in the snow", "a photo of an apple in the snow"
CFG = 3.0
WIDGETS = {"angle": 90.0, "rows": 4, "columns": 4, "size": 0.6, "sigma": 1 / 32, "seed": 0, "weight": 1.0}
WIDGETS |= {"experimental": False}


@pytest.fixture(scope="module")
def pack(host):
    from guided_synthesis.guidance.views.protocol import Reading
    from guided_synthesis.nodes import anagram
    from guided_synthesis.nodes.host import gradients

    return SimpleNamespace(nodes=anagram, reading=Reading, gradients=gradients)


@pytest.fixture(scope="module")
def chain(pack, tiny):
    """Return the function that makes VIEWS of (view, text or CONDITIONING, other inputs of the View node)."""

    def make(*links):
        found = None
        for view, text, *others in links:
            widgets = WIDGETS | (others[0] if others else {})
            text = text if text is None else encoded(tiny, text)
            found = pack.nodes.View.execute(view, conditioning=text, views=found, **widgets).args[0]
        return found

    return make


@pytest.fixture(scope="module")
def anagram(host, pack, chain, tiny):
    """Return the function that samples a chain of views: (B, C, h, w)."""

    def make(*links, model=None, sampling=None, **widgets):
        settings = sampling or {}
        return run(host, make.guider(*links, model=model, **widgets), model or tiny[0], **settings)

    def guider(*links, model=None, negative="", **widgets):
        views = links[0] if isinstance(links[0][0], pack.reading) else chain(*links)
        settings = {
            "cfg": CFG,
            "reduction": "mean",
            "domain": "latent",
            "start_percent": 0.0,
            "end_percent": 1.0,
        }
        found = pack.nodes.AnagramGuider.execute(
            model or tiny[0], views, encoded(tiny, negative), vae=tiny[2], **settings | widgets
        )
        return found.args[0]

    make.guider = guider
    return make


@pytest.fixture(scope="module")
def plain(host, tiny):
    """Return the function that samples one text as the host does: (B, C, h, w)."""
    return plain_sampler(host, tiny, CFG)


@pytest.mark.parametrize("domain", ["latent", "pixel"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m_sde", "euler_ancestral", "euler_cfg_pp"])
def test_one_identity_view_is_the_host_to_the_bit(anagram, plain, cfg, sampler, domain):
    settings = {"sampler": sampler, "batch": 2, "steps": 3}
    found = anagram(("identity", FOX, {"weight": 0.3}), cfg=cfg, sampling=settings, domain=domain)
    assert torch.equal(found, plain(FOX, cfg=cfg, **settings))


def written_out(host, model, links, back, batch=1, steps=3, cfg=CFG):
    """Sample with Euler and the paper's mean in float64, each view by a run of the host of its own for each step.

    `links`: (view function, CONDITIONING, negative); `back`: the functions that lead back.
    """

    class Mean(host.comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            estimates = [
                undo(
                    host.comfy.samplers.sampling_function(
                        self.inner_model,
                        look(x),
                        timestep,
                        self.conds[f"negative {number}"],
                        self.conds[f"positive {number}"],
                        cfg,
                        model_options=model_options,
                    )
                ).double()
                for number, ((look, *_), undo) in enumerate(zip(links, back, strict=True))
            ]
            return torch.stack(estimates).mean(0).to(x)

    guider = Mean(model)
    for number, (_, positive, negative) in enumerate(links):
        guider.inner_set_conds({f"positive {number}": positive, f"negative {number}": negative})
    return run(host, guider, model, batch=batch, steps=steps)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_run_is_the_formula_of_the_paper_with_a_run_of_the_host_for_each_view(host, anagram, tiny, cfg):
    def same(x):
        return x

    def down(x):
        return x.flip(2)

    def turned(x):
        return x.rot90(-1, (2, 3))

    texts = [encoded(tiny, text) for text in (FOX, APPLE, "a photo of a cat", "", "a drawing")]
    links = (same, texts[0], texts[3]), (down, texts[1], texts[4]), (turned, texts[2], texts[3])
    expected = written_out(host, tiny[0], links, (same, down, lambda x: x.rot90(1, (2, 3))), batch=2, cfg=cfg)
    found = anagram(
        ("identity", FOX),
        ("flip vertical", APPLE, {"negative": texts[4]}),
        ("rotate 90 clockwise", "a photo of a cat"),
        cfg=cfg,
        sampling={"batch": 2, "steps": 3},
    )
    assert torch.allclose(found, expected, atol=1e-4) and not near(found, anagram(("identity", FOX), cfg=cfg))


@pytest.mark.parametrize("kind", ["v", "xl"])
def test_other_classes_of_models_are_the_formula_too(host, anagram, tiny, xl, kind):
    if kind == "v":
        model, texts = as_v_prediction(host, tiny[0]), [encoded(tiny, text) for text in (FOX, APPLE, "")]
    else:
        random = torch.Generator().manual_seed(0)
        texts = [
            [
                [
                    torch.randn(1, 77, 64, generator=random),
                    {"pooled_output": torch.randn(1, 64, generator=random)},
                ]
            ]
            for _ in range(3)
        ]
        model = xl
    links = (lambda x: x, texts[0], texts[2]), (lambda x: x.flip(3), texts[1], texts[2])
    expected = written_out(host, model, links, (lambda x: x, lambda x: x.flip(3)))
    found = anagram(
        ("identity", texts[0]),
        ("flip horizontal", texts[1]),
        model=model,
        negative=texts[2],
        sampling={"steps": 3},
    )
    assert near(found, expected, 1e-3)


@pytest.mark.parametrize("cfg, kinds", [(CFG, [0, 0, 0, 1, 1, 1]), (1.0, [0, 0, 0])])
def test_all_views_are_one_call_of_the_model(anagram, tiny, cfg, kinds):
    calls = []
    links = ("identity", FOX), ("flip vertical", APPLE), ("rotate 180", "a cat")
    model = counting_calls(tiny[0], calls)
    anagram(*links, model=model, cfg=cfg, sampling={"steps": 2})
    assert [sorted(call) for call in calls] == [kinds] * 2
    calls.clear()
    anagram(*links, model=model, cfg=cfg, reduction="alternate", sampling={"steps": 2})
    assert [len(call) for call in calls] == [len(kinds) // 3] * 2


def test_alternate_takes_the_views_in_turn(host, anagram, tiny):
    seen = []
    anagram(
        ("identity", FOX),
        ("flip vertical", APPLE),
        model=seen_after_cfg(tiny[0], seen),
        reduction="alternate",
        sampling={"steps": 3},
    )
    texts = [args["cond"][0]["cross_attn"] for args in seen]
    expected = [encoded(tiny, text)[0][0] for text in (FOX, APPLE, FOX)]
    assert all(torch.equal(a, b) for a, b in zip(texts, expected, strict=True))


def test_weights_count_with_weighted_and_only_there(anagram):
    sampling = {"steps": 2}
    links = ("identity", FOX, {"weight": 3.0}), ("flip vertical", APPLE, {"weight": 0.0})
    alone = anagram(links[0], sampling=sampling)
    assert torch.equal(anagram(*links, reduction="weighted", sampling=sampling), alone)
    even = anagram(("identity", FOX), ("flip vertical", APPLE), sampling=sampling)
    assert torch.equal(anagram(*links, sampling=sampling), even) and not near(even, alone)


def test_a_chain_is_never_changed(pack, chain):
    one = chain(("identity", FOX))
    two = [pack.nodes.View.execute(view, views=one, **WIDGETS).args[0] for view in ("negate", "rotate 180")]
    assert len(one) == 1 and [[link.title for link in found] for found in two] == [
        ["identity", "negate"],
        ["identity", "rotate 180"],
    ]


def test_every_picture_of_a_batch_is_as_alone(host, anagram):
    links, latents = (
        [("identity", FOX), ("flip vertical", APPLE)],
        torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(3)),
    )
    noise = host.comfy.sample.prepare_noise(latents, SEED)
    together = anagram(*links, sampling={"latent": latents, "denoise": 0.6, "steps": 3})
    own = host.comfy.sample.prepare_noise
    host.comfy.sample.prepare_noise = lambda *_: noise[1:2]
    try:
        alone = anagram(*links, sampling={"latent": latents[1:2], "denoise": 0.6, "steps": 3})
    finally:
        host.comfy.sample.prepare_noise = own
    assert near(together[1:2], alone)


def conditions(host, tiny, kind):
    """Return a CONDITIONING of FOX that counts here and there, in a way of its own."""
    text, other = encoded(tiny, FOX), encoded(tiny, "a photo of a cat")
    areas = [(8, 10, 0, 4), (10, 16, 6, 0), (16, 16, 0, 0)]
    if kind == "areas":
        return [[part, {**own, "area": area, "strength": 0.7}] for area in areas for part, own in text]
    if kind == "percentage":
        return [[part, {**own, "area": ("percentage", 0.5, 0.5, 0.5, 0.25)}] for part, own in text] + other
    if kind == "mask":
        return masked(text, left_half() * 0.4) + masked(other, 1 - left_half() * 0.7)
    if kind == "bounds":
        return [
            [part, {**own, "set_area_to_bounds": True}] for part, own in masked(text, left_half())
        ] + other
    if kind == "default":
        return masked(text, left_half()) + [[part, {**own, "default": True}] for part, own in other]
    if kind == "range":
        return [[part, {**own, "start_percent": 0.0, "end_percent": 0.5}] for part, own in text] + other
    control = control_net(host, tiny[0])
    hint = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = host.nodes.ControlNetApplyAdvanced().apply_controlnet(
            text, text, control, hint, 1.0, 0.0, 1.0
        )
    return found[0]


@pytest.mark.parametrize("kind", ["areas", "percentage", "mask", "bounds", "default", "range", "control"])
@pytest.mark.parametrize("first", [True, False])
def test_where_and_when_conditions_count_is_as_in_runs_of_their_own(host, pack, anagram, tiny, kind, first):
    """The estimates of all views in one call are those of the host for each alone."""
    from guided_synthesis.nodes.host import anagram as tested

    def both(model, conds, seen, sigma, options):
        found = together(model, conds, seen, sigma, options)
        for kinds, x, out in zip(conds, seen, found, strict=True):
            alone = host.comfy.samplers.calc_cond_batch(model, kinds, x, sigma, options)
            assert all(torch.allclose(a, b, atol=2e-5) for a, b in zip(out, alone, strict=True))
            compared.append(kinds)
        return found

    compared, together = [], tested.predictions
    links = ("flip vertical", conditions(host, tiny, kind)), ("identity", APPLE)
    tested.predictions = both
    try:
        anagram(*(links if first else links[::-1]), sampling={"batch": 2, "steps": 2})
    finally:
        tested.predictions = together
    assert len(compared) == 4


def test_models_that_see_a_picture_beside_the_noise_see_it_through_the_view(host, pack, tiny):
    """Inputs of the shape of the noise, as of inpainting models, are cut out for each view."""
    from guided_synthesis.nodes.host import anagram as tested

    seen = [torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(number)) for number in range(2)]
    given = []

    class Recorder:
        current_patcher = SimpleNamespace(
            prepare_state=lambda *_: None,
            apply_hooks=lambda hooks: {},
            get_free_memory=lambda device: 1e18,
        )

        def memory_required(self, shape, cond_shapes):
            return 0

        def apply_model(self, x, sigma, c_concat, **_):
            given.append((x, c_concat))
            return x + c_concat

    def entry(number, **more):
        concat = host.comfy.conds.CONDNoiseShape(seen[number] * 10)
        return {"model_conds": {"c_concat": concat}, "uuid": number, **more}

    conds = [[[entry(0)], [entry(0)]], [[entry(1, area=(4, 8, 2, 0)), entry(1)], None]]
    conds[0][1] = None
    sigma = torch.ones(2)
    found = tested.predictions(Recorder(), conds, seen, sigma, {"transformer_options": {}})
    assert len(given) == 2 and all(torch.equal(x * 10, concat) for x, concat in given)
    assert all(torch.allclose(out[0], x * 11, atol=1e-5) for out, x in zip(found, seen, strict=True))


def test_inpainting_keeps_what_is_known_and_paints_the_rest(anagram):
    latent = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    links = ("identity", FOX), ("rotate 180", APPLE)
    for domain in ("latent", "pixel"):
        sampling = {"latent": latent, "mask": left_half()[:, None], "steps": 2}
        found = anagram(*links, domain=domain, sampling=sampling)
        assert torch.allclose(found[..., 8:], latent[..., 8:], atol=1e-4)
        assert not near(found[..., :8], latent[..., :8])


def test_functions_around_cfg_see_each_view_in_its_own_frame(host, anagram, tiny):
    """As Perturbed-Attention Guidance and others, which make a prediction more after CFG."""

    def again(args):
        (found,) = host.comfy.samplers.calc_cond_batch(
            args["model"], [args["cond"]], args["input"], args["sigma"], args["model_options"]
        )
        assert torch.allclose(found, args["cond_denoised"], atol=2e-5)
        frames.append(args["input"])
        return args["denoised"]

    def before(args):
        assert len(args["conds_out"]) == len(args["conds"]) == 2
        earlier.append(args["input"])
        return args["conds_out"]

    frames, earlier, model = [], [], tiny[0].clone()
    model.set_model_sampler_post_cfg_function(again)
    model.set_model_sampler_pre_cfg_function(before)
    anagram(("identity", FOX), ("flip vertical", APPLE), model=model, sampling={"steps": 2})
    assert len(frames) == len(earlier) == 4
    assert all(torch.equal(a, b) for a, b in zip(frames, earlier, strict=True))
    assert torch.equal(frames[0].flip(2), frames[1]) and torch.equal(frames[2].flip(2), frames[3])


def test_what_a_post_cfg_function_returns_is_what_is_sampled(anagram, tiny):
    model = tiny[0].clone()
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 0)
    links = ("identity", FOX), ("flip vertical", APPLE)
    assert anagram(*links, model=model, sampling={"steps": 2}).abs().max() < 1e-5


def test_samplers_that_ask_for_the_unconditional_estimate_get_that_of_the_picture(host, anagram, tiny):
    """CFG++ samplers step along it: it has to be in the picture's frame, not in that of the last view."""
    links = ("flip vertical", FOX), ("flip vertical", FOX)
    two = anagram(*links, sampling={"sampler": "euler_cfg_pp", "steps": 3})
    one = anagram(links[0], sampling={"sampler": "euler_cfg_pp", "steps": 3})
    assert near(two, one, 1e-4)
    flipped = anagram(("identity", FOX), sampling={"sampler": "euler_cfg_pp", "steps": 3})
    assert not near(one, flipped)


def test_another_pack_that_handles_the_calls_gets_one_for_each_view(host, anagram, tiny):
    def calculate(args):
        asked.append(tuple(args["input"].shape))
        names = ("model", "conds", "input", "sigma", "model_options")
        return host.comfy.samplers.calc_cond_batch(*(args[name] for name in names))

    def around(executor, model, conds, x_in, timestep, model_options):
        wrapped.append(tuple(x_in.shape))
        return executor(model, conds, x_in, timestep, model_options)

    asked, wrapped, links = [], [], [("identity", FOX), ("flip vertical", APPLE)]
    expected = anagram(*links, sampling={"steps": 2})
    first, second = tiny[0].clone(), tiny[0].clone()
    first.model_options["sampler_calc_cond_batch_function"] = calculate
    kind = host.comfy.patcher_extension.WrappersMP.CALC_COND_BATCH
    second.add_wrapper_with_key(kind, "test", around)
    for model, calls in ((first, asked), (second, wrapped)):
        assert near(anagram(*links, model=model, sampling={"steps": 2}), expected, 1e-4)
        assert calls == [(1, 4, 16, 16)] * 4


def test_hybrids_take_of_each_prompt_its_component(host, anagram, tiny):
    """One step: low frequencies of the fox's estimate, high ones of the apple's."""
    from guided_synthesis.guidance.views.passes import LowPass

    links = ("low pass", FOX, {"sigma": 0.06}), ("high pass", APPLE, {"sigma": 0.06})
    found = anagram(*links, reduction="sum", sampling={"steps": 1})
    fox, apple = (anagram(("identity", text), sampling={"steps": 1}) for text in (FOX, APPLE))
    low = LowPass(0.06).inverse
    assert near(found, low(fox) + apple - low(apple), 1e-4) and not near(found, fox)


@pytest.fixture(scope="module")
def photo():
    """Return an IMAGE that is no square: (1, 96, 160, 3)."""
    coarse = torch.rand(1, 3, 6, 10, generator=torch.Generator().manual_seed(2))
    return interpolate(coarse, (96, 160), mode="bilinear").movedim(1, -1)


@pytest.fixture(scope="module")
def hybrid(pack, chain, photo):
    """Return VIEWS: what is seen from afar is a photo, what is seen from close by a fox."""
    views = chain(("high pass", FOX, {"sigma": 0.06}))
    return pack.nodes.ReferenceComponent.execute("low pass", 0.6, 0.06, photo, views=views).args[0]


def test_a_real_picture_fixes_its_component(anagram, tiny, photo, hybrid):
    """One step: low frequencies of the photo's middle square, high ones of the fox's estimate."""
    from guided_synthesis.guidance.views.passes import LowPass

    sampling, low = {"steps": 1, "batch": 2}, LowPass(0.06).inverse
    found = anagram(hybrid, reduction="sum", sampling=sampling)
    fox = anagram(("identity", FOX), sampling=sampling)
    with torch.inference_mode():
        square = interpolate(photo.movedim(-1, 1)[..., 32:128], (128, 128), mode="bicubic").clamp(0, 1)
        expected = low(tiny[2].encode(square.movedim(1, -1))) + fox - low(fox)
    assert near(found, expected, 1e-3) and not near(found, fox, 0.1)


def test_in_pixels_a_real_picture_is_what_is_seen_from_afar(anagram, tiny, photo, hybrid):
    """Up to the VAE's residual, and what the blur lets through of the fox."""
    from guided_synthesis.guidance.views.passes import LowPass

    found = anagram(hybrid, reduction="sum", domain="pixel", sampling={"steps": 8})
    fox = anagram(("identity", FOX), sampling={"steps": 8})
    with torch.inference_mode():
        square = interpolate(photo.movedim(-1, 1)[..., 32:128], (128, 128), mode="bicubic").clamp(0, 1)
        hybrids, foxes = (tiny[2].decode(latent).movedim(-1, 1) for latent in (found, fox))
    near_photo, far = ((LowPass(0.06).inverse(x - square)).abs().mean() for x in (hybrids, foxes))
    assert near_photo < 0.05 and near_photo < far / 3


def test_in_pixels_each_step_decodes_once_and_encodes_twice_for_each_view(anagram, tiny):
    first_stage, counts = tiny[2].first_stage_model, {"decode": 0, "encode": 0}

    def counted(name, function):
        def call(x, *args, **kwargs):
            counts[name] += x.shape[0]
            return function(x, *args, **kwargs)

        return call

    settings = {"domain": "pixel", "sampling": {"steps": 2, "batch": 2}}
    links = ("identity", FOX), ("negate", APPLE), ("inner circle", "a photo of a cat")
    for name in counts:
        setattr(first_stage, name, counted(name, getattr(first_stage, name)))
    try:
        found = anagram(*links, **settings)
        assert found.shape == (2, 4, 16, 16) and counts == {"decode": 2 * 2 * 3, "encode": 2 * 2 * 3 * 2}
        counts |= {"decode": 0, "encode": 0}
        anagram(*links, end_percent=0.01, **settings)
        assert counts == {"decode": 2 * 3, "encode": 2 * 3 * 2}
        counts |= {"decode": 0, "encode": 0}
        anagram(*links[:1], **settings)
        assert counts == {"decode": 0, "encode": 0}
    finally:
        for name in counts:
            delattr(first_stage, name)


def test_in_pixels_the_views_agree_on_one_picture(host, anagram, tiny):
    """At the end the negative of the picture is what its negative view shows; without the range it is not."""
    links = ("identity", FOX), ("negate", APPLE)
    guider = anagram.guider(*links, domain="pixel")
    rows = []
    kept, guider._rows = guider._rows, lambda x: rows.append(x) or kept(x)
    run(host, guider, tiny[0], steps=3)
    with torch.inference_mode():
        picture, negative = tiny[2].decode(rows[-1])
    assert (picture - (1 - negative)).abs().mean() < 0.05
    guider = anagram.guider(*links, domain="pixel", end_percent=0.01)
    kept, guider._rows = guider._rows, lambda x: rows.append(x) or kept(x)
    run(host, guider, tiny[0], steps=3)
    with torch.inference_mode():
        picture, negative = tiny[2].decode(rows[-1])
    assert (picture - (1 - negative)).abs().mean() > 0.1


def test_in_pixels_without_a_plain_view_the_picture_is_led_back(anagram, tiny):
    """Both views turn it, so what both see turned is upright."""
    links = ("rotate 180", FOX), ("rotate 180", FOX)
    sampling = {"steps": 3}
    found = anagram(*links, domain="pixel", sampling=sampling)
    with torch.inference_mode():
        turned = tiny[2].decode(found).flip(1, 2)
        expected = tiny[2].decode(anagram(("rotate 180", FOX), domain="pixel", sampling=sampling)).flip(1, 2)
    assert (turned - expected).abs().mean() < 0.03


def test_in_pixels_a_picture_to_start_from_is_seen_through_the_views(anagram, tiny, photo):
    square = interpolate(photo.movedim(-1, 1)[..., 32:128], (128, 128)).movedim(1, -1)
    with torch.inference_mode():
        latent = tiny[2].encode(square)
    sampling = {"latent": latent, "denoise": 0.05, "steps": 1}
    for first in ("identity", "rotate 180"):
        found = anagram((first, "a photo"), ("negate", "a photo"), domain="pixel", sampling=sampling)
        with torch.inference_mode():
            assert (tiny[2].decode(found) - square).abs().mean() < 0.06


def test_in_pixels_previews_and_estimates_are_of_the_picture(anagram, tiny):
    shown = []
    sampling = {"steps": 2, "batch": 2, "report": lambda step, x0, x, total: shown.append((x0, x))}
    found = anagram(("negate", APPLE), ("identity", FOX), domain="pixel", sampling=sampling)
    assert [part.shape for parts in shown for part in parts] == [(2, 4, 16, 16)] * 4
    last = tiny[0].model.process_latent_out(shown[-1][0])
    assert near(last, found)


def test_nothing_stays_patched_after_a_failure(host, anagram, plain, tiny):
    before, options = plain(FOX, steps=2), repr(tiny[0].model_options)

    def fail(args):
        raise RuntimeError("stop")

    model = tiny[0].clone()
    model.set_model_sampler_post_cfg_function(fail)
    for domain in ("latent", "pixel"):
        guider = anagram.guider(("identity", FOX), ("rotate 180", APPLE), model=model, domain=domain)
        with pytest.raises(RuntimeError, match="stop"):
            run(host, guider, model, steps=2)
        assert not guider._views and not guider._fixed
    assert torch.equal(plain(FOX, steps=2), before) and repr(tiny[0].model_options) == options


def test_a_guider_samples_twice_alike(host, anagram, tiny):
    guider = anagram.guider(("identity", FOX), ("flip vertical", APPLE))
    first, second = (run(host, guider, tiny[0], steps=2) for _ in range(2))
    assert torch.equal(first, second)


def test_what_does_not_fit_is_one_sentence(host, pack, anagram, chain, tiny, hybrid):
    def refused(views, match, size=128, **widgets):
        latent = empty_latent(size, 128)["samples"]
        with pytest.raises(ValueError, match=match):
            anagram(*views, sampling={"latent": latent, "steps": 1}, **widgets)

    fox, apple = ("identity", FOX), ("flip vertical", APPLE)
    refused([fox, ("negate", APPLE)], r"View 2 \(negate\) cannot be seen in latents.*domain pixel")
    refused([fox, ("inner circle", APPLE)], "domain pixel")
    refused([fox, ("rotate 90 clockwise", APPLE)], "square", size=64)
    refused([fox, ("flip vertical", None)], r"View 2 \(flip vertical\) has no prompt")
    refused([fox, apple], "not a component", reduction="sum")
    refused([("low pass", FOX), ("high pass", APPLE)], "choose the reduction sum")
    refused([("low pass", FOX), ("low pass", APPLE)], "do not add up", reduction="sum")
    for settings in ({"domain": "pixel"}, {"reduction": "sum"}):
        views = hybrid if "reduction" in settings else chain(fox, apple)
        settings = {"domain": "latent", "reduction": "mean"} | settings
        with pytest.raises(ValueError, match="need the VAE"):
            pack.nodes.AnagramGuider.execute(
                tiny[0], views, [], CFG, start_percent=0.0, end_percent=1.0, **settings
            )
    for nothing in ((), None):
        with pytest.raises(ValueError, match="There are no views"):
            pack.nodes.AnagramGuider.execute(tiny[0], nothing, [], CFG, "mean", "latent", 0.0, 1.0)
    with pytest.raises(ValueError, match="Turn on experimental"):
        chain(("blur", FOX))
    assert chain(("blur", FOX, {"experimental": True}))[0].title == "blur"
    assert "start_percent" in pack.nodes.AnagramGuider.validate_inputs(0.5, 0.2)
    assert pack.nodes.AnagramGuider.validate_inputs(0.0, None) is True
    with pytest.raises(ValueError, match="mask"):
        pack.nodes.View.execute("mask", **WIDGETS)


def test_a_mask_is_a_component(anagram, pack, tiny):
    """One step: the fox's estimate where the mask is white, the apple's elsewhere."""
    links = ("mask", FOX, {"mask": left_half()}), ("mask rest", APPLE, {"mask": left_half()})
    found = anagram(*links, reduction="sum", sampling={"steps": 1})
    fox, apple = (anagram(("identity", text), sampling={"steps": 1}) for text in (FOX, APPLE))
    assert near(found[..., :8], fox[..., :8], 1e-4) and near(found[..., 8:], apple[..., 8:], 1e-4)


def test_tooltips_say_which_views_read_a_parameter(pack):
    for node, names in (
        (pack.nodes.View, pack.nodes.VIEWS),
        (pack.nodes.ReferenceComponent, pack.nodes.COMPONENTS),
    ):
        inputs = {found.id: found for found in node.define_schema().inputs}
        for parameter in ("angle", "rows", "columns", "size", "sigma", "seed", "mask"):
            readers = [name for name in names if parameter in pack.nodes.VIEWS[name].needs]
            assert (parameter in inputs) == bool(readers)
            if readers:
                assert inputs[parameter].tooltip.endswith(f"Read by: {', '.join(readers)}.")
