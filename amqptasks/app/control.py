"""``app.control``: orders to the workers, and questions. They travel through RabbitMQ."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from amqptasks.app.broadcasting import Broadcaster, ControlledApp, destinations
from amqptasks.app.inspection import Inspect, flatten_reply
from amqptasks.app.options import policy_of
from amqptasks.exceptions import OperationalError, TopologyConflict

__all__ = ["Control", "Inspect", "flatten_reply"]

logger = logging.getLogger(__name__)

TERM_SIGNAL: Final = "SIGTERM"

Destination = Iterable[str] | None
Replies = list[dict[str, Any]] | None


class Control:
    """Orders to all workers of an app, or to some. Safe from any thread.

    Every order but `revoke` and its kin reaches the workers that are there when it is given. Each takes these keyword
    arguments, as `broadcast` does: ``destination``, ``reply``, ``timeout``, ``limit``, ``callback``, ``pattern`` and
    ``matcher``. With ``reply=True`` it returns the answers, a list of ``{worker: answer}``, else None.

    Raises:
        OperationalError: From every order: the broker did not get it.
    """

    def __init__(self, app: ControlledApp) -> None:
        self._app = app
        self._broadcaster = Broadcaster(app)

    # -- any command

    def broadcast(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        destination: Destination = None,
        connection: Any = None,
        reply: bool = False,
        timeout: float | None = 1.0,
        limit: int | None = None,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        channel: Any = None,
        pattern: str | None = None,
        matcher: str | None = None,
        **extra_kwargs: Any,
    ) -> Replies:
        """Send a command to workers, your own commands included.

        Args:
            arguments: What it is given, by name; so are further keyword arguments.
            destination: The workers that are to heed it, by their full names; None: all.
            reply: Wait for the answers and return them.
            timeout: How long to wait for them in all, seconds; None: a minute.
            limit: How many to wait for at most. With a ``destination``: as many as it names.
            callback: Called with each as it comes.
            pattern, matcher: Only workers whose names fit: ``"w*@*"``, or a regular expression with ``"pcre"``.
            connection, channel: Accepted because Celery has them; without effect.

        Raises:
            ValueError: The destination is no list of names, or the pattern cannot be used.
            EncodeError: An argument cannot be written.
            OperationalError: The broker does not have the command, or was lost while answers came.
        """
        given = {**(arguments or {}), **extra_kwargs}
        request = self._broadcaster.request(
            command, given, destination, timeout if reply else None, pattern, matcher
        )  # fmt: skip
        if reply:
            return self._broadcaster.call(request, timeout, limit, callback)
        self._broadcaster.cast(request)
        return None

    def ping(self, destination: Destination = None, timeout: float | None = 1.0, **options: Any) -> Any:
        """Ask which workers are there: a list of ``{worker: {"ok": "pong"}}``."""
        return self.broadcast("ping", {}, destination, reply=True, timeout=timeout, **options)

    def inspect(
        self, destination: str | Iterable[str] | None = None, timeout: float | None = 1.0,
        callback: Callable[[dict[str, Any]], Any] | None = None, connection: Any = None, app: Any = None,
        limit: int | None = None, pattern: str | None = None, matcher: str | None = None,
    ) -> Inspect:  # fmt: skip
        """Return what asks workers: ``app.control.inspect().active()``. The arguments are those of `Inspect`."""
        broadcaster = self._broadcaster if app is None else Broadcaster(app)
        return Inspect(broadcaster, destination, timeout, callback, connection, limit, pattern, matcher)

    # -- tasks

    def revoke(
        self, task_id: str | Iterable[str], destination: Destination = None, terminate: bool = False,
        signal: str | None = TERM_SIGNAL, **options: Any,
    ) -> Replies:  # fmt: skip
        """Keep tasks from running: those that wait, are delayed or prefetched end as REVOKED when a worker has them.

        The order is kept in RabbitMQ for ``task_revoke_expires`` seconds: it reaches workers that start later. It is
        also sent to those that are there, Celery's included.

        Args:
            task_id: One id, or several.
            destination: The workers that are to heed it, by their full names, such as ``["celery@host"]``; None: all.
            terminate: End the task if it runs now; by killing its process, where the pool has processes.
            signal: The signal to kill with, by name.
            options: As of `broadcast`, without ``pattern``.

        Raises:
            NotSent: RabbitMQ surely does not have the order.
            MaybeSent: It may have.
            ValueError: A destination is no list.
        """
        from amqptasks.wire.revocation import MAX_IDS, Revocation

        names = destinations(destination)
        ids = [task_id] if isinstance(task_id, str) else list(task_id)
        for each in ids:
            if not isinstance(each, str) or not each:
                raise TypeError(f"expected the ids of tasks to be texts, got: {each!r:.80}")
        number = _signal_name(signal)
        for start in range(0, len(ids), MAX_IDS):
            part = tuple(ids[start : start + MAX_IDS])
            self._keep(Revocation(part, {}, bool(terminate), number, time.time(), destinations=names))
        told = {"task_id": task_id if isinstance(task_id, str) else ids, "terminate": terminate, "signal": number}
        return self._tell("revoke", told, destination, options)

    def terminate(
        self, task_id: str | Iterable[str], destination: Destination = None, signal: str | None = TERM_SIGNAL,
        **options: Any,
    ) -> Replies:  # fmt: skip
        """Revoke tasks, and end those that run now. As `revoke` with ``terminate=True``."""
        return self.revoke(task_id, destination, True, signal, **options)

    def revoke_by_stamped_headers(
        self, headers: Mapping[str, Any], destination: Destination = None, terminate: bool = False,
        signal: str | None = TERM_SIGNAL, **options: Any,
    ) -> Replies:  # fmt: skip
        """Revoke every task that carries one of these stamps: header names, and a value or a list of values.

        The other arguments are those of `revoke`.

        Raises:
            NotSent: RabbitMQ surely does not have the order.
            MaybeSent: It may have.
        """
        from amqptasks.wire.revocation import MAX_STAMPS, Revocation, stamp_values

        if not isinstance(headers, Mapping) or not 0 < len(headers) <= MAX_STAMPS:
            raise TypeError(f"expected the stamps to be a map of 1 to {MAX_STAMPS} headers, got: {headers!r:.80}")
        stamps = {str(name): stamp_values(value) for name, value in headers.items()}
        names, number = destinations(destination), _signal_name(signal)
        self._keep(Revocation((), stamps, bool(terminate), number, time.time(), destinations=names))
        plain = {name: list(values) for name, values in stamps.items()}
        told = {"headers": plain, "terminate": terminate, "signal": number}
        return self._tell("revoke_by_stamped_headers", told, destination, options)

    def _keep(self, revocation: Any) -> None:
        from amqptasks.broker.revocations import record_message, stream_need

        conf = self._app.conf
        prefix = conf.task_queue_prefix
        needs = (stream_need(prefix, conf.task_revoke_expires),)
        self._app.publisher.publish(record_message(prefix, revocation), needs, policy_of(conf))

    def _tell(
        self, command: str, arguments: Mapping[str, Any], destination: Destination, options: Mapping[str, Any]
    ) -> Replies:
        """Tell the workers that are there of what RabbitMQ keeps already: so that this cannot be done is no error,
        unless answers are wanted."""
        for name in ("pattern", "matcher"):
            if options.get(name):
                raise ValueError(f"{command} takes no {name}: RabbitMQ keeps it for workers by their names, or for all")
        try:
            return self.broadcast(command, arguments, destination, **options)
        except (OperationalError, TopologyConflict) as error:
            if options.get("reply"):
                raise
            logger.warning("Workers other than ours were not told of %s: %s", command, error)
            return None

    def rate_limit(
        self, task_name: str, rate_limit: str | float | None, destination: Destination = None, **options: Any
    ) -> Replies:
        """Change how often each worker begins tasks of this name: ``"10/m"``, a number a second, 0 for no limit."""
        return self.broadcast(
            "rate_limit", {"task_name": task_name, "rate_limit": rate_limit}, destination, **options
        )  # fmt: skip

    def time_limit(
        self, task_name: str, soft: float | None = None, hard: float | None = None, destination: Destination = None,
        **options: Any,
    ) -> Replies:  # fmt: skip
        """Change the time limits of the tasks of this name, in seconds."""
        return self.broadcast(
            "time_limit", {"task_name": task_name, "hard": hard, "soft": soft}, destination, **options
        )  # fmt: skip

    # -- workers

    def shutdown(self, destination: Destination = None, **options: Any) -> Replies:
        """Stop workers warmly: what runs there ends first."""
        return self.broadcast("shutdown", {}, destination, **options)

    def pool_grow(self, n: int = 1, destination: Destination = None, **options: Any) -> Replies:
        """Let so many more tasks run at once."""
        return self.broadcast("pool_grow", {"n": n}, destination, **options)

    def pool_shrink(self, n: int = 1, destination: Destination = None, **options: Any) -> Replies:
        """Let so many fewer tasks run at once."""
        return self.broadcast("pool_shrink", {"n": n}, destination, **options)

    def autoscale(
        self, max: int | None = None, min: int | None = None, destination: Destination = None, **options: Any  # noqa: A002
    ) -> Replies:  # fmt: skip
        """Change how many tasks run at once at most and at least, where a worker was started with ``--autoscale``."""
        return self.broadcast("autoscale", {"max": max, "min": min}, destination, **options)

    def pool_restart(
        self, modules: Iterable[str] | None = None, reload: bool = False, reloader: Any = None,
        destination: Destination = None, **options: Any,
    ) -> Replies:  # fmt: skip
        """Replace the processes of the pool; with ``reload`` the modules are read again first. Needs
        ``worker_pool_restarts`` in the worker's settings."""
        told = {"modules": None if modules is None else list(modules), "reload": reload, "reloader": reloader}
        return self.broadcast("pool_restart", told, destination, **options)

    # -- queues

    def add_consumer(
        self, queue: str, exchange: str | None = None, exchange_type: str | None = "direct",
        routing_key: str | None = None, options: Mapping[str, Any] | None = None, destination: Destination = None,
        **kwargs: Any,
    ) -> Replies:  # fmt: skip
        """Let workers consume a queue too. ``options`` are further ones of the `Queue`."""
        told = {"queue": queue, "exchange": exchange, "exchange_type": exchange_type, "routing_key": routing_key}
        return self.broadcast("add_consumer", {**told, **(options or {})}, destination, **kwargs)

    def cancel_consumer(self, queue: str, destination: Destination = None, **options: Any) -> Replies:
        """Let workers consume a queue no longer."""
        return self.broadcast("cancel_consumer", {"queue": queue}, destination, **options)

    def purge(self, connection: Any = None) -> int:
        """Delete every task that waits in the app's queues; returns how many those were. There is no undo."""
        from amqptasks.broker.admin import Admin
        from amqptasks.entities import Broadcast

        queues = [each for each in self._app.sender.routing.queues.values() if not isinstance(each, Broadcast)]
        with Admin(self._app.endpoints("purge")) as admin:
            return sum(admin.purge(queue.name) or 0 for queue in queues)

    discard_all = purge

    # -- events

    def enable_events(self, destination: Destination = None, **options: Any) -> Replies:
        """Let workers tell of their tasks."""
        return self.broadcast("enable_events", {}, destination, **options)

    def disable_events(self, destination: Destination = None, **options: Any) -> Replies:
        """Let workers tell of their tasks no longer."""
        return self.broadcast("disable_events", {}, destination, **options)

    def heartbeat(self, destination: Destination = None, **options: Any) -> Replies:
        """Let workers send a heartbeat now."""
        return self.broadcast("heartbeat", {}, destination, **options)

    def election(self, id: str, topic: str, action: Any = None, connection: Any = None) -> None:  # noqa: A002
        """Hold one of Celery's elections, among Celery's workers: ours take no part."""
        self.broadcast("election", {"id": id, "topic": topic, "action": action})


def _signal_name(signal: Any) -> str:
    from amqptasks.wire.revocation import SIGNALS

    name = TERM_SIGNAL if signal is None else str(getattr(signal, "name", signal)).upper()
    name = name if name.startswith("SIG") else f"SIG{name}"
    if name not in SIGNALS:
        raise ValueError(f"expected the signal to be one of {', '.join(sorted(SIGNALS))}, got: {signal!r:.40}")
    return name
