"""What becomes of a chord's body: it is called with the results, or it fails without having run.

Nothing is sent here: this makes what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from amqptasks.app.app import App
from amqptasks.app.context import Context
from amqptasks.app.options import KNOWN_OPTIONS
from amqptasks.canvas.parts import as_list
from amqptasks.canvas.signature import Signature, maybe_signature
from amqptasks.exceptions import ChordError
from amqptasks.wire.chord import Manifest
from amqptasks.worker.outcome import Next, made

__all__ = ["Fail", "call_body", "celery_body", "fail_body"]

#: Makes all that follows the failure of a call that has not run: of its request, the error, the traceback.
Fail = Callable[[Context, ChordError, str], tuple[Next, ...]]

#: Canvases in canvases are looked through this deep.
MAX_DEPTH = 100


def celery_body(app: App, plain: Mapping[str, Any]) -> Signature:
    """Make the call of a body that a Celery program has written.

    Raises:
        ContentError, InvalidTaskError: It is no call.
    """
    body: Signature = maybe_signature(dict(plain), app=app)
    for option in body.options.keys() - KNOWN_OPTIONS:
        # Celery hands a chord's own, such as `interval`, on to its body, and minds none that it does not know.
        del body.options[option]
    return body


def call_body(
    app: App, body: Signature, values: list[Any], root_id: str | None, parent_id: str | None
) -> tuple[Next, ...]:
    """Make the call of a body with the results of its header.

    Raises:
        Exception: It cannot be called so.
    """
    with app.sender.collecting(None) as collected:
        body.apply_async((values,), root_id=root_id, parent_id=parent_id)
    return made(collected)


def fail_body(body: Signature, manifest: Manifest, error: ChordError, traceback: str, fail: Fail) -> tuple[Next, ...]:
    """Make all that follows the failure of a body that has not run: answers, errbacks, the end of its chain."""
    found: list[Next] = []
    for call, chain, errbacks in _heads(body, [], [], MAX_DEPTH):
        found.extend(fail(_request(call, chain, errbacks, manifest), error, traceback))
    return tuple(found)


def _heads(
    call: Signature, chain: list[Any], errbacks: list[Any], depth: int
) -> list[tuple[Signature, list[Any], list[Any]]]:
    """Return the single calls that a call would begin with, what would follow each, last first, and what is called if
    it fails. Of a chord that is its body: its header was to begin, but who waits for anything waits for the body."""
    options = call.options
    chain = [*chain, *as_list(options.get("chain"))]
    # Those of a chain are those of its steps.
    own = as_list(options.get("link_error"))
    errbacks = [*own, *(each for each in errbacks if each not in own)]
    kind, parts = call.subtask_type, call.kwargs
    if depth <= 0:
        return []
    if kind == "chain":
        tasks = parts["tasks"]
        if not tasks:
            return []
        return _heads(tasks[0], [*chain, *reversed(tasks[1:])], errbacks, depth - 1)
    if kind == "group":
        return [head for member in parts["tasks"] for head in _heads(member, chain, errbacks, depth - 1)]
    if kind == "chord":
        return [] if parts["body"] is None else _heads(parts["body"], chain, errbacks, depth - 1)
    return [(call, chain, errbacks)]


def _request(call: Signature, chain: list[Any], errbacks: list[Any], manifest: Manifest) -> Context:
    options: Mapping[str, Any] = call.options
    task_id = options.get("task_id")
    reply_to = options.get("reply_to")
    request = Context(
        id=task_id if isinstance(task_id, str) else None, task=call.task, args=call.args, kwargs=call.kwargs,
        reply_to=reply_to if isinstance(reply_to, str) else None, group=options.get("group_id"),
        group_index=options.get("group_index"), root_id=manifest.root_id, errbacks=errbacks,
        chain=chain or None, chord=options.get("chord"), called_directly=False,
    )  # fmt: skip
    request.correlation_id = request.id
    if options.get("ignore_result") is not None:
        request.ignore_result = bool(options["ignore_result"])
    return request
