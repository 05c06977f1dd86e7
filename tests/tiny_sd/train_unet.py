"""Train the demo model's text encoder and UNet together: `python tests/tiny_sd/train.py unet`.

Objective of SD 1: predict the noise (eps) on SD's scaled-linear schedule, 10 % of captions dropped. Min-SNR-5 weights
(arXiv 2303.09556), stratified timesteps, AdamW with a cosine second half, an exponential moving average of the weights.
Scenes with two objects are drawn more often in the last part: they are the hard ones.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from comfy.sd1_clip import SD1Tokenizer
from torch import Tensor

from tiny_sd import parts

STEPS = 1000


def alphas_cumprod() -> Tensor:
    """SD's scaled-linear schedule: abar for t = 0 .. 999."""
    betas = torch.linspace(0.00085**0.5, 0.0120**0.5, STEPS, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def tokenize(captions: list[str]) -> Tensor:
    """Return CLIP token ids (N, 77) as the host makes them."""
    tokenizer = SD1Tokenizer()
    ids = {}
    for caption in set(captions):
        ids[caption] = [token for token, _ in tokenizer.tokenize_with_weights(caption)["l"][0]]
    return torch.tensor([ids[caption] for caption in captions])


@torch.no_grad()
def encode(images: np.ndarray, autoencoder: torch.nn.Module) -> Tensor:
    """Return the model-space latents (N, 4, 16, 16) of uint8 images (N, 128, 128, 3)."""
    latents = []
    for start in range(0, len(images), 32):
        pixels = torch.from_numpy(images[start : start + 32].copy()).float().permute(0, 3, 1, 2) / 255
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(autoencoder.taesd_encoder(pixels).float())
    return torch.cat(latents)


class Trainer:
    """UNet and text encoder over a compact vocabulary, their average, and the state to resume from."""

    def __init__(self, latents: Tensor, tokens: Tensor, two: np.ndarray, state_file: Path) -> None:
        torch.manual_seed(0)
        self.rng = np.random.default_rng(0)
        self.vocabulary, tokens = tokens.unique(return_inverse=True)
        self.latents, self.tokens, self.state_file = latents, tokens[1:], state_file
        self.empty = tokens[0]  # row 0 is the empty caption
        self.one, self.two = np.flatnonzero(~two), np.flatnonzero(two)
        self.text = parts.text_encoder()
        embedding = torch.nn.Embedding(len(self.vocabulary), parts.TEXT["hidden_size"])
        torch.nn.init.normal_(embedding.weight, std=0.05)
        embedding.forward = lambda ids, out_dtype=None: torch.nn.functional.embedding(ids, embedding.weight)
        self.text.text_model.embeddings.token_embedding = embedding
        self.text.text_projection.requires_grad_(False)
        self.unet = parts.unet()
        self.modules = torch.nn.ModuleDict({"text": self.text, "unet": self.unet})
        self.parameters = [p for p in self.modules.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)
        self.average = [p.detach().clone() for p in self.parameters]
        self.abar = alphas_cumprod()
        self.spent, self.step = 0.0, 0
        if state_file.exists():
            self._load()

    def _load(self) -> None:
        state = torch.load(self.state_file, weights_only=True)
        self.modules.load_state_dict(state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.spent, self.step = state["average"], state["seconds"], state["step"]
        self.rng = np.random.default_rng(self.step)

    def save(self) -> None:
        """Write everything that resuming needs."""
        state = {"modules": self.modules.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"average": self.average, "seconds": self.spent, "step": self.step}
        partial = self.state_file.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(self.state_file)

    def loss(self, batch: int, share_two: float) -> Tensor:
        """One stratified batch: min-SNR-5 weighted squared error of the predicted noise."""
        pairs = round(batch * share_two)
        picks = np.concatenate([self.rng.choice(self.two, pairs), self.rng.choice(self.one, batch - pairs)])
        self.rng.shuffle(picks)
        x0, ids = self.latents[picks], self.tokens[picks].clone()
        ids[torch.from_numpy(self.rng.random(batch) < 0.1)] = self.empty
        t = ((torch.arange(batch) + torch.rand(batch)) / batch * STEPS).long()
        abar = self.abar[t][:, None, None, None]
        noise = torch.randn_like(x0)
        with torch.autocast("cpu", torch.bfloat16):
            context = self.text(ids)[0]
            eps = self.unet(abar.sqrt() * x0 + (1 - abar).sqrt() * noise, t, context=context)
        snr = (abar / (1 - abar)).flatten()
        error = (eps.float() - noise).square().mean((1, 2, 3))
        return (error * (5 / snr).clamp(max=1)).mean()

    def train(self, minutes: float, batch: int = 32) -> None:
        """Train until `minutes` in all have passed; saves every three minutes."""
        last, saved, running = time.monotonic(), self.spent, None
        while self.spent < 60 * minutes:
            progress = self.spent / (60 * minutes)
            decay = 1.0 if progress < 0.5 else 0.02 + 0.98 * np.cos((progress - 0.5) * np.pi) ** 2
            for group in self.optimizer.param_groups:
                group["lr"] = float(1e-3 * min(1, (self.step + 1) / 200) * decay)
            size = batch if progress < 0.3 else 2 * batch
            loss = self.loss(size, 0.4 if progress < 0.35 else 0.6)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.step += 1
            keep = min(0.998, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - keep)
            running = loss.item() if running is None else 0.99 * running + 0.01 * loss.item()
            now = time.monotonic()
            self.spent, last = self.spent + now - last, now
            if self.step % 100 == 0:
                print(f"unet step {self.step} minute {self.spent / 60:.1f} loss {running:.4f}", flush=True)
            if self.spent - saved > 180:
                self.save()
                saved = self.spent
        self.save()

    def averaged_state(self) -> dict[str, Tensor]:
        """The averaged weights under SD1 checkpoint names; rows of words never seen are zero."""
        names = [name for name, p in self.modules.named_parameters() if p.requires_grad]
        state = {}
        for name, value in zip(names, self.average, strict=True):
            network, key = name.split(".", 1)
            prefix = "model.diffusion_model." if network == "unet" else "cond_stage_model.transformer."
            state[prefix + key] = value
        key = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
        table = torch.zeros(parts.TEXT["vocab_size"], parts.TEXT["hidden_size"])
        table[self.vocabulary] = state[key]
        state[key] = table
        state["cond_stage_model.transformer.text_projection.weight"] = torch.eye(parts.TEXT["hidden_size"])
        return state
