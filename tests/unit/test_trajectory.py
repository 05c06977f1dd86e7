"""A trajectory: what it must fit, and as tensors and strings and back."""

import dataclasses
import re

import pytest
import torch

from guided_synthesis.guidance.trajectory import Trajectory
from guided_synthesis.guidance.trajectory_io import PREFIX, described, packed, unpacked

STEPS, PICTURES = 4, 2


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def trajectory(**changes) -> Trajectory:
    """Four steps of two pictures, 4 x 3 x 5 cells."""
    values = {
        "sigmas": torch.tensor([14.6, 5.0, 1.5, 0.3, 0.0]),
        "latents": random(STEPS + 1, PICTURES, 4, 3, 5),
        "residuals": random(STEPS, PICTURES).abs(),
        "method": "implicit",
        "cfg": 7.5,
        "calls": 33,
        "model": "0123456789abcdef",
        "prompt": "a photo of a fox",
    }
    return Trajectory(**(values | changes))


def same(first: Trajectory, second: Trajectory) -> bool:
    """Whether all fields are equal, tensors to the bit and in dtype."""
    for field in dataclasses.fields(Trajectory):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if isinstance(a, torch.Tensor):
            if b is None or a.dtype != b.dtype or a.shape != b.shape:
                return False
            if a.contiguous().view(torch.uint8).ne(b.contiguous().view(torch.uint8)).any():
                return False
        elif a != b:
            return False
    return True


def test_steps_and_pictures_are_counted():
    assert (trajectory().steps, trajectory().pictures) == (STEPS, PICTURES)


def test_each_level_but_the_last_begins_a_step():
    path = trajectory()
    assert [path.step_at(float(sigma)) for sigma in path.sigmas] == [0, 1, 2, 3, None]


def test_a_level_that_moved_by_rounding_is_found_and_another_is_not():
    path = trajectory()
    assert path.step_at(5.0 * (1 + 5e-5)) == 1 and path.step_at(torch.tensor(5.0, dtype=torch.float64)) == 1
    assert path.step_at(5.0 * (1 + 5e-4)) is None and path.step_at(3.0) is None


def test_the_same_schedule_passes_in_any_precision_and_another_is_named():
    path = trajectory()
    path.check_schedule(path.sigmas.double() * (1 + 1e-6))
    with pytest.raises(
        ValueError, match=re.escape("runs 3 steps from sigma 5 to 0, but the trajectory was made")
    ):
        path.check_schedule(path.sigmas[1:])
    with pytest.raises(ValueError, match="Connect the same SIGMAS"):
        path.check_schedule(path.sigmas * 1.01)
    with pytest.raises(ValueError, match="made for 4 steps from sigma 14.6 to 0"):
        path.check_schedule(path.sigmas.flip(0))


@pytest.mark.parametrize("shape", [(1, 4, 3, 5), (2, 4, 5, 3), (2, 16, 3, 5)])
def test_latents_of_another_size_or_number_are_refused(shape):
    trajectory().check_shape(torch.Size((2, 4, 3, 5)))
    with pytest.raises(ValueError, match="but the trajectory is of 2 x 5x3 cells of 4 channels"):
        trajectory().check_shape(torch.Size(shape))


def test_latents_of_another_kind_are_named_by_their_shape():
    with pytest.raises(ValueError, match=re.escape("The latent is of the shape (2, 16, 1, 3, 5), but")):
        trajectory().check_shape(torch.Size((2, 16, 1, 3, 5)))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"latents": random(STEPS + 1, PICTURES, 4, 3, 5, dtype=torch.float64)},
        {"null_text": random(STEPS, PICTURES, 7, 3)},
        {"null_text": random(STEPS, PICTURES, 7, 3).half()},
        {"residuals": torch.full((STEPS, PICTURES), torch.nan)},
        {"latents": random(STEPS + 1, PICTURES, 5, 3, 4).transpose(2, 4)},
        {"prompt": "ein F\u00fcchslein \U0001f98a\nim \u96ea", "model": "", "method": "o-belm"},
        {"cfg": 0.1 + 0.2, "calls": 0, "prompt": ""},
    ],
    ids=["plain", "float64", "null-text", "half null-text", "NaN", "not contiguous", "unicode", "empty"],
)
def test_packed_and_unpacked_is_the_same_to_the_bit(changes):
    path = trajectory(**changes)
    tensors, strings = packed(path)
    assert all(isinstance(text, str) for pair in strings.items() for text in pair)
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    assert same(unpacked(tensors, strings), path)


def test_tensors_are_copied_both_ways():
    whole = random(STEPS + 1, PICTURES, 4, 3, 5)
    path = trajectory(latents=whole, residuals=whole[:STEPS, :, 0, 0, 0])
    tensors, strings = packed(path)
    again = unpacked(tensors, strings)
    kept = again.latents.clone()
    storages = {tensor.untyped_storage().data_ptr() for tensor in [*tensors.values(), whole]}
    assert len(storages) == len(tensors) + 1
    tensors["latents"].zero_()
    assert torch.equal(again.latents, kept) and torch.equal(path.latents, kept)


