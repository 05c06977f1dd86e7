"""Makes noise with the structure of a picture, by the networks of the host: a classifier, and a VAE's decoder.

On Conditioning the Input Noise for Controlled Image Generation with Diffusion Models (arXiv 2205.03859), Algorithm 1:
the gradients of a classifier at the noise are brought to those at the picture. The paper's noise is a picture; here it
is the latent z, seen by the classifier through the decoder, or such a picture, encoded at the end. The paper's figure 6
has two cheaper sources: the classifier's features, and the sign of its gradient (FGSM). Ours: Grad-CAM, and what comes
out in the contrast of what a prompt paints (guidance/noise_contrast.py).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Any

import comfy.model_management
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor
from torch.nn.functional import interpolate

from ...guidance.gradient_matching import GradientMatching
from ...guidance.inverting import Descent, Inverter, State
from ...guidance.noise_contrast import contrast, middle, recontrasted
from ...guidance.noise_statistics import standardised
from ...guidance.saliency_sources import feature_map, saliency, sign_gradient
from ...guidance.seeds import derived_seed
from .classifiers import Classifier
from .decoders import open_decoder
from .encoders import Encoder
from .first_estimate import first_estimate
from .gradients import memory_advice
from .restarts import check_interrupt, unit_noise
from .sampling import Report

LATENT, PIXELS = SPACES = ("latent", "pixels")
MOMENTS = 8  # pictures of the noise from the start to the end
EVERY = 5  # steps between two previews
BYTES = 20_000  # per px that the classifier sees, twice backwards; on a CPU ResNet18 takes 1900, EfficientNet-B4 18600
START = 1  # which of the seeds that follow from the user's
OUT_OF_MEMORY = (
    "Saliency Noise had no room for its gradients: choose the decoder linear (or taesd), the layers last stages or a "
    "smaller classifier, or make smaller noise."
)
NOT_A_LATENT = (
    "This model (flow matching) mixes noise and picture, so a LATENT that is sampled without adding noise cannot carry "
    "the noise of Saliency Noise. Use its output noise instead, with SamplerCustomAdvanced."
)


@dataclass(frozen=True)
class Scene:
    """What the noise is to be like, and the networks that look at it."""

    model: Any
    vae: Any
    classifier: Classifier
    reference: Tensor
    """(1, 3, H, W) in [0, 1], of the size of the picture to be made."""
    label: int
    decoder: str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return the shape (1, C, h, w) of the noise."""
        height, width = (side // self.vae.downscale_ratio for side in self.reference.shape[-2:])
        return 1, self.vae.latent_channels, height, width

    def check_salient(self) -> None:
        """Raise ValueError if nothing in the reference speaks for the label."""
        _ = self.salient

    @cached_property
    def salient(self) -> Tensor:
        """Return how salient each cell of the noise is for the label, (1, 1, h, w) in [0, 1].

        Raises ValueError if nothing is.
        """
        seen = saliency_mask(self.classifier, self.reference, self.label)
        if not bool((seen > 0).any()):
            label = self.classifier.labels[self.label]
            raise ValueError(
                f"Nothing in the reference speaks for the label {label} (Grad-CAM is 0 everywhere), so it has no "
                "salient part. Choose another label or reference."
            )
        return _sized(seen[:, None], self.shape)


@dataclass(frozen=True)
class Matching:
    """How the gradients are matched: `descent`, and the widgets `layers`, `space` and `seed` of the node."""

    descent: Descent
    layers: str
    space: str
    seed: int


@dataclass(frozen=True)
class Structure:
    """What was found, on the CPU."""

    noise: Tensor
    """(1, C, h, w), standardised."""
    frames: Tensor
    """(F, C, h, w), standardised: how it came to be."""
    cosines: tuple[float, float] | None = None
    """Of the gradients with the reference's: at the start, and of `noise`; None where none were matched."""
    remembered: bool = False
    """Whether an equal run had found it already."""


def from_features(scene: Scene) -> Structure:
    """Return the last features of the classifier, averaged over its channels, as the structure of every channel."""
    with scene.classifier.opened() as network:
        features = feature_map(network, scene.classifier.prepare, scene.reference.to(_device(scene))).cpu()
    return _found(_sized(features, scene.shape).expand(scene.shape))


def from_saliency(scene: Scene) -> Structure:
    """Return where the classifier sees the label (Grad-CAM) as the structure of every channel."""
    return _found(scene.salient.expand(scene.shape))


def from_sign(scene: Scene) -> Structure:
    """Return the sign of the gradient of the label's loss at the encoded reference (FGSM)."""
    with ExitStack() as opened, memory_advice(OUT_OF_MEMORY):
        network = opened.enter_context(scene.classifier.opened(_memory(scene)))
        decode = opened.enter_context(open_decoder(scene.decoder, scene.vae, scene.model))
        latent = Encoder(scene.vae, scene.model)(scene.reference.to(_device(scene)))
        decode = decode.around(latent, scene.reference)
        sign = sign_gradient(network, scene.classifier.prepare, decode, latent, scene.label)
    return _found(sign.cpu())


def from_gradients(scene: Scene, matching: Matching, report: Report) -> Structure:
    """Return noise whose gradients are those of the reference: at once, if the latest run was equal.

    Goes on where that was interrupted. Raises the host's interrupt; what was reached by then is kept until another
    run ends or is interrupted.
    """
    key = _key(scene, matching)
    known = _latest.get(key)
    if isinstance(known, Structure):
        return replace(known, remembered=True)
    with ExitStack() as opened, memory_advice(OUT_OF_MEMORY):
        network = opened.enter_context(scene.classifier.opened(_memory(scene)))
        decode = opened.enter_context(open_decoder(scene.decoder, scene.vae, scene.model))
        with torch.inference_mode(False), torch.enable_grad():
            reference, prepare = scene.reference.to(_device(scene)), scene.classifier.prepare
            objective = GradientMatching(network, prepare, reference, scene.label, matching.layers)
            run = _Run(scene, matching, decode, objective, known)
            try:
                found = run.finished(report)
            except comfy.model_management.InterruptProcessingException:
                _keep(key, run.begun())
                raise
    _keep(key, found)
    return found


def with_contrast(found: Structure, scene: Scene, guider: Any, seed: int) -> Structure:
    """Return `found`, which `scene` gave, with its salient part in the contrast of what GUIDER paints.

    One call of the guider's model; `seed` is that of the noises it sees. Raises ValueError if nothing is salient.
    """
    direction = contrast(first_estimate(guider, scene.shape, seed), middle(*scene.shape[-2:]))
    noise, frames = (recontrasted(part, scene.salient, direction) for part in (found.noise, found.frames))
    return replace(found, noise=noise, frames=frames)


def saliency_mask(classifier: Classifier, reference: Tensor, label: int) -> Tensor:
    """Return MASK (1, H, W) in [0, 1] of `reference` (1, 3, H, W): where the classifier sees the label."""
    with classifier.opened() as network:
        picture = reference.to(classifier.patcher.load_device)
        return saliency(network, classifier.prepare, picture, label)[:, 0].cpu()


def shown(frames: Tensor, model: Any, vae: Any) -> Tensor:
    """Return IMAGE (F, H, W, 3) of the noise `frames` (F, C, h, w), which have the power of a clean latent."""
    pictures = []
    for frame in frames.split(1):
        check_interrupt()
        pictures.append(vae.decode(model.model.process_latent_out(frame)).float().cpu())
    return torch.cat(pictures)


def start_of_sampling(model: Any, noise: Tensor) -> Tensor | ExecutionBlocker:
    """Return the samples of a LATENT from which MODEL, adding no noise, starts as it would with `noise`.

    At the highest noise level, as the host's noise scaling says. Models that scale the latent as well cannot: what
    is returned then lets the nodes behind it fail with a sentence.
    """
    sampling, nothing = model.get_model_object("model_sampling"), torch.zeros_like(noise)
    sigma = torch.as_tensor(sampling.sigma_max).float().cpu().reshape(1)
    start = sampling.noise_scaling(sigma, noise, nothing, True)
    if not torch.allclose(sampling.noise_scaling(sigma, nothing, start, True), start):
        return ExecutionBlocker(NOT_A_LATENT)
    return model.model.process_latent_out(start)


@dataclass(frozen=True)
class _Begun:
    """An interrupted run, on the CPU."""

    state: State
    frames: dict[int, Tensor]


_latest: dict[Any, _Begun | Structure] = {}  # the latest run, by its key: interrupted, or finished


def _keep(key: Any, reached: _Begun | Structure) -> None:
    _latest.clear()
    _latest[key] = reached


class _Run:
    """A descent from noise, with its progress."""

    def __init__(
        self,
        scene: Scene,
        matching: Matching,
        decode: Callable[[Tensor], Tensor],
        objective: GradientMatching,
        begun: _Begun | None,
    ) -> None:
        self._encode, self._steps = Encoder(scene.vae, scene.model), matching.descent.steps
        self._pixels, self._classifier = matching.space == PIXELS, scene.classifier
        shape = scene.reference.shape if self._pixels else scene.shape
        self._start = unit_noise(
            torch.empty(shape, device=_device(scene)), derived_seed(matching.seed, START)
        )
        self._render, self._objective = self._picture if self._pixels else decode, objective
        state, self._frames = (None, {}) if begun is None else (begun.state, dict(begun.frames))
        self._inverter = Inverter(self._start, self._render, objective, matching.descent, state)

    def finished(self, report: Report) -> Structure:
        """Take the steps that are left."""
        inverter, steps = self._inverter, self._steps
        moments = set(torch.linspace(0, steps, MOMENTS).round().int().tolist())
        while (step := inverter.done) < steps:
            check_interrupt()
            if step in moments:
                self._frames[step] = self._noise(inverter.latent)
            inverter.step()
            if step % EVERY == 0 or step == steps - 1:
                report(step, self._seen(), None, 0)
        noise = self._noise(inverter.best)
        cosines = self._cosine(self._start), self._cosine(inverter.best)
        return Structure(noise, torch.cat([*self._frames.values(), noise]), cosines)

    def begun(self) -> _Begun:
        """Return what it takes to go on."""
        return _Begun(self._inverter.state(), dict(self._frames))

    def _seen(self) -> Tensor:
        """Return what the preview shows: the noise, or in pixels the latest that was encoded."""
        return next(reversed(self._frames.values())) if self._pixels else self._noise(self._inverter.latent)

    def _cosine(self, latent: Tensor) -> float:
        return 1 - self._objective(self._render(latent)).item()

    def _picture(self, noise: Tensor) -> Tensor:
        """Return RGB of `noise` in the classifier's own units, of mean 0 and deviation 1 over what it learnt from."""
        scales = self._classifier.mean, self._classifier.std
        mean, std = (noise.new_tensor(values)[:, None, None] for values in scales)
        return mean + std * noise

    def _noise(self, latent: Tensor) -> Tensor:
        """Return the noise (1, C, h, w) that the optimised tensor stands for."""
        return standardised((self._encode(self._picture(latent)) if self._pixels else latent).cpu())


def _found(structure: Tensor) -> Structure:
    noise = standardised(structure)
    return Structure(noise, noise)


def _sized(features: Tensor, shape: tuple[int, ...]) -> Tensor:
    return interpolate(features, shape[-2:], mode="bilinear", antialias=True, align_corners=False)


def _device(scene: Scene) -> torch.device:
    return scene.classifier.patcher.load_device


def _memory(scene: Scene) -> float:
    """Return the bytes that gradients of the classifier's gradients take.

    Each as large as its weights: a copy of them, the reference's gradient, a picture's, and the gradient of that.
    """
    pixels = scene.classifier.size**2 * max(scene.shape[-2:]) / min(scene.shape[-2:])
    return BYTES * pixels + 4 * scene.classifier.patcher.model_size()


def _key(scene: Scene, matching: Matching) -> tuple:
    """Return what tells runs apart, without holding a network or picture."""
    networks = scene.model.model, scene.vae.first_stage_model, scene.classifier.patcher.model
    picture = sha256(scene.reference.cpu().numpy().tobytes()).digest()
    return *map(weakref.ref, networks), picture, scene.shape, scene.label, scene.decoder, matching
