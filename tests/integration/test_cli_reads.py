"""The commands that read, as a user meets them: result, report, queues show. With real workers behind them."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from amqptasks._version import __version__
from tests.command import Shell, Terminal
from tests.running import Workshop

SOURCE = """
from amqptasks import Exchange, Queue

app.conf.result_backend = f"db+sqlite:///{HERE}/results.db"
app.conf.task_queues = [
    Queue(QUEUE),
    Queue(QUEUE + "-mail", Exchange("mail", type="topic"), routing_key="mail.#", max_priority=5),
]

@app.task(name="shop.add")
def add(x, y):
    return x + y

@app.task(name="shop.basket")
def basket():
    return {"apples": 2}

@app.task(name="shop.fail")
def fail(text):
    raise ValueError(text)

@app.task(name="shop.kept", persist_result=True)
def kept():
    return "kept"

@app.task(name="shop.behind")
def behind(name):
    gate(name)
    return "through"
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    with Workshop(tmp_path_factory.mktemp("reads"), broker_url, SOURCE) as made:
        made.start("-c", "2", "-Q", made.queue)
        yield made


@pytest.fixture
def shell(shop: Workshop) -> Callable[..., Any]:
    """Run a command on the shop."""
    run = Shell(shop.directory)
    return lambda *arguments, **options: run("-A", shop.project.name, *arguments, **options)


# -- result


def test_result_prints_what_a_task_returned(shop: Workshop, shell: Callable[..., Any]) -> None:
    assert shell("result", shop.tasks.add.delay(20, 22).id).stdout == "42\n"
    assert shell("result", shop.tasks.basket.delay().id).stdout == "{'apples': 2}\n"
    assert shell("result", "-t", "shop.add", shop.tasks.add.delay(1, 1).id).stdout == "2\n"


def test_result_as_json_is_the_record(shop: Workshop, shell: Callable[..., Any]) -> None:
    sent = shop.tasks.basket.delay()
    record = json.loads(shell("result", "--json", sent.id).stdout)
    assert (record["task_id"], record["status"], record["result"]) == (sent.id, "SUCCESS", {"apples": 2})
    assert record["traceback"] is None and record["date_done"]


def test_the_result_of_a_failed_task_is_its_error_and_exit_code_1(shop: Workshop, shell: Callable[..., Any]) -> None:
    sent = shop.tasks.fail.delay("no such fruit")
    done = shell("result", sent.id, code=1)
    assert done.stdout == ""
    assert done.stderr == f"Error: task {sent.id} failed: ValueError: no such fruit (--traceback shows where)\n"
    # And with --traceback it is the worker's, on standard output
    printed = shell("result", "--traceback", sent.id, code=1)
    assert printed.stdout.startswith("Traceback (most recent call last):\n")
    assert printed.stdout.endswith("ValueError: no such fruit\n")
    assert printed.stderr == ""
    record = json.loads(shell("result", "--json", sent.id, code=1).stdout)
    assert record["status"] == "FAILURE" and record["result"]["exc_type"] == "ValueError"


def test_result_waits_and_says_so(shop: Workshop) -> None:
    # Given a task that runs
    gate = shop.gate()
    sent = shop.tasks.behind.delay(gate.name)
    with Terminal(shop.directory, "-A", shop.project.name, "result", sent.id) as terminal:
        # When its result is asked for / Then the wait is told, and how to end it
        terminal.expect(rf"task {sent.id} is \w+; waiting for ever; --timeout sets an end\n")
        gate.open()
        terminal.expect(r"^through\n")
        assert terminal.process.wait(20) == 0


def test_a_result_that_does_not_come_in_time_is_exit_code_69(shop: Workshop, shell: Callable[..., Any]) -> None:
    done = shell("-q", "result", "--timeout", "0", "no-such-task", code=69)
    assert "is PENDING after 0 s" in done.stderr and "no task that this backend knows" in done.stderr
    done = shell("result", "--traceback", "no-such-task")
    assert (done.stdout, done.stderr) == ("", "task no-such-task has no traceback: it is PENDING\n")


def test_an_rpc_result_of_another_process_is_refused_at_once(shop: Workshop, shell: Callable[..., Any]) -> None:
    for arguments in (["some-id"], ["--traceback", "some-id"], ["--json", "some-id"]):
        done = shell("--result-backend", "rpc://", "result", *arguments, code=1)
        (said,) = done.stderr.splitlines()
        assert "some-id" in said and "this is another" in said and "persist_result" in said
        assert done.stdout == ""
    # But an app without any backend hears that
    assert "No result backend" in shell("--result-backend", "disabled://", "result", "some-id", code=2).stderr


