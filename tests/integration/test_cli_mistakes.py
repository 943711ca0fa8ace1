"""Mistakes at the command line: each is told on one line, names what is wrong, and ends with the documented code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.command import Shell

SHOP = """
from amqptasks import App

app = App("shop", broker="amqp://guest:s3cret@127.0.0.1:1//", broker_publish_timeout=1, task_default_queue="mail")

@app.task(name="shop.add")
def add(x, y):
    return x + y
"""
BROKEN = {
    "syntax.py": "x = (",
    "zero.py": "1 / 0",
    "gone.py": "import no_such_thing_here",
    "leaves.py": "raise SystemExit(0)",
    "number.py": "app = 7",
    "wrong_setting.py": "from amqptasks import App\napp = App('x', task_acks_lat=True)",
    "two_tasks.py": """
        from amqptasks import App
        app = App("x")
        @app.task(name="same")
        def one(): ...
        @app.task(name="same")
        def two(): ...
    """,
    "includes.py": "from amqptasks import App\napp = App('x', broker='amqp://127.0.0.1:1', include=['zero'])",
    "imports.py": "from amqptasks import App\napp = App('x', broker='amqp://127.0.0.1:1', imports=['nowhere_at_all'])",
    "configured.py": "from amqptasks import App\napp = App('x')\napp.config_from_object('zero')",
    "bad_names.py": "task_serialiser = 'json'",
}

#: command line, exit code, words of the answer
MISTAKES: list[tuple[str, int, list[str]]] = [
    # Commands and options
    ("wroker", 2, ["no command 'wroker'", "did you mean 'worker'", "amqptasks --help"]),
    ("queues lst", 2, ["no command 'lst'", "did you mean 'list'", "amqptasks queues --help"]),
    ("--ap shop worker", 2, ["no option '--ap'", "did you mean '--app'"]),
    ("-A shop worker --quues mail", 2, ["no option '--quues'", "did you mean '--queues'", "amqptasks worker --help"]),
    ("-A shop worker -Z", 2, ["no option '-Z'"]),
    ("worker -A shop", 2, ["-A belongs before the command: amqptasks -A proj worker"]),
    ("queues list --workdir x", 2, ["--workdir belongs before the command: amqptasks --workdir … queues list"]),
    ("worker --no-color", 2, ["amqptasks --no-color worker"]),
    ("-A", 2, ["'-A' requires an argument"]),
    ("-A shop call", 2, ["missing NAME", "amqptasks call --help"]),
    ("-A shop queues delete", 2, ["missing NAMES"]),
    ("-A shop result", 2, ["missing ID"]),
    ("-A shop queues list extra", 2, ["extra"]),
    ("--workdir nowhere worker", 2, ["'nowhere'", "No such file"]),
    # Finding the app, and what is wrong in it
    ("worker", 2, ["which app?", "amqptasks -A proj"]),
    ("-A shoop worker", 2, ["no module named 'shoop'", "did you mean 'shop'"]),
    ("-A shop:ap worker", 2, ["no attribute 'ap'", "did you mean 'app'"]),
    ("-A shop.py worker", 2, ["-A shop"]),
    ("-A syntax worker", 2, ["SyntaxError", "syntax.py"]),
    ("-A zero worker", 2, ["ZeroDivisionError", "zero.py:1"]),
    ("-A gone worker", 2, ["no_such_thing_here", "gone.py:1"]),
    ("-A leaves worker", 2, ["'leaves'", "SystemExit", "leaves.py:1"]),
    ("-A number worker", 2, ["'number'", "holds no app"]),
    ("-A wrong_setting worker", 2, ["'task_acks_lat'", "did you mean 'task_acks_late'"]),
    ("-A two_tasks worker", 2, ["'same'", "two functions"]),
    ("-A includes worker", 1, ["ZeroDivisionError", "zero.py:1", "--traceback"]),
    ("-A includes call x", 1, ["ZeroDivisionError", "zero.py:1"]),
    ("-A imports worker", 2, ["nowhere_at_all"]),
    ("-A configured report", 1, ["ZeroDivisionError", "zero.py:1"]),
    ("--config bad_names queues list", 2, ["'task_serialiser'", "did you mean 'task_serializer'", "module bad_names"]),
    ("--config nothing queues list", 2, ["no configuration module 'nothing', named by --config"]),
    ("--config zero queues list", 1, ["ZeroDivisionError", "zero.py:1"]),
    # Values
    ("-A shop worker -l inf", 2, ["-l/--loglevel", "did you mean 'INFO'"]),
    ("-A shop worker -c many", 2, ["worker_concurrency", "'many'", "command line"]),
    ("-A shop worker --prefetch-multiplier x", 2, ["worker_prefetch_multiplier"]),
    ("-A shop worker -P treads", 2, ["'treads'", "threads"]),
    ("-A shop worker -O quick", 2, ["-O/--optimization", "'default', 'fair'"]),
    ("-A shop worker -Q ,", 2, ["-Q/--queues", "separated by commas"]),
    ("-A shop worker -X mial", 2, ["no queue 'mial'", "did you mean 'mail'"]),
    ("-A shop worker -X mail", 2, ["-X leaves no queue"]),
    ("-A shop worker -I nowhere_at_all", 2, ["nowhere_at_all"]),
    ("-A shop worker -- task_acks_lat=1", 2, ["did you mean 'task_acks_late'", "command line"]),
    ("-A shop worker -- task.acks_lat=1", 2, ["did you mean 'task_acks_late'", "command line"]),
    ("-A shop worker -- .concurrency=many", 2, ["worker_concurrency", "'many'", "command line"]),
    ("-A shop worker -- word", 2, ["SETTING=VALUE", "'word'"]),
    ("-A shop worker -f /nowhere/log", 2, ["'/nowhere/log'", "No such file"]),
    ("-A shop worker -f .", 2, ["'.'", "directory"]),
    ("-A shop worker --pidfile /nowhere/pid", 2, ["'/nowhere/pid'", "No such file"]),
    ("-A shop worker --umask 9", 2, ["--umask", "octal", "'9'"]),
    ("-A shop worker --uid no-such-user", 2, ["--uid", "'no-such-user'"]),
    ("-A shop worker --gid no-such-group", 2, ["--gid", "'no-such-group'"]),
    ("-A shop worker --executable no-such-python", 2, ["--executable", "'no-such-python'"]),
    ("-A shop worker -D -l inf", 2, ["'INFO'"]),
    ("-A shop worker -D -c many", 2, ["worker_concurrency"]),
    ("-A zero worker -D", 2, ["ZeroDivisionError", "zero.py:1"]),
    ("-A shop call shop.add -a [1", 2, ["-a/--args", "expected JSON"]),
    ("-A shop call shop.add -k []", 2, ["-k/--kwargs", "JSON object"]),
    ("-A shop call shop.add --eta soon", 2, ["--eta", "ISO 8601"]),
    ("-A shop call shop.add --countdown soon", 2, ["--countdown: expected a number, got: 'soon'"]),
    ("-A shop call shop.add --priority 256", 2, ["--priority", "255"]),
    ("-A shop call shop.add --serializer jsn", 2, ["'jsn'", "json"]),
    ("-A shop result x -t shop.ad", 2, ["no task 'shop.ad'", "did you mean 'shop.add'"]),
    ("-A shop result x", 2, ["No result backend"]),
    ("-A shop result x --timeout never", 2, ["--timeout: expected a number"]),
    ("-A shop --result-backend rcp:// result x", 2, ["rcp"]),
    ("-A shop shell --ipython --python", 2, ["one of --ipython and --python"]),
    ("-A shop shell --bpython", 2, ["needs a terminal"]),
    ("-A shop queues declare mial", 2, ["no queue 'mial'", "did you mean 'mail'"]),
    ("inspect", 2, ["which command?", "--list"]),
    ("inspect pong", 2, ["no inspect command 'pong'", "did you mean 'ping'", "--list"]),
    ("inspect rate_limit", 2, ["amqptasks control rate_limit"]),
    ("inspect query_task", 2, ["takes more", "[id1"]),
    ("inspect ping now", 2, ["'now'", "no arguments"]),
    ("inspect ping -t 0", 2, ["-t/--timeout", "0"]),
    ("inspect ping -d ,", 2, ["-d/--destination", "separated by commas"]),
    ("status now", 2, ["now"]),
    ("status -t soon", 2, ["-t/--timeout: expected a number, got: 'soon'"]),
    ("control pool_gorw", 2, ["did you mean 'pool_grow'"]),
    ("control pool_grow many", 2, ["expected a whole number, got: 'many'"]),
    ("control rate_limit shop.add", 2, ["takes more", "<task_name> <rate_limit"]),
    ("control revoke_by_stamped_headers tenant", 2, ["key=value", "'tenant'"]),
    ("completion tcsh", 2, ["'tcsh'", "bash, fish, zsh"]),
    ("completion bsh", 2, ["did you mean 'bash'"]),
    # The broker
    ("-b http://x queues list", 2, ["begins with amqp"]),
    ("-A shop queues list", 69, ["no broker could be reached", "guest@127.0.0.1:1"]),
    ("-A shop queues show mail", 69, ["no broker could be reached"]),
    ("-A shop purge -f", 69, ["no broker could be reached"]),
    ("-A shop worker --purge", 69, ["no broker could be reached"]),
    ("-A shop worker -D --purge", 69, ["no broker could be reached"]),
    ("-A shop call shop.add", 69, ["guest@127.0.0.1:1"]),
    ("-A shop status", 69, ["no broker could be reached", "guest@127.0.0.1:1"]),
    ("-A shop inspect active --json", 69, ["no broker could be reached"]),
    ("-A shop control heartbeat", 69, ["no broker could be reached"]),
    ("-A shop control revoke x", 69, ["guest@127.0.0.1:1"]),
    ("-A shop control shutdown", 69, ["no broker could be reached"]),
]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    made = Shell(tmp_path_factory.mktemp("mistakes"))
    made.write("shop.py", SHOP)
    for name, source in BROKEN.items():
        made.write(name, source)
    return made


@pytest.mark.parametrize(("line", "code", "words"), MISTAKES, ids=[line for line, _code, _words in MISTAKES])
def test_a_mistake_is_told_on_one_line(shell: Shell, line: str, code: int, words: list[str]) -> None:
    done = shell(*line.split(), code=code)
    (said,) = done.stderr.splitlines()
    assert said.startswith("Error: ")
    for each in words:
        assert each in said
    assert "s3cret" not in said
    assert not done.stdout


def test_a_mistake_in_the_environment_names_the_variable(shell: Shell) -> None:
    for variable, value in (
        ("AMQPTASKS_WORKER_LOGLEVEL", "inf"), ("AMQPTASKS_WORKER_CONCURRENCY", "many"),
        ("AMQPTASKS_TASK_ACKS_LATE", "perhaps"), ("AMQPTASKS_TASK_ACKS_LAT", "yes"),
    ):  # fmt: skip
        (said,) = shell("-A", "shop", "worker", code=2, env={variable: value}).stderr.splitlines()
        assert variable in said


def test_a_traceback_is_shown_to_who_asks_for_it(shell: Shell) -> None:
    for arguments, env in ((["--traceback"], {}), ([], {"AMQPTASKS_TRACEBACK": "1"})):
        done = shell(*arguments, "-A", "zero", "worker", code=2, env=env, traceback=True)
        assert "zero.py" in done.stderr
        assert done.stderr.splitlines()[-1].startswith("Error: ")


def test_a_warning_is_one_line_too(shell: Shell) -> None:
    shell.write("warns.py", "from amqptasks import App\nimport warnings\nwarnings.warn('mind it')\napp = App('w')")
    done = shell("-A", "warns", "report", env={"AMQPTASKS_BROKER_URL": "amqp://127.0.0.1:1"})
    assert done.stderr == "Warning: mind it\n"


def test_colours_are_for_terminals_and_can_be_refused(shell: Shell) -> None:
    from tests.command import Terminal

    red = "\x1b[31mError"
    for arguments, env, is_colored in (
        ([], {}, True), (["--no-color"], {}, False), (["-C"], {}, False), ([], {"NO_COLOR": "1"}, False),
        ([], {"AMQPTASKS_NO_COLOR": "1"}, False),
    ):  # fmt: skip
        with Terminal(shell.directory, *arguments, "-A", "nowhere", "worker", env={"NO_COLOR": ""} | env) as terminal:
            said = terminal.expect(r"[^\n]*no module named[^\n]*\n")[0]
            assert (red in said) is is_colored, (arguments, env, said)
            assert terminal.process.wait(20) == 2
    # And never where nobody sees them
    assert "\x1b" not in shell("-A", "nowhere", "worker", code=2, env={"NO_COLOR": ""}).stderr


def test_a_reader_that_has_seen_enough_is_no_error(shell: Shell, tmp_path: Path) -> None:
    import subprocess
    import sys

    from tests.command import environment

    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [sys.executable, "-m", "amqptasks", "-A", "shop", "report"], cwd=shell.directory, env=environment(),
        stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=50,
    )  # fmt: skip
    os.close(theirs)
    assert done.stderr == ""
