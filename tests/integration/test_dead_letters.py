"""Dead letters as an operator meets them: looked at, put back to work, thrown away, bounded; and never lost by that."""

from __future__ import annotations

import base64
import json
import pickle
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pika
import pytest

from amqptasks.broker.dead_letters import DeadLetters
from amqptasks.broker.topology import DeclareQueue, dead_letter_queue, dead_queue, plan
from amqptasks.exceptions import WorkerLostError
from tests.command import Shell, environment
from tests.running import Found, Workshop
from tests.support import eventually

pytestmark = pytest.mark.broker

SOURCE = """
    @app.task(typing=False)
    def fails(text, **more):
        note(f"fails {text}")
        if not (HERE / f"mended-{text}").exists():
            raise ValueError(f"no {text}")
        return text

    fails_for_good = app.task(name=f"{__name__}.fails_for_good", dead_letter_on_failure=True)(
        lambda text: fails.run(text)
    )

    @app.task(dead_letter_on_failure=True, acks_late=True)
    def fails_late(text):
        return fails.run(text)

    @app.task(dead_letter_on_failure=True)
    def dies():
        os.kill(os.getpid(), signal.SIGKILL)
"""
BODY = b'[[1, "x\\u00e9"],{"a": {"b": [null]}},{"callbacks":null,"errbacks":null,"chain":null,"chord":null}]'
#: What quorum queues add of their own.
COUNTS = ("x-delivery-count", "x-acquired-count")
JSON = {"content_type": "application/json", "content_encoding": "utf-8"}


class Morgue(Workshop):
    """A workshop with the commands, and a hand that buries messages as a worker does."""

    def declare(self) -> str:
        """Make the queue of dead letters, and return its name."""
        step = dead_queue(self.app.conf, self.queue, self.admin.version)
        self.admin.declare((step,))
        return step.queue

    def bury(self, number: int = 1, **changes: Any) -> list[str]:
        """Put some letters there by hand; returns their ids."""
        dead = self.declare()
        ids = []
        for _ in range(number):
            task_id = changes.get("id") or str(uuid.uuid4())
            headers = {
                "lang": "py", "task": changes.get("task", "shop.gone"), "id": task_id,
                "x-amqptasks-reason": changes.get("reason", "unknown-task"), "x-amqptasks-detail": "no such task",
                "x-amqptasks-time": "2026-11-21T04:51:42.403352+00:00", "x-amqptasks-queue": self.queue,
            }  # fmt: skip
            headers |= changes.get("headers", {})
            properties = JSON | {"correlation_id": task_id} | changes.get("properties", {})
            self.publish(changes.get("body", BODY), headers, queue=dead, **properties)
            ids.append(task_id)
        return ids

    def __enter__(self) -> Morgue:
        return self

    @property
    def dead(self) -> str:
        return f"{self.queue}.dead"

    def command(self, *arguments: str, **options: Any) -> Any:
        return Shell(self.directory)("-A", self.project.name, "dead", *arguments, **options)

    def listed(self, *arguments: str) -> list[dict[str, Any]]:
        """What ``dead list --json`` shows of the project's queue."""
        rows = json.loads(self.command("list", "--json", *arguments).stdout)
        assert [row["queue"] for row in rows] == [self.queue]
        letters: list[dict[str, Any]] = rows[0]["letters"]
        return letters


@pytest.fixture
def morgue(tmp_path: Path, broker_url: str) -> Iterator[Morgue]:
    with Morgue(tmp_path, broker_url, SOURCE) as made:
        made.admin.declare(_plan(made))
        yield made


def _plan(made: Morgue) -> Any:
    return plan(made.app.queues[made.queue], default_type="quorum", version=made.admin.version)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Morgue]:
    """A project and a worker that serves it all through the module."""
    with Morgue(tmp_path_factory.mktemp("dead"), broker_url, SOURCE) as made:
        made.start("-c", "1")
        yield made


# -- looking


