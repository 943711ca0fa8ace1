"""Which exchange and routing key a call goes to.

Pure: settings and options in, a `Route` out. The rules are Celery's: a call's own options, then ``task_routes``, then
the
task's attributes, then the default queue; a direct queue is reached by name through AMQP's default exchange.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from amqptasks.app.discovery import named_object
from amqptasks.broker.chord_queues import join_queue, join_queue_name
from amqptasks.entities import DIRECT_SUFFIX, Broadcast, Exchange, Queue, worker_direct
from amqptasks.exceptions import ImproperlyConfigured, QueueNotFound

#: Options of a route that say where, as opposed to how.
ADDRESS_OPTIONS = ("queue", "exchange", "exchange_type", "routing_key")
#: Options of a call because of which it may go another way than others of its task.
ROUTING_OPTIONS = (*ADDRESS_OPTIONS, "route_name")

Router = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Route:
    """Where a message goes: the address, the queues to have there first, and what the route adds to the options."""

    exchange: str
    routing_key: str
    queues: tuple[Queue, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    #: The queue that a delayed message waits for; None when the address is an exchange without one. For a `Broadcast`
    #: any queue of it will do: the message waits for its exchange.
    queue_name: str | None = None
    exchange_type: str = "direct"

    @property
    def place(self) -> tuple[str, str, str] | None:
        """The queue, exchange and routing key; None where other queues than the one known here may get the message."""
        if self.queue_name is None or self.exchange_type != "direct":
            return None
        return self.queue_name, self.exchange, self.routing_key


def declared_queues(conf: Any) -> dict[str, Queue]:
    """Return the queues the settings declare, by name; the default queue alone where they declare none."""
    declared: Iterable[Queue] = conf.task_queues or ()
    name = conf.task_default_queue
    if not declared:
        exchange = Exchange(conf.task_default_exchange or name, conf.task_default_exchange_type)
        declared = (Queue(name, exchange, conf.task_default_routing_key or name),)
    return {queue.name: with_priority(queue, conf.task_queue_max_priority) for queue in declared}


def with_priority(queue: Queue, most: int | None) -> Queue:
    """Return the queue with ``task_queue_max_priority``, where it says nothing itself and has not chosen a type that
    cannot have it."""
    arguments = queue.queue_arguments or {}
    if (
        most is None
        or queue.max_priority is not None
        or arguments.get("x-max-priority") is not None
        or arguments.get("x-queue-type", "classic") != "classic"
    ):
        return queue
    return queue.clone(max_priority=most)


class Routing:
    """Decides routes by one state of the settings; made anew when they change."""

    def __init__(self, conf: Any) -> None:
        self.queues = declared_queues(conf)
        self._aliases = {queue.alias: queue for queue in self.queues.values() if queue.alias}
        self._default_queue: str = conf.task_default_queue
        self._default_exchange: str = conf.task_default_exchange or conf.task_default_queue
        self._default_key: str = conf.task_default_routing_key or conf.task_default_queue
        self._missing_type: str | None = conf.task_create_missing_queue_type
        self._missing_exchange_type: str | None = conf.task_create_missing_queue_exchange_type
        self._create_missing: bool = conf.task_create_missing_queues
        self._max_priority: int | None = conf.task_queue_max_priority
        self._join_queue = join_queue_name(conf.task_queue_prefix)
        self._routers = tuple(prepare(conf.task_routes))
        #: Whether a route depends on the task's name alone.
        self.is_static = all(getattr(router, "is_static", False) for router in self._routers)

    def queue(self, name: str | Queue) -> Queue:
        """Return the declared queue of this name or alias; a new one where missing queues are created.

        Raises:
            QueueNotFound: It is not declared, and ``task_create_missing_queues`` is off.
        """
        if isinstance(name, Queue):
            return name
        found = self.named(name)
        if found is not None:
            return found
        if "@" in name and name.endswith(DIRECT_SUFFIX):
            return worker_direct(name.removesuffix(DIRECT_SUFFIX))
        if name == self._join_queue:
            return join_queue(name)
        if not self._create_missing:
            near = difflib.get_close_matches(name, self.names(), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise QueueNotFound(f"queue {name!r} is not in task_queues, and task_create_missing_queues is off{hint}")
        return self._missing(name)

    def named(self, name: str) -> Queue | None:
        """Return the declared queue of this name or alias, if there is one."""
        return self.queues.get(name) or self._aliases.get(name)

    def names(self) -> list[str]:
        """Every name that a declared queue goes by; for a broadcast that is not the made-up name of its queue."""
        own = [name for name, queue in self.queues.items() if not isinstance(queue, Broadcast)]
        return own + [alias for alias in self._aliases if alias not in own]

    def _missing(self, name: str) -> Queue:
        arguments = {"x-queue-type": self._missing_type} if self._missing_type else None
        exchange = Exchange(name, self._missing_exchange_type) if self._missing_exchange_type else None
        queue = Queue(name, exchange, name if exchange else "", queue_arguments=arguments)
        return with_priority(queue, self._max_priority)

    def route(self, task_name: str, args: Any, kwargs: Any, options: Mapping[str, Any], task: Any = None) -> Route:
        """Decide where one call goes. ``options`` are the caller's own."""
        found: dict[str, Any] = {}
        if not any(options.get(key) for key in ("queue", "exchange")):
            found = self._ask_routers(task_name, args, kwargs, options, task)
            if not any(found.get(key) for key in ("queue", "exchange")):
                found = {**_task_address(task), **found}
        address = {key: options.get(key) or found.pop(key, None) for key in ADDRESS_OPTIONS}
        return self._resolve(address, found)

    def _ask_routers(
        self, task_name: str, args: Any, kwargs: Any, options: Mapping[str, Any], task: Any
    ) -> dict[str, Any]:
        for router in self._routers:
            answer = router(task_name, args, kwargs, options, task=task)
            if not answer:
                continue
            if isinstance(answer, (str, Queue)):
                return {"queue": answer}
            if isinstance(answer, Mapping):
                return dict(answer)
            raise ImproperlyConfigured(f"expected a router to return a queue name or a dict, got: {answer!r:.80}")
        return {}

    def _resolve(self, address: Mapping[str, Any], extra: Mapping[str, Any]) -> Route:
        exchange, key = address["exchange"], address["routing_key"]
        if isinstance(exchange, Exchange):
            address = {**address, "exchange_type": exchange.type}
            exchange = exchange.name
        if exchange and not address["queue"]:
            return self._to_exchange(str(exchange), key, address, extra)
        queue = self.queue(address["queue"] or self._default_queue)
        kind = address["exchange_type"] or queue.exchange.type
        if (not exchange or not key) and kind == "direct":
            return Route("", queue.name, (queue,), extra, queue.name, kind)
        target = exchange or queue.exchange.name or self._default_exchange
        return Route(target, key or queue.routing_key or self._default_key, (queue,), extra, queue.name, kind)

    def _to_exchange(
        self, exchange: str, key: str | None, address: Mapping[str, Any], extra: Mapping[str, Any]
    ) -> Route:
        bound = tuple(
            queue
            for queue in self.queues.values()
            if any(each.exchange.name == exchange for each in queue.all_bindings())
        )
        kind = address["exchange_type"]
        if kind is None:
            kinds = [
                each.exchange.type for queue in bound for each in queue.all_bindings() if each.exchange.name == exchange
            ]
            kind = kinds[0] if kinds else "direct"
        return Route(exchange, key if key is not None else self._default_key, bound, extra, None, kind)


