"""The region that an edit changes, found from two estimates."""

import torch

from guided_synthesis.guidance.edit_region import EditRegion


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def edit_at(rows, columns, strength=1.0, side=16, seed=0):
    """Estimates of a source, and of an edit that differs in one rectangle and in a little everywhere."""
    source = noise(1, 4, side, side, seed=seed)
    edit = source + 0.05 * noise(1, 4, side, side, seed=seed + 1)
    edit[..., rows, columns] += strength * noise(1, 4, side, side, seed=seed + 2)[..., rows, columns]
    return source, edit


def test_the_region_of_an_edit_is_where_the_estimates_differ():
    rows, columns = slice(4, 12), slice(2, 9)
    untouched = EditRegion(0.3).untouched(*edit_at(rows, columns))
    changed = torch.zeros(1, 1, 16, 16)
    changed[..., rows, columns] = 1
    assert untouched.shape == (1, 1, 16, 16) and set(untouched.unique().tolist()) == {0.0, 1.0}
    found = 1 - untouched
    assert (found * changed).sum() > 0.9 * changed.sum() and (found * changed).sum() > 0.6 * found.sum()


def test_the_region_follows_from_all_steps_so_far():
    a, b = edit_at(slice(0, 8), slice(0, 8)), edit_at(slice(8, 16), slice(8, 16), seed=7)
    region = EditRegion(0.3)
    alone = [1 - EditRegion(0.3).untouched(*step) for step in (a, b)]
    assert torch.equal(1 - region.untouched(*a), alone[0])
    both = 1 - region.untouched(*b)
    for found in alone:
        assert (found * both).sum() > 0.8 * found.sum()
    late = (1e-3 * a[0], 1e-3 * a[1].flip(-1))  # estimates that hardly differ any more
    assert torch.equal(1 - region.untouched(*late), both)


def test_a_higher_threshold_leaves_less_to_the_edit_and_samples_are_apart():
    pair = edit_at(slice(4, 12), slice(2, 9))
    shares = [1 - EditRegion(threshold).untouched(*pair).mean().item() for threshold in (0.1, 0.3, 0.9)]
    assert shares == sorted(shares, reverse=True) and shares[0] > shares[-1] > 0
    batch = [torch.cat([tensor, 100 * tensor.flip(-1)]) for tensor in pair]
    found = EditRegion(0.3).untouched(*batch)
    assert torch.equal(found[:1], found[1:].flip(-1))


def test_equal_texts_leave_everything_as_it_is():
    source = noise(1, 4, 16, 16)
    assert EditRegion(0.3).untouched(source, source.clone()).min() == 1
