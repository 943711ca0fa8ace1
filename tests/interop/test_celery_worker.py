"""Our programs call a real Celery worker: all of `Calls`; and chains over workers of both kinds."""

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
    """A queue that a real Celery worker consumes."""
    name = f"interop-{uuid.uuid4().hex[:12]}"
    start_worker("celery", name, queue_type).wait_ready()
    return name


@pytest.fixture(scope="module")
def our_queue(start_worker: Start, queue_type: str) -> str:
    """A queue that a worker of ours consumes."""
    name = f"interop-{uuid.uuid4().hex[:12]}"
    start_worker("amqptasks", name, queue_type).wait_ready()
    return name


@pytest.fixture(scope="module")
def client(make_client: Callable[..., Client], queue: str, queue_type: str) -> Client:
    """A program of ours."""
    return make_client("amqptasks", queue, queue_type)


class TestOurClientAndCelerysWorker(Calls):
    """The list."""


@pytest.mark.parametrize("kind", ["amqptasks", "celery"])
def test_steps_of_a_chain_run_on_workers_of_both_kinds(
    make_client: Callable[..., Client], queue: str, our_queue: str, queue_type: str, kind: str
) -> None:
    # Given a program of either kind, and a queue for each kind of worker
    program = make_client(kind, queue, queue_type)
    where = program.task("where")
    steps = [
        where.s([]).set(queue=queue),
        where.s().set(queue=our_queue),
        where.s().set(queue=queue),
        where.s().set(queue=our_queue),
    ]

    # When it sends a chain whose steps go to each in turn / Then every step hands on to the next
    result = program.package.chain(*steps)()
    assert get(result) == ["celery", "amqptasks", "celery", "amqptasks"]
