"""Attention Recorder and Attention Map View on the real host: pictures unchanged, maps exact, runs kept apart."""

import copy
import re

import matplotlib
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from real_host.sampling import SEED, STEPS, conditioning, empty_latent, sample

TEXT = "a photo of a fox and an apple in the snow"
FOX, APPLE = 5, 8  # their tokens
LAYERS = {("input", 1): 1, ("input", 3): 2, ("middle", 0): 4}
LAYERS |= {("output", 2): 2, ("output", 3): 2, ("output", 4): 1, ("output", 5): 1}


@pytest.fixture(scope="module")
def nodes(host):
    from guided_synthesis.nodes import attention_maps

    return attention_maps


@pytest.fixture(scope="module")
def text(host, tiny):
    """Return the function that gives CONDITIONING and PROMPT."""
    from guided_synthesis.nodes.prompt import PromptWords

    def make(words=TEXT):
        with torch.inference_mode():
            return PromptWords.execute(tiny[1], words).args

    return make


@pytest.fixture(autouse=True)
def temp(host, tmp_path, monkeypatch):
    """Keep the host's temp folder to this test."""
    monkeypatch.setattr(host.folder_paths, "temp_directory", str(tmp_path))
    return tmp_path


def record(nodes, model, prompt, **scales):
    """Return MODEL and ATTENTION_MAPS, with the node's own scales unless others are asked for."""
    inputs = nodes.AttentionRecorder.define_schema().inputs
    settings = {entry.id: entry.default for entry in inputs if entry.id.startswith("scale_")}
    with torch.inference_mode():
        return nodes.AttentionRecorder.execute(model, prompt, **(settings | scales)).args


def everything(nodes, model, prompt):
    return record(nodes, model, prompt, scale_1=True, scale_2=True, scale_4=True, scale_8=True)


def view(nodes, maps, latent, words="fox", threshold=0.0, image=None):
    with torch.inference_mode():
        return nodes.AttentionMapView.execute(maps, {"samples": latent}, words, threshold, image).args


def explored(nodes, maps, latent, words="fox", image=None):
    """What the browser is told."""
    with torch.inference_mode():
        out = nodes.AttentionMapView.execute(maps, {"samples": latent}, words, 0.3, image)
    (told,) = out.ui["guided_synthesis_attention"]
    return told


def picture_at(temp, file):
    """RGB (3, H, W) in [0, 1] of a file that the browser is told of."""
    assert file["type"] == "temp"
    with Image.open(temp / file["subfolder"] / file["filename"]) as found:
        return pil_to_tensor(found.convert("RGB")).float() / 255


