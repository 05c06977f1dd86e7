"""Anagrams without a host: reductions, what is refused, noise as views show it, the pyramid of bands."""

import pytest
import torch
from torch.autograd import gradcheck

from guided_synthesis.guidance import pyramid
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
from guided_synthesis.guidance.views.protocol import Reading, View


class Same(View):
    def in_latents(self, height, width):
        return True

    def view(self, x):
        return x

    def inverse(self, x):
        return x


class Flipped(Same):
    def view(self, x):
        return x.flip(-1)

    inverse = view


class Halves(Same):
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


class Blurred(Same):
    exact = False

    def view(self, x):
        return (x + x.roll(1, -1)) / 2


class Share(Same):
    component = True

    def __init__(self, share):
        self.share = share

    def inverse(self, x):
        return self.share * x


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape or (2, 4, 6, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def asked(view: View, weight: float = 1.0, title: str = "") -> Reading:
    return Reading(view, positive=["a prompt"], weight=weight, title=title)


def test_the_shares_of_a_step_sum_to_one_and_alternate_takes_turns():
    readings = asked(Same(), 1.0), asked(Flipped(), 3.0), asked(Halves(), 0.5)
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
            found = reduced([x], shares((asked(Same(), 0.3),), reduction, 5))
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
    readings = asked(Same(), 0.0), asked(Flipped())
    assert counting(readings, WEIGHTED) == readings[1:] and counting(readings, MEAN) == readings


def test_chains_that_say_nothing_are_refused():
    for nothing in ((), (asked(Same(), 0.0),)):
        with pytest.raises(ValueError, match="There are no views .* Connect a chain of View nodes"):
            counting(nothing, WEIGHTED)
    with pytest.raises(ValueError, match=r"View 2 \(upside down\) has no prompt.*Connect a conditioning"):
        counting((asked(Same()), Reading(Flipped(), title="upside down")), MEAN)
    given = Reading(Share(0.5), reference=torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="All components are fixed by pictures"):
        counting((given, given), SUM)


def test_components_belong_to_the_reduction_sum_and_nothing_else_does():
    parts = asked(Share(0.5)), asked(Share(0.5))
    assert counting(parts, SUM) == parts
    for reduction in (MEAN, WEIGHTED, ALTERNATE):
        with pytest.raises(ValueError, match=r"View 1 \(Share\) is a component.*choose the reduction sum"):
            counting(parts, reduction)
    for mixed in ((parts[0], asked(Flipped())), (asked(Flipped()), asked(Same()))):
        with pytest.raises(ValueError, match="is a view of the whole picture, not a component"):
            counting(mixed, SUM)


def test_components_must_add_up():
    check_size((asked(Share(0.25)), asked(Share(0.75))), 6, 8, in_latents=True)
    with pytest.raises(ValueError, match=r"\(half, Share\) do not add up to a whole picture"):
        check_size((asked(Share(0.5), title="half"), asked(Share(0.4))), 6, 8, in_latents=True)


def test_a_view_must_fit_the_size_and_latents_where_it_looks_at_them():
    check_size((asked(Same()), asked(Halves())), 6, 8, in_latents=False)
    with pytest.raises(ValueError, match=r"View 2 \(Halves\) cannot be seen in latents of 8x6 cells.*domain pixel"):
        check_size((asked(Same()), asked(Halves())), 6, 8, in_latents=True)
    with pytest.raises(ValueError, match="12 cannot be cut"):
        check_size((asked(Halves()),), 6, 12, in_latents=False)


def test_a_view_that_leaves_pictures_alone_is_found():
    assert leaves_alone(Same(), 6, 8) and leaves_alone(Share(0.5), 6, 8)
    assert not leaves_alone(Flipped(), 6, 8) and not leaves_alone(Halves(), 6, 12)


def test_noise_is_seen_through_the_view_where_it_stays_noise():
    x = noise(1, 4, 6, 12)
    assert noise_as_seen(Same(), x, 1) is x
    assert torch.equal(noise_as_seen(Flipped(), x, 1), x.flip(-1))
    for view in (Blurred(), Halves()):  # not noise any more; does not fit
        found = noise_as_seen(view, x, 1)
        assert not torch.equal(found, x) and torch.equal(found.flatten().sort()[0], x.flatten().sort()[0])
        assert torch.equal(found, noise_as_seen(view, x, 1)) and not torch.equal(found, noise_as_seen(view, x, 2))
    assert not noise_as_seen(Blurred(), x * 0, 1).any()
