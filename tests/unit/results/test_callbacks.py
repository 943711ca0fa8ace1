"""``result.then(callback)``: which call is made, when, where, and how often."""

from __future__ import annotations

import logging
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from amqptasks.exceptions import DecodeError, ResultUnreachable
from amqptasks.result import AsyncResult, EagerResult, GroupResult, ResultSet
from amqptasks.results.backend import DisabledBackend, NoResultBackend, Unavailable
from amqptasks.results.memory import MemoryBackend
from amqptasks.results.record import ResultRecord
from amqptasks.wire.failures import to_plain
from tests.support import eventually

WITHIN_S = 20.0


class Told(MemoryBackend):
    """Tells of news."""


class Asked(MemoryBackend):
    """Tells of nothing: it has to be asked."""

    def subscribe(self, task_id: str, wake: Callable[[], None]) -> None:  # type: ignore[override]
        del task_id, wake


class Calls:
    """The calls that were made, with the thread of each."""

    def __init__(self) -> None:
        self.made: list[Any] = []
        self.threads: list[str] = []

    def __call__(self, value: Any) -> str:
        self.made.append(value)
        self.threads.append(threading.current_thread().name)
        return "called"

    def come(self, number: int = 1) -> None:
        eventually(lambda: len(self.made) >= number, WITHIN_S)


@pytest.fixture(params=[Told, Asked])
def backend(request: pytest.FixtureRequest) -> Iterator[MemoryBackend]:
    """A backend of either kind."""
    made = request.param()
    yield made
    made.close()


def end(backend: MemoryBackend, task_id: str, value: Any = None) -> None:
    """Finish a task, with a value or an exception."""
    is_error = isinstance(value, BaseException)
    backend.store(
        ResultRecord.now(task_id, "FAILURE" if is_error else "SUCCESS", to_plain(value) if is_error else value)
    )


def test_a_call_is_made_once_when_the_result_is_there(backend: MemoryBackend) -> None:
    # Given a result that is waited for by a call
    result, calls, other = AsyncResult("t", backend), Calls(), Calls()
    promise = result.then(calls)
    assert calls.made == [] and not promise.is_done
    # When its task is finished, and another one is, whose call shows that the thread has been there since
    end(backend, "t", 4)
    calls.come()
    AsyncResult("other", backend).then(other)
    end(backend, "t", 5)
    end(backend, "other")
    other.come()
    # Then it was made once, with the result, on the thread that is kept for calls
    assert calls.made == [result] and result.get(timeout=0) == 4
    assert calls.threads == ["amqptasks-callbacks"] and promise.is_done


def test_a_call_for_what_is_known_already_is_made_at_once_and_here(backend: MemoryBackend) -> None:
    end(backend, "t", 4)
    result, calls = AsyncResult("t", backend), Calls()
    result.get(timeout=0)
    result.then(calls)
    EagerResult("e", 1, "SUCCESS").then(calls)
    assert len(calls.made) == 2 and set(calls.threads) == {threading.current_thread().name}


def test_what_came_before_anybody_waited_is_found(backend: MemoryBackend) -> None:
    end(backend, "t", 4)
    calls = Calls()
    AsyncResult("t", backend).then(calls)
    calls.come()


def test_a_failure_goes_to_on_error_or_else_to_the_call(backend: MemoryBackend) -> None:
    # Given a task that fails, and calls for it
    good, bad, lonely = Calls(), Calls(), Calls()
    result = AsyncResult("t", backend)
    result.then(good, on_error=bad)
    result.then(lonely)
    # When it has failed
    end(backend, "t", KeyError("k"))
    bad.come()
    lonely.come()
    # Then its error went to who asked for errors, and the result to who asked for all
    assert [repr(error) for error in bad.made] == ["KeyError('k')"] and good.made == []
    assert lonely.made == [result] and result.failed()


