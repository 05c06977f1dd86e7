"""Painted regions: the table of colours, which pixel belongs to which line, and what is said of the others."""

import re

import pytest
import torch

from guided_synthesis.attention.colours import colour_regions, parsed_table

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 128, 0)


def painted(*columns, height=8, width=4):
    """A picture (1, 3, H, W) of upright stripes in the colours of `columns`, each `width` px wide."""
    stripes = [
        torch.tensor(colour).float().div(255)[:, None, None].expand(3, height, width) for colour in columns
    ]
    return torch.cat(stripes, -1)[None]


def test_a_table_names_colours_in_words_or_in_hex_and_skips_empty_lines():
    table = "red: fox\n\n #3366ff :  a lake, the sea \nGreen:\n"
    assert parsed_table(table) == [
        ((255, 0, 0), "fox"),
        ((0x33, 0x66, 0xFF), "a lake, the sea"),
        ((0, 128, 0), ""),
    ]


@pytest.mark.parametrize(
    "table, sentence",
    [
        ("red fox", "Line 1 of the table, 'red fox', has no colon. Write a colour, a colon and words"),
        ("red: fox\nreddish: cat", "Line 2 of the table: 'reddish' is no colour. Write a CSS name"),
        ("#12: fox", "'#12' is no colour"),
        ("  \n ", "The table is empty. Write one line for each colour"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_sentence(table, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        parsed_table(table)


def test_each_stripe_is_the_region_of_its_colour():
    masks, left = colour_regions(painted(RED, BLUE), [(RED, "fox"), (BLUE, "lake")], 30)
    assert left == ""
    expected = torch.zeros(1, 1, 8, 8)
    expected[..., :4] = 1
    assert torch.equal(masks[0], expected) and torch.equal(masks[1], 1 - expected)


def test_a_pixel_goes_to_the_nearest_colour_within_the_tolerance():
    crimson, table = (220, 20, 60), [(RED, "fox"), (BLUE, "lake")]
    masks, left = colour_regions(painted(RED, crimson, BLUE), table, 60)
    assert masks[0][..., :8].all() and not masks[0][..., 8:].any() and left == ""
    masks, left = colour_regions(painted(RED, crimson, BLUE), table, 10)
    assert masks[0][..., :4].all() and not masks[0][..., 4:].any()
    assert left == "Colours of the painting that no line of the table names: #dc143c (33 %)."


def test_the_tolerance_is_the_cie76_distance():
    """Black and the grey of L* = 30 are 30 apart; sRGB 71 is L* = 30.1."""
    black, grey = (0, 0, 0), (71, 71, 71)
    for tolerance, claimed in ((29, False), (31, True)):
        masks, _ = colour_regions(painted(black, grey), [(black, "night")], tolerance)
        assert bool(masks[0][..., 4:].all()) is claimed


def test_a_few_pixels_of_mixed_colours_are_not_worth_a_word():
    picture = painted(RED, BLUE, height=64, width=64)
    picture[..., 10, 10] = 0.5
    masks, left = colour_regions(picture, [(RED, "fox"), (BLUE, "lake")], 30)
    assert left == "" and not masks[0][..., 10, 10] and not masks[1][..., 10, 10]


def test_left_over_colours_are_told_the_largest_first():
    table = [(RED, "fox")]
    _, left = colour_regions(painted(RED, GREEN, BLUE, BLUE), table, 30)
    assert left.endswith("names: #0000ff (50 %), #008000 (25 %).")


def test_a_line_without_words_takes_its_pixels_and_may_be_nowhere():
    masks, left = colour_regions(painted(RED, GREEN), [(RED, "fox"), (GREEN, ""), (BLUE, "")], 30)
    assert left == "" and masks[1].any() and not masks[2].any()


def test_each_picture_of_a_batch_has_its_own_regions():
    batch = torch.cat([painted(RED, BLUE), painted(BLUE, RED)])
    masks, _ = colour_regions(batch, [(RED, "fox"), (BLUE, "lake")], 30)
    assert torch.equal(masks[0], masks[1].flip(0)) and masks[0].shape == (2, 1, 8, 8)


def test_a_colour_that_is_not_painted_is_an_error_that_names_what_is():
    with pytest.raises(
        ValueError, match=re.escape("#0000ff of the table (lake) is nowhere in the painting")
    ) as told:
        colour_regions(painted(RED, GREEN), [(RED, "fox"), (BLUE, "lake")], 20)
    assert "#008000 (50 %)" in str(told.value)
    with pytest.raises(ValueError, match="All of it is covered by other lines"):
        colour_regions(painted(RED), [(RED, "fox"), (BLUE, "lake")], 20)
