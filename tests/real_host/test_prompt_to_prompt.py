"""Prompt-to-prompt on the real host: the source is as if alone, the target takes what the edits say, in any company."""

import copy
from types import SimpleNamespace

import pytest
import torch

from real_host.models import control_net
from real_host.sampling import SEED, STEPS, conditioning, empty_latent, scene_painting

SOURCE, TARGET = "a photo of a fox and an apple in the snow", "a photo of a panda and an apple in the snow"
REFINED = "a photo of a red fox and an apple in the snow"
LONG = SOURCE + ", a photo of a sailboat at night" * 12
CFG = 3.0
NEVER = {"cross_end": 0.0, "self_end": 0.0}


@pytest.fixture(scope="module")
def pack(host):
    from guided_synthesis.nodes import prompt, prompt_to_prompt
    from guided_synthesis.nodes.host import prompt_to_prompt as guider
    from guided_synthesis.nodes.host import tied_noise

    return SimpleNamespace(
        prompt=prompt, nodes=prompt_to_prompt, guider=guider.PairGuider, noise=tied_noise.TiedNoise
    )


@pytest.fixture(scope="module")
def marked(pack, tiny):
    """Return the function that makes CONDITIONING of a text, which knows its words."""

    def make(text):
        with torch.inference_mode():
            return pack.prompt.PromptWords.execute(tiny[1], text).args[0]

    return make


def defaults(node):
    return {e.id: e.default for e in node.define_schema().inputs if getattr(e, "default", None) is not None}


@pytest.fixture(scope="module")
def edit(pack):
    """Return the function that makes edits."""

    def make(kind, edits=(), **widgets):
        node = pack.nodes.AttentionEdit
        return node.execute(**(defaults(node) | {"kind": kind, "edits": edits} | widgets)).args[0]

    return make


@pytest.fixture(scope="module")
def blend(pack):
    """Return the function that adds a local blend to edits."""

    def make(edits=(), **widgets):
        node = pack.nodes.LocalBlendNode
        return node.execute(**(defaults(node) | {"edits": edits} | widgets)).args[0]

    return make


@pytest.fixture(scope="module")
def pair(host, pack, tiny, marked):
    """Return the function that samples source and target: (2 B, C, h, w)."""

    def make(edits=(), source=SOURCE, target=TARGET, model=None, cfg=CFG, guider=None, **settings):
        texts = [marked(text) if isinstance(text, str) else text for text in (source, target)]
        model = model or tiny[0]
        if guider is None:
            node = pack.nodes.PromptToPromptGuider
            guider = node.execute(model, *texts, conditioning(tiny[1], ""), cfg, edits).args[0]
        return run(host, guider, model, **settings)

    return make


def run(
    host, guider, model, sampler="euler", latent=None, denoise=1.0, batch=1, mask=None, seed=SEED, steps=STEPS
):
    """Sample with a guider as SamplerCustomAdvanced does."""
    latent = empty_latent(batch=batch)["samples"] if latent is None else latent
    sampling = model.get_model_object("model_sampling")
    sigmas = host.comfy.samplers.calculate_sigmas(sampling, "normal", int(steps / denoise))[-(steps + 1) :]
    with torch.inference_mode():
        noise = host.comfy.sample.prepare_noise(latent, seed)
        sampler = host.comfy.samplers.sampler_object(sampler)
        return guider.sample(noise, latent, sampler, sigmas, denoise_mask=mask, disable_pbar=True, seed=seed)


@pytest.fixture(scope="module")
def alone(host, tiny):
    """Return the function that samples one text as the host does: (B, C, h, w)."""

    def make(text, model=None, cfg=CFG, **settings):
        guider = host.comfy.samplers.CFGGuider(model or tiny[0])
        text = conditioning(tiny[1], text) if isinstance(text, str) else text
        guider.set_conds(text, conditioning(tiny[1], ""))
        guider.set_cfg(cfg)
        return run(host, guider, model or tiny[0], **settings)

    return make


def near(found, expected, share=2e-3):
    """Batches of other sizes go through other kernels, so a batch of two is not its halves to the bit."""
    return torch.allclose(found, expected, atol=share * expected.abs().max().item())


