"""Every technique of the pack as two changes of a run: switched on, and switched off at its own switch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from comfy_host.places import DEMO_CLASSIFIER
from compatibility.runs import Run, left_half, outputs, photo, prompt

COARSE = 2  # cells of the squares whose means are compared: a painting is not about details
NEVER = {"start_percent": 0.37, "end_percent": 0.3700001}  # no step lies there


@dataclass(frozen=True)
class Technique:
    """A node of the pack, or a few that belong together."""

    name: str
    on: Callable[[Run], Run]
    off: Callable[[Run], Run] | None = None
    """None: the node has no switch, to leave it out of the graph is the switch."""
    scene: Callable[[Run], Run] = lambda run: run
    """What the technique needs of the graph: a photo, a mask. It is there with the technique and without."""
    worked: Callable[[Run, Tensor, Tensor], bool] = lambda run, found, plain: differs(found, plain)
    """Tells of the run, its latents and those without the technique whether it did what it is for."""
    rounds: bool = False
    """Also switched off it computes several pictures or views at once, which is the same up to rounding."""
    own_sampler: bool = False
    """It brings its own SAMPLER."""
    in_network: bool = False
    """It takes part in, or goes through, the model's own computation."""


def differs(found: Tensor, other: Tensor, share: float = 1e-3) -> bool:
    """Tell whether the last of two pictures (B, 4, h, w) differ by more than rounding."""
    return not near(found[-1:], other[-1:], share)


def near(found: Tensor, other: Tensor, share: float = 1e-3) -> bool:
    """Tell whether two pictures agree up to rounding: batches of other sizes go through other kernels."""
    return torch.allclose(found, other, atol=share * other.abs().max().item(), rtol=0)


def nodes(module: str) -> Any:
    """Return a node file of the pack."""
    import importlib

    return importlib.import_module(f"guided_synthesis.nodes.{module}")


def _patch(module: str, node: str, **widgets: Any) -> Callable[[Run], Run]:
    """Return the change that puts a MODEL -> MODEL node into the chain; inputs that are functions get the run."""

    def change(run: Run) -> Run:
        given = {key: value(run) if callable(value) else value for key, value in widgets.items()}
        return run.changed(model=outputs(getattr(nodes(module), node), model=run.model, **given)[0])

    return change


def _painting_guide(strength: float) -> Callable[[Run], Run]:
    return _patch("painting_guide", "PaintingGuide", vae=_vae, painting=_photo, strength=strength)


def _gradop(output: int) -> Callable[[Run], Run]:
    """Return the change after which GradOP samples, and its `output` is the picture: 0 projected, 2 of the text."""

    def sample(run: Run) -> Tensor:
        texts = {
            "positive": run.positive,
            "negative": run.negative,
            "seed": run.noise.seed,
            "steps": run.steps,
        }
        how = {
            "cfg": run.cfg,
            "sampler_name": run.sampler_name,
            "scheduler": run.scheduler,
            "iterations": 10,
            "t0": 0.3,
        }
        node = nodes("gradop").GradOP
        found = outputs(node, model=run.model, vae=run.vae, painting=photo(), **texts, **how)
        return found[output]["samples"]

    return lambda run: run.changed(sample=sample)


def _low_pass(strength: float) -> Callable[[Run], Run]:
    return _patch(
        "low_pass_guide", "LowPassGuide", vae=_vae, reference=_photo, strength=strength, end_percent=1.0
    )


def _perceptual(strength: float) -> Callable[[Run], Run]:
    return _patch("perceptual_guidance", "PerceptualGuidance", vae=_vae, reference=_photo, strength=strength)


def _vae(run: Run) -> Any:
    return run.vae


def _photo(run: Run) -> Tensor:
    return photo()


def _closer_to_photo(run: Run, found: Tensor, plain: Tensor) -> bool:
    if not run.trained:
        return differs(found, plain)
    wanted = _encoded(run)["samples"]
    shown, usual = (avg_pool2d(latent - wanted, COARSE).square().mean() for latent in (found, plain))
    return bool(shown < usual)


def _injector(kappa: float) -> Callable[[Run], Run]:
    def regions(run: Run) -> Any:
        region = {"prompt": prompt(run)[1], "words": "fox", "mask": left_half(), "weight": 1.0}
        return outputs(nodes("attention_regions").AttentionRegion, **region)[0]

    kappas = {"kappa_start": kappa, "kappa_end": kappa, "end_percent": 1.0}
    return _patch("attention_regions", "CrossAttentionInjector", regions=regions, **kappas)


