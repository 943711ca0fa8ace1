"""Calls side by side: each member is a task of its own, their results come back in order."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

from amqptasks.canvas.parts import new_id, shortened
from amqptasks.canvas.sending import send_each
from amqptasks.canvas.signature import Signature, maybe_signature, signatures
from amqptasks.canvas.stamps import stamped
from amqptasks.exceptions import InvalidTaskError
from amqptasks.results.context import answers_go_to
from amqptasks.results.handles import GroupResult

__all__ = ["group", "is_nothing", "members_of", "tasks_in", "unrolled"]

# What concerns the group as a whole, and not its members.
_OWN_OPTIONS = ("task_id", "group_id", "group_index", "chord", "root_id", "parent_id", "link", "link_error")


@Signature.register_type()
class group(Signature):
    """Calls that run at the same time. Give them one by one, or as one list or generator.

    New arguments go to every member; an option given to the group, such as ``queue``, holds for every member.
    """

    def __init__(self, *tasks: Any, app: Any = None, options: Mapping[str, Any] | None = None, **ex: Any) -> None:
        members = list(signatures(members_of(tasks), app))
        super().__init__(
            "celery.group", (), {"tasks": members}, {**(options or {}), **ex}, subtask_type="group", app=app,
        )  # fmt: skip

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], app: Any = None) -> group:
        """Make a group of its plain form."""
        plain = Signature(d)
        made = cls(tasks_in(plain, "tasks"), app=app, options=plain.options)
        made["args"] = tuple(plain.args)
        made["immutable"] = plain.immutable
        return made

    @property
    def tasks(self) -> list[Any]:
        """The members."""
        members: list[Any] = self.kwargs["tasks"]
        return members

    @tasks.setter
    def tasks(self, members: list[Any]) -> None:
        self.kwargs["tasks"] = members

    def _calls(self) -> Iterable[Any]:
        return self.tasks

    def __call__(self, *partial_args: Any, **options: Any) -> Any:
        """Send every member, with these arguments before the stored ones. Returns the `GroupResult`."""
        return self.apply_async(partial_args, **options)

    def apply_async(
        self, args: Any = None, kwargs: Any = None, link: Any = None, link_error: Any = None, **options: Any
    ) -> Any:
        """Send every member and return the `GroupResult`, whose id is ``task_id`` if that is given.

        Raises:
            TypeError: `link` or `link_error` was given: say which members they are for.
            OperationalError: The broker did not take all of them; those it took run.
        """
        if link is not None or link_error is not None:
            raise TypeError("Cannot add link to group: use a chord, or link the individual tasks")
        if self.tasks and self.app.is_eager:
            return self.apply(args, kwargs, **options)
        options = {key: value for key, value in options.items() if value is not None}
        _, _, merged = self._merge(None, None, options)
        merged = dict(merged)
        is_child = merged.pop("add_to_parent", True)
        group_id = merged.pop("task_id", None) or new_id()
        # Where the group itself stands in another one says nothing about its members' places in this one.
        merged.pop("group_id", None)
        merged.pop("group_index", None)
        args = (*(args or ()), *self.args) if not self.immutable else tuple(self.args)
        calls = [call.clone(args, kwargs) for call in unrolled(self.tasks)]
        if not calls:
            return GroupResult(group_id, [], app=self._known_app())
        app = self.app
        for index, call in enumerate(calls):
            call.freeze(group_id=group_id, group_index=index, root_id=merged.get("root_id"))
        merged["add_to_parent"] = False
        with app.bulk() if len(calls) > 1 else nullcontext():
            results = send_each(calls, "member", merged)
        result = _shown(GroupResult(group_id, results, app=app))
        parent = app.current_worker_task if is_child and answers_go_to() is None else None
        if parent is not None:
            parent.add_trail(result)
        return result

    def apply(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Run every member here and now, one after another. Returns a `GroupResult` of `EagerResult`s."""
        return _shown(self.applied(args, kwargs, **options))

    def applied(self, args: Any = None, kwargs: Any = None, **options: Any) -> GroupResult:
        """Do as `apply`; of a group whose only member ends in a group, it is not that one's result."""
        _, _, merged = self._merge(None, None, {key: value for key, value in options.items() if value is not None})
        merged = dict(merged)
        group_id = merged.pop("task_id", None) or new_id()
        given = (*(args or ()), *self.args) if not self.immutable else tuple(self.args)
        results = [
            call.clone(given, kwargs).apply(**{**merged, "group_id": group_id, "group_index": index})
            for index, call in enumerate(unrolled(self.tasks))
        ]
        return GroupResult(group_id, results, app=self.app if results else self._known_app())

    def freeze(
        self, _id: str | None = None, group_id: str | None = None, chord: Any = None, root_id: str | None = None,
        parent_id: str | None = None, group_index: int | None = None,
    ) -> GroupResult:  # fmt: skip
        """Give the group and its members their ids now, and return the `GroupResult` it will have."""
        options = self.options
        own_id = options.setdefault("task_id", _id or new_id())
        for key, value in (("root_id", root_id), ("parent_id", parent_id)):
            if value:
                options[key] = value
        self.tasks = [call.clone() for call in unrolled(self.tasks)]
        results = [
            call.freeze(group_id=own_id, chord=chord, root_id=root_id, parent_id=parent_id, group_index=index)
            for index, call in enumerate(self.tasks)
        ]
        del group_id, group_index
        return GroupResult(own_id, results, app=self.app if results else self._known_app())

    def clone(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Return a copy with copies of its members, these keyword arguments given to each of them."""
        copy = super().clone(args, None, **options)
        copy.tasks = [call.clone(None, kwargs) for call in self.tasks]
        return copy

    def set_immutable(self, immutable: bool) -> None:
        """Say of every member whether it ignores new arguments."""
        for call in self.tasks:
            call.set_immutable(immutable)

    def stamp(self, visitor: Any = None, append_stamps: bool = False, **headers: Any) -> Any:
        """Stamp every member; see `Signature.stamp`. Returns self."""
        seen = None if visitor is None else visitor.on_group_start(self, **headers) or {}
        headers = stamped(headers, seen, append_stamps, self.options)
        self.stamp_links(visitor, append_stamps, **headers)
        for call in self.tasks:
            call.stamp(visitor, append_stamps, **headers)
        if visitor is not None:
            visitor.on_group_end(self, **headers)
        return self

    def link(self, callback: Any) -> Any:
        """Have a call made when the *first* member succeeds, without its result, as in Celery. Returns it.

        To run something after all of them, use a chord.
        """
        callback = maybe_signature(callback, clone=True).set(immutable=True)
        return self.tasks[0].link(callback) if self.tasks else callback

    def link_error(self, errback: Any) -> Any:
        """Have a call made for each member that fails."""
        return tuple(call.link_error(maybe_signature(errback, clone=True)) for call in self.tasks)

    def spread(self) -> list[Any]:
        """Return copies of the members that carry what the group was given: its arguments and its options."""
        options = {key: value for key, value in self.options.items() if key not in _OWN_OPTIONS}
        return [call.clone(self.args, **options) for call in self.tasks]

    def skew(self, start: float = 1.0, stop: float | None = None, step: float = 1.0) -> group:
        """Give the members growing countdowns, in seconds: `start`, ``start + step``, … but never beyond `stop`."""
        for call, seconds in zip(self.tasks, itertools.count(start, step), strict=False):
            call.set(countdown=seconds if stop is None else min(seconds, stop))
        return self

    def __repr__(self) -> str:
        if not self.tasks:
            return "group(<empty>)"
        return shortened(self.tasks[0]["task"], f"group({self.tasks!r})")


def _shown(result: GroupResult) -> GroupResult:
    if len(result.results) == 1 and isinstance(result.results[0], GroupResult):
        # group(a | group(b, c)): the caller wants the results of b and c, not a list that holds a list.
        return result.results[0]
    return result


def members_of(tasks: tuple[Any, ...]) -> Iterable[Any]:
    """Return what a canvas was given: several calls, or one list, generator or group of them."""
    if len(tasks) != 1:
        return tasks
    only = tasks[0]
    if isinstance(only, group):
        return only.tasks
    if isinstance(only, Signature):
        return (only.clone(),)
    return (only,) if isinstance(only, Mapping) else only or ()


def unrolled(tasks: Iterable[Any]) -> Iterable[Any]:
    """Yield calls in order, members of groups in the place of the group. Empty groups and chains vanish."""
    for call in tasks:
        if isinstance(call, group):
            yield from unrolled(call.tasks)
        elif not is_nothing(call):
            yield call


def is_nothing(call: Any) -> bool:
    """Whether a call consists of nothing, at any depth: it is then left out of what it stands in."""
    return call.subtask_type in ("chain", "group") and all(map(is_nothing, call.kwargs["tasks"]))


def tasks_in(plain: Signature, key: str) -> list[Any]:
    """Return the list of calls under a key of a canvas; InvalidTaskError if there is none."""
    tasks = plain.kwargs.get(key)
    if not isinstance(tasks, (list, tuple)):
        raise InvalidTaskError(f"expected {key!r} of a {plain.subtask_type} to be a list of calls, got: {tasks!r:.80}")
    return list(tasks)
