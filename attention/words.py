"""Words of a prompt and the tokens that a text encoder makes of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from unicodedata import normalize

OCCURRENCE = re.compile(r"(.*\S)\s*#\s*(\d+)", re.DOTALL)


@dataclass(frozen=True)
class Word:
    """A word as the tokenizer knows it (lower case), and its positions in the text condition, ascending."""

    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """A text, its words in order, and the `length` of the text condition (a multiple of 77 for CLIP)."""

    text: str
    words: tuple[Word, ...]
    length: int
    ends: tuple[int, ...] = field(default=())
    """Position of the token after the last word in each chunk: the end of the text."""

    def find(self, query: str) -> tuple[int, ...]:
        """Return the token positions of `query`: a word, a phrase, or `word#2` for its second occurrence.

        Without a number all occurrences count; capitals and spaces do not. Raises ValueError naming the words there
        are.
        """
        named = OCCURRENCE.fullmatch(query.strip())
        text, number = (named[1], int(named[2])) if named else (query.strip(), 0)
        letters = "".join(normalize("NFC", text).lower().split())
        if not letters:
            raise ValueError(f"No word is named. {self._there_are()}")
        found = [run for start in range(len(self.words)) if (run := self._run(start, letters))]
        if not found:
            raise ValueError(f"The prompt does not contain {text!r}. {self._there_are()}")
        if number > len(found) or (named and number == 0):
            raise ValueError(
                f"The prompt contains {text!r} {_times(len(found))}, so there is no {text}#{number}. Write {text}#1"
                + (f" to {text}#{len(found)}." if len(found) > 1 else f" or just {text}.")
            )
        chosen = found[number - 1 : number] if number else found
        return tuple(dict.fromkeys(token for run in chosen for word in run for token in word.tokens))

    def find_all(self, queries: str) -> tuple[int, ...]:
        """Return the token positions of several queries, parted by commas or line breaks."""
        found = [self.find(query) for query in re.split(r"[,\n]", queries) if query.strip()]
        if not found:
            raise ValueError(f"No word is named. {self._there_are()}")
        return tuple(dict.fromkeys(token for tokens in found for token in tokens))

    def _run(self, start: int, letters: str) -> tuple[Word, ...]:
        """Return the words from `start` that are written `letters` together, or none.

        So it does not matter where a tokenizer cuts: CLIP's takes every digit for a word, and "it" "'s" for two.
        """
        written = ""
        for end, word in enumerate(self.words[start:], start + 1):
            written += word.text
            if written == letters:
                return self.words[start:end]
            if not letters.startswith(written):
                break
        return ()

    def _there_are(self) -> str:
        if not self.words:
            return "The prompt is empty."
        texts = dict.fromkeys(word.text for word in self.words if any(c.isalnum() for c in word.text))
        return f"Its words: {', '.join(texts)}."


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
