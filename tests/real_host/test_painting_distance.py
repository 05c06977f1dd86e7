"""The Painting Distance node on the real host: its number, its map, its sentences."""

import re
from pathlib import Path

import pytest
import torch

from guided_synthesis.guidance.painting import PaintingObjective, Pixels, gaussian
from guided_synthesis.guidance.painting_functions import NAMES
from real_host.sampling import scene_painting

HELP = Path(__file__).parents[2] / "js" / "docs" / "GuidedSynthesis_PaintingDistance" / "en.md"


@pytest.fixture(scope="module")
def node(host):
    from guided_synthesis.nodes import painting_distance

    return painting_distance


@pytest.fixture(scope="module")
def painting():
    return scene_painting(3)[0]


def measured(node, image, painting, **widgets):
    """Distance and heat map of the node as a graph calls it, with its own defaults."""
    inputs = node.PaintingDistance.define_schema().inputs
    settings = {entry.id: entry.default for entry in inputs if hasattr(entry, "default")} | widgets
    with torch.inference_mode():
        return node.PaintingDistance.execute(image, painting, **settings).args


@pytest.mark.parametrize("function", NAMES)
def test_a_painting_is_at_distance_zero_of_itself_and_its_map_is_black(node, painting, function):
    distance, heat = measured(node, painting, painting, function=function)
    assert isinstance(distance, float) and distance < 1e-10
    assert heat.shape == (1, 128, 128, 3) and heat.dtype == torch.float32
    assert heat.max() < 0.05


@pytest.mark.parametrize("function", NAMES)
def test_black_against_white_is_one_and_as_bright_as_it_gets(node, function):
    black, white = torch.zeros(1, 32, 32, 3), torch.ones(1, 32, 32, 3)
    distance, heat = measured(node, black, white, function=function)
    shade = (
        0.1 if function == "median palette" else 1.0
    )  # a palette of white alone sees white nearly everywhere
    assert distance == pytest.approx(shade**2, rel=1e-5)
    assert (heat[0, 0, 0, 0] > 0.9).item() == (shade == 1.0)


def test_the_default_is_the_plain_mean_of_both_blurred(node, painting):
    image = scene_painting(8)[0]
    x, y = (gaussian(value.movedim(-1, 1), 7 * 128 / 512) for value in (image, painting))
    assert measured(node, image, painting)[0] == pytest.approx((x - y).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("function", NAMES)
def test_the_number_is_the_guides_loss_to_the_bit(node, painting, function):
    image = scene_painting(8)[0]
    objective = PaintingObjective(Pixels(), painting.movedim(-1, 1), brush=20.0, function=function, colours=5)
    distance = measured(node, image, painting, function=function, brush=20.0, colours=5)[0]
    assert distance == objective(image.movedim(-1, 1)).mean().item()


def test_a_batch_is_averaged_and_mapped_one_by_one(node, painting):
    batch, paintings = torch.cat([painting, 1 - painting]), torch.cat([painting, scene_painting(8)[0]])
    distance, heat = measured(node, batch, paintings)
    alone = [measured(node, x[None], y[None]) for x, y in zip(batch, paintings, strict=True)]
    assert distance == pytest.approx((alone[0][0] + alone[1][0]) / 2, rel=1e-5)
    assert torch.allclose(heat, torch.cat([alone[0][1], alone[1][1]]), atol=0.01)
    one_for_all = measured(node, batch, painting)[1]
    assert one_for_all[0].mean() < 0.05 < one_for_all[1].mean()


def test_the_mask_says_what_counts_and_what_is_shown(node, painting):
    image, mask = painting.clone(), torch.ones(1, 128, 128)
    image[:, :, 64:] = 1 - image[:, :, 64:]
    mask[:, :, 56:] = 0
    distance, heat = measured(node, image, painting, mask=mask)
    whole, _ = measured(node, image, painting)
    other, seen = measured(node, image, painting, mask=1 - mask)
    assert distance < 1e-4 < whole < other
    assert heat.max() < 0.15 and seen[:, :, :56].max() < 0.05 < seen.mean()
    assert measured(node, image, painting, mask=0.5 * torch.ones(1, 128, 128))[0] == pytest.approx(whole)


def test_the_map_has_a_fixed_scale_and_grows_brighter(node):
    values = torch.tensor([0.0, 0.1, 0.25, 0.4, 0.5, 0.9]).square().reshape(1, 1, 6)
    luminance = node.heat_map(values)[0, 0].mean(-1)
    assert (luminance[1:5] > luminance[:4]).all() and luminance[5] == luminance[4]
    assert torch.equal(node.heat_map(values)[0, 0, 1], node.heat_map(values[..., 1:2])[0, 0, 0])


def test_a_painting_of_another_size_is_fitted(node, painting):
    small = torch.nn.functional.avg_pool2d(painting.movedim(-1, 1), 2).movedim(1, -1)
    assert measured(node, painting, small)[0] < 1e-3


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"image": torch.rand(128, 128, 3)}, "image has the shape (128, 128, 3); connect an IMAGE"),
        ({"painting": torch.rand(1, 64, 128, 3)}, "painting is 128x64 px but image is 128x128 px"),
        ({"painting": torch.rand(3, 128, 128, 3)}, "painting has 3 pictures but image has 1"),
        ({"mask": torch.ones(2, 128, 128)}, "mask has 2 pictures but image has 1"),
        ({"mask": torch.zeros(1, 128, 128)}, "mask is empty (all zero)"),
    ],
)
def test_bad_input_is_one_clear_sentence(node, painting, change, sentence):
    settings = {"image": painting, "painting": painting} | change
    with pytest.raises(ValueError, match=re.escape(sentence)):
        measured(node, settings.pop("image"), settings.pop("painting"), **settings)


def test_every_input_and_output_has_a_tooltip_and_every_input_is_in_the_help(node):
    schema = node.PaintingDistance.define_schema()
    assert schema.node_id == "GuidedSynthesis_PaintingDistance"
    assert all(entry.tooltip for entry in [*schema.inputs, *schema.outputs])
    text = HELP.read_text(encoding="utf-8")
    assert all(f"**{entry.id}**" in text for entry in schema.inputs)
