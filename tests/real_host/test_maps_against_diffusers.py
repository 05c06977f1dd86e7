"""The recorder against an implementation that shares no code with the host: diffusers with the same weights."""

import pytest
import torch

from real_host.sampling import SEED

TEXT = "a photo of a fox and an apple in the snow"
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def other(host, tiny):
    """Return the UNet of diffusers, the processors that keep its maps, and the host's key of each."""
    from real_host.diffusers_unet import converted, keep_maps

    network, layers = converted(tiny[0])
    return network, keep_maps(network, layers), layers


@pytest.fixture(scope="module")
def text(host, tiny):
    from guided_synthesis.nodes.prompt import PromptWords

    with torch.inference_mode():
        return PromptWords.execute(tiny[1], TEXT).args


class Watcher:
    """An editor that keeps every map of every head."""

    def __init__(self):
        self.maps = {}

    def reads(self, layer, condition, progress):
        """Read all of the positive."""
        return condition.kind == 0

    def edit(self, maps, call):
        """Keep and return the maps."""
        self.maps[call.layer.key] = maps.clone()
        return maps


def one_pass(host, model, positive, level, size):
    """Denoise noise of the schedule's `level` once, in the host; returns x, sigma, the noise prediction, the latent."""
    seen = {}

    def step(network, x, sigmas, extra_args=None, callback=None, disable=None):
        seen["x"] = x.clone()
        seen["denoised"] = network(x, sigmas[:1].expand(len(x)), **extra_args)
        return seen["denoised"]

    sigma = model.get_model_object("model_sampling").sigmas[level]
    latent = torch.zeros(2, 4, *size)
    with torch.inference_mode():
        result = host.comfy.sample.sample_custom(
            model,
            host.comfy.sample.prepare_noise(latent, SEED),
            1.0,
            host.comfy.samplers.KSAMPLER(step),
            torch.stack([sigma, torch.zeros(())]),
            positive,
            positive,
            latent,
            seed=SEED,
        )
    return seen["x"], sigma, (seen["x"] - seen["denoised"]) / sigma, result


def in_diffusers(network, x, sigma, level, positive):
    """Return diffusers' noise prediction for the same."""
    with torch.no_grad():
        text = positive[0][0].clone().expand(len(x), -1, -1)
        scaled = x.clone() / (sigma.clone() ** 2 + 1).sqrt()
        return network(scaled, torch.tensor(level), encoder_hidden_states=text).sample


@pytest.mark.parametrize("size", [(16, 16), (9, 13), (20, 11)])
@pytest.mark.parametrize("level", [30, 400, 900])
def test_noise_prediction_and_maps_of_all_layers_are_those_of_diffusers(host, tiny, text, other, level, size):
    from guided_synthesis.nodes.attention_maps import AttentionRecorder
    from guided_synthesis.nodes.host.attention_hook import cross_attention_layers, edit_attention

    (positive, prompt), (network, kept, keys) = text, other
    watcher, scales = Watcher(), {f"scale_{scale}": True for scale in (1, 2, 4, 8)}
    with torch.inference_mode():
        recorded, maps = AttentionRecorder.execute(tiny[0], prompt, **scales).args
    x, sigma, predicted, result = one_pass(host, edit_attention(recorded, watcher), positive, level, size)
    expected = in_diffusers(network, x, sigma, level, positive)
    assert (predicted - expected).abs().max() < TOLERANCE
    layers = cross_attention_layers(tiny[0].model.diffusion_model)
    recording = maps.of(result)
    assert set(keys.values()) == set(layers) == set(watcher.maps)
    for name, key in keys.items():
        theirs = kept[name].maps
        assert watcher.maps[key].shape == theirs.shape and theirs.shape[-1] == prompt.length
        assert (watcher.maps[key] - theirs).abs().max() < TOLERANCE
        words = theirs.mean(1)[..., list(recording.tokens)]
        assert (recording.sums[layers[key]].total - words).abs().max() < TOLERANCE


def test_the_comparison_tells_other_weights_apart(host, tiny, text, other):
    """One query matrix scaled by 1 %: the maps of its layer are off by far more than the tolerance."""
    from guided_synthesis.nodes.host.attention_hook import edit_attention

    positive, (network, kept, keys), watcher = text[0], other, Watcher()
    x, sigma, *_ = one_pass(host, edit_attention(tiny[0], watcher), positive, 400, (16, 16))
    name = next(iter(keys))
    weight = network.get_submodule(name).to_q.weight
    with torch.no_grad():
        weight.mul_(1.01)
        try:
            in_diffusers(network, x, sigma, 400, positive)
        finally:
            weight.div_(1.01)
    assert (watcher.maps[keys[name]] - kept[name].maps).abs().max() > 5 * TOLERANCE
