"""Composition of estimates: the paper's formula, the bound of NOT, order, gradients, what is refused."""

from random import Random

import pytest
import torch
from torch.autograd import gradcheck

from guided_synthesis.guidance.composition import Term, bounded, composed, counting

SHAPE = (2, 4, 5, 3)


def noise(seed: int = 0, *shape: int) -> torch.Tensor:
    return torch.randn(shape or SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lengths(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).norm(dim=1)


@pytest.mark.parametrize(
    "weights", [(1.0,), (1.0, 1.0), (0.3, 2.0, 0.7), (1.0, -0.5), (2.0, 1.0, -0.4, -0.3)]
)
def test_it_is_the_formula_of_the_paper_while_not_is_shorter_than_and(weights):
    unconditional, estimates = noise(9), [noise(seed) for seed in range(len(weights))]
    expected = unconditional.clone()
    for weight, estimate in zip(weights, estimates, strict=True):
        expected += weight * (estimate - unconditional)
    assert torch.allclose(composed(unconditional, estimates, weights), expected, atol=1e-12)


def test_it_is_the_same_in_the_noise_estimate():
    """Linear: composing x0hat is composing eps = (x - x0hat) / sigma, bound and all."""
    x, sigma, weights = noise(5), 3.7, (1.0, 0.5, -4.0)
    found = composed(noise(9), [noise(seed) for seed in range(3)], weights)
    eps = composed((x - noise(9)) / sigma, [(x - noise(seed)) / sigma for seed in range(3)], weights)
    assert torch.allclose(found, x - sigma * eps, atol=1e-12)


def test_a_condition_that_says_nothing_new_changes_nothing():
    unconditional, one = noise(9), noise(0)
    without = composed(unconditional, [one], [1.0])
    for weight in (5.0, -5.0):
        assert torch.equal(composed(unconditional, [one, unconditional], [1.0, weight]), without)


def test_order_does_not_matter():
    unconditional, estimates, weights = noise(9), [noise(seed) for seed in range(4)], [1.0, -2.0, 0.5, -0.3]
    found = composed(unconditional, estimates, weights)
    for order in ((3, 2, 1, 0), (1, 3, 0, 2)):
        again = composed(unconditional, [estimates[i] for i in order], [weights[i] for i in order])
        assert torch.allclose(again, found, atol=1e-12)


def test_not_never_leads_further_than_and():
    """Three hundred random compositions, from nothing to huge."""
    random, unconditional = Random(0), noise(9)
    for seed in range(300):
        weights = [random.uniform(-1, 1) * 10 ** random.uniform(-3, 3) for _ in range(random.randint(1, 5))]
        scale = random.choice([0.0, 1e-20, 1e-3, 1.0, 1e6])
        estimates = [scale * noise(seed + i) for i in range(len(weights))]
        wanted = composed(unconditional, estimates, [max(weight, 0.0) for weight in weights]) - unconditional
        found = composed(unconditional, estimates, weights) - unconditional
        assert found.isfinite().all()
        assert (lengths(found - wanted) <= lengths(wanted) * (1 + 1e-9) + 1e-9).all()


def test_the_bound_is_for_each_sample_and_keeps_the_direction():
    wanted, unwanted = noise(0), noise(1)
    unwanted[1] = unwanted[1] * 100
    unwanted[0] = unwanted[0] * 0.01
    found = bounded(unwanted, wanted)
    assert torch.equal(found[0], unwanted[0])
    assert torch.allclose(lengths(found)[1], lengths(wanted)[1])
    assert torch.allclose(found[1] / lengths(found)[1], unwanted[1] / lengths(unwanted)[1])


def test_without_and_there_is_no_not():
    assert torch.equal(bounded(noise(0), torch.zeros(SHAPE)), torch.zeros(SHAPE))
    assert torch.equal(bounded(torch.zeros(SHAPE), noise(0)), torch.zeros(SHAPE))


def test_estimates_in_half_precision_are_summed_in_single():
    unconditional, estimates = noise(9).half(), [noise(seed).half() for seed in range(3)]
    weights = (1.0, 0.7, -0.2)
    found = composed(unconditional, estimates, weights)
    exact = composed(unconditional.double(), [estimate.double() for estimate in estimates], weights)
    assert found.dtype == torch.float16 and torch.equal(found, exact.half())


@pytest.mark.parametrize("weights", [(1.0, 0.5, -0.2), (0.5, 0.2, -3.0)])
def test_gradients_are_right_with_and_without_the_bound_at_work(weights):
    inputs = [noise(seed, 2, 2, 3, 2).requires_grad_() for seed in (9, 0, 1, 2)]
    assert gradcheck(lambda base, *estimates: composed(base, estimates, weights), inputs)


def test_estimates_of_video_are_composed_as_well():
    shape = (1, 4, 3, 5, 2)
    found = composed(noise(9, *shape), [noise(0, *shape), noise(1, *shape)], (1.0, -8.0))
    assert found.shape == shape and found.isfinite().all()


def test_what_counts_nothing_is_left_out_and_and_comes_first():
    terms = [Term("a", -1.0), Term("b", 0.0), Term("c", 1.0), Term("d", -0.5), Term("e", 0.2)]
    assert [term.conditioning for term in counting(terms)] == ["c", "e", "a", "d"]


def test_what_cannot_be_painted_is_one_sentence():
    for nothing in ((), (Term("a", 0.0),)):
        with pytest.raises(ValueError, match="composition is empty: .* Connect a Compose"):
            counting(nothing)
    with pytest.raises(ValueError, match="only NOT prompts .* Add a Compose"):
        counting([Term("a", -1.0), Term("b", 0.0)])
