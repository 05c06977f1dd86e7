"""The Saliency Noise node on the real host: sources, statistics, company with samplers, interrupts, failures."""

import asyncio
import gc
import logging
import re
import weakref
from contextlib import contextmanager

import pytest
import torch

from comfy_host.places import DEMO_CLASSIFIER, ROOT
from real_host.models import as_v_prediction
from real_host.sampling import SEED, conditioning, empty_latent, sample
from tiny_sd.host_model import install_taesd
from tiny_sd.world import draw, make_spec

STEPS = 4
TEXT = "a photo of a fox"


@pytest.fixture(scope="module")
def node(host):
    from guided_synthesis.nodes import saliency_noise

    return saliency_noise


@pytest.fixture(scope="module")
def work(node):
    from guided_synthesis.nodes.host import saliency

    return saliency


@pytest.fixture(autouse=True)
def nothing_in_memory(work):
    work._latest.clear()


@pytest.fixture(scope="module")
def classifier(host):
    from guided_synthesis.nodes.host.classifiers import load_classifier

    with torch.inference_mode():
        return load_classifier(DEMO_CLASSIFIER, None)


def scene(seed=3):
    """Return IMAGE (1, 128, 128, 3) of a scene with one object."""
    picture = draw(make_spec(seed, things=1)).image
    return torch.from_numpy(picture.copy()).float()[None] / 255


@pytest.fixture
def made(node, tiny, classifier):
    """Run the node as a graph does: its own defaults, few steps and the light decoder; returns its NodeOutput."""

    def run(**widgets):
        inputs = node.SaliencyNoise.define_schema().inputs
        settings = {entry.id: entry.default for entry in inputs if not entry.optional and has_default(entry)}
        settings |= {"model": tiny[0], "vae": tiny[2], "classifier": classifier, "reference": scene()}
        settings |= {"source": "gradient inversion", "blend": 0.5}
        settings |= {"seed": SEED, "steps": STEPS, "decoder": "linear"} | widgets
        with torch.inference_mode():
            return node.SaliencyNoise.execute(**settings)

    return run


def has_default(entry):
    return getattr(entry, "default", None) is not None


def noise_of(out, latent=None):
    """Return the noise (B, C, h, w) of a node's output for LATENT."""
    with torch.inference_mode():
        return out.args[0].generate_noise(latent or empty_latent())


def white(host, seed=SEED, latent=None):
    """Return the noise that the host's own samplers make of a seed."""
    return host.comfy.sample.prepare_noise((latent or empty_latent())["samples"], seed)


def statistics_are_those_of_white_noise(noise):
    mean, spread = noise.mean((-2, -1)), noise.std((-2, -1), correction=0)
    return bool((mean.abs() < 0.02).all() and ((spread - 1).abs() < 0.02).all())


def text_of(out):
    """Return what the node says."""
    return out.ui["text"][0]


def cosines(out):
    """Return the two cosines that the node's text names."""
    return [float(value) for value in re.findall(r"(-?\d\.\d+) (?:before|after)", text_of(out))]


RUNS = [
    {"source": "gradient inversion", "decoder": "linear"},
    {"source": "gradient inversion", "decoder": "vae"},
    {"source": "gradient inversion", "decoder": "taesd"},
    {"source": "gradient inversion", "space": "pixels"},
    {"source": "gradient inversion", "layers": "last stages", "signed": True},
    {"source": "feature map"},
    {"source": "FGSM", "decoder": "linear"},
    {"source": "FGSM", "decoder": "vae"},
    {"source": "FGSM", "decoder": "taesd"},
    {"source": "saliency"},
]


@pytest.mark.parametrize("widgets", RUNS, ids=lambda widgets: " ".join(map(str, widgets.values())))
def test_every_source_space_and_decoder_gives_noise_of_the_right_statistics(host, made, widgets):
    install_taesd()
    out = made(blend=0.0, **widgets)
    noise, fresh = noise_of(out), white(host)
    assert noise.shape == (1, 4, 16, 16) and noise.dtype == torch.float32
    assert statistics_are_those_of_white_noise(noise)
    assert (noise * fresh).mean().abs() < 0.2  # the fresh noise has no part in it
    _, latent, progression, saliency = out.args
    assert latent["samples"].shape == (1, 4, 16, 16)
    frames = STEPS + 1 if widgets["source"] == "gradient inversion" else 1
    assert progression.shape == (frames, 128, 128, 3) and progression.isfinite().all()
    assert saliency.shape == (1, 128, 128) and saliency.min() >= 0 and saliency.max() == 1


@pytest.mark.parametrize("blend", [0.0, 0.3, 0.5, 0.9])
def test_blended_noise_keeps_its_statistics_for_every_picture_of_a_batch(host, made, blend):
    latent = empty_latent(batch=3)
    noise, fresh = noise_of(made(source="FGSM", blend=blend), latent), white(host, latent=latent)
    assert statistics_are_those_of_white_noise(noise)
    shares = (noise * fresh).mean((1, 2, 3))  # of fresh noise: the square root of the blend
    assert (shares - blend**0.5).abs().max() < 0.1


