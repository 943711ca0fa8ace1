"""The memcached store where it meets the world: outages, limits, several servers, forks, crowds, and its settings."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery
import pymemcache
import pytest

from amqptasks.app.app import App
from amqptasks.exceptions import BackendGetMetaError, BackendStoreError, EncodeError, ImproperlyConfigured
from amqptasks.results.memcached import MemcachedBackend
from amqptasks.results.memory import MemoryBackend
from amqptasks.results.record import ResultRecord
from tests.running import Workshop
from tests.support import ROOT, PrivateMemcached, in_thread

PATIENCE_S = 30.0


def success(task_id: str, value: Any = 1) -> ResultRecord:
    return ResultRecord.now(task_id, "SUCCESS", value)


@pytest.fixture
def backend(memcached_url: str) -> Iterator[Callable[..., MemcachedBackend]]:
    """Make the backend of an app with these settings."""
    made: list[App] = []

    def make(url: str = memcached_url, **settings: Any) -> MemcachedBackend:
        made.append(App("memcached", result_backend=url, set_as_current=False, **settings))
        result = made[-1].backend
        assert isinstance(result, MemcachedBackend)
        return result

    yield make
    for app in made:
        app.close()


@pytest.fixture
def task_id() -> str:
    return str(uuid.uuid4())


def place(url: str) -> str:
    return url.partition("://")[2].rstrip("/")


def seconds_left(url: str, key: str) -> int:
    """How long a key lives, by the server's own word; -1 for ever."""
    client = pymemcache.Client(place(url))
    said = client.raw_command(f"mg {key} t").decode()
    client.close()
    assert said.startswith("HD "), said
    return int(said.split()[1].removeprefix("t"))


# ---- Outages


def test_a_wait_outlasts_a_memcached_that_restarts(own_memcached: PrivateMemcached, backend: Any) -> None:
    # Given results that are waited for, with a timeout and without
    store = backend(own_memcached.url)
    store.store(success("other"))
    joins = [in_thread(lambda timeout_s=timeout_s: store.wait("late", timeout_s).result) for timeout_s in (30.0, None)]
    # When memcached is killed, comes back, and the result is stored
    own_memcached.kill()
    said = r"cannot read the result of task late in cache\+memcached://127.*refused"
    with pytest.raises(BackendGetMetaError, match=said):
        store.fetch("late")
    with pytest.raises(BackendGetMetaError, match=said):
        store.wait("late", 0.2)
    own_memcached.start()
    backend(own_memcached.url).store(success("late", "there"))
    # Then all of them get it; and what was stored before is gone, for memcached forgets
    assert [join() for join in joins] == ["there", "there"]
    assert store.fetch("other") is None


def test_a_connection_that_the_server_ended_is_replaced_unseen(own_memcached: PrivateMemcached, backend: Any) -> None:
    # Given a store with a connection that a restart has ended, and no retries
    store = backend(own_memcached.url, result_backend_always_retry=False)
    store.store(success("before"))
    own_memcached.kill()
    with pytest.raises(BackendStoreError, match="cannot store the result of task id"):
        store.store(success("id"))
    other = backend(own_memcached.url, result_backend_always_retry=False)
    own_memcached.start()
    other.store(success("one"))
    own_memcached.kill()
    own_memcached.start()
    # When it is used again / Then nobody sees that
    other.store(success("two"))
    assert other.fetch("two").result == 1


# ---- Limits


def test_a_result_that_is_too_large_is_refused_at_once_and_says_so(backend: Any, task_id: str) -> None:
    # With the endless retries of the settings it would never come back
    store = backend()
    with pytest.raises(EncodeError, match=r"too large.*larger than memcached takes \(its option -I\)"):
        store.store(success(task_id, "x" * 2_000_000))
    assert store.fetch(task_id) is None
    # Compressed it may fit
    small = backend(result_compression="gzip")
    small.store(success(task_id, "x" * 2_000_000))
    assert len(small.fetch(task_id).result) == 2_000_000


@pytest.mark.parametrize("bad", ["x" * 300, "with blank", "line\nbreak", "ü", "nul\x00"])
def test_an_id_that_no_key_can_hold_is_refused(backend: Any, bad: str) -> None:
    store = backend()
    with pytest.raises(EncodeError, match="cannot store the result of task"):
        store.store(success(bad))
    with pytest.raises(BackendGetMetaError, match="cannot read the result of task"):
        store.fetch(bad)


