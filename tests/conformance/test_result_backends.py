"""What every result backend promises, asked of each of them.

A new backend needs one line in `SUBJECTS`: a name, and a context manager that makes a `Subject` of pytest's request
(take fixtures by ``request.getfixturevalue``).
"""

from __future__ import annotations

import os
import re
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

from amqptasks.app.app import App
from amqptasks.broker.needs import PublishPolicy
from amqptasks.exceptions import BackendError, TimeoutError
from amqptasks.results.backend import NoResultBackend, ResultBackend
from amqptasks.results.database import DatabaseBackend
from amqptasks.results.files import FileBackend
from amqptasks.results.memcached import MemcachedBackend
from amqptasks.results.memory import MemoryBackend
from amqptasks.results.mongodb import MongoBackend
from amqptasks.results.record import ResultRecord
from amqptasks.results.redis import RedisBackend
from amqptasks.results.rpc import RpcBackend
from amqptasks.wire.message import encode
from tests.support import ROOT, eventually, in_thread

# Long enough for the slowest broker, short enough for a person to wait for.
PATIENCE_S = 20.0


@dataclass
class Subject:
    """A backend under test.

    Attributes:
        backend: The caller's side.
        deliver: Does what a worker does with a record: stores it, or publishes the message it makes.
        other: Makes the same backend as another process would see it; None if no other process can.
    """

    backend: ResultBackend
    deliver: Callable[[ResultRecord], None]
    other: Callable[[], ResultBackend] | None = None


