"""GradOP's regions: the formula written out, masks on every grid, kappa over the schedule, who is edited."""

import pytest
import torch
from torch.autograd import gradcheck

from guided_synthesis.attention.maps import SCALES, STAGES, Call, Condition, Layer, folded, on_grid
from guided_synthesis.attention.regions import Injection, Kappa, Region, pulled
from guided_synthesis.attention.words import Prompt, Word

PROMPT = Prompt(
    "a fox and a cat", tuple(Word(w, (i + 1,)) for i, w in enumerate("a fox and a cat".split())), 9
)


def maps(batch=2, heads=3, height=4, width=5, tokens=9, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, heads, height * width, tokens, generator=generator, dtype=dtype).softmax(-1)


def masks(batch=1, positions=20, seed=1, dtype=torch.float32):
    return torch.rand(batch, positions, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def call(prompt=PROMPT, progress=0.0, grid=(4, 5), scale=1, stage="mid", kind=0, tokens=9, **condition):
    return Call(
        Layer("key", stage, scale), grid, Condition(kind, tokens, prompt, grid, **condition), progress
    )


def injection(region, kappa=None, scales=SCALES, stages=STAGES):
    return Injection((region,), kappa or Kappa(), frozenset(scales), frozenset(stages))


@pytest.mark.parametrize("batch_of_masks", [1, 2])
def test_the_pull_is_the_formula_of_the_paper_head_by_head(batch_of_masks):
    a, b, kappa, weight, tokens = maps(), masks(batch_of_masks), 0.7, 1.5, (2, 5)
    expected = a.clone()
    for picture in range(2):
        mask = b[picture % batch_of_masks]
        for head in range(3):
            for token in tokens:
                column = a[picture, head, :, token]
                frobenius_a, frobenius_b = column.pow(2).sum().sqrt(), mask.pow(2).sum().sqrt()
                expected[picture, head, :, token] = weight * (
                    (1 - kappa) * column + kappa * (mask / frobenius_b) * frobenius_a
                )
    found = pulled(a, tokens, b, kappa, weight)
    assert torch.allclose(found, expected, atol=1e-6)
    untouched = [token for token in range(9) if token not in tokens]
    assert torch.equal(found[..., untouched], a[..., untouched])


def test_at_kappa_one_and_weight_one_a_column_is_the_mask_and_keeps_its_norm():
    a, b = maps(), masks()
    column = pulled(a, (3,), b, 1.0, 1.0)[..., 3]
    assert torch.allclose(column.norm(dim=-1), a[..., 3].norm(dim=-1))
    assert torch.allclose(
        column / column.norm(dim=-1, keepdim=True), (b / b.norm()).expand_as(column), atol=1e-6
    )


def test_the_maps_given_are_not_written_into():
    a = maps()
    before = a.clone()
    pulled(a, (3,), masks(), 0.5, 2.0)
    assert torch.equal(a, before)


def test_what_changes_nothing_gives_the_same_object():
    a, empty = maps(), torch.zeros(1, 20)
    assert pulled(a, (3,), masks(), 0.0, 1.0) is a
    assert pulled(a, (3,), empty, 0.9, 2.0) is a
    assert pulled(a, (3,), masks(), 0.0, 2.0) is not a


def test_a_picture_with_an_empty_mask_stays_as_it_is_beside_one_that_is_pulled():
    a, b = maps(), masks(2)
    b[0] = 0
    found = pulled(a, (3,), b, 0.9, 2.0)
    assert torch.equal(found[0], a[0]) and not torch.allclose(found[1], a[1])


def test_overlapping_and_soft_masks_are_pulled_one_after_the_other():
    a, soft = maps(), masks() * 0.3
    one = pulled(pulled(a, (2,), soft, 0.5, 1.0), (5,), soft, 0.5, 1.0)
    other = pulled(pulled(a, (5,), soft, 0.5, 1.0), (2,), soft, 0.5, 1.0)
    assert torch.equal(one, other)
    assert torch.allclose(pulled(a, (2,), soft * 2, 0.5, 1.0), pulled(a, (2,), soft, 0.5, 1.0), atol=1e-6)


def test_gradients_of_the_pull_are_right():
    a, b = maps(1, 2, 2, 3, 4, dtype=torch.float64).requires_grad_(), masks(1, 6, dtype=torch.float64)
    assert gradcheck(lambda x: pulled(x, (1, 2), b, 0.6, 1.5), a)


SIZES = [(h, w) for h in range(32, 129, 7) for w in (32, 33, 47, 64, 91, 128)]


@pytest.mark.parametrize("scale", SCALES)
def test_on_every_grid_the_sum_of_a_mask_over_the_cells_is_preserved(scale):
    """Every position stands for the cells that it covers: fewer at the lower and right edges of odd sizes."""
    for number, (h, w) in enumerate(SIZES):
        generator = torch.Generator().manual_seed(number)
        mask = torch.rand(1, 1, h, w, generator=generator, dtype=torch.float64)
        grid = on_grid(mask, (h, w), scale)
        assert grid.shape == (1, 1, -(-h // scale), -(-w // scale))
        covered = [
            torch.tensor([min(scale, side - start) for start in range(0, side, scale)], dtype=torch.float64)
            for side in (h, w)
        ]
        total = (grid[0, 0] * covered[0][:, None] * covered[1]).sum()
        assert total.item() == pytest.approx(mask.sum().item(), rel=1e-9), (h, w)


@pytest.mark.parametrize("scale", SCALES)
def test_a_half_stays_in_its_half_and_is_not_shifted(scale):
    """The picture is 8 px a cell; the edge between the halves may only blur the one position that it cuts."""
    for h, w in SIZES[::3]:
        mask = torch.zeros(1, 1, 8 * h, 8 * w)
        mask[..., : 4 * w] = 1
        grid = on_grid(mask, (h, w), scale)
        edge = w / 2 / scale
        assert torch.allclose(grid[..., : int(edge)], torch.tensor(1.0)), (h, w)
        assert torch.allclose(grid[..., -int(-edge // 1) :], torch.tensor(0.0)), (h, w)
        centre = (grid[0, 0] * torch.arange(grid.shape[-1])).sum() / grid.sum()
        assert centre.item() == pytest.approx(edge / 2 - 0.5, abs=0.51)
        assert torch.equal(on_grid(mask.mT, (w, h), scale), grid.mT)


def test_a_mask_of_any_size_covers_the_whole_picture():
    small = torch.tensor([[1.0, 0.0], [0.0, 0.5]])[None, None]
    grid = on_grid(small, (6, 10), 1)
    assert torch.equal(grid, small.repeat_interleave(3, -2).repeat_interleave(5, -1))


def test_an_area_cuts_its_part_out_of_the_whole_mask():
    mask = torch.arange(48.0).reshape(1, 1, 6, 8)
    assert torch.equal(on_grid(mask, (6, 8), 1, (4, 5, 2, 3)), mask[..., 2:6, 3:8])
    assert on_grid(mask, (6, 8), 2, (3, 5, 2, 3)).shape[-2:] == (2, 3)


def test_a_region_of_several_masks_wants_one_for_each_picture():
    region = Region(PROMPT, (2,), torch.ones(2, 1, 4, 5))
    assert region.on_grid(call(), maps(2)).shape == (2, 20)
    with pytest.raises(
        ValueError, match="has 2 pictures, but 3 are sampled. Give one mask for all, or exactly one"
    ):
        region.on_grid(call(), maps(3))


def test_a_layer_at_a_size_of_its_own_still_gets_the_whole_mask():
    """As with Deep Shrink: the grid that the host reports counts, not the one that the latent lets expect."""
    mask = torch.zeros(1, 1, 4, 5)
    mask[..., :2, :] = 1
    region, shrunk = Region(PROMPT, (2,), mask), call(grid=(4, 5))
    shrunk = Call(shrunk.layer, (2, 3), shrunk.condition, 0.0)
    assert region.on_grid(shrunk, maps(1)).tolist() == [[1.0, 1.0, 1.0, 0.0, 0.0, 0.0]]


def test_a_mask_is_brought_to_a_grid_once_and_anew_for_another_dtype():
    region = Region(PROMPT, (2,), masks().reshape(1, 1, 4, 5))
    first = region.on_grid(call(), maps(1))
    assert region.on_grid(call(progress=0.5), maps(1)) is first
    assert region.on_grid(call(), maps(1, dtype=torch.float64)).dtype == torch.float64
    assert region.on_grid(call(grid=(2, 3), scale=2), maps(1)).shape == (1, 6)


def test_kappa_goes_from_the_first_to_the_last_value_bent_by_the_curve():
    kappa = Kappa(0.8, 0.2, 1.0, 0.2, 0.6)
    assert [kappa.at(p) for p in (0.2, 0.4, 0.6)] == pytest.approx([0.8, 0.5, 0.2])
    assert [kappa.at(p) for p in (0.0, 0.19, 0.61, 1.0)] == [0.0] * 4
    assert Kappa(0.8, 0.2, 2.0, 0.2, 0.6).at(0.4) == pytest.approx(0.2 + 0.6 * 0.25)
    assert Kappa(0.8, 0.2, 0.5, 0.2, 0.6).at(0.4) == pytest.approx(0.2 + 0.6 * 0.5**0.5)
    assert [kappa.covers(p) for p in (0.19, 0.2, 0.6, 0.61)] == [False, True, True, False]


def test_a_condition_is_read_where_its_words_a_region_the_layer_and_the_range_meet():
    region = Region(PROMPT, (2,), torch.ones(1, 1, 4, 5))
    edit, at = injection(region, Kappa(end=0.5), (1, 2), ("mid", "up")), call()

    def reads(of):
        return edit.reads(of.layer, of.condition, of.progress)

    assert reads(at) and reads(call(scale=2, stage="up")) and reads(call(kind=2))
    other = Prompt("a dog", (Word("a", (1,)), Word("dog", (2,))), 9)
    for unread in (call(scale=4), call(stage="down"), call(progress=0.51), call(prompt=other)):
        assert not reads(unread)


def test_a_condition_that_lost_its_words_counts_if_it_is_positive_and_as_long_and_nobody_has_words():
    assert call(prompt=None).condition.is_made_of(PROMPT)
    for other in ({"kind": 1}, {"tokens": 18}, {"noted": True}):
        assert not call(prompt=None, **other).condition.is_made_of(PROMPT)


def test_the_editor_pulls_only_regions_of_the_condition_that_it_edits():
    other = Prompt("a dog", (Word("a", (1,)), Word("dog", (2,))), 9)
    mask = torch.zeros(1, 1, 4, 5)
    mask[..., 2:] = 1
    edit = Injection(
        (Region(PROMPT, (2,), mask, 2.0), Region(other, (3,), mask, 2.0)),
        Kappa(0.5, 0.5),
        frozenset(SCALES),
        frozenset(STAGES),
    )
    a = maps()
    assert torch.equal(edit.edit(a, call()), pulled(a, (2,), mask.flatten(1), 0.5, 2.0))
    assert torch.equal(edit.edit(a, call(other)), pulled(a, (3,), mask.flatten(1), 0.5, 2.0))


def test_repeated_conditions_fold_to_the_sum_of_their_copies():
    one = maps(tokens=4)
    thrice = torch.cat([one, one, one], -1) / 3
    assert torch.allclose(folded(thrice, 4), one)
    assert folded(one, 4) is one