@pytest.mark.parametrize(
    ("expires", "expected"),
    [(60, 60), (0.2, 1), (None, -1), (0, -1), (30 * 86_400, 30 * 86_400), (31 * 86_400, 31 * 86_400),
     (3 * 365 * 86_400, 3 * 365 * 86_400)],
)  # fmt: skip
def test_results_expire_when_they_are_to_even_after_years(
    backend: Any, memcached_url: str, task_id: str, expires: Any, expected: int
) -> None:
    store = backend(result_expires=expires)
    begun = time.time()
    store.store(success(task_id))
    left = seconds_left(memcached_url, f"celery-task-meta-{task_id}") if expected != 1 else 1
    # Its clock ticks in whole seconds, and some may have gone by.
    assert left == expected or expected - 3 - (time.time() - begun) <= left <= expected + 2
    # And one that replaces another too
    store.store(ResultRecord.now(f"{task_id}-2", "STARTED"))
    store.store(success(f"{task_id}-2"))
    if expected != 1:
        left = seconds_left(memcached_url, f"celery-task-meta-{task_id}-2")
        assert left == expected or expected - 3 - (time.time() - begun) <= left <= expected + 2


def test_a_value_that_cannot_be_read_is_an_error_and_can_be_replaced(
    backend: Any, memcached_url: str, task_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = pymemcache.Client(place(memcached_url))
    client.set(f"celery-task-meta-{task_id}", b"no json", noreply=False)
    client.close()
    store = backend()
    with pytest.raises(BackendGetMetaError, match="cannot read the result of task"):
        store.fetch(task_id)
    with caplog.at_level(logging.WARNING):
        store.store(success(task_id))
    assert "cannot be read and is overwritten" in caplog.text
    assert store.fetch(task_id).result == 1


# ---- Several servers


def test_several_servers_divide_results_as_celery_does(backend: Any, memcached_url: str) -> None:
    # Given two servers, and Celery on the same two
    second = PrivateMemcached(Path(tempfile.mkdtemp(prefix="amqptasks-memcached-")))
    second.start()
    url = f"{memcached_url.rstrip('/')};{place(second.url)}/"
    store = backend(url)
    theirs = celery.Celery("theirs", broker="memory://", backend=url, set_as_current=False)
    ids = [f"{uuid.uuid4()}" for _ in range(40)]
    # When both store / Then each finds what the other stored, and it lies on both servers
    for task_id in ids[:20]:
        store.store(success(task_id, task_id))
    for task_id in ids[20:]:
        theirs.backend.store_result(task_id, task_id, "SUCCESS")
    assert [theirs.AsyncResult(task_id).get(timeout=5) for task_id in ids[:20]] == ids[:20]
    assert {record.result for record in store.wait_any(ids, PATIENCE_S)} == set(ids)
    halves = [
        {each for each in ids if alone.fetch(each) is not None} for alone in (backend(), backend(second.url))
    ]  # fmt: skip
    assert all(halves) and halves[0] | halves[1] == set(ids) and not halves[0] & halves[1]
    # And when one of them is away, its part is not kept on the other, where nobody would look later
    second.kill()
    its = sorted(halves[1])
    broken = backend(url, result_backend_always_retry=False)
    with pytest.raises(BackendStoreError, match="refused"):
        broken.store(ResultRecord.now(its[0], "SUCCESS", "again"))
    assert broken.fetch(sorted(halves[0])[0]) is not None
    assert backend().fetch(its[0]) is None
    theirs.backend.client.close()
    second.delete()


# ---- Many processes

CROWD = """
    import sys
    from amqptasks.results.memcached import MemcachedBackend
    from amqptasks.results.record import ResultRecord
    store = MemcachedBackend(sys.argv[1])
    for number in range(150):
        task_id = f"{sys.argv[2]}-{number}"
        for status in ("STARTED", "FAILURE", "SUCCESS", "STARTED", "FAILURE"):
            store.store(ResultRecord.now(task_id, status, int(sys.argv[3])))
            if status == "SUCCESS":
                first = store.fetch(task_id)
                assert first.status == "SUCCESS", first
        assert store.fetch(task_id) == first
    store.close()
"""

FORK = """
    import os, sys
    from amqptasks.results.memcached import MemcachedBackend
    from amqptasks.results.record import ResultRecord
    from amqptasks.results.retries import StoreRetries
    store = MemcachedBackend(sys.argv[1], retries=StoreRetries(limit=0))
    prefix = sys.argv[2]
    store.store(ResultRecord.now(f"{prefix}-parent", "SUCCESS", 1))
    children = []
    for number in range(4):
        child = os.fork()
        if not child:
            for turn in range(100):
                task_id = f"{prefix}-{number}-{turn}"
                store.store(ResultRecord.now(task_id, "SUCCESS", task_id))
                assert store.fetch(task_id).result == task_id
            store.close()
            sys.exit(0)
        children.append(child)
    for turn in range(100):
        assert store.fetch(f"{prefix}-parent").result == 1
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert store.fetch(f"{prefix}-3-99").result == f"{prefix}-3-99"
    store.close()
"""


@pytest.mark.parametrize(("program", "count"), [(CROWD, 4), (FORK, 1)], ids=["crowd", "fork"])
def test_processes_do_not_disturb_each_other(memcached_url: str, program: str, count: int) -> None:
    prefix, url = uuid.uuid4().hex, memcached_url.removeprefix("cache+")
    started = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), url, prefix, str(number)], cwd=ROOT,
            stderr=subprocess.PIPE, text=True,
        )
        for number in range(count)
    ]  # fmt: skip
    for each in started:
        _, errors = each.communicate(timeout=50)
        assert each.returncode == 0, errors


