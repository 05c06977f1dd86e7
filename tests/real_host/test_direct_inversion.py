"""Direct inversion on the real host: the photo comes back whatever the prompt, the rest of the batch is the host's."""

import copy
import gc
from types import SimpleNamespace

import pytest
import torch

from guided_synthesis.guidance.trajectory import Trajectory
from real_host.models import as_v_prediction
from real_host.sampling import SEED, conditioning, empty_latent, sample, scene_painting
from real_host.test_inversion import as_half, counted, levels, of_sdxl, rms, run, sampled
from tiny_sd import data
from tiny_sd.world import draw, make_spec

CFG, STEPS, SCHEDULER = 7.5, 10, "karras"
WRONG = "a photo of a panda on a beach"
SOURCE, EDIT = "a photo of a fox and an apple in the snow", "a photo of a panda and an apple in the snow"


@pytest.fixture(scope="module")
def node(host):
    from guided_synthesis.nodes import inversion

    return inversion


@pytest.fixture(scope="module")
def photo(tiny):
    """Return a picture that the model has never seen, as LATENT samples, with its prompt."""
    spec = make_spec(data.HELD_OUT + 200)
    image = torch.from_numpy(draw(spec).image.copy()).float()[None] / 255
    with torch.inference_mode():
        latent = tiny[2].encode(image)
    positive, negative = (conditioning(tiny[1], text) for text in (spec.caption, ""))
    return SimpleNamespace(latent=latent, positive=positive, negative=negative)


@pytest.fixture(scope="module")
def inverted(node, host, tiny, photo):
    """Return what Invert makes of the photo with ddim at CFG 1: latent, noise, trajectory."""
    return run(node, host, tiny[0], photo, "ddim").args


def kept(node, model, trajectory):
    """The node's MODEL."""
    with torch.inference_mode():
        return node.DirectInversion.execute(model, trajectory).args[0]


def wrong(tiny, photo):
    """The photo with the prompt of another picture."""
    return SimpleNamespace(positive=conditioning(tiny[1], WRONG), negative=photo.negative)


def test_the_wrong_prompt_at_a_high_cfg_gives_the_photo_back(node, host, tiny, photo, inverted):
    """From the noise of Invert, over the photo's latent and over an empty one."""
    _, noise, path = inverted
    model = kept(node, tiny[0], path)
    for latent in (photo.latent, empty_latent()["samples"]):
        start = noise.generate_noise({"samples": latent})
        found = sampled(host, model, wrong(tiny, photo), start, latent, cfg=CFG)
        lost = sampled(host, tiny[0], wrong(tiny, photo), start, latent, cfg=CFG)
        assert (rms(found - path.latents[-1]) < 1e-5).all()
        assert (rms(lost - path.latents[-1]) > 0.3).all()


@pytest.mark.parametrize("name", ["euler", "ddim"])
@pytest.mark.parametrize("cfg", [1.0, CFG])
def test_even_from_random_noise_in_the_hosts_ksampler(node, host, tiny, photo, inverted, name, cfg):
    model = kept(node, tiny[0], inverted[2])
    widgets = {"steps": STEPS, "scheduler": SCHEDULER, "cfg": cfg, "sampler_name": name}
    found = sample(host, model, tiny[1], WRONG, **widgets)
    assert (rms(found - photo.latent) < 1e-4).all()


def test_every_step_returns_to_the_trajectory(node, host, tiny, photo, inverted):
    path, (model, inputs) = inverted[2], counted(kept(node, tiny[0], inverted[2]))
    latent = empty_latent()["samples"]
    noise = host.comfy.sample.prepare_noise(latent, SEED)
    sampled(host, model, wrong(tiny, photo), noise, latent, cfg=CFG)
    assert len(inputs) == STEPS
    for x, expected, sigma in list(zip(inputs, path.latents, path.sigmas, strict=False))[1:]:
        assert torch.allclose(x[:1], expected, atol=1e-5 * (1 + sigma.item()))


def test_the_rest_of_the_batch_is_the_hosts_to_the_bit(node, host, tiny, photo, inverted):
    """Another prompt for it, which is how a photo and its edits are sampled side by side."""
    texts = torch.cat([photo.positive[0][0]] + [conditioning(tiny[1], WRONG)[0][0]] * 2)
    pair = SimpleNamespace(positive=[[texts, {}]], negative=photo.negative)
    latent = empty_latent(batch=3)["samples"]
    noise = host.comfy.sample.prepare_noise(latent, SEED)
    plain = sampled(host, tiny[0], pair, noise, latent, cfg=CFG)
    found = sampled(host, kept(node, tiny[0], inverted[2]), pair, noise, latent, cfg=CFG)
    assert torch.equal(found[1:], plain[1:]) and not torch.equal(found[1], found[2])
    assert (rms(found[:1] - inverted[2].latents[-1]) < 1e-5).all()


