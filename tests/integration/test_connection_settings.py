"""What the settings say a worker does when its broker is away."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable

import pytest

from tests.support import Project, WorkerProcess

SOURCE = """
    from amqptasks import App

    app = App(broker=BROKER)
    app.conf.task_default_queue = QUEUE
    app.conf.broker_connection_retry_interval_max = 0.1
    {settings}
"""


def closed_url() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"amqp://guest:secret@127.0.0.1:{taken.getsockname()[1]}//"


@pytest.mark.parametrize(
    "settings",
    [
        "app.conf.broker_connection_retry_on_startup = False",
        "app.conf.broker_connection_retry = False",
        "app.conf.broker_connection_max_retries = 2",
    ],
)
def test_a_worker_that_is_not_to_wait_for_its_broker_says_so_and_ends(
    project: Callable[..., Project], worker: Callable[..., WorkerProcess], settings: str
) -> None:
    # Given a broker that is not there, and a worker told not to try for ever
    code = project(SOURCE.format(settings=settings), url=closed_url())

    # When it starts
    process = worker(code, ready=False, expected_exits=(1,))

    # Then it says that it gives up, without the password, and ends with 1
    process.wait_for("Giving up, as the settings say")
    assert process.process.wait(timeout=20) == 1
    assert "secret" not in process.log


def test_a_worker_waits_for_its_broker_unless_told_otherwise(
    project: Callable[..., Project], worker: Callable[..., WorkerProcess]
) -> None:
    # Given a broker that is not there / When a worker starts
    code = project(SOURCE.format(settings=""), url=closed_url())
    process = worker(code, ready=False, expected_exits=(0, 1))

    # Then it tells each attempt and goes on trying
    for attempt in range(1, 5):
        process.wait_for("(?s)" + "Trying again.*" * attempt)
    assert process.process.poll() is None


def test_a_worker_never_waits_longer_between_attempts_than_it_is_told(
    project: Callable[..., Project], worker: Callable[..., WorkerProcess]
) -> None:
    # Given a broker that is not there / When a worker that is to wait 0.1 s at most has tried many times
    code = project(SOURCE.format(settings=""), url=closed_url())
    process = worker(code, ready=False, expected_exits=(0, 1))
    process.wait_for("(?s)" + "Trying again.*" * 12)

    # Then it has never said that it waits longer
    waits = [float(found) for found in re.findall(r"Trying again in (\d+\.\d+) seconds", process.log)]
    assert max(waits) <= 0.1
