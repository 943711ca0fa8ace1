"""How long to wait for the next attempt, and which options of a task are accepted for that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amqptasks.app.app import App
from amqptasks.app.retrying import back_off
from amqptasks.exceptions import ImproperlyConfigured, Retry


@pytest.fixture
def app() -> Iterator[App]:
    made = App("proj", broker="amqp://127.0.0.1:1//", set_as_current=False)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("retries", "factor", "maximum", "expected"),
    [
        (0, 1, 600, 1),
        (1, 1, 600, 2),
        (5, 1, 600, 32),
        (9, 1, 600, 512),
        (10, 1, 600, 600),
        (2**31, 1, 600, 600),
        (0, 0.5, 600, 0.5),
        (3, 0.25, 600, 2),
        (3, 7, 50, 50),
        (0, 5, 0.1, 0.1),
        (4, 0, 600, 0),
    ],
)
def test_the_wait_doubles_up_to_its_maximum(retries: int, factor: float, maximum: float, expected: float) -> None:
    assert back_off(retries, factor, maximum, jitter=False) == expected


@given(st.integers(0, 2**31), st.floats(0, 1000), st.floats(0, 100_000))
def test_with_jitter_it_is_any_time_up_to_that(retries: int, factor: float, maximum: float) -> None:
    longest = back_off(retries, factor, maximum, jitter=False)
    assert 0 <= back_off(retries, factor, maximum, jitter=True) <= longest <= maximum + 0.001
    # Both ends can be drawn, and what is between them too, not whole seconds alone
    assert back_off(retries, factor, maximum, True, lambda low, high: low) == 0
    assert back_off(retries, factor, maximum, True, lambda low, high: high) == longest


def test_jitter_spreads_tasks_within_a_second() -> None:
    # Given 200 tasks that have all failed once / When they wait for at most a second
    waits = {back_off(0, 1, 600, jitter=True) for _ in range(200)}
    # Then they do not come back at once
    assert len(waits) > 100 and all(0 <= each <= 1 for each in waits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"autoretry_for": (KeyError, "OSError")}, "autoretry_for of task 'work' to list exceptions, got: 'OSError'"),
        ({"autoretry_for": KeyError, "dont_autoretry_for": [1]}, "dont_autoretry_for of task 'work'"),
        ({"autoretry_for": KeyError, "retry_backoff": "soon"}, "retry_backoff of task 'work' to be seconds"),
        ({"autoretry_for": KeyError, "retry_backoff": -1}, "retry_backoff of task 'work' to be seconds"),
        ({"autoretry_for": KeyError, "retry_backoff_max": None}, "retry_backoff_max of task 'work' to be seconds"),
    ],
)
def test_options_are_checked_when_the_task_is_bound(app: App, options: dict[str, Any], message: str) -> None:
    @app.task(name="work", **options)
    def work() -> None:
        """Nothing."""

    with pytest.raises(ImproperlyConfigured, match=message):
        app.finalize()


def test_annotations_may_say_how_a_task_is_retried(app: App) -> None:
    # Given a task without a word of retries, and a setting that has one
    app.conf.task_annotations = {"work": {"autoretry_for": (KeyError,), "max_retries": 2}}
    runs: list[int] = []

    @app.task(name="work", bind=True)
    def work(self: Any) -> None:
        runs.append(self.request.retries)
        raise KeyError

    # When it fails / Then it is retried, as often as the setting says
    assert work.apply().state == "FAILURE"
    assert runs == [0, 1, 2]


def test_class_based_tasks_and_coroutines_are_retried_too(app: App) -> None:
    runs: list[str] = []

    class Fetch(app.Task):  # type: ignore[misc, name-defined]
        name = "fetch"
        autoretry_for = (OSError,)
        max_retries = 1

        def run(self) -> None:
            runs.append("class")
            raise OSError

    @app.task(name="later", autoretry_for=OSError, max_retries=1)
    async def later() -> None:
        runs.append("coroutine")
        raise OSError

    assert app.register_task(Fetch()).apply().state == "FAILURE"
    assert later.apply().state == "FAILURE"
    assert runs == ["class"] * 2 + ["coroutine"] * 2


def test_the_signature_of_a_request_is_the_call_once_more(app: App) -> None:
    # Given a request
    @app.task(name="work", bind=True)
    def work(self: Any, x: int) -> None:
        """Nothing."""

    work.push_request(
        id="the-id", args=[1], kwargs={}, retries=2, group="g", group_index=3, ignore_result=True, reply_to="there",
        delivery_info={"exchange": "", "routing_key": "mail", "priority": 7}, callbacks=[{"task": "next"}],
    )  # fmt: skip
    try:
        again = work.signature_from_request(countdown=5)
        elsewhere = work.subtask_from_request(args=(2,), queue="other")
    finally:
        work.pop_request()

    # Then it says everything of it again
    assert (again.task, again.args, again.kwargs) == ("work", (1,), {})
    expected = {
        "task_id": "the-id", "retries": 2, "group_id": "g", "group_index": 3, "ignore_result": True, "queue": "mail",
        "reply_to": "there", "priority": 7, "countdown": 5, "link": [{"task": "next"}],
    }  # fmt: skip
    assert expected.items() <= again.options.items()
    assert (elsewhere.args, elsewhere.options["queue"]) == ((2,), "other")


@pytest.mark.parametrize(
    ("retry", "text"),
    [
        (Retry(exc=ValueError("no"), when=3), "Retry in 3s: ValueError('no')"),
        (Retry(exc="busy", when=0.25), "Retry in 0.25s: busy"),
        (Retry(when=1), "Retry in 1s"),
        (Retry("as I say", ValueError("no"), 3), "as I say"),
    ],
)
def test_a_retry_says_when_and_why(retry: Retry, text: str) -> None:
    assert str(retry) == text
