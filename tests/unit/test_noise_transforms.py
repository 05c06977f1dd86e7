"""Noise that is moved stays the noise it was: exact permutations, whiteness of the rest, things go where they must."""

import math

import pytest
import torch

from guided_synthesis.guidance.noise_statistics import ring_power, standardised
from guided_synthesis.guidance.noise_transforms import (
    Contraction,
    Movement,
    coloured,
    flipped,
    rewhitened,
    rotated,
    scaled,
    shifted,
    spherical_mix,
    turned,
)

SIZE = (9, 12)
CHANGES = {f"rotated by {angle}": (rotated, angle) for angle in (1, 30, 45, 100, -170)} | {
    f"scaled by {factor}": (scaled, factor) for factor in (0.25, 0.7, 1.1, 2, 4)
}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fresh(*leading: int, seed: int = 99):
    """What makes fresh noise with these leading dimensions."""
    generator = torch.Generator().manual_seed(seed)
    return lambda height, width: torch.randn(*leading, height, width, generator=generator)


def nothing(height: int, width: int) -> torch.Tensor:
    return torch.zeros(1, 1, height, width)


def bumps(size: tuple[int, int], place, width: float = 2.5) -> torch.Tensor:
    """A hill and a hollow, so far right of and below the middle, in cells, as `place` (x, y) -> (x, y) puts them."""
    rows, columns = (torch.arange(float(side)) - (side - 1) / 2 for side in size)

    def hill(x: float, y: float) -> torch.Tensor:
        return torch.exp(-((rows[:, None] - y) ** 2 + (columns[None] - x) ** 2) / (2 * width**2))

    return (hill(*place(7.0, -3.0)) - hill(*place(-2.0, 6.0)))[None, None]


def here(x: float, y: float) -> tuple[float, float]:
    return x, y


def likeness(a: torch.Tensor, b: torch.Tensor) -> float:
    return (standardised(a) * standardised(b)).mean().item()


def test_turns_go_clockwise_and_flips_are_named_by_what_changes_places():
    square = torch.tensor([[1, 2], [3, 4]])
    assert turned(square, 1).tolist() == [[3, 1], [4, 2]]
    assert flipped(square, "horizontal").tolist() == [[2, 1], [4, 3]]
    assert flipped(square, "vertical").tolist() == [[3, 4], [1, 2]]
    assert shifted(square, 0.5, 0).tolist() == [[2, 1], [4, 3]]


@pytest.mark.parametrize("x, y", [(0, 0), (0.3, -0.8), (-1, 0.04)])
@pytest.mark.parametrize("flip", ["none", "horizontal", "vertical"])
@pytest.mark.parametrize("quarters", range(4))
def test_quarter_turns_flips_and_shifts_are_permutations_that_can_be_undone(quarters, flip, x, y):
    n = noise(2, 3, *SIZE).half()
    moved = Movement(quarters, flip, shift_x=x, shift_y=y)(n, fresh(2, 3))
    assert moved.shape[-2:] == (SIZE[::-1] if quarters % 2 else SIZE) and moved.dtype == n.dtype
    assert torch.equal(moved.flatten(2).sort().values, n.flatten(2).sort().values)
    height, width = moved.shape[-2:]
    back = moved.roll((-round(y * height), -round(x * width)), (-2, -1))
    assert torch.equal(turned(flipped(back, flip), -quarters), n)


