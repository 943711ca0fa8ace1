"""Tasks that are run again: by `retry()`, by ``autoretry_for``, with everything they came with. On real workers."""

from __future__ import annotations

import datetime
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amqptasks.canvas import group
from amqptasks.exceptions import EncodeError, MaxRetriesExceededError, NotSent, Retry, TaskRevokedError
from tests.proxy import Proxy
from tests.running import Workshop
from tests.support import eventually

pytestmark = pytest.mark.broker

SOURCE = """
    import time
    from amqptasks import Task, signals
    from amqptasks.exceptions import Ignore, Reject
    from amqptasks.entities import Exchange, Queue

    app.conf.result_extended = True
    app.conf.task_queues = [
        Queue(QUEUE), Queue(QUEUE + ".low", max_priority=5),
        Queue(QUEUE + ".topic", Exchange(QUEUE + ".news", "topic"), "news.#"),
        Queue(QUEUE + ".topic2", Exchange(QUEUE + ".news", "topic"), "news.*"),
    ]

    class Busy(Exception):
        pass

    @signals.task_retry.connect
    def on_signal(sender=None, request=None, reason=None, einfo=None, **more):
        note(f"signal {sender.name} {request.id} {request.retries} {reason} {'Busy' in str(einfo)}")

    class Noted(Task):
        def on_retry(self, exc, task_id, args, kwargs, einfo):
            note(f"on_retry {task_id} {exc!r} {args} {kwargs} {type(einfo.exception).__name__}")

        def after_return(self, status, retval, task_id, args, kwargs, einfo):
            note(f"after_return {task_id} {status}")

    @app.task(bind=True, base=Noted)
    def busy(self, times, countdown=0.1):
        if self.request.retries < times:
            raise self.retry(exc=Busy("not yet"), countdown=countdown)
        return self.request.retries

    @app.task(bind=True)
    def look(self, times):
        "Return what each attempt saw."
        own = self.request
        note(f"{own.id} {own.retries} {own.delivery_info['exchange']!r} {own.delivery_info['routing_key']}")
        if own.retries < times:
            self.retry(countdown=0.06)
        shown = own.as_dict()
        shown["tenant"] = getattr(own, "tenant", None)
        return shown

    @app.task(bind=True, max_retries=1)
    def in_vain(self, *args, **kwargs):
        self.retry(countdown=0)

    @app.task(bind=True, max_retries=1)
    def in_vain_with_error(self):
        try:
            raise Busy("for good")
        except Busy as error:
            raise self.retry(exc=error, countdown=0)

    @app.task(bind=True)
    def changed(self, x, y=0):
        if self.request.retries == 0:
            raise self.retry(args=(x + 1,), countdown=0)
        if self.request.retries == 1:
            raise self.retry(kwargs={"x": x + 1, "y": 5}, countdown=0)
        return [x, y]

    @app.task(bind=True)
    def goes_on(self, x):
        if self.request.retries == 0:
            note(f"asked {self.retry(countdown=0, throw=False)}")
        note(f"{self.request.id} ran {self.request.retries}")
        return x

    @app.task(bind=True)
    def asks_and_is_rejected(self):
        if self.request.retries == 0:
            self.retry(countdown=0, throw=False)
            raise Reject("no")
        note(f"{self.request.id} ran {self.request.retries}")

    @app.task(bind=True)
    def swallows(self):
        if self.request.retries == 0:
            try:
                self.retry(countdown=0)
            except Exception:
                return "swallowed"
        note(f"{self.request.id} ran {self.request.retries}")

    @app.task(bind=True, autoretry_for=(Busy, OSError), dont_autoretry_for=(FileNotFoundError,), retry_backoff=0.02,
              retry_backoff_max=0.04, retry_kwargs={"max_retries": 2})
    def by_itself(self, kind):
        note(f"by_itself {self.request.id} {self.request.retries}")
        raise {"busy": Busy, "io": OSError, "missing": FileNotFoundError, "value": ValueError}[kind]("no")

    @app.task(bind=True, autoretry_for=Exception, retry_backoff=0.01, default_retry_delay=0.01, max_retries=1)
    async def async_by_itself(self):
        note(f"async {self.request.id} {self.request.retries}")
        raise Busy("no")

    @app.task(bind=True, autoretry_for=(Exception,), default_retry_delay=0)
    def steers(self, how):
        note(f"steers {self.request.id} {self.request.retries}")
        raise {"ignore": Ignore, "reject": Reject}[how]("so")

    @app.task(bind=True, autoretry_for=(Busy,), default_retry_delay=0)
    def overrides(self):
        note(f"overrides {self.request.id} {self.request.retries}")
        raise self.retry(exc=Busy("no"), countdown=0, max_retries=1)

    @app.task(bind=True, max_retries=None)
    def for_ever(self, times):
        if self.request.retries < times:
            raise self.retry(countdown=0)
        return self.request.retries

    @app.task(bind=True, acks_late=True)
    def held(self, name):
        note(f"held {self.request.id} {self.request.retries}")
        if self.request.retries == 0:
            gate(name)
            raise self.retry(countdown=0.1)
        return self.request.retries

    @app.task(bind=True)
    def unsendable(self, x=None):
        raise self.retry(args=(object(),), countdown=0)

    @app.task(bind=True)
    def moves(self, queue):
        if self.request.retries == 0:
            raise self.retry(countdown=0.06, queue=queue, priority=3)
        return [self.request.delivery_info["routing_key"], self.request.delivery_info["priority"]]

    @app.task
    def add(x, y):
        return x + y

    @app.task
    def failed(task_id):
        note(f"failed {task_id}")

    @app.task
    def moment():
        return time.time()

    @app.task
    def wait(name):
        gate(name)
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    with Workshop(tmp_path_factory.mktemp("retries"), broker_url, SOURCE) as made:
        made.also_delete(*(f"{made.queue}.{each}" for each in ("low", "topic", "topic2")))
        made.start("-c", "2")
        # From now on somebody listens for results, of tasks too that are sent by hand.
        assert made.tasks.add.delay(1, 1).get(timeout=20) == 2
        yield made
        made.delete_exchange(f"{made.queue}.news")


def get(result: Any) -> Any:
    return result.get(timeout=20)


def test_a_task_is_run_again_under_its_id_until_it_succeeds(shop: Workshop) -> None:
    # When a task asks to be run again, twice
    states: list[Any] = []
    result = shop.tasks.busy.delay(2)

    # Then its caller gets the result of the third attempt, and has heard of those before, with the reason
    assert result.get(timeout=20, on_message=states.append) == 2
    passing = [each for each in states if each["status"] == "RETRY"]
    assert len(passing) == 2
    for each in passing:
        assert each["result"] == {"exc_type": "Busy", "exc_message": ["not yet"], "exc_module": shop.project.name}
        assert "Retry in 0.1s: Busy('not yet')" in each["traceback"] and each["task_id"] == result.id

    # And so have the handler, the signal and the log, of each; and the end is told once
    ledger = shop.ledger()
    told = [line for line in ledger if line.startswith(f"on_retry {result.id}")]
    assert told == [f"on_retry {result.id} Busy('not yet') [2] {{}} Retry"] * 2
    for retries in (0, 1):
        signal = f"signal {shop.project.name}.busy {result.id} {retries} Retry in 0.1s: Busy('not yet') True"
        assert ledger.count(signal) == 1
    shop.noted(f"after_return {result.id} SUCCESS")
    assert f"after_return {result.id} RETRY" not in shop.ledger()
    log = shop.workers[0].log
    assert log.count(f"Task {shop.project.name}.busy[{result.id}] retry: Retry in 0.1s: Busy('not yet')") == 2
    assert log.count(f"Task {shop.project.name}.busy[{result.id}] received") == 3


def test_the_state_while_it_waits_is_retry(shop: Workshop) -> None:
    # Given a task that will not be run again for long
    result = shop.tasks.busy.apply_async((1, 3600))
    shop.workers[0].wait_for(re.escape(f"[{result.id}] retry: Retry in 3600s"))

    # Then its state is RETRY, its result the error, and it is not over
    eventually(lambda: bool(result.state == "RETRY"))
    assert type(result.result).__name__ == "Busy" and not result.ready()
    assert "Busy" in result.traceback


def test_the_next_attempt_has_all_that_the_call_came_with(shop: Workshop) -> None:
    # Given a call with every option that travels
    link = shop.tasks.add.si(40, 2)
    link.freeze()
    expires = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
    result = shop.tasks.look.apply_async(
        (2,), queue=f"{shop.queue}.low", priority=4, headers={"tenant": "blue"}, link=link, expires=expires,
        time_limit=50, soft_time_limit=40, shadow="shown", stamped_headers=["team"], team="red", delivery_mode=1,
    )  # fmt: skip

    # When it is run for the third time
    shown = get(result)

    # Then nothing of that is missing
    assert (shown["id"], shown["retries"], shown["tenant"]) == (result.id, 2, "blue")
    assert (shown["root_id"], shown["parent_id"]) == (result.id, None)
    assert shown["delivery_info"]["priority"] == 4
    assert (shown["timelimit"], shown["shadow"]) == ([50, 40], "shown")
    assert datetime.datetime.fromisoformat(shown["expires"]) == expires
    assert (shown["stamped_headers"], shown["stamps"]) == (["team"], {"team": "red"})
    assert shown["properties"]["delivery_mode"] == 1
    assert (shown["correlation_id"], shown["reply_to"]) == (result.id, shop.app.backend.reply_to())
    # And its callback is called, once
    assert get(shop.app.AsyncResult(link.id)) == 42
    # And each attempt came from the same queue
    lines = [line for line in shop.ledger() if line.startswith(f"{result.id} ")]
    assert lines == [f"{result.id} {retries} '' {shop.queue}.low" for retries in range(3)]


def test_a_chain_waits_for_its_step_that_is_run_again(shop: Workshop) -> None:
    result = (shop.tasks.busy.si(1) | shop.tasks.add.s(10) | shop.tasks.add.s(100)).apply_async()
    assert get(result) == 111
    assert get(result.parent) == 11 and get(result.parent.parent) == 1


def test_a_group_keeps_a_member_that_is_run_again(shop: Workshop) -> None:
    result = group(shop.tasks.look.s(1), shop.tasks.look.s(0)).apply_async()
    assert [(each["group"], each["group_index"]) for each in get(result)] == [(result.id, 0), (result.id, 1)]


def test_without_retries_left_the_task_fails_in_celerys_words(shop: Workshop) -> None:
    # Given a task that may be tried again once, and an errback
    result = shop.tasks.in_vain.apply_async((1, "x"), {"y": 2}, link_error=shop.tasks.failed.s())
    with pytest.raises(MaxRetriesExceededError) as caught:
        get(result)
    name = f"{shop.project.name}.in_vain"
    assert str(caught.value) == f"Can't retry {name}[{result.id}] args:(1, 'x') kwargs:{{'y': 2}}"
    shop.noted(f"failed {result.id}")

    # And where it gave its error, that is what it fails with
    with pytest.raises(shop.tasks.Busy, match="for good"):
        get(shop.tasks.in_vain_with_error.delay())


def test_an_attempt_may_have_other_arguments(shop: Workshop) -> None:
    assert get(shop.tasks.changed.delay(1)) == [3, 5]
    assert get(shop.tasks.changed.delay(x=1)) == [3, 5]


def test_a_task_that_goes_on_is_tried_again_however_it_ends(shop: Workshop) -> None:
    # When a task asks for another attempt and goes on / Then it has a result of its own, and the attempt is run
    result = shop.tasks.goes_on.delay(7)
    assert get(result) == 7
    shop.noted(f"{result.id} ran 1")
    shop.noted("asked Retry in 0s")
    # The same for one that raises something else, and for one that swallows what retry() raises
    for name in ("asks_and_is_rejected", "swallows"):
        again = getattr(shop.tasks, name).delay()
        shop.noted(f"{again.id} ran 1")


@pytest.mark.parametrize(("kind", "attempts"), [("busy", 3), ("io", 3), ("missing", 1), ("value", 1)])
def test_some_errors_are_retried_by_themselves(shop: Workshop, kind: str, attempts: int) -> None:
    error = {"busy": shop.tasks.Busy, "io": OSError, "missing": FileNotFoundError, "value": ValueError}[kind]
    result = shop.tasks.by_itself.delay(kind)
    with pytest.raises(error):
        get(result)
    seen = [line for line in shop.ledger() if line.startswith(f"by_itself {result.id}")]
    assert seen == [f"by_itself {result.id} {retries}" for retries in range(attempts)]
    # And the waits were real numbers within their bounds
    waits = re.findall(rf"\[{result.id}\] retry: Retry in ([0-9.]+)s", shop.workers[0].log)
    assert len(waits) == attempts - 1 and all(0 <= float(each) <= 0.04 for each in waits)


def test_a_coroutine_is_retried_by_itself(shop: Workshop) -> None:
    result = shop.tasks.async_by_itself.delay()
    with pytest.raises(shop.tasks.Busy):
        get(result)
    assert [line for line in shop.ledger() if line.startswith(f"async {result.id}")] == [
        f"async {result.id} {retries}" for retries in range(2)
    ]


@pytest.mark.parametrize("how", ["ignore", "reject"])
def test_what_steers_the_worker_is_not_retried(shop: Workshop, how: str) -> None:
    result = shop.tasks.steers.delay(how)
    shop.workers[0].wait_for(re.escape(f"[{result.id}] {how}"))
    # One run later it would have been tried again.
    assert get(shop.tasks.add.delay(1, 1)) == 2
    assert [line for line in shop.ledger() if line.startswith(f"steers {result.id}")] == [f"steers {result.id} 0"]


def test_a_limit_said_in_a_call_holds_for_retries_by_themselves(shop: Workshop) -> None:
    result = shop.tasks.overrides.delay()
    with pytest.raises(shop.tasks.Busy):
        get(result)
    assert len([line for line in shop.ledger() if line.startswith(f"overrides {result.id}")]) == 2


def test_without_a_limit_it_is_tried_for_ever(shop: Workshop) -> None:
    assert get(shop.tasks.for_ever.delay(12)) == 12


def test_an_attempt_that_cannot_be_sent_fails_the_task(shop: Workshop) -> None:
    with pytest.raises(EncodeError, match="argument 1 of args"):
        get(shop.tasks.unsendable.delay())


def test_an_attempt_may_go_elsewhere(shop: Workshop) -> None:
    assert get(shop.tasks.moves.delay(f"{shop.queue}.low")) == [f"{shop.queue}.low", 3]


def test_an_attempt_stays_in_its_queue_whatever_else_its_exchange_reaches(shop: Workshop) -> None:
    # Given a call through an exchange that reaches two queues
    result = shop.tasks.look.apply_async((1,), exchange=f"{shop.queue}.news", routing_key="news.eu")

    # When both ask for another attempt / Then each gets its own, in its queue
    for queue in ("topic", "topic2"):
        shop.noted(f"{result.id} 1 '' {shop.queue}.{queue}")
    shop.noted(f"{result.id} 0 '{shop.queue}.news' news.eu", times=2)


def test_an_attempt_whose_connection_was_lost_asks_for_one_other(tmp_path: Path, broker_url: str) -> None:
    # Given a late-ack task that is running, on a worker that reaches its broker through a proxy
    with Proxy(broker_url) as proxy, Workshop(tmp_path, broker_url, SOURCE) as shop:
        shop.also_delete(*(f"{shop.queue}.{each}" for each in ("low", "topic", "topic2")))
        worker = shop.start("-c", "1", "--prefetch-multiplier", "2", env={"AMQPTASKS_BROKER_URL": proxy.url})
        gate = shop.gate()
        result = shop.tasks.held.delay(gate.name)
        gate.reached()

        # When the connections are cut, and the task asks for another attempt once it has been delivered again
        proxy.cut()
        last = shop.tasks.add.delay(1, 1)
        worker.wait_for(re.escape(f"add[{last.id}] received"))
        gate.open()

        # Then each attempt was made once
        assert get(result) == 1
        assert get(shop.tasks.add.delay(1, 1)) == 2
        held = [line for line in shop.ledger() if line.startswith("held")]
        assert held == [f"held {result.id} 0", f"held {result.id} 1"]
        shop.delete_exchange(f"{shop.queue}.news")


def test_called_as_a_function_there_is_no_next_attempt(shop: Workshop) -> None:
    with pytest.raises(shop.tasks.Busy, match="not yet"):
        shop.tasks.busy(1)
    with pytest.raises(Retry, match="Task can be retried"):
        shop.tasks.in_vain()


# -- delays through exchanges


def test_a_delayed_call_goes_through_its_exchange_with_its_key(shop: Workshop) -> None:
    # When a call to a topic is delayed, by an exchange alone, or by a queue that is bound to it
    news = f"{shop.queue}.news"
    both = shop.tasks.look.apply_async((0,), exchange=news, routing_key="news.eu", countdown=0.1)
    one = shop.tasks.look.apply_async((0,), exchange=news, routing_key="news.eu.sport", countdown=0.1)
    named = shop.tasks.look.apply_async((0,), queue=f"{shop.queue}.topic", routing_key="news.us", countdown=0.1)

    # Then each comes to all queues that its key reaches when it is due, and shows where it was sent
    shop.noted(f"{both.id} 0 {news!r} news.eu", times=2)
    shop.noted(f"{one.id} 0 {news!r} news.eu.sport")
    shop.noted(f"{named.id} 0 {news!r} news.us", times=2)
    for key in ("news.eu", "news.eu.sport", "news.us"):
        shop.also_delete(shop.app.sender.ladder.through(news, key))


def test_a_delayed_call_to_no_exchange_is_an_error(shop: Workshop) -> None:
    with pytest.raises(NotSent, match="nowhere"):
        shop.tasks.look.apply_async((0,), exchange="nowhere-at-all", routing_key="x", countdown=1)


def test_a_callback_is_delayed_through_its_exchange(shop: Workshop) -> None:
    # Given a callback that a worker sends, with a delay, to a topic
    news = f"{shop.queue}.news"
    follows = shop.tasks.look.si(0).set(exchange=news, routing_key="news.late.one", countdown=0.1)
    follows.freeze()
    shop.tasks.add.apply_async((1, 1), link=follows)
    shop.noted(f"{follows.id} 0 {news!r} news.late.one")
    shop.also_delete(shop.app.sender.ladder.through(news, "news.late.one"))


# -- expiry


def test_a_task_expires_while_it_waits_its_turn(shop: Workshop) -> None:
    # Given a worker whose places are all taken
    gate = shop.gate()
    running = [shop.tasks.wait.delay(gate.name) for _ in range(2)]
    gate.reached()

    # When a task comes that may wait for a moment only, and the moment is over before its turn
    result = shop.tasks.moment.apply_async(expires=0.3)
    shop.workers[0].wait_for(re.escape(f"moment[{result.id}] received"))
    deadline = time.time() + 0.3
    last = shop.tasks.add.apply_async((1, 1), countdown=0.5)
    shop.workers[0].wait_for(re.escape(f"add[{last.id}] received"))
    assert time.time() >= deadline
    gate.open()

    # Then it is not run
    with pytest.raises(TaskRevokedError, match="expired"):
        get(result)
    for each in [*running, last]:
        get(each)


def test_a_retry_that_comes_too_late_has_expired(shop: Workshop) -> None:
    result = shop.tasks.busy.apply_async((1, 0.6), expires=0.5)
    with pytest.raises(TaskRevokedError, match="expired"):
        get(result)


# -- delays


@pytest.mark.parametrize("delay_s", [0.02, 0.1, 0.24, 0.3])
def test_no_task_begins_before_its_time(shop: Workshop, delay_s: float) -> None:
    # When a message with a time comes to a worker early, from whomever
    eta = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=delay_s)
    task_id = str(uuid.uuid4())
    headers = {
        "task": f"{shop.project.name}.moment", "id": task_id, "lang": "py", "eta": eta.isoformat(), "retries": 0,
    }  # fmt: skip
    result = shop.app.AsyncResult(task_id)
    shop.app.backend.expect(task_id)
    shop.publish(
        b"[[], {}, {}]", headers, content_type="application/json", content_encoding="utf-8", correlation_id=task_id,
        reply_to=shop.app.backend.reply_to(),
    )  # fmt: skip

    # Then it waits, in the broker or for its last moment in the worker
    assert get(result) >= eta.timestamp()
