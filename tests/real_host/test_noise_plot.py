"""The plot that tells how far noise is from white Gaussian noise."""

import pytest
import torch

from guided_synthesis.guidance.noise_statistics import standardised

SPECTRUM, VALUES = slice(0, 512), slice(512, 1024)


@pytest.fixture(scope="module")
def plots(host):
    from guided_synthesis.nodes.host import plots

    return plots


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def titles(plots, monkeypatch, made):
    """What is written above the two plots of `made`."""
    figures = []
    drawn = plots._drawn
    monkeypatch.setattr(plots, "_drawn", lambda figure: figures.append(figure) or drawn(figure))
    plots.noise_plot(made)
    return [axes.get_title() for axes in figures[0].axes]


def line_heights(plot, columns):
    """How far down the line, which is blue, lies in some columns of the plot, px."""
    blue = (plot[0, 40:260, columns, 2] - plot[0, 40:260, columns, 0]) > 0.4
    return blue.nonzero()[:, 0].float().mean().item()


@pytest.mark.parametrize("shape", [(1, 4, 16, 16), (3, 4, 64, 96), (1, 16, 8, 3), (1, 1, 2, 2)])
def test_white_noise_of_any_size_is_told_to_be_that(plots, monkeypatch, shape):
    assert titles(plots, monkeypatch, noise(*shape)) == [
        "spectrum: as white noise",
        "values: as Gaussian noise",
    ]
    plot = plots.noise_plot(noise(*shape))
    assert plot.shape == (1, 320, 1024, 3) and plot.dtype == torch.float32
    assert 0 <= plot.min() and plot.max() == 1


def test_coarse_noise_is_told_to_be_coarse_and_its_line_falls(plots, monkeypatch):
    coarse = torch.nn.functional.interpolate(noise(1, 4, 8, 8), scale_factor=8, mode="bicubic")
    mixed = standardised(standardised(coarse) + noise(1, 4, 64, 64, seed=1))
    spectrum, values = titles(plots, monkeypatch, mixed)
    assert spectrum.startswith("spectrum: coarse parts x ") and "fine parts x 0.5" in spectrum
    assert float(spectrum.split(" x ")[1].split(",")[0]) > 5
    plot = plots.noise_plot(mixed)
    assert line_heights(plot, slice(66, 110)) < line_heights(plot, slice(200, 330)) - 60


@pytest.mark.parametrize("power, words", [(3, "more extremes"), (0, "fewer extremes")])
def test_values_with_other_tails_are_told(plots, monkeypatch, power, words):
    n = noise(1, 4, 32, 32)
    odd = n.sign() * n.abs() ** power
    spectrum, values = titles(plots, monkeypatch, standardised(odd))
    assert spectrum == "spectrum: as white noise" and words in values


def test_a_channel_of_one_wave_is_drawn_too(plots):
    wave = torch.cos(torch.arange(16.0) * torch.pi / 4).expand(1, 4, 16, 16)
    plot = plots.noise_plot(standardised(wave))
    assert (plot[:, :, SPECTRUM] < 0.9).any() and (plot[:, :, VALUES] < 0.9).any()
