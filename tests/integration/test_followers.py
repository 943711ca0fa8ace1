"""The answers of what follows a task: callbacks are read through ``children``, answered or not."""

from __future__ import annotations

from collections.abc import Callable

from tests.support import Project, WorkerProcess, eventually

SOURCE = """
    import os, time
    from amqptasks import App

    app = App(broker=BROKER, backend="rpc://")
    app.conf.task_default_queue = QUEUE

    @app.task
    def add(x, y):
        return x + y

    @app.task
    def add_behind(x, y, path):
        deadline = time.monotonic() + 30
        while not os.path.exists(path) and time.monotonic() < deadline:
            time.sleep(0.005)
        return x + y
"""


def test_a_callbacks_answer_can_be_waited_for_before_it_comes(
    project: Callable[..., Project], worker: Callable[..., WorkerProcess], tmp_path: object
) -> None:
    # Given a task with a callback that cannot end yet
    code = project(SOURCE)
    worker(code, "-c", "2")
    gate = f"{tmp_path}/gate"
    result = code.add.apply_async((2, 2), link=code.add_behind.s(8, gate))
    assert result.get(timeout=20) == 4

    # When its caller asks for the callback's answer
    (child,) = result.children
    assert not child.ready()

    # Then the answer can be waited for, and comes
    open(gate, "w").close()
    assert child.get(timeout=20) == 12
    eventually(child.successful)
