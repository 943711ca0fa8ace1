"""Saying which argument of which call in a canvas cannot be serialized. For the way out: all is looked at again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from amqptasks.canvas.parts import as_list
from amqptasks.wire.serializers import advise, explain_unencodable, find_unencodable

__all__ = ["explain_call"]


def explain_call(args: Any, kwargs: Any, embed: Mapping[str, Any], serializer: str) -> str:
    """Say what of a call the serializer cannot carry, its own arguments or those of what follows it.

    Such as ``json cannot carry argument 1 of args: … (step 2 of the chain, tasks.add)``.
    """
    if find_unencodable(args, kwargs, serializer) is None:
        for call, place in _following(embed):
            where = find_unencodable(as_list(call.get("args")), call.get("kwargs") or {}, serializer)
            if where is not None:
                return advise(serializer, f"{where} ({place}, {call.get('task')})")
    return explain_unencodable(args, kwargs, serializer)


def _following(embed: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield every single call that is embedded in another one, with words for where it stands."""
    for key, what in (("callbacks", "a callback"), ("errbacks", "an errback")):
        for each in embed.get(key) or ():
            yield from _within(each, what)
    # Written in reverse, after the call that it is embedded in.
    for number, step in enumerate(reversed(embed.get("chain") or ()), 2):
        yield from _within(step, f"step {number} of the chain")


def _within(call: Any, place: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    if not isinstance(call, Mapping):
        return
    fields, kind = call.get("kwargs") or {}, call.get("subtask_type")
    part, key = {"chain": ("step", "tasks"), "group": ("member", "tasks"), "chord": ("header", "header")}.get(
        str(kind), ("", "")
    )
    if not part:
        yield call, place
    for number, each in enumerate(fields.get(key) or (), 1):
        yield from _within(each, f"{part} {number} of {place}")
    if kind == "chord" and fields.get("body"):
        yield from _within(fields["body"], f"body of {place}")
    options = call.get("options") or {}
    for each in as_list(options.get("link")):
        yield from _within(each, f"callback of {place}")
    for each in as_list(options.get("link_error")):
        yield from _within(each, f"errback of {place}")
