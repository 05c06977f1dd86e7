"""Measures what works with what, and writes docs/compatibility.md."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import torch

from comfy_host.places import ROOT
from compatibility import measure
from compatibility.document import document
from compatibility.runs import lpips_weights, plain_run
from tiny_sd.host_model import load_demo_model, open_host

DOCUMENT = ROOT / "docs" / "compatibility.md"


def main() -> int:
    """Measure everything and write it down; return 1 if something fails."""
    nodes = open_host()
    import comfy
    import comfyui_version
    import folder_paths

    comfy.utils.set_progress_bar_enabled(False)
    host = SimpleNamespace(nodes=nodes, comfy=comfy, folder_paths=folder_paths)
    lists = comfy.samplers.KSampler
    with lpips_weights(host):
        base = plain_run(host, load_demo_model())
        tables = [
            measure.families(base),
            measure.samplers(base, lists.SAMPLERS),
            measure.schedulers(base, lists.SCHEDULERS),
        ]
    versions = {"core": comfyui_version.__version__, "torch": torch.__version__.partition("+")[0]}
    DOCUMENT.write_text(document(*tables, measure.switches(), versions), encoding="utf-8")
    cells = [cell.verdict for table in tables for row in table.values() for cell in row.values()]
    counts = ", ".join(f"{cells.count(word)} {word}" for word in measure.WORDS)
    print(f"{DOCUMENT.relative_to(ROOT)}: {counts}")
    return int(measure.FAILS in cells)


if __name__ == "__main__":
    sys.exit(main())
