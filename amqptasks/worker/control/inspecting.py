"""The commands that only answer: Celery's, with Celery's arguments and answers."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from amqptasks.wire.delayed import Delayed
from amqptasks.wire.reprs import printable, short_repr
from amqptasks.wire.revocation import MAX_IDS, Revocation
from amqptasks.wire.task import MAX_ID_CHARACTERS
from amqptasks.worker.control import describing
from amqptasks.worker.control.registry import Later, inspect_command, ok
from amqptasks.worker.control.state import ControlState
from amqptasks.worker.control.waiting import dead_ids, delayed_info, described, stored_states
from amqptasks.worker.request import Request

__all__ = ["known_tasks"]

logger = logging.getLogger("amqptasks.worker.control")

#: Tasks described in one answer.
MAX_TASKS: Final = 5_000
#: What `registered` tells of a task, where nothing is asked for.
DEFAULT_TASK_INFO_ITEMS: Final = ("exchange", "routing_key", "rate_limit")
_TRUE: Final = frozenset({"true", "yes", "on", "1"})
_FALSE: Final = frozenset({"false", "no", "off", "0"})


def strtobool(term: Any) -> Any:
    """Read a word such as ``yes`` as a bool; what is no text is returned as it is.

    Raises:
        TypeError: It is no such word.
    """
    if not isinstance(term, str):
        return term
    if term.lower() not in _TRUE | _FALSE:
        raise TypeError(f"Cannot coerce {term!r} to type bool")
    return term.lower() in _TRUE


# ---- the worker


@inspect_command(default_timeout=0.2)
def ping(state: ControlState, **kwargs: Any) -> Any:
    """Ping worker(s)."""
    return ok("pong")


@inspect_command()
def clock(state: ControlState, **kwargs: Any) -> Any:
    """Get current logical clock value."""
    return {"clock": state.app.clock.value}


@inspect_command(visible=False)
def hello(state: ControlState, from_node: Any, revoked: Any = None, **kwargs: Any) -> Any:
    """Request mingle sync-data."""
    if from_node == state.hostname:
        return None
    logger.info("sync with %s", printable(from_node))
    ids = [each for each in revoked or () if _is_id(each)][:MAX_REVOKED]
    for start in range(0, len(ids), MAX_IDS):
        state.deliveries.on_revocation(Revocation(tuple(ids[start : start + MAX_IDS]), at=time.time()))
    return {"revoked": state.deliveries.revoked.ids[-MAX_REVOKED:], "clock": state.app.clock.forward()}


#: Revoked ids told to another worker, or taken from one.
MAX_REVOKED: Final = 50_000


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_ID_CHARACTERS


@inspect_command()
def report(state: ControlState, **kwargs: Any) -> Any:
    """Information about the installation for bug reports."""
    return ok(describing.report(state))


@inspect_command(alias="dump_conf", signature="[include_defaults=False]", args=[("with_defaults", strtobool)])
def conf(state: ControlState, with_defaults: Any = False, **kwargs: Any) -> Any:
    """List configuration."""
    return describing.plain(state.app.conf.table(with_defaults=bool(strtobool(with_defaults))))


@inspect_command()
def stats(state: ControlState, **kwargs: Any) -> Any:
    """Request worker statistics/information."""
    shown: dict[str, Any] = {
        "total": dict(state.deliveries.ledger.totals), "pid": os.getpid(), "clock": str(state.app.clock),
        "uptime": round(time.monotonic() - state.started_at), "pool": describing.pool(state),
        "broker": describing.broker(state), "prefetch_count": state.sizing.prefetch, "rusage": describing.rusage(),
    }  # fmt: skip
    bounds = state.sizing.bounds
    if bounds is not None:
        qty = len(state.dispatcher.waiting) + state.dispatcher.running
        shown["autoscaler"] = {
            "max": bounds.most, "min": bounds.least, "current": state.sizing.concurrency, "qty": qty
        }  # fmt: skip
    return shown


@inspect_command()
def active_queues(state: ControlState, **kwargs: Any) -> Any:
    """List the task queues a worker is currently consuming from."""
    return [describing.queue(queue) for queue, _consumer in state.consumers.pairs]


@inspect_command(alias="dump_tasks", variadic="taskinfoitems", signature="[attr1 [attr2 [... [attrN]]]]")
def registered(state: ControlState, taskinfoitems: Any = None, builtins: Any = False, **kwargs: Any) -> Any:
    """List of registered tasks."""
    wanted = [taskinfoitems] if isinstance(taskinfoitems, str) else list(taskinfoitems or DEFAULT_TASK_INFO_ITEMS)
    items = [each for each in wanted if isinstance(each, str) and not each.startswith("_")]
    tasks = state.app.tasks
    names = [name for name in sorted(tasks) if builtins or not name.startswith(("celery.", "amqptasks."))]
    return [_with_items(tasks[name], items) for name in names]


def _with_items(task: Any, items: Iterable[str]) -> str:
    found = {item: value for item in items if (value := _attribute(task, item)) is not None}
    shown = " ".join(
        f"{item}={short_repr(value) if not isinstance(value, str) else value}" for item, value in found.items()
    )
    return f"{task.name} [{shown}]" if shown else str(task.name)


def _attribute(task: Any, name: str) -> Any:
    """Return an attribute that is plain data: a name from the wire is no reason to run anything."""
    for holder in (task, *type(task).__mro__):
        value = vars(holder).get(name, _missing)
        if value is not _missing:
            return value if isinstance(value, (str, int, float, bool, list, tuple, dict)) else None
    return None


_missing: Final = object()


# ---- tasks


def known_tasks(state: ControlState) -> Iterator[tuple[str, Request, float | None, int | None]]:
    """Every task that the worker has: its state (``active`` or ``reserved``), when it has begun, in which process."""
    for slot, request in state.dispatcher.assigned():
        started = slot.started(request)
        yield ("reserved", request, None, None) if started is None else ("active", request, started, slot.pid)
    for request in (*state.dispatcher.waiting, *state.deliveries.rate_limits.held):
        yield "reserved", request, None, None


def _described(state: ControlState, wanted: str, safe: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for what, request, started, pid in known_tasks(state):
        if what == wanted:
            if len(found) == MAX_TASKS:
                logger.warning("More than %d tasks are %s; the answer names so many of them", MAX_TASKS, wanted)
                break
            found.append(describing.task(state, request, safe=bool(safe), started=started, pid=pid))
    return found


@inspect_command(alias="dump_active")
def active(state: ControlState, safe: Any = False, **kwargs: Any) -> Any:
    """List of tasks currently being executed."""
    return _described(state, "active", safe)


@inspect_command(alias="dump_reserved")
def reserved(state: ControlState, safe: Any = False, **kwargs: Any) -> Any:
    """List of currently reserved tasks, not including scheduled/active."""
    return _described(state, "reserved", safe)


@inspect_command(alias="dump_schedule")
def scheduled(state: ControlState, **kwargs: Any) -> Any:
    """List of currently scheduled ETA/countdown tasks."""
    reader = state.delays
    if reader is None:
        return []

    def begin(done: Callable[[Any], None]) -> None:
        reader.ask(lambda calls: done([delayed_info(state, call) for call in calls[:MAX_TASKS]]))

    return Later(begin)


@inspect_command(alias="dump_revoked")
def revoked(state: ControlState, **kwargs: Any) -> Any:
    """List of revoked task-ids."""
    return state.deliveries.revoked.ids[-MAX_REVOKED:]


@inspect_command(variadic="ids", signature="[id1 [id2 [... [idN]]]]")
def query_task(state: ControlState, ids: Any, **kwargs: Any) -> Any:
    """Query for task information by id."""
    wanted = {each for each in ([ids] if isinstance(ids, str) else list(ids or ())) if _is_id(each)}
    found: dict[str, Any] = {}
    for what, request, started, pid in known_tasks(state):
        if request.id in wanted:
            found[request.id] = [what, describing.task(state, request, started=started, pid=pid)]

    def begin(done: Callable[[Any], None]) -> None:
        """Look at what waits, then at what has ended, at what is dead, and at the results; each only for what
        is not found yet."""

        def seen(calls: Iterable[Delayed]) -> None:
            for call in calls:
                if call.id in wanted and call.id not in found:
                    found[call.id] = ["scheduled", delayed_info(state, call)["request"]]
            left = wanted - found.keys()
            if left:
                dead_ids(state, left, buried)
            else:
                done(found)

        def buried(dead: Mapping[str, Any]) -> None:
            found.update((task_id, ["dead", info]) for task_id, info in dead.items())
            for task_id in wanted - found.keys():
                if state.deliveries.ledger.has_finished(task_id):
                    found[task_id] = ["ready", described(state, task_id, acknowledged=True)]
            stored_states(state, wanted - found.keys(), stored)

        def stored(states: Mapping[str, str]) -> None:
            for task_id, status in states.items():
                found[task_id] = ["ready", described(state, task_id, acknowledged=True) | {"state": status}]
            done(found)

        if state.delays is None:
            seen(())
        else:
            state.delays.ask(seen)

    return Later(begin) if wanted - found.keys() else found


# ---- memory


@inspect_command()
def memsample(state: ControlState, **kwargs: Any) -> Any:
    """Sample current RSS memory usage."""
    sample = _humanbytes(_rss())
    samples = state.memory.setdefault("samples", [])
    samples.append(sample)
    del samples[:-MAX_SAMPLES]
    return sample


#: Memory samples kept between two looks at them.
MAX_SAMPLES: Final = 1_000


@inspect_command(args=[("samples", int)], signature="[n_samples=10]")
def memdump(state: ControlState, samples: Any = 10, **kwargs: Any) -> Any:
    """Dump statistics of previous memsample requests."""
    kept: list[str] = state.memory.pop("samples", [])
    count = max(1, int(samples))
    shown = kept if len(kept) <= count else kept[:: len(kept) // count][:count]
    lines = ["- rss (sample):", *(f"-    > {each}," for each in shown)] if shown else []
    return "\n".join([*lines, f"- rss (end): {_humanbytes(_rss())}.", ""])


@inspect_command(
    default_timeout=60.0, args=[("type", str), ("num", int), ("max_depth", int)],
    signature="[object_type=Request] [num=200 [max_depth=10]]",
)  # fmt: skip
def objgraph(
    state: ControlState, num: Any = 200, max_depth: Any = 10, type: Any = "Request", **kwargs: Any  # noqa: A002
) -> Any:  # fmt: skip
    """Create graph of uncollected objects (memory-leak debugging)."""
    import importlib
    import tempfile

    try:
        graph = importlib.import_module("objgraph")
    except ImportError:
        raise ImportError("Requires the objgraph library") from None
    logger.info("Dumping graph for type %r", type)
    with tempfile.NamedTemporaryFile(prefix="cobjg", suffix=".png", delete=False) as file:
        objects = graph.by_type(str(type))[: int(num)]
        graph.show_backrefs(
            objects, max_depth=int(max_depth), highlight=lambda each: each in objects, filename=file.name
        )
        return {"filename": file.name}


def _rss() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        used = describing.rusage()
        return int(used["maxrss"]) * 1024 if isinstance(used, dict) else 0


def _humanbytes(size: float) -> str:
    for unit, name in ((2.0**40, "TB"), (2.0**30, "GB"), (2.0**20, "MB"), (2.0**10, "KB")):
        if size >= unit:
            return f"{size / unit:.5g}{name}"
    return f"{size:g}b"
