"""Text guidance on the real host: its equations, the host's CFG outside of the range, any conditions, any company."""

from types import SimpleNamespace

import pytest
import torch

from real_host.models import as_v_prediction, control_net
from real_host.sampling import SEED, conditioning, empty_latent, scene_painting

SOURCE, EDIT = "a photo of a fox and an apple in the snow", "a photo of a panda and an apple in the snow"
LONG = EDIT + ", a photo of a sailboat at night" * 12
CFG, STEPS = 4.0, 6
NEVER = {"start_percent": 0.5, "end_percent": 0.5000001}  # no step lies there
EQUAL = {"gamma": CFG, "beta": CFG, "cfg": CFG}  # plain CFG on the edit, by another way


@pytest.fixture(scope="module")
def pack(host):
    from guided_synthesis.nodes import text_guidance
    from guided_synthesis.nodes.host import predictions

    return SimpleNamespace(node=text_guidance.TextGuidanceGuider, predictions=predictions)


@pytest.fixture(scope="module")
def texts(tiny):
    """Return the function that makes CONDITIONING of one text or, for a batch, of several."""

    def make(text):
        if not isinstance(text, tuple):
            return conditioning(tiny[1], text) if isinstance(text, str) else text
        return [[torch.cat([conditioning(tiny[1], each)[0][0] for each in text]), {}]]

    return make


@pytest.fixture(scope="module")
def guider(pack, tiny, texts):
    """Return the function that builds the guider from the node, at its defaults but for `widgets`."""

    def make(source=SOURCE, edit=EDIT, null="", model=None, **widgets):
        inputs = pack.node.define_schema().inputs
        settings = {e.id: e.default for e in inputs if getattr(e, "default", None) is not None} | widgets
        return pack.node.execute(model or tiny[0], texts(source), texts(edit), texts(null), **settings).args[
            0
        ]

    return make


@pytest.fixture(scope="module")
def guided(host, guider):
    """Return the function that samples with the guider: (B, C, h, w)."""

    def make(*conditions, sampling=None, **widgets):
        made = guider(*conditions, **widgets)
        return run(host, made, **(sampling or {}))

    return make


@pytest.fixture(scope="module")
def alone(host, tiny, texts):
    """Return the function that samples one text with the host's own CFG: (B, C, h, w)."""

    def make(text=EDIT, null="", model=None, cfg=CFG, **sampling):
        plain = host.comfy.samplers.CFGGuider(model or tiny[0])
        plain.set_conds(texts(text), texts(null))
        plain.set_cfg(cfg)
        return run(host, plain, **sampling)

    return make


def run(host, guider, sampler="euler", latent=None, batch=1, mask=None, sigmas=None, noise=None):
    """Sample as SamplerCustomAdvanced does."""
    latent = empty_latent(batch=batch)["samples"] if latent is None else latent
    schedule = levels(host, guider.model_patcher) if sigmas is None else sigmas
    with torch.inference_mode():
        noise = host.comfy.sample.prepare_noise(latent, SEED) if noise is None else noise
        sampler = host.comfy.samplers.sampler_object(sampler)
        return guider.sample(
            noise, latent, sampler, schedule, denoise_mask=mask, disable_pbar=True, seed=SEED
        )


def levels(host, model, steps=STEPS):
    return host.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)


def near(found, expected, share=2e-3):
    """A batch of three goes through other kernels than a batch of two."""
    return torch.allclose(found, expected, atol=share * expected.abs().max().item())


def half_area(host, text):
    """The left half of the picture as the area of CONDITIONING, beside the whole picture's."""
    with torch.inference_mode():
        part = host.nodes.ConditioningSetArea().append(text, 64, 128, 0, 0, 1.0)[0]
        return host.nodes.ConditioningCombine().combine(text, part)[0]


@pytest.mark.parametrize(
    "sampler", ["euler", "dpmpp_2m", "euler_ancestral", "euler_cfg_pp", "dpmpp_sde", "uni_pc"]
)
@pytest.mark.parametrize("cfg", [CFG, 1.0, 0.0])
def test_out_of_range_it_is_the_hosts_cfg_on_the_edit_to_the_bit(guided, alone, sampler, cfg):
    found = guided(gamma=9.0, beta=9.0, cfg=cfg, sampling={"sampler": sampler}, **NEVER)
    assert torch.equal(found, alone(cfg=cfg, sampler=sampler))


