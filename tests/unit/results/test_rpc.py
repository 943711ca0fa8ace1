"""Answers by ``rpc://``, as they come in. Nothing here asks a broker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from amqptasks import App
from amqptasks.exceptions import ResultUnreachable
from amqptasks.results import rpc
from amqptasks.results.record import ResultRecord
from amqptasks.results.rpc import RpcBackend


@pytest.fixture
def backend() -> Iterator[RpcBackend]:
    app = App("answers", broker="amqp://127.0.0.1:1//", backend="rpc://", set_as_current=False)
    made = app.backend
    assert isinstance(made, RpcBackend)
    yield made
    app.close()


def is_kept(backend: RpcBackend, task_id: str) -> bool:
    try:
        return backend.wait(task_id, 0).result == task_id
    except ResultUnreachable:
        return False


def answer(backend: RpcBackend, task_id: str) -> None:
    backend.store(ResultRecord.now(task_id, "SUCCESS", task_id))


def test_an_answer_that_comes_again_after_it_was_forgotten_is_not_kept(
    backend: RpcBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an answer that was forgotten / When it comes once more / Then it is thrown away
    backend.expect("a")
    answer(backend, "a")
    assert is_kept(backend, "a")
    backend.forget("a")
    answer(backend, "a")
    assert not is_kept(backend, "a")
    # Unless the task is sent once more
    backend.expect("a")
    answer(backend, "a")
    assert is_kept(backend, "a")
    # And that of many forgotten ones, only so many are remembered
    monkeypatch.setattr(rpc, "MAX_FORGOTTEN", 2)
    for task_id in ("b", "c", "d"):
        backend.forget(task_id)
    for task_id in ("b", "c", "d"):
        answer(backend, task_id)
    assert [is_kept(backend, task_id) for task_id in ("b", "c", "d")] == [True, False, False]
