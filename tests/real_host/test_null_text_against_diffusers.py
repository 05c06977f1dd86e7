"""Null-text optimisation against the loop of its paper, in plain torch on the UNet of diffusers, with the same weights.

Latents there are variance-preserving, z = x / sqrt(1 + sigma^2), and the steps are DDIM's.
"""

import pytest
import torch

from real_host.sampling import conditioning
from tiny_sd import data
from tiny_sd.world import draw, make_spec

TIMES, CFG = tuple(range(940, 0, -100)), 7.5  # 10 steps at levels that both know
INNER, RATE, STOP = 10, 1e-2, 1e-5  # the paper's


class Paper:
    """The paper's loop: `alphas` are those of TIMES and 1, `context` and `empty` are texts (B, T, D)."""

    def __init__(self, unet, alphas, context, empty):
        self.unet, self.alphas, self.context, self.empty = unet, alphas, context, empty

    def eps(self, z, step, text):
        """Return the noise in `z` at a step, after the UNet of diffusers."""
        return self.unet(z, TIMES[step], encoder_hidden_states=text).sample

    def moved(self, z, eps, before, after):
        """DDIM's step between two levels, downwards or upwards."""
        a, b = self.alphas[before], self.alphas[after]
        return b.sqrt() * (z - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b).sqrt() * eps

    @torch.no_grad()
    def inverted(self, z):
        """Follow the prompt upwards at CFG 1; the network sees the latent as it is at the level that it goes to."""
        path = [z]
        for step in reversed(range(len(TIMES))):
            path.insert(0, self.moved(path[0], self.eps(path[0], step, self.context), step + 1, step))
        return path

    def optimised(self, path):
        """Return the unconditional text of each step, and the loss with it."""
        text, z, texts, losses = self.empty, path[0], [], []
        for step in range(len(TIMES)):
            text = text.detach().clone().requires_grad_()
            adam = torch.optim.Adam([text], lr=RATE * (1 - step / 100))
            with torch.no_grad():
                conditional = self.eps(z, step, self.context)
            for _ in range(INNER):
                eps = self.eps(z, step, text)
                following = self.moved(z, eps + CFG * (conditional - eps), step, step + 1)
                loss = torch.nn.functional.mse_loss(following, path[step + 1])
                adam.zero_grad()
                loss.backward()
                adam.step()
                if loss.item() < STOP + step * 2e-5:
                    break
            with torch.no_grad():
                eps = self.eps(z, step, text)
                z = self.moved(z, eps + CFG * (conditional - eps), step, step + 1)
                texts.append(text.detach())
                losses.append((z - path[step + 1]).square().mean().item())
        return texts, losses


def test_the_loss_curve_is_that_of_the_paper(host, tiny):
    from guided_synthesis.guidance.trajectory import Trajectory
    from guided_synthesis.nodes.null_text import NullText
    from real_host.diffusers_unet import converted

    model, clip, vae = tiny
    spec = make_spec(data.HELD_OUT + 200)
    image = torch.from_numpy(draw(spec).image.copy()).float()[None] / 255
    texts = [conditioning(clip, words) for words in (spec.caption, "")]
    with torch.inference_mode():
        clean = model.model.process_latent_in(vae.encode(image))
    sigmas = torch.cat([model.get_model_object("model_sampling").sigmas[list(TIMES)], torch.zeros(1)])

    host.comfy.model_management.load_models_gpu([model])  # without what other tests patched
    unet = converted(model)[0].requires_grad_(False)
    paper = Paper(unet, 1 / (1 + sigmas**2), *(entry[0][0].clone() for entry in texts))
    path = paper.inverted(clean.clone())
    found, expected = paper.optimised(path)

    latents = torch.stack([z * (1 + s**2).sqrt() for z, s in zip(path, sigmas, strict=True)])
    trajectory = Trajectory(sigmas, latents, torch.zeros(len(TIMES), 1), "ddim", 1.0, len(TIMES))
    with torch.inference_mode():
        ours = NullText.execute(model, *texts, CFG, trajectory, INNER, RATE, 0.9, STOP).args[1]
    losses = ours.residuals[:, 0] ** 2 / (1 + sigmas[1:] ** 2)
    assert losses.tolist() == pytest.approx(expected, rel=0.05)
    assert min(expected) > 0 and max(expected) > 100 * STOP
    far, near = (torch.stack(found) - paper.empty).norm(), (ours.null_text - torch.stack(found)).norm()
    assert near < 0.2 * far
