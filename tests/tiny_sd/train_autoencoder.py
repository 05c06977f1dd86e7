"""Train the demo model's autoencoder: `python tests/tiny_sd/train.py autoencoder`.

L1 in colour, L1 in finite differences at three scales (edges), a pull of the latents to unit spread, and a pull to the
host's SD1 `latent_rgb_factors`, so that live previews and the linear decoder mean here what they mean with SD.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from comfy.latent_formats import SD15
from torch import Tensor
from torch.nn.functional import avg_pool2d, mse_loss

from tiny_sd import parts


def edge_loss(a: Tensor, b: Tensor) -> Tensor:
    """Mean L1 between finite differences of `a` and `b` (B, 3, H, W) at scales 1, 1/2 and 1/4."""
    loss = a.new_zeros(())
    for _ in range(3):
        for dim in (-1, -2):
            loss = loss + (a.diff(dim=dim) - b.diff(dim=dim)).abs().mean()
        a, b = avg_pool2d(a, 2), avg_pool2d(b, 2)
    return loss


def losses(model: torch.nn.Module, images: Tensor, factors: Tensor) -> Tensor:
    """Return the training loss for RGB images (B, 3, H, W) in [0, 1]."""
    latents = model.taesd_encoder(images)
    decoded = model.taesd_decoder(latents).float()
    latents = latents.float()
    spread = (latents.mean((0, 2, 3)).square() + (latents.std((0, 2, 3)) - 1).square()).mean()
    preview = torch.einsum("bchw,cr->brhw", latents, factors) * 0.5 + 0.5
    colours = mse_loss(preview, avg_pool2d(images, 8))
    colour = (decoded - images).abs().mean() + 2 * mse_loss(decoded, images)
    return colour + 0.8 * edge_loss(decoded, images) + 0.05 * spread + 0.5 * colours


def train(images: np.ndarray, minutes: float, state_file: Path, batch: int = 16, crop: int = 64) -> None:
    """Train on uint8 images (N, H, W, 3) until `minutes` have passed; resumes from and writes `state_file`."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    model = parts.autoencoder().to(memory_format=torch.channels_last)
    factors = torch.tensor(SD15().latent_rgb_factors)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    spent, step = 0.0, 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        spent, step = state["seconds"], state["step"]
    last = time.monotonic()
    while spent < 60 * minutes:
        progress = spent / (60 * minutes)
        for group in optimizer.param_groups:
            group["lr"] = float(
                2e-3 * min(1, (step + 1) / 100) * (0.02 + 0.98 * np.cos(progress * np.pi / 2) ** 2)
            )
        picks = generator.integers(0, len(images), batch)
        y, x = generator.integers(0, images.shape[1] - crop + 1, 2)
        pixels = torch.from_numpy(images[picks, y : y + crop, x : x + crop]).float().permute(0, 3, 1, 2) / 255
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            loss = losses(model, pixels, factors)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        now = time.monotonic()
        spent, last = spent + now - last, now
        if step % 100 == 0:
            print(f"autoencoder step {step} minute {spent / 60:.1f} loss {loss.item():.4f}", flush=True)
        if step % 500 == 0:
            _save(model, optimizer, spent, step, state_file)
    _save(model, optimizer, spent, step, state_file)


def _save(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, seconds: float, step: int, file: Path
) -> None:
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "seconds": seconds,
        "step": step,
    }
    torch.save(state, file)
