"""Cross-attention guidance in the host's sampling: a run of the source first, then the edit, pulled to its maps.

Both runs are the user's own guider, sampler and schedule, from the same noise. Before a model call of the edit, x takes
a step of gradient descent (attention/guidance_loss.py). Samplers own their x, so the move is told to them through the
estimate: Euler's step to the next noise level s' of the schedule,
    x_next = r x + (1 - r) D,    r = s' / s,
leads from x to where it would lead from the moved x if D is D(moved) + r / (1 - r) * (moved - x). A sampler with other
steps spreads the same move over the schedule's step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from comfy.sampler_helpers import convert_cond
from torch import Tensor

from ...attention.guidance_loss import MapGuidance
from ...attention.words import Prompt
from .attention_hook import edit_attention
from .gradients import calc_conds, checkpointed, control_networks, differentiable, memory_advice
from .prompts import PROMPT_KEY

KEY = "guided_synthesis_attention_guidance"
OUT_OF_MEMORY = (
    "Cross-Attention Guidance had no room for its gradients: switch off scale_1 and scale_2 in the node, or make a "
    "smaller picture or fewer at once."
)


def guide_attention(
    model: Any,
    source: list,
    strength: float,
    start_percent: float,
    end_percent: float,
    scales: frozenset[int],
) -> Any:
    """Return a clone of `model` (MODEL) whose runs are pulled to the attention maps of `source` (CONDITIONING).

    `strength` is the length of the step on the variance-preserving latent x / sqrt(1 + sigma^2), as published; steps
    are taken at noise levels from `start_percent` to `end_percent` of the model's schedule, on maps of `scales`. Runs
    without such a level are the host's own, to the bit. Raises ValueError if `source` has no text of the whole picture.
    """
    sampling = model.get_model_object("model_sampling")
    first, last = sampling.percent_to_sigma(start_percent), sampling.percent_to_sigma(end_percent)
    guidance = _Guidance(_marked(source), scales, strength, first, last)
    patched = edit_attention(model, guidance.maps)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, guidance.around_run)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, guidance.around_call)
    return patched


def _marked(source: list) -> list:
    """Return `source` with a mark on its first text of the whole picture, at the front."""
    for number, (embedding, settings) in enumerate(source):
        if "area" not in settings:
            known = settings.get(PROMPT_KEY)
            mark = replace(known) if known is not None else Prompt("", (), embedding.shape[1])
            rest = [*source[:number], *source[number + 1 :]]
            return [[embedding, {**settings, PROMPT_KEY: mark}], *rest]
    raise ValueError(
        "The source has no text for the whole picture. Connect the conditioning of CLIP Text Encode with the prompt "
        "before the edit."
    )


class _Guidance:
    """What the wrappers of one patched model share; maps are there only while a run lasts."""

    def __init__(
        self, source: list, scales: frozenset[int], strength: float, first: float, last: float
    ) -> None:
        embedding, settings = source[0]
        self.source, self.strength, self.first, self.last = source, strength, first, last
        self.maps = MapGuidance(settings[PROMPT_KEY], embedding.shape[1], scales)
        self.call: Callable | None = None  # what to do around a model call

    def covers(self, sigma: float) -> bool:
        """Tell whether a noise level is guided."""
        return self.last < sigma <= self.first

    def around_run(
        self,
        executor,
        noise,
        latent_image,
        sampler,
        sigmas,
        denoise_mask=None,
        callback=None,
        *args,
        **kwargs,
    ):
        """Wrap the host's sampling of one latent: once with the source, then as asked."""
        guider, levels = executor.class_obj, sigmas.tolist()
        if not any(self.covers(sigma) for sigma in levels[:-1]):
            return executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, *args, **kwargs)
        target = guider.conds
        self.check(target.get("positive") or [])
        passes = (
            (self.record, target | {"positive": convert_cond(self.source)}, _part(callback, 0)),
            (self.guide, target, _part(callback, 1)),
        )
        try:
            for self.call, conds, report in passes:
                guider.conds = {kind: [entry.copy() for entry in entries] for kind, entries in conds.items()}
                result = executor(noise, latent_image, sampler, sigmas, denoise_mask, report, *args, **kwargs)
            return result
        finally:
            self.call, guider.conds = None, target
            self.maps.forget()

    def check(self, positive: list[dict]) -> None:
        """Raise ValueError if no positive condition can be compared with the source."""
        lengths = [
            entry["cross_attn"].shape[1]
            for entry in positive
            if not entry.get("area") and "cross_attn" in entry
        ]
        if self.maps.tokens not in lengths:
            found = ", ".join(f"{length} tokens" for length in lengths) or "none for the whole picture"
            raise ValueError(
                f"The source has {self.maps.tokens} tokens, but no positive conditioning has as many ({found}), so "
                "their attention cannot be compared. Make the positive with Edit Direction, or shorten one prompt."
            )

    def around_call(self, executor, x, timestep, model_options=None, seed=None):
        """Wrap a model call of the sampler at one noise level."""
        model_options = model_options or {}
        sigma = timestep.flatten()[0].item()
        if self.call is None or not self.covers(sigma):
            return executor(x, timestep, model_options, seed)
        return self.call(executor, x, timestep, model_options, seed)

    def record(self, executor, x, timestep, model_options, seed):
        """Denoise the source and keep its maps."""
        with self.maps.recording(timestep.flatten()[0].item()):
            return executor(x, timestep, model_options, seed)

    def guide(self, executor, x, timestep, model_options, seed):
        """Move x, denoise from there, and return the estimate that takes the sampler along."""
        guider, sigma = executor.class_obj, timestep.flatten()[0]
        gradient = self.gradient(guider, x, timestep, model_options)
        if gradient is None:
            return executor(x, timestep, model_options, seed)
        gain = _input_gain(guider.inner_model.model_sampling, sigma)
        move = -self.strength * gradient / gain**2
        denoised = executor(x + move, timestep, model_options, seed)
        schedule = model_options["transformer_options"]["sample_sigmas"]
        ratio = _step_ratio(schedule, sigma)
        return denoised + ratio / (1 - ratio) * move

    def gradient(self, guider: Any, x: Tensor, timestep: Tensor, model_options: dict) -> Tensor | None:
        """Return dL/dx (B, C, h, w), or None if there was nothing to compare at this noise level."""
        model, positive = guider.inner_model, guider.conds["positive"]
        with (
            memory_advice(OUT_OF_MEMORY),
            differentiable(),
            checkpointed(model.diffusion_model, *control_networks(positive)),
            self.maps.comparing(timestep.flatten()[0].item()),
        ):
            leaf = x.clone().requires_grad_()
            calc_conds(model, [positive], leaf, timestep, model_options)
            loss = self.maps.loss()
            return None if loss is None else torch.autograd.grad(loss, leaf)[0]


def _part(callback: Callable | None, number: int) -> Callable | None:
    """Return the report of one of two passes of equal length to `callback`, or None."""
    if callback is None:
        return None
    return lambda step, denoised, x, total: callback(number * total + step, denoised, x, 2 * total)


def _input_gain(sampling: Any, sigma: Tensor) -> float:
    """Return the factor from x to what the network sees: 1 / sqrt(1 + sigma^2) for SD."""
    return sampling.calculate_input(sigma.reshape(1), torch.ones_like(sigma).reshape(1)).item()


def _step_ratio(schedule: Tensor, sigma: Tensor) -> float:
    """Return s' / s of the step of `schedule`, from s to s', that `sigma` lies in: s >= sigma > s'.

    Samplers with levels of their own come close to s', where s' / sigma would be nearly 1 and the move without bounds.
    """
    schedule, level = schedule.tolist(), sigma.item() * (1 - 1e-4)
    above = min((s for s in schedule if s >= level), default=sigma.item())
    return max((s for s in schedule if s < level), default=0.0) / above
