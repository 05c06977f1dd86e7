"""A photo edited by its prompt: the Prompt-to-Prompt Guider on a trajectory, with and without null-texts."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from real_host.sampling import conditioning
from tiny_sd import data
from tiny_sd.world import draw, make_spec

STEPS, CFG = 8, 5.0
SOURCE, TARGET = "a photo of a fox and an apple in the snow", "a photo of a panda and an apple in the snow"


@pytest.fixture(scope="module")
def pack(host):
    from guided_synthesis.nodes import inversion, prompt, prompt_to_prompt
    from guided_synthesis.nodes.host import null_text

    return SimpleNamespace(inversion=inversion, prompt=prompt, pair=prompt_to_prompt, null_text=null_text)


@pytest.fixture(scope="module")
def sigmas(host, tiny):
    return host.comfy.samplers.calculate_sigmas(tiny[0].get_model_object("model_sampling"), "karras", STEPS)


@pytest.fixture(scope="module")
def photos(tiny):
    """Return latents of two scenes, (2, 4, 16, 16)."""
    scenes = [draw(make_spec(data.HELD_OUT + 70_000 + index)).image for index in range(2)]
    with torch.inference_mode():
        return tiny[2].encode(torch.stack([torch.from_numpy(scene.copy()) for scene in scenes]).float() / 255)


@pytest.fixture(scope="module")
def marked(pack, tiny):
    def make(text):
        with torch.inference_mode():
            return pack.prompt.PromptWords.execute(tiny[1], text).args[0]

    return make


@pytest.fixture(scope="module")
def trajectory(pack, tiny, marked, sigmas, photos):
    with torch.inference_mode():
        latent = {"samples": photos}
        return pack.inversion.Invert.execute(
            tiny[0], marked(SOURCE), 1.0, sigmas, latent, "ddim", 1e-3, 4
        ).args[2]


@pytest.fixture(scope="module")
def edited(host, pack, tiny, marked, sigmas):
    """Return the function that samples source and target of a trajectory: (2 B, C, h, w)."""

    def make(trajectory, edits=(), noise=None, latent=None, sampler="euler", model=None, levels=sigmas):
        node = pack.pair.PromptToPromptGuider
        texts = marked(SOURCE), marked(TARGET), conditioning(tiny[1], "")
        with torch.inference_mode():
            guider = node.execute(model or tiny[0], *texts, CFG, edits, trajectory).args[0]
            latent = torch.zeros_like(trajectory.latents[0]) if latent is None else latent
            noise = torch.zeros_like(latent) if noise is None else noise
            sampler = host.comfy.samplers.sampler_object(sampler)
            return guider.sample(noise, latent, sampler, levels, disable_pbar=True, seed=1)

    return make


def rms(difference):
    return difference.square().mean().sqrt().item()


@pytest.mark.parametrize("sampler", ["euler", "ddim"])
def test_the_source_is_the_photo_and_the_target_is_not(edited, trajectory, photos, sampler):
    source, target = edited(trajectory, sampler=sampler, latent=photos).chunk(2)
    assert rms(source - photos) < 1e-4 * rms(photos)
    assert rms(target - photos) > 0.1 * rms(photos)


def test_the_noise_that_is_connected_does_not_matter_nor_does_an_empty_latent(edited, trajectory, photos):
    expected = edited(trajectory, latent=photos)
    other = edited(trajectory, noise=torch.randn(2, 4, 16, 16), latent=photos)
    empty = edited(trajectory, latent=torch.zeros_like(photos))
    assert torch.equal(other, expected)
    assert rms(empty - expected) < 1e-3 * rms(expected)


def test_without_a_trajectory_the_guider_is_as_it_was(host, pack, tiny, marked, sigmas, photos):
    texts = marked(SOURCE), marked(TARGET), conditioning(tiny[1], "")
    noise, sampler = torch.randn(2, 4, 16, 16), host.comfy.samplers.sampler_object("euler")
    with torch.inference_mode():
        made = [
            pack.pair.PromptToPromptGuider.execute(tiny[0], *texts, CFG, (), *more)
            .args[0]
            .sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=1)
            for more in ((), (None,))
        ]
    assert torch.equal(*made) and rms(made[0][:2] - photos) > 0.1 * rms(photos)


def test_the_target_starts_at_the_photo_s_noise(host, pack, tiny, edited, trajectory, photos):
    """The same target as the host makes of it with the trajectory's start and the target's text."""
    node = pack.pair.AttentionEdit
    defaults = {
        e.id: e.default for e in node.define_schema().inputs if getattr(e, "default", None) is not None
    }
    never = node.execute(**(defaults | {"kind": "replace", "cross_end": 0.0, "self_end": 0.0})).args[0]
    start = tiny[0].model.process_latent_out(trajectory.latents[0])
    with torch.inference_mode():
        alone = host.comfy.sample.sample_custom(
            tiny[0],
            torch.zeros_like(start),
            CFG,
            host.comfy.samplers.sampler_object("euler"),
            trajectory.sigmas,
            conditioning(tiny[1], TARGET),
            conditioning(tiny[1], ""),
            start,
            disable_pbar=True,
        )
    assert rms(edited(trajectory, never, latent=photos)[2:] - alone) < 5e-3 * rms(alone)


def test_null_texts_in_the_trajectory_replace_the_negative(pack, tiny, edited, trajectory, photos, marked):
    """Texts that all say the negative's own change nothing; others change the target and not the source."""
    text = conditioning(tiny[1], "")[0][0]
    same = text.expand(STEPS, 2, -1, -1)
    other = conditioning(tiny[1], "a drawing of a car at night")[0][0].expand(STEPS, 2, -1, -1)
    plain = edited(trajectory, latent=photos)
    assert rms(edited(replace(trajectory, cfg=CFG, null_text=same), latent=photos) - plain) < 1e-3 * rms(
        plain
    )
    source, target = edited(replace(trajectory, cfg=CFG, null_text=other), latent=photos).chunk(2)
    assert rms(source - photos) < 1e-4 * rms(photos)
    assert rms(target - plain[2:]) > 0.02 * rms(plain)