def test_the_list_says_what_died_when_and_why(morgue: Morgue) -> None:
    # Given three dead letters, one of which has been here before
    first, second = morgue.bury(2)
    (third,) = morgue.bury(task="shop.late", reason="failed", headers={"x-amqptasks-deaths": 3})
    # When they are listed / Then each has its story
    letters = {each["id"]: each for each in morgue.listed()}
    assert set(letters) == {first, second, third}
    assert letters[first] == {
        "time": "2026-11-21T04:51:42.403352+00:00", "task": "shop.gone", "id": first, "reason": "unknown-task",
        "detail": "no such task", "deaths": 1, "crashes": 0, "worker": None, "bytes": len(BODY),
    }  # fmt: skip
    assert letters[third]["deaths"] == 3
    text = morgue.command("list").stdout
    assert f"{morgue.dead}: 3 dead letters" in text and "failed, death 3: no such task" in text
    # And filters and the limit leave out the rest
    assert [each["id"] for each in morgue.listed("--task", "shop.l*")] == [third]
    assert [each["id"] for each in morgue.listed("--reason", "failed")] == [third]
    assert [each["id"] for each in morgue.listed("--id", second, "--queue", morgue.dead)] == [second]
    assert len(morgue.listed("--limit", "2")) == 2 and morgue.listed("--limit", "0") == []
    assert "Shown: 2 of 3" in morgue.command("list", "--limit", "2").stdout
    # And all are still there
    morgue.is_waiting(3, morgue.dead)


def test_letters_can_be_looked_at_as_often_as_one_likes(morgue: Morgue) -> None:
    # Given letters / When they are looked at more often than RabbitMQ 4 delivers a message, and looks break off
    ids = morgue.bury(3)
    declaration = dead_queue(morgue.app.conf, morgue.queue, morgue.admin.version)
    for _ in range(25):
        with DeadLetters([morgue._endpoint]) as session:
            found = session.find(declaration, lambda _letter: True)
            assert sorted(letter.id for letter, _body in found) == sorted(ids)
            next(session.letters(declaration))
    # Then none is gone
    morgue.is_waiting(3, morgue.dead)


def test_letters_of_a_queue_with_a_limit_are_renewed_in_time(morgue: Morgue) -> None:
    # Given a queue of dead letters that somebody else has declared, with RabbitMQ's own limit
    morgue.admin.declare((DeclareQueue(morgue.dead, arguments={"x-queue-type": "quorum"}),))
    headers = {"id": "a", "task": "shop.gone", "x-amqptasks-reason": "failed", "own": [1, {"deep": True}]}
    for each in ("a", "b"):
        morgue.publish(BODY, headers | {"id": each}, queue=morgue.dead, **JSON, message_id=each, priority=3)
    declaration = dead_queue(morgue.app.conf, morgue.queue, morgue.admin.version)
    # When they are looked at more often than that
    for _ in range(45):
        with DeadLetters([morgue._endpoint]) as session:
            found = session.find(declaration, lambda _letter: True)
            assert sorted(letter.id for letter, _body in found) == ["a", "b"]
    # Then they are there as they were
    kept = morgue.take(morgue.dead)
    assert kept is not None and kept.body == BODY and kept.properties.priority == 3
    assert {key: value for key, value in kept.headers.items() if key not in COUNTS} == headers | {
        "id": kept.properties.message_id
    }
    assert morgue.take(morgue.dead) is not None and morgue.take(morgue.dead) is None


def test_a_letter_is_shown_whole(morgue: Morgue) -> None:
    (task_id,) = morgue.bury(headers={"own": {"n": 1}, "evil": "\x1b[31m"}, properties={"priority": 7})
    facts = json.loads(morgue.command("show", task_id, "--json").stdout)
    assert len(facts) == 1 and facts[0]["args"] == [1, "xé"] and facts[0]["kwargs"] == {"a": {"b": [None]}}
    assert facts[0]["headers"]["own"] == {"n": 1} and facts[0]["properties"]["priority"] == 7
    assert facts[0]["body"] == BODY.decode()
    text = morgue.command("show", task_id).stdout
    assert 'args         [1, "x\\u00e9"]' in text and BODY.decode() in text and "\x1b" not in text
    missing = morgue.command("show", "nobody", code=1).stderr
    assert f"no dead letter has the id 'nobody' in: {morgue.dead}" in missing


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_a_pickle_is_shown_and_never_opened(morgue: Morgue, tmp_path: Path) -> None:
    # Given an app that accepts pickle, and a pickle that would make a file
    body = pickle.dumps(_Trap(tmp_path / "sprung"))
    pickled = {"content_type": "application/x-python-serialize", "content_encoding": "binary"}
    (task_id,) = morgue.bury(body=body, properties=pickled)
    accepting = {"AMQPTASKS_ACCEPT_CONTENT": "json,pickle"}
    # When it is shown / Then its bytes are, and nobody has read them
    facts = json.loads(morgue.command("show", task_id, "--json", env=accepting).stdout)[0]
    assert base64.b64decode(facts["body"]) == body and facts["body_encoding"] == "base64"
    assert facts["args"] is None and "content type" in facts["unreadable"]
    assert not (tmp_path / "sprung").exists()


