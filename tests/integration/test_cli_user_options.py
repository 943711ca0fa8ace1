"""Options that a program adds to the commands, and ``user_preload_options``, as in Celery."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import Shell
from tests.running import Workshop

SOURCE = """
import click, json
from amqptasks import signals

print("imported", file=sys.stderr)
app.user_options["preload"].add(
    click.Option(["--template"], default="default", show_default=True, envvar="SHOP_TEMPLATE", help="Which look.")
)
app.user_options["preload"].add(click.Option(["-Z", "--zealous"], is_flag=True))
app.user_options["worker"].add(click.Option(["--lanes"], type=int, default=1, help="How many lanes."))

@signals.user_preload_options.connect
def preload(sender=None, app=None, options=None, **named):
    note(json.dumps(["preload", sender.__name__, app.main == __name__, options]))

@signals.celeryd_init.connect
def init(options=None, **named):
    note(json.dumps(["worker", options["lanes"]]))

@app.task
def add(x, y):
    return x + y
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    with Workshop(tmp_path_factory.mktemp("options"), broker_url, SOURCE) as shop:
        yield shop


@pytest.fixture
def shop(made: Workshop) -> Workshop:
    (made.directory / "ledger").unlink(missing_ok=True)
    return made


def run(shop: Workshop, *arguments: str, code: int = 0, env: dict[str, str] | None = None) -> tuple[str, str]:
    shell = Shell(shop.directory)
    done = shell("-A", shop.project.name, *arguments, code=code, env=env)
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "env", "options"),
    [
        ((), {}, {"template": "default", "zealous": False}),
        (("--template", "dark"), {}, {"template": "dark", "zealous": False}),
        (("-Z",), {"SHOP_TEMPLATE": "bright"}, {"template": "bright", "zealous": True}),
        ((), {"SHOP_TEMPLATE": "bright"}, {"template": "bright", "zealous": False}),
    ],
)
def test_every_command_takes_the_options_of_the_app(
    shop: Workshop, arguments: tuple[str, ...], env: dict[str, str], options: dict[str, object]
) -> None:
    # When a command is run with options that the app has added, or without / Then it is told what they are, once
    run(shop, "report", *arguments, env=env)
    assert [json.loads(line) for line in shop.ledger()] == [["preload", "report", True, options]]


def test_a_command_of_a_group_takes_them_too(shop: Workshop) -> None:
    out, _error = run(shop, "queues", "list", "--json", "--template", "dark")
    assert json.loads(out)
    assert json.loads(shop.ledger()[0])[3]["template"] == "dark"


def test_the_worker_has_options_of_its_own(shop: Workshop) -> None:
    # Given a worker with an option for all commands and one for it alone
    worker = shop.start("-P", "solo", "--lanes", "3", "--template", "dark")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    # Then who listens was told of both, before the worker began
    assert [json.loads(line) for line in shop.ledger()] == [
        ["preload", "worker", True, {"template": "dark", "zealous": False}], ["worker", 3],
    ]  # fmt: skip


def test_the_help_names_them(shop: Workshop) -> None:
    out, _error = run(shop, "worker", "--help")
    assert "--lanes" in out and "How many lanes." in out and "--template" in out and "[default: default]" in out
    assert "--lanes" not in run(shop, "report", "--help")[0]
    # And help does not need an app that can be imported
    assert "--http" in Shell(shop.directory)("-A", "no.such.module", "worker", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("report", "--lanes", "3"), "Error: no option '--lanes'; see: amqptasks report --help\n"),
        (("report", "--templat", "x"), "Error: no option '--templat' (did you mean '--template'?); "),
        (("worker", "--lanes", "many"), "Error: --lanes: expected a number, got: 'many'; "),
    ],
)
def test_a_wrong_option_is_said_on_one_line(shop: Workshop, arguments: tuple[str, ...], message: str) -> None:
    _out, error = run(shop, *arguments, code=2)
    assert error.removeprefix("imported\n").startswith(message) and error.count("\n") == 2, error


def test_an_app_without_options_is_not_imported_before_its_time(tmp_path: Path) -> None:
    # A command line that everybody knows leaves the app alone until the command wants it.
    shell = Shell(tmp_path)
    shell.write("proj.py", "print('imported')\nfrom amqptasks import App\napp = App('proj')\n")
    assert shell("-A", "proj", "completion", "bash").stdout.count("imported") == 0
    assert "no option '--mine'" in shell("-A", "proj", "completion", "--mine", code=2).stderr


def test_what_is_no_option_is_named(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    shell.write("proj.py", "from amqptasks import App\napp = App('proj')\napp.user_options['preload'].add('--mine')\n")
    error = shell("-A", "proj", "report", "--mine", code=2).stderr
    assert error.startswith("Error: expected app.user_options['preload'] to hold options of click, such as ")
