"""The Redis store where it meets the world: outages, lost connections, forks, crowds, and who is told of what."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import sys
import textwrap
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from amqptasks.app.app import App
from amqptasks.exceptions import (
    BackendError,
    BackendGetMetaError,
    BackendStoreError,
    EncodeError,
    TaskRevokedError,
    TimeoutError,
)
from amqptasks.results import redis_news
from amqptasks.results.record import ResultRecord
from amqptasks.results.redis import RedisBackend
from amqptasks.results.retries import StoreRetries
from tests.proxy import Proxy
from tests.running import Workshop
from tests.support import ROOT, PrivateRedis, eventually, in_thread

PATIENCE_S = 30.0


def success(task_id: str, value: Any = 1) -> ResultRecord:
    return ResultRecord.now(task_id, "SUCCESS", value)


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateRedis]:
    """A Redis for this module, to be asked what it sees."""
    missing = PrivateRedis.missing()
    if missing:
        pytest.skip(missing)
    import tempfile

    server = PrivateRedis(Path(tempfile.mkdtemp(prefix="amqptasks-redis-")))
    server.start()
    yield server
    server.delete()


@pytest.fixture
def store() -> Iterator[Callable[..., RedisBackend]]:
    """Make a backend: ``store(url)``."""
    made: list[RedisBackend] = []

    def make(url: str, **options: Any) -> RedisBackend:
        made.append(RedisBackend(url, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def task_id() -> str:
    return str(uuid.uuid4())


def followers(server: PrivateRedis, *ids: str) -> int:
    """How many connections follow these results, all together."""
    said = server.cli("PUBSUB", "NUMSUB", *(f"celery-task-meta-{each}" for each in ids)).split()
    return sum(map(int, said[1::2]))


def feeds(server: PrivateRedis) -> list[str]:
    """The connections that news go over."""
    return [line for line in server.cli("CLIENT", "LIST", "TYPE", "pubsub").splitlines() if line]


def calls(server: PrivateRedis, command: str) -> int:
    """How often a command was given since the statistics began."""
    for line in server.cli("INFO", "commandstats").splitlines():
        name, _, rest = line.partition(":")
        if name == f"cmdstat_{command}":
            return int(rest.partition("calls=")[2].partition(",")[0])
    return 0


# ---- Being told


def test_who_waits_is_told_and_does_not_ask(server: PrivateRedis, store: Any, task_id: str) -> None:
    # Given somebody who waits
    backend = store(server.url)
    server.cli("CONFIG", "RESETSTAT")
    result = in_thread(lambda: backend.wait(task_id, PATIENCE_S).result)
    eventually(lambda: followers(server, task_id) == 1)
    eventually(lambda: calls(server, "mget") == 1)
    # When the result is stored / Then it is there, and Redis was asked once, in the beginning
    store(server.url).store(success(task_id, "told"))
    assert result() == "told"
    assert calls(server, "mget") == 1


def test_what_is_there_already_is_not_followed(server: PrivateRedis, store: Any, task_id: str) -> None:
    # Given a program that has just heard from Redis, and results that are there
    backend, ids = store(server.url), [f"{task_id}-{number}" for number in range(20)]
    for each in ids:
        store(server.url).store(success(each, each))
    backend.wait(ids[0], PATIENCE_S)
    server.cli("CONFIG", "RESETSTAT")
    # When it asks for them one by one / Then each takes one question
    assert [backend.wait(each, PATIENCE_S).result for each in ids] == ids
    assert calls(server, "subscribe") == calls(server, "mget") == 0
    assert calls(server, "get") == 20


def test_all_who_wait_share_one_connection_which_ends_when_nobody_does(
    server: PrivateRedis, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_news, "TICK_S", 0.05)
    monkeypatch.setattr(redis_news, "IDLE_S", 0.2)
    eventually(lambda: not feeds(server), PATIENCE_S)
    # Given a crowd of threads that wait, some of them for the same
    backend = store(server.url)
    ids = [str(uuid.uuid4()) for _ in range(40)]
    joins = [in_thread(lambda each=each: backend.wait(each, PATIENCE_S).result) for each in [*ids, *ids[:10]]]
    eventually(lambda: followers(server, *ids) == 40, PATIENCE_S)
    # When Redis is asked / Then there is one connection for them all
    assert len(feeds(server)) == 1
    for each in ids:
        backend.store(success(each, each))
    assert [join() for join in joins] == [*ids, *ids[:10]]
    # And when all have what they waited for, nothing is followed, and connection and thread end
    eventually(lambda: followers(server, *ids) == 0, PATIENCE_S)
    eventually(lambda: not feeds(server), PATIENCE_S)
    eventually(lambda: not any(each.name == "amqptasks-redis-news" for each in threading.enumerate()), PATIENCE_S)
    # And then it all begins again
    again = in_thread(lambda: backend.wait("again" + ids[0], PATIENCE_S).result)
    store(server.url).store(success("again" + ids[0], 2))
    assert again() == 2


def test_what_is_no_longer_waited_for_is_left_after_a_while(
    server: PrivateRedis, store: Any, task_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = store(server.url)
    # Given a wait that has timed out / Then its task is still followed, for another wait
    with pytest.raises(TimeoutError):
        backend.wait(task_id, 0.05)
    eventually(lambda: followers(server, task_id) == 1)
    assert in_thread(lambda: (backend.store(success(task_id, 3)), backend.wait(task_id, PATIENCE_S).result)[1])() == 3
    # And when nobody comes back for long, it is not
    monkeypatch.setattr(redis_news, "LINGER_S", 0.1)
    monkeypatch.setattr(redis_news, "TICK_S", 0.05)
    with pytest.raises(TimeoutError):
        backend.wait(f"{task_id}-2", 0.05)
    eventually(lambda: followers(server, task_id, f"{task_id}-2") == 0, PATIENCE_S)


def test_nothing_is_followed_that_is_only_sent(server: PrivateRedis, store: Any, task_id: str) -> None:
    backend = store(server.url)
    backend.expect(task_id)
    assert followers(server, task_id) == 0
    assert backend.fetch(task_id) is None


def test_coroutines_are_told_too_without_threads(server: PrivateRedis, task_id: str) -> None:
    # Given an app with results in Redis, and coroutines that wait for many of them
    app = App("told", backend=server.url, set_as_current=False)
    ids = [f"{task_id}-{number}" for number in range(100)]

    def own_threads() -> list[threading.Thread]:
        # Those that asyncio starts for this test's own calls come as they are needed.
        return [each for each in threading.enumerate() if not each.name.startswith("asyncio_")]

    async def main() -> list[Any]:
        gathered = asyncio.gather(*(app.AsyncResult(each).aget(timeout=PATIENCE_S) for each in ids))
        threads = len(own_threads())
        await asyncio.to_thread(lambda: eventually(lambda: followers(server, *ids) == 100, PATIENCE_S))
        # When they come / Then all of them have theirs, and there is one thread more
        for each in ids:
            await asyncio.to_thread(app.backend.store, success(each, each))
        values = await gathered
        assert len(own_threads()) <= threads + 1
        return list(values)

    assert asyncio.run(main()) == ids
    with pytest.raises(TimeoutError):
        asyncio.run(app.AsyncResult("never").aget(timeout=0.05))
    app.close()


# ---- Outages


def test_nothing_is_missed_while_connections_are_lost(server: PrivateRedis, store: Any) -> None:
    # Given somebody who waits for one result after another
    backend, worker = store(server.url), store(server.url)
    for number in range(15):
        task_id = f"{uuid.uuid4()}-{number}"
        result = in_thread(lambda task_id=task_id: backend.wait(task_id, PATIENCE_S).result)
        if number % 3:
            eventually(lambda task_id=task_id: followers(server, task_id) == 1)
        # When the connection for news is lost just as the result comes / Then it is there all the same
        lost = in_thread(lambda: server.cli("CLIENT", "KILL", "TYPE", "pubsub"))
        worker.store(success(task_id, number))
        assert result() == number
        lost()


def test_a_wait_outlasts_a_redis_that_restarts(own_redis: PrivateRedis, store: Any) -> None:
    # Given results that are waited for, with a timeout and without, by threads and a coroutine
    backend = store(own_redis.url)
    backend.store(success("other"))
    app = App("restarts", backend=own_redis.url, set_as_current=False)
    joins = [
        in_thread(lambda timeout_s=timeout_s: backend.wait("late", timeout_s).result) for timeout_s in (30.0, None)
    ]
    joins.append(in_thread(lambda: backend.wait_any(["late", "later"], 30.0)[0].result))
    joins.append(in_thread(lambda: asyncio.run(app.AsyncResult("late").aget(timeout=30.0))))
    eventually(lambda: followers(own_redis, "late") == 2)
    # When Redis is killed, comes back, and the result is stored
    own_redis.kill()
    with pytest.raises(BackendGetMetaError, match=r"cannot read the result of task late in redis://:\*\*\*@127"):
        store(own_redis.url, retries=StoreRetries(limit=0)).fetch("late")
    own_redis.start()
    store(own_redis.url).store(success("late", "there"))
    # Then all of them get it, and what was stored before the kill is there
    assert [join() for join in joins] == ["there"] * 4
    assert backend.fetch("other").result == 1
    app.close()


def test_a_wait_that_ends_in_an_outage_says_so_in_time(
    own_redis: PrivateRedis, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = store(own_redis.url, retries=StoreRetries(limit=0))
    assert backend.fetch("id") is None
    own_redis.kill()
    said = r"cannot read results in redis://:\*\*\*@.*refused"
    with pytest.raises(BackendGetMetaError, match=said):
        backend.wait("id", 0.5)
    with pytest.raises(BackendGetMetaError, match=said):
        backend.wait_any(["id", "other"], 0.5)
    with pytest.raises(BackendStoreError, match="cannot store the result of task id"):
        backend.store(success("id"))
    with pytest.raises(BackendStoreError, match="cannot forget the result of task id"):
        backend.forget("id")
    with pytest.raises(BackendStoreError, match="cannot get ready"):
        backend.prepare()
    # And without a timeout after a while
    monkeypatch.setattr(redis_news, "PATIENCE_S", 0.3)
    with pytest.raises(BackendGetMetaError, match=said):
        backend.wait("id", None)
    app = App("outage", backend=own_redis.url, set_as_current=False)
    with pytest.raises(BackendGetMetaError, match=said):
        asyncio.run(app.AsyncResult("id").aget())
    app.close()


def test_a_link_that_is_dead_without_a_word_is_replaced(
    server: PrivateRedis, store: Any, task_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("SILENCE_S", 0.2), ("ANSWER_S", 0.3), ("TICK_S", 0.05)):
        monkeypatch.setattr(redis_news, name, seconds)
    with Proxy(server.url) as proxy:
        # Given somebody who waits over a link that goes silent
        backend = store(proxy.url, options={"defaults": {"socket_timeout": 0.5}})
        result = in_thread(lambda: backend.wait(task_id, PATIENCE_S).result)
        eventually(lambda: followers(server, task_id) == 1)
        accepted = proxy.accepted
        # (Silence alone is no fault: Redis answers when it is asked.)
        server.cli("CONFIG", "RESETSTAT")
        eventually(lambda: calls(server, "ping") >= 3)
        assert proxy.accepted == accepted
        proxy.stall()
        store(server.url).store(success(task_id, "over there"))
        # When somebody else gives it less time than that / Then it ends in time
        with pytest.raises(BackendError):
            in_thread(lambda: backend.wait(f"{task_id}-2", 2.0))()
        # And when new connections get through / Then the result is there
        proxy.heal()
        assert result() == "over there"


def test_what_redis_has_no_room_for_is_tried_again(
    own_redis: PrivateRedis, store: Any, task_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a Redis that is full
    backend = store(own_redis.url, retries=StoreRetries(max_ms=100))
    own_redis.cli("CONFIG", "SET", "maxmemory", "1")
    with caplog.at_level(logging.WARNING):
        stored = in_thread(lambda: backend.store(success(task_id, "small")))
        eventually(lambda: f"Cannot store the result of task {task_id} in redis://:***@" in caplog.text, PATIENCE_S)
        assert "trying again in" in caplog.text
    # When there is room again / Then it is stored
    own_redis.cli("CONFIG", "SET", "maxmemory", "0")
    stored()
    assert backend.fetch(task_id).result == "small"


# ---- Values


@pytest.mark.parametrize("value", ["no json", "[]", "{}", '{"task_id": "x"}', "\\x80pickle"])
def test_a_value_that_cannot_be_read_is_an_error_and_can_be_replaced(
    server: PrivateRedis, store: Any, task_id: str, value: str
) -> None:
    # Given a key that holds something else
    backend = store(server.url)
    server.cli("SET", f"celery-task-meta-{task_id}", value)
    # When it is read or waited for / Then that says so
    with pytest.raises(BackendGetMetaError, match="cannot read the result of task"):
        backend.fetch(task_id)
    with pytest.raises(BackendGetMetaError, match="cannot read results"):
        backend.wait(task_id, PATIENCE_S)
    # And a result takes its place
    backend.store(success(task_id))
    assert backend.wait(task_id, PATIENCE_S).result == 1


def test_what_comes_unreadable_ends_the_wait(server: PrivateRedis, store: Any, task_id: str) -> None:
    backend = store(server.url)
    result = in_thread(lambda: backend.wait(task_id, None))
    other = in_thread(lambda: backend.wait(f"{task_id}-2", PATIENCE_S).result)
    eventually(lambda: followers(server, task_id, f"{task_id}-2") == 2)
    server.cli("PUBLISH", f"celery-task-meta-{task_id}", "no json")
    with pytest.raises(BackendGetMetaError, match="cannot read results"):
        result()
    # And nobody else's
    backend.store(success(f"{task_id}-2", 2))
    assert other() == 2


def test_a_key_of_another_kind_is_an_error_at_once(server: PrivateRedis, store: Any, task_id: str) -> None:
    server.cli("LPUSH", f"celery-task-meta-{task_id}", "x")
    backend = store(server.url)
    with pytest.raises(BackendStoreError, match="WRONGTYPE"):
        backend.store(success(task_id))
    with pytest.raises(BackendGetMetaError, match="WRONGTYPE"):
        backend.fetch(task_id)


def test_an_id_that_no_key_can_hold_is_refused(server: PrivateRedis, store: Any) -> None:
    backend = store(server.url)
    with pytest.raises(EncodeError, match="half"):
        backend.store(success("half\ud800"))
    with pytest.raises(EncodeError, match="half"):
        backend.wait("half\ud800", 1)
    with pytest.raises(BackendGetMetaError, match="half"):
        backend.fetch("half\ud800")


def test_large_values_and_many_ids_go_through(server: PrivateRedis, store: Any) -> None:
    backend, prefix = store(server.url), uuid.uuid4().hex
    ids = [f"{prefix}-{number}" for number in range(1200)]
    backend.store(success(ids[0], "x" * 5_000_000))
    backend.store(success(ids[-1]))
    backend.store(ResultRecord.now(ids[600], "STARTED"))
    assert {each.task_id for each in backend.wait_any(ids, PATIENCE_S)} == {ids[0], ids[-1]}
    result = in_thread(lambda: backend.wait(ids[1], PATIENCE_S).result)
    eventually(lambda: followers(server, ids[1]) == 1)
    store(server.url).store(success(ids[1], "y" * 5_000_000))
    assert len(result()) == 5_000_000
    with pytest.raises(TimeoutError):
        backend.wait_any([], None)


# ---- Many processes

CROWD = """
    import sys
    from amqptasks.results.record import ResultRecord
    from amqptasks.results.redis import RedisBackend
    store = RedisBackend(sys.argv[1])
    ids = [f"{sys.argv[2]}-{number}" for number in range(150)]
    for number, task_id in enumerate(ids):
        for status in ("STARTED", "FAILURE", "SUCCESS", "STARTED", "FAILURE"):
            store.store(ResultRecord.now(task_id, status, int(sys.argv[3])))
            if status == "SUCCESS":
                first = store.fetch(task_id)
                assert first.status == "SUCCESS", first
        assert store.fetch(task_id) == first
    store.close()
