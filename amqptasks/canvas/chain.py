"""Calls one after another: each gets the result of the one before.

The whole chain travels with its first task, the rest reversed in the message's ``chain`` field, so that whoever runs a
task takes the next one off the end. Also says what ``|`` makes of any two calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from amqptasks.canvas.chord import chord
from amqptasks.canvas.group import group, tasks_in, unrolled
from amqptasks.canvas.signature import Signature, as_list, expecting, maybe_signature, shortened, signatures
from amqptasks.results.context import default_app

__all__ = ["chain"]

# What concerns the last step, or each, rather than the first, which gets every other option.
_OWN_OPTIONS = ("task_id", "group_id", "group_index", "chord", "link", "link_error", "root_id", "parent_id", "chain")


@Signature.register_type()
class chain(Signature):
    """``chain(a, b, c)``, or ``a | b | c``. Chains within it are flattened; a group followed by a task is a chord.

    New arguments go to the first step. The result's handle is that of the last step; ``.parent`` leads to those before.
    """

    def __init__(self, *tasks: Any, app: Any = None, options: Mapping[str, Any] | None = None, **ex: Any) -> None:
        given = tasks[0] if len(tasks) == 1 and not isinstance(tasks[0], Mapping) else tasks
        steps = _flattened(signatures(given or (), app))
        super().__init__(
            "celery.chain", (), {"tasks": steps}, {**(options or {}), **ex}, subtask_type="chain", app=app,
        )  # fmt: skip

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], app: Any = None) -> chain:
        """Make a chain of its plain form."""
        plain = Signature(d)
        made = cls(tasks_in(plain, "tasks"), app=app, options=plain.options)
        made["args"] = tuple(plain.args)
        made["immutable"] = plain.immutable
        return made

    @classmethod
    def joined(cls, left: Signature, right: Signature) -> Any:
        """Return what ``left | right`` is: a chain, a chord, or one of the two where the other is empty."""
        steps = _flattened((left, right))
        if len(steps) == 1 and (not isinstance(left, chain) or isinstance(steps[0], group)):
            return steps[0]
        app = left._app if left._app is not None else right._app
        made = cls(app=app)
        made.tasks = steps
        if isinstance(left, chain):
            # Its links moved to its steps; what else it was told still holds for the first one.
            made["options"] = {k: v for k, v in left.options.items() if k not in ("link", "link_error", "task_id")}
            made["args"] = left.args
            made["immutable"] = left.immutable
        return made

    @property
    def tasks(self) -> list[Any]:
        """The steps."""
        steps: list[Any] = self.kwargs["tasks"]
        return steps

    @tasks.setter
    def tasks(self, steps: list[Any]) -> None:
        self.kwargs["tasks"] = steps

    @property
    def app(self) -> Any:
        """What sends it: its own app, or its first step's."""
        if self._app is not None:
            return self._app
        return self.tasks[0].app if self.tasks else default_app("an empty chain")

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
        args = (*(args or ()), *self.args) if not self.immutable else tuple(self.args)
        steps = [call.clone() for call in self.tasks]
        if not steps:
            return None
        steps[0] = steps[0].clone(args, kwargs)
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

        Returns the `EagerResult` of the last, whose ``.parent`` leads to those before; None if the chain is empty.
        """
        _, _, merged = self._merge(None, None, {key: value for key, value in options.items() if value is not None})
        given = (*(args or ()), *self.args) if not self.immutable else tuple(self.args)
        own = {key: merged.pop(key, None) for key in ("link", "link_error", "task_id")}
        steps = [call.clone() for call in self.tasks]
        if steps:
            steps[0] = steps[0].clone(given, kwargs)
            for callback in as_list(own["link"]):
                steps[-1].link(callback)
            if own["task_id"]:
                steps[-1].set(task_id=own["task_id"])
        last: Any = None
        for call in steps:
            for errback in as_list(own["link_error"]):
                call.link_error(errback)
            result = call.apply(() if last is None else (last.get(),), **merged)
            result.parent, last = last, result
        return last

    def freeze(
        self, _id: str | None = None, group_id: str | None = None, chord: Any = None, root_id: str | None = None,
        parent_id: str | None = None, group_index: int | None = None,
    ) -> Any:  # fmt: skip
        """Give every step its id now, and return the handle of the last step's result.

        Raises:
            ValueError: It is empty.
        """
        if not self.tasks:
            raise ValueError("an empty chain has no result: it cannot be frozen")
        own = {
            "task_id": _id or self.options.get("task_id"), "group_id": group_id, "chord": chord, "root_id": root_id,
            "parent_id": parent_id, "group_index": group_index,
        }  # fmt: skip
        result = _frozen(self.tasks, own)[-1]
        self.options["task_id"] = result.id
        return result

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

    def __repr__(self) -> str:
        if not self.tasks:
            return f"<{type(self).__name__}@{id(self):#x}: empty>"
        return shortened(self.tasks[0]["task"], " | ".join(map(repr, self.tasks)))


def _frozen(steps: list[Any], own: Mapping[str, Any]) -> list[Any]:
    """Freeze the steps, in place, and return their results, each with the one before as its parent."""
    results = []
    for call in steps[:-1]:
        results.append(call.freeze(root_id=own["root_id"]))
    results.append(
        # A chain stands in a group or a chord with its last step.
        steps[-1].freeze(
            own["task_id"], group_id=own["group_id"], chord=own["chord"], root_id=own["root_id"],
            group_index=own["group_index"],
        )
    )  # fmt: skip
    for before, result in zip(results, results[1:], strict=False):
        # A chord's has its header before it already.
        first = result
        while first.parent is not None:
            first = first.parent
        first.parent = before
    return results


def _flattened(calls: Iterable[Any]) -> list[Any]:
    """Make one list of steps: chains dissolve, empty groups vanish, a group of one is its member, and so on."""
    steps: list[Any] = []
    for call in calls:
        if isinstance(call, chain):
            for step in call.unchain_tasks():
                _append(steps, step)
        else:
            _append(steps, call)
    return steps


def _append(steps: list[Any], call: Any) -> None:
    if isinstance(call, group):
        members = list(unrolled(call.tasks))
        if not members:
            return
        if len(members) == 1:
            for step in _flattened(members):
                _append(steps, step)
            return
    last = steps[-1] if steps else None
    if isinstance(last, group) and not isinstance(call, group):
        steps[-1] = chord(last, call, app=last._app)
    elif isinstance(last, chord) and not isinstance(call, chord) and last.body is not None:
        steps[-1] = last.clone()
        steps[-1].body = maybe_signature(last.body) | call
    else:
        steps.append(call)
