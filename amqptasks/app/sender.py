"""The one door out: every task message of this process is built and sent here.

Options are merged once (the call's own, then the route's, the task's, the settings'), the message is made, and the
publisher confirms it. What does not change between two calls of a task is kept in a `Plan`, for this is on the path of
every ``delay()``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from amqptasks import signals
from amqptasks.app import context
from amqptasks.app.delaying import note_delayed
from amqptasks.app.eager import call_eagerly
from amqptasks.app.gathering import Bulk, Collected, Collector, Held, Letter, current_bulk, current_collector
from amqptasks.app.options import (
    EMPTY_EMBED,
    PROPERTY_OPTIONS,
    call_policy,
    delivery_mode_of,
    embedded,
    encode_body,
    first,
    policy_of,
    task_headers,
    write_options,
)
from amqptasks.app.plans import Plan, sent_event
from amqptasks.app.routing import ROUTING_OPTIONS, Route, Routing
from amqptasks.broker.needs import Need
from amqptasks.clock import utcnow
from amqptasks.entities import Broadcast, Exchange, Queue
from amqptasks.exceptions import (
    AlwaysEagerIgnored,
    EncodeError,
    MaybeSent,
    OperationalError,
    Unroutable,
)
from amqptasks.results.backend import ResultBackend
from amqptasks.results.handles import AsyncResult
from amqptasks.results.kept import kept_need, kept_queue
from amqptasks.wire.binding import SIGNED_NAME, bound
from amqptasks.wire.compression import compress
from amqptasks.wire.message import EncodedMessage, Message, encode
from amqptasks.wire.reprs import shortener

if TYPE_CHECKING:
    # At run time these come in with the first send: a program that only defines tasks should not pay for pika.
    from amqptasks.broker.delays import Ladder, Waiting
    from amqptasks.broker.publisher import Publisher, Sending
    from amqptasks.broker.topology import Step


_POLICY_OPTIONS = frozenset({"retry", "retry_policy", "timeout", "confirm_timeout"})


class SendingApp(Protocol):
    """What the sender needs of the app."""

    @property
    def conf(self) -> Any:
        """The settings."""

    def find_task(self, name: str) -> Any:
        """Return a registered task, bound; None if there is none of that name."""

    @property
    def backend(self) -> ResultBackend:
        """The result backend."""

    @property
    def AsyncResult(self) -> type[AsyncResult]:
        """The class of its results."""

    @property
    def publisher(self) -> Publisher:
        """The process's publisher."""

    def tell_event(self, type: str, fields: Mapping[str, Any]) -> None:
        """Send an event."""

    @property
    def timezone(self) -> tzinfo | None:
        """The zone of naive moments."""


@dataclass(slots=True)
class _State:
    """What depends on the settings, made anew when they change."""

    version: int
    routing: Routing
    waiting: Waiting
    #: Whether calls run at once, in the caller (``task_always_eager``).
    is_eager: bool
    #: Whether delayed calls are noted (``delay_index``).
    is_indexed: bool
    plans: dict[str, Plan] = field(default_factory=dict)
    needs: dict[str, tuple[Queue, Need]] = field(default_factory=dict)


