"""The realism of the benchmarks: no distance between real and real, more for worse pictures, honest errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from benchmarks.realism import Realism, kernel
from tiny_sd import data
from tiny_sd.world import draw, make_spec, stroke_painting

COUNT = 60


def _scenes(first: int, count: int) -> list[np.ndarray]:
    return [draw(make_spec(data.HELD_OUT + first + index)).image for index in range(count)]


def _pictures(images: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).movedim(-1, 1).float() / 255


@pytest.fixture(scope="module")
def scenes() -> list[np.ndarray]:
    """Scenes that the reference does not hold."""
    return _scenes(0, COUNT)


@pytest.fixture(scope="module")
def outputs(scenes) -> Tensor:
    """The scenes as pictures (N, 3, 128, 128) in [0, 1]."""
    return _pictures(scenes)


@pytest.fixture(scope="module")
def real() -> Tensor:
    """Other scenes: the reference."""
    return _pictures(_scenes(100_000, 200))


@pytest.fixture(scope="module")
def realism(real) -> Realism:
    """The distance to the reference, as AlexNet sees it."""
    return Realism(real)


def test_other_real_scenes_are_no_distance_away(realism, outputs):
    value, error = realism.measure(outputs)
    assert abs(value) < 3 * error and error < 0.1


def test_the_distance_is_the_same_every_time_and_in_any_order(realism, outputs):
    assert realism(outputs) == realism(outputs)
    assert realism(outputs.flip(0)) == pytest.approx(realism(outputs), abs=1e-6)


def test_it_grows_with_blur(realism, outputs):
    distances = [realism(gaussian_blur(outputs, 25, sigma)) for sigma in (0.5, 1.0, 2.0, 4.0)]
    assert distances == sorted(distances) and distances[0] > realism(outputs) and distances[-1] > 1


def test_it_grows_with_noise(realism, outputs):
    noise = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0))
    distances = [realism((outputs + sigma * noise).clamp(0, 1)) for sigma in (0.0, 0.01, 0.02, 0.05)]
    assert distances == sorted(distances) and distances[-1] > 0.5


def test_stroke_paintings_are_far_from_real(realism, scenes, outputs):
    strokes = _pictures([stroke_painting(scene) for scene in scenes])
    value, error = realism.difference(strokes, outputs)
    assert value > 0.3 and value > 5 * error


def test_the_difference_is_that_of_the_distances_and_sharper_than_they_are(realism, outputs):
    worse = gaussian_blur(outputs, 25, 1.0)
    value, error = realism.difference(worse, outputs)
    measured = realism.measure(worse), realism.measure(outputs)
    assert value == pytest.approx(measured[0].value - measured[1].value)
    assert 0 < error < measured[0].error and value > 10 * error
    assert realism.difference(outputs, outputs) == (0, 0)


def test_it_is_the_kernel_distance_of_torchmetrics(real, outputs):
    from torchmetrics.image.kid import KernelInceptionDistance

    realism = Realism(real[:COUNT])

    class Seen(torch.nn.Module):
        num_features = 1152

        def forward(self, images: Tensor) -> Tensor:
            return realism._in_units(realism._seen(images))

    distance = KernelInceptionDistance(Seen(), subsets=2, subset_size=COUNT, normalize=True)
    distance.set_dtype(torch.float64)
    distance.update(real[:COUNT], real=True)
    distance.update(outputs, real=False)
    assert realism(outputs) == pytest.approx(distance.compute()[0].item(), abs=1e-4)


def test_other_seeds_of_one_scene_are_not_counted_as_two_pictures(realism, outputs):
    scenes = torch.arange(COUNT)
    once, twice = (
        realism.measure(outputs, scenes),
        realism.measure(outputs.repeat(2, 1, 1, 1), scenes.repeat(2)),
    )
    assert list(twice) == pytest.approx(list(once), abs=1e-6)


def test_the_error_is_the_spread_over_other_samples(real, scenes, outputs):
    """On pictures worse than real, where the estimate is nearly linear in the pictures."""
    many = gaussian_blur(torch.cat([outputs, _pictures(_scenes(1000, 140))]), 25, 2.0)
    realism = Realism(real)
    found = [realism.measure(part) for part in many.split(20)]
    spread = torch.tensor([value for value, _ in found]).std().item()
    assert 0.5 < spread / np.mean([error for _, error in found]) < 2


def test_the_kernel_is_the_cubic_one():
    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert kernel(x, y).tolist() == [[6.5**3, 1.0]]


def test_vgg_sees_blur_as_well(real, outputs):
    realism = Realism(real[:24], "vgg")
    worse = realism.difference(gaussian_blur(outputs[:24], 25, 2.0), outputs[:24])
    assert worse.value > 3 * worse.error > 0
