"""A Celery worker and one of ours serve one application, each its own queue: calls go back and forth between them.

All of it for quorum and for classic queues: both kinds of program declare every queue they send to, so their
declarations must be the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from amqptasks.exceptions import TopologyConflict
from tests.interop import tasks
from tests.interop.calls import TIMEOUT_S, Client, get, lines
from tests.interop.conftest import QueueOf


@dataclass
class Mixed:
    """An application of both kinds of worker, and one client of it."""

    client: Client
    ours: str
    theirs: str

    def call(self, kind: str, name: str, *args: Any) -> Any:
        """A call that goes to one kind of worker."""
        return self.client.task(name).s(*args).set(queue=self.ours if kind == "amqptasks" else self.theirs)


@pytest.fixture
def queues(queue_of: QueueOf, queue_type: str) -> tuple[str, str]:
    """The queues of a worker of ours and of a Celery worker."""
    return queue_of("amqptasks", queue_type), queue_of("celery", queue_type)


@pytest.fixture(params=["amqptasks", "celery"])
def mixed(
    request: pytest.FixtureRequest, client_of: Callable[..., Client], queues: tuple[str, str], queue_type: str
) -> Mixed:
    return Mixed(client_of(request.param, queues[0], queue_type), *queues)


def test_a_chain_goes_from_worker_to_worker(mixed: Mixed) -> None:
    # Given a chain whose steps belong to both kinds of worker by turns
    route = ["amqptasks", "celery", "celery", "amqptasks", "celery", "amqptasks"]
    steps = [mixed.call(kind, "where", *([[]] if place == 0 else [])) for place, kind in enumerate(route)]

    # When it runs
    result = mixed.client.package.chain(*steps).apply_async()

    # Then each step ran where it belongs, and each result reaches the caller
    assert get(result) == route
    values = []
    while result is not None:
        values.append(get(result))
        result = result.parent
    assert values == [route[:length] for length in range(len(route), 0, -1)]


def test_a_group_is_shared_out(mixed: Mixed) -> None:
    route = ["amqptasks", "celery", "amqptasks", "celery"]
    result = mixed.client.package.group(mixed.call(kind, "where", []) for kind in route).apply_async()

    assert get(result) == [[kind] for kind in route]


@pytest.mark.parametrize("first", ["amqptasks", "celery"])
def test_a_chain_ends_in_a_group_of_both(mixed: Mixed, first: str) -> None:
    members = mixed.client.package.group(mixed.call("amqptasks", "where"), mixed.call("celery", "where"))
    result = (mixed.call(first, "where", []) | members).apply_async()

    assert get(result) == [[first, "amqptasks"], [first, "celery"]]


@pytest.mark.parametrize(("first", "second"), [("amqptasks", "celery"), ("celery", "amqptasks")])
def test_a_failure_here_fails_the_steps_there(mixed: Mixed, tmp_path: Path, first: str, second: str) -> None:
    # Given a chain that fails at one kind of worker, with steps and an errback left for the other
    path = tmp_path / "written"
    chain = mixed.call(first, "refuse", "no") | mixed.call(second, "add", 1) | mixed.call(first, "add", 1)
    chain.link_error(mixed.call(second, "on_error_id", str(path)))

    # When it runs
    result = chain.apply_async()

    # Then every step that was not reached is failed, and the errback is called
    for step in (result, result.parent, result.parent.parent):
        with pytest.raises(tasks.Refused):
            step.get(timeout=TIMEOUT_S, follow_parents=False)
    assert lines(path, 1) == [f"id {result.parent.parent.id}"]


@pytest.mark.parametrize(("first", "second"), [("amqptasks", "celery"), ("celery", "amqptasks")])
def test_links_go_to_the_other_kind(mixed: Mixed, tmp_path: Path, first: str, second: str) -> None:
    # Given a callback and an errback that only the other kind of worker knows
    path = tmp_path / "written"
    only_there = mixed.client.app.signature(f"interop.only_{second}", args=(str(path),))
    only_there.set(queue=mixed.ours if second == "amqptasks" else mixed.theirs)

    # When one task succeeds and another fails
    mixed.call(first, "add", 1, 2).apply_async(link=only_there)
    failed = mixed.call(first, "refuse", "no").apply_async(link_error=only_there)

    # Then it was called for both
    assert lines(path, 2) == sorted(["3", failed.id])


def test_a_queue_of_another_type_is_refused_by_name(
    make_client: Callable[..., Client], queues: tuple[str, str], queue_type: str
) -> None:
    # When a program of ours declares the queue of the Celery worker as another type
    other = {"quorum": "classic", "classic": "quorum"}[queue_type]
    client = make_client("amqptasks", queues[1], other)

    # Then it is told so before anything is sent, with both declarations
    with pytest.raises(TopologyConflict, match=f"(?s){queues[1]}.*x-queue-type.*{other}"):
        client.task("add").delay(1, 1)
