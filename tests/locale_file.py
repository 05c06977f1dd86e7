"""The English locale files follow from the schemas, and what the other languages still lack follows from the English.

In the environment: `python tests/locale_file.py` rewrites the English files and prints which texts of the other
languages are missing, superfluous, or were translated from an English text that has changed since. When a language
says what the English says again, `python tests/locale_file.py zh` notes that in its `source.json`, which keeps a
fingerprint of the English text that each translation was made from.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

LOCALES = Path(__file__).resolve().parents[1] / "locales"
FILE = LOCALES / "en" / "nodeDefs.json"
CATEGORIES = LOCALES / "en" / "main.json"


def node_definitions() -> dict[str, Any]:
    """Return display names, descriptions and tooltips of all nodes in the host's locale format; needs the host."""
    return {schema.node_id: _node(schema) for schema in _schemas()}


def node_categories() -> dict[str, Any]:
    """Return the parts of the nodes' places in the menu, in the host's locale format; needs the host."""
    return {"nodeCategories": {part: part for schema in _schemas() for part in schema.category.split("/")}}


def languages() -> list[str]:
    """Return the languages beside English."""
    return sorted(folder.name for folder in LOCALES.iterdir() if folder.name != "en")


def texts(language: str) -> dict[str, str]:
    """Return all texts of a language, each under its path in the files: `GuidedSynthesis_View.display_name`."""
    return {
        path: text
        for file in (CATEGORIES, FILE)
        for path, text in _texts(_read(LOCALES / language / file.name))
    }


def fingerprints() -> dict[str, str]:
    """Return a fingerprint of each English text."""
    return {path: sha256(text.encode()).hexdigest()[:8] for path, text in texts("en").items()}


def outdated(language: str) -> list[str]:
    """Return a sentence for each text of a language that does not follow the English text as it is now."""
    english, own = texts("en"), texts(language)
    source, now = _read(LOCALES / language / "source.json"), fingerprints()
    missing = [f"{language} lacks {path}; translate: {english[path]}" for path in english if path not in own]
    left = [
        f"{language} has {path}, which English has not; remove it." for path in own if path not in english
    ]
    changed = [
        f"{language} has {path} of another English text; make it say: {english[path]}"
        for path in own
        if path in english and source.get(path) != now[path]
    ]
    return missing + left + changed


def main(translated: list[str]) -> None:
    """Rewrite English, note that the `translated` languages follow it, and print what others have to translate."""
    from tiny_sd.host_model import open_host

    for language in set(translated) - set(languages()):
        sys.exit(
            f"There is no folder locales/{language}; make it, with nodeDefs.json and main.json as in locales/en."
        )
    open_host()
    _write(CATEGORIES, node_categories())
    _write(FILE, node_definitions())
    for language in translated:
        _write(LOCALES / language / "source.json", fingerprints())
    for language in languages():
        for line in outdated(language):
            print(line)


def _schemas() -> list[Any]:
    from guided_synthesis.nodes import GuidedSynthesis

    return [node.define_schema() for node in asyncio.run(_nodes(GuidedSynthesis))]


async def _nodes(extension: type) -> list[Any]:
    return await extension().get_node_list()


def _node(schema: Any) -> dict[str, Any]:
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {entry.id: {"name": entry.id, "tooltip": entry.tooltip} for entry in schema.inputs},
        "outputs": {
            str(index): {"name": entry.display_name, "tooltip": entry.tooltip}
            for index, entry in enumerate(schema.outputs)
        },
    }


def _texts(entry: Any, *path: str) -> Iterator[tuple[str, str]]:
    """Yield the leaves of a tree of dictionaries, each with its path."""
    if not isinstance(entry, dict):
        yield ".".join(path), entry
        return
    for key, value in entry.items():
        yield from _texts(value, *path, key)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
