"""What becomes of tasks that take too long, in every pool; and of children that have run enough."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amqptasks.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from tests.running import Workshop
from tests.support import WorkerProcess, eventually

SOURCE = """
    import asyncio, re, time
    from amqptasks import Task, signals
    from amqptasks.exceptions import SoftTimeLimitExceeded

    app.conf.update(task_crash_limit=2, task_acks_on_timeout=False)

    class Tells(Task):
        def on_failure(self, exc, task_id, args, kwargs, einfo):
            note(f"on_failure {exc!r} {list(args)}")

        def after_return(self, status, retval, task_id, args, kwargs, einfo):
            note(f"after_return {status} {retval!r}")

    @app.task(soft_time_limit=0.2)
    def cleans_up():
        try:
            while True:
                time.sleep(0.01)
        except SoftTimeLimitExceeded:
            return "clean"

    @app.task(soft_time_limit=0.2)
    def is_interrupted():
        while True:
            time.sleep(0.01)

    @app.task(soft_time_limit=0.2, time_limit=20)
    async def cleans_up_async():
        try:
            await asyncio.sleep(1000)
        except SoftTimeLimitExceeded:
            return "clean"

    @app.task(base=Tells, time_limit=0.3)
    def backtracks(text):
        return re.match(r"(a+)+$", text)

    @app.task(time_limit=0.3)
    def sums():
        return sum(range(10**13))

    @app.task(base=Tells, time_limit=0.3)
    def loops(text):
        while True:
            pass

    @app.task(time_limit=0.3, acks_late=True)
    def comes_back():
        note("comes back")
        while True:
            pass

    @app.task(time_limit=0.3, acks_late=True, acks_on_timeout=True)
    def ends_late():
        note("ends late")
        while True:
            pass

    @app.task(bind=True)
    def limits(self):
        return self.request.timelimit

    @app.task(bind=True, time_limit=90)
    def own_limits(self):
        return self.request.timelimit

    @app.task(bind=True, time_limit=0.2)
    def ordered(self):
        time.sleep(0.5)
        return self.request.timelimit

    @app.task(acks_late=True, time_limit=100)
    def late(number):
        if number % 25 == 24 and not (HERE / f"was-here-{number}").exists():
            (HERE / f"was-here-{number}").touch()
            note(f"begun {number}")
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.002)
        note(f"done {number}")
        return number

    @app.task
    def pid(size=0):
        app.hoard = getattr(app, "hoard", []) + [b"x" * size]
        return os.getpid()

    @signals.worker_ready.connect
    def order(sender, **kwargs):
        name = ordered.name
        for wrong in (dict(hard=1, soft=2), dict(hard=0), dict(soft=-1), dict(soft="1")):
            try:
                sender.set_time_limits(name, **wrong)
            except ValueError as error:
                print("REFUSED", error, flush=True)
        sender.set_time_limits(name, hard=30, soft=20)

    @signals.task_failure.connect
    def tell(sender, task_id, exception, args, einfo, **kwargs):
        note(f"signal {exception!r} {list(args)} {einfo.type.__name__}")