class Sender:
    """Builds and sends task messages for one app. Safe from any thread."""

    def __init__(self, app: SendingApp) -> None:
        self._app = app
        self._state: _State | None = None
        self._origin = ""
        self._origin_pid = 0

    @property
    def conf(self) -> Any:
        """The app's settings."""
        return self._app.conf

    @property
    def routing(self) -> Routing:
        """The routes of the present settings."""
        return self._current().routing

    @property
    def ladder(self) -> Ladder:
        """The delay ladder of the present settings."""
        return self._current().waiting.ladder

    @property
    def publisher(self) -> Publisher:
        """The process's publisher."""
        return self._app.publisher

    def plan(self, name: str, args: Any, kwargs: Any, options: Mapping[str, Any]) -> Plan:
        """Return what settings, routes and the task say about a call."""
        return self._plan(self._current(), name, args, kwargs, options, None)

    def bulk(self) -> Bulk:
        """Make a block whose sends share their confirms."""
        return Bulk(self.finish_all)

    def holding(self) -> Held:
        """Make a block whose sends leave together at its end, or not at all."""
        return Held(self.finish_all, self._app.backend.unexpect)

    def collecting(self, reply_to: str | None) -> Collector:
        """Make a block whose sends are only made and kept in the list it gives, for a worker's parent to publish.

        Answers go to ``reply_to`` unless a call names its own queue: whoever waits for a task may wait for what
        follows it.
        """
        return Collector(reply_to)

    def send(self, name: str, args: Any, kwargs: Any, options: Mapping[str, Any], task: Any = None) -> AsyncResult:
        """Send one call and return its result handle once the broker holds the message."""
        app = self._app
        args = () if args is None else args
        kwargs = {} if kwargs is None else kwargs
        state = self._current()
        if state.is_eager:
            if task is not None:
                return call_eagerly(task, args, kwargs, options)
            warnings.warn(AlwaysEagerIgnored("task_always_eager has no effect on send_task"), stacklevel=3)
        task_id = options.get("task_id") or str(uuid.uuid4())
        plan = self._plan(state, name, args, kwargs, options, task)
        ignore_result = plan.ignore_result if not options else first(options.get("ignore_result"), plan.ignore_result)
        message, exchange, routing_key, needs, due = self._build(
            name, task_id, args, kwargs, options, plan, ignore_result
        )
        backend = app.backend
        collector = current_collector.get()
        if collector is not None:
            if plan.is_told:
                self._tell_sent(plan, name, task_id, message)
            self._collect(collector, encode(message, exchange, routing_key), plan, exchange)
            return app.AsyncResult(task_id, backend)
        is_awaited = not ignore_result or plan.keeps_errors
        if is_awaited:
            backend.expect(task_id)
        encoded = encode(message, exchange, routing_key)
        if due is not None and exchange != plan.route.exchange:
            encoded.readdress = state.waiting.ladder.readdress(exchange, routing_key, due.timestamp())
        try:
            self._publish(name, task_id, encoded, needs, options, plan)
        except MaybeSent:
            raise
        except BaseException:
            if is_awaited:
                backend.unexpect(task_id)
            raise
        if encoded.readdress is not None and state.is_indexed and due is not None:
            note_delayed(self._app.publisher, self.conf, name, task_id, due, routing_key, message.headers)
        if plan.is_told:
            self._tell_sent(plan, name, task_id, message)
        if signals.after_task_publish:
            body = (args, kwargs, embedded(options) if options else EMPTY_EMBED)
            signals.after_task_publish.send(
                name, body=body, headers=message.headers, exchange=exchange, routing_key=routing_key
            )
        result = app.AsyncResult(task_id, backend)
        result.ignored = not is_awaited
        running = context.current()
        if running is not None and options.get("add_to_parent", True) and running.task.trail:
            running.request.children.append(result)
        return result

    # -- the parts of a send

    def _tell_sent(self, plan: Plan, name: str, task_id: str, message: Message) -> None:
        # Where it is to arrive; a delayed one goes there by the ladder, which is nobody's business.
        exchange, routing_key = plan.route.exchange, plan.route.routing_key
        # The call is sent: whatever is wrong with telling of it must not raise.
        with contextlib.suppress(EncodeError):
            self._app.tell_event("task-sent", sent_event(plan, name, task_id, message.headers, exchange, routing_key))

    def _collect(self, collector: Collector, message: EncodedMessage, plan: Plan, exchange: str) -> None:
        route = plan.route
        queues = tuple(queue.name for queue in route.queues if not queue.no_declare)
        delayed = self._waits_for(route) if exchange != route.exchange else None
        collector.messages.append(Collected(message, queues, delayed))

    def _publish(
        self,
        name: str,
        task_id: str,
        message: EncodedMessage,
        needs: tuple[Need, ...],
        options: Mapping[str, Any],
        plan: Plan,
    ) -> None:
        policy = plan.policy
        if options and not _POLICY_OPTIONS.isdisjoint(options):
            policy = call_policy(policy, options)
        bulk = current_bulk.get()
        # Who does not mind whether a queue is there says mandatory=False.
        is_mandatory = bool(first(options.get("mandatory"), plan.is_mandatory))
        if bulk is not None and not bulk.is_ended:
            submit = partial(self._app.publisher.submit, message, needs, policy)
            bulk.take(Letter(task_id, name, submit, is_mandatory))
            return
        try:
            self._app.publisher.publish(message, needs, policy)
        except Unroutable:
            if is_mandatory:
                raise

    def finish_all(
        self, waiting: list[tuple[str, str, Sending]], deadline: float | None = None
    ) -> dict[str, BaseException]:
        """Wait for the confirms of a bulk block; returns the errors by task id. ``deadline`` is monotonic seconds."""
        failures: dict[str, BaseException] = {}
        if not waiting or not self._app.conf.broker_publish_confirm:
            return failures
        publisher, backend = self._app.publisher, self._app.backend
        if deadline is None:
            deadline = time.monotonic() + max(sending.policy.timeout_s for _id, _name, sending in waiting)
        for task_id, _name, sending in waiting:
            try:
                publisher.finish(sending, deadline)
            except (OperationalError, EncodeError) as error:
                failures[task_id] = error
                if not isinstance(error, MaybeSent):
                    backend.unexpect(task_id)
        return failures

    def _build(
        self,
        name: str,
        task_id: str,
        args: Any,
        kwargs: Any,
        options: Mapping[str, Any],
        plan: Plan,
        ignore_result: bool,
    ) -> tuple[Message, str, str, tuple[Need, ...], datetime | None]:
        headers = {**plan.headers, "id": task_id, "root_id": task_id}
        priority, delivery_mode, serializer = plan.priority, plan.delivery_mode, plan.serializer
        running = context.current()
        if running is not None:
            headers["root_id"] = running.request.root_id or running.request.id or task_id
            if running.request.id and running.request.id != task_id:
                # The next attempt of a call is no child of it.
                headers["parent_id"] = running.request.id
            if plan.inherits_priority:
                priority = first((running.request.delivery_info or {}).get("priority"), priority)
        headers["argsrepr"] = plan.show(args if type(args) is tuple else tuple(args))
        headers["kwargsrepr"] = plan.show(kwargs)
        headers["origin"] = self._who()
        if ignore_result:
            headers["ignore_result"] = True
        elif options and options.get("ignore_result") is not None:
            # A call may want the result that its task or its worker would ignore.
            headers["ignore_result"] = False
        compression, reply_to = plan.compression, None
        exchange, routing_key, needs = plan.route.exchange, plan.route.routing_key, plan.needs
        embed = EMPTY_EMBED
        when: datetime | None = None
        if options or plan.expires is not None:
            when = write_options(headers, options, plan.expires, self._app.timezone)
            embed = embedded(options)
            priority = first(options.get("priority"), priority)
            if options.get("delivery_mode") is not None:
                delivery_mode = delivery_mode_of(options["delivery_mode"])
            serializer = options.get("serializer") or serializer
            compression = options.get("compression") or compression
            reply_to = options.get("reply_to")
            if options.get("declare"):
                needs += self._declared(options["declare"])
        collector = current_collector.get()
        if collector is not None:
            reply_to = reply_to or collector.reply_to
        elif plan.wants_answer:
            reply_to, needs = self._answered(reply_to, needs, not ignore_result or plan.keeps_errors, embed)
            queue = kept_queue(self._app.conf.task_queue_prefix, task_id) if plan.is_kept else None
            if queue is not None:
                needs += (kept_need(queue, self._app.conf.result_expires),)
        if when is not None:
            exchange, routing_key, needs = self._delayed(when, plan.route, needs)
        if signals.before_task_publish:
            signals.before_task_publish.send(
                name, body=(args, kwargs, embed), exchange=exchange, routing_key=routing_key, headers=headers,
                properties={"correlation_id": task_id, "reply_to": reply_to}, declare=list(plan.route.queues),
                retry_policy={**self._app.conf.task_publish_retry_policy, **(options.get("retry_policy") or {})},
            )  # fmt: skip
        if serializer == SIGNED_NAME:
            embed = bound(embed, headers, reply_to, options.get("correlation_id") or task_id, plan.route.place)
        content_type, content_encoding, body = encode_body(args, kwargs, embed, serializer)
        if compression:
            headers["compression"], body = compress(body, compression)
        extra = {key: options[key] for key in PROPERTY_OPTIONS if options.get(key) is not None} if options else {}
        message = Message(
            body, content_type, content_encoding, headers, options.get("correlation_id") or task_id, reply_to,
            delivery_mode, priority, options.get("expiration"), **extra,
        )  # fmt: skip
        return message, exchange, routing_key, needs, when

    def _answered(
        self, reply_to: str | None, needs: tuple[Need, ...], is_wanted: bool, embed: Mapping[str, Any]
    ) -> tuple[str | None, tuple[Need, ...]]:
        backend = self._app.backend
        if reply_to is None and is_wanted:
            reply_to = backend.reply_to()
        # What follows was frozen with our reply queue, and may answer before anybody listens there.
        if (reply_to is not None and reply_to == backend.reply_to()) or embed["chain"] or embed["callbacks"]:
            need = getattr(backend, "need", None)
            if need is not None:
                needs += (need,)
        return reply_to, needs

    def _declared(self, entities: Any) -> tuple[Need, ...]:
        from amqptasks.broker.topology import declare_exchange

        needs: list[Need] = []
        for each in entities if isinstance(entities, (list, tuple)) else (entities,):
            if isinstance(each, Queue):
                needs.append(self.need(each))
            elif isinstance(each, Exchange):
                needs.append(_need_of(f"exchange {each.name}", declare_exchange(each)))
            else:
                raise TypeError(f"expected declare to list queues and exchanges, got: {each!r:.80}")
        return tuple(needs)

    def _delayed(self, when: datetime, route: Route, needs: tuple[Need, ...]) -> tuple[str, str, tuple[Need, ...]]:
        delay_ms = (when - utcnow()).total_seconds() * 1000
        if delay_ms <= 0:
            return route.exchange, route.routing_key, needs
        name = self._waits_for(route)
        waiting = self._current().waiting
        if current_collector.get() is not None:
            # Somebody else sends it, and declares what anybody needs who sends.
            return *waiting.ladder.address(delay_ms, name), needs
        exchange, routing_key, own = waiting.enter(delay_ms, name)
        return exchange, routing_key, needs + own

    def _waits_for(self, route: Route) -> str:
        """Return under which name a delayed message waits: its queue's, or that of an exchange it is to go through."""
        if route.queues and isinstance(route.queues[0], Broadcast) and route.exchange_type == "fanout":
            return self.ladder.all_of(route.exchange)
        if route.queue_name is None or (route.exchange and route.exchange_type != "direct"):
            return self.ladder.through(route.exchange, route.routing_key)
        return route.queue_name

    def delay_needs(self, queue: str) -> tuple[Need, ...]:
        """Return what must be declared before a message can wait for a queue: the ladder, and its way out."""
        return self._current().waiting.needs(queue)

    # -- plans

    def _current(self) -> _State:
        conf = self._app.conf
        state = self._state
        if state is None or state.version != conf.version:
            from amqptasks.broker.delays import Ladder, Waiting

            waiting = Waiting(Ladder(conf.task_queue_prefix, conf.delay_queue_type))
            state = _State(conf.version, Routing(conf), waiting, bool(conf.task_always_eager), bool(conf.delay_index))
            self._state = state
        return state

    def _plan(
        self, state: _State, name: str, args: Any, kwargs: Any, options: Mapping[str, Any], task: Any
    ) -> Plan:  # fmt: skip
        if task is None:
            task = self._app.find_task(name)
        routed = bool(options) and any(options.get(key) for key in ROUTING_OPTIONS)
        if not routed:
            plan = state.plans.get(name)
            if plan is not None:
                return plan
        # A map goes where calls of the task go that it is a map of.
        other = options.get("route_name")
        task_routed = (self._app.find_task(other) if other else None) or task
        route = state.routing.route(other or name, args, kwargs, options, task_routed)
        plan = self._make_plan(state, name, route, task)
        if not routed and state.routing.is_static:
            state.plans[name] = plan
        return plan

    def _make_plan(self, state: _State, name: str, route: Route, task: Any) -> Plan:
        conf, extra = self._app.conf, route.options

        def option(key: str, setting: str | None) -> Any:
            value = first(extra.get(key), getattr(task, key, None))
            return value if value is not None or setting is None else conf[setting]

        exchange_mode = route.queues[0].exchange.delivery_mode if route.queues else None
        mode = first(first(extra.get("delivery_mode"), getattr(task, "delivery_mode", None)), exchange_mode)
        return Plan(
            route=route,
            needs=tuple(self.sending_need(queue) for queue in route.queues if not queue.no_declare),
            serializer=option("serializer", "task_serializer"),
            compression=option("compression", "task_compression"),
            delivery_mode=delivery_mode_of(first(mode, conf.task_default_delivery_mode)),
            priority=option("priority", "task_default_priority"),
            ignore_result=bool(option("ignore_result", "task_ignore_result")),
            keeps_errors=bool(option("store_errors_even_if_ignored", "task_store_errors_even_if_ignored")),
            # What a task or its route says of itself is meant; a setting for all gives way to the parent's.
            inherits_priority=conf.task_inherit_parent_priority and option("priority", None) is None,
            is_mandatory=bool(first(option("mandatory", None), True)),
            wants_answer=self._app.backend.in_message,
            is_kept=self._app.backend.in_message and bool(option("persist_result", "task_persist_result")),
            expires=option("expires", None),
            policy=policy_of(conf),
            headers=task_headers(name, task),
            is_told=bool(conf.task_send_sent_event) and getattr(task, "send_events", True) is not False,
            show=shortener(conf.task_repr_maxlevels),
        )

    def sending_need(self, queue: Queue) -> Need:
        """Return what must be declared before a message can go to a queue; of a broadcast, only the exchange: its
        queues belong to the workers."""
        if not isinstance(queue, Broadcast):
            return self.need(queue)
        from amqptasks.broker.topology import exchanges

        steps = exchanges(queue)
        return Need(f"exchanges {queue.exchange!r}", lambda _version: steps)

    def need(self, queue: Queue) -> Need:
        """Return what must be declared before a queue can be consumed."""
        state = self._current()
        known = state.needs.get(queue.name)
        if known is not None and known[0] == queue:
            return known[1]
        from amqptasks.broker.topology import plan as declaration_plan

        default_type = self._app.conf.task_default_queue_type
        # Another queue of the same name, with other bindings perhaps, is declared too: the broker says what it thinks.
        need = Need(
            f"queue {queue.name}" if known is None else f"queue {queue!r}",
            lambda version: declaration_plan(queue, default_type=default_type, version=version),
        )
        state.needs[queue.name] = (queue, need)
        return need

    def _who(self) -> str:
        pid = os.getpid()
        if pid != self._origin_pid:
            self._origin_pid = pid
            self._origin = f"gen{pid}@{socket.gethostname()}"
        return self._origin


def _need_of(key: str, *steps: Step) -> Need:
    return Need(key, lambda _version: steps)