def test_out_of_range_not_even_areas_masks_and_control_nets_of_the_source_count(
    host, guided, alone, texts, tiny
):
    mask = torch.zeros(1, 128, 128)
    mask[..., 64:] = 1
    with torch.inference_mode():
        hinted = controlled(host, tiny[0], texts(SOURCE))
        masked = host.nodes.ConditioningSetMask().append(texts(SOURCE), mask, "mask bounds", 1.0)[0]
    for source in (half_area(host, texts(SOURCE)), masked, hinted):
        assert torch.equal(guided(source, cfg=CFG, **NEVER), alone())
    area = half_area(host, texts(EDIT))  # to which the host adds one of the negative
    assert torch.equal(guided(SOURCE, area, cfg=CFG, **NEVER), alone(area))
    assert torch.equal(guided(hinted, hinted, cfg=CFG, **NEVER), alone(hinted))


def controlled(host, model, text, strength=1.0):
    hint = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return host.nodes.ControlNetApply().apply_controlnet(text, control_net(host, model), hint, strength)[
            0
        ]


@pytest.mark.parametrize("start, end", [(0.0, 0.5), (0.5, 1.0)])
def test_a_range_is_three_predictions_inside_and_the_host_outside(host, guided, guider, alone, start, end):
    """Sampled in two parts by hand: one all guided, the other the host's own CFG."""
    made = guider(gamma=2.0, beta=6.0, cfg=CFG, start_percent=start, end_percent=end)
    sigmas = levels(host, made.model_patcher)
    border = float(made.model_patcher.get_model_object("model_sampling").percent_to_sigma(0.5))
    cut = int((sigmas > border).sum())
    assert 1 < cut < STEPS
    found = run(host, made)

    def part(inside, sigmas, **sampling):
        if inside:
            return guided(gamma=2.0, beta=6.0, sampling={"sigmas": sigmas, **sampling})
        return alone(sigmas=sigmas, **sampling)

    first = part(start == 0.0, sigmas[: cut + 1])
    second = part(start != 0.0, sigmas[cut:], latent=first, noise=torch.zeros_like(first))
    assert near(found, second, 1e-4)
    assert not near(found, guided(gamma=2.0, beta=6.0), 1e-2) and not near(found, alone(), 1e-2)


@pytest.mark.parametrize("formula", ["edit - source", "edit - null"])
def test_each_step_is_the_papers_equation_of_three_predictions(host, pack, tiny, guider, texts, formula):
    gamma, beta, seen = 3.0, 6.0, []

    def watch(args):
        seen.append(args | {"denoised": args["denoised"].clone()})
        return args["denoised"]

    model = tiny[0].clone()
    model.set_model_sampler_post_cfg_function(watch)
    run(host, guider(model=model, gamma=gamma, beta=beta, formula=formula))
    assert len(seen) == STEPS
    for args in seen:
        source, edit = pack.predictions.told(args)
        null = args["uncond_denoised"]
        cond = null.double() + gamma * (source.double() - null.double())
        left = source if formula == "edit - source" else null
        expected = cond + beta * (edit.double() - left.double())
        assert near(args["denoised"].double(), expected, 1e-6)
        assert torch.equal(args["cond_denoised"], edit)
    first = seen[0]
    once = levels(host, tiny[0])[:1].repeat(2)  # a step of no length: what is reported is the estimate
    for text, found in ((SOURCE, source_of(pack, first)), (EDIT, first["cond_denoised"])):
        assert near(found, estimate(host, tiny[0], texts(text), once), 1e-4)
    assert near(first["uncond_denoised"], estimate(host, tiny[0], texts(""), once), 1e-4)


def source_of(pack, args):
    return pack.predictions.told(args)[0]


