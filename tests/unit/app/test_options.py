"""What the options of one call become: headers, a moment, a way of trying."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from amqptasks.app.options import call_policy, embedded, first, policy_of, write_options
from amqptasks.broker.needs import PublishPolicy
from amqptasks.clock import parse_moment, utcnow
from amqptasks.settings import Conf

UTC = timezone.utc
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def written(expires: Any = None, zone: Any = None, **options: Any) -> tuple[dict[str, Any], datetime | None]:
    headers: dict[str, Any] = {}
    moment = write_options(headers, options, expires, zone)
    return headers, moment


def test_an_option_that_is_not_known_is_a_mistake() -> None:
    # Celery passes it on as a property; here a slip of the pen is told at once, with what there is
    with pytest.raises(TypeError, match="unexpected option 'countdwn'; known: .*countdown"):
        written(countdwn=3)


@pytest.mark.parametrize(
    ("options", "headers"),
    [
        ({"time_limit": 10}, {"timelimit": [10, None]}),
        ({"soft_time_limit": 5}, {"timelimit": [None, 5]}),
        ({"time_limit": 10, "soft_time_limit": 10}, {"timelimit": [10, 10]}),
        ({"shadow": "other", "group_id": "g", "group_index": 0}, {"shadow": "other", "group": "g", "group_index": 0}),
        ({"root_id": "r", "parent_id": "p", "retries": 2}, {"root_id": "r", "parent_id": "p", "retries": 2}),
        ({"headers": {"mine": 1}, "shadow": "x"}, {"mine": 1, "shadow": "x"}),
        ({"queue": "elsewhere", "priority": 3, "link": None}, {}),
        ({"countdown": 0}, {}),
    ],
)
def test_options_become_headers(options: dict[str, Any], headers: dict[str, Any]) -> None:
    assert written(**options) == (headers, None)


def test_a_soft_limit_beyond_the_hard_one_is_refused() -> None:
    with pytest.raises(ValueError, match="soft_time_limit must be at most time_limit, got: 11 > 10"):
        written(time_limit=10, soft_time_limit=11)


# ---- When it is to run, and until when


@pytest.mark.parametrize(
    ("eta", "zone", "expected"),
    [
        (NOON, None, NOON),
        (NOON.astimezone(timezone(timedelta(hours=9))), None, NOON),
        (datetime(2030, 1, 1, 12), None, NOON),
        (datetime(2030, 1, 1, 13), ZoneInfo("Europe/Berlin"), NOON),
        (datetime(2030, 7, 1, 14), ZoneInfo("Europe/Berlin"), datetime(2030, 7, 1, 12, tzinfo=UTC)),
        ("2030-01-01T12:00:00+00:00", None, NOON),
        ("2030-01-01T12:00:00Z", ZoneInfo("Europe/Berlin"), NOON),
        ("2030-01-01T13:00:00", ZoneInfo("Europe/Berlin"), NOON),
    ],
)
def test_an_eta_is_a_moment_in_utc(eta: Any, zone: Any, expected: datetime) -> None:
    # When the moment is given in whatever form / Then it travels as an aware moment, the same for everyone
    headers, moment = written(zone=zone, eta=eta)
    assert moment == expected
    assert parse_moment(headers["eta"]) == expected
    assert headers["eta"].endswith("+00:00")


@pytest.mark.parametrize("countdown", [3, 0.5, timedelta(seconds=3), -5])
def test_a_countdown_runs_from_now(countdown: Any) -> None:
    seconds = countdown.total_seconds() if isinstance(countdown, timedelta) else countdown
    before = utcnow()
    headers, moment = written(countdown=countdown)
    after = utcnow()
    assert moment is not None
    assert before + timedelta(seconds=seconds) <= moment <= after + timedelta(seconds=seconds)
    assert parse_moment(headers["eta"]) == moment


def test_an_eta_wins_over_a_countdown() -> None:
    assert written(eta=NOON, countdown=5)[1] == NOON


def test_expires_is_seconds_a_moment_or_the_tasks_own() -> None:
    assert parse_moment(written(expires=NOON)[0]["expires"]) == NOON
    options: dict[str, Any] = {"expires": datetime(2031, 1, 1, tzinfo=UTC)}
    headers: dict[str, Any] = {}
    write_options(headers, options, NOON, None)
    assert headers["expires"] == "2031-01-01T00:00:00+00:00"
    before = utcnow()
    headers, moment = written(expires=60)
    assert moment is None
    assert before + timedelta(seconds=60) <= parse_moment(headers["expires"]) <= utcnow() + timedelta(seconds=60)


@pytest.mark.parametrize("wrong", [{"eta": "tomorrow"}, {"expires": "soon"}])
def test_a_moment_that_cannot_be_read_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected an ISO 8601 date and time"):
        headers: dict[str, Any] = {}
        write_options(headers, wrong, None, None)


# ---- What is embedded, and how it is tried


def test_signatures_are_embedded_as_lists() -> None:
    nothing = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    assert embedded({}) == nothing
    assert embedded({"link": {"task": "a"}}) == {**nothing, "callbacks": [{"task": "a"}]}
    assert embedded({"link": ({"task": "a"}, {"task": "b"})})["callbacks"] == [{"task": "a"}, {"task": "b"}]
    assert embedded({"link_error": [{"task": "e"}], "chain": [{"task": "c"}], "chord": {"task": "x"}}) == {
        "callbacks": None, "errbacks": [{"task": "e"}], "chain": [{"task": "c"}], "chord": {"task": "x"},
    }  # fmt: skip


def test_the_settings_say_how_sends_are_tried() -> None:
    conf = Conf()
    assert policy_of(conf) == PublishPolicy(10.0, True, 3, 0, 0.2, 1)
    conf.update(
        broker_publish_timeout=3, task_publish_retry=False,
        task_publish_retry_policy={"max_retries": None, "interval_start": 1, "interval_step": 2, "interval_max": 5},
    )  # fmt: skip
    assert policy_of(conf) == PublishPolicy(3.0, False, None, 1, 2, 5)


def test_a_call_may_want_it_otherwise() -> None:
    policy = PublishPolicy(10.0, True, 3, 0, 0.2, 1)
    assert call_policy(policy, {}) == policy
    assert call_policy(policy, {"timeout": 0.5, "retry": False}) == PublishPolicy(0.5, False, 3, 0, 0.2, 1)
    own = {"max_retries": None, "interval_start": 2, "interval_step": 3, "interval_max": 4}
    assert call_policy(policy, {"retry_policy": own}) == PublishPolicy(10.0, True, None, 2, 3, 4)
    assert call_policy(policy, {"retry_policy": {"max_retries": 0}}).max_retries == 0


@pytest.mark.parametrize(("value", "found"), [(None, 5), (0, 0), (False, False), ("", "")])
def test_only_none_means_not_given(value: Any, found: Any) -> None:
    assert first(value, 5) == found
