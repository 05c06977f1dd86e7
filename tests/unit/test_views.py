"""What all views promise: exact inverses, inner products, gradients, any size and dtype, latents like pictures."""

from dataclasses import FrozenInstanceError, fields

import pytest
import torch
from torch.autograd import gradcheck

from guided_synthesis.guidance.views.protocol import View
from guided_synthesis.guidance.views.registry import VIEWS, Parameters, make

SIZES = [(16, 16), (25, 25), (9, 9), (12, 20), (9, 15), (64, 64)]
QUARTER_TURNS = {"rotate 90 clockwise", "rotate 90 counter-clockwise", "rotate"}
EXACT = [
    "identity",
    "flip horizontal",
    "flip vertical",
    "rotate 90 clockwise",
    "rotate 90 counter-clockwise",
    "rotate 180",
    "rotate",
    "negate",
    "skew",
    "patch permutation",
    "pixel permutation",
    "jigsaw",
    "inner circle",
    "concentric rings",
    "square hinge",
    "mirror halves",
]
FAMILIES = [
    ("low pass", "high pass"),
    ("triple pass low", "triple pass middle", "triple pass high"),
    ("grayscale", "colour"),
    ("motion", "motion rest"),
    ("mask", "mask rest"),
]
FAILURES = ["rotate 135", "blur", "white balance"]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def parameters(height: int, width: int) -> Parameters:
    """Return parameters that fit a picture of this size."""
    rows, columns = (next(n for n in range(2, side + 1) if side % n == 0) for side in (height, width))
    mask = torch.rand(1, 1, 8, 6, generator=torch.Generator().manual_seed(1))
    return Parameters(angle=90, rows=rows, columns=columns, size=0.75, seed=3, mask=mask)


def fitting(name: str, height: int, width: int) -> View:
    """Return the view; of a picture that is not square, quarter turns become half turns."""
    name = "rotate 180" if name in QUARTER_TURNS and height != width else name
    given = parameters(height, width)
    return make(name, Parameters(**{**vars(given), "rows": 2}) if name == "concentric rings" else given)


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3, 4, 16])
def test_every_view_and_its_inverse_keep_shape_and_dtype_and_treat_each_sample_by_itself(
    name, size, channels
):
    view, x = fitting(name, *size), noise(2, channels, *size)
    before = x.clone()
    for way in (view.view, view.inverse):
        both = way(x)
        assert both.shape == x.shape and both.dtype == x.dtype
        assert torch.allclose(both[1:], way(x[1:]), atol=1e-6)
    assert torch.equal(x, before)


def test_the_views_that_claim_exact_and_orthogonal_are_those_of_the_list():
    views = {name: fitting(name, 16, 16) for name in VIEWS}
    assert [name for name, view in views.items() if view.exact] == EXACT
    assert [name for name, view in views.items() if view.orthogonal] == EXACT
    parts = [name for name, view in views.items() if view.component]
    assert sorted(parts) == sorted([*sum(FAMILIES, ()), "scale"])
    assert [name for name, view in views.items() if view.experimental] == FAILURES


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8]
)
def test_the_inverse_of_exact_views_leads_back_to_the_bit_both_ways(name, size, dtype):
    view = fitting(name, *size)
    x = (100 * noise(2, 4, *size)).to(torch.int64).to(dtype)
    assert torch.equal(view.inverse(view.view(x)), x)
    assert torch.equal(view.view(view.inverse(x)), x)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("size", SIZES)
def test_orthogonal_views_are_linear_and_keep_inner_products(name, size):
    view = fitting(name, *size)
    a, b = noise(1, 4, *size), noise(1, 4, *size, seed=1)
    assert torch.allclose(view.view(2 * a - b), 2 * view.view(a) - view.view(b), atol=1e-5)
    for one, other in ((a, b), (a, a)):
        assert (view.view(one) * view.view(other)).sum().item() == pytest.approx(
            (one * other).sum().item(), rel=1e-5
        )


@pytest.mark.parametrize("name", FAILURES)
def test_the_failures_are_linear_but_change_the_power_of_noise_which_is_why_they_fail(name):
    view, a, b = fitting(name, 64, 64), noise(1, 3, 64, 64), noise(1, 3, 64, 64, seed=1)
    assert torch.allclose(view.view(2 * a - b), 2 * view.view(a) - view.view(b), atol=1e-5)
    assert abs(view.view(a)[..., 20:44, 20:44].square().mean().item() - 1) > 0.1
    assert len(view.experimental.split()) > 10


