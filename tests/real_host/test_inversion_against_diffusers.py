"""DDIM inversion against diffusers' own: DDIMInverseScheduler and UNet2DConditionModel, with the same weights.

Its latents are variance-preserving, z = x / sqrt(1 + sigma^2), and its steps begin at timestep 1.
"""

import pytest
import torch

from real_host.sampling import conditioning
from tiny_sd import data
from tiny_sd.world import draw, make_spec


def scheduler_of(steps):
    """Return diffusers' scheduler for the demo model."""
    from diffusers import DDIMInverseScheduler

    scheduler = DDIMInverseScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )
    scheduler.set_timesteps(steps)
    return scheduler


@torch.inference_mode()
def theirs(unet, scheduler, z, context):
    """Return the latents z of every level, from the picture to the noise."""
    path = [z]
    for time in scheduler.timesteps:
        out = unet(path[-1], time, encoder_hidden_states=context).sample
        path.append(scheduler.step(out, time, path[-1]).prev_sample)
    return path


@pytest.mark.parametrize("steps", [50, 10])
def test_every_latent_is_that_of_diffusers(host, tiny, steps):
    from guided_synthesis.nodes.inversion import Invert
    from real_host.diffusers_unet import converted

    model, clip, vae = tiny
    spec = make_spec(data.HELD_OUT + 200)
    image = torch.from_numpy(draw(spec).image.copy()).float()[None] / 255
    positive, scheduler = conditioning(clip, spec.caption), scheduler_of(steps)
    table = model.get_model_object("model_sampling").sigmas
    alphas = 1 / (1 + table.double() ** 2)
    assert torch.allclose(alphas.float(), scheduler.alphas_cumprod, rtol=1e-4)
    sigmas = torch.cat([table[scheduler.timesteps.flip(0)], torch.zeros(1)])
    with torch.inference_mode():
        clean = vae.encode(image)
        settings = {"cfg": 1.0, "method": "ddim", "tolerance": 3e-4, "max_iterations": 10}
        path = Invert.execute(model, positive, sigmas=sigmas, latent={"samples": clean}, **settings).args[2]
        start = model.model.process_latent_in(clean)
    unet = converted(model)[0].requires_grad_(False)
    expected = theirs(unet, scheduler, start.clone(), positive[0][0].clone())[::-1]
    assert len(expected) == len(path.latents) == steps + 1
    for x, z, sigma in zip(path.latents, expected, sigmas, strict=True):
        other = z * (1 + sigma**2).sqrt()
        assert (x - other).norm() < 1e-3 * other.norm()
    ends = path.latents[-1], path.latents[0] / (1 + sigmas[0] ** 2).sqrt()
    assert (ends[0] - ends[1]).norm() > 0.5 * ends[0].norm()  # it is a way, not a standstill
