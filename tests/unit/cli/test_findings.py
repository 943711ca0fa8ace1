"""What the doctor says of versions and addresses, which no broker of the tests has."""

from __future__ import annotations

import pytest

from amqptasks import App
from amqptasks.cli.findings import BAD, OK, WARN, of_address, of_settings, of_version


@pytest.mark.parametrize(
    ("version", "worst", "says"),
    [
        ((), WARN, "not RabbitMQ"),
        ((3, 9, 29), BAD, "older than 3.10"),
        ((3, 10, 8), OK, "delivery timeout per queue: no"),
        ((3, 12, 0), OK, "delivery timeout per queue: yes"),
        ((3, 13, 1), WARN, "3.13.1 drops"),
        ((3, 13, 7), OK, "delivery limit of its own: no"),
        ((4, 0, 5), OK, "delivery limit of its own: 20"),
        ((4, 3, 2), WARN, "single active consumer"),
        ((4, 3, 6), OK, "quorum queues only"),
    ],
)
def test_a_version_is_told_with_its_traps(version: tuple[int, ...], worst: str, says: str) -> None:
    found = list(of_version(version))
    assert any(says in each.text for each in found)
    assert {each.status for each in found} <= {OK, worst} and worst in {each.status for each in found}


@pytest.mark.parametrize(
    ("url", "checks"),
    [
        ("amqp://guest:guest@localhost//", set()),
        ("amqp://guest:guest@127.0.0.7//", set()),
        ("amqp://guest:guest@[::1]//", set()),
        ("amqp://guest:guest@rabbit.example//", {"user", "network"}),
        ("amqp://ann:x@10.0.0.1//", {"network"}),
        ("amqps://ann:x@10.0.0.1//", set()),
    ],
)
def test_what_travels_over_a_network_is_told(url: str, checks: set[str]) -> None:
    app = App("a", broker=url, set_as_current=False)
    (endpoint,) = app.endpoints("a test")
    found = list(of_address(endpoint.parameters, endpoint.label))
    assert {each.check for each in found} == checks and all(each.status == WARN and each.remedy for each in found)


def test_a_delivery_limit_beyond_that_of_rabbitmq_is_bad_from_4_on() -> None:
    app = App("a", broker="amqp://localhost", backend="rpc://", set_as_current=False)
    app.conf.task_delivery_limit = 21
    assert [each.status for each in of_settings(app, (3, 13, 7))] == [OK]
    (found,) = of_settings(app, (4, 0, 0))
    assert found.status == BAD and "deletes" in found.text
    app.conf.task_delivery_limit = 20
    assert [each.status for each in of_settings(app, (4, 0, 0))] == [OK]
