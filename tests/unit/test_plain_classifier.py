"""What a classifier is made of must be twice differentiable, also where torch's own function is not."""

import torch
import torchvision
from torch import nn
from torch.nn.functional import hardsigmoid

from guided_synthesis.guidance.gradient_matching import GradientMatching
from guided_synthesis.guidance.plain_classifier import PlainClassifier
from unit.classifier_nets import picture, prepare


def hard(in_place=False):
    """Return a network of one weight and a hardsigmoid: (B, 1, 1, 1) -> (B, 1)."""
    linear = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.ones_(linear.weight)
    return nn.Sequential(nn.Flatten(), linear, nn.Hardsigmoid(in_place)).eval()


def plain(x):
    return x


def test_hardsigmoid_has_its_own_values_and_is_twice_differentiable():
    x = torch.linspace(-5, 5, 40, dtype=torch.float64).view(40, 1, 1, 1)  # none at the edges, -3 and 3
    for in_place in (False, True):
        classifier = PlainClassifier(hard(in_place), plain)
        assert torch.allclose(classifier(x).flatten(), hardsigmoid(x).flatten(), rtol=0, atol=1e-15)
        leaf = x.clone().requires_grad_()
        assert torch.autograd.gradcheck(classifier, (leaf,))
        assert torch.autograd.gradgradcheck(lambda x, of=classifier: of(x) * x.flatten(1), (leaf,))


def test_outside_of_it_hardsigmoid_is_torchs_own():
    x = torch.zeros(1, requires_grad=True)
    PlainClassifier(hard(), plain)(x.view(1, 1, 1, 1))
    assert "Hardsigmoid" in type(hardsigmoid(x).grad_fn).__name__


def mobilenet():
    """Return a random MobileNetV3 in eval mode, its BatchNorm with the statistics of random pictures."""
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v3_small(num_classes=5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(prepare(torch.rand(16, 3, 64, 64)))
    return network.eval()


def test_mobilenet_v3_can_be_inverted():
    network, reference = mobilenet(), picture(64)
    with torch.no_grad():
        expected = network(prepare(reference))
    assert torch.allclose(PlainClassifier(network, prepare)(reference), expected, atol=1e-6)
    matching, start = GradientMatching(network, prepare, reference, 2), picture(64, seed=1).requires_grad_()
    before = matching(start)
    (gradient,) = torch.autograd.grad(before.sum(), start)
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    after = matching(start.detach() - 0.01 * gradient / gradient.abs().max())
    assert after.item() < before.item()
