"""The one place where attention of the host's UNet is edited: between softmax and values, by editors of `attention/`.

A clone of the model carries its editors in its own options. While the host computes a batch of conditions, and only
then, every cross-attention layer that an editor reads gets a function into the host's replace slot, around whatever
another pack put there: out = host's (or the other pack's) output + (edited maps - maps) @ values. So layers, pictures
and steps that nobody edits stay on the host's kernel, to the bit. A self-attention map is never made: to have the map
of another picture is to have its queries and keys.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from comfy.ldm.modules.attention import SpatialTransformer, optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, Upsample
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...attention.maps import Call, Condition, Editor, Layer, Sharer, folded
from ...attention.words import Prompt
from .prompts import PROMPT_KEY

KEY = "guided_synthesis_attention"
SHARING = "guided_synthesis_self_attention"
_layers: weakref.WeakKeyDictionary[Any, dict[tuple[str, int, int], Layer]] = weakref.WeakKeyDictionary()
Replacement = Callable[[Tensor, Tensor, Tensor, dict], Tensor]


def check_unet(model: Any) -> None:
    """Raise ValueError unless MODEL is a UNet with cross-attention, as SD 1.x, SD 2.x and SDXL have."""
    network = getattr(getattr(model, "model", None), "diffusion_model", None)
    if not cross_attention_layers(network):
        kind = type(getattr(model, "model", model)).__name__
        raise ValueError(
            f"The model ({kind}) has no cross-attention between words and picture that could be read or changed. "
            "Connect a model of the families SD 1.x, SD 2.x or SDXL."
        )


def cross_attention_layers(network: Any) -> dict[tuple[str, int, int], Layer]:
    """Return the cross-attention layers of a host UNet by the host's own key: (block, number, index)."""
    if not all(hasattr(network, name) for name in ("input_blocks", "middle_block", "output_blocks")):
        return {}
    if network not in _layers:
        _layers[network] = _found_layers(network)
    return _layers[network]


def _found_layers(network: Any) -> dict[tuple[str, int, int], Layer]:
    found: dict[tuple[str, int, int], Layer] = {}
    scale = 1

    def look(stage: str, name: str, number: int, block: Any) -> None:
        for module in block:
            if isinstance(module, SpatialTransformer):
                for index, inner in enumerate(module.transformer_blocks):
                    if inner.attn2 is not None and not inner.switch_temporal_ca_to_sa:
                        key = (name, number, index)
                        found[key] = Layer(key, stage, scale)

    for number, block in enumerate(network.input_blocks):
        scale *= 2 if _has(block, Downsample) else 1
        look("down", "input", number, block)
    look("mid", "middle", 0, network.middle_block or ())  # small SDXLs have none
    for number, block in enumerate(network.output_blocks):
        look("up", "output", number, block)
        scale //= 2 if _has(block, Upsample) else 1
    return found


def edit_attention(model: Any, editor: Editor) -> Any:
    """Return a clone of `model` (MODEL) whose cross-attention maps go through `editor` after those there already."""
    return _with(model, KEY, editor)


def share_self_attention(model: Any, sharer: Sharer) -> Any:
    """Return a clone of `model` (MODEL) whose pictures share self-attention as `sharer` says; the last one rules."""
    return _with(model, SHARING, sharer)


def _with(model: Any, key: str, member: Editor | Sharer) -> Any:
    patched = model.clone()
    options = patched.model_options.setdefault("transformer_options", {})
    if KEY not in options and SHARING not in options:
        patched.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, _around_conditions)
    options[key] = (*options.get(key, ()), _Kept(member))
    return patched


@dataclass(frozen=True)
class _Kept:
    """An editor in a model's options: every clone has the same one, though older hosts copy the options in depth."""

    member: Any

    def __deepcopy__(self, memo: dict) -> _Kept:
        return self


def _has(block: Any, kind: type) -> bool:
    return any(isinstance(module, kind) for module in block.modules())


def _around_conditions(executor, model, conds, x_in, timestep, model_options):
    """Wrap the host's pass over a list of conditions."""
    options = model_options["transformer_options"]
    progress = progress_of(model.model_sampling, timestep)
    editors, sharers = (tuple(kept.member for kept in options.get(key, ())) for key in (KEY, SHARING))
    run = _Pass(editors, sharers, _conditions(conds, x_in.shape), progress)
    slots = options.get("patches_replace", {})
    cross, own = (dict(slots.get(name, {})) for name in ("attn2", "attn1"))
    for key, layer in cross_attention_layers(model.diffusion_model).items():
        if any(run.readers(layer, condition) for condition in run.conditions.values()):
            cross[key] = run.around(layer, cross.get(key, cross.get(key[:2], _hosts)))
        if run.sharers:
            own[key] = run.around_self(layer, own.get(key, own.get(key[:2], _hosts)))
    options = {**options, "patches_replace": {**slots, "attn2": cross, "attn1": own}}
    return executor(model, conds, x_in, timestep, {**model_options, "transformer_options": options})


def progress_of(model_sampling: Any, sigma: Tensor) -> float:
    """Return where `sigma` lies in the model's schedule: 0 at the most, 1 at the least noise (the host's percent)."""
    level, low, high = sigma.flatten()[0].item(), 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if model_sampling.percent_to_sigma(middle) > level else (low, middle)
    return (low + high) / 2


