"""One store, both kinds of readers and writers: real Celery 5.7 in this process beside our stores.

Databases have a module of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import celery
import pymemcache
import pytest
import redis
from celery.app.task import Context
from celery.backends.cache import CacheBackend
from celery.result import GroupResult as TheirGroup

from amqptasks.app.app import App
from amqptasks.results.handles import AsyncResult, GroupResult
from amqptasks.results.record import ResultRecord

STORES = ("file", "mongodb", "redis", "memcached")
#: Celery calls what the library would rather see called otherwise.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning"),
    # It reads there what it cannot write.
    pytest.mark.filterwarnings("ignore:The CacheBackend result backend cannot store compressed:UserWarning"),
]


@pytest.fixture(params=STORES)
def url(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    """A store that nobody has used."""
    if request.param == "mongodb":
        return str(request.getfixturevalue("mongodb_url"))
    if request.param == "memcached":
        place = str(request.getfixturevalue("memcached_url"))
        client = pymemcache.Client(place.partition("://")[2].rstrip("/"))
        client.flush_all(noreply=False)
        client.close()
        return place
    if request.param == "redis":
        server = redis.Redis.from_url(request.getfixturevalue("redis_url"))
        server.flushdb()
        server.close()
        return str(request.getfixturevalue("redis_url"))
    place = tmp_path / "results"
    place.mkdir()
    return f"file://{place}"


@pytest.fixture
def ours(url: str) -> Iterator[Callable[..., App]]:
    """Make our app on the store, with these settings."""
    made: list[App] = []

    def make(**settings: Any) -> App:
        made.append(App("ours", backend=url, set_as_current=False, **settings))
        return made[-1]

    yield make
    for app in made:
        app.close()


@pytest.fixture
def theirs(url: str) -> Iterator[Callable[..., Any]]:
    """Make Celery's app on the store, with these settings."""
    made: list[Any] = []

    def make(**settings: Any) -> Any:
        app = celery.Celery("theirs", broker="memory://", backend=url, set_as_current=False)
        app.conf.update(settings)
        made.append(app)
        return app

    yield make
    for app in made:
        client = getattr(app.backend, "_connection", None)
        if client is not None:
            client.close()
        consumer = getattr(app.backend, "result_consumer", None)
        if consumer is not None:
            consumer.stop()
            # Handles that are thrown away later unsubscribe, and would open a connection for it.
            consumer._pubsub = None
            app.backend.client.connection_pool.disconnect()
        if isinstance(app.backend, CacheBackend):
            app.backend.client.close()


def request_of(app: Any, **fields: Any) -> Context:
    """A running call, as Celery's worker has it."""
    given: dict[str, Any] = {
        "task": "shop.sell", "args": [1, "x"], "kwargs": {"a": {"b": None}}, "hostname": "w@host", "retries": 3,
        "delivery_info": {"routing_key": "orders"}, "_children": [app.AsyncResult("child")],
    }  # fmt: skip
    return Context(**given | fields)


@pytest.mark.parametrize("settings", [{}, {"result_serializer": "msgpack"}, {"result_compression": "gzip"}])
@pytest.mark.parametrize("extended", [False, True])
def test_celery_reads_what_we_store(ours: Any, theirs: Any, settings: dict[str, Any], extended: bool) -> None:
    # Given results that we stored
    settings = settings | {"result_extended": extended}
    backend = ours(**settings).backend
    extra = {"name": "shop.sell", "args": [1, "x"], "kwargs": {"a": 1}, "worker": "w@h", "retries": 2, "queue": "q"}
    value = {"numbers": [1, 2.5, None, True], "text": "ü" * 500}
    plain = {"exc_type": "ValueError", "exc_message": ["no", 3], "exc_module": "builtins"}
    backend.store(
        ResultRecord.now("ok", "SUCCESS", value, group_id="g", parent_id="p", extra=extra if extended else {},
                         children=[[["child", None], None]])
    )  # fmt: skip
    backend.store(ResultRecord.now("bad", "FAILURE", plain, traceback="Traceback …"))
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
    assert bad.traceback == "Traceback …"
    assert (runs.state, runs.info, runs.date_done) == ("STARTED", {"pid": 1}, None)
    assert app.AsyncResult("unknown").state == "PENDING"


@pytest.mark.parametrize("settings", [{}, {"result_serializer": "msgpack"}, {"result_compression": "gzip"}])
def test_we_read_what_celery_stores(ours: Any, theirs: Any, settings: dict[str, Any]) -> None:
    # Given results that Celery stored
    settings = settings | {"result_extended": True}
    app = theirs(**settings, accept_content=["json", "msgpack"])
    backend = app.backend
    stamps = {"stamps": {"customer": ["7"]}, "stamped_headers": ["customer"]}
    call = request_of(app, group="g", parent_id="p", **stamps)
    backend.store_result("ok", {"a": [1, None]}, "SUCCESS", request=call)
    backend.store_result("bad", KeyError("gone"), "FAILURE", traceback="Traceback …", request=request_of(app))
    backend.store_result("runs", {"done": 1}, "PROGRESS", request=request_of(app))
    # When we ask for them
    app = ours(**settings)
    good, bad, runs = (app.AsyncResult(task_id) for task_id in ("ok", "bad", "runs"))
    # Then we get everything
    assert good.get(timeout=5) == {"a": [1, None]}
    assert (good.name, good.args, good.kwargs) == ("shop.sell", [1, "x"], {"a": {"b": None}})
    assert (good.worker, good.retries, good.queue) == ("w@host", 3, "orders")
    assert [each.id for each in good.children] == ["child"]
    assert good.date_done is not None and good.date_done.tzinfo is not None
    record = good.backend.fetch("ok")
    assert (record.group_id, record.parent_id) == ("g", "p")
    assert (record.extra["stamped_headers"], record.extra["customer"]) == (["customer"], ["7"])
    with pytest.raises(KeyError) as caught:
        bad.get(timeout=5)
    assert caught.value.args == ("gone",)
    assert bad.traceback == "Traceback …"
    assert (runs.state, runs.info, runs.date_done) == ("PROGRESS", {"done": 1}, None)


def test_groups_saved_by_one_are_restored_by_the_other(ours: Any, theirs: Any) -> None:
    our_app, their_app = ours(), theirs()
    GroupResult("from-us", [AsyncResult("a", app=our_app), AsyncResult("b", app=our_app)], app=our_app).save()
    restored = TheirGroup.restore("from-us", app=their_app)
    # From MongoDB, Celery restores no group, but its list.
    assert [each.id for each in getattr(restored, "results", restored)] == ["a", "b"]
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


def test_what_one_stored_the_other_forgets(ours: Any, theirs: Any) -> None:
    ours().backend.store(ResultRecord.now("from-us", "SUCCESS", 1))
    theirs().backend.store_result("from-them", 1, "SUCCESS")
    theirs().AsyncResult("from-us").forget()
    ours().AsyncResult("from-them").forget()
    for task_id in ("from-us", "from-them"):
        assert ours().AsyncResult(task_id).state == theirs().AsyncResult(task_id).state == "PENDING"
