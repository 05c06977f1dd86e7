"""Anagrams on the real host: parity, the paper's formula, calls, conditions of each view, company, pixels, failures."""

from types import SimpleNamespace

import pytest
import torch

from real_host.models import as_v_prediction, control_net
from real_host.sampling import SEED, STEPS, conditioning, empty_latent

FOX, APPLE = "a photo of a fox in the snow", "a photo of an apple in the snow"
CFG = 3.0


@pytest.fixture(scope="module")
def pack(host):
    from guided_synthesis.nodes import anagram
    from guided_synthesis.nodes.host import gradients

    return SimpleNamespace(nodes=anagram, gradients=gradients)


@pytest.fixture(scope="module")
def chain(pack, tiny):
    """Return the function that makes VIEWS of (view, text or CONDITIONING, other inputs of the View node)."""

    def make(*links):
        found = None
        for view, text, *others in links:
            widgets = {"angle": 90.0, "rows": 4, "columns": 4, "size": 0.6, "sigma": 1 / 32, "seed": 0}
            widgets |= {"weight": 1.0, "experimental": False} | (others[0] if others else {})
            text = text if text is None else encoded(tiny, text)
            found = pack.nodes.View.execute(view, conditioning=text, views=found, **widgets).args[0]
        return found

    return make


@pytest.fixture(scope="module")
def anagram(host, pack, chain, tiny):
    """Return the function that samples a chain of views: (B, C, h, w)."""

    def make(*links, model=None, sampling=None, **widgets):
        settings = sampling or {}
        return run(host, make.guider(*links, model=model, **widgets), model or tiny[0], **settings)

    def guider(*links, model=None, negative="", **widgets):
        views = links[0] if isinstance(links[0][0], pack.nodes.Reading) else chain(*links)
        settings = {"cfg": CFG, "reduction": "mean", "domain": "latent", "start_percent": 0.0, "end_percent": 1.0}
        found = pack.nodes.AnagramGuider.execute(
            model or tiny[0], views, encoded(tiny, negative), vae=tiny[2], **settings | widgets
        )
        return found.args[0]

    make.guider = guider
    return make


@pytest.fixture(scope="module")
def plain(host, tiny):
    """Return the function that samples one text as the host does: (B, C, h, w)."""

    def make(text, model=None, cfg=CFG, negative="", **settings):
        guider = host.comfy.samplers.CFGGuider(model or tiny[0])
        guider.set_conds(encoded(tiny, text), encoded(tiny, negative))
        guider.set_cfg(cfg)
        return run(host, guider, model or tiny[0], **settings)

    return make


def encoded(tiny, text):
    return conditioning(tiny[1], text) if isinstance(text, str) else text


def run(
    host, guider, model, sampler="euler", latent=None, denoise=1.0, batch=1, mask=None, steps=STEPS, report=None
):
    """Sample with a guider as SamplerCustomAdvanced does."""
    latent = empty_latent(batch=batch)["samples"] if latent is None else latent
    sampling = model.get_model_object("model_sampling")
    sigmas = host.comfy.samplers.calculate_sigmas(sampling, "normal", int(steps / denoise))[-(steps + 1) :]
    with torch.inference_mode():
        noise = host.comfy.sample.prepare_noise(latent, SEED)
        sampler = host.comfy.samplers.sampler_object(sampler)
        more = {"denoise_mask": mask, "callback": report, "disable_pbar": True, "seed": SEED}
        return guider.sample(noise, latent, sampler, sigmas, **more)


@pytest.mark.parametrize("domain", ["latent", "pixel"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m_sde", "euler_ancestral", "euler_cfg_pp"])
def test_one_identity_view_is_the_host_to_the_bit(anagram, plain, cfg, sampler, domain):
    settings = {"sampler": sampler, "batch": 2, "steps": 3}
    found = anagram(("identity", FOX, {"weight": 0.3}), cfg=cfg, sampling=settings, domain=domain)
    assert torch.equal(found, plain(FOX, cfg=cfg, **settings))
