"""PSNR, SSIM and the cosine of CLIPScore: torchmetrics' numbers, masks, what is equal, what is refused."""

import math

import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from guided_synthesis.guidance.metrics import cosine_score, paired, psnr, ssim


@pytest.fixture
def pictures():
    """Three pictures with soft structure, and noisy copies of them: (3, 3, 48, 40) each."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 3, 6, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (48, 40), mode="bilinear")
    noise = torch.randn(smooth.shape, generator=generator) * torch.tensor([0.02, 0.1, 0.4]).view(3, 1, 1, 1)
    return (smooth + noise).clamp(0, 1), smooth


def half(value=1.0):
    """A mask whose left half is `value`."""
    mask = torch.zeros(1, 48, 40)
    mask[:, :, :20] = value
    return mask


def test_psnr_is_that_of_torchmetrics(pictures):
    found, dim = psnr(paired(*pictures)), (1, 2, 3)
    expected = peak_signal_noise_ratio(*pictures, data_range=1.0, reduction="none", dim=dim)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)


def test_ssim_is_that_of_torchmetrics(pictures):
    found = ssim(paired(*pictures))
    doubles = [picture.double() for picture in pictures]
    expected = structural_similarity_index_measure(*doubles, data_range=1.0, reduction="none")
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=3e-6)
    assert found[0] > found[1] > found[2]


def test_a_batch_has_the_numbers_of_its_pictures(pictures):
    pair = paired(*pictures, half())
    for metric in (psnr, ssim):
        alone = torch.cat([metric(single) for single in pair.singles()])
        torch.testing.assert_close(metric(pair), alone)


def test_equal_pictures_are_infinitely_close(pictures):
    pair = paired(pictures[0], pictures[0])
    assert psnr(pair).tolist() == [math.inf] * 3
    assert ssim(pair).tolist() == [1.0] * 3


@pytest.mark.parametrize("colour", [0.0, 0.5, 1.0])
def test_flat_equal_pictures_are_exactly_equal(colour):
    flat = torch.full((1, 3, 32, 32), colour)
    assert ssim(paired(flat, flat)).item() == 1.0


def test_black_and_white_are_as_far_apart_as_can_be():
    black = torch.zeros(1, 3, 32, 32)
    pair = paired(black, black + 1)
    assert psnr(pair).item() == 0 and ssim(pair).item() == pytest.approx(1e-4, rel=1e-3)


def test_a_white_mask_changes_nothing(pictures):
    plain, masked = paired(*pictures), paired(*pictures, torch.ones(48, 40))
    for metric in (psnr, ssim):
        torch.testing.assert_close(metric(masked), metric(plain), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(masked.inside(), plain.inside(), rtol=0, atol=1e-7)


def test_a_grey_mask_counts_like_a_white_one_where_all_is_grey(pictures):
    grey, white = paired(*pictures, half(0.5)), paired(*pictures, half())
    for metric in (psnr, ssim):
        torch.testing.assert_close(metric(grey), metric(white))


def test_psnr_inside_a_mask_is_that_of_the_piece(pictures):
    piece = [picture[..., :20] for picture in pictures]
    torch.testing.assert_close(psnr(paired(*pictures, half())), psnr(paired(*piece)))


def test_ssim_inside_a_mask_is_the_mean_of_its_map_there(pictures):
    _, full = structural_similarity_index_measure(
        *pictures, data_range=1.0, reduction="none", return_full_image=True
    )
    expected = full[..., :20].mean((1, 2, 3))
    torch.testing.assert_close(ssim(paired(*pictures, half())), expected, rtol=0, atol=2e-6)


def test_what_lies_outside_of_the_mask_does_not_count_even_if_it_is_not_a_number(pictures):
    images, reference = pictures
    broken = images.clone()
    broken[..., 30:] = torch.nan  # farther from the mask than the window of SSIM
    for metric in (psnr, ssim):
        found = metric(paired(broken, reference, half()))
        torch.testing.assert_close(found, metric(paired(images, reference, half())))
    assert paired(broken, reference, half()).inside().isfinite().all()


def test_inside_shows_the_reference_outside_of_the_mask_and_grey_mixes(pictures):
    images, reference = pictures
    inside = paired(images, reference, half(0.25)).inside()
    assert torch.equal(inside[..., 20:], reference[..., 20:])
    mixed = 0.25 * images + 0.75 * reference
    torch.testing.assert_close(inside[..., :20], mixed[..., :20])


def test_a_picture_that_is_not_a_number_has_no_number(pictures):
    images = pictures[0].clone()
    images[1] = torch.nan
    pair = paired(images, pictures[1])
    for metric in (psnr, ssim):
        assert metric(pair).isnan().tolist() == [False, True, False]


def test_colours_out_of_range_count_as_they_are_saved(pictures):
    images, reference = pictures
    loud = paired(images * 3 - 1, reference)
    assert torch.equal(psnr(loud), psnr(paired((images * 3 - 1).clamp(0, 1), reference)))


def test_one_reference_and_one_mask_serve_all(pictures):
    images, reference = pictures
    pair, each = paired(images, reference[:1], half()), reference[:1].repeat(3, 1, 1, 1)
    assert torch.equal(psnr(pair), psnr(paired(images, each, half().repeat(3, 1, 1))))


def test_half_precision_is_measured_in_single(pictures):
    images, reference = (picture.half() for picture in pictures)
    pair = paired(images, reference)
    assert psnr(pair).dtype == torch.float32
    torch.testing.assert_close(psnr(pair), psnr(paired(images.float(), reference.float())))


@pytest.mark.parametrize(
    "reference, mask, sentence",
    [
        (
            (1, 3, 32, 40),
            None,
            "reference is 40x32 px but images is 40x48 px. A metric compares pixel with pixel",
        ),
        ((2, 3, 48, 40), None, "reference has 2 pictures but images has 3; give one, or one for each"),
        ((3, 3, 48, 40), (1, 48, 48), "mask is 48x48 px but images is 40x48 px"),
        ((3, 3, 48, 40), (2, 48, 40), "mask has 2 pictures but images has 3"),
    ],
)
def test_what_does_not_fit_is_refused(reference, mask, sentence):
    with pytest.raises(ValueError, match=sentence):
        paired(torch.zeros(3, 3, 48, 40), torch.zeros(reference), None if mask is None else torch.ones(mask))


def test_an_empty_mask_is_named():
    masks = torch.ones(3, 16, 16)
    masks[1] = 0
    with pytest.raises(ValueError, match="mask 2 of 3 is empty"):
        paired(torch.zeros(3, 3, 16, 16), torch.zeros(1, 3, 16, 16), masks)


def test_pictures_smaller_than_the_window_are_refused_by_ssim_alone():
    pair = paired(torch.zeros(1, 3, 10, 20), torch.ones(1, 3, 10, 20))
    assert psnr(pair).item() == 0
    with pytest.raises(ValueError, match="windows of 11 px, but the pictures are 20x10 px"):
        ssim(pair)


def test_the_cosine_is_a_hundredfold_and_signed():
    image, text = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [4.0, -3.0]]), torch.tensor([[6.0, 8.0]])
    torch.testing.assert_close(cosine_score(image, text), torch.tensor([100.0, -100.0, 0.0]))
