"""``amqptasks status``, ``inspect`` and ``control`` as typed: what is printed, asked, and told to scripts."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import Shell, Terminal
from tests.running import Workshop
from tests.support import WorkerProcess, eventually

SOURCE = """
from amqptasks.worker.control import control_command, inspect_command

# Workers of other tests on this broker are not meant.
app.conf.control_exchange = QUEUE

@app.task
def wait(name):
    gate(name)

@inspect_command(args=[("n", int)], signature="[N=1]", default_timeout=30)
def square(state, n=1):
    "Square a number."
    return {"square": n * n, "of": state.hostname}

@control_command(args=[("level", str), ("n", float)], signature="<level> [n]")
def adjust(state, level, n=0.5):
    if level == "wrong":
        raise ValueError("no such level")
    return {"ok": [level, n]}
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    with Workshop(tmp_path_factory.mktemp("remote"), broker_url, SOURCE) as made:
        yield made


@pytest.fixture(scope="module")
def worker(shop: Workshop) -> WorkerProcess:
    """A worker that all tests ask."""
    return shop.start("-c", "2")


@pytest.fixture
def name(worker: WorkerProcess) -> str:
    return worker.command[worker.command.index("-n") + 1]


@pytest.fixture
def shell(shop: Workshop) -> Shell:
    return Shell(shop.directory)


@pytest.fixture
def quiet_shop(tmp_path: Path, broker_url: str) -> Iterator[Workshop]:
    """A project without workers."""
    with Workshop(tmp_path, broker_url, SOURCE) as made:
        yield made


def only(name: str) -> list[str]:
    """The options to ask one worker, as long as it may take."""
    return ["-d", name, "-t", "20"]


def test_the_apps_own_commands_are_listed(shop: Workshop, shell: Shell) -> None:
    # When the commands are listed, then those of the app are among them, with their arguments
    assert "square [N=1]" in shell("-A", shop.project.name, "inspect", "--list").stdout
    listed = json.loads(shell("-A", shop.project.name, "control", "--list", "--json").stdout)
    assert {"name": "adjust", "signature": "<level> [n]", "help": ""} in listed
    assert "square" not in [each["name"] for each in listed]

    # And without an app the others
    assert "rate_limit <task_name>" in shell("control", "--list").stdout


def test_the_apps_own_commands_are_asked(shop: Workshop, shell: Shell, name: str) -> None:
    # When a worker is asked with a command that may take half a minute, then who is there is waited for and nobody else
    def answered() -> None:
        said = shell("-A", shop.project.name, "inspect", "square", "12").stdout
        assert (
            said
            == f'->  {name}: OK\n    {{\n        "of": "{name}",\n        "square": 144\n    }}\n\n1 node online.\n'
        )

    # It has one second to show that it is there
    eventually(answered, 20)
    replies = json.loads(shell("-A", shop.project.name, "control", "adjust", "high", "2", "-j", *only(name)).stdout)
    assert replies == [{name: {"ok": ["high", 2.0]}}]

    # And a wrong argument reaches nobody
    said = shell("-A", shop.project.name, "inspect", "square", "twelve", code=2).stderr
    assert "square: n: expected a whole number, got: 'twelve'" in said
    said = shell("-A", shop.project.name, "inspect", "sqare", code=2).stderr
    assert "did you mean 'square'" in said


def test_an_answer_that_is_an_error_ends_with_1(shop: Workshop, shell: Shell, name: str) -> None:
    said = shell("-A", shop.project.name, "control", "adjust", "wrong", *only(name), code=1).stdout
    assert said == f"->  {name}: ERROR\n        ValueError('no such level')\n"


def test_a_worker_that_was_named_and_is_silent_is_named(shop: Workshop, shell: Shell, name: str) -> None:
    # When somebody asks a worker, and mistypes another
    done = shell("-A", shop.project.name, "status", "-d", f"{name},{name}x", "-t", "4", code=1)

    # Then the one is there, and the other is told of, with who may be meant
    assert done.stdout == f"->  {name}: OK\n\n1 node online.\n"
    assert done.stderr == f"Error: no answer from '{name}x' (did you mean '{name}'?)\n"

    # And if none of those that were named is there, then that is all
    done = shell("-A", shop.project.name, "inspect", "ping", "-d", name.partition("@")[0], "-t", "1", "-j", code=69)
    assert json.loads(done.stdout) == {}
    assert done.stderr.startswith("Error: No nodes replied within time constraint")
    assert f"did you mean '{name}'" in done.stderr


def test_quiet_leaves_out_what_was_not_asked_for(shop: Workshop, shell: Shell, name: str) -> None:
    assert shell("-q", "-A", shop.project.name, "status", *only(name)).stdout == f"{name}: OK\n"
    assert json.loads(shell("-A", shop.project.name, "status", "--json", *only(name)).stdout) == {name: {"ok": "pong"}}


def test_nobody_is_there(quiet_shop: Workshop) -> None:
    # Given a project without workers / When one is asked for, then scripts are told, and read JSON all the same
    shell = Shell(quiet_shop.directory)
    done = shell("-A", quiet_shop.project.name, "status", "-t", "0.2", "--json", code=69)
    assert json.loads(done.stdout) == {}
    (said,) = done.stderr.splitlines()
    assert said.startswith("Error: No nodes replied within time constraint")
    assert "guest@" in said
    assert "guest:guest" not in said

    # And a revoked task stays so, for workers to come
    done = shell("-A", quiet_shop.project.name, "control", "revoke", str(uuid.uuid4()), "-t", "0.2", code=69)
    assert "RabbitMQ keeps it for workers that start later" in done.stderr


def test_terminating_asks_in_a_terminal(shop: Workshop, name: str) -> None:
    # Given a task that runs
    gate = shop.gate()
    result = shop.tasks.wait.delay(gate.name)
    gate.reached()

    # When somebody begins to terminate it, and thinks better of it, then it runs on
    command = ["-A", shop.project.name, "control", "terminate", "KILL", result.id, *only(name)]
    with Terminal(shop.directory, *command) as terminal:
        terminal.expect(r"Terminate 1 task\? What runs is killed\. \[y/N\]")
        terminal.type("n")
        terminal.expect("Aborted")
        assert terminal.process.wait(20) == 1
    assert not result.ready()

    # When it is meant, then it ends
    with Terminal(shop.directory, *command) as terminal:
        terminal.expect(r"\[y/N\]")
        terminal.type("y")
        terminal.expect(f"terminate: {result.id}")
        assert terminal.process.wait(20) == 0
    eventually(lambda: result.state == "REVOKED", 20)


def test_shutting_down_asks_in_a_terminal_and_not_in_a_script(shop: Workshop, worker: WorkerProcess) -> None:
    # Given two workers more
    one, two = shop.start(), shop.start()
    names = [each.command[each.command.index("-n") + 1] for each in (one, two)]
    command = ["-A", shop.project.name, "control", "shutdown"]

    # When somebody shuts one down in a terminal, then it is named, and ends if that is meant
    with Terminal(shop.directory, *command, *only(names[0])) as terminal:
        terminal.expect(f"Shut down {names[0]}\\? What runs there ends first\\. \\[y/N\\]")
        terminal.type("y")
        terminal.expect(f"{names[0]}: OK")
        assert terminal.process.wait(20) == 0
    assert one.wait() == 0

    # When a script does so with the other, then it just ends
    assert "warm shutdown" in Shell(shop.directory)(*command, *only(names[1])).stdout
    assert two.wait() == 0

    # And the one that was not named goes on
    assert worker.process.poll() is None