"""


def run(program: str, *commands: tuple[str, ...]) -> None:
    """Run a program in several processes at once, each with its arguments."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for arguments in commands
    ]
    for each in started:
        _, errors = each.communicate(timeout=50)
        assert each.returncode == 0, errors


def test_a_success_stands_however_many_write_at_once(server: PrivateRedis) -> None:
    # Given processes that store all states of the same tasks / When one has read a success / Then it never changes
    prefix = uuid.uuid4().hex
    run(CROWD, *[(server.url, prefix, str(number)) for number in range(4)])


FORK = """
    import os, sys, threading
    from amqptasks.results.record import ResultRecord
    from amqptasks.results.redis import RedisBackend
    from amqptasks.results.retries import StoreRetries
    # Without retries, a connection that somebody else has closed shows.
    store = RedisBackend(sys.argv[1], retries=StoreRetries(limit=0))
    prefix = sys.argv[2]
    store.store(ResultRecord.now(f"{prefix}-parent", "SUCCESS", 1))
    values = []
    waiter = threading.Thread(target=lambda: values.append(store.wait(f"{prefix}-late", 30).result))
    waiter.start()
    for number in range(3):
        child = os.fork()
        if not child:
            assert store.fetch(f"{prefix}-parent").result == 1
            store.store(ResultRecord.now(f"{prefix}-child-{number}", "SUCCESS", number))
            assert store.wait(f"{prefix}-child-{number}", 30).result == number
            store.close()
            # An end without ceremony: the thread that waits in the parent is not here.
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert store.wait(f"{prefix}-child-{number}", 30).result == number
        store.store(ResultRecord.now(f"{prefix}-beside-{number}", "SUCCESS", number))
    store.store(ResultRecord.now(f"{prefix}-late", "SUCCESS", "late"))
    waiter.join(30)
    assert values == ["late"]
    store.close()
"""


