"""Signals: who is told, in which order, and that nobody who listens can break what he listens to."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import pytest

from amqptasks import shared_task, signals
from amqptasks.app import current
from amqptasks.app.app import App
from amqptasks.signals import Signal


@pytest.fixture
def signal() -> Signal:
    return Signal("test", frozenset({"value"}))


class Listener:
    """Has a method to connect."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def hear(self, sender: Any = None, **named: Any) -> str:
        self.heard.append((sender, named.get("value")))
        return "heard"


def test_receivers_are_told_in_order_and_their_answers_returned(signal: Signal) -> None:
    # Given two receivers / When something is sent / Then both get sender, signal and the values, in order
    first, second = Listener(), Listener()
    signal.connect(first.hear)
    signal.connect(second.hear)
    answers = signal.send("me", value=1)
    assert [answer for _receiver, answer in answers] == ["heard", "heard"]
    assert [receiver for receiver, _answer in answers] == [first.hear, second.hear]
    assert first.heard == second.heard == [("me", 1)]


def test_a_receiver_that_raises_is_logged_and_the_others_are_told(
    signal: Signal, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a receiver that fails in front of one that does not
    def fail(**_named: Any) -> None:
        raise ValueError("from a receiver")

    listener = Listener()
    signal.connect(fail)
    signal.connect(listener.hear)
    # When something is sent / Then the sender does not notice, but the log does
    (failed, answer) = signal.send(None)
    assert isinstance(failed[1], ValueError) and answer[1] == "heard"
    assert "from a receiver" in caplog.text


def test_a_signal_tells_whether_anyone_listens(signal: Signal) -> None:
    assert not signal and signal.send("me") == []
    listener = Listener()
    signal.connect(listener.hear, sender="me")
    assert signal and signal.has_listeners("me") and not signal.has_listeners("you")


def test_receivers_are_held_weakly_unless_asked(signal: Signal) -> None:
    # Given a method, a function and a closure that is to be kept / When nobody else holds them
    listener, kept = Listener(), Listener()
    signal.connect(listener.hear)
    signal.connect(lambda **named: kept.hear(**named), weak=False)
    del listener
    gc.collect()
    # Then only what is to be kept is told, and nothing fails
    assert [answer for _receiver, answer in signal.send(None, value=1)] == ["heard"]
    assert kept.heard == [(None, 1)]


def test_a_receiver_may_want_one_sender_only(signal: Signal) -> None:
    # Given receivers of one task, by the task and by its name / When that task, its name, or another sends
    app = App("proj", set_as_current=False)

    @app.task(name="proj.add")
    def add() -> None: ...

    @app.task(name="proj.mul")
    def mul() -> None: ...

    by_task, by_name, of_all = Listener(), Listener(), Listener()
    signal.connect(by_task.hear, sender=add)
    signal.connect(by_name.hear, sender="proj.add")
    signal.connect(of_all.hear)
    for sender in (add, "proj.add", mul, "proj.mul", None, object()):
        signal.send(sender)
    # Then task and name are the same sender, as with Celery
    assert len(by_task.heard) == len(by_name.heard) == 2
    assert len(of_all.heard) == 6


def test_connecting_twice_calls_once(signal: Signal) -> None:
    listener, other = Listener(), Listener()
    for _ in range(2):
        signal.connect(listener.hear)
        signal.connect(listener.hear, sender="me")
    signal.connect(listener.hear, dispatch_uid="one")
    signal.connect(other.hear, dispatch_uid="one")
    assert len(signal.send("me")) == 3
    assert other.heard == []


def test_disconnecting_takes_the_same_words(signal: Signal) -> None:
    listener = Listener()
    signal.connect(listener.hear, sender="me")
    assert not signal.disconnect(listener.hear)
    assert signal.disconnect(listener.hear, sender="me")
    assert not signal.disconnect(listener.hear, sender="me")
    signal.connect(listener.hear, dispatch_uid=("a", 1))
    assert signal.disconnect(dispatch_uid=("a", 1))
    assert not signal


def test_it_decorates_with_and_without_arguments(signal: Signal) -> None:
    heard: list[str] = []

    @signal.connect
    def plain(**_named: Any) -> None:
        heard.append("plain")

    @signal.connect(sender="me", weak=False)  # type: ignore[untyped-decorator]
    def of_me(**_named: Any) -> None:
        heard.append("of me")

    signal.send("you")
    signal.send("me")
    assert heard == ["plain", "plain", "of me"]
    assert plain.__name__ == "plain" and of_me.__name__ == "of_me"


def test_a_receiver_may_disconnect_itself_and_connect_others(signal: Signal) -> None:
    # Given a receiver that changes who listens while it is told / When something is sent, twice
    late = Listener()

    def once(**_named: Any) -> None:
        signal.disconnect(once)
        signal.connect(late.hear)

    signal.connect(once)
    # Then the change holds from the next time on
    assert len(signal.send(None)) == 1
    assert len(signal.send(None)) == 1
    assert late.heard == [(None, None)]


def test_threads_may_connect_while_others_send(signal: Signal) -> None:
    # Given threads that connect and disconnect all the time / When one sends all the while / Then nothing is lost
    steady = Listener()
    signal.connect(steady.hear)
    ending = threading.Event()

    def come_and_go() -> None:
        while not ending.is_set():
            listener = Listener()
            signal.connect(listener.hear)
            signal.disconnect(listener.hear)

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(500):
        signal.send(None)
    ending.set()
    for thread in threads:
        thread.join()
    assert len(steady.heard) == 500
    assert len(signal.send(None)) == 1


def test_a_sender_may_be_named_before_it_is_there(signal: Signal, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given receivers of tasks that nobody has defined yet: by name, and of a shared task while there is no app
    monkeypatch.setattr(current, "_current", None)
    monkeypatch.setattr(current, "_makers", list(current._makers))
    by_name, by_shared = Listener(), Listener()

    @shared_task(name="proj.later")
    def later() -> None: ...

    signal.connect(by_name.hear, sender="proj.later")
    for _ in range(2):
        signal.connect(by_shared.hear, sender=later)
    signal.send("proj.other")
    # When the app comes, and has the task
    app = App("proj")
    app.finalize()
    signal.send(app.tasks["proj.later"], value=1)
    signal.send("proj.later", value=2)
    # Then both are told, once each time, and can be disconnected by the same words
    assert [value for _sender, value in by_name.heard] == [value for _sender, value in by_shared.heard] == [1, 2]
    assert signal.disconnect(by_shared.hear, sender=later)
    assert not signal.has_listeners("proj.other") and signal.disconnect(by_name.hear, sender="proj.later")
    assert not signal


def test_the_sender_may_stand_in_the_place_of_the_receiver(signal: Signal) -> None:
    # As in Celery: @signal.connect("proj.add")
    heard = []

    @signal.connect("proj.add", weak=False)  # type: ignore[untyped-decorator]
    def hear(**named: Any) -> None:
        heard.append(named["sender"])

    signal.send("proj.add")
    signal.send("proj.mul")
    assert heard == ["proj.add"]


def test_what_could_not_be_told_is_refused_at_once(signal: Signal) -> None:
    with pytest.raises(ValueError, match=r"expected the receiver .*to take \*\*kwargs"):
        signal.connect(lambda sender: None)
    with pytest.raises(TypeError, match="expected a function to call at each event, got: 7"):
        signal.connect(7)  # type: ignore[arg-type]
    assert not signal


def test_a_receiver_is_called_until_it_works_if_that_is_wanted(
    signal: Signal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a receiver with retry=True that fails at first, and that nobody else holds
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    tries: list[int] = []

    def connect() -> Any:
        def flaky(value: int = 0, **_named: Any) -> str:
            tries.append(value)
            if len(tries) <= 20:
                raise ConnectionError("not yet")
            return "at last"

        signal.connect(flaky, retry=True)
        signal.connect(flaky, retry=True)
        return flaky

    receiver = connect()
    # When something is sent / Then it is called with growing pauses, up to half a minute, until it does not raise
    assert [answer for _receiver, answer in signal.send(None, value=7)] == ["at last"]
    assert tries == [7] * 21
    assert pauses[:3] == [2, 4, 6] and max(pauses) == pauses[-1] == 30
    assert "not yet" in caplog.text and "again in 2 s" in caplog.text
    # And it is disconnected as it was connected
    assert signal.disconnect(receiver)
    assert not signal


def test_methods_and_functions_that_are_gone_leave_nothing_behind(signal: Signal) -> None:
    # Given many receivers that come and go / When one more is connected / Then the others are forgotten
    for _ in range(100):
        signal.connect(Listener().hear)
    gc.collect()
    kept = Listener()
    signal.connect(kept.hear)
    assert len(signal._receivers) == 1


def test_the_signals_are_celerys() -> None:
    names = {name for name, value in vars(signals).items() if isinstance(value, Signal)}
    assert {
        "before_task_publish", "after_task_publish", "task_prerun", "task_postrun", "task_success", "task_failure",
        "task_retry", "task_received", "task_revoked", "task_unknown", "task_rejected", "celeryd_init",
        "celeryd_after_setup", "import_modules", "worker_init", "worker_ready", "worker_process_init",
        "worker_process_shutdown", "worker_shutting_down", "worker_shutdown", "setup_logging", "after_setup_logger",
        "after_setup_task_logger",
    } <= names  # fmt: skip
    for name in names:
        assert getattr(signals, name).name == name
        assert name in repr(getattr(signals, name))
