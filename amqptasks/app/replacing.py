"""What a task can do with the canvas: become another call while it runs, and be mapped over arguments.

In a worker a replacement is only made here: the worker's parent publishes it, confirmed, before it acknowledges the
task that is replaced.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from amqptasks.app.context import Context
from amqptasks.canvas import Signature, chain, chunks, xmap, xstarmap
from amqptasks.canvas.chain import ends_in_group
from amqptasks.canvas.chord import counted
from amqptasks.exceptions import Ignore, ImproperlyConfigured
from amqptasks.results.context import allow_join_result


class Replacing:
    """What tasks offer beside plain calls."""

    app: Any

    def map(self, it: Iterable[Any]) -> xmap:
        """Make one call in which the task is called with each item in turn: ``double.map([1, 2])``."""
        task: Any = self
        return xmap(task.s(), it, app=self.app)

    def starmap(self, it: Iterable[Any]) -> xstarmap:
        """Do as `map`, with each item as the arguments: ``add.starmap([(2, 2), (4, 4)])``."""
        task: Any = self
        return xstarmap(task.s(), it, app=self.app)

    def chunks(self, it: Iterable[Any], n: int) -> chunks:
        """Make calls of `starmap` over `n` items each, to send side by side: ``add.chunks(pairs, 10)()``."""
        task: Any = self
        return chunks(task.s(), it, n, app=self.app)

    def replace(self, sig: Signature) -> Any:
        """Let another call take the place of the one that is running: ``return self.replace(add.s(2, 2))``.

        It gets this one's id, so that whoever waits for this one waits for that, and all that was to follow: callbacks,
        errbacks, the rest of the chain, the place in a group or chord. A group gives the list of its results.

        Raises:
            Ignore: That is how the worker learns that this one has no result of its own.
            ImproperlyConfigured: An empty chain has no result, and the member of a chord cannot leave it.
        """
        task: Any = self
        request: Context = task.request
        if sig.options.get("chord") is not None:
            raise ImproperlyConfigured("A signature replacing a task must not be part of a chord")
        if isinstance(sig, chain) and not sig.tasks:
            raise ImproperlyConfigured("Cannot replace with an empty chain")
        if request.is_eager:
            # What follows this one follows it in any case.
            return self.on_replace(sig.clone())
        if request._attempts is None:
            # No worker is there to settle it: a request that a program has pushed.
            return self.on_replace(_in_place_of(task, request, sig))
        with self.app.sender.collecting(request.reply_to) as collected:
            try:
                return self.on_replace(_in_place_of(task, request, sig))
            except Ignore:
                # What waited for this task waits for the other one now.
                request._attempts.extend(collected)
                request.chord = request.chain = None
                raise

    def on_replace(self, sig: Signature) -> Any:
        """Send the replacement. Override it to do more; return ``super().on_replace(sig)`` then."""
        task: Any = self
        if task.request.is_eager:
            with allow_join_result():
                return sig.apply().get()
        sig.delay()
        raise Ignore("Replaced by new task")

    def add_to_chord(self, sig: Signature, lazy: bool = False) -> Any:
        """Add a call to the header of the chord that the running task is a part of; its result comes right after this
        task's. Returns the call's result handle.

        A task that runs again adds the same part again, not another one, if it adds its parts in the same order.

        Args:
            sig: The call; a chain, group or chord of calls counts as it does in a header.
            lazy: Return the call instead of sending it. The chord waits for it until it is sent and has ended.

        Raises:
            ValueError: The running task is no part of a chord.
            NotImplementedError: The result store counts the chord's parts, and is not Redis.
            ChordError: The chord is over.
            OperationalError: The broker did not take it.
        """
        from amqptasks.wire.chord import read_mark

        task: Any = self
        request: Context = task.request
        if not request.chord:
            raise ValueError("Current task is not member of any chord")
        mark = read_mark(request.chord)
        request._added += 1
        key = f"{request.id}:{request._added}"
        call: Any = sig.clone()
        call.freeze(
            str(uuid.uuid5(uuid.NAMESPACE_OID, key)), group_id=request.group, group_index=request.group_index,
            root_id=request.root_id,
        )  # fmt: skip
        parts = list(counted(call))
        keys = [f"{key}:{index}" if index else key for index in range(len(parts))]
        if mark is None:
            _add_stored(self.app, request, parts, keys)
        else:
            _add_marked(self.app, mark, parts, keys)
        return call if lazy else call.delay()


def _add_marked(app: Any, mark: Any, parts: list[Any], keys: list[str]) -> None:
    from amqptasks.app.chords import add_parts
    from amqptasks.wire.chord import Mark

    for part, key in zip(parts, keys, strict=True):
        part.options["chord"] = Mark(mark.collector, mark.size, mark.index, key).to_plain()
    add_parts(app.sender, mark, keys)


def _add_stored(app: Any, request: Context, parts: list[Any], keys: list[str]) -> None:
    """Do it where the result store counts: there the part has a place in the order, the adder's, and no other name."""
    for part, key in zip(parts, keys, strict=True):
        part.options |= {"chord": request.chord, "group_id": request.group}
        app.backend.add_to_chord(str(request.group), key)


def _in_place_of(task: Any, request: Context, sig: Signature) -> Any:
    """Return a copy of a call that has the id of the one that is running, and all that follows it."""
    call: Any = sig.clone()
    call.options.pop("task_id", None)
    if ends_in_group(call):
        # One result takes the place of one result: the list.
        call = call | task.app.tasks["celery.accumulate"].s(index=0)
    for callback in request.callbacks or ():
        call.link(callback)
    for errback in request.errbacks or ():
        call.link_error(errback)
    call.freeze(request.id)
    nesting = (request.replaced_task_nesting or 0) + 1
    own = {
        "chord": request.chord, "group_id": request.group, "group_index": request.group_index,
        "root_id": request.root_id, "parent_id": request.parent_id, "replaced_task_nesting": nesting,
    }  # fmt: skip
    call.set(**{key: value for key, value in own.items() if value is not None})
    for step in call.tasks if isinstance(call, chain) else ():
        step.set(replaced_task_nesting=nesting)
    for plain in reversed(request.chain or ()):
        following = Signature.from_dict(plain, app=task.app)
        following.set(replaced_task_nesting=nesting)
        call = call | following
    return call
