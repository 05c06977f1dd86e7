"""Metrics by name, one picture at a time: what a batch needs of memory is what one picture needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ...guidance.metrics import Pair, psnr, ssim
from .gradients import memory_advice
from .perceptual import open_lpips

PSNR, SSIM, LPIPS = METRICS = ("PSNR", "SSIM", "LPIPS")
OUT_OF_MEMORY = "LPIPS had no room: choose net alex in the node, or measure smaller pictures."


def scores(pair: Pair, names: Sequence[str], net: str) -> dict[str, Tensor]:
    """Return for each of `names` (of METRICS) the values (B,) of `pair`, float32 on the CPU.

    LPIPS (with `net`: alex, vgg or squeeze) is that of the two pictures if both show the reference outside of the
    mask. Raises ValueError if a network or its weights are missing, or the pictures are too small.
    """
    progress, rows = comfy.utils.ProgressBar(len(pair)), []
    with _distance(net, LPIPS in names) as distance, memory_advice(OUT_OF_MEMORY):
        measures = {PSNR: psnr, SSIM: ssim, LPIPS: distance}
        for single in pair.singles():
            comfy.model_management.throw_exception_if_processing_interrupted()
            rows.append(torch.cat([measures[name](single).cpu() for name in names]))
            progress.update(1)
    return dict(zip(names, torch.stack(rows, 1), strict=True))


@contextmanager
def _distance(net: str, wanted: bool) -> Iterator[Callable[[Pair], Tensor] | None]:
    with open_lpips(net) if wanted else nullcontext() as lpips:
        yield None if lpips is None else lambda single: lpips(single.inside(), single.reference)