@pytest.mark.parametrize("method", ["implicit", "o-belm"])
def test_the_trajectories_of_the_other_methods_are_followed_as_well(node, host, tiny, photo, method):
    path = run(node, host, tiny[0], photo, method, cfg=3.0, max_iterations=3).args[2]
    latent = empty_latent()["samples"]
    noise = host.comfy.sample.prepare_noise(latent, SEED)
    found = sampled(host, kept(node, tiny[0], path), wrong(tiny, photo), noise, latent, cfg=CFG)
    assert (rms(found - path.latents[-1]) < 1e-5).all()


@pytest.mark.parametrize("kind", ["v-prediction", "SDXL", "fp16", "bf16"])
def test_other_models_give_the_photo_back(node, host, tiny, photo, xl, kind):
    halves = {"fp16": torch.float16, "bf16": torch.bfloat16}
    if kind in halves:
        model = as_half(host, tiny[0], halves[kind])
    else:
        model = xl if kind == "SDXL" else as_v_prediction(host, tiny[0])
    subject = of_sdxl(tiny) if kind == "SDXL" else photo
    path = run(node, host, model, subject, "ddim").args[2]
    latent = torch.zeros_like(subject.latent)
    noise = host.comfy.sample.prepare_noise(latent, SEED)
    found = sampled(host, kept(node, model, path), subject, noise, latent, cfg=CFG)
    assert (rms(found - path.latents[-1]) < 1e-4).all()


def test_nothing_stays_patched(node, host, tiny, photo, inverted):
    before, options = sample(host, tiny[0], tiny[1]), copy.deepcopy(tiny[0].model_options)
    model = kept(node, tiny[0], inverted[2])
    widgets = {"steps": STEPS, "scheduler": SCHEDULER}
    one, two = (sample(host, model, tiny[1], WRONG, **widgets) for _ in range(2))
    assert torch.equal(one, two) and tiny[0].model_options == options
    assert torch.equal(sample(host, tiny[0], tiny[1]), before)


@pytest.mark.parametrize("interrupt", [False, True])
def test_an_end_in_the_middle_leaves_nothing_behind(node, host, tiny, photo, inverted, interrupt):
    management = host.comfy.model_management
    before, calls = sample(host, tiny[0], tiny[1]), []
    kind = management.InterruptProcessingException if interrupt else ZeroDivisionError

    def failing(apply_model, args):
        calls.append(1)
        if len(calls) == 4:
            raise kind
        return apply_model(args["input"], args["timestep"], **args["c"])

    model = kept(node, tiny[0], inverted[2])
    model.set_model_unet_function_wrapper(failing)
    with pytest.raises(kind):
        sample(host, model, tiny[1], WRONG, steps=STEPS, scheduler=SCHEDULER)
    assert len(calls) == 4 and torch.equal(sample(host, tiny[0], tiny[1]), before)


def test_a_painting_guide_on_the_same_model_moves_the_rest_and_the_photo_hardly(
    node, host, tiny, photo, inverted
):
    from guided_synthesis.nodes import painting_guide

    guide = painting_guide.PaintingGuide
    inputs = {
        e.id: e.default for e in guide.define_schema().inputs if getattr(e, "default", None) is not None
    }
    model = kept(node, tiny[0], inverted[2])
    with torch.inference_mode():
        guided = guide.execute(model, tiny[2], scene_painting()[0], **inputs).args[0]
    widgets = {"steps": STEPS, "scheduler": SCHEDULER, "latent": empty_latent(batch=2)}
    found, plain = (sample(host, each, tiny[1], WRONG, **widgets) for each in (guided, model))
    assert (rms(found[:1] - photo.latent) < 0.02 * rms(photo.latent)).all()
    assert (rms(found[1:] - plain[1:]) > 0.2 * rms(plain[1:])).all()


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2m", "dpmpp_sde", "lcm", "heun", "lms"])
def test_other_samplers_are_one_sentence_before_any_model_call(node, host, tiny, inverted, name):
    model, inputs = counted(kept(node, tiny[0], inverted[2]))
    with pytest.raises(
        ValueError, match=f"The sampler {name} does not take the steps .* Choose euler or ddim"
    ):
        sample(host, model, tiny[1], WRONG, steps=STEPS, scheduler=SCHEDULER, sampler_name=name)
    assert inputs == []


