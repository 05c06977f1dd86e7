"""The GUIDER that samples a source and a target picture side by side, so that the target can take the source's maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import lcm
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ...attention.blend import Blender, LocalBlend, blended
from ...attention.edits import REFINE, REPLACE, Edit, PromptToPrompt
from ...attention.pairs import Halved, Pair
from ...guidance.trajectory import Trajectory
from .attention_hook import KEY, cross_attention_layers, edit_attention, progress_of, share_self_attention
from .direct_inversion import keep_source
from .inversion import noise_over
from .null_text import prepared, scheduled, step_ranges
from .prompts import PROMPT_KEY
from .tied_noise import TiedNoise

Conditioning = list  # the host's: [[tensor, settings], ...]


class PairGuider(comfy.samplers.CFGGuider):
    """Samples for each latent the source's picture and the target's, sources first, from the same noise.

    One batch, one run of the user's sampler; noise that the sampler adds is the same for both. With a trajectory the
    sources are the pictures that were inverted: sampling starts from their noise, whatever noise is given, and each
    step leads them along it (direct inversion), with its null-texts as the negative if it has them.
    """

    def __init__(
        self,
        model: Any,
        source: Conditioning,
        target: Conditioning,
        negative: Conditioning,
        edits: tuple[Edit, ...],
        blend: LocalBlend | None,
        trajectory: Trajectory | None = None,
    ) -> None:
        """Take the MODEL, the conditions, the edits and the inverted pictures.

        Raises ValueError for conditions, words or trajectories that do not fit.
        """
        found = _prompts(source, target)
        if trajectory is not None:
            model = keep_source(model, trajectory)
            negative = _fitted(negative, target, trajectory, model)
        self._trajectory = trajectory
        self.pairs = _for_those_that_know_the_words(
            found, lambda pair: PromptToPrompt(pair, edits or (_usual(pair),))
        )
        scales = frozenset(
            layer.scale for layer in cross_attention_layers(model.model.diffusion_model).values()
        )
        self._blender = (
            _for_those_that_know_the_words(found, lambda pair: Blender(pair, blend, scales))[0]
            if blend
            else None
        )
        super().__init__(_patched(model, self.pairs, self._blender))
        self._noise: TiedNoise | None = None
        self._blending = False
        self._conditions = source, target, negative

    def sample(self, noise: Tensor, latent_image: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Sample `noise` and `latent_image` (B, C, h, w) as sources and as targets: (2 B, C, h, w)."""
        source, target, negative = self._conditions
        if self._trajectory is not None:
            self._trajectory.check_shape(noise.shape)
            noise = noise_over(self.model_patcher, self._trajectory, latent_image)
        count = noise.shape[0]
        self.set_conds([_paired(*both, count) for both in zip(source, target, strict=True)], negative)
        try:
            return super().sample(*(torch.cat([part] * 2) for part in (noise, latent_image)), *args, **kwargs)
        finally:
            self.original_conds = {}
            if self._blender:
                self._blender.clear()

    def inner_sample(self, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Sample with noise that is the same for a source and its target, and blend what comes out."""
        self._noise, self._blending = TiedNoise(noise.shape[0]), False
        try:
            with self._noise:
                samples = super().inner_sample(noise, *args, **kwargs)
        finally:
            self._noise = None
        return self._blended(samples)

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict | None = None, seed: Any = None):
        """Return the estimate (2 B, C, h, w).

        Once the local blend has begun, the model is shown targets that outside of its mask are the sources, and there
        their estimates are those of the sources.
        """
        if self._blender is not None:
            progress = progress_of(self.inner_model.model_sampling, timestep)
            self._blending = progress >= self._blender.blend.start
        with self._noise.paused():
            denoised = super().predict_noise(self._blended(x), timestep, model_options or {}, seed)
        return self._blended(denoised)

    def _blended(self, latents: Tensor) -> Tensor:
        """Return `latents` with the targets' outside of the mask so far the sources', if the blend has begun."""
        mask = self._blender.mask(*latents.shape[-2:]) if self._blending and self._blender else None
        return latents if mask is None else blended(latents, mask)


def _patched(model: Any, pairs: list[PromptToPrompt], blender: Blender | None) -> Any:
    """Return a clone of `model` with the editors of the pairs; those that are there see each half on its own."""
    patched = share_self_attention(model, pairs[0])
    options = patched.model_options["transformer_options"]
    if KEY in options:
        options[KEY] = tuple(replace(kept, member=Halved(kept.member)) for kept in options[KEY])
    for editor in (*pairs, *([blender] if blender else [])):
        patched = edit_attention(patched, editor)
    return patched


def _fitted(negative: Conditioning, target: Conditioning, trajectory: Trajectory, model: Any) -> Conditioning:
    """Return the null-texts of `trajectory` with the settings of `negative`, or `negative` if there are none."""
    if trajectory.null_text is None:
        return negative
    ranges = step_ranges(trajectory.sigmas, model.get_model_object("model_sampling"))
    return scheduled(prepared(negative, target), trajectory.null_text, ranges)


def _usual(pair: Pair) -> Edit:
    """Return the edit where none is asked for."""
    return Edit(REPLACE if len(pair.source.words) == len(pair.target.words) else REFINE)


def _prompts(source: Conditioning, target: Conditioning) -> list[Pair]:
    """Return the pairs of prompts of conditions that are sampled side by side, each once."""
    if len(source) != len(target):
        raise ValueError(
            f"source has {len(source)} conditions and target {len(target)}; they are sampled side by side. Build "
            "both in the same way, with as many areas, masks and combined prompts."
        )
    known = [[settings.get(PROMPT_KEY) for _, settings in conditions] for conditions in (source, target)]
    for name, prompts in zip(("source", "target"), known, strict=True):
        if not any(prompts):
            raise ValueError(
                f"{name} does not know its words. Make it with the Prompt with Words node of this pack (in place of "
                "CLIP Text Encode)."
            )
    pairs = list(dict.fromkeys(Pair(a, b) for a, b in zip(*known, strict=True) if a and b))
    if not pairs:
        raise ValueError(
            "Of the combined conditions of source and target, no two in the same place both know their words. Combine "
            "them in the same order."
        )
    return pairs


def _for_those_that_know_the_words(pairs: list[Pair], make: Callable[[Pair], Any]) -> list[Any]:
    """Return make(pair) of every pair for which it does not raise; raise as the first does if it does for all."""
    made, errors = [], []
    for pair in pairs:
        try:
            made.append(make(pair))
        except ValueError as error:
            errors.append(error)
    if not made:
        raise errors[0]
    return made


def _paired(source: list, target: list, count: int) -> list:
    """Return one condition for a batch of `count` sources and as many targets, with the target's other settings."""
    (a, of_source), (b, of_target) = source, target
    length = lcm(a.shape[1], b.shape[1])
    text = torch.cat([_repeated(part, count, length) for part in (a, b.to(a))])
    settings = {key: value for key, value in of_target.items() if key != PROMPT_KEY}
    prompts = [own.get(PROMPT_KEY) for own in (of_source, of_target)]
    if all(prompts):
        settings[PROMPT_KEY] = Pair(*prompts)
    pooled = [own.get("pooled_output") for own in (of_source, of_target)]
    if all(part is not None for part in pooled):
        settings["pooled_output"] = torch.cat([_each(part, count) for part in pooled])
    return [text, settings]


def _repeated(text: Tensor, count: int, length: int) -> Tensor:
    """Return `text` (n, T, D) as (count, length, D): repeated, as the host does where lengths differ."""
    return _each(text, count).repeat(1, length // text.shape[1], 1)


def _each(part: Tensor, count: int) -> Tensor:
    """Return `part` (n, ...) for `count` pictures, over and over."""
    return part[torch.arange(count, device=part.device) % part.shape[0]]