def test_at_blend_one_the_noise_is_the_hosts_own_to_the_bit(host, tiny, made):
    out, latent = made(blend=1.0), empty_latent(batch=2)
    assert torch.equal(noise_of(out, latent), white(host, latent=latent))
    assert out.args[0].seed == SEED


def test_the_start_of_the_inversion_is_not_the_fresh_noise(host, made, work, monkeypatch):
    starts = []
    original = work.Inverter
    monkeypatch.setattr(work, "Inverter", lambda start, *rest: starts.append(start) or original(start, *rest))
    for seed in (5, 5, 6):
        work._latest.clear()
        made(seed=seed)
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])
    assert (starts[0] * white(host, 5)).mean().abs() < 0.1


@pytest.mark.parametrize("space", ["latent", "pixels"])
def test_the_gradients_come_closer_to_those_of_the_reference(made, space):
    before, after = cosines(made(steps=60, space=space))
    assert -0.2 < before < 0.4 and after > before + 0.1


def test_the_same_inputs_give_the_same_noise_and_other_references_others(made):
    first, other, again = (noise_of(made(blend=0.0, reference=scene(seed))) for seed in (3, 5, 3))
    assert torch.equal(first, again) and not torch.allclose(first, other, atol=0.1)


def test_the_widgets_of_the_descent_are_heard(made):
    """On the way: what comes out is the best so far, after a few steps perhaps still the start."""
    plain = made().args[2][-2]
    for widgets in (
        {"learning_rate": 0.2},
        {"signed": True},
        {"total_variation": 100.0},
        {"schedule": "drops"},
        {"layers": "last stages"},
        {"decoder": "vae"},
        {"seed": 3},
    ):
        assert not torch.allclose(made(**widgets).args[2][-2], plain, atol=1e-3), widgets


@pytest.mark.parametrize("source", ["feature map", "saliency"])
def test_maps_are_bright_where_the_object_stands(made, source):
    """The paper's figure 6: the noise itself is a map of the features, the same in every channel."""
    umbrella = scene(11)  # on the left
    for picture, left in ((umbrella, True), (umbrella.flip(2), False)):
        noise = noise_of(made(source=source, blend=0.0, reference=picture))[0]
        assert all(torch.equal(noise[0], channel) for channel in noise[1:])
        halves = noise[..., :8].mean() - noise[..., 8:].mean()
        assert halves.abs() > 0.5 and bool(halves > 0) == left


# --- what samplers make of it


def sampled_with_noise(host, model, texts, noise, latent, seed=SEED):
    """What SamplerCustomAdvanced makes of NOISE: samples (B, C, h, w)."""
    from comfy_extras import nodes_custom_sampler as custom

    guider = host.comfy.samplers.CFGGuider(model)
    guider.set_conds(*texts)
    guider.set_cfg(1.0)
    sigmas = host.comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 4)
    call = custom.SamplerCustomAdvanced
    call = call.execute if hasattr(call, "execute") else call().sample
    with torch.inference_mode():
        euler = host.comfy.samplers.sampler_object("euler")
        return call(noise, guider, euler, sigmas, latent)[0]["samples"]


def sampled_from_latent(host, model, texts, latent, seed=SEED):
    """What KSampler (Advanced) makes of LATENT with add_noise disabled: samples (B, C, h, w)."""
    with torch.inference_mode():
        return host.nodes.KSamplerAdvanced().sample(
            model, "disable", seed, 4, 1.0, "euler", "normal", *texts, latent, 0, 10000, "disable"
        )[0]["samples"]


def texts_for(kind, tiny):
    """Return positive and negative CONDITIONING."""
    if kind != "sdxl":
        return [conditioning(tiny[1], text) for text in (TEXT, "")]
    random = torch.Generator().manual_seed(0)
    pooled = {"pooled_output": torch.randn(1, 64, generator=random)}
    return [[[torch.randn(1, 77, 64, generator=random), pooled]] for _ in range(2)]


# of the largest value; without a signal left at its highest level, sigma is 4518, and float32 has no finer steps there
ROUNDING = {"eps": 1e-5, "v": 1e-5, "v zsnr": 2e-4, "sdxl": 1e-5}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", ROUNDING)
def test_the_latent_makes_the_pictures_that_the_noise_makes(host, tiny, xl, made, kind, batch):
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    model = tiny[0] if kind != "sdxl" else xl
    if kind == "v":
        model = as_v_prediction(host, model)
    if kind == "v zsnr":
        model = ModelSamplingDiscrete().patch(model, "v_prediction", True)[0]
    latent, texts = empty_latent(batch=batch), texts_for(kind, tiny)
    noise, start = made(model=model, source="FGSM", latent=latent).args[:2]
    expected = sampled_with_noise(host, model, texts, noise, latent)
    found = sampled_from_latent(host, model, texts, start)
    assert torch.allclose(found, expected, rtol=0, atol=ROUNDING[kind] * expected.abs().max().item())
    if batch > 1:  # each has other fresh noise
        assert not any(torch.allclose(found[0], other, atol=0.1) for other in found[1:])


