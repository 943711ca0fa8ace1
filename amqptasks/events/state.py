"""A picture of workers and tasks in memory, drawn by their events: ``app.events.State``.

It is bounded: the workers and tasks that were not heard of for longest go first. Whatever an event holds, it raises
nothing and harms nothing.
"""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from itertools import islice
from typing import Any, Final, Generic, TypeVar
from weakref import WeakSet, ref

from amqptasks import states
from amqptasks.clock import MAX_CLOCK
from amqptasks.events.tracked import Task, Worker, heartbeat_expires, is_number

__all__ = ["State", "Task", "Worker", "heartbeat_expires"]

T = TypeVar("T")
# `State` has attributes of the same names, which users may replace.
_Task = Task
_Worker = Worker

#: Longest name of a worker, and longest id of a task, that is kept.
MAX_NAME: Final = 255


class Recent(MutableMapping[str, T], Generic[T]):
    """A map of bounded size: what was put in or asked for longest ago goes first. Safe from any thread; looping over
    it is over a copy.

    Attributes:
        data: The map itself; looking there does not count as asking.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.data: OrderedDict[str, T] = OrderedDict()
        self._lock = threading.RLock()

    def __getitem__(self, key: str) -> T:
        with self._lock:
            value = self.data[key]
            self.data.move_to_end(key)
            return value

    def __setitem__(self, key: str, value: T) -> None:
        with self._lock:
            self.data[key] = value
            self.data.move_to_end(key)
            while len(self.data) > self.limit:
                self.data.popitem(last=False)

    def __delitem__(self, key: str) -> None:
        with self._lock:
            del self.data[key]

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            return iter(list(self.data))

    def __len__(self) -> int:
        return len(self.data)

    def __contains__(self, key: object) -> bool:
        return key in self.data

    def items(self) -> Any:
        """Return the pairs, as they are now."""
        with self._lock:
            return list(self.data.items())

    def values(self) -> Any:
        """Return the values, as they are now."""
        with self._lock:
            return list(self.data.values())

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit, "data": self.data}

    def __setstate__(self, plain: dict[str, Any]) -> None:
        self.__dict__.update(plain)
        self._lock = threading.RLock()


class Index(dict[str, "WeakSet[Task]"]):
    """The tasks by something they have in common. Called like a method, it goes through them by time."""

    def __init__(self, by_time: Callable[..., Iterator[tuple[str, Task]]]) -> None:
        super().__init__()
        self._by_time = by_time

    def __call__(self, key: str, limit: int | None = None, reverse: bool = True) -> Iterator[tuple[str, Task]]:
        return self._by_time(key, limit, reverse)

    def __missing__(self, key: str) -> WeakSet[Task]:
        made = self[key] = WeakSet()
        return made

    def prune(self, most: int) -> None:
        """Forget keys without tasks, once there are more keys than ``most``."""
        if len(self) > most:
            for key in [key for key, tasks in self.items() if not tasks]:
                del self[key]


class Moment(tuple[int, float, str, Any]):
    """When something was told of a task, by whom. They are ordered by logical clock, without that by time."""

    __slots__ = ()

    def __lt__(self, other: tuple[Any, ...]) -> bool:
        if self[0] and other[0]:
            return bool(self[2] < other[2] if self[0] == other[0] else self[0] < other[0])
        return bool(self[1] < other[1])

    def __gt__(self, other: tuple[Any, ...]) -> bool:
        return bool(Moment(other) < self)


class State:
    """Workers and tasks, as their events show them. Safe from any thread.

    Args:
        callback: Called with the state and each event, before it is taken in.
        max_workers_in_memory, max_tasks_in_memory: How many are kept.
        on_node_join, on_node_leave: Called with a worker that comes or goes.

    Attributes:
        workers, tasks: `Worker` by name and `Task` by id.
        tasks_by_type, tasks_by_worker: The tasks of a name or of a worker: ``state.tasks_by_type["mail"]``, or by time,
            ``state.tasks_by_type("mail", limit=10)``.
        event_count, task_count: How many events there were, and how many tasks were received.
        handlers: Functions for groups of events of your own: ``state.handlers["custom"] = lambda what, event: …``.
    """

    Worker = Worker
    Task = Task
    heap_multiplier = 4

    def __init__(
        self, callback: Callable[[State, dict[str, Any]], Any] | None = None,
        workers: MutableMapping[str, _Worker] | None = None, tasks: MutableMapping[str, _Task] | None = None,
        taskheap: Any = None, max_workers_in_memory: int = 5000, max_tasks_in_memory: int = 10000,
        on_node_join: Callable[[_Worker], Any] | None = None, on_node_leave: Callable[[_Worker], Any] | None = None,
        tasks_by_type: Any = None, tasks_by_worker: Any = None,
    ) -> None:  # fmt: skip
        self.event_callback = callback
        self.max_workers_in_memory = max_workers_in_memory
        self.max_tasks_in_memory = max_tasks_in_memory
        self.on_node_join = on_node_join
        self.on_node_leave = on_node_leave
        self.event_count = 0
        self.task_count = 0
        self.workers: Any = Recent(max_workers_in_memory) if workers is None else workers
        self.tasks: Any = Recent(max_tasks_in_memory) if tasks is None else tasks
        self.handlers: dict[str, Callable[[str, dict[str, Any]], Any]] = {}
        self._mutex = threading.RLock()
        self._types: Recent[None] = Recent(max_tasks_in_memory)
        self._children: Recent[WeakSet[_Task]] = Recent(max_tasks_in_memory)
        self._moments: list[Moment] = []
        self.tasks_by_type = Index(self._by_type)
        self.tasks_by_worker = Index(self._by_worker)
        self.rebuild_taskheap()

    def __repr__(self) -> str:
        return f"<State: events={self.event_count} tasks={self.task_count}>"

    # -- taking in

    def event(self, event: dict[str, Any]) -> Any:
        """Take an event in. Returns what it is about, whether that is new, and what happened; None if nothing."""
        with self._mutex:
            return self._event(event)

    def _event(self, event: dict[str, Any]) -> Any:
        self.event_count += 1
        if self.event_callback is not None:
            self.event_callback(self, event)
        kind = event.get("type")
        if not isinstance(kind, str):
            return None
        group, _, subject = kind.partition("-")
        handler = self.handlers.get(group)
        if handler is not None:
            return handler(subject, event), subject
        if group == "worker":
            found: Any = self._worker_event(subject, event)
        elif group == "task":
            found = self._task_event(subject, event)
        else:
            return None
        return None if found is None else (found, subject)

    def _worker_event(self, subject: str, event: dict[str, Any]) -> tuple[_Worker, bool] | None:
        hostname = _name(event.get("hostname"))
        timestamp, received = _moment(event.get("timestamp")), _moment(event.get("local_received"))
        if hostname is None or timestamp is None or received is None:
            return None
        is_offline = subject == "offline"
        worker, created = self._worker(hostname, keep=not is_offline)
        worker.event(subject, timestamp, received, event)
        if self.on_node_join is not None and (created or subject == "online"):
            self.on_node_join(worker)
        if is_offline and self.on_node_leave is not None:
            self.on_node_leave(worker)
            self.workers.pop(hostname, None)
        return worker, created

    def _worker(self, hostname: str, *, keep: bool = True) -> tuple[_Worker, bool]:
        worker = self.workers.get(hostname)
        if worker is not None:
            return worker, False
        worker = self.Worker(hostname)
        if keep:
            self.workers[hostname] = worker
        return worker, keep

    def _task_event(self, subject: str, event: dict[str, Any]) -> tuple[_Task, bool] | None:
        uuid, hostname = _name(event.get("uuid")), _name(event.get("hostname"))
        timestamp, received = _moment(event.get("timestamp")), _moment(event.get("local_received"))
        if uuid is None or hostname is None or timestamp is None:
            return None
        clock = event.get("clock")
        clock = clock if type(clock) is int and 0 <= clock <= MAX_CLOCK else 0
        task, created = self.get_or_create_task(uuid)
        origin = hostname
        if subject == "sent":
            # Told by the program that has sent it.
            task.client = hostname
        else:
            worker, _ = self._worker(hostname)
            task.worker = worker
            if received:
                worker.event(None, received, timestamp)
            origin = worker.id
        self._note(Moment((clock, timestamp, origin, ref(task))))
        if subject == "received":
            self.task_count += 1
        had_name = task.name is not None
        task.event(subject, timestamp, received, event)
        if task.name is not None and not had_name:
            self._types[task.name] = None
            self.tasks_by_type[task.name].add(task)
            self.tasks_by_worker[hostname].add(task)
            self.tasks_by_type.prune(self.max_tasks_in_memory)
            self.tasks_by_worker.prune(self.max_tasks_in_memory)
        self._relate(task)
        return task, created

    def _relate(self, task: _Task) -> None:
        if task.parent_id:
            parent = self.tasks.get(task.parent_id)
            if parent is not None:
                parent.children.add(task)
            else:
                self._children.setdefault(task.parent_id, WeakSet()).add(task)
        if task.uuid is not None and task.uuid in self._children:
            task.children.update(self._children.pop(task.uuid))

    def _note(self, moment: Moment) -> None:
        moments = self._moments
        if len(moments) >= self.max_tasks_in_memory * self.heap_multiplier:
            # Many at once, for each removal moves all the others.
            del moments[: 1 + len(moments) // 20]
        # Most come in order.
        if not moments or not moment < moments[-1]:
            moments.append(moment)
        else:
            bisect.insort(moments, moment)

    def get_or_create_worker(self, hostname: str, **kwargs: Any) -> tuple[_Worker, bool]:
        """Return the worker of a name, and whether it is new."""
        worker, created = self._worker(hostname)
        if kwargs:
            worker.update(kwargs)
        return worker, created

    def get_or_create_task(self, uuid: str) -> tuple[_Task, bool]:
        """Return the task of an id, and whether it is new."""
        task = self.tasks.get(uuid)
        if task is not None:
            return task, False
        task = self.tasks[uuid] = self.Task(uuid, cluster_state=self)
        return task, True

    # -- looking

    def itertasks(self, limit: int | None = None) -> Iterator[tuple[str, _Task]]:
        """Go through ids and tasks."""
        yield from islice(self.tasks.items(), limit or None)

    def tasks_by_time(self, limit: int | None = None, reverse: bool = True) -> Iterator[tuple[str, _Task]]:
        """Go through ids and tasks, those first of which was told last; of at most ``limit`` events."""
        with self._mutex:
            moments = self._moments[::-1] if reverse else list(self._moments)
        seen: set[str] = set()
        for moment in islice(moments, limit):
            task = moment[3]()
            if task is not None and task.uuid not in seen:
                seen.add(task.uuid)
                yield task.uuid, task

    tasks_by_timestamp = tasks_by_time

    def _by_type(self, name: str, limit: int | None, reverse: bool) -> Iterator[tuple[str, _Task]]:
        tasks = self.tasks_by_time(reverse=reverse)
        return islice(((uuid, task) for uuid, task in tasks if task.name == name), limit)

    def _by_worker(self, hostname: str, limit: int | None, reverse: bool) -> Iterator[tuple[str, _Task]]:
        tasks = self.tasks_by_time(reverse=reverse)
        return islice(
            ((uuid, task) for uuid, task in tasks if task.worker is not None and task.worker.hostname == hostname),
            limit,
        )

    def task_types(self) -> list[str]:
        """Return the names of the tasks that were seen."""
        return sorted(self._types)

    def alive_workers(self) -> Iterator[_Worker]:
        """Go through the workers that were heard of lately."""
        return (worker for worker in self.workers.values() if worker.alive)

    # -- keeping still, and forgetting

    def freeze_while(self, fun: Callable[..., Any], *args: Any, clear_after: bool = False, **kwargs: Any) -> Any:
        """Call a function while no event is taken in; returns what it returns."""
        with self._mutex:
            try:
                return fun(*args, **kwargs)
            finally:
                if clear_after:
                    self.clear()

    def clear_tasks(self, ready: bool = True) -> None:
        """Forget the tasks that have ended; with ``ready`` False all."""
        with self._mutex:
            keep = [(uuid, task) for uuid, task in self.tasks.items() if task.state not in states.READY_STATES]
            self.tasks.clear()
            if ready:
                self.tasks.update(keep)
            self._moments.clear()

    def clear(self, ready: bool = True) -> None:
        """Forget the workers and, as `clear_tasks`, the tasks; begin to count again."""
        with self._mutex:
            self.workers.clear()
            self.clear_tasks(ready)
            self.event_count = self.task_count = 0

    def rebuild_taskheap(self) -> None:
        """Put the tasks into their order again."""
        moments = [
            Moment((task.clock or 0, task.timestamp or 0.0, str(task.origin), ref(task)))
            for task in self.tasks.values()
        ]
        self._moments[:] = sorted(moments)

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("_mutex", "_moments", "_children", "_types", "tasks_by_type", "tasks_by_worker", "handlers")
        return {key: value for key, value in self.__dict__.items() if key not in left_out}

    def __setstate__(self, plain: Mapping[str, Any]) -> None:
        State.__init__(
            self, plain["event_callback"], plain["workers"], plain["tasks"], None, plain["max_workers_in_memory"],
            plain["max_tasks_in_memory"], plain["on_node_join"], plain["on_node_leave"],
        )  # fmt: skip
        self.__dict__.update(plain)
        for task in self.tasks.values():
            task.cluster_state = self
            if task.name is not None:
                self._index(task)

    def _index(self, task: _Task) -> None:
        self._types[task.name] = None
        self.tasks_by_type[task.name].add(task)
        if task.worker is not None:
            self.tasks_by_worker[str(task.worker.hostname)].add(task)


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= MAX_NAME else None


def _moment(value: Any) -> float | None:
    return value if is_number(value) else None