def _recorder(run: Run) -> Run:
    recorder = nodes("attention_maps").AttentionRecorder
    model, maps = outputs(recorder, model=run.model, prompt=prompt(run)[1])
    return run.changed(model=model, maps=maps)


def _recorded(run: Run, found: Tensor, plain: Tensor) -> bool:
    """The word has a map, and the picture is the one without a recorder."""
    view = nodes("attention_maps").AttentionMapView
    heat = outputs(view, attention_maps=run.maps, latent={"samples": found}, words="fox", threshold=0.0)[1]
    return bool(heat.isfinite().all() and heat.std() > 0) and torch.equal(found, plain)


def _pair(**spans: float) -> Callable[[Run], Run]:
    def guider(run: Run) -> Any:
        pack = nodes("prompt_to_prompt")
        edits = outputs(pack.AttentionEdit, **spans)[0]
        if not spans:
            words = {"source_words": "fox", "target_words": "panda", "start_percent": 0.0}
            edits = outputs(pack.LocalBlendNode, edits=edits, **words)[0]
        texts = {"source": run.positive, "target": run.other, "negative": run.negative}
        return outputs(pack.PromptToPromptGuider, model=run.model, **texts, cfg=run.cfg, edits=edits)[0]

    return _guider(guider)


def _guider(make: Callable[[Run], Any]) -> Callable[[Run], Run]:
    return lambda run: run.changed(guider=make)


def _attention_guidance(strength: float) -> Callable[[Run], Run]:
    node = ("cross_attention_guidance", "CrossAttentionGuidance")
    return _patch(*node, source=lambda run: run.other, strength=strength)


def _other_text(run: Run) -> Run:
    return run.changed(positive=run.other, other=run.positive)


def _edit_direction(strength: float) -> Callable[[Run], Run]:
    def change(run: Run) -> Run:
        words = {"source": "a fox", "target": "a panda", "strength": strength}
        node = nodes("edit_direction").EditDirection
        return run.changed(positive=outputs(node, clip=run.clip, conditioning=run.positive, **words)[0])

    return change


def _encoded(run: Run) -> dict[str, Tensor]:
    """Return LATENT of the photo."""
    with torch.inference_mode():
        return {"samples": run.vae.encode(photo())}


def _inverted(run: Run, method: str) -> tuple:
    """Return LATENT, NOISE and TRAJECTORY of the photo."""
    parts = {"model": run.model, "positive": run.positive, "sigmas": run.sigmas(), "latent": _encoded(run)}
    return outputs(nodes("inversion").Invert, **parts, method=method)


def _direct_inversion(run: Run) -> Run:
    _, noise, trajectory = _inverted(run, "ddim")
    patch = _patch("inversion", "DirectInversion", trajectory=trajectory, mask=left_half())
    return patch(run).changed(noise=noise, positive=run.other)


def _left_half_is_the_photo(run: Run, found: Tensor, plain: Tensor) -> bool:
    (kept, free), (photo_kept, photo_free) = (part.chunk(2, -1) for part in (found, _encoded(run)["samples"]))
    return near(kept, photo_kept) and differs(free, photo_free, 0.1)


def _belm(run: Run) -> Run:
    _, noise, trajectory = _inverted(run, "o-belm")
    sampler = outputs(nodes("inversion").BELMSampler, trajectory=trajectory)[0]
    return run.changed(noise=noise, wrap_sampler=lambda _: sampler, cfg=1.0)


def _the_photo(run: Run, found: Tensor, plain: Tensor) -> bool:
    return near(found, _encoded(run)["samples"], 0.01)


def _noise_of_the_photo(run: Run) -> Run:
    return run.changed(noise=_inverted(run, "ddim")[1])


def _null_text(run: Run) -> Run:
    texts = {"positive": run.positive, "negative": run.negative, "cfg": run.cfg, "inner_steps": 3}
    node, trajectory = nodes("null_text").NullText, _inverted(run, "ddim")[2]
    return run.changed(negative=outputs(node, model=run.model, trajectory=trajectory, **texts)[0])


def _text_guidance(**span: float) -> Callable[[Run], Run]:
    def guider(run: Run) -> Any:
        texts = {"source": run.other, "edit": run.positive, "null": run.negative}
        node = nodes("text_guidance").TextGuidanceGuider
        return outputs(node, model=run.model, **texts, gamma=run.cfg, cfg=run.cfg, **span)[0]

    return _guider(guider)


