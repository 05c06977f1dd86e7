"""Each view by its definition: values by hand, of the published views, and what makes a jigsaw a jigsaw."""

import pytest
import torch
from torch.nn.functional import conv2d, pad
from torchvision.transforms import functional as published

from guided_synthesis.guidance.views.circles import ConcentricRings, InnerCircle
from guided_synthesis.guidance.views.component import Rest
from guided_synthesis.guidance.views.flip import Flip
from guided_synthesis.guidance.views.jigsaw import Jigsaw
from guided_synthesis.guidance.views.mask import Mask
from guided_synthesis.guidance.views.mirror_halves import MirrorHalves
from guided_synthesis.guidance.views.motion import Motion
from guided_synthesis.guidance.views.negate import Negate
from guided_synthesis.guidance.views.passes import LowPass, TripleLow, TripleMiddle, triple_high
from guided_synthesis.guidance.views.patch_permutation import PatchPermutation
from guided_synthesis.guidance.views.rotate import QuarterTurn, Rotation, rotate
from guided_synthesis.guidance.views.scale import Scale
from guided_synthesis.guidance.views.skew import Skew
from guided_synthesis.guidance.views.square_hinge import SquareHinge


def counted(height: int, width: int) -> torch.Tensor:
    return torch.arange(height * width).reshape(1, 1, height, width)


def rows(*lines: str) -> torch.Tensor:
    return torch.tensor([[[[int(cell) for cell in line.split()] for line in lines]]])


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "view, expected",
    [
        (Flip(), rows("2 1 0", "5 4 3", "8 7 6")),
        (Flip(vertical=True), rows("6 7 8", "3 4 5", "0 1 2")),
        (QuarterTurn(1), rows("6 3 0", "7 4 1", "8 5 2")),
        (QuarterTurn(3), rows("2 5 8", "1 4 7", "0 3 6")),
        (QuarterTurn(2), rows("8 7 6", "5 4 3", "2 1 0")),
        (Negate(), -counted(3, 3)),
        (MirrorHalves(), counted(3, 3)),
    ],
)
def test_values_by_hand(view, expected):
    assert torch.equal(view.view(counted(3, 3)), expected)


def test_halves_are_mirrored_each_in_its_place():
    assert torch.equal(MirrorHalves().view(rows("0 1 2 3 4 5")), rows("2 1 0 5 4 3"))
    assert torch.equal(MirrorHalves().view(rows("0 1 2 3 4")), rows("1 0 2 4 3"))


def test_columns_are_rolled_as_published():
    """Column i of 4 by int(1.5 (i - 2)): -3, int(-1.5) = -1, 0, 1; downwards."""
    assert torch.equal(Skew().view(counted(4, 4)), rows("12 5 2 15", "0 9 6 3", "4 13 10 7", "8 1 14 11"))
    x = noise(2, 3, 64, 64)
    expected = torch.stack([x[..., i].roll(int(1.5 * (i - 32)), -1) for i in range(64)], -1)
    assert torch.equal(Skew().view(x), expected)


@pytest.mark.parametrize("size", [64, 65])
def test_turns_are_those_of_torchvision(size):
    x = noise(1, 3, size, size)
    for turns, degrees in ((1, -90), (3, 90), (2, 180)):
        assert torch.equal(QuarterTurn(turns).view(x), published.rotate(x, degrees))


@pytest.mark.parametrize("angle, turns", [(0, 0), (90, 1), (-90, 3), (450, 1), (180, 2), (-180, 2), (720, 0)])
def test_multiples_of_90_degrees_are_exact_quarter_turns(angle, turns):
    assert rotate(angle) == QuarterTurn(turns)


def test_other_angles_are_lossy_and_say_so():
    view = rotate(30.0)
    assert view == Rotation(30.0) and not view.exact and not view.orthogonal
    spot = torch.zeros(1, 1, 33, 33)
    spot[..., 4, 16] = 1  # 12 px above the middle
    y, x = divmod(view.view(spot).argmax().item(), 33)
    assert (y, x) == (6, 22)  # 12 px at 30 degrees clockwise: 10.4 up, 6 to the right
    smooth = published.gaussian_blur(noise(1, 3, 65, 65), 15, 3.0)
    back = view.inverse(view.view(smooth))
    assert (back - smooth)[..., 16:49, 16:49].abs().max() < 0.1 * smooth.abs().max()
    assert Rotation(90.0).view(smooth).allclose(QuarterTurn(1).view(smooth), atol=1e-4)


