"""Local blend: masks by hand, and what lies outside of them."""

import pytest
import torch

from guided_synthesis.attention.blend import Blender, LocalBlend, blended
from guided_synthesis.attention.maps import Call, Condition, Layer
from guided_synthesis.attention.pairs import Pair
from guided_synthesis.attention.words import Prompt, Word


def prompt(text):
    words = tuple(Word(w, (i + 1,)) for i, w in enumerate(text.split()))
    return Prompt(text, words, 9, (len(words) + 1,))


PAIR = Pair(prompt("a fox and snow"), prompt("a cat and snow"))
LATENT = (8, 8)
SCALES = frozenset({1, 2, 4})


def blender(scales=SCALES, **settings):
    return Blender(PAIR, LocalBlend(**({"source_words": "fox", "target_words": "cat"} | settings)), scales)


def condition(prompt=PAIR, kind=0, latent=LATENT, area=None):
    return Condition(kind, 9, prompt, latent, area)


def call(scale=1, grid=LATENT, latent=LATENT):
    return Call(Layer("key", "mid", scale), grid, condition(latent=latent), 0.5)


def spots(source=(), target=(), token=2, grid=LATENT, others=0.0):
    """Maps (2, 1, N, 9), zero but for `token` at the (row, column) of a source's and a target's spots."""
    maps = torch.full((2, 1, grid[0] * grid[1], 9), others)
    for picture, cells in enumerate((source, target)):
        for row, column in cells:
            maps[picture, 0, row * grid[1] + column, token] = 1.0
    return maps


