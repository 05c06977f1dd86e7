"""The memory counter against cases that can be counted by hand."""

from __future__ import annotations

import gc

import torch
from torch.nn.functional import conv2d
from torch.utils.checkpoint import checkpoint

from memory import PeakMemory

KB = 1024
SHAPE = (16, 16)  # 1 KB in float32


def test_living_tensors_count_and_freed_ones_do_not():
    with PeakMemory() as memory:
        a = torch.zeros(SHAPE)
        b = a + 1
        del a
        c = b * 2
        assert memory.now == 2 * KB
        del b, c
        assert memory.now == 0
    assert memory.peak == 2 * KB


def test_what_was_there_before_and_views_and_writes_in_place_do_not_count():
    outside = torch.zeros(SHAPE)
    with PeakMemory() as memory:
        outside.add_(1)
        outside.T.reshape(4, -1)[0].zero_()
        shared = torch.empty(0).set_(outside.untyped_storage(), 0, SHAPE, (16, 1))
        assert memory.now == 0
        assert (shared + outside).shape == SHAPE
    assert memory.peak == KB


def test_the_peak_of_a_chain_forwards_and_backwards_is_counted_by_hand():
    leaf = torch.rand(SHAPE, requires_grad=True)
    with PeakMemory() as memory:
        out = leaf.exp().exp().exp()  # each keeps its result for the backward pass
        assert (memory.now, memory.peak) == (3 * KB, 3 * KB)
        gradient = torch.ones(SHAPE)
        out.backward(gradient)
        assert memory.now == 3 * KB  # out, gradient and leaf.grad
    assert memory.peak == 6 * KB  # three results, the gradient that was given, and the next two


def test_a_checkpoint_keeps_nothing_and_computes_it_again():
    def chain(x):
        return x.exp().exp().exp()

    leaf = torch.rand(SHAPE, requires_grad=True)
    with PeakMemory() as memory:
        out = checkpoint(chain, leaf, use_reentrant=False)
        assert memory.now == KB
        assert memory.peak == 2 * KB  # an input and an output of exp
        loss = out.sum()
        loss.backward()
    scalars = 2 * loss.element_size()  # the loss and its gradient
    assert memory.peak == 5 * KB + scalars  # out, three results made again, and the gradient of the second


def test_inside_inference_mode_and_across_dtypes_bytes_are_bytes():
    with torch.inference_mode(), PeakMemory() as memory:
        image = torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16)
        weight = torch.zeros(4, 3, 3, 3, dtype=torch.bfloat16)
        assert memory.now == 2 * (3 * 64 + 4 * 27)
        out = conv2d(image, weight, padding=1)
        assert memory.now == 2 * (3 * 64 + 4 * 27 + out.numel())


def test_the_largest_at_the_peak_are_named():
    with PeakMemory() as memory:
        small = torch.zeros(8)
        large = torch.zeros(SHAPE)
        del large
        gc.collect()
        assert small.sum() == 0
    (size, origin), *_ = memory.largest(1)
    assert size == KB and "zeros" in origin and "(16, 16)" in origin
