"""Checks of what artists plug in. Every failure is one ValueError sentence: what is wrong, where, what to do."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

ASPECT_TOLERANCE = 0.03  # rounding a side to steps of 8 changes the shape by less than this


def percent_range(start: float | None, end: float | None) -> str | None:
    """Return the sentence for a reversed range, or None if it is fine (or not known yet: a linked input is None)."""
    if start is None or end is None or start < end:
        return None
    return (
        f"start_percent ({start:g}) must be smaller than end_percent ({end:g}): the guide works from start to end, "
        "where 0 is the first and 1 the last sampling step. Swap the two values."
    )


def picture(image: Tensor, name: str) -> Tensor:
    """Return IMAGE (B, H, W, 3) as (B, 3, H, W) float32.

    An alpha channel is composited over white, which the log says. Raises ValueError for any other shape.
    """
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"{name} has the shape {tuple(image.shape)}; connect an IMAGE (batch, height, width, 3)."
        )
    if image.shape[-1] == 1:
        raise ValueError(
            f"{name} has a single grey channel; it must be RGB. Load it with the Load Image node, or turn a mask into "
            "a picture with Convert Mask to Image."
        )
    channels = image.movedim(-1, 1).float()
    if image.shape[-1] == 3:
        return channels
    logging.info(
        "Guided Synthesis: %s has an alpha channel (RGBA); it was composited over white. To use the transparency as a "
        "mask, put Split Image with Alpha before it.",
        name,
    )
    colours, alpha = channels[:, :3], channels[:, 3:].clamp(0, 1)
    return colours * alpha + (1 - alpha)


def mask(value: Tensor | None, image: Tensor, name: str, other: str = "the painting") -> Tensor | None:
    """Return MASK (B, H, W) as (B, 1, H, W) float32, or None; raise ValueError if it is empty or of another shape.

    `image` (B, 3, H, W) is the picture that the mask belongs to, called `other`.
    """
    if value is None:
        return None
    value = value.reshape(-1, 1, *value.shape[-2:]).float()
    if not bool((value > 0).any()):
        raise ValueError(
            f"{name} is empty (all zero), so {other} would count nowhere. Paint it, or disconnect it."
        )
    same_shape(value, image.shape[-2], image.shape[-1], name, other)
    if value.shape[0] not in (1, image.shape[0]) and image.shape[0] != 1:
        raise ValueError(
            f"{name} has {value.shape[0]} masks for {image.shape[0]} pictures; give one, or one each."
        )
    return value


def same_shape(value: Tensor, height: int, width: int, name: str, other: str) -> None:
    """Raise ValueError if `value` (..., h, w) has not the aspect ratio of `height` x `width` (up to rounding)."""
    h, w = value.shape[-2:]
    if abs((w * height) / (h * width) - 1) > ASPECT_TOLERANCE:
        raise ValueError(
            f"{name} is {w}x{h} px but {other} is {width}x{height} px, another shape. Crop one to the other's shape: "
            f"put Upscale Image (width {width}, height {height}, crop center) before {name}."
        )


def image_latent(model: Any) -> None:
    """Raise ValueError unless MODEL works on image latents (B, C, h, w)."""
    latent_format = getattr(getattr(model, "model", None), "latent_format", None)
    dimensions = getattr(latent_format, "latent_dimensions", 2)
    if latent_format is None or dimensions != 2 or not hasattr(model, "add_wrapper_with_key"):
        kind = type(getattr(model, "model", model)).__name__
        raise ValueError(
            f"The model ({kind}) does not paint single pictures, so this node cannot work with it. Connect an "
            "image model such as SD 1.5, SD 2.x or SDXL."
        )


def batch(count: int, latents: int, name: str) -> None:
    """Raise ValueError unless `count` pictures fit `latents` latents: one for all, or one each."""
    if count not in (1, latents):
        raise ValueError(
            f"{name} has {count} pictures but {latents} are sampled; give one, or exactly one for each latent."
        )


def latent_shape(shape: torch.Size, pictures: Tensor, name: str, pixels_per_cell: int) -> None:
    """Raise ValueError unless `pictures` (B, 3, H, W) fit a latent of `shape` (B, C, h, w) in number and aspect."""
    batch(pictures.shape[0], shape[0], name)
    same_shape(
        pictures, shape[-2] * pixels_per_cell, shape[-1] * pixels_per_cell, name, "the picture to be made"
    )
