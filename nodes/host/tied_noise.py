"""Noise that samplers add on the way, the same for both halves of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class TiedNoise(TorchFunctionMode):
    """Lets random batches of `size` consist of two equal halves, as far as they are made with randn or randn_like.

    The first half is what a batch of half the size would get from the same generator, so that a sampler makes of the
    first half of a batch what it would make of it alone.
    """

    def __init__(self, size: int) -> None:
        """Take the size of the batch."""
        super().__init__()
        self._size = size

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Halve the size of a batch of noise and double what comes out."""
        kwargs = kwargs or {}
        if function is torch.randn_like and args and args[0].shape[:1] == (self._size,):
            return _twice(function(args[0][: self._size // 2], *args[1:], **kwargs))
        if function is torch.randn:
            sizes = kwargs.pop("size", None) or (args[0] if args and not isinstance(args[0], int) else args)
            half = self._size // 2 if len(sizes) > 1 and sizes[0] == self._size else None
            made = function((half or sizes[0], *sizes[1:]) if sizes else (), **kwargs)
            return _twice(made) if half else made
        return function(*args, **kwargs)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave it for the block: what the network draws is its own affair, and it runs at full speed."""
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()


def _twice(half: torch.Tensor) -> torch.Tensor:
    return torch.cat([half, half])