def test_every_sampler_gives_the_source_as_if_alone_and_the_target_without_edits_too(host, pair, alone, edit):
    """Also those that add noise on the way. dpm_adaptive chooses its steps by the whole batch, as it always does."""
    names = [name for name in host.comfy.samplers.KSampler.SAMPLERS if name != "dpm_adaptive"]
    off, wrong = edit("replace", **NEVER), {}
    for name in names:
        found = pair(off, sampler=name, steps=3)
        expected = [alone(text, sampler=name, steps=3) for text in (SOURCE, TARGET)]
        ok = [near(half, whole) for half, whole in zip(found.chunk(2), expected, strict=True)]
        if not all(ok) or near(*expected):
            wrong[name] = ok
    assert len(names) > 35 and not wrong


@pytest.mark.parametrize("name", ["euler", "euler_ancestral", "dpmpp_2m_sde", "dpm_adaptive"])
def test_the_source_is_to_the_bit_that_of_a_plain_batch_of_two(host, pack, pair, tiny, edit, name):
    """The host itself, with both texts in one condition and the same noise for both."""
    texts = torch.cat([conditioning(tiny[1], text)[0][0] for text in (SOURCE, TARGET)])

    class Plain(host.comfy.samplers.CFGGuider):
        def inner_sample(self, noise, *args, **kwargs):
            with pack.noise(noise.shape[0]):
                return super().inner_sample(noise, *args, **kwargs)

        def sample(self, noise, latent, *args, **kwargs):
            return super().sample(*(torch.cat([x, x]) for x in (noise, latent)), *args, **kwargs)

    guider = Plain(tiny[0])
    guider.set_conds([[texts, {}]], conditioning(tiny[1], ""))
    guider.set_cfg(CFG)
    expected = run(host, guider, tiny[0], sampler=name)
    assert torch.equal(pair(edit("replace", **NEVER), sampler=name), expected)
    if name != "dpm_adaptive":
        assert torch.equal(pair(edit("replace"), sampler=name)[:1], expected[:1])


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2s_ancestral", "uni_pc"])
@pytest.mark.parametrize("kind", ["replace", "refine", "reweight"])
def test_equal_prompts_give_equal_pictures_and_a_reweight_by_one_too(pair, edit, kind, sampler):
    widgets = {"words": "fox", "amount": 1.0} if kind == "reweight" else {}
    source, target = pair(edit(kind, cross_end=1.0, **widgets), target=SOURCE, sampler=sampler).chunk(2)
    assert near(target, source)


@pytest.mark.parametrize("kind, target", [("replace", TARGET), ("refine", REFINED), ("reweight", SOURCE)])
def test_an_edit_changes_the_target_and_never_the_source(pair, alone, edit, kind, target):
    widgets = {"words": "apple", "amount": -2.0} if kind == "reweight" else {}
    found = pair(edit(kind, **widgets), target=target)
    assert near(found[:1], alone(SOURCE))
    assert not near(found[1:], alone(target)) and not near(found[1:], found[:1])


def attended(q, k, v, heads, change=lambda maps: maps):
    """Attention written out: (B, N, C)."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    maps = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return (change(maps) @ v).transpose(1, 2).flatten(2)


LAYERS = [("input", 1, 0), ("input", 3, 0), ("middle", 0, 0)] + [("output", i, 0) for i in range(2, 6)]


def by_hand(model, slot, change):
    """A clone whose maps of the positive (first picture source, second target) are `change`d, by the host's patch."""

    def replace(q, k, v, options):
        count = len(options["cond_or_uncond"])
        parts = zip(options["cond_or_uncond"], *(x.chunk(count) for x in (q, k, v)), strict=True)
        same = lambda maps: maps  # noqa: E731
        heads = options["n_heads"]
        return torch.cat([attended(*qkv, heads, change if kind == 0 else same) for kind, *qkv in parts])

    patched = model.clone()
    for layer in LAYERS:
        getattr(patched, f"set_model_{slot}_replace")(replace, *layer)
    return patched


def first_for_both(maps):
    """The source's maps for the target."""
    return maps[:1].expand_as(maps)


def test_shared_self_attention_and_replaced_maps_are_those_written_out(pair, tiny, edit):
    off = edit("replace", **NEVER)
    own = pair(edit("replace", cross_end=0.0, self_end=1.0))
    assert near(own, pair(off, model=by_hand(tiny[0], "attn1", first_for_both)))
    cross = pair(edit("replace", cross_end=1.0, self_end=0.0))
    assert near(cross, pair(off, model=by_hand(tiny[0], "attn2", first_for_both)))
    plain = pair(off)
    assert not near(own, plain) and not near(cross, plain)