def block(*cells):
    """The 3 x 3 neighbourhoods of cells."""
    mask = torch.zeros(LATENT)
    for row, column in cells:
        mask[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = 1
    return mask


@pytest.mark.parametrize("mask", ["source", "target", "union"])
def test_the_mask_is_the_neighbourhood_of_where_the_words_look(mask):
    own = blender(mask=mask)
    maps = spots([(1, 1)], [(5, 6)])
    assert own.edit(maps, call()) is maps
    cells = {"source": [(1, 1)], "target": [(5, 6)], "union": [(1, 1), (5, 6)]}[mask]
    assert torch.equal(own.mask(*LATENT)[0, 0], block(*cells))


def test_only_what_exceeds_the_threshold_of_the_largest_value_counts():
    maps = spots([(1, 1), (6, 6)])
    maps[0, 0, 6 * 8 + 6, 2] = 0.4
    low, high = blender(mask="source", threshold=0.3), blender(mask="source", threshold=0.5)
    for own in (low, high):
        own.edit(maps, call())
    assert torch.equal(low.mask(*LATENT)[0, 0], block((1, 1), (6, 6)))
    assert torch.equal(high.mask(*LATENT)[0, 0], block((1, 1)))


def test_maps_of_all_layers_and_steps_heads_and_tokens_add_up():
    own = blender(mask="source", source_words="fox, snow", threshold=0.45)
    one = torch.cat([spots([(1, 1)]), spots([(1, 1)])], 1)  # two heads
    other = torch.cat([spots([(6, 6)], token=4), spots()], 1)
    for maps in (one, other, other):
        own.edit(maps, call())
    # two heads of one map; one head of two: as much
    assert torch.equal(own.mask(*LATENT)[0, 0], block((1, 1), (6, 6)))
    own.clear()
    assert own.mask(*LATENT) is None


def test_subtracted_words_are_taken_away():
    own = blender(subtract="snow")
    maps = spots([(1, 1)], [(5, 6)]) + spots([(2, 2)], [], token=4)
    own.edit(maps, call())
    expected = (block((1, 1)) * (1 - block((2, 2))) + block((5, 6))).clamp(max=1)
    assert torch.equal(own.mask(*LATENT)[0, 0], expected)


def test_words_of_one_prompt_are_subtracted_from_its_own_mask_only():
    own = blender(subtract="fox", source_words="snow")
    own.edit(spots([(1, 1)], token=4) + spots([(1, 1)], [(1, 1)]), call())
    assert torch.equal(own.mask(*LATENT)[0, 0], block((1, 1)))  # the target's cat is there


def test_words_that_see_nothing_leave_nothing_to_change():
    own = blender(target_words="", mask="target")
    own.edit(spots([(1, 1)]), call())
    assert own.mask(*LATENT).sum() == 0


def test_every_picture_of_a_batch_has_its_own_mask():
    own = blender(mask="union")
    own.edit(torch.cat([spots([(1, 1)], [(6, 1)]), spots([(1, 5)], [(6, 5)])])[[0, 1, 2, 3]], call())
    # pictures: sources are the first two of four
    first, second = own.mask(*LATENT)[:, 0]
    assert torch.equal(first, block((1, 1), (1, 5))) and torch.equal(second, block((6, 1), (6, 5)))


@pytest.mark.parametrize("latent", [(8, 8), (9, 13), (7, 10)])
def test_coarse_maps_cover_the_latent_without_a_shift(latent):
    height, width = latent
    grid = -(-height // 4), -(-width // 4)
    own = blender(mask="source", scale=4, threshold=0.99)
    maps = torch.zeros(2, 1, grid[0] * grid[1], 9)
    maps[..., 2] = 1.0
    own.edit(maps, call(4, grid, latent))
    assert torch.equal(own.mask(height, width), torch.ones(1, 1, height, width))
    own = blender(mask="source", scale=2, threshold=0.5)
    grid = -(-height // 2), -(-width // 2)
    maps = torch.zeros(2, 1, grid[0] * grid[1], 9)
    maps[0, 0, 0, 2] = 1.0
    own.edit(maps, call(2, grid, latent))
    mask = own.mask(height, width)[0, 0]
    assert mask[:4, :4].all() and not mask[5:].any() and not mask[:, 5:].any()


def test_a_layer_that_runs_at_a_size_of_its_own_is_brought_to_the_others():
    own = blender(mask="source", scale=1)
    maps = torch.zeros(2, 1, 16, 9)
    maps[..., 2] = 1.0
    own.edit(maps, call(1, (4, 4)))
    own.edit(spots([(1, 1)]), call(1))
    assert own.mask(*LATENT).shape == (1, 1, 8, 8)


def test_the_scale_is_the_one_with_maps_of_about_16_cells_if_none_is_named():
    own = blender(scales=frozenset({1, 2, 4, 8}))
    sizes = {(64, 64): 4, (128, 128): 8, (16, 16): 1, (64, 128): 4, (96, 96): 8, (72, 72): 4}
    for latent, scale in sizes.items():
        assert own.scale(latent) == scale
        assert own.reads(Layer("key", "up", scale), condition(latent=latent), 0.0)
        assert not own.reads(Layer("key", "up", 2), condition(latent=latent), 0.0)
    assert blender(scales=frozenset({2, 4})).scale((128, 128)) == 4
    assert blender(scale=2).scale((64, 64)) == 2


def test_only_the_pair_s_whole_pictures_are_read():
    own = blender(scale=1)
    layer = Layer("key", "up", 1)
    assert own.reads(layer, condition(), 0.0)
    for other in (condition(None), condition(PAIR.source), condition(area=(4, 4, 0, 0))):
        assert not own.reads(layer, other, 0.0)


def test_outside_of_the_mask_the_target_is_the_source():
    latents, mask = torch.randn(4, 3, 8, 8), torch.zeros(2, 1, 8, 8)
    mask[0, :, 2:5], mask[1, :, :, 3:] = 1, 1
    found = blended(latents, mask)
    assert torch.equal(found[:2], latents[:2])
    inside = mask.bool().expand(-1, 3, -1, -1)
    assert torch.equal(found[2:][inside], latents[2:][inside])
    assert torch.equal(found[2:][~inside], latents[:2][~inside])


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"source_words": "dog"}, "does not contain 'dog'. Its words: a, fox, and, snow."),
        ({"target_words": "fox"}, "does not contain 'fox'. Its words: a, cat, and, snow."),
        ({"subtract": "dog"}, "does not contain 'dog'"),
        ({"source_words": "", "target_words": " "}, "has no words, so nothing would be allowed to change"),
        ({"scale": 8}, "scale 1/8, but this model has cross-attention only at 1/1, 1/2, 1/4"),
    ],
)
def test_what_does_not_fit_is_one_sentence(settings, words):
    with pytest.raises(ValueError, match=words):
        blender(**settings)
