"""Stamps: marks that travel in the headers of a call. How several of them are put together, by Celery's rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amqptasks.canvas.parts import as_list

__all__ = ["stamped"]

#: The option that names the stamps among the options.
_NAMES = "stamped_headers"


def stamped(
    headers: Mapping[str, Any], seen: Mapping[str, Any] | None, append: bool, own: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the stamps of a call as options, with ``stamped_headers`` naming them.

    Args:
        headers: What it is to be stamped with.
        seen: What a visitor wants; None if there is none. It may name its stamps itself, in ``stamped_headers``.
        append: Make a list of two stamps of one name; else the first one stays: ``headers``, ``seen``, ``own``.
        own: The options of the call, whose stamps stay.
    """
    stamps = dict(headers)
    names = list(stamps.pop(_NAMES, None) or stamps)
    if seen is not None:
        names += as_list(seen.get(_NAMES)) if _NAMES in seen else list(seen)
        _merge(stamps, {key: value for key, value in seen.items() if key != _NAMES}, append)
    if own is not None:
        names += as_list(own.get(_NAMES))
        _merge(stamps, {key: own[key] for key in names if key in own}, append)
    return {**stamps, _NAMES: list(dict.fromkeys(names))}


def _merge(into: dict[str, Any], more: Mapping[str, Any], append: bool) -> None:
    for key, value in more.items():
        if key not in into:
            into[key] = value
            continue
        known = into[key]
        if isinstance(known, dict):
            if isinstance(value, Mapping):
                into[key] = merged = dict(known)
                _merge(merged, value, append)
        elif append:
            into[key] = [*_listed(known), *(value if isinstance(value, list) else [value])]
        elif isinstance(known, list) and isinstance(value, list):
            into[key] = [*known, *value]


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]
