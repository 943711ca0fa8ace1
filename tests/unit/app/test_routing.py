"""Where calls go: the caller's own options, then task_routes, then the task, then the default queue."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from amqptasks.app.routing import Route, Routing
from amqptasks.entities import Exchange, Queue, binding
from amqptasks.exceptions import ImproperlyConfigured, QueueNotFound
from amqptasks.settings import Conf


def routing(**settings: Any) -> Routing:
    conf = Conf()
    conf.update(settings)
    return Routing(conf)


def route(settings: dict[str, Any] | None = None, name: str = "proj.add", task: Any = None, **options: Any) -> Route:
    return routing(**(settings or {})).route(name, (), {}, options, task)


def address(found: Route) -> tuple[str, str, list[str]]:
    return found.exchange, found.routing_key, [queue.name for queue in found.queues]


# ---- Where nothing is said


def test_without_any_settings_everything_goes_to_the_queue_celery() -> None:
    # A direct queue is reached by its name through AMQP's default exchange.
    assert address(route()) == ("", "celery", ["celery"])
    assert route().queue_name == "celery"


def test_the_default_queue_can_have_another_name() -> None:
    settings = {"task_default_queue": "work"}
    assert address(route(settings)) == ("", "work", ["work"])
    assert [*routing(**settings).queues] == ["work"]


def test_a_default_exchange_of_another_type_gets_the_key() -> None:
    settings = {
        "task_default_exchange": "events", "task_default_exchange_type": "topic", "task_default_routing_key": "a.b",
    }  # fmt: skip
    found = route(settings)
    assert address(found) == ("events", "a.b", ["celery"])
    assert found.exchange_type == "topic"
    assert found.queue_name == "celery"


# ---- What the caller says


def test_the_callers_queue_wins_over_routes_and_task() -> None:
    settings = {"task_routes": {"proj.add": {"queue": "routed"}}}
    task = SimpleNamespace(queue="of-task")
    assert route(settings, task=task, queue="mine").queue_name == "mine"
    assert route(settings, task=task).queue_name == "routed"
    assert route({}, task=task).queue_name == "of-task"


def test_a_queue_may_be_an_object_a_name_or_an_alias() -> None:
    declared = Queue("long", Exchange("media", "topic"), "media.#", alias="short")
    settings = {"task_queues": [declared]}
    for given in (declared, "long", "short"):
        assert address(route(settings, queue=given)) == ("media", "media.#", ["long"])
    other = Queue("other")
    assert address(route(settings, queue=other)) == ("", "other", ["other"])


def test_an_exchange_without_a_queue_needs_the_queues_bound_to_it() -> None:
    # Given queues, two of them bound to one exchange
    media = Exchange("media", "topic")
    settings = {
        "task_queues": [
            Queue("one", media, "media.one"),
            Queue("two", bindings=[binding(media, "media.*"), binding("other", "x")]),
            Queue("three"),
        ]
    }
    # When a call names the exchange / Then those two are declared first, and the key is the caller's
    found = route(settings, exchange="media", routing_key="media.one")
    assert address(found) == ("media", "media.one", ["one", "two"])
    assert found.exchange_type == "topic"
    # And no single queue can be waited for
    assert found.queue_name is None
    # And an exchange that is nowhere declared is the caller's own business
    assert address(route(settings, exchange="unknown", routing_key="x")) == ("unknown", "x", [])
    assert address(route(settings, exchange=media, routing_key="x")) == ("media", "x", ["one", "two"])


def test_a_queue_and_a_key_together_go_through_the_queues_exchange() -> None:
    settings = {"task_queues": [Queue("one", Exchange("media", "topic"), "media.#")]}
    assert address(route(settings, queue="one", routing_key="media.video")) == ("media", "media.video", ["one"])
    assert address(route(settings, queue="one", exchange="other", routing_key="k")) == ("other", "k", ["one"])


def test_queues_that_are_not_declared_are_made_or_refused() -> None:
    assert route({}, queue="new").queues == (Queue("new"),)
    settings = {"task_create_missing_queues": False, "task_queues": [Queue("orders")]}
    with pytest.raises(QueueNotFound, match=r"queue 'order' is not in task_queues.*did you mean 'orders'"):
        route(settings, queue="order")


# ---- task_routes in all its forms


def by_function(name: str, args: Any, kwargs: Any, options: Any, task: Any = None) -> Any:
    return {"queue": "by-function", "priority": 3} if name.startswith("proj.") else None


class OldRouter:
    """As routers were once written."""

    def route_for_task(self, task: str, args: Any = None, kwargs: Any = None) -> Any:
        return "by-old-router" if task == "proj.add" else None


@pytest.mark.parametrize(
    ("routes", "queue"),
    [
        ({"proj.add": "exact"}, "exact"),
        ({"proj.add": {"queue": "exact"}}, "exact"),
        ({"proj.*": "glob"}, "glob"),
        ({"proj.???": "glob"}, "glob"),
        ({"*.[a-c]dd": "glob"}, "glob"),
        ({re.compile(r"proj\.(add|mul)$"): "regex"}, "regex"),
        ([("proj.add", "pair")], "pair"),
        ([("other", "no"), ("proj.*", "pairs")], "pairs"),
        (by_function, "by-function"),
        ([by_function], "by-function"),
        (OldRouter(), "by-old-router"),
        (f"{__name__}.by_function", "by-function"),
        ([{"other": "no"}, f"{__name__}.OldRouter"], "by-old-router"),
        (OldRouter, "by-old-router"),
        ([{"other": "no"}, OldRouter(), by_function], "by-old-router"),
        ({"proj.add": "exact", "proj.*": "glob"}, "exact"),
        ({"proj.*": "first", "*": "second"}, "first"),
        ({"*": {"queue": Queue("object")}}, "object"),
        ({"other.*": "no"}, "celery"),
        ({}, "celery"),
        (None, "celery"),
    ],
)
def test_routes_may_be_given_in_every_form(routes: Any, queue: str) -> None:
    assert route({"task_routes": routes}).queue_name == queue


def test_a_route_adds_options_and_an_exchange() -> None:
    settings = {"task_routes": {"proj.add": {"exchange": "media", "routing_key": "a.b", "priority": 7}}}
    found = route(settings)
    assert address(found) == ("media", "a.b", [])
    assert found.options == {"priority": 7}
    # What the caller says about the address does not undo the rest
    assert route({"task_routes": by_function}).options == {"priority": 3}


def test_a_route_without_an_address_leaves_the_tasks_own_but_for_what_it_says() -> None:
    # Given a task with a queue and a key / When its route says another key, and no queue
    task = SimpleNamespace(queue="own", routing_key="of.task")
    settings = {
        "task_queues": [Queue("own", Exchange("media", "topic"), "#")],
        "task_routes": {"proj.add": {"routing_key": "of.route", "priority": 1}},
    }
    # Then the queue is the task's and the key is the route's
    assert address(route(settings, task=task)) == ("media", "of.route", ["own"])
    assert address(route(settings, "proj.mul", task)) == ("media", "of.task", ["own"])
    assert address(route(settings, task=task, routing_key="of.caller")) == ("media", "of.caller", ["own"])


def test_only_plain_tables_can_be_remembered() -> None:
    # A function may answer otherwise each time: its routes are asked for at every call.
    assert routing(task_routes={"a": "b", "c.*": "d"}).is_static
    assert routing().is_static
    assert not routing(task_routes=[{"a": "b"}, by_function]).is_static


def test_a_router_gets_the_call_and_its_options() -> None:
    seen: list[Any] = []

    def router(name: str, args: Any, kwargs: Any, options: Any, task: Any = None) -> Any:
        seen.append((name, args, kwargs, dict(options), task))

    task = SimpleNamespace(queue=None)
    routing(task_routes=[router]).route("proj.add", (1,), {"b": 2}, {"priority": 1}, task)
    assert seen == [("proj.add", (1,), {"b": 2}, {"priority": 1}, task)]


@pytest.mark.parametrize("wrong", [5, [5], [object()], {"proj.add": 5}])
def test_what_is_no_route_is_refused(wrong: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="task_routes"):
        route({"task_routes": wrong})


@pytest.mark.parametrize("wrong", ["no.such.module", f"{__name__}.nothing", "plain"])
def test_a_router_that_cannot_be_imported_is_named(wrong: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=f"{wrong}'.*task_routes|task_routes.*'{wrong}'"):
        route({"task_routes": wrong})


def test_a_router_that_answers_nonsense_is_named() -> None:
    with pytest.raises(ImproperlyConfigured, match="a router to return a queue name or a dict, got: 5"):
        route({"task_routes": [lambda *args, **kwargs: 5]})