def test_the_published_inner_circle_turns_what_is_within_24_px_at_64_by_180():
    x = noise(1, 3, 64, 64)
    expected = x.clone()
    for row in range(64):
        for column in range(64):
            if (row - 31.5) ** 2 + (column - 31.5) ** 2 < 24**2:
                expected[..., 63 - row, 63 - column] = x[..., row, column]
    assert torch.equal(InnerCircle(size=0.75, angle=180).view(x), expected)


@pytest.mark.parametrize("size", [(16, 16), (33, 33), (64, 64), (20, 32), (21, 33)])
@pytest.mark.parametrize("turns", [-1, 0, 1, 2, 3, 4])
def test_multiples_of_90_degrees_are_quarter_turns_within_the_circle_and_nothing_beyond(size, turns):
    x, view = noise(1, 3, *size), InnerCircle(size=0.8, angle=90 * turns)
    short = min(size)
    y, z = ((torch.arange(side) - (side - 1) / 2) for side in size)
    inside = y[:, None] ** 2 + z**2 < (0.4 * short) ** 2
    top, left = ((side - short) // 2 for side in size)
    window = slice(top, top + short), slice(left, left + short)
    expected = x.clone()
    expected[..., window[0], window[1]] = torch.rot90(x[..., window[0], window[1]], -turns, (-2, -1))
    assert torch.equal(view.view(x), torch.where(inside, expected, x))


def test_half_turns_are_exact_on_a_grid_without_quarter_turns_too():
    x, view = noise(1, 3, 20, 33), InnerCircle(size=0.8, angle=180)
    y, z = torch.arange(20) - 9.5, torch.arange(33) - 16.0
    inside = y[:, None] ** 2 + z**2 < 8**2
    assert torch.equal(view.view(x), torch.where(inside, x.flip(-2, -1), x))


@pytest.mark.parametrize("angle", [10, 45, 77, 140, -200])
def test_a_circle_turned_by_any_angle_is_the_rotated_picture_but_for_a_few_pixels_at_its_border(angle):
    ramp = torch.stack(torch.meshgrid(*[torch.arange(128.0) - 63.5] * 2, indexing="ij"))[None]
    moved, true = InnerCircle(size=0.9, angle=angle).view(ramp), Rotation(angle).view(ramp)
    within = ramp.norm(dim=1)[0] < 0.45 * 128
    errors = (moved - true).norm(dim=1)[0][within]
    assert errors.quantile(0.99) < 1.01
    assert errors.mean() < 0.65


def test_rings_turn_alternately_and_the_corners_stay():
    x, view = noise(1, 3, 64, 64), ConcentricRings(rows=2, size=1.0, angle=90)
    shown = view.view(x)
    quarter = torch.rot90(x, -1, (-2, -1)), torch.rot90(x, 1, (-2, -1))
    assert torch.equal(shown[..., 25:39, 25:39], quarter[0][..., 25:39, 25:39])
    assert torch.equal(shown[..., 31, 50:60], quarter[1][..., 31, 50:60])
    assert torch.equal(shown[..., :8, :8], x[..., :8, :8])


def test_the_published_hinge_turns_nine_squares_alternately_and_leaves_the_last_row_and_column():
    x = noise(1, 3, 64, 64)
    expected = x.clone()
    for row in range(3):
        for column in range(3):
            square = slice(21 * row, 21 * row + 21), slice(21 * column, 21 * column + 21)
            turns = -1 if (row + column) % 2 == 0 else 1
            expected[..., square[0], square[1]] = torch.rot90(x[..., square[0], square[1]], turns, (-2, -1))
    assert torch.equal(SquareHinge().view(x), expected)


def test_patches_go_whole_and_the_same_way_at_every_size():
    view = PatchPermutation(rows=2, columns=3, seed=4)
    order = view.view(counted(2, 3)).flatten()
    assert sorted(order.tolist()) == list(range(6)) and order.tolist() != list(range(6))
    x = noise(1, 3, 10, 21)
    patches = x.reshape(1, 3, 2, 5, 3, 7).permute(0, 1, 2, 4, 3, 5).flatten(2, 3)[:, :, order]
    expected = patches.unflatten(2, (2, 3)).permute(0, 1, 2, 4, 3, 5).reshape(x.shape)
    assert torch.equal(view.view(x), expected)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [(16, 16), (64, 64), (37, 37), (24, 35), (63, 32)])
