"""What settings say of runs that were lost: tried again, not run twice, ended with their connection, started anew."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amqptasks.exceptions import WorkerLostError
from amqptasks.results.record import ResultRecord
from amqptasks.states import SUCCESS
from tests.proxy import Proxy
from tests.running import Workshop
from tests.support import eventually

SOURCE = """
    from amqptasks import signals

    app.conf.update(result_backend=f"db+sqlite:///{HERE}/results.db", task_retry_on_worker_lost=True)

    def die(text):
        note(f"dies {text}")
        os.kill(os.getpid(), signal.SIGKILL)
        threading.Event().wait()

    def dies_at_first(self, text):
        note(f"attempt {text} {self.request.retries} {self.request.delivery_info['routing_key'] == QUEUE}")
        if self.request.retries == 0:
            die(text)
        return self.request.retries

    @app.task(bind=True, default_retry_delay=0.1)
    def early(self, text):
        return dies_at_first(self, text)

    @app.task(bind=True, default_retry_delay=0.1, acks_late=True)
    def late(self, text):
        return dies_at_first(self, text)

    @app.task(default_retry_delay=0.1, max_retries=2, acks_late=True)
    def always(text):
        die(text)

    @app.task(default_retry_delay=0.1, max_retries=None, acks_late=True)
    def for_ever(text):
        die(text)

    @app.task(default_retry_delay=600)
    def later(text):
        die(text)

    @app.task(retry_on_worker_lost=False)
    def once(text):
        die(text)

    @app.task(acks_late=True)
    def runs(text):
        note(f"runs {text}")
        return text

    @app.task
    def runs_early(text):
        note(f"runs {text}")
        return text

    @app.task(bind=True)
    def called(self, value, text):
        note(f"called {text} {value} {self.request.id}")

    @app.task(acks_late=True)
    def behind(name, text):
        note(f"begun {text}")
        gate(name)
        note(f"ended {text}")
        return text

    @signals.worker_process_init.connect(weak=False)
    def hang_at_first(**_):
        try:
            os.mkdir(HERE / "hang")
        except FileExistsError:
            return
        if os.environ.get("TEST_HANGS"):
            note("hangs")
            threading.Event().wait()
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    with Workshop(tmp_path_factory.mktemp("lost"), broker_url, SOURCE) as made:
        made.start("-c", "1", "--", "worker_deduplicate_successful_tasks=yes")
        yield made


@pytest.fixture
def workshop(tmp_path: Path, broker_url: str) -> Iterator[Workshop]:
    with Workshop(tmp_path, broker_url, SOURCE) as made:
        yield made


# -- tried again


@pytest.mark.parametrize("name", ["early", "late"])
def test_a_task_whose_child_died_is_tried_again(shop: Workshop, name: str) -> None:
    # Given task_retry_on_worker_lost / When a task kills its child
    result = getattr(shop.tasks, name).delay(name)
    # Then the same call is tried again, one retry further, from the same queue, whichever way it is acked
    assert result.get(timeout=20) == 1
    attempts = [line for line in shop.ledger() if line.startswith(f"attempt {name} ")]
    assert attempts == [f"attempt {name} 0 True", f"attempt {name} 1 True"]
    shop.is_waiting(0)


def test_meanwhile_its_state_is_retry(shop: Workshop) -> None:
    # When the next attempt is far away / Then the caller can see what it waits for, and why
    result = shop.tasks.later.delay("later")
    eventually(lambda: result.state == "RETRY", 20)
    assert isinstance(result.result, WorkerLostError)
    result.revoke()


def test_it_fails_once_it_has_no_retries_left(shop: Workshop) -> None:
    # Given max_retries=2 / When every attempt kills its child / Then there are three, and it fails without coming back
    result = shop.tasks.always.delay("always")
    with pytest.raises(WorkerLostError):
        result.get(timeout=30)
    assert shop.ledger().count("dies always") == 3
    shop.is_waiting(0)
    assert shop.take(f"{shop.queue}.dead") is None


