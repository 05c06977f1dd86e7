"""Feature maps, Grad-CAM and gradient signs of networks whose answers are known, without the host."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from guided_synthesis.guidance.saliency_sources import feature_map, saliency, sign_gradient
from unit.classifier_nets import picture, prepare, settled, smooth_net

SIDE = 32


def red_or_blue():
    """Return a network made by hand: label 0 is red, label 1 blue, 2 neither; features are 4 x 4 cells."""
    colours = nn.Conv2d(3, 2, 8, stride=8, bias=False)
    answer = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        colours.weight.zero_()
        colours.weight[0, 0] = colours.weight[1, 2] = 1 / 64
        answer.weight.copy_(torch.tensor([[9.0, -9.0], [-9.0, 9.0], [-1.0, -1.0]]))
    return nn.Sequential(colours, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), answer).eval()


def blobs():
    """Return a dark picture with a red blob at the upper left and a smaller blue one at the lower right."""
    image = torch.zeros(1, 3, SIDE, SIDE)
    image[:, 0, 4:14, 2:12] = 1.0
    image[:, 2, 24:30, 24:30] = 0.8
    return image


def plain(x):
    return x


def centre(mask):
    """Return the (row, column) of the centre of mass of `mask` (1, 1, h, w), in shares of its sides."""
    mass = mask[0, 0] / mask.sum()
    rows, columns = ((torch.arange(n) + 0.5) / n for n in mass.shape)
    return (mass.sum(1) @ rows).item(), (mass.sum(0) @ columns).item()


def test_grad_cam_points_at_the_blob_of_the_label():
    for label, expected in ((0, (9 / 32, 7 / 32)), (1, (27 / 32, 27 / 32))):
        seen = saliency(red_or_blue(), plain, blobs(), label)
        assert seen.shape == (1, 1, SIDE, SIDE) and seen.dtype == torch.float32
        assert seen.min() >= 0 and seen.max() == 1
        assert centre(seen) == pytest.approx(expected, abs=0.08)


def test_where_nothing_speaks_for_the_label_grad_cam_is_0():
    assert (saliency(red_or_blue(), plain, blobs(), 2) == 0).all()


def test_grad_cam_is_its_formula_on_the_features_known_by_hand():
    torch.manual_seed(0)
    network, image = settled(torchvision.models.resnet18(num_classes=7)), picture(96)
    seen = saliency(network, prepare, image, 4)
    stem = nn.Sequential(*list(network.children())[:-2])
    features = stem(prepare(image)).detach().requires_grad_()
    (slope,) = torch.autograd.grad(network.fc(features.mean((2, 3)))[0, 4], features)
    expected = (slope.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True).relu()
    expected = interpolate(expected, size=(96, 96), mode="bilinear", align_corners=False)
    assert expected.max() > 0 and torch.allclose(seen, expected / expected.max(), atol=1e-5)


def test_the_feature_map_is_the_mean_of_squares_and_points_at_the_blob():
    seen = feature_map(red_or_blue(), plain, blobs())
    cells = interpolate(blobs()[:, [0, 2]], scale_factor=1 / 8, mode="area")
    assert seen.shape == (1, 1, 4, 4) and seen.dtype == torch.float32
    assert torch.allclose(seen, cells.square().mean(1, keepdim=True), atol=1e-6)
    red = blobs() * torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1)
    assert centre(feature_map(red_or_blue(), plain, red)) == pytest.approx((9 / 32, 7 / 32), abs=0.08)


@pytest.mark.parametrize(
    "make, side, cells",
    [
        (torchvision.models.resnet18, 96, 3),
        (torchvision.models.squeezenet1_1, 96, 5),
        (torchvision.models.mobilenet_v2, 96, 3),
        (torchvision.models.densenet121, 96, 3),
    ],
)
def test_common_networks_have_a_feature_map(make, side, cells):
    torch.manual_seed(0)
    network = make(num_classes=5).eval()
    seen = feature_map(network, prepare, picture(side))
    assert seen.shape == (1, 1, cells, cells) and (seen >= 0).all() and seen.max() > 0


def test_a_network_without_a_feature_map_is_answered_in_a_sentence():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)).eval()
    for call in (
        lambda: feature_map(network, prepare, picture()),
        lambda: saliency(network, prepare, picture(), 1),
    ):
        with pytest.raises(
            ValueError, match="no feature map with more than one place.*convolutional network"
        ):
            call()


def test_a_label_that_is_not_known_is_answered_in_a_sentence():
    for label in (-1, 5):
        with pytest.raises(ValueError, match=f"no label {label}: it knows 5"):
            saliency(smooth_net(), prepare, picture(), label)
        with pytest.raises(ValueError, match=f"no label {label}: it knows 5"):
            sign_gradient(smooth_net(), prepare, lambda z: z, picture(), label)


def render(latent):
    return torch.sigmoid(latent[:, :3] - 0.5 * latent[:, 3:]).repeat_interleave(2, 3)


def test_the_sign_of_the_gradient_is_that_of_finite_differences_of_the_cross_entropy():
    network = smooth_net(dtype=torch.float64)
    latent = torch.randn(1, 4, 6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(z):
        with torch.no_grad():
            return cross_entropy(network(prepare(render(z))), torch.tensor([2])).item()

    expected = torch.empty_like(latent)
    for index in range(latent.numel()):
        step = torch.zeros_like(latent)
        step.view(-1)[index] = 1e-4
        expected.view(-1)[index] = loss(latent + step) - loss(latent - step)
    assert (expected.abs() > 1e-10).all()
    found = sign_gradient(network, prepare, render, latent, 2)
    assert torch.equal(found, expected.sign()) and found.shape == latent.shape


def test_it_all_works_inside_inference_mode_and_leaves_the_network_as_it_was():
    latent = torch.randn(1, 4, 6, 3, generator=torch.Generator().manual_seed(0))
    calls = (
        lambda net, make: feature_map(net, prepare, make(picture())),
        lambda net, make: saliency(net, prepare, make(picture()), 1),
        lambda net, make: sign_gradient(net, prepare, render, make(latent), 1),
    )
    network = smooth_net()
    before, held = copy.deepcopy(network.state_dict()), dict(network.named_parameters())
    expected = [call(network, lambda tensor: tensor) for call in calls]
    with torch.inference_mode():
        inference = smooth_net()
        found = [call(inference, torch.clone) for call in calls]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter is held[name] for name, parameter in network.named_parameters())
    for net in (network, inference):
        assert not any(module.training or module._forward_hooks for module in net.modules())
        assert all(parameter.grad is None for parameter in net.parameters())


def test_an_error_in_the_network_leaves_no_hook_behind():
    network = smooth_net()
    with pytest.raises(RuntimeError):
        feature_map(network, prepare, torch.zeros(1, 5, 12, 12))
    assert not any(module._forward_hooks for module in network.modules())
