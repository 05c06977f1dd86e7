"""Writes tables of cells as docs/compatibility.md, and reads them back."""

from __future__ import annotations

import re

from compatibility.measure import WORKS, Cell, Table
from compatibility.runs import SIDE, STEPS

TITLE = "# What works with what"
ABOUT = """\
Written by `python run.py matrix`, which runs every technique with every family of models and every sampler and
scheduler of the host, on a CPU: {steps} steps, {side} x {side} px. SD 1.x is the demo model; the other families are the
host's own classes in small, with random weights, so they tell that the arithmetic works and nothing about pictures.
Made with ComfyUI {core} and torch {torch}.

- **works**: the picture is finite, and the technique did what it is for: closer to the painting or the photo, the photo
  back, maps of the words recorded, or, where telling takes a real model, the picture is another one. Switched off it
  leaves the host's picture as it is (column *off*), and the host's next picture is not changed.
- **runs**: there is a picture, but not all of that holds.
- **refused**: the node says a sentence instead.
- **fails**: an error, or numbers that are not finite, or something stays behind.

Numbers in parentheses lead to the reasons below each table.

SD 1.x, SD 2.x and SDXL are what the pack is for. Other image models: the nodes that read attention, and Invert, refuse
them with a sentence; the others try. Null-Text Optimisation counts as working where the picture comes closer to the
photo: only euler and ddim bring it back.
"""
Verdicts = dict[str, dict[str, str]]


def document(families: Table, samplers: Table, schedulers: Table, off: dict[str, str], versions: dict) -> str:
    """Return the whole text; `off` says for each technique what its switch leaves of it."""
    extra = {"samplers": samplers, "schedulers": schedulers}
    parts = [
        f"{TITLE}\n\n{ABOUT.format(steps=STEPS, side=SIDE, **versions)}",
        "## Families of models\n",
        _rows(families, off, extra),
        "## Samplers\n\nWith the demo model and KSampler's own schedule (`normal`). Techniques that bring a sampler of "
        "their own\nare not listed.\n",
        _columns(samplers),
        "## Schedulers\n\nWith the demo model and the sampler `euler`.\n",
        _columns(schedulers),
    ]
    return "\n".join(parts)


def _rows(table: Table, off: dict[str, str], extra: dict[str, Table]) -> str:
    """Return a table with a row for each technique, and how many samplers and schedulers it works with."""
    notes = _Notes()
    names = list(next(iter(table.values())))
    lines = [_line(["technique", *names, *extra, "off"]), _line([":---", *[":---:"] * (len(names) + 3)])]
    for technique, cells in table.items():
        counts = [_count(other.get(technique, {})) for other in extra.values()]
        lines.append(_line([technique, *map(notes.cell, cells.values()), *counts, off[technique]]))
    return "\n".join([*lines, *notes.lines()]) + "\n"


def _count(cells: dict[str, Cell]) -> str:
    good = sum(cell.verdict == WORKS for cell in cells.values())
    return f"{good} of {len(cells)}" if cells else "its own"


def _columns(table: Table) -> str:
    """Return a table with a column for each technique."""
    notes = _Notes()
    names = list(next(iter(table.values())))
    lines = [_line(["", *table]), _line([":---", *[":---:"] * len(table)])]
    for name in names:
        lines.append(_line([f"`{name}`", *(notes.cell(cells[name]) for cells in table.values())]))
    return "\n".join([*lines, *notes.lines()]) + "\n"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


class _Notes:
    """The reasons under a table, each once."""

    def __init__(self) -> None:
        self._reasons: list[str] = []

    def cell(self, cell: Cell) -> str:
        """Return the word of a cell with the number of its reason."""
        if not cell.reason:
            return cell.verdict
        reason = _general(cell.reason)
        if reason not in self._reasons:
            self._reasons.append(reason)
        return f"{cell.verdict} ({self._reasons.index(reason) + 1})"

    def lines(self) -> list[str]:
        """Return the list of reasons."""
        return ["", *(f"{number}. {reason}" for number, reason in enumerate(self._reasons, 1))]


def _general(reason: str) -> str:
    """Return a reason without what is different in each row."""
    return re.sub(r"The sampler \w+", "The sampler ...", " ".join(reason.split()))


def verdicts(text: str) -> list[Verdicts]:
    """Return the tables of a document: the words of the cells by their first cell and the head of their column."""
    tables: list[Verdicts] = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        head, _, *rows = ([cell.strip(" `") for cell in line[1:-1].split("|")] for line in block.splitlines())
        tables.append({row[0]: dict(zip(head[1:], map(_word, row[1:]), strict=True)) for row in rows})
    return tables


def _word(cell: str) -> str:
    return re.sub(r" \(\d+\)$", "", cell)
