"""Pictures that move: where frames begin and end, that nothing jumps, and what is seen on the way."""

import pytest
import torch
from torchvision.transforms.functional import gaussian_blur

from guided_synthesis.guidance.views.mosaic import Layout, Mosaic
from guided_synthesis.guidance.views.protocol import View
from guided_synthesis.guidance.views.registry import VIEWS, Parameters, make

RECEDING = ["low pass", "triple pass low"]
STILL = ["identity", "scale", "colour"]
SIZES = [(64, 64), (45, 45), (40, 56)]


def picture(height: int, width: int, batch: int = 1) -> torch.Tensor:
    """Return smooth coloured blobs, different in each sample, in [0.1, 0.9]."""
    blobs = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
    smooth = gaussian_blur(blobs, 15, 3.0)
    return 0.5 + 0.4 * smooth / smooth.abs().max()


def fitting(name: str, height: int, width: int) -> View:
    square_only = {"rotate 90 clockwise", "rotate 90 counter-clockwise"}
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    rows, columns = (next(n for n in range(2, side + 1) if side % n == 0) for side in (height, width))
    name = "rotate 180" if name in square_only and height != width else name
    return make(name, Parameters(angle=40, rows=rows, columns=columns, size=0.8, seed=1, mask=mask))


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("size", SIZES)
def test_frames_begin_with_the_picture_and_end_with_its_reading_to_the_bit(name, size):
    view, image = fitting(name, *size), picture(*size, batch=2)
    assert torch.equal(view.frame(image, 0.0), image)
    if name not in RECEDING:
        assert torch.equal(view.frame(image, 1.0), view.reading(image))


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("size", SIZES)
def test_all_frames_are_pictures_of_one_size_and_of_each_sample_by_itself(name, size):
    view, image = fitting(name, *size), picture(*size, batch=2)
    for t in (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0):
        with torch.inference_mode():
            frame = view.frame(image, t)
        assert frame.shape == image.shape and frame.dtype == image.dtype
        assert frame.isfinite().all() and frame.min() >= 0 and frame.max() <= 1
        assert torch.allclose(frame[1:], view.frame(image[1:], t), atol=1e-5)


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("size", SIZES)
def test_nothing_jumps_at_the_ends_or_on_the_way(name, size):
    view, image = fitting(name, *size), picture(*size)
    for t in (0.0, 1.0 - 1e-3, 0.3):
        change = (view.frame(image, t + 1e-3) - view.frame(image, t)).abs().mean()
        assert change < 0.02


@pytest.mark.parametrize("name", VIEWS)
def test_what_moves_is_elsewhere_half_way(name):
    view, image = fitting(name, 64, 64), picture(64, 64)
    half = view.frame(image, 0.5)
    moved = min((half - view.frame(image, t)).abs().mean().item() for t in (0.0, 1.0))
    assert moved == 0 if name in STILL else moved > 0.002


@pytest.mark.parametrize("name", ["flip horizontal", "flip vertical", "mirror halves"])
def test_a_card_is_edge_on_half_way(name):
    half = make(name, Parameters()).frame(picture(64, 64), 0.5)
    assert ((half - 0.5).abs() < 0.01).float().mean() > 0.9


def test_cards_turn_about_their_own_axis():
    image = picture(64, 64)
    quarter = make("flip horizontal", Parameters()).frame(image, 0.25) - 0.5
    columns, rows = (quarter.abs().sum((0, 1, dim)) > 1e-3 for dim in (2, 3))
    assert 35 < columns.sum() < 55 and rows.sum() > 60


@pytest.mark.parametrize("name", ["rotate 90 clockwise", "rotate 90 counter-clockwise", "rotate 180"])
def test_a_turning_picture_keeps_its_corners_and_its_sense(name):
    image = torch.full((1, 3, 65, 65), 0.5)
    image[..., :6, :6] = 1.0  # the corner top left
    frames = [make(name, Parameters()).frame(image, t) for t in (0.25, 0.5, 0.75)]
    assert all((frame > 0.7).any() for frame in frames)
    seen = (frames[0][0, 0] > 0.7).nonzero().float().mean(0)
    assert seen[0] > seen[1] if "counter" in name else seen[1] > seen[0]


def test_pieces_stay_whole_in_flight():
    """Two halves change places, the white one above: all of it is seen, a little smaller."""
    image = torch.zeros(1, 3, 64, 64)
    image[..., 32:] = 1.0
    view = make("patch permutation", Parameters(rows=1, columns=2))
    shares = [(view.frame(image, t)[:, 0] > 0.9).sum().item() / (32 * 64) for t in (0.1, 0.5, 0.9)]
    assert shares == pytest.approx([0.9, 0.72, 0.9], abs=0.06)


