"""``app.control.inspect()``: asks the workers what they do, and changes nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from amqptasks.exceptions import DuplicateNodenameWarning
from amqptasks.wire.pidbox import name_matches

if TYPE_CHECKING:
    from amqptasks.app.broadcasting import Broadcaster

__all__ = ["Inspect", "flatten_reply"]


class Inspect:
    """Asks workers. Every method returns ``{worker: answer}``, or None if no worker has answered.

    Args:
        destination: The workers to ask, by their full names; all without. A single name, as a text, makes every method
            return its answer alone.
        timeout: How long to wait for answers, seconds. With a ``limit`` or a ``destination`` it ends when all are here.
        callback: Called with each answer, ``{worker: answer}``, as it comes.
        connection: Accepted because Celery has it; without effect.
        limit: How many answers to wait for at most.
        pattern, matcher: Ask the workers whose names fit: ``"w*@*"``, or a regular expression with the matcher
            ``"pcre"``.

    Raises:
        OperationalError: From every method: the broker could not be asked.
    """

    def __init__(
        self,
        broadcaster: Broadcaster,
        destination: str | Iterable[str] | None = None,
        timeout: float | None = 1.0,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        connection: Any = None,
        limit: int | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
    ) -> None:
        self._broadcaster = broadcaster
        self.destination = destination
        self.timeout = timeout
        self.callback = callback
        self.limit = limit
        self.pattern = pattern
        self.matcher = matcher

    def request(self, command: str, **arguments: Any) -> Any:
        """Ask with any command, your own ones included."""
        single = self.destination if isinstance(self.destination, str) else None
        request = self._broadcaster.request(
            command, arguments, [single] if single else self.destination, self.timeout, self.pattern, self.matcher
        )
        replies = self._broadcaster.call(request, self.timeout, self.limit, self.callback)
        if not replies:
            return None
        nodes = flatten_reply(replies)
        if single is not None:
            return nodes.get(single)
        if self.pattern:
            return {name: nodes[name] for name in nodes if name_matches(name, self.pattern, self.matcher)}
        return nodes

    _request = request

    # -- tasks

    def active(self, safe: bool | None = None) -> Any:
        """The tasks that run. With ``safe`` their arguments are texts."""
        return self.request("active", safe=safe)

    def reserved(self, safe: bool | None = None) -> Any:
        """The tasks that were fetched and have not begun."""
        return self.request("reserved")

    def scheduled(self, safe: bool | None = None) -> Any:
        """The tasks that wait in RabbitMQ for their time, of the queues that a worker consumes."""
        return self.request("scheduled")

    def revoked(self) -> Any:
        """The ids of revoked tasks."""
        return self.request("revoked")

    def query_task(self, *ids: Any) -> Any:
        """What is known of tasks, by their ids: ``{worker: {id: [state, task]}}``."""
        if len(ids) == 1 and isinstance(ids[0], (list, tuple)):
            ids = tuple(ids[0])
        return self.request("query_task", ids=list(ids))

    def registered(self, *taskinfoitems: str) -> Any:
        """The names of the tasks that a worker can run, with these attributes of each."""
        return self.request("registered", taskinfoitems=list(taskinfoitems))

    registered_tasks = registered

    # -- workers

    def ping(self, destination: str | Iterable[str] | None = None) -> Any:
        """``{worker: {"ok": "pong"}}``."""
        if destination:
            self.destination = destination
        return self.request("ping")

    def stats(self) -> Any:
        """Numbers: tasks begun, the pool, the broker, the process."""
        return self.request("stats")

    def active_queues(self) -> Any:
        """The queues that are consumed."""
        return self.request("active_queues")

    def conf(self, with_defaults: bool = False) -> Any:
        """The settings that were made, without their secrets; with the defaults if asked for."""
        return self.request("conf", with_defaults=with_defaults)

    def report(self) -> Any:
        """Versions and settings, for bug reports: ``{worker: {"ok": text}}``."""
        return self.request("report")

    def clock(self) -> Any:
        """The logical clocks."""
        return self.request("clock")

    def hello(self, from_node: str, revoked: Any = None) -> Any:
        """What one of Celery's workers asks the others when it starts."""
        return self.request("hello", from_node=from_node, revoked=revoked)

    # -- memory

    def memsample(self) -> Any:
        """The memory that a worker uses, as text, which is kept for `memdump`."""
        return self.request("memsample")

    def memdump(self, samples: int = 10) -> Any:
        """The memory samples, as text."""
        return self.request("memdump", samples=samples)

    def objgraph(self, type: str = "Request", n: int = 200, max_depth: int = 10) -> Any:  # noqa: A002 - Celery's name
        """Draw what refers to objects of a type into a file on the worker; needs the package objgraph there."""
        return self.request("objgraph", num=n, max_depth=max_depth, type=type)


def flatten_reply(replies: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Turn ``[{worker: answer}, …]`` into ``{worker: answer, …}``. Warns of workers that have the same name."""
    nodes: dict[str, Any] = {}
    twice: set[str] = set()
    for each in replies:
        twice |= nodes.keys() & each.keys()
        nodes.update(each)
    if twice:
        plural = "name" if len(twice) == 1 else "names"
        warnings.warn(
            f"Received multiple replies from node {plural}: {', '.join(sorted(twice))}. Please give each worker a name "
            "of its own, with -n.",
            DuplicateNodenameWarning,
            stacklevel=2,
        )
    return nodes
