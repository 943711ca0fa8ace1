"""Puts together what shows a worker's health: the file, and the pages `/healthz` and `/metrics`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from amqptasks._version import __version__
from amqptasks.clock import wall_clock
from amqptasks.worker.health import READY, STOPPING, Condition, HealthFile
from amqptasks.worker.metrics import CONTENT_TYPE, Family, render
from amqptasks.worker.status_server import Page, StatusServer

if TYPE_CHECKING:
    from amqptasks.broker.confirms import ConfirmChannel
    from amqptasks.broker.consumer import QueueConsumer
    from amqptasks.broker.link import Link
    from amqptasks.broker.loop import Loop
    from amqptasks.worker.dispatch import Dispatcher
    from amqptasks.worker.pools.pool import Pool
    from amqptasks.worker.services import Service
    from amqptasks.worker.settlement import Settlement
    from amqptasks.worker.task_counts import TaskCounts

__all__ = ["Observed", "monitoring_services"]

CONSUMING: Final = "consuming"
PUBLISHING: Final = "publishing"


@dataclass(frozen=True, slots=True)
class Observed:
    """The parts of a worker that are looked at."""

    loop: Loop
    hostname: str
    consume_link: Link
    publish_link: Link
    consumers: Callable[[], Sequence[QueueConsumer]]
    pool: Pool
    dispatcher: Dispatcher
    settlement: Settlement
    confirms: ConfirmChannel
    #: Where tasks are counted: there, if there are pages.
    counts: TaskCounts | None


def monitoring_services(parts: Observed, path: str | None, address: tuple[str, int] | None) -> tuple[Service, ...]:
    """Make what was asked for: the file, the server on a host and port, both or none.

    Raises:
        ImproperlyConfigured: The file cannot be written, or the port is taken.
    """
    if path is None and address is None:
        return ()
    links = {CONSUMING: parts.consume_link, PUBLISHING: parts.publish_link}
    condition = Condition(parts.loop, parts.hostname, links, parts.consumers, parts.pool)
    services: list[Service] = [condition]
    if path is not None:
        services.append(HealthFile(path, condition))
    if address is not None:
        pages = Pages(parts, condition)
        services.append(
            StatusServer(parts.loop, *address, {"/healthz": pages.healthz, "/metrics": pages.metrics})
        )  # fmt: skip
    return tuple(services)


class Pages:
    """Makes the pages. Belongs to the loop's thread."""

    def __init__(self, parts: Observed, condition: Condition) -> None:
        self._parts = parts
        self._condition = condition
        self._started_at = wall_clock()

    def healthz(self) -> Page:
        """Say whether the worker is fit: 200, also while it stops and finishes what runs; else 503 with the reasons."""
        found = self._condition.look()
        is_fit = found["state"] == READY or (found["state"] == STOPPING and not found.get("reasons"))
        status = HTTPStatus.OK if is_fit else HTTPStatus.SERVICE_UNAVAILABLE
        return status, "application/json", json.dumps(found) + "\n"

    def metrics(self) -> Page:
        """Count."""
        return HTTPStatus.OK, CONTENT_TYPE, render([*self._of_tasks(), *self._of_worker()])

    def _of_tasks(self) -> list[Family]:
        parts, worker = self._parts, self._parts.hostname
        assigned = parts.dispatcher.assigned()
        counted = [] if parts.counts is None else parts.counts.families(assigned)
        running, prefetched = 0, Counter(request.task_name for request in parts.dispatcher.waiting)
        for slot, request in assigned:
            if slot.started(request) is None:
                prefetched[request.task_name] += 1
            else:
                running += 1
        return [
            *counted,
            Family(
                "flower_worker_prefetched_tasks", "gauge", "Number of tasks of given type prefetched at a worker",
                ("worker", "task"), {(worker, task): count for task, count in prefetched.items()},
            ),
            Family("flower_worker_online", "gauge", "Worker online status", ("worker",), {(worker,): 1}),
            Family(
                "flower_worker_number_of_currently_executing_tasks", "gauge",
                "Number of tasks currently executing at a worker", ("worker",), {(worker,): running},
            ),
        ]  # fmt: skip

    def _of_worker(self) -> list[Family]:
        parts = self._parts
        links = {CONSUMING: parts.consume_link, PUBLISHING: parts.publish_link}
        consumers = parts.consumers()

        def by(label: str, values: dict[str, float]) -> tuple[tuple[str], dict[tuple[str, ...], float]]:
            return (label,), {(key,): value for key, value in values.items()}

        def gauge(name: str, help: str, value: float) -> Family:
            return Family(f"amqptasks_{name}", "gauge", help, (), {(): value})

        return [
            Family(
                "amqptasks_worker_info", "gauge", "The worker: always 1", ("worker", "version"),
                {(parts.hostname, __version__): 1},
            ),
            gauge("worker_start_time_seconds", "When the worker was started, seconds since 1970", self._started_at),
            gauge("loop_lag_seconds", "How late the worker's loop was when last measured", self._condition.lag_s),
            Family(
                "amqptasks_connected", "gauge", "Whether a connection to the broker is open",
                *by("connection", {name: int(link.is_up) for name, link in links.items()}),
            ),
            Family(
                "amqptasks_blocked", "gauge", "Whether the broker keeps a connection from publishing",
                *by("connection", {name: int(link.blocked is not None) for name, link in links.items()}),
            ),
            Family(
                "amqptasks_reconnects_total", "counter", "Connections that were opened after the first",
                *by("connection", {name: max(0, link.opened - 1) for name, link in links.items()}),
            ),
            Family(
                "amqptasks_consuming", "gauge", "Whether a queue is consumed",
                *by("queue", {each.queue: int(each.is_consuming) for each in consumers}),
            ),
            Family(
                "amqptasks_outstanding_deliveries", "gauge", "Messages of a queue that are not acknowledged",
                *by("queue", {each.queue: each.outstanding for each in consumers}),
            ),
            Family(
                "amqptasks_dead_letters_total", "counter", "Messages moved to the dead letters",
                *by("reason", dict(parts.settlement.buried)),
            ),
            gauge("unsettled_tasks", "Tasks whose messages are not all confirmed", parts.settlement.unsettled),
            gauge("unconfirmed_messages", "Messages that wait for their confirms", parts.confirms.waiting),
            gauge("pool_places", "Places of the pool", len(parts.pool.slots)),
        ]  # fmt: skip
