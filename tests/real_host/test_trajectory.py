"""Trajectories on the real host: shown as pictures, kept in files, and files that are not what they should be."""

import dataclasses
import json
import os
import re
import warnings
from types import SimpleNamespace

import pytest
import safetensors
import torch
from safetensors.torch import save_file

from guided_synthesis.guidance.trajectory import Trajectory
from guided_synthesis.guidance.trajectory_io import described, packed
from real_host.sampling import scene_painting

SIGMAS = torch.tensor([14.6146, 8.0, 4.0, 2.0, 1.0, 0.4, 0.0])
STEPS = len(SIGMAS) - 1


@pytest.fixture(scope="module")
def node(host):
    from guided_synthesis.nodes import trajectory

    return trajectory


@pytest.fixture(scope="module")
def plots(host):
    from guided_synthesis.nodes.host import plots

    return plots


@pytest.fixture(scope="module")
def clean(tiny):
    """Two pictures as LATENT samples (2, 4, 16, 16)."""
    with torch.inference_mode():
        return torch.cat([tiny[2].encode(scene_painting(seed)[0]) for seed in (3, 4)])


@pytest.fixture(scope="module")
def path(tiny, clean):
    """A trajectory of two pictures from noise, as an inversion inside of a node leaves it."""
    from guided_synthesis.nodes.host.trajectories import fingerprint

    with torch.inference_mode():
        start = tiny[0].model.process_latent_in(clean)
        noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
        return Trajectory(
            sigmas=SIGMAS,
            latents=torch.stack([start + sigma * noise for sigma in SIGMAS]),
            residuals=torch.linspace(1e-2, 1e-6, 2 * STEPS).reshape(STEPS, 2),
            method="implicit",
            cfg=7.5,
            calls=25,
            model=fingerprint(tiny[0]),
            prompt="a photo of a fox",
        )


@pytest.fixture
def folders(host, tmp_path, monkeypatch):
    """Empty input, output and temp folders of the host."""
    places = {name: tmp_path / name for name in ("input", "output", "temp")}
    for name, place in places.items():
        place.mkdir()
        monkeypatch.setattr(host.folder_paths, f"{name}_directory", str(place))
    return SimpleNamespace(**places, above=tmp_path)


def view(node, tiny, path, frames=6, **given):
    """The strip and the plot of Trajectory View."""
    inputs = {"model": tiny[0], "vae": tiny[2]} | given
    with torch.inference_mode():
        return node.TrajectoryView.execute(path, frames=frames, **inputs).args


def save(node, path, prefix="trajectories/trajectory"):
    """The name that Save Trajectory shows."""
    with torch.inference_mode():
        return node.SaveTrajectory.execute(path, prefix).ui.value.splitlines()[0]


def load(node, name):
    """The trajectory of Load Trajectory, after its own check."""
    with torch.inference_mode():
        assert node.LoadTrajectory.validate_inputs(name) is True
        return node.LoadTrajectory.execute(name).args[0]


def options(node):
    """The files that Load Trajectory offers."""
    return node.LoadTrajectory.define_schema().inputs[0].options


def same(first, second):
    """Whether all fields are equal, tensors to the bit."""
    pairs = [(getattr(first, f.name), getattr(second, f.name)) for f in dataclasses.fields(Trajectory)]
    return all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(nan=-1), b.nan_to_num(nan=-1))
        if isinstance(a, torch.Tensor)
        else a == b
        for a, b in pairs
    )


# --- Trajectory View


def test_the_strip_goes_from_the_noise_to_the_vaes_picture(node, tiny, path, clean):
    strip, plot = view(node, tiny, path)
    assert strip.shape == (2, 128, 6 * 128, 3) and strip.dtype == torch.float32
    assert plot.shape == (1, 320, 512, 3)
    with torch.inference_mode():
        picture = tiny[2].decode(clean)
    assert torch.allclose(strip[:, :, -128:], picture, atol=1e-5)
    errors = [(strip[:, :, 128 * frame :][:, :, :128] - picture).square().mean().item() for frame in range(6)]
    assert errors == sorted(errors, reverse=True)


