"""The decoders on the real host: what they show, what they cost, what they say when something is missing."""

from __future__ import annotations

import copy
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import avg_pool2d


@pytest.fixture(scope="module")
def decoders(host):
    from guided_synthesis.nodes.host import decoders

    return decoders


@pytest.fixture
def approx_folder(host, tmp_path, monkeypatch):
    """Give the host an empty `models/vae_approx` of its own."""
    folders = host.folder_paths.folder_names_and_paths
    monkeypatch.setitem(folders, "vae_approx", ([str(tmp_path)], folders["vae_approx"][1]))
    host.folder_paths.filename_list_cache.pop("vae_approx", None)
    yield tmp_path
    host.folder_paths.filename_list_cache.pop("vae_approx", None)


@pytest.fixture
def taesd_file(approx_folder, tiny):
    """Put the demo VAE's decoder there: it is of TAESD's class."""
    from safetensors.torch import save_file

    state, prefix = tiny[2].first_stage_model.state_dict(), "taesd_decoder."
    state = {k.removeprefix(prefix): v.clone() for k, v in state.items() if k.startswith(prefix)}
    save_file(state, approx_folder / "taesd_decoder.safetensors")
    return approx_folder / "taesd_decoder.safetensors"


@pytest.fixture(scope="module")
def scenes(tiny):
    """Return two scenes (B, 3, 128, 128) of the demo world and their latents in the model's space."""
    from tiny_sd import data
    from tiny_sd.world import draw, make_spec

    images = [
        torch.from_numpy(draw(make_spec(data.HELD_OUT + n)).image.copy()).float() / 255 for n in range(2)
    ]
    with torch.inference_mode():
        latent = tiny[0].model.process_latent_in(tiny[2].encode(torch.stack(images)))
    return torch.stack(images).movedim(-1, 1), latent


def _descended(decoder, latent, goal):
    """Return the loss before and after one small step down the gradient, as a node would."""
    with torch.inference_mode(), torch.inference_mode(False), torch.enable_grad():
        leaf = latent.clone().requires_grad_()
        loss = (decoder(leaf) - goal).square().mean()
        (gradient,) = torch.autograd.grad(loss, leaf)
        with torch.no_grad():
            after = (decoder(leaf - 0.02 * gradient / gradient.std()) - goal).square().mean()
        return loss.item(), after.item()


def test_every_decoder_shows_the_scene_in_its_own_size_and_counts(decoders, tiny, scenes, taesd_file):
    images, latent = scenes
    for name in decoders.DECODERS:
        with decoders.open_decoder(name, tiny[2], tiny[0]) as decoder:
            assert decoder.name == name and decoder.cost.endswith(".") and decoder.calls == 0
            assert decoder.scale == (1 if name == "linear" else 8)
            shown = decoder(latent)
            assert decoder.calls == 1 and shown.dtype == torch.float32
            assert shown.shape == (2, 3, 16 * decoder.scale, 16 * decoder.scale)
            goal = images if decoder.scale == 8 else avg_pool2d(images, 8)
            assert (shown - goal).square().mean() < 0.25 * (goal - goal.mean()).square().mean()


def test_every_decoder_leads_downhill_inside_inference_mode(decoders, tiny, scenes, taesd_file):
    for name in decoders.DECODERS:
        for checkpointing in (False, True):
            with decoders.open_decoder(name, tiny[2], tiny[0], checkpointing) as decoder:
                before, after = _descended(decoder, scenes[1], 0.5)
                assert after < before
                assert decoder.calls == 2


def test_vae_shows_what_the_hosts_own_decode_shows(decoders, tiny, scenes):
    with decoders.open_decoder("vae", tiny[2], tiny[0]) as decoder, torch.inference_mode():
        theirs = tiny[2].decode(tiny[0].model.process_latent_out(scenes[1])).movedim(-1, 1)
        assert torch.allclose(decoder(scenes[1]).clamp(0, 1), theirs, atol=1e-5)


def test_taesd_shows_what_the_hosts_own_preview_network_shows(decoders, host, tiny, scenes, taesd_file):
    network = host.comfy.taesd.taesd.TAESD(None, str(taesd_file))
    with decoders.open_decoder("taesd", tiny[2], tiny[0]) as decoder, torch.no_grad():
        assert torch.allclose(decoder(scenes[1]), (network.decode(scenes[1].clone()) + 1) / 2, atol=1e-5)


def test_linear_is_closer_to_this_vae_than_the_hosts_factors_and_is_fitted_once(
    decoders, tiny, scenes, monkeypatch
):
    calls = []
    encode = decoders.gradients.encode
    monkeypatch.setattr(decoders.gradients, "encode", lambda *a: calls.append(1) or encode(*a))
    decoders._fitted.pop(tiny[2], None)
    for _ in range(2):
        with decoders.open_decoder("linear", tiny[2], tiny[0]) as decoder:
            ours = decoder(scenes[1])
    assert len(calls) == 1
    factors = torch.tensor(tiny[0].model.latent_format.latent_rgb_factors)
    theirs = torch.einsum("bchw,cr->brhw", scenes[1], factors) / 2 + 0.5
    goal = avg_pool2d(scenes[0], 8)
    assert (ours - goal).square().mean() < (theirs - goal).square().mean()