def test_the_default_movement_changes_nothing_and_a_whole_shift_neither():
    n = noise(2, 3, *SIZE)
    assert torch.equal(Movement()(n, fresh(2, 3)), n)
    assert torch.equal(shifted(n, 1, -1), n)


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (8, 12)])
@pytest.mark.parametrize("degrees", [90, 180, -90, -180])
def test_a_rotation_by_quarters_is_the_permutation_where_the_size_stays(size, degrees):
    n = noise(1, 2, *size)
    if size[0] == size[1] or degrees % 180 == 0:
        assert torch.equal(rotated(n, degrees, fresh(1, 2)), turned(n, degrees // 90))
    else:
        found = rotated(n, degrees, nothing)
        middle = turned(n, degrees // 90)[..., 2:-2, :]
        assert likeness(found[..., 2:-2], middle) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("size", [SIZE, (8, 8)])
def test_white_noise_stays_white(change, size):
    move, amount = CHANGES[change]
    count = 3000
    n = noise(count, 1, *size)
    cells = move(n, amount, fresh(count, 1)).flatten(1)
    covariance = cells.T @ cells / count - torch.eye(cells.shape[1])
    assert covariance.square().mean().sqrt() * count**0.5 == pytest.approx(
        1, abs=0.06
    )  # chance alone gives 1
    assert covariance.abs().max() * count**0.5 < 7  # and sqrt(2) on the diagonal
    assert cells.pow(4).mean() == pytest.approx(3, abs=0.06)  # Gaussian


@pytest.mark.parametrize("factor", [0.25, 0.6, 0.97, 1.03, 1.5, 4])
def test_what_a_scaling_loses_is_filled_exactly(factor):
    size = (6, 7)
    basis = torch.eye(42, dtype=torch.float64).reshape(42, *size)
    maps = [Contraction.zoom(side, factor) for side in size]
    kept = rewhitened(basis, *maps, torch.zeros_like(basis)).flatten(1)
    filled = rewhitened(torch.zeros_like(basis), *maps, basis).flatten(1)
    assert torch.allclose(kept.T @ kept + filled.T @ filled, torch.eye(42, dtype=torch.float64), atol=1e-12)
    assert 0.02 < kept.square().sum() / 42 < 1


def test_what_is_filled_in_has_a_mean_of_its_own_even_if_the_noise_has_none():
    means = coloured(noise(2000, 1, 8, 8), standardised(noise(2000, 1, 8, 8, seed=1))).mean((-2, -1))
    assert means.std() == pytest.approx(1 / 8, rel=0.1)


@pytest.mark.parametrize("change", CHANGES)
def test_mean_and_deviation_of_each_channel_stay(change):
    move, amount = CHANGES[change]
    n = noise(2, 3, *SIZE) * torch.tensor([0.5, 1, 2])[:, None, None] + 0.3
    moved = move(n, amount, fresh(2, 3))
    assert torch.allclose(moved.mean((-2, -1)), n.mean((-2, -1)), atol=1e-6)
    assert torch.allclose(moved.std((-2, -1)), n.std((-2, -1)), rtol=1e-5)


@pytest.mark.parametrize("change", CHANGES)
def test_no_noise_stays_none_and_a_constant_stays_that(change):
    move, amount = CHANGES[change]
    for value in (0.0, 0.3):
        flat = torch.full((2, 3, *SIZE), value)
        assert torch.allclose(move(flat, amount, fresh(2, 3)), flat, atol=1e-6)


@pytest.mark.parametrize("change", CHANGES)
def test_leading_dimensions_are_each_for_themselves_and_half_precision_is_computed_in_more(change):
    move, amount = CHANGES[change]
    n = noise(2, 3, 2, *SIZE)
    moved = move(n, amount, fresh(2, 3, 2))
    filling = fresh(2, 3, 2)
    one = move(n[1:, 2:, :1], amount, lambda h, w: filling(h, w)[1:, 2:, :1])
    assert torch.allclose(moved[1:, 2:, :1], one, atol=1e-5)
    half = move(n.half(), amount, fresh(2, 3, 2))
    assert half.dtype == torch.float16 and torch.allclose(half.float(), moved, atol=0.02)


@pytest.mark.parametrize("size", [(33, 41), (32, 32), (40, 33)])
@pytest.mark.parametrize("degrees", [15, 45, 80, -130])
def test_what_stands_in_the_noise_rotates_clockwise_about_the_middle(size, degrees):
    angle = math.radians(degrees)

    def there(x, y):
        return x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)

    found = rotated(bumps(size, here), degrees, nothing)
    mixed = (size[0] - size[1]) % 2  # a quarter turn cannot keep the middle of these: half a cell is missed
    assert likeness(found, bumps(size, there)) > (0.97 if mixed else 0.999)


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.25, 1.5])
def test_what_stands_in_the_noise_grows_about_the_middle(factor):
    size = (41, 40)
    found = scaled(bumps(size, here), factor, nothing)
    assert likeness(found, bumps(size, lambda x, y: (x * factor, y * factor), 2.5 * factor)) > 0.995


