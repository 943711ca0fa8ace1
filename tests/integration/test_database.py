"""The database store where it meets the world: outages, forks, crowds, old tables, rights, and each of its settings."""

from __future__ import annotations

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
import sqlalchemy as sa

from amqptasks.app.app import App
from amqptasks.exceptions import BackendGetMetaError, BackendStoreError, EncodeError, TimeoutError
from amqptasks.results import polled
from amqptasks.results.database import DatabaseBackend
from amqptasks.results.record import ResultRecord
from amqptasks.results.retries import StoreRetries, persist
from tests.support import ROOT, PrivateDatabase, eventually

CALLED: list[str] = []


def on_engine(engine: sa.Engine) -> None:
    CALLED.append(engine.dialect.name)


def success(task_id: str, value: Any = 1) -> ResultRecord:
    return ResultRecord.now(task_id, "SUCCESS", value)


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Callable[..., DatabaseBackend]]:
    """Make the backend of an app with these settings; on an SQLite file unless a URL is given."""
    made: list[App] = []

    def make(url: str = f"sqlite:///{tmp_path}/results.db", **settings: Any) -> DatabaseBackend:
        made.append(App("database", backend=f"db+{url}", set_as_current=False, **settings))
        result = made[-1].backend
        assert isinstance(result, DatabaseBackend)
        return result

    yield make
    for app in made:
        app.close()


def ask(url: str, statement: str) -> list[Any]:
    """Run a statement in a database and return the rows."""
    engine = sa.create_engine(
        url.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool
    )
    with engine.connect() as connection:
        done = connection.execute(sa.text(statement))
        found = list(done.all()) if done.returns_rows else []
    engine.dispose()
    return found