def test_linear_belongs_to_a_vae_and_a_latent_space(decoders, host, tiny):
    sdxl = SimpleNamespace(model=SimpleNamespace(latent_format=host.comfy.latent_formats.SDXL()))
    sdxl.model.process_latent_in = sdxl.model.latent_format.process_in
    with (
        decoders.open_decoder("linear", tiny[2], tiny[0]) as one,
        decoders.open_decoder("linear", tiny[2], sdxl) as two,
    ):
        latent = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        rescaled = latent * 0.13025 / 0.18215  # the same latent of the VAE in SDXL's units
        assert torch.allclose(one(latent), two(rescaled), atol=1e-3) and not torch.allclose(
            one(latent), two(latent)
        )


def test_the_memory_of_a_fitted_vae_is_not_held(decoders, tiny):
    vae = copy.copy(tiny[2])
    with decoders.open_decoder("linear", vae, tiny[0]) as decoder:
        decoder(torch.zeros(1, 4, 4, 4))
    alive = weakref.ref(vae)
    del vae
    gc.collect()
    assert alive() is None


def test_taesd_is_freed_when_its_block_ends(decoders, host, tiny, taesd_file):
    with decoders.open_decoder("taesd", tiny[2], tiny[0]) as decoder:
        decoder(torch.zeros(1, 4, 4, 4))
        network = weakref.ref(decoder._patcher.model)
        assert network() is not None
    gc.collect()
    assert network() is None
    host.comfy.model_management.cleanup_models()
    assert all(loaded is not None for loaded in host.comfy.model_management.loaded_models())


def test_a_network_is_loaded_once_and_again_for_a_larger_latent(decoders, tiny, monkeypatch):
    asked, load = [], decoders.gradients.load
    monkeypatch.setattr(
        decoders.gradients, "load", lambda p, memory, whole: asked.append(memory) or load(p, memory, whole)
    )
    with decoders.open_decoder("vae", tiny[2], tiny[0]) as decoder, torch.no_grad():
        for side in (4, 4, 2, 8):
            decoder(torch.zeros(1, 4, side, side))
    assert asked == [pytest.approx(asked[0]), pytest.approx(4 * asked[0])]


@pytest.mark.parametrize("enough", [False, True])
def test_blocks_are_recomputed_only_where_memory_is_short(decoders, host, tiny, scenes, monkeypatch, enough):
    latent = scenes[1][:1]
    whole, little = (
        decoders.gradients.decode_memory(tiny[2], latent.shape, saving) for saving in (False, True)
    )
    asked, saved = [], []
    load, checkpointed = decoders.gradients.load, decoders.gradients.checkpointed
    monkeypatch.setattr(host.comfy.model_management, "get_free_memory", lambda device: whole + enough - 0.5)
    monkeypatch.setattr(
        decoders.gradients, "load", lambda p, memory, whole: asked.append(memory) or load(p, memory, whole)
    )
    monkeypatch.setattr(decoders.gradients, "checkpointed", lambda *n: saved.append(1) or checkpointed(*n))
    with decoders.open_decoder("vae", tiny[2], tiny[0]) as decoder:
        before, after = _descended(decoder, latent, 0.5)
    assert after < before
    assert asked == [whole if enough else little]
    assert bool(saved) is not enough


def _model(latent_format):
    return SimpleNamespace(model=SimpleNamespace(latent_format=latent_format))


def _vae(**changes):
    fields = {"first_stage_model": object(), "latent_dim": 2, "latent_channels": 4, "downscale_ratio": 8}
    return SimpleNamespace(**{**fields, **changes})


@pytest.mark.parametrize(
    ("vae", "sentence"),
    [
        (None, "holds no VAE"),
        (_vae(first_stage_model=None), "holds no VAE"),
        (
            _vae(latent_channels=16),
            "16 channels.*SD15.*works on 4:.*belongs to the checkpoint",
        ),
        (_vae(latent_dim=3), "video or sound"),
        (_vae(downscale_ratio=(lambda a: a, 8, 8)), "video or sound"),
    ],
)
def test_a_vae_that_does_not_fit_is_named(decoders, host, vae, sentence):
    for name in ("vae", "linear"):
        with pytest.raises(ValueError, match=sentence):
            decoders.check_decoder(name, vae, _model(host.comfy.latent_formats.SD15()))


def test_a_flow_model_with_its_own_vae_of_16_channels_is_fine(decoders, host):
    flux = _model(host.comfy.latent_formats.Flux())
    assert decoders.check_decoder("vae", _vae(latent_channels=16), flux) == 8
    with pytest.raises(ValueError, match="4 channels.*Flux.*works on 16"):
        decoders.check_decoder("vae", _vae(), flux)


def test_a_missing_taesd_file_is_named_with_its_folder_and_a_remedy(decoders, host, approx_folder):
    (approx_folder / "taesdxl_decoder.safetensors").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"taesd_decoder\.safetensors.*models/vae_approx.*choose the decoder"
    ):
        decoders.check_decoder("taesd", _vae(), _model(host.comfy.latent_formats.SD15()))
    assert decoders.check_decoder("taesd", _vae(), _model(host.comfy.latent_formats.SDXL())) == 8


def test_a_model_without_a_taesd_and_an_unknown_decoder_are_named(decoders, host):
    with pytest.raises(ValueError, match="no TAESD for this model .SD_X4."):
        decoders.check_decoder("taesd", _vae(downscale_ratio=4), _model(host.comfy.latent_formats.SD_X4()))
    with pytest.raises(ValueError, match="no decoder 'vea'.*vae, taesd, linear"):
        decoders.check_decoder("vea", _vae(), _model(host.comfy.latent_formats.SD15()))
