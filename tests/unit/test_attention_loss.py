"""The loss of cross-attention guidance and the direction between sentences, without the host."""

import re

import pytest
import torch
from torch.autograd import gradcheck

from guided_synthesis.attention.edit_direction import direction, mean_embedding, of_length, sentences
from guided_synthesis.attention.guidance_loss import MapGuidance, map_distance
from guided_synthesis.attention.maps import Call, Condition, Layer
from guided_synthesis.attention.words import Prompt

LAYER, FINE = Layer("a", "down", 2), Layer("b", "up", 1)
SOURCE = Prompt("", (), 3)
LATENT = (4, 4)


def maps(seed=0, batch=2, dtype=torch.float32):
    return torch.rand(batch, 2, 4, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype).softmax(-1)


def call(layer=LAYER, prompt=SOURCE, area=None, tokens=3):
    return Call(layer, (2, 2), Condition(0, tokens, prompt, LATENT, area), 0.5)


def reads(editor, asked):
    return editor.reads(asked.layer, asked.condition, asked.progress)


def guidance():
    return MapGuidance(SOURCE, 3, frozenset({2}))


def recorded(level=1.0, seed=0):
    editor = guidance()
    with editor.recording(level):
        editor.edit(maps(seed), call())
    return editor


def test_the_loss_by_hand():
    found = torch.tensor(
        [[[[0.5, 0.5]], [[0.7, 0.3]]]]
    )  # one picture, two heads, one position: mean 0.6, 0.4
    assert map_distance(found, torch.tensor([[[0.2, 0.8]]])).item() == pytest.approx(2 * 0.4**2)


def test_the_loss_of_a_batch_is_the_sum_of_its_pictures():
    source = maps(1).mean(1)
    parts = [map_distance(maps()[i : i + 1], source[i : i + 1]) for i in range(2)]
    assert torch.allclose(map_distance(maps(), source), sum(parts))


def test_the_gradient_of_the_loss_is_right():
    source = maps(1, dtype=torch.float64).mean(1)
    assert gradcheck(lambda m: map_distance(m, source), maps(dtype=torch.float64).requires_grad_())


def test_one_step_of_descent_lowers_the_loss():
    logits, source = torch.zeros(1, 2, 4, 3, requires_grad=True), maps(1, 1).mean(1)
    before = map_distance(logits.softmax(-1), source)
    (gradient,) = torch.autograd.grad(before, logits)
    assert map_distance((logits - 0.1 * gradient).softmax(-1), source) < before


def test_outside_of_blocks_nothing_is_read():
    assert not reads(recorded(), call())


def test_only_the_source_is_recorded_and_only_whole_pictures_of_the_chosen_scales():
    editor = guidance()
    with editor.recording(1.0):
        assert reads(editor, call())
        assert not reads(editor, call(prompt=Prompt("", (), 3)))  # equal, but another condition
        assert not reads(editor, call(layer=FINE))
        assert not reads(editor, call(area=(2, 2, 0, 0)))


def test_conditions_of_the_sources_length_are_compared():
    editor = recorded()
    with editor.comparing(1.0):
        assert reads(editor, call(prompt=None))
        assert not reads(editor, call(prompt=None, tokens=6))
        assert not reads(editor, call(prompt=None, area=(2, 2, 0, 0)))
        assert not reads(editor, call(layer=FINE, prompt=None))


def test_maps_go_through_unchanged_and_are_kept_small():
    editor, given = guidance(), maps()
    with editor.recording(1.0):
        assert editor.edit(given, call()) is given
    with editor.comparing(1.0):
        assert editor.edit(given, call()) is given
    assert editor.stored_bytes == 2 * 2 * 4 * 3  # half precision, one map for all heads
    editor.forget()
    assert editor.stored_bytes == 0


def test_the_nearest_noise_level_is_compared():
    editor = recorded(1.0, seed=0)
    with editor.recording(8.0):
        editor.edit(maps(5), call())
    for level, seed in ((1.0, 0), (2.5, 0), (3.2, 5), (100.0, 5)):  # between 1 and 8 the middle is 2.83
        with editor.comparing(level):
            editor.edit(maps(seed), call())
            assert editor.loss().item() < 1e-6


def test_layers_are_summed_and_maps_made_again_for_the_backward_pass_do_not_count():
    editor = recorded()
    with editor.comparing(1.0):
        editor.edit(maps(1), call())
        editor.edit(maps(2), call())
        total = editor.loss()
        editor.edit(maps(3), call())
        assert editor.loss() is None
    expected = sum(map_distance(maps(seed), maps(0).mean(1)) for seed in (1, 2))
    assert total.item() == pytest.approx(expected.item(), rel=1e-2)


def test_without_a_recording_there_is_nothing_to_compare():
    editor = guidance()
    with editor.comparing(1.0):
        assert not reads(editor, call(prompt=None))
        assert editor.loss() is None


def test_a_block_that_fails_is_closed():
    editor = recorded()
    with pytest.raises(ZeroDivisionError), editor.comparing(1.0):
        raise ZeroDivisionError
    assert not reads(editor, call())


def test_each_line_stands_in_each_template():
    found = sentences("a fox\n\n  an owl ", "a photo of {}\n{} and {}", "source")
    assert found == ["a photo of a fox", "a fox and a fox", "a photo of an owl", "an owl and an owl"]


def test_without_a_template_the_lines_are_the_sentences():
    assert sentences("a fox at night\nfoxes", " \n", "source") == ["a fox at night", "foxes"]


@pytest.mark.parametrize(
    "lines, template, sentence",
    [
        (" \n", "a {}", "target is empty. Write one word or sentence a line"),
        ("fox", "a {}\na photo", "The template line 'a photo' has no {}"),
    ],
)
def test_bad_sentences_are_refused_in_words(lines, template, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        sentences(lines, template, "target")


def test_the_direction_by_hand():
    one, two, five = (torch.full((1, 2, 4), value) for value in (1.0, 2.0, 5.0))
    assert torch.equal(direction([one, two], [five]), torch.full((1, 2, 4), 3.5))
    assert torch.equal(direction([one, two], [two, one]), torch.zeros(1, 2, 4))


def test_shorter_embeddings_repeat():
    short, long = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[5.0], [5.0], [5.0], [5.0]]])
    assert of_length(short, 4).flatten().tolist() == [1, 2, 1, 2]
    assert of_length(long, 2).shape == (1, 2, 1)
    assert mean_embedding([short, long]).flatten().tolist() == [3, 3.5, 3, 3.5]
    assert direction([short], [long]).flatten().tolist() == [4, 3, 4, 3]