def test_one_that_retries_for_ever_does_not_kill_for_ever(shop: Workshop) -> None:
    # Given max_retries=None / When every attempt kills its child / Then task_crash_limit ends it
    result = shop.tasks.for_ever.delay("for ever")
    with pytest.raises(WorkerLostError):
        result.get(timeout=30)
    assert shop.ledger().count("dies for ever") == 3
    assert shop.dead_letter_of(result.id).headers["x-amqptasks-reason"] == "too-many-crashes"


def test_a_task_says_for_itself_that_it_is_not_tried_again(shop: Workshop) -> None:
    with pytest.raises(WorkerLostError):
        shop.tasks.once.delay("once").get(timeout=20)
    assert shop.ledger().count("dies once") == 1


# -- not run twice


def deliver_again(shop: Workshop, task: str, text: str, **embed: Any) -> str:
    """Put a task into the queue whose success is stored, as a redelivery: its ack, and what it calls, were lost."""
    task_id = str(uuid.uuid4())
    children = [[[str(uuid.uuid4()), None], None]] if embed.get("callbacks") else []
    shop.app.backend.store(ResultRecord.now(task_id, SUCCESS, "stored", children=children))
    body = json.dumps([[text], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None, **embed}])
    headers = {"lang": "py", "task": f"{shop.project.name}.{task}", "id": task_id, "retries": 0}
    shop.publish(
        body.encode(), headers, content_type="application/json", content_encoding="utf-8", correlation_id=task_id
    )
    shop.peek()
    return children[0][0][0] if children else task_id


def test_a_success_that_is_stored_is_not_run_again(tmp_path: Path, broker_url: str) -> None:
    # Given late-ack tasks that were delivered before, and whose successes are stored; one of them has a callback
    with Workshop(tmp_path, broker_url, SOURCE) as shop:
        shop.tasks.runs.delay("first")
        assert shop.take(shop.queue) is not None
        callback = {
            "task": f"{shop.project.name}.called", "args": ["back"], "kwargs": {}, "options": {}, "subtask_type": None,
            "immutable": False,
        }  # fmt: skip
        child = deliver_again(shop, "runs", "late", callbacks=[callback])
        # When a worker gets them
        shop.start("-c", "1", "--", "worker_deduplicate_successful_tasks=yes")
        # Then what it calls is called, for it is not known whether it was, under the id that it had; it is not run
        shop.noted(f"called back stored {child}")
        shop.is_waiting(0)
        assert shop.tasks.runs.delay("new").get(timeout=20) == "new"
        assert "runs late" not in shop.ledger()


# -- ended with their connection


def test_running_late_ack_tasks_are_cancelled_with_their_connection(workshop: Workshop, broker_url: str) -> None:
    # Given a worker that is to cancel them, and a task that runs
    with Proxy(broker_url) as proxy:
        shop, gate = workshop, workshop.gate("stay")
        worker = shop.start(
            "-c", "1", "--", f"broker_url={proxy.url}", "worker_cancel_long_running_tasks_on_connection_loss=yes"
        )
        result = shop.tasks.behind.delay("stay", "one")
        gate.reached()
        child = worker.children()
        # When its connections are cut
        proxy.cut()
        # Then its child is ended, and the task begins anew
        shop.noted("begun one", 2)
        assert worker.children() != child
        gate.open()
        assert result.get(timeout=20) == "one"
        assert shop.ledger().count("ended one") == 1
        assert worker.stop() == 0


# -- started anew


def test_a_child_that_is_not_ready_in_time_is_replaced(workshop: Workshop) -> None:
    # Given worker_proc_alive_timeout, and a first child that hangs before it takes tasks
    worker = workshop.start("-c", "1", "--", "worker_proc_alive_timeout=1", env={"TEST_HANGS": "1"})
    workshop.noted("hangs")
    # When a task is sent / Then another child has taken the place
    assert workshop.tasks.runs_early.delay("after all").get(timeout=20) == "after all"
    assert "is not ready after 1 s (worker_proc_alive_timeout)" in worker.log