def test_pictures_of_a_batch_have_their_structure_in_common_and_nothing_else(made):
    alike = noise_of(made(source="FGSM", blend=0.25), empty_latent(batch=4)).flatten(1)
    pairs = torch.corrcoef(alike)[~torch.eye(4, dtype=torch.bool)]
    assert (pairs - 0.75).abs().max() < 0.1


def test_the_latent_keeps_what_came_with_it_but_a_mask_for_other_samples(made):
    given = empty_latent(batch=2) | {
        "noise_mask": torch.ones(1, 16, 16),
        "batch_index": [0, 3],
        "of": "others",
    }
    before = dict(given)
    noise, start = made(source="FGSM", latent=given).args[:2]
    assert given.keys() == before.keys() and all(given[key] is before[key] for key in given)
    assert start.keys() == {"samples", "batch_index", "of"} and start["of"] == "others"
    of_index = noise_of(made(source="FGSM"), {"samples": torch.zeros(2, 4, 16, 16), "batch_index": [0, 3]})
    assert torch.equal(noise.generate_noise(given), of_index)


def test_for_flow_models_the_latent_stops_what_comes_after_it_with_a_sentence(host, tiny, made):
    from comfy_execution.graph_utils import ExecutionBlocker
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    flow = ModelSamplingSD3().patch(tiny[0], 3.0)[0]
    noise, start = made(model=flow, source="FGSM").args[:2]
    assert isinstance(start, ExecutionBlocker) and "Use its output noise instead" in start.message
    assert noise.generate_noise(empty_latent()).shape == (1, 4, 16, 16)


def test_with_a_vae_of_half_precision_the_noise_is_as_fine_as_ever(host, tiny, made):
    with torch.inference_mode():
        state = {name: tensor.clone() for name, tensor in tiny[2].first_stage_model.state_dict().items()}
        half = host.comfy.sd.VAE(sd=state, dtype=torch.bfloat16)
    for widgets in ({"decoder": "vae"}, {"space": "pixels"}, {"source": "FGSM", "decoder": "vae"}):
        out = made(vae=half, **widgets)
        noise = noise_of(out)
        assert noise.dtype == out.args[1]["samples"].dtype == out.args[2].dtype == torch.float32
        assert statistics_are_those_of_white_noise(noise)
        assert (noise.bfloat16() != noise).float().mean() > 0.9


def test_model_vae_and_classifier_are_as_before(host, tiny, classifier, made):
    latent = white(host)

    def seen():
        with torch.inference_mode():
            picture = classifier.predicted(scene().movedim(-1, 1), 32)
            return sample(host, tiny[0], tiny[1], TEXT), tiny[2].decode(latent), picture

    before, network = seen(), classifier.patcher.model
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for widgets in RUNS:
        made(**widgets)
    after = seen()
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1]) and before[2] == after[2]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(module._forward_hooks or module.training for module in network.modules())


# --- sizes


@pytest.mark.parametrize(
    "picture, widgets, cells",
    [
        ((128, 128), {}, (16, 16)),
        ((100, 133), {}, (12, 16)),
        ((96, 160), {}, (12, 20)),
        ((96, 160), {"width": 80, "height": 48}, (6, 10)),
        ((96, 160), {"width": 80}, (6, 10)),
        ((160, 96), {"width": 48}, (10, 6)),
        ((96, 160), {"height": 48}, (6, 10)),
        ((96, 160), {"height": 64, "width": 64, "latent": {"samples": torch.zeros(1, 4, 6, 10)}}, (6, 10)),
        # an empty latent of a newer host, made for a VAE of 16 px a cell
        (
            (96, 160),
            {"latent": {"samples": torch.zeros(1, 4, 6, 10), "downscale_ratio_spacial": 16}},
            (12, 20),
        ),
    ],
)
@pytest.mark.parametrize("source", ["feature map", "gradient inversion"])
def test_the_noise_has_the_size_that_was_asked_for(made, picture, widgets, cells, source):
    reference = torch.nn.functional.interpolate(scene().movedim(-1, 1), picture, mode="bilinear").movedim(
        1, -1
    )
    out = made(reference=reference, source=source, steps=1, **widgets)
    shape = (1, 4, *cells)
    assert out.args[1]["samples"].shape == shape
    assert noise_of(out, {"samples": torch.zeros(shape)}).shape == shape
    assert out.args[2].shape[1:3] == (8 * cells[0], 8 * cells[1])
    assert out.args[3].shape == (1, *picture)


def test_a_transparent_reference_stands_on_white(made):
    alpha = torch.ones(1, 128, 128, 1)
    alpha[:, :, :40] = 0
    rgb = scene()
    white_left = torch.where(alpha > 0, rgb, 1.0)
    found = noise_of(made(reference=torch.cat([rgb, alpha], -1), source="feature map"))
    assert torch.equal(found, noise_of(made(reference=white_left, source="feature map")))