def _compose(*names: str) -> Callable[[Run], Run]:
    def guider(run: Run) -> Any:
        pack, terms = nodes("composition"), ()
        for name in names:
            terms = outputs(pack.Compose, conditioning=getattr(run, name), composition=terms)[0]
        parts = {"composition": terms, "negative": run.negative, "cfg": run.cfg}
        return outputs(pack.ComposeGuider, model=run.model, **parts)[0]

    return _guider(guider)


def _anagram(*views: str) -> Callable[[Run], Run]:
    def guider(run: Run) -> Any:
        pack, chain = nodes("anagram"), ()
        for view in views:
            chain = outputs(pack.View, view=view, conditioning=run.positive, views=chain)[0]
        return outputs(pack.AnagramGuider, model=run.model, views=chain, negative=run.negative, cfg=run.cfg)[
            0
        ]

    return _guider(guider)


def _repaint(resamplings: int) -> Callable[[Run], Run]:
    def wrap(sampler: Any) -> Any:
        widgets = {"resamplings": resamplings, "jump_length": 1, "end_percent": 1.0}
        return outputs(nodes("repaint").RePaintSampler, sampler=sampler, **widgets)[0]

    return lambda run: run.changed(wrap_sampler=wrap)


def _photo_with_a_hole(run: Run) -> Run:
    return run.changed(latent=_encoded(run) | {"noise_mask": left_half()})


def _loopback(repeats: int) -> Callable[[Run], Run]:
    def wrap(sampler: Any) -> Any:
        return outputs(nodes("loopback").Loopback, sampler=sampler, repeats=repeats)[0]

    return lambda run: run.changed(wrap_sampler=wrap)


def _saliency(blend: float) -> Callable[[Run], Run]:
    def change(run: Run) -> Run:
        parts = {"model": run.model, "vae": run.vae, "classifier": _classifier(), "reference": photo()}
        node = nodes("saliency_noise").SaliencyNoise
        noise = outputs(node, **parts, seed=run.noise.seed, blend=blend, latent=run.latent)[0]
        return run.changed(noise=noise)

    return change


@cache
def _classifier() -> Any:
    from guided_synthesis.nodes.host.classifiers import load_classifier

    with torch.inference_mode():
        return load_classifier(DEMO_CLASSIFIER, None)


def _transform(flip: str) -> Callable[[Run], Run]:
    def change(run: Run) -> Run:
        node = nodes("transform_noise").TransformNoise
        return run.changed(noise=outputs(node, noise=run.noise, flip=flip)[0])

    return change


TECHNIQUES = (
    Technique("GradOP Painting Guide", _painting_guide(1.0), _painting_guide(0.0), worked=_closer_to_photo),
    Technique("GradOP", _gradop(0), _gradop(2), worked=_closer_to_photo),
    Technique("Low-Pass Guide", _low_pass(1.0), _low_pass(0.0), worked=_closer_to_photo),
    Technique("Perceptual Guidance", _perceptual(0.7), _perceptual(0.0), in_network=True),
    Technique("Cross-Attention Injector", _injector(1.0), _injector(0.0), in_network=True),
    Technique("Attention Recorder", _recorder, _recorder, worked=_recorded, in_network=True),
    Technique(
        "Cross-Attention Guidance",
        _attention_guidance(1.0),
        _attention_guidance(0.0),
        scene=_other_text,
        in_network=True,
    ),
    Technique("Edit Direction", _edit_direction(1.0), _edit_direction(0.0)),
    Technique(
        "Prompt-to-Prompt Guider", _pair(), _pair(cross_end=0.0, self_end=0.0), rounds=True, in_network=True
    ),
    Technique("Text Guidance Guider", _text_guidance(), _text_guidance(**NEVER), in_network=True),
    Technique("Compose Guider", _compose("positive", "other"), _compose("positive"), in_network=True),
    Technique(
        "Anagram Guider",
        _anagram("identity", "flip vertical"),
        _anagram("identity", "identity"),
        rounds=True,
        in_network=True,
    ),
    Technique("Direct Inversion", _direct_inversion, worked=_left_half_is_the_photo, in_network=True),
    Technique(
        "Null-Text Optimisation",
        _null_text,
        scene=_noise_of_the_photo,
        worked=_closer_to_photo,
    ),
    Technique("Invert and BELM Sampler", _belm, worked=_the_photo, own_sampler=True),
    Technique("RePaint Sampler", _repaint(2), _repaint(1), scene=_photo_with_a_hole),
    Technique("Loopback Sampler", _loopback(2), _loopback(1)),
    Technique("Saliency Noise", _saliency(0.5), _saliency(1.0)),
    Technique("Transform Noise", _transform("horizontal"), _transform("none")),
)
