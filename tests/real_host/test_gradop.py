"""The GradOP node on the real host: parity, effect, projections, company, counts, failures."""

import re

import pytest
import torch

from guided_synthesis.guidance.painting import gaussian
from imagenet.weights import install
from real_host.sampling import SEED, STEPS, conditioning, sample, scene_painting
from tiny_sd.host_model import install_taesd

CAPTION = scene_painting()[1]


@pytest.fixture(scope="module")
def node(host):
    from guided_synthesis.nodes import gradop

    return gradop


@pytest.fixture(scope="module")
def painting():
    return scene_painting()[0]


@pytest.fixture
def gradop(node, tiny, painting):
    """Run the node as a graph does: its own defaults, fewer steps; returns its io.NodeOutput."""

    def run(**widgets):
        inputs = node.GradOP.define_schema().inputs
        settings = {
            entry.id: entry.default for entry in inputs if getattr(entry, "default", None) is not None
        }
        settings |= {"model": tiny[0], "vae": tiny[2], "painting": painting, "seed": SEED, "steps": STEPS}
        settings |= {"cfg": 3.0, "iterations": 40} | widgets
        settings.setdefault("positive", conditioning(tiny[1], CAPTION))
        settings.setdefault("negative", conditioning(tiny[1], ""))
        with torch.inference_mode():
            return node.GradOP.execute(**settings)

    return run


def latents(output):
    """x_star, x_tilde, x_tau of a node's output."""
    return [latent["samples"] for latent in output.args[:3]]


def distance(tiny, latent, painting):
    """Painting distance of a decoded latent: both pictures blurred by 6 px."""
    with torch.inference_mode():
        pictures = tiny[2].decode(latent).movedim(-1, 1)
        return (gaussian(pictures, 6.0) - gaussian(painting.movedim(-1, 1), 6.0)).square().mean((1, 2, 3))


def counting(model):
    """A clone of `model` that counts the calls of its diffusion model, and the list it counts in."""
    calls = []

    def wrapper(apply_model, args):
        calls.append(len(args["cond_or_uncond"]))
        return apply_model(args["input"], args["timestep"], **args["c"])

    clone = model.clone()
    clone.set_model_unet_function_wrapper(wrapper)
    return clone, calls


@pytest.mark.parametrize(
    "widgets",
    [{}, {"sampler_name": "dpmpp_2m_sde", "scheduler": "karras"}, {"cfg": 1.0, "sampler_name": "uni_pc"}],
)
def test_the_sample_from_the_text_is_the_ksamplers_to_the_bit(host, tiny, gradop, widgets):
    x_star, x_tilde, x_tau = latents(gradop(iterations=0, t0=0.0, **widgets))
    assert torch.equal(x_tau, sample(host, tiny[0], tiny[1], CAPTION, **widgets))
    assert torch.equal(x_tilde, x_tau)  # no iterations
    assert torch.equal(x_star, x_tilde)  # no projection


@pytest.mark.parametrize("projection", ["forward diffusion", "ddim inversion"])
def test_the_optimum_meets_the_painting_and_the_result_lies_between(tiny, gradop, painting, projection):
    output = gradop(projection=projection, seed=2)
    star, tilde, tau = (distance(tiny, latent, painting).item() for latent in latents(output))
    assert tilde < 0.1 * tau and tilde < star < 0.8 * tau


def test_the_distances_are_those_of_the_decoded_pictures(tiny, gradop, painting):
    output = gradop()
    x_star, _, x_tau = latents(output)
    expected = [distance(tiny, latent, painting).item() for latent in (x_tau, x_star)]
    assert output.args[3:] == pytest.approx(expected, rel=1e-4)


def test_forward_diffusion_is_the_hosts_img2img_to_the_bit(host, tiny, node, gradop):
    x_star, x_tilde, _ = latents(gradop(t0=0.6))
    seed = node.derived_seed(SEED, 1)
    again = sample(host, tiny[0], tiny[1], CAPTION, {"samples": x_tilde}, denoise=0.6, seed=seed)
    assert seed != SEED and torch.equal(x_star, again)


