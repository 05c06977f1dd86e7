"""Gradient matching (Eq. 6) against autograd written out, without the host."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.autograd import gradcheck
from torch.nn.functional import cross_entropy

from guided_synthesis.guidance.gradient_matching import LAYERS, GradientMatching, total_variation
from unit.classifier_nets import picture, prepare, settled, smooth_net

DOUBLE = torch.float64


def equation_6(network, x, reference, label, names=None):
    """Return 1 - cosine of the cross-entropy's gradients in float64: networks, pictures and autograd as they come."""
    network = copy.deepcopy(network).double()
    chosen = [p for name, p in network.named_parameters() if names is None or name in names]
    vectors = []
    for image in (x.double(), reference.double()):
        loss = cross_entropy(network(prepare(image)), torch.tensor([label]))
        parts = torch.autograd.grad(loss, chosen, create_graph=True, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for g, p in zip(parts, chosen, strict=True)]
        vectors.append(torch.cat([part.reshape(-1) for part in parts]))
    return 1 - (vectors[0] * vectors[1]).sum() / (vectors[0].norm() * vectors[1].norm())


def value_and_slope(objective, x):
    leaf = x.clone().requires_grad_()
    value = objective(leaf)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def small_resnet():
    """Return torchvision's ResNet of BasicBlocks (ReLU in place, max pooling, shortcuts) with few channels."""
    torch.manual_seed(1)
    return settled(
        torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=7)
    )


def squeezenet():
    torch.manual_seed(1)
    return torchvision.models.squeezenet1_1(num_classes=7).eval()


@pytest.mark.parametrize("make, side", [(smooth_net, 12), (small_resnet, 64), (squeezenet, 48)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-3), (DOUBLE, 1e-9)])
def test_value_and_gradient_are_those_of_equation_6_written_out_in_float64(make, side, dtype, tolerance):
    network, x, reference = make().to(dtype), picture(side, 1), picture(side, 2)
    value, slope = value_and_slope(GradientMatching(network, prepare, reference, 3), x.to(dtype))
    expected, direction = value_and_slope(lambda image: equation_6(network, image, reference, 3), x.double())
    assert value.shape == (1,) and value.dtype == slope.dtype == dtype
    assert (value - expected).abs() < 1e-2 * tolerance
    assert (slope - direction).norm() < tolerance * direction.norm() and direction.norm() > 0


@pytest.mark.parametrize("layers", LAYERS)
def test_the_gradient_is_that_of_finite_differences(layers):
    objective = GradientMatching(smooth_net(dtype=DOUBLE), prepare, picture(8, 2, DOUBLE), 1, layers)
    assert gradcheck(objective, picture(8, 1, DOUBLE).requires_grad_())


def test_last_stages_are_the_last_third_of_the_modules_with_parameters():
    network, x, reference = small_resnet(), picture(64, 1), picture(64, 2)
    holders = list(dict.fromkeys(name.rpartition(".")[0] for name, _ in network.named_parameters()))
    assert len(holders) == 25 and holders[18] == "layer4.0.conv1" and holders[-1] == "fc"
    names = [name for name, _ in network.named_parameters() if name.rpartition(".")[0] in holders[17:]]
    value, slope = value_and_slope(GradientMatching(network, prepare, reference, 3, "last stages"), x)
    expected, direction = value_and_slope(lambda image: equation_6(network, image, reference, 3, names), x)
    assert (value - expected).abs() < 1e-5 and (slope - direction).norm() < 2e-3 * direction.norm()
    assert (value - equation_6(network, x, reference, 3)).abs() > 1e-3


def test_the_reference_itself_has_the_value_0():
    for make, side in ((smooth_net, 12), (small_resnet, 64)):
        objective = GradientMatching(make(), prepare, picture(side), 3)
        value, slope = value_and_slope(objective, picture(side))
        assert 0 <= value.item() < 1e-6 and slope.isfinite().all()