def test_noisy_steps_reach_the_vae_with_the_power_of_clean_ones(node, tiny, path):
    seen = []
    watched = SimpleNamespace(**{
        name: getattr(tiny[2], name)
        for name in ("first_stage_model", "latent_dim", "latent_channels", "downscale_ratio")
    })  # fmt: skip

    def decode(latent):
        seen.append(latent)
        return torch.zeros(latent.shape[0], 128, 128, 3)

    watched.decode = decode
    view(node, tiny, path, STEPS + 1, vae=watched)
    assert len(seen) == STEPS + 1
    assert all(0.5 < latent.std() / seen[-1].std() < 2 for latent in seen)
    assert torch.equal(seen[-1], tiny[0].model.process_latent_out(path.latents[-1]))


@pytest.mark.parametrize("frames, shown", [(2, 2), (3, 3), (7, 7), (8, 7), (100, 7)])
def test_there_are_at_most_as_many_frames_as_steps_and_the_picture_is_always_the_last(
    node, tiny, path, frames, shown
):
    short = dataclasses.replace(path, latents=path.latents[:, :1, :, :4, :6], residuals=path.residuals[:, :1])
    strip, _ = view(node, tiny, short, frames)
    assert strip.shape == (1, 32, shown * 48, 3)
    assert torch.equal(strip[:, :, :48], view(node, tiny, short, 2)[0][:, :, :48])
    assert torch.equal(strip[:, :, -48:], view(node, tiny, short, 2)[0][:, :, -48:])


def test_latents_in_double_precision_and_one_step_are_shown_too(node, tiny, path):
    double = dataclasses.replace(path, latents=path.latents.double())
    assert torch.equal(view(node, tiny, double, 2)[0][:, :, -128:], view(node, tiny, path, 2)[0][:, :, -128:])
    single = Trajectory(SIGMAS[[0, -1]], path.latents[[0, -1]], path.residuals[:1], "ddim", 1.0, 1)
    assert torch.equal(view(node, tiny, single)[0], view(node, tiny, path, 2)[0])


def test_the_trajectory_is_not_changed_by_looking_at_it(node, tiny, path):
    before = dataclasses.replace(path, latents=path.latents.clone(), residuals=path.residuals.clone())
    view(node, tiny, path)
    assert same(path, before)


def test_an_interrupt_ends_the_decoding(host, node, tiny, path, monkeypatch):
    management, calls = host.comfy.model_management, []
    whole = tiny[2].decode

    def decode(latent):
        calls.append(1)
        if len(calls) == 2:
            management.interrupt_current_processing()
        return whole(latent)

    monkeypatch.setattr(tiny[2], "decode", decode)
    with pytest.raises(management.InterruptProcessingException):
        view(node, tiny, path)
    assert len(calls) == 2