def estimate(host, model, text, sigmas):
    """What the model says of noise with one text."""
    plain, seen = host.comfy.samplers.CFGGuider(model), []
    plain.set_conds(text, text)
    latent = empty_latent()["samples"]
    with torch.inference_mode():
        noise, sampler = (
            host.comfy.sample.prepare_noise(latent, SEED),
            host.comfy.samplers.sampler_object("euler"),
        )
        watch = lambda step, denoised, *_: seen.append(denoised)  # noqa: E731
        plain.sample(noise, latent, sampler, sigmas, callback=watch, disable_pbar=True, seed=SEED)
    return seen[0]


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "euler_ancestral", "euler_cfg_pp", "heun"])
def test_equal_scales_are_plain_cfg_on_the_edit_and_no_beta_is_plain_cfg_on_the_source(
    guided, alone, sampler
):
    settings = {"sampling": {"sampler": sampler}}
    assert near(guided(**EQUAL, **settings), alone(sampler=sampler))
    if sampler != "euler_cfg_pp":  # its steps use the estimate of the null text
        for formula in ("edit - source", "edit - null"):
            found = guided(gamma=CFG, beta=0.0, formula=formula, **settings)
            assert near(found, alone(SOURCE, sampler=sampler))
    assert near(guided(gamma=0.0, beta=CFG, formula="edit - null", **settings), alone(sampler=sampler))


