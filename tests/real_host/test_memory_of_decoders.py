"""How much memory the decoder vae takes on SD's own VAE architecture, in units of a plain decode, to the byte."""

from __future__ import annotations

import pytest
import torch

from memory import PeakMemory

CELLS = 8  # latent cells along a side: what grows with the picture grows alike at every size


@pytest.fixture(scope="module")
def vae(host):
    """Return the host's VAE object with the full SD VAE, random weights."""
    from full_size.models import sd_vae

    return sd_vae()


def peak_and_gradient(model, vae, checkpointing=None):
    """Return the peak memory of a decode, and of its backward pass unless `checkpointing` is None."""
    from guided_synthesis.nodes.host.decoders import open_decoder

    latent = torch.randn(1, 4, CELLS, CELLS, generator=torch.Generator().manual_seed(0))
    with open_decoder("vae", vae, model, bool(checkpointing)) as decode, PeakMemory() as memory:
        if checkpointing is None:
            with torch.inference_mode():
                decode(latent)
            return memory.peak, None
        leaf = latent.requires_grad_()
        gradient = torch.autograd.grad(decode(leaf).square().mean(), leaf)[0]
    return memory.peak, gradient


def test_a_decode_with_its_backward_pass_takes_little_more_than_a_decode(tiny, vae):
    plain, _ = peak_and_gradient(tiny[0], vae)
    little, again = peak_and_gradient(tiny[0], vae, checkpointing=True)
    whole, gradient = peak_and_gradient(tiny[0], vae, checkpointing=False)
    assert torch.allclose(again, gradient, rtol=1e-4, atol=1e-7)
    assert little < 2.2 * plain
    assert whole < 3.3 * plain
