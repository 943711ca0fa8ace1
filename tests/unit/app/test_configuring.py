"""Where an app's settings come from, when they are read, and what is said of a source with a mistake in it."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from amqptasks.app.app import App
from amqptasks.app.configuring import CONFIG_MODULE_VARIABLE
from amqptasks.exceptions import ImproperlyConfigured, InvalidSetting

ROOT = Path(__file__).resolve().parents[3]
VARIABLE = "SHOP_SETTINGS"

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a settings module of this source, and return its name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[str] = []

    def write(source: str) -> str:
        name = f"settings_{uuid.uuid4().hex[:8]}"
        (tmp_path / f"{name}.py").write_text(source)
        made.append(name)
        return name

    yield write
    for name in made:
        sys.modules.pop(name, None)


@pytest.fixture
def app() -> App:
    return App("shop", set_as_current=False)


# ---- The module that a variable names


@pytest.mark.parametrize("force", [False, True])
def test_a_variable_names_the_settings_module(
    app: App, write: Write, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    # Given a variable with the name of a module
    name = write("task_default_queue = 'shop'")
    monkeypatch.setenv(VARIABLE, name)

    # When the app is told of the variable
    assert app.config_from_envvar(VARIABLE, force=force) is True

    # Then the module is read now where that is asked for, or with the first look at the settings
    assert (name in sys.modules) is force
    assert app.conf.task_default_queue == "shop"
    assert app.conf.source_of("task_default_queue") == f"module {name}"


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_variable_that_is_not_set_is_an_error_unless_silent(
    app: App, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    # Given no such variable, or an empty one / When the app is told of it
    monkeypatch.delenv(VARIABLE, raising=False) if value is None else monkeypatch.setenv(VARIABLE, value)

    # Then it is an error that names it, or nothing at all where the app should be silent
    with pytest.raises(ImproperlyConfigured, match=f"{VARIABLE} is not set"):
        app.config_from_envvar(VARIABLE)
    assert app.config_from_envvar(VARIABLE, silent=True) is False
    assert app.conf.changed() == {}


def test_a_variable_that_names_no_module_is_an_error_unless_silent(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a variable whose module is not there / When it is read
    monkeypatch.setenv(VARIABLE, "no_such_settings")

    # Then the error names the variable and the module
    with pytest.raises(ImproperlyConfigured, match=f"'no_such_settings', named by the environment variable {VARIABLE}"):
        app.config_from_envvar(VARIABLE, force=True)

    # And silently it is as if there were none
    app.config_from_envvar(VARIABLE, silent=True, force=True)
    assert app.conf.changed() == {}


def test_an_app_that_was_told_of_no_module_asks_the_environment(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given the variable that names the module of apps without one
    monkeypatch.setenv(CONFIG_MODULE_VARIABLE, write("task_default_queue = 'shop'\ntimezone = 'UTC'"))

    # When an app has no module / Then it takes that one
    assert App(set_as_current=False, task_default_queue="own").conf.timezone == "UTC"

    # And an app that has a module of its own does not
    told = App(set_as_current=False)
    told.config_from_object({"task_default_queue": "told"})
    assert told.conf.timezone is None

    # And a name that leads nowhere is an error that says who gave it
    monkeypatch.setenv(CONFIG_MODULE_VARIABLE, "no_such_settings")
    with pytest.raises(ImproperlyConfigured, match=f"'no_such_settings', named by .* {CONFIG_MODULE_VARIABLE}"):
        _ = App(set_as_current=False).conf


def test_a_module_named_celeryconfig_is_not_picked_up_by_an_app_of_ones_own(tmp_path: Path) -> None:
    # Given a directory with a celeryconfig.py, in which an app is made that was told of no module
    (tmp_path / "celeryconfig.py").write_text("task_default_queue = 'found'")
    source = "from amqptasks import App; app = App(); print(app.conf.task_default_queue)"

    # When its settings are read / Then the module is not: as with Celery, only the command without -A looks for it
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "celery\n", "")


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AMQPTASKS_")}
    return kept | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"} | more


# ---- Objects


def test_a_silent_object_is_read_at_first_use_too(app: App, write: Write) -> None:
    # Given a module that need not be there / When the app is told of it / Then nothing is read before the first look
    name = write("task_default_queue = 'shop'")
    app.config_from_object(name, silent=True)
    assert name not in sys.modules
    assert app.conf.task_default_queue == "shop"


def test_a_module_that_is_not_there_is_an_error_at_first_use(app: App) -> None:
    app.config_from_object("no_such_settings")
    with pytest.raises(ImproperlyConfigured, match="no configuration module 'no_such_settings'"):
        _ = app.conf
    app.config_from_object("no_such_settings", silent=True)
    assert app.conf.changed() == {}


def test_an_object_given_late_replaces_the_first(app: App) -> None:
    # Given an app whose settings have been read / When it is told of another object / Then that one counts at once
    app.config_from_object({"task_default_queue": "first", "timezone": "UTC"})
    assert app.conf.task_default_queue == "first"
    app.config_from_object({"SHOP_TASK_DEFAULT_QUEUE": "second"}, namespace="SHOP")
    assert (app.conf.task_default_queue, app.conf.timezone) == ("second", None)


# ---- Defaults


def test_suggested_defaults_give_way_to_every_other_source(app: App) -> None:
    # Given defaults that libraries suggest, one as a function
    called: list[str] = []

    def suggest() -> dict[str, Any]:
        called.append("called")
        return {"task_default_queue": "second", "task_serializer": "msgpack"}

    app.add_defaults({"task_default_queue": "first", "timezone": "UTC"})
    app.add_defaults(suggest)
    app.config_from_object({"task_serializer": "json"})
    assert called == []

    # When the settings are read / Then the function is called, the last default counts, and the module wins over all
    conf = app.conf
    assert called == ["called"]
    assert (conf.task_default_queue, conf.timezone, conf.task_serializer) == ("second", "UTC", "json")
    assert conf.source_of("task_default_queue") == "the app's defaults"

    # And defaults that come later count at once
    app.add_defaults(lambda: {"task_default_queue": "third"})
    app.add_defaults({"timezone": "Europe/Oslo"})
    assert (conf.task_default_queue, conf.timezone) == ("third", "Europe/Oslo")


# ---- Arguments


def test_arguments_are_settings_above_all_others(app: App) -> None:
    # Given arguments in each spelling of Celery's / When the app takes them
    app.conf.worker_prefetch_multiplier = 2
    app.config_from_cmdline(
        ["worker.prefetch_multiplier=7", "broker_heartbeat=3", ".pool=solo", "_concurrency=2", "Task.Acks_Late=yes"]
    )

    # Then they are settings of their kinds, and win
    conf = app.conf
    assert (conf.worker_prefetch_multiplier, conf.broker_heartbeat, conf.worker_pool) == (7, 3, "solo")
    assert (conf.worker_concurrency, conf.task_acks_late) == (2, True)
    assert conf.source_of("worker_pool") == "the command line"
    app.config_from_cmdline([".default_queue=mail"], namespace="task")
    assert conf.task_default_queue == "mail"


@pytest.mark.parametrize("argument", ["word", "=1", "a b=1", "1=1", ""])
def test_an_argument_that_is_no_assignment_is_shown(app: App, argument: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="expected SETTING=VALUE, got: "):
        app.config_from_cmdline([argument])


# ---- Mistakes


def from_code(app: App, name: str, value: Any, _write: Write) -> None:
    app.conf.update({name: value})


def from_the_app(_app: App, name: str, value: Any, _write: Write) -> None:
    _ = App(set_as_current=False, **{name: value}).conf


def from_defaults(app: App, name: str, value: Any, _write: Write) -> None:
    app.add_defaults({name: value})
    _ = app.conf


def from_a_module(app: App, name: str, value: Any, write: Write) -> None:
    app.config_from_object(write(f"{name} = {value!r}"))
    _ = app.conf


def from_a_class(app: App, name: str, value: Any, _write: Write) -> None:
    app.config_from_object(type("Config", (), {name: value}), force=True)


def from_a_mapping(app: App, name: str, value: Any, _write: Write) -> None:
    app.config_from_object({name: value}, force=True)


def from_a_namespace(app: App, name: str, value: Any, write: Write) -> None:
    app.config_from_object(write(f"SHOP_{name.upper()} = {value!r}"), namespace="SHOP", force=True)


def from_a_variable(app: App, name: str, value: Any, write: Write) -> None:
    os.environ[VARIABLE] = write(f"{name} = {value!r}")
    app.config_from_envvar(VARIABLE, force=True)


def from_the_environment(app: App, name: str, value: Any, _write: Write) -> None:
    os.environ[f"AMQPTASKS_{name.upper()}"] = str(value)
    _ = app.conf


def from_arguments(app: App, name: str, value: Any, _write: Write) -> None:
    app.config_from_cmdline([f"{name}={value}"])


SOURCES = {
    from_code: "the code",
    from_the_app: "the code",
    from_defaults: "the app's defaults",
    from_a_module: "module settings_",
    from_a_class: "class ",
    from_a_mapping: "a mapping",
    from_a_namespace: "module settings_",
    from_a_variable: "module settings_",
    from_the_environment: "the environment variable AMQPTASKS_TASK_",
    from_arguments: "the command line",
}


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("task_serialiser", "json", ["unknown setting 'task_serialiser'", "did you mean 'task_serializer'?"]),
        ("task_acks_late", "perhaps", ["expected task_acks_late to be True or False", "got: 'perhaps'"]),
    ],
    ids=["unknown", "ill-typed"],
)
def test_a_mistake_is_refused_by_name_with_its_source(
    app: App, write: Write, monkeypatch: pytest.MonkeyPatch, source: Any, name: str, value: str, said: list[str]
) -> None:
    # Given a source with a misspelt setting, or a value of the wrong kind / When it is read
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(InvalidSetting) as caught:
        source(app, name, value, write)

    # Then the error names the setting, what was meant or expected, and where it came from
    message = str(caught.value)
    assert [part for part in said if part not in message] == []
    assert f"from {SOURCES[source]}" in message


def test_utc_needs_no_database_of_zones() -> None:
    # Given a machine without time zones, as slim containers are / When an app is in UTC
    code = (
        "import sys; sys.modules['tzdata'] = None; from amqptasks import App; app = App('proj', timezone='UTC')\n"
        "print(app.timezone, app.now().tzinfo)"
    )
    environment = os.environ | {"PYTHONTZPATH": ""}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=30)
    # Then it knows what time it is
    assert (done.stdout, done.stderr) == ("UTC UTC\n", "")


def test_an_app_knows_the_time_in_its_zone(app: App) -> None:
    assert app.now().tzinfo is timezone.utc
    app.conf.timezone = "Europe/Oslo"
    before = datetime.now(timezone.utc)
    now = app.now()
    assert str(now.tzinfo) == "Europe/Oslo" and before <= now <= datetime.now(timezone.utc)
