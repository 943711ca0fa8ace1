"""The schedule of an app, asked and changed from any program, while its beats run: `RemoteSchedule`."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Final

from amqptasks.beat.additions import checked, checked_name
from amqptasks.beat.naming import names_of
from amqptasks.beat.orders import Order, read_answer, write_order
from amqptasks.beat.schedules import BaseSchedule, maybe_schedule
from amqptasks.beat.views import EntryView, _moment
from amqptasks.broker.asking import REPLY_TO, Inquiry
from amqptasks.exceptions import DecodeError, OperationalError
from amqptasks.wire.reprs import printable

__all__ = ["Added", "NoLeader", "RemoteSchedule"]

#: How long the leader's answer is waited for, seconds.
TIMEOUT_S: Final = 5.0
#: A list ends after so many pages, whatever the leader says: a schedule has no more.
_MOST_PAGES: Final = 200_000


class NoLeader(OperationalError):
    """No beat answered."""


@dataclass(frozen=True, slots=True)
class Added:
    """What became of an entry that was added.

    Attributes:
        replaced: Whether it took the place of another.
        next_run: When it is due first, in UTC; None if nobody can tell.
        warnings: What is strange about it, and yet may be meant.
    """

    replaced: bool
    next_run: datetime | None
    warnings: tuple[str, ...]


class RemoteSchedule:
    """The schedule of an app as its beats run it: ``with RemoteSchedule(app) as schedule: schedule.pause("report")``.

    Every method asks the beat that leads, whichever that is. Belongs to one thread.

    Args:
        app: The app.
        timeout_s: How long to wait for each answer, seconds, also for a beat that is yet to come. Without it five
            seconds, and not at all if no beat runs.

    Raises:
        OrderError: By every method: the leader refused, and says why.
        NoLeader: By every method: no beat runs, or none answered in time.
        OperationalError: By every method: the broker could not be asked.
    """

    def __init__(self, app: Any, timeout_s: float | None = None) -> None:
        self._names = names_of(app)
        self._is_patient = timeout_s is not None
        self._timeout_s = TIMEOUT_S if timeout_s is None else timeout_s
        self._session = Inquiry(app.endpoints("schedule"), timeout_s=float(app.conf.broker_connection_timeout))
        self._is_declared = False

    def __enter__(self) -> RemoteSchedule:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def title(self) -> str:
        """The schedule's name."""
        return self._names.title

    def close(self) -> None:
        """End the session."""
        self._session.close()

    # -- reading

    def list(self) -> Iterator[EntryView]:
        """Return all entries, by name. They come in pages: what changes meanwhile may be seen or not."""
        after: str | None = None
        for _page in range(_MOST_PAGES):
            page = self._ask("list", {"after": after})
            rows = page.get("entries")
            if not isinstance(rows, list):
                raise DecodeError(f"expected a list of entries, got: {rows!r:.80}")
            yield from map(EntryView.from_plain, rows)
            following = page.get("after")
            if not isinstance(following, str) or (after is not None and following <= after):
                return
            after = following

    def show(self, name: str) -> EntryView:
        """Return all that is known of an entry."""
        return EntryView.from_plain(self._ask("show", {"name": name}))

    # -- changing

    def run(self, name: str) -> str:
        """Have an entry sent now, whether or not it is paused; returns the task's id. Its regular times stay."""
        return str(self._ask("run", {"name": name, "id": str(uuid.uuid4())}).get("id"))

    def pause(self, name: str) -> bool:
        """Hold an entry back, until `resume`, whatever restarts meanwhile; returns whether it was not before."""
        return bool(self._ask("pause", {"name": name}).get("changed"))

    def resume(self, name: str) -> bool:
        """Let an entry go on from now; returns whether it was held back. What would have been due is not made up for,
        whatever ``missed`` says."""
        return bool(self._ask("resume", {"name": name}).get("changed"))

    def add(
        self, name: str, task: str, schedule: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None, missed: str | None = None, replace: bool = False,
    ) -> Added:  # fmt: skip
        """Add an entry, to stay until it is removed, whatever restarts meanwhile.

        Args:
            schedule: When: seconds, a timedelta, a schedule of ours, or what ``describe`` returns of one.
            options: Of what `Task.apply_async` takes besides, that which makes sense each time: ``queue``, ``expires``
                (seconds), ``priority``, ...
            missed: What becomes of missed runs, "skip", "once" or "all".
            replace: Replace an entry of this name that was added before; one of the config never.

        Raises:
            ValueError, ImproperlyConfigured: This is no entry.
        """
        if not isinstance(schedule, Mapping):
            made = maybe_schedule(schedule)
            schedule = made.describe() if isinstance(made, BaseSchedule) else schedule
        definition = checked(
            {"task": task, "schedule": schedule, "args": list(args), "kwargs": dict(kwargs or {}),
             "options": dict(options or {}), "missed": missed}
        )  # fmt: skip
        answer = self._ask("add", {"name": checked_name(name), "definition": definition, "replace": replace})
        warnings = answer.get("warnings")
        return Added(
            answer.get("replaced") is True, _moment(answer.get("next_run")),
            tuple(printable(each, 1000) for each in warnings) if isinstance(warnings, list) else (),
        )  # fmt: skip

    def remove(self, name: str) -> None:
        """Remove an entry that was added."""
        self._ask("remove", {"name": name})

    # -- asking

    def _ask(self, command: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        names, session = self._names, self._session
        session.connect()
        if not self._is_declared:
            if not self._is_patient and not self._consumers(names.token):
                raise self._nobody()
            session.declare_needs(names.orders_need())
            self._is_declared = True
        order = Order(command, arguments, REPLY_TO, str(uuid.uuid4()))
        answers: list[bytes] = []

        def take(properties: Any, body: bytes) -> bool:
            if properties.correlation_id != order.id:
                return False
            answers.append(body)
            return True

        if not session.put(write_order(order, names.orders, self._timeout_s), self._timeout_s, take):
            raise self._nobody()
        answer = read_answer(answers[0])
        if not isinstance(answer, dict):
            raise DecodeError(f"expected the answer to {command} to be an object, got: {answer!r:.80}")
        return answer

    def _consumers(self, queue: str) -> int:
        counts = self._session.counts(queue)
        return 0 if counts is None else counts[1]

    def _nobody(self) -> NoLeader:
        names, label = self._names, self._session.label
        if not self._consumers(names.token):
            return NoLeader(f"no beat runs for the schedule {names.title!r} at {label}: start one by amqptasks beat")
        if not self._consumers(names.orders):
            return NoLeader(
                f"no beat leads the schedule {names.title!r} at {label} yet: none answered in {self._timeout_s:g} s"
            )
        return NoLeader(
            f"the beat that leads the schedule {names.title!r} at {label} did not answer in {self._timeout_s:g} s; "
            f"it may still do what it was asked"
        )
