"""Schemas that load on every host: keywords that an older host does not know are dropped instead of raising."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Made = TypeVar("Made")


def tolerant(make: Callable[..., Made], /, *args: Any, **keywords: Any) -> Made:
    """Call `make` (io.Schema, io.Float.Input, ...) with those `keywords` that this host's version takes.

    Hosts gain keywords over time (`advanced`, `search_aliases`, ...); an unknown one is a TypeError that would take
    the whole pack down. Only the first-party keywords listed in OPTIONAL may be dropped; a typo still raises.
    """
    known = inspect.signature(make).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return make(*args, **keywords)
    return make(
        *args, **{key: value for key, value in keywords.items() if key in known or key not in OPTIONAL}
    )


OPTIONAL = {"advanced", "search_aliases", "essentials_category", "has_intermediate_output"}
