"""One small sampling run of the real host, as a graph with SamplerCustomAdvanced does it; techniques change parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from imagenet.weights import install
from real_host.sampling import SEED, empty_latent, scene_painting

SIDE, STEPS, CFG = 64, 6, 2.0
TEXT = "a photo of a fox and an apple in the snow"
OTHER = "a photo of a panda and an apple in the snow"


def outputs(node: Any, **given: Any) -> tuple:
    """Run a node class as the host does, of its old form or new; inputs that are not given have their defaults."""
    with torch.inference_mode():
        if not hasattr(node, "define_schema"):
            return getattr(node(), node.FUNCTION)(**given)
        inputs = node.define_schema().inputs
        defaults = {entry.id: _default(entry) for entry in inputs if _has_default(entry)}
        found = node.execute(**defaults | given)
        return found if isinstance(found, tuple) else found.args


def _has_default(entry: Any) -> bool:
    return getattr(entry, "default", None) is not None or bool(getattr(entry, "options", None))


def _default(entry: Any) -> Any:
    return entry.options[0] if entry.default is None else entry.default


@dataclass(frozen=True, eq=False)
class Run:
    """What a sampling run is made of. Techniques and companions return it with parts replaced."""

    host: SimpleNamespace
    clip: Any
    vae: Any
    model: Any
    positive: list
    other: list
    """A second positive, for techniques that take two."""
    negative: list
    latent: dict[str, Any]
    noise: Any
    trained: bool = True
    """The model paints pictures; one with random weights makes noise of noise."""
    sampler_name: str = "euler"
    scheduler: str = "normal"
    steps: int = STEPS
    cfg: float = CFG
    wrap_sampler: Callable[[Any], Any] = lambda sampler: sampler
    guider: Callable[[Run], Any] | None = None
    """Builds the GUIDER of the finished run; None: the host's CFGGuider."""
    sample: Callable[[Run], Tensor] | None = None
    """Makes the latents of the finished run; None: SamplerCustomAdvanced does."""
    maps: Any = None
    """What the Attention Recorder wrote."""

    def sigmas(self) -> Tensor:
        """Return the schedule that the host's KSampler takes for this sampler."""
        sampler = self.host.comfy.samplers.KSampler
        cpu = torch.device("cpu")
        return sampler(self.model, self.steps, cpu, self.sampler_name, self.scheduler).sigmas

    def sampler(self) -> Any:
        """Return the SAMPLER."""
        return self.wrap_sampler(self.host.comfy.samplers.sampler_object(self.sampler_name))

    def changed(self, **parts: Any) -> Run:
        """Return the run with other parts."""
        return replace(self, **parts)


def plain_run(host: SimpleNamespace, models: tuple[Any, Any, Any], **parts: Any) -> Run:
    """Return the run of the host alone: MODEL, CLIP and VAE of `models`, one text, one seed."""
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    model, clip, vae = models
    run = Run(host, clip, vae, model, [], [], [], empty_latent(SIDE, SIDE), Noise_RandomNoise(SEED), **parts)
    return run.changed(positive=text(run), other=text(run, OTHER), negative=text(run, ""))


@contextmanager
def lpips_weights(host: SimpleNamespace) -> Iterator[None]:
    """Let the host find the network that Perceptual Guidance compares pictures with."""
    folders = host.folder_paths
    with TemporaryDirectory() as folder:
        install(Path(folder), "alexnet")
        folders.filename_list_cache.pop("lpips", None)
        with patch.dict(folders.folder_names_and_paths, {"lpips": ([folder], set())}):
            yield
    folders.filename_list_cache.pop("lpips", None)


def text(run: Run, words: str = TEXT) -> list:
    """Return CONDITIONING of `words` that knows them, by the pack's Prompt with Words."""
    return prompt(run, words)[0]


def prompt(run: Run, words: str = TEXT) -> tuple:
    """Return CONDITIONING and PROMPT of `words`."""
    from guided_synthesis.nodes.prompt import PromptWords

    return outputs(PromptWords, clip=run.clip, text=words)


def photo() -> Tensor:
    """Return IMAGE (1, SIDE, SIDE, 3) of a painted scene."""
    whole = scene_painting()[0].movedim(-1, 1)
    return torch.nn.functional.interpolate(whole, (SIDE, SIDE), mode="area").movedim(1, -1)


def left_half() -> Tensor:
    """Return MASK (1, SIDE, SIDE) of the left half."""
    mask = torch.zeros(1, SIDE, SIDE)
    mask[..., : SIDE // 2] = 1
    return mask


def picture(run: Run) -> Tensor:
    """Sample; returns the latents (B, 4, h, w)."""
    from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced

    if run.sample is not None:
        return run.sample(run)
    parts = {"noise": run.noise, "guider": (run.guider or cfg_guider)(run), "sampler": run.sampler()}
    return outputs(SamplerCustomAdvanced, sigmas=run.sigmas(), latent_image=run.latent, **parts)[0]["samples"]


def cfg_guider(run: Run) -> Any:
    """Return the host's CFGGuider."""
    from comfy_extras.nodes_custom_sampler import CFGGuider

    return outputs(CFGGuider, model=run.model, positive=run.positive, negative=run.negative, cfg=run.cfg)[0]
