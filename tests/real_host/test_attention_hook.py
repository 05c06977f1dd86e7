"""The hook into the host's attention: what an editor returns is what the layer does, in every company."""

import copy
from types import SimpleNamespace

import pytest
import torch

from guided_synthesis.attention.maps import SCALES, STAGES
from real_host.models import control_net
from real_host.sampling import SEED, STEPS, conditioning, empty_latent, sample

TEXT = "a photo of a fox and an apple in the snow"
LONG = TEXT + ", a photo of a sailboat at night" * 12


@pytest.fixture(scope="module")
def hook(host):
    from guided_synthesis.nodes.host import attention_hook

    return attention_hook


@pytest.fixture(scope="module")
def marked(host, tiny):
    """Return the function that makes (CONDITIONING, Prompt) of a text."""
    from guided_synthesis.nodes.host.prompts import encode

    def make(text=TEXT):
        with torch.inference_mode():
            return encode(tiny[1], text)

    return make


class Editor:
    """Turns the maps of one prompt's conditions into `change(maps)`, and notes the calls."""

    def __init__(self, prompt, change=lambda maps: maps):
        self.prompt, self.change, self.calls = prompt, change, []

    def reads(self, layer, condition, progress):
        """Read every layer."""
        return condition.prompt == self.prompt

    def edit(self, maps, call):
        """Note the call and change the maps."""
        self.calls.append(call)
        return self.change(maps)


def louder(maps):
    """The word `fox` counts thrice."""
    maps = maps.clone()
    maps[..., 5] *= 3
    return maps


def attended(q, k, v, heads, change=lambda maps: maps):
    """Attention written out: (B, N, C)."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    maps = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return (change(maps) @ v).transpose(1, 2).flatten(2)


def by_hand(model, change, kind=0, foreign=None, layers=None):
    """A clone whose cross-attention is written out for the conditions of `kind`, by the host's own patch."""

    def replace(q, k, v, options):
        count = len(options["cond_or_uncond"])
        parts = []
        for number, *qkv in zip(options["cond_or_uncond"], *(x.chunk(count) for x in (q, k, v)), strict=True):
            out = attended(*qkv, options["n_heads"], change if number == kind else lambda maps: maps)
            parts.append(
                out if foreign is None else out + foreign(*qkv, options) - attended(*qkv, options["n_heads"])
            )
        return torch.cat(parts)

    patched = model.clone()
    for block, number, index in layers or LAYERS:
        patched.set_model_attn2_replace(replace, block, number, index)
    return patched


LAYERS = [("input", 1, 0), ("input", 3, 0), ("middle", 0, 0)] + [("output", i, 0) for i in range(2, 6)]


def near(found, expected):
    return torch.allclose(found, expected, atol=2e-3 * expected.abs().max().item())


def faded(q, k, v, options):
    """What another pack might put into the slot."""
    return 0.8 * attended(q, k, v, options["n_heads"])


def test_the_layers_are_those_of_the_network(hook, tiny):
    found = hook.cross_attention_layers(tiny[0].model.diffusion_model)
    assert {key for key in found} == set(LAYERS)
    assert {layer.scale for layer in found.values()} == {1, 2, 4}
    assert {layer.stage for layer in found.values()} == set(STAGES)


