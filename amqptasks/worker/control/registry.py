"""The commands that workers answer, by name; users add theirs with two decorators.

    @control_command(args=[("n", int)], signature="[N=1]")
    def raise_limit(state, n=1):
        ...
        return {"ok": "raised"}

A command is a function of the worker's state and of what the caller gives by name. What it returns is the answer; an
error it raises is answered as ``{"error": repr}``. It is run on the worker's own thread and must not block: one that
cannot answer at once returns `Later`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

__all__ = ["CommandInfo", "Later", "Panel", "control_command", "error", "inspect_command", "ok"]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class CommandInfo:
    """What is known of a command beside its function; Celery's fields.

    Attributes:
        alias: Another name for it.
        type: ``"inspect"`` for one that changes nothing, else ``"control"``.
        visible: Whether it is listed.
        default_timeout: How long a client waits for answers, seconds.
        help: One line.
        signature: Its arguments for people, as in ``<queue> [exchange]``.
        args: Names and types of the arguments, in the order of a command line.
        variadic: The argument that takes the rest of a command line.
    """

    alias: str | None = None
    type: str = "control"
    visible: bool = True
    default_timeout: float = 1.0
    help: str = ""
    signature: str | None = None
    args: Sequence[tuple[str, Callable[[str], Any]]] | None = None
    variadic: str | None = None


@dataclass(frozen=True, slots=True)
class Later:
    """The answer of a command that cannot be given at once. ``begin`` is called with what takes the answer."""

    begin: Callable[[Callable[[Any], None]], None]


class Panel:
    """The commands of this process."""

    #: The functions, by name and alias.
    data: dict[str, Callable[..., Any]] = {}  # noqa: RUF012 - one for all, as in Celery
    #: What is known of them, by name.
    meta: dict[str, CommandInfo] = {}  # noqa: RUF012

    @classmethod
    def register(cls, function: F | None = None, **options: Any) -> F | Callable[[F], F]:
        """Add a command: a decorator, with or without options."""
        add: Callable[[F], F] = cls._adder(**options)
        return add if function is None else add(function)

    @classmethod
    def _adder(
        cls, name: str | None = None, alias: str | None = None, type: str = "control", visible: bool = True,  # noqa: A002
        default_timeout: float = 1.0, help: str | None = None, signature: str | None = None,  # noqa: A002
        args: Sequence[tuple[str, Callable[[str], Any]]] | None = None, variadic: str | None = None,
    ) -> Callable[[F], F]:  # fmt: skip
        def add(function: F) -> F:
            known = name or function.__name__
            text = help or (function.__doc__ or "").strip().split("\n")[0]
            cls.data[known] = function
            cls.meta[known] = CommandInfo(alias, type, visible, default_timeout, text, signature, args, variadic)
            if alias:
                cls.data[alias] = function
            return function

        return add


@overload
def control_command(function: F) -> F: ...
@overload
def control_command(**options: Any) -> Callable[[F], F]: ...
def control_command(function: Any = None, **options: Any) -> Any:
    """Add a command that changes something: ``@control_command(args=…, signature=…)``. The options are those of
    `CommandInfo`, and ``name``."""
    return Panel.register(function, type="control", **options)


@overload
def inspect_command(function: F) -> F: ...
@overload
def inspect_command(**options: Any) -> Callable[[F], F]: ...
def inspect_command(function: Any = None, **options: Any) -> Any:
    """Add a command that only answers: ``@inspect_command()``. The options are those of `CommandInfo`, and ``name``."""
    return Panel.register(function, type="inspect", **options)


def ok(value: Any) -> dict[str, Any]:
    """Return the answer of a command that did what it was to do."""
    return {"ok": value}


def error(value: Any) -> dict[str, Any]:
    """Return the answer of a command that could not."""
    return {"error": value}
