"""Joins a chord: reads the ends of its parts from the collector, makes the call of the body, deletes the collector.

In that order, each confirmed: whatever ends this in between, the next poke or sweep does it once more. The body has one
id, so a second one is the same task twice, which happens only after a crash between the last two steps.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from amqptasks.app.app import App
from amqptasks.broker.chord_queues import collector_need
from amqptasks.broker.collector import BUSY, GONE, CollectorSession
from amqptasks.broker.needs import Need
from amqptasks.canvas.signature import Signature, maybe_signature
from amqptasks.entities import Queue
from amqptasks.exceptions import AmqptasksError, ChordError, ContentError, EncodeError, TopologyConflict
from amqptasks.wire.chord import Manifest, is_collector, read_message
from amqptasks.wire.failures import format_traceback, from_plain
from amqptasks.wire.message import EncodedMessage
from amqptasks.wire.reprs import printable
from amqptasks.wire.serializers import accepted
from amqptasks.worker.bodies import call_body, fail_body
from amqptasks.worker.follow_ups import FollowUps
from amqptasks.worker.gathered import Gathered
from amqptasks.worker.outcome import FollowUp, Next, Opening

__all__ = ["join"]

logger = logging.getLogger(__name__)

#: Somebody else is reading, or the broker was of no help: ask again this much later, then after twice that, and so on.
#: Seconds.
BUSY_S: Final = 0.5
#: A chord that is not complete is looked at again after a minute, then after twice that, and so on. Seconds.
FIRST_SWEEP_S: Final = 60.0
LONGEST_SWEEP_S: Final = 3600.0
#: A poke that cannot be followed so often leaves the chord to the sweep.
MAX_POKES: Final = 10
#: A collector without a manifest is swept so often: then there is nothing that could be done about it.
SWEEPS_WITHOUT_MANIFEST: Final = 3
#: Nothing is swept more often than this: seven months.
MAX_SWEEPS: Final = 5000
#: Looks at one collector in a row, if more parts come in each time.
MAX_LOOKS: Final = 50

OVER, LOCKED, INCOMPLETE = "over", "locked", "incomplete"


def join(task: Any, collector: Any, is_sweep: bool) -> None:
    """Join a chord if it is complete; as a sweep, look after it until it is.

    Raises:
        Retry: It is to be looked at again.
        OperationalError: The broker did not do what was asked of it.
    """
    if not is_collector(collector):
        logger.error("A call of %s names no collector of a chord: %s", task.name, printable(repr(collector), 80))
        return
    retries: int = task.request.retries
    joiner: Joiner | None = None
    try:
        with CollectorSession(task.app.endpoints("chord joiner")) as session:
            joiner = Joiner(task.app, session, collector, task.request.hostname or "")
            state = joiner.join()
    except AmqptasksError as error:
        logger.warning("Chord %s is not joined yet: %s", collector, error)
        state = LOCKED
    except Exception:
        # A mistake of ours, or of a backend's: the sweep must outlive it.
        logger.exception("Chord %s cannot be joined", collector)
        state = LOCKED
    wait_s: float | None = None
    if is_sweep and state != OVER:
        manifest = None if joiner is None else joiner.manifest
        wait_s = next_sweep_s(retries, manifest, state == LOCKED, time.time())
        if wait_s is None:
            logger.error("Chord %s is left alone: it has no manifest that can be read here", collector)
    elif state == LOCKED and retries < MAX_POKES:
        wait_s = BUSY_S * 2.0 ** min(retries, 5)
    if wait_s is not None:
        raise task.retry(countdown=wait_s, max_retries=None)


def next_sweep_s(sweeps: int, manifest: Manifest | None, was_locked: bool, now: float) -> float | None:
    """Return how long to wait with the next look at a chord, in seconds; None for ever.

    Args:
        sweeps: How many looks there were before this one.
        was_locked: This one saw nothing.
        now: Seconds since 1970.
    """
    if sweeps >= MAX_SWEEPS or (manifest is None and not was_locked and sweeps >= SWEEPS_WITHOUT_MANIFEST):
        return None
    wait_s = min(FIRST_SWEEP_S * 2.0 ** min(sweeps, 10), LONGEST_SWEEP_S)
    if manifest is None:
        return wait_s
    return max(0.05, min(wait_s, manifest.until - now + 0.05))


class Joiner:
    """One join of one chord."""

    def __init__(self, app: App, session: CollectorSession, collector: str, hostname: str) -> None:
        self._app = app
        self._session = session
        self._collector = collector
        self._hostname = hostname
        self._accept = accepted(app.conf.accept_content)
        self._limits = app.limits()
        self._gathered = Gathered(self._limits.max_bytes)

    def join(self) -> str:
        """Do it if everything is there; returns how it ended."""
        seen = -1
        for _ in range(MAX_LOOKS):
            # Looked at again after everything was given back: either who ends a part sees the full number, or we do.
            counts = self._session.counts(self._collector)
            if counts is None:
                return OVER
            if counts[0] <= seen:
                return self._incomplete()
            self._gathered = Gathered(self._limits.max_bytes)
            seen = self._session.read(self._collector, counts[0], self._take, lambda: self._gathered.is_complete)
            if seen == GONE:
                return OVER
            if seen == BUSY:
                return LOCKED
            if self._gathered.is_complete or (self._gathered.manifest is not None and self._gathered.is_too_large):
                self._finish()
                return OVER
            self._session.give_back()
        return self._incomplete()

    def _incomplete(self) -> str:
        if not self._gathered.is_overdue(time.time()):
            return INCOMPLETE
        self._finish()
        return OVER

    @property
    def manifest(self) -> Manifest | None:
        """The chord's manifest, if it was found."""
        return self._gathered.manifest

    def _take(self, properties: Any, body: bytes) -> None:
        try:
            message = read_message(
                self._collector, body, properties.content_type, properties.content_encoding, self._accept, self._limits
            )  # fmt: skip
        except ContentError as error:
            logger.error("A message in %s is left out: %s", self._collector, error)
            return
        self._gathered.add(message, len(body))

    # -- the end

    def _finish(self) -> None:
        manifest, gathered = self._gathered.manifest, self._gathered
        assert manifest is not None
        body = self._body(manifest)
        if body is not None:
            error = self._error()
            problem: Exception | None = None
            if error is None:
                problem = error = self._call(body, manifest, gathered)
            if error is not None:
                if problem is not None:
                    # What was made of it may have changed it.
                    body = self._body(manifest)
                self._fail(body, manifest, error)
        self._session.delete(self._collector)

    def _body(self, manifest: Manifest) -> Signature | None:
        try:
            body: Signature = maybe_signature(manifest.body, app=self._app, clone=True)
        except AmqptasksError as error:
            logger.error("The body of chord %s is no call, nothing comes of it: %s", self._collector, error)
            return None
        return body

    def _error(self) -> ChordError | None:
        """Say why the body cannot be called, if it cannot."""
        gathered = self._gathered
        failed = gathered.failed
        if failed is not None:
            cause = from_plain(failed.value, failed.traceback)
            error = ChordError(f"Dependency {failed.task_id} raised {cause!r}")
            error.__cause__ = cause
            return error
        if gathered.is_too_large:
            return self._too_large()
        missing = gathered.missing
        if missing:
            named = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
            return ChordError(
                f"{len(missing)} of the chord's {gathered.size} parts did not end in time (result_chord_expires): "
                f"index {named} of the header. Parts that Celery's workers run are never counted so: for those, set "
                "chord_join = 'store' where the chord is sent"
            )
        return None

    def _too_large(self) -> ChordError:
        return ChordError(
            f"the results of the chord's {self._gathered.size} parts are too large for its body: at most "
            f"{self._limits.max_bytes} bytes are allowed (task_message_max_bytes)"
        )

    def _call(self, body: Signature, manifest: Manifest, gathered: Gathered) -> ChordError | None:
        """Make the call of the body; returns why that cannot be done."""
        last = gathered.last
        parent_id = None if last is None else last.task_id
        self._adopt(body)
        try:
            follow_ups = call_body(self._app, body, gathered.values, manifest.root_id or parent_id, parent_id)
        except EncodeError as error:
            return _unable(error)
        except Exception as error:
            # A route, a type, an argument: nothing that another try would mend.
            logger.error("The body of chord %s cannot be called", self._collector, exc_info=error)
            return _unable(error)
        if any(len(each.body) > self._limits.max_bytes for each in _messages(follow_ups)):
            return self._too_large()
        problems = [each for each in self._send(follow_ups) if each]
        return ChordError(f"the body cannot be sent: {'; '.join(problems[:3])}") if problems else None

    def _adopt(self, body: Signature) -> None:
        """Let the body go to queues that are another app's, and none of ours to declare."""
        from amqptasks.app.chords import beginning

        routing = self._app.sender.routing
        for call in beginning(body):
            name = call.options.get("queue")
            if isinstance(name, str) and routing.named(name) is None:
                call.options["queue"] = Queue(name, no_declare=True)

    def _fail(self, body: Signature | None, manifest: Manifest, error: ChordError) -> None:
        if body is None:
            return
        logger.error("Chord %s has failed: %s", self._collector, error)
        fail = FollowUps(self._app, self._hostname).never_run
        follow_ups = fail_body(body, manifest, error, format_traceback(error), fail)
        for problem in self._send(follow_ups):
            if problem:
                logger.error("What follows the failure of chord %s cannot be sent: %s", self._collector, problem)

    # -- sending

    def _send(self, follow_ups: Iterable[Next]) -> list[str | None]:
        """Publish what follows, in the order that it asks for; returns what went wrong for good."""
        problems: list[str | None] = []
        plain: list[FollowUp] = []
        rest: list[Next] = []
        for each in follow_ups:
            plain.append(each) if isinstance(each, FollowUp) else rest.append(each)
        problems += self._publish(plain)
        for each in rest:
            if isinstance(each, Opening):
                self._session.require([collector_need(each.collector, each.expires_s)])
                begun = self._publish(each.first)
                problems += begun
                if not any(begun):
                    problems += self._send(each.header)
            elif not isinstance(each, FollowUp):
                problems += self._end_part(each)
        return problems

    def _end_part(self, part: Any) -> list[str | None]:
        """Tell another chord, whose part this one's body was."""
        collector = part.message.routing_key
        if self._session.publish([part.message]) != [None]:
            # That one is over.
            return []
        counts = self._session.counts(collector)
        if counts is None or (part.size and counts[0] <= part.size):
            return []
        from amqptasks.app.chords import poke

        call = poke(self._app.sender, collector)
        return self._publish((FollowUp(*call),))

    def _publish(self, follow_ups: Sequence[FollowUp]) -> list[str | None]:
        if not follow_ups:
            return []
        for each in follow_ups:
            self._require(each)
        problems = self._session.publish([each.message for each in follow_ups])
        for index, each in enumerate(follow_ups):
            if problems[index] and each.is_answer:
                logger.debug("Nobody waits for the end of chord %s any more", self._collector)
                problems[index] = None
            elif problems[index] and not each.message.exchange:
                # The queue of another app, which has gone meanwhile: better one as we would have it than none.
                self._session.require([self._app.sender.need(Queue(each.message.routing_key))])
                problems[index] = self._session.publish([each.message])[0]
        return problems

    def _require(self, follow_up: FollowUp) -> None:
        sender = self._app.sender
        needs: list[Need] = [sender.sending_need(sender.routing.queue(name)) for name in follow_up.queues]
        if follow_up.delayed is not None:
            needs += sender.delay_needs(follow_up.delayed)
        if follow_up.is_kept:
            from amqptasks.results.kept import kept_need

            needs.append(kept_need(follow_up.message.routing_key, self._app.conf.result_expires))
        try:
            self._session.require(needs)
        except TopologyConflict as conflict:
            # It is there, and that is enough.
            logger.warning("%s", conflict)


def _unable(error: Exception) -> ChordError:
    unable = ChordError(f"the body cannot be called: {type(error).__name__}: {error}"[:2000])
    unable.__cause__ = error
    return unable


def _messages(follow_ups: Iterable[Next]) -> Iterable[EncodedMessage]:
    for each in follow_ups:
        if isinstance(each, FollowUp):
            yield each.message
        elif isinstance(each, Opening):
            yield from _messages(each.first)
            yield from _messages(each.header)
