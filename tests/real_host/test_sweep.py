"""Sweep on the real host: values, batches and lists, gaps, what is refused; the loop that Sweep Values makes."""

from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace

import pytest
import torch

from imagenet.weights import install
from tiny_sd.world import draw, make_spec

VALUES = "0, 0.5, 2"


@pytest.fixture(scope="module")
def node(host, tmp_path_factory):
    """The module; the folder `models/lpips` holds real AlexNet."""
    from guided_synthesis.nodes import sweep

    folder = tmp_path_factory.mktemp("models") / "lpips"
    install(folder, "alexnet")
    patch = pytest.MonkeyPatch()
    patch.setitem(host.folder_paths.folder_names_and_paths, "lpips", ([str(folder)], set()))
    patch.setattr(host.folder_paths, "models_dir", str(folder.parent))
    host.folder_paths.filename_list_cache.pop("lpips", None)
    yield sweep
    patch.undo()
    host.folder_paths.filename_list_cache.pop("lpips", None)


@pytest.fixture(scope="module")
def scene():
    """IMAGE (1, 128, 128, 3)."""
    return torch.from_numpy(draw(make_spec(3, things=1)).image.copy()).float()[None] / 255


def fading(scene, *shares):
    """The scene with so much of it turned to grey, one picture for each share."""
    return torch.cat([scene + share * (0.5 - scene) for share in shares])


def sweep(node, images, reference, values=VALUES, metric="PSNR", **more):
    """The node as a graph calls it, every input in a list: the plot, and the shown lines and files."""
    inputs = {"images": images, "values": values, "reference": reference, "metric": metric}
    inputs |= {"net": "alex", "label": "strength"} | more
    with torch.inference_mode():
        out = node.Sweep.execute(**{k: v if isinstance(v, list) else [v] for k, v in inputs.items()})
    shown = out.ui if isinstance(out.ui, dict) else out.ui.as_dict()
    return SimpleNamespace(plot=out.args[0], lines=shown["text"][0].splitlines(), files=shown["images"])


def numbers(found):
    """The means of the shown lines."""
    return [float(re.findall(r"(?:PSNR|SSIM|LPIPS) ([\d.]+)", line)[0]) for line in found.lines]


def run(node_class, **inputs):
    """What the host's executor makes of a node and lists of inputs: a list for each output."""
    import execution

    with torch.inference_mode():
        made = asyncio.run(execution.get_output_data("prompt", "1", node_class, inputs))
    return made[0]


@pytest.mark.parametrize("metric, falls", [("PSNR", True), ("SSIM", True), ("LPIPS", False)])
def test_the_further_the_pictures_go_the_further_the_metric(node, scene, metric, falls):
    found = sweep(node, fading(scene, 0.1, 0.3, 0.8), scene, metric=metric)
    assert numbers(found) == sorted(numbers(found), reverse=falls) and len(set(numbers(found))) == 3
    assert [line.split(":")[0] for line in found.lines] == ["strength 0", "strength 0.5", "strength 2"]


def test_its_numbers_are_those_of_image_metrics(node, scene):
    from guided_synthesis.nodes.image_metrics import ImageMetrics

    images = fading(scene, 0.1, 0.3, 0.8)
    for index, metric in enumerate(("PSNR", "SSIM", "LPIPS")):
        with torch.inference_mode():
            single = [ImageMetrics.execute(image[None], scene, "alex").args[index] for image in images]
        assert numbers(sweep(node, images, scene, metric=metric)) == pytest.approx(single, rel=1e-3)


def test_the_plot_shows_each_picture_in_its_column(node, scene):
    colours = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    images = torch.tensor(colours)[:, None, None].expand(3, 128, 128, 3).contiguous()
    plot = sweep(node, images, scene).plot
    assert plot.ndim == 4 and plot.shape[0] == 1 and plot.shape[-1] == 3 and plot.dtype == torch.float32
    assert 512 <= plot.shape[2] <= 1100 and 0 <= plot.min() and plot.max() <= 1
    strip = plot[0, 20]
    columns = [(strip == torch.tensor(colour)).all(-1).nonzero().flatten().float() for colour in colours]
    assert all(len(column) > 100 for column in columns)
    means = [column.mean().item() for column in columns]
    assert means == sorted(means) and means[1] - means[0] == pytest.approx(means[2] - means[1], abs=1)