# -- replaying


def test_a_replayed_message_is_what_it_was(shop: Morgue) -> None:
    # Given a message with every property, which the worker cannot run, and one with hardly any
    full = {
        "content_type": "application/json", "content_encoding": "utf-8", "priority": 4, "message_id": "m-1",
        "type": "kind", "app_id": "me", "timestamp": 1_700_000_000, "expiration": "600000", "reply_to": "nobody",
    }  # fmt: skip
    cases: list[tuple[dict[str, Any], int]] = [(full, 1), ({}, 2)]
    for properties, delivery_mode in cases:
        target, task_id = f"{shop.queue}-{uuid.uuid4().hex[:6]}", str(uuid.uuid4())
        shop.also_delete(target)
        _declare(shop, target, **{"x-queue-type": "classic", "x-max-priority": 9})
        headers = {"lang": "py", "task": "shop.gone", "id": task_id, "own": {"deep": [1, None, True]}, "retries": 0}
        made = pika.BasicProperties(
            headers=headers, delivery_mode=delivery_mode, correlation_id=task_id, **properties
        )  # fmt: skip
        shop._pika().basic_publish("", shop.queue, BODY, made, mandatory=True)
        shop.is_waiting(1, shop.dead)
        # When it is replayed to another queue
        done = shop.command("replay", task_id, "--to", target, "-f")
        assert f"Replayed 1 dead letter to {target}." in done.stdout
        # Then it is there as it was, to the byte, and no longer among the dead
        found = shop.take(target)
        assert found is not None and found.body == BODY
        assert found.headers == headers | {"x-amqptasks-deaths": 1}
        names = (*full, "correlation_id", "delivery_mode")
        assert {name: getattr(found.properties, name) for name in names} == {
            name: getattr(made, name) for name in names
        }
        assert shop.waiting(shop.dead) == 0


def _declare(morgue: Morgue, queue: str, **arguments: Any) -> None:
    morgue.admin.declare((DeclareQueue(queue, arguments=arguments),))


def test_a_failed_task_is_replayed_and_counted(shop: Morgue) -> None:
    # Given a task that fails, and whose message is kept for that
    result = shop.tasks.fails_for_good.delay("bread")
    with pytest.raises(ValueError, match="no bread"):
        result.get(timeout=20)
    shop.is_waiting(1, shop.dead)
    (letter,) = shop.listed()
    assert (letter["reason"], letter["detail"], letter["deaths"]) == ("failed", "ValueError: no bread", 1)
    # When it is replayed while nothing is mended / Then it dies again, which is counted
    shop.command("replay", result.id, "-f")
    shop.noted("fails bread", 2)
    shop.is_waiting(1, shop.dead)
    (letter,) = shop.listed()
    assert letter["deaths"] == 2
    # When it is replayed after that / Then it runs
    (shop.directory / "mended-bread").touch()
    shop.command("replay", "--reason", "failed", "-f")
    shop.noted("fails bread", 3)
    assert shop.waiting(shop.dead) == 0


@pytest.mark.parametrize(
    ("queue", "why"), [("absent", "there is no queue"), ("full", "the broker refused it: the queue is full")]
)
def test_what_does_not_arrive_stays(morgue: Morgue, queue: str, why: str) -> None:
    # Given letters, and a place that takes none
    target = f"{morgue.queue}-{queue}"
    morgue.also_delete(target)
    if queue == "full":
        full = {"x-queue-type": "classic", "x-max-length": 0, "x-overflow": "reject-publish"}
        _declare(morgue, target, **full)
    ids = morgue.bury(2)
    # When they are to go there / Then each stays, with the reason, and the exit code says so
    facts = json.loads(morgue.command("replay", "--all", "-f", "--json", "--to", target, code=1).stdout)
    assert facts["replayed"] == 0 and {each["id"] for each in facts["failed"]} == set(ids)
    assert all(why in each["error"] for each in facts["failed"])
    morgue.is_waiting(2, morgue.dead)
    assert "0 dead letters" in morgue.command("replay", "--all", "-f", "--to", target, code=1).stdout