def test_fresh_noise_other_sigmas_and_other_sizes_are_one_sentence_before_any_model_call(
    node, host, tiny, photo, inverted
):
    model, inputs = counted(kept(node, tiny[0], inverted[2]))
    latent = empty_latent()["samples"]
    churning = host.comfy.samplers.ksampler("euler", {"s_churn": 1.5})
    with pytest.raises(ValueError, match="euler with s_churn 1.5 does not take the steps .* Choose euler"):
        sampled(host, model, photo, latent, latent, sampler=churning)
    still = host.comfy.samplers.ksampler("euler", {"s_churn": 0.0})
    assert (
        rms(sampled(host, model, photo, latent, latent, sampler=still) - inverted[2].latents[-1]) < 1e-5
    ).all()
    inputs.clear()
    for sigmas in (levels(host, model, 12), levels(host, model, scheduler="normal"), levels(host, model)[2:]):
        with pytest.raises(ValueError, match="sampler runs .* made for 10 steps .* Connect the same SIGMAS"):
            sampled(host, model, photo, latent, latent, sigmas=sigmas)
    wide = torch.zeros(2, 4, 16, 24)
    with pytest.raises(ValueError, match="The latent is 1 x 24x16 cells .* trajectory is of 1 x 16x16 cells"):
        sampled(host, model, photo, wide, wide)
    assert inputs == []


def test_a_batch_with_fewer_pictures_than_the_trajectory_is_one_sentence(node, host, tiny, photo, inverted):
    path = inverted[2]
    two = Trajectory(**(vars(path) | {"latents": path.latents.repeat(1, 2, 1, 1, 1)}))
    latent = empty_latent()["samples"]
    with pytest.raises(ValueError, match="The latent is 1 x 16x16 .* trajectory is of 2 x 16x16 cells"):
        sampled(host, kept(node, tiny[0], two), photo, latent, latent)


def test_the_trajectory_of_another_model_is_one_sentence(node, tiny, inverted):
    other = Trajectory(**(vars(inverted[2]) | {"model": "0123456789abcdef"}))
    with pytest.raises(ValueError, match="made with another model, .* Connect the model"):
        node.DirectInversion.execute(tiny[0], other)


def edited(node, host, tiny, photo, inverted, edit=EDIT, model=None, **widgets):
    """The photo edited by the Text Guidance Guider, with what the node keeps; its MODEL's own without widgets."""
    from guided_synthesis.nodes.text_guidance import TextGuidanceGuider

    inputs = TextGuidanceGuider.define_schema().inputs
    settings = {each.id: each.default for each in inputs if getattr(each, "default", None) is not None}
    _, noise, path = inverted
    latent = torch.zeros_like(photo.latent)
    with torch.inference_mode():
        if widgets:
            model = node.DirectInversion.execute(model or tiny[0], path, **widgets).args[0]
        source, changed = conditioning(tiny[1], SOURCE), conditioning(tiny[1], edit)
        guider = TextGuidanceGuider.execute(
            model or tiny[0], source, changed, photo.negative, **settings
        ).args[0]
        start = noise.generate_noise({"samples": latent})
        euler = host.comfy.samplers.sampler_object("euler")
        return guider.sample(start, latent, euler, path.sigmas, disable_pbar=True, seed=SEED)


@pytest.fixture(scope="module")
def scene(node, host, tiny):
    """A fox and an apple in the snow, with where the fox stands: (1, 128, 128), and what Invert makes of it."""
    painting, mask = scene_painting()
    with torch.inference_mode():
        latent = tiny[2].encode(painting)
    subject = SimpleNamespace(
        latent=latent, positive=conditioning(tiny[1], SOURCE), negative=conditioning(tiny[1], "")
    )
    return subject, run(node, host, tiny[0], subject, "ddim").args


