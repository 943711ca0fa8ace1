"""Real Celery programs call our worker: all of `Calls`, on quorum and classic queues; and protocol 1."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest

from tests.interop.calls import Calls, Client, get
from tests.interop.conftest import Start


@pytest.fixture(scope="module", params=["quorum", "classic"])
def queue_type(request: pytest.FixtureRequest) -> str:
    """Both kinds of app must be told the same type: a queue has one."""
    kind: str = request.param
    return kind


@pytest.fixture(scope="module")
def queue(start_worker: Start, queue_type: str) -> str:
    """A queue that a worker of ours consumes."""
    name = f"interop-{uuid.uuid4().hex[:12]}"
    start_worker("amqptasks", name, queue_type).wait_ready()
    return name


@pytest.fixture(scope="module")
def client(make_client: Callable[..., Client], queue: str, queue_type: str) -> Client:
    """A real Celery program."""
    return make_client("celery", queue, queue_type)


class TestCelerysClientAndOurWorker(Calls):
    """The list."""


def test_messages_of_protocol_1_are_run(make_client: Callable[..., Client], queue: str, queue_type: str) -> None:
    # Given a Celery program that still speaks protocol 1
    old = make_client("celery", queue, queue_type, task_protocol=1)

    # When it calls a task / Then the answer comes
    assert get(old.task("add").delay(2, 3)) == 5
    assert get(old.task("echo").delay(1, a="b")) == [[1], {"a": "b"}]
