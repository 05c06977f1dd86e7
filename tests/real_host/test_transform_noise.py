"""Transform Noise and the pack's NOISE objects on the real host: parity, permutations, batches, sizes, company."""

import pytest
import torch

from guided_synthesis.guidance.noise_statistics import blended, standardised
from guided_synthesis.guidance.noise_transforms import Movement, spherical_mix, turned
from real_host.sampling import SEED, STEPS, conditioning, empty_latent

NEUTRAL = {
    "turn": "0",
    "flip": "none",
    "scale": 1.0,
    "angle": 0.0,
    "shift_x": 0.0,
    "shift_y": 0.0,
    "mix": 0.5,
}
INTERPOLATING = [{"angle": 20.0}, {"scale": 0.6}, {"scale": 1.7, "angle": -70.0, "shift_x": 0.2}]


@pytest.fixture(scope="module")
def node(host):
    from guided_synthesis.nodes.transform_noise import TransformNoise

    return TransformNoise


@pytest.fixture(scope="module")
def noises(host):
    from guided_synthesis.nodes.host import noises

    return noises


@pytest.fixture(scope="module")
def custom(host):
    """The host's own nodes for noise and sampling."""
    import comfy_extras.nodes_custom_sampler

    return comfy_extras.nodes_custom_sampler


def random_noise(custom, seed=SEED):
    return custom.RandomNoise.execute(seed).args[0]


def transformed(node, noise, **widgets):
    return node.execute(noise, **(NEUTRAL | widgets)).args[0]


def picture(host, tiny, custom, noise, latent=None, name="euler"):
    """What SamplerCustomAdvanced makes of the noise: latents (B, 4, h, w)."""
    guider = host.comfy.samplers.CFGGuider(tiny[0])
    guider.set_conds(conditioning(tiny[1], "a photo of a fox"), conditioning(tiny[1], ""))
    guider.set_cfg(2.0)
    sampling = tiny[0].get_model_object("model_sampling")
    sigmas = host.comfy.samplers.calculate_sigmas(sampling, "normal", STEPS)
    sampler = host.comfy.samplers.sampler_object(name)
    with torch.inference_mode():
        out = custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent or empty_latent())
    return out.args[0]["samples"]


def structure(channels=4, height=16, width=16, batch=1):
    made = torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(3))
    return standardised(made)


def test_with_everything_neutral_it_is_the_very_same_noise(node, custom):
    noise, other = random_noise(custom), random_noise(custom, 5)
    assert transformed(node, noise) is noise
    assert transformed(node, noise, other=other, mix=0.0) is noise


@pytest.mark.parametrize("flip", ["horizontal", "vertical"])
@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral"])
def test_flipping_twice_gives_the_picture_of_the_noise_itself_to_the_bit(
    host, tiny, node, custom, flip, sampler
):
    noise = random_noise(custom)
    twice = transformed(node, transformed(node, noise, flip=flip), flip=flip)
    plain, once, back = (
        picture(host, tiny, custom, n, name=sampler)
        for n in (noise, transformed(node, noise, flip=flip), twice)
    )
    assert torch.equal(back, plain) and not torch.equal(once, plain)