def test_a_broken_character_of_the_prompt_is_replaced_instead_of_losing_the_inversion():
    tensors, strings = packed(trajectory(prompt="a fox \ud83e"))
    assert unpacked(tensors, strings).prompt == "a fox ?"


def test_strings_of_other_programs_are_ignored():
    tensors, strings = packed(trajectory())
    assert same(unpacked(tensors, {"prompt": "{}", "workflow": "{}"} | strings), trajectory())


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"latents": None}, "it has no latents"),
        ({"unet.weight": torch.ones(1)}, "it has 'unet.weight', which none has"),
        ({"sigmas": torch.tensor([3.0, 0.0])}, "its latents have the shape (5, 2, 4, 3, 5)"),
        ({"residuals": random(3, 2)}, "it has 5 noise levels for 3 steps"),
        ({"sigmas": torch.zeros(2, 2)}, "its sigmas have the shape (2, 2)"),
        ({"sigmas": torch.tensor([1.0, 2.0, 1.5, 0.3, 0.0])}, "its noise levels do not fall to 0"),
        ({"sigmas": torch.tensor([9.0, 5.0, 1.5, 0.3, 0.1])}, "its noise levels do not fall to 0"),
        ({"sigmas": torch.tensor([torch.nan, 5.0, 1.5, 0.3, 0.0])}, "its noise levels do not fall to 0"),
        ({"sigmas": torch.tensor([4, 3, 2, 1, 0])}, "its sigmas are torch.int64"),
        ({"latents": random(5, 2, 4, 3)}, "its latents have the shape (5, 2, 4, 3)"),
        ({"latents": random(5, 2, 4, 0, 5)}, "its latents have the shape (5, 2, 4, 0, 5)"),
        ({"latents": random(5, 2, 4, 3, 5).half()}, "its latents are torch.float16"),
        ({"residuals": random(4, 3)}, "its residuals have the shape (4, 3)"),
        ({"null_text": random(3, 2, 7, 3)}, "its null_text have the shape (3, 2, 7, 3)"),
    ],
)
def test_tensors_that_are_no_trajectory_are_refused_by_a_sentence(changes, sentence):
    tensors, strings = packed(trajectory())
    given = {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}
    with pytest.raises(ValueError, match=re.escape(f"This is no trajectory: {sentence}. Choose a file")):
        unpacked(given, strings)


@pytest.mark.parametrize("key", ["format", "method", "cfg", "calls", "model", "prompt"])
def test_a_missing_string_is_named(key):
    tensors, strings = packed(trajectory())
    del strings[PREFIX + key]
    with pytest.raises(ValueError, match=f"it does not tell its {key}"):
        unpacked(tensors, strings)


@pytest.mark.parametrize(
    "key, text, sentence",
    [
        ("cfg", "seven", "its cfg is 'seven'"),
        ("cfg", "nan", "its cfg is 'nan'"),
        ("cfg", "inf", "its cfg is 'inf'"),
        ("calls", "3.5", "its calls is '3.5'"),
        ("calls", "-1", "its calls is '-1'"),
        ("calls", "9" * 400, "its calls is '99999999999999999999'"),
        ("calls", "9" * 5000, "its calls is '99999999999999999999'"),
        ("format", "2", "is of format 2, which this version of Guided Synthesis does not know. Update it"),
    ],
)
def test_strings_that_make_no_sense_are_refused_by_a_sentence(key, text, sentence):
    tensors, strings = packed(trajectory())
    with pytest.raises(ValueError, match=re.escape(sentence)):
        unpacked(tensors, strings | {PREFIX + key: text})


def test_a_trajectory_that_could_not_be_read_again_is_not_packed():
    with pytest.raises(ValueError, match="its residuals have the shape"):
        packed(trajectory(residuals=torch.zeros(PICTURES, STEPS)))


def test_the_description_tells_what_it_holds():
    residuals = torch.tensor([[1e-5, torch.nan], [2e-3, 1e-4], [0.0, 0.0], [1e-6, 1e-6]])
    text = described(trajectory(residuals=residuals))
    for part in (
        "implicit, 4 steps from sigma 14.6 to 0, CFG 7.5, 33 model calls",
        "2 x 5x3 cells of 4 channels",
        "worst residual: 0.002",
        "prompt: a photo of a fox",
        "model: 0123456789abcdef",
    ):
        assert part in text
    assert "null-text" not in text
    assert "null-text" in described(trajectory(null_text=random(STEPS, PICTURES, 7, 3)))


def test_what_is_unknown_or_not_measured_is_said():
    text = described(trajectory(prompt="", model="", residuals=torch.full((STEPS, PICTURES), torch.nan)))
    assert "worst residual: not measured" in text
    assert "prompt: unknown" in text and "model: unknown" in text


def test_every_field_of_a_trajectory_is_packed():
    tensors, strings = packed(trajectory(null_text=random(STEPS, PICTURES, 7, 3)))
    named = set(tensors) | {key.removeprefix(PREFIX) for key in strings} - {"format"}
    assert named == {field.name for field in dataclasses.fields(Trajectory)}
