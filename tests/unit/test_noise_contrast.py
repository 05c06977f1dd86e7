"""Structures in the contrast that a model is going to paint: signs, places and statistics, without the host."""

import pytest
import torch

from guided_synthesis.guidance.noise_contrast import contrast, middle, recontrasted
from guided_synthesis.guidance.noise_statistics import standardised

DIRECTION = torch.tensor([[0.3, -2.0, 0.01, -0.4]])


def structure(height=12, width=20, channels=4, batch=1, seed=0):
    """Return a random structure (B, C, h, w), standardised."""
    random = torch.Generator().manual_seed(seed)
    return standardised(torch.randn(batch, channels, height, width, generator=random))


def salient(height=12, width=20):
    """Return a soft spot at the upper left, (1, 1, h, w) in [0, 1]."""
    rows, columns = (torch.linspace(0, 1, side) for side in (height, width))
    return torch.exp(-8 * ((rows[:, None] - 0.3) ** 2 + (columns - 0.25) ** 2))[None, None]


def left(height, width):
    """Return 1 in the left half and 0 in the right, (1, 1, h, w)."""
    return (torch.arange(width) < width // 2).float().expand(1, 1, height, width)


def test_the_middle_is_one_at_the_centre_and_falls_alike_to_all_sides_of_any_shape():
    for height, width in ((15, 15), (9, 21), (21, 9)):
        bell = middle(height, width)
        assert bell.shape == (1, 1, height, width) and bell.dtype == torch.float32
        assert bell[0, 0, height // 2, width // 2] == bell.max() == 1 and bell.min() > 0
        assert torch.allclose(bell, bell.flip(-1)) and torch.allclose(bell, bell.flip(-2))
        assert torch.allclose(bell, middle(width, height).mT)
        assert bell[0, 0, height // 2, 0] < 0.05 and bell[0, 0, 0, width // 2] < 0.05


def test_contrast_is_the_mean_inside_minus_the_mean_outside():
    latent = torch.tensor([[[[5.0, 1.0], [7.0, 3.0]], [[0.0, 4.0], [2.0, 8.0]]]])
    assert contrast(latent, left(2, 2)).tolist() == [[4.0, -5.0]]
    soft = torch.tensor([[[[1.0, 0.5], [0.0, 0.5]]]])
    inside = torch.tensor([[(5 + 0.5 * 1 + 0.5 * 3) / 2, (0.5 * 4 + 0.5 * 8) / 2]])
    outside = torch.tensor([[(0.5 * 1 + 7 + 0.5 * 3) / 2, (0.5 * 4 + 2 + 0.5 * 8) / 2]])
    assert torch.allclose(contrast(latent, soft), inside - outside)


def test_every_picture_of_a_batch_has_its_own_contrast_as_alone():
    latents, part = structure(batch=3), salient()
    together = contrast(latents, part)
    assert together.shape == (3, 4) and together.dtype == torch.float32
    alone = [contrast(latent[None], part) for latent in latents]
    assert torch.allclose(together, torch.cat(alone))
    found = recontrasted(latents, part, DIRECTION)
    assert torch.allclose(found, torch.cat([recontrasted(one[None], part, DIRECTION) for one in latents]))


def test_it_is_what_one_reckons_by_hand():
    """The left is salient: own contrasts 4 and -5 read the map 4 z_0 - 5 z_1, which is standardised and signed."""
    latent = torch.tensor([[[[5.0, 1.0], [7.0, 3.0]], [[0.0, 4.0], [2.0, 8.0]]]])
    seen = torch.tensor([[20.0, -16.0], [18.0, -28.0]])
    seen = (seen - seen.mean()) / seen.std(correction=0)
    found = recontrasted(latent, left(2, 2), torch.tensor([[-0.1, 3.0]]))
    assert torch.allclose(found, torch.stack([-seen, seen])[None], atol=1e-6)


@pytest.mark.parametrize("height, width", [(12, 20), (20, 12), (16, 16), (5, 33)])
def test_it_has_the_statistics_of_a_standardised_structure_at_any_size(height, width):
    found = recontrasted(structure(height, width), salient(height, width), DIRECTION)
    assert found.shape == (1, 4, height, width) and found.dtype == torch.float32
    assert found.mean((-2, -1)).abs().max() < 1e-5
    assert (found.std((-2, -1), correction=0) - 1).abs().max() < 1e-5


def test_the_signs_of_the_structure_and_of_its_channels_do_not_matter():
    plain, part = structure(), salient()
    expected = recontrasted(plain, part, DIRECTION)
    for signs in ((-1, -1, -1, -1), (1, -1, 1, -1), (-1, 1, 1, 1)):
        mixed = plain * torch.tensor(signs)[None, :, None, None]
        assert torch.equal(recontrasted(mixed, part, DIRECTION), expected)
    shuffled = plain[:, [2, 0, 3, 1]]
    assert torch.allclose(recontrasted(shuffled, part, DIRECTION), expected, atol=1e-5)


def test_its_contrast_has_the_signs_of_the_direction_and_one_size():
    part = salient()
    for seed in range(5):
        found = contrast(recontrasted(structure(seed=seed), part, DIRECTION), part)
        assert torch.equal(found.sign(), DIRECTION.sign())
        assert torch.allclose(found.abs(), found.abs()[:, :1].expand_as(found), atol=1e-6)


def test_the_opposite_direction_gives_the_opposite_noise_and_its_size_does_not_matter():
    parts = structure(), salient()
    found = recontrasted(*parts, DIRECTION)
    assert torch.equal(recontrasted(*parts, -DIRECTION), -found)
    assert torch.equal(recontrasted(*parts, DIRECTION * torch.tensor([[9.0, 0.01, 3.0, 1.0]])), found)


def test_a_channel_without_a_direction_counts_as_positive():
    parts = structure(), salient()
    found = recontrasted(*parts, torch.tensor([[0.0, -2.0, 0.0, -0.4]]))
    assert torch.equal(found, recontrasted(*parts, DIRECTION))


def test_the_direction_may_be_that_of_a_model_with_other_channels():
    found = recontrasted(structure(channels=3), salient(), DIRECTION)
    assert found.shape == (1, 4, 12, 20)


def test_half_precision_is_reckoned_in_float32():
    half = structure().half()
    found = recontrasted(half, salient().half(), DIRECTION.half())
    assert found.dtype == torch.float32 and contrast(half, salient().half()).dtype == torch.float32
    assert torch.allclose(found, recontrasted(half.float(), salient().half().float(), DIRECTION))


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_without_a_salient_part_or_a_rest_it_says_so(value):
    for call in (
        lambda part: contrast(structure(), part),
        lambda part: recontrasted(structure(), part, DIRECTION),
    ):
        with pytest.raises(ValueError, match="The salient part is empty, or the whole picture"):
            call(torch.full((1, 1, 12, 20), value))


def test_a_structure_without_contrast_is_refused():
    with pytest.raises(ValueError, match="the same everywhere"):
        recontrasted(torch.zeros(1, 4, 12, 20), salient(), DIRECTION)