@contextmanager
def memory(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """Results in this process."""
    backend = MemoryBackend()
    yield Subject(backend, backend.store)
    backend.close()


@contextmanager
def rpc(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """Results as answers to this process."""
    app = App("conformance", broker=request.getfixturevalue("broker_url"), backend="rpc://", set_as_current=False)
    backend = app.backend
    assert isinstance(backend, RpcBackend)

    def deliver(record: ResultRecord) -> None:
        message = backend.message(record, backend.reply_to(), record.task_id)
        assert message is not None
        app.publisher.publish(encode(message, "", backend.reply_to()), (backend.need,), PublishPolicy())

    yield Subject(backend, deliver)
    app.close()


@contextmanager
def stored(make: Callable[[], ResultBackend]) -> Iterator[Subject]:
    """Results in a store that every process can make a backend of."""
    made = [make()]

    def other() -> ResultBackend:
        made.append(make())
        return made[-1]

    yield Subject(made[0], made[0].store, other)
    for each in made:
        each.close()


def database(url: str, **options: Any) -> AbstractContextManager[Subject]:
    """Results in a database."""
    return stored(lambda: DatabaseBackend(url, options))


def sqlite(request: pytest.FixtureRequest, **options: Any) -> AbstractContextManager[Subject]:
    """Results in an SQLite file."""
    return database(f"sqlite:///{request.getfixturevalue('tmp_path')}/results.db", **options)


def postgresql(request: pytest.FixtureRequest, **options: Any) -> AbstractContextManager[Subject]:
    """Results in a PostgreSQL."""
    return database(request.getfixturevalue("postgres_url"), **options)


def files(request: pytest.FixtureRequest) -> AbstractContextManager[Subject]:
    """Results as files of a directory."""
    directory = request.getfixturevalue("tmp_path")
    return stored(lambda: FileBackend(f"file://{directory}/results"))


def redis(request: pytest.FixtureRequest) -> AbstractContextManager[Subject]:
    """Results in a Redis."""
    url = request.getfixturevalue("redis_url")
    return stored(lambda: RedisBackend(url))


@contextmanager
def mongodb(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """Results in MongoDB, or in the stand-in for it."""
    made: list[MongoBackend] = []

    def make() -> MongoBackend:
        made.append(MongoBackend(request.getfixturevalue("mongodb_url")))
        return made[-1]

    backend = make()
    yield Subject(backend, backend.store, make)
    for each in made:
        each.close()


def memcached(request: pytest.FixtureRequest) -> AbstractContextManager[Subject]:
    """Results in a memcached."""
    url = request.getfixturevalue("memcached_url").removeprefix("cache+")
    return stored(lambda: MemcachedBackend(url))


@contextmanager
def own(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """Results in the store that docs/guide.md shows how to write."""
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    source = next(
        block for block in re.findall(r"^```python\n(.*?)^```$", guide, re.S | re.M) if "class OurStore" in block
    )
    name = f"guide_{uuid.uuid4().hex[:8]}"
    module = sys.modules[name] = ModuleType(name)
    exec(compile(source, "docs/guide.md", "exec"), module.__dict__)
    made: list[App] = []

    def make() -> ResultBackend:
        url = f"{name}.OurStore+drawer://{request.getfixturevalue('tmp_path')}/drawer.db"
        made.append(App("own", backend=url, set_as_current=False))
        return made[-1].backend

    backend = make()
    yield Subject(backend, backend.store, make)
    for each in made:
        each.close()
    del sys.modules[name]


SUBJECTS: dict[str, Callable[[pytest.FixtureRequest], AbstractContextManager[Subject]]] = {
    "file": files,
    "memcached": memcached,
    "memory": memory,
    "mongodb": mongodb,
    "own": own,
    "postgresql": postgresql,
    # The statements for databases without an insert-or-update that is known.
    "postgresql-portable": lambda request: postgresql(request, upsert=False),
    "redis": redis,
    "rpc": rpc,
    "sqlite": sqlite,
    "sqlite-portable": lambda request: sqlite(request, upsert=False),
}


@contextmanager
def of_django(name: str) -> Iterator[Subject]:
    """Results in a Django project."""
    from tests.django_subjects import BACKENDS, made_by

    with made_by(*BACKENDS[name]) as (backend, make):
        yield Subject(backend, backend.store, make)


if os.environ.get("AMQPTASKS_TEST_DJANGO"):
    # In a process of their own: `test_django_backends.py`.
    SUBJECTS = {
        name: lambda _request, name=name: of_django(name)  # type: ignore[misc]
        for name in ("django-cache-db", "django-db-postgresql", "django-db-sqlite")
    }


@pytest.fixture(params=sorted(SUBJECTS))
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """Each backend in turn."""
    with SUBJECTS[request.param](request) as subject:
        yield subject


@pytest.fixture
def backend(subject: Subject) -> ResultBackend:
    """The caller's side of the backend in turn."""
    return subject.backend


@pytest.fixture
def new(backend: ResultBackend) -> Callable[[], str]:
    """Make the id of a task whose answer is expected."""

    def make() -> str:
        task_id = str(uuid.uuid4())
        backend.expect(task_id)
        return task_id

    return make


def success(task_id: str, value: Any = 4) -> ResultRecord:
    return ResultRecord.now(task_id, "SUCCESS", value)


def failure(task_id: str) -> ResultRecord:
    plain = {"exc_type": "ValueError", "exc_message": ["no"], "exc_module": "builtins"}
    return ResultRecord.now(task_id, "FAILURE", plain, traceback="Traceback …")


def test_nothing_is_known_of_a_task_that_was_only_sent(backend, new):
    assert backend.fetch(new()) is None


def test_nothing_is_known_of_an_id_nobody_ever_used(backend):
    assert backend.fetch(str(uuid.uuid4())) is None


def test_a_result_that_is_there_is_returned_at_once(subject, backend, new):
    task_id = new()
    record = success(task_id)
    subject.deliver(record)
    assert backend.wait(task_id, PATIENCE_S) == record
    assert backend.fetch(task_id) == record


def test_everything_in_a_record_comes_back(subject, backend, new):
    task_id = new()
    record = ResultRecord(
        task_id, "SUCCESS", {"a": [1, 2.5, None, True, "ü"]}, None, [[["child", None], None]],
        "2026-01-02T03:04:05.678901+00:00", "group", "parent", {"name": "tasks.add", "args": [1], "retries": 2},
    )  # fmt: skip
    subject.deliver(record)
    assert backend.wait(task_id, PATIENCE_S) == record


def test_a_failure_ends_the_wait_too(subject, backend, new):
    task_id = new()
    subject.deliver(failure(task_id))
    assert backend.wait(task_id, PATIENCE_S) == failure_like(backend.fetch(task_id))


def failure_like(record: ResultRecord | None) -> ResultRecord:
    assert record is not None
    assert record.status == "FAILURE"
    assert record.result["exc_type"] == "ValueError"
    assert record.traceback == "Traceback …"
    return record


def test_a_result_can_be_asked_for_many_times_and_in_many_threads(subject, backend, new):
    task_id = new()
    waiters = [in_thread(lambda: backend.wait(task_id, PATIENCE_S).result) for _ in range(5)]
    subject.deliver(success(task_id, "value"))
    assert [join() for join in waiters] == ["value"] * 5
    assert backend.wait(task_id, 0).result == "value"


def test_waiting_for_one_task_is_not_ended_by_another(subject, backend, new):
    first, second = new(), new()
    waiting = in_thread(lambda: backend.wait(first, PATIENCE_S).result)
    subject.deliver(success(second, 2))
    assert backend.wait(second, PATIENCE_S).result == 2
    subject.deliver(success(first, 1))
    assert waiting() == 1


@pytest.mark.parametrize("timeout_s", [0, -1, 0.05])
def test_a_wait_ends_when_its_time_is_over(backend, new, timeout_s):
    with pytest.raises(TimeoutError, match=r"The operation timed out\."):
        backend.wait(new(), timeout_s)


def test_a_wait_that_timed_out_can_be_tried_again(subject, backend, new):
    task_id = new()
    with pytest.raises(TimeoutError):
        backend.wait(task_id, 0.01)
    subject.deliver(success(task_id))
    assert backend.wait(task_id, PATIENCE_S).result == 4


def test_a_state_that_is_not_final_does_not_end_the_wait(subject, backend, new):
    task_id = new()
    subject.deliver(ResultRecord.now(task_id, "STARTED", {"pid": 1}))
    eventually(lambda: (backend.fetch(task_id) or success(task_id)).status == "STARTED", PATIENCE_S)
    with pytest.raises(TimeoutError):
        backend.wait(task_id, 0.01)


def test_states_that_are_seen_while_waiting_are_told(subject, backend, new):
    # Given a caller that waits and listens
    task_id = new()
    seen: list[str] = []
    progressed = threading.Event()

    def on_record(record: ResultRecord) -> None:
        seen.append(record.status)
        progressed.set()

    waiting = in_thread(lambda: backend.wait(task_id, PATIENCE_S, on_record).result)
    # When a custom state, then the final one come in
    subject.deliver(ResultRecord.now(task_id, "PROGRESS", {"done": 1}))
    assert progressed.wait(PATIENCE_S)
    subject.deliver(success(task_id))
    # Then it heard both, in order
    assert waiting() == 4
    assert seen == ["PROGRESS", "SUCCESS"]


def test_a_listener_may_ask_the_backend(subject, backend, new):
    task_id = new()
    subject.deliver(success(task_id))
    known: list[Any] = []
    backend.wait(task_id, PATIENCE_S, lambda record: known.append(backend.fetch(record.task_id)))
    assert known[-1].result == 4


def test_storing_twice_is_storing_once(subject, backend, new):
    task_id = new()
    subject.deliver(success(task_id))
    subject.deliver(success(task_id))
    assert backend.wait(task_id, PATIENCE_S).result == 4


@pytest.mark.parametrize("late", ["FAILURE", "STARTED", "RETRY", "REVOKED", "SUCCESS", "PROGRESS"])
def test_a_success_is_never_overwritten(subject, backend, new, late):
    # Given a task that has succeeded
    task_id, after = new(), new()
    subject.deliver(success(task_id, "first"))
    backend.wait(task_id, PATIENCE_S)
    # When a report of another attempt comes late, and one of another task after it
    subject.deliver(ResultRecord.now(task_id, late, "late"))
    subject.deliver(success(after))
    backend.wait(after, PATIENCE_S)
    # Then the first answer stands
    assert backend.fetch(task_id).result == "first"


def test_a_failure_is_not_undone_by_a_state_that_is_not_final(subject, backend, new):
    task_id, after = new(), new()
    subject.deliver(failure(task_id))
    subject.deliver(ResultRecord.now(task_id, "STARTED"))
    subject.deliver(success(after))
    backend.wait(after, PATIENCE_S)
    assert backend.wait(task_id, PATIENCE_S).status == "FAILURE"


def test_forgotten_is_gone(subject, backend, new):
    task_id = new()
    subject.deliver(success(task_id))
    backend.wait(task_id, PATIENCE_S)
    backend.forget(task_id)
    assert backend.fetch(task_id) is None


def test_it_answers_to_celerys_names(subject, backend, new):
    # Given a task of which nothing is known, one that is done, and one that failed
    done, failed, own = new(), new(), new()
    assert (backend.get_state(done), backend.get_result(done)) == ("PENDING", None)
    subject.deliver(success(done))
    subject.deliver(failure(failed))
    # When it is asked by Celery's names / Then it says what Celery's does
    assert backend.wait_for(done, timeout=PATIENCE_S)["status"] == "SUCCESS"
    assert backend.get_result(done) == backend.get_task_meta(done)["result"] == backend.fetch(done).result
    assert isinstance(backend.wait_for(failed, timeout=PATIENCE_S)["result"], Exception)
    assert (backend.get_status(failed), backend.get_traceback(failed)) == ("FAILURE", backend.fetch(failed).traceback)
    # And it stores what it is given by hand, if it stores anything
    if backend.in_message:
        with pytest.raises(NotImplementedError, match="update_state"):
            backend.store_result(own, 5, "SUCCESS")
        return
    for store, state in (
        (lambda: backend.mark_as_started(own, pid=5), "STARTED"),
        (lambda: backend.mark_as_retry(own, ValueError("again")), "RETRY"),
        (lambda: backend.store_result(own, {"done": 1}, "HALFWAY"), "HALFWAY"),
        (lambda: backend.mark_as_failure(own, ValueError("no"), "Traceback: ..."), "FAILURE"),
        (lambda: backend.mark_as_done(own, [1]), "SUCCESS"),
        (lambda: backend.mark_as_revoked(own, "late"), "SUCCESS"),
    ):
        store()
        eventually(lambda wanted=state: backend.get_state(own) == wanted, PATIENCE_S)


def test_forgetting_what_was_never_known_is_fine(backend):
    backend.forget(str(uuid.uuid4()))


def test_expecting_twice_loses_nothing(subject, backend, new):
    task_id = new()
    subject.deliver(success(task_id))
    backend.wait(task_id, PATIENCE_S)
    backend.expect(task_id)
    assert backend.wait(task_id, PATIENCE_S).result == 4


def test_the_first_of_several_ends_the_wait_for_any(subject, backend, new):
    ids = [new() for _ in range(3)]
    waiting = in_thread(lambda: backend.wait_any(ids, PATIENCE_S))
    subject.deliver(success(ids[1], "second"))
    assert [record.result for record in waiting()] == ["second"]


def test_all_that_are_finished_are_returned_when_waiting_for_any(subject, backend, new):
    ids = [new() for _ in range(3)]
    for task_id in ids[:2]:
        subject.deliver(success(task_id, task_id))
        backend.wait(task_id, PATIENCE_S)
    told: list[str] = []
    records = backend.wait_any(ids, PATIENCE_S, lambda record: told.append(record.task_id))
    assert {record.result for record in records} == set(ids[:2]) == set(told)


def test_waiting_for_any_ends_when_its_time_is_over(backend, new):
    with pytest.raises(TimeoutError):
        backend.wait_any([new(), new()], 0.05)


def test_many_threads_get_their_own_answers(subject, backend, new):
    ids = [new() for _ in range(50)]
    waiters = [in_thread(lambda each=task_id: backend.wait(each, PATIENCE_S).result) for task_id in ids]
    for task_id in reversed(ids):
        subject.deliver(success(task_id, task_id))
    assert [join() for join in waiters] == ids


@pytest.mark.parametrize("timeout_s", [None, PATIENCE_S * 10])
def test_closing_wakes_who_waits(backend, new, timeout_s):
    # Given a caller that waits, or is about to
    task_id = new()
    waiting = in_thread(lambda: backend.wait(task_id, timeout_s))
    # When the backend is closed, twice / Then the wait ends, with an error of the backend
    backend.close()
    backend.close()
    with pytest.raises(BackendError):
        waiting()


def test_another_process_reads_what_a_persistent_backend_keeps(subject, backend, new):
    if subject.other is None:
        assert not backend.persistent
        return
    task_id = new()
    subject.deliver(success(task_id))
    assert subject.other().wait(task_id, PATIENCE_S).result == 4


def test_who_answers_by_message_names_a_queue_and_who_stores_does_not(backend, new):
    record = success(new())
    message = backend.message(record, backend.reply_to(), record.task_id)
    assert (backend.reply_to() is not None) == backend.in_message == (message is not None)
    assert backend.message(record, None, record.task_id) is None


def test_a_group_is_kept_as_often_as_it_is_saved_until_it_is_deleted(subject, backend):
    # Given a group that was saved twice, where groups can be
    group_id, plain = str(uuid.uuid4()), [["g", None], [[["a", None], None], [["b", None], None]]]
    if not backend.persistent and not isinstance(backend, MemoryBackend):
        with pytest.raises(NoResultBackend, match="cannot save groups"):
            backend.save_group(group_id, plain)
        return
    assert backend.fetch_group(group_id) is None
    backend.save_group(group_id, [["g", None], []])
    backend.save_group(group_id, plain)
    # When this process, and another, ask for it / Then both get what was saved last
    assert backend.fetch_group(group_id) == plain
    assert (subject.other or (lambda: backend))().fetch_group(group_id) == plain
    # And when it is deleted, twice, it is gone
    backend.delete_group(group_id)
    backend.delete_group(group_id)
    assert backend.fetch_group(group_id) is None


def test_an_expectation_that_is_taken_back_leaves_nothing(backend, new):
    task_id = new()
    backend.unexpect(task_id)
    backend.unexpect(task_id)
    assert backend.fetch(task_id) is None


def test_its_name_shows_no_password(backend):
    assert "://" in backend.as_uri()
    assert "@" not in backend.as_uri() or ":**" in backend.as_uri()
