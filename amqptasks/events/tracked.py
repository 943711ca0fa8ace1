"""What a `State` knows of one worker and of one task: attributes, filled by events.

Events come from anyone who may publish: of what they hold, only what cannot harm becomes an attribute.
"""

from __future__ import annotations

import bisect
import logging
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, ClassVar, Final
from weakref import WeakSet

from amqptasks import states

__all__ = ["Task", "Worker", "heartbeat_expires"]

logger = logging.getLogger(__name__)

#: A worker is taken for alive until this part of its heartbeat's interval has passed, percent.
HEARTBEAT_EXPIRE_WINDOW: Final = 200
#: When a worker's clock is so far off, it is told, seconds.
HEARTBEAT_DRIFT_MAX: Final = 16
#: Longest text that is kept of an event, and how many fields of its own one may have.
MAX_TEXT: Final = 100_000
MAX_FIELDS: Final = 100
#: Workers of whose clocks is told, once each.
MAX_WARNED: Final = 1000

TASK_EVENT_TO_STATE: Final = {
    "sent": states.PENDING, "received": states.RECEIVED, "started": states.STARTED, "failed": states.FAILURE,
    "retried": states.RETRY, "succeeded": states.SUCCESS, "revoked": states.REVOKED, "rejected": states.REJECTED,
}  # fmt: skip

_warned: set[str] = set()


def is_number(value: Any) -> bool:
    """Whether it is a number that arithmetic and `datetime` bear; NaN is none."""
    return type(value) in (int, float) and -1e11 < value < 1e11


def heartbeat_expires(timestamp: float, freq: float = 60, expire_window: float = HEARTBEAT_EXPIRE_WINDOW) -> float:
    """Return until when a heartbeat counts."""
    return float(timestamp) + float(freq) * expire_window / 100


class Tracked:
    """A thing that events tell of."""

    #: What an event may set that the class has already, and what kind of value it must be. None is fine for all.
    _known: ClassVar[Mapping[str, Any]] = {}
    #: What no event may set.
    _reserved: ClassVar[frozenset[str]] = frozenset()

    def take(self, fields: Mapping[str, Any]) -> None:
        """Set what an event tells as attributes, except what would take the place of something else."""
        own, known, room = self.__dict__, self._known, MAX_FIELDS
        for key, value in fields.items():
            if key in self._reserved:
                continue
            if key in known:
                check = known[key]
                if value is not None and check is not None and not check(value):
                    continue
            elif not isinstance(key, str) or key[:1] == "_" or not key.isidentifier() or hasattr(type(self), key):
                continue
            elif key not in own:
                room -= 1
                if room < 0 or len(own) > MAX_FIELDS * 2:
                    continue
            own[key] = value[:MAX_TEXT] if isinstance(value, str) else value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_freq(value: Any) -> bool:
    return is_number(value) and value > 0