# --- labels


def test_a_label_is_a_name_or_a_number_or_what_the_classifier_sees(classifier, made):
    best = classifier.predicted(scene().movedim(-1, 1))[0][0][0]
    index = classifier.labels.index(best)
    outs = [made(source="FGSM", label=label) for label in ("predicted", best.upper(), str(index))]
    assert all(torch.equal(noise_of(out), noise_of(outs[0])) for out in outs)
    assert all(f"Label: {best}." in text_of(out) and "is not what" not in text_of(out) for out in outs)


def test_another_label_than_the_predicted_is_served_with_a_warning(classifier, made, caplog):
    best, chance = classifier.predicted(scene().movedim(-1, 1))[0][0]
    other = next(name for name in classifier.labels if name != best)
    with caplog.at_level(logging.WARNING):
        out = made(source="FGSM", label=other)
    for said in (caplog.text, text_of(out)):
        assert f"The label {other}" in said and f"{best} ({chance:.1%})" in said
    assert not torch.equal(noise_of(out), noise_of(made(source="FGSM")))


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"label": "foxx"}, "has no label 'foxx'. The nearest are 'fox'"),
        ({"label": "99"}, "has no label '99'"),
        (
            {"reference": torch.rand(2, 128, 128, 3)},
            "reference is a batch of 2 pictures, but noise is made of one",
        ),
        ({"reference": torch.rand(1, 128, 128, 1)}, "reference has a single grey channel"),
        (
            {"reference": torch.rand(1, 7, 64, 3)},
            "reference is 64x7 px, smaller than one latent cell of 8 px",
        ),
        ({"width": 100}, "width is 100, but this VAE works in cells of 8 px. Choose 96"),
        ({"height": 2}, "height is 2, but this VAE works in cells of 8 px. Choose 8"),
        ({"width": 128, "height": 256}, "reference is 128x128 px but the noise is 128x256 px, another shape"),
        ({"latent": empty_latent(128, 256)}, "reference is 128x128 px but the noise is 256x128 px"),
        ({"latent": {"samples": torch.zeros(1, 4, 1, 16, 16)}}, "latent is not that of a picture"),
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"total_variation": -1.0}, "total_variation is -1"),
        ({"blend": 1.5}, "blend is 1.5"),
        ({"vae": None}, "connect the VAE output"),
        ({"model": object()}, "(object) does not"),
        ({"decoder": "taesd"}, "taesd_decoder"),
    ],
)
def test_bad_input_is_one_clear_sentence_before_any_work(host, node, made, monkeypatch, change, sentence):
    monkeypatch.setattr(host.folder_paths, "get_filename_list", lambda folder: [])
    monkeypatch.setattr(node, "_structure", lambda *_: pytest.fail("the work began"))
    with pytest.raises(ValueError, match=re.escape(sentence)):
        made(**change)


# --- progress, interrupts, failures


def test_the_preview_shows_the_noise_every_few_steps_and_at_the_end(host, made, monkeypatch):
    import latent_preview

    seen = []

    def prepare(model, total):
        return lambda step, latent, x, of: seen.append((step, of, total, latent))

    monkeypatch.setattr(latent_preview, "prepare_callback", prepare)
    for space in ("latent", "pixels"):
        seen.clear()
        made(steps=12, space=space)
        assert [entry[:3] for entry in seen] == [(step, 12, 12) for step in (0, 5, 10, 11)]
        assert all(statistics_are_those_of_white_noise(latent) for *_, latent in seen)
        assert not torch.equal(seen[0][3], seen[-1][3])


@pytest.fixture
def interrupted(host, work, made, monkeypatch):
    """Run the node until the user interrupts it after so many steps; returns a list of all steps taken, ever."""
    taken, stop = [], []
    original = work.Inverter.step

    def step(self):
        taken.append(self.done)
        if stop and len(taken) == stop[0]:
            host.comfy.model_management.interrupt_current_processing()
        return original(self)

    monkeypatch.setattr(work.Inverter, "step", step)

    def run(after, **widgets):
        stop[:] = [len(taken) + after]
        with pytest.raises(host.comfy.model_management.InterruptProcessingException):
            made(**widgets)
        stop.clear()
        return taken

    return run


@pytest.mark.parametrize("space", ["latent", "pixels"])
def test_an_interrupted_run_goes_on_where_it_was_and_ends_the_same(made, work, interrupted, space):
    widgets = {"space": space, "blend": 0.0, "steps": 7}
    whole = made(**widgets)
    work._latest.clear()
    interrupted(3, **widgets)
    taken = interrupted(2, **widgets)  # and again
    resumed = made(**widgets)
    assert taken == [*range(7), *range(7)]
    assert torch.equal(noise_of(resumed), noise_of(whole)) and torch.equal(resumed.args[2], whole.args[2])
    assert text_of(resumed) == text_of(whole)


