"""Every technique beside what artists already use, in one chain: both count, off is off, and nothing stays behind."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from comfy_host.places import ROOT
from compatibility import measure
from compatibility.companions import COMPANIONS
from compatibility.document import verdicts
from compatibility.families import DEMO
from compatibility.runs import lpips_weights, picture, plain_run
from compatibility.techniques import TECHNIQUES, differs, near

DOCUMENT = ROOT / "docs" / "compatibility.md"
OTHER_SCHEDULE = "ModelSamplingDiscrete (lcm)"
SOME_SAMPLERS = ("euler_ancestral", "dpmpp_2m")
BY_STEPS = (
    "GradOP Painting Guide",
    "Low-Pass Guide",
    "Direct Inversion",
    "RePaint Sampler",
    "Loopback Sampler",
)
BESIDE_THE_NETWORK = ("PerturbedAttentionGuidance", "ControlNet")
PAIRS = [
    (technique, companion)
    for companion in COMPANIONS
    for technique in TECHNIQUES
    if not technique.own_sampler and (technique.in_network or companion in BESIDE_THE_NETWORK)
    if (technique.name, companion) != ("Direct Inversion", OTHER_SCHEDULE)  # see below
]


def named(name):
    """Return a technique."""
    return next(technique for technique in TECHNIQUES if technique.name == name)


@pytest.fixture(scope="module")
def base(host, tiny):
    """The host's own run, of two steps."""
    with lpips_weights(host):
        yield plain_run(host, tiny, steps=2)


@pytest.fixture(scope="module")
def plain(base):
    return picture(base)


@pytest.fixture(scope="module")
def alone(base):
    """Return the function that gives a technique's scene, its run without company, and the picture; each made once."""

    @cache
    def made(technique):
        scene = technique.scene(base)
        run = technique.on(scene)
        return scene, run, picture(run)

    return made


@pytest.fixture(scope="module")
def company(base):
    """Return the function that makes a companion's picture without a technique, once for each scene."""
    return cache(lambda scene, name: picture(COMPANIONS[name](scene(base))))


def another_picture(run, found, company):
    """With two steps, and in the company of what shifts colours, nobody comes closer to a photo."""
    return differs(found, company)


@pytest.mark.parametrize("technique, name", PAIRS, ids=lambda part: getattr(part, "name", part))
def test_both_count_in_either_order_and_off_is_off(base, plain, alone, company, technique, name):
    companion, (scene, patched, without) = COMPANIONS[name], alone(technique)
    orders = [technique.on(companion(scene))]
    if patched.model is not scene.model:  # only what is in the MODEL chain has an order
        orders.append(companion(patched))
    worked = technique.worked if technique.in_network else another_picture
    for run in orders:
        found = picture(run)
        assert found.isfinite().all()
        assert differs(found, without)
        assert worked(run, found, company(technique.scene, name))
    if technique.off:
        found = picture(companion(technique.off(scene)))
        assert measure.is_off(technique, found, company(technique.scene, name))
    assert torch.equal(picture(base), plain)


def scaled_in_place(h, skip, options):
    """Write into a tensor that autograd has kept, as FreeU V2 does."""
    half = h.shape[1] // 2
    h[:, :half] = h[:, :half] * (1 + 0.1 * h.mean(1, keepdim=True))
    return h, skip


def scaled(h, skip, options):
    """Do the same, into a tensor of its own."""
    one, other = h.chunk(2, 1)
    return torch.cat([one * (1 + 0.1 * h.mean(1, keepdim=True)), other], 1), skip


@pytest.mark.parametrize(
    "name", ["Perceptual Guidance", "Cross-Attention Guidance", "Null-Text Optimisation"]
)
def test_patches_that_write_in_place_have_the_gradients_of_those_that_do_not(base, name):
    found = []
    for function in (scaled_in_place, scaled):
        model = base.model.clone()
        model.set_model_output_block_patch(function)
        run = named(name).scene(base.changed(model=model))
        found.append(picture(named(name).on(run)))
    assert near(*found, 1e-5)


@pytest.mark.parametrize("companion", ["FreeU_V2", "image prompt", "LoRA", "ControlNet"])
def test_in_company_an_inverted_photo_still_comes_back(base, companion):
    belm = named("Invert and BELM Sampler")
    run = COMPANIONS[companion](base)
    assert belm.worked(run, picture(belm.on(run)), picture(run))


def test_a_photo_inverted_with_another_schedule_is_refused(base):
    run = COMPANIONS[OTHER_SCHEDULE](named("Direct Inversion").on(base))
    with pytest.raises(ValueError, match="Connect the same SIGMAS"):
        picture(run)


def test_the_document_says_what_is_measured(host, tiny):
    """A part of it: the families (the sampler is euler), and two samplers more with what depends on the steps."""
    in_rows, by_sampler, _ = verdicts(DOCUMENT.read_text(encoding="utf-8"))
    with lpips_weights(host):
        base = plain_run(host, tiny)
        families = measure.families(base)
        samplers = measure.samplers(base, SOME_SAMPLERS, [named(name) for name in BY_STEPS])
    for technique, cells in families.items():
        assert {name: cell.verdict for name, cell in cells.items()}.items() <= in_rows[technique].items()
    for technique, cells in samplers.items():
        found = {name: cell.verdict for name, cell in cells.items()}
        assert found == {name: by_sampler[name][technique] for name in SOME_SAMPLERS}
    for technique, verdict in by_sampler["euler"].items():
        assert verdict == families[technique][DEMO].verdict


def test_the_document_has_every_technique_sampler_and_scheduler(host):
    import comfyui_version

    text = DOCUMENT.read_text(encoding="utf-8")
    families, samplers, schedulers = verdicts(text)
    lists = host.comfy.samplers.KSampler
    assert list(families) == [technique.name for technique in TECHNIQUES]
    if f"ComfyUI {comfyui_version.__version__} " in text:  # another version has other lists
        assert (list(samplers), list(schedulers)) == (lists.SAMPLERS, lists.SCHEDULERS)


def test_a_cell_tells_works_runs_refused_and_fails_apart(base, plain):
    """Techniques that are broken on purpose."""
    from guided_synthesis.nodes.host import checks

    def stuck(run):
        raise ValueError("of another pack")

    def refusing(run):
        checks.image_latent(None)

    good = named("Transform Noise")
    idle = replace(good, on=good.off)
    leaky = replace(good, off=good.on)
    endless = replace(
        good, on=lambda run: run.changed(sample=lambda run: torch.full((1, 4, 8, 8), torch.nan))
    )
    expected = {
        good: "works",
        idle: "runs",
        leaky: "runs",
        endless: "fails",
        replace(good, on=stuck): "fails",
        replace(good, on=refusing): "refused",
    }
    for technique, verdict in expected.items():
        assert measure.measured(technique, base, plain).verdict == verdict