"""
POOLS = ["prefork", "threads", "solo", "asyncio"]
TOO_LONG = "a" * 60 + "!"


@pytest.fixture(scope="module", params=POOLS)
def shop(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, broker_url: str
) -> Iterator[Workshop]:
    """A worker of each kind, with a soft limit of its own."""
    with Workshop(tmp_path_factory.mktemp(request.param), broker_url, SOURCE) as made:
        made.start("-P", request.param, "-c", "2", "--soft-time-limit", "25", "--time-limit", "50")
        yield made


@pytest.fixture
def own(tmp_path: Path, broker_url: str) -> Iterator[Workshop]:
    """A project for one test, which starts its own workers."""
    with Workshop(tmp_path, broker_url, SOURCE) as made:
        yield made


def get(result: Any) -> Any:
    return result.get(timeout=20)


def log_of(shop: Workshop) -> WorkerProcess:
    return shop.workers[0]


def is_prefork(shop: Workshop) -> bool:
    return log_of(shop).command[log_of(shop).command.index("-P") + 1] == "prefork"


def test_the_soft_limit_is_an_exception_that_a_task_may_catch(shop: Workshop) -> None:
    # Given tasks that take too long / When their soft limit is over / Then one cleans up, the other fails
    caught, failed = shop.tasks.cleans_up.delay(), shop.tasks.is_interrupted.delay()
    assert get(caught) == "clean"
    with pytest.raises(SoftTimeLimitExceeded, match=r"^SoftTimeLimitExceeded\(\)$"):
        get(failed)
    # And so it is with a coroutine
    assert get(shop.tasks.cleans_up_async.delay()) == "clean"
    # And the log says it in Celery's words
    log_of(shop).wait_for(rf"Soft time limit \(0.2s\) exceeded for \S+\.is_interrupted\[{failed.id}\]")


def test_the_hard_limit_ends_whatever_takes_no_notice(shop: Workshop) -> None:
    # Given a task that never comes back, in C where a child can be killed / When its hard limit is over
    task, text = (shop.tasks.backtracks, TOO_LONG) if is_prefork(shop) else (shop.tasks.loops, "text")
    result = task.delay(text)
    with pytest.raises(TimeLimitExceeded, match=r"^TimeLimitExceeded\(0.3,\)$"):
        get(result)
    # Then it has failed, in Celery's words, and its handlers and signals are told
    assert result.state == "FAILURE"
    log_of(shop).wait_for(rf"Hard time limit \(0.3s\) exceeded for \S+\[{result.id}\]")
    expected = {
        f"on_failure TimeLimitExceeded(0.3) ['{text}']", "after_return FAILURE TimeLimitExceeded(0.3)",
        f"signal TimeLimitExceeded(0.3) ['{text}'] TimeLimitExceeded",
    }  # fmt: skip
    eventually(lambda: expected <= set(shop.ledger()), 20)
    # And the worker goes on at once
    assert get(shop.tasks.limits.delay()) == [50, 25]


def test_places_do_not_run_out_however_many_tasks_are_ended(shop: Workshop) -> None:
    # Given more tasks that never come back than there are places / When they have been ended / Then others run
    task = shop.tasks.sums if is_prefork(shop) else shop.tasks.loops
    results = [task.delay(*([] if is_prefork(shop) else ["again"])) for _ in range(6)]
    good = [shop.tasks.limits.delay() for _ in range(6)]
    for each in results:
        with pytest.raises(TimeLimitExceeded):
            get(each)
    assert [get(each) for each in good] == [[50, 25]] * 6


def test_a_task_sees_the_limits_that_apply(shop: Workshop) -> None:
    # Given limits in the settings / When a task, or a call, says something else of one of them / Then that holds
    assert get(shop.tasks.own_limits.delay()) == [90, 25]
    assert get(shop.tasks.limits.apply_async(time_limit=70, soft_time_limit=60)) == [70, 60]
    assert get(shop.tasks.limits.apply_async(soft_time_limit=7)) == [50, 7]


def test_limits_can_be_changed_while_the_worker_runs(shop: Workshop) -> None:
    # Given a task whose own limit is too short / When another was ordered in the worker / Then that holds for all calls
    assert get(shop.tasks.ordered.delay()) == [30, 20]
    assert get(shop.tasks.ordered.apply_async(time_limit=0.1)) == [30, 20]
    log = log_of(shop).log
    assert "New time limits for tasks of type" in log
    # And what can be no limit is refused
    assert log.count("REFUSED expected a number of seconds above 0, or None, got: ") == 3
    assert "REFUSED expected the soft time limit to be at most the hard one, got: 2 > 1" in log


def test_a_late_task_comes_back_from_its_limit_by_setting_unless_it_says_otherwise(shop: Workshop) -> None:
    # Given settings by which timeouts are not acknowledged / When a task that says otherwise is ended / Then it is gone
    result = shop.tasks.ends_late.delay()
    with pytest.raises(TimeLimitExceeded):
        get(result)
    # And one that says nothing is run again, as often as one that ends its process would be, then it is a dead letter
    result = shop.tasks.comes_back.delay()
    with pytest.raises(TimeLimitExceeded):
        get(result)
    assert shop.ledger().count("comes back") == 2 and shop.ledger().count("ends late") == 1
    letter = shop.dead_letter_of(result.id)
    assert letter.headers["x-amqptasks-reason"] == "too-many-crashes"
    shop.is_waiting(0)


def test_limits_that_contradict_each_other_are_refused_at_the_start(own: Workshop) -> None:
    worker = own.start("--time-limit", "1", "--soft-time-limit", "2", ready=False, expected_exits=(2,))
    assert worker.wait() == 2
    assert "Error: expected task_soft_time_limit to be at most task_time_limit, got: 2 > 1" in worker.log


def test_late_tasks_whose_children_are_killed_are_neither_lost_nor_finished_twice(own: Workshop) -> None:
    # Given many late-ack tasks, twelve of which stop their child dead
    worker = own.start("-c", "2", "--", "task_crash_limit=5")
    with own.app.bulk():
        results = [own.tasks.late.delay(number) for number in range(300)]
    # When each such child is killed / Then all tasks are done, each once
    killed: set[int] = set()

    def kill_the_next() -> bool:
        for child in worker.children():
            state = Path(f"/proc/{child}/stat")
            try:
                if state.read_text().rpartition(")")[2].split()[0] == "T" and child not in killed:
                    killed.add(child)
                    os.kill(child, signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                continue
        return len(killed) >= 12

    eventually(kill_the_next, 40)
    assert sorted(get(each) for each in results) == list(range(300))
    done = [line for line in own.ledger() if line.startswith("done")]
    assert len(done) == len(set(done)) == 300
    assert len([line for line in own.ledger() if line.startswith("begun")]) == 12


def test_children_are_replaced_after_so_many_tasks(own: Workshop) -> None:
    # Given children that may run five tasks / When a hundred are run, sent all at once / Then none has run more
    own.start("-c", "2", "--max-tasks-per-child", "5")
    with own.app.bulk():
        results = [own.tasks.pid.delay() for _ in range(100)]
    pids = [get(each) for each in results]
    assert max(pids.count(each) for each in pids) == 5


def test_a_child_with_too_much_memory_is_replaced_after_its_task(own: Workshop) -> None:
    # Given children that may have a quarter of a gigabyte / When one keeps more / Then it runs nothing after that
    worker = own.start("-c", "1", "--max-memory-per-child", str(256 * 1024))
    first, second = get(own.tasks.pid.delay()), get(own.tasks.pid.delay(300 * 1024 * 1024))
    assert first == second
    assert get(own.tasks.pid.delay()) != first
    worker.wait_for(r"it holds \d+ KiB of memory, more than 262144: enough, a new process takes its place")