def run(program: str, *arguments: str, count: int = 1) -> list[str]:
    """Run a program in so many processes at once; return what each printed."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program), *arguments]
    started = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    outputs = []
    for each in started:
        output, errors = each.communicate(timeout=40)
        assert each.returncode == 0, errors
        outputs.append(output.strip())
    return outputs


# ---- Outages


def test_a_wait_outlasts_a_database_that_restarts(own_database: PrivateDatabase, backend: Any) -> None:
    # Given a result that is waited for, with a timeout and without
    store = backend(own_database.url)
    store.store(success("other"))
    values: list[Any] = []
    waiters = [
        threading.Thread(target=lambda timeout_s=timeout_s: values.append(store.wait("late", timeout_s).result))
        for timeout_s in (30.0, None)
    ]
    for waiter in waiters:
        waiter.start()
    # When the database is killed, comes back, and the result is stored
    own_database.kill()
    with pytest.raises(
        BackendGetMetaError, match=r"cannot read the result of task late in db\+postgresql://amqp.*\*\*\*@"
    ):
        store.fetch("late")
    own_database.start()
    backend(own_database.url).store(success("late", "there"))
    # Then all of them get it
    for waiter in waiters:
        waiter.join(30)
    assert values == ["there", "there"]
    # And what was stored before the kill is there
    assert store.fetch("other").result == 1


def test_a_wait_that_ends_in_an_outage_says_so(own_database: PrivateDatabase, backend: Any) -> None:
    store = backend(own_database.url, result_backend_max_retries=0)
    assert store.fetch("id") is None
    own_database.kill()
    with pytest.raises(BackendGetMetaError, match="cannot read the result"):
        store.wait("id", 0.2)
    with pytest.raises(BackendStoreError, match="cannot store the result of task id"):
        store.store(success("id"))
    with pytest.raises(BackendStoreError, match="cannot forget the result of task id"):
        store.forget("id")


def test_a_connection_that_the_server_ended_is_replaced_unseen(postgres_url: str, backend: Any) -> None:
    store = backend(postgres_url)
    task_id = str(uuid.uuid4())
    store.store(success(task_id))
    ask(postgres_url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    assert store.fetch(task_id).result == 1


def test_tables_that_are_dropped_are_made_again(tmp_path: Path, backend: Any) -> None:
    store = backend()
    store.store(success("before"))
    ask(f"sqlite:///{tmp_path}/results.db", "DROP TABLE celery_taskmeta")
    assert store.fetch("before") is None
    ask(f"sqlite:///{tmp_path}/results.db", "DROP TABLE IF EXISTS celery_taskmeta")
    store.store(success("after"))
    assert store.fetch("after").result == 1


@pytest.mark.parametrize(
    "record",
    [
        success("x" * 200),
        success("nul\x00"),
        success("half\ud800"),
        ResultRecord.now("id", "SUCCESS", 1, extra={"retries": 2**40}),
        ResultRecord.now("id", "S" * 100, 1),
    ],
    ids=["long", "nul", "surrogate", "number", "state"],
)  # fmt: skip
def test_a_value_that_no_column_takes_is_refused_at_once(postgres_url: str, backend: Any, record: ResultRecord) -> None:
    # With the endless retries of the settings it would never come back
    with pytest.raises(EncodeError, match="cannot store the result of task"):
        backend(postgres_url).store(record)


def test_retries_wait_longer_each_time_up_to_a_limit() -> None:
    # Given an operation that fails, and a clock that only notes how long it is asked to wait
    retries = StoreRetries(limit=20, base_ms=10, max_ms=1000)
    assert [retries.longest_wait_s(retry) for retry in (1, 2, 3, 10, 10_000)] == [0.02, 0.04, 0.08, 1.0, 1.0]
    waits: list[float] = []

    def fail() -> None:
        raise OSError("away")

    # When it is tried as often as it may
    with pytest.raises(OSError, match="away"):
        persist(fail, retries, lambda error, retry: True, lambda error, wait_s: waits.append(wait_s), lambda _s: False)
    # Then every wait was within its limit, and they were not all the same
    assert len(waits) == 20
    assert all(wait_s <= retries.longest_wait_s(retry) for retry, wait_s in enumerate(waits, 1))
    assert len(set(waits)) > 10


def test_an_error_that_will_not_pass_is_not_tried_again() -> None:
    tries: list[int] = []

    def fail() -> None:
        tries.append(1)
        raise ValueError("never")

    with pytest.raises(ValueError, match="never"):
        persist(fail, StoreRetries(), lambda error, retry: False, lambda error, wait_s: None, lambda _s: False)
    assert len(tries) == 1


def test_settings_say_how_often_to_try(tmp_path: Path, backend: Any, caplog: pytest.LogCaptureFixture) -> None:
    url = f"sqlite:///{tmp_path}/missing/results.db"
    fast: dict[str, Any] = {
        "result_backend_base_sleep_between_retries_ms": 0, "result_backend_max_sleep_between_retries_ms": 0
    }  # fmt: skip
    for settings, retries in (
        ({"result_backend_max_retries": 2}, 2),
        ({"result_backend_max_retries": 0}, 0),
        ({"result_backend_always_retry": False}, 0),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING), pytest.raises(BackendStoreError):
            backend(url, **fast, **settings).store(success("id"))
        assert sum("trying again in" in record.message for record in caplog.records) == retries


# ---- Many at once


CROWD = """
    import sys
    from amqptasks.results.database import DatabaseBackend
    from amqptasks.results.record import ResultRecord
    store = DatabaseBackend(sys.argv[1], {"names": {"task": sys.argv[2], "group": sys.argv[2] + "_groups"}})
    for number in range(20):
        store.store(ResultRecord.now(f"shared-{number}", "FAILURE", None))
        store.store(ResultRecord.now(f"shared-{number}", "SUCCESS", number))
    assert all(store.fetch(f"shared-{number}").result == number for number in range(20))
    store.close()
"""


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_processes_that_start_together_make_the_tables_together(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/crowd.db" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    run(CROWD, url, f"crowd_{uuid.uuid4().hex[:8]}", count=4)


FORK = """
    import os, sys
    from amqptasks.results.database import DatabaseBackend
    from amqptasks.results.record import ResultRecord
    from amqptasks.results.retries import StoreRetries
    names = {"task": sys.argv[2], "group": sys.argv[2] + "_groups"}
    # Without retries, a connection that somebody else has closed shows.
    store = DatabaseBackend(sys.argv[1], {"names": names}, retries=StoreRetries(limit=0))
    store.store(ResultRecord.now("parent", "SUCCESS", 1))
    children = []
    for number in range(3):
        child = os.fork()
        if not child:
            assert store.fetch("parent").result == 1
            store.store(ResultRecord.now(f"child-{number}", "SUCCESS", number))
            store.close()
            # An orderly end, in which everything that was inherited is thrown away.
            sys.exit(0)
        children.append(child)
        codes = [os.waitpid(child, 0)[1] for child in children[-1:]]
        assert codes == [0], codes
        store.store(ResultRecord.now(f"beside-{number}", "SUCCESS", number))
    for number in range(3):
        assert store.fetch(f"child-{number}").result == number
        assert store.fetch(f"beside-{number}").result == number
    store.close()
