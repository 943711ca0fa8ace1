"""How the parts of chords end: what is told to their collectors. Imported with the first part of a chord."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from amqptasks.app.app import App
from amqptasks.app.context import Context
from amqptasks.exceptions import ContentError, EncodeError, InvalidTaskError, OperationalError
from amqptasks.wire.chord import Mark, PartEnd, collector_name, encode_part, is_collector, read_mark
from amqptasks.wire.failures import to_plain
from amqptasks.wire.reprs import printable
from amqptasks.wire.serializers import Limits, accepted
from amqptasks.wire.task import TaskBody, read_body
from amqptasks.worker.outcome import Part
from amqptasks.worker.request import Request

__all__ = ["body_of", "failed", "marks_in", "succeeded", "unreadable", "unsent"]

logger = logging.getLogger(__name__)

#: Canvases in canvases are looked through this deep, for marks of chords.
MAX_DEPTH = 100


def succeeded(app: App, request: Context, value: Any) -> tuple[Part, ...]:
    """Make the end of a part that has a result.

    Raises:
        EncodeError: It cannot be serialized, or is larger than any task's arguments may be.
    """
    mark = read_mark(request.chord)
    if mark is None:
        return ()
    end = PartEnd(mark.collector, mark.index, request.id or "", True, value, added=mark.added)
    message = encode_part(end, app.conf.task_serializer)
    most = app.conf.task_message_max_bytes
    if len(message.body) > most:
        raise EncodeError(
            f"the result of task {request.id} is a part of a chord, and too large for the chord's body: "
            f"{len(message.body)} bytes, at most {most} are allowed (task_message_max_bytes)"
        )
    return (Part(message, mark.size),)


def failed(conf: Any, request: Context, error: BaseException, traceback: str | None) -> tuple[Part, ...]:
    """Make the ends of the parts that a task which has failed stood for, itself or as a step of a chain. Raises
    nothing."""
    parts: list[Part] = []
    for mark, task_id in _marks(request):
        parts.append(_failed_part(conf, mark, task_id, error, traceback))
    return tuple(parts)


def unreadable(app: App, request: Context, error: BaseException) -> tuple[Part, ...]:
    """Make the end of the part that a message which cannot be read may have been. If its group is no chord's header,
    there is no collector, and nothing comes of it."""
    group_id, index = request.group, request.group_index
    if not isinstance(group_id, str) or not isinstance(index, int) or index < 0:
        return ()
    collector = collector_name(app.conf.task_queue_prefix, group_id)
    if not is_collector(collector):
        return ()
    return (_failed_part(app.conf, Mark(collector, 0, index), request.id or "", error, None),)


def unsent(conf: Any, request: Request, why: str) -> tuple[Part, ...]:
    """Make the ends of the parts that a task stood for of which what follows cannot be sent. Raises nothing."""
    body = body_of(conf, request)
    if body is None:
        return ()
    context = Context(id=request.id, chain=body.chain, chord=body.chord)
    return failed(conf, context, OperationalError(f"what follows task {request.id} cannot be sent: {why}"), None)


def body_of(conf: Any, request: Request) -> TaskBody | None:
    """Read the body of a task in the worker's parent; None if that cannot be done."""
    properties = request.delivery.properties
    limits = Limits(conf.task_message_max_bytes, conf.task_message_max_items, conf.task_message_max_depth)
    try:
        return read_body(
            request.headers, properties.content_type, properties.content_encoding, request.delivery.body,
            accepted(conf.accept_content), limits,
        )  # fmt: skip
    except (ContentError, InvalidTaskError):
        return None


def _failed_part(conf: Any, mark: Mark, task_id: str, error: BaseException, traceback: str | None) -> Part:
    serializer = conf.task_serializer
    plain = to_plain(error, serializer)
    try:
        message = encode_part(
            PartEnd(mark.collector, mark.index, task_id, False, plain, traceback, mark.added), serializer
        )
        if len(message.body) > conf.task_message_max_bytes:
            raise EncodeError("the error is too large")
    except EncodeError as trouble:
        logger.warning("The error of task %s cannot be told to its chord: %s", printable(task_id, 64), trouble)
        plain = to_plain(type(trouble)(f"{type(error).__name__}, which cannot be sent: {trouble}"[:1000]), serializer)
        message = encode_part(PartEnd(mark.collector, mark.index, task_id, False, plain, added=mark.added), serializer)
    return Part(message, mark.size)


def _marks(request: Context) -> Iterator[tuple[Mark, str]]:
    own = read_mark(request.chord)
    if own is not None:
        yield own, request.id or ""
    for element in request.chain or ():
        yield from marks_in(element)


def marks_in(call: Any, depth: int = MAX_DEPTH) -> Iterator[tuple[Mark, str]]:
    """Yield the marks, and the ids, of the calls for whose ends a chord waits that this call is in the header of.

    Whatever the call is: it came over the wire. Of a chord that is not begun, only the body is looked at: nobody waits
    for its header.
    """
    options = call.get("options") if isinstance(call, Mapping) else None
    if not isinstance(options, Mapping) or depth <= 0:
        return
    mark = read_mark(options.get("chord"))
    if mark is not None:
        task_id = options.get("task_id")
        yield mark, task_id if isinstance(task_id, str) else ""
    kwargs = call.get("kwargs")
    if not isinstance(kwargs, Mapping):
        return
    kind = call.get("subtask_type")
    if kind == "chord":
        yield from marks_in(kwargs.get("body"), depth - 1)
    elif kind in ("group", "chain") and isinstance(kwargs.get("tasks"), (list, tuple)):
        for each in kwargs["tasks"]:
            yield from marks_in(each, depth - 1)