def test_a_range_ends_where_it_says(pair, tiny, edit):
    assert not near(pair(edit("replace", cross_end=0.3)), pair(edit("replace", cross_end=0.9)))
    late = pair(edit("replace", cross_start=0.9, cross_end=0.97, self_end=0.0))
    assert torch.equal(late, pair(edit("replace", **NEVER)))  # no step lies there


@pytest.mark.parametrize(
    "sampler", ["euler", "dpmpp_2m", "euler_ancestral", "lms", "heun", "dpmpp_2m_cfg_pp"]
)
def test_outside_of_the_local_blend_the_target_is_the_source_to_the_bit(pair, edit, blend, sampler):
    edits = blend(edit("replace"), source_words="fox", target_words="panda", threshold=0.6)
    source, target = pair(edits, sampler=sampler).chunk(2)
    same = (source == target).all(1)
    assert 0.2 < same.float().mean() < 0.98
    assert not torch.equal(source, target)


def test_a_blend_of_everything_is_none_and_one_that_never_starts_is_none(pair, edit, blend):
    words = {"source_words": "fox", "target_words": "panda"}
    plain = pair(edit("replace"))
    assert near(pair(blend(edit("replace"), threshold=0.0, **words)), plain)
    late = pair(blend(edit("replace"), threshold=0.99, start_percent=1.0, **words))
    assert torch.equal(late, plain)


def test_subtracted_words_keep_their_place(pair, edit, blend):
    words = {"source_words": "fox", "target_words": "panda", "threshold": 0.2}
    kept, all_ = (
        pair(blend(edit("replace"), subtract=subtract, **words)) for subtract in ("apple, snow", "")
    )
    same = [(a == b).all(1).float().mean() for a, b in (kept.chunk(2), all_.chunk(2))]
    assert same[0] > same[1]


def test_batches_hold_sources_first_then_targets_each_with_its_own_noise(pair, alone, edit, blend):
    found = pair(edit("replace", **NEVER), batch=2)
    assert near(found, torch.cat([alone(text, batch=2) for text in (SOURCE, TARGET)]))
    edits = blend(edit("replace"), source_words="fox", target_words="panda", threshold=0.6)
    both = pair(edits, batch=2)
    assert both.shape[0] == 4 and not near(both[0], both[1])
    assert near(both[:2], alone(SOURCE, batch=2)) and not near(both[2:], both[:2])


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral"])
def test_cfg_1_image_to_image_and_inpainting_give_the_source_as_if_alone(pair, alone, tiny, edit, sampler):
    with torch.inference_mode():
        latent = tiny[2].encode(scene_painting()[0]).repeat(2, 1, 1, 1)
    mask = torch.zeros(2, 1, 128, 128)
    mask[0, ..., :64], mask[1, ..., 64:] = 1, 1
    for settings in ({"cfg": 1.0}, {"latent": latent, "denoise": 0.5}, {"latent": latent, "mask": mask}):
        settings["sampler"] = sampler
        off = pair(edit("replace", **NEVER), **settings)
        on = pair(edit("replace"), **settings)
        expected = torch.cat([alone(text, **settings) for text in (SOURCE, TARGET)])
        assert near(off, expected) and near(on.chunk(2)[0], expected.chunk(2)[0])
        assert not near(on, off)
        if "mask" in settings:
            kept = mask[:, :, ::8, ::8].expand_as(latent) == 0
            assert all(near(half[kept], latent[kept]) for half in on.chunk(2))


@pytest.mark.parametrize("texts", [(SOURCE, LONG), (LONG, TARGET), (LONG, LONG.replace("fox", "panda"))])
def test_prompts_of_several_chunks_work_beside_short_ones(pair, alone, edit, texts):
    found = pair(edit("replace", **NEVER), *texts)
    assert near(found, torch.cat([alone(text) for text in texts]))
    edited = pair(edit("refine"), *texts)
    assert near(edited[:1], found[:1]) and not near(edited[1:], found[1:])


def test_combined_conditions_are_paired_in_order_and_each_pair_has_its_own_words(
    host, pair, alone, marked, edit
):
    snow, night = "in the snow", "at night"
    with torch.inference_mode():
        combine = host.nodes.ConditioningCombine().combine
        source = combine(marked(SOURCE), marked(snow))[0]
        target = combine(marked(TARGET), marked(night))[0]
    found = pair(edit("replace", **NEVER), source, target)
    assert near(found, torch.cat([alone(text) for text in (source, target)]))
    whole = pair(edit("replace"), source, target)
    some = pair(edit("replace", words="panda"), source, target)
    assert near(whole[:1], found[:1]) and not near(whole[1:], found[1:]) and not near(some[1:], whole[1:])
    with pytest.raises(
        ValueError, match="source has 2 conditions and target 1; .* Build both in the same way"
    ):
        pair((), source, marked(TARGET))


