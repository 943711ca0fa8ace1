"""The store of documents where it meets the world: outages, forks, crowds, odd values, expiry, its settings, a worker.

On a stand-in for MongoDB (`tests/mongo_server.py`), or on the real one that the environment names.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pymongo
import pytest

from amqptasks.app.app import App
from amqptasks.exceptions import BackendGetMetaError, BackendStoreError, EncodeError, ImproperlyConfigured
from amqptasks.results.mongodb import MongoBackend
from amqptasks.results.record import ResultRecord
from tests.mongo_server import MongoServer
from tests.running import Workshop
from tests.support import ROOT, eventually

FAST = {"serverSelectionTimeoutMS": 300}


def success(task_id: str, value: Any = 1) -> ResultRecord:
    return ResultRecord.now(task_id, "SUCCESS", value)


@pytest.fixture
def backend(mongodb_url: str) -> Iterator[Callable[..., MongoBackend]]:
    """Make the backend of an app with these settings."""
    made: list[App] = []

    def make(url: str = mongodb_url, **settings: Any) -> MongoBackend:
        made.append(App("documents", backend=url, set_as_current=False, **settings))
        result = made[-1].backend
        assert isinstance(result, MongoBackend)
        return result

    yield make
    for app in made:
        app.close()


@pytest.fixture
def documents(mongodb_url: str) -> Iterator[Any]:
    """The database, as pymongo sees it."""
    with pymongo.MongoClient(mongodb_url, tz_aware=True) as client:
        yield client.get_default_database()


@pytest.fixture
def own_server() -> Iterator[MongoServer]:
    """A stand-in for this test alone, to be stopped at will."""
    server = MongoServer()
    yield server
    server.stop()


# ---- Outages


def test_an_outage_is_waited_for_and_nothing_is_lost(own_server: MongoServer, backend: Any, caplog: Any) -> None:
    # Given a server that goes away
    url = f"mongodb://{own_server.address}/shop"
    store, reader = (backend(url, mongodb_backend_settings=FAST) for _ in range(2))
    store.store(success("before"))
    own_server.stop()
    # When a result is to be stored, and waited for
    values: list[Any] = []
    threads = [
        threading.Thread(target=store.store, args=(success("late", "there"),)),
        threading.Thread(target=lambda: values.append(reader.wait("late", None).result)),
    ]
    with caplog.at_level(logging.WARNING):
        for thread in threads:
            thread.start()
        eventually(lambda: "Cannot store the result of task late in mongodb://127.0.0.1" in caplog.text)
    # Then both come to their end when it is back
    own_server.start()
    for thread in threads:
        thread.join(30)
    assert values == ["there"]
    assert reader.fetch("before").result == 1


def test_an_outage_ends_with_the_retries(own_server: MongoServer, backend: Any) -> None:
    store = backend(
        f"mongodb://{own_server.address}/shop?serverSelectionTimeoutMS=100", result_backend_max_retries=1,
        result_backend_base_sleep_between_retries_ms=0,
    )  # fmt: skip
    own_server.stop()
    with pytest.raises(BackendStoreError, match=r"cannot store the result of task id in mongodb://127.0.0.1"):
        store.store(success("id"))
    with pytest.raises(BackendGetMetaError, match="cannot read the result of task id"):
        store.wait("id", 0.1)
    own_server.start()


FORK = """
    import os, sys, warnings
    from amqptasks.results.mongodb import MongoBackend
    from amqptasks.results.record import ResultRecord
    from amqptasks.results.retries import StoreRetries
    # pymongo warns where a client is used in a child that it was not made in.
    warnings.simplefilter("error")
    store = MongoBackend(sys.argv[1], retries=StoreRetries(limit=0))
    store.store(ResultRecord.now("parent", "SUCCESS", 1))
    for number in range(2):
        child = os.fork()
        if not child:
            assert store.fetch("parent").result == 1
            store.store(ResultRecord.now(f"child-{number}", "SUCCESS", number))
            store.close()
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        store.store(ResultRecord.now(f"beside-{number}", "SUCCESS", number))
        assert store.fetch(f"child-{number}").result == store.fetch(f"beside-{number}").result == number
    store.close()
"""
CROWD = """
    import sys
    from amqptasks.results.mongodb import MongoBackend
    from amqptasks.results.record import ResultRecord
    store = MongoBackend(sys.argv[1])
    for number in range(20):
        for state in ("STARTED", "FAILURE", "SUCCESS"):
            store.store(ResultRecord.now(f"shared-{number}", state, sys.argv[2]))
        first = store.fetch(f"shared-{number}").result
        store.store(ResultRecord.now(f"shared-{number}", "SUCCESS", "late"))
        assert store.fetch(f"shared-{number}").result == first
    store.close()
