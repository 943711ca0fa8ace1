"""A real Celery client calls our worker, by either protocol: the whole list of `Calls`, and what is ours to show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop import tasks
from tests.interop.calls import TIMEOUT_S, Calls, Client, get, lines
from tests.interop.canvas_calls import CanvasCalls
from tests.interop.conftest import QueueOf
from tests.support import ROOT


@pytest.fixture
def queue(queue_of: QueueOf, queue_type: str) -> str:
    """The queue of a worker of ours."""
    return queue_of("amqptasks", queue_type)


@pytest.fixture
def client(client_of: Callable[..., Client], queue: str, queue_type: str) -> Client:
    """A real Celery program."""
    return client_of("celery", queue, queue_type)


@pytest.fixture
def old_client(client_of: Callable[..., Client], queue: str, queue_type: str) -> Client:
    """A Celery program that still speaks protocol 1."""
    return client_of("celery", queue, queue_type, task_protocol=1)


class TestProtocol2(Calls):
    def test_results_of_what_follows_reach_the_caller(self, client: Client) -> None:
        # Given a link that was not frozen, so that only its call's reply queue is known
        add = client.task("add")
        result = add.apply_async((1, 2), link=add.s(10))

        # Then its result comes to who waits for the call (a Celery worker sends it to itself)
        assert get(result) == 3
        assert get(result.children[0]) == 13


class TestWorkflows(CanvasCalls):
    def test_the_call_that_replaces_a_task_answers_for_it(self, client: Client) -> None:
        # Given calls of every kind / When a task of ours becomes one of them
        add, become = client.task("add"), client.task("become")
        pair = [add.s(1, 1), add.s(2, 2)]
        for call, expected in (
            (add.s(2, 2), 4), (add.s(2, 2) | add.s(3), 7), (client.package.group(pair), [2, 4]),
            (add.starmap([(1, 1), (2, 2)]), [2, 4]), (add.chunks([(1, 1), (2, 2)], 1), [[2], [4]]),
        ):  # fmt: skip
            # Then who waits for the task gets what that gives (a Celery worker sends it to itself)
            assert get(become.delay(call)) == expected

    def test_chunks_stand_in_a_chain(self, client: Client) -> None:
        # A Celery worker fails here: what it returns for them cannot be serialized.
        add = client.task("add")
        assert get((add.s(1, 1) | add.chunks([(1, 1), (2, 2), (3, 3)], 2)).apply_async()) == [[2, 4], [6]]


class TestProtocol1(Calls):
    @pytest.fixture
    def client(self, old_client: Client) -> Client:
        return old_client

    def test_the_task_sees_what_was_said_of_its_call(self, client: Client) -> None:
        # This protocol carries less: no root, no shadow.
        result = client.task("request").apply_async(
            (1,), {"two": 2}, headers={"tenant": "acme"}, priority=3, time_limit=50, soft_time_limit=40
        )

        seen = get(result)
        assert seen["id"] == seen["correlation_id"] == result.id
        assert (seen["args"], seen["kwargs"], seen["retries"]) == ([1], {"two": 2}, 0)
        assert (seen["argsrepr"], seen["kwargsrepr"]) == ("[1]", "{'two': 2}")
        assert (seen["task"], seen["called_directly"]) == ("interop.request", False)
        assert (seen["timelimit"], seen["priority"], seen["routing_key"]) == ([50, 40], 3, client.queue)
        assert seen["headers"] == {"tenant": "acme"}

    def test_steps_of_a_chain_know_where_they_came_from(self, client: Client) -> None:
        # Steps travel as links here: each knows the one before.
        request = client.task("request")
        result = (request.si() | request.si()).apply_async()

        last, head = get(result), get(result.parent)
        assert (last["parent_id"], last["root_id"]) == (head["id"], head["id"])

    def test_a_step_that_nobody_reached_is_failed_too(self, client: Client) -> None:
        # Links of a failed task are told nothing: its caller learns of it by the parents.
        result = (client.task("refuse").s("no") | client.task("add").s(10)).apply_async()

        with pytest.raises(tasks.Refused):
            get(result)


PROGRAM = """
from celery import Celery, chain, group
from tests.interop.tasks import celery_app as app

add = app.signature("interop.add")
print(app.send_task("interop.add", (2, 2)).get(timeout=20))
print(group(add.clone((n, n)) for n in range(3)).apply_async().get(timeout=20))
print(chain(add.clone((1, 2)), add.clone((3,)))().get(timeout=20))
try:
    app.send_task("interop.raises", ("ValueError", "no")).get(timeout=20)
except ValueError as error:
    print(repr(error))
"""


@pytest.fixture
def celery_program(broker_url: str, queue: str, queue_type: str, tmp_path: Path) -> Callable[..., str]:
    """Run Python with the environment of a Celery project, and return what it prints."""
    environment = os.environ | {
        "INTEROP_BROKER": broker_url, "INTEROP_QUEUE": queue, "INTEROP_QUEUE_TYPE": queue_type,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }  # fmt: skip

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True,
            timeout=2 * TIMEOUT_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_a_program_written_for_celery_needs_no_change(celery_program: Callable[..., str]) -> None:
    printed = celery_program("-c", PROGRAM)

    assert printed.splitlines() == ["4", "[0, 2, 4]", "6", "ValueError('no')"]


def test_celerys_command_line_calls_our_tasks(celery_program: Callable[..., str], tmp_path: Path) -> None:
    # When somebody types `celery call`
    path = tmp_path / "written"
    arguments = json.dumps(["from the shell", str(path)])
    celery_program("-m", "celery", "-A", "tests.interop.tasks:celery_app", "call", "interop.write", "--args", arguments)

    # Then our worker runs the task
    assert lines(path, 1) == ["from the shell"]
