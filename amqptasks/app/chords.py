"""Starting a chord: first its collector, with the manifest in it, and the sweep that looks after it; then its header.

In that order, and confirmed: a part that ends must find the collector there. Where what is sent is only collected, for
a worker's parent to publish, the order is kept by putting both into one `CollectedChord`. Chords whose parts a result
store counts are begun in `app/stored_chords.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Final

from amqptasks.app import context
from amqptasks.app.gathering import Collected, CollectedChord, Collector, Held, current_collector
from amqptasks.app.options import first, policy_of
from amqptasks.app.plans import Plan
from amqptasks.app.sender import Sender
from amqptasks.broker.chord_queues import collector_need, join_queue, join_queue_name
from amqptasks.broker.needs import Need
from amqptasks.canvas.signature import Signature
from amqptasks.entities import Queue
from amqptasks.exceptions import ChordError, ImproperlyConfigured, Unroutable
from amqptasks.results.handles import GroupResult
from amqptasks.wire.chord import (
    JOIN_TASK,
    Addition,
    Manifest,
    Mark,
    collector_name,
    encode_addition,
    encode_manifest,
)

__all__ = ["FIRST_SWEEP_S", "ChordStart", "HeaderBlock", "add_parts", "address", "beginning", "chord_expires_s", "poke"]

#: How long a chord is first left alone, seconds.
FIRST_SWEEP_S: Final = 60.0
#: How long a chord may take where no setting says it, seconds: a day, as ``result_expires``.
DEFAULT_EXPIRES_S: Final = 86400.0


class HeaderBlock(AbstractContextManager[None]):
    """A block that sends the header of a chord, whatever counts its parts.

    Everything is made before anything is sent: a chord of which one call cannot be made leaves nothing behind. Chords
    in the header of another are sent with it.
    """

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._held: Held | None = None

    def __enter__(self) -> None:
        self._prepare()
        if current_collector.get() is not None:
            self._collect()
            return
        # Its block, or that of the chord whose header this one stands in.
        self._own = self._sender.holding()
        self._held = self._own.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._held is None:
            self._collected(kind, error, trace)
            return
        if error is None:
            self._held.before(self._open)
        self._own.__exit__(kind, error, trace)

    def _prepare(self) -> None:
        """Make what goes before the header."""

    def _open(self) -> None:
        """Do what must be done before anything of the header is sent."""

    def _collect(self) -> None:
        """Begin where messages are made instead of sent."""

    def _collected(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End there."""