def maps_on_sheet(temp, told):
    """(N, h, w, 3): the maps that a browser would cut from the sheet."""
    sheet, (w, h), columns = (
        picture_at(temp, told["sprite"]),
        (told["width"], told["height"]),
        told["columns"],
    )
    corners = [((i // columns) * h, (i % columns) * w) for i in range(told["count"])]
    return torch.stack([sheet[:, y : y + h, x : x + w] for y, x in corners]).movedim(1, -1)


def all_heat(maps, latent):
    """Every word's map of the run that led to `latent`: (B, words, h, w)."""
    recording = maps.of(latent)
    return torch.cat([recording.heat((token,)) for token in recording.tokens], 1)


def watched(model, found, only=0):
    """A clone that notes softmax(q k) of the positive in every layer, by a patch of the host's own."""

    def replace(q, k, v, options):
        heads, count = options["n_heads"], len(options["cond_or_uncond"])
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        maps = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        parts = zip(options["cond_or_uncond"], maps.chunk(count), strict=True)
        found.setdefault(options["block"], []).extend(part.clone() for kind, part in parts if kind == only)
        return (maps @ v).transpose(1, 2).flatten(2)

    patched = model.clone()
    for layer in LAYERS:
        patched.set_model_attn2_replace(replace, *layer)
    return patched


def near(found, expected, share=2e-3):
    return torch.allclose(found, expected, atol=share * expected.abs().max().item())


def sampler_names(host):
    """The host's samplers that run on a CPU without a network of another kind."""
    return [name for name in host.comfy.samplers.SAMPLER_NAMES if "gpu" not in name]


@pytest.mark.parametrize(
    "run",
    [
        {},
        {"latent": empty_latent(batch=3)},
        {"cfg": 1.0},
        {"latent": empty_latent(72, 200)},
        {"latent": {"samples": torch.full((1, 4, 16, 16), 0.3)}, "denoise": 0.5},
    ],
    ids=["plain", "batch", "cfg 1", "odd size", "img2img"],
)
def test_the_picture_is_the_same_to_the_bit(host, tiny, nodes, text, run):
    positive, prompt = text()
    model, maps = everything(nodes, tiny[0], prompt)
    made = sample(host, model, tiny[1], positive=positive, **run)
    assert torch.equal(made, sample(host, tiny[0], tiny[1], positive=positive, **run))
    assert all_heat(maps, made).shape == (len(made), len(prompt.words), *made.shape[-2:])


def test_every_sampler_gives_its_own_picture_and_a_map(host, tiny, nodes, text):
    positive, prompt = text()
    model, maps = record(nodes, tiny[0], prompt)
    names = sampler_names(host)
    assert len(names) > 20
    for name in names:
        run = {"positive": positive, "steps": 3, "sampler_name": name}
        made = sample(host, model, tiny[1], **run)
        assert torch.equal(made, sample(host, tiny[0], tiny[1], **run)), name
        assert maps.of(made).heat((FOX,)).amax().item() > 0, name


@pytest.mark.parametrize("size", [(128, 128), (72, 200), (88, 136)])
def test_the_maps_are_the_softmax_of_queries_and_keys(host, tiny, nodes, text, size):
    positive, prompt = text()
    model, maps = everything(nodes, tiny[0], prompt)
    run = {"positive": positive, "latent": empty_latent(*size, batch=2)}
    made, seen = sample(host, model, tiny[1], **run), {}
    sample(host, watched(tiny[0], seen), tiny[1], **run)
    recording = maps.of(made)
    assert {layer.key[:2]: layer.scale for layer in recording.sums} == LAYERS
    for layer, sums in recording.sums.items():
        steps = seen[layer.key[:2]]
        assert sums.steps == len(steps) == STEPS
        expected = torch.stack(steps).mean((0, 2))[..., list(recording.tokens)]
        assert near(sums.total / sums.steps, expected, 1e-2)


def test_all_words_together_get_at_most_all_of_the_attention(host, tiny, nodes, text):
    positive, prompt = text()
    model, maps = everything(nodes, tiny[0], prompt)
    made = sample(host, model, tiny[1], positive=positive)
    for sums in maps.of(made).sums.values():
        shares = sums.total / sums.steps
        assert shares.min() >= 0 and (shares.sum(-1) < 1).all() and shares.sum(-1).max() > 0.01


def test_a_split_batch_leaves_the_same_maps(host, tiny, nodes, text, monkeypatch):
    positive, prompt = text()
    model, maps = record(nodes, tiny[0], prompt)
    merged = sample(host, model, tiny[1], positive=positive)
    expected = all_heat(maps, merged)
    monkeypatch.setattr(tiny[0].model, "memory_required", lambda *args, **kwargs: 1e18)
    split = sample(host, model, tiny[1], positive=positive)
    assert near(split, merged) and near(all_heat(maps, split), expected, 1e-2)


def test_of_several_positives_only_the_recorded_prompts_is_kept(host, tiny, nodes, text):
    positive, prompt = text()
    model, maps = record(nodes, tiny[0], prompt)
    both = conditioning(tiny[1], "a photo of a dog at night") + positive
    made, seen = sample(host, model, tiny[1], positive=both), {}
    assert torch.equal(made, sample(host, tiny[0], tiny[1], positive=both))
    sample(host, watched(tiny[0], seen), tiny[1], positive=both)
    for layer, sums in maps.of(made).sums.items():
        steps = seen[layer.key[:2]]
        assert sums.steps == STEPS and len(steps) == 2 * STEPS  # of the two positives in turn, either first
        kept = sums.total / STEPS
        each = [torch.stack(steps[i::2]).mean((0, 2))[..., list(maps.of(made).tokens)] for i in (0, 1)]
        assert sum(near(kept, one, 1e-2) for one in each) == 1


def test_a_guider_that_lists_the_positive_last_is_recorded_too(host, tiny, nodes, text):
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    positive, prompt = text()
    model, maps = record(nodes, tiny[0], prompt)
    guider = Guider_DualCFG(model)
    guider.set_conds(positive, *(conditioning(tiny[1], other) for other in ("at night", "")))
    guider.set_cfg(4.0, 2.0, False)
    sampling, latent = model.get_model_object("model_sampling"), empty_latent()["samples"]
    sigmas = host.comfy.samplers.calculate_sigmas(sampling, "normal", STEPS)
    with torch.inference_mode():
        noise = host.comfy.sample.prepare_noise(latent, SEED)
        made = guider.sample(noise, latent, host.comfy.samplers.sampler_object("euler"), sigmas, seed=SEED)
    assert {sums.steps for sums in maps.of(made).sums.values()} == {STEPS}


def test_each_view_finds_the_run_of_its_latent_and_a_rerun_replaces(host, tiny, nodes, text):
    positive, prompt = text()
    model, maps = record(nodes, tiny[0], prompt)
    first = sample(host, model, tiny[1], positive=positive)
    expected = all_heat(maps, first)
    second = sample(host, model.clone(), tiny[1], positive=positive, seed=SEED + 1)
    assert torch.equal(all_heat(maps, first), expected)
    assert not near(all_heat(maps, second), expected)
    before = maps.of(first)
    again = sample(host, model, tiny[1], positive=positive)
    assert torch.equal(again, first) and maps.of(first) is not before
    assert torch.equal(all_heat(maps, first), expected)
    assert maps.of(torch.zeros(1, 4, 16, 16)) is maps.of(first)  # of no run: the last
    for seed in range(100, 104):
        sample(host, model, tiny[1], positive=positive, seed=seed, steps=1)
    assert maps.of(first) is maps.of(torch.zeros(1, 4, 16, 16))  # long ago: let go


def test_behind_an_injector_its_maps_are_recorded_and_before_it_the_models_own(host, tiny, nodes, text):
    from guided_synthesis.nodes import attention_regions as regions

    positive, prompt = text()
    left = torch.zeros(1, 128, 128)
    left[..., :64] = 1
    with torch.inference_mode():
        region = regions.AttentionRegion.execute(prompt, "fox", left, 1.0).args[0]
    inputs = regions.CrossAttentionInjector.define_schema().inputs
    settings = {entry.id: entry.default for entry in inputs if getattr(entry, "default", None) is not None}
    settings |= {"kappa_start": 1.0, "kappa_end": 1.0, "end_percent": 1.0}

    def inject(model):
        with torch.inference_mode():
            return regions.CrossAttentionInjector.execute(model, region, **settings).args[0]

    behind, of_behind = record(nodes, inject(tiny[0]), prompt)
    before, of_before = record(nodes, tiny[0], prompt)
    run = {"positive": positive}
    made = sample(host, inject(tiny[0]), tiny[1], **run)
    assert torch.equal(sample(host, behind, tiny[1], **run), made)
    assert torch.equal(sample(host, inject(before), tiny[1], **run), made)
    rights = []
    for maps in (of_behind, of_before):
        total = maps.of(made).sums
        layer = next(each for each in total if each.scale == 2)
        fox = total[layer].total[..., maps.of(made).tokens.index(FOX)].unflatten(-1, total[layer].grid)
        rights.append((fox[..., 4:].sum() / fox.sum()).item())
    assert rights[0] == 0 and rights[1] > 0.01


@pytest.mark.parametrize("error", ["ZeroDivisionError", "InterruptProcessingException"])
def test_after_an_error_or_an_interrupt_nothing_is_held_and_the_next_run_is_fine(
    host, tiny, nodes, text, error
):
    positive, prompt = text()
    kind = getattr(host.comfy.model_management, error, ZeroDivisionError)
    model, maps = record(nodes, tiny[0], prompt)
    made = sample(host, model, tiny[1], positive=positive)
    expected, options = all_heat(maps, made), copy.deepcopy(tiny[0].model_options)
    failing, steps = model.clone(), []

    def fail(apply_model, args):
        steps.append(1)
        if len(steps) == 3:
            raise kind
        return apply_model(args["input"], args["timestep"], **args["c"])

    failing.set_model_unet_function_wrapper(fail)
    with pytest.raises(kind):
        sample(host, failing, tiny[1], positive=positive, seed=SEED + 5)
    assert maps._recorder.current is None and len(maps._runs) == 1
    assert torch.equal(all_heat(maps, made), expected) and tiny[0].model_options == options
    again = sample(host, model, tiny[1], positive=positive)
    assert torch.equal(again, made) and torch.equal(all_heat(maps, again), expected)


def test_nothing_of_scale_one_is_kept_unless_asked_and_memory_is_as_computed(host, tiny, nodes, text):
    positive, prompt = text()
    words, batch = len(prompt.words), 2
    for scales, asked in (({}, {2, 4}), ({"scale_1": True}, {1, 2, 4}), ({"scale_2": False}, {4})):
        model, maps = record(nodes, tiny[0], prompt, **scales)
        made = sample(host, model, tiny[1], positive=positive, latent=empty_latent(128, 200, batch))
        found = maps.of(made).sums
        assert {layer.scale for layer in found} == asked
        kept = sum(sums.total.untyped_storage().nbytes() for sums in found.values())
        cells = {scale: -(-16 // scale) * -(-25 // scale) for scale in asked}
        assert kept == sum(4 * batch * words * cells[s] for s in LAYERS.values() if s in asked)


def test_the_view_draws_a_picture_of_each_word_for_each_sampled_picture(host, tiny, nodes, text):
    positive, prompt = text()
    model, maps = record(nodes, tiny[0], prompt)
    made = sample(host, model, tiny[1], positive=positive, latent=empty_latent(72, 200, batch=2))
    heat = maps.of(made)
    image, mask = view(nodes, maps, made, "fox,\n apple")
    assert image.shape == (4, 72, 200, 3) and mask.shape == (4, 72, 200)
    assert mask.amin().item() >= 0 and torch.equal(mask.amax((1, 2)), torch.ones(4))
    for number, (picture, token) in enumerate([(0, FOX), (0, APPLE), (1, FOX), (1, APPLE)]):
        small = torch.nn.functional.adaptive_avg_pool2d(mask[number][None], (9, 25))[0]
        own = heat.heat((token,))[picture, 0]
        assert torch.corrcoef(torch.stack([small.flatten(), own.flatten()]))[0, 1] > 0.98
    colours = torch.from_numpy(matplotlib.colormaps["inferno"](mask.numpy())[..., :3]).float()
    assert torch.equal(image, colours)


def test_words_are_found_as_phrases_and_occurrences_and_none_means_all(host, tiny, nodes, text):
    positive, prompt = text("a red fox and a blue fox")
    model, maps = record(nodes, tiny[0], prompt)
    made = sample(host, model, tiny[1], positive=positive)
    masks = {
        words: view(nodes, maps, made, words)[1] for words in ("red fox", "red, fox", "fox", "fox#2", " ", "")
    }
    assert [len(mask) for mask in masks.values()] == [1, 2, 1, 1, 7, 7]
    assert torch.equal(masks["fox#2"][0], masks[""][6]) and not torch.equal(masks["fox"], masks["fox#2"])


def test_a_threshold_cuts_the_soft_map(host, tiny, nodes, text):
    positive, prompt = text()
    model, maps = record(nodes, tiny[0], prompt)
    made = sample(host, model, tiny[1], positive=positive)
    soft = view(nodes, maps, made)[1]
    assert len(soft.unique()) > 100
    for threshold in (0.3, 0.6, 1.0):
        cut = view(nodes, maps, made, threshold=threshold)[1]
        assert torch.equal(cut, (soft >= threshold).float()) and cut.sum() >= 1


def test_maps_lie_over_the_decoded_picture_at_its_size(host, tiny, nodes, text):
    positive, prompt = text()
    model, maps = record(nodes, tiny[0], prompt)
    made = sample(host, model, tiny[1], positive=positive, latent=empty_latent(batch=2))
    picture = torch.rand(2, 160, 160, 3, generator=torch.Generator().manual_seed(0))
    image, mask = view(nodes, maps, made, "fox, apple", image=picture)
    assert image.shape == (4, 160, 160, 3) and mask.shape == (4, 160, 160)
    colours = torch.from_numpy(matplotlib.colormaps["inferno"](mask.numpy())[..., :3]).float()
    assert torch.allclose(image, (colours + picture[[0, 0, 1, 1]]) / 2)
    with pytest.raises(
        ValueError, match="input image has 1 pictures, but 2 were sampled. Connect the decoded"
    ):
        view(nodes, maps, made, image=picture[:1])


def test_the_browser_gets_the_map_of_every_word_whatever_is_asked_for(host, tiny, nodes, text, temp):
    positive, prompt = text()
    model, maps = record(nodes, tiny[0], prompt)
    made = sample(host, model, tiny[1], positive=positive, latent=empty_latent(72, 120, batch=2))
    told = explored(nodes, maps, made, "apple")
    assert told["words"] == [word.text for word in prompt.words] == TEXT.split()
    assert told["count"] == len(prompt.words)
    drawn = view(nodes, maps, made, "")[0][: len(prompt.words)]  # of the first picture
    shown = maps_on_sheet(temp, told).movedim(-1, 1)
    shown = torch.nn.functional.interpolate(shown, (72, 120), mode="bilinear", antialias=True).movedim(1, -1)
    assert (shown - drawn).abs().mean((1, 2, 3)).max() < 0.03
    assert (shown.roll(1, 0) - drawn).abs().mean() > 0.06  # of another word it would be
    ground = picture_at(temp, told["picture"])
    assert ground.shape == (3, 72, 120) and 0.2 < ground.mean() < 0.4 and ground.std() < 0.01


def test_the_browser_gets_the_first_picture_small_and_in_its_shape(host, tiny, nodes, text, temp):
    positive, prompt = text()
    model, maps = record(nodes, tiny[0], prompt)
    made = sample(host, model, tiny[1], positive=positive, latent=empty_latent(batch=2))
    ramp = torch.linspace(0, 1, 640)[None, None, :, None].expand(1, 1280, 640, 3)
    told = explored(nodes, maps, made, image=torch.cat([ramp, 1 - ramp]))
    shown = picture_at(temp, told["picture"])
    assert shown.shape == (3, 512, 256)
    assert (shown.mean((0, 1)) - torch.linspace(0, 1, 256)).abs().max() < 0.03


def test_a_prompt_of_hundreds_of_words_is_still_one_small_sheet(nodes, temp):
    from guided_synthesis.nodes.host.attention_explorer import explorer_ui

    (told,) = explorer_ui(["a"] * 225, torch.rand(225, 3, 128, 128), torch.rand(3, 8, 8))[
        "guided_synthesis_attention"
    ]
    height, width = picture_at(temp, told["sprite"]).shape[-2:]
    assert (told["columns"], told["count"]) == (15, 225) and height <= 4096 and width <= 4096


def test_no_two_runs_share_a_file(host, tiny, nodes, text):
    positive, prompt = text()
    model, maps = record(nodes, tiny[0], prompt)
    made = sample(host, model, tiny[1], positive=positive)
    told = [explored(nodes, maps, made) for _ in range(2)]
    assert len({run[file]["filename"] for run in told for file in ("sprite", "picture")}) == 4


def test_it_runs_without_a_connected_output(nodes):
    assert nodes.AttentionMapView.define_schema().is_output_node


def test_flat_maps_are_drawn_without_a_division_by_zero(host, tiny, nodes, text):
    positive, prompt = text()
    model, maps = record(nodes, tiny[0], prompt)
    made = sample(host, model, tiny[1], positive=positive)
    for value, drawn in ((0.0, 0.0), (0.2, 1.0)):
        for sums in maps.of(made).sums.values():
            sums.total = torch.full_like(sums.total, value)
        image, mask = view(nodes, maps, made)
        assert image.isfinite().all() and torch.allclose(mask, torch.full_like(mask, drawn), atol=1e-5)


def test_what_cannot_be_shown_is_one_sentence(host, tiny, nodes, text):
    positive, prompt = text()
    model, maps = record(nodes, tiny[0], prompt)
    latent = empty_latent()["samples"]
    with pytest.raises(ValueError, match="No sampler has run with the recorder's model yet. Connect"):
        view(nodes, maps, latent)
    made = sample(host, model, tiny[1], positive=positive)
    with pytest.raises(ValueError, match=re.escape("does not contain 'tiger'. Its words: a, photo, of, fox")):
        view(nodes, maps, made, "tiger")
    sample(host, model, tiny[1], positive=text("a photo of a dog")[0])
    with pytest.raises(ValueError, match="No attention maps were recorded for this prompt"):
        view(nodes, maps, latent)
    with pytest.raises(ValueError, match="prompt has no words to record. Write some"):
        record(nodes, tiny[0], text("")[1])
    with pytest.raises(ValueError, match="has no cross-attention"):
        record(nodes, None, prompt)