def test_an_interrupt_in_the_midst_of_a_step_loses_that_step_only(host, made, work, monkeypatch):
    whole, original = made(), work.Inverter.step
    work._latest.clear()

    def step(self):
        if self.done == 2:
            raise host.comfy.model_management.InterruptProcessingException
        return original(self)

    monkeypatch.setattr(work.Inverter, "step", step)
    with pytest.raises(host.comfy.model_management.InterruptProcessingException):
        made()
    ((_, begun),) = work._latest.items()
    assert begun.state.done == 2
    monkeypatch.setattr(work.Inverter, "step", original)
    resumed = made()
    assert torch.equal(noise_of(resumed), noise_of(whole)) and torch.equal(resumed.args[2], whole.args[2])


OTHER_RUNS = [
    {"steps": 5},
    {"seed": 3},
    {"reference": scene(5)},
    {"learning_rate": 0.2},
    {"decoder": "vae"},
    {"layers": "last stages"},
    {"width": 64, "height": 64},
]


@pytest.mark.parametrize("change", OTHER_RUNS)
def test_after_an_interrupt_other_inputs_begin_at_the_beginning(made, interrupted, change):
    taken = interrupted(2)
    made(**change)
    assert taken[:3] == [0, 1, 0]


def test_another_blend_goes_on_too_since_it_has_no_part_in_the_inversion(made, interrupted):
    taken = interrupted(2)
    made(blend=0.1)
    assert taken == [0, 1, 2, 3]


# --- what is remembered


@pytest.fixture
def steps_taken(work, monkeypatch):
    """Return a list of all steps that inversions take, ever."""
    taken, original = [], work.Inverter.step
    monkeypatch.setattr(work.Inverter, "step", lambda self: taken.append(self.done) or original(self))
    return taken


def test_a_finished_inversion_is_not_done_again_for_what_it_does_not_depend_on(
    made, steps_taken, guider, monkeypatch, work
):
    first = made(blend=0.0)
    monkeypatch.setattr(work, "GradientMatching", lambda *_: pytest.fail("the work began again"))
    again, other = made(blend=0.0), made(blend=0.7)
    with_guider = made(blend=0.0, guider=guider())
    made(source="FGSM")
    made(blend=0.2, latent=empty_latent(batch=2))
    assert steps_taken == list(range(STEPS))
    assert torch.equal(noise_of(again), noise_of(first)) and torch.equal(again.args[2], first.args[2])
    assert not torch.equal(noise_of(other), noise_of(first))
    assert not torch.equal(noise_of(with_guider), noise_of(first))
    assert "from memory" not in text_of(first)
    for out in (again, other, with_guider):
        assert "from memory" in text_of(out) and cosines(out) == cosines(first)


def test_the_remembered_noise_is_that_of_the_first_run_to_the_bit(work, made, steps_taken):
    made(blend=0.9)
    remembered = made(blend=0.3)
    work._latest.clear()
    fresh = made(blend=0.3)
    assert steps_taken == [*range(STEPS), *range(STEPS)]
    assert all(torch.equal(noise_of(out), noise_of(fresh)) for out in (remembered, fresh))
    assert torch.equal(remembered.args[2], fresh.args[2])


@pytest.mark.parametrize("change", OTHER_RUNS)
def test_other_inputs_are_not_served_from_memory(made, steps_taken, change):
    made()
    out = made(**change)
    assert len(steps_taken) == STEPS + change.get("steps", STEPS) and "from memory" not in text_of(out)


def test_one_run_is_remembered_in_small_numbers_and_nothing_else(work, made):
    for seed in (1, 2):
        made(seed=seed)
    ((key, found),) = work._latest.items()
    assert {type(part) for part in key[:3]} == {weakref.ref}
    assert key[-1].seed == 2 and found.noise.device.type == found.frames.device.type == "cpu"
    assert found.noise.numel() == 4 * 16 * 16 and found.frames.numel() == (STEPS + 1) * 4 * 16 * 16
    assert held(work.GradientMatching) == held(work.Inverter) == held(work._Run) == 0


def test_an_interrupted_run_takes_the_place_of_the_remembered_one(work, made, interrupted):
    made(seed=1)
    taken = interrupted(2, seed=2)
    made(seed=2)
    assert taken[STEPS:] == list(range(STEPS)) and len(work._latest) == 1
    made(seed=1)
    assert taken[2 * STEPS :] == list(range(STEPS))


# --- the contrast of what a prompt paints


@pytest.fixture
def guider(host, tiny):
    """Make the host's CFGGuider for a text; returns the function."""

    def make(text=TEXT, cfg=3.0, model=None):
        made = host.comfy.samplers.CFGGuider(model or tiny[0])
        made.set_conds(conditioning(tiny[1], text), conditioning(tiny[1], ""))
        made.set_cfg(cfg)
        return made

    return make