"""


def run(program: str, url: str, count: int = 1) -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(program), url]
    started = [
        subprocess.Popen([*command, str(number)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for number in range(count)
    ]
    for each in started:
        errors = each.communicate(timeout=40)[1]
        assert each.returncode == 0, errors


def test_a_forked_child_takes_nothing_from_its_parent(mongodb_url: str) -> None:
    run(FORK, mongodb_url)


def test_a_success_stands_however_many_write_at_once(mongodb_url: str) -> None:
    run(CROWD, mongodb_url, count=3)


# ---- Values


def test_what_bson_has_no_room_for_comes_back_all_the_same(backend: Any) -> None:
    # Given arguments and stamps of every kind that a task can have
    store = backend(result_extended=True)
    extra = {
        "args": [2**70, 1.5, {"$set": 1, "a.b": 2}], "kwargs": {"when": datetime(2026, 1, 2, tzinfo=timezone.utc)},
        "retries": 2, "name": "shop.sell", "stamped_headers": ["$odd", "customer", "status"], "$odd": 1,
        "customer": ["7"],
    }  # fmt: skip
    record = ResultRecord.now("id", "SUCCESS", {"$a": {"b.c": 2**70}}, extra=extra)
    # When they are stored / Then they are read as they were
    store.store(record)
    assert store.fetch("id") == record


def test_arguments_stand_in_the_document_where_they_can(backend: Any, documents: Any) -> None:
    backend().store(ResultRecord.now("id", "SUCCESS", 1, extra={"args": [1, "x"], "kwargs": {"a": None}}))
    document = documents["celery_taskmeta"].find_one({"_id": "id"})
    assert (document["args"], document["kwargs"], document["result"]) == ([1, "x"], {"a": None}, "1")


@pytest.mark.parametrize("record", [success("half\ud800"), success("id", "x" * 17_000_000)], ids=["id", "large"])
def test_a_value_that_no_document_takes_is_refused_at_once(backend: Any, record: ResultRecord) -> None:
    with pytest.raises(EncodeError, match="cannot store the result of task"):
        backend(task_message_max_bytes=32 * 1024 * 1024).store(record)


def test_a_traceback_with_half_a_character_is_kept(backend: Any) -> None:
    store = backend()
    store.store(ResultRecord.now("id", "FAILURE", None, traceback="oh \ud800 no"))
    assert store.fetch("id").traceback == "oh ? no"


# ---- Expiry


def test_the_server_deletes_what_has_expired(backend: Any, documents: Any) -> None:
    # Given results with a setting for it / When a result and a group are stored
    store = backend(result_expires=3600)
    store.prepare()
    store.store(success("id"))
    store.save_group("g", [["g", None], []])
    # Then each says when it ends, and an index lets the server see to it
    for collection, key in (("celery_taskmeta", "id"), ("celery_groupmeta", "g")):
        document = documents[collection].find_one({"_id": key})
        assert abs(document["expires_at"] - datetime.now(timezone.utc) - timedelta(hours=1)) < timedelta(minutes=5)


def test_the_indexes_are_celerys_and_one_more(backend: Any, own_server: MongoServer) -> None:
    backend(f"mongodb://{own_server.address}/shop").prepare()
    indexes = own_server.database("shop")["celery_taskmeta"].index_information()
    assert {name: each.get("expireAfterSeconds") for name, each in indexes.items()} == {
        "_id_": None, "date_done_1": None, "expires_at_1": 0
    }  # fmt: skip


def test_an_index_that_is_there_with_other_options_is_left_alone(
    backend: Any, own_server: MongoServer, caplog: Any
) -> None:
    own_server.database("shop")["celery_taskmeta"].create_index("date_done", name="date_done_1", expireAfterSeconds=60)
    store = backend(f"mongodb://{own_server.address}/shop")
    with caplog.at_level(logging.WARNING):
        store.store(success("id"))
    assert "Cannot make the index 'date_done' of the collection celery_taskmeta" in caplog.text
    assert store.fetch("id").result == 1


@pytest.mark.parametrize(("expires", "deleted"), [(3600, 2), (None, 0), (0, 0)])
def test_what_celery_leaves_is_cleaned_up(backend: Any, documents: Any, expires: Any, deleted: int) -> None:
    # Given documents without an end of their own
    store = backend(result_expires=expires)
    long_ago = datetime(2020, 1, 1, tzinfo=timezone.utc)
    for collection in ("celery_taskmeta", "celery_groupmeta"):
        documents[collection].replace_one({"_id": "old"}, {"_id": "old", "date_done": long_ago}, upsert=True)
    store.store(success("new"))
    assert store.cleanup() == deleted
    assert store.fetch("new") is not None
    assert ("expires_at" in documents["celery_taskmeta"].find_one({"_id": "new"})) is bool(expires)


# ---- Settings


def test_database_and_collections_can_have_other_names(backend: Any, own_server: MongoServer) -> None:
    settings = {"database": "other", "taskmeta_collection": "outcomes", "groupmeta_collection": "crowds"}
    store = backend(f"mongodb://{own_server.address}/shop", mongodb_backend_settings=settings)
    store.store(success("id"))
    store.save_group("g", [["g", None], []])
    assert own_server.database("other")["outcomes"].find_one({"_id": "id"})["status"] == "SUCCESS"
    assert own_server.database("other")["crowds"].find_one({"_id": "g"}) is not None
    assert store.fetch("id").result == 1


@pytest.mark.parametrize("form", ["host", "url", "mongo_host", "elsewhere"])
def test_a_server_can_be_named_in_the_settings(backend: Any, own_server: MongoServer, form: str) -> None:
    settings: dict[str, Any] = {
        "host": {"host": "127.0.0.1", "port": own_server.port},
        "url": {"host": f"mongodb://{own_server.address}"},
        "mongo_host": {"mongo_host": [own_server.address]},
        "elsewhere": {"host": "127.0.0.1", "port": own_server.port, "options": FAST, "max_pool_size": 1},
    }[form]
    url = "mongodb://nowhere.invalid" if form == "elsewhere" else "mongodb"
    store = backend(url, mongodb_backend_settings=settings)
    store.store(success("id"))
    assert own_server.database("celery")["celery_taskmeta"].find_one({"_id": "id"}) is not None
    assert own_server.address in store.as_uri()


@pytest.mark.parametrize(
    ("url", "settings", "expected"),
    [
        ("mongodb://h/db", {}, {"serverSelectionTimeoutMS": 5000, "maxPoolSize": 10, "authSource": None}),
        ("mongodb://h/?maxPoolSize=3&serverselectiontimeoutms=1", {}, {"maxPoolSize": None}),
        ("mongodb://u:p@h/db", {}, {"authSource": "admin"}),
        ("mongodb://u:p@h/db?authSource=db", {}, {"authSource": None}),
        ("mongodb://h", {"user": "u", "password": "p"}, {"username": "u", "password": "p", "authSource": "admin"}),
        ("mongodb://h", {"max_pool_size": 4, "appname": "x"}, {"maxPoolSize": 4, "appname": "x"}),
        ("mongodb://h", {"max_pool_size": 4, "options": {"maxPoolSize": 5}}, {"maxPoolSize": 5}),
    ],
)
def test_the_client_gets_what_url_and_settings_say(
    backend: Any, url: str, settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    options = backend(url, mongodb_backend_settings=settings)._client_options()
    assert {key: options.get(key) for key in expected} == expected


def test_nobody_reads_the_password(backend: Any) -> None:
    for url, settings in (
        ("mongodb://u:secret@127.0.0.1:9,127.0.0.1:10/db?replicaSet=r", FAST),
        ("mongodb://127.0.0.1:9/", {**FAST, "user": "u", "password": "secret"}),
        ("mongodb+srv://u:secret@nowhere.invalid/db", FAST),
    ):
        store = backend(url, mongodb_backend_settings=settings, result_backend_max_retries=0)
        assert "secret" not in store.as_uri() and store.as_uri().startswith(("mongodb://", "mongodb+srv://"))
        with pytest.raises((BackendGetMetaError, ImproperlyConfigured)) as caught:
            store.fetch("id")
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "settings", "said"),
    [
        ("mongodb://h:notaport", {}, "pymongo refuses the result backend mongodb://h:notaport"),
        ("mongodb://h", {"nonsense": 1}, "nonsense"),
        ("mongodb://h", {"options": 3}, "expected 'options' of mongodb_backend_settings to be a mapping"),
        ("mongodb://h", {"database": 3}, "expected 'database' of mongodb_backend_settings to be a text"),
    ],
)
def test_a_wrong_setting_is_told(backend: Any, url: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=said):
        backend(url, mongodb_backend_settings=settings).prepare()


# ---- A worker


SOURCE = """
    app.conf.update(result_backend=(HERE / "url").read_text(), result_extended=True)

    @app.task
    def add(x, y):
        return x + y

    @app.task
    def fail(text):
        raise ValueError(text)
"""


def test_a_worker_stores_and_everybody_reads(tmp_path: Path, broker_url: str, mongodb_url: str) -> None:
    (tmp_path / "url").write_text(mongodb_url)
    with Workshop(tmp_path, broker_url, SOURCE) as shop:
        shop.start("-c", "2")
        results = [shop.tasks.add.delay(number, 1) for number in range(20)]
        assert [result.get(timeout=20) for result in results] == list(range(1, 21))
        assert (results[0].name, results[0].args) == (shop.tasks.add.name, [0, 1])
        with pytest.raises(ValueError, match="no"):
            shop.tasks.fail.delay("no").get(timeout=20)
        results[0].forget()
        assert results[0].state == "PENDING"