def test_a_result_that_rabbitmq_keeps_is_read_by_another_process(shop: Workshop, shell: Callable[..., Any]) -> None:
    # Given a worker that answers over rpc
    shop.start("-P", "solo", "-Q", f"{shop.queue}-kept", env={"AMQPTASKS_RESULT_BACKEND": "rpc://"})
    shop.also_delete(f"{shop.queue}-kept")
    # When one process sends a task that keeps its result, and ends / Then another can read it
    rpc = ("--result-backend", "rpc://")
    task_id = shell(*rpc, "call", "shop.kept", "--queue", f"{shop.queue}-kept").stdout.strip()
    shop.also_delete(f"amqptasks.result.{task_id}")
    assert shell(*rpc, "result", "--timeout", "20", task_id).stdout == "kept\n"
    assert shell(*rpc, "result", "-t", "shop.kept", task_id).stdout == "kept\n"


# -- report


def test_report_names_versions_broker_and_settings_without_passwords(shop: Workshop, shell: Callable[..., Any]) -> None:
    printed = shell("report").stdout
    for words in (
        f"amqptasks:{__version__}",
        f"python:{platform.python_version()}",
        "task_default_queue",
    ):
        assert words in printed
    assert re.search(r"RabbitMQ\s+\d+\.\d+\.\d+", printed)
    assert "guest:guest" not in printed
    head = printed.partition("\n\n")[0]
    assert max(map(len, head.splitlines())) <= 80


def test_report_as_json(shop: Workshop, shell: Callable[..., Any]) -> None:
    report = json.loads(shell("report", "--json").stdout)
    assert report["software"]["amqptasks"] == __version__
    assert report["app"] == shop.project.name
    assert report["settings"]["task_default_queue"] == shop.queue
    assert "guest:guest" not in json.dumps(report)


def test_report_needs_neither_app_nor_broker(tmp_path: Path) -> None:
    report = json.loads(Shell(tmp_path)("-b", "amqp://127.0.0.1:1", "report", "--json").stdout)
    assert report["app"] is None
    assert "cannot be reached" in report["broker"][0] and "refused" in report["broker"][0]


def test_report_shows_the_settings_module_of_the_command_on_top_of_the_apps(tmp_path: Path) -> None:
    # Given an app with a settings module, another that the command names, and a celeryconfig.py beside them
    shell = Shell(tmp_path)
    shell.write("shop.py", "from amqptasks import App\napp = App('x', config_source='of_app')")
    shell.write("of_app.py", "task_default_queue = 'of-app'\ntask_serializer = 'msgpack'")
    shell.write("of_command.py", "task_default_queue = 'of-command'")
    shell.write("celeryconfig.py", "task_default_queue = 'of-celeryconfig'")

    def settings(*arguments: str) -> Any:
        return json.loads(shell("-b", "amqp://127.0.0.1:1", *arguments, "report", "--json").stdout)["settings"]

    # When settings are shown / Then the command's module wins, and what it does not say is as the app's says
    told = settings("-A", "shop", "--config", "of_command")
    assert (told["task_default_queue"], told["task_serializer"]) == ("of-command", "msgpack")
    # And a celeryconfig.py is taken without -A alone, as with Celery
    assert settings("-A", "shop")["task_default_queue"] == "of-app"
    assert settings()["task_default_queue"] == "of-celeryconfig"


# -- queues show


def test_queues_show_tells_what_is_declared_and_what_is_there(shop: Workshop, shell: Callable[..., Any]) -> None:
    printed = shell("queues", "show", shop.queue).stdout
    lines = {line[:10].rstrip(): line[11:] for line in printed.splitlines()}
    assert lines["queue"] == shop.queue
    assert lines["messages"] == "0 waiting" and lines["consumers"] == "1"
    assert lines["declared"] == "quorum, durable"
    assert "bound to" not in lines


def test_queues_show_tells_of_a_queue_that_is_not_there_yet(shop: Workshop, shell: Callable[..., Any]) -> None:
    name = f"{shop.queue}-mail"
    printed = shell("queues", "show", name, code=1).stdout
    for words in ("not declared yet", "classic, durable", "mail (topic) key 'mail.#'"):
        assert words in printed
    facts = json.loads(shell("queues", "show", "--json", name, code=1).stdout)
    assert facts["exists"] is False and facts["type"] == "classic"
    assert facts["declared"]["bindings"] == [
        {"exchange": "mail", "type": "topic", "routing_key": "mail.#", "arguments": {}}
    ]


def test_queues_show_takes_queues_of_others_and_offers_the_nearest_name(
    shop: Workshop, shell: Callable[..., Any]
) -> None:
    stranger = Shell(shop.directory)
    printed = stranger("-b", shop.broker_url, "queues", "show", shop.queue).stdout
    assert "not by this app" in printed and "consumers  1" in printed
    assert f"did you mean '{shop.queue}'" in shell("queues", "show", shop.queue + "x", code=1).stderr
