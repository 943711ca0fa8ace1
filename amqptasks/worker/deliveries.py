"""The life of a delivery in the worker: examined, handed out, run, settled. Or lost, and then put right.

Every method runs on the loop. A delivery leaves here in exactly one way: acked, given back, or stale because its
channel has gone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from amqptasks import signals
from amqptasks.app.app import App
from amqptasks.broker.consumer import Delivery
from amqptasks.broker.delays import UNIT_MS
from amqptasks.broker.loop import Loop
from amqptasks.exceptions import (
    AmqptasksError,
    BackendStoreError,
    InvalidTaskError,
    NotRegistered,
    TaskRevokedError,
    TimeLimitExceeded,
    WorkerLostError,
)
from amqptasks.logs import TASK_LOGGER
from amqptasks.states import REVOKED
from amqptasks.wire.message import encode
from amqptasks.wire.reprs import shown_name
from amqptasks.wire.revocation import Revocation
from amqptasks.worker import dead_letters, lost
from amqptasks.worker.dispatch import Dispatcher
from amqptasks.worker.executor import describe
from amqptasks.worker.failures import Failures
from amqptasks.worker.follow_ups import FollowUps
from amqptasks.worker.intake import Accept, Bury, Decision, Expire, Intake, Postpone
from amqptasks.worker.ledger import Ledger, is_first_of_beat
from amqptasks.worker.outcome import FAILED, REJECTED, UNREADABLE, UNSTORED, FollowUp, Next, Outcome, Told
from amqptasks.worker.pools.slot import Slot
from amqptasks.worker.rate_limits import RateLimits, rates_of
from amqptasks.worker.request import Request
from amqptasks.worker.revoked import RevokedTasks, names
from amqptasks.worker.services import TaskWatcher
from amqptasks.worker.settlement import Settlement
from amqptasks.worker.terminations import CANCELLED, Terminations
from amqptasks.worker.time_limits import TimeLimits

logger = logging.getLogger(TASK_LOGGER + ".trace.worker")


class Deliveries:
    """Leads each delivery to its end. One per worker."""

    def __init__(
        self, app: App, hostname: str, loop: Loop, dispatcher: Dispatcher, settlement: Settlement, max_held: int,
        events: TaskWatcher,
    ) -> None:  # fmt: skip
        self._app = app
        self._conf = app.conf
        self._loop = loop
        self._hostname = hostname
        #: What receivers of signals ask of their sender.
        self.app, self.hostname = app, hostname
        self._dispatcher = dispatcher
        dispatcher.on_expired = self._expire
        self._settlement = settlement
        self._intake = Intake(app)
        self.revoked = RevokedTasks(app.conf.task_revokes_max, app.conf.task_revoke_expires)
        self._follow_ups = FollowUps(app, hostname, stores_later=True)
        self.terminations = Terminations(loop, dispatcher)
        self.ledger = Ledger()
        #: Called with a task that goes into the delay ladder, and for how many milliseconds.
        self.on_postponed: Callable[[Request, float], None] = lambda request, delay_ms: None
        self._events = events
        self._failures = Failures(app, self._follow_ups, events)
        self.time_limits = TimeLimits(app.conf.task_time_limit, app.conf.task_soft_time_limit)
        self._takes_no_more = False
        #: Why what runs is left alone, once it is.
        self._abandoned: str | None = None
        self._log_received = logger.isEnabledFor(logging.INFO)
        conf = app.conf
        rates = () if conf.worker_disable_rate_limits else rates_of(app.tasks.values(), conf.task_default_rate_limit)
        self.rate_limits = RateLimits(loop, rates, self._begin, self._postpone, max_held)

    # -- coming in

    def expect(self, outstanding: int) -> None:
        """Be ready for so many deliveries that come again after a lost connection; 0: any number."""
        self.ledger.expect(outstanding)

    def on_delivery(self, delivery: Delivery) -> None:
        """Take a message in."""
        if self._takes_no_more:
            # It was on its way when consuming was cancelled.
            delivery.give_back()
            return
        decision = self._intake.examine(delivery)
        if type(decision) is not Accept:
            self._turn_away(decision)
            return
        request = decision.request
        if delivery.redelivered and self._is_known(request):
            return
        if delivery.properties.message_id is not None and self._is_repeated(request):
            return
        if self.revoked and self.revoked.covers(request.id, request.headers):
            self._discard(request)
            return
        if not self.rate_limits.buckets or self.rate_limits.admits(request):
            self._begin(request)

    def examined(self, delivery: Delivery) -> Request | None:
        """Return the call that a message is which did not come as work; None if it is none that can be run now, and
        was taken care of."""
        if self._takes_no_more:
            delivery.give_back()
            return None
        decision = self._intake.examine(delivery)
        if isinstance(decision, Accept):
            return decision.request
        self._turn_away(decision)
        return None

    def _begin(self, request: Request) -> None:
        self.ledger.begin(request)
        if self._log_received:
            name = shown_name(request.task_name, request.headers.get("shadow"))
            logger.info("Task %s[%s] received", name, request.id)
        if signals.task_received:
            signals.task_received.send(self, request=request)
        if self._events.enabled:
            self._events.received(request)
        self.time_limits.apply(request)
        self._dispatcher.add(request)

    def on_revocation(self, revocation: Revocation) -> None:
        """Take a revocation in: what it names and has not begun is discarded."""
        if revocation.destinations and self._hostname not in revocation.destinations:
            return
        if not self.revoked.add(revocation):
            return
        keep: list[Request] = []
        gone: list[Request] = []
        if any(names(revocation, each.id, each.headers) for each in self._dispatcher.unbegun()):
            for request in self._dispatcher.take_back_all():
                (gone if names(revocation, request.id, request.headers) else keep).append(request)
        for request in keep:
            request.number = 0
        self._dispatcher.add_first(keep)
        gone.extend(self.rate_limits.take_out(lambda each: names(revocation, each.id, each.headers)))
        for request in gone:
            self._discard(request)
        if revocation.terminate:
            self.terminations.order(revocation)

    def _on_terminated(self, request: Request, number: int) -> None:
        request.is_done = True
        self._dispatcher.schedule()
        if number == CANCELLED:
            if self._events.enabled:
                self._events.cancelled(request)
            self.ledger.forget(request)
            return
        self._tell_revoked(request, terminated=True, signum=number)
        self._settlement.settle(
            request,
            self._failures.follow_ups(request, TaskRevokedError("terminated"), REVOKED),
            lambda: self._end(request),
        )

    def _discard(self, request: Request) -> None:
        """End a revoked task that has not begun."""
        logger.info("Discarding revoked task: %s[%s]", request.task_name, request.id)
        self._tell_revoked(request)
        self.ledger.forget(request)
        self._settlement.settle(
            request, self._failures.follow_ups(request, TaskRevokedError("revoked"), REVOKED), request.ack
        )

    def _tell_revoked(
        self, request: Request, *, terminated: bool = False, signum: int | None = None, expired: bool = False
    ) -> None:
        if signals.task_revoked:
            signals.task_revoked.send(
                request.task, request=request, terminated=terminated, signum=signum, expired=expired
            )
        if self._events.enabled:
            self._events.revoked(request, terminated, signum, expired)

    def _is_known(self, request: Request) -> bool:
        """Whether this attempt is running here, or was finished here and only its ack was lost; then nothing is run."""
        if self.ledger.is_finished(request.key):
            logger.info("Task %s[%s] was finished before the connection was lost; acked", request.task_name, request.id)
            request.ack()
            return True
        running = self.ledger.running(request.key)
        if running is None or running.number == 0 or self.terminations.is_cancelled(running):
            return False
        running.delivery = request.delivery
        # What was acked on the old channel may not have arrived: it is acked again on this one.
        was_acked, running.is_acked = running.is_acked, False
        if was_acked:
            running.ack()
        return True

    def _is_repeated(self, request: Request) -> bool:
        """Whether beat has sent this twice, as it may when its leader dies between a task and the note of it; then the
        second is not run."""
        if not self.ledger.knows(request.key) or not is_first_of_beat(request):
            return False
        logger.info("Task %s[%s] was sent twice by beat; not run again", request.task_name, request.id)
        request.ack()
        return True

    def _turn_away(self, decision: Decision) -> None:
        request = decision.request
        if isinstance(decision, Postpone):
            self._put_off(request, decision.delay_ms)
        elif isinstance(decision, Expire):
            self._expire(request)
        elif isinstance(decision, Bury):
            self._tell_unreadable(request, decision.error)
            follow_ups = self._failures.follow_ups(request, decision.error) if decision.is_answered else ()
            self._bury(request, decision.reason, decision.error, follow_ups)

    def _expire(self, request: Request) -> None:
        logger.info("Task %s[%s] has expired", request.task_name, request.id)
        self._tell_revoked(request, expired=True)
        self.ledger.forget(request)
        self._settlement.settle(
            request, self._failures.follow_ups(request, TaskRevokedError("expired"), REVOKED), request.ack
        )

    def _tell_unreadable(self, request: Request, error: Exception) -> None:
        if isinstance(error, NotRegistered):
            if signals.task_unknown:
                signals.task_unknown.send(
                    self, message=request.delivery, exc=error, name=request.task_name, id=request.id
                )
        elif signals.task_rejected:
            signals.task_rejected.send(self, message=request.delivery, exc=error)

    def _bury(self, request: Request, reason: str, error: Exception, follow_ups: tuple[Next, ...]) -> None:
        text = str(error) if isinstance(error, AmqptasksError) else f"{type(error).__name__}: {error}"
        self._settlement.settle(
            request, follow_ups, lambda: self._settlement.bury(request, reason, text, lambda: self._end(request)),
            is_lost=True,
        )  # fmt: skip

    def _put_off(self, request: Request, delay_ms: float) -> None:
        """Let a task wait until it is due: in the broker, but for the moment that the ladder cannot measure."""
        if delay_ms > UNIT_MS:
            self._postpone(request, delay_ms)
        else:
            self._loop.call_later(delay_ms / 1000, lambda: self._due(request.delivery))

    def _due(self, delivery: Delivery) -> None:
        # If its channel has gone, the broker delivers it again.
        if delivery.is_current:
            self.on_delivery(delivery)

    def _postpone(self, request: Request, delay_ms: float) -> None:
        self.on_postponed(request, delay_ms)
        queue = request.delivery.consumer.queue
        sender = self._app.sender
        exchange, routing_key = sender.ladder.address(delay_ms, queue)
        message = encode(dead_letters.copy_of(request.delivery, request.headers), exchange, routing_key)
        needs = (sender.need(sender.routing.queue(queue)), *sender.delay_needs(queue))
        self._settlement.publish(message, needs, f"task {request.id}, which is not due", request.ack)

    # -- what the pool reports

    def begun(self, request: Request) -> None:
        """Tell that a task has begun, and ack it unless that is to be done late. Safe twice."""
        if self._events.enabled:
            self._events.started(request)
        if not request.is_late:
            request.ack()

    def on_message(self, slot: Slot, request: Request, message: FollowUp | Told) -> None:
        """Publish a state, or an event, of a running task."""
        if isinstance(message, Told):
            self._events.said(request, message)
        else:
            self._settlement.send_state(request, message)

    def on_outcome(self, slot: Slot, request: Request, outcome: Outcome) -> None:
        """Settle a task that has ended."""
        request.is_done = True
        self.terminations.take(request)
        self._dispatcher.finished(outcome.runtime_s)
        if self._events.enabled:
            self._events.ended(request, outcome)
        if outcome.kind == UNREADABLE:
            error = InvalidTaskError(outcome.reason)
            self._tell_unreadable(request, error)
            self._bury(request, dead_letters.UNREADABLE, error, outcome.follow_ups)
        elif outcome.kind == REJECTED:
            # What follows: a next attempt that it has asked for before, by retry(throw=False).
            self._settlement.settle(request, outcome.follow_ups, lambda: self._rejected(request, outcome))
        elif outcome.kind == UNSTORED:
            self._bury(request, dead_letters.UNSTORED, BackendStoreError(outcome.reason), outcome.follow_ups)
        elif outcome.kind == FAILED and outcome.reason:
            self._settlement.settle_dead(request, outcome.follow_ups, outcome.reason, lambda: self._end(request))
        elif outcome.kind == FAILED and request.is_late and not self._acks_on_failure(request):
            self._bury(
                request,
                dead_letters.REJECTED,
                InvalidTaskError("the task failed (acks_on_failure)"),
                outcome.follow_ups,
            )
        else:
            self._settlement.settle(request, outcome.follow_ups, lambda: self._end(request))
        if not request.is_late and outcome.kind != UNREADABLE:
            # After its result in the same turn: somebody may be waiting for that.
            request.ack()

    def _rejected(self, request: Request, outcome: Outcome) -> None:
        if not request.is_late:
            # It counts as acked when it began, whether or not that was noticed before it ended.
            request.ack()
            self._end(request)
        elif outcome.requeue:
            self.ledger.forget(request)
            request.give_back(has_run=True)
        else:
            self._settlement.bury(request, dead_letters.REJECTED, outcome.reason, lambda: self._end(request))

    def _end(self, request: Request) -> None:
        request.ack()
        self.ledger.end(request)

    def _acks_on_failure(self, request: Request) -> bool:
        return self._acks(request, "acks_on_failure")

    def _acks(self, request: Request, attribute: str) -> bool:
        task, conf = request.task, self._conf
        for value in (
            getattr(task, attribute), task.acks_on_failure_or_timeout, conf[f"task_{attribute}"],
            conf.task_acks_on_failure_or_timeout,
        ):  # fmt: skip
            if value is not None:
                return bool(value)
        return True

    # -- time limits

    def set_time_limits(self, name: str, hard: float | None, soft: float | None) -> None:
        """Change the limits of a task for every call that has not begun; see `TimeLimits.order`."""
        self.time_limits.order(self._app.tasks, name, hard, soft)
        for request in self._dispatcher.waiting:
            if request.task_name == name:
                self.time_limits.apply(request)

    def on_soft_limit(self, request: Request, limit_s: float) -> None:
        """Tell that a task was interrupted; how that ends, its outcome says."""
        logger.warning("Soft time limit (%ss) exceeded for %s[%s]", limit_s, request.task_name, request.id)

    def on_hard_limit(self, request: Request, limit_s: float) -> None:
        """Settle a task that was ended because of its hard limit."""
        number = self.terminations.take(request)
        if number is not None:
            self._on_terminated(request, number)
            return
        if self._abandoned is not None and request.is_late:
            return
        request.is_done = True
        self._dispatcher.finished(limit_s)
        logger.error("Hard time limit (%ss) exceeded for %s[%s]", limit_s, request.task_name, request.id)
        error = TimeLimitExceeded(limit_s)
        if request.is_late and not self._acks(request, "acks_on_timeout"):
            # It would come back for ever: so it is counted, as one that ends its process by itself.
            self._crashed(request, error, f"its time limit of {limit_s:g} s")
            return
        self._fail(request, error)
        if not request.is_late:
            request.ack()

    # -- what goes wrong

    def on_lost(self, request: Request, begun: bool, how: str) -> None:
        """Put right that the place where a task was has died."""
        if self._abandoned is not None:
            if not begun or request.is_late or request.is_done:
                return
            how = self._abandoned
        if not begun:
            request.number = 0
            if self._takes_no_more and not request.is_acked:
                self.ledger.forget(request)
                request.give_back()
            elif request.delivery.is_current or request.is_acked:
                self._dispatcher.add_first([request])
            else:
                self.ledger.forget(request)
            return
        request.is_done = True
        error = WorkerLostError(f"Worker exited prematurely: {how}.")
        retries, is_over = lost.retries(self._app, request)
        if retries and self._retry(request, error):
            return
        if request.is_late and not is_over and lost.comes_back(self._app, request):
            self._crashed(request, error, how)
            return
        logger.error("Task %s[%s] was lost: %s", request.task_name, request.id, error)
        self._fail(request, error)

    def _fail(self, request: Request, error: Exception) -> None:
        """Settle a task that has failed without a word of its child."""
        follow_ups = self._failures.follow_ups(request, error)
        if dead_letters.dies_of_failure(self._app, request.task):
            reason = dead_letters.failure_text(error)
            self._settlement.settle_dead(request, follow_ups, reason, lambda: self._end(request))
        else:
            self._settlement.settle(request, follow_ups, lambda: self._end(request))

    def _retry(self, request: Request, error: Exception) -> bool:
        """Try a task again whose child died, as it could have asked for by itself; False if that cannot be had."""
        if request.is_late and not request.delivery.is_current:
            # The broker has given the message back already: another attempt would be one too many.
            self.ledger.forget(request)
            return True
        context = describe(request.to_frame(0), None, self._hostname, self._app.sender.ladder.due)
        if not self._failures.add_body(context, request):
            return False
        try:
            follow_ups = lost.next_attempt(self._app, self._follow_ups, request, context, error)
        except AmqptasksError as trouble:
            logger.error("Task %s[%s] cannot be tried again: %s", request.task_name, request.id, trouble)
            return False
        if self._events.enabled:
            self._events.retried(request, error)
        self._settlement.settle(request, follow_ups, lambda: self._end(request))
        return True

    def _crashed(self, request: Request, error: Exception, how: str) -> None:
        if not request.delivery.is_current:
            # The broker has given the message back already: another copy would be one too many.
            self.ledger.forget(request)
            return
        crashes = request.crashes + 1
        limit = lost.crash_limit(self._app, request)
        if limit is not None and crashes >= limit:
            logger.error("Task %s[%s] has ended %d worker processes", request.task_name, request.id, crashes)
            detail = InvalidTaskError(f"ended {crashes} worker processes, the last by {how}")
            self._bury(request, dead_letters.TOO_MANY_CRASHES, detail, self._failures.follow_ups(request, error))
            return
        logger.error(
            "Task %s[%s] was lost (%s), crash %d; it will be run again", request.task_name, request.id, how, crashes
        )
        if self._events.enabled:
            self._events.rejected(request)
        queue = request.delivery.consumer.queue
        headers = {**request.headers, dead_letters.CRASHES_HEADER: crashes}
        message = encode(dead_letters.copy_of(request.delivery, headers), "", queue)
        need = self._app.sender.need(self._app.sender.routing.queue(queue))
        self._settlement.publish(message, (need,), f"task {request.id} after a crash", lambda: self._end(request))

    def drop_stale(self) -> None:
        """Forget what has not begun and whose channel is gone: the broker delivers it again."""
        self.rate_limits.drop_stale()
        stale: list[Request] = []
        keep: list[Request] = []
        for request in self._dispatcher.take_back_all():
            (keep if request.delivery.is_current else stale).append(request)
        for request in stale:
            self.ledger.forget(request)
        for request in keep:
            request.number = 0
        self._dispatcher.add_first(keep)

    def give_back_beyond(self, count: int) -> None:
        """Put the waiting tasks beyond this many back into their queues, for other workers."""
        for request in self._dispatcher.pop_beyond(count):
            self.ledger.forget(request)
            request.give_back()

    def abandon(self, why: str) -> None:
        """Leave what is to be acked late to the broker, which takes back what is not acked once the connection is
        closed. What was acked early is lost with its process: it remains to tell so."""
        self._takes_no_more = True
        self._abandoned = why

    def take_no_more(self) -> None:
        """Put every task that has not begun back into its queue, and whatever still comes in too."""
        self._takes_no_more = True
        for request in self.rate_limits.take_back():
            request.give_back()
        for request in self._dispatcher.take_back_all():
            self.ledger.forget(request)
            request.give_back()
