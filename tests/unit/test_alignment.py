"""Which word stands for which, against hand-made examples and the alignment of the Prompt-to-Prompt paper's code."""

import random
from itertools import combinations

import pytest
import torch

from guided_synthesis.attention.alignment import CHUNK, described, refinement, replacement, word_pairs
from guided_synthesis.attention.words import Prompt, Word


def prompt(text, length=None):
    """A prompt whose words have as many tokens as hyphens say: `sail-boat` has two."""
    words, ends, at = [], [], 1
    for word in text.split():
        count = word.count("-") + 1
        if at % CHUNK + count > CHUNK - 1:  # the host begins a new chunk for a word that would not fit
            ends.append(at)
            at = (at // CHUNK + 1) * CHUNK + 1
        words.append(Word(word, tuple(range(at, at + count))))
        at += count
    ends.append(at)
    return Prompt(text, tuple(words), length or CHUNK * len(ends), tuple(ends))


def texts(pairs):
    return [(" ".join(w.text for w in a), " ".join(w.text for w in b)) for a, b in pairs]


def columns(matrix):
    """The rows and shares of each column: {column: {row: share}}, empty ones left out."""
    return {
        j: {i: round(matrix[i, j].item(), 6) for i in matrix[:, j].nonzero().flatten().tolist()}
        for j in matrix.sum(0).nonzero().flatten().tolist()
    }


def test_a_swap_of_as_many_words_and_tokens_is_the_identity():
    matrix = replacement(prompt("a fox in the snow"), prompt("a cat in the snow"))
    assert torch.equal(matrix, torch.eye(CHUNK))


def test_a_word_of_more_tokens_takes_an_equal_part_of_the_other_on_each_and_the_rest_moves_along():
    found = columns(replacement(prompt("a fox at night"), prompt("a sail-boat at night")))
    assert found[2] == found[3] == {2: 0.5}
    assert found[4] == {3: 1} and found[5] == {4: 1} and found[6] == {5: 1}


def test_a_word_of_fewer_tokens_takes_the_sum():
    found = columns(replacement(prompt("a sun-flow-er at night"), prompt("a sail-boat at night")))
    assert found[2] == found[3] == {2: 0.5, 3: 0.5, 4: 0.5}
    assert found[4] == {5: 1} and found[5] == {6: 1}
    found = columns(replacement(prompt("a sail-boat at night"), prompt("a fox at night")))
    assert found[2] == {2: 1, 3: 1} and found[3] == {4: 1}


def test_with_unequal_word_counts_runs_between_shared_words_stand_for_each_other():
    source, target = prompt("a small fox in the snow"), prompt("a very very old cat in the snow")
    assert texts(word_pairs(source, target, swapped=True)) == [
        ("a", "a"),
        ("small fox", "very very old cat"),
        ("in", "in"),
        ("the", "the"),
        ("snow", "snow"),
    ]
    found = columns(replacement(source, target))
    assert all(found[j] == {2: 0.25, 3: 0.25} for j in (2, 3, 4, 5))
    assert found[6] == {4: 1}


def test_runs_of_as_many_words_stand_for_each_other_word_by_word():
    pairs = word_pairs(prompt("a red fox in snow"), prompt("oh a blue cat in snow"), swapped=True)
    assert texts(pairs) == [("a", "a"), ("red", "blue"), ("fox", "cat"), ("in", "in"), ("snow", "snow")]


def test_inserted_words_keep_their_own_maps():
    source, target = prompt("a fox in snow"), prompt("a red sail-fox fox in deep snow")
    for make in (replacement, refinement):
        matrix = make(source, target)
        assert columns(matrix[:, 1:9]) == {0: {1: 1}, 4: {2: 1}, 5: {3: 1}, 7: {4: 1}}
        assert (matrix.sum(0) == 0).nonzero().flatten().tolist() == [2, 3, 4, 7]


def test_words_that_the_target_leaves_out_give_nothing():
    matrix = refinement(prompt("a very red fox in snow"), prompt("a fox in snow"))
    assert [matrix[:, j].argmax().item() for j in range(1, 6)] == [1, 4, 5, 6, 7]
    assert matrix[2:4].sum() == 0 and (matrix.sum(0) == 1).all()


def test_refining_keeps_only_what_both_share():
    matrix = refinement(prompt("a fox at night"), prompt("a cat at night"))
    assert (matrix.sum(0) == 0).nonzero().flatten().tolist() == [2]
    assert matrix[:, 2].sum() == 0 and matrix[3, 3] == matrix[4, 4] == 1


def test_repeated_words_are_matched_in_order():
    source, target = prompt("a fox and a cat and a dog"), prompt("a fox and a small cat and a dog")
    assert columns(refinement(source, target)[:, :11]) == {
        **{j: {j: 1} for j in range(5)},
        **{j: {j - 1: 1} for j in range(6, 11)},
    }


def test_start_end_and_padding_follow_their_kind():
    source, target = prompt("a fox"), prompt("a very old fox")  # end at 3 and at 5
    matrix = refinement(source, target)
    assert matrix[0, 0] == 1 and matrix[3, 5] == 1 and matrix[4, 6] == 1
    assert matrix[:, 5:].argmax(0).tolist() == [*range(3, 75)]
    back = refinement(target, source)
    assert back[5, 3] == 1 and back[:, 3:].argmax(0).tolist() == [*range(5, 77), 76, 76]
    assert (back.sum(0) == 1).all()


@pytest.mark.parametrize("counts", [(100, 100), (100, 20), (20, 100), (160, 90)])
def test_several_chunks_of_77_are_aligned_word_by_word_and_special_token_by_special_token(counts):
    source, target = (prompt(" ".join(f"w{i}" for i in range(count))) for count in counts)
    for make in (replacement, refinement):
        matrix = make(source, target)
        assert matrix.shape == (source.length, target.length)
        for word in target.words:
            own = [w for w in source.words if w.text == word.text]
            row = [own[0].tokens[0]] if own else []
            assert matrix[:, word.tokens[0]].nonzero().flatten().tolist() == row
        chunks = source.length // CHUNK
        for chunk in range(target.length // CHUNK):
            known = min(chunk, chunks - 1)
            assert matrix[known * CHUNK, chunk * CHUNK] == 1
            assert matrix[source.ends[known], target.ends[chunk]] == 1
        worded = {t for w in target.words for t in w.tokens}
        special = [t for t in range(target.length) if t not in worded]
        assert (matrix[:, special].sum(0) == 1).all()


def test_taken_columns_sum_to_one_where_as_many_tokens_stand_for_each_other_and_mass_is_kept_else():
    source, target = prompt("a sun-flow-er and fox"), prompt("a sail-boat and cat")
    matrix = replacement(source, target)
    left, right = source.words[1].tokens, target.words[1].tokens
    assert torch.allclose(matrix[:, list(right)].sum(1)[list(left)], torch.ones(3))  # each gives all it has
    others = [j for j in range(CHUNK) if j not in right]
    assert (matrix[:, others].sum(0) == 1).all()


def test_an_empty_prompt_has_special_tokens_only():
    matrix = replacement(prompt(""), prompt("a fox"))
    assert matrix[0, 0] == 1 and matrix[1, 3] == 1 and matrix[:, 1:3].sum() == 0


def test_the_description_names_every_word_of_the_target():
    text = described(prompt("a fox at night"), prompt("a red cat at night"), swapped=True)
    assert text.splitlines() == ["a -> a", "fox -> red cat", "at -> at", "night -> night"]
    text = described(prompt("a fox"), prompt("a red fox"), swapped=False)
    assert text.splitlines() == ["a -> a", "fox -> fox", "(new) -> red"]


NOUNS = ("fox", "cat", "owl", "pan-da", "sail-boat", "sun-flow-er", "moon")
REST = "a photo of the and in at night snow red blue old small beside under".split()


def sentence(rng, count):
    """Distinct words, so that only one alignment is best."""
    return rng.sample([*NOUNS, *REST], count)


def published_replace(source, target):
    """The rule of the paper's code where word counts match; and the column behind the last word that differs.

    Differing words 1:1 or 1/k each; all other tokens one after the other; behind the last differing word the identity.
    """
    matrix = torch.zeros(CHUNK, CHUNK)
    i = j = 0
    for a, b in zip(source.words, target.words, strict=True):
        if a.text == b.text:
            continue
        steps = range(a.tokens[0] - i)
        matrix[[i + n for n in steps], [j + n for n in steps]] = 1
        for row in a.tokens:
            for column in b.tokens:
                matrix[row, column] = 1 / len(b.tokens)
        if len(a.tokens) == len(b.tokens):
            block = slice(a.tokens[0], a.tokens[-1] + 1), slice(b.tokens[0], b.tokens[-1] + 1)
            matrix[block] = torch.eye(len(a.tokens))
        i, j = a.tokens[-1] + 1, b.tokens[-1] + 1
    for column in range(j, CHUNK):
        matrix[column, column] = 1
    return matrix, j


def test_the_replacement_is_the_published_one_for_fifty_pairs_of_as_many_words():
    """Save behind a last differing word of another number of tokens.

    There the published identity is shifted against the words; ours takes each word's own, and at the end the last
    padding once more.
    """
    rng, unequal = random.Random(0), 0
    for _ in range(50):
        words = sentence(rng, rng.randint(3, 9))
        other = list(words)
        for place in rng.sample(range(len(words)), rng.randint(1, 2)):
            other[place] = rng.choice([w for w in (*NOUNS, *REST) if w not in words and w not in other])
        source, target = prompt(" ".join(words)), prompt(" ".join(other))
        (expected, behind), found = published_replace(source, target), replacement(source, target)
        shift = target.ends[0] - source.ends[0]
        if shift == 0:
            assert torch.equal(found, expected)
        else:
            unequal += 1
            assert torch.equal(found[:, :behind], expected[:, :behind])
            rows = [min(column - shift, CHUNK - 1) for column in range(behind, CHUNK)]
            assert found[:, behind:].argmax(0).tolist() == rows
    assert 10 <= unequal <= 40


def best_alignments(a, b):
    """All longest lists of index pairs of equal entries, ascending in both, by brute force."""
    for size in range(min(len(a), len(b)), -1, -1):
        found = [
            list(zip(rows, picks, strict=True))
            for rows in combinations(range(len(a)), size)
            for picks in combinations(range(len(b)), size)
            if all(a[i] == b[j] for i, j in zip(rows, picks, strict=True))
        ]
        if found:
            return found
    return [[]]


def test_the_refinement_is_a_best_alignment_of_the_words_and_tokens_for_fifty_pairs():
    """Needleman-Wunsch with gap 0, match 1 and mismatch -1 never pairs what differs, since two gaps cost nothing.

    So its result is a longest common subsequence; words that occur twice may leave a choice.
    """
    rng, chosen, single = random.Random(1), 0, 0
    for _ in range(50):
        words = sentence(rng, rng.randint(3, 6))
        if rng.random() < 0.3:
            words.append(words[0])
        other = [w for w in words if rng.random() < 0.8]
        for word in rng.sample([w for w in (*NOUNS, *REST) if w not in words], rng.randint(1, 2)):
            other.insert(rng.randint(0, len(other)), word)
        source, target = prompt(" ".join(words)), prompt(" ".join(other))
        matrix = refinement(source, target)
        of_words = [
            (i, j)
            for i, a in enumerate(source.words)
            for j, b in enumerate(target.words)
            if matrix[a.tokens[0], b.tokens[0]]
        ]
        best = best_alignments(words, other)
        assert of_words in best
        single += len(best) == 1
        expected = torch.zeros(CHUNK, CHUNK)
        for i, j in of_words:
            expected[list(source.words[i].tokens), list(target.words[j].tokens)] = 1
        expected[0, 0] = expected[source.ends[0], target.ends[0]] = 1
        text = slice(0, target.ends[0] + 1)
        assert torch.equal(matrix[:, text], expected[:, text])
        chosen += len(of_words)
    assert chosen > 100 and single >= 30