def test_a_letter_without_all_of_its_headers_stays(morgue: Morgue) -> None:
    (cut,) = morgue.bury(headers={"x-amqptasks-headers-cut": True})
    assert "not kept whole" in morgue.command("replay", cut, "-f", code=1).stderr
    morgue.is_waiting(1, morgue.dead)


def test_a_replay_asks_first(morgue: Morgue) -> None:
    morgue.bury(2)
    asked = morgue.command("replay", "--all", answer="n\n", code=1)
    assert "Replay 2 dead letters?" in asked.stdout and "Aborted" in asked.stderr
    morgue.is_waiting(2, morgue.dead)
    done = morgue.command("replay", "--all", answer="y\n")
    assert "Replayed 2 dead letters." in done.stdout
    assert morgue.waiting(morgue.dead) == 0 and morgue.waiting() == 2


def _take_all(morgue: Morgue, queue: str) -> list[Found]:
    found = []
    while (each := morgue.take(queue)) is not None:
        found.append(each)
    return found


def _has_at_most(morgue: Morgue, queue: str, count: int) -> bool:
    return morgue.waiting(queue) <= count


@pytest.mark.parametrize("verb", ["replay", "discard"])
def test_a_command_killed_in_the_middle_loses_nothing(morgue: Morgue, verb: str) -> None:
    # Given many letters
    ids = set()
    dead = morgue.declare()
    for number in range(400):
        morgue.publish(BODY, {"id": str(number), "task": "shop.gone", "x-amqptasks-reason": "failed"}, queue=dead)
        ids.add(str(number))
    # When the command is killed while it is at it, again and again
    killed = 0
    for kept in (350, 250, 150):
        process = subprocess.Popen(
            [sys.executable, "-m", "amqptasks", "-A", morgue.project.name, "dead", verb, "--all", "-f"],
            cwd=morgue.directory, env=environment(), stdout=subprocess.DEVNULL,
        )  # fmt: skip
        eventually(partial(_has_at_most, morgue, dead, kept), 30, every_s=0.001)
        process.send_signal(signal.SIGKILL)
        killed += process.wait(20) == -signal.SIGKILL
    # Then what has not left the dead letters is there, and no other is lost; at most one per kill is there twice
    assert killed
    if verb == "replay":
        # What a killed command had in hand comes back when the broker notices its end.
        eventually(lambda: morgue.waiting(dead) + morgue.waiting() >= len(ids), 20)
    left = [each.headers["id"] for each in _take_all(morgue, dead)]
    assert left and len(left) == len(set(left))
    if verb == "replay":
        moved = [each.headers["id"] for each in _take_all(morgue, morgue.queue)]
        assert set(moved) | set(left) == ids
        assert len(moved) + len(left) - len(ids) <= killed
    else:
        assert set(left) < ids


# -- discarding


def test_letters_are_discarded_by_filter(morgue: Morgue) -> None:
    (kept,) = morgue.bury(reason="failed")
    morgue.bury(2)
    asked = morgue.command("discard", "--reason", "unknown-task", answer="n\n", code=1)
    assert "There is no undo" in asked.stdout
    morgue.is_waiting(3, morgue.dead)
    facts = json.loads(morgue.command("discard", "--reason", "unknown-task", "-f", "--json").stdout)
    assert facts == {"discarded": 2, "queues": {morgue.queue: 2}, "failed": [], "missing": []}
    assert [each["id"] for each in morgue.listed()] == [kept]
    both = morgue.command("discard", kept, "nobody", "-f", code=1)
    assert "Discarded 1 dead letter." not in both.stderr and "'nobody'" in both.stderr
    assert morgue.waiting(morgue.dead) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("replay",), 2, "which dead letters?"),
        (("discard", "--all", "--reason", "x"), 2, "--all is all of them"),
        (("replay", "nobody", "-f"), 1, "no dead letter has the id 'nobody'"),
        (("list", "-Q", "nowhere"), 1, "there is no queue 'nowhere.dead'"),
        (("replay", "--all", "-f", "--to", "{dead}"), 2, "is the queue they are in"),
    ],
)
def test_mistakes_are_told(morgue: Morgue, arguments: tuple[str, ...], code: int, says: str) -> None:
    given = [each.replace("{dead}", morgue.dead) for each in arguments]
    assert says in morgue.command(*given, code=code).stderr


