"""The delay ladder as data: addresses at the edges, and the topology of rabbitmq.md §1.5."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amqptasks.broker import delays
from amqptasks.broker.delays import LEVELS, MAX_DELAY_MS, MAX_QUEUE_NAME_BYTES, MAX_UNITS, UNIT_MS, Ladder, Waiting
from amqptasks.broker.topology import BindExchange, BindQueue, DeclareExchange, DeclareQueue
from amqptasks.exceptions import ImproperlyConfigured

QUEUE = "orders.eu"


@pytest.fixture
def ladder() -> Ladder:
    return Ladder()


def matches(pattern: str, key: str) -> bool:
    """AMQP's topic matching, of patterns with stars and one '#' at the end."""
    words, keys = pattern.split("."), key.split(".")
    if words[-1] == "#":
        words = words[:-1]
        return len(keys) >= len(words) and all(w in ("*", k) for w, k in zip(words, keys, strict=False))
    return len(keys) == len(words) and all(w in ("*", k) for w, k in zip(words, keys, strict=True))


def way(ladder: Ladder, delay_ms: float, queue: str = QUEUE, *, by_entry: bool = False) -> tuple[int, list[str]]:
    """Follow a message through the declared topology: how long it waits in all, and where it comes out."""
    steps = [*ladder.steps(), ladder.exit_for(queue)]
    queues = {each.queue: each for each in steps if isinstance(each, DeclareQueue)}
    exchange, key = ladder.enter(delay_ms, queue) if by_entry else ladder.address(delay_ms, queue)
    entries = [*ladder.entry_steps(exchange)] if by_entry else []
    # A fanout exchange looks at no key.
    steps += [dataclasses.replace(each, routing_key="#") for each in entries if isinstance(each, BindQueue)]
    waited = 0
    for _ in range(2 * LEVELS + 1):
        found: list[str] = []
        for each in steps:
            if isinstance(each, BindQueue) and each.exchange == exchange and matches(each.routing_key, key):
                found.append(each.queue)
            if isinstance(each, BindExchange) and each.source == exchange and matches(each.routing_key, key):
                found.append(each.destination)
        assert len(found) == 1, f"{exchange} with {key} leads to {found}"
        if found[0] not in queues:
            if exchange == ladder.due:
                return waited, found
            exchange = found[0]
            continue
        arguments = queues[found[0]].arguments
        waited += arguments["x-message-ttl"]
        exchange = arguments["x-dead-letter-exchange"]
        assert "x-dead-letter-routing-key" not in arguments
    raise AssertionError("it goes round and round")


@pytest.mark.parametrize(
    ("delay_ms", "exchange", "digits"),
    [
        (0, "x0", "0.0.0.0.0.1"),
        (1, "x0", "0.0.0.0.0.1"),
        (50, "x0", "0.0.0.0.0.1"),
        (51, "x0", "0.0.0.0.0.2"),
        (15 * 50, "x0", "0.0.0.0.0.f"),
        (16 * 50, "x1", "0.0.0.0.1.0"),
        (3_600_000, "x4", "0.1.1.9.4.0"),
        (MAX_DELAY_MS - 51, "x5", "f.f.f.f.f.e"),
        (MAX_DELAY_MS - 1, "x5", "f.f.f.f.f.f"),
        (MAX_DELAY_MS, "x5", "f.f.f.f.f.f"),
        (MAX_DELAY_MS + 1, "x5", "f.f.f.f.f.f"),
        (1e15, "x5", "f.f.f.f.f.f"),
    ],
)
def test_the_address_says_the_time_in_units(ladder: Ladder, delay_ms: float, exchange: str, digits: str) -> None:
    # When a message is to wait this long / Then it enters at its highest digit, rounded up, cut at the longest time
    assert ladder.address(delay_ms, QUEUE) == (f"amqptasks.delay.v1.{exchange}", f"{digits}.{QUEUE}")


def test_the_span_is_as_documented() -> None:
    assert (LEVELS, UNIT_MS, MAX_UNITS) == (6, 50, 16**6 - 1)
    assert 9.7 < MAX_DELAY_MS / 86_400_000 < 9.71