def test_a_piece_that_flies_out_of_the_picture_is_not_seen_until_it_comes_back():
    """Two pixels change places along the upper edge: one bends down into the picture, the other up, out of it."""
    labels = torch.full((40, 40), -1)
    labels[0, 0], labels[0, 39] = 0, 1
    left, right = torch.tensor([[0, 0], [0, 78]]).split(1)

    class Exchange(Mosaic):
        def layout(self, height: int, width: int) -> Layout:
            return Layout(
                labels, torch.cat([left, right]), torch.cat([right, left]), torch.zeros(2, dtype=int)
            )

    image = torch.zeros(1, 3, 40, 40)
    image[..., 0, 0], image[..., 0, 39] = 1.0, 0.9
    half = Exchange().between(image, 0.5)
    assert (half[0, 0] > 0.5).nonzero().tolist() == []
    assert half[0, 0, 4:8, 18:22].max() > 0.05
    assert torch.equal(half[..., :4, 1:39], image[..., :4, 1:39])


def test_a_piece_that_stays_is_never_touched():
    seed = next(
        s
        for s in range(50)
        if make("patch permutation", Parameters(rows=2, columns=2, seed=s)).view(
            torch.arange(4).view(1, 1, 2, 2)
        )[0, 0, 0, 0]
        == 0
    )
    image = picture(64, 64)
    frame = make("patch permutation", Parameters(rows=2, columns=2, seed=seed)).frame(image, 0.01)
    assert torch.equal(frame[..., :24, :24], image[..., :24, :24])


def test_hinged_squares_open_and_stay_within_the_picture():
    image = torch.ones(1, 3, 63, 63)
    view = make("square hinge", Parameters())
    half = view.frame(image, 0.5)[0, 0]
    assert torch.allclose(half, half.flip(0), atol=1e-3)
    assert (half > 0.75).float().mean() == pytest.approx(0.5, abs=0.05)  # nine squares, 1 / sqrt 2 as wide
    assert (half < 0.6).float().mean() == pytest.approx(0.5, abs=0.08)


def test_circles_turn_smoothly_and_their_surroundings_rest():
    image = picture(64, 64)
    view = make("inner circle", Parameters(angle=90, size=0.5))
    half = view.frame(image, 0.5)
    assert torch.equal(half[..., :15, :], image[..., :15, :])
    expected = make("inner circle", Parameters(angle=45, size=0.5)).reading(image)
    assert (half - expected)[..., 24:40, 24:40].abs().max() < 0.1
    assert torch.allclose(view.frame(image, 0.9999), view.reading(image), atol=0.01)


@pytest.mark.parametrize("name", RECEDING)
def test_hybrids_recede_until_the_blur_is_one_px(name):
    image = picture(256, 256)
    view = make(name, Parameters(sigma=1 / 32))  # 8 px at 256
    far = view.frame(image, 1.0)
    assert ((far - 0.5).abs().sum(1) > 0).sum() <= 32**2
    small = torch.nn.functional.interpolate(image, (32, 32), mode="bilinear", antialias=True)
    assert torch.allclose(far[..., 112:144, 112:144], small, atol=1e-5)
    assert torch.allclose(
        make(name, Parameters(sigma=0.25)).frame(image, 1.0)[..., :117, :], torch.tensor(0.5)
    )


def test_readings_of_components_lie_upon_mid_grey():
    image = picture(64, 64)
    low, high = (make(name, Parameters()).reading(image) for name in ("low pass", "high pass"))
    assert torch.allclose(low + high - 0.5, image, atol=1e-5)
    gray = make("grayscale", Parameters()).reading(image)
    assert torch.allclose(gray, image.mean(1, keepdim=True).expand_as(image), atol=1e-6)
    assert torch.equal(make("colour", Parameters()).reading(image), image)
    masked = fitting("mask", 64, 64).reading(image)
    assert torch.allclose(masked[..., :28], image[..., :28]) and torch.all(masked[..., 36:] == 0.5)


def test_negatives_fade_through_grey():
    image = picture(16, 16)
    view = make("negate", Parameters())
    assert torch.equal(view.reading(image), 1 - image)
    assert torch.allclose(view.frame(image, 0.5), torch.full_like(image, 0.5), atol=1e-6)


def test_pixels_fly_and_none_is_invented():
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    half = make("pixel permutation", Parameters(seed=2)).frame(image, 0.5).flatten(2)[0].T
    known = torch.cat([image.flatten(2)[0].T, torch.full((1, 3), 0.5)])
    assert torch.cdist(half, known, compute_mode="donot_use_mm_for_euclid_dist").min(1).values.max() < 1e-6
    assert 0.3 < (half != 0.5).all(1).float().mean() < 0.95