"""


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_forked_child_takes_nothing_from_its_parent(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/fork.db" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    run(FORK, url, f"fork_{uuid.uuid4().hex[:8]}")


def test_more_results_than_a_statement_can_name_are_waited_for(backend: Any) -> None:
    store = backend()
    ids = [f"many-{number}" for number in range(1200)]
    store.store(success(ids[0]))
    store.store(success(ids[-1]))
    store.store(ResultRecord.now(ids[600], "STARTED"))
    assert {record.task_id for record in store.wait_any(ids, 20)} == {ids[0], ids[-1]}
    with pytest.raises(TimeoutError):
        store.wait_any([], None)


# ---- Settings


def test_tables_can_have_other_names_and_schemas(postgres_url: str, backend: Any) -> None:
    # Given a schema of our own
    name = f"own_{uuid.uuid4().hex[:8]}"
    ask(postgres_url, f"CREATE SCHEMA {name}")
    store = backend(
        postgres_url, database_table_names={"task": "outcomes", "group": "crowds"},
        database_table_schemas={"task": name, "group": name},
    )  # fmt: skip
    # When something is stored / Then it stands there, and can be read
    store.store(success("id", 7))
    store.save_group("g", [["g", None], []])
    assert store.fetch("id").result == 7
    assert ask(postgres_url, f"SELECT task_id FROM {name}.outcomes") == [("id",)]
    assert ask(postgres_url, f"SELECT taskset_id FROM {name}.crowds") == [("g",)]
    store.close()
    ask(postgres_url, f"DROP SCHEMA {name} CASCADE")


def test_tables_are_made_beforehand_unless_that_is_left_to_the_first_result(tmp_path: Path, backend: Any) -> None:
    # Given what a worker does when it starts / When it is done / Then the tables are there, or not before a result is
    url = f"sqlite:///{tmp_path}/results.db"
    tables = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name LIKE 'celery%'"
    late = backend(database_create_tables_at_setup=False)
    late.prepare()
    assert ask(url, tables) == [(0,)]
    backend(database_create_tables_at_setup=True).prepare()
    assert ask(url, tables) == [(2,)]


def test_new_engines_are_shown_to_a_callback(backend: Any) -> None:
    for callback in (on_engine, f"{__name__}:on_engine"):
        sys.modules.setdefault(__name__, sys.modules[on_engine.__module__])
        CALLED.clear()
        assert backend(database_engine_callback=callback).fetch("id") is None
        assert CALLED == ["sqlite"]


def test_connections_are_kept_unless_they_are_to_be_short_lived(postgres_url: str, backend: Any) -> None:
    marker = uuid.uuid4().hex[:8]
    counted = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{marker}'"
    for short_lived, kept in ((False, 1), (True, 0)):
        store = backend(
            postgres_url, database_short_lived_sessions=short_lived,
            database_engine_options={"pool_size": 2, "connect_args": {"application_name": marker}},
        )  # fmt: skip
        assert store.fetch("id") is None
        eventually(lambda kept=kept: ask(postgres_url, counted) == [(kept,)])
        store.close()
        eventually(lambda: ask(postgres_url, counted) == [(0,)])


def test_a_reader_changes_nothing(tmp_path: Path, backend: Any) -> None:
    # Given a database without tables, When results are read and forgotten / Then it stays without
    store = backend()
    assert store.fetch("id") is None and store.fetch_group("g") is None
    store.forget("id")
    store.delete_group("g")
    assert ask(f"sqlite:///{tmp_path}/results.db", "SELECT name FROM sqlite_master") == []


def test_a_user_who_may_not_change_an_old_table_still_keeps_results(
    postgres_url: str, backend: Any, caplog: pytest.LogCaptureFixture
) -> None:
    # Given the tables of an older Celery, and a user who may write into them and no more
    name = f"old_{uuid.uuid4().hex[:8]}"
    names = {"task": f"{name}_tasks", "group": f"{name}_groups"}
    owner = backend(postgres_url, database_table_names=names)
    owner.store(success("first"))
    ask(postgres_url, f"ALTER TABLE {name}_tasks DROP COLUMN children, DROP COLUMN stamps")
    ask(postgres_url, f"CREATE ROLE {name} LOGIN PASSWORD 'pw'")
    ask(postgres_url, f"GRANT SELECT, INSERT, UPDATE, DELETE ON {name}_tasks, {name}_groups TO {name}")
    ask(postgres_url, f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {name}")
    url = f"postgresql://{name}:pw@{postgres_url.rpartition('@')[2]}"
    # When that user stores a result
    store = backend(url, database_table_names=names)
    record = ResultRecord.now("id", "SUCCESS", 1, children=[[["child", None], None]], group_id="g")
    with caplog.at_level(logging.WARNING):
        store.store(record)
    # Then it is kept, but for what the table has no room for, and the log says what somebody should do
    found = store.fetch("id")
    assert (found.status, found.result, found.children, found.group_id) == ("SUCCESS", 1, None, None)
    assert f"ALTER TABLE {name}_tasks ADD COLUMN children BYTEA" in caplog.text
    store.close()
    ask(postgres_url, f"DROP TABLE {name}_tasks, {name}_groups")
    ask(postgres_url, f"REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM {name}")
    ask(postgres_url, f"DROP ROLE {name}")


# ---- Expiry


def test_what_has_expired_is_deleted(backend: Any) -> None:
    # Given results and groups of long ago and of now, and a state of a task that is not finished
    store = backend(result_expires=3600)
    long_ago = "2020-01-01T00:00:00+00:00"
    for number in range(3):
        store.store(ResultRecord(f"old-{number}", "SUCCESS", 1, date_done=long_ago))
    store.store(success("new"))
    store.store(ResultRecord.now("runs", "STARTED"))
    # When it is cleaned up / Then what is old is gone, and nothing else
    assert store.cleanup() == 3
    assert store.cleanup() == 0
    assert [store.fetch(each) is None for each in ("old-0", "old-2", "new", "runs")] == [True, True, False, False]


@pytest.mark.parametrize("expires", [None, 0])
def test_nothing_expires_where_nothing_is_to(backend: Any, expires: Any) -> None:
    store = backend(result_expires=expires)
    store.store(ResultRecord("old", "SUCCESS", 1, date_done="1999-01-01T00:00:00+00:00"))
    assert store.cleanup() == 0
    assert store.fetch("old") is not None


def test_a_process_that_stores_cleans_up_now_and_then(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a turn that is always due, and no more than two rows at a time
    monkeypatch.setattr(polled, "CLEANUP_EVERY_S", 0.0)
    monkeypatch.setattr(polled, "CLEANUP_ROWS", 2)
    store = backend(result_expires=3600)
    for number in range(5):
        store.store(ResultRecord(f"old-{number}", "SUCCESS", 1, date_done="2020-01-01T00:00:00+00:00"))
    # When results go on coming in / Then what is old goes, by and by
    store.store(success("new-1"))
    store.store(success("new-2"))
    assert [number for number in range(5) if store.fetch(f"old-{number}") is not None] == []
    assert store.fetch("new-1") is not None


def test_a_date_that_nobody_can_read_does_not_keep_a_result_for_ever(tmp_path: Path, backend: Any) -> None:
    store = backend()
    for task_id, date in (("none", None), ("odd", "yesterday"), ("zulu", "2020-01-01T02:00:00Z"),
                          ("far", "2020-01-01T02:00:00+02:00")):  # fmt: skip
        store.store(ResultRecord(task_id, "SUCCESS", 1, date_done=date))
    dated = dict(ask(f"sqlite:///{tmp_path}/results.db", "SELECT task_id, date_done FROM celery_taskmeta"))
    assert all(dated.values())
    assert (dated["zulu"], dated["far"]) == ("2020-01-01 02:00:00.000000", "2020-01-01 00:00:00.000000")
