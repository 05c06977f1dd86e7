"""LPIPS on the real host: golden values with real ImageNet weights, gradients, and what it says when it cannot."""

from __future__ import annotations

import gc
import shutil
import sys
import urllib.error
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from imagenet.photos import chelsea
from imagenet.weights import install

FILES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
GOLDEN = {
    "alex": (0.0456, 0.0026),
    "vgg": (0.2363, 0.1014),
}  # of lpips 0.1.4: shifted by 4 px, checkerboard on top


@pytest.fixture
def perceptual(host, tmp_path, monkeypatch):
    """The module, with an empty `models/lpips` of its own and no other files."""
    from guided_synthesis.nodes.host import perceptual

    folder = tmp_path / "models" / "lpips"
    folder.mkdir(parents=True)
    monkeypatch.setitem(host.folder_paths.folder_names_and_paths, "lpips", ([str(folder)], set()))
    monkeypatch.setattr(host.folder_paths, "models_dir", str(folder.parent))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    host.folder_paths.filename_list_cache.pop("lpips", None)
    yield perceptual
    host.folder_paths.filename_list_cache.pop("lpips", None)


@pytest.fixture
def folder(perceptual, host) -> Path:
    """The folder `models/lpips` with real AlexNet and VGG16, and SqueezeNet with random weights."""
    from safetensors.torch import save_file
    from torchvision.models import squeezenet1_1

    folder = Path(host.folder_paths.models_dir) / "lpips"
    install(folder)
    torch.manual_seed(0)
    save_file(squeezenet1_1(weights=None).state_dict(), folder / "squeezenet1_1.safetensors")
    return folder


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    """A piece of a photograph, shifted by 4 px, and with a checkerboard on it: (3, 3, 64, 64) in [0, 1]."""
    piece = chelsea()[100:164, 150:214]
    board = np.where(np.indices((64, 64)).sum(0) % 2, 20, -20)[..., None]
    pictures = np.stack([piece, np.roll(piece, 4, 1), (piece + board).clip(0, 255)])
    return torch.from_numpy(pictures).movedim(-1, 1).float() / 255


@pytest.mark.parametrize("net", GOLDEN)
def test_lpips_has_its_known_values(perceptual, folder, photo, net):
    with torch.inference_mode(), perceptual.open_lpips(net) as distance:
        found = distance(photo[1:], photo[:1])
    assert found.tolist() == pytest.approx(GOLDEN[net], abs=1e-3)
    assert found.dtype == torch.float32 and found.device == photo.device


@pytest.mark.parametrize("net", FILES)
def test_lpips_is_what_the_library_computes(perceptual, folder, photo, net):
    import lpips

    library = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    state = perceptual.comfy.utils.load_torch_file(str(folder / f"{FILES[net]}.safetensors"))
    library.net.load_state_dict(
        {key: state["features." + key.split(".", 1)[1]] for key in library.net.state_dict()}
    )
    with perceptual.open_lpips(net) as distance:
        found = distance(photo, photo.flip(0))
    torch.testing.assert_close(
        found.detach(), library(photo, photo.flip(0), normalize=True).reshape(-1).detach()
    )
    assert found[1] == 0  # the same picture


@pytest.mark.parametrize("net", FILES)
def test_gradients_flow_to_the_first_picture_inside_inference_mode(perceptual, folder, photo, net):
    with torch.inference_mode(), perceptual.open_lpips(net) as distance, torch.inference_mode(False):
        leaf = photo[1:2].clone().requires_grad_()
        before = distance(leaf, photo[:1])
        (gradient,) = torch.autograd.grad(before.sum(), leaf)
        after = distance(leaf - 0.01 * gradient / gradient.abs().amax(), photo[:1])
    assert gradient.isfinite().all() and after < before


def test_the_gradient_is_the_slope(perceptual, folder, photo):
    with perceptual.open_lpips("alex") as distance:
        leaf = photo[1:2].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(distance(leaf, photo[:1]).sum(), leaf)
        way = 1e-2 * gradient / gradient.norm()
        difference = distance(leaf + way, photo[:1]) - distance(leaf - way, photo[:1])
    assert difference.item() / 2e-2 == pytest.approx(gradient.norm().item(), rel=0.02)


