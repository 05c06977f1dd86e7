"""Exact peak memory of tensors, forwards and backwards: what a block of code allocates, counted by storage.

A storage counts from the operation that makes it until it is freed; what existed before the block (weights, inputs)
does not count, nor do views. Not seen is what a kernel needs for itself while it runs (repacked weights, workspaces).

    with PeakMemory() as memory:
        loss(decode(latent)).backward()
    memory.peak                                    # bytes
    memory.largest(3)                              # what lived then: [(bytes, "aten.convolution (1, 128, 512, 512)")]
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MIB = 2**20


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of living storages made inside the block: `now`, and the most there were, `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._alive: dict[
            int, tuple[int, str]
        ] = {}  # by address of the storage; 0 bytes: it was there before
        self._at_peak: list[tuple[int, str]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: D105
        for storage in _storages((args, kwargs)):
            self._note(storage, 0, "")
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._note(storage, storage.nbytes(), f"{function} {tuple(tensor.shape)}")
        if self.now > self.peak:
            self.peak, self._at_peak = self.now, list(self._alive.values())
        return result

    def largest(self, count: int) -> list[tuple[int, str]]:
        """Return bytes and origin of the `count` largest storages that lived at the peak."""
        return sorted(self._at_peak, reverse=True)[:count]

    def _note(self, storage: torch.UntypedStorage, size: int, origin: str) -> None:
        key = storage._cdata
        if key not in self._alive:
            self._alive[key] = (size, origin)
            self.now += size
            weakref.finalize(storage, self._forget, key).atexit = False

    def _forget(self, key: int) -> None:
        self.now -= self._alive.pop(key)[0]


def _storages(values: Any) -> list[torch.UntypedStorage]:
    leaves = tree_leaves(values)
    found = [leaf for leaf in leaves if isinstance(leaf, torch.UntypedStorage)]
    return found + [leaf.untyped_storage() for leaf in leaves if isinstance(leaf, Tensor)]
