"""A group and one call that gets the list of its results: as data only, for now.

Reading, writing and showing chords works, so that canvases of Celery pass through unharmed. Sending one is refused,
since nothing counts the finished members yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from amqptasks.canvas.group import group, members_of, tasks_in
from amqptasks.canvas.signature import Signature, maybe_signature, shortened, signatures
from amqptasks.results.context import default_app

__all__ = ["chord"]


@Signature.register_type()
class chord(Signature):
    """``chord(header, body)``, or ``chord(header)(body)``: `body` is called with the list of the header's results."""

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

    @property
    def app(self) -> Any:
        """What sends it: its own app, or one of its calls'."""
        if self._app is not None:
            return self._app
        for call in (*self.tasks, self.body):
            if call is not None:
                return call.app
        return default_app("an empty chord")

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
        """Have a call made when the body fails, which it does when a member of the header fails. Returns it."""
        return super().link_error(errback) if self.body is None else self.body.link_error(errback)

    def set_immutable(self, immutable: bool) -> None:
        """Say of every call of the header whether it ignores new arguments."""
        for call in self.tasks:
            call.set_immutable(immutable)

    def __call__(self, body: Any = None, **options: Any) -> NoReturn:
        """Refuse: chords are not sent yet."""
        raise self._refusal()

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> NoReturn:
        """Refuse: chords are not sent yet."""
        raise self._refusal()

    def freeze(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: chords are not sent yet."""
        raise self._refusal()

    def _refusal(self) -> NotImplementedError:
        return NotImplementedError(
            f"a group followed by a task is a chord, and this version cannot run chords: {self!r}. Gather the group's "
            "results with GroupResult.get() and send the task with them."
        )

    def __repr__(self) -> str:
        if self.body is None:
            return f"<chord without body: {self.tasks!r}>"
        first, rest = self.body, ""
        if self.body.subtask_type == "chain" and self.body.tasks:
            first = self.body.tasks[0]
            rest = "".join(f" | {call!r}" for call in self.body.tasks[1:])
        text = first.reprcall(self.tasks) + rest
        return "%" + shortened(first["task"], f"({text})" if rest else text)
