"""The plots of the nodes' previews."""

import pytest
import torch


@pytest.fixture(scope="module")
def curve(host):
    from guided_synthesis.nodes.host.plots import curve

    return curve


def dark(picture):
    """The pixels (H, W) that are not white."""
    return (picture[0] < 0.9).any(-1)


def test_a_curve_is_an_image_of_its_values(curve):
    falling, rising = (curve(v, "t", "y") for v in (torch.linspace(2, 1, 50), torch.linspace(1, 2, 50)))
    assert falling.shape == rising.shape == (1, 320, 512, 3) and falling.dtype == torch.float32
    assert 0 <= falling.min() and falling.max() == 1
    blue = [(p[0, ..., 2] - p[0, ..., 0]) > 0.3 for p in (falling, rising)]  # the line's colour
    heights = [
        [mask[:, columns].nonzero()[:, 0].float().mean() for columns in (slice(0, 200), slice(350, 512))]
        for mask in blue
    ]
    assert heights[0][0] < heights[0][1] and heights[1][0] > heights[1][1]


def test_each_picture_of_a_batch_has_its_own_line_and_nan_ends_it(curve):
    one = torch.linspace(2, 1, 40)[:, None]
    short = one.clone() * 1.5
    short[20:] = torch.nan
    both = curve(torch.cat([one, short], 1), "t", "y")
    orange = (both[0, ..., 0] - both[0, ..., 2]) > 0.3
    assert orange[:, :300].any() and not orange[:, 350:].any()


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [1.0, -1.0, 0.0], [float("nan")]])
def test_values_without_a_logarithm_or_neighbours_are_drawn_too(curve, values):
    assert dark(curve(torch.tensor(values), "t", "y")).any()


def test_matplotlibs_global_state_is_left_alone(curve):
    import sys

    curve(torch.ones(3), "t", "y")
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
