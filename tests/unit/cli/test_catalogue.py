"""The commands that workers know, and what becomes of the arguments that were typed."""

from __future__ import annotations

from typing import Any

import pytest
from celery.worker.control import Panel as CeleryPanel

from amqptasks.cli.catalogue import AMONG_WORKERS, BUILT_IN, Known, find, of_kind
from amqptasks.cli.common import CliError
from amqptasks.worker.control import Panel, controlling, inspecting

OURS = {controlling.__name__, inspecting.__name__}

OWN = Known("warm_up", "control", "Warm up.", "<queue> [N=1]", (("queue", None), ("n", int)), "more")


def of_panel(meta: Any) -> dict[str, Any]:
    return {
        name: (info.type, info.signature or "", [each for each, _type in info.args or ()], info.variadic)
        for name, info in meta.items()
        if name not in AMONG_WORKERS
    }


def test_they_are_those_of_the_workers_of_both_kinds() -> None:
    # Given the commands of a worker, and what each takes
    known = {
        each.name: (each.kind, each.signature, [name for name, _convert in each.parameters], each.rest)
        for each in BUILT_IN.values()
    }

    # Then they are known here, Celery's as ours
    assert known == of_panel(CeleryPanel.meta)
    assert known == of_panel({name: info for name, info in Panel.meta.items() if Panel.data[name].__module__ in OURS})


@pytest.mark.parametrize(
    ("name", "typed", "expected"),
    [
        ("ping", [], {}),
        ("conf", ["true"], {"with_defaults": True}),
        ("conf", ["0"], {"with_defaults": False}),
        ("conf", [], {}),
        ("query_task", ["a", "b"], {"ids": ["a", "b"]}),
        ("registered", [], {"taskinfoitems": []}),
        ("rate_limit", ["shop.add", "10/m"], {"task_name": "shop.add", "rate_limit": "10/m"}),
        ("time_limit", ["shop.add", "1.5"], {"task_name": "shop.add", "soft": 1.5}),
        ("time_limit", ["shop.add", "1", "2"], {"task_name": "shop.add", "soft": 1.0, "hard": 2.0}),
        ("autoscale", ["10", "3"], {"max": 10, "min": 3}),
        ("terminate", ["KILL", "a", "b"], {"signal": "KILL", "task_id": ["a", "b"]}),
        ("add_consumer", ["mail", "news", "topic", "a.#"],
         {"queue": "mail", "exchange": "news", "exchange_type": "topic", "routing_key": "a.#"}),
    ],
)  # fmt: skip
def test_what_is_typed_becomes_arguments(name: str, typed: list[str], expected: dict[str, Any]) -> None:
    assert BUILT_IN[name].arguments(typed) == expected


@pytest.mark.parametrize(
    ("name", "typed", "words"),
    [
        ("ping", ["x"], ["ping takes no arguments, got: 'x'"]),
        ("rate_limit", ["shop.add"], ["takes more", "<task_name> <rate_limit"]),
        ("revoke", [], ["takes more", "[id1"]),
        ("terminate", ["KILL"], ["takes more", "<signal>"]),
        ("query_task", [], ["takes more"]),
        ("pool_grow", ["x"], ["pool_grow", "n", "a whole number", "'x'"]),
        ("pool_grow", ["1", "2"], ["too many", "'2'", "[N=1]"]),
        ("time_limit", ["shop.add", "soon"], ["soft", "a number", "'soon'"]),
        ("conf", ["perhaps"], ["with_defaults", "true or false", "'perhaps'"]),
    ],
)
def test_a_wrong_argument_is_a_mistake_of_usage(name: str, typed: list[str], words: list[str]) -> None:
    with pytest.raises(CliError) as caught:
        BUILT_IN[name].arguments(typed)
    assert caught.value.exit_code == 2
    assert all(word in caught.value.message for word in words), caught.value.message


def test_an_apps_own_command_is_found_beside_the_others() -> None:
    # Given an app with a command of its own, then it is listed, found, and takes its arguments
    assert "warm_up" in [each.name for each in of_kind("control", [OWN])]
    assert "warm_up" not in [each.name for each in of_kind("inspect", [OWN])]
    found = find("control", "warm_up", lambda: [OWN])
    assert found.arguments(["mail", "2", "a"]) == {"queue": "mail", "n": 2, "more": ["a"]}


def test_the_app_is_asked_for_what_is_not_built_in_only() -> None:
    def imports() -> list[Known]:
        raise AssertionError("imported")

    assert find("inspect", "ping", imports).name == "ping"


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("inspect", "pong", ["no inspect command 'pong'", "did you mean 'ping'", "--list"]),
        ("control", "warmup", ["no control command", "did you mean 'warm_up'"]),
        ("control", "ping", ["amqptasks inspect ping"]),
        ("inspect", "warm_up", ["amqptasks control warm_up"]),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(kind: str, name: str, words: list[str]) -> None:
    with pytest.raises(CliError) as caught:
        find(kind, name, lambda: [OWN])
    assert all(word in caught.value.message for word in words), caught.value.message