@pytest.mark.parametrize("projection", ["forward diffusion", "ddim inversion"])
def test_more_noise_forgets_more_of_the_painting(tiny, gradop, painting, projection):
    far = [
        distance(tiny, latents(gradop(projection=projection, t0=t0))[0], painting).item()
        for t0 in (0.0, 0.3, 1.0)
    ]
    assert far == sorted(far)


def test_inversion_and_denoising_at_cfg_one_return_to_the_optimum(tiny, gradop):
    """Measured: 4 to 6 % (20 steps) and 2 % (50 steps) of the latent's norm; random noise instead: 32 to 78 %."""
    output = gradop(projection="ddim inversion", cfg=1.0, steps=20, iterations=0)
    x_star, x_tilde, _ = latents(output)
    assert (x_star - x_tilde).norm() < 0.1 * x_tilde.norm()
    forgetful = latents(gradop(cfg=1.0, steps=20, iterations=0))[0]
    assert (forgetful - x_tilde).norm() > 3 * (x_star - x_tilde).norm()


@pytest.mark.parametrize("kind", ["latent", "low-pass"])
def test_gamma_pulls_the_optimum_to_the_sample(gradop, kind):
    moves = []
    for gamma in (0.0, 0.01, 0.1, 100.0):
        _, x_tilde, x_tau = latents(gradop(gamma=gamma, distance=kind, iterations=100, t0=0.0))
        moves.append((x_tilde - x_tau).square().mean().item())
    assert moves == sorted(moves, reverse=True) and len(set(moves)) == 4
    if kind == "latent":  # the low-pass one leaves detail free at any weight
        assert moves[-1] < 0.02 * moves[0]


@pytest.fixture
def lpips_folder(host, tmp_path, monkeypatch):
    """The folder `models/lpips`, with real AlexNet."""
    install(tmp_path, "alexnet")
    monkeypatch.setitem(host.folder_paths.folder_names_and_paths, "lpips", ([str(tmp_path)], set()))
    host.folder_paths.filename_list_cache.pop("lpips", None)
    yield tmp_path
    host.folder_paths.filename_list_cache.pop("lpips", None)


def test_with_lpips_gamma_keeps_the_look_of_the_sample(tiny, node, gradop, lpips_folder):
    from guided_synthesis.nodes.host.perceptual import open_lpips

    looks = []
    for gamma in (0.0, 0.01, 0.3):
        widgets = {"gamma": gamma, "decoder": "vae", "iterations": 12, "t0": 0.0}
        _, x_tilde, x_tau = latents(gradop(distance="LPIPS", **widgets))
        with torch.inference_mode(), open_lpips("alex") as compare:
            pictures = (tiny[2].decode(latent).movedim(-1, 1) for latent in (x_tilde, x_tau))
            looks.append(compare(*pictures).item())
    assert looks == sorted(looks, reverse=True) and looks[-1] < 0.7 * looks[0]


@pytest.mark.parametrize("decoder", ["vae", "taesd"])
def test_the_exact_decoders_lower_the_painting_distance_too(tiny, gradop, painting, decoder):
    install_taesd()
    _, x_tilde, x_tau = latents(gradop(decoder=decoder, iterations=12, t0=0.0))
    assert distance(tiny, x_tilde, painting).item() < 0.4 * distance(tiny, x_tau, painting).item()


@pytest.mark.parametrize("name", ["gaussian", "median palette", "superpixel"])
def test_every_painting_function_serves(gradop, name):
    output = gradop(painting_function=name, t0=0.0)
    before, after = output.args[3:]
    assert after < 0.7 * before


def test_a_batch_of_paintings_is_their_pictures_one_by_one(host, tiny, gradop):
    paintings = torch.cat([scene_painting(3)[0], scene_painting(8)[0]])
    x_star, x_tilde, x_tau = latents(gradop(painting=paintings))
    own, other = (distance(tiny, x_tilde, p) for p in (paintings, paintings.flip(0)))
    assert x_star.shape == (2, 4, 16, 16) and (own < 0.2 * other).all()