def test_outside_of_a_painted_mask_the_photo_comes_back_and_inside_it_is_edited(node, host, tiny, scene):
    photo, inverted = scene
    stays = torch.zeros(1, 128, 128)
    stays[..., 64:] = 1
    found = edited(node, host, tiny, photo, inverted, mask=stays)
    assert torch.allclose(found[..., 8:], photo.latent[..., 8:], atol=1e-3)
    assert rms(found[..., :8] - photo.latent[..., :8]).min() > 0.1
    half = edited(node, host, tiny, photo, inverted, mask=0.5 * torch.ones(1, 128, 128))
    free = edited(node, host, tiny, photo, inverted)
    apart = [rms(each - photo.latent).item() for each in (half, free)]
    assert 0.02 * apart[1] < apart[0] < 0.9 * apart[1]  # of a mask that only knew 0 and 1 it would be 0


def test_a_free_cell_is_what_the_guider_makes_of_it_to_the_bit(node, host, tiny, scene):
    """With a threshold that no cell is below and one step, nothing has told the model of the photo yet."""
    photo, inverted = scene
    stays = torch.zeros(1, 16, 16)
    stays[..., 8:] = 1
    seen = []
    model = tiny[0].clone()
    model.set_model_sampler_post_cfg_function(lambda args: seen.append(args["denoised"]) or args["denoised"])
    with torch.inference_mode():
        model = node.DirectInversion.execute(model, inverted[2], mask=stays).args[0]
    predicted = host.comfy.patcher_extension.WrappersMP.PREDICT_NOISE
    model.add_wrapper_with_key(
        predicted, "spy", lambda predict, *args: seen.append(predict(*args)) or seen[-1]
    )
    edited(node, host, tiny, photo, inverted, model=model)
    free, kept_there = seen[0], seen[1]
    assert torch.equal(free[..., :8], kept_there[..., :8]) and not torch.equal(free, kept_there)


def test_the_automatic_mask_keeps_most_of_the_photo_and_lets_the_edit_happen(node, host, tiny, scene):
    photo, inverted = scene
    found = edited(node, host, tiny, photo, inverted, auto_mask=True)
    free = edited(node, host, tiny, photo, inverted)
    apart, alone = ((each - photo.latent).abs().amax(1) for each in (found, free))
    back = apart < 1e-3
    assert 0.3 < back.float().mean() < 0.98
    assert alone[back].mean() > 0.02 and apart[~back].mean() > 0.5 * alone[~back].mean()
    shares = [
        (edited(node, host, tiny, photo, inverted, auto_mask=True, auto_mask_threshold=one) - photo.latent)
        .abs()
        .mean()
        for one in (0.05, 0.4, 1.0)
    ]
    assert shares[0] > shares[1] > shares[2]


def test_equal_prompts_with_the_automatic_mask_give_the_photo_back(node, host, tiny, scene):
    photo, inverted = scene
    found = edited(node, host, tiny, photo, inverted, edit=SOURCE, auto_mask=True)
    assert (rms(found - photo.latent) < 1e-3).all()


def test_a_second_run_finds_its_own_region(node, host, tiny, scene):
    photo, inverted = scene
    with torch.inference_mode():
        model = node.DirectInversion.execute(tiny[0], inverted[2], auto_mask=True).args[0]
    runs = [
        edited(node, host, tiny, photo, inverted, edit=text, model=model)
        for text in (EDIT, "a photo of a fox and a clock in the snow", EDIT)
    ]
    assert torch.equal(runs[0], runs[2]) and not torch.equal(runs[0], runs[1])
    assert not [each for each in gc.get_objects() if type(each).__name__ == "EditRegion"]


def test_bad_masks_and_a_guider_that_does_not_tell_are_sentences(node, host, tiny, photo, inverted):
    path = inverted[2]
    with pytest.raises(ValueError, match="mask is empty .* Paint it, or disconnect it"):
        node.DirectInversion.execute(tiny[0], path, mask=torch.zeros(1, 128, 128))
    with pytest.raises(ValueError, match="mask is 192x128 px but the photo is 128x128 px"):
        node.DirectInversion.execute(tiny[0], path, mask=torch.ones(1, 128, 192))
    with torch.inference_mode():
        model = node.DirectInversion.execute(tiny[0], path, auto_mask=True).args[0]
        two = node.DirectInversion.execute(tiny[0], path, mask=torch.ones(2, 128, 128)).args[0]
    widgets = {"steps": STEPS, "scheduler": SCHEDULER}
    with pytest.raises(ValueError, match="mask .* 2 "):
        sample(host, two, tiny[1], WRONG, **widgets)
    with pytest.raises(ValueError, match="Sample with the Text Guidance Guider, paint a mask, or switch"):
        sample(host, model, tiny[1], WRONG, **widgets)
