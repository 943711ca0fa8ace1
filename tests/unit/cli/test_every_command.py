"""What holds for every command: help without app and broker, JSON where something is read, mistakes on one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from amqptasks.cli.main import cli, run
from tests.command import environment
from tests.unit.cli.test_commands import every

LEAVES = {" ".join(path): (path, command) for path, command in every() if not isinstance(command, click.Group)}
GROUPS = {" ".join(path): path for path, command in every() if isinstance(command, click.Group)}

#: Commands that change something, or run until they are ended. All others read, and print JSON if they are asked to.
#: Whoever adds a command says here which it is.
NO_READS = {
    "amqp basic.ack", "amqp basic.publish", "amqp exchange.declare", "amqp exchange.delete", "amqp publish",
    "amqp queue.bind", "amqp queue.delete", "amqp queue.purge", "amqp queue.unbind", "amqp repl", "beat", "call",
    "completion", "events", "multi help", "multi kill", "multi restart", "multi start", "multi stop", "multi stopwait",
    "purge", "queues declare", "queues delete", "schedule add", "schedule pause", "schedule remove", "schedule resume",
    "schedule run", "shell", "upgrade project", "upgrade settings", "worker",
}  # fmt: skip

#: What each command needs to go to its broker at once.
CALLS = {
    "amqp basic.get": ["q"], "amqp basic.publish": ["m", "", "q"], "amqp exchange.declare": ["x"],
    "amqp exchange.delete": ["x", "-f"], "amqp publish": ["m", "q"], "amqp queue.bind": ["q", "x"],
    "amqp queue.declare": ["q"], "amqp queue.delete": ["q"], "amqp queue.purge": ["q"],
    "amqp queue.unbind": ["q", "x"], "amqp repl": [], "call": ["t"], "control": ["heartbeat"],
    "dead discard": ["--all"], "dead list": [], "dead replay": ["--all"], "dead show": ["id"], "graph workers": [],
    "inspect": ["ping"], "migrate": ["amqp://127.0.0.1:1", "amqp://127.0.0.1:1/x"], "purge": ["-f"],
    "queues declare": [], "queues delete": ["q"], "queues list": [], "queues show": ["q"], "status": [],
}  # fmt: skip
#: Those that do not, or stay and try again, or for which no broker is what they tell of; or that need an app first.
NO_CALLS = {
    "amqp basic.ack", "beat", "completion", "doctor", "events", "graph bootsteps", "health", "list bindings",
    "logtool debug", "logtool errors", "logtool incomplete", "logtool stats", "logtool traces", "multi expand",
    "multi get", "multi help", "multi kill", "multi names", "multi restart", "multi show", "multi start", "multi stop",
    "multi stopwait", "report", "result", "schedule add", "schedule list", "schedule pause", "schedule remove",
    "schedule resume", "schedule run", "schedule show", "shell", "upgrade project", "upgrade settings", "worker",
}  # fmt: skip


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A directory without an app, an environment without settings."""
    for name in [each for each in os.environ if each.startswith(("AMQPTASKS_", "CELERY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)
    yield


@pytest.mark.parametrize("name", [*LEAVES, *GROUPS])
def test_help_needs_neither_app_nor_broker(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["-A", "no_such_module", "-b", "amqp://127.0.0.1:1", *name.split(), "--help"]) == 0
    said = capfd.readouterr()
    assert said.err == "" and said.out.startswith("Usage: amqptasks")


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_and_every_option_has_its_help(name: str) -> None:
    _path, command = LEAVES[name]
    assert command.help and command.get_short_help_str(200)
    options = [each for each in command.params if isinstance(each, click.Option)]
    assert [each.opts for each in options if not each.help] == []
    # In sentences, as all of them are
    assert [each.help for each in options if each.help and not each.help.rstrip().endswith((".", ")"))] == []


@pytest.mark.parametrize("name", LEAVES)
def test_everything_that_is_read_can_be_had_as_json(name: str) -> None:
    has_json = any("--json" in each.opts for each in LEAVES[name][1].params)
    assert has_json or name in NO_READS, f"{name} reads something: give it --json, or name it in NO_READS"


@pytest.mark.parametrize("name", [*LEAVES, *GROUPS])
def test_an_option_that_there_is_not_is_one_line(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    # When an option is misspelt / Then one line says so, and where to look
    assert run([*name.split(), "--no-such-thing"]) == 2
    said = capfd.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("Error: no option '--no-such-thing'") and line.endswith("--help")
    assert said.out == ""


@pytest.mark.parametrize("name", GROUPS)
def test_a_command_that_there_is_not_is_one_line(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*name.split(), "no-such-thing"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("Error: no command 'no-such-thing'")


@pytest.mark.parametrize("name", LEAVES)
def test_a_broker_that_is_away_is_one_line_and_exit_code_69(
    name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name not in CALLS:
        assert name in NO_CALLS, f"say in CALLS what {name} needs to go to its broker, or name it in NO_CALLS"
        return
    # Given nobody at the broker's place
    monkeypatch.setenv("AMQPTASKS_BROKER_PUBLISH_TIMEOUT", "0.3")
    assert run(["-b", "amqp://guest:secret@127.0.0.1:1", *name.split(), *CALLS[name]]) == 69
    said = capfd.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("Error: ") and "127.0.0.1:1" in line
    assert "secret" not in said.err + said.out and "Traceback" not in said.err


@pytest.mark.parametrize("name", LEAVES)
def test_an_app_that_cannot_be_found_is_one_line(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    words = CALLS.get(name)
    if words is None:
        return
    assert run(["-A", "no_such_module", *name.split(), *words]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("Error: no module named 'no_such_module'")


# -- completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(shell: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    assert f"_AMQPTASKS_COMPLETE={shell}_complete" in capfd.readouterr().out


def test_the_script_of_bash_completes_commands(tmp_path: Path) -> None:
    # Given a bash that has read the script
    program = tmp_path / "amqptasks"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m amqptasks "$@"\n')
    program.chmod(0o755)
    script = """
        eval "$(amqptasks completion bash)"
        COMP_WORDS=(amqptasks multi sto); COMP_CWORD=2
        _amqptasks_completion amqptasks
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    # When a command is begun / Then bash knows how it may end
    done = subprocess.run(
        ["bash", "-c", script], env=environment({"PATH": path}), capture_output=True, text=True, timeout=50
    )
    assert done.stdout.split() == ["stop", "stopwait"], done.stderr


def complete(words: list[str], part: str) -> list[str]:
    return [
        each.value for each in ShellComplete(cli, {}, "amqptasks", "_AMQPTASKS_COMPLETE").get_completions(words, part)
    ]


def test_commands_options_and_words_are_completed(tmp_path: Path) -> None:
    assert complete([], "mu") == ["multi"]
    assert complete(["migrate"], "--fo") == ["--forever"]
    assert complete(["amqp", "exchange.declare", "x"], "to") == ["topic"]
    assert complete(["completion"], "z") == ["zsh"]
    # And the names of an app's own queues and tasks
    (tmp_path / "completed_shop.py").write_text(
        "from amqptasks import App, Queue\n"
        "app = App('shop', task_queues=[Queue('mail'), Queue('images')], set_as_current=False)\n"
        "@app.task(name='shop.send')\ndef send(): pass\n"
    )
    assert complete(["-A", "completed_shop", "amqp", "get"], "ma") == ["mail"]
    assert complete(["-A", "completed_shop", "migrate", "-Q"], "im") == ["images"]
    assert complete(["-A", "completed_shop", "migrate", "-T"], "shop.") == ["shop.send"]
    sys.modules.pop("completed_shop", None)


def test_a_variable_stands_for_its_option(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    # Given an option's variable / When a command is run without the option / Then it acts
    monkeypatch.setenv("AMQPTASKS_MULTI_NAMES_JSON", "1")
    assert run(["multi", "names", "a", "-n", "lan"]) == 0
    assert capfd.readouterr().out == '[\n  "a@lan"\n]\n'
