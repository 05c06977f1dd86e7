"""A trajectory as named tensors and strings, as a safetensors file holds them, and back; and in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import TypeVar

import torch
from torch import Tensor

from .trajectory import Trajectory

FORMAT = "1"
PREFIX = "trajectory."  # of the strings; other programs keep theirs beside them
# N levels, S = N - 1 steps, B pictures, C x H x W latents, T tokens of D numbers
LAYOUT = {"sigmas": "N", "latents": "NBCHW", "residuals": "SB", "null_text": "SBTD"}
OPTIONAL = {"null_text"}
DTYPES = {
    "sigmas": {torch.float32},
    "latents": {torch.float32, torch.float64},
    "residuals": {torch.float32},
    "null_text": {torch.float16, torch.bfloat16, torch.float32, torch.float64},
}

Number = TypeVar("Number", int, float)


def packed(trajectory: Trajectory) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of `trajectory` (contiguous, on the CPU, sharing no memory) and its strings.

    Raises ValueError if the tensors are not as a trajectory has them. A prompt that is no valid Unicode has its broken
    characters replaced.
    """
    found = {name: getattr(trajectory, name) for name in LAYOUT}
    tensors = {name: _copy(tensor) for name, tensor in found.items() if tensor is not None}
    _check_tensors(tensors)
    strings = {
        "format": FORMAT,
        "method": trajectory.method,
        "cfg": repr(float(trajectory.cfg)),
        "calls": str(int(trajectory.calls)),
        "model": trajectory.model,
        "prompt": trajectory.prompt.encode("utf-8", "replace").decode("utf-8"),
    }
    return tensors, {PREFIX + key: value for key, value in strings.items()}


def unpacked(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Trajectory:
    """Return the trajectory of what `packed` made; strings of others are ignored, the tensors are copied.

    Raises ValueError, a sentence, for anything else: it may come from a stranger's file.
    """
    strings = {
        key: metadata.get(PREFIX + key) for key in ("format", "method", "cfg", "calls", "model", "prompt")
    }
    if strings["format"] not in (None, FORMAT):
        raise ValueError(
            f"This trajectory is of format {strings['format']}, which this version of Guided Synthesis does not know. "
            "Update it."
        )
    _check_tensors(tensors)
    if missing := [key for key, value in strings.items() if value is None]:
        raise _no_trajectory(f"it does not tell its {missing[0]}")
    return Trajectory(
        **{name: _copy(tensor) for name, tensor in tensors.items()},
        method=str(strings["method"]),
        cfg=_number("cfg", str(strings["cfg"]), float),
        calls=_number("calls", str(strings["calls"]), int),
        model=str(strings["model"]),
        prompt=str(strings["prompt"]),
    )


def described(trajectory: Trajectory) -> str:
    """Return what `trajectory` holds, in a few lines."""
    count, channels, height, width = trajectory.latents.shape[1:]
    top, bottom = (float(sigma) for sigma in trajectory.sigmas[[0, -1]])
    lines = [
        f"{trajectory.method}, {trajectory.steps} steps from sigma {top:.4g} to {bottom:.4g}, "
        f"CFG {trajectory.cfg:g}, {trajectory.calls} model calls",
        f"{count} x {width}x{height} cells of {channels} channels",
        f"worst residual: {_worst(trajectory.residuals)}",
        f"prompt: {trajectory.prompt or 'unknown'}",
        f"model: {trajectory.model or 'unknown'}",
    ]
    return "\n".join(lines if trajectory.null_text is None else [*lines, "null-text: one for each step"])


def _worst(residuals: Tensor) -> str:
    measured = residuals[~residuals.isnan()]
    return f"{float(measured.max()):.2g}" if len(measured) else "not measured"


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _number(name: str, text: str, read: Callable[[str], Number]) -> Number:
    """Return the number in `text`, finite and not negative."""
    try:
        value = read(text)
        if isfinite(value) and value >= 0:
            return value
    except (ValueError, OverflowError):
        pass
    raise _no_trajectory(f"its {name} is {text[:20]!r}")


def _check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless `tensors` are those of a trajectory, in name, dtype and shape."""
    if missing := [name for name in LAYOUT if name not in tensors and name not in OPTIONAL]:
        raise _no_trajectory(f"it has no {missing[0]}")
    if unknown := [name for name in tensors if name not in LAYOUT]:
        raise _no_trajectory(f"it has {unknown[0]!r}, which none has")
    sizes: dict[str, int] = {}
    for name in (name for name in LAYOUT if name in tensors):
        tensor = tensors[name]
        if tensor.dtype not in DTYPES[name]:
            raise _no_trajectory(f"its {name} are {tensor.dtype}")
        if tensor.ndim != len(LAYOUT[name]) or not all(
            size and sizes.setdefault(letter, size) == size
            for letter, size in zip(LAYOUT[name], tensor.shape, strict=True)
        ):
            raise _no_trajectory(f"its {name} have the shape {tuple(tensor.shape)}")
    if sizes["N"] != sizes["S"] + 1:
        raise _no_trajectory(f"it has {sizes['N']} noise levels for {sizes['S']} steps")
    sigmas = tensors["sigmas"]
    if not sigmas.isfinite().all() or (sigmas.diff() > 0).any() or sigmas[-1] != 0:
        raise _no_trajectory("its noise levels do not fall to 0")


def _no_trajectory(why: str) -> ValueError:
    return ValueError(f"This is no trajectory: {why}. Choose a file of the Save Trajectory node.")
