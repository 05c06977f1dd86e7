"""Prompts on the host's text encoders: the condition that CLIPTextEncode makes, and which tokens its words are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain, groupby
from typing import Any

from comfy.sd1_clip import load_embed

from ...attention.words import Prompt, Word

PROMPT_KEY = "guided_synthesis_prompt"
"""Under this key a condition carries its Prompt; the host's own nodes hand it on."""
EMBEDDING = re.compile(r"embedding:[^\s,():]+")


def encode(clip: Any, text: str) -> tuple[list, Prompt]:
    """Return CONDITIONING of `text`, as CLIPTextEncode makes it, and its Prompt.

    Raises ValueError for text encoders other than CLIP's (SD 1.x, SD 2.x, SDXL).
    """
    if clip is None:
        raise ValueError(
            "The clip input holds no text encoder. If it comes from a checkpoint loader, the checkpoint has none: add "
            "Load CLIP."
        )
    prompt = words_of(clip, text)
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    return [[condition, {**settings, PROMPT_KEY: prompt}] for condition, settings in conditioning], prompt


def words_of(clip: Any, text: str) -> Prompt:
    """Return the Prompt of `text` as `clip` reads it; spans of several encoders are united.

    Raises ValueError as `encode` does.
    """
    tokens = clip.tokenize(text, return_word_ids=True)
    found = [_spans(_tokenizer(clip, name), chunks, text) for name, chunks in tokens.items()]
    if len({tuple(word for word, _ in spans) for spans, _ in found}) != 1:
        raise ValueError(
            "The text encoders of this model cut the prompt into different words, so no word can be pointed at. This "
            "is mostly an embedding that only one of them has: use the one made for this model, or leave it out."
        )
    (spans, ends), others = found[0], [spans for spans, _ in found[1:]]
    words = tuple(
        Word(word, tuple(sorted({*positions, *(t for other in others for t in other[i][1])})))
        for i, (word, positions) in enumerate(spans)
    )
    length = min(sum(map(len, chunks)) for chunks in tokens.values())
    return Prompt(text, words, length, tuple(ends))


def _tokenizer(clip: Any, name: str) -> Any:
    """Return the host's tokenizer for encoder `name` (l, g, h, ...)."""
    own = getattr(clip.tokenizer, f"clip_{name}", None)
    if own is None or not hasattr(own, "inv_vocab") or "<|startoftext|>" not in own.tokenizer.get_vocab():
        kind = type(clip.tokenizer).__name__
        raise ValueError(
            f"This text encoder ({kind}) is not CLIP's, so its words cannot be pointed at. Connect the CLIP output of "
            "an SD 1.x, SD 2.x or SDXL checkpoint."
        )
    return own


def _spans(tokenizer: Any, chunks: list[list], text: str) -> tuple[list, list[int]]:
    """Return [(word, positions)] and the position of the end token in each chunk.

    The host numbers the tokens of each stretch of text and of each embedding; start, end and padding have number 0.
    """
    names = iter(name for name in EMBEDDING.findall(text) if _exists(tokenizer, name))
    spans: list[tuple[str, tuple[int, ...]]] = []
    ends, start = [], 0
    for chunk in chunks:
        ends.append(start + 1 + max((i for i, (_, _, number) in enumerate(chunk) if number), default=0))
        start += len(chunk)
    tokens = [(at, token, number) for at, (token, _, number) in enumerate(chain(*chunks)) if number]
    for _, stretch in groupby(tokens, key=lambda token: token[2]):
        found = [(at, token) for at, token, _ in stretch]
        if isinstance(found[0][1], int):
            spans += _words(tokenizer, found)
        else:
            spans.append((next(names, "embedding:?").lower(), tuple(at for at, _ in found)))
    return spans, ends


def _words(tokenizer: Any, tokens: list[tuple[int, int]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (word, positions) of a stretch of text, [(position, token)]: a token that ends a word says so."""
    pieces, positions = [], []
    for at, token in tokens:
        pieces.append(token)
        positions.append(at)
        if tokenizer.inv_vocab[token].endswith("</w>"):
            yield tokenizer.tokenizer.decode(pieces).strip(), tuple(positions)
            pieces, positions = [], []


def _exists(tokenizer: Any, name: str) -> bool:
    """Tell whether the host finds the embedding `name`; it leaves out those that it does not."""
    where, size, key = tokenizer.embedding_directory, tokenizer.embedding_size, tokenizer.embedding_key
    return where is not None and load_embed(name.split(":", 1)[1], where, size, key) is not None
