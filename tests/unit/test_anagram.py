"""Anagrams without a host: reductions, what is refused, noise as views show it, the pyramid of bands."""

import pytest
import torch
from kornia.geometry.transform import build_pyramid
from torch.autograd import gradcheck

from guided_synthesis.guidance.anagram import (
    ALTERNATE,
    MEAN,
    REDUCTIONS,
    SUM,
    WEIGHTED,
    check_size,
    counting,
    leaves_alone,
    noise_as_seen,
    reduced,
    shares,
    step_of,
)
from guided_synthesis.guidance.pyramid import bands, blended, rebuilt
from guided_synthesis.guidance.views.protocol import Reading, View


class _Same(View):
    def in_latents(self, height, width):
        return True

    def view(self, x):
        return x

    def inverse(self, x):
        return x


class _Flipped(_Same):
    def view(self, x):
        return x.flip(-1)

    inverse = view


class _Halves(_Same):
    """The left half and the right change places; widths must be multiples of 8, and latents are too coarse."""

    def check(self, height, width):
        if width % 8:
            raise ValueError(f"{width} cannot be cut.")

    def in_latents(self, height, width):
        return False

    def view(self, x):
        return x.roll(x.shape[-1] // 2, -1)

    def inverse(self, x):
        return x.roll(-(x.shape[-1] // 2), -1)


class _Blurred(_Same):
    exact = False

    def view(self, x):
        return (x + x.roll(1, -1)) / 2


class _Share(_Same):
    component = True

    def __init__(self, share):
        self.share = share

    def inverse(self, x):
        return self.share * x


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(
        shape or (2, 4, 6, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def asked(view: View, weight: float = 1.0, title: str = "") -> Reading:
    return Reading(view, positive=["a prompt"], weight=weight, title=title)


def test_the_shares_of_a_step_sum_to_one_and_alternate_takes_turns():
    readings = asked(_Same(), 1.0), asked(_Flipped(), 3.0), asked(_Halves(), 0.5)
    for reduction in (MEAN, WEIGHTED, ALTERNATE):
        for step in range(7):
            assert sum(shares(readings, reduction, step)) == pytest.approx(1)
    assert shares(readings, MEAN, 0) == pytest.approx((1 / 3,) * 3)
    assert shares(readings, WEIGHTED, 0) == pytest.approx((1 / 4.5, 3 / 4.5, 0.5 / 4.5))
    assert [shares(readings, ALTERNATE, step).index(1.0) for step in range(5)] == [0, 1, 2, 0, 1]
    assert shares(readings, SUM, 4) == (1.0, 1.0, 1.0)


def test_the_reduction_is_the_formula_of_the_paper():
    x, y = noise(), noise(seed=1)
    assert torch.allclose(reduced([x, y], (0.25, 0.75)), 0.25 * x + 0.75 * y)
    assert torch.equal(reduced([x, y], (0.0, 1.0)), y)


def test_one_view_is_itself_to_the_bit_in_every_reduction_and_precision():
    for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x = noise().to(kind)
        for reduction in REDUCTIONS:
            found = reduced([x], shares((asked(_Same(), 0.3),), reduction, 5))
            assert torch.equal(found, x) and found.dtype == kind


def test_half_precision_is_summed_in_float32():
    parts = [torch.full((1, 1, 1, 1), value, dtype=torch.float16) for value in (2048.0, 1.0, 1.0)]
    assert reduced(parts, (1.0, 1.0, 1.0)).item() == 2050  # 2048 in float16: 2048 + 1 rounds to 2048


def test_gradients_flow_through_a_reduction():
    parts = [noise(1, 1, 2, 2, seed=seed).requires_grad_() for seed in range(2)]
    assert gradcheck(lambda *x: reduced(x, (0.3, 0.7)), parts)


def test_the_step_is_that_of_the_schedule_also_between_its_levels():
    sigmas = [14.6, 5.0, 1.0, 0.1, 0.0]
    assert [step_of(sigma, sigmas) for sigma in sigmas[:-1]] == [0, 1, 2, 3]
    assert step_of(14.6 * (1 + 1e-6), sigmas) == 0 and step_of(5.0 * (1 - 1e-6), sigmas) == 1
    assert step_of(3.0, sigmas) == 2  # what Heun and others ask for on the way to the next level


def test_weight_zero_is_as_if_not_there_where_weights_count():
    readings = asked(_Same(), 0.0), asked(_Flipped())
    assert counting(readings, WEIGHTED) == readings[1:] and counting(readings, MEAN) == readings


def test_chains_that_say_nothing_are_refused():
    for nothing in ((), (asked(_Same(), 0.0),)):
        with pytest.raises(ValueError, match="There are no views .* Connect a chain of View nodes"):
            counting(nothing, WEIGHTED)
    with pytest.raises(ValueError, match=r"View 2 \(upside down\) has no prompt.*Connect a conditioning"):
        counting((asked(_Same()), Reading(_Flipped(), title="upside down")), MEAN)
    given = Reading(_Share(0.5), reference=torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="All components are fixed by pictures"):
        counting((given, given), SUM)


def test_components_belong_to_the_reduction_sum_and_nothing_else_does():
    parts = asked(_Share(0.5)), asked(_Share(0.5))
    assert counting(parts, SUM) == parts
    for reduction in (MEAN, WEIGHTED, ALTERNATE):
        with pytest.raises(ValueError, match=r"View 1 \(_Share\) is a component.*choose the reduction sum"):
            counting(parts, reduction)
    for mixed in ((parts[0], asked(_Flipped())), (asked(_Flipped()), asked(_Same()))):
        with pytest.raises(ValueError, match="is a view of the whole picture, not a component"):
            counting(mixed, SUM)


def test_components_must_add_up():
    check_size((asked(_Share(0.25)), asked(_Share(0.75))), 6, 8, in_latents=True)
    with pytest.raises(ValueError, match=r"\(half, _Share\) do not add up to a whole picture"):
        check_size((asked(_Share(0.5), title="half"), asked(_Share(0.4))), 6, 8, in_latents=True)


def test_a_view_must_fit_the_size_and_latents_where_it_looks_at_them():
    check_size((asked(_Same()), asked(_Halves())), 6, 8, in_latents=False)
    with pytest.raises(
        ValueError, match=r"View 2 \(_Halves\) cannot be seen in latents of 8x6 cells.*domain pixel"
    ):
        check_size((asked(_Same()), asked(_Halves())), 6, 8, in_latents=True)
    with pytest.raises(ValueError, match="12 cannot be cut"):
        check_size((asked(_Halves()),), 6, 12, in_latents=False)


def test_a_view_that_leaves_pictures_alone_is_found():
    assert leaves_alone(_Same(), 6, 8) and leaves_alone(_Share(0.5), 6, 8)
    assert not leaves_alone(_Flipped(), 6, 8) and not leaves_alone(_Halves(), 6, 12)


def test_noise_is_seen_through_the_view_where_it_stays_noise():
    x = noise(1, 4, 6, 12)
    assert noise_as_seen(_Same(), x, 1) is x
    assert torch.equal(noise_as_seen(_Flipped(), x, 1), x.flip(-1))
    for view in (_Blurred(), _Halves()):  # not noise any more; does not fit
        found = noise_as_seen(view, x, 1)
        assert not torch.equal(found, x) and torch.equal(found.flatten().sort()[0], x.flatten().sort()[0])
        assert torch.equal(found, noise_as_seen(view, x, 1)) and not torch.equal(
            found, noise_as_seen(view, x, 2)
        )
    assert not noise_as_seen(_Blurred(), x * 0, 1).any()


def test_bands_of_a_picture_are_the_picture():
    picture = noise(2, 3, 48, 64)
    for levels in (1, 2, 4):
        found = bands(picture, levels)
        assert [band.shape[-1] for band in found] == [64 // 2**number for number in range(levels)]
        assert torch.allclose(rebuilt(found), picture, atol=1e-12)


def test_blending_by_bands_is_the_mean_where_a_view_has_no_seams():
    views, pictures = (_Same(), _Flipped()), [noise(1, 3, 32, 48, seed=seed) for seed in range(2)]
    for weights in ((0.5, 0.5), (0.2, 0.8)):
        expected = weights[0] * pictures[0] + weights[1] * pictures[1].flip(-1)
        assert torch.allclose(blended(pictures, views, weights), expected, atol=1e-12)


def test_pictures_that_agree_are_blended_to_what_they_agree_on():
    """Up to the seams of the views, which the coarser bands soften."""
    smooth = build_pyramid(noise(1, 3, 64, 64), 3)[-1].repeat(1, 1, 4, 4)
    found = blended([smooth, _Halves().view(smooth)], (_Same(), _Halves()), (0.5, 0.5))
    assert (found - smooth).abs().mean() < 0.1 * smooth.abs().mean()


def test_a_seam_is_softer_by_bands_than_in_the_plain_mean():
    """One half is black, one white, and a view exchanges them: their edges are no edges of the common picture."""
    ramp = torch.linspace(0, 1, 64, dtype=torch.float64).expand(1, 1, 64, 64)
    pictures, views = [torch.zeros_like(ramp), ramp], (_Same(), _Halves())
    plain = reduced([pictures[0], _Halves().inverse(ramp)], (0.5, 0.5))
    by_bands = blended(pictures, views, (0.5, 0.5))
    jumps = [found.diff(dim=-1).abs().max().item() for found in (plain, by_bands)]
    assert jumps[1] < 0.7 * jumps[0] and abs(by_bands.mean() - plain.mean()) < 0.01


def test_bands_end_where_a_view_would_not_fit():
    """128, 64, 32, 16 and 8 fit in eights; 24 has one band more, 12, which does not."""
    seen = []

    class _Noted(_Halves):
        def inverse(self, x):
            seen.append(x.shape[-1])
            return super().inverse(x)

    for side, expected in ((128, [128, 64, 32, 16, 8]), (24, [24]), (40, [40])):
        seen.clear()
        blended([noise(1, 3, side, side)], (_Noted(),), (1.0,))
        assert seen == expected
