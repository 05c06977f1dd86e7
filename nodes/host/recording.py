"""Attention maps of whole sampling runs: what ATTENTION_MAPS holds."""

from __future__ import annotations

from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...attention.record import Recorder, Recording
from ...attention.words import Prompt
from .attention_hook import edit_attention

KEY = "guided_synthesis_recording"
KEPT = 4  # runs


class AttentionMaps:
    """The recordings of the last runs of a recorder's model, each with the latent that it led to."""

    def __init__(self, prompt: Prompt, scales: frozenset[int]) -> None:
        """Record the words of `prompt` in layers of `scales`."""
        self.prompt, self._recorder = prompt, Recorder(prompt, scales)
        self._runs: list[tuple[Tensor, Recording]] = []

    def attach(self, model: Any) -> Any:
        """Return a clone of `model` (MODEL) whose runs are recorded."""
        patched = edit_attention(model, self._recorder)
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, self._around_run)
        return patched

    def of(self, latent: Tensor) -> Recording:
        """Return the recording of the run that led to `latent` (B, C, h, w), or of the last run.

        Raises ValueError if there was none.
        """
        if not self._runs:
            raise ValueError(
                "No sampler has run with the recorder's model yet. Connect the Attention Recorder's model to a sampler "
                "and that sampler's latent to this node."
            )
        for result, recording in reversed(self._runs):
            if _same(result, latent):
                return recording
        return self._runs[-1][1]

    def _around_run(self, executor, *args, **kwargs):
        recording = self._recorder.begin()
        try:
            result = executor(*args, **kwargs)
        finally:
            self._recorder.end()
        for sums in recording.sums.values():
            sums.total = sums.total.cpu()
        others = [run for run in self._runs if not _same(run[0], result)]
        self._runs = [*others, (result.cpu(), recording)][-KEPT:]
        return result


def _same(result: Tensor, latent: Tensor) -> bool:
    return result.shape == latent.shape and torch.equal(result, latent.to(result))
