"""Our client calls a real Celery worker (prefork): the whole list of `Calls`, and what only Celery's answers show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from amqptasks import chain
from amqptasks.exceptions import SoftTimeLimitExceeded
from tests.interop.calls import TIMEOUT_S, Calls, Client, Gate, get, lines
from tests.interop.canvas_calls import CanvasCalls
from tests.interop.conftest import QueueOf
from tests.support import ROOT


@pytest.fixture
def queue(queue_of: QueueOf, queue_type: str) -> str:
    """The queue of a Celery worker."""
    return queue_of("celery", queue_type)


@pytest.fixture
def client(client_of: Callable[..., Client], queue: str, queue_type: str) -> Client:
    """A program of ours."""
    return client_of("amqptasks", queue, queue_type)


class TestOurClient(Calls):
    def test_a_retry_is_seen_and_then_its_end(self, client: Client, gate: Gate) -> None:
        # When a task of a Celery worker is retried, and goes on when that was seen
        result = client.task("second_time").delay(str(gate.path))

        # Then who waits hears of it, with the reason, and gets the value in the end
        (state, reason), end = gate.open_at("RETRY", result)
        assert (state, reason["exc_type"], reason["exc_message"]) == ("RETRY", "Refused", ["not yet"])
        assert end == ("SUCCESS", "done")

    def test_a_time_limit_of_the_call_is_kept(self, client: Client, gate: Gate) -> None:
        # When a call may take less time than the task needs, then the error is ours, not billiard's
        with pytest.raises(SoftTimeLimitExceeded):
            get(client.task("wait").apply_async((str(gate.path),), soft_time_limit=0.3))

    @pytest.mark.parametrize("first", ["add", "write_quietly"])
    def test_answers_keep_until_somebody_listens(
        self, make_client: Callable[..., Client], queue: str, queue_type: str, tmp_path: Path, first: str
    ) -> None:
        # Given a program that has not waited for anything yet, and a chain whose first step may have no result
        client = make_client("amqptasks", queue, queue_type)
        add, path = client.task("add"), str(tmp_path / "written")
        head = add.s(1, 2) if first == "add" else client.task("write_quietly").s("quiet", path)

        # When the chain is over before its results are asked for
        result = chain(head, add.si(3, 4), add.s(1), client.task("write").s(path)).apply_async()
        lines(Path(path), 1 if first == "add" else 2)

        # Then every answer is there
        assert [get(result), get(result.parent), get(result.parent.parent)] == [8, 8, 7]


class TestOurWorkflows(CanvasCalls):
    pass


def test_our_command_line_calls_celerys_tasks(broker_url: str, queue: str, queue_type: str, tmp_path: Path) -> None:
    # When somebody types `amqptasks call`
    path = tmp_path / "written"
    environment = os.environ | {
        "INTEROP_BROKER": broker_url, "INTEROP_QUEUE": queue, "INTEROP_QUEUE_TYPE": queue_type,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }  # fmt: skip
    command = [sys.executable, "-m", "amqptasks", "-A", "tests.interop.tasks:our_app", "call", "interop.write"]
    arguments = json.dumps(["from the shell", str(path)])
    subprocess.run([*command, "--args", arguments], env=environment, cwd=tmp_path, check=True, timeout=2 * TIMEOUT_S)

    # Then the Celery worker runs the task
    assert lines(path, 1) == ["from the shell"]
