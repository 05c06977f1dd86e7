"""Run the named benchmarks (all if none is named) and put what they print into RESULTS.md."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from tiny_sd.host_model import open_host

HERE = Path(__file__).parent
NAMES = (
    "painting",
    "cost",
    "regions",
    "attention_maps",
    "prompt_to_prompt",
    "pix2pix_zero",
    "inversion",
    "null_text",
    "photo_edit",
    "perceptual",
    "perceptual_cost",
    "composition",
    "repaint",
    "illusions",
    "illusions_cost",
    "saliency",
    "saliency_speed",
    "saliency_photos",
)


def replace_section(text: str, name: str, body: str) -> str:
    """Return RESULTS.md's `text` with the section of benchmark `name` replaced, or appended if it is new."""
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n{body.strip()}\n{end}"
    if begin not in text:
        return f"{text.rstrip()}\n\n{section}\n"
    head, rest = text.split(begin, 1)
    return head + section + rest.split(end, 1)[1]


def main(names: list[str]) -> None:
    """Run benchmarks by name; exit with a sentence for a name that does not exist."""
    if unknown := sorted(set(names) - set(NAMES)):
        sys.exit(f"There is no benchmark {', '.join(unknown)}; there are: {', '.join(NAMES)}.")
    open_host()  # the benchmarks import the host's modules
    results = HERE / "RESULTS.md"
    for name in names or NAMES:
        body = importlib.import_module(f"benchmarks.{name}").run()
        results.write_text(replace_section(results.read_text(), name, body))
        print(body)


if __name__ == "__main__":
    main(sys.argv[1:])
