"""What the Anagram Guider costs on SD 1.5 at full size (random weights): a step with n views against a batch of n."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from benchmarks.study import defaults
from full_size import models
from guided_synthesis.nodes import anagram

SIZE, CFG, STEPS, RUNS = 256, 5.0, 2, 3  # px
VIEWS = ("identity", "rotate 180", "flip vertical")


class Bench:
    """The models, and timed runs."""

    def __init__(self, size: int = SIZE) -> None:
        self.model, self.vae, self.cells = models.sd15_unet(), models.sd_vae(), size // 8
        self.texts = [models.conditioning(self.model, seed) for seed in range(len(VIEWS) + 1)]

    def guider(self, model: Any, count: int, domain: str) -> Any:
        """Return the GUIDER of `count` views."""
        chain: Any = ()
        for name, text in zip(VIEWS[:count], self.texts, strict=False):
            settings = defaults(anagram.View) | {"view": name, "conditioning": text, "views": chain}
            chain = anagram.View.execute(**settings).args[0]
        settings = defaults(anagram.AnagramGuider) | {"domain": domain, "cfg": CFG}
        return anagram.AnagramGuider.execute(model, chain, self.texts[-1], vae=self.vae, **settings).args[0]

    def plain(self, model: Any) -> Any:
        """Return the host's GUIDER."""
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(self.texts[0], self.texts[-1])
        guider.set_cfg(CFG)
        return guider

    @torch.inference_mode()
    def steps(self, batch: int, views: int, domain: str = anagram.LATENT) -> list[float]:
        """Return the CPU seconds of the steps of a run; without views, the host's own."""
        seconds: list[float] = []

        def around_call(executor, *args):
            began = time.process_time()
            out = executor(*args)
            seconds.append(time.process_time() - began)
            return out

        model = self.model.clone()
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "clock", around_call)
        guider = self.guider(model, views, domain) if views else self.plain(model)
        latent = torch.zeros(batch, 4, self.cells, self.cells)
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
        sampling = model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", STEPS)
        euler = comfy.samplers.sampler_object("euler")
        guider.sample(noise, latent, euler, sigmas, disable_pbar=True, seed=0)
        return seconds


def row(bench: Bench, views: int) -> str:
    """Return the line of `views` views, timed in turns with a batch of as many."""
    plain, ours = [], []
    for _ in range(RUNS):
        plain += bench.steps(batch=views, views=0)
        ours += bench.steps(batch=1, views=views)
    pixel = median(bench.steps(batch=1, views=views, domain=anagram.PIXEL))
    before, after = median(plain), median(ours)
    cells = [
        str(views),
        f"{before:.2f}",
        f"{after:.2f}",
        f"{after / before:.3f}",
        "1.05",
        f"{pixel - after:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def run() -> str:
    """Time the steps and return the section of RESULTS.md."""
    torch.set_num_threads(1)
    bench = Bench()
    bench.steps(batch=1, views=0)  # loads the model
    lines = [row(bench, views) for views in (2, 3)]
    return (
        "\n\n".join([TITLE, "`python run.py bench illusions_cost`", "\n".join([HEAD, *lines]), LEGEND]) + "\n"
    )


TITLE = f"## Cost of the Anagram Guider: SD 1.5 at {SIZE} px"
HEAD = """| views | s of a step, plain batch of as many | with the views | ratio | goal | pixel: seconds more |
| ---: | ---: | ---: | ---: | ---: | ---: |"""
LEGEND = f"""CPU seconds of a step, one thread, full-size UNet and VAE with random weights, CFG {CFG:g}: the median of
{RUNS} runs of {STEPS} steps, in turns with the host's own sampling of a batch. Pixel: what a step of the domain pixel
takes more, for a decode and two encodes of each view."""
