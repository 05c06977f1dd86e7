"""Films of views: easing, which frame shows what, one size for all, captions that are whole."""

import pytest
import torch
from PIL import ImageFont

from guided_synthesis.guidance.animation import (
    EASES,
    LIMIT,
    Shot,
    Stage,
    base,
    check_size,
    moves,
    on_canvas,
    timeline,
)
from guided_synthesis.guidance.captions import faded, strips, wrap
from guided_synthesis.guidance.views.protocol import View

FONT = ImageFont.load_default(12)
linear = EASES["linear"]


class Turn(View):
    """A quarter turn whose frames are larger squares, as the protocol allows."""

    def view(self, x):
        """Turn clockwise."""
        return x.rot90(-1, (-2, -1))

    def frame(self, image, t):
        """Be all grey, but for the ends of the way."""
        seen = {0.0: image, 1.0: self.view(image)}.get(t, image.new_full((1, 3, 1, 1), 0.5))
        return on_canvas(seen, 15, 15)


class Same(View):
    """What does not move."""

    def view(self, x):
        """Be the same."""
        return x

    def frame(self, image, t):
        """Be the same."""
        return image


def picture(height=4, width=6):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", EASES)
def test_easing_rises_from_0_to_1_and_runs_backwards_as_forwards(name):
    ease, times = EASES[name], [k / 40 for k in range(41)]
    values = [ease(s) for s in times]
    assert (values[0], values[20], values[40]) == (0, 0.5, 1)
    assert all(a < b for a, b in zip(values, values[1:], strict=False))
    assert [ease(1 - s) for s in times] == pytest.approx([1 - value for value in values], abs=1e-15)


def test_cubic_easing_has_the_values_of_its_formula():
    assert [EASES["cubic"](s) for s in (0.1, 0.25, 0.75)] == pytest.approx([0.004, 0.0625, 0.9375])


@pytest.mark.parametrize("loop, frames", [(True, 2 * (3 + 5 + 3 + 5)), (False, 2 * (3 + 5 + 3 + 5) - 5)])
def test_a_film_has_the_frames_that_hold_and_transition_say(loop, frames):
    shots = timeline([0, 2], hold=3, transition=5, ease=linear, loop=loop)
    assert len(shots) == frames
    assert [shot.t for shot in shots].count(1.0) == 6 and [shot.t for shot in shots].count(0.0) == 6


def test_a_film_goes_from_the_picture_to_each_reading_and_the_same_way_back():
    shots = timeline([0, 2], hold=1, transition=3, ease=linear, loop=True)
    there = [0.0, 0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25]
    assert [shot.t for shot in shots] == there * 2
    assert [shot.view for shot in shots] == [0] * 8 + [2] * 8


def test_a_film_that_does_not_loop_ends_at_the_last_reading():
    assert timeline([0, 2], 1, 3, linear, loop=False)[-1] == Shot(2, 1.0)
    assert timeline([1], 2, 0, linear, loop=False) == [Shot(1, 0.0)] * 2 + [Shot(1, 1.0)] * 2


def test_where_nothing_moves_the_picture_is_held_once():
    assert timeline([], 4, 9, linear, loop=False) == [Shot(0, 0.0)] * 4


def test_only_what_looks_other_than_the_picture_moves():
    assert moves(Turn(), picture()) and not moves(Same(), picture())


def test_all_frames_have_the_even_size_that_holds_every_one_of_them():
    stage, image = Stage.around([Same(), Turn()], picture(4, 12)), picture(4, 12)
    assert (stage.height, stage.width) == (16, 16)
    assert {stage.frame(image, Shot(view, t)).shape for view in (0, 1) for t in (0.0, 0.4, 1.0)} == {
        (1, 3, 16, 16)
    }
    small = Stage.around([Same()], picture(3, 5))
    assert (small.height, small.width) == (4, 6)


def test_the_ends_of_a_way_are_the_picture_and_its_reading_to_the_bit():
    image = picture(4, 6)
    stage = Stage.around([Turn()], image)
    assert torch.equal(stage.frame(image, Shot(0, 0.0)), on_canvas(on_canvas(image, 15, 15), 16, 16))
    turned = image.rot90(-1, (-2, -1))
    assert torch.equal(stage.frame(image, Shot(0, 1.0)), on_canvas(on_canvas(turned, 15, 15), 16, 16))


def test_what_is_smaller_lies_in_the_middle_of_mid_grey():
    image = picture(2, 3)
    wide = on_canvas(image, 4, 6)
    assert torch.equal(wide[..., 1:3, 1:4], image)
    assert wide.sum().item() == pytest.approx(image.sum().item() + 3 * (24 - 6) * 0.5, rel=1e-6)
    assert on_canvas(image, 2, 3) is image


def test_the_picture_as_it_is_has_the_title_of_the_view_that_shows_it_so():
    assert base(["flip", "as it is", "turn"], moving=[0, 2]) == "as it is"
    assert base(["flip"], moving=[0]) == ""


def test_a_film_too_large_for_memory_is_refused_with_what_to_lower():
    frame = 1024 * 1024 * 3 * 4
    check_size(LIMIT // frame, 1024, 1024)
    with pytest.raises(
        ValueError, match="342 frames of 1024x1024 px, 4.0 GiB.*at most 4 GiB.*Lower fps, hold"
    ):
        check_size(LIMIT // frame + 1, 1024, 1024)


def ink(strip):
    """Where there are letters: (S, W)."""
    return (strip[..., 0] - strip[0, 0, 0]).abs() > 0.2


def test_captions_are_seen_and_all_strips_have_one_even_size():
    found = strips(["a fox", "", "an apple in the snow " * 6], 120, FONT)
    assert found.shape[0] == 3 and found.shape[1] % 2 == 0 and found.shape[2:] == (120, 3)
    assert ink(found[0]).sum() > 20 and not ink(found[1]).any()
    rows = ink(found[0]).any(1).nonzero()
    assert abs(rows.float().mean() - found.shape[1] / 2) < 3  # in the middle


@pytest.mark.parametrize("text", ["a photo of a fox and an apple " * 5, "w" * 90, "gjpqy" * 4 + " |||||"])
def test_no_caption_is_cut_off(text):
    letters = ink(strips([text], 100, FONT)[0])
    edges = (letters[0], letters[-1], letters[:, 0], letters[:, -1])
    assert letters.any() and not any(edge.any() for edge in edges)
    lines = wrap(text, 88, FONT)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert max(FONT.getlength(line) for line in lines) <= 88


def test_a_letter_wider_than_the_picture_stays_a_line():
    assert wrap("mm m", 1, FONT) == ["m", "m", "m"]


def test_without_text_there_is_no_strip():
    assert strips(["", " "], 50, FONT).shape == (2, 0, 50, 3)


def test_text_of_any_script_is_drawn():
    assert ink(strips(["\u00e9\u03b1\u0416 \u65e5\u672c\U0001f98a \u202e\u0301"], 200, FONT)[0]).any()


def test_a_caption_fades_out_half_way_and_the_other_fades_in():
    one, other = strips(["a fox", "an apple"], 100, FONT)
    assert torch.allclose(faded(one, other, 0.0), one) and torch.allclose(faded(one, other, 1.0), other)
    assert not ink(faded(one, other, 0.5)).any()
    contrast = [faded(one, other, t).max().item() for t in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    assert contrast[0] > contrast[1] > contrast[2] == pytest.approx(contrast[3], abs=1e-6)
    assert contrast[3] < contrast[4] < contrast[5]