def test_layers_have_the_grids_of_their_scales_at_any_size(host, hook, tiny, marked):
    positive, prompt = marked()
    for height, width in ((128, 128), (72, 200), (88, 136)):
        editor = Editor(prompt)
        model = hook.edit_attention(tiny[0], editor)
        sample(host, model, tiny[1], positive=positive, steps=1, latent=empty_latent(height, width))
        assert {call.layer.key for call in editor.calls} == set(LAYERS)
        for call in editor.calls:
            assert call.layer.scale in SCALES
            assert call.grid == tuple(-(-side // 8 // call.layer.scale) for side in (height, width))
            assert call.condition.latent == (height // 8, width // 8)


def test_an_editor_that_only_looks_leaves_the_picture_to_the_bit(host, hook, tiny, marked):
    positive, prompt = marked()
    editor, shapes = Editor(prompt), []
    editor.change = lambda maps: shapes.append(maps) or maps
    found = sample(host, hook.edit_attention(tiny[0], editor), tiny[1], positive=positive)
    assert torch.equal(found, sample(host, tiny[0], tiny[1], positive=positive))
    assert len(editor.calls) == len(LAYERS) * STEPS
    assert all(torch.allclose(maps.sum(-1), torch.ones(()), atol=1e-5) for maps in shapes)
    progress = [call.progress for call in editor.calls]
    assert progress == sorted(progress) and progress[0] < 1e-5 and 0.8 < progress[-1] <= 1


def test_progress_is_the_percent_of_the_host(host, hook, tiny):
    sampling = tiny[0].get_model_object("model_sampling")
    for percent in (0.0, 0.2, 0.5, 0.9):
        sigma = torch.tensor(min(sampling.percent_to_sigma(percent), float(sampling.sigma_max)))
        assert hook.progress_of(sampling, sigma) == pytest.approx(percent, abs=1.1e-3)


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_changed_maps_act_as_attention_written_out(host, hook, tiny, marked, cfg):
    positive, prompt = marked()
    edited = sample(
        host, hook.edit_attention(tiny[0], Editor(prompt, louder)), tiny[1], positive=positive, cfg=cfg
    )
    expected = sample(host, by_hand(tiny[0], louder), tiny[1], positive=positive, cfg=cfg)
    assert near(edited, expected)
    assert not near(edited, sample(host, tiny[0], tiny[1], positive=positive, cfg=cfg))


@pytest.mark.parametrize("order", ["theirs first", "ours first"])
def test_what_another_pack_put_into_the_slot_still_acts_with_ours_added(host, hook, tiny, marked, order):
    positive, prompt = marked()
    editor, model = Editor(prompt, louder), tiny[0].clone()
    if order == "ours first":
        model = hook.edit_attention(model, editor).clone()
    for block, number, index in LAYERS[:-1]:
        model.set_model_attn2_replace(faded, block, number, index)
    model.set_model_attn2_replace(faded, *LAYERS[-1][:2])  # for the whole block, as some packs do
    if order == "theirs first":
        model = hook.edit_attention(model, editor)
    found = sample(host, model, tiny[1], positive=positive)
    assert near(found, sample(host, by_hand(tiny[0], louder, foreign=faded), tiny[1], positive=positive))
    assert not near(found, sample(host, by_hand(tiny[0], louder), tiny[1], positive=positive))


def test_editors_act_one_after_the_other_and_every_clone_has_the_same(host, hook, tiny, marked):
    """Older hosts copy a model's options in depth whenever a node clones it."""
    positive, prompt = marked()
    first, second = Editor(prompt, louder), Editor(prompt, lambda maps: maps * 0.9)
    model = hook.edit_attention(hook.edit_attention(tiny[0], first).clone(), second).clone()
    found = sample(host, model, tiny[1], positive=positive)
    assert len(first.calls) == len(second.calls) == len(LAYERS) * STEPS
    assert near(found, sample(host, by_hand(tiny[0], lambda m: louder(m) * 0.9), tiny[1], positive=positive))


def test_a_clone_in_two_samplers_gives_each_its_own(host, hook, tiny, marked):
    positive, prompt = marked()
    model = hook.edit_attention(tiny[0], Editor(prompt, louder))
    first = sample(host, model, tiny[1], positive=positive)
    other = sample(host, model, tiny[1], positive=positive, seed=SEED + 1, latent=empty_latent(96, 160))
    assert torch.equal(sample(host, model, tiny[1], positive=positive), first)
    assert other.shape[-2:] == (12, 20)


def test_only_the_positive_that_carries_the_prompt_is_edited(host, hook, tiny, marked):
    positive, prompt = marked()
    editor = Editor(prompt, louder)
    both = positive + conditioning(tiny[1], "a photo of a dog at night")
    found = sample(host, hook.edit_attention(tiny[0], editor), tiny[1], positive=both)
    assert not near(found, sample(host, tiny[0], tiny[1], positive=both))
    assert not near(found, sample(host, by_hand(tiny[0], louder), tiny[1], positive=both))  # which edits both
    assert len(editor.calls) == len(LAYERS) * STEPS
    assert all(call.condition.noted for call in editor.calls)


@pytest.mark.parametrize("texts", [(TEXT, LONG), (LONG, TEXT)])
def test_texts_of_unequal_length_in_one_batch_are_edited_as_if_alone(
    host, hook, tiny, marked, monkeypatch, texts
):
    """The host repeats the shorter one, so the same maps come out whether the batch is split or not."""
    (positive, prompt), other = marked(texts[0]), conditioning(tiny[1], texts[1])
    widths = []

    def change(maps):
        widths.append(maps.shape[-1])
        return louder(maps)

    model = hook.edit_attention(tiny[0], Editor(prompt, change))
    merged = sample(host, model, tiny[1], positive=positive + other)
    monkeypatch.setattr(tiny[0].model, "memory_required", lambda *args, **kwargs: 1e18)
    assert near(sample(host, model, tiny[1], positive=positive + other), merged)
    assert set(widths) == {prompt.length}


def test_tokens_that_another_pack_adds_stay_as_they_are(host, hook, tiny, marked):
    """One that appends to the text: what it appends is no copy of the text, though it may be as long."""
    positive, prompt = marked()
    extra = torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(0))

    def append(n, context, value, options):
        longer = torch.cat([context, extra.expand(len(context), -1, -1)], 1)
        return n, longer, longer

    model = tiny[0].clone()
    model.set_model_attn2_patch(append)
    found = sample(host, hook.edit_attention(model, Editor(prompt, louder)), tiny[1], positive=positive)
    assert near(found, sample(host, by_hand(model, louder), tiny[1], positive=positive))


def test_a_text_replaced_by_a_shorter_one_is_left_alone(host, hook, tiny, marked):
    positive, prompt = marked()
    model, editor = tiny[0].clone(), Editor(prompt, louder)
    model.set_model_attn2_patch(lambda n, context, value, options: (n, context[:, :4], context[:, :4]))
    found = sample(host, hook.edit_attention(model, editor), tiny[1], positive=positive)
    assert torch.equal(found, sample(host, model, tiny[1], positive=positive)) and not editor.calls


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_a_split_batch_gives_the_same_picture(host, hook, tiny, marked, monkeypatch, cfg):
    positive, prompt = marked()
    model, calls = hook.edit_attention(tiny[0], Editor(prompt, louder)), []

    def counting(apply_model, args):
        calls.append(len(args["cond_or_uncond"]))
        return apply_model(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(counting)
    merged = sample(host, model, tiny[1], positive=positive, cfg=cfg)
    monkeypatch.setattr(tiny[0].model, "memory_required", lambda *args, **kwargs: 1e18)
    split = sample(host, model, tiny[1], positive=positive, cfg=cfg)
    assert near(split, merged)
    merged_size = 1 if cfg == 1 else 2
    assert calls == [merged_size] * STEPS + [1] * STEPS * merged_size


def test_the_negative_is_not_edited_by_an_area_of_the_positive(host, hook, tiny, marked):
    """The host then lists a copy of the positive's entry, uuid and all, among the negatives."""
    positive, prompt = marked()
    with torch.inference_mode():
        area = host.nodes.ConditioningSetArea().append(positive, 64, 128, 64, 0, 1.0)[0]
    texts = area + conditioning(tiny[1], "in the snow")
    editor = Editor(prompt, louder)
    found = sample(host, hook.edit_attention(tiny[0], editor), tiny[1], positive=texts)
    assert {(call.condition.kind, call.condition.area) for call in editor.calls} == {(0, (16, 8, 0, 8))}
    assert len(editor.calls) == len(LAYERS) * STEPS
    assert not near(found, sample(host, tiny[0], tiny[1], positive=texts))


def test_a_mask_or_a_part_of_the_schedule_of_the_condition_stays_in_force(host, hook, tiny, marked):
    positive, prompt = marked()
    half = torch.zeros(1, 128, 128)
    half[..., :64] = 1
    with torch.inference_mode():
        masked = host.nodes.ConditioningSetMask().append(positive, half, "default", 1.0)[0]
        early = host.nodes.ConditioningSetTimestepRange().set_range(masked, 0.0, 0.5)[0]
    texts = early + conditioning(tiny[1], "in the snow")
    editor = Editor(prompt, louder)
    found = sample(host, hook.edit_attention(tiny[0], editor), tiny[1], positive=texts)
    assert 0 < len(editor.calls) < len(LAYERS) * STEPS and all(call.progress <= 0.51 for call in editor.calls)
    assert not near(found, sample(host, tiny[0], tiny[1], positive=texts))


def guided(host, guider, **settings):
    """Sample with a guider of three conditions."""
    sampler = host.comfy.samplers.sampler_object("euler")
    sampling = guider.model_patcher.get_model_object("model_sampling")
    sigmas = host.comfy.samplers.calculate_sigmas(sampling, "normal", STEPS)
    latent = empty_latent()["samples"]
    with torch.inference_mode():
        noise = host.comfy.sample.prepare_noise(latent, SEED)
        return guider.sample(noise, latent, sampler, sigmas, seed=SEED)


@pytest.mark.parametrize("kind", ["PerpNeg", "DualCFG", "nested DualCFG"])
def test_guiders_of_three_conditions_edit_the_one_that_carries_the_prompt(host, hook, tiny, marked, kind):
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG
    from comfy_extras.nodes_perpneg import Guider_PerpNeg

    positive, prompt = marked()
    others = [conditioning(tiny[1], text) for text in ("at night", "")]

    def run(model):
        guider = (Guider_PerpNeg if kind == "PerpNeg" else Guider_DualCFG)(model)
        guider.set_conds(positive, *others)
        guider.set_cfg(4.0, 1.0) if kind == "PerpNeg" else guider.set_cfg(4.0, 2.0, kind.startswith("nested"))
        return guided(host, guider)

    place = 0 if kind == "PerpNeg" else 2  # of the positive in the guider's list
    found = run(hook.edit_attention(tiny[0], Editor(prompt, louder)))
    assert near(found, run(by_hand(tiny[0], louder, place))) and not near(found, run(tiny[0]))


def test_a_control_net_in_the_graph_acts_as_before_and_is_not_edited(host, hook, tiny, marked):
    positive, prompt = marked()
    hint = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(0))
    negative = conditioning(tiny[1], "")
    with torch.inference_mode():
        texts, _ = host.nodes.ControlNetApplyAdvanced().apply_controlnet(
            positive, negative, control_net(host, tiny[0]), hint, 1.0, 0.0, 1.0
        )
    editor = Editor(prompt, louder)
    found = sample(host, hook.edit_attention(tiny[0], editor), tiny[1], positive=texts)
    assert near(found, sample(host, by_hand(tiny[0], louder), tiny[1], positive=texts))
    assert not near(found, sample(host, by_hand(tiny[0], louder), tiny[1], positive=positive))
    assert len(editor.calls) == len(LAYERS) * STEPS


def test_sdxl_is_edited_as_written_out(host, hook, tiny, marked, xl):
    positive, prompt = marked()
    layers = list(hook.cross_attention_layers(xl.model.diffusion_model))
    assert len(layers) == 2 + 2 + 1 + 2 * 1 + 2 * 2 and ("middle", 0, 1) in layers
    assert {layer.scale for layer in hook.cross_attention_layers(xl.model.diffusion_model).values()} == {2, 4}

    def run(model):
        latent = {"samples": torch.zeros(2, 4, 9, 13)}
        return sample(host, model, tiny[1], positive=positive, latent=latent, steps=3)

    found = run(hook.edit_attention(xl, Editor(prompt, louder)))
    assert near(found, run(by_hand(xl, louder, layers=layers))) and not torch.equal(found, run(xl))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_edited_as_written_out(host, hook, tiny, marked, dtype):
    from tiny_sd.host_model import CHECKPOINT

    positive, prompt = marked()
    with torch.inference_mode():
        model = host.comfy.sd.load_checkpoint_guess_config(
            str(CHECKPOINT), model_options={"dtype": dtype}, output_vae=False, output_clip=False
        )[0]
    assert {p.dtype for p in model.model.diffusion_model.parameters()} == {dtype}
    found, expected, plain = (
        sample(host, each, tiny[1], positive=positive)
        for each in (hook.edit_attention(model, Editor(prompt, louder)), by_hand(model, louder), model)
    )
    assert found.isfinite().all()
    assert (found - expected).norm() < 0.1 * (plain - expected).norm()


def test_an_error_in_an_editor_leaves_nothing_behind(host, hook, tiny, marked):
    positive, prompt = marked()
    before, options = sample(host, tiny[0], tiny[1], positive=positive), copy.deepcopy(tiny[0].model_options)

    def fail(maps):
        raise ZeroDivisionError

    model = hook.edit_attention(tiny[0], Editor(prompt, fail))
    kept = set(model.model_options["transformer_options"])
    with pytest.raises(ZeroDivisionError):
        sample(host, model, tiny[1], positive=positive)
    assert tiny[0].model_options == options and set(model.model_options["transformer_options"]) == kept
    assert torch.equal(sample(host, tiny[0], tiny[1], positive=positive), before)


class Sharer:
    """Gives every picture the queries and keys of the first."""

    def __init__(self, prompt):
        self.prompt = prompt

    def sources(self, layer, grid, condition, progress, pictures):
        """Name the first picture for all."""
        return [0] * pictures if condition.prompt == self.prompt else None


def test_pictures_that_share_self_attention_attend_as_the_first_does(host, hook, tiny, marked):
    positive, prompt = marked()

    def replace(q, k, v, options):
        parts = [list(x.chunk(len(options["cond_or_uncond"]))) for x in (q, k, v)]
        for number, kind in enumerate(options["cond_or_uncond"]):
            if kind == 0:
                parts[0][number], parts[1][number] = (x[number][:1].expand_as(x[number]) for x in parts[:2])
        return attended(*(torch.cat(x) for x in parts), options["n_heads"])

    expected = tiny[0].clone()
    for block, number, index in LAYERS:
        expected.set_model_attn1_replace(replace, block, number, index)
    shared = hook.share_self_attention(tiny[0], Sharer(prompt))
    found, by_hand_, plain = (
        sample(host, model, tiny[1], positive=positive, latent=empty_latent(batch=2))
        for model in (shared, expected, tiny[0])
    )
    assert near(found, by_hand_) and not near(found, plain)
    alone = sample(host, shared, tiny[1], positive=positive)
    assert torch.equal(alone, sample(host, tiny[0], tiny[1], positive=positive))


def test_a_model_without_cross_attention_is_one_sentence(hook, tiny):
    hook.check_unet(tiny[0])
    for model in (None, SimpleNamespace(model=SimpleNamespace(diffusion_model=torch.nn.Linear(1, 1)))):
        with pytest.raises(ValueError, match="has no cross-attention .* families SD 1.x, SD 2.x or SDXL"):
            hook.check_unet(model)
