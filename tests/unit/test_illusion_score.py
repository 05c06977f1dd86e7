"""Alignment and concealment: values found by hand, what cannot change them, which picture is the best."""

import math

import pytest
import torch

from guided_synthesis.guidance.illusion_score import (
    TEMPERATURE,
    alignment,
    best,
    certainty,
    concealment,
)


def cosines(shares, temperature=TEMPERATURE):
    """Return the cosines whose exponentials at `temperature` are `shares`."""
    return temperature * torch.tensor(shares, dtype=torch.float64).log()


def test_alignment_is_what_the_worst_reading_has():
    scores = torch.tensor([[0.30, 0.10, 0.2], [0.35, 0.21, 0.3], [0.1, 0.2, 0.28]])
    assert alignment(scores).item() == pytest.approx(0.21)


def test_concealment_is_the_mean_of_what_rows_and_columns_give():
    scores = cosines([[3, 1], [2, 2]])
    by_view, by_prompt = (3 / 4 + 1 / 2) / 2, (3 / 5 + 2 / 3) / 2
    assert concealment(scores).item() == pytest.approx((by_view + by_prompt) / 2, abs=1e-12)
    assert certainty(scores).tolist() == pytest.approx([(3 / 4 + 3 / 5) / 2, (1 / 2 + 2 / 3) / 2])


def test_three_views_have_the_value_found_by_hand():
    scores = cosines([[6, 1, 1], [1, 2, 1], [1, 1, 2]])
    assert concealment(scores).item() == pytest.approx((6 / 8 + 2 / 4 + 2 / 4) / 3, abs=1e-12)


def test_where_all_fits_alike_concealment_is_a_guess_and_where_nothing_else_fits_it_is_certain():
    assert concealment(torch.full((4, 4), 0.25)).item() == pytest.approx(1 / 4)
    assert concealment(50 * torch.eye(3)).item() == pytest.approx(1)
    assert concealment(torch.tensor([[0.2]])).item() == 1


def test_a_lower_temperature_makes_the_same_difference_count_more():
    scores = cosines([[3, 1], [1, 3]])
    assert concealment(scores, TEMPERATURE / 2).item() == pytest.approx(9 / 10)
    assert concealment(scores, TEMPERATURE).item() == pytest.approx(3 / 4)


def test_the_order_of_the_views_does_not_matter():
    scores = torch.rand(5, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    order = torch.tensor([2, 0, 3, 1])
    moved = scores[:, order][:, :, order]
    assert torch.equal(alignment(moved), alignment(scores))
    assert torch.allclose(concealment(moved), concealment(scores), atol=1e-15)


def test_concealment_does_not_see_a_cosine_that_all_have_in_common():
    scores = torch.rand(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert concealment(scores + 0.4).item() == pytest.approx(concealment(scores).item(), abs=1e-12)


def test_a_batch_has_a_value_for_each_picture():
    scores = torch.rand(6, 2, 2, generator=torch.Generator().manual_seed(4))
    assert alignment(scores).shape == concealment(scores).shape == (6,)
    assert concealment(scores)[4].item() == concealment(scores[4]).item()


def test_the_best_picture_has_the_highest_alignment_and_of_equal_ones_the_highest_concealment():
    weak = [[0.20, 0.0], [0.0, 0.9]]
    leaky, clean = [[0.30, 0.29], [0.29, 0.30]], [[0.30, 0.1], [0.1, 0.30]]
    assert best(torch.tensor([weak, leaky])) == 1
    assert best(torch.tensor([weak, leaky, clean])) == 2


def test_the_temperature_decides_between_pictures_of_equal_alignment():
    lopsided, even = [[-1.0, -1.05], [-9.0, -1.0]], [[-1.0, -1.5], [-1.5, -1.0]]
    scores = torch.tensor([lopsided, even])
    assert best(scores) == 1 and best(scores, temperature=1.0) == 0


def test_a_picture_without_numbers_is_not_the_best():
    scores = torch.tensor([[[math.nan, 0.0], [0.0, 0.3]], [[-0.2, 0.0], [0.0, -0.1]]])
    assert best(scores) == 1 and best(scores.flip(0)) == 0
