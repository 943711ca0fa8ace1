"""Chords of real Celery's over one memcached: their parts run by workers of both kinds, who count them both."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery
import celery.exceptions
import kombu.pools
import pymemcache
import pytest

from amqptasks.results.keyvalue import Keys
from amqptasks.results.memcached import MemcachedBackend
from amqptasks.results.memcached_chords import name_of
from tests.interop import tasks
from tests.interop.calls import our_client
from tests.interop.chord_calls import check_failures, check_values
from tests.interop.conftest import stored_in, workers
from tests.support import eventually

TIMEOUT_S = 20
BOTH = ("amqptasks", "celery")
NOTE = "amqptasks-chord-part-"


@pytest.fixture(scope="module")
def queues(broker_url: str, memcached_url: str) -> Iterator[dict[str, str]]:
    """A queue for each kind of worker, which runs with its results in memcached."""
    with stored_in(memcached_url), workers(broker_url) as start:
        made = {kind: f"chords-{kind}-{uuid.uuid4().hex[:8]}" for kind in BOTH}
        for process in [start(kind, queue, "quorum") for kind, queue in made.items()]:
            process.wait_ready()
        yield made


@pytest.fixture(scope="module")
def client(broker_url: str, memcached_url: str, queues: dict[str, str]) -> Iterator[Any]:
    """A Celery program."""
    app = celery.Celery("chords", set_as_current=False)
    app.conf.update(tasks.settings(broker_url, queues["celery"], "quorum"), result_backend=memcached_url)
    yield tasks.register(app)
    app.backend.client.close()
    kombu.pools.reset()
    app.close()


@pytest.fixture
def on(client: Any, queues: dict[str, str]) -> Callable[..., Any]:
    """Make a call that one kind of worker will run: ``on("celery", "add", 1, 2)``."""
    return lambda kind, name, *args: client.tasks[f"interop.{name}"].s(*args).set(queue=queues[kind])


@pytest.mark.parametrize("body", BOTH)
@pytest.mark.parametrize(
    "parts",
    [("amqptasks",) * 3, ("amqptasks", "celery", "amqptasks", "celery"), ("celery", "celery", "amqptasks")],
    ids=["ours", "both", "theirs first"],
)  # fmt: skip
def test_whoever_runs_the_parts_the_body_gets_their_results_in_order(on: Any, parts: Any, body: str) -> None:
    header = [on(kind, "add", number, number) for number, kind in enumerate(parts)]
    result = celery.chord(header)(on(body, "echo"))
    assert result.get(timeout=TIMEOUT_S) == [[[2 * number for number in range(len(parts))]], {}]


@pytest.mark.parametrize("kind", BOTH)
def test_a_part_that_fails_fails_the_body(on: Any, tmp_path: Any, kind: str) -> None:
    # Given a chord with a part that will fail
    path = tmp_path / "told"
    body = on(kind, "echo").on_error(on("amqptasks", "write", str(path)))
    header = [on("amqptasks", "add", 1, 1), on(kind, "raises", "ValueError", "no"), on("amqptasks", "add", 2, 2)]
    # When it has / Then the body fails with the reason, and does not run; and its errback is called
    # (if the last was Celery's worker, it may leave out whose reason it was)
    result = celery.chord(header)(body)
    with pytest.raises(celery.exceptions.ChordError, match="ValueError"):
        result.get(timeout=TIMEOUT_S, follow_parents=False)
    eventually(lambda: path.exists(), TIMEOUT_S)


def test_chains_are_parts_too(on: Any) -> None:
    # Given a header of a call and a chain, whose last step counts
    for kind in BOTH:
        header = [on("celery", "add", 1, 1) | on("amqptasks", "add", 10), on(kind, "add", 3, 3)]
        assert celery.chord(header)(on(kind, "echo")).get(timeout=TIMEOUT_S) == [[[12, 6]], {}]
    # And one whose chain breaks before its last step, which never counts itself
    broken = [on("amqptasks", "raises", "KeyError", "gone") | on("celery", "add", 1), on("amqptasks", "add", 1, 1)]
    with pytest.raises(celery.exceptions.ChordError, match="KeyError"):
        celery.chord(broken)(on("celery", "echo")).get(timeout=TIMEOUT_S, follow_parents=False)


def test_groups_are_parts_too(on: Any) -> None:
    # Given a header with a chain that ends in a group
    for kind in BOTH:
        header = [
            on("celery", "add", 1, 1) | celery.group(on("amqptasks", "add", 4), on(kind, "add", 5)),
            on("amqptasks", "add", 3, 3),
        ]  # fmt: skip
        assert celery.chord(header)(on(kind, "echo")).get(timeout=TIMEOUT_S) == [[[[6, 7], 6]], {}]


def test_many_chords_at_once(on: Any) -> None:
    results = [
        celery.chord(on(BOTH[(number + turn) % 2], "add", number, turn) for number in range(5))(
            on(BOTH[turn % 2], "total")
        )
        for turn in range(20)
    ]  # fmt: skip
    assert [each.get(timeout=TIMEOUT_S) for each in results] == [10 + 5 * turn for turn in range(20)]


# ---- Chords of ours


@pytest.fixture(scope="module")
def ours(broker_url: str, memcached_url: str, queues: dict[str, str]) -> Iterator[Callable[..., Any]]:
    """Make a call in a program of ours that sends chords as Celery does."""
    client = our_client(broker_url, queues["amqptasks"], "quorum", result_backend=memcached_url, chord_join="store")
    yield lambda kind, name, *args: client.app.tasks[f"interop.{name}"].s(*args).set(queue=queues[kind])
    client.close()


def test_chords_of_ours_are_carried_by_workers_of_both_kinds(ours: Callable[..., Any]) -> None:
    check_values(ours)


def test_parts_that_fail_fail_the_bodies_of_ours(ours: Callable[..., Any], tmp_path: Path) -> None:
    check_failures(ours, tmp_path)


# ---- The counting alone


@pytest.fixture
def backend(memcached_url: str) -> Iterator[MemcachedBackend]:
    made = MemcachedBackend(memcached_url.removeprefix("cache+"))
    yield made
    made.close()


@pytest.fixture
def server(memcached_url: str) -> Iterator[Any]:
    made = pymemcache.Client(memcached_url.partition("://")[2].rstrip("/"), default_noreply=False)
    yield made
    made.close()


def test_a_part_counts_once_and_the_last_one_stays_the_last(backend: MemcachedBackend, server: Any) -> None:
    # Given a chord of three, and a worker of Celery's that has counted between two of ours
    chord_id = uuid.uuid4().hex
    key = Keys().chord(chord_id)
    server.set(key, 0)
    assert not backend.count_part(chord_id, "a", 0, "SUCCESS", 1, 3)
    assert server.incr(key, 1) == 2
    # When ours count more than once / Then each is one part, and the last stays the last
    assert not backend.count_part(chord_id, "a", 0, "SUCCESS", 1, 3)
    assert backend.count_part(chord_id, "c", 2, "SUCCESS", 1, 3)
    assert not backend.count_part(chord_id, "a", 0, "SUCCESS", 1, 3)
    assert backend.count_part(chord_id, "c", 2, "SUCCESS", 1, 3)
    # And a part that Celery counts again is one too many, for it as for us
    assert server.incr(key, 1) == 4
    # And one that Celery has finished is over
    server.delete(key)
    assert not backend.count_part(chord_id, "d", 3, "SUCCESS", 1, 3)


@pytest.mark.parametrize(("is_counted", "others"), [(False, 0), (True, 0), (True, 1)])
def test_a_part_that_was_ended_while_it_counted_is_counted_once(
    backend: MemcachedBackend, server: Any, is_counted: bool, others: int
) -> None:
    # Given a part that was ended between its note and the counter, or between the counter and its second note
    chord_id = uuid.uuid4().hex
    key, name = Keys().chord(chord_id), name_of(chord_id, "a", 0)
    server.set(key, 0)
    _, version = server.gets(key)
    server.add(NOTE + name, b"trying " + version)
    if is_counted:
        assert server.cas(key, f"1 {name}", version)
    # When another part has counted since, or none, and it is delivered again / Then it is counted, once
    if others:
        assert not backend.count_part(chord_id, "b", 1, "SUCCESS", 1, 3)
        assert server.get(key).split()[0] == b"2"
    assert not backend.count_part(chord_id, "a", 0, "SUCCESS", 1, 3)
    assert server.get(key).split()[0] == str(1 + others).encode()


def test_a_chord_that_is_begun_again_goes_on(backend: MemcachedBackend) -> None:
    # Given a chord of two, one of which is counted / When who sent it is run twice / Then what is counted stays counted
    chord_id = uuid.uuid4().hex
    header = [[chord_id, None], [[["a", None], None], [["b", None], None]]]
    for is_again in (False, True):
        backend.begin_chord(chord_id, 2, header, is_nested=False, is_again=is_again)
        assert not backend.count_part(chord_id, "a", 0, "SUCCESS", 1, 2)
    assert backend.count_part(chord_id, "b", 1, "SUCCESS", 1)


def test_the_size_is_that_of_the_saved_group_if_the_body_says_none(backend: MemcachedBackend, server: Any) -> None:
    chord_id = uuid.uuid4().hex
    server.set(Keys().chord(chord_id), 0)
    assert not backend.count_part(chord_id, "a", 0, "SUCCESS", 1)
    backend.save_group(chord_id, [[chord_id, None], [[["a", None], None], [["b", None], None]]])
    assert backend.count_part(chord_id, "b", 1, "SUCCESS", 1)