def test_null_texts_are_those_of_their_own_step(tiny, edited, trajectory, photos):
    """One step's text alone differs: the others must not notice."""
    texts = conditioning(tiny[1], "")[0][0].expand(STEPS, 2, -1, -1).clone()
    texts[-1] = conditioning(tiny[1], "a drawing of a car at night")[0][0]
    seen = []

    def watch(apply_model, args):
        seen.append(args["c"]["c_crossattn"].clone())
        return apply_model(args["input"], args["timestep"], **args["c"])

    model = tiny[0].clone()
    model.set_model_unet_function_wrapper(watch)
    edited(replace(trajectory, cfg=CFG, null_text=texts), model=model, latent=photos)
    given = [any(torch.allclose(row, texts[-1, 0]) for row in call) for call in seen]
    assert given == [False] * (len(seen) - 1) + [True]


def test_local_blend_keeps_the_photo_outside(pack, edited, trajectory, photos):
    node = pack.pair.LocalBlendNode
    defaults = {
        e.id: e.default for e in node.define_schema().inputs if getattr(e, "default", None) is not None
    }
    words = {"source_words": "fox", "target_words": "panda", "threshold": 0.6}
    blend = node.execute(**(defaults | words)).args[0]
    source, target = edited(trajectory, blend, latent=photos).chunk(2)
    same = torch.isclose(source, target, atol=1e-4).flatten(1).float().mean(1)
    assert rms(source - photos) < 1e-4 * rms(photos) and (same > 0.2).all() and (same < 1).all()


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m", "dpmpp_sde"])
def test_samplers_that_do_not_step_along_the_trajectory_are_a_sentence(edited, trajectory, sampler):
    with pytest.raises(ValueError, match="Choose euler"):
        edited(trajectory, sampler=sampler)


def test_other_sigmas_another_size_and_another_cfg_are_a_sentence(edited, trajectory, sigmas):
    with pytest.raises(ValueError, match="same SIGMAS"):
        edited(trajectory, levels=sigmas * 0.9)
    texts = torch.zeros(STEPS, 2, 77, 64)
    with pytest.raises(ValueError, match="null-texts in the trajectory are for cfg 1,"):
        edited(replace(trajectory, null_text=texts))
    with pytest.raises(ValueError, match="1 x 16x16"):
        edited(trajectory, latent=torch.zeros(1, 4, 16, 16))
