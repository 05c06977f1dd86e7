"""The linear decoder: its fit against numpy, its gradients, its count of calls."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from guided_synthesis.guidance.decoding import LinearDecoder, colour_field, fit_linear


def test_the_fit_finds_an_affine_map_again():
    torch.manual_seed(0)
    latents, weight, bias = torch.randn(2, 4, 8, 8), torch.randn(4, 3), torch.randn(3)
    pictures = LinearDecoder(weight, bias)(latents).repeat_interleave(8, -1).repeat_interleave(8, -2)
    found_weight, found_bias = fit_linear(latents, pictures)
    assert torch.allclose(found_weight, weight, atol=1e-5) and torch.allclose(found_bias, bias, atol=1e-5)


def test_the_fit_agrees_with_numpy_on_noisy_data():
    torch.manual_seed(0)
    latents, pictures = torch.randn(1, 4, 6, 6), torch.rand(1, 3, 12, 12)
    weight, bias = fit_linear(latents, pictures)
    cells = (
        pictures.reshape(1, 3, 6, 2, 6, 2).mean((3, 5)).permute(0, 2, 3, 1).reshape(-1, 3).double().numpy()
    )
    affine = np.c_[latents.permute(0, 2, 3, 1).reshape(-1, 4).double().numpy(), np.ones(36)]
    theirs = np.linalg.lstsq(affine, cells, rcond=None)[0]
    assert np.allclose(torch.cat([weight, bias[None]]).numpy(), theirs, atol=1e-5)


def test_the_fit_names_sizes_that_do_not_belong_together():
    with pytest.raises(ValueError, match="whole px per cell"):
        fit_linear(torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, 60, 66))


def test_the_linear_decoder_passes_gradcheck_and_counts():
    decoder = LinearDecoder(torch.randn(4, 3), torch.randn(3))
    assert gradcheck(decoder, torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True))
    before = decoder.calls
    assert decoder(torch.zeros(2, 4, 5, 7).half()).dtype == torch.float32
    assert decoder.calls == before + 1


def test_the_colour_field_is_always_the_same_and_shows_many_colours():
    field = colour_field(256, 8)
    assert field.shape == (1, 3, 256, 256) and field.min() >= 0 and field.max() <= 1
    assert torch.equal(field, colour_field(256, 8))
    assert (field.std((2, 3)) > 0.2).all()


class Curved:
    """An exact decoder for tests: not linear, two px per cell."""

    name, cost, scale, calls = "vae", "none", 2, 0

    def __call__(self, latent):
        """Return squashed colours of the first three channels."""
        self.calls += 1
        return torch.sigmoid(latent[:, :3]).repeat_interleave(2, -1).repeat_interleave(2, -2)


def test_around_a_latent_the_linear_decoder_is_exact_there_and_counts_together():
    torch.manual_seed(0)
    exact, latent = Curved(), torch.randn(2, 4, 5, 5)
    decoder = LinearDecoder(torch.randn(4, 3), torch.randn(3), exact)
    near = decoder.around(latent)
    assert exact.calls == 1 and decoder.calls == 0
    assert torch.allclose(near(latent), exact(latent)[..., ::2, ::2], atol=1e-6)
    step = torch.randn_like(latent)
    assert torch.allclose(
        near(latent + step) - near(latent), decoder(latent + step) - decoder(latent), atol=1e-5
    )
    assert decoder.calls == near.calls == 5
    assert LinearDecoder(torch.randn(4, 3), torch.randn(3)).around(latent)(latent).shape == (2, 3, 5, 5)


def test_around_a_latent_of_a_known_picture_the_linear_decoder_shows_that_picture_without_a_decode():
    exact, picture, latent = Curved(), torch.rand(2, 3, 10, 10), torch.randn(2, 4, 5, 5)
    near = LinearDecoder(torch.randn(4, 3), torch.randn(3), exact).around(latent, picture)
    cells = picture.unflatten(-1, (5, 2)).unflatten(-3, (5, 2)).mean((-1, -3))
    assert torch.allclose(near(latent), cells, atol=1e-6)
    assert exact.calls == 0