def test_the_descent_of_a_batch_finds_what_its_paintings_find_alone(host, tiny, node, gradop, monkeypatch):
    """All from the same samples: the noise of a batch is other noise than that of its members alone."""
    paintings = torch.cat([scene_painting(3)[0], scene_painting(8)[0]])
    x_tau = latents(gradop(painting=paintings, iterations=0, t0=0.0))[2]
    found = []
    for chosen in (slice(0, 2), slice(0, 1), slice(1, 2)):
        start = x_tau[chosen]
        monkeypatch.setattr(node.HostSampler, "from_text", lambda *_, start=start: start)
        found.append(latents(gradop(painting=paintings[chosen], iterations=100, t0=0.0))[1])
    assert torch.allclose(found[0], torch.cat(found[1:]), atol=1e-2 * found[0].abs().max().item())


def test_model_and_decoder_calls_are_what_the_page_says(tiny, node, gradop, monkeypatch):
    opened = []
    original = node.open_decoder

    def spy(*args):
        manager = original(*args)

        class Opened:
            def __enter__(self):
                opened.append(manager.__enter__())
                return opened[-1]

            def __exit__(self, *error):
                return manager.__exit__(*error)

        return Opened()

    monkeypatch.setattr(node, "open_decoder", spy)
    model, calls = counting(tiny[0])
    gradop(model=model, iterations=25)
    assert calls == [2] * 2 * STEPS
    assert [(decoder.calls, decoder.exact.calls) for decoder in opened] == [(25, 3)]
    calls.clear()
    gradop(model=model, iterations=0, projection="ddim inversion")
    assert calls == [2] * STEPS + [1] * STEPS + [2] * STEPS  # upwards with the positive prompt alone
    calls.clear()
    gradop(model=model, iterations=0, t0=0.0)
    assert calls == [2] * STEPS


def test_the_descent_stops_when_the_loss_is_flat_and_the_node_shows_its_curve(node, gradop, monkeypatch):
    shown = []
    original = node.curve
    monkeypatch.setattr(node, "curve", lambda losses, *text: shown.append(losses) or original(losses, *text))
    output = gradop(gamma=0.03, iterations=500, t0=0.0)
    assert 40 <= len(shown[0]) < 300 and shown[0][-1].item() < 0.5 * shown[0][0].item()
    picture = output.ui.as_dict()["images"][0]
    assert picture["type"] == "temp" and picture["filename"].endswith(".png")
    assert gradop(iterations=0, t0=0.0).ui is None  # nothing to draw


def test_one_progress_bar_runs_through_all_phases(host, tiny, gradop, monkeypatch):
    seen = []

    def prepare(model, total):
        return lambda step, latent, x, of: seen.append((step, of, total, tuple(latent.shape)))

    import latent_preview

    monkeypatch.setattr(latent_preview, "prepare_callback", prepare)
    gradop(iterations=5, projection="ddim inversion")
    total = 3 * STEPS + 5
    assert seen == [(step, total, total, (1, 4, 16, 16)) for step in range(total)]


def test_the_same_seed_gives_the_same_pictures_and_another_seed_others(gradop):
    first, second, third = (latents(gradop(iterations=10, seed=seed)) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, third, strict=True))


def test_the_largest_seed_serves(gradop):
    assert latents(gradop(iterations=1, seed=2**64 - 1))[0].isfinite().all()


def test_an_interrupt_in_any_phase_leaves_the_model_as_it_was(host, tiny, node, gradop, monkeypatch):
    before = sample(host, tiny[0], tiny[1])
    management = host.comfy.model_management
    original = node.Progress.phase

    for wanted in range(4):  # the text, the descent, the inversion, the projection
        begun = []

        def phase(self, steps, wanted=wanted, begun=begun):
            report, number = original(self, steps), len(begun)
            begun.append(steps)

            def interrupting(step, *rest):
                report(step, *rest)
                if number == wanted and step == 2:
                    management.interrupt_current_processing()

            return interrupting

        monkeypatch.setattr(node.Progress, "phase", phase)
        with pytest.raises(management.InterruptProcessingException):
            gradop(projection="ddim inversion")
        assert len(begun) == wanted + 1
        assert torch.equal(sample(host, tiny[0], tiny[1]), before)


def test_out_of_memory_says_which_decoder_to_choose(host, node, gradop, monkeypatch):
    kind = host.comfy.model_management.OOM_EXCEPTION

    def greedy(*_, **__):
        raise kind("CUDA out of memory")

    monkeypatch.setattr(node, "relax", greedy)
    with pytest.raises(kind, match="choose the decoder linear"):
        gradop()