def test_areas_and_control_nets_of_the_conditions_stay_in_force(host, pair, alone, marked, edit, tiny):
    hint = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        area = host.nodes.ConditioningSetArea()
        parts = [area.append(marked(text), 64, 128, 64, 0, 1.0)[0] for text in (SOURCE, TARGET)]
        apply = host.nodes.ControlNetApply().apply_controlnet
        net = control_net(host, tiny[0])
        hinted = [apply(marked(text), net, hint, 1.0)[0] for text in (SOURCE, TARGET)]
    for source, target in (parts, hinted):
        found = pair(edit("replace", **NEVER), source, target)
        assert near(found, torch.cat([alone(text) for text in (source, target)]))
        assert not near(found[:1], alone(SOURCE))
        edited = pair(edit("replace"), source, target)
        assert near(edited[:1], found[:1]) and not near(edited[1:], found[1:])


def test_regions_of_a_prompt_act_on_its_own_half(pair, alone, pack, tiny, marked, edit):
    """Also where a region's words stand elsewhere in the other prompt."""
    from guided_synthesis.nodes import attention_regions as regions

    mask = torch.zeros(1, 128, 128)
    mask[..., :64] = 1

    def injected(text):
        with torch.inference_mode():
            words = pack.prompt.PromptWords.execute(tiny[1], text).args[1]
        region = regions.AttentionRegion.execute(words, "apple", mask, 1.5).args[0]
        node = regions.CrossAttentionInjector
        return node.execute(tiny[0], region, **defaults(node)).args[0]

    off = edit("replace", **NEVER)
    for name, text in ((0, SOURCE), (1, REFINED)):
        model = injected(text)
        found = pair(off, target=REFINED, model=model)
        expected = [alone(SOURCE), alone(REFINED)]
        plain = expected[name]
        expected[name] = alone(marked(text), model=model)
        assert near(found, torch.cat(expected)) and not near(plain, expected[name])
    both = pair(edit("refine"), target=REFINED, model=injected(SOURCE))
    assert near(both[:1], alone(marked(SOURCE), model=injected(SOURCE)))


def test_a_recorder_in_the_graph_records_the_pictures_of_its_prompt(pair, pack, tiny, edit):
    from guided_synthesis.nodes import attention_maps

    for text, pictures in ((SOURCE, 1), (REFINED, 1)):
        with torch.inference_mode():
            words = pack.prompt.PromptWords.execute(tiny[1], text).args[1]
            model, maps = attention_maps.AttentionRecorder.execute(
                tiny[0], words, scale_1=True, scale_2=True, scale_4=False, scale_8=False
            ).args
        latents = pair(edit("refine"), target=REFINED, model=model)
        recording = maps.of(latents)
        assert recording.heat(words.find("fox")).shape == (pictures, 1, 16, 16)
        assert torch.equal(latents, pair(edit("refine"), target=REFINED))


def test_a_painting_guide_in_the_graph_guides_both(host, pair, tiny, edit):
    from guided_synthesis.nodes import painting_guide

    node = painting_guide.PaintingGuide
    painting, _ = scene_painting()
    with torch.inference_mode():
        model = node.execute(tiny[0], tiny[2], painting, **defaults(node)).args[0]
    found, plain = pair(edit("replace"), model=model), pair(edit("replace"))
    assert found.isfinite().all() and not near(found[:1], plain[:1]) and not near(found[1:], plain[1:])
    with torch.inference_mode():
        goal = tiny[2].encode(painting)
    assert all((a - goal).norm() < (b - goal).norm() for a, b in zip(found, plain, strict=True))
    same = pair(edit("replace", cross_end=1.0), model=model, target=SOURCE, sampler="euler_ancestral")
    assert near(*same.chunk(2))  # the same noise in both, also between the guide's stretches


def test_what_other_packs_put_into_the_slots_still_acts(pair, tiny, edit):
    def faded(q, k, v, options):
        return 0.8 * attended(q, k, v, options["n_heads"])

    model = tiny[0].clone()
    for layer in LAYERS:
        model.set_model_attn1_replace(faded, *layer)
        model.set_model_attn2_replace(faded, *layer)
    off, on = (pair(edits, model=model) for edits in (edit("replace", **NEVER), edit("replace")))
    assert near(on[:1], off[:1]) and not near(on[1:], off[1:])
    assert not near(off, pair(edit("replace", **NEVER)))