def test_no_weight_wants_a_gradient_and_all_are_freed_afterwards(perceptual, folder, photo):
    with perceptual.open_lpips("alex") as distance:
        distance(photo, photo)
        network = weakref.ref(distance._patcher.model)
        assert not any(weight.requires_grad for weight in network().parameters())
        assert perceptual.gradients.is_loaded(distance._patcher)
    gc.collect()
    assert network() is None


def test_a_broken_block_frees_the_network_too(perceptual, folder, photo):
    with pytest.raises(KeyError), perceptual.open_lpips("alex") as distance:
        distance(photo, photo)
        network = weakref.ref(distance._patcher.model)
        raise KeyError
    gc.collect()
    assert network() is None


def test_a_pth_file_of_torchvision_serves_as_well(perceptual, folder, photo):
    from safetensors.torch import load_file

    torch.save(load_file(folder / "alexnet.safetensors"), folder / "alexnet-owt-7be5be79.pth")
    (folder / "alexnet.safetensors").unlink()
    with perceptual.open_lpips("alex") as distance:
        assert distance(photo[1:2], photo[:1]).item() == pytest.approx(GOLDEN["alex"][0], abs=1e-3)


def test_a_file_that_torchvision_downloaded_before_is_used(perceptual, folder, photo, tmp_path):
    from safetensors.torch import load_file

    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(load_file(folder / "alexnet.safetensors"), cache / "alexnet-owt-7be5be79.pth")
    (folder / "alexnet.safetensors").unlink()
    with perceptual.open_lpips("alex") as distance:
        assert distance(photo[1:2], photo[:1]).item() == pytest.approx(GOLDEN["alex"][0], abs=1e-3)


def test_a_missing_file_is_downloaded_and_checked(perceptual, folder, monkeypatch):
    asked = []

    def download(url, file, start_of_hash):
        asked.append((url.rsplit("/", 1)[1], start_of_hash))
        shutil.copy(folder / "vgg16.safetensors", file)

    (folder / "alexnet.safetensors").unlink()
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    perceptual.check_lpips("alex")
    perceptual.check_lpips("alex")
    assert asked == [("alexnet-owt-7be5be79.pth", "7be5be79")]


@pytest.mark.parametrize("net", FILES)
def test_without_a_file_and_offline_it_says_what_to_do(perceptual, monkeypatch, net):
    def offline(*_):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    sentence = rf"LPIPS needs {FILES[net]}-.*\.pth.*no route to host.*{FILES[net]}\.safetensors.*models/lpips"
    with pytest.raises(ValueError, match=sentence):
        perceptual.check_lpips(net)


def test_another_network_in_the_file_is_named(perceptual, folder):
    shutil.copy(folder / "vgg16.safetensors", folder / "alexnet.safetensors")
    with pytest.raises(ValueError, match=r"alexnet\.safetensors does not hold torchvision's alexnet"):
        with perceptual.open_lpips("alex"):
            pass


def test_without_the_package_it_says_so(perceptual, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ValueError, match="LPIPS needs the Python package lpips"):
        perceptual.check_lpips("alex")


def test_an_unknown_network_is_named(perceptual):
    with pytest.raises(ValueError, match=r"no LPIPS network 'resnet'. Choose one of alex, vgg, squeeze"):
        perceptual.check_lpips("resnet")


@pytest.mark.parametrize("net", FILES)
def test_the_smallest_picture_works_and_a_smaller_one_is_refused(perceptual, folder, net):
    with perceptual.open_lpips(net) as distance:
        assert distance(torch.zeros(1, 3, 32, 40), torch.ones(1, 3, 32, 40)).isfinite().all()
        with pytest.raises(ValueError, match="LPIPS cannot see pictures of 40x31 px"):
            distance(torch.zeros(1, 3, 31, 40), torch.ones(1, 3, 31, 40))


def test_pictures_of_two_sizes_are_refused(perceptual, folder):
    with perceptual.open_lpips("alex") as distance:
        with pytest.raises(ValueError, match="not 64x32 px with 32x64 px"):
            distance(torch.zeros(1, 3, 32, 64), torch.zeros(1, 3, 64, 32))
