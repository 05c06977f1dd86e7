"""Words of a prompt: found by text, by phrase, by number; and what is said when there is no such word."""

import re

import pytest

from guided_synthesis.attention.words import Prompt, Word


def prompt(*words, start=1):
    """A prompt of one token for each word, at positions from `start`."""
    return Prompt(" ".join(words), tuple(Word(word, (start + i,)) for i, word in enumerate(words)), 77)


FOXES = prompt("a", "red", "fox", "and", "a", "blue", "fox", ",", "it", "'s", "2", "0", "2", "4")


@pytest.mark.parametrize(
    "query, tokens",
    [
        ("red", (2,)),
        ("  Red ", (2,)),
        ("red fox", (2, 3)),
        ("RED   FOX", (2, 3)),
        ("fox", (3, 7)),
        ("fox#1", (3,)),
        ("fox#2", (7,)),
        ("fox #2", (7,)),
        ("a#2", (5,)),
        ("blue fox#1", (6, 7)),
        ("it's", (9, 10)),
        ("2024", (11, 12, 13, 14)),
        ("2#2", (13,)),
    ],
)
def test_words_are_found_by_text_by_phrase_and_by_number(query, tokens):
    assert FOXES.find(query) == tokens


def test_a_word_of_several_tokens_gives_all_of_them_even_across_chunks():
    long = Prompt(
        "", (Word("a", (75,)), Word("strawberry", (76, 78, 79)), Word("strawberry", (81, 82, 83))), 154
    )
    assert long.find("strawberry") == (76, 78, 79, 81, 82, 83)
    assert long.find("strawberry#2") == (81, 82, 83)
    assert long.find("a strawberry") == (75, 76, 78, 79)


def test_part_of_a_word_is_not_found():
    for query in ("fo", "ox", "re", "red f", "ed fox"):
        with pytest.raises(ValueError, match="does not contain"):
            FOXES.find(query)


def test_letters_beyond_ascii_are_found_however_they_are_composed():
    mixed = prompt("caf\u00e9", "\u7f8e", "\u4e3d", "\U0001f98a", "na\u00efve")
    assert mixed.find("cafe\u0301") == mixed.find("CAF\u00c9") == (1,)
    assert mixed.find("\u7f8e\u4e3d") == (2, 3)
    assert mixed.find("\U0001f98a") == (4,)


def test_several_queries_are_parted_by_commas_or_lines_and_count_once():
    assert FOXES.find_all("red, blue fox\n fox#2 ,") == (2, 6, 7)


@pytest.mark.parametrize(
    "query, sentence",
    [
        ("wolf", "The prompt does not contain 'wolf'. Its words: a, red, fox, and, blue, it, 's, 2, 0, 4."),
        ("", "No word is named. Its words: a, red"),
        ("fox#3", "The prompt contains 'fox' twice, so there is no fox#3. Write fox#1 to fox#2."),
        ("red#2", "The prompt contains 'red' once, so there is no red#2. Write red#1 or just red."),
        ("fox#0", "there is no fox#0"),
        ("2#9", "contains '2' twice"),
    ],
)
def test_what_is_not_there_is_said_with_the_words_there_are(query, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        FOXES.find(query)
    if "," not in query:
        with pytest.raises(ValueError, match=re.escape(sentence)):
            FOXES.find_all(query)


def test_three_times_is_said_as_a_number():
    with pytest.raises(ValueError, match="contains 'x' 3 times, so there is no x#4. Write x#1 to x#3"):
        prompt("x", "x", "x").find("x#4")


def test_a_prompt_that_ends_within_a_word_does_not_contain_it():
    with pytest.raises(ValueError, match="does not contain"):
        prompt("take", "it").find("it's")


def test_an_empty_prompt_says_so():
    with pytest.raises(ValueError, match="The prompt is empty"):
        prompt().find("fox")
    with pytest.raises(ValueError, match="No word is named. The prompt is empty"):
        prompt().find_all(" , ")
