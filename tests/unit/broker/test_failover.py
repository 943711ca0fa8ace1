"""In which order several brokers are tried."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest

from amqptasks import App
from amqptasks.broker.failover import STRATEGIES, Brokers, Strategy, one_pass, turns
from amqptasks.broker.parameters import endpoints
from amqptasks.exceptions import ImproperlyConfigured, InvalidSetting

URLS = ("amqp://u:p@a//", "amqp://u:p@b//", "amqp://u:p@c//")


def brokers(strategy: Strategy, urls: tuple[str, ...] = URLS) -> Brokers:
    made = endpoints(urls, heartbeat_s=0, connection_timeout_s=1.0, name="test of failover")
    return Brokers.of(made, urls, strategy)


def hosts(order: Iterable[object]) -> str:
    return "".join(each.parameters.host for each in order)  # type: ignore[attr-defined]


def first(count: int, found: Brokers) -> str:
    return hosts(itertools.islice(turns(found), count))


def test_in_turn_begins_with_the_first() -> None:
    assert first(7, brokers(STRATEGIES["round-robin"])) == "abcabca"


def test_at_random_spreads_a_fleet_and_tries_each_before_any_again() -> None:
    # Given many programs with the same list / When each of them begins
    orders = [first(6, brokers(STRATEGIES["shuffle"])) for _ in range(200)]

    # Then they begin with all of the brokers, and every three attempts reach all three
    assert set(Counter(order[0] for order in orders)) == set("abc")
    assert all(set(order[:3]) == set(order[3:]) == set("abc") for order in orders)


def test_a_function_chooses_from_the_urls_as_they_were_written() -> None:
    seen = []

    def backwards(urls: list[str]) -> Iterator[str]:
        seen.append(urls)
        while True:
            yield from reversed(urls)

    assert first(4, brokers(backwards)) == "cbac"
    assert seen == [list(URLS)]


def test_a_function_that_returns_a_list_is_asked_again_at_its_end() -> None:
    assert first(5, brokers(lambda urls: urls[1:])) == "bcbcb"


def test_one_broker_is_no_choice() -> None:
    assert first(2, brokers(lambda _urls: (), URLS[:1])) == "aa"


def failing(_urls: list[str]) -> Iterator[str]:
    yield URLS[2]
    raise LookupError("of no use")


@pytest.mark.parametrize(
    ("strategy", "order", "reason"),
    [
        (failing, "cabca", "of no use"),
        (lambda _urls: (), "abc", "it chose none"),
        (lambda _urls: ["amqp://elsewhere//"], "abc", "not one of the URLs"),
        (lambda _urls: None, "abc", "not iterable"),
    ],
)
def test_a_function_that_fails_is_told_and_the_brokers_are_tried_in_turn(
    strategy: Strategy, order: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        assert first(len(order), brokers(strategy)) == order
    assert reason in caplog.text
    assert "the brokers are tried in turn" in caplog.text
    assert "u:p@" not in caplog.text


def test_one_pass_reaches_every_broker_once() -> None:
    assert hosts(one_pass(brokers(lambda urls: [urls[1]]))) == "bac"
    assert hosts(one_pass(tuple(brokers(STRATEGIES["round-robin"])))) == "abc"


def test_an_app_takes_its_strategy_from_the_settings() -> None:
    def last(urls: list[str]) -> list[str]:
        return urls[-1:]

    def order(given: object) -> str:
        with App("failing over", broker=URLS, set_as_current=False) as app:
            app.conf.broker_failover_strategy = given
            found = app.endpoints("test")
            assert isinstance(found, Brokers)
            return first(3, found)

    assert order(None) == order("round-robin") == "abc"
    assert set(order("shuffle")) == set("abc")
    assert order(last) == "ccc"
    assert order("itertools:cycle") == order("itertools.cycle") == "abc"


def test_a_strategy_that_is_none_is_refused() -> None:
    with App("failing over", broker=URLS, set_as_current=False) as app:
        with pytest.raises(InvalidSetting, match="'round-robin', 'shuffle', or a function"):
            app.conf.broker_failover_strategy = "shufle"
        app.conf.broker_failover_strategy = "math.tau"
        with pytest.raises(ImproperlyConfigured, match="broker_failover_strategy to name a function"):
            app.endpoints("test")
        app.conf.broker_failover_strategy = "no.such:thing"
        with pytest.raises(ImproperlyConfigured, match="named by broker_failover_strategy"):
            app.endpoints("test")