@pytest.mark.parametrize("name", [name for name in EXACT if name != "identity"])
@pytest.mark.parametrize("size", SIZES)
def test_no_view_but_the_identity_leaves_the_picture_as_it_is(name, size):
    x = noise(1, 3, *size)
    assert not torch.equal(fitting(name, *size).view(x), x)


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("size", [(8, 8), (6, 9)])
def test_every_view_and_its_inverse_pass_gradcheck(name, size):
    view, x = fitting(name, *size), noise(1, 2, *size, dtype=torch.float64).requires_grad_()
    assert gradcheck(view.view, x)
    assert gradcheck(view.inverse, x)


@pytest.mark.parametrize("name", VIEWS)
def test_gradients_flow_through_a_view_that_was_made_and_used_in_inference_mode_before(name):
    with torch.inference_mode():
        view, x = fitting(name, 16, 16), noise(1, 3, 16, 16)
        expected = view.inverse(view.view(x)).clone()
    x = noise(1, 3, 16, 16).requires_grad_()
    found = view.inverse(view.view(x))
    found.square().sum().backward()
    assert torch.equal(found.detach(), expected)
    assert x.grad is not None and x.grad.abs().sum() > 0


@pytest.mark.parametrize("names", FAMILIES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_components_of_a_family_sum_to_the_picture(names, size, channels):
    parts, x = [fitting(name, *size) for name in names], noise(2, channels, *size)
    assert all(part.component and torch.equal(part.view(x), x) for part in parts)
    assert torch.allclose(sum(part.inverse(x) for part in parts), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("names", FAMILIES)
def test_components_are_linear_and_each_has_a_share(names):
    for name in names:
        part, a, b = fitting(name, 64, 64), noise(1, 3, 64, 64), noise(1, 3, 64, 64, seed=1)
        assert torch.allclose(part.inverse(3 * a - b), 3 * part.inverse(a) - part.inverse(b), atol=1e-5)
        assert 0.001 < part.inverse(a).square().mean() < a.square().mean()


@pytest.mark.parametrize("name", [*sum(FAMILIES, ()), *FAILURES])
def test_half_precision_is_computed_in_float32(name):
    view, x = fitting(name, 16, 16), noise(1, 3, 16, 16)
    for dtype in (torch.float16, torch.bfloat16):
        for way in (view.view, view.inverse):
            assert torch.equal(way(x.to(dtype)), way(x.to(dtype).float()).to(dtype))


IN_LATENTS = {
    "identity",
    "flip horizontal",
    "flip vertical",
    "rotate 90 clockwise",
    "rotate 90 counter-clockwise",
    "rotate 180",
    "rotate",
    "patch permutation",
    "mirror halves",
    "square hinge",
    "scale",
    "low pass",
    "high pass",
    "triple pass low",
    "triple pass middle",
    "triple pass high",
    "motion",
    "motion rest",
    "mask",
    "mask rest",
}


def test_the_views_that_are_safe_in_latents_are_those_that_move_whole_cells_or_filter_space():
    assert {name for name in VIEWS if fitting(name, 48, 48).in_latents(48, 48)} == IN_LATENTS


@pytest.mark.parametrize(
    "name, size",
    [
        ("patch permutation", (10, 12)),
        ("patch permutation", (12, 10)),
        ("mirror halves", (8, 9)),
        ("square hinge", (16, 16)),
        ("square hinge", (12, 15)),
        ("rotate 90 clockwise", (8, 9)),
        ("low pass", (15, 40)),
        ("high pass", (15, 40)),
        ("triple pass low", (31, 31)),
        ("triple pass middle", (31, 31)),
        ("triple pass high", (31, 31)),
    ],
)
def test_a_latent_whose_cells_a_view_would_cut_or_that_is_coarser_than_the_blur_is_not_safe(name, size):
    assert not make(name, Parameters(rows=4, columns=4)).in_latents(*size)


@pytest.mark.parametrize("name", [name for name in EXACT if name in IN_LATENTS])
@pytest.mark.parametrize("size", [(12, 12), (9, 9), (12, 20), (6, 8)])
def test_where_latents_are_safe_the_view_of_a_latent_is_that_of_the_picture_it_decodes_to(name, size):
    view, x = fitting(name, *size), noise(1, 4, *size)
    if view.in_latents(*size):
        view.check(*size)
        assert torch.equal(view.view(enlarged(x)), enlarged(view.view(x)))
    else:
        assert not torch.equal(view.view(enlarged(x)), enlarged(view.view(x)))


def enlarged(x: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(8, -1).repeat_interleave(8, -2)


@pytest.mark.parametrize("name", ["low pass", "triple pass low", "motion", "mask"])
def test_a_filter_means_the_same_for_a_latent_and_the_picture_it_decodes_to(name):
    """Not to the bit: cells are coarse. But what is kept of a smooth pattern is."""
    part = make(name, Parameters(mask=torch.ones(1, 1, 4, 4)))
    small = torch.sin(torch.linspace(0, 6, 32))[:, None] * torch.cos(torch.linspace(0, 6, 32))
    large = torch.sin(torch.linspace(0, 6, 256))[:, None] * torch.cos(torch.linspace(0, 6, 256))
    kept = [(part.inverse(x[None, None]).norm() / x.norm()).item() for x in (small, large)]
    assert kept[0] == pytest.approx(kept[1], abs=0.03)


@pytest.mark.parametrize("name", VIEWS)
def test_views_are_immutable_and_made_alike_are_alike(name):
    view, again = fitting(name, 16, 16), fitting(name, 16, 16)
    x = noise(1, 3, 16, 16)
    assert torch.equal(view.inverse(view.view(x)), again.inverse(again.view(x)))
    for field in fields(view):
        with pytest.raises(FrozenInstanceError):
            setattr(view, field.name, None)


@pytest.mark.parametrize("name", ["patch permutation", "pixel permutation", "jigsaw"])
def test_a_seed_decides_and_leaves_the_random_numbers_of_others_alone(name):
    x = noise(1, 3, 16, 16)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    shown = [make(name, Parameters(seed=seed)).view(x) for seed in (0, 0, 1, 2)]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(shown[0], shown[1])
    assert not torch.equal(shown[0], shown[2]) and not torch.equal(shown[2], shown[3])
    assert all(
        not torch.equal(make(name, Parameters(rows=1, columns=2, seed=s)).view(x), x) for s in range(8)
    )


def test_names_and_parameters_that_do_not_exist_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match="no view called 'upside'.*flip horizontal"):
        make("upside", Parameters())
    assert all(kind.needs <= {field.name for field in fields(Parameters)} for kind in VIEWS.values())
    assert all(kind.about.endswith(".") for kind in VIEWS.values())


@pytest.mark.parametrize(
    "name, given, said",
    [
        ("rotate", {"angle": float("nan")}, "angle"),
        ("inner circle", {"angle": float("inf")}, "angle"),
        ("inner circle", {"size": 0.0}, "size"),
        ("inner circle", {"size": 1.2}, "short side"),
        ("concentric rings", {"rows": 0}, "ring"),
        ("patch permutation", {"rows": 0}, "at least two"),
        ("patch permutation", {"rows": 1, "columns": 1}, "at least two"),
        ("low pass", {"sigma": 0.0}, "sigma"),
        ("high pass", {"sigma": 0.3}, "0.25"),
        ("triple pass middle", {"sigma": -1.0}, "sigma"),
        ("triple pass high", {"sigma": 0.0}, "sigma"),
        ("blur", {"sigma": 0.0}, "sigma"),
        ("scale", {"size": 0.0}, "factor"),
        ("mask", {"mask": None}, "missing"),
        ("mask rest", {"mask": None}, "missing"),
        ("mask", {"mask": torch.ones(8, 8)}, "must be"),
    ],
)
def test_parameters_out_of_range_are_refused_with_a_sentence(name, given, said):
    with pytest.raises(ValueError, match=said):
        make(name, Parameters(**given))


@pytest.mark.parametrize(
    "name, given, size, said",
    [
        ("rotate 90 clockwise", {}, (64, 48), "square.*48 x 48"),
        ("rotate", {"angle": -90.0}, (64, 48), "square"),
        ("patch permutation", {"rows": 5}, (64, 64), r"5 rows do not fit.*64 high.*2, 4, 8, 16, 32, 64"),
        ("patch permutation", {"columns": 3}, (64, 40), r"3 columns.*40 wide.*2, 4, 5, 8, 10, 20, 40"),
        ("jigsaw", {}, (3, 9), "4 px"),
        ("square hinge", {}, (9, 5), "6 px"),
        ("inner circle", {"size": 0.1}, (16, 16), "larger size"),
        ("concentric rings", {"rows": 9}, (16, 16), "fewer rows"),
    ],
)
def test_a_size_that_a_view_does_not_fit_is_refused_with_what_to_do(name, given, size, said):
    view = make(name, Parameters(**given))
    with pytest.raises(ValueError, match=said):
        view.check(*size)
    with pytest.raises(ValueError, match=said):
        view.view(noise(1, 3, *size))


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("size", SIZES)
def test_what_fits_passes_the_check(name, size):
    assert fitting(name, *size).check(*size) is None