def test_a_value_lies_between_0_and_2():
    """A network z = (a, 0) whose one gradient is the sum of the picture: opposite pictures are opposite gradients."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x):
            first = self.weight * x.sum((1, 2, 3))
            return torch.stack((first, torch.zeros_like(first)), 1)

    bright, dark = picture() + 1, -picture(seed=1) - 1
    objective = GradientMatching(Sum().eval(), lambda x: x, bright, 0)
    assert objective(bright).item() < 1e-6 and abs(objective(dark).item() - 2) < 1e-6


class Linear(nn.Module):
    """Logits from the mean colour: its gradients are known in closed form."""

    def __init__(self, certainty=0.0, scale=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.scale = nn.Linear(3, 4), scale
        with torch.no_grad():
            self.layer.bias[1] += certainty

    def forward(self, x):
        """Return logits (B, 4)."""
        return self.scale * self.layer(x.mean((2, 3)))

    def distance(self, x, reference):
        """Return Eq. 6 for label 1: g = outer(d L / d z, (features, 1)), so cosines multiply."""
        sides = []
        for image in (x.double(), reference.double()):
            features = prepare(image).mean((2, 3))[0]
            logits = self.scale * (self.layer.weight.double() @ features + self.layer.bias.double())
            slopes = logits[[0, 2, 3]].softmax(0)
            sides.append((slopes, torch.cat((features, torch.ones(1)))))
        (a, f), (b, h) = sides
        return 1 - (a @ b + 1) / ((a @ a + 1) * (b @ b + 1)).sqrt() * (f @ h) / (f.norm() * h.norm())


@pytest.mark.parametrize("certainty, scale", [(0.0, 1.0), (0.0, 1e-9), (60.0, 1.0), (1e4, 1.0), (-1e4, 1.0)])
def test_the_length_of_the_gradient_does_not_matter_even_where_the_cross_entropys_underflows(
    certainty, scale
):
    network, reference = Linear(certainty, scale).eval(), picture(seed=2)
    x = picture(seed=1) * torch.tensor([1.0, 0.2, 0.6]).reshape(1, 3, 1, 1)
    value, slope = value_and_slope(GradientMatching(network, prepare, reference, 1), x)
    expected, direction = value_and_slope(lambda image: network.distance(image, reference), x.double())
    assert expected > 0.01 and abs(value - expected) < 1e-3 * expected
    assert (slope - direction).norm() < 1e-3 * direction.norm()
    if certainty > 0:
        certain = cross_entropy(network(prepare(reference)), torch.tensor([1]))
        assert all(g.norm() < 1e-20 for g in torch.autograd.grad(certain, list(network.parameters())))


def test_parameters_without_part_in_the_logits_count_as_zero():
    class Headed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.unused = smooth_net(), nn.Linear(9, 9)

        def forward(self, x):
            return self.body(x)

    network = Headed().eval()
    x, reference = picture(seed=1), picture(seed=2)
    value, slope = value_and_slope(GradientMatching(network, prepare, reference, 3), x)
    expected, direction = value_and_slope(GradientMatching(network.body, prepare, reference, 3), x)
    assert torch.equal(value, expected) and torch.equal(slope, direction)


def test_half_precision_weights_and_weights_of_inference_mode_are_matched_in_float32():
    reference, x = picture(seed=2), picture(seed=1)
    with torch.inference_mode():
        network = smooth_net().half()
        objective = GradientMatching(network, prepare, reference.clone(), 3)
        assert all(parameter.is_inference() for parameter in network.parameters())
        with torch.inference_mode(False), torch.enable_grad():
            value, slope = value_and_slope(objective, x.clone())
    expected, direction = value_and_slope(
        lambda image: equation_6(smooth_net().half(), image, reference, 3), x.double()
    )
    assert value.dtype == torch.float32 and abs(value - expected) < 1e-6
    assert (slope - direction).norm() < 1e-4 * direction.norm()


def test_the_network_is_left_as_it_was():
    network = small_resnet()
    before, held = copy.deepcopy(network.state_dict()), dict(network.named_parameters())
    for layers in LAYERS:
        value_and_slope(GradientMatching(network, prepare, picture(64), 3, layers), picture(64, 1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter is held[name] for name, parameter in network.named_parameters())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert not any(module.training for module in network.modules())


def test_an_error_in_the_network_leaves_it_as_it_was_too():
    network = smooth_net()
    held, objective = dict(network.named_parameters()), GradientMatching(network, prepare, picture(), 3)
    with pytest.raises(RuntimeError):
        objective(torch.zeros(1, 5, 12, 12))
    assert all(parameter is held[name] for name, parameter in network.named_parameters())


def test_a_picture_that_wants_no_gradient_gets_the_same_value_without_a_graph():
    objective = GradientMatching(smooth_net(), prepare, picture(seed=2), 3)
    with torch.no_grad():
        plain = objective(picture(seed=1))
    assert not plain.requires_grad
    assert torch.equal(plain, value_and_slope(objective, picture(seed=1))[0])


def test_bad_input_is_answered_in_sentences():
    network = smooth_net()
    with pytest.raises(ValueError, match=r"no choice of layers 'first': choose one of all, last stages"):
        GradientMatching(network, prepare, picture(), 3, "first")
    for label in (-1, 5):
        with pytest.raises(ValueError, match=rf"no label {label}: it knows 5, numbered 0 to 4"):
            GradientMatching(network, prepare, picture(), label)
    with pytest.raises(ValueError, match="knows a single label"):
        GradientMatching(smooth_net(labels=1), prepare, picture(), 0)
    network[1].train()
    with pytest.raises(ValueError, match=r"train mode \(its layer 1 \(BatchNorm2d\)\).*call eval\(\)"):
        GradientMatching(network, prepare, picture(), 3)
    with pytest.raises(ValueError, match=r"train mode \(the whole network\)"):
        GradientMatching(smooth_net().train(), prepare, picture(), 3)


def test_a_reference_without_a_gradient_is_answered_in_sentences():
    dead = nn.Sequential(
        nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3, False)
    )
    with torch.no_grad():
        dead[0].bias.fill_(-1e3)
    with pytest.raises(
        ValueError, match="label 2 at the reference picture is zero.*choose another reference"
    ):
        GradientMatching(dead.eval(), prepare, picture(), 2)
    with pytest.raises(ValueError, match="is not finite"):
        GradientMatching(smooth_net(), prepare, picture() * torch.nan, 2)


def test_where_the_gradient_vanishes_the_value_is_1_and_its_slope_a_number():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3, False)
    ).eval()
    with torch.no_grad():
        network[0].weight.abs_()
    value, slope = value_and_slope(GradientMatching(network, lambda x: x, picture(), 2), picture() - 9)
    assert value.item() == 1 and (slope == 0).all()


def test_total_variation_is_the_mean_step_to_the_neighbours():
    ramp = torch.arange(4.0).expand(2, 3, 5, 4) * torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1)
    assert torch.equal(total_variation(ramp), torch.tensor([1.0, 3.0]))
    assert torch.equal(total_variation(ramp.mT), torch.tensor([1.0, 3.0]))
    assert torch.equal(total_variation(ramp + ramp.mT[..., :4, :4].mean()), torch.tensor([1.0, 3.0]))
    checked = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).expand(1, 3, 2, 2)
    assert total_variation(checked).item() == 2
    assert total_variation(torch.ones(1, 3, 1, 1)).item() == 0


def test_total_variations_gradient_is_that_of_finite_differences():
    assert gradcheck(
        total_variation, torch.cat((picture(5, 1, DOUBLE), picture(5, 2, DOUBLE))).requires_grad_()
    )
