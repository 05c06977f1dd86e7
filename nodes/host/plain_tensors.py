"""Lets autograd run through networks that were loaded under `torch.inference_mode()`, without touching them.

Autograd refuses to save inference tensors for the backward pass. `differentiable()` leaves inference mode and
hands every torch function, at the moment of use, a plain tensor that shares the memory of each inference
tensor: nothing is copied and nothing is patched, so the shared model stays as it is, whatever happens inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from .lean_layers import lean

# the functions through which the host's layers use weights that it streams to the accelerator
WEIGHTED = {
    *("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("group_norm", "layer_norm", "rms_norm", "batch_norm", "embedding", "cudnn_convolution"),
}
# the blocks whose activations are worth recomputing: UNet, AutoencoderKL, TAESD
CHECKPOINTED = ("ResBlock", "SpatialTransformer", "ResnetBlock", "AttnBlock", "Block")
# layers that make a block's input from a tensor of a quarter of its size, which is kept instead
ENLARGING = ("Upsample",)


@contextmanager
def differentiable() -> Iterator[None]:
    """Run the block with gradients on, also inside inference mode, `no_grad`, and for weights loaded there.

    Call the network and the loss inside the block; the backward pass may also come after it. Ask for
    gradients of your own leaves, e.g. `latent.clone().requires_grad_()` made inside the block; parameters
    never collect any.
    """
    with torch.inference_mode(False), torch.enable_grad(), _PlainTensors():
        yield


@contextmanager
def checkpointed(*networks: torch.nn.Module) -> Iterator[None]:
    """Recompute the blocks of `networks` in the backward pass instead of keeping their activations.

    The forward pass belongs inside the block; the backward pass may also come after it. The blocks' `forward`
    is wrapped for as long as it lasts, on these instances only. Patches inside the blocks are called twice:
    once forwards, once for the backward pass.
    """
    wrappers = dict.fromkeys(CHECKPOINTED, _recomputed) | dict.fromkeys(ENLARGING, _enlarged)
    blocks = [m for network in networks for m in network.modules() if type(m).__name__ in wrappers]
    kept = [(block, block.__dict__.get("forward")) for block in blocks]
    try:
        for block in blocks:
            block.forward = partial(wrappers[type(block).__name__], block.forward)
        yield
    finally:
        for block, forward in kept:
            if forward is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = forward


class _PlainTensors(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):  # noqa: D105
        name = getattr(function, "__name__", "")
        if name == "__get__":  # .shape, .device, ...: nothing is computed
            return function(*args, **(kwargs or {}))
        plain = _safe if name in WEIGHTED else _plain
        return lean(function, tuple(plain(a) for a in args), {k: plain(v) for k, v in (kwargs or {}).items()})


def _plain(value: Any) -> Any:
    """Return `value` with a plain tensor on the same memory for each inference tensor and parameter in it."""
    if isinstance(value, Tensor):
        if value.is_inference():
            return _shared(value)
        return value.detach() if isinstance(value, Parameter) else value
    if type(value) in (list, tuple):
        return type(value)(_plain(entry) for entry in value)
    if type(value) is dict:
        return {key: _plain(entry) for key, entry in value.items()}
    return value


def _shared(tensor: Tensor) -> Tensor:
    if type(tensor) not in (Tensor, Parameter):  # quantized weights have no storage of their own
        return tensor.clone()
    plain = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return plain.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())


def _safe(value: Any) -> Any:
    """Like `_plain`, for weights: one that may be overwritten before the backward pass is copied."""
    plain = _plain(value)
    if isinstance(plain, Tensor) and not isinstance(value, Parameter) and _is_streamed(plain):
        return plain.clone()
    return plain


def _is_streamed(tensor: Tensor) -> bool:
    """Tell whether the memory of a weight may be the host's cast buffer, which the next layer's weight
    overwrites.

    Hosts since 0.16 stream weights through such buffers, and dynamic VRAM evicts them after use. A streamed
    weight is neither a parameter nor computed from a leaf that wants gradients.
    """
    return tensor.device.type != "cpu" and tensor.is_leaf and not tensor.requires_grad


def _recomputed(forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """Call `forward` under a checkpoint.

    The host changes its option dictionaries from block to block, so the backward pass gets them as they are
    now. It may run in a thread of its own, which needs its own `differentiable()`.
    """
    later = tuple(_kept(a) for a in args), {key: _kept(value) for key, value in kwargs.items()}
    calls = [later, (args, kwargs)]

    def run() -> Tensor:
        positional, named = calls.pop() if len(calls) > 1 else later
        with differentiable():
            return forward(*map(_made, positional), **{key: _made(value) for key, value in named.items()})

    with set_checkpoint_early_stop(False):  # it stops by an exception, which host code may catch
        return checkpoint(run, use_reentrant=False)


def _enlarged(forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """Call `forward` and note on its result how it was made."""
    out = forward(*args, **kwargs)
    out._made_by = _Enlarged(partial(forward, *args, **kwargs), out.requires_grad)
    return out


@dataclass(frozen=True)
class _Enlarged:
    """A tensor that is made again when it is needed, as a leaf."""

    make: Callable[[], Tensor]
    requires_grad: bool


def _kept(value: Any) -> Any:
    """Return what to keep of an argument until the backward pass."""
    if isinstance(value, Tensor):
        return getattr(value, "_made_by", value)
    return dict(value) if type(value) is dict else value


def _made(value: Any) -> Any:
    """Return the argument that `_kept` kept."""
    if not isinstance(value, _Enlarged):
        return value
    with torch.no_grad():
        made = value.make()
    return made.requires_grad_(value.requires_grad)