@given(st.integers(1, MAX_DELAY_MS) | st.floats(0.01, MAX_DELAY_MS))
def test_every_way_through_the_ladder_takes_the_time_and_ends_at_the_queue(delay_ms: float) -> None:
    # Given any time / When a message follows the bindings / Then it waits so long, at most a unit more, never less
    for by_entry in (False, True):
        waited, found = way(Ladder(), delay_ms, by_entry=by_entry)
        assert delay_ms <= waited < delay_ms + UNIT_MS
        assert found == [QUEUE]


@pytest.mark.parametrize("queue", ["q", "a.b.c.d.e.f.g", "0.0.1", "x" * MAX_QUEUE_NAME_BYTES, "ü"])
def test_queues_of_any_name_are_reached_and_only_they(ladder: Ladder, queue: str) -> None:
    # Given neighbours whose names end like this one / When a message leaves / Then it reaches its own queue alone
    _waited, found = way(ladder, 500, queue)
    assert found == [queue]
    _exchange, key = ladder.address(500, queue)
    assert len(key.encode()) <= 255
    for other in ("other." + queue, queue + ".more", queue[1:]):
        binding = "*." * LEVELS + other
        assert not matches(binding, key)


def test_the_way_out_has_exactly_six_stars(ladder: Ladder) -> None:
    step = ladder.exit_for("orders.eu")
    assert step == BindQueue("orders.eu", "amqptasks.delay.v1.due", "*.*.*.*.*.*.orders.eu", {})


@pytest.mark.parametrize("queue", ["", "x" * (MAX_QUEUE_NAME_BYTES + 1), "a.*.b", "#", "a.#"])
def test_a_queue_name_that_the_ladder_cannot_carry_is_refused(ladder: Ladder, queue: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="a queue with delayed tasks|name of a queue with delayed tasks"):
        ladder.exit_for(queue)


def test_the_topology_is_that_of_the_reference(ladder: Ladder) -> None:
    # Given the ladder's steps / Then there are 6 levels of 15 queues, lossless, with their times
    steps = ladder.steps()
    queues = [each for each in steps if isinstance(each, DeclareQueue)]
    rungs = [each for each in queues if each.queue != ladder.unroutable]
    assert len(rungs) == 90 and len({each.queue for each in rungs}) == 90
    times = sorted(each.arguments["x-message-ttl"] for each in rungs)
    assert times == sorted(50 * digit * 16**level for digit in range(1, 16) for level in range(6))
    assert times[-1] < 2**32, "RabbitMQ takes no longer time to live"
    for each in rungs:
        assert each.durable and not each.exclusive and not each.auto_delete
        assert each.arguments["x-queue-type"] == "quorum"
        assert each.arguments["x-dead-letter-strategy"] == "at-least-once"
        assert each.arguments["x-overflow"] == "reject-publish"
    # And what leaves without a queue is kept, for it would block everyone else
    due = next(each for each in steps if isinstance(each, DeclareExchange) and each.exchange == ladder.due)
    assert due.arguments["alternate-exchange"] == ladder.unroutable
    assert any(each.queue == ladder.unroutable for each in queues)
    assert any(isinstance(each, BindQueue) and each.exchange == ladder.unroutable for each in steps)
    # And whatever is named was declared before
    declared: set[str] = set()
    for step in steps:
        if isinstance(step, DeclareExchange):
            declared.add(step.exchange)
        elif isinstance(step, DeclareQueue):
            declared.add(step.queue)
            assert step.arguments.get("x-dead-letter-exchange", step.queue) in declared
        elif isinstance(step, BindQueue):
            assert {step.queue, step.exchange} <= declared
        else:
            assert {step.source, step.destination} <= declared


@pytest.mark.parametrize(
    ("exchange", "key"), [("news", "eu.sport"), ("a/b.c", ""), ("n", "news.#"), ("x", "*"), ("ü", "a/b%2F c")]
)
def test_what_goes_through_an_exchange_leaves_with_its_key(ladder: Ladder, exchange: str, key: str) -> None:
    # Given a message that is to go through an exchange / When it leaves
    name = ladder.through(exchange, key)
    _waited, found = way(ladder, 500, name)

    # Then it comes to a queue that hands it over at once, with the key
    assert found == [name]
    there, queue, way_out = ladder.exits_for(name)
    assert there == DeclareExchange(exchange, "direct", durable=True, auto_delete=False, arguments={}, passive=True)
    assert isinstance(queue, DeclareQueue) and queue.queue == name and queue.durable
    assert queue.arguments == {
        "x-queue-type": "quorum", "x-message-ttl": 0, "x-dead-letter-exchange": exchange,
        "x-dead-letter-routing-key": key, "x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish",
    }  # fmt: skip
    assert way_out == ladder.exit_for(name)


