"""The GUIDER that samples a composition of conditions."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ...guidance.composition import Term, composed

TERM = "guided_synthesis_term"  # in a condition: the number of its term
CALCULATE = "sampler_calc_cond_batch_function"


class CompositionGuider(comfy.samplers.CFGGuider):
    """The host's CFG with a composition in the place of the positive condition.

    All terms are the host's positive, so areas, masks, ControlNets and hooks are prepared as ever; each entry knows its
    term. Pre- and post-cfg functions see the composed estimate as that of the positive, and the AND terms as its
    conditions.
    """

    def __init__(self, model: Any, terms: tuple[Term, ...], negative: list) -> None:
        """Take the MODEL, terms as `counting` gives them, and what is unconditional (CONDITIONING).

        The first term is AND: the host takes it for its positive.
        """
        super().__init__(model)
        self.weights = tuple(term.weight for term in terms)
        self.set_conds(_numbered(terms), negative)

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict | None = None, seed: Any = None
    ) -> Tensor:
        """Return the estimate (B, C, h, w); the host's own of one term of weight 1.

        And where a patch of the model has put another positive in the place of the composition.
        """
        options, terms = model_options or {}, self._terms()
        if self.weights == (1.0,) or not any(terms):
            return super().predict_noise(x, timestep, options, seed)

        def calculate(args: dict[str, Any]) -> list[Tensor]:
            return self._estimates(terms, {**args, "model_options": options})

        pairs = zip(terms, self.weights, strict=True)
        wanted = [entry for term, weight in pairs if weight > 0 for entry in term]
        return comfy.samplers.sampling_function(
            self.inner_model,
            x,
            timestep,
            self.conds["negative"],
            wanted,
            self.cfg,
            model_options={**options, CALCULATE: calculate, "disable_cfg1_optimization": True},
            seed=seed,
        )

    def _terms(self) -> list[list[dict]]:
        """Return the prepared conditions of each term."""
        entries, numbers = self.conds["positive"], range(len(self.weights))
        return [[entry for entry in entries if entry.get(TERM) == number] for number in numbers]

    def _estimates(self, terms: list[list[dict]], args: dict[str, Any]) -> list[Tensor]:
        """Return the composed estimate and the unconditional one, from one call of the host for all conditions."""
        first, *others = terms
        conds = [first, self.conds["negative"], *others]  # patches take number 1 for the unconditional
        x, sigma, options = args["input"], args["sigma"], args["model_options"]
        if CALCULATE in options:
            found = options[CALCULATE]({**args, "conds": conds})
        else:
            found = comfy.samplers.calc_cond_batch(args["model"], conds, x, sigma, options)
        unconditional = found[1]
        estimates = [
            torch.lerp(unconditional, estimate, reach(term, x, sigma))
            for estimate, term in zip([found[0], *found[2:]], terms, strict=True)
        ]
        return [composed(unconditional, estimates, self.weights), unconditional]


def reach(entries: list[dict], x: Tensor, sigma: Tensor) -> Tensor:
    """Return how far prepared conditions count in each cell of `x`, in [0, 1], by masks, areas and step ranges."""
    if any("default" in entry for entry in entries):  # the host lets it fill what the others leave
        return torch.ones_like(x)
    total = torch.zeros_like(x)
    for entry in entries:
        part = comfy.samplers.get_area_and_mult(entry, x, sigma)
        if part is not None:
            _within(total, part.area).add_(part.mult)
    return total.clamp(max=1)


def _within(x: Tensor, area: list[int] | None) -> Tensor:
    """Return the view of `x` in an area of the host: sizes, then offsets."""
    sides = len(area or ()) // 2
    for side in range(sides):
        x = x.narrow(side + 2, area[sides + side], area[side])
    return x


def _numbered(terms: tuple[Term, ...]) -> list:
    """Return all conditions as one CONDITIONING whose entries know their term."""
    return [
        [text, {**settings, TERM: number}]
        for number, term in enumerate(terms)
        for text, settings in term.conditioning
    ]