class Worker(Tracked):
    """A worker, as its events show it. Equal to another of the same name.

    Attributes:
        hostname, pid, clock: Who it is, and what its logical clock has shown.
        freq: Seconds between its heartbeats; they are in ``heartbeats``, the last few, seconds since 1970.
        active, processed, loadavg: How many tasks it runs, has run, and how busy its machine is.
        sw_ident, sw_ver, sw_sys: Its software.
    """

    heartbeat_max = 4
    expire_window = HEARTBEAT_EXPIRE_WINDOW
    _fields = (
        "hostname", "pid", "freq", "heartbeats", "clock", "active", "processed", "loadavg", "sw_ident", "sw_ver",
        "sw_sys",
    )  # fmt: skip
    _known: ClassVar[Mapping[str, Any]] = {
        "hostname": _is_text, "pid": is_number, "freq": _is_freq, "clock": is_number, "active": is_number,
        "processed": is_number, "loadavg": lambda value: isinstance(value, (list, tuple)) and len(value) <= 8,
        "sw_ident": _is_text, "sw_ver": _is_text, "sw_sys": _is_text,
    }  # fmt: skip

    _reserved: ClassVar[frozenset[str]] = frozenset({"heartbeats"})

    def __init__(
        self, hostname: str | None = None, pid: int | None = None, freq: float = 60,
        heartbeats: list[float] | None = None, clock: int = 0, active: int | None = None, processed: int | None = None,
        loadavg: Any = None, sw_ident: str | None = None, sw_ver: str | None = None, sw_sys: str | None = None,
    ) -> None:  # fmt: skip
        self.hostname = hostname
        self.pid = pid
        self.freq = freq
        self.heartbeats: list[float] = [] if heartbeats is None else heartbeats
        self.clock = clock or 0
        self.active = active
        self.processed = processed
        self.loadavg = loadavg
        self.sw_ident = sw_ident
        self.sw_ver = sw_ver
        self.sw_sys = sw_sys

    def __eq__(self, other: object) -> bool:
        return self.hostname == other.hostname if isinstance(other, Worker) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.hostname)

    def __repr__(self) -> str:
        return f"<Worker: {self.hostname} ({self.status_string} clock:{self.clock})>"

    def event(
        self, type_: str | None, timestamp: float | None = None, local_received: float | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Take in what an event tells: ``online``, ``heartbeat``, ``offline``; None: it was heard of otherwise."""
        self.take(fields or {})
        if type_ == "offline":
            self.heartbeats.clear()
            return
        if not local_received or not timestamp:
            return
        drift = abs(int(local_received) - int(timestamp))
        if drift > HEARTBEAT_DRIFT_MAX:
            self._warn(drift, local_received, timestamp)
        if len(self.heartbeats) >= self.heartbeat_max:
            del self.heartbeats[0]
        bisect.insort(self.heartbeats, local_received)

    def _warn(self, drift: int, local_received: float, timestamp: float) -> None:
        hostname = str(self.hostname)
        if hostname in _warned or len(_warned) >= MAX_WARNED:
            return
        _warned.add(hostname)
        logger.warning(
            "Substantial drift from %.200s may mean clocks are out of sync.  Current drift is %s seconds.  "
            "[orig: %s recv: %s]",
            ascii(hostname)[1:-1], drift, datetime.fromtimestamp(timestamp), datetime.fromtimestamp(local_received),
        )  # fmt: skip

    def update(self, f: Mapping[str, Any], **kw: Any) -> None:
        """Set attributes."""
        self.take({**f, **kw})

    @property
    def status_string(self) -> str:
        """``ONLINE`` or ``OFFLINE``."""
        return "ONLINE" if self.alive else "OFFLINE"

    @property
    def heartbeat_expires(self) -> float:
        """Until when its last heartbeat counts."""
        return heartbeat_expires(self.heartbeats[-1], self.freq or 60, self.expire_window)

    @property
    def alive(self) -> bool:
        """Whether it was heard of lately."""
        return bool(self.heartbeats) and time.time() < self.heartbeat_expires

    @property
    def id(self) -> str:
        """Its name and process."""
        return f"{self.hostname}.{self.pid}"


class Task(Tracked):
    """A task, as its events show it. Equal to another of the same id.

    Attributes:
        state: Its state, by the event that says most; ``timestamp`` is that event's.
        sent, received, started, succeeded, failed, retried, revoked, rejected: When each was told, seconds since 1970.
        name, args, kwargs, eta, expires, retries, root_id, parent_id: What was called; the arguments as texts.
        worker, client: The `Worker` that has it, and the name of the program that sent it.
        result, exception, traceback, runtime: How it ended.
        exchange, routing_key: Where it was sent.
        children: The tasks it has called.
    """

    name: Any = None
    received: Any = None
    sent: Any = None
    started: Any = None
    succeeded: Any = None
    failed: Any = None
    retried: Any = None
    revoked: Any = None
    rejected: Any = None
    args: Any = None
    kwargs: Any = None
    eta: Any = None
    expires: Any = None
    retries: Any = None
    worker: Worker | None = None
    result: Any = None
    exception: Any = None
    timestamp: Any = None
    runtime: Any = None
    traceback: Any = None
    exchange: Any = None
    routing_key: Any = None
    root_id: Any = None
    parent_id: Any = None
    client: Any = None
    state: str = states.PENDING
    clock: int = 0

    _fields = (
        "uuid", "name", "state", "received", "sent", "started", "rejected", "succeeded", "failed", "retried",
        "revoked", "args", "kwargs", "eta", "expires", "retries", "worker", "result", "exception", "timestamp",
        "runtime", "traceback", "exchange", "routing_key", "clock", "client", "root", "root_id", "parent", "parent_id",
        "children",
    )  # fmt: skip
    _info_fields = (
        "args", "kwargs", "retries", "result", "eta", "runtime", "expires", "exception", "exchange", "routing_key",
        "root_id", "parent_id",
    )  # fmt: skip
    #: Of an event that comes after one that says more, only these are kept.
    merge_rules: ClassVar[Mapping[str, tuple[str, ...]]] = {
        states.RECEIVED: ("name", "args", "kwargs", "parent_id", "root_id", "retries", "eta", "expires")
    }
    _known: ClassVar[Mapping[str, Any]] = {
        **dict.fromkeys(("name", "args", "kwargs", "result", "exception", "traceback", "exchange"), _is_text),
        **dict.fromkeys(("routing_key", "root_id", "parent_id", "eta", "expires", "state"), _is_text),
        **dict.fromkeys(("retries", "runtime", "timestamp", "clock"), is_number),
    }

    _reserved: ClassVar[frozenset[str]] = frozenset({"cluster_state", "children"})

    def __init__(
        self, uuid: str | None = None, cluster_state: Any = None, children: Iterable[str] | None = None, **kwargs: Any
    ) -> None:  # fmt: skip
        self.uuid = uuid
        self.cluster_state = cluster_state
        self.children: WeakSet[Task] = WeakSet()
        if cluster_state is not None:
            found = (cluster_state.tasks.get(each) for each in children or ())
            self.children.update(each for each in found if each is not None)
        self.__dict__.update(kwargs)

    def __eq__(self, other: object) -> bool:
        return self.uuid == other.uuid if isinstance(other, Task) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.uuid)

    def __repr__(self) -> str:
        return f"<Task: {self.name}({self.uuid}) {self.state} clock:{self.clock}>"

    def event(
        self, type_: str, timestamp: float | None = None, local_received: float | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Take in what an event tells: ``received``, ``succeeded`` and so on; any other word is a state of its own."""
        told = dict(fields or {})
        told.pop("state", None)
        state = TASK_EVENT_TO_STATE.get(type_)
        if state is not None:
            self.__dict__[type_] = timestamp
        else:
            state = type_.upper()
        is_late = states.precedence(state) > states.precedence(self.state)
        if state != states.RETRY and self.state != states.RETRY and is_late:
            # It has happened before what is known already: events overtake each other.
            keep = self.merge_rules.get(state)
            if keep is not None:
                told = {key: value for key, value in told.items() if key in keep}
            told.pop("timestamp", None)
        else:
            told["state"], told["timestamp"] = state, timestamp
        self.take(told)

    def info(self, fields: Iterable[str] | None = None, extra: Iterable[str] = ()) -> dict[str, Any]:
        """Return what is known of it, for people: those of the fields that are known."""
        names = [*(self._info_fields if fields is None else fields), *extra]
        known = ((name, getattr(self, name, None)) for name in names)
        return {name: value for name, value in known if value is not None}

    def as_dict(self) -> dict[str, Any]:
        """Return every field; of its relations, the ids."""
        plain = {name: getattr(self, name) for name in self._fields if name not in ("children", "root", "parent")}
        return plain | {
            "children": [each.id for each in self.children], "root": self.root_id, "parent": self.parent_id
        }  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        plain = self.as_dict()
        for name in ("root", "parent"):
            del plain[name]
        return _task_of, (type(self), plain)

    @property
    def id(self) -> str | None:
        """Its id."""
        return self.uuid

    @property
    def origin(self) -> Any:
        """Who told of it: the worker, or the program that sent it."""
        return self.client if self.worker is None else self.worker.id

    @property
    def ready(self) -> bool:
        """Whether it has ended."""
        return self.state in states.READY_STATES

    @property
    def parent(self) -> Task | None:
        """The task that has called it, if that is known."""
        return self._relation(self.parent_id)

    @property
    def root(self) -> Task | None:
        """The task that all this began with, if that is known."""
        return self._relation(self.root_id)

    def _relation(self, task_id: Any) -> Task | None:
        if not task_id or self.cluster_state is None:
            return None
        found: Task | None = self.cluster_state.tasks.get(task_id)
        return found


def _task_of(kind: type[Task], fields: dict[str, Any]) -> Task:
    return kind(**fields)
