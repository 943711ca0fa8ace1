"""Remote control among programs and workers of both kinds: each is asked the same, and the answers are compared."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import celery
import kombu.pools
import pytest

from amqptasks import App
from tests.interop.calls import Gate
from tests.interop.conftest import Start
from tests.support import WorkerProcess, eventually

TIMEOUT_S = 30
#: Celery's connections outlive what closes them by a moment.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


class Asked:
    """A worker of one kind, and how a program of each kind asks it."""

    def __init__(self, process: WorkerProcess, queue: str, theirs: Any, ours: App) -> None:
        self.node = process.command[process.command.index("-n") + 1]
        self.queue = queue
        self._theirs = theirs
        self._ours = ours

    def by_celery(self, command: str, **arguments: Any) -> Any:
        """Ask by Celery's client."""
        return self._one(self._theirs.control.broadcast, command, arguments)

    def by_us(self, command: str, **arguments: Any) -> Any:
        """Ask by our client."""
        return self._one(self._ours.control.broadcast, command, arguments)

    def _one(self, broadcast: Callable[..., Any], command: str, arguments: dict[str, Any]) -> Any:
        replies = broadcast(command, arguments, destination=[self.node], reply=True, timeout=TIMEOUT_S)
        assert [list(each) for each in replies] == [[self.node]], f"{command}: {replies}"
        return replies[0][self.node]


@pytest.fixture(scope="module")
def asked(broker_url: str, start_worker: Start) -> Iterator[dict[str, Asked]]:
    """A worker of each kind, with a queue of its own."""
    theirs = celery.Celery("asking", broker=broker_url, set_as_current=False)
    ours = App("asking", broker=broker_url, set_as_current=False)
    queues = {kind: f"control-{kind}-{uuid.uuid4().hex[:8]}" for kind in ("celery", "amqptasks")}
    processes = {kind: start_worker(kind, queue, "classic") for kind, queue in queues.items()}
    for process in processes.values():
        process.wait_ready()
    yield {kind: Asked(process, queues[kind], theirs, ours) for kind, process in processes.items()}
    kombu.pools.reset()
    theirs.close()
    ours.close()


@pytest.fixture(params=["by_celery", "by_us"])
def both(request: pytest.FixtureRequest, asked: dict[str, Asked]) -> Callable[..., tuple[Any, Any]]:
    """Ask Celery's worker and ours the same; `{queue}` and `{node}` stand for those of each."""

    def ask(command: str, **arguments: Any) -> tuple[Any, Any]:
        answers = []
        for each in asked.values():
            own = {
                key: value.format(queue=each.queue, node=each.node) if isinstance(value, str) else value
                for key, value in arguments.items()
            }
            answer = getattr(each, request.param)(command, **own)
            answers.append(_without(answer, each))
        return answers[0], answers[1]

    return ask


def _without(value: Any, asked: Asked) -> Any:
    """The answer with the names of its worker and queue replaced."""
    if isinstance(value, str):
        return value.replace(asked.node, "NODE").replace(asked.queue, "QUEUE")
    if isinstance(value, dict):
        return {_without(key, asked): _without(each, asked) for key, each in value.items()}
    return [_without(each, asked) for each in value] if isinstance(value, list) else value


def form(value: Any) -> Any:
    """What an answer looks like: the names of its fields, and the kinds of its values."""
    if isinstance(value, dict):
        return {key: form(each) for key, each in sorted(value.items())}
    if isinstance(value, list):
        return [form(value[0])] if value else []
    return "number" if type(value) in (int, float) else type(value).__name__


SAME: list[tuple[str, dict[str, Any]]] = [
    ("ping", {}),
    ("ping", {"colour": "red"}),
    ("revoke", {"task_id": "nobody's"}),
    ("revoke", {"task_id": "nobody's", "terminate": True}),
    ("terminate", {"task_id": ["nobody's"], "signal": "KILL"}),
    ("revoke_by_stamped_headers", {"headers": {"visitor": "ann"}}),
    ("revoke_by_stamped_headers", {"headers": ["visitor=ann"], "terminate": True}),
    ("rate_limit", {"task_name": "interop.add", "rate_limit": "600/s"}),
    ("rate_limit", {"task_name": "interop.add", "rate_limit": 0}),
    ("rate_limit", {"task_name": "nobody's", "rate_limit": 1}),
    ("time_limit", {"task_name": "interop.echo", "hard": 30, "soft": 20}),
    ("time_limit", {"task_name": "nobody's"}),
    ("heartbeat", {}),
    ("pool_grow", {"n": 1}),
    ("pool_shrink", {"n": 1}),
    ("pool_restart", {}),
    ("autoscale", {"max": 3, "min": 1}),
    ("add_consumer", {"queue": "{queue}"}),
    ("cancel_consumer", {"queue": "nobody's"}),
    ("query_task", {"ids": ["nobody's"]}),
    ("query_task", {}),
    ("dump_active", {}),
    ("reserved", {}),
    ("objgraph", {}),
    ("nonsense", {}),
    ("registered", {"taskinfoitems": ["max_retries", "nonsense"]}),
]


