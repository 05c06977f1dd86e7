"""The plots of the nodes' previews."""

import pytest
import torch


@pytest.fixture(scope="module")
def curve(host):
    from guided_synthesis.nodes.host.plots import curve

    return curve


@pytest.fixture(scope="module")
def sweep_plot(host):
    from guided_synthesis.nodes.host.plots import sweep_plot

    return sweep_plot


def drawn_sweep(sweep_plot, scores, shape=(128, 128)):
    """The plot of `scores` (N, K) under black pictures: (H, W, 3)."""
    scores = torch.tensor(scores)
    return sweep_plot(list(range(len(scores))), scores, torch.zeros(len(scores), 3, *shape), "x", "y")[0]


def line_heights(plot, columns):
    """Where the line, which is blue, lies at the middle of each of `columns` columns, or None: px from the top."""
    blue = (plot[..., 2] - plot[..., 0]) > 0.4
    width = (plot.shape[1] - 84 - 16) / columns
    middles = [round(84 + (i + 0.5) * width) for i in range(columns)]
    rows = [blue[:, x].nonzero().flatten().float() for x in middles]
    return [row.mean().item() if len(row) else None for row in rows]


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


def test_a_sweep_draws_the_means_below_the_pictures(sweep_plot):
    plot = drawn_sweep(sweep_plot, [[1.0, 3.0], [3.0, 5.0], [2.0, 4.0]])
    assert (plot[20, 84:-16] == 0).all(-1).sum() > 400  # the pictures
    low, high, between = line_heights(plot, 3)
    assert low > between > high > 160
    assert between == pytest.approx((low + high) / 2, abs=2)


@pytest.mark.parametrize("odd", [float("inf"), float("nan")])
def test_the_line_of_a_sweep_has_a_gap_where_nothing_is_finite_and_only_there(sweep_plot, odd):
    heights = line_heights(drawn_sweep(sweep_plot, [[1.0, 2.0], [odd, odd], [odd, 2.0], [1.0, 1.0]]), 4)
    assert [height is None for height in heights] == [False, True, False, False]
    assert line_heights(drawn_sweep(sweep_plot, [[odd], [odd]]), 2) == [None, None]


@pytest.mark.parametrize("count", [1, 2, 3, 6, 15, 64])
def test_a_sweep_has_room_for_its_values_and_at_least_512_px(sweep_plot, count):
    plot = drawn_sweep(sweep_plot, [[float(i)] for i in range(count)])
    assert 512 <= plot.shape[1] <= 64 * count + 1060
    heights = line_heights(plot, count)
    assert heights == sorted(heights, reverse=True) and min(heights) > 40


@pytest.mark.parametrize("shape", [(64, 512), (512, 64), (9, 8), (1024, 1024)])
def test_pictures_of_any_shape_fit_their_columns(sweep_plot, shape):
    plot = drawn_sweep(sweep_plot, [[1.0], [2.0], [3.0]], shape)
    black = (plot[:, 84:-16] == 0).all(-1)
    rows = black[: plot.shape[0] - 300].any(1).nonzero().flatten()
    wide = black[rows[len(rows) // 2]].sum().item() / 3
    assert len(rows) / wide == pytest.approx(shape[0] / shape[1], rel=0.15)


def test_small_differences_keep_their_numbers(sweep_plot):
    drawn = drawn_sweep(sweep_plot, [[30.001], [30.003]])
    assert (
        dark(drawn[None])[:, 20:84].sum()
        > dark(drawn_sweep(sweep_plot, [[1.0], [3.0]])[None])[:, 20:84].sum()
    )


def test_matplotlibs_global_state_is_left_alone(curve, sweep_plot):
    import sys

    curve(torch.ones(3), "t", "y")
    drawn_sweep(sweep_plot, [[1.0], [2.0]])
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
