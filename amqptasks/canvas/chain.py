"""Calls one after another: each gets the result of the one before.

The whole chain travels with its first task, the rest reversed in the message's ``chain`` field, so that whoever runs a
task takes the next one off the end. Also says what ``|`` makes of any two calls; the rules are Celery's, kind by kind.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping
from typing import Any

from amqptasks.canvas.chord import chord
from amqptasks.canvas.group import group, is_nothing, tasks_in, unrolled
from amqptasks.canvas.parts import as_list, shortened
from amqptasks.canvas.sending import expecting
from amqptasks.canvas.signature import Signature, maybe_signature, signatures
from amqptasks.canvas.stamps import stamped
from amqptasks.states import IGNORED, REJECTED

__all__ = ["chain", "ends_in_group"]

# What concerns the last step, or each, rather than the first, which gets every other option.
_OWN_OPTIONS = ("task_id", "group_id", "group_index", "chord", "link", "link_error", "root_id", "parent_id", "chain")
# What of a chain's options does not go on to the chain that it becomes a part of.
_MOVED_OPTIONS = ("link", "link_error", "task_id")


@Signature.register_type()
class chain(Signature):
    """``chain(a, b, c)``, or ``a | b | c``. Chains within it are flattened; a group followed by a task is a chord.

    New arguments go to the first step. The result's handle is that of the last step; ``.parent`` leads to those before.
    """

    #: Made by `__new__`; nothing is left to do.
    _is_made = False

    def __new__(cls, *tasks: Any, **options: Any) -> chain:
        """Make what ``|`` makes of the calls, which need not be a chain. With options nothing is composed yet."""
        if not tasks or options or (len(tasks) == 1 and not _is_listed(tasks[0])):
            own: chain = super().__new__(cls)
            return own
        calls = signatures(tasks[0] if len(tasks) == 1 else tasks, None)
        made: chain = _folded(cls, list(calls))
        if isinstance(made, cls):
            made._is_made = True
        return made

    def __init__(self, *tasks: Any, app: Any = None, options: Mapping[str, Any] | None = None, **ex: Any) -> None:
        if self._is_made:
            self._is_made = False
            return
        given = tasks[0] if len(tasks) == 1 and _is_listed(tasks[0]) else tasks
        super().__init__(
            "celery.chain", (), {"tasks": list(signatures(given, app))}, {**(options or {}), **ex},
            subtask_type="chain", app=app,
        )  # fmt: skip

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], app: Any = None) -> chain:
        """Make a chain of its plain form."""
        plain = Signature(d)
        made: chain = _of(cls, signatures(tasks_in(plain, "tasks"), app), app)
        made["args"] = tuple(plain.args)
        made["options"] = dict(plain.options)
        made["immutable"] = plain.immutable
        return made

    @classmethod
    def joined(cls, left: Signature, right: Signature) -> Any:
        """Return what ``left | right`` is: a chain, a chord, or one of the two where the other is empty."""
        if isinstance(left, chain):
            return _after_chain(left, right)
        if isinstance(left, group):
            return left if is_nothing(right) else chord(left.spread(), body=right, app=left._app)
        if isinstance(right, group):
            right = _unrolled(right)
        if isinstance(left, chord) and not isinstance(right, (group, chain)):
            return _with_body(left, right)
        steps = _dissolved(right) if isinstance(right, chain) else [right]
        return _of(cls, [left, *steps], left._app)

    @property
    def tasks(self) -> list[Any]:
        """The steps."""
        steps: list[Any] = self.kwargs["tasks"]
        return steps

    @tasks.setter
    def tasks(self, steps: list[Any]) -> None:
        self.kwargs["tasks"] = steps

    def _calls(self) -> Iterable[Any]:
        return self.tasks

    # -- calling

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Send it, with these arguments for its first step. An empty one returns None."""
        return self.apply_async(args, kwargs)

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Send the first step, and the rest with it. Returns the handle of the last step's result; None if it is empty.

        ``task_id`` is the last step's id, ``link`` is called after the last step, ``link_error`` after any that fails;
        other options, such as ``queue`` and ``countdown``, hold for the first step. Under ``task_always_eager`` the
        steps run here and now.
        """
        if self.tasks and self.app.is_eager:
            return self.apply(args, kwargs, **options)
        _, _, merged = self._merge(None, None, {key: value for key, value in options.items() if value is not None})
        steps = [call.clone() for call in _ready(self.tasks)]
        if not steps:
            return self._of_nothing()
        steps[0] = steps[0].clone(self._given(args), kwargs)
        own = {key: merged.get(key) for key in _OWN_OPTIONS}
        first_options = {key: value for key, value in merged.items() if key not in _OWN_OPTIONS}
        for callback in as_list(own["link"]):
            steps[-1].link(callback)
        for errback in as_list(own["link_error"]):
            for call in steps:
                call.link_error(errback)
        results = _frozen(steps, own)
        # The steps of an outer chain stay in front: whoever runs a task takes the next from the end.
        rest = [*as_list(own["chain"]), *reversed(steps[1:])]
        if rest:
            first_options["chain"] = rest
        for key in ("root_id", "parent_id"):
            if own[key]:
                first_options[key] = own[key]
        with expecting(self.app, (leaf for result in results for leaf in result.leaves())):
            sent = steps[0].apply_async(**first_options)
        return sent if len(steps) == 1 else results[-1]

    def apply(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Run the steps here and now, one after another; raise what one of them raises.

        Returns the `EagerResult` of the last, whose ``.parent`` leads to those before; None if the chain is empty. A
        step that ends by `Ignore` or `Reject` is the last.
        """
        _, _, merged = self._merge(None, None, {key: value for key, value in options.items() if value is not None})
        own = {key: merged.get(key) for key in ("link", "link_error", "task_id")}
        merged = {key: value for key, value in merged.items() if key not in own}
        steps = [call.clone() for call in _ready(self.tasks)]
        if not steps:
            return self._of_nothing()
        steps[0] = steps[0].clone(self._given(args), kwargs)
        for callback in as_list(own["link"]):
            steps[-1].link(callback)
        if own["task_id"]:
            steps[-1].set(task_id=own["task_id"])
        last: Any = None
        for call in steps:
            for errback in as_list(own["link_error"]):
                call.link_error(errback)
            # Nobody is waited for: what is asked has ended.
            given = () if last is None else (last.get(disable_sync_subtasks=False),)
            result = call.apply(given, **merged)
            _first_of(result).parent, last = last, result
            if getattr(result, "state", None) in (IGNORED, REJECTED):
                break
        return last

    def _given(self, args: Any) -> tuple[Any, ...]:
        return tuple(self.args) if self.immutable else (*(args or ()), *self.args)

    def _of_nothing(self) -> Any:
        """Return the result of a chain without steps: None, or an empty one if it is made of empty groups."""
        empty = next((call for call in self.tasks if isinstance(call, group)), None)
        return None if empty is None else group(app=self._known_app()).freeze(self.id)

    def freeze(
        self, _id: str | None = None, group_id: str | None = None, chord: Any = None, root_id: str | None = None,
        parent_id: str | None = None, group_index: int | None = None,
    ) -> Any:  # fmt: skip
        """Give every step its id now, and return the handle of the last step's result.

        Raises:
            ValueError: It is empty.
        """
        steps = _ready(self.tasks)
        if not steps:
            if (empty := self._of_nothing()) is not None:
                return empty
            raise ValueError("an empty chain has no result: it cannot be frozen")
        self.tasks = steps
        own = {
            "task_id": _id or self.options.get("task_id"), "group_id": group_id, "chord": chord, "root_id": root_id,
            "parent_id": parent_id, "group_index": group_index,
        }  # fmt: skip
        result = _frozen(steps, own)[-1]
        self.options["task_id"] = result.id
        return result

    # -- changing

    def clone(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Return a copy with copies of its steps, these keyword arguments given to the first of them."""
        copy = super().clone(args, None, **options)
        copy.tasks = [call.clone() for call in self.tasks]
        if kwargs and copy.tasks:
            copy.tasks[0] = copy.tasks[0].clone(None, kwargs)
        return copy

    def unchain_tasks(self) -> list[Any]:
        """Return copies of the steps that carry the chain's own links: the last one its links, each its errbacks."""
        steps = [call.clone() for call in self.tasks]
        if steps:
            for callback in as_list(self.options.get("link")):
                steps[-1].link(callback)
        for errback in as_list(self.options.get("link_error")):
            for call in steps:
                call.link_error(errback)
        return steps

    def stamp(self, visitor: Any = None, append_stamps: bool = False, **headers: Any) -> Any:
        """Stamp every step; see `Signature.stamp`. Returns self."""
        seen = None if visitor is None else visitor.on_chain_start(self, **headers) or {}
        headers = stamped(headers, seen, append_stamps, self.options)
        self.stamp_links(visitor, append_stamps, **headers)
        for call in self.tasks:
            call.stamp(visitor, append_stamps, **headers)
        if visitor is not None:
            visitor.on_chain_end(self, **headers)
        return self

    def __repr__(self) -> str:
        if not self.tasks:
            return f"<{type(self).__name__}@{id(self):#x}: empty>"
        return shortened(self.tasks[0]["task"], " | ".join(map(repr, self.tasks)))


# -- composing


def _is_listed(calls: Any) -> bool:
    return isinstance(calls, Iterable) and not isinstance(calls, (Mapping, str, bytes))


def _of(cls: Any, steps: Iterable[Any], app: Any) -> Any:
    """Make a chain of these steps, as they are."""
    made = cls.__new__(cls)
    Signature.__init__(made, "celery.chain", (), {"tasks": list(steps)}, subtask_type="chain", app=app)
    return made


def _grown(left: chain, steps: list[Any]) -> Any:
    """Make a chain of these steps, the first of which are another chain's and carry its links already."""
    made = _of(type(left), steps, left._app)
    made["options"] = {key: value for key, value in left.options.items() if key not in _MOVED_OPTIONS}
    made["args"] = left.args
    made["immutable"] = left.immutable
    return made


def _dissolved(call: chain) -> list[Any]:
    """Return copies of a chain's steps that carry what was said of the chain: links, and what the first gets."""
    steps = call.unchain_tasks()
    if steps:
        options = {key: value for key, value in call.options.items() if key not in _OWN_OPTIONS}
        if call.args or options:
            steps[0] = steps[0].clone(call.args, **options)
        if call.immutable:
            steps[0].set_immutable(True)
    return steps


def _unrolled(call: Any) -> Any:
    """Return the member of a group of one; any other call as it is."""
    if not isinstance(call, group) or len(call.tasks) != 1:
        return call
    return call.spread()[0] if call.options or call.args else call.tasks[0]


def _with_body(left: chord, right: Signature) -> Any:
    copy = left.clone()
    copy.body = right if copy.body is None else maybe_signature(copy.body) | right
    return copy


def _after_chain(left: chain, right: Signature) -> Any:
    right = _unrolled(right)
    if is_nothing(right):
        return left
    if isinstance(right, chain):
        return functools.reduce(operator.or_, _dissolved(right), left)
    steps = left.unchain_tasks()
    while steps and is_nothing(steps[-1]):
        # It must not become a chord's header: the result before it would be lost.
        steps.pop()
    if not steps and isinstance(right, group):
        return right
    last = steps[-1] if steps else None
    if isinstance(last, chord) and not isinstance(right, chord):
        steps[-1] = _with_body(last, right)
    elif isinstance(last, group) and not isinstance(right, group):
        steps[-1] = chord(last.spread(), right, app=left._app)
        if len(steps) > 1 and isinstance(steps[-2], chord):
            steps[-2:] = [_with_body(steps[-2], steps[-1])]
    else:
        steps.append(right)
    return _grown(left, steps)


def _folded(cls: Any, calls: list[Any]) -> Any:
    """Do what ``|`` does with all of them, in one pass: a new chain for each of them would take time that grows with
    the square of their number."""
    steps: list[Any] = []
    for place, call in enumerate(calls):
        made = _merged(steps, call, is_last=place == len(calls) - 1)
        if made is not steps:
            # It began with a group, which composes with the rest in its own way.
            return functools.reduce(operator.or_, calls[place + 1 :], made)
    return _of(cls, steps, next((call._app for call in steps if call._app is not None), None))


def _merged(steps: list[Any], call: Any, *, is_last: bool) -> Any:
    call = _unrolled(call)
    if is_nothing(call):
        return steps
    if isinstance(call, chain):
        rest = _dissolved(call)
        for place, step in enumerate(rest):
            made = _merged(steps, step, is_last=True)
            if made is not steps:
                return functools.reduce(operator.or_, rest[place + 1 :], made)
        return steps
    last = steps[-1] if steps else None
    # The last one stands in the chain as it is, so that the caller may go on to change it; as with ``|``.
    own = call if is_last else call.clone()
    if last is None and isinstance(call, group):
        return call
    if isinstance(last, chord) and not isinstance(call, chord):
        steps[-1] = _with_body(last, own)
    elif isinstance(last, group) and not isinstance(call, group):
        steps[-1] = chord(last.spread(), own, app=last._app)
    else:
        steps.append(own)
    return steps


# -- running


def _ready(calls: Iterable[Any]) -> list[Any]:
    """Return the steps that are run: chains dissolve, empty groups vanish, a group before anything is a chord's header.

    What follows a chord whose body ends in a group belongs to the body: it can only be counted there.
    """
    steps: list[Any] = []
    for call in calls:
        if isinstance(call, chain):
            for step in _ready(_dissolved(call)):
                _append(steps, step)
        else:
            _append(steps, call)
    return steps


def _append(steps: list[Any], call: Any) -> None:
    if isinstance(call, group):
        members = list(unrolled(call.tasks))
        if not members:
            return
        if len(members) == 1 and len(call.tasks) == 1:
            for step in _ready([_unrolled(call)]):
                _append(steps, step)
            return
    last = steps[-1] if steps else None
    if isinstance(last, group):
        steps[-1] = chord(last.spread(), call, app=last._app)
    elif isinstance(last, chord) and (last.body is None or ends_in_group(maybe_signature(last.body))):
        steps[-1] = _with_body(last, call)
    else:
        steps.append(call)


def ends_in_group(call: Any) -> bool:
    """Whether the result of a call is that of a group, and not one value."""
    if isinstance(call, chain):
        steps = _ready(call.tasks)
        return bool(steps) and ends_in_group(steps[-1])
    if isinstance(call, chord):
        return call.body is not None and ends_in_group(maybe_signature(call.body))
    return isinstance(call, group)


def _frozen(steps: list[Any], own: Mapping[str, Any]) -> list[Any]:
    """Freeze the steps, in place, and return their results, each with the one before as its parent."""
    results = [call.freeze(root_id=own["root_id"]) for call in steps[:-1]]
    results.append(
        # A chain stands in a group or a chord with its last step.
        steps[-1].freeze(
            own["task_id"], group_id=own["group_id"], chord=own["chord"], root_id=own["root_id"],
            group_index=own["group_index"],
        )
    )  # fmt: skip
    for before, result in zip(results, results[1:], strict=False):
        _first_of(result).parent = before
    return results


def _first_of(result: Any) -> Any:
    """Return the first of the results that lead to one: a chord's begin with its header's."""
    while result.parent is not None:
        result = result.parent
    return result