def test_several_pictures_of_a_value_are_averaged(node, scene):
    found = sweep(node, fading(scene, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6), scene)
    single = numbers(sweep(node, fading(scene, 0.3, 0.4, 0.5), scene))
    assert single[0] < numbers(found)[0] and found.lines[1].startswith("strength 0.5: PSNR ")
    spread = [float(x) for x in re.findall(r"\(([\d.]+) to ([\d.]+)\)", found.lines[1])[0]]
    assert spread == pytest.approx([single[1], single[0]], rel=1e-3)


def test_a_list_of_pictures_is_as_good_as_a_batch(node, scene):
    images = fading(scene, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    batch, gathered = (sweep(node, given, scene) for given in (images, list(images.split(2))))
    assert batch.lines == gathered.lines and torch.equal(batch.plot, gathered.plot)


def test_each_picture_of_a_value_may_have_its_own_reference(node, scene):
    other = scene.flip(2)
    images = torch.cat([torch.cat([fading(scene, s), fading(other, s)]) for s in (0.1, 0.3, 0.8)])
    own = sweep(node, images, torch.cat([scene, other]))
    assert numbers(own) == pytest.approx(numbers(sweep(node, fading(scene, 0.1, 0.3, 0.8), scene)), rel=1e-3)
    full = sweep(node, images, [torch.cat([scene, other])] * 3)  # a reference that ran through the list too
    assert full.lines == own.lines


def test_the_mask_says_where(node, scene):
    images = fading(scene, 0.1, 0.3, 0.8)
    images[:, :, 64:] = 1
    mask = torch.zeros(128, 128)
    mask[:, :64] = 1
    inside = numbers(sweep(node, images, scene, mask=mask))
    half = fading(scene, 0.1, 0.3, 0.8)[:, :, :64]
    assert inside == pytest.approx(numbers(sweep(node, half, scene[:, :, :64])), rel=1e-3)


def test_equal_pictures_and_broken_ones_are_named_and_drawn(node, scene):
    images = fading(scene, 0.0, 0.3, 0.8)
    images[2] = torch.nan
    found = sweep(node, images, scene)
    assert (
        found.lines[0] == "strength 0: PSNR 1 equal" and found.lines[2] == "strength 2: PSNR 1 not a number"
    )
    orange = (found.plot[0, ..., 0] - found.plot[0, ..., 2]) > 0.5
    third = found.plot.shape[2] // 3
    below = orange[-280:]
    assert below[:, :third].any() and below[:, -third:].any() and not below[:, third + 20 : -third - 20].any()


def test_half_precision_pictures_are_fine(node, scene):
    images = fading(scene, 0.1, 0.3, 0.8)
    found = sweep(node, images.half(), scene.half(), metric="LPIPS")
    assert numbers(found) == pytest.approx(numbers(sweep(node, images, scene, metric="LPIPS")), abs=2e-3)


def test_the_preview_is_the_plot(node, scene, host):
    import os

    from PIL import Image

    found = sweep(node, fading(scene, 0.1, 0.3, 0.8), scene)
    file = os.path.join(host.folder_paths.get_temp_directory(), found.files[0]["filename"])
    with Image.open(file) as picture:
        assert picture.size == (found.plot.shape[2], found.plot.shape[1])


def test_values_are_read_in_their_order(node):
    assert node.parsed(" 2, -0.5,1e-2\n.25 3. ") == [2, -0.5, 0.01, 0.25, 3]


@pytest.mark.parametrize(
    "values, sentence",
    [
        ("0, half, 1", "'half' is not a number"),
        ("0; 1", "'0;' is not a number"),
        ("nan, 1", "'nan' is not a number"),
        ("1, inf", "'inf' is not a number"),
        ("1_0", "'1_0' is not a number"),
        ("0.5, 1, .50", ".50 is there twice"),
        (" , ", "values has 0 numbers"),
        (", ".join(map(str, range(65))), "values has 65 numbers"),
    ],
)
def test_wrong_values_are_refused_before_the_graph_runs(node, scene, values, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        sweep(node, scene, scene, values=values)
    for checked in (node.Sweep.validate_inputs([values]), node.SweepValues.validate_inputs(values)):
        assert sentence in checked


def test_values_that_are_fine_or_not_known_yet_pass(node):
    for given in (VALUES, None, [VALUES], [None], (None,)):
        assert node.Sweep.validate_inputs(given) is True and node.SweepValues.validate_inputs(given) is True


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"images": torch.rand(4, 32, 32, 3)}, "images has 4 pictures for 3 values"),
        ({"images": torch.rand(2, 32, 32, 3)}, "images has 2 pictures for 3 values"),
        (
            {"images": [torch.rand(1, 32, 32, 3), torch.rand(1, 32, 40, 3)]},
            "images are of several sizes (32x32 px and 40x32 px)",
        ),
        ({"reference": torch.rand(1, 32, 64, 3)}, "reference is 64x32 px but images is 32x32 px"),
        ({"reference": torch.rand(2, 32, 32, 3)}, "reference has 2 pictures but images has 3"),
        ({"mask": torch.zeros(1, 32, 32)}, "mask 1 of 1 is empty"),
        (
            {"images": torch.rand(3, 8, 8, 3), "reference": torch.rand(1, 8, 8, 3), "metric": "SSIM"},
            "windows of 11 px",
        ),
        (
            {"images": torch.rand(3, 8, 8, 3), "reference": torch.rand(1, 8, 8, 3), "metric": "LPIPS"},
            "LPIPS cannot see",
        ),
    ],
)
def test_what_does_not_fit_is_a_sentence(node, change, sentence):
    given = {"images": torch.rand(3, 32, 32, 3), "reference": torch.rand(1, 32, 32, 3)} | change
    with pytest.raises(ValueError, match=re.escape(sentence)):
        sweep(node, **given)


