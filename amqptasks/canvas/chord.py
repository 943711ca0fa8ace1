"""A header of calls side by side, and a body: one call that gets the list of their results, in the header's order.

RabbitMQ counts the parts that have ended, so chords need no result backend; or a result store does, as in Celery
(``chord_join``). What is sent for one, and in which order, is said in `app/chords.py` and `app/stored_chords.py`; who
joins the results, in `worker/joining.py` and `worker/celery_chords.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from amqptasks.canvas.group import group, members_of, tasks_in, unrolled
from amqptasks.canvas.parts import as_list, new_id, shortened
from amqptasks.canvas.sending import expecting, send_each
from amqptasks.canvas.signature import Signature, maybe_signature, signatures
from amqptasks.canvas.stamps import stamped
from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.results.context import allow_join_result
from amqptasks.results.handles import GroupResult

__all__ = ["chord", "counted"]

#: Options of a chord that are not the header's.
_NOT_THE_HEADERS = frozenset({"link", "link_error", "chain", "chord", "task_id", "group_id", "group_index"})
#: Options that are not the body's: it runs when the header is done, which is delayed already.
_NOT_THE_BODYS = frozenset({"link", "link_error", "task_id", "parent_id", "countdown", "eta"})


@Signature.register_type()
class chord(Signature):
    """``chord(header, body)``, or ``chord(header)(body)``: `body` is called with the list of the header's results.

    New arguments go to the header's calls. If one of them fails, the body fails with a `ChordError`.
    """

    def __init__(
        self, header: Any, body: Any = None, app: Any = None, options: Mapping[str, Any] | None = None,
        kwargs: Mapping[str, Any] | None = None, **ex: Any,
    ) -> None:  # fmt: skip
        parts = {
            "kwargs": dict(kwargs or {}),
            "header": list(signatures(members_of((header,)), app)),
            "body": maybe_signature(body, app=app),
        }
        super().__init__("celery.chord", (), parts, {**(options or {}), **ex}, subtask_type="chord", app=app)

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], app: Any = None) -> chord:
        """Make a chord of its plain form."""
        plain = Signature(d)
        header = plain.kwargs.get("header")
        # Celery writes a list; a group from an older one.
        calls = tasks_in(plain, "header") if not isinstance(header, Mapping) else group.from_dict(header, app=app).tasks
        kwargs = plain.kwargs.get("kwargs")
        made = cls(calls, plain.kwargs.get("body"), app, plain.options, kwargs if isinstance(kwargs, dict) else None)
        made["args"] = tuple(plain.args)
        made["immutable"] = plain.immutable
        return made

    @property
    def tasks(self) -> list[Any]:
        """The header's calls."""
        header: list[Any] = self.kwargs["header"]
        return header

    @property
    def body(self) -> Any:
        """The call that gets the results; None if it is not said yet."""
        return self.kwargs["body"]

    @body.setter
    def body(self, body: Any) -> None:
        self.kwargs["body"] = body

    def _calls(self) -> Iterable[Any]:
        return [*self.tasks, *filter(None, [self.body])]

    def clone(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Return a copy with copies of its calls."""
        copy = super().clone(args, kwargs, **options)
        copy.kwargs["header"] = [call.clone() for call in self.tasks]
        copy.body = None if self.body is None else self.body.clone()
        return copy

    def link(self, callback: Any) -> Any:
        """Have a call made with the body's result when that succeeds. Returns it."""
        return super().link(callback) if self.body is None else self.body.link(callback)

    def link_error(self, errback: Any) -> Any:
        """Have a call made when the body fails, which it does when a part of the header fails. Returns it.

        With ``task_allow_error_cb_on_chord_header`` it is called for each call of the header that fails, too.
        """
        errback = maybe_signature(errback)
        on_header = self._errbacks_reach_the_header()
        for call in self.tasks:
            if on_header:
                call.link_error(errback.clone(immutable=True))
            if isinstance(call, chord):
                call.link_error(errback)
        if self.body is None:
            return super().link_error(errback)
        self.body.link_error(errback)
        return errback

    def _errbacks_reach_the_header(self) -> bool:
        try:
            return bool(self.app.conf.task_allow_error_cb_on_chord_header)
        except ImproperlyConfigured:
            # It belongs to no app yet.
            return False

    def stamp(self, visitor: Any = None, append_stamps: bool = False, **headers: Any) -> Any:
        """Stamp the header's calls and the body; see `Signature.stamp`. Returns self."""
        seen = None if visitor is None else visitor.on_chord_header_start(self, **headers) or {}
        headers = stamped(headers, seen, append_stamps, self.options)
        self.stamp_links(visitor, append_stamps, **headers)
        for call in self.tasks:
            call.stamp(visitor, append_stamps, **headers)
        if visitor is not None:
            visitor.on_chord_header_end(self, **headers)
        if self.body is not None:
            seen = None if visitor is None else visitor.on_chord_body(self, **headers) or {}
            self.body.stamp(visitor, append_stamps, **stamped(headers, seen, append_stamps, self.options))
        return self

    def set_immutable(self, immutable: bool) -> None:
        """Say of every call of the header whether it ignores new arguments."""
        for call in self.tasks:
            call.set_immutable(immutable)

    # -- sending

    def __call__(self, body: Any = None, **options: Any) -> Any:
        """Send it, with this body if there is one given. Returns the handle of the body's result."""
        return self.apply_async((), {"body": body} if body else {}, **options)

    def apply_async(
        self, args: Any = None, kwargs: Any = None, task_id: str | None = None, interval: float | None = None,
        max_retries: int | None = None, chord_expires: Any = None, **options: Any,
    ) -> Any:  # fmt: skip
        """Send the header's calls, with these arguments before their own. Returns the handle of the body's result,
        whose ``.parent`` is the header's `GroupResult`.

        ``link`` and ``link_error`` are the body's, ``countdown`` and ``eta`` the header's; other options hold for both.

        Args:
            task_id: The body's id.
            chord_expires: Seconds, or a timedelta, after which the body fails if parts are missing by then; as the
                setting ``result_chord_expires`` says without, or ``result_expires``. Not where the result store joins.
            interval, max_retries: Of the task that asks for the results where a store keeps them and cannot count
                (``chord_join = "store"``): seconds between two looks, and how many there may be. Else nothing polls.

        Raises:
            TypeError: It has no body.
            EncodeError: A call of it cannot be serialized. Nothing was sent.
            OperationalError: The broker did not take all of it. Calls that it took run; the body fails at the deadline.
            ImproperlyConfigured: ``chord_join`` is ``"store"``, and the result backend is none.
        """
        given = dict(kwargs or {})
        body = given.pop("body", None)
        made, merged = self._made(body, {key: value for key, value in options.items() if value is not None})
        args = (*(args or ()), *self.args) if not self.immutable else tuple(self.args)
        given = {**(self.kwargs.get("kwargs") or {}), **given}
        if made.app.is_eager:
            return made._apply(args, given, made.body)
        result = made.freeze(task_id, root_id=merged.get("root_id"))
        calls = [call.clone(args, given) for call in made.tasks]
        parts = [part for call in calls for part in counted(call)]
        header = {key: value for key, value in merged.items() if key not in _NOT_THE_HEADERS}
        app, body = made.app, made.body
        with expecting(app, (leaf for each in _with_parents(result) for leaf in each.leaves())):
            if not parts:
                body.apply_async(([],))
                return result
            polling = {"interval": interval, "max_retries": max_retries}
            with app.begin_chord(_first_of(result), parts, body, merged.get("root_id"), chord_expires, polling):
                send_each(calls, "header", header)
        return result

    def _made(self, body: Any, options: Mapping[str, Any]) -> tuple[chord, dict[str, Any]]:
        """Return a copy with a body that has what options say of it, and the options."""
        made: chord = self.clone()
        if body is not None:
            made.body = maybe_signature(body, app=None if getattr(body, "_app", None) else self._app, clone=True)
        if made.body is None:
            raise TypeError("a chord needs a body to send it: chord(header)(body), or chord(header, body)")
        _, _, merged = self._merge(None, None, options)
        merged = dict(merged)
        for callback in as_list(merged.get("link")):
            made.body.link(maybe_signature(callback, clone=True))
        for errback in as_list(merged.get("link_error")):
            made.body.link_error(maybe_signature(errback, clone=True))
        made.body.options.update((key, value) for key, value in merged.items() if key not in _NOT_THE_BODYS)
        return made, merged

    def apply(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Run the header's calls and then the body here and now; raise what one of them raises, or with
        ``propagate=False`` give the body that error in its place.

        Returns the `EagerResult` of the body.
        """
        given = dict(kwargs or {})
        body = options.pop("body", None) or given.pop("body", None)
        propagate = options.pop("propagate", True)
        made, _ = self._made(body, {key: value for key, value in options.items() if value is not None})
        args = (*(args or ()), *self.args) if not self.immutable else tuple(self.args)
        return made._apply(args, {**(self.kwargs.get("kwargs") or {}), **given}, made.body, propagate=propagate)

    def _apply(self, args: Any, kwargs: Any, body: Any, *, propagate: bool = True) -> Any:
        header = group(self.tasks, app=self.app).applied(args, kwargs)
        with allow_join_result():
            values = header.get(propagate=propagate)
        result = body.apply((values,))
        if result is not None:
            _first_of(result).parent = header
        return result

    def freeze(
        self, _id: str | None = None, group_id: str | None = None, chord: Any = None, root_id: str | None = None,
        parent_id: str | None = None, group_index: int | None = None,
    ) -> Any:  # fmt: skip
        """Give the header's calls and the body their ids now, and return the handle of the body's result.

        Raises:
            TypeError: It has no body.
        """
        if self.body is None:
            raise TypeError("a chord needs a body: chord(header, body)")
        options = self.options
        if self._is_frozen:
            chord_id = options["task_id"]
        else:
            # As in Celery, the id of the header is among the options from here on.
            stored = options.pop("task_id", None)
            _id = _id or stored
            chord_id = new_id()
        self.kwargs["header"] = calls = [call.clone() for call in unrolled(self.tasks)]
        results = [
            call.freeze(group_id=chord_id, root_id=root_id, parent_id=parent_id, group_index=index)
            for index, call in enumerate(calls)
        ]
        # The body stands in a group, or in another chord, for the whole.
        result = self.body.freeze(_id, group_id=group_id, chord=chord, root_id=root_id, group_index=group_index)
        options["task_id"] = chord_id
        _first_of(result).parent = GroupResult(chord_id, results, app=self.app)
        return result

    @property
    def _is_frozen(self) -> bool:
        group_id = self.options.get("task_id")
        calls = list(unrolled(self.tasks))
        if not group_id or not self.body.options.get("task_id"):
            return False
        return not calls or _last_of(calls[0]).options.get("group_id") == group_id

    def __repr__(self) -> str:
        if self.body is None:
            return f"<chord without body: {self.tasks!r}>"
        first, rest = self.body, ""
        if self.body.subtask_type == "chain" and self.body.tasks:
            first = self.body.tasks[0]
            rest = "".join(f" | {call!r}" for call in self.body.tasks[1:])
        text = first.reprcall(self.tasks) + rest
        return "%" + shortened(first["task"], f"({text})" if rest else text)


def counted(call: Any) -> Iterator[Any]:
    """Yield the single calls whose ends count for a chord that a call is in the header of.

    Of a chain its last step, of a chord its body, of a group every member. Empty ones have none.
    """
    if isinstance(call, chord):
        if call.body is not None:
            yield from counted(call.body)
    elif call.subtask_type == "chain":
        for step in reversed(call.tasks):
            found = list(counted(step))
            if found:
                yield from found
                break
    elif isinstance(call, group):
        for member in call.tasks:
            yield from counted(member)
    else:
        yield call


def _last_of(call: Any) -> Any:
    """Return the call that stands in a group for this one."""
    while call.subtask_type in ("chain", "chord"):
        call = call.tasks[-1] if call.subtask_type == "chain" else call.body
    return call


def _with_parents(result: Any) -> Iterator[Any]:
    while result is not None:
        yield result
        result = result.parent


def _first_of(result: Any) -> Any:
    while result.parent is not None:
        result = result.parent
    return result