def test_calls_follow_calls(backend: MemoryBackend) -> None:
    first, second, errors, late = Calls(), Calls(), Calls(), Calls()

    def broken(value: Any) -> None:
        raise LookupError("in the call")

    result = AsyncResult("t", backend)
    promise = result.then(first)
    promise.then(second)
    result.then(broken).then(second, on_error=errors)
    end(backend, "t")
    errors.come()
    # What the first returned went to the second, what the broken one raised to the errors
    assert second.made == ["called"] and [repr(error) for error in errors.made] == ["LookupError('in the call')"]
    promise.then(late)
    assert late.made == ["called"]


@pytest.mark.parametrize("error", [ValueError("oops"), SystemExit("leave")])
def test_a_call_that_raises_is_logged_and_stops_nothing(
    backend: MemoryBackend, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a call that raises, and one after it
    def broken(result: Any) -> None:
        raise error

    calls = Calls()
    AsyncResult("t", backend).then(broken)
    AsyncResult("next", backend).then(calls)
    # When both results are there
    with caplog.at_level(logging.ERROR):
        end(backend, "t")
        end(backend, "next")
        calls.come()
        eventually(lambda: str(error) in caplog.text, WITHIN_S)
    # Then the error is in the log with its traceback
    assert "in broken" in caplog.text


@pytest.mark.parametrize("kind", [ResultSet, lambda results: GroupResult("g", results)])
def test_a_set_calls_when_all_of_it_is_finished(backend: MemoryBackend, kind: Callable[[Any], Any]) -> None:
    # Given several results, one of them of a group in the group, and one finished already
    end(backend, "b", 2)
    inner = GroupResult("inner", [AsyncResult("b", backend), AsyncResult("c", backend)])
    several, calls, single = kind([AsyncResult("a", backend), inner]), Calls(), Calls()
    several.then(calls)
    # When one is finished, and its own call was made
    inner.results[1].then(single)
    end(backend, "c", 3)
    single.come()
    assert calls.made == []
    # Then the call of all comes with the last
    end(backend, "a", 1)
    calls.come()
    assert calls.made[0] is several and several.get(timeout=0) == [1, [2, 3]]


def test_a_set_gives_the_error_of_the_first_member_that_failed(backend: MemoryBackend) -> None:
    several, calls, errors = ResultSet([AsyncResult(name, backend) for name in "abc"]), Calls(), Calls()
    several.then(calls, on_error=errors)
    for name, value in (("c", KeyError("c")), ("b", KeyError("b")), ("a", 1)):
        end(backend, name, value)
    errors.come()
    assert [repr(error) for error in errors.made] == ["KeyError('b')"] and calls.made == []


def test_an_empty_set_is_finished() -> None:
    calls = Calls()
    ResultSet([]).then(calls)
    assert len(calls.made) == 1


def test_many_handles_of_one_task_each_get_their_call(backend: MemoryBackend) -> None:
    calls = Calls()
    handles = [AsyncResult("t", backend) for _ in range(100)]
    for handle in handles:
        handle.then(calls)
    end(backend, "t", 4)
    calls.come(100)
    assert all(made is handle for made, handle in zip(calls.made, handles, strict=True))


def test_what_can_never_come_is_refused_at_once() -> None:
    ignored = AsyncResult("t", MemoryBackend())
    ignored.ignored = True
    with pytest.raises(ResultUnreachable, match="task t ignores its result"):
        ignored.then(Calls())
    with pytest.raises(NoResultBackend, match="No result backend is configured"):
        AsyncResult("t", DisabledBackend()).then(Calls())


def test_a_set_that_is_refused_leaves_nothing_behind(backend: MemoryBackend) -> None:
    # Given a set of which one member can never be seen
    calls, other = Calls(), Calls()
    several = ResultSet([AsyncResult("a", backend), AsyncResult("b", DisabledBackend())])
    with pytest.raises(NoResultBackend):
        several.then(calls)
    # When the other member is finished, then no call is made
    AsyncResult("a", backend).then(other)
    end(backend, "a")
    other.come()
    assert calls.made == []


class Broken(Asked):
    """A store that cannot be read, until it can."""

    is_broken = True

    def wait(self, *args: Any, **options: Any) -> ResultRecord:
        if self.is_broken:
            raise Unavailable("the store is away")
        return super().wait(*args, **options)


class Away(Told):
    """A backend that tells of news, and cannot be read the first times it is looked at."""

    looks = 0

    def wait(self, *args: Any, **options: Any) -> ResultRecord:
        self.looks += 1
        if self.looks < 3:
            raise Unavailable("the store is away")
        return super().wait(*args, **options)


class Spoilt(Asked):
    """A store in which one record cannot be read."""

    def wait(self, task_id: str, *args: Any, **options: Any) -> ResultRecord:
        if task_id == "spoilt":
            raise DecodeError("no record")
        return super().wait(task_id, *args, **options)

    def wait_any(self, task_ids: Any, *args: Any, **options: Any) -> list[ResultRecord]:
        if "spoilt" in task_ids:
            raise DecodeError("one of them is no record")
        return super().wait_any(task_ids, *args, **options)


def test_a_store_that_is_away_is_asked_again() -> None:
    backend, calls = Broken(), Calls()
    end(backend, "t", 4)
    AsyncResult("t", backend).then(calls)
    backend.is_broken = False
    calls.come()


def test_a_store_that_tells_of_news_is_asked_while_it_is_away() -> None:
    backend, calls = Away(), Calls()
    AsyncResult("t", backend).then(calls)
    end(backend, "t", 4)
    calls.come()
    assert backend.looks >= 3


def test_a_record_that_cannot_be_read_is_an_error_of_its_task_alone() -> None:
    # Given calls for three results of which one cannot be read
    backend, calls, errors = Spoilt(), Calls(), Calls()
    end(backend, "a", 1)
    end(backend, "b", 2)
    for name in ("a", "spoilt", "b"):
        AsyncResult(name, backend).then(calls, on_error=errors)
    # Then the others come, and its error does
    calls.come(2)
    errors.come()
    assert [str(error) for error in errors.made] == ["no record"]
    # And who waits for all of them learns of it
    with pytest.raises(DecodeError, match="no record"):
        ResultSet([AsyncResult(name, backend) for name in ("a", "spoilt", "b")]).get(timeout=WITHIN_S)


def test_a_store_that_stays_away_is_an_error(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    # Given a store that is away for longer than anybody has patience
    monkeypatch.setattr("amqptasks.results.arrivals.PATIENCE_S", 0.0)
    calls, errors, result = Calls(), Calls(), AsyncResult("t", Broken())
    # When calls wait for a result in it / Then the error goes to who asked for errors, and to the log otherwise
    with caplog.at_level(logging.ERROR):
        result.then(calls)
        result.then(calls, on_error=errors)
        errors.come()
        eventually(lambda: "is not called: the store is away" in caplog.text, WITHIN_S)
    assert [str(error) for error in errors.made] == ["the store is away"] and calls.made == []


def in_child(backend: MemoryBackend, pipe: Any) -> None:
    calls = Calls()
    AsyncResult("child", backend).then(calls)
    end(backend, "t")
    end(backend, "child", 4)
    calls.come()
    pipe.send([str(each) for each in calls.made])


def test_a_forked_child_makes_its_own_calls_and_not_its_parents(backend: MemoryBackend) -> None:
    # Given a call that a process waits to make
    calls, (here, there) = Calls(), multiprocessing.Pipe()
    AsyncResult("t", backend).then(calls)
    # When a child is forked that waits for a result too
    child = multiprocessing.get_context("fork").Process(target=in_child, args=(backend, there))
    child.start()
    # Then it makes its own call alone
    assert here.poll(WITHIN_S) and here.recv() == ["child"]
    child.join(WITHIN_S)
    assert calls.made == []
    end(backend, "t")
    calls.come()
