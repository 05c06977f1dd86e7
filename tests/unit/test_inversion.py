"""Inversion without a host: schemes and their inverses on slopes whose paths are known."""

import pytest
import torch

from guided_synthesis.guidance.inversion import belm, belm_sample, ddim, euler_target, implicit, same_input

SCHEDULES = {
    "even": torch.linspace(10, 0, 21),
    "geometric": torch.cat([torch.logspace(1.16, -1.5, 30), torch.zeros(1)]),
    "karras": (torch.linspace(14.6**0.2, 0.03**0.2, 20) ** 5).tolist(),
    "wild": [14.0, 13.9, 6.0, 5.99, 5.0, 1.0, 0.95, 0.1, 0.0],
    "two steps": [9.0, 2.0, 0.0],
}
SCHEDULES["karras"].append(0.0)
SEEDS = range(4)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def schedule(name):
    return torch.as_tensor(SCHEDULES[name], dtype=torch.float64)


class Network:
    """A random slope of cells (B, 2, 2, 3) in float64, which sees what a network would; counts its calls.

    It is smooth, or hears no difference below `grain`: then the last digit of its float32 input does not count.
    """

    def __init__(self, seed=0, gain=1.0, grain=None):
        self.weights = [gain * random(12, 12, seed=seed + part) / 12**0.5 for part in (0, 50)]
        self.grain, self.calls = grain, []

    def __call__(self, x, sigma):
        """Return eps(x, sigma)."""
        self.calls.append((x.clone(), float(sigma)))
        x = x if self.grain is None else (x.double() / self.grain).round() * self.grain
        seen = x.double().flatten(1) / (1 + sigma.double() ** 2).sqrt()
        out = torch.tanh(seen @ self.weights[0] + torch.log(sigma.double())) @ self.weights[1]
        return out.view_as(x)


class Gaussian:
    """The slope of pictures that are N(0, SPREAD^2): x(sigma) is proportional to sqrt(SPREAD^2 + sigma^2)."""

    SPREAD = 0.7

    def __call__(self, x, sigma):
        """Return eps(x, sigma)."""
        return (x.double() * sigma / (self.SPREAD**2 + sigma**2)).to(x)

    def path(self, clean, sigmas):
        """Return the exact latents (S + 1, B, C, h, w)."""
        return torch.stack([clean * (1 + (sigma / self.SPREAD) ** 2).sqrt() for sigma in sigmas])


def euler(slope, x, sigmas):
    """The sampler of ddim and implicit."""
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = x + (following - sigma) * slope(x, sigma)
    return x


def quiet(step, x):
    """Report nothing."""


def rms(x):
    return x.square().mean().sqrt().item()


# --- o-belm


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("grain", [None, 1e-3], ids=["smooth", "grainy"])
def test_sampling_with_o_belm_undoes_its_inversion(grain, name, seed):
    """To the last digits of float64; the wild schedule multiplies the last digit of the network's input by 6000."""
    network, sigmas, clean = Network(seed, grain=grain), schedule(name), random(2, 2, 2, 3, seed=seed)
    found = belm(network, clean, sigmas, quiet)
    back = belm_sample(network, found.latents[0], found.latents[1], sigmas, quiet)
    assert found.latents.dtype == back.dtype == torch.float64
    assert torch.equal(found.latents[-1], clean)
    assert rms(back - clean) < (1e-5 if name == "wild" and grain is None else 1e-9)


def test_every_latent_on_the_way_down_is_that_of_the_way_up():
    network, sigmas = Network(), schedule("geometric")
    found, seen = belm(network, random(2, 2, 2, 3), sigmas, quiet), {}
    belm_sample(network, *found.latents[:2], sigmas, lambda step, x: seen.update({step: x}))
    assert list(seen) == list(range(1, len(sigmas) - 1))  # the first is known and takes no call
    assert all(torch.allclose(x, found.latents[step + 1], atol=1e-9) for step, x in seen.items())


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_step_of_o_belm_is_the_formula_of_the_paper(name):
    network, sigmas = Network(), schedule(name)
    noisy, second = sigmas[0] * random(1, 2, 2, 3), sigmas[1] * random(1, 2, 2, 3, seed=1)
    seen = [noisy, second]
    belm_sample(network, noisy, second, sigmas, lambda step, x: seen.append(x) if step else None)
    level = sigmas.tolist()
    for i in range(1, len(level) - 1):  # in the order of sampling; the paper counts from the picture
        h_next, h = level[i - 1] - level[i], level[i] - level[i + 1]
        x_next, x = seen[i - 1], seen[i]
        eps = network(x.float(), torch.tensor(level[i]).float()).double()
        a, b, c = h**2 / h_next**2, (h_next**2 - h**2) / h_next**2, h * (h + h_next) / h_next
        assert torch.allclose(seen[i + 1], a * x_next + b * x - c * eps, rtol=1e-10, atol=1e-10)


