"""Measures the demo model through the real host's own nodes and classes; `proof.py` writes the figures down.

Import it after `host_model.open_host()`. Everything runs under inference mode, as the host's nodes do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import nodes
import numpy as np
import torch
from torch import Tensor

from tiny_sd.classifier import pictures
from tiny_sd.world import SIZE, Scene, Spec

LATENT = SIZE // 8
STEPS, CFG, SAMPLER, SCHEDULER = 30, 5.0, "euler", "normal"


@dataclass(frozen=True)
class Host:
    """What the host's CheckpointLoaderSimple made of the demo checkpoint."""

    model: Any
    clip: Any
    vae: Any


@dataclass(frozen=True)
class Attention:
    """How one word's cross-attention map fits its object: peak in the box, mean inside / outside the mask."""

    inside_box: bool
    contrast: float


@torch.inference_mode()
def rebuilt(host: Host, scenes: Sequence[Scene]) -> Tensor:
    """Return the scenes after the host's VAEEncode and VAEDecode: (B, 3, 128, 128) in [0, 1]."""
    pixels = pictures([scene.image for scene in scenes]).movedim(1, -1)
    latent = nodes.VAEEncode().encode(host.vae, pixels)[0]
    return nodes.VAEDecode().decode(host.vae, latent)[0].movedim(-1, 1)


def psnr(images: Tensor, scenes: Sequence[Scene]) -> float:
    """Return the mean over pictures of the peak signal-to-noise ratio in dB."""
    error = (images - pictures([scene.image for scene in scenes])).square().mean((1, 2, 3))
    return float((-10 * error.log10()).mean())


def conditioning(host: Host, captions: Sequence[str]) -> list:
    """Return one CONDITIONING, a batch of the captions as the host's CLIPTextEncode encodes each of them."""
    encoded = [nodes.CLIPTextEncode().encode(host.clip, caption)[0][0] for caption in captions]
    extra = dict(encoded[0][1])
    if extra.get("pooled_output") is not None:
        extra["pooled_output"] = torch.cat([entry["pooled_output"] for _, entry in encoded])
    return [[torch.cat([context for context, _ in encoded]), extra]]


@torch.inference_mode()
def samples(host: Host, specs: Sequence[Spec], batch: int = 20, steps: int = STEPS) -> Iterator[Tensor]:
    """Yield pictures (<= batch, 3, 128, 128) for the captions in order; a batch's seed is its number."""
    nothing = conditioning(host, [""])
    for number, start in enumerate(range(0, len(specs), batch)):
        captions = [spec.caption for spec in specs[start : start + batch]]
        latent = {"samples": torch.zeros(len(captions), 4, LATENT, LATENT)}
        positive = conditioning(host, captions)
        settings = (number, steps, CFG, SAMPLER, SCHEDULER)
        latent = nodes.common_ksampler(host.model, *settings, positive, nothing, latent)[0]
        yield nodes.VAEDecode().decode(host.vae, latent)[0].movedim(-1, 1)


class _Recorder:
    """An attn2 replacement that computes plain attention and adds up the maps at half the latent's scale."""

    def __init__(self) -> None:
        self.maps: list[Tensor] = []  # one per layer: (B, half * half, tokens), mean over heads

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        q, k, v = (x.unflatten(-1, (extra_options["n_heads"], -1)).transpose(1, 2) for x in (q, k, v))
        probs = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)  # (B, heads, cells, tokens)
        if probs.shape[2] == (LATENT // 2) ** 2:
            self.maps.append(probs.mean(1).float().cpu())
        return (probs @ v).transpose(1, 2).flatten(2)


@torch.inference_mode()
def attention(host: Host, scenes: Sequence[Scene], timestep: int) -> list[list[Attention]]:
    """Noise real scenes to `timestep` and judge the cross-attention map (`word_maps`) of each object's word."""
    pixels = pictures([scene.image for scene in scenes]).movedim(1, -1)
    clean = host.model.model.process_latent_in(nodes.VAEEncode().encode(host.vae, pixels)[0]["samples"])
    words = [(scene.spec.caption, [thing.noun for thing in scene.spec.things]) for scene in scenes]
    maps = word_maps(host, clean, words, timestep)
    return [
        [_judged(*each) for each in zip(cells, scene.boxes, scene.masks, strict=True)]
        for cells, scene in zip(maps, scenes, strict=True)
    ]


@torch.inference_mode()
def word_maps(
    host: Host, clean: Tensor, captions: Sequence[tuple[str, Sequence[str]]], timestep: int
) -> list[list[Tensor]]:
    """Return for each latent (B, C, h, w) of the model's space the cross-attention maps of words of its caption.

    The latents are noised to `timestep`. A map (8, 8) is the mean over heads and over the layers at half the latent's
    scale (cells of 16 px).
    """
    model = host.model.model
    sigma = model.model_sampling.sigma(torch.tensor([float(timestep)])).expand(len(clean))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(timestep))
    context = conditioning(host, [caption for caption, _ in captions])[0][0]
    recorder = _Recorder()
    blocks = [(part, index) for part in ("input", "middle", "output") for index in range(12)]
    options = {"patches_replace": {"attn2": dict.fromkeys(blocks, recorder)}}
    comfy.model_management.load_models_gpu([host.model])
    noisy, device = clean + noise * sigma[:, None, None, None].to(clean), host.model.load_device
    inputs = (noisy.to(device), sigma.to(device))
    model.apply_model(*inputs, c_crossattn=context.to(device), transformer_options=options)
    maps, half = torch.stack(recorder.maps).mean(0), LATENT // 2  # (B, cells, tokens)
    return [
        [own[:, _positions(host, caption, word)].mean(-1).view(half, half) for word in words]
        for own, (caption, words) in zip(maps, captions, strict=True)
    ]


def _positions(host: Host, caption: str, noun: str) -> list[int]:
    """Return where the tokens of `noun` stand among the caption's 77."""
    tokens = [token for token, _ in host.clip.tokenize(caption)["l"][0]]
    edges = (tokens[0], tokens[-1])  # start, and end that also fills up to 77
    word = [token for token, _ in host.clip.tokenize(noun)["l"][0] if token not in edges]
    places = [i for i in range(len(tokens)) if tokens[i : i + len(word)] == word]
    if not places:
        raise ValueError(f"'{noun}' is not in the caption '{caption}'; ask for a word that the caption has.")
    return list(range(places[0], places[0] + len(word)))


def _judged(cells: Tensor, box: tuple[int, int, int, int], mask: np.ndarray) -> Attention:
    side = SIZE // cells.shape[0]
    row, column = divmod(int(cells.argmax()), cells.shape[1])
    x, y = (column + 0.5) * side, (row + 0.5) * side
    left, top, right, bottom = box
    full = cells.repeat_interleave(side, 0).repeat_interleave(side, 1)
    inside = torch.from_numpy(mask)
    contrast = float(full[inside].mean() / full[~inside].mean())
    return Attention(left <= x < right and top <= y < bottom, contrast)
