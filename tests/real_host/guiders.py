"""Guiders on the real host: sampled as SamplerCustomAdvanced does, watched, and with conditions for a part."""

import torch

from real_host.sampling import SEED, STEPS, conditioning, empty_latent


def encoded(tiny, text):
    """Return CONDITIONING of a text, or what is CONDITIONING already."""
    return conditioning(tiny[1], text) if isinstance(text, str) else text


def run(
    host,
    guider,
    model,
    sampler="euler",
    latent=None,
    denoise=1.0,
    batch=1,
    mask=None,
    steps=STEPS,
    report=None,
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


def near(found, expected, share=2e-3):
    """Batches of other sizes go through other kernels, and sums have another order."""
    return torch.allclose(found, expected, atol=share * expected.abs().max().item())


def counting_calls(model, calls):
    """Return a clone of MODEL that notes what each call of the UNet holds: numbers of conditions."""

    def wrapper(apply_model, args):
        calls.append(args["cond_or_uncond"])
        return apply_model(args["input"], args["timestep"], **args["c"])

    patched = model.clone()
    patched.set_model_unet_function_wrapper(wrapper)
    return patched


def seen_after_cfg(model, seen):
    """Return a clone of MODEL that notes what post-cfg functions get."""
    patched = model.clone()
    patched.set_model_sampler_post_cfg_function(lambda args: seen.append(args) or args["denoised"])
    return patched


def left_half(height=16):
    """Return a MASK (1, `height`, 16) of the left half."""
    mask = torch.zeros(1, height, 16)
    mask[..., :8] = 1
    return mask


def masked(text, mask):
    """Return CONDITIONING that counts only within `mask`."""
    return [[part, {**settings, "mask": mask, "mask_strength": 1.0}] for part, settings in text]


def plain_sampler(host, tiny, cfg):
    """Return the function that samples one text as the host does: (B, C, h, w)."""

    def make(text, model=None, cfg=cfg, negative="", **settings):
        guider = host.comfy.samplers.CFGGuider(model or tiny[0])
        guider.set_conds(encoded(tiny, text), encoded(tiny, negative))
        guider.set_cfg(cfg)
        return run(host, guider, model or tiny[0], **settings)

    return make