def test_o_belm_is_exact_where_the_path_is_a_parabola():
    a, b, c = (random(1, 2, 2, 3, seed=seed) for seed in range(3))
    sigmas = schedule("wild")
    path = [a + b * sigma + c * sigma**2 for sigma in sigmas]
    back = belm_sample(lambda x, sigma: b + 2 * c * sigma.double(), path[0], path[1], sigmas, quiet)
    assert rms(back - a) < 1e-3 * rms(a)  # its sigmas are float32


def test_o_belm_is_of_second_order_and_euler_of_first():
    slope, clean, errors = Gaussian(), random(1, 2, 2, 3), {"euler": [], "belm": []}
    for steps in (50, 100):
        sigmas = torch.linspace(4, 0, steps + 1).double()
        path = slope.path(clean, sigmas)
        errors["euler"].append(rms(euler(slope, path[0], sigmas) - clean))
        errors["belm"].append(rms(belm_sample(slope, path[0], path[1], sigmas, quiet) - clean))
    assert errors["euler"][0] / errors["euler"][1] == pytest.approx(2, rel=0.1)
    assert errors["belm"][0] / errors["belm"][1] == pytest.approx(4, rel=0.2)
    assert errors["belm"][1] < 0.1 * errors["euler"][1]


def test_without_a_second_latent_o_belm_begins_with_a_step_of_euler():
    network, sigmas, noisy = Network(), schedule("geometric"), random(2, 2, 2, 3)
    second = euler(network, noisy, sigmas[:2])
    expected = belm_sample(network, noisy, second, sigmas, quiet)
    assert torch.allclose(belm_sample(network, noisy, None, sigmas, quiet), expected, atol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_o_belm_takes_one_call_a_step_in_float32(name):
    network, sigmas = Network(), schedule(name)
    found = belm(network, random(2, 2, 2, 3), sigmas, quiet)
    assert found.calls == len(network.calls) == len(sigmas) - 1
    assert all(x.dtype == torch.float32 for x, _ in network.calls)
    assert torch.equal(found.residuals, torch.zeros(len(sigmas) - 1, 2))
    network.calls.clear()
    belm_sample(network, *found.latents[:2], sigmas, quiet)
    assert [level for _, level in network.calls] == pytest.approx(sigmas[1:-1].tolist())


# --- implicit


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_euler_from_the_noise_of_implicit_gives_the_picture_back(name, seed):
    network, sigmas, clean = Network(seed, 0.7), schedule(name), random(2, 2, 2, 3, seed=seed)
    found = implicit(network, clean, sigmas, quiet, 1e-9, 60)
    assert found.calls == len(network.calls) and (found.residuals <= 1e-9).all()
    assert rms(euler(network, found.latents[0], sigmas) - clean) < 1e-6
    assert rms(euler(network, ddim(network, clean, sigmas, quiet).latents[0], sigmas) - clean) > 1e-3


@pytest.mark.parametrize("most_calls", [1, 2, 5])
def test_the_residuals_of_implicit_are_what_its_steps_miss(most_calls):
    network, sigmas, clean = Network(gain=3.0), schedule("wild"), random(2, 2, 2, 3)
    found = implicit(network, clean, sigmas, quiet, 1e-9, most_calls)
    assert found.calls <= most_calls * (len(sigmas) - 1) and found.residuals.shape == (len(sigmas) - 1, 2)
    for i in range(len(sigmas) - 1):
        missed = euler(network, found.latents[i], sigmas[i : i + 2]) - found.latents[i + 1]
        assert torch.allclose(
            missed.flatten(1).square().mean(1).sqrt(), found.residuals[i], rtol=1e-6, atol=1e-12
        )
    assert (found.residuals > 1e-3).any()  # so few calls cannot do it: it says so


def test_implicit_asks_the_network_only_at_the_level_where_sampling_will():
    network, sigmas = Network(), schedule("geometric")
    implicit(network, random(2, 2, 2, 3), sigmas, quiet, 1e-9, 5)
    levels = [level for _, level in network.calls]
    assert levels == sorted(levels) and set(levels) == set(sigmas[:-1].tolist())


# --- ddim


def test_ddim_asks_at_the_next_level_with_the_input_that_the_network_would_see_here():
    network, sigmas, clean = Network(), schedule("even"), random(2, 2, 2, 3)
    found, calls = ddim(network, clean, sigmas, quiet), network.calls.copy()
    assert found.calls == len(calls) == 20 and found.residuals.isnan().all()
    for i, (asked, level) in zip(range(19, -1, -1), calls, strict=True):
        low, high, below = sigmas[i + 1], sigmas[i], found.latents[i + 1]
        assert level == high
        assert torch.allclose(asked / (1 + high**2).sqrt(), below / (1 + low**2).sqrt())
        assert torch.allclose(found.latents[i], below + (high - low) * network(asked, high))


def test_ddim_comes_closer_with_more_steps():
    slope, clean, errors = Gaussian(), random(1, 2, 2, 3), []
    for steps in (20, 40, 80):
        sigmas = torch.linspace(4, 0, steps + 1).double()
        errors.append(rms(ddim(slope, clean, sigmas, quiet).latents[0] - slope.path(clean, sigmas[:1])[0]))
    assert errors == sorted(errors, reverse=True) and errors[2] < 0.5 * errors[0]


@pytest.mark.parametrize(
    "method", [ddim, belm, lambda *a: implicit(*a, 1e-6, 20)], ids=["ddim", "belm", "implicit"]
)
def test_steps_are_reported_from_the_picture_to_the_noise_with_their_latents(method):
    sigmas, seen = schedule("wild"), []
    found = method(Network(), random(2, 2, 2, 3), sigmas, lambda step, x: seen.append((step, x)))
    assert [step for step, _ in seen] == list(range(len(sigmas) - 2, -1, -1))
    assert all(torch.equal(x, found.latents[step]) for step, x in seen)
    assert found.latents.shape == (len(sigmas), 2, 2, 2, 3) and torch.equal(
        found.latents[-1], random(2, 2, 2, 3)
    )


# --- the small ones


@pytest.mark.parametrize("levels", [(0.0, 0.5), (3.0, 9.0), (9.0, 3.0)])
def test_the_same_input_keeps_what_the_network_sees(levels):
    x, (low, high) = random(2, 2, 2, 3), torch.tensor(levels).double()
    moved = same_input(x, low, high)
    assert torch.allclose(moved / (1 + high**2).sqrt(), x / (1 + low**2).sqrt())
    assert torch.allclose(same_input(moved, high, low), x)


@pytest.mark.parametrize("name", SCHEDULES)
def test_eulers_step_with_the_target_s_estimate_ends_at_the_target(name):
    sigmas, x, target = schedule(name), 5 * random(2, 2, 2, 3), random(2, 2, 2, 3, seed=1)
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        denoised = euler_target(x, sigma, following, target)
        assert torch.allclose(x + (following - sigma) * (x - denoised) / sigma, target, atol=1e-9)
    assert torch.allclose(denoised, target)  # a last step to 0 goes to the estimate itself


def test_a_straight_path_takes_implicit_one_call_a_step_after_the_first():
    """The slope at the end of one step is the guess of the next."""
    clean, sigmas = random(2, 2, 2, 3), schedule("geometric")
    noise = random(2, 2, 2, 3, seed=9)
    found = implicit(lambda x, sigma: noise, clean, sigmas, quiet, 1e-9, 20)
    assert found.calls == len(sigmas) - 1 + 1
    assert torch.allclose(found.latents[0], clean + sigmas[0] * noise)