def test_the_model_is_called_as_often_as_for_a_plain_batch_of_two(pair, tiny, edit, blend):
    calls = []

    def counting(apply_model, args):
        calls.append(tuple(args["input"].shape))
        return apply_model(args["input"], args["timestep"], **args["c"])

    model = tiny[0].clone()
    model.set_model_unet_function_wrapper(counting)
    pair(blend(edit("replace"), source_words="fox"), model=model)
    assert calls == [(4, 4, 16, 16)] * STEPS


def test_a_split_batch_gives_the_same_pictures(pair, tiny, edit, blend, monkeypatch):
    edits = edit("replace", cross_end=1.0)
    merged = pair(edits)
    monkeypatch.setattr(tiny[0].model, "memory_required", lambda *args, **kwargs: 1e18)
    assert near(pair(edits), merged)


def test_a_guider_used_again_gives_the_same_and_keeps_nothing(host, pair, pack, tiny, marked, edit, blend):
    edits = blend(edit("replace"), source_words="fox", target_words="panda")
    both = marked(SOURCE), marked(TARGET)
    guider = pack.nodes.PromptToPromptGuider.execute(
        tiny[0], *both, conditioning(tiny[1], ""), CFG, edits
    ).args[0]
    kept = set(vars(guider))
    first = pair(guider=guider)
    other = pair(guider=guider, batch=2, latent=torch.zeros(2, 4, 9, 13), seed=SEED + 1)
    assert other.shape == (4, 4, 9, 13)
    assert torch.equal(pair(guider=guider), first)
    assert set(vars(guider)) == kept and guider.original_conds == {} and not guider._blender._sums


def test_the_host_s_own_node_returns_both_pictures(host, pair, pack, tiny, marked, edit):
    from comfy_extras import nodes_custom_sampler as custom

    with torch.inference_mode():
        guider = pack.nodes.PromptToPromptGuider.execute(
            tiny[0], marked(SOURCE), marked(TARGET), conditioning(tiny[1], ""), CFG, edit("replace")
        ).args[0]
        sampling = tiny[0].get_model_object("model_sampling")
        sigmas = host.comfy.samplers.calculate_sigmas(sampling, "normal", STEPS)
        sampler = host.comfy.samplers.sampler_object("euler")
        noise = custom.Noise_RandomNoise(SEED)
        node = custom.SamplerCustomAdvanced
        call = node.execute if hasattr(node, "execute") else node().sample
        out = call(noise, guider, sampler, sigmas, empty_latent())
    out = getattr(out, "args", None) or out.result if not isinstance(out, tuple) else out
    assert torch.equal(out[0]["samples"], pair(edit("replace")))
    assert out[1]["samples"].shape == (2, 4, 16, 16)


@pytest.mark.parametrize("interrupt", [False, True])
def test_an_error_inside_leaves_nothing_behind(host, pair, alone, tiny, edit, blend, interrupt):
    before, options = alone(SOURCE), copy.deepcopy(tiny[0].model_options)
    error = host.comfy.model_management.InterruptProcessingException if interrupt else ZeroDivisionError

    def failing(apply_model, args):
        raise error

    model = tiny[0].clone()
    model.set_model_unet_function_wrapper(failing)
    with pytest.raises(error):
        pair(blend(edit("replace"), source_words="fox"), model=model)
    noise = torch.randn(2, 3)
    assert not torch.equal(noise[0], noise[1])
    assert tiny[0].model_options == options and torch.equal(alone(SOURCE), before)


def test_noise_is_tied_for_batches_of_the_size_only_and_as_a_half_batch_would_get_it(pack):
    def drawn(tied, make):
        torch.manual_seed(5)
        if not tied:
            return make()
        with pack.noise(4):
            return make()

    like = torch.zeros(4, 3, 5)
    for whole, half in (
        (lambda: torch.randn_like(like), lambda: torch.randn_like(like[:2])),
        (lambda: torch.randn(4, 3, 5), lambda: torch.randn(2, 3, 5)),
        (lambda: torch.randn((4, 3, 5)), lambda: torch.randn(2, 3, 5)),
        (lambda: torch.randn(like.shape), lambda: torch.randn(2, 3, 5)),
        (lambda: torch.randn(size=(4, 3, 5)), lambda: torch.randn(2, 3, 5)),
    ):
        tied = drawn(True, whole)
        assert torch.equal(tied[:2], tied[2:]) and torch.equal(tied[:2], drawn(False, half))
    for make in (
        lambda: torch.randn(3, 4),
        lambda: torch.randn(()),
        lambda: torch.randn(4),
        lambda: torch.rand(4, 3),
        lambda: torch.randn_like(like[:3]),
    ):
        assert torch.equal(drawn(True, make), drawn(False, make))