@pytest.mark.parametrize(
    "changes, given, sentence",
    [
        ({"model": "0" * 16}, {}, "was made with another model"),
        ({}, {"vae": None}, "connect the VAE output"),
        (
            {"model": "", "latents": torch.zeros(STEPS + 1, 2, 16, 4, 4)},
            {},
            "latents of 16 channels, but this VAE",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(node, tiny, path, changes, given, sentence):
    with pytest.raises(ValueError, match=sentence):
        view(node, tiny, dataclasses.replace(path, **changes), **given)


# --- the residual plot


def coloured(plot):
    """Where the plot (1, H, W, 3) has a line: not grey, (H, W)."""
    return (plot[0].amax(-1) - plot[0].amin(-1)) > 0.3


def test_each_picture_has_its_line_of_residuals(node, tiny, path):
    plot = view(node, tiny, path, 2)[1]
    blue, orange = ((plot[0, ..., a] - plot[0, ..., b]) > 0.3 for a, b in ((2, 0), (0, 2)))
    assert blue.any() and orange.any()


def test_nothing_measured_is_said_without_a_warning(node, tiny, path):
    empty = dataclasses.replace(path, residuals=torch.full((STEPS, 2), torch.nan))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot = view(node, tiny, empty, 2)[1]
    middle = plot[0, 120:200, 150:400]
    assert not coloured(plot).any() and (middle < 0.4).any()
    assert not (view(node, tiny, path, 2)[1][0, 120:200, 150:400] < 0.1).all(-1).any()


def test_a_value_between_two_missing_ones_is_a_dot_and_infinity_is_left_out(plots):
    values = torch.full((9,), torch.nan)
    values[4] = 1e-3
    dot = coloured(plots.curve(values, "t", "y", "step"))
    assert 0 < dot.sum() < 200
    values[6] = torch.inf
    assert coloured(plots.curve(values, "t", "y", "step")).any()


def test_zeros_keep_the_logarithmic_scale_of_the_rest(plots):
    values = torch.tensor([1e-1, 1e-2, 1e-3, 1e-4, 0.0])
    rows = [
        coloured(plots.curve(values, "t", "y"))[:, columns].nonzero()[:, 0].float().mean()
        for columns in (slice(90, 110), slice(270, 290), slice(480, 500))
    ]
    assert rows[0] + 60 < rows[1] and rows[1] + 60 < rows[2]  # on a linear scale the last two would be one


def test_the_axis_is_named(plots):
    values = torch.linspace(1, 2, 5)
    usual, named = plots.curve(values, "t", "y"), plots.curve(values, "t", "y", "attention")
    assert torch.equal(usual[:, :280], named[:, :280]) and not torch.equal(usual[:, 295:], named[:, 295:])


# --- Save Trajectory, Load Trajectory


@pytest.mark.parametrize("prompt", ["a photo of a fox", "ein F\u00fcchslein \U0001f98a\nim \u96ea", ""])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_saved_is_loaded_to_the_bit(node, path, folders, dtype, prompt):
    residuals = path.residuals.clone()
    residuals[::2] = torch.nan
    null_text = torch.randn(STEPS, 2, 77, 8, generator=torch.Generator().manual_seed(1))
    full = dataclasses.replace(
        path,
        latents=path.latents.to(dtype),
        residuals=residuals,
        null_text=null_text,
        prompt=prompt,
        cfg=0.1 + 0.2,
    )
    name = save(node, full)
    assert name == "trajectories/trajectory_00001_.safetensors [output]"
    assert same(load(node, name), full)


def test_a_loaded_trajectory_is_usable_by_the_view_and_shows_what_it_holds(node, tiny, path, folders):
    name = save(node, path)
    out = node.LoadTrajectory.execute(name)
    assert out.ui.value == described(path) and "worst residual: 0.01" in out.ui.value
    assert torch.equal(view(node, tiny, out.args[0])[0], view(node, tiny, path)[0])


def test_a_loaded_trajectory_no_longer_needs_its_file(node, path, folders):
    name = save(node, path)
    found = load(node, name)
    file = folders.output / name.removesuffix(" [output]")
    file.write_bytes(bytes(file.stat().st_size))
    assert same(found, path)


def test_each_save_takes_the_next_number_and_leaves_nothing_else(node, path, folders):
    names = [save(node, path, "mine/fox") for _ in range(3)]
    assert names == [f"mine/fox_{number:05}_.safetensors [output]" for number in (1, 2, 3)]
    assert sorted(file.name for file in (folders.output / "mine").iterdir()) == [
        name.removeprefix("mine/").removesuffix(" [output]") for name in names
    ]


@pytest.mark.parametrize(
    "prefix, name",
    [
        ("fox", "fox_00001_.safetensors [output]"),
        ("a\\b\\fox", "a/b/fox_00001_.safetensors [output]"),
        ("a//./fox", "a/fox_00001_.safetensors [output]"),
        ("fox.v2", "fox.v2_00001_.safetensors [output]"),
        ("f\u00fcchse/\U0001f98a", "f\u00fcchse/\U0001f98a_00001_.safetensors [output]"),
    ],
)
def test_a_prefix_may_have_folders_dots_and_any_letters(node, path, folders, prefix, name):
    assert save(node, path, prefix) == name
    assert same(load(node, name), path)
    assert save(node, path, prefix) == name.replace("00001", "00002")


def test_a_date_in_the_prefix_is_filled_in(node, path, folders):
    assert re.fullmatch(r"\d{4}/fox_00001_\.safetensors \[output\]", save(node, path, "%year%/fox"))


def test_a_file_that_the_host_does_not_count_is_not_overwritten(node, path, folders, host, monkeypatch):
    first = save(node, path, "fox")
    file = folders.output / first.removesuffix(" [output]")
    before = file.read_bytes()
    counted = host.folder_paths.get_save_image_path
    monkeypatch.setattr(
        host.folder_paths,
        "get_save_image_path",
        lambda *given: (*counted(*given)[:2], 1, *counted(*given)[3:]),
    )
    assert save(node, path, "fox") == "fox_00002_.safetensors [output]"
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "prefix, sentence",
    [
        ("../fox", "is not a name inside of ComfyUI's output folder"),
        ("a/../../fox", "is not a name inside"),
        ("a\\..\\..\\fox", "is not a name inside"),
        ("..", "is not a name inside"),
        ("/etc/fox", "is not a name inside"),
        ("\\\\server\\share\\fox", "is not a name inside"),
        ("C:fox", "is not a name inside"),
        ("C:\\fox", "is not a name inside"),
        ("fox\0", "is not a name inside"),
        ("", "is not a name inside"),
        ("a/", "has no file name at its end"),
        ("a/.", "has no file name at its end"),
        ("out/fox", "is a link out of ComfyUI's output folder"),
        ("taken/fox", "could not be written"),
        ("f" * 300, "could not be written"),
    ],
)
def test_a_prefix_that_leads_out_or_cannot_be_written_is_refused(node, path, folders, prefix, sentence):
    (folders.above / "elsewhere").mkdir()
    (folders.output / "out").symlink_to(folders.above / "elsewhere")
    (folders.output / "taken").write_text("a file, no folder")
    with pytest.raises(ValueError, match=re.escape(sentence)):
        save(node, path, prefix)
    assert sorted(file.name for file in folders.output.iterdir()) == ["out", "taken"]
    assert list((folders.above / "elsewhere").iterdir()) == []


def test_a_save_that_fails_half_way_leaves_no_file(node, path, folders, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(ValueError, match="No space left on device"):
        save(node, path, "fox")
    assert list(folders.output.iterdir()) == []


def test_an_output_folder_that_is_itself_a_link_works(host, node, path, folders, monkeypatch):
    (folders.above / "link").symlink_to(folders.output)
    monkeypatch.setattr(host.folder_paths, "output_directory", str(folders.above / "link"))
    name = save(node, path)
    assert options(node) == [name] and same(load(node, name), path)


class Hidden:
    """The node as the host runs it: with its graph."""

    prompt = {"1": {"class_type": "SaveTrajectory"}}
    extra_pnginfo = {"workflow": {"nodes": ["f\u00fcchslein"]}}


def written(folders):
    """The strings in the one file of the output folder."""
    file = next(folders.output.rglob("*.safetensors"))
    with safetensors.safe_open(str(file), framework="pt") as stored:
        return stored.metadata()


def test_the_graph_is_written_as_the_host_does(host, node, path, folders, monkeypatch):
    asked = node.SaveTrajectory.INPUT_TYPES()["hidden"]
    assert {"prompt", "extra_pnginfo"} <= set(asked)
    monkeypatch.setattr(node.SaveTrajectory, "hidden", Hidden)
    name = save(node, path)
    strings = written(folders)
    assert json.loads(strings["prompt"]) == Hidden.prompt
    assert json.loads(strings["workflow"]) == Hidden.extra_pnginfo["workflow"]
    assert strings["trajectory.prompt"] == path.prompt and strings["trajectory.model"] == path.model
    assert same(load(node, name), path)


def test_a_host_that_writes_no_metadata_keeps_prompts_out_of_the_file(host, node, path, folders, monkeypatch):
    monkeypatch.setattr(node.trajectory_files.args, "disable_metadata", True)
    monkeypatch.setattr(node.SaveTrajectory, "hidden", Hidden)
    name = save(node, path)
    assert "fox" not in str(written(folders)) and set(map(str, written(folders))).isdisjoint(
        {"prompt", "workflow"}
    )
    assert same(load(node, name), dataclasses.replace(path, prompt=""))


def write(file, path, **changes):
    """Write `path` with other tensors (None: without) to `file`."""
    tensors, strings = packed(path)
    kept = {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(kept, file, metadata=strings)


def test_files_of_input_and_saved_trajectories_are_offered_and_nothing_else(node, path, folders):
    (folders.above / "elsewhere").mkdir()
    for file in (
        folders.input / "b.safetensors",
        folders.input / "sub" / "hidden.safetensors",
        folders.output / "trajectories" / "a.safetensors",
        folders.output / "trajectories" / "cats" / "c d.safetensors",
        folders.output / "checkpoints" / "model.safetensors",
        folders.output / "trajectories" / "half.part",
        folders.temp / "t.safetensors",
        folders.above / "elsewhere" / "secret.safetensors",
    ):
        write(file, path)
    (folders.input / "picture.png").write_text("x")
    (folders.input / "folder.safetensors").mkdir()
    (folders.input / "link.safetensors").symlink_to(folders.above / "elsewhere" / "secret.safetensors")
    (folders.output / "trajectories" / "out").symlink_to(folders.above / "elsewhere")
    assert options(node) == [
        "b.safetensors",
        "trajectories/a.safetensors [output]",
        "trajectories/cats/c d.safetensors [output]",
    ]
    assert all(same(load(node, name), path) for name in options(node))
    assert same(
        load(node, "checkpoints/model.safetensors [output]"), path
    )  # by name any file of the two folders


def test_missing_folders_offer_nothing(node, folders):
    for folder in (folders.input, folders.output):
        folder.rmdir()
    assert options(node) == []


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("../secret.safetensors", "is not a name inside of ComfyUI's input folder"),
        ("sub/../../secret.safetensors", "is not a name inside"),
        ("..\\secret.safetensors", "is not a name inside"),
        ("../secret.safetensors [output]", "is not a name inside of ComfyUI's output folder"),
        ("{above}/secret.safetensors", "is not a name inside"),
        ("{above}/secret.safetensors [output]", "is not a name inside"),
        ("C:\\secret.safetensors", "is not a name inside"),
        ("\0.safetensors", "is not a name inside"),
        ("link.safetensors", "is a link out of ComfyUI's input folder"),
        ("out/secret.safetensors", "is a link out of ComfyUI's input folder"),
        ("secret.safetensors [temp]", "must be the name of a .safetensors file in ComfyUI's input folder"),
        ("own.pt", "must be the name of a .safetensors file"),
        ("", "must be the name of a .safetensors file"),
        ("missing.safetensors", "There is no file 'missing.safetensors'"),
        ("own.safetensors [output]", "There is no file 'own.safetensors [output]'"),
        ("folder.safetensors", "There is no file 'folder.safetensors'"),
        ("f" * 300 + ".safetensors", "There is no file"),
    ],
)
def test_names_elsewhere_are_refused_before_the_graph_runs_and_when_it_runs(
    node, path, folders, name, sentence
):
    for file in (folders.above / "secret", folders.temp / "secret", folders.input / "own"):
        write(file.with_suffix(".safetensors"), path)
    (folders.input / "own.pt").write_bytes(b"a pickle")
    (folders.input / "folder.safetensors").mkdir()
    (folders.input / "link.safetensors").symlink_to(folders.above / "secret.safetensors")
    (folders.input / "out").symlink_to(folders.above)
    name = name.format(above=folders.above)
    assert sentence in node.LoadTrajectory.validate_inputs(name)
    for run in (node.LoadTrajectory.execute, node.LoadTrajectory.fingerprint_inputs):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            run(name)


def test_a_linked_name_is_checked_when_it_is_known(node):
    assert node.LoadTrajectory.validate_inputs() is True
    assert (
        node.LoadTrajectory.fingerprint_inputs() != node.LoadTrajectory.fingerprint_inputs()
    )  # NaN: run again


def test_the_host_notices_that_a_file_has_changed(node, path, folders):
    file = folders.input / "a.safetensors"
    write(file, path)
    os.utime(file, ns=(1, 10**9))
    first = node.LoadTrajectory.fingerprint_inputs("a.safetensors")
    assert node.LoadTrajectory.fingerprint_inputs("a.safetensors") == first
    os.utime(file, ns=(1, 2 * 10**9))
    second = node.LoadTrajectory.fingerprint_inputs("a.safetensors")
    write(file, path, null_text=torch.zeros(STEPS, 2, 7, 3))
    os.utime(file, ns=(1, 2 * 10**9))
    assert len({first, second, node.LoadTrajectory.fingerprint_inputs("a.safetensors")}) == 3


@pytest.mark.parametrize(
    "spoil, sentence",
    [
        (lambda data: data[:-5], "is damaged, or no safetensors file"),
        (lambda data: data[:100], "is damaged, or no safetensors file"),
        (lambda data: b"", "is damaged, or no safetensors file"),
        (lambda data: b"\x80\x04" + b"pickle" * 50, "is damaged, or no safetensors file"),
        (lambda data: data.replace(b'"trajectory.format":"1"', b'"trajectory.format":"7"'), "is of format 7"),
        (lambda data: data.replace(b'"trajectory.cfg"', b'"trajectory.cfx"'), "it does not tell its cfg"),
    ],
)
def test_a_damaged_file_is_one_sentence(node, path, folders, spoil, sentence):
    file = folders.input / "a.safetensors"
    write(file, path)
    data = file.read_bytes()
    assert spoil(data) != data
    file.write_bytes(spoil(data))
    assert node.LoadTrajectory.validate_inputs("a.safetensors") is True
    with pytest.raises(ValueError, match=f"a.safetensors .*{sentence}"):
        node.LoadTrajectory.execute("a.safetensors")


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"latents": None}, "it has no latents"),
        ({"unet.weight": torch.ones(1)}, "it has 'unet.weight', which none has"),
        ({"latents": torch.zeros(3, 4)}, r"its latents have the shape \(3, 4\)"),
        ({"residuals": torch.zeros(STEPS, 2).int()}, "its residuals are torch.int32"),
    ],
)
def test_a_safetensors_file_of_something_else_is_one_sentence(node, path, folders, changes, sentence):
    write(folders.input / "a.safetensors", path, **changes)
    with pytest.raises(
        ValueError, match=f"a.safetensors cannot be loaded. This is no trajectory: {sentence}"
    ):
        node.LoadTrajectory.execute("a.safetensors")


def test_a_checkpoint_is_no_trajectory(node, folders):
    from tiny_sd.host_model import CHECKPOINT

    (folders.input / "model.safetensors").write_bytes(CHECKPOINT.read_bytes())
    with pytest.raises(ValueError, match="This is no trajectory: it has no sigmas"):
        node.LoadTrajectory.execute("model.safetensors")


# --- schemas


def test_every_input_and_output_is_explained(node):
    for kind in node.NODES:
        schema = kind.define_schema()
        assert schema.category == "guided synthesis/inversion" and schema.description
        assert all(entry.tooltip for entry in [*schema.inputs, *schema.outputs])
    assert node.SaveTrajectory.define_schema().is_output_node
