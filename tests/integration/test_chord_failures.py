"""Chords whose parts do not end well: the body never runs, and whoever waits for it learns why."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from amqptasks import chain, chord, group
from amqptasks.exceptions import ChordError
from tests.running import Workshop

SOURCE = """
    from amqptasks.exceptions import Ignore, Reject

    app.conf.task_queue_prefix = "chords"

    @app.task
    def add(x, y):
        return x + y

    @app.task
    def total(values):
        note(f"total of {values}")
        return sum(values)

    @app.task
    def never(values):
        note("never")

    @app.task
    def fail(*values):
        raise ValueError("no")

    @app.task
    def ignore():
        raise Ignore()

    @app.task
    def reject():
        raise Reject("no good", requeue=False)

    @app.task(acks_late=True)
    def reject_late():
        raise Reject("no good", requeue=False)

    @app.task
    def reject_early():
        raise Reject("again", requeue=True)

    @app.task
    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    @app.task(acks_late=True)
    def kill_once(name):
        if not (HERE / name).exists():
            (HERE / name).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 5

    @app.task(time_limit=0.3)
    def hang():
        threading.Event().wait(30)

    @app.task(bind=True, max_retries=2)
    def stubborn(self):
        if self.request.retries < 2:
            raise self.retry(countdown=0.01)
        return 5

    @app.task
    def unsendable():
        return object()

    @app.task
    def large():
        return "x" * 2_000

    @app.task
    def told(request, error, traceback):
        note(f"told {request.id} {type(error).__name__} {type(error.__cause__).__name__}")
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    with Workshop(tmp_path_factory.mktemp("failures"), broker_url, SOURCE) as made:
        made.start("-c", "2")
        yield made


Make = Callable[[Any], Any]
#: A part that does not end well, and what the error says of it.
BAD_PARTS: dict[str, tuple[Make, str]] = {
    "it fails": (lambda tasks: tasks.fail.s(), r"ValueError\('no'\)"),
    "it fails amid a chain": (lambda tasks: chain(tasks.fail.s(), tasks.add.s(1), tasks.add.s(2)), "ValueError"),
    "it fails before a group": (
        lambda tasks: chain(tasks.fail.s(), group(tasks.add.s(1), tasks.add.s(2))), "ValueError",
    ),
    "it fails before a chord": (
        lambda tasks: chain(tasks.fail.s(), group(tasks.add.s(1), tasks.add.s(2)), tasks.total.s()), "ValueError",
    ),
    "it is the body of a chord that fails": (lambda tasks: chord([tasks.fail.s()], tasks.total.s()), "ChordError"),
    "it ends before its time": (lambda tasks: tasks.add.s(1, 1).set(countdown=0.2, expires=0.01), r"TaskRevokedError"),
    "nobody knows it": (lambda tasks: tasks.app.signature("no.such.task"), "NotRegistered"),
    "nobody can read it": (lambda tasks: tasks.add.s(1, 1).set(headers={"compression": "no"}), "DecodeError"),
    "it is lost with its process": (lambda tasks: tasks.kill.s(), "WorkerLostError"),
    "it is ignored": (lambda tasks: tasks.ignore.s(), "Ignore"),
    "it is rejected": (lambda tasks: tasks.reject.s(), "reject"),
    "it is rejected, and acked late": (lambda tasks: tasks.reject_late.s(), "reject"),
    "it asks to come again, and is acked early": (lambda tasks: tasks.reject_early.s(), "reject"),
    "its time limit is over": (lambda tasks: tasks.hang.s(), "TimeLimitExceeded"),
    "what follows it cannot be sent": (
        lambda tasks: chain(tasks.add.s(1, 1), tasks.add.s(1).set(exchange="no-such-exchange", routing_key="x")),
        "OperationalError",
    ),
    "it returns what cannot be sent": (lambda tasks: tasks.unsendable.s(), "EncodeError"),
}  # fmt: skip


