"""Perceptual guidance in the host's sampling: a post-cfg function, and gradients through the model around its calls.

The networks are opened at the start of a run and closed at its end, and what is remembered lives as long: each run is
entered and left in the host's OUTER_SAMPLE. A call of the model belongs to the step of the schedule whose noise level
is the lowest that is not below its own, so samplers may call it as often as they like.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from comfy.sampler_helpers import convert_cond
from torch import Tensor

from ...guidance.edit_region import EditRegion
from ...guidance.painting import fitted
from ...guidance.perceptual import (
    RMS_CLIP,
    PerceptualObjective,
    moved,
    norm_ratio,
    product,
    pull_of_text,
    rms_clip,
)
from . import checks, predictions
from .decoders import open_decoder
from .encoders import Encoder
from .gradients import checkpointed, control_networks, differentiable, memory_advice, with_plain_attention
from .perceptual import open_lpips
from .restarts import check_interrupt

KEY = "guided_synthesis_perceptual_guidance"
TO_X0, THROUGH_MODEL = GRADIENTS = ("to x0", "through model")
OUT_OF_MEMORY = (
    "Perceptual Guidance had no room for its gradients: choose the gradient to x0, the decoder taesd or linear, or the "
    "net alex in the node, or make a smaller picture or fewer at once."
)


NO_SOURCE = (
    "auto_mask needs to know the text of the reference: connect it to source (CLIP Text Encode with a description of "
    "the reference), or sample with the Text Guidance Guider, or switch auto_mask off."
)
NO_GRADIENT = (
    "Perceptual Guidance finds no way from the estimate back to the model: another patch behind the model, perhaps a "
    "second Perceptual Guidance, cuts it off. Choose the gradient to x0 in the node, or take the other patch away."
)
NAN_OF_MODEL = (
    "The model's estimate is not finite (NaN) at noise level {sigma:.3g}, before Perceptual Guidance touched it. Start "
    "ComfyUI with --fp32-unet, lower the CFG, or choose another sampler."
)
NAN_OF_LOSS = (
    "Perceptual Guidance met numbers that are not finite (NaN) in the decoded picture or its gradient at noise level "
    "{sigma:.3g}. Start ComfyUI with --fp32-vae, or choose the decoder linear or the gradient to x0 in the node."
)


@dataclass(frozen=True)
class Settings:
    """The widgets of the node; `threshold` is None without an automatic mask."""

    strength: float
    start_percent: float
    end_percent: float
    every: int
    net: str
    decoder: str
    gradient: str
    step_rule: str
    threshold: float | None


@dataclass(frozen=True)
class Wanted:
    """What the picture is compared with."""

    vae: Any
    reference: Tensor
    """(1 or B, 3, H, W) in [0, 1]."""
    mask: Tensor | None
    """(1 or B, 1, H, W) in [0, 1]: what must stay."""
    source: list | None
    """CONDITIONING of the reference, for the automatic mask."""


def guide_perceptually(model: Any, wanted: Wanted, settings: Settings) -> Any:
    """Return a clone of `model` (MODEL) whose estimates are moved towards the reference at the chosen steps.

    Runs without such a step are the host's own, to the bit. A run raises ValueError before it samples if the reference
    does not fit its latent, and when it meets numbers that are not finite.
    """
    guidance, patched = _Guidance(model, wanted, settings), model.clone()
    # functions, since the host copies the object of a method with each clone of the model
    patched.add_wrapper_with_key(
        WrappersMP.OUTER_SAMPLE, KEY, lambda *args, **kwargs: guidance.around_run(*args, **kwargs)
    )
    if settings.gradient == THROUGH_MODEL:
        patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, lambda *args: guidance.around_call(*args))
    patched.set_model_sampler_post_cfg_function(lambda args: guidance.after_cfg(args))
    return patched


class _Guidance:
    """What the hooks of one patched model share; `run` is there only while a run lasts."""

    def __init__(self, model: Any, wanted: Wanted, settings: Settings) -> None:
        self.model, self.wanted, self.settings = model, wanted, settings
        sampling = model.get_model_object("model_sampling")
        self.first = sampling.percent_to_sigma(settings.start_percent)
        self.last = sampling.percent_to_sigma(settings.end_percent)
        self.run: _Run | None = None

    def around_run(self, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        """Wrap the host's sampling of one latent."""
        levels = sorted(sigmas.tolist()[:-1], reverse=True)
        inside = [number for number, sigma in enumerate(levels) if self.last < sigma <= self.first]
        chosen = frozenset(inside[:: self.settings.every])
        if not chosen:
            return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        self.check(noise.shape)
        before = self.run
        try:
            with ExitStack() as resources:
                self.run = _Run(executor.class_obj, levels, chosen, self, resources)
                return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
        finally:
            self.run = before

    def check(self, shape: torch.Size) -> None:
        """Raise ValueError unless the pictures fit a latent of `shape`."""
        wanted = self.wanted
        checks.latent_shape(shape, wanted.reference, "reference", wanted.vae.downscale_ratio)
        if wanted.mask is not None:
            checks.batch(wanted.mask.shape[0], shape[0], "mask")

    def around_call(self, executor, x, timestep, model_options=None, seed=None):
        """Wrap a model call of the sampler: it keeps what a gradient with regard to `x` takes."""
        model_options = model_options or {}
        if self.run is None or not self.run.covers(timestep):
            return executor(x, timestep, model_options, seed)
        guider = executor.class_obj
        conds = [entry for entries in guider.conds.values() for entry in entries or []]
        networks = guider.inner_model.diffusion_model, *control_networks(conds)
        plain = with_plain_attention(model_options.get("transformer_options", {}))
        with memory_advice(OUT_OF_MEMORY), differentiable(), checkpointed(*networks):
            leaf = x.detach().clone().requires_grad_()
            options = {**model_options, "transformer_options": plain}
            return executor(leaf, timestep, options, seed).detach()

    def after_cfg(self, args: dict[str, Any]) -> Tensor:
        """Move the estimate of one model call of the host."""
        if self.run is None or not self.run.covers(args["sigma"]):
            return args["denoised"]
        check_interrupt()
        with memory_advice(OUT_OF_MEMORY):
            return self.run.guided(args)


