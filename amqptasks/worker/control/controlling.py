"""The commands that change something: Celery's, with Celery's arguments and answers."""

from __future__ import annotations

import importlib
import logging
import signal as signals
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from amqptasks.entities import Exchange, Queue
from amqptasks.exceptions import AmqptasksError, ImproperlyConfigured, TopologyConflict
from amqptasks.wire.reprs import printable
from amqptasks.wire.revocation import MAX_IDS, MAX_STAMPS, SIGNALS, Revocation, stamp_values
from amqptasks.wire.task import MAX_ID_CHARACTERS
from amqptasks.worker.control.inspecting import known_tasks
from amqptasks.worker.control.registry import Later, control_command, error, ok
from amqptasks.worker.control.state import ControlState
from amqptasks.worker.rate_limits import interval_of
from amqptasks.worker.revoked import stamps_of

logger = logging.getLogger("amqptasks.worker.control")

#: What a new queue may be told beside its exchange; the arguments of `Queue`.
QUEUE_OPTIONS: Final = frozenset(
    {
        "durable", "exclusive", "auto_delete", "queue_arguments", "binding_arguments", "consumer_arguments", "expires",
        "message_ttl", "max_length", "max_length_bytes", "max_priority", "no_declare", "alias",
    }
)  # fmt: skip


# ---- revoking


@control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]")
def revoke(state: ControlState, task_id: Any, terminate: Any = False, signal: Any = None, **kwargs: Any) -> Any:
    """Revoke task by task id (or list of ids)."""
    ids = _ids(task_id)
    # Before anything is ended: then it is nobody's any more.
    known = {request.id for _state, request, _started, _pid in known_tasks(state)}
    known.update(state.deliveries.terminations.ended)
    name = _signal_name(signal)
    for start in range(0, len(ids), MAX_IDS):
        part = tuple(ids[start : start + MAX_IDS])
        state.deliveries.on_revocation(Revocation(part, {}, bool(terminate), name, time.time()))
    if not terminate:
        logger.info("Tasks flagged as revoked: %s", ", ".join(map(printable, ids)))
        shown = f"{{{', '.join(map(repr, ids))}}}" if ids else "set()"
        return ok(f"tasks {shown} flagged as revoked")
    ended = [each for each in ids if each in known]
    return ok(f"terminate: {', '.join(ended)}" if ended else "terminate: tasks unknown")


@control_command(variadic="task_id", args=[("signal", str)], signature="<signal> [id1 [id2 [... [idN]]]]")
def terminate(state: ControlState, signal: Any, task_id: Any, **kwargs: Any) -> Any:
    """Terminate task by task id (or list of ids)."""
    return revoke(state, task_id, terminate=True, signal=signal)


@control_command(variadic="headers", signature="[key1=value1 [key2=value2 [... [keyN=valueN]]]]")
def revoke_by_stamped_headers(
    state: ControlState, headers: Any, terminate: Any = False, signal: Any = None, **kwargs: Any
) -> Any:
    """Revoke task by header (or list of headers)."""
    if isinstance(headers, (list, tuple)):
        headers = dict(str(each).split("=", 1) for each in headers)
    if not isinstance(headers, Mapping) or not 0 < len(headers) <= MAX_STAMPS:
        raise ValueError(f"expected 1 to {MAX_STAMPS} headers and their values, got: {printable(headers, 80)}")
    stamps = {str(name): stamp_values(value) for name, value in headers.items()}
    running = [request for what, request, _started, _pid in known_tasks(state) if what == "active"]
    state.deliveries.on_revocation(Revocation((), stamps, bool(terminate), _signal_name(signal), time.time()))
    if not terminate:
        return ok(f"headers {headers} flagged as revoked, but not terminated")
    found: dict[str, set[str]] = {}
    for request in running:
        for name, value in stamps_of(request.headers):
            if value in stamps.get(name, ()):
                found.setdefault(name, set()).add(value)
    return ok(f"headers {found} revoked" if found else f"headers {headers} were not terminated")


def _ids(value: Any) -> list[str]:
    ids = list(dict.fromkeys([value] if isinstance(value, str) else list(value or ())))
    if not all(isinstance(each, str) and 0 < len(each) <= MAX_ID_CHARACTERS for each in ids):
        raise TypeError(f"expected the ids of tasks to be texts of 1 to {MAX_ID_CHARACTERS} characters")
    return ids