@pytest.mark.parametrize("degrees", [20, 45])
def test_the_spectrum_of_coloured_noise_stays_under_rotation_corners_and_all(degrees):
    coarse = scaled(noise(8, 4, 64, 64), 3, nothing)
    n = standardised(coarse + 0.5 * noise(8, 4, 64, 64, seed=1))
    before, after = (ring_power(x, 8).mean((0, 1))[1:] for x in (n, rotated(n, degrees, fresh(8, 4))))
    assert before[0] / before[-1] > 20
    assert (
        (after / before)[[0, 3, 4, 5, 6, 7, 8]] - 1
    ).abs().max() < 0.25  # ring 1 and 2: where it falls steeply


def test_scaling_up_then_down_brings_the_coarse_structure_back():
    n = standardised(scaled(noise(1, 4, 32, 32), 4, nothing))
    back = scaled(scaled(n, 1.5, nothing), 1 / 1.5, nothing)
    assert likeness(back[..., 8:-8, 8:-8], n[..., 8:-8, 8:-8]) > 0.97


@pytest.mark.parametrize("mix", [0.1, 0.5, 0.8])
def test_a_mix_keeps_the_norm_and_divides_the_angle_evenly(mix):
    a, b = noise(2, 4, 8, 8), noise(2, 4, 8, 8, seed=1)
    b = b * (a.flatten(2).norm(dim=2) / b.flatten(2).norm(dim=2))[..., None, None]
    found = spherical_mix(a, b, mix)
    va, vb, vf = (x.double().flatten(2) for x in (a, b, found))
    assert torch.allclose(vf.norm(dim=2), va.norm(dim=2), rtol=1e-6)

    def angle(x, y):
        return torch.acos(torch.cosine_similarity(x, y, dim=2))

    assert torch.allclose(angle(va, vf), mix * angle(va, vb), atol=1e-5)
    assert torch.allclose(angle(vf, vb), (1 - mix) * angle(va, vb), atol=1e-5)


def test_the_ends_of_a_mix_are_the_noises_to_the_bit_and_equal_noises_stay():
    a, b = noise(2, 4, 8, 8), noise(2, 4, 8, 8, seed=1)
    assert torch.equal(spherical_mix(a, b, 0), a) and torch.equal(spherical_mix(a, b, 1), b)
    assert torch.allclose(spherical_mix(a, a, 0.3), a, atol=1e-6)
    assert torch.allclose(spherical_mix(a, b, 0.25), spherical_mix(b, a, 0.75), atol=1e-6)


def test_a_mix_of_white_noises_is_white():
    a, b = noise(4000, 1, 4, 5), noise(4000, 1, 4, 5, seed=1)
    cells = spherical_mix(a, b, 0.4).flatten(1)
    covariance = cells.T @ cells / 4000 - torch.eye(20)
    assert covariance.abs().max() * 4000**0.5 < 6


@pytest.mark.parametrize(
    "second, words",
    [
        (torch.zeros(1, 2, 4, 4), "zero everywhere"),
        (-noise(1, 2, 4, 4), "opposite"),
        (noise(1, 2, 4, 5), "Make both for the same latent"),
    ],
)
def test_noises_without_an_arc_between_them_are_refused(second, words):
    with pytest.raises(ValueError, match=words):
        spherical_mix(noise(1, 2, 4, 4), second, 0.5)
