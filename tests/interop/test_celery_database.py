"""One database, both kinds of readers and writers: real Celery 5.7 in this process beside our store."""

from __future__ import annotations

import contextlib
import pickle
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import celery
import pytest
import sqlalchemy as sa
from celery.app.task import Context
from celery.backends.database import DatabaseBackend as TheirBackend
from celery.result import GroupResult as TheirGroup

from amqptasks.app.app import App
from amqptasks.exceptions import BackendGetMetaError
from amqptasks.results.database import DatabaseBackend
from amqptasks.results.handles import AsyncResult, GroupResult
from amqptasks.results.record import ResultRecord

TABLES = ("celery_taskmeta", "celery_tasksetmeta")
URLS = ("sqlite", "postgresql")


@pytest.fixture(params=URLS)
def url(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[str]:
    """A database without our tables, for SQLAlchemy."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/shared.db"
        return
    # A database of this test's own, in the server that all share.
    base = request.getfixturevalue("postgres_url").replace("postgresql://", "postgresql+psycopg://")
    name = f"shared_{uuid.uuid4().hex[:12]}"
    engine = sa.create_engine(base, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    yield base.rpartition("/")[0] + f"/{name}"
    with engine.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def ours(url: str) -> Iterator[Callable[..., App]]:
    """Make our app on the database, with these settings."""
    made: list[App] = []

    def make(**settings: Any) -> App:
        made.append(App("ours", backend=f"db+{url}", set_as_current=False, **settings))
        return made[-1]

    yield make
    for app in made:
        app.close()


@pytest.fixture
def theirs(url: str) -> Callable[..., Any]:
    """Make Celery's app on the database, with these settings."""

    def make(**settings: Any) -> Any:
        app = celery.Celery("theirs", broker="memory://", backend=f"db+{url}", set_as_current=False)
        app.conf.update(settings)
        return app

    return make


@contextlib.contextmanager
def engine_of(url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    yield engine
    engine.dispose()


def shape(url: str) -> dict[str, Any]:
    """Everything the database says of the tables."""
    with engine_of(url) as engine:
        inspector = sa.inspect(engine)
        return {
            name: (
                [(each["name"], str(each["type"]), each["nullable"], each.get("default")) for each in
                 inspector.get_columns(name)],
                inspector.get_pk_constraint(name)["constrained_columns"],
                sorted((each["name"], tuple(each["column_names"]), bool(each["unique"])) for each in
                       inspector.get_indexes(name)),
                sorted((each["name"] or "", tuple(each["column_names"])) for each in
                       inspector.get_unique_constraints(name)),
                sorted(inspector.get_sequence_names()) if engine.dialect.name == "postgresql" else None,
            )
            for name in TABLES
        }  # fmt: skip


def drop(url: str) -> None:
    with engine_of(url) as engine, engine.connect() as connection:
        for name in TABLES:
            connection.execute(sa.text(f"DROP TABLE {name}"))
        if engine.dialect.name == "postgresql":
            for name in ("task_id_sequence", "taskset_id_sequence"):
                connection.execute(sa.text(f"DROP SEQUENCE {name}"))


def request_of(app: Any, **fields: Any) -> Context:
    """A running call, as Celery's worker has it."""
    given: dict[str, Any] = {
        "task": "shop.sell", "args": [1, "x"], "kwargs": {"a": {"b": None}}, "hostname": "w@host", "retries": 3,
        "delivery_info": {"routing_key": "orders"}, "_children": [app.AsyncResult("child")],
    }  # fmt: skip
    return Context(**given | fields)


def test_both_make_the_same_tables(url: str, ours: Any, theirs: Any) -> None:
    # Given the tables that Celery makes
    theirs().backend.ResultSession().close()
    expected = shape(url)
    assert [each[0] for each in expected["celery_taskmeta"][0]][:4] == ["id", "task_id", "status", "result"]
    drop(url)
    # When we make them / Then nothing tells them apart
    ours().backend.prepare()
    assert shape(url) == expected


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
@pytest.mark.parametrize("extended", [False, True])
def test_celery_reads_what_we_store(ours: Any, theirs: Any, serializer: str, extended: bool) -> None:
    # Given results that we stored
    settings = {"result_serializer": serializer, "result_extended": extended}
    backend = ours(**settings).backend
    extra = {"name": "shop.sell", "args": [1, "x"], "kwargs": {"a": 1}, "worker": "w@h", "retries": 2, "queue": "q"}
    value = {"numbers": [1, 2.5, None, True], "text": "ü"}
    plain = {"exc_type": "ValueError", "exc_message": ["no", 3], "exc_module": "builtins"}
    backend.store(
        ResultRecord.now("ok", "SUCCESS", value, group_id="g", parent_id="p", extra=extra if extended else {},
                         children=[[["child", None], None]])
    )  # fmt: skip
    backend.store(ResultRecord.now("bad", "FAILURE", plain, traceback="Traceback …\x00 with a NUL"))
    backend.store(ResultRecord.now("runs", "STARTED", {"pid": 1}))
    # When Celery asks for them
    app = theirs(**settings, accept_content=["json", "msgpack"])
    good, bad, runs = (app.AsyncResult(task_id) for task_id in ("ok", "bad", "runs"))
    # Then it gets them, with everything that it keeps itself
    assert good.get(timeout=5) == value
    assert (good.state, good.traceback) == ("SUCCESS", None)
    assert [each.id for each in good.children] == ["child"]
    assert good.date_done is not None
    if extended:
        assert {key: getattr(good, key) for key in extra} == extra
    assert bad.state == "FAILURE"
    with pytest.raises(ValueError, match="no") as caught:
        bad.get(timeout=5)
    assert caught.value.args == ("no", 3)
    assert bad.traceback == "Traceback …\N{REPLACEMENT CHARACTER} with a NUL"
    assert (runs.state, runs.info, runs.date_done) == ("STARTED", {"pid": 1}, None)
    assert app.AsyncResult("unknown").state == "PENDING"


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_we_read_what_celery_stores(ours: Any, theirs: Any, serializer: str) -> None:
    # Given results that Celery stored
    app = theirs(result_serializer=serializer, result_extended=True, accept_content=["json", "msgpack"])
    backend = app.backend
    stamps = {"stamps": {"customer": ["7"]}, "stamped_headers": ["customer"]}
    backend.store_result("ok", {"a": [1, None]}, "SUCCESS", request=request_of(app, **stamps))
    backend.store_result("bad", KeyError("gone"), "FAILURE", traceback="Traceback …", request=request_of(app))
    backend.store_result("runs", {"done": 1}, "PROGRESS", request=request_of(app))
    # When we ask for them
    app = ours(result_serializer=serializer, result_extended=True)
    good, bad, runs = (app.AsyncResult(task_id) for task_id in ("ok", "bad", "runs"))
    # Then we get everything
    assert good.get(timeout=5) == {"a": [1, None]}
    assert (good.name, good.args, good.kwargs) == ("shop.sell", [1, "x"], {"a": {"b": None}})
    assert (good.worker, good.retries, good.queue) == ("w@host", 3, "orders")
    assert [each.id for each in good.children] == ["child"]
    assert good.date_done is not None and good.date_done.tzinfo is not None
    plain = good.backend.fetch("ok").to_plain()
    assert (plain["stamped_headers"], plain["customer"]) == (["customer"], ["7"])
    with pytest.raises(KeyError) as caught:
        bad.get(timeout=5)
    assert caught.value.args == ("gone",)
    assert bad.traceback == "Traceback …"
    assert (runs.state, runs.info) == ("PROGRESS", {"done": 1})


def test_groups_saved_by_one_are_restored_by_the_other(ours: Any, theirs: Any) -> None:
    our_app, their_app = ours(), theirs()
    GroupResult("from-us", [AsyncResult("a", app=our_app), AsyncResult("b", app=our_app)], app=our_app).save()
    restored = TheirGroup.restore("from-us", app=their_app)
    assert [each.id for each in restored.results] == ["a", "b"]
    TheirGroup("from-them", [their_app.AsyncResult("c")], app=their_app).save()
    group = GroupResult.restore("from-them", app=our_app)
    assert group is not None and [each.id for each in group.results] == ["c"]
    group.delete()
    assert TheirGroup.restore("from-them", app=their_app) is None


def test_neither_overwrites_the_success_of_the_other(ours: Any, theirs: Any) -> None:
    our_backend, their_backend = ours().backend, theirs().backend
    our_backend.store(ResultRecord.now("ours", "SUCCESS", "first"))
    their_backend.store_result("ours", ValueError("late"), "FAILURE")
    their_backend.store_result("theirs", "first", "SUCCESS")
    our_backend.store(ResultRecord.now("theirs", "FAILURE", {"exc_type": "ValueError"}))
    our_backend.store(ResultRecord.now("theirs", "STARTED"))
    for task_id in ("ours", "theirs"):
        assert our_backend.fetch(task_id).result == "first"
        assert their_backend.get_task_meta(task_id)["result"] == "first"


@pytest.mark.parametrize("compression", ["gzip", "bzip2"])
def test_celery_reads_what_we_compress(ours: Any, theirs: Any, compression: str, url: str) -> None:
    # Given a long result that we compressed (Celery itself compresses nothing that it puts into databases)
    ours(result_compression=compression).backend.store(ResultRecord.now("long", "SUCCESS", "x" * 10_000))
    with engine_of(url) as engine, engine.connect() as connection:
        kept = connection.execute(sa.text("SELECT result FROM celery_taskmeta WHERE task_id = 'long'")).scalar()
    assert len(bytes(kept)) < 1000
    # When Celery 5.7 reads it / Then it is whole
    assert theirs().AsyncResult("long").get(timeout=5) == "x" * 10_000


def test_a_table_of_an_older_celery_is_brought_up_to_date(url: str, ours: Any, theirs: Any) -> None:
    # Given a table without the columns that 5.7 added, and a result in it, pickled as it was then
    theirs().backend.store_result("old", {"a": 1}, "SUCCESS")
    with engine_of(url) as engine, engine.connect() as connection:
        for column in ("children", "stamps"):
            connection.execute(sa.text(f"ALTER TABLE celery_taskmeta DROP COLUMN {column}"))
        update = sa.text("UPDATE celery_taskmeta SET result = :data").bindparams(
            data=pickle.dumps({"a": 1}, protocol=4)
        )
        connection.execute(update)
    # When we only read, Then the table stays as it is, and pickles are read by those alone who ask for that
    backend = ours().backend
    with pytest.raises(BackendGetMetaError, match="looks like a pickle"):
        backend.fetch("old")
    accepting = ours(result_accept_content=["json", "pickle"]).backend
    assert accepting.fetch("old").result == {"a": 1}
    assert accepting.fetch("old").children is None
    assert "children" not in [each[0] for each in shape(url)["celery_taskmeta"][0]]
    # And when we store, the columns are there again
    record = ResultRecord.now("new", "SUCCESS", 1, group_id="g", children=[[["child", None], None]])
    backend.store(record)
    assert backend.fetch("new") == record
    assert [each.id for each in theirs().AsyncResult("new").children] == ["child"]


def test_celery_cleans_up_what_we_leave_and_we_what_it_leaves(ours: Any, theirs: Any) -> None:
    # Given a result of each that is two hours old, and one that is new
    long_ago = "2020-01-01T00:00:00+00:00"
    for make, clean in ((ours, theirs), (theirs, ours)):
        store = make(result_expires=3600).backend
        if isinstance(store, TheirBackend):
            store.store_result("old", 1, "SUCCESS")
            session = store.ResultSession()
            session.execute(sa.text("UPDATE celery_taskmeta SET date_done = '2020-01-01 00:00:00'"))
            session.commit()
            session.close()
            store.store_result("new", 1, "SUCCESS")
        else:
            assert isinstance(store, DatabaseBackend)
            store.store(ResultRecord("old", "SUCCESS", 1, date_done=long_ago))
            store.store(ResultRecord.now("new", "SUCCESS", 1))
        # When the other cleans up / Then the old one is gone and the new one stays
        clean(result_expires=3600).backend.cleanup()
        reader = ours().backend
        assert reader.fetch("old") is None
        assert reader.fetch("new") is not None
        reader.forget("new")