def _signal_name(value: Any) -> str:
    if value is None:
        return "SIGTERM"
    if isinstance(value, int):
        name = signals.Signals(value).name
    else:
        name = str(value).upper()
        name = name if name.startswith("SIG") else f"SIG{name}"
    if name not in SIGNALS:
        raise ValueError(f"expected the signal to be one of {', '.join(sorted(SIGNALS))}, got: {printable(value, 40)}")
    return name


# ---- limits


@control_command(
    args=[("task_name", str), ("rate_limit", str)], signature="<task_name> <rate_limit (e.g., 5/s | 5/m | 5/h)>"
)
def rate_limit(state: ControlState, task_name: Any, rate_limit: Any, **kwargs: Any) -> Any:
    """Tell worker(s) to modify the rate limit for a task by type."""
    try:
        interval_s = interval_of(rate_limit)
    except ImproperlyConfigured as exc:
        return error(f"Invalid rate limit string: {exc!r}")
    task = state.app.tasks.get(task_name)
    if task is None:
        logger.error("Rate limit attempt for unknown task %s", printable(task_name))
        return error("unknown task")
    if state.app.conf.worker_disable_rate_limits:
        return error("rate limits are disabled (worker_disable_rate_limits)")
    task.rate_limit = rate_limit
    state.deliveries.rate_limits.set_rate(task_name, rate_limit)
    if interval_s is None:
        logger.info("Rate limits disabled for tasks of type %s", task_name)
        return ok("rate limit disabled successfully")
    logger.info("New rate limit for tasks of type %s: %s.", task_name, rate_limit)
    return ok("new rate limit set successfully")


@control_command(
    args=[("task_name", str), ("soft", float), ("hard", float)], signature="<task_name> <soft_secs> [hard_secs]"
)
def time_limit(
    state: ControlState, task_name: Any = None, hard: Any = None, soft: Any = None, **kwargs: Any
) -> Any:  # fmt: skip
    """Tell worker(s) to modify the time limit for task by type."""
    task = state.app.tasks.get(task_name)
    if task is None:
        logger.error("Change time limit attempt for unknown task %s", printable(task_name))
        return error("unknown task")
    state.deliveries.set_time_limits(task_name, hard, soft)
    task.time_limit, task.soft_time_limit = hard, soft
    return ok("time limits set successfully")


# ---- events


@control_command()
def enable_events(state: ControlState) -> Any:
    """Tell worker(s) to send task-related events."""
    if state.events is None:
        return error("event dispatcher unavailable")
    if state.events.enabled:
        return ok("task events already enabled")
    state.events.enable()
    logger.info("Events of group {task} enabled by remote.")
    return ok("task events enabled")


@control_command()
def disable_events(state: ControlState) -> Any:
    """Tell worker(s) to stop sending task-related events."""
    if state.events is None:
        return error("event dispatcher unavailable")
    if not state.events.enabled:
        return ok("task events already disabled")
    state.events.disable()
    logger.info("Events of group {task} disabled by remote.")
    return ok("task events disabled")


@control_command()
def heartbeat(state: ControlState) -> Any:
    """Tell worker(s) to send event heartbeat immediately."""
    logger.debug("Heartbeat requested by remote.")
    if state.events is not None:
        state.events.heartbeat()


@control_command()
def election(state: ControlState, id: Any, topic: Any, action: Any = None, **kwargs: Any) -> Any:  # noqa: A002
    """Hold election. Our workers take no part in any."""


# ---- the pool


@control_command(args=[("n", int)], signature="[N=1]")
def pool_grow(state: ControlState, n: Any = 1, **kwargs: Any) -> Any:
    """Grow pool by n processes/threads."""
    try:
        state.sizing.grow(_count(n))
    except ValueError as exc:
        return error(str(exc))
    return ok("pool will grow")


@control_command(args=[("n", int)], signature="[N=1]")
def pool_shrink(state: ControlState, n: Any = 1, **kwargs: Any) -> Any:
    """Shrink pool by n processes/threads."""
    try:
        state.sizing.shrink(_count(n))
    except ValueError as exc:
        return error(str(exc))
    return ok("pool will shrink")


#: How many places one command may add: a slip of the keyboard must not take the machine down.
MAX_GROWTH: Final = 1_000


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value > MAX_GROWTH:
        raise ValueError(f"expected a whole number of 1 to {MAX_GROWTH}, got: {printable(value, 40)}")
    return value


