"""Edits of a target's attention maps, formulas by hand; pairs of prompts in one condition."""

import pytest
import torch
from torch.autograd import gradcheck

from guided_synthesis.attention.edits import REFINE, REPLACE, REWEIGHT, Edit, PromptToPrompt
from guided_synthesis.attention.maps import Call, Condition, Layer, folded
from guided_synthesis.attention.pairs import Halved, Pair, unfolded
from guided_synthesis.attention.words import Prompt, Word

LENGTH = 77


def prompt(text, length=LENGTH):
    words = tuple(Word(w, (i + 1,)) for i, w in enumerate(text.split()))
    return Prompt(text, words, length, (len(words) + 1, *range(78, length, 77)))


FOX, CAT, RED = prompt("a fox at night"), prompt("a cat at night"), prompt("a red fox at night")
LAYER = Layer("key", "mid", 1)


def maps(batch=1, tokens=LENGTH, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 2, 6, tokens, generator=generator, dtype=dtype).softmax(-1)


def pair_of(source, target, *edits):
    return PromptToPrompt(Pair(source, target), edits)


def condition(prompt, tokens=LENGTH, kind=0):
    return Condition(kind, tokens, prompt, (2, 3))


def call(prompt, progress=0.0, tokens=LENGTH):
    return Call(LAYER, (2, 3), condition(prompt, tokens), progress)


def test_replace_gives_the_target_the_source_s_maps():
    source, target = maps(), maps(seed=1)
    found = pair_of(FOX, CAT, Edit(REPLACE)).edited(source, target, 0.0)
    assert torch.equal(found, source)


def test_replace_of_some_words_leaves_the_others_and_the_special_tokens_their_own():
    source, target = maps(), maps(seed=1)
    found = pair_of(FOX, CAT, Edit(REPLACE, "cat, night")).edited(source, target, 0.0)
    expected = target.clone()
    expected[..., [2, 4]] = source[..., [2, 4]]
    assert torch.equal(found, expected)


def test_refine_takes_shared_words_and_leaves_new_ones():
    source, target = maps(), maps(seed=1)
    found = pair_of(FOX, RED, Edit(REFINE)).edited(source, target, 0.0)
    assert torch.equal(found[..., 2], target[..., 2])
    assert torch.allclose(found[..., [0, 1, 3, 4, 5, 6]], source[..., [0, 1, 2, 3, 4, 5]])


@pytest.mark.parametrize("amount", [-2.0, 0.0, 1.0, 4.0])
def test_reweight_alone_is_the_source_s_maps_times_the_amount_with_no_renormalisation(amount):
    source, target = maps(), maps(seed=1)
    found = pair_of(FOX, FOX, Edit(REWEIGHT, "fox", amount)).edited(source, target, 0.0)
    expected = source.clone()
    expected[..., 2] *= amount
    assert torch.allclose(found, expected)
    if amount != 1:
        assert not torch.allclose(found.sum(-1), torch.ones(()))


@pytest.mark.parametrize("order", [1, -1])
def test_replace_and_reweight_in_one_chain_act_both_in_either_order(order):
    source, target = maps(), maps(seed=1)
    edits = (Edit(REPLACE, "cat"), Edit(REWEIGHT, "cat, night", 3.0))[::order]
    found = pair_of(FOX, CAT, *edits).edited(source, target, 0.0)
    expected = target.clone()
    expected[..., 2] = 3 * source[..., 2]
    expected[..., 4] *= 3  # beside a replace, a reweight takes nothing of the source by itself
    assert torch.allclose(found, expected)


def test_two_reweights_act_each_on_its_word():
    source, target = maps(), maps(seed=1)
    edits = Edit(REWEIGHT, "fox", 2.0), Edit(REWEIGHT, "night", -1.0, cross=(0.5, 1.0))
    both = pair_of(FOX, FOX, *edits)
    early, late = (both.edited(source, target, progress) for progress in (0.0, 0.9))
    assert torch.allclose(early[..., 2], 2 * source[..., 2])
    assert torch.equal(early[..., 4], source[..., 4])
    assert torch.equal(late[..., 2], source[..., 2]) and torch.equal(late[..., 4], -source[..., 4])


def test_every_edit_keeps_to_its_range_and_a_range_of_no_length_is_never():
    source, target = maps(), maps(seed=1)
    edits = pair_of(FOX, CAT, Edit(REPLACE, cross=(0.2, 0.6), own=(0.1, 0.3)))
    for progress, on in ((0.0, False), (0.2, True), (0.6, True), (0.61, False)):
        assert torch.equal(edits.edited(source, target, progress), source if on else target)
        assert edits.reads(LAYER, condition(edits.pair), progress) == on
    never = pair_of(FOX, CAT, Edit(REPLACE, cross=(0.0, 0.0), own=(0.0, 0.0)))
    assert not never.reads(LAYER, condition(never.pair), 0.0)
    assert torch.equal(never.edited(source, target, 0.0), target)
    assert never.sources(LAYER, (2, 3), condition(never.pair), 0.0, 4) is None


def test_the_last_edit_that_names_a_word_decides_when_its_map_is_taken():
    source, target = maps(), maps(seed=1)
    edits = pair_of(FOX, CAT, Edit(REPLACE, cross=(0.0, 0.8)), Edit(REPLACE, "cat", cross=(0.0, 0.3)))
    late = edits.edited(source, target, 0.5)
    assert torch.equal(late[..., 2], target[..., 2])
    others = [t for t in range(LENGTH) if t != 2]
    assert torch.equal(late[..., others], source[..., others])
    assert torch.equal(edits.edited(source, target, 0.2), source)