@pytest.fixture
def asked(tiny):
    """Return MODEL that notes the pictures which its network is asked for, and the list of these."""
    model, seen = tiny[0].clone(), []

    def wrapper(apply_model, args):
        seen.append(args["input"].clone())
        return apply_model(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(wrapper)
    return model, seen


@pytest.fixture(scope="module")
def estimates(node):
    from guided_synthesis.nodes.host import first_estimate

    return first_estimate


def inference(call, *args, **kwargs):
    with torch.inference_mode():
        return call(*args, **kwargs)


SHAPE = (1, 4, 16, 16)


@pytest.mark.parametrize("kind", ["eps", "v", "v zsnr", "flow"])
def test_the_first_estimate_is_the_mean_of_what_the_model_says_to_plain_noise(
    host, tiny, estimates, guider, kind
):
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingSD3

    model = {
        "eps": lambda: tiny[0],
        "v": lambda: as_v_prediction(host, tiny[0]),
        "v zsnr": lambda: ModelSamplingDiscrete().patch(tiny[0], "v_prediction", True)[0],
        "flow": lambda: ModelSamplingSD3().patch(tiny[0], 3.0)[0],
    }[kind]()
    noises, said = [], []

    def keep(args):
        noises.append(args["input"].clone())
        said.append(args["denoised"].clone())
        return args["denoised"]

    model = model.clone()
    model.set_model_sampler_post_cfg_function(keep)
    found = inference(estimates.first_estimate, guider(model=model), SHAPE, SEED)
    assert found.shape == SHAPE and found.dtype == torch.float32 and found.device.type == "cpu"
    assert len(said) == 1 and said[0].shape == (4, 4, 16, 16)
    sigma = float(model.get_model_object("model_sampling").sigma_max)
    assert statistics_near(noises[0] / (1 if kind == "flow" else (1 + sigma**2) ** 0.5), 0.1)
    scale = said[0].abs().max().item()
    assert torch.allclose(found[0], said[0].mean(0), rtol=0, atol=ROUNDING.get(kind, 1e-5) * max(1, scale))


def statistics_near(noise, share):
    return abs(noise.mean().item()) < share and abs(noise.std().item() - 1) < share


def test_other_seeds_see_other_noise_and_the_same_seed_the_same(estimates, guider):
    first, again, other = (inference(estimates.first_estimate, guider(), SHAPE, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    one, many = (inference(estimates.first_estimate, guider(), SHAPE, 1, count) for count in (1, 8))
    assert not torch.equal(one, first) and (many - first).abs().mean() < (many - one).abs().mean()


def test_a_guider_costs_one_call_for_four_pictures_and_shows_no_preview(
    host, made, guider, asked, monkeypatch
):
    import latent_preview

    shown, (model, seen) = [], asked
    monkeypatch.setattr(latent_preview, "prepare_callback", lambda *_: lambda *step: shown.append(step))
    made(source="feature map", guider=guider(cfg=1.0, model=model))
    assert len(seen) == 1 and seen[0].shape == (4, 4, 16, 16)
    made(source="feature map", guider=guider(cfg=3.0, model=model))  # and with the negative in the same batch
    assert len(seen) == 2 and seen[1].shape == (8, 4, 16, 16)
    assert not shown
    made(source="feature map")
    assert len(seen) == 2


SOURCES = ["gradient inversion", "feature map", "FGSM", "saliency"]


@pytest.mark.parametrize("size", [(128, 128), (96, 160)])
@pytest.mark.parametrize("source", SOURCES)
def test_with_a_guider_the_noise_is_the_structure_in_the_contrast_of_its_estimate(
    made, guider, estimates, classifier, work, source, size
):
    from guided_synthesis.guidance.noise_contrast import contrast, middle, recontrasted

    reference = torch.nn.functional.interpolate(scene().movedim(-1, 1), size, mode="bilinear").movedim(1, -1)
    cells = tuple(side // 8 for side in size)
    latent = {"samples": torch.zeros(1, 4, *cells)}
    widgets = {"source": source, "blend": 0.0, "reference": reference}
    plain, out = made(**widgets), made(**widgets, guider=guider())
    noise = noise_of(out, latent)
    estimate = inference(estimates.first_estimate, guider(), (1, 4, *cells), SEED)
    direction = contrast(estimate, middle(*cells))
    salient = torch.nn.functional.interpolate(
        out.args[3][None], cells, mode="bilinear", antialias=True, align_corners=False
    )
    assert torch.equal(out.args[3], plain.args[3])
    assert torch.allclose(noise, recontrasted(noise_of(plain, latent), salient, direction), atol=1e-5)
    assert statistics_are_those_of_white_noise(noise)
    assert torch.equal(contrast(noise, salient).sign(), direction.sign())
    assert out.args[2].shape == plain.args[2].shape and not torch.equal(out.args[2], plain.args[2])
    assert statistics_are_those_of_white_noise(
        noise_of(made(**widgets | {"blend": 0.5}, guider=guider()), latent)
    )


def test_another_prompt_asks_for_another_contrast(made, guider):
    texts = "a photo of a fox", "a photo of a penguin", "snow", "night", "a photo of an umbrella"
    found = [noise_of(made(source="feature map", blend=0.0, guider=guider(text)))[0] for text in texts]
    signs = {tuple((noise[:, 0, 0] * found[0][0, 0, 0]).sign().tolist()) for noise in found}
    assert len(signs) > 1


def test_with_a_guider_and_blend_one_the_noise_is_the_hosts_own_to_the_bit(host, made, guider):
    out, latent = made(blend=1.0, source="saliency", guider=guider()), empty_latent(batch=2)
    assert torch.equal(noise_of(out, latent), white(host, latent=latent))


def of_text_guidance(tiny, texts):
    from guided_synthesis.nodes.host.text_guidance import TextGuidance, TextGuider

    return TextGuider(tiny[0], *texts, TextGuidance(3.0, 0.5))


def of_anagram(tiny, texts, domain="latent"):
    from guided_synthesis.nodes.anagram import AnagramGuider, View

    inputs = View.define_schema().inputs
    widgets = {entry.id: entry.default for entry in inputs if has_default(entry)}
    views = None
    with torch.inference_mode():
        for view, text in zip(("identity", "rotate 180"), texts[:2], strict=True):
            views = View.execute(**widgets | {"view": view, "conditioning": text, "views": views}).args[0]
        range_ = {"start_percent": 0.0, "end_percent": 1.0}
        return AnagramGuider.execute(
            tiny[0], views, texts[2], 3.0, "mean", domain, vae=tiny[2], **range_
        ).args[0]


def of_anagram_in_pixels(tiny, texts):
    return of_anagram(tiny, texts, "pixel")


def of_composition(tiny, texts):
    from guided_synthesis.guidance.composition import Term
    from guided_synthesis.nodes.host.composition import CompositionGuider

    return CompositionGuider(tiny[0], (Term(texts[0], 1.0), Term(texts[1], 0.5)), texts[2])


def of_two_prompts(tiny, texts):
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    guider = Guider_DualCFG(tiny[0])
    guider.set_conds(*texts)
    guider.set_cfg(3.0, 1.5)
    return guider


@pytest.mark.parametrize(
    "kind", [of_text_guidance, of_anagram, of_anagram_in_pixels, of_composition, of_two_prompts]
)
def test_any_guider_serves(made, tiny, kind):
    texts = [conditioning(tiny[1], text) for text in (TEXT, "a photo of an umbrella", "")]
    guider = kind(tiny, texts)
    before = dict(vars(guider))
    noise = noise_of(made(source="feature map", blend=0.0, guider=guider))
    assert statistics_are_those_of_white_noise(noise)
    assert vars(guider).keys() == before.keys()
    assert all(vars(guider)[name] is before[name] for name in before)


def test_model_and_guider_are_as_before_also_after_a_failure(host, tiny, made, guider, asked):
    model, _ = asked
    given = guider(model=model)
    attributes, options = dict(vars(given)), dict(model.model_options)
    before = sample(host, tiny[0], tiny[1], TEXT)

    def fail(args):
        raise ValueError("no estimate today")

    made(source="feature map", guider=given)
    broken = model.clone()
    broken.set_model_sampler_post_cfg_function(fail)
    failing = guider(model=broken)
    for one, known in ((given, attributes), (failing, dict(vars(failing)))):
        if one is failing:
            with pytest.raises(ValueError, match="no estimate today"):
                made(source="feature map", guider=one)
        assert vars(one).keys() == known.keys() and all(vars(one)[name] is known[name] for name in known)
    assert model.model_options == options
    assert torch.equal(sample(host, tiny[0], tiny[1], TEXT), before)


def test_an_estimate_that_is_not_a_number_is_one_clear_sentence(tiny, made, guider):
    model = tiny[0].clone()
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * float("nan"))
    with pytest.raises(ValueError, match="first estimate is not a number"):
        made(source="feature map", guider=guider(model=model))


def test_a_guider_of_other_latents_is_refused_before_any_work(host, node, tiny, made, guider, monkeypatch):
    monkeypatch.setattr(node, "_structure", lambda *_: pytest.fail("the work began"))
    model = tiny[0].clone()
    model.add_object_patch("latent_format", host.comfy.latent_formats.Flux())
    with pytest.raises(
        ValueError, match="guider samples latents of 16 channels, but the VAE makes latents of 4"
    ):
        made(guider=guider(model=model))


@pytest.mark.parametrize(
    "widgets", [{"source": "saliency"}, {"source": "gradient inversion", "guider": True}]
)
def test_a_label_that_nothing_speaks_for_is_one_clear_sentence(made, work, guider, monkeypatch, widgets):
    """It is said before the long search."""
    monkeypatch.setattr(work, "GradientMatching", None)
    monkeypatch.setattr(work, "saliency", lambda network, prepare, picture, label: 0 * picture[:, :1])
    with pytest.raises(
        ValueError, match=r"Nothing in the reference speaks for the label fox \(Grad-CAM is 0"
    ):
        made(**widgets | ({"guider": guider()} if "guider" in widgets else {}), label="fox")


def held(kind):
    """Return how many objects of a class are alive."""
    gc.collect()
    return sum(isinstance(thing, kind) for thing in gc.get_objects())


def test_an_interrupt_leaves_numbers_only_and_the_model_as_it_was(host, tiny, made, work, interrupted):
    before = sample(host, tiny[0], tiny[1], TEXT)
    interrupted(2)
    assert held(work.GradientMatching) == held(work.Inverter) == held(work._Run) == 0
    ((key, begun),) = work._latest.items()
    numbers = [
        *begun.frames.values(),
        begun.state.latent,
        begun.state.best,
        begun.state.first,
        begun.state.second,
    ]
    assert all(number.device.type == "cpu" and number.numel() == 4 * 16 * 16 for number in numbers)
    assert {type(part) for part in key[:3]} == {weakref.ref}
    assert torch.equal(sample(host, tiny[0], tiny[1], TEXT), before)


@pytest.mark.parametrize("kind", ["memory", "numbers"])
def test_a_failure_leaves_nothing(host, tiny, made, work, monkeypatch, kind):
    before = sample(host, tiny[0], tiny[1], TEXT)
    failure = {"memory": host.comfy.model_management.OOM_EXCEPTION, "numbers": ValueError}[kind]
    sentence = {"memory": "choose the decoder linear", "numbers": "not a number any more"}[kind]
    original = work.Inverter.step

    def step(self):
        if self.done == 2:
            raise failure("CUDA out of memory" if kind == "memory" else "not a number any more")
        return original(self)

    monkeypatch.setattr(work.Inverter, "step", step)
    with pytest.raises(failure, match=sentence):
        made()
    assert held(work.GradientMatching) == held(work.Inverter) == held(work._Run) == 0
    assert not work._latest
    monkeypatch.undo()
    assert torch.equal(sample(host, tiny[0], tiny[1], TEXT), before)


def test_a_finished_run_holds_no_network_of_its_own(made, work, monkeypatch):
    install_taesd()
    original, networks = work.open_decoder, []

    @contextmanager
    def watched(*args):
        with original(*args) as decoder:
            networks.append(weakref.ref(decoder._patcher.model))
            yield decoder

    monkeypatch.setattr(work, "open_decoder", watched)
    for source in ("gradient inversion", "FGSM"):
        made(decoder="taesd", source=source)
    assert held(work.GradientMatching) == held(work.Inverter) == 0
    assert len(networks) == 2 and not any(network() for network in networks)


# --- what the artist sees


def test_the_node_shows_a_plot_and_says_label_and_cosine(made):
    shown = made().ui
    assert set(shown) >= {"images", "text"}
    assert shown["images"][0]["type"] == "temp" and shown["images"][0]["filename"].endswith(".png")
    assert re.search(r"Label: \w+\.", shown["text"][0])
    assert re.search(r"\d\.\d{3} before, \d\.\d{3} after 4 steps", shown["text"][0])
    assert "Cosine" not in text_of(made(source="FGSM"))


def executed(node_class, **inputs):
    """What the host's executor makes of a node: its outputs, what the browser gets, and what it was told of blocks."""
    import execution

    messages, given = [], {name: [value] for name, value in inputs.items()}

    def block(blocker):
        messages.append(blocker.message)
        return blocker

    with torch.inference_mode():
        made = asyncio.run(execution.get_output_data("prompt", "1", node_class, given, block))
    return made[0], made[1], messages


def test_the_executor_gets_outputs_plot_and_text_and_stops_behind_the_latent_of_a_flow_model(
    host, node, tiny, classifier
):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    inputs = node.SaliencyNoise.define_schema().inputs
    widgets = {entry.id: entry.default for entry in inputs if not entry.optional and has_default(entry)}
    widgets |= {"vae": tiny[2], "classifier": classifier, "reference": scene(), "source": "FGSM"}
    model = ModelSamplingSD3().patch(tiny[0], 3.0)[0]
    (_, (latent,), (frames,), _), shown, _ = executed(node.SaliencyNoise, model=model, **widgets)
    assert len(shown["images"]) == len(shown["text"]) == 1 and frames.shape == (1, 128, 128, 3)
    _, _, messages = executed(
        host.nodes.LatentUpscaleBy(), samples=latent, upscale_method="area", scale_by=2.0
    )
    assert len(messages) == 1 and "Use its output noise instead" in messages[0]
    (_, (latent,), _, _), *_ = executed(node.SaliencyNoise, model=tiny[0], **widgets)
    found, *_ = executed(host.nodes.LatentUpscaleBy(), samples=latent, upscale_method="area", scale_by=2.0)
    assert found[0][0]["samples"].shape == (1, 4, 32, 32)


def test_every_input_is_explained_in_its_tooltip_and_on_the_help_page(node):
    schema = node.SaliencyNoise.define_schema()
    page = (ROOT / "js" / "docs" / schema.node_id / "en.md").read_text()
    for entry in schema.inputs:
        assert entry.tooltip and f"**{entry.id}**" in page, entry.id
    for entry in schema.outputs:
        assert entry.tooltip and f"**{entry.display_name}**" in page, entry.display_name
    for source in ("2205.03859", "2003.14053", "2024/0070816"):
        assert source in page