class _Run:
    """One sampling call."""

    def __init__(
        self,
        guider: Any,
        levels: list[float],
        chosen: frozenset[int],
        guidance: _Guidance,
        resources: ExitStack,
    ) -> None:
        self.guider, self.levels, self.chosen = guider, levels, chosen
        self.wanted, self.settings, self.model = guidance.wanted, guidance.settings, guidance.model
        self.resources, self.objective = resources, None
        self.edit = None if self.settings.threshold is None else EditRegion(self.settings.threshold)
        self.kind = f"{KEY}_{id(self)}"
        if self.edit is not None and self.wanted.source is not None:
            # the host prepares these conditions beside its own: areas, ControlNets, sizes of SDXL
            guider.conds = {**guider.conds, self.kind: convert_cond(self.wanted.source)}
            resources.callback(lambda: guider.conds.pop(self.kind, None))

    def covers(self, sigma: Tensor) -> bool:
        """Tell whether calls at noise level `sigma` are guided."""
        level = sigma.flatten()[0].item() * (1 - 1e-4)
        return max(0, sum(above >= level for above in self.levels) - 1) in self.chosen

    def guided(self, args: dict[str, Any]) -> Tensor:
        """Return the estimate of a post-cfg call, moved."""
        masks = self.masks(args)
        gradient = self.gradient(args, masks)
        with torch.no_grad():
            move = self.move(args, gradient, product(masks, gradient))
            return moved(args["denoised"].detach(), move)

    def masks(self, args: dict[str, Any]) -> list[Tensor]:
        """Return what must stay, as masks (1 or B, 1, ., .) to be multiplied."""
        masks = [] if self.wanted.mask is None else [self.wanted.mask]
        if self.edit is not None:
            with torch.no_grad():
                masks.append(self.edit.untouched(*self.estimates(args)))
        return masks

    def estimates(self, args: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the estimates with the source's and with the edited text: as told by the guider, or by one call."""
        told = predictions.told(args)
        if told is not None:
            return told
        if self.wanted.source is None:
            raise ValueError(NO_SOURCE)
        conds = [self.guider.conds[self.kind]]
        about = args["input"].detach(), args["sigma"], args["model_options"]
        (source,) = comfy.samplers.calc_cond_batch(args["model"], conds, *about)
        return source, args["cond_denoised"]

    def gradient(self, args: dict[str, Any], masks: list[Tensor]) -> Tensor:
        """Return the gradient of the loss (B, C, h, w); raise ValueError if it is not finite."""
        with differentiable():
            if self.settings.gradient == TO_X0:
                leaf = args["denoised"].detach().float().clone().requires_grad_()
                losses = self.compare(leaf, masks)
            else:
                leaf, losses = args["input"], self.compare(args["denoised"].float(), masks)
            if not losses.requires_grad:
                raise ValueError(NO_GRADIENT)
            gradient = torch.autograd.grad(losses.sum(), leaf)[0].float()
        if not gradient.isfinite().all():
            finite = bool(args["denoised"].isfinite().all())
            sentence = NAN_OF_LOSS if finite else NAN_OF_MODEL
            raise ValueError(sentence.format(sigma=args["sigma"].flatten()[0].item()))
        return gradient

    def compare(self, denoised: Tensor, masks: list[Tensor]) -> Tensor:
        """Return the losses of `denoised`; the networks are opened by the first call of a run."""
        if self.objective is None:
            self.objective = self.opened(denoised)
        return self.objective(denoised, masks)

    def opened(self, latent: Tensor) -> PerceptualObjective:
        """Open decoder and LPIPS until the end of the run."""
        wanted, settings, enter = self.wanted, self.settings, self.resources.enter_context
        decode = enter(open_decoder(settings.decoder, wanted.vae, self.model))
        if decode.name == "linear":  # an approximation: let it be exact for the reference
            encode = Encoder(wanted.vae, self.model)
            size = (side * encode.pixels_per_cell for side in latent.shape[-2:])
            picture = fitted(wanted.reference.to(latent.device), *size)
            decode = decode.around(encode(picture), picture)
        return PerceptualObjective(decode, enter(open_lpips(settings.net)), wanted.reference)

    def move(self, args: dict[str, Any], gradient: Tensor, where: Tensor) -> Tensor:
        """Return how far the estimate goes down `gradient`, by the step rule."""
        strength = self.settings.strength
        if self.settings.step_rule == RMS_CLIP:
            return rms_clip(gradient, strength, where)
        unconditional = None if args["uncond"] is None else args["uncond_denoised"]
        noise = args["input"] - args["denoised"]
        pull = pull_of_text(args["cond_denoised"], unconditional, args["cond_scale"], noise)
        return norm_ratio(gradient, strength * pull, where)