class ChordStart(HeaderBlock):
    """A block that sends the header of a chord whose parts RabbitMQ counts. What they need is there before the first of
    them is sent.

    Args:
        header: The results of the header.
        parts: The calls that count; each gets its mark.
        body: The call to make with their results; frozen.
        expires_s: How long the chord may take; as the settings say without.

    Raises:
        EncodeError: On entering: the body cannot be serialized.
        OperationalError: At the end: the broker did not take the manifest, and nothing of the header was sent; or it
            did not take all of the header, and `BulkError` names what is missing.
    """

    def __init__(
        self, sender: Sender, header: GroupResult, parts: Sequence[Any], body: Any, root_id: str | None,
        expires_s: float | None,
    ) -> None:  # fmt: skip
        super().__init__(sender)
        chord_id = str(header.id)
        self._expires_s = chord_expires_s(sender.conf, expires_s)
        collector = collector_name(sender.conf.task_queue_prefix, chord_id)
        for index, part in enumerate(parts):
            part.options["chord"] = Mark(collector, len(parts), index).to_plain()
        running = context.current()
        if root_id is None and running is not None:
            root_id = running.request.root_id or running.request.id
        self._queues = address(sender, body)
        until = time.time() + self._expires_s
        self._manifest = Manifest(collector, len(parts), body, chord_id, until, root_id, _form(header))
        self._outer: Collector | None = None
        self._inner: Collector | None = None

    def _prepare(self) -> None:
        encoded = encode_manifest(self._manifest, self._sender.conf.task_serializer)
        wait_s = min(FIRST_SWEEP_S, self._expires_s)
        self._first = (
            Collected(encoded, tuple(queue.name for queue in self._queues), None),
            _join_call(self._sender, self._manifest.collector, sweep_in_s=wait_s),
        )

    def _collect(self) -> None:
        self._outer = current_collector.get()
        assert self._outer is not None
        self._inner = Collector(self._outer.reply_to)
        self._inner.__enter__()

    def _collected(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._inner is not None and self._outer is not None:
            self._inner.__exit__(kind, error, trace)
            if error is None:
                start = CollectedChord(
                    self._manifest.collector, self._expires_s, *self._first, self._inner.messages
                )  # fmt: skip
                self._outer.messages.append(start)

    def _open(self) -> None:
        """Declare the collector and put the manifest and the first sweep where they belong, confirmed."""
        sender, conf = self._sender, self._sender.conf
        manifest, sweep = self._first
        policy = policy_of(conf)
        join = join_queue_name(conf.task_queue_prefix)
        needs = (
            collector_need(self._manifest.collector, self._expires_s), *map(sender.sending_need, self._queues),
        )  # fmt: skip
        sweep_needs: tuple[Need, ...] = (sender.need(join_queue(join)), *sender.delay_needs(join))
        publisher = sender.publisher
        deadline = time.monotonic() + policy.timeout_s
        sendings = [
            publisher.submit(manifest.message, needs, policy), publisher.submit(sweep.message, sweep_needs, policy),
        ]  # fmt: skip
        if conf.broker_publish_confirm:
            for sending in sendings:
                publisher.finish(sending, deadline)


def _form(header: GroupResult) -> list[Any] | None:
    """Return how the results of a header are nested; None if they are not."""
    if not any(isinstance(each, GroupResult) for each in header.results):
        return None
    return [(_form(each) or [None] * len(each)) if isinstance(each, GroupResult) else None for each in header.results]


def add_parts(sender: Sender, mark: Mark, keys: Iterable[str]) -> None:
    """Tell a chord that is running of more parts, before the part that adds them ends.

    Raises:
        ChordError: The chord is over.
        OperationalError: The broker did not take it.
    """
    policy = policy_of(sender.conf)
    deadline = time.monotonic() + policy.timeout_s
    sendings = [
        sender.publisher.submit(
            encode_addition(Addition(mark.collector, mark.index, key), sender.conf.task_serializer), (), policy
        )
        for key in keys
    ]  # fmt: skip
    try:
        for sending in sendings:
            sender.publisher.finish(sending, deadline)
    except Unroutable as error:
        raise ChordError("the chord that the running task is a part of is over: nothing can be added to it") from error


def poke(sender: Sender, collector: str) -> Collected:
    """Make the message that asks a worker to join a chord whose parts have all ended."""
    return _join_call(sender, collector)


def _join_call(sender: Sender, collector: str, sweep_in_s: float | None = None) -> Collected:
    queue = join_queue(join_queue_name(sender.conf.task_queue_prefix))
    options: dict[str, Any] = {"queue": queue, "ignore_result": True, "delivery_mode": 2, "expires": None}
    if sweep_in_s is not None:
        options["countdown"] = sweep_in_s
    with sender.collecting(None) as made:
        sender.send(JOIN_TASK, (collector,), {"sweep": sweep_in_s is not None}, options)
    collected = made[0]
    assert isinstance(collected, Collected)
    return collected


def chord_expires_s(conf: Any, given: Any) -> float:
    """Return how many seconds a chord may take: as its caller says, or the settings.

    Raises:
        ImproperlyConfigured: What was given is no time.
    """
    seconds = first(first(given, conf.result_chord_expires), conf.result_expires)
    if hasattr(seconds, "total_seconds"):
        seconds = seconds.total_seconds()
    if not seconds:
        return DEFAULT_EXPIRES_S
    if type(seconds) not in (int, float) or not 0 < seconds < float("inf"):
        raise ImproperlyConfigured(
            f"expected chord_expires to be a number of seconds above 0, or a timedelta, got: {given!r}"
        )
    return float(seconds)


def address(sender: Sender, body: Any) -> list[Queue]:
    """Write into the calls that begin a body where they go and how: whoever joins the chord may be of another app.

    Returns the queues that they need.
    """
    queues: list[Queue] = []
    for call in beginning(body):
        mapped = getattr(call, "mapped", None)
        options = call.options if mapped is None else {"route_name": mapped.task, **call.options}
        plan = sender.plan(call.task, call.args, call.kwargs, options)
        call.options.update(_said_by(plan, call.options))
        queues.extend(queue for queue in plan.route.queues if not queue.no_declare and queue not in queues)
    return queues


def beginning(call: Any) -> list[Signature]:
    """Return the single calls that are made when a call of any kind is."""
    kind = call.subtask_type
    if kind == "chain":
        return beginning(call.tasks[0]) if call.tasks else []
    if kind == "chord" and not call.tasks:
        return [] if call.body is None else beginning(call.body)
    if kind in ("group", "chord"):
        return [each for member in call.tasks for each in beginning(member)]
    return [call]


def _said_by(plan: Plan, options: Mapping[str, Any]) -> dict[str, Any]:
    route = plan.route
    said: dict[str, Any] = {"queue": None, "exchange": None, "routing_key": None, "exchange_type": None}
    if route.exchange:
        said |= {"exchange": route.exchange, "routing_key": route.routing_key, "exchange_type": route.exchange_type}
    else:
        said["queue"] = route.queue_name or route.routing_key
    hard, soft = plan.headers.get("timelimit") or (None, None)
    for key, value in (
        ("serializer", plan.serializer), ("compression", plan.compression), ("priority", plan.priority),
        ("delivery_mode", plan.delivery_mode), ("time_limit", hard), ("soft_time_limit", soft),
        ("expires", plan.expires), ("ignore_result", plan.ignore_result or None),
    ):  # fmt: skip
        if options.get(key) is None and value is not None:
            said[key] = value
    return said
