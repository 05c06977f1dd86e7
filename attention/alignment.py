"""Which word of a target prompt stands for which of a source prompt: token matrices for prompt-to-prompt.

Prompt-to-Prompt (arXiv 2208.01626): a swapped word takes the map of the word it replaces; a refined prompt keeps the
maps of the words that both share, and new words keep their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .words import Prompt, Word

CHUNK = 77
Pairs = list[tuple[tuple[int, ...], tuple[int, ...]]]


def replacement(source: Prompt, target: Prompt) -> Tensor:
    """Return the (source.length, target.length) matrix M of a word swap: map_target[j] = sum_i map_source[i] * M[i, j].

    With as many words on both sides the n-th stands for the n-th; otherwise runs of words between those that both
    share stand for each other. A run of other size is spread: each of its k tokens takes 1/k of the sum. Columns of
    words that only the target has are zero.
    """
    return _matrix(source, target, word_pairs(source, target, swapped=True))


def refinement(source: Prompt, target: Prompt) -> Tensor:
    """Return the (source.length, target.length) matrix of the words that both share; others' columns are zero."""
    return _matrix(source, target, word_pairs(source, target, swapped=False))


def word_pairs(source: Prompt, target: Prompt, swapped: bool) -> list[tuple[list[Word], list[Word]]]:
    """Return which words of `source` stand for which of `target`; `swapped`: words may stand for other words."""
    a, b = list(source.words), list(target.words)
    if swapped and len(a) == len(b):
        return [([x], [y]) for x, y in zip(a, b, strict=True)]
    found: list[tuple[list[Word], list[Word]]] = []
    i = j = 0
    for m, n in [*_common([w.text for w in a], [w.text for w in b]), (len(a), len(b))]:
        left, right = a[i:m], b[j:n]
        if swapped and left and right:
            same = len(left) == len(right)
            found += [([x], [y]) for x, y in zip(left, right, strict=True)] if same else [(left, right)]
        if m < len(a):
            found.append(([a[m]], [b[n]]))
        i, j = m + 1, n + 1
    return found


def described(source: Prompt, target: Prompt, swapped: bool) -> str:
    """Return the word pairs as text, one a line, and the target's words that keep their own maps."""
    pairs = word_pairs(source, target, swapped)
    lines = [f"{_phrase(left)} -> {_phrase(right)}" for left, right in pairs]
    taken = {id(word) for _, right in pairs for word in right}
    lines += [f"(new) -> {word.text}" for word in target.words if id(word) not in taken]
    return "\n".join(lines)


def _phrase(words: list[Word]) -> str:
    return " ".join(word.text for word in words)


def _common(a: list[str], b: list[str]) -> list[tuple[int, int]]:
    """Return the index pairs of a longest common subsequence, ascending."""
    best = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            best[i + 1][j + 1] = best[i][j] + 1 if x == y else max(best[i][j + 1], best[i + 1][j])
    found, i, j = [], len(a), len(b)
    while i and j:
        if best[i][j] == best[i][j - 1]:
            j -= 1
        elif best[i][j] == best[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            found.append((i, j))
    return found[::-1]


def _matrix(source: Prompt, target: Prompt, pairs: list[tuple[list[Word], list[Word]]]) -> Tensor:
    matrix = torch.zeros(source.length, target.length)
    for left, right in pairs:
        rows, columns = ([t for word in words for t in word.tokens] for words in (left, right))
        if len(rows) == len(columns):
            matrix[rows, columns] = 1
        else:
            matrix[torch.tensor(rows)[:, None], torch.tensor(columns)] = 1 / len(columns)
    worded = {t for word in target.words for t in word.tokens}
    for column in range(target.length):
        if column not in worded:
            matrix[_special(source, target, column), column] = 1
    return matrix


def _special(source: Prompt, target: Prompt, column: int) -> int:
    """Return the source position of a token that is no word (start, end, padding), counted from the end of the text."""
    chunk = min(column // CHUNK, source.length // CHUNK - 1)
    if column % CHUNK == 0:
        return chunk * CHUNK
    behind = column - target.ends[column // CHUNK]
    last = (chunk + 1) * CHUNK - 1
    return max(chunk * CHUNK, min(source.ends[chunk] + behind, last))
