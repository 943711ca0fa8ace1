"""Parts of chords that the result store counts, where Celery's workers count them: of those that Celery's programs have
begun, and of ours where ``chord_join`` is ``"store"``.

Their mark is the body itself. Whoever counts the last part makes the call of the body, or fails it. Imported with the
first such part; only some stores count (`ResultBackend.counts_chords`). Where none does, a task of Celery's asks again
and again whether all are there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, Final

from amqptasks.app.app import App
from amqptasks.app.context import Context
from amqptasks.exceptions import AmqptasksError, ChordError, ContentError, InvalidTaskError
from amqptasks.results.context import allow_join_result
from amqptasks.results.handles import AsyncResult, result_from_tuple
from amqptasks.results.record import ResultRecord
from amqptasks.states import PROPAGATE_STATES, SUCCESS
from amqptasks.wire.chord import Manifest
from amqptasks.wire.failures import format_traceback, from_plain, to_plain
from amqptasks.wire.reprs import printable
from amqptasks.worker.bodies import Fail, call_body, celery_body, fail_body
from amqptasks.worker.outcome import Next

__all__ = ["failed", "is_body", "succeeded"]

logger = logging.getLogger(__name__)

#: All results of a header are there when its last part has ended: this bounds how long reading them may take. Seconds.
JOIN_S: Final = 10.0
#: Canvases in canvases are looked through this deep.
MAX_DEPTH: Final = 100


def is_body(chord: Any) -> bool:
    """Whether what a part carries as its chord is a body, as Celery writes it."""
    return isinstance(chord, Mapping) and isinstance(chord.get("task"), str) and "collector" not in chord


def succeeded(app: App, request: Context, record: ResultRecord, fail: Fail) -> tuple[Next, ...]:
    """Count a part that has a result.

    Raises:
        EncodeError: It cannot be serialized.
        BackendStoreError: It could not be stored or counted.
    """
    if not is_body(request.chord) or not isinstance(request.group, str) or not app.backend.counts_chords:
        return ()
    part = (request.id or "", request.group, request.group_index)
    if app.backend.joins_stored:
        app.backend.store(record)
    return _count(app, request, part, SUCCESS, record.result, request.chord, fail)


def failed(app: App, request: Context, error: BaseException, state: str, fail: Fail) -> tuple[Next, ...]:
    """Count the parts that a task which has failed stood for, itself or as a step of a chain. Raises nothing."""
    found: tuple[Next, ...] = ()
    if not app.backend.counts_chords:
        return found
    plain = to_plain(error, app.conf.result_serializer)
    for body, part in _parts(request):
        try:
            if app.backend.joins_stored:
                _store_failure(app, part, state, plain)
            found += _count(app, request, part, state, plain, body, fail)
        except AmqptasksError as trouble:
            logger.error("Task %s is not counted in its chord: %s", printable(part[0], 64), trouble)
    return found


def _store_failure(app: App, part: tuple[str, str, Any], state: str, plain: Any) -> None:
    """Store what a part has failed with, unless more is known of it."""
    task_id, group_id, _index = part
    known = app.backend.fetch(task_id)
    if known is None or not known.is_final:
        app.backend.store(ResultRecord.now(task_id, state, plain, group_id=group_id))


def _parts(request: Context) -> Iterator[tuple[Any, tuple[str, str, Any]]]:
    if is_body(request.chord) and isinstance(request.group, str):
        yield request.chord, (request.id or "", request.group, request.group_index)
    for element in request.chain or ():
        yield from _parts_in(element, MAX_DEPTH)


def _parts_in(call: Any, depth: int) -> Iterator[tuple[Any, tuple[str, str, Any]]]:
    """Yield the parts that will never be there if a call is not made. Of a chord the body: nobody waits for its header.

    Whatever the call is: it came over the wire.
    """
    options = call.get("options") if isinstance(call, Mapping) else None
    if not isinstance(options, Mapping) or depth <= 0:
        return
    kwargs, kind = call.get("kwargs"), call.get("subtask_type")
    if kind not in ("chord", "group", "chain") or not isinstance(kwargs, Mapping):
        task_id, group_id = options.get("task_id"), options.get("group_id")
        if is_body(options.get("chord")) and isinstance(task_id, str) and isinstance(group_id, str):
            yield options["chord"], (task_id, group_id, options.get("group_index"))
    elif kind == "chord":
        yield from _parts_in(kwargs.get("body"), depth - 1)
    elif isinstance(kwargs.get("tasks"), (list, tuple)):
        for each in kwargs["tasks"]:
            yield from _parts_in(each, depth - 1)


def _count(
    app: App, request: Context, part: tuple[str, str, Any], state: str, value: Any, body: Any, fail: Fail
) -> tuple[Next, ...]:
    task_id, group_id, index = part
    place, size = (each if type(each) is int else None for each in (index, body.get("chord_size")))
    if not app.backend.count_part(group_id, task_id, place, state, value, size):
        return ()
    try:
        call = celery_body(app, body)
    except (ContentError, InvalidTaskError) as error:
        logger.error("The body of chord %s cannot be read: %s", printable(group_id, 64), error)
        return ()
    root_id = request.root_id or request.id
    try:
        values = _join(app, group_id, ResultRecord.now(task_id, state, value, group_id=group_id))
        return call_body(app, call, values, root_id, request.id)
    except Exception as error:
        logger.warning("Chord %s has failed: %s", printable(group_id, 64), error)
        told = error if isinstance(error, ChordError) else ChordError(f"Join error: {error!r}")
        return fail_body(call, Manifest("", 0, call, group_id, 0.0, root_id), told, format_traceback(told), fail)


def _join(app: App, group_id: str, last: ResultRecord) -> list[Any]:
    """Return the results of a header, whose last part has just ended.

    Raises:
        ChordError: A part has failed.
    """
    saved = app.backend.fetch_group(group_id)
    if saved is not None:
        # A header of groups: their results are lists in the list, and are read one by one, the last one too.
        if not app.backend.joins_stored:
            app.backend.store(last)
        group = result_from_tuple(saved, app)
        with allow_join_result():
            values = _join_group(group)
        return list(values)
    if app.backend.joins_stored:
        raise ChordError(f"GroupResult {printable(group_id, 64)} no longer exists")
    values = []
    for task_id, state, result in app.backend.counted_parts(group_id):
        if state in PROPAGATE_STATES:
            cause = from_plain(result, None)
            raise ChordError(f"Dependency {task_id} raised {cause!r}") from cause
        values.append(result)
    return values


def _join_group(group: Any) -> Any:
    try:
        return group.get(timeout=JOIN_S, propagate=True)
    except Exception as error:
        for part in group.results:
            if isinstance(part, AsyncResult) and part.state in PROPAGATE_STATES:
                raise ChordError(f"Dependency {part.id} raised {error!r}") from error
        raise
