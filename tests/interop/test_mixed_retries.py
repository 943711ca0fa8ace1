"""Tasks that are tried again where workers of both kinds serve one application: either takes over from the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.interop import tasks
from tests.interop.calls import Client, get
from tests.interop.conftest import QueueOf


@pytest.fixture
def queue_type() -> str:
    """Of one type: what differs between them is not what is tried here, and workers take long to start."""
    return "quorum"


@pytest.fixture
def queues(queue_of: QueueOf, queue_type: str) -> dict[str, str]:
    """The queue of each kind of worker."""
    return {kind: queue_of(kind, queue_type) for kind in ("amqptasks", "celery")}


@pytest.fixture(params=["amqptasks", "celery"])
def client(
    request: pytest.FixtureRequest, client_of: Callable[..., Client], queues: dict[str, str], queue_type: str
) -> Client:
    return client_of(request.param, queues["amqptasks"], queue_type)


def kinds(trail: list[Any]) -> list[str]:
    return [each[0] for each in trail]


@pytest.mark.parametrize("countdown", [0, 0.1])
def test_each_kind_takes_over_what_the_other_tries_again(
    client: Client, queues: dict[str, str], countdown: float
) -> None:
    # Given a task with a header and a callback, which is tried again in the queue of the other kind by turns
    ours, theirs = queues["amqptasks"], queues["celery"]
    follows = client.task("echo").s("then").set(queue=ours)
    follows.freeze()
    result = client.task("hop").apply_async(
        ([], [theirs, ours, ours, theirs, theirs], countdown), queue=ours, headers={"tenant": "blue"}, link=follows
    )

    # Then it is one task all the way, whose retries are counted on, and nothing of it is lost
    trail = get(result)
    assert kinds(trail) == ["amqptasks", "celery", "amqptasks", "amqptasks", "celery", "celery"]
    assert [each[1:5] for each in trail] == [[retries, result.id, result.id, "blue"] for retries in range(6)]
    # And what was linked to it is called, once, with its result
    assert get(client.app.AsyncResult(follows.id)) == [[trail, "then"], {}]


@pytest.mark.parametrize("kind", ["amqptasks", "celery"])
def test_what_comes_out_of_our_delay_queues_is_tried_again_in_its_queue(
    client: Client, queues: dict[str, str], kind: str
) -> None:
    # When a task that one of our programs, or our worker, has delayed asks for another try where it is
    result = client.task("hop").apply_async(
        ([], [queues[kind], None, None], 0.1), queue=queues["amqptasks"], countdown=0.1
    )

    # Then it stays there, whichever kind of worker that belongs to
    assert kinds(get(result)) == ["amqptasks", kind, kind, kind]


def test_a_step_of_a_chain_may_be_tried_again_elsewhere(client: Client, queues: dict[str, str]) -> None:
    for first, second in (("amqptasks", "celery"), ("celery", "amqptasks")):
        hop = client.task("hop").s([], [queues[second]], 0).set(queue=queues[first])
        echo = client.task("echo").s().set(queue=queues[first])
        trail, _more = get((hop | echo).apply_async())
        assert kinds(trail[0]) == [first, second]


@pytest.mark.parametrize("kind", ["amqptasks", "celery"])
def test_both_retry_by_themselves(client: Client, queues: dict[str, str], kind: str) -> None:
    assert get(client.task("flaky").apply_async((1,), queue=queues[kind])) == 1


@pytest.mark.parametrize("kind", ["amqptasks", "celery"])
def test_both_give_up_after_as_many_retries(client: Client, queues: dict[str, str], kind: str) -> None:
    # Given a task that has been tried again as often as it may, by the other kind of worker
    result = client.task("flaky").apply_async((9,), queue=queues[kind], retries=2)
    # Then it fails with its error
    with pytest.raises(tasks.Refused, match="2"):
        get(result)