@pytest.mark.parametrize("height, width", [(64, 130), (79, 136)])
def test_other_sizes_are_cropped_around_the_middle_as_vae_encode_does(tiny, node, gradop, height, width):
    painting = torch.rand(1, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    painting = (
        torch.nn.functional.interpolate(painting, (height, width), mode="bicubic").clamp(0, 1).movedim(1, -1)
    )
    output = gradop(painting=painting, mask=torch.ones(1, height, width), t0=0.3)
    x_star, _, x_tau = latents(output)
    assert x_star.shape[-2:] == (height // 8, width // 8)
    cropped = tiny[2].vae_encode_crop_pixels(painting)
    assert torch.equal(node._paintings(painting, None, 8)[0], cropped.movedim(-1, 1))
    assert output.args[4] < output.args[3]


def test_outside_the_mask_the_painting_does_not_count_at_all(gradop, painting):
    mask = torch.zeros(1, 128, 128)
    mask[:, :, :64] = 1
    outside, inside = painting.clone(), painting.clone()
    outside[:, :, 96:] = 1 - outside[:, :, 96:]  # further from the mask than the blur reaches
    inside[:, :, :32] = 1 - inside[:, :, :32]
    results = [latents(gradop(painting=p, mask=mask))[0] for p in (painting, outside, inside)]
    assert torch.equal(results[0], results[1]) and not torch.allclose(results[0], results[2], atol=0.5)


def test_company_cfg_one_areas_several_positives_and_a_sampler_with_noise(tiny, gradop):
    clip = tiny[1]
    area = [
        [entry[0], entry[1] | {"area": (8, 8, 4, 4), "strength": 1.0}]
        for entry in conditioning(clip, "a cat")
    ]
    both = conditioning(clip, CAPTION) + area
    for widgets in ({"cfg": 1.0}, {"positive": both}, {"sampler_name": "euler_ancestral", "positive": both}):
        for projection in ("forward diffusion", "ddim inversion"):
            before, after = gradop(projection=projection, t0=0.5, **widgets).args[3:]
            assert after < 0.9 * before


def test_paintings_and_values_at_the_edge_are_served(gradop):
    flat = torch.full((1, 128, 128, 3), 0.5)
    for widgets in (
        {"painting": flat},
        {"gamma": 0.0},
        {"colours": 1},
        {"t0": 1.0},
        {"brush": 0.0},
        {"steps": 1},
    ):
        output = gradop(iterations=5, **widgets)
        assert all(latent.isfinite().all() for latent in latents(output))
        assert all(0 <= value < 1 for value in output.args[3:])


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"painting": torch.rand(1, 7, 64, 3)}, "painting is 64x7 px, smaller than one latent cell of 8 px"),
        ({"mask": torch.zeros(1, 128, 128)}, "mask is empty (all zero)"),
        ({"mask": torch.ones(3, 128, 128)}, "mask has 3 masks for 1 paintings"),
        ({"t0": 1.2}, "t0 is 1.2; it is the noise level"),
        ({"gamma": -1.0}, "gamma is -1"),
        ({"vae": None}, "connect the VAE output"),
        ({"model": object()}, "does not paint single pictures"),
        ({"decoder": "taesd"}, "taesd_decoder"),
        ({"distance": "LPIPS"}, "LPIPS compares pictures, and the decoder linear shows only blobs"),
    ],
)
def test_bad_input_is_one_clear_sentence_before_sampling(host, tiny, gradop, monkeypatch, change, sentence):
    monkeypatch.setattr(host.folder_paths, "get_filename_list", lambda folder: [])
    model, calls = counting(tiny[0])
    with pytest.raises(ValueError, match=re.escape(sentence)):
        gradop(**({"model": model} | change))
    assert not calls


def test_every_input_is_explained_in_its_tooltip_and_on_the_help_page(node):
    from comfy_host.places import ROOT

    schema = node.GradOP.define_schema()
    page = (ROOT / "js" / "docs" / schema.node_id / "en.md").read_text()
    for entry in schema.inputs:
        assert entry.tooltip and f"**{entry.id}**" in page, entry.id
    for entry in schema.outputs:
        assert entry.tooltip and f"`{entry.display_name}`" in page or f"**{entry.display_name}**" in page
