"""Tries a technique in a run, and says in one word how that went."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from comfy_host.places import ROOT
from compatibility.families import DEMO, FAMILIES
from compatibility.runs import Run, picture
from compatibility.techniques import TECHNIQUES, Technique, near

WORDS = WORKS, RUNS, REFUSED, FAILS = "works", "runs", "refused", "fails"
ROUNDING = 1e-4  # of the largest number
Table = dict[str, dict[str, "Cell"]]


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    verdict: str
    reason: str = ""
    """The sentence that the node says, or what is wrong."""


def measured(technique: Technique, run: Run, plain: Tensor) -> Cell:
    """Return how `technique` goes in `run`, of which `plain` is the picture without it."""
    try:
        scene = technique.scene(run)
        return _tried(technique, scene, plain if scene is run else picture(scene))
    except Exception as error:  # whatever a host or a node raises is a finding
        refused = isinstance(error, ValueError) and _raised_by_pack(error)
        return Cell(REFUSED, str(error)) if refused else Cell(FAILS, f"{type(error).__name__}: {error}")


def _tried(technique: Technique, run: Run, plain: Tensor) -> Cell:
    on = technique.on(run)
    found = picture(on)
    if not found.isfinite().all():
        return Cell(FAILS, "The picture has numbers that are not finite.")
    if technique.off is not None and not is_off(technique, picture(technique.off(run)), plain):
        return Cell(RUNS, "Switched off, it still changes the picture.")
    if not torch.equal(picture(run), plain):
        return Cell(FAILS, "The host's own picture is another one afterwards.")
    if not technique.worked(on, found, plain):
        return Cell(RUNS, "There is a picture, but the technique did not do what it is for.")
    return Cell(WORKS)


def is_off(technique: Technique, found: Tensor, plain: Tensor) -> bool:
    """Tell whether what a technique makes when switched off is the plain picture."""
    return near(found[:1], plain, ROUNDING) if technique.rounds else torch.equal(found, plain)


def _raised_by_pack(error: Exception) -> bool:
    last = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    return any(last.is_relative_to(ROOT / part) for part in ("nodes", "guidance", "attention"))


def families(base: Run) -> Table:
    """Return a row for each technique: {technique: {family: cell}}."""
    runs = {
        name: base.changed(model=make(base.host), trained=name == DEMO) for name, make in FAMILIES.items()
    }
    return _table(runs)


ANY_SAMPLER = tuple(technique for technique in TECHNIQUES if not technique.own_sampler)


def samplers(base: Run, names: Iterable[str], techniques: Iterable[Technique] = ANY_SAMPLER) -> Table:
    """Return {technique: {sampler: cell}} of techniques that take any sampler, with the demo model."""
    runs = {name: base.changed(sampler_name=name) for name in names}
    return _table(runs, techniques)


def schedulers(base: Run, names: Iterable[str]) -> Table:
    """Return {technique: {scheduler: cell}} with the demo model and the sampler euler."""
    runs = {name: base.changed(scheduler=name) for name in names}
    return _table(runs)


def _table(columns: dict[str, Run], techniques: Iterable[Technique] = TECHNIQUES) -> Table:
    table: Table = {technique.name: {} for technique in techniques}
    for name, run in columns.items():
        print(name, flush=True)
        plain = picture(run)
        for technique in techniques:
            table[technique.name][name] = measured(technique, run, plain)
    return table


def switches() -> dict[str, str]:
    """Return how far each technique goes away when it is switched off."""
    return {technique.name: _switch(technique) for technique in TECHNIQUES}


def _switch(technique: Technique) -> str:
    if technique.off is None:
        return "no switch"
    return "but for rounding" if technique.rounds else "to the bit"
