"""Regions on the real host: off is off to the bit, the formula in the UNet, where objects go, what is refused."""

import re

import pytest
import torch

from real_host.sampling import conditioning, empty_latent, sample

TEXT = "a photo of a fox and an apple in the snow"
FOX, APPLE = 5, 8  # their tokens
LAYERS = [("input", 1), ("input", 3), ("middle", 0)] + [("output", i) for i in range(2, 6)]


@pytest.fixture(scope="module")
def nodes(host):
    from guided_synthesis.nodes import attention_regions

    return attention_regions


@pytest.fixture(scope="module")
def text(host, tiny):
    """Return CONDITIONING and PROMPT."""
    from guided_synthesis.nodes.prompt import PromptWords

    with torch.inference_mode():
        return PromptWords.execute(tiny[1], TEXT).args


def half(side="left", height=128, width=128):
    mask = torch.zeros(1, height, width)
    left, top = slice(0, width // 2), slice(0, height // 2)
    mask[
        {"left": (..., left), "right": (..., slice(width // 2, None)), "top": (..., top, slice(None))}[side]
    ] = 1
    return mask


def region(nodes, prompt, words="fox", mask=None, weight=1.5, regions=()):
    mask = half() if mask is None else mask
    with torch.inference_mode():
        return nodes.AttentionRegion.execute(prompt, words, mask, weight, regions).args[0]


def inject(nodes, model, regions, **widgets):
    """The node as a graph calls it, with its own defaults."""
    inputs = nodes.CrossAttentionInjector.define_schema().inputs
    settings = {entry.id: entry.default for entry in inputs if getattr(entry, "default", None) is not None}
    with torch.inference_mode():
        return nodes.CrossAttentionInjector.execute(model, regions, **(settings | widgets)).args[0]


def near(found, expected):
    return torch.allclose(found, expected, atol=2e-3 * expected.abs().max().item())


def by_hand(model, pulls, kappa, weight):
    """A clone with the formula of the paper in every layer of the positive; `pulls` are (token, mask_of_grid)."""

    def edited(maps, grid):
        for token, mask_of_grid in pulls:
            mask = mask_of_grid(*grid).flatten().to(maps)
            column = maps[..., token]
            strength = column.square().sum(-1, keepdim=True).sqrt()
            unit = mask / mask.square().sum().sqrt()
            maps = maps.clone()
            maps[..., token] = weight * ((1 - kappa) * column + kappa * unit * strength)
        return maps

    def replace(q, k, v, options):
        q, k, v = (part.unflatten(-1, (options["n_heads"], -1)).transpose(1, 2) for part in (q, k, v))
        maps = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        count = len(options["cond_or_uncond"])
        parts = [
            edited(part, options["activations_shape"][-2:]) if kind == 0 else part
            for kind, part in zip(options["cond_or_uncond"], maps.chunk(count), strict=True)
        ]
        return (torch.cat(parts) @ v).transpose(1, 2).flatten(2)

    patched = model.clone()
    for block, number in LAYERS:
        patched.set_model_attn2_replace(replace, block, number)
    return patched


def left_half(height, width):
    """The left half on a grid that it divides."""
    return (torch.arange(width) < width / 2).float().expand(height, -1)


ALWAYS = {"kappa_start": 0.6, "kappa_end": 0.6, "start_percent": 0.0, "end_percent": 1.0}


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_a_picture_with_regions_is_the_formula_written_out_in_every_layer(host, tiny, nodes, text, cfg):
    positive, prompt = text
    regions = region(nodes, prompt, regions=region(nodes, prompt, "apple", half("right")))
    found = sample(host, inject(nodes, tiny[0], regions, **ALWAYS), tiny[1], positive=positive, cfg=cfg)
    pulls = [(APPLE, lambda h, w: 1 - left_half(h, w)), (FOX, left_half)]
    expected = sample(host, by_hand(tiny[0], pulls, 0.6, 1.5), tiny[1], positive=positive, cfg=cfg)
    assert near(found, expected) and not near(
        found, sample(host, tiny[0], tiny[1], positive=positive, cfg=cfg)
    )


def test_the_attention_of_a_word_moves_into_its_region(host, tiny, nodes, text):
    from guided_synthesis.nodes.host.recording import AttentionMaps

    positive, prompt = text
    shares = {}
    for side in ("left", "right"):
        model = inject(nodes, tiny[0], region(nodes, prompt, "fox", half(side)), end_percent=0.5)
        maps = AttentionMaps(prompt, frozenset({2}))
        latent = sample(host, maps.attach(model), tiny[1], positive=positive)
        heat = maps.of(latent).heat((FOX,))
        shares[side] = (heat[..., :8].sum() / heat.sum()).item()
    assert shares["left"] > 0.6 and shares["right"] < 0.4


def off(nodes, tiny, text, how):
    """Injectors that must change nothing."""
    from guided_synthesis.nodes.host.prompts import encode

    prompt = text[1]
    with torch.inference_mode():
        other = encode(tiny[1], "a drawing of a fox at night")[1]
    return {
        "an empty mask": lambda: inject(nodes, tiny[0], region(nodes, prompt, mask=torch.zeros(1, 9, 9))),
        "kappa 0, weight 1": lambda: inject(
            nodes, tiny[0], region(nodes, prompt, weight=1.0), kappa_start=0.0, kappa_end=0.0
        ),
        "no step in the range": lambda: inject(
            nodes, tiny[0], region(nodes, prompt), start_percent=0.001, end_percent=0.002
        ),
        "another prompt": lambda: inject(nodes, tiny[0], region(nodes, other)),
        "no layer": lambda: inject(nodes, tiny[0], region(nodes, prompt), down=False, mid=False, up=False),
        "no regions": lambda: inject(nodes, tiny[0], ()),
    }[how]()


@pytest.mark.parametrize(
    "how",
    [
        "an empty mask",
        "kappa 0, weight 1",
        "no step in the range",
        "another prompt",
        "no layer",
        "no regions",
    ],
)
def test_off_is_the_host_to_the_bit(host, tiny, nodes, text, how):
    model = off(nodes, tiny, text, how)
    plain = sample(host, tiny[0], tiny[1], positive=text[0])
    assert torch.equal(sample(host, model, tiny[1], positive=text[0]), plain)


def test_two_injectors_are_one_with_both_regions(host, tiny, nodes, text):
    positive, prompt = text
    first, second = region(nodes, prompt), region(nodes, prompt, "apple", half("right"), 2.0)
    twice = inject(nodes, inject(nodes, tiny[0], first).clone(), second)
    once = inject(nodes, tiny[0], (*first, *second))
    found = sample(host, once, tiny[1], positive=positive)
    assert torch.equal(sample(host, twice, tiny[1], positive=positive), found)
    assert not near(found, sample(host, inject(nodes, tiny[0], first), tiny[1], positive=positive))


def test_a_model_for_two_samplers_gives_each_its_own_and_the_original_stays(host, tiny, nodes, text):
    positive, prompt = text
    before, model = (
        sample(host, tiny[0], tiny[1], positive=positive),
        inject(nodes, tiny[0], region(nodes, prompt)),
    )
    first = sample(host, model, tiny[1], positive=positive)
    sample(host, model, tiny[1], positive=positive, latent=empty_latent(72, 200), sampler_name="dpmpp_2m")
    assert torch.equal(sample(host, model, tiny[1], positive=positive), first)
    assert torch.equal(sample(host, tiny[0], tiny[1], positive=positive), before)


@pytest.mark.parametrize("height, width", [(64, 128), (72, 136), (104, 88), (200, 72)])
def test_any_size_in_steps_of_eight_and_masks_of_any_size(host, tiny, nodes, text, height, width):
    positive, prompt = text
    latent = empty_latent(height, width)
    plain = sample(host, tiny[0], tiny[1], positive=positive, latent=latent, steps=3)
    large, small = (
        sample(
            host,
            inject(nodes, tiny[0], region(nodes, prompt, mask=half("left", *size))),
            tiny[1],
            positive=positive,
            latent=latent,
            steps=3,
        )
        for size in ((512, 640), (5, 7))
    )
    assert large.shape == plain.shape and not near(large, plain)
    assert small.isfinite().all() and not near(small, plain)


def test_a_batch_of_masks_gives_each_picture_its_own(host, tiny, nodes, text):
    positive, prompt = text
    masks = torch.cat([half("left"), half("right")])

    def run(mask):
        model = inject(nodes, tiny[0], region(nodes, prompt, mask=mask))
        return sample(host, model, tiny[1], positive=positive, latent=empty_latent(batch=2))

    both, left, right = run(masks), run(masks[:1]), run(masks[1:])
    assert near(both, torch.stack([left[0], right[1]])) and not near(left, right)
    with pytest.raises(ValueError, match="The mask of a region has 3 pictures, but 2 are sampled"):
        run(masks[[0, 1, 0]])


def test_an_area_condition_sees_its_part_of_the_mask(host, tiny, nodes, text):
    """The right half of the picture: a mask on the left is empty there, one on the right covers all of it."""
    positive, prompt = text
    with torch.inference_mode():
        area = host.nodes.ConditioningSetArea().append(positive, 64, 128, 64, 0, 1.0)[0]
    texts = area + conditioning(tiny[1], "in the snow")

    def run(mask):
        return sample(host, inject(nodes, tiny[0], region(nodes, prompt, mask=mask)), tiny[1], positive=texts)

    plain = sample(host, tiny[0], tiny[1], positive=texts)
    assert torch.equal(run(half("left")), plain)
    assert torch.equal(run(half("right")), run(torch.ones(1, 8, 8))) and not near(run(half("right")), plain)


def test_a_soft_mask_lies_between_and_only_its_shape_counts(host, tiny, nodes, text):
    positive, prompt = text
    soft = torch.linspace(1, 0, 128).expand(1, 128, 128)
    runs = [
        sample(host, inject(nodes, tiny[0], region(nodes, prompt, mask=mask)), tiny[1], positive=positive)
        for mask in (soft, soft / 2, half())
    ]
    assert near(runs[0], runs[1]) and not near(runs[0], runs[2])


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_2m_sde", "uni_pc", "heunpp2", "lcm"])
def test_samplers_of_every_family_are_guided(host, tiny, nodes, text, sampler):
    positive, prompt = text
    model = inject(nodes, tiny[0], region(nodes, prompt))
    found, plain = (
        sample(host, each, tiny[1], positive=positive, sampler_name=sampler) for each in (model, tiny[0])
    )
    assert found.isfinite().all() and not near(found, plain)


def test_layers_can_be_chosen(host, tiny, nodes, text):
    positive, prompt = text
    kept = region(nodes, prompt)
    parts = [
        {"scale_1": False},
        {"scale_2": False},
        {"scale_4": False},
        {"down": False},
        {"mid": False},
        {"up": False},
    ]
    pictures = [
        sample(host, inject(nodes, tiny[0], kept, **part), tiny[1], positive=positive, steps=2)
        for part in ({}, *parts)
    ]
    assert all(not torch.equal(pictures[0], other) for other in pictures[1:])
    absent = inject(nodes, tiny[0], kept, scale_8=False)  # the demo model has no layer of scale 8
    assert torch.equal(sample(host, absent, tiny[1], positive=positive, steps=2), pictures[0])


def test_painted_regions_are_the_regions_of_their_colours(host, tiny, nodes, text, caplog):
    positive, prompt = text
    painting = torch.zeros(1, 128, 128, 3)
    painting[..., :64, 0], painting[..., 64:, 2] = 1, 1
    painting[:, :32] = torch.tensor([1.0, 1.0, 0.0])
    with torch.inference_mode(), caplog.at_level("INFO"):
        painted = nodes.PaintedRegions.execute(prompt, painting, "red: fox\nblue: an apple", 30.0, 1.5).args[
            0
        ]
    assert "Colours of the painting that no line of the table names: #ffff00 (25 %)." in caplog.text
    low = torch.ones(1, 128, 128)
    low[:, :32] = 0
    chained = region(
        nodes, prompt, "an apple", half("right") * low, 1.5, region(nodes, prompt, "fox", half() * low)
    )
    pictures = [
        sample(host, inject(nodes, tiny[0], r), tiny[1], positive=positive) for r in (painted, chained)
    ]
    assert torch.equal(*pictures)
    with torch.inference_mode():
        more = nodes.PaintedRegions.execute(prompt, painting, "red: fox\nyellow:", 30.0, 1.5, chained).args[0]
    assert len(more) == 3


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            {"words": "wolf"},
            "The prompt does not contain 'wolf'. Its words: a, photo, of, fox, and, an, apple",
        ),
        ({"words": " "}, "No word is named"),
        ({"words": "fox, apple#2"}, "contains 'apple' once"),
    ],
)
def test_words_that_are_not_there_are_one_sentence(nodes, text, change, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        region(nodes, text[1], **change)


def test_a_reversed_range_and_a_model_without_words_are_refused(host, tiny, nodes, text):
    kept = region(nodes, text[1])
    assert "must be smaller" in nodes.CrossAttentionInjector.validate_inputs(0.8, 0.2)
    assert nodes.CrossAttentionInjector.validate_inputs(0.2, None) is True
    with pytest.raises(ValueError, match="must be smaller"):
        inject(nodes, tiny[0], kept, start_percent=0.8, end_percent=0.2)
    with pytest.raises(ValueError, match="has no cross-attention"):
        inject(nodes, tiny[2].patcher, kept)