def test_a_forked_child_takes_nothing_from_its_parent(server: PrivateRedis) -> None:
    run(FORK, (server.url, uuid.uuid4().hex))


# ---- Workers

OUTAGE = """
    app.conf.update(
        result_backend=(HERE / "url").read_text(), task_acks_late=True, task_track_started=True,
        result_backend_max_sleep_between_retries_ms=200,
    )

    @app.task
    def answer(name):
        gate(name)
        note("ran")
        return 42

    @app.task
    def add(x, y):
        return x + y

    @app.task(ignore_result=True)
    def aside():
        note("aside")
"""


@pytest.mark.deadline(90)
def test_a_task_is_acked_once_its_result_is_stored_and_not_before(
    tmp_path: Path, broker_url: str, own_redis: PrivateRedis
) -> None:
    (tmp_path / "url").write_text(own_redis.url)
    with Workshop(tmp_path, broker_url, OUTAGE) as shop:
        # Given a task that is running while Redis is killed, and somebody who waits for it
        worker = shop.start("-c", "2")
        gate = shop.gate()
        result = shop.tasks.answer.delay(gate.name)
        gate.reached()
        assert result.state == "STARTED"
        value = in_thread(lambda: result.get(timeout=PATIENCE_S))
        own_redis.kill()
        # When it ends, its result cannot be stored, and the worker says so and keeps the message
        gate.open()
        shop.noted("ran")
        worker.wait_for(r"Cannot store the result of task \S+ in redis://:\*\*\*@.*trying again in")
        # And another task that expired, of which the worker itself must tell; and the worker goes on with the rest
        expired = shop.tasks.answer.apply_async((gate.name,), expires=-1)
        worker.wait_for("has expired")
        worker.wait_for(f"Cannot store the result of task {expired.id} in")
        shop.tasks.aside.delay()
        shop.noted("aside")
        # When Redis is back / Then both are stored, and the task ran once
        own_redis.start()
        assert value() == 42
        with pytest.raises(TaskRevokedError):
            expired.get(timeout=PATIENCE_S)
        assert shop.ledger() == ["ran", "aside"]
        # And nothing was lost while Redis was restarted under load
        sent = [shop.tasks.add.delay(number, number) for number in range(60)]
        with contextlib.closing(shop.app):
            restart = in_thread(lambda: (own_redis.kill(), own_redis.start()))
            assert [each.get(timeout=PATIENCE_S) for each in sent] == [2 * number for number in range(60)]
            restart()
        assert str(own_redis.url.split("@")[0].rpartition(":")[2]) not in worker.log
        assert worker.stop() == 0
        shop.is_waiting(0)