def test_an_edit_of_the_maps_changes_targets_only_and_other_conditions_are_not_read():
    edits = pair_of(FOX, CAT, Edit(REPLACE))
    both = maps(4)
    found = edits.edit(both, call(edits.pair))
    assert torch.equal(found[:2], both[:2]) and torch.equal(found[2:], both[:2])
    for other in (FOX, CAT, None, Pair(CAT, FOX)):
        assert not edits.reads(LAYER, condition(other), 0.0)


def test_a_condition_that_was_repeated_to_a_common_length_is_edited_as_its_first_copy():
    """Two copies of a text share the attention that one would have."""
    long = prompt("a cat at night", 154)
    edits = pair_of(FOX, long, Edit(REPLACE))
    short, target = maps(), maps(tokens=154, seed=1)
    both = torch.cat([unfolded(short, 154), target])
    found = edits.edit(both, call(edits.pair, tokens=154))
    assert torch.allclose(found[1:], edits.edited(short, target, 0.0))
    assert torch.equal(found[:1], both[:1])
    back = pair_of(long, CAT, Edit(REPLACE))
    both = torch.cat([target, unfolded(short, 154)])
    found = back.edit(both, call(back.pair, tokens=154))
    assert torch.allclose(folded(found[1:], 77), back.edited(target, short, 0.0))


def test_self_attention_is_shared_in_the_positives_and_small_layers_only():
    edits = pair_of(FOX, CAT, Edit(REPLACE, own=(0.0, 0.4)))
    shared = condition(edits.pair)
    assert edits.sources(LAYER, (2, 3), shared, 0.3, 6) == [0, 1, 2, 0, 1, 2]
    assert edits.sources(LAYER, (32, 32), shared, 0.3, 2) == [0, 0]
    assert edits.sources(LAYER, (33, 32), shared, 0.3, 2) is None
    assert edits.sources(LAYER, (2, 3), shared, 0.5, 2) is None
    assert edits.sources(LAYER, (2, 3), condition(None, kind=1), 0.3, 2) is None


@pytest.mark.parametrize("kind", [REPLACE, REFINE, REWEIGHT])
def test_unknown_words_are_one_sentence(kind):
    with pytest.raises(ValueError, match="does not contain 'dog'. Its words: a, cat, at, night."):
        pair_of(FOX, CAT, Edit(kind, "dog"))


@pytest.mark.parametrize("kind", [REPLACE, REFINE, REWEIGHT])
def test_the_gradient_of_every_edit_is_that_of_its_formula(kind):
    edits = pair_of(FOX, RED, Edit(kind, "fox", -1.5))
    inputs = [maps(tokens=77, seed=s, dtype=torch.float64)[:, :1, :1].requires_grad_() for s in (0, 1)]
    assert gradcheck(lambda a, b: edits.edited(a, b, 0.0), inputs)


class Louder:
    """An editor that triples the tokens `fox` of a prompt and notes what it was shown."""

    def __init__(self, *prompts):
        self.prompts, self.calls = prompts, []

    def reads(self, layer, condition, progress):
        """Read the prompts' conditions."""
        return condition.prompt in self.prompts

    def edit(self, maps, call):
        """Triple the words."""
        self.calls.append((maps.shape, call.condition))
        changed = maps.clone()
        changed[..., list(call.condition.prompt.find("fox"))] *= 3
        return changed


def test_an_editor_of_a_prompt_sees_the_half_that_is_of_it():
    both = maps(4)
    for prompts, tokens in (((FOX,), (2, None)), ((RED,), (None, 3)), ((FOX, RED), (2, 3))):
        editor = Louder(*prompts)
        found = Halved(editor).edit(both, call(Pair(FOX, RED)))
        expected = both.clone()
        for half, token in enumerate(tokens):
            if token is not None:
                expected[2 * half : 2 * half + 2, ..., token] *= 3
        assert torch.equal(found, expected)
        assert [shape[0] for shape, _ in editor.calls] == [2] * len(prompts)


def test_an_editor_of_neither_prompt_changes_nothing_and_one_of_no_pair_sees_the_whole():
    both, editor = maps(4), Louder(CAT)
    halved = Halved(editor)
    assert not halved.reads(LAYER, condition(Pair(FOX, RED)), 0.0)
    assert halved.edit(both, call(Pair(FOX, RED))) is both
    assert Halved(Louder(FOX)).reads(LAYER, condition(FOX), 0.0)
    whole = Louder(FOX)
    Halved(whole).edit(both, call(Pair(FOX, FOX)))
    Halved(whole).edit(both, call(FOX))
    assert [shape[0] for shape, _ in whole.calls] == [4, 4]


def test_a_half_that_was_repeated_is_edited_as_one_copy():
    editor, own = Louder(FOX), maps(1)
    both = torch.cat([unfolded(own, 154), maps(1, 154, seed=3)])
    found = Halved(editor).edit(both, call(Pair(FOX, prompt("a red fox", 154)), tokens=154))
    expected = own.clone()
    expected[..., 2] *= 3
    assert torch.allclose(folded(found[:1], 77), expected) and torch.equal(found[1:], both[1:])
    assert editor.calls[0][0][-1] == editor.calls[0][1].tokens == 77