def test_whatever_ends_a_part_badly_the_body_fails(shop: Workshop) -> None:
    # Given chords that have one bad part each
    tasks = shop.tasks
    results = {
        what: chord([tasks.add.s(1, 1), make(tasks), tasks.add.s(2, 2)], tasks.never.s())()
        for what, (make, _error) in BAD_PARTS.items()
    }
    for what, (_make, error) in BAD_PARTS.items():
        # When the caller waits for the body / Then it is told which part it was, and what it raised
        told = results[what].get(timeout=40, follow_parents=False, propagate=False)
        assert isinstance(told, ChordError) and re.match(rf"Dependency \S+ raised .*{error}", str(told)), (what, told)
        assert told.__cause__ is not None, what
    # And no body has run
    assert "never" not in shop.ledger()


def test_a_revoked_part_fails_the_body(shop: Workshop) -> None:
    # Given a chord with a part that is not due yet
    add, total = shop.tasks.add, shop.tasks.total
    result = chord([add.s(1, 1), add.s(2, 2).set(countdown=1)], total.s())()
    # When that part is revoked / Then the body fails
    result.parent.results[1].revoke()
    with pytest.raises(ChordError, match="TaskRevokedError"):
        result.get(timeout=20, follow_parents=False)


def test_a_failure_goes_up_through_nested_chords_and_down_the_chain(shop: Workshop) -> None:
    # Given a chord in the header of another, whose body begins a chain, with an error callback
    add, total, fail, told = shop.tasks.add, shop.tasks.total, shop.tasks.fail, shop.tasks.told
    inner = chord([add.s(1, 1), fail.s()], total.s() | add.s(1))
    outer = chord([inner, add.s(3, 3)], chain(total.s().on_error(told.s()), add.s(2), add.s(3)))
    # When a part of the inner one fails
    result = outer.delay()
    # Then all that will never run has failed for the same reason
    for node in (result, result.parent, result.parent.parent):
        with pytest.raises(ChordError, match="raised ChordError.*raised ValueError"):
            node.get(timeout=20, follow_parents=False)
    # And the error callback got the error, with its cause
    shop.noted(f"told {result.parent.parent.id} ChordError ChordError")


def test_a_body_of_several_calls_fails_in_each_of_them(shop: Workshop) -> None:
    add, total, fail = shop.tasks.add, shop.tasks.total, shop.tasks.fail
    result = chord([add.s(1, 1), fail.s()], group(total.s(), total.s() | add.s(1))).delay()
    for each in result.results:
        with pytest.raises(ChordError):
            each.get(timeout=20, follow_parents=False)


def test_what_comes_again_counts_once(shop: Workshop) -> None:
    # Given parts that are retried, or end their process the first time
    add, total, stubborn, kill_once = shop.tasks.add, shop.tasks.total, shop.tasks.stubborn, shop.tasks.kill_once
    result = chord([stubborn.s(), kill_once.s("once"), add.s(1, 1)], total.s())()
    # When they have ended at last / Then the body has run with the one result of each
    assert result.get(timeout=20) == 12
    shop.noted("total of [5, 5, 2]")


def test_results_that_no_message_can_carry_fail_the_body(shop: Workshop) -> None:
    # Given a project whose messages are small, and a chord whose results are small, but large together
    shop.app.conf.task_message_max_bytes = 10_000
    worker = shop.start("-c", "1", env={"AMQPTASKS_TASK_MESSAGE_MAX_BYTES": "10000"})
    shop.workers[0].finish()
    try:
        # When all parts have ended / Then the body fails, and says what the limit is
        with pytest.raises(ChordError, match=r"too large .* 10000 bytes .*task_message_max_bytes"):
            chord([shop.tasks.large.s() for _ in range(10)], shop.tasks.total.s())().get(timeout=20)
    finally:
        shop.start("-c", "2")
        worker.finish()
        shop.app.conf.task_message_max_bytes = 16 * 1024 * 1024