def _conditions(conds: list, shape: torch.Size) -> dict[tuple[int, Any], Condition]:
    """Return the text conditions by (place of their list in `conds`, uuid): the same uuid may be in several lists."""
    entries = [(kind, entry) for kind, entries in enumerate(conds) for entry in entries or ()]
    noted = any(PROMPT_KEY in entry for _, entry in entries)
    found = {}
    for kind, entry in entries:
        text = entry["model_conds"].get("c_crossattn")
        if text is not None:
            prompt, area = _prompt(entry, text.cond), _area(entry, shape)
            found[kind, entry["uuid"]] = Condition(
                kind, text.cond.shape[1], prompt, tuple(shape[-2:]), area, noted
            )
    return found


def _prompt(entry: dict, text: Tensor) -> Prompt | None:
    """Return the words of a condition, if they are of its `text` (B, T, C).

    Where a positive has an area, the host puts a copy of its entry among the negatives, with the text of one of these.
    """
    own = entry.get("cross_attn")
    is_copy = own is not text and (own is None or not torch.equal(own.to(text), text))
    return None if is_copy else entry.get(PROMPT_KEY)


def _area(entry: dict, shape: torch.Size) -> tuple[int, int, int, int] | None:
    """Return the part of the latent that the host cuts out for this condition."""
    if entry.get("area") is None:
        return None
    height, width, y, x = entry["area"]
    return min(height, shape[-2] - y), min(width, shape[-1] - x), y, x


@dataclass(frozen=True)
class _Pass:
    """One pass over conditions, at one noise level."""

    editors: tuple[Editor, ...]
    sharers: tuple[Sharer, ...]
    conditions: dict[tuple[int, Any], Condition]
    progress: float

    def readers(self, layer: Layer, condition: Condition) -> list[Editor]:
        return [editor for editor in self.editors if editor.reads(layer, condition, self.progress)]

    def batch(self, options: dict) -> list[Condition | None]:
        """Return the conditions that the host put into one batch, in its order; None: without a text."""
        return [
            self.conditions.get(key) for key in zip(options["cond_or_uncond"], options["uuids"], strict=True)
        ]

    def around(self, layer: Layer, earlier: Replacement) -> Replacement:
        """Return the function for the host's cross-attention slot of `layer`, around what was in it."""

        def attention(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
            out = earlier(q, k, v, options)
            batch, grid = self.batch(options), tuple(options["activations_shape"][-2:])
            length = math.lcm(*(condition.tokens for condition in batch if condition is not None))
            parts, changed = list(out.chunk(len(batch))), False
            of_each = zip(batch, *(part.chunk(len(batch)) for part in (q, k, v)), strict=True)
            for i, (condition, *qkv) in enumerate(of_each):
                readers = self.readers(layer, condition) if condition is not None else []
                if (
                    readers and length <= k.shape[1]
                ):  # else another pack put something shorter in the text's place
                    call = Call(layer, grid, condition, self.progress)
                    difference = _difference(*qkv, options["n_heads"], length, readers, call)
                    if difference is not None:
                        parts[i], changed = parts[i] + difference.to(out), True
            return torch.cat(parts) if changed else out

        return attention

    def around_self(self, layer: Layer, earlier: Replacement) -> Replacement:
        """Return the function for the host's self-attention slot of `layer`, around what was in it."""

        def attention(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
            batch, grid = self.batch(options), tuple(options["activations_shape"][-2:])
            count = k.shape[0] // len(
                batch
            )  # of q, another pack may have made several tiles each (HyperTile)
            rows = [
                i * count + source
                for i, condition in enumerate(batch)
                for source in self.sources(layer, grid, condition, count)
            ]
            if rows != list(range(k.shape[0])):
                q, k = q.unflatten(0, (k.shape[0], -1))[rows].flatten(0, 1), k[rows]
            return earlier(q, k, v, options)

        return attention

    def sources(self, layer: Layer, grid: tuple, condition: Condition | None, pictures: int) -> list[int]:
        found = list(range(pictures))
        for sharer in self.sharers if condition is not None else ():
            found = sharer.sources(layer, grid, condition, self.progress, pictures) or found
        return found


def _difference(
    q: Tensor, k: Tensor, v: Tensor, heads: int, length: int, readers: list[Editor], call: Call
) -> Tensor | None:
    """Return what the readers change of an attention's output (B, N, C), float32; None: nothing.

    The first `length` tokens are the condition's, repeated by the host to the length of the batch; any further ones
    are another pack's and stay as they are.
    """
    q, k, v = (_by_head(part, heads) for part in (q, k, v))
    maps = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    tokens = call.condition.tokens
    own = edited = folded(maps[..., :length], tokens)
    for editor in readers:
        edited = editor.edit(edited, call)
    if edited is own:
        return None
    return ((edited - own) @ v[..., :tokens, :]).transpose(1, 2).flatten(2)


def _by_head(part: Tensor, heads: int) -> Tensor:
    """Return (B, N, heads * D) as (B, heads, N, D), float32."""
    return part.float().unflatten(-1, (heads, -1)).transpose(1, 2)


def _hosts(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
    """Attend as the host's own layer does."""
    precision = options["attn_precision"]
    return optimized_attention(
        q, k, v, options["n_heads"], attn_precision=precision, transformer_options=options
    )