@control_command(args=[("max", int), ("min", int)], signature="[max [min]]")
def autoscale(state: ControlState, max: Any = None, min: Any = None) -> Any:  # noqa: A002
    """Modify autoscale settings."""
    for each in (max, min):
        if each is not None:
            _count(each)
    most, least = state.sizing.autoscale(max, min)
    return ok(f"autoscale now max={most} min={least}")


@control_command()
def pool_restart(
    state: ControlState, modules: Any = None, reload: Any = False, reloader: Any = None, **kwargs: Any
) -> Any:
    """Restart execution pool."""
    conf = state.app.conf
    if not conf.worker_pool_restarts:
        raise ValueError("Pool restarts not enabled")
    if not state.pool.can_restart:
        raise ValueError(f"the {state.pool_name} pool runs in the worker's own process: only prefork can be restarted")
    _load_modules(state, modules, bool(reload))
    state.pool.restart()
    return ok("reload started")


def _load_modules(state: ControlState, modules: Any, reload: bool) -> None:
    own = list(dict.fromkeys([*(state.app.conf.imports or ()), *(state.app.conf.include or ()), *state.app.include]))
    wanted: Iterable[Any] = own if modules is None else modules or ()
    for name in wanted:
        # A name from the wire is no reason to run a module that nobody has chosen.
        if not isinstance(name, str) or (name not in sys.modules and name not in own):
            raise ValueError(f"module {printable(name, 80)!r} is neither loaded nor named by imports or include")
        if name not in sys.modules:
            logger.debug("importing module %s", name)
            importlib.import_module(name)
        elif reload:
            logger.debug("reloading module %s", name)
            importlib.reload(sys.modules[name])


@control_command()
def shutdown(state: ControlState, msg: Any = "Got shutdown from remote", **kwargs: Any) -> Any:
    """Shutdown worker(s)."""
    logger.warning("%s", printable(msg))
    # In the next turn: the answer is to leave before.
    state.loop.call_later(0, lambda: state.stop("remote control"))
    return ok("warm shutdown")


# ---- queues


@control_command(
    args=[("queue", str), ("exchange", str), ("exchange_type", str), ("routing_key", str)],
    signature="<queue> [exchange [type [routing_key]]]",
)
def add_consumer(
    state: ControlState, queue: Any, exchange: Any = None, exchange_type: Any = None, routing_key: Any = None,
    **options: Any,
) -> Any:  # fmt: skip
    """Tell worker(s) to consume from task queue by name."""
    if not isinstance(queue, str) or not queue:
        raise ValueError(f"expected the queue to be a name, got: {printable(queue, 80)}")
    if state.is_stopping():
        return error("the worker is about to end")
    routing = state.app.sender.routing
    known = state.consumers.queue(queue) or routing.named(queue)
    entity = known or _new_queue(queue, exchange, exchange_type, routing_key, options)
    # For what goes back to it: a task that is not due, or whose process died.
    routing.queues.setdefault(entity.name, entity)

    def begin(answer: Callable[[Any], None]) -> None:
        def then(conflict: TopologyConflict | None) -> None:
            if conflict is None:
                logger.info("Started consuming from %s", entity.name)
                answer(ok(f"add consumer {queue}"))
                return
            if known is None:
                del routing.queues[entity.name]
            answer(error(str(conflict).partition("\n")[0]))

        if not state.consumers.add(entity, then):
            answer(ok(f"add consumer {queue}"))

    return Later(begin)


def _new_queue(name: str, exchange: Any, kind: Any, key: Any, options: Mapping[str, Any]) -> Queue:
    unknown = sorted(options.keys() - QUEUE_OPTIONS)
    if unknown:
        raise ValueError(f"expected the options of a queue ({', '.join(sorted(QUEUE_OPTIONS))}), got: {unknown}")
    try:
        # As with -Q: without an exchange of its own it is reached by its name.
        place = Exchange(exchange or name, kind or "direct") if exchange or (kind and kind != "direct") else None
        return Queue(name, place, key or (name if place else ""), **options)
    except (AmqptasksError, TypeError) as exc:
        raise ValueError(str(exc)) from exc


@control_command(args=[("queue", str)], signature="<queue>")
def cancel_consumer(state: ControlState, queue: Any, **kwargs: Any) -> Any:
    """Tell worker(s) to stop consuming from task queue by name."""
    logger.info("Canceling queue %s", printable(queue))
    entity = state.consumers.queue(queue) if isinstance(queue, str) else None
    if entity is not None:
        state.consumers.remove(entity)
    return ok(f"no longer consuming from {queue}")