def test_each_exchange_and_key_has_a_name_of_its_own(ladder: Ladder) -> None:
    pairs = [("a", "b.c"), ("a.b", "c"), ("a/b", "c"), ("a", "b/c"), ("a", ""), ("", "a")]
    assert len({ladder.through(*each) for each in pairs}) == len(pairs)


def test_ladders_of_two_kinds_or_prefixes_live_side_by_side() -> None:
    # Given ladders of other applications on one broker / When all are declared / Then no two declare a name differently
    ladders = [Ladder(), Ladder("team-a"), Ladder(queue_type="classic"), Ladder("team-a", "classic")]
    declared: dict[tuple[type, str], object] = {}
    for ladder in ladders:
        for each in ladder.steps():
            if isinstance(each, (DeclareExchange, DeclareQueue)):
                name = each.exchange if isinstance(each, DeclareExchange) else each.queue
                assert name.startswith(ladder.prefix + ".")
                assert declared.setdefault((type(each), name), each) == each
    # And each keeps to its own rungs
    assert len(declared) == 4 * (90 + 7) + 2 * 2


def test_a_classic_ladder_asks_for_what_classic_queues_know() -> None:
    rungs = [each for each in Ladder(queue_type="classic").steps() if isinstance(each, DeclareQueue)]
    for each in rungs[1:]:
        assert each.arguments["x-queue-type"] == "classic"
        assert "x-dead-letter-strategy" not in each.arguments and "x-overflow" not in each.arguments


@pytest.mark.parametrize(
    ("delay_ms", "spent_ms", "left_ms"),
    [
        (60_000, 0, 60_000),
        (60_000, 1_234, 58_766),
        (100, 5_000, 1),
        (1_010, 20, 990),
        (MAX_DELAY_MS * 2, 5, MAX_DELAY_MS),
    ],
)
def test_a_message_that_leaves_late_waits_only_what_is_left(
    monkeypatch: pytest.MonkeyPatch, delay_ms: float, spent_ms: float, left_ms: float
) -> None:
    # Given the address of a delayed message, made some time before it is written
    now = [1000.0]
    monkeypatch.setattr(delays, "wall_clock", lambda: now[0])
    ladder = Ladder()
    _exchange, routing_key = ladder.address(delay_ms, "a.queue.with.dots")
    again = ladder.readdress("", routing_key, now[0] + delay_ms / 1000)
    now[0] += spent_ms / 1000

    # When it is written, Then its address is that of the time that is left
    assert again() == ladder.address(left_ms, "a.queue.with.dots")
    # And where it was to enter by an exchange of its own, it does only while that is the right one
    entry, entered_key = ladder.enter(delay_ms, "a.queue.with.dots")
    now[0] = 1000.0
    again = ladder.readdress(entry, entered_key, now[0] + delay_ms / 1000)
    now[0] += spent_ms / 1000
    best = ladder.enter(left_ms, "a.queue.with.dots")
    assert again() == (best if best[0] == entry else ladder.address(left_ms, "a.queue.with.dots"))


def test_an_entry_is_declared_once_and_leads_to_one_queue() -> None:
    # Given the needs of two messages that wait equally long for different queues
    waiting = Waiting(Ladder())
    entry, key, needs = waiting.enter(60_000, "one")
    other_entry, other_key, other_needs = waiting.enter(60_000, "two")
    # Then they share the ladder and their entry, and have each their way out
    assert (entry, key, other_key) == ("amqptasks.delay.v1.in2.4", "0.0.0.4.b.0.one", "0.0.0.4.b.0.two")
    assert other_entry == entry
    assert [need.key for need in needs] == ["amqptasks.delay.v1.due", "amqptasks.delay.v1.due>one", entry]
    assert needs[0] is other_needs[0] and needs[1] is not other_needs[1] and needs[2] is other_needs[2]
    assert needs[2].steps(None) == (
        DeclareExchange(entry, "fanout", durable=True, auto_delete=False, arguments={}),
        BindQueue("amqptasks.delay.v1.q2.4", entry, "", {}),
    )