@pytest.fixture
def calls(tiny):
    """Return a MODEL and the list of its calls: what each held of positive (0), negative (1) and source (2)."""
    seen, model = [], tiny[0].clone()

    def wrapper(apply_model, args):
        seen.append((sorted(args["cond_or_uncond"]), len(args["input"])))
        return apply_model(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(wrapper)
    return model, seen


def test_three_predictions_take_one_call_and_outside_of_the_range_it_is_the_hosts_two_or_one(guided, calls):
    model, seen = calls
    guided(model=model, sampling={"batch": 2})
    assert seen == [([0, 1, 2], 6)] * STEPS
    for cfg, kinds in ((CFG, [0, 1]), (1.0, [0])):
        seen.clear()
        guided(model=model, cfg=cfg, end_percent=0.5)
        assert seen[0] == ([0, 1, 2], 3) and seen[-1] == (kinds, len(kinds)) and len(seen) == STEPS


def test_where_memory_is_short_the_predictions_are_made_one_after_the_other(host, guided, calls, monkeypatch):
    model, seen = calls
    whole = guided(model=model)
    seen.clear()
    none = lambda device=None, torch_free_too=False: (0, 0) if torch_free_too else 0  # noqa: E731
    monkeypatch.setattr(host.comfy.model_management, "get_free_memory", none)
    assert near(guided(model=model), whole)
    assert len(seen) == 3 * STEPS and {count for _, count in seen} == {1}


@torch.inference_mode()
def patched(node, model, *widgets):
    """The MODEL of a node of the host, in whichever form this version has it."""
    if hasattr(node, "execute"):
        return node.execute(model, *widgets).args[0]
    return getattr(node(), node.FUNCTION)(model, *widgets)[0]


def test_patches_of_others_act_as_in_the_hosts_sampling(host, guided, alone, tiny):
    """With equal scales: FreeU, perturbed attention, and functions before and after CFG."""
    from comfy_extras.nodes_freelunch import FreeU_V2
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance
    from comfy_extras.nodes_tcfg import TCFG

    freeu = patched(FreeU_V2, tiny[0], 1.3, 1.4, 0.9, 0.2)
    pag = patched(PerturbedAttentionGuidance, freeu, 2.0)
    tcfg = patched(TCFG, tiny[0])
    for model in (freeu, pag, tcfg):
        found, expected = guided(model=model, **EQUAL), alone(model=model)
        assert near(found, expected) and not near(expected, alone(), 1e-2)


def test_functions_before_cfg_get_edit_null_and_source_and_may_return_two(pack, guided, tiny):
    seen = []

    def swap(args):
        seen.append((len(args["conds"]), len(args["conds_out"]), args["cond_scale"]))
        edit, null = args["conds_out"][:2]
        return [edit + 0.5, null]

    model = tiny[0].clone()
    model.set_model_sampler_pre_cfg_function(swap)
    found = guided(model=model, gamma=CFG, beta=0.0)
    assert seen == [(3, 3, CFG)] * STEPS
    assert torch.equal(found, guided(gamma=CFG, beta=0.0))  # the edit does not count
    assert not near(guided(model=model), guided(), 1e-2)


def test_functions_after_cfg_run_in_order_and_the_sampler_gets_what_the_last_returns(guided, tiny):
    model, seen = tiny[0].clone(), []

    def first(args):
        seen.append(args["denoised"])
        return args["denoised"] * 0.5

    def second(args):
        assert torch.equal(args["denoised"], seen[-1] * 0.5)
        assert args["cond"] and args["uncond"] and args["cond_scale"] == 6.0
        return args["denoised"] + 0.1

    for function in (first, second):
        model.set_model_sampler_post_cfg_function(function)
    scales = {"gamma": 2.0, "beta": 6.0}
    assert not near(guided(model=model, **scales), guided(**scales), 1e-2)
    assert len(seen) == STEPS


def test_another_rule_for_cfg_takes_the_place_of_the_first_equation(guided, alone, tiny):
    from comfy_extras.nodes_model_advanced import RescaleCFG

    model = patched(RescaleCFG, tiny[0], 0.7)
    found = guided(model=model, gamma=CFG, beta=0.0)
    assert near(found, alone(SOURCE, model=model)) and not near(found, alone(SOURCE), 1e-2)
    scales = {"gamma": CFG, "beta": 3.0}
    assert not near(guided(model=model, **scales), guided(**scales), 1e-3)
    plain = tiny[0].clone()  # CFG itself, written as such a rule
    plain.set_model_sampler_cfg_function(
        lambda args: args["uncond"] + (args["cond"] - args["uncond"]) * args["cond_scale"]
    )
    assert near(guided(model=plain, **scales), guided(**scales), 1e-3)


def test_a_function_of_others_may_make_the_predictions(host, guided, tiny):
    asked = []

    def calc(args):
        asked.append(len(args["conds"]))
        return host.comfy.samplers.calc_cond_batch(
            args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
        )

    model = tiny[0].clone()
    model.model_options["sampler_calc_cond_batch_function"] = calc
    assert torch.equal(guided(model=model), guided()) and asked == [3] * STEPS


def test_areas_masks_control_nets_and_several_entries_act_as_in_the_host(host, guided, alone, texts, tiny):
    mask = torch.zeros(1, 128, 128)
    mask[..., 64:] = 1
    with torch.inference_mode():
        masked = host.nodes.ConditioningSetMask().append(texts("a photo of a dog"), mask, "default", 1.0)[0]
        several = host.nodes.ConditioningCombine().combine(texts(EDIT), masked)[0]
    hinted = controlled(host, tiny[0], texts(EDIT))
    for edit in (half_area(host, texts(EDIT)), several, hinted):
        expected = alone(edit)
        assert near(guided(SOURCE, edit, **EQUAL), expected) and not near(expected, alone(), 1e-2)
        other = hinted if edit is hinted else EDIT  # the host takes the negative's from the positive
        assert near(guided(edit, other, gamma=CFG, beta=0.0), expected)


def test_a_control_net_of_the_edit_for_all_is_one_of_the_source_too(host, guided, texts, tiny):
    """As the host gives it to a negative that has none."""
    hinted = controlled(host, tiny[0], texts(EDIT))
    assert near(guided(hinted, hinted, gamma=2.0, beta=3.0), guided(SOURCE, hinted, gamma=2.0, beta=3.0)) is (
        False
    )
    same = [[text, dict(settings)] for text, settings in texts(EDIT)]
    assert near(guided(same, hinted, gamma=2.0, beta=3.0), guided(hinted, hinted, gamma=2.0, beta=3.0))


def test_texts_for_parts_of_the_schedule_act_in_them(host, guided, alone, texts):
    """As Null-Text Optimisation gives them."""
    with torch.inference_mode():
        timed = host.nodes.NODE_CLASS_MAPPINGS["ConditioningSetTimestepRange"]()
        parts = [
            timed.set_range(texts(text), *ends)[0] for text, *ends in (("a night", 0, 0.5), ("snow", 0.5, 1))
        ]
        null = parts[0] + parts[1]
    expected = alone(null=null)
    assert near(guided(null=null, **EQUAL), expected) and not near(expected, alone(), 1e-2)
    assert near(guided(null, gamma=CFG, beta=0.0), alone(null))


def test_prompts_of_several_chunks_work(guided, alone):
    assert near(guided(edit=LONG, **EQUAL), alone(LONG))
    assert near(guided(LONG, gamma=CFG, beta=0.0), alone(LONG))


def test_in_a_batch_each_picture_may_have_its_own_prompts(host, guided, tiny):
    sources, edits = (SOURCE, "a photo of a cat at night"), (EDIT, "a photo of a dog at night")
    noise = host.comfy.sample.prepare_noise(empty_latent(batch=2)["samples"], SEED)
    both = guided(sources, edits, sampling={"batch": 2})
    for index in range(2):
        one = guided(sources[index], edits[index], sampling={"noise": noise[index : index + 1]})
        assert near(both[index : index + 1], one)
    assert not near(both[0], both[1], 0.1)
    assert near(guided(SOURCE, edits, sampling={"batch": 2})[:1], both[:1])


def test_other_families_work(host, guided, alone, tiny, xl):
    velocity = as_v_prediction(host, tiny[0])
    assert near(guided(model=velocity, **EQUAL), alone(model=velocity))
    assert near(guided(model=velocity, gamma=CFG, beta=0.0), alone(SOURCE, model=velocity))

    def text(seed):
        random = torch.Generator().manual_seed(seed)
        return [
            [
                torch.randn(1, 77, 64, generator=random),
                {"pooled_output": torch.randn(1, 64, generator=random)},
            ]
        ]

    source, edit, null = text(0), text(1), text(2)
    assert near(guided(source, edit, null, model=xl, **EQUAL), alone(edit, null, model=xl))
    assert near(guided(source, edit, null, model=xl, gamma=CFG, beta=0.0), alone(source, null, model=xl))
    assert not near(alone(source, null, model=xl), alone(edit, null, model=xl), 1e-2)


def test_image_to_image_and_inpainting_work(guided, alone, tiny):
    with torch.inference_mode():
        latent = tiny[2].encode(scene_painting()[0])
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., :64] = 1
    settings = {"latent": latent, "mask": mask}
    found = guided(**EQUAL, sampling=settings)
    assert near(found, alone(**settings))
    kept = mask[:, :, ::8, ::8].expand_as(latent) == 0
    assert near(guided(sampling=settings)[kept], latent[kept])


