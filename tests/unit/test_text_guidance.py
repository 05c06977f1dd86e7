"""The combination of three estimates: the paper's equations, both formulas, in any precision."""

import pytest
import torch
from torch.autograd import gradcheck

from guided_synthesis.guidance.text_guidance import EDIT_NULL, EDIT_SOURCE, FORMULAS, text_guided, with_edit

SHAPE = (2, 4, 5, 7)
SCALES = [(7.5, 7.5), (3.0, 7.5), (7.5, 0.0), (0.0, 2.0), (1.0, 1.0), (-1.0, 40.0)]


def noises(dtype=torch.float64) -> list[torch.Tensor]:
    """Return predicted noise of null text, source and edit."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]


def paper(null, source, edit, gamma, beta, formula):
    """Equations (1) to (4)."""
    noise_cond = null + gamma * (source - null)
    if formula == EDIT_SOURCE:
        return noise_cond + beta * (edit - source)
    return noise_cond + beta * (edit - null)


def near(found, expected, share):
    return torch.allclose(found, expected, rtol=0, atol=share * expected.abs().max().item())


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("gamma, beta", SCALES)
def test_it_is_the_papers_equations_term_by_term(gamma, beta, formula):
    three = noises()
    assert near(text_guided(*three, gamma, beta, formula), paper(*three, gamma, beta, formula), 1e-15)
    for kept in range(3):  # one text's prediction at a time: its weight in the sum
        one = [noise if index == kept else torch.zeros_like(noise) for index, noise in enumerate(three)]
        assert near(text_guided(*one, gamma, beta, formula), paper(*one, gamma, beta, formula), 1e-15)


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("gamma, beta", SCALES)
@pytest.mark.parametrize("kind", ["noise", "velocity"])
def test_the_estimate_of_the_guided_noise_is_the_guided_estimate(gamma, beta, formula, kind):
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sigma = 3.7
    share = 1 / (sigma**2 + 1)

    def estimate(output):
        if kind == "noise":
            return x - sigma * output
        return x * share - output * sigma * share**0.5

    three = noises()
    found = text_guided(*map(estimate, three), gamma, beta, formula)
    assert near(found, estimate(paper(*three, gamma, beta, formula)), 1e-13)


@pytest.mark.parametrize("formula", FORMULAS)
def test_without_beta_it_is_classifier_free_guidance_on_the_source_to_the_bit(formula):
    null, source, edit = noises(torch.float32)
    host = null + (source - null) * 7.5
    assert torch.equal(text_guided(null, source, edit, 7.5, 0.0, formula), host)


def test_with_equal_scales_the_source_cancels_in_the_first_formula_only():
    null, source, edit = noises()
    plain = null + 7.5 * (edit - null)
    assert near(text_guided(null, source, edit, 7.5, 7.5), plain, 1e-15)
    assert not near(text_guided(null, source, edit, 7.5, 7.5, EDIT_NULL), plain, 0.1)
    assert near(text_guided(null, source, edit, 0.0, 7.5, EDIT_NULL), plain, 1e-15)


@pytest.mark.parametrize("formula", FORMULAS)
def test_equal_texts_make_the_source_of_one_formula_and_the_sum_of_scales_of_the_other(formula):
    null, source, _ = noises()
    scale = 3.0 if formula == EDIT_SOURCE else 7.0
    assert near(text_guided(null, source, source, 3.0, 4.0, formula), null + scale * (source - null), 1e-15)


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once_at_the_end(dtype, formula):
    three = noises(dtype)
    found = text_guided(*three, 30.0, 30.1, formula)
    exact = paper(*(part.double() for part in three), 30.0, 30.1, formula)
    assert found.dtype == dtype
    assert torch.equal(found, exact.float().to(dtype))
    assert not torch.equal(paper(*three, 30.0, 30.1, formula), exact.to(dtype))


@pytest.mark.parametrize("formula", FORMULAS)
def test_its_gradients_are_right(formula):
    three = [noise.requires_grad_() for noise in noises()]
    assert gradcheck(lambda *parts: text_guided(*parts, 3.0, 7.5, formula), three)


@pytest.mark.parametrize("formula", FORMULAS)
def test_another_n_cond_takes_the_place_of_the_first_equation(formula):
    three, base = noises(), torch.ones(SHAPE, dtype=torch.float64)
    usual = three[0] + 3.0 * (three[1] - three[0])
    assert torch.equal(with_edit(usual, *three, 7.5, formula), text_guided(*three, 3.0, 7.5, formula))
    moved = with_edit(base, *three, 7.5, formula) - with_edit(usual, *three, 7.5, formula)
    assert near(moved, base - usual, 1e-13)


def test_an_unknown_formula_is_one_sentence():
    with pytest.raises(ValueError, match="no formula 'edit'. Choose one of: edit - source, edit - null"):
        text_guided(*noises(), 1.0, 1.0, "edit")