def test_the_host_runs_what_follows_sweep_values_once_for_each_and_sweep_gathers_it(host, node, scene):
    """The recipe of the help page in small: Sweep Values -> a setting of a node of the host -> Sweep."""
    from comfy_extras.nodes_post_processing import Blend

    each, text = run(node.SweepValues, values=["0.25, 0.5, 1"])
    assert each == [0.25, 0.5, 1.0] and text == ["0.25, 0.5, 1"]
    grey = [torch.full_like(scene, 0.5)]
    faded = run(Blend, image1=[scene], image2=grey, blend_factor=each, blend_mode=["normal"])[0]
    assert len(faded) == 3
    widgets = {"metric": ["PSNR"], "net": ["alex"], "label": ["fade"]}
    (plot,) = run(node.Sweep, images=faded, values=text, reference=[scene], **widgets)
    direct = sweep(node, fading(scene, 0.25, 0.5, 1.0), scene, "0.25, 0.5, 1", label="fade")
    assert torch.allclose(plot[0], direct.plot, atol=0.02)


def test_the_host_refuses_wrong_values_in_the_graph_of_an_artist(host, node, monkeypatch):
    import execution

    monkeypatch.setitem(host.nodes.NODE_CLASS_MAPPINGS, "GuidedSynthesis_Sweep", node.Sweep)
    picture = {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 32, "batch_size": 2, "color": 0}}
    widgets = {"values": "0, half", "metric": "PSNR", "net": "alex", "label": "x"}
    graph = {
        "1": picture,
        "2": {
            "class_type": "GuidedSynthesis_Sweep",
            "inputs": widgets | {"images": ["1", 0], "reference": ["1", 0]},
        },
    }
    outcome = asyncio.run(execution.validate_prompt("prompt", graph, None))
    assert not outcome[0] and "'half' is not a number" in str(outcome[3])
    graph["2"]["inputs"]["values"] = "0, 1"
    assert asyncio.run(execution.validate_prompt("prompt", graph, None))[0]
