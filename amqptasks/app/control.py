"""``app.control``: orders to the workers. They travel through RabbitMQ and need no worker to be there."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

from amqptasks.app.options import policy_of

__all__ = ["Control"]

TERM_SIGNAL: Final = "SIGTERM"


class ControlledApp(Protocol):
    """What control needs of the app."""

    @property
    def conf(self) -> Any:
        """The settings."""

    @property
    def publisher(self) -> Any:
        """The process's publisher."""


class Control:
    """Orders to all workers of an app. Safe from any thread."""

    def __init__(self, app: ControlledApp) -> None:
        self._app = app

    def revoke(
        self, task_id: str | Iterable[str], destination: Iterable[str] | None = None, terminate: bool = False,
        signal: str | None = TERM_SIGNAL, *, reply: bool = False, timeout: float | None = None, connection: None = None,
    ) -> None:  # fmt: skip
        """Keep tasks from running: those that wait, are delayed or prefetched end as REVOKED when a worker has them.

        The order is kept in RabbitMQ for ``task_revoke_expires`` seconds: it reaches workers that start later.

        Args:
            task_id: One id, or several.
            destination: The workers that are to heed it, by their full names, such as ``["celery@host"]``; None: all.
            terminate: End the task if it runs now; by killing its process, where the pool has processes.
            signal: The signal to kill with, by name.
            timeout, connection: Accepted because Celery has them; without effect.

        Raises:
            NotSent: RabbitMQ surely does not have the order.
            MaybeSent: It may have.
            ValueError: ``reply`` was asked for: RabbitMQ has the order, no worker answers it. Or a destination is no
                list.
        """
        from amqptasks.wire.revocation import MAX_IDS, Revocation

        names = _destinations(destination, reply)
        ids = [task_id] if isinstance(task_id, str) else list(task_id)
        for each in ids:
            if not isinstance(each, str) or not each:
                raise TypeError(f"expected the ids of tasks to be texts, got: {each!r:.80}")
        number = _signal_name(signal)
        for start in range(0, len(ids), MAX_IDS):
            part = tuple(ids[start : start + MAX_IDS])
            self._send(Revocation(part, {}, bool(terminate), number, time.time(), destinations=names))

    def terminate(
        self, task_id: str | Iterable[str], destination: Iterable[str] | None = None,
        signal: str | None = TERM_SIGNAL, **options: Any,
    ) -> None:  # fmt: skip
        """Revoke tasks, and end those that run now. As `revoke` with ``terminate=True``."""
        self.revoke(task_id, destination, True, signal, **options)

    def revoke_by_stamped_headers(
        self, headers: Mapping[str, Any], destination: Iterable[str] | None = None, terminate: bool = False,
        signal: str | None = TERM_SIGNAL, *, reply: bool = False, timeout: float | None = None, connection: None = None,
    ) -> None:  # fmt: skip
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
        names = _destinations(destination, reply)
        self._send(Revocation((), stamps, bool(terminate), _signal_name(signal), time.time(), destinations=names))

    def _send(self, revocation: Any) -> None:
        from amqptasks.broker.revocations import record_message, stream_need

        conf = self._app.conf
        prefix = conf.task_queue_prefix
        needs = (stream_need(prefix, conf.task_revoke_expires),)
        self._app.publisher.publish(record_message(prefix, revocation), needs, policy_of(conf))


def _destinations(destination: Iterable[str] | None, reply: bool) -> tuple[str, ...]:
    from amqptasks.wire.revocation import MAX_DESTINATIONS

    if reply:
        raise ValueError("expected reply=False: RabbitMQ keeps a revocation, and no worker answers it")
    if destination is None:
        return ()
    names = () if isinstance(destination, (str, Mapping)) else tuple(destination)
    if not 0 < len(names) <= MAX_DESTINATIONS or not all(isinstance(each, str) and each for each in names):
        raise ValueError(
            f"expected the destination to be a list of 1 to {MAX_DESTINATIONS} names of workers, got: "
            f"{destination!r:.80}"
        )
    return names


def _signal_name(signal: Any) -> str:
    from amqptasks.wire.revocation import SIGNALS

    name = TERM_SIGNAL if signal is None else str(getattr(signal, "name", signal)).upper()
    name = name if name.startswith("SIG") else f"SIG{name}"
    if name not in SIGNALS:
        raise ValueError(f"expected the signal to be one of {', '.join(sorted(SIGNALS))}, got: {signal!r:.40}")
    return name