def test_the_pieces_of_a_jigsaw_fit_into_each_others_places(seed, size):
    """Seen through the view, every place holds one whole piece of its kind, and nothing is left of another."""
    view = Jigsaw(seed)
    labels = view.layout(*size).labels
    shown = view.view(labels[None, None])[0, 0]
    assert torch.equal(shown[labels == -1], labels[labels == -1])
    kinds = {0: "corner", 3: "corner", 12: "corner", 15: "corner", 5: "in", 6: "in", 9: "in", 10: "in"}
    held = [shown[labels == place].unique() for place in range(16)]
    assert all(len(pieces) == 1 for pieces in held)
    assert all(kinds.get(int(piece)) == kinds.get(place) for place, piece in enumerate(held))
    assert sorted(int(piece) for piece in held) == list(range(16))


@pytest.mark.parametrize("side", [4, 7, 16, 33])
def test_pieces_have_tabs_and_all_of_a_kind_are_congruent(side):
    labels = Jigsaw().layout(4 * side, 4 * side).labels
    shapes = [pad(labels == piece, [side] * 4) for piece in range(16)]
    windows = [
        shape[r * side : (r + 3) * side, c * side : (c + 3) * side]
        for shape, (r, c) in zip(shapes, [divmod(piece, 4) for piece in range(16)], strict=True)
    ]
    square = torch.zeros(3 * side, 3 * side, dtype=torch.bool)
    square[side : 2 * side, side : 2 * side] = True
    assert all(not torch.equal(window, square) for window in windows)
    for piece, turns, same in [
        (5, 1, 5),
        (5, 0, 6),
        (0, -1, 3),
        (3, -1, 15),
        (1, 0, 2),
        (1, -1, 7),
        (2, -1, 11),
    ]:
        assert torch.equal(torch.rot90(windows[piece], turns), windows[same])
    assert windows[5].sum() == side**2


def test_a_puzzle_of_another_shape_keeps_the_ends_of_its_long_side():
    x, view = noise(1, 3, 16, 26), Jigsaw(1)
    shown = view.view(x)
    assert torch.equal(shown[..., :5], x[..., :5]) and torch.equal(shown[..., 21:], x[..., 21:])
    assert torch.equal(shown[..., 5:21], view.view(x[..., 5:21]))


def test_low_and_high_pass_are_the_published_ones_at_64():
    x = noise(1, 3, 64, 64)
    low = published.gaussian_blur(x, 33, 2.0)
    assert torch.allclose(LowPass().inverse(x), low, atol=1e-3)
    assert torch.allclose(Rest(LowPass()).inverse(x), x - low, atol=1e-3)


def test_the_triple_pass_is_the_published_one_at_64():
    x = noise(1, 3, 64, 64)
    coarse = published.gaussian_blur(x, 33, 1.0)
    low = published.gaussian_blur(coarse, 33, 2.0)
    expected = low, coarse - low, x - coarse
    sigma = 1 / 32
    for part, values in zip(
        (TripleLow(sigma), TripleMiddle(sigma), triple_high(sigma)), expected, strict=True
    ):
        assert torch.allclose(part.inverse(x), values, atol=1e-3)


def test_motion_is_the_mean_along_the_diagonal_over_7_px_at_64():
    x = noise(1, 1, 64, 64)
    expected = conv2d(pad(x, [3] * 4, mode="reflect"), torch.eye(7)[None, None] / 7)
    assert torch.allclose(Motion().inverse(x), expected, atol=1e-6)


def test_a_mask_of_any_size_divides_the_picture_and_half_is_half():
    x = noise(1, 4, 16, 16)
    left = torch.zeros(1, 1, 128, 128)
    left[..., :64] = 1
    expected = x.clone()
    expected[..., 8:] = 0
    inside = Mask(left).inverse(x)
    assert torch.allclose(inside[..., :7], expected[..., :7]) and torch.equal(
        inside[..., 9:], expected[..., 9:]
    )
    assert torch.equal(Mask(torch.ones(1, 1, 3, 3)).inverse(x), x)
    assert torch.equal(Mask(torch.zeros(1, 1, 3, 3)).inverse(x), 0 * x)
    assert torch.equal(Rest(Mask(torch.full((1, 1, 16, 16), 0.5))).inverse(x), 0.5 * x)


def test_scales_whose_factors_sum_to_one_are_a_composition_of_prompts():
    unconditional, conditional = noise(1, 4, 8, 8), noise(2, 4, 8, 8)[1:]
    guided = Scale(-2.0).inverse(unconditional) + Scale(3.0).inverse(conditional)
    assert torch.allclose(guided, unconditional + 3 * (conditional - unconditional), atol=1e-5)