def test_noise_that_the_network_draws_is_its_own_affair(pair, tiny, edit):
    drawn = []

    def noisy(apply_model, args):
        drawn.append(torch.randn(args["input"].shape[0] // 2, 3))
        return apply_model(args["input"], args["timestep"], **args["c"])

    model = tiny[0].clone()
    model.set_model_unet_function_wrapper(noisy)
    pair(edit("replace"), model=model)
    assert len(drawn) == STEPS and not any(torch.equal(noise[0], noise[1]) for noise in drawn)


def test_sdxl_takes_the_pooled_text_of_each_half(host, pair, alone, tiny, marked, edit, xl):
    generator = torch.Generator().manual_seed(0)
    pooled = [torch.randn(1, 64, generator=generator) for _ in range(2)]
    texts = [
        [[text, settings | {"pooled_output": part}]]
        for ((text, settings),), part in zip(map(marked, (SOURCE, TARGET)), pooled, strict=True)
    ]
    negative = [[conditioning(tiny[1], "")[0][0], {"pooled_output": torch.zeros(1, 64)}]]
    from guided_synthesis.nodes import prompt_to_prompt

    def guider(edits):
        return prompt_to_prompt.PromptToPromptGuider.execute(xl, *texts, negative, CFG, edits).args[0]

    def plain(text):
        own = host.comfy.samplers.CFGGuider(xl)
        own.set_conds(text, negative)
        own.set_cfg(CFG)
        return run(host, own, xl, batch=2)

    off = run(host, guider(edit("replace", **NEVER)), xl, batch=2)
    assert near(off, torch.cat([plain(text) for text in texts]))
    assert not near(plain(texts[0]), plain([[texts[0][0][0], {"pooled_output": pooled[1]}]]))
    on = run(host, guider(edit("replace")), xl, batch=2)
    assert near(on[:2], off[:2]) and not near(on[2:], off[2:], 1e-5)


def test_without_edits_words_are_swapped_if_there_are_as_many_else_refined(pair, edit):
    assert torch.equal(pair(()), pair(edit("replace")))
    assert torch.equal(pair((), target=REFINED), pair(edit("refine"), target=REFINED))


def test_the_guider_shows_which_word_stands_for_which(pack, tiny, marked):
    def shown(target):
        texts = marked(SOURCE), marked(target), conditioning(tiny[1], "")
        return pack.nodes.PromptToPromptGuider.execute(tiny[0], *texts, CFG).ui.as_dict()["text"][0]

    assert "fox -> panda" in shown(TARGET) and "apple -> apple" in shown(TARGET)
    assert "(new) -> red" in shown(REFINED)


def test_what_does_not_fit_is_one_sentence(pair, tiny, edit, blend):
    plain = conditioning(tiny[1], SOURCE)
    with pytest.raises(ValueError, match="source does not know its words. .* Prompt with Words"):
        pair((), plain)
    with pytest.raises(ValueError, match="target does not know its words. .* Prompt with Words"):
        pair((), target=plain)
    for edits in (edit("replace", words="dog"), blend(source_words="panda"), blend(target_words="dog")):
        with pytest.raises(
            ValueError, match="The prompt does not contain '(dog|panda)'. Its words: a, photo"
        ):
            pair(edits)
    with pytest.raises(ValueError, match="local blend has no words"):
        pair(blend())
    with pytest.raises(
        ValueError, match="scale 1/8, but this model has cross-attention only at 1/1, 1/2, 1/4"
    ):
        pair(blend(source_words="fox", scale="1/8"))
    with pytest.raises(ValueError, match="reweight needs words"):
        edit("reweight")
    with pytest.raises(ValueError, match=r"cross_start \(0.9\) is larger than cross_end \(0.8\)"):
        edit("replace", cross_start=0.9)
    with pytest.raises(ValueError, match="families SD 1.x, SD 2.x or SDXL"):
        pair((), model=SimpleNamespace(model=SimpleNamespace(diffusion_model=torch.nn.Linear(1, 1))))