# ---- Settings


def test_the_server_can_have_a_setting_of_its_own(backend: Any, memcached_url: str, task_id: str) -> None:
    # Given backends that are named by the setting, and by the URL
    backend().store(success(task_id, 7))
    for name in ("cache", "cache://"):
        assert backend(name, cache_backend=memcached_url.removeprefix("cache+")).fetch(task_id).result == 7
    assert isinstance(App("m", result_backend="cache", cache_backend="memory://").backend, MemoryBackend)
    for alias in ("memcache", "pymemcache", "pylibmc"):
        assert backend(f"cache+{alias}://{place(memcached_url)}").fetch(task_id).result == 7


def test_options_go_to_the_client(backend: Any, task_id: str, caplog: pytest.LogCaptureFixture) -> None:
    # Given a prefix that the client puts before every key
    backend(cache_backend_options={"key_prefix": "shop-"}).store(success(task_id))
    assert backend().fetch(task_id) is None
    with caplog.at_level(logging.WARNING):
        found = backend(cache_backend_options={"key_prefix": b"shop-", "behaviors": {}, "retry_attempts": 3})
    assert found.fetch(task_id).result == 1
    assert "cache_backend_options: behaviors, retry_attempts has no effect" in caplog.text
    # And one that no client takes says so
    with pytest.raises(ImproperlyConfigured, match="nonsense"):
        backend(cache_backend_options={"nonsense": 1}).fetch(task_id)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("cache", "expected the result backend cache.memcached://host:11211 or cache.memory://"),
        ("cache+redis://me:secret@host", r"got: cache\+redis://me:\*\*\*@host"),
        ("cache+memcached://", "names no server"),
        ("cache+memcached://host:port", "cannot be used: invalid literal"),
    ],
)
def test_what_cannot_be_used_says_so(url: str, said: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=said):
        App("memcached", result_backend=url, set_as_current=False).backend.fetch("id")


# ---- Workers


def test_a_task_is_acked_once_its_result_is_stored_and_not_before(
    tmp_path: Path, broker_url: str, own_memcached: PrivateMemcached
) -> None:
    source = f"""
    app.conf.update(
        result_backend={own_memcached.url!r}, task_acks_late=True, result_backend_max_sleep_between_retries_ms=200,
    )

    @app.task
    def answer(name):
        gate(name)
        note("ran")
        return 42

    @app.task
    def large():
        return os.urandom(1_500_000).hex()
    """
    with Workshop(tmp_path, broker_url, source) as shop:
        # Given a task that is running while memcached is killed, and somebody who waits for it
        worker = shop.start("-c", "1")
        gate = shop.gate()
        result = shop.tasks.answer.delay(gate.name)
        gate.reached()
        value = in_thread(lambda: result.get(timeout=PATIENCE_S))
        own_memcached.kill()
        # When it ends / Then its result waits, and so does the message
        gate.open()
        shop.noted("ran")
        worker.wait_for(r"Cannot store the result of task \S+ in cache\+memcached://.*trying again in")
        own_memcached.start()
        assert value() == 42
        # And a result that is too large fails its task
        with pytest.raises(Exception, match="too large"):
            shop.tasks.large.delay().get(timeout=PATIENCE_S)
        assert shop.ledger() == ["ran"]
        assert worker.stop() == 0
        shop.is_waiting(0)


def test_pymemcache_is_asked_for_where_it_is_missing_and_imported_only_where_it_is_used() -> None:
    program = """
    import importlib.util, sys
    from amqptasks.results.memcached import MemcachedBackend
    from amqptasks.results.redis import RedisBackend
    for make in (lambda: MemcachedBackend("memcached://host"), lambda: RedisBackend("redis://host")):
        make()
    assert not {"pymemcache", "redis"} & set(sys.modules)
    importlib.util.find_spec = lambda name: None
    for make in (lambda: MemcachedBackend("memcached://host"), lambda: RedisBackend("redis://host")):
        try:
            make()
        except Exception as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.stdout.splitlines() == [
        "the result backend cache+memcached://host/ needs pymemcache: pip install 'amqptasks[memcached]'",
        "the result backend redis://host needs redis: pip install 'amqptasks[redis]'",
    ], done.stderr