@pytest.mark.parametrize("turn", ["90", "180", "270"])
def test_turned_noise_of_a_wide_latent_is_that_of_a_tall_one_turned_clockwise(host, tiny, node, custom, turn):
    noise, wide = random_noise(custom), empty_latent(96, 160, batch=2)
    found = transformed(node, noise, turn=turn).generate_noise(wide)
    source = noise.generate_noise(empty_latent(*((96, 160) if turn == "180" else (160, 96)), batch=2))
    assert torch.equal(found, turned(source, int(turn) // 90))
    assert torch.isfinite(picture(host, tiny, custom, transformed(node, noise, turn=turn), wide)).all()


def test_the_inner_noise_sees_the_latent_as_it_will_lie_under_it(node):
    class Asked:
        seed = 0

        def generate_noise(self, latent):
            self.latent = latent
            return latent["samples"]

    asked, latent = Asked(), empty_latent(96, 160)
    latent |= {"samples": torch.randn_like(latent["samples"]), "noise_mask": torch.ones(1, 1, 96, 160)}
    kept = latent["samples"].clone()
    found = transformed(node, asked, turn="90", flip="none").generate_noise(latent)
    assert torch.equal(found, kept) and torch.equal(latent["samples"], kept)
    assert asked.latent["samples"].shape == (1, 4, 20, 12) and "noise_mask" in asked.latent


def test_all_is_done_in_the_order_of_the_help_page_and_the_other_noise_is_mixed_in_as_it_is(node, custom):
    first, other, latent = random_noise(custom), random_noise(custom, 5), empty_latent(96, 160, batch=2)
    widgets = {"turn": "90", "flip": "horizontal", "shift_x": 0.25, "shift_y": -0.5}
    source = first.generate_noise(empty_latent(160, 96, batch=2))
    moved = source.rot90(-1, (-2, -1)).flip(-1).roll((-6, 5), (-2, -1))
    assert torch.equal(transformed(node, first, **widgets).generate_noise(latent), moved)
    mixed = transformed(node, first, **widgets, mix=0.3, other=other)
    assert torch.equal(mixed.generate_noise(latent), spherical_mix(moved, other.generate_noise(latent), 0.3))
    assert mixed.seed == first.seed == transformed(node, first, **widgets).seed
    alone = transformed(node, first, mix=1.0, other=other).generate_noise(latent)
    assert torch.equal(alone, other.generate_noise(latent))


@pytest.mark.parametrize("widgets", INTERPOLATING)
def test_noise_is_repeatable_and_a_picture_of_a_batch_keeps_its_noise_when_taken_out(
    host, node, custom, widgets
):
    noise, batch = transformed(node, random_noise(custom), **widgets), empty_latent(batch=3)
    all_of_it = noise.generate_noise(batch)
    assert torch.equal(noise.generate_noise(batch), all_of_it)
    part = host.nodes.LatentFromBatch().frombatch(batch, 1, 2)[0]
    assert part["batch_index"] == [1, 2]
    assert torch.equal(noise.generate_noise(part), all_of_it[1:])


@pytest.mark.parametrize("widgets", INTERPOLATING)
def test_transformed_noise_has_the_statistics_of_noise(node, custom, widgets):
    found = transformed(node, random_noise(custom), **widgets).generate_noise(empty_latent(512, 768, batch=2))
    assert found.dtype == torch.float32 and found.shape == (2, 4, 64, 96)
    assert found.mean().abs() < 0.03 and abs(found.std() - 1) < 0.03
    for dim in (-1, -2):
        assert (found * found.roll(1, dim)).mean().abs() < 0.03  # neighbours
    assert (found[0] * found[1]).mean().abs() < 0.03


def test_two_reductions_in_a_row_do_not_fill_in_the_same_noise(node, custom):
    once = transformed(node, random_noise(custom), scale=0.25)
    twice = transformed(node, once, scale=0.25)
    latent, margin = empty_latent(256, 256), slice(0, 12)
    a, b = (standardised(n.generate_noise(latent)[..., margin, :]) for n in (once, twice))
    assert (a * b).mean().abs() < 0.1
    mixed = transformed(node, random_noise(custom, 4), other=once)
    assert transformed(node, mixed, angle=3.0).depth == 2


@pytest.mark.parametrize("widgets", [{"turn": "90"}, *INTERPOLATING])
def test_no_noise_stays_no_noise(host, tiny, node, custom, widgets):
    nothing = custom.DisableNoise.execute().args[0]
    found = transformed(node, nothing, **widgets).generate_noise(empty_latent(96, 160))
    assert found.shape == (1, 4, 12, 20) and not found.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_latents_of_half_precision_and_of_more_dimensions_get_noise_of_theirs(node, custom, dtype):
    latent = {"samples": torch.zeros(2, 4, 1, 12, 20, dtype=dtype)}
    found = transformed(node, random_noise(custom), turn="90", angle=10.0).generate_noise(latent)
    assert found.shape == (2, 4, 1, 12, 20)
    assert found.dtype == random_noise(custom).generate_noise(latent).dtype
    assert abs(found.float().std() - 1) < 0.1


def test_structured_noise_with_nothing_but_fresh_noise_is_the_hosts_to_the_bit(host, noises, custom):
    noise = noises.StructuredNoise(structure(), SEED, 1.0)
    latent = empty_latent(batch=3)
    part = host.nodes.LatentFromBatch().frombatch(latent, 1, 2)[0]
    for asked in (latent, part):
        assert torch.equal(noise.generate_noise(asked), random_noise(custom).generate_noise(asked))
    assert noise.seed == SEED


@pytest.mark.parametrize("batch", [1, 3])
def test_structured_noise_repeats_the_structure_under_other_noise_for_each_picture(noises, custom, batch):
    own, latent = structure(batch=batch), empty_latent(batch=3)
    fresh = random_noise(custom).generate_noise(latent)
    found = noises.StructuredNoise(own, SEED, 0.4).generate_noise(latent)
    assert torch.equal(found, blended(own, fresh, 0.4)) and not torch.equal(found[0], found[1])
    bare = noises.StructuredNoise(own, SEED, 0.0).generate_noise(latent)
    assert torch.allclose(bare, own.expand(3, -1, -1, -1), atol=1e-6)


def test_structured_noise_can_be_turned_and_sampled(host, tiny, node, noises, custom):
    own = structure(height=20, width=12)
    noise = transformed(node, noises.StructuredNoise(own, SEED, 0.0), turn="90")
    wide = empty_latent(96, 160)
    assert torch.allclose(noise.generate_noise(wide), turned(own, 1), atol=1e-6)
    for found in (noise, transformed(node, noise, scale=1.5, angle=30.0)):
        made = picture(host, tiny, custom, found, wide)
        assert made.shape == (1, 4, 12, 20) and torch.isfinite(made).all()
    with pytest.raises(ValueError, match="12x20 cells"):
        noise.generate_noise(empty_latent(160, 96))


@pytest.mark.parametrize(
    "latent, words",
    [
        ({"samples": torch.zeros(1, 4, 16, 24)}, "16x16 cells .128x128 px.*24x16 cells .192x128 px"),
        ({"samples": torch.zeros(1, 16, 16, 16)}, "4 channels.*16 channels"),
        ({"samples": torch.zeros(3, 4, 16, 16)}, "for 2 pictures, but the latent has 3"),
        ({"samples": torch.zeros(2, 4, 1, 16, 16)}, "the shape"),
        ({"samples": torch.zeros(1, 4, 256)}, "not one of pictures"),
    ],
)
def test_a_latent_that_structured_noise_does_not_fit_is_refused(noises, latent, words):
    with pytest.raises(ValueError, match=words):
        noises.StructuredNoise(structure(batch=2), 0, 0.5).generate_noise(latent)


def test_latents_that_are_no_pictures_are_refused(host, node, custom):
    import comfy.nested_tensor

    noise = transformed(node, random_noise(custom), flip="vertical")
    several = comfy.nested_tensor.NestedTensor([torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 9)])
    for samples in (torch.zeros(1, 4, 256), several):
        with pytest.raises(ValueError, match="not one of pictures"):
            noise.generate_noise({"samples": samples})


@pytest.mark.parametrize("scale", [0.0, -1.0, 0.2, 4.5, float("nan")])
def test_a_scale_out_of_range_is_refused(node, custom, scale):
    with pytest.raises(ValueError, match="choose 0.25 to 4"):
        transformed(node, random_noise(custom), scale=scale)


def test_what_is_no_noise_is_refused_by_name(node, custom):
    with pytest.raises(ValueError, match="noise .dict. is not a noise"):
        transformed(node, empty_latent(), angle=3.0)
    with pytest.raises(ValueError, match="other .Tensor. is not a noise"):
        transformed(node, random_noise(custom), other=torch.zeros(1))
    with pytest.raises(ValueError, match="mix is 1.5"):
        transformed(node, random_noise(custom), mix=1.5, other=random_noise(custom))


def test_a_noise_of_another_size_or_none_cannot_be_mixed_in(node, noises, custom):
    small = noises.StructuredNoise(structure(height=8, width=8), 0, 0.5)
    with pytest.raises(ValueError, match="8x8 cells"):
        transformed(node, random_noise(custom), other=small).generate_noise(empty_latent())
    nothing = custom.DisableNoise.execute().args[0]
    with pytest.raises(ValueError, match="zero everywhere"):
        transformed(node, random_noise(custom), other=nothing).generate_noise(empty_latent())


def test_the_widgets_stand_at_neutral_and_name_what_the_movement_knows(node):
    schema = node.define_schema()
    defaults = {given.id: given.default for given in schema.inputs if hasattr(given, "default")}
    assert {name: defaults[name] for name in NEUTRAL} == NEUTRAL
    assert Movement(int(NEUTRAL["turn"]) // 90, NEUTRAL["flip"]) == Movement()
    assert all(part.tooltip for part in (*schema.inputs, *schema.outputs))
