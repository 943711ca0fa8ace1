"""Chords of real Celery's over one Redis: their parts run by workers of both kinds, who count them both."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import celery
import celery.exceptions
import kombu.pools
import pytest

import amqptasks
from amqptasks.results.keyvalue import Keys
from amqptasks.results.record import ResultRecord
from amqptasks.results.redis import RedisBackend
from tests.interop import tasks
from tests.interop.calls import our_client
from tests.interop.chord_calls import check_failures, check_values
from tests.interop.conftest import stored_in, workers
from tests.support import eventually

TIMEOUT_S = 20
#: Celery calls what the library would rather see called otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning")
BOTH = ("amqptasks", "celery")


@pytest.fixture(scope="module")
def queues(broker_url: str, redis_url: str) -> Iterator[dict[str, str]]:
    """A queue for each kind of worker, which runs with its results in Redis."""
    with stored_in(redis_url), workers(broker_url) as start:
        made = {kind: f"chords-{kind}-{uuid.uuid4().hex[:8]}" for kind in BOTH}
        for process in [start(kind, queue, "quorum") for kind, queue in made.items()]:
            process.wait_ready()
        yield made


@pytest.fixture(scope="module")
def client(broker_url: str, redis_url: str, queues: dict[str, str]) -> Iterator[Any]:
    """A Celery program."""
    app = celery.Celery("chords", set_as_current=False)
    app.conf.update(tasks.settings(broker_url, queues["celery"], "quorum"), result_backend=redis_url)
    yield tasks.register(app)
    # Its results would use the connection when they are thrown away, and connect again.
    app.backend.result_consumer.cancel_for = lambda task_id: None
    app.backend.result_consumer.stop()
    app.backend.client.connection_pool.disconnect()
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
    header = [on("amqptasks", "add", 1, 1), on(kind, "raises", "ValueError", "no"), on("celery", "add", 2, 2)]
    # When it has / Then the body fails with the reason, and does not run; and its errback is called
    result = celery.chord(header)(body)
    with pytest.raises(celery.exceptions.ChordError, match="Dependency .* raised ValueError"):
        result.get(timeout=TIMEOUT_S, follow_parents=False)
    eventually(lambda: path.exists(), TIMEOUT_S)


def test_chains_and_groups_are_parts_too(on: Any) -> None:
    # Given a header of a chain, whose last step counts, a call, and a chain that ends in a group
    for kind in BOTH:
        header = [
            on("celery", "add", 1, 1) | on("amqptasks", "add", 10), on(kind, "add", 3, 3),
            on("celery", "add", 1, 1) | celery.group(on("amqptasks", "add", 4), on(kind, "add", 5)),
        ]  # fmt: skip
        assert celery.chord(header)(on(kind, "echo")).get(timeout=TIMEOUT_S) == [[[12, 6, [6, 7]]], {}]
    # And one whose chain breaks before its last step, which never counts itself
    broken = [on("amqptasks", "raises", "KeyError", "gone") | on("celery", "add", 1), on("amqptasks", "add", 1, 1)]
    with pytest.raises(celery.exceptions.ChordError, match="raised KeyError"):
        celery.chord(broken)(on("celery", "echo")).get(timeout=TIMEOUT_S, follow_parents=False)


def test_what_follows_a_chord_follows_it(on: Any) -> None:
    first = celery.chord([on("amqptasks", "add", 1, 1), on("celery", "add", 2, 2)], on("amqptasks", "total"))
    last = celery.chain(first, on("celery", "add", 10), on("amqptasks", "add", 100)).apply_async()
    assert last.get(timeout=TIMEOUT_S) == 116


def test_the_options_of_the_chord_do_no_harm(on: Any) -> None:
    # Celery hands them on to the body.
    for kind in BOTH:
        call = celery.chord([on(kind, "add", 1, 1)], on(kind, "total"))
        assert call.apply_async(interval=0.1, max_retries=5).get(timeout=TIMEOUT_S) == 2


def test_many_chords_at_once(on: Any) -> None:
    results = [
        celery.chord(on(BOTH[(number + turn) % 2], "add", number, turn) for number in range(5))(
            on(BOTH[turn % 2], "total")
        )
        for turn in range(30)
    ]  # fmt: skip
    assert [each.get(timeout=TIMEOUT_S) for each in results] == [10 + 5 * turn for turn in range(30)]


# ---- Chords of ours


@pytest.fixture(scope="module")
def ours(broker_url: str, redis_url: str, queues: dict[str, str]) -> Iterator[Callable[..., Any]]:
    """Make a call in a program of ours that sends chords as Celery does."""
    client = our_client(broker_url, queues["amqptasks"], "quorum", result_backend=redis_url, chord_join="store")
    yield lambda kind, name, *args: client.app.tasks[f"interop.{name}"].s(*args).set(queue=queues[kind])
    client.close()


def test_chords_of_ours_are_carried_by_workers_of_both_kinds(ours: Callable[..., Any]) -> None:
    check_values(ours)


def test_parts_that_fail_fail_the_bodies_of_ours(ours: Callable[..., Any], tmp_path: Path) -> None:
    check_failures(ours, tmp_path)


@pytest.mark.parametrize("kind", BOTH)
def test_parts_of_either_program_may_add_parts(on: Any, ours: Callable[..., Any], kind: str) -> None:
    for make, begin in ((on, celery.chord), (ours, amqptasks.chord)):
        header = [make(kind, "grow", make(other, "add", 1, 1)) for other in BOTH]
        ((values,), _) = begin(header, make("amqptasks", "echo")).delay().get(timeout=TIMEOUT_S)
        assert sorted(map(str, values)) == ["2", "2", "grown", "grown"]


# ---- The counting alone


@pytest.fixture
def backend(redis_url: str) -> Iterator[RedisBackend]:
    made = RedisBackend(redis_url)
    yield made
    made.close()


@pytest.fixture
def server(redis_url: str) -> Iterator[Any]:
    import redis

    made = redis.Redis.from_url(redis_url)
    yield made
    made.close()


def test_a_part_counts_once_and_the_last_one_stays_the_last(backend: RedisBackend, server: Any) -> None:
    # Given a chord of two
    chord_id = uuid.uuid4().hex
    key = Keys().group(chord_id)
    server.set(f"{key}.s", 2)
    # When a part is counted more than once, with another result / Then it is one part, with its first
    assert not backend.count_part(chord_id, "b", 1, "SUCCESS", "second")
    assert not backend.count_part(chord_id, "b", 1, "SUCCESS", "again")
    # And whoever counts the last part has the chord, and has it still when he counts it once more
    assert backend.count_part(chord_id, "a", 0, "SUCCESS", "first")
    assert backend.count_part(chord_id, "a", 0, "SUCCESS", "first")
    assert not backend.count_part(chord_id, "b", 1, "SUCCESS", "late")
    assert backend.counted_parts(chord_id) == [("a", "SUCCESS", "first"), ("b", "SUCCESS", "second")]
    # And nothing of it stays for ever
    assert all(server.ttl(f"{key}.{end}") > 0 for end in "jsdc")
    # And one that Celery has finished is over
    server.set(f"{key}.c", "done")
    assert not backend.count_part(chord_id, "a", 0, "SUCCESS", "first")


def test_a_chord_that_is_begun_again_goes_on_or_begins_anew(backend: RedisBackend) -> None:
    # Given a chord of two, one of which is counted, and a part added, twice by the same task
    chord_id = uuid.uuid4().hex
    begin = partial(backend.begin_chord, chord_id, 2, None, is_nested=False)
    begin(is_again=False)
    assert not backend.count_part(chord_id, "a", 0, "SUCCESS", 1)
    for _ in range(2):
        backend.add_to_chord(chord_id, "a:1")
    assert not backend.count_part(chord_id, "b", 1, "SUCCESS", 2)
    # When who sent it is run twice / Then what is counted stays counted
    begin(is_again=True)
    assert backend.count_part(chord_id, "more", 0, "SUCCESS", 3)
    begin(is_again=True)
    assert not backend.count_part(chord_id, "b", 1, "SUCCESS", 2)
    # And when a program sends it once more, it begins anew
    begin(is_again=False)
    assert not backend.count_part(chord_id, "a", 0, "SUCCESS", "new")
    assert backend.count_part(chord_id, "b", 1, "SUCCESS", "new")
    assert [value for *_, value in backend.counted_parts(chord_id)] == ["new", "new"]


def test_nothing_is_complete_before_its_size_is_known(backend: RedisBackend, server: Any) -> None:
    chord_id = uuid.uuid4().hex
    assert not backend.count_part(chord_id, "a", 0, "SUCCESS", 1)
    server.set(f"{Keys().group(chord_id)}.s", 1)
    server.set(f"{Keys().group(chord_id)}.t", 1)
    assert not backend.count_part(chord_id, "a", 0, "SUCCESS", 1)
    assert backend.count_part(chord_id, "b", None, "FAILURE", {"exc_type": "ValueError"})
    assert [each[0] for each in backend.counted_parts(chord_id)] == ["a", "b"]
    # Celery's own backend reads what stands there
    backend.store(ResultRecord.now("a", "SUCCESS", 1))
    theirs = celery.Celery("theirs", broker="memory://", set_as_current=False)
    found = [theirs.backend.decode(each) for each in server.zrange(f"{Keys().group(chord_id)}.j", 0, -1)]
    assert found == [[1, "a", "SUCCESS", 1], [1, "b", "FAILURE", {"exc_type": "ValueError"}]]
