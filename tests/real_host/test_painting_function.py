"""The Painting Function node on the real host: what it hands out, its schema, its sentences."""

import re
from pathlib import Path

import pytest
import torch

from guided_synthesis.guidance.painting_functions import NAMES
from real_host.sampling import scene_painting
from tiny_sd.world import draw, make_spec

HELP = Path(__file__).parents[2] / "js" / "docs" / "GuidedSynthesis_PaintingFunction" / "en.md"


@pytest.fixture(scope="module")
def node(host):
    from guided_synthesis.nodes import painting_function

    return painting_function


def photo(seed=3):
    """A drawn scene as IMAGE (1, 128, 128, 3)."""
    return torch.from_numpy(draw(make_spec(seed, things=1)).image).float()[None] / 255


def painted(node, image, **widgets):
    """The node as a graph calls it, with its own defaults."""
    inputs = node.PaintingFunction.define_schema().inputs
    settings = {entry.id: entry.default for entry in inputs if hasattr(entry, "default")} | widgets
    with torch.inference_mode():
        return node.PaintingFunction.execute(image, **settings).args[0]


def colours_of(image):
    """How many different colours an IMAGE has."""
    return len(image.reshape(-1, 3).unique(dim=0))


def test_the_default_paints_a_photo_in_at_most_eight_colours(node):
    image = photo()
    painting = painted(node, image)
    assert 2 <= colours_of(painting) <= 8 < colours_of(image)
    assert (painting - image).square().mean() < 0.2 * (image.mean((1, 2)) - image).square().mean()


@pytest.mark.parametrize("function", NAMES)
@pytest.mark.parametrize("height, width", [(128, 128), (57, 211), (1, 1), (16, 9)])
def test_any_size_comes_out_as_it_went_in(node, function, height, width):
    image = torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(0))
    painting = painted(node, image, function=function)
    assert painting.shape == image.shape and painting.dtype == torch.float32
    assert 0 <= painting.min() and painting.max() <= 1


@pytest.mark.parametrize("function", NAMES)
def test_every_picture_of_a_batch_is_painted_as_if_it_were_alone(node, function):
    batch = torch.cat([photo(3), photo(8)])
    alone = torch.cat([painted(node, photo(seed), function=function) for seed in (3, 8)])
    assert torch.equal(painted(node, batch, function=function), alone)


@pytest.mark.parametrize("function", NAMES)
def test_a_wider_brush_leaves_out_more(node, function):
    image = photo()
    errors = [(painted(node, image, function=function, brush=b) - image).square().mean() for b in (4, 20, 60)]
    assert errors[0] < errors[1] < errors[2]


def test_a_large_picture_gives_the_painting_of_the_small_one(node):
    image = photo().movedim(-1, 1)
    large = torch.nn.functional.interpolate(image, scale_factor=4, mode="bilinear").movedim(1, -1)
    small = painted(node, image.movedim(1, -1), brush=24.0)
    again = painted(node, large, brush=24.0).movedim(-1, 1)
    reduced = torch.nn.functional.avg_pool2d(again, 4).movedim(1, -1)
    assert (small - reduced).abs().mean() < 0.02


def test_one_colour_and_no_brush_are_defined(node):
    assert colours_of(painted(node, photo(), colours=1)) == 1
    assert painted(node, photo(), brush=0.0).isfinite().all()


def test_an_interrupt_stops_a_batch_and_leaves_nothing_behind(host, node):
    batch = torch.cat([photo(3), photo(8)])
    host.comfy.model_management.interrupt_current_processing()
    with pytest.raises(host.comfy.model_management.InterruptProcessingException):
        painted(node, batch)
    assert painted(node, batch).shape == batch.shape


def test_a_wrong_shape_is_one_clear_sentence(node):
    with pytest.raises(ValueError, match=re.escape("connect an IMAGE (batch, height, width, 3)")):
        painted(node, torch.rand(128, 128, 3))


def test_every_input_and_output_has_a_tooltip_and_every_input_is_in_the_help(node):
    schema = node.PaintingFunction.define_schema()
    assert schema.node_id == "GuidedSynthesis_PaintingFunction"
    assert all(entry.tooltip for entry in [*schema.inputs, *schema.outputs])
    text = HELP.read_text(encoding="utf-8")
    assert all(f"**{entry.id}**" in text for entry in schema.inputs)


def test_a_painting_of_the_demo_world_guides_like_one_made_by_this_node(node):
    theirs, _ = scene_painting(3)
    ours = painted(node, photo(3), brush=32.0, colours=5)
    assert (ours - theirs).square().mean() < 0.25 * (theirs.mean((1, 2)) - theirs).square().mean()
