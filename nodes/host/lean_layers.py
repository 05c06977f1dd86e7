"""Layers that keep less for the backward pass than autograd keeps, with the same gradients at no further cost.

Autograd keeps the input of a convolution for the gradient of its weight, and what a group norm makes for the SiLU after
it. Weights are fixed here, and a norm is quickly made again from its own input, which autograd keeps as well: of
    x -> norm -> silu -> convolution
x alone stays. That is a third of the activations of a VAE or UNet block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, group_norm, silu


def lean(function: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """Call a torch `function`; convolutions, group norms and the SiLUs after them keep less for the backward pass."""
    if torch.is_grad_enabled() and args and isinstance(args[0], Tensor) and args[0].requires_grad:
        if replaced := _LEAN.get(function):
            return replaced(*args, **kwargs)
    return function(*args, **kwargs)


class _Norm(NamedTuple):
    """How a group norm's output was made, and its version: written to since, it is something else."""

    x: Tensor
    groups: int
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    version: int = 0


def _convolution(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
    fixed = not weight.requires_grad and (bias is None or not bias.requires_grad)
    if x.ndim != 4 or isinstance(padding, str) or not fixed:
        return conv2d(x, weight, bias, stride, padding, dilation, groups)
    return _Convolution.apply(x, weight, bias, stride, padding, dilation, groups)


def _group_norm(input, num_groups, weight=None, bias=None, eps=1e-5) -> Tensor:
    out = group_norm(input, num_groups, weight, bias, eps)
    if not any(t is not None and t.requires_grad for t in (weight, bias)):
        out._norm = _Norm(input.detach(), num_groups, weight, bias, eps, out._version)
    return out


def _silu(input, inplace=False) -> Tensor:
    norm = getattr(input, "_norm", None)
    if norm is None or norm.version != input._version:
        return silu(input, inplace)
    return _SiLU.apply(input, norm, inplace)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, *settings):
        ctx.save_for_backward(weight)
        ctx.shape, ctx.settings = x.shape, settings
        return conv2d(x, weight, bias, *settings)

    @staticmethod
    def backward(ctx, gradient):
        (weight,) = ctx.saved_tensors
        return torch.nn.grad.conv2d_input(ctx.shape, weight, gradient, *ctx.settings), *[None] * 6


class _SiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, normed, norm, inplace):
        ctx.save_for_backward(norm.x, norm.weight, norm.bias)
        ctx.groups, ctx.eps = norm.groups, norm.eps
        if inplace:
            ctx.mark_dirty(normed)
        return silu(normed, inplace)

    @staticmethod
    @once_differentiable  # it writes where it can
    def backward(ctx, gradient):
        x, weight, bias = ctx.saved_tensors
        normed = group_norm(x, ctx.groups, weight, bias, ctx.eps)
        return torch.ops.aten.silu_backward.grad_input(gradient, normed, grad_input=normed), None, None


_LEAN = {torch.conv2d: _convolution, group_norm: _group_norm, silu: _silu}
