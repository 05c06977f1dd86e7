"""Recordings without a host: what is kept, how much of it, and what a word's map is."""

import pytest
import torch
from torch.nn.functional import interpolate

from guided_synthesis.attention.maps import Call, Condition, Layer
from guided_synthesis.attention.record import Recorder
from guided_synthesis.attention.words import Prompt, Word

PROMPT = Prompt("red fox", (Word("red", (1,)), Word("fox", (2, 3))), 77)
SMALL, LARGE = Layer("small", "down", 4), Layer("large", "up", 2)


def condition(prompt=PROMPT, kind=0, area=None, latent=(9, 13)):
    return Condition(kind, 77, prompt, latent, area, noted=prompt is not None)


def call(layer, latent=(9, 13)):
    grid = tuple(-(-side // layer.scale) for side in latent)
    return Call(layer, grid, condition(latent=latent), 0.5)


def maps(layer, seed=0, batch=2, heads=3, latent=(9, 13)):
    height, width = call(layer, latent).grid
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, heads, height * width, 77, generator=generator).softmax(-1)


def recorder(scales=(2, 4)):
    made = Recorder(PROMPT, frozenset(scales))
    return made, made.begin()


def test_a_map_is_the_mean_over_tokens_heads_layers_and_steps():
    made, recording = recorder()
    seen = {layer: [maps(layer, seed) for seed in (1, 2, 3)] for layer in (SMALL, LARGE)}
    for layer, steps in seen.items():
        for step in steps:
            assert made.edit(step, call(layer)) is step
    expected = []
    for layer, steps in seen.items():
        fox = (
            torch.stack([step[..., [2, 3]] for step in steps]).mean((0, 2, 4)).unflatten(-1, call(layer).grid)
        )
        large = interpolate(fox[:, None], scale_factor=layer.scale, mode="bicubic")
        expected.append(large[..., :9, :13].clamp(min=0))
    heat = recording.heat((2, 3))
    assert torch.allclose(heat, (expected[0] + expected[1]) / 2, atol=1e-7)
    assert torch.equal(recording.heat((2, 3), pictures=1), heat[:1])


@pytest.mark.parametrize("latent", [(9, 13), (16, 16), (1, 7), (33, 20)])
def test_a_map_has_the_size_of_the_latent_and_no_shift(latent):
    """A token at the edge that covers fewer cells is cut there; the others are not stretched to fill its place."""
    made, recording = recorder()
    grid = call(SMALL, latent).grid
    columns = torch.arange(grid[1]).expand(grid).flatten() / 100  # brighter to the right, by 0.01 a token
    made.edit(columns[None, None, :, None].expand(2, 3, -1, 77), call(SMALL, latent))
    heat = recording.heat((1,))
    assert heat.shape == (2, 1, *latent)
    centre = grid[1] // 2 * 4 - 2  # between two tokens' middles, bicubic is linear there
    if 8 <= centre <= latent[1] - 6:
        assert torch.allclose(heat[..., centre + 1] - heat[..., centre], torch.tensor(0.0025), atol=1e-5)
    expected = interpolate(columns.unflatten(0, grid)[None, None], scale_factor=4, mode="bicubic")
    assert torch.allclose(heat[0, 0], expected[0, 0, : latent[0], : latent[1]].clamp(min=0), atol=1e-7)


def test_what_is_kept_is_the_words_columns_of_each_layer_and_nothing_else():
    made, recording = recorder()
    for step in range(5):
        for layer in (SMALL, LARGE):
            made.edit(maps(layer, step), call(layer))
    kept = {layer: sums.total for layer, sums in recording.sums.items()}
    assert {layer: total.shape for layer, total in kept.items()} == {
        SMALL: (2, 3 * 4, 3),
        LARGE: (2, 5 * 7, 3),
    }
    assert all(total.untyped_storage().nbytes() == total.numel() * 4 for total in kept.values())
    assert all(sums.steps == 5 for sums in recording.sums.values())


def test_a_layer_at_a_size_of_its_own_counts_at_its_usual_size():
    """As with Deep Shrink, which lets only some steps run smaller: all steps add up on one grid, (5, 7) here."""
    made, recording = recorder()
    shrunk = torch.rand(2, 3, 3 * 4, 77, generator=torch.Generator().manual_seed(0))
    made.edit(shrunk, Call(LARGE, (3, 4), condition(), 0.1))
    ordinary = maps(LARGE)
    made.edit(ordinary, call(LARGE))
    enlarged = interpolate(shrunk.mean(1).mT.unflatten(-1, (3, 4)), (5, 7), mode="bilinear").flatten(2).mT
    expected = (enlarged + ordinary.mean(1))[..., [1, 2, 3]]
    sums = recording.sums[LARGE]
    assert torch.allclose(sums.total, expected, atol=1e-6) and sums.steps == 2


def test_only_the_prompt_in_layers_of_the_chosen_scales_over_the_whole_picture_is_read():
    made, _ = recorder((4,))
    other = Prompt("a cat", (Word("a", (1,)), Word("cat", (2,))), 77)
    assert made.reads(SMALL, condition(), 0.0) and made.reads(SMALL, condition(kind=2), 0.0)
    assert not made.reads(LARGE, condition(), 0.0)
    assert not made.reads(SMALL, condition(other), 0.0)
    assert not made.reads(SMALL, condition(area=(4, 4, 0, 0)), 0.0)
    assert made.reads(SMALL, condition(None), 0.0) and not made.reads(SMALL, condition(None, kind=1), 0.0)


def test_between_runs_nothing_is_read_or_kept():
    made, recording = recorder()
    made.edit(maps(SMALL), call(SMALL))
    made.end()
    assert made.current is None and not made.reads(SMALL, condition(), 0.0)
    made.edit(maps(SMALL), call(SMALL))
    assert recording.sums[SMALL].steps == 1
    assert made.begin().sums == {}


def test_an_empty_recording_says_what_to_do():
    _, recording = recorder()
    with pytest.raises(ValueError, match="No attention maps were recorded .* Connect the conditioning"):
        recording.heat((1,))
