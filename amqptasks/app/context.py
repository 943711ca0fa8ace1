"""What a task knows of the call it is running for, and which task is running now.

`Context` is what `self.request` returns, with Celery's fields. The running tasks form a linked stack in a context
variable, so threads and coroutines each see their own, and a task called from a task sees its own request.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar, Token
from typing import Any, ClassVar

#: Headers that are fields of their own; everything else among a message's headers is the user's.
FIELD_HEADERS = frozenset(
    {
        "lang", "task", "id", "shadow", "eta", "expires", "group", "group_index", "retries", "timelimit", "root_id",
        "parent_id", "argsrepr", "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "stamped_headers",
        "stamps",
    }
)  # fmt: skip


class Context:
    """One call of a task: its id, arguments, origin and options, as attributes.

    A field the message did not carry has the value given here. ``called_directly`` is True outside a worker.
    """

    lang: str | None = "py"
    task: str | None = None
    id: str | None = None
    shadow: str | None = None
    eta: str | None = None
    expires: str | None = None
    group: str | None = None
    group_index: int | None = None
    retries: int = 0
    timelimit: Any = None
    root_id: str | None = None
    parent_id: str | None = None
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    origin: str | None = None
    ignore_result: bool = False
    replaced_task_nesting: int = 0
    stamped_headers: list[str] | None = None
    stamps: Mapping[str, Any] | None = None
    headers: dict[str, Any] | None = None
    properties: dict[str, Any] | None = None
    reply_to: str | None = None
    correlation_id: str | None = None
    hostname: str | None = None
    delivery_info: dict[str, Any] | None = None
    args: Any = None
    kwargs: Any = None
    is_eager: bool = False
    callbacks: Any = None
    errbacks: Any = None
    chain: Any = None
    chord: Any = None
    called_directly: bool = True
    utc: bool = True
    logfile: str | None = None
    loglevel: int | None = None
    _children: list[Any] | None = None
    _followers: list[str] | None = None
    #: The queue it came from, where a worker knows it.
    _queue: str | None = None
    #: Next attempts that it has asked for, as messages to send when it has ended; None outside of workers.
    _attempts: list[Any] | None = None
    #: How often it has added to its chord.
    _added: int = 0
    #: What ``retry(max_retries=…)`` has said in this run.
    _max_retries: int | None = None
    #: Whether the worker wants to tell of its end in events.
    _tells: bool = False
    _protected = 1

    #: The order in which a request is shown, Celery's.
    _shown: ClassVar[tuple[str, ...]] = (
        "lang", "task", "id", "shadow", "eta", "expires", "group", "group_index", "retries", "timelimit", "root_id",
        "parent_id", "argsrepr", "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "stamped_headers",
        "stamps", "headers", "properties", "reply_to", "correlation_id", "hostname", "delivery_info", "args", "kwargs",
        "is_eager", "callbacks", "errbacks", "chain", "chord", "called_directly", "_protected",
    )  # fmt: skip

    def __init__(self, *args: Mapping[str, Any], **fields: Any) -> None:
        self.update(*args, **fields)

    def update(self, *args: Mapping[str, Any], **fields: Any) -> None:
        """Set fields from a mapping, keywords, or both."""
        self.__dict__.update(*args, **fields)

    def clear(self) -> None:
        """Give every field its default again."""
        self.__dict__.clear()

    def get(self, key: str, default: Any = None) -> Any:
        """Return a field, or ``default`` where there is none of that name."""
        return getattr(self, key, default)

    def as_dict(self) -> dict[str, Any]:
        """Return every field that is shown, in order, then whatever else was set."""
        shown = {name: getattr(self, name) for name in self._shown}
        shown.update((name, value) for name, value in self.__dict__.items() if name not in shown and name[:1] != "_")
        return shown

    def __repr__(self) -> str:
        return f"<Context: {self.as_dict()!r}>"

    @property
    def children(self) -> list[Any]:
        """The results of the tasks that this call has started, oldest first."""
        if self._children is None:
            self._children = []
        return self._children

    @property
    def taskset(self) -> str | None:
        """The group's id, under the name it had long ago."""
        return self.group

    @property
    def time_limit(self) -> Any:
        """The hard time limit in seconds, of this call only."""
        return self.timelimit[0] if self.timelimit else None

    @property
    def soft_time_limit(self) -> Any:
        """The soft time limit in seconds, of this call only."""
        return self.timelimit[1] if self.timelimit else None

    def as_execution_options(self) -> dict[str, Any]:
        """Return the options with which this call could be sent again."""
        hard, soft = self.time_limit, self.soft_time_limit
        stamps = {key: value for key, value in (self.stamps or {}).items() if key in (self.stamped_headers or ())}
        return {
            "task_id": self.id, "root_id": self.root_id, "parent_id": self.parent_id, "group_id": self.group,
            "group_index": self.group_index, "shadow": self.shadow, "chord": self.chord, "chain": self.chain,
            "link": self.callbacks, "link_error": self.errbacks, "expires": self.expires, "soft_time_limit": soft,
            "time_limit": hard, "headers": self.headers, "retries": self.retries, "reply_to": self.reply_to,
            "replaced_task_nesting": self.replaced_task_nesting, "origin": self.origin,
            "stamped_headers": self.stamped_headers, **stamps,
        }  # fmt: skip


class Running:
    """One running task and the one that called it.

    Attributes:
        is_entering: The task's own ``__call__`` is to run; what it calls of `Task` is this run, not one inside it.
    """

    __slots__ = ("below", "is_entering", "request", "task")

    def __init__(self, task: Any, request: Context, below: Running | None, is_entering: bool = False) -> None:
        self.task = task
        self.request = request
        self.below = below
        self.is_entering = is_entering


_running: ContextVar[Running | None] = ContextVar("amqptasks_running", default=None)


def push(task: Any, request: Context, is_entering: bool = False) -> Token[Running | None]:
    """Make this the running task; give the token to `pop`."""
    return _running.set(Running(task, request, _running.get(), is_entering))


def pop(token: Token[Running | None]) -> None:
    """Undo a `push`."""
    _running.reset(token)


def pop_request(task: Any) -> None:
    """Undo the last `push`, where its token is not at hand. The task must be the one that is running.

    Raises:
        RuntimeError: It is not.
    """
    running = _running.get()
    if running is None or running.task is not task:
        raise RuntimeError(f"pop_request() of task {task.name!r}, which is not the one that is running here")
    _running.set(running.below)


def current() -> Running | None:
    """Return the task that is running in this context, if any."""
    return _running.get()


def request_of(task: Any) -> Context | None:
    """Return the innermost running request of this task, if it is running in this context."""
    running = _running.get()
    while running is not None:
        if running.task is task:
            return running.request
        running = running.below
    return None