def test_nothing_is_found_where_nothing_died(morgue: Morgue) -> None:
    assert "No dead letters of 1 queue" in morgue.command("list").stdout
    assert morgue.listed() == []
    assert "Replayed 0 dead letters." in morgue.command("replay", "--all", "-f").stdout
    away = {"AMQPTASKS_BROKER_URL": "amqp://127.0.0.1:1//"}
    assert "no broker could be reached" in morgue.command("list", env=away, code=69).stderr


# -- failures among them


def test_a_failure_is_kept_where_task_or_setting_say_so(shop: Morgue) -> None:
    # Given a task that does not ask for it / Then its failure leaves nothing behind
    with pytest.raises(ValueError):
        shop.tasks.fails.delay("plain").get(timeout=20)
    # Given one that is acknowledged late / Then its message is kept once, and its caller told
    late = shop.tasks.fails_late.delay("late")
    with pytest.raises(ValueError):
        late.get(timeout=20)
    letter = shop.dead_letter()
    assert letter.headers["id"] == late.id and letter.headers["x-amqptasks-detail"] == "ValueError: no late"
    # Given one whose process is killed / Then that is its error
    lost = shop.tasks.dies.delay()
    with pytest.raises(WorkerLostError):
        lost.get(timeout=20)
    letter = shop.dead_letter()
    assert letter.headers["id"] == lost.id and letter.headers["x-amqptasks-detail"].startswith("WorkerLostError: ")
    assert shop.take(shop.dead) is None and shop.waiting() == 0


def _with_settings(directory: Path, broker_url: str, **settings: Any) -> Morgue:
    lines = "".join(f"\n    app.conf.{name} = {value!r}" for name, value in settings.items())
    return Morgue(directory, broker_url, SOURCE + lines)


def test_the_number_of_letters_is_bounded_and_failures_count(tmp_path: Path, broker_url: str) -> None:
    # Given a setting that keeps every failure, and one that keeps two
    settings = {"task_dead_letter_max_length": 2, "task_dead_letter_on_failure": True}
    with _with_settings(tmp_path, broker_url, **settings) as morgue:
        morgue.start("-c", "1")
        # When three fail / Then the two newest are there
        for text in ("a", "b", "c"):
            with pytest.raises(ValueError):
                morgue.tasks.fails.delay(text).get(timeout=20)
        eventually(lambda: [each["detail"] for each in morgue.listed()] == ["ValueError: no b", "ValueError: no c"], 20)


def test_letters_go_after_their_time_and_a_changed_limit_is_told(tmp_path: Path, broker_url: str) -> None:
    # Given a queue of dead letters without a limit, and a setting with one
    with _with_settings(tmp_path, broker_url, task_dead_letter_ttl=0.3) as morgue:
        morgue.admin.declare((dead_letter_queue(morgue.queue, ".dead", "quorum", morgue.admin.version),))
        worker = morgue.start("-c", "1")
        # When something dies / Then it is kept all the same, and the log shows both declarations
        result = morgue.tasks.fails_for_good.delay("x")
        assert morgue.dead_letter().headers["id"] == result.id
        worker.wait_for(r"already exists in vhost .* with another x-message-ttl")
        # When the queue is deleted, as that says / Then it is made anew, and letters go after their time
        morgue.admin.delete(morgue.dead)
        second = morgue.tasks.fails_for_good.delay("y")
        worker.wait_for(f"Moved a message to .*{second.id}")
        eventually(lambda: morgue.admin.exists(morgue.dead) and morgue.waiting(morgue.dead) == 0, 20)
        morgue.admin.declare((dead_queue(morgue.app.conf, morgue.queue, morgue.admin.version),))