def test_the_same_question_has_the_same_answer(both: Callable[..., tuple[Any, Any]]) -> None:
    for command, arguments in SAME:
        theirs, ours = both(command, **arguments)
        if command == "registered":
            theirs, ours = (
                [each for each in answer if each.startswith("interop.") and ".only_" not in each]
                for answer in (theirs, ours)
            )
        assert ours == theirs, f"{command} {arguments}"


@pytest.mark.parametrize("command", ["stats", "active_queues", "clock", "hello", "report", "dump_revoked"])
def test_answers_that_differ_have_the_same_form(both: Callable[..., tuple[Any, Any]], command: str) -> None:
    theirs, ours = both(command, **({"from_node": "somebody@else"} if command == "hello" else {}))
    if command == "stats":
        # How many of which task.
        assert set(map(type, ours.pop("total").values())) | set(map(type, theirs.pop("total").values())) <= {int}
    if command == "active_queues":
        assert ours == theirs
    for answer in (theirs, ours):
        if command == "hello":
            answer["revoked"].append("at least one")
        if command == "dump_revoked":
            answer.append("at least one")
    assert form(ours) == form(theirs)


def test_the_settings_are_told_without_secrets(both: Callable[..., tuple[Any, Any]], broker_url: str) -> None:
    theirs, ours = both("conf", with_defaults=True)
    assert ours["task_default_queue"] == theirs["task_default_queue"] == "QUEUE"
    assert {"accept_content", "worker_concurrency", "result_backend", "timezone"} <= ours.keys() & theirs.keys()
    assert broker_url not in (ours["broker_url"], theirs["broker_url"])
    assert type(ours["accept_content"]) is type(theirs["accept_content"]) is list


@pytest.mark.parametrize("asking", ["by_celery", "by_us"])
def test_tasks_that_run_wait_and_are_delayed_look_alike(
    asked: dict[str, Asked], make_client: Callable[..., Any], asking: str, tmp_path: Any
) -> None:
    # Given, at a worker of each kind, two tasks that run, one behind them, and one for later
    told: dict[str, dict[str, Any]] = {}
    for kind, worker in asked.items():
        ask = getattr(worker, asking)
        client = make_client(kind, worker.queue, "classic")
        gate = Gate(tmp_path / f"{kind}-gate")
        for _ in range(2):
            client.task("wait").delay(str(gate.path))
        eventually(lambda ask=ask: len(ask("active")) == 2, 20)
        client.task("add").delay(1, 2)
        later = client.task("add").apply_async((1, 2), countdown=100).id
        eventually(lambda ask=ask: len(ask("reserved")) == 1, 20)
        eventually(lambda ask=ask, later=later: later in [each["request"]["id"] for each in ask("scheduled")], 20)
        # When the worker is asked
        told[kind] = {
            "active": ask("active"), "safe": ask("active", safe=True), "reserved": ask("reserved"),
            # What is revoked stays in the memory of Celery's worker.
            "scheduled": [each for each in ask("scheduled") if each["request"]["id"] == later],
            "found": ask("query_task", ids=[later])[later],
        }  # fmt: skip
        gate.open()
        eventually(lambda ask=ask: ask("active") == [], 20)
        ask("revoke", task_id=later)
    # Then the answers have the same form, but that a delayed task's arguments are texts
    ours, theirs = told["amqptasks"], told["celery"]
    assert isinstance(ours["scheduled"][0]["request"].pop("args"), str)
    assert theirs["scheduled"][0]["request"].pop("args") == [1, 2]
    for each in (ours, theirs):
        each["scheduled"][0]["request"].pop("kwargs")
        each["found"][1] = sorted(each["found"][1])
        # Nobody has named a priority; kombu writes 0.
        for task in (*each["active"], *each["reserved"]):
            assert task["args"] and task["delivery_info"]["priority"] == 0
    assert form(ours) == form(theirs)
    assert [each["args"] for each in ours["reserved"]] == [each["args"] for each in theirs["reserved"]] == [[1, 2]]


def test_each_is_controlled_by_the_others_program(asked: dict[str, Asked]) -> None:
    # When each program asks who is there
    theirs, ours = asked["celery"]._theirs, asked["celery"]._ours
    nodes = {each.node for each in asked.values()}
    # Then workers of both kinds answer both
    for inspect in (theirs.control.inspect, ours.control.inspect):
        answers = inspect(timeout=TIMEOUT_S, destination=sorted(nodes)).ping()
        assert answers == {node: {"ok": "pong"} for node in nodes}
    # And a pattern is read alike
    for control in (theirs.control, ours.control):
        found = control.inspect(pattern="amqptasks-*@test", matcher="glob", limit=1, timeout=TIMEOUT_S).ping()
        assert list(found) == [asked["amqptasks"].node]
