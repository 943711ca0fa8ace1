"""The command line as a user meets it: a real process, a real RabbitMQ, what is printed and the exit code."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from amqptasks.broker.admin import Admin
from amqptasks.broker.parameters import endpoints
from tests.command import Shell
from tests.support import Project, WorkerProcess, eventually

SOURCE = """
from amqptasks.app.app import App

app = App(BROKER and "shop", broker=BROKER, backend="rpc://")
app.conf.task_default_queue = QUEUE

@app.task(name="shop.add")
def add(x, y):
    print("sum", x + y, flush=True)
    return x + y
"""


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def admin(broker_url: str, queue_name: str) -> Iterator[Admin]:
    with Admin(endpoints([broker_url], heartbeat_s=10, connection_timeout_s=5, name="test of the commands")) as session:
        yield session
        for name in (queue_name, f"{queue_name}.dead", f"{queue_name}-2"):
            session.delete(name)


@pytest.fixture
def shop(project: Callable[..., Project], admin: Admin) -> Project:
    """A project whose default queue belongs to this test; the queue is deleted at the end."""
    return project(SOURCE)


# -- help and mistakes


def test_help_and_version_need_no_app(shell: Shell) -> None:
    assert "worker" in shell("--help").stdout
    for command in ("worker", "call", "purge", "queues", "result", "report", "shell", "completion"):
        assert "Usage" in shell(command, "--help").stdout
    assert shell("--version").stdout.startswith("amqptasks ")


def test_a_mistyped_command_is_answered_with_the_nearest(shell: Shell) -> None:
    assert "did you mean 'worker'" in shell("wroker", code=2).stderr


def test_a_after_the_command_is_told_where_it_belongs(shell: Shell) -> None:
    assert "amqptasks -A proj worker" in shell("worker", "-A", "shop", code=2).stderr


def test_a_worker_needs_an_app(shell: Shell) -> None:
    assert "-A proj" in shell("worker", code=2).stderr


# -- finding the app


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({"shop.py": "app = APP"}, ["shop", "shop:app", "shop.app"]),
        ({"shop.py": "celery = APP"}, ["shop", "shop:celery"]),
        ({"shop.py": "anything = APP"}, ["shop", "shop:anything", "shop.anything"]),
        ({"shop.py": "app = object()\nother = APP"}, ["shop"]),
        ({"shop.py": "class Box: inner = APP"}, ["shop:Box.inner"]),
        ({"shop/__init__.py": "", "shop/celery.py": "app = APP"}, ["shop", "shop.celery", "shop.celery:app"]),
        ({"shop/__init__.py": "", "shop/amqptasks.py": "app = APP"}, ["shop"]),
        ({"shop/__init__.py": "from .celery import app", "shop/celery.py": "app = APP"}, ["shop", "shop.celery"]),
        ({"shop/__init__.py": "", "shop/jobs.py": "mine = APP"}, ["shop.jobs", "shop.jobs:mine"]),
    ],
)  # fmt: skip
def test_the_app_is_found_by_celerys_rules(
    shell: Shell, broker_url: str, unique: Callable[..., str], files: dict[str, str], names: list[str]
) -> None:
    queue = unique("found")
    app = f"App(broker={broker_url!r}, task_default_queue={queue!r})"
    for path, source in files.items():
        shell.write(path, f"from amqptasks.app.app import App\n{source.replace('APP', app)}\n" if source else "")
    for name in names:
        assert queue in shell("-A", name, "queues", "list").stdout
    assert queue in shell("queues", "list", env={"AMQPTASKS_APP": names[0]}).stdout


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("shoop", ["no module named 'shoop'", "did you mean 'shop'"]),
        ("shop.py", ["-A shop"]),
        ("shop:ap", ["no attribute 'ap'", "did you mean 'app'"]),
        ("shop:number", ["expected -A shop:number to name an amqptasks.App", "int"]),
        ("empty", ["holds no app", "empty.py"]),
        ("two", ["-A two:first", "-A two:second"]),
        ("broken", ["ZeroDivisionError", "broken.py:2"]),
        ("misses", ["no_such_module_here"]),
        ("wrong", ["SyntaxError", "wrong.py"]),
        ("nowhere.shop", ["no module named 'nowhere.shop'"]),
    ],
)
def test_an_app_that_cannot_be_found_says_why_in_one_line(shell: Shell, name: str, expected: list[str]) -> None:
    head = "from amqptasks.app.app import App\n"
    shell.write("shop.py", f"{head}app = App()\nnumber = 1\n")
    shell.write("empty.py", "")
    shell.write("two.py", f"{head}first = App()\nsecond = App()\n")
    shell.write("broken.py", "def f():\n    1 / 0\nf()\n")
    shell.write("misses.py", "import no_such_module_here\n")
    shell.write("wrong.py", "def (:\n")
    text = shell("-A", name, "queues", "list", code=2).stderr
    for each in expected:
        assert each in text


def test_workdir_is_where_the_app_is_looked_for(shell: Shell, broker_url: str) -> None:
    shell.write("inner/shop.py", f"from amqptasks.app.app import App\nApp = App(broker={broker_url!r})\n")
    assert "celery" in shell("--workdir", "inner", "-A", "shop", "queues", "list").stdout
    assert "nowhere" in shell("--workdir", "nowhere", "-A", "shop", "queues", "list", code=2).stderr


# -- brokers and settings


def test_a_broker_that_is_away_is_exit_code_69_without_its_password(shell: Shell) -> None:
    for command in (["queues", "list"], ["purge", "-f"], ["queues", "declare"]):
        text = shell("-b", "amqp://u:hush@127.0.0.1:1//", *command, code=69).stderr
        assert "amqp://u@127.0.0.1:1//" in text and "refused" in text
        assert "hush" not in text


def test_a_setting_that_is_wrong_names_the_command_line(shell: Shell, shop: Project) -> None:
    assert "begins with amqp" in shell("-b", "redis://x", "queues", "list", code=2).stderr
    text = shell("-A", shop.name, "worker", "--", "task_acks_lat=1", code=2).stderr
    assert "did you mean 'task_acks_late'" in text and "command line" in text
    assert "worker_concurrency" in shell("-A", shop.name, "worker", "-c", "many", code=2).stderr
    assert "SETTING=VALUE" in shell("-A", shop.name, "worker", "--", "task_acks_late", code=2).stderr
    assert "did you mean 'INFO'" in shell("-A", shop.name, "worker", "-l", "inf", code=2).stderr
    assert "/nowhere/log" in shell("-A", shop.name, "worker", "-f", "/nowhere/log", code=2).stderr


# -- queues


def test_queues_are_declared_listed_and_deleted(shell: Shell, shop: Project, admin: Admin) -> None:
    # Given an app whose queue is not there yet
    (row,) = json.loads(shell("-A", shop.name, "queues", "list", "--json").stdout)
    assert row == {
        "name": shop.queue, "type": "quorum", "exists": False, "messages": None, "consumers": None, "dead": 0
    }  # fmt: skip
    assert "not declared yet" in shell("-A", shop.name, "queues", "list").stdout
    # When it is declared / Then it is there, and so in the list
    assert f"declared {shop.queue} (quorum)" in shell("-A", shop.name, "queues", "declare").stdout
    assert admin.counts(shop.queue) == (0, 0)
    assert shop.queue in shell("-A", shop.name, "queues", "list").stdout
    # When it is deleted / Then it is gone, and a second time is a failure
    assert "deleted" in shell("-A", shop.name, "queues", "delete", "-f", shop.queue).stdout
    assert not admin.exists(shop.queue)
    assert "there is no queue" in shell("-A", shop.name, "queues", "delete", "-f", shop.queue, code=1).stderr


def test_deleting_asks_first(shell: Shell, shop: Project, admin: Admin) -> None:
    shell("-A", shop.name, "queues", "declare")
    for answer in ("n\n", ""):
        done = shell("-A", shop.name, "queues", "delete", shop.queue, code=1, answer=answer)
        assert "no undo" in done.stdout + done.stderr
        assert admin.exists(shop.queue)
    shell("-A", shop.name, "queues", "delete", shop.queue, answer="y\n")
    assert not admin.exists(shop.queue)


def test_a_queue_with_messages_survives_if_empty(shell: Shell, shop: Project, admin: Admin) -> None:
    shell("-A", shop.name, "call", "shop.add", "-a", "[1, 2]")
    text = shell("-A", shop.name, "queues", "delete", "-f", "--if-empty", shop.queue, code=1).stderr
    assert "1 message" in text
    assert admin.exists(shop.queue)


def test_a_conflict_is_shown_side_by_side(shell: Shell, shop: Project, admin: Admin) -> None:
    shell("-A", shop.name, "queues", "declare")
    done = shell(
        "-A", shop.name, "queues", "declare", code=1, env={"AMQPTASKS_TASK_DEFAULT_QUEUE_TYPE": "classic"}
    )  # fmt: skip
    assert "declared here" in done.stderr and "on the broker" in done.stderr
    assert "'classic'" in done.stderr and "'quorum'" in done.stderr
    assert "To mend it" in done.stderr


def test_an_unknown_queue_is_not_declared_by_a_slip(shell: Shell, shop: Project, admin: Admin) -> None:
    assert "did you mean" in shell("-A", shop.name, "queues", "declare", shop.queue + "x", code=2).stderr
    assert not admin.exists(shop.queue + "x")


# -- call and purge


def test_call_sends_a_task_and_prints_its_id(shell: Shell, shop: Project, admin: Admin) -> None:
    printed = shell("-A", shop.name, "call", "shop.add", "-a", "[1, 2]", "-k", "{}").stdout.strip()
    assert str(uuid.UUID(printed)) == printed
    assert admin.counts(shop.queue) == (1, 0)


def test_call_without_an_app_goes_where_it_is_told(
    shell: Shell, broker_url: str, admin: Admin, queue_name: str
) -> None:
    shell("-b", broker_url, "call", "their.task", "--queue", queue_name)
    assert admin.counts(queue_name) == (1, 0)


def test_call_warns_of_a_name_that_is_nearly_right(shell: Shell, shop: Project, admin: Admin) -> None:
    assert "did you mean 'shop.add'" in shell("-A", shop.name, "call", "shop.ad").stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["-a", "[1"], "expected JSON"),
        (["-a", "{}"], "JSON array"),
        (["-a", "[NaN]"], "NaN is not JSON"),
        (["-a", "[" * 100_000], "expected JSON"),
        (["-k", "[]"], "JSON object"),
        (["--eta", "tomorrow"], "ISO 8601"),
        (["--expires", "soon"], "ISO 8601"),
        (["--eta", "2030-01-01T00:00:00", "--countdown", "1"], "twice"),
        (["--priority", "256"], "255"),
    ],
)
def test_call_refuses_what_it_cannot_send(shell: Shell, shop: Project, arguments: list[str], reason: str) -> None:
    assert reason in shell("-A", shop.name, "call", "shop.add", *arguments, code=2).stderr


def test_purge_says_how_many_messages_went(shell: Shell, shop: Project, admin: Admin) -> None:
    assert shell("-A", shop.name, "purge", "-f").stdout == "No messages purged from 1 queue.\n"
    for _ in range(2):
        shell("-A", shop.name, "call", "shop.add", "-a", "[1, 2]")
    shell("-A", shop.name, "purge", answer="n\n", code=1)
    assert admin.counts(shop.queue) == (2, 0)
    assert shell("-A", shop.name, "purge", "-f").stdout == "Purged 2 messages from 1 known task queue.\n"
    assert admin.counts(shop.queue) == (0, 0)


def test_purge_takes_and_leaves_queues_by_name(shell: Shell, shop: Project, admin: Admin) -> None:
    other = f"{shop.queue}-2"
    for queue in (shop.queue, other):
        shell("-A", shop.name, "call", "shop.add", "-a", "[1, 2]", "--queue", queue)
    done = shell("-A", shop.name, "purge", "-f", "-Q", f"{shop.queue},{other}", "-X", shop.queue)
    assert done.stdout == "Purged 1 message from 1 known task queue.\n"
    assert (admin.counts(shop.queue), admin.counts(other)) == ((1, 0), (0, 0))
    assert "did you mean" in shell("-A", shop.name, "purge", "-f", "-X", shop.queue + "x", code=2).stderr


# -- worker


def test_a_worker_runs_what_call_sends(
    shell: Shell, shop: Project, worker: Callable[..., WorkerProcess], admin: Admin
) -> None:
    # Given a worker on a queue of its own with settings from the command line
    other = f"{shop.queue}-2"
    running = worker(
        shop, "-c", "1", "-Q", other, "-O", "fair", "--prefetch-multiplier", "2", "--", "task_acks_late=yes"
    )
    # When a task is sent there / Then it runs
    task_id = shell("-A", shop.name, "call", "shop.add", "-a", "[20, 22]", "--queue", other).stdout.strip()
    running.wait_for(rf"shop\.add\[{task_id}\] succeeded .*42")
    eventually(lambda: admin.counts(other) == (0, 1))
    assert running.stop() == 0


def test_a_worker_can_begin_with_an_empty_queue(
    shell: Shell, shop: Project, worker: Callable[..., WorkerProcess], admin: Admin
) -> None:
    stale = shell("-A", shop.name, "call", "shop.add", "-a", "[1, 2]").stdout.strip()
    running = worker(shop, "-P", "solo", "--purge")
    assert "Purged 1 message" in running.log
    fresh = shell("-A", shop.name, "call", "shop.add", "-a", "[3, 4]").stdout.strip()
    running.wait_for(rf"\[{fresh}\] succeeded")
    assert stale not in running.log