def test_from_the_noise_of_an_inverted_photo_the_source_is_the_photo_and_the_edit_is_not(
    host, guided, texts, tiny
):
    from guided_synthesis.nodes import inversion

    model, _, vae = tiny
    image, caption = scene_painting()
    with torch.inference_mode():
        photo = vae.encode(image)
        _, noise, _ = inversion.Invert.execute(
            model, texts(caption), 1.0, levels(host, model), {"samples": photo}, "implicit", 0.0001, 30
        ).args
        found = noise.generate_noise({"samples": torch.zeros_like(photo)})
    start = {"sampling": {"noise": found}}
    back = guided(caption, EDIT, gamma=1.0, beta=0.0, **start)
    assert (back - photo).square().mean().sqrt() < 0.05 * photo.std()
    edited = guided(caption, EDIT, gamma=1.0, beta=4.0, **start)
    assert (edited - photo).square().mean().sqrt() > 0.3 * photo.std()


def test_it_works_with_cross_attention_guidance(guided, texts, tiny):
    from guided_synthesis.nodes.cross_attention_guidance import CrossAttentionGuidance

    with torch.inference_mode():
        scales = {f"scale_{scale}": scale > 1 for scale in (1, 2, 4, 8)}
        model = CrossAttentionGuidance.execute(tiny[0], texts(SOURCE), 1.0, 0.0, 1.0, **scales).args[0]
    assert not near(guided(model=model), guided(), 1e-3)


def test_a_guider_gives_the_same_picture_again_and_leaves_nothing_behind(host, guider, alone, tiny):
    before, made = alone(), guider()
    assert torch.equal(run(host, made), run(host, made))
    assert torch.equal(alone(), before)
    options = made.model_patcher.model_options
    assert not any(key.startswith("guided_synthesis") for key in options) and not made._pair


def test_after_an_error_in_the_middle_the_guider_works_as_before(host, guider, tiny):
    fail = [False]

    def watch(args):
        if fail[0]:
            raise RuntimeError("stopped here")
        return args["denoised"]

    model = tiny[0].clone()
    model.set_model_sampler_post_cfg_function(watch)
    made = guider(model=model)
    before = run(host, made)
    fail[0] = True
    with pytest.raises(RuntimeError, match="stopped here"):
        run(host, made)
    fail[0] = False
    assert not made._pair and torch.equal(run(host, made), before)


def test_a_reversed_range_is_one_sentence(pack, guider):
    with pytest.raises(ValueError, match=r"start_percent \(0.8\) must be smaller than end_percent \(0.2\)"):
        guider(start_percent=0.8, end_percent=0.2)
    assert "Swap the two values" in pack.node.validate_inputs(start_percent=0.8, end_percent=0.2)
    assert pack.node.validate_inputs(start_percent=None, end_percent=0.2) is True