def _task_address(task: Any) -> dict[str, Any]:
    if task is None:
        return {}
    found = {key: getattr(task, key, None) for key in ADDRESS_OPTIONS}
    return {key: value for key, value in found.items() if value}


def prepare(routes: Any) -> Iterable[Router]:
    """Turn ``task_routes`` in any of its forms into functions ``(name, args, kwargs, options, task=)``."""
    if not routes:
        return
    if isinstance(routes, Mapping) or callable(routes) or isinstance(routes, str) or hasattr(routes, "route_for_task"):
        routes = (routes,)
    for each in routes:
        if isinstance(each, str):
            each = named_object(each, "task_routes")
        if isinstance(each, type) and hasattr(each, "route_for_task"):
            each = each()
        if isinstance(each, Mapping):
            yield _map_router(each.items())
        elif isinstance(each, (list, tuple)):
            # One (pattern, route) pair, or a list of them.
            pairs = [each] if len(each) == 2 and isinstance(each[0], (str, re.Pattern)) else each
            yield _map_router(pairs)
        elif hasattr(each, "route_for_task"):
            yield functools.partial(_call_old_router, each)
        elif callable(each):
            yield each
        else:
            raise ImproperlyConfigured(
                f"expected task_routes to hold dicts, pairs, functions or routers, got: {each!r:.80}"
            )


def _call_old_router(router: Any, name: str, args: Any, kwargs: Any, options: Any, task: Any = None) -> Any:
    return router.route_for_task(name, args, kwargs)


def _map_router(pairs: Iterable[Any]) -> Router:
    exact: dict[str, Any] = {}
    patterns: list[tuple[re.Pattern[str], Any]] = []
    for pattern, route in pairs:
        if isinstance(pattern, re.Pattern):
            patterns.append((pattern, route))
        elif "*" in pattern or "?" in pattern or "[" in pattern:
            patterns.append((re.compile(fnmatch.translate(pattern)), route))
        else:
            exact[pattern] = route

    def by_name(name: str, args: Any, kwargs: Any, options: Any, task: Any = None) -> Any:
        found = exact.get(name)
        if found is not None:
            return found
        return next((value for pattern, value in patterns if pattern.match(name)), None)

    by_name.is_static = True  # type: ignore[attr-defined]
    return by_name
