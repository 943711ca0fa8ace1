"""Queues, exchanges and routes as a settings module declares them: where messages go, and who runs them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from amqptasks.app.app import App
from amqptasks.entities import Exchange, Queue
from amqptasks.exceptions import QueueNotFound, TopologyConflict, Unroutable
from tests.running import Workshop
from tests.support import eventually

pytestmark = pytest.mark.broker

#: A settings module as a user writes it. NAME makes its queues this module's own.
SETTINGS = """
import re
from amqptasks import Exchange, Queue, binding

broker_url = {url!r}
result_backend = "rpc://"
imports = ["{name}_mail"]
worker_prefetch_multiplier = 2
task_default_queue = "{name}-default"
task_create_missing_queues = False

media = Exchange("{name}-media", "topic")
news = Exchange("{name}-news", type="fanout")
papers = Exchange("{name}-papers", type="headers")

task_queues = (
    Queue("{name}-default", Exchange("{name}-direct", type="direct"), routing_key="default"),
    Queue("{name}-images", media, routing_key="image.#"),
    Queue("{name}-large", bindings=[binding(media, "*.large"), binding(Exchange("{name}-direct"), "large")]),
    Queue("{name}-readers", news),
    Queue("{name}-archive", news, queue_arguments={{"x-max-length": 2, "x-overflow": "drop-head"}}),
    Queue("{name}-pdf", papers, binding_arguments={{"x-match": "all", "kind": "pdf"}}),
    Queue("{name}-urgent", alias="urgent", max_priority=9, message_ttl=600, expires=3600),
    Queue("{name}-old", queue_arguments={{"x-queue-type": "classic"}}),
)
task_routes = {{
    "shop.by_name": {{"queue": "{name}-old", "priority": 3}},
    "shop.images.*": {{"exchange": "{name}-media", "routing_key": "image.small"}},
    re.compile(r"shop\\.(mail|post)\\..*"): "urgent",
}}
"""

SOURCE = """
    app = App(__name__)
    app.config_from_object("{settings}")

    def told(name):
        @app.task(name=name, bind=True)
        def task(self, *args):
            info = self.request.delivery_info
            note(f"{{name}} {{info['exchange']}} {{info['routing_key']}}")
            return [info["exchange"], info["routing_key"], info["priority"]]
        return task

    by_name, image, plain = told("shop.by_name"), told("shop.images.scale"), told("shop.plain")
"""

MAIL = """
from {project} import told
send = told("shop.mail.send")
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Workshop]:
    """A project with a settings module and a module of its own for mail; no worker yet."""
    directory = tmp_path_factory.mktemp("queues")
    name = f"shop_{uuid.uuid4().hex[:8]}"
    (directory / f"{name}_settings.py").write_text(SETTINGS.format(url=broker_url, name=name))
    (directory / f"{name}_mail.py").write_text(MAIL.format(project=name))
    source = SOURCE.format(settings=f"{name}_settings")
    with Workshop(directory, broker_url, source, queue=f"{name}-default", name=name) as made:
        yield made
        made.also_delete(*made.app.queues)
        for each in ("direct", "media", "news", "papers"):
            made.delete_exchange(f"{name}-{each}")


@pytest.fixture(autouse=True)
def _empty(shop: Workshop) -> None:
    for queue in shop.app.queues:
        if shop.admin.exists(queue):
            shop.admin.purge(queue)


def counts(shop: Workshop) -> dict[str, int]:
    """How many messages wait in each queue that has any, by the last part of its name."""
    found = {queue.rpartition("-")[2]: shop.waiting(queue) for queue in shop.app.queues}
    return {queue: number for queue, number in found.items() if number}


def is_met(shop: Workshop, queue: str) -> bool:
    return shop.waiting(queue) > 0


def arrived(shop: Workshop, **expected: int) -> None:
    def look() -> None:
        found = counts(shop)
        assert found == expected, f"{found}, expected {expected}"

    eventually(look, 10)


def test_a_task_without_a_route_goes_to_the_default_queue(shop: Workshop) -> None:
    shop.tasks.plain.delay()
    arrived(shop, default=1)


@pytest.mark.parametrize(
    ("task", "queue"),
    [("shop.by_name", "old"), ("shop.images.scale", "images"), ("shop.mail.send", "urgent"), ("shop.post.x", "urgent")],
)
def test_routes_send_by_name_by_pattern_and_by_expression(shop: Workshop, task: str, queue: str) -> None:
    shop.app.send_task(task)
    arrived(shop, **{queue: 1})


def test_a_call_chooses_over_its_route(shop: Workshop) -> None:
    name = shop.project.name
    shop.tasks.by_name.apply_async(queue=f"{name}-images")
    shop.tasks.by_name.apply_async(queue="urgent")
    shop.tasks.by_name.apply_async(exchange=f"{name}-direct", routing_key="large")
    arrived(shop, images=1, urgent=1, large=1)


def test_a_delayed_call_goes_where_one_without_delay_goes(shop: Workshop) -> None:
    # Given two queues that share an exchange, both declared
    readers, archive = (f"{shop.project.name}-{name}" for name in ("readers", "archive"))
    shop.tasks.plain.apply_async(queue=archive)
    shop.tasks.plain.apply_async(queue=readers)
    for queue in (readers, archive):
        # The second call has come to both.
        eventually(partial(is_met, shop, queue))
    eventually(lambda: not any(shop.admin.purge(queue) for queue in (readers, archive)))
    # When a call to one of them waits / Then it is in no work queue
    shop.tasks.plain.apply_async(queue=readers, countdown=1)
    assert counts(shop) == {}
    # And when it is due, its exchange gives it to both
    arrived(shop, readers=1, archive=1)


def test_a_topic_exchange_sends_by_the_words_of_the_key(shop: Workshop) -> None:
    for key in ("image.small", "image.large", "sound.large"):
        shop.tasks.plain.apply_async(exchange=f"{shop.project.name}-media", routing_key=key)
    arrived(shop, images=2, large=2)
    # And a key that no queue wants is an error, not a loss
    with pytest.raises(Unroutable, match=r"sound\.small"):
        shop.tasks.plain.apply_async(exchange=f"{shop.project.name}-media", routing_key="sound.small")


def test_a_fanout_exchange_sends_to_every_queue(shop: Workshop) -> None:
    for _ in range(3):
        shop.tasks.plain.apply_async(exchange=f"{shop.project.name}-news")
    # And the archive keeps no more than its argument says
    arrived(shop, readers=3, archive=2)


def test_a_headers_exchange_sends_by_the_headers_of_the_call(shop: Workshop) -> None:
    papers = f"{shop.project.name}-papers"
    shop.tasks.plain.apply_async(exchange=papers, headers={"kind": "pdf"})
    with pytest.raises(Unroutable):
        shop.tasks.plain.apply_async(exchange=papers, headers={"kind": "txt"})
    arrived(shop, pdf=1)


def test_a_queue_that_is_not_declared_is_refused_where_missing_ones_are_not_made(shop: Workshop) -> None:
    with pytest.raises(QueueNotFound, match=rf"did you mean '{shop.project.name}-images'"):
        shop.tasks.plain.apply_async(queue=f"{shop.project.name}-image")


def test_one_worker_serves_every_declared_queue(shop: Workshop) -> None:
    name = shop.project.name
    worker = shop.start("-c", "1")
    for queue in shop.app.queues:
        assert queue in worker.log
    assert f"exchange={name}-media(topic) key=image.#" in worker.log
    assert "prefetch 2" in worker.log
    # When a task is sent each way / Then it runs, and knows by which exchange and key it came
    ways: list[tuple[Any, dict[str, Any], list[Any]]] = [
        (shop.tasks.plain, {}, ["", f"{name}-default", None]),
        (shop.tasks.by_name, {}, ["", f"{name}-old", 3]),
        (shop.tasks.image, {}, [f"{name}-media", "image.small", None]),
        (shop.tasks.plain, {"exchange": f"{name}-papers", "headers": {"kind": "pdf"}}, [f"{name}-papers", ..., None]),
        (shop.tasks.plain, {"queue": "urgent", "priority": 9}, ["", f"{name}-urgent", 9]),
    ]
    for task, options, expected in ways:
        found = task.apply_async(**options).get(timeout=20)
        assert [one for one, two in zip(found, expected, strict=True) if two is not ... and one != two] == []
    # And the module named in imports was imported
    assert shop.app.send_task("shop.mail.send").get(timeout=20) == ["", f"{name}-urgent", None]
    # And what a fanout sends to two queues runs once for each
    shop.tasks.plain.apply_async(exchange=f"{name}-news", routing_key="twice")
    shop.noted(f"shop.plain {name}-news twice", times=2)
    assert worker.stop() == 0


def test_two_apps_that_declare_a_queue_differently_are_told_apart(shop: Workshop) -> None:
    # Given a queue of one app / When another app declares it as another type
    old = f"{shop.project.name}-old"
    shop.tasks.by_name.delay()
    with App(broker=shop.broker_url, set_as_current=False) as other:
        other.conf.task_queues = [Queue(old, queue_arguments={"x-queue-type": "quorum"})]
        with pytest.raises(TopologyConflict) as caught:
            other.send_task("shop.by_name", queue=old)
        # Then both declarations are shown, and the neighbours are unharmed
        assert "'quorum'" in str(caught.value) and "'classic'" in str(caught.value)
        other.send_task("shop.plain", queue=Queue(f"{shop.project.name}-default"))
    arrived(shop, old=1, default=1)


def test_an_exchange_of_another_type_is_a_conflict_too(shop: Workshop) -> None:
    shop.app.send_task("shop.images.scale")
    with App(broker=shop.broker_url, set_as_current=False) as other:
        media = Exchange(f"{shop.project.name}-media", type="direct")
        other.conf.task_queues = [Queue(f"{shop.project.name}-images", media, "image")]
        with pytest.raises(TopologyConflict, match="direct"):
            other.send_task("anything", queue=f"{shop.project.name}-images")


def test_include_and_imports_are_where_a_worker_finds_its_tasks(
    tmp_path_factory: pytest.TempPathFactory, broker_url: str
) -> None:
    # Given an app whose tasks stand in three modules, named in three ways
    directory = tmp_path_factory.mktemp("include")
    with Workshop(directory, broker_url, "app.include = ('PROJECT_a',)\napp.conf.imports = ['PROJECT_b']") as shop:
        name = shop.project.name
        path = directory / f"{name}.py"
        path.write_text(path.read_text().replace("PROJECT", name))
        for each in "abc":
            (directory / f"{name}_{each}.py").write_text(
                f"from {name} import app\n@app.task\ndef where():\n    return __name__\n"
            )
        shop.start("-c", "1", "-I", f"{name}_c")
        # Then their automatic names are those of their modules, and each runs
        for each in "abc":
            assert shop.app.send_task(f"{name}_{each}.where").get(timeout=20) == f"{name}_{each}"


def test_a_module_that_cannot_be_imported_stops_the_start(
    tmp_path_factory: pytest.TempPathFactory, broker_url: str
) -> None:
    with Workshop(tmp_path_factory.mktemp("missing"), broker_url, "app.conf.imports = ['no_such_module']") as shop:
        worker = shop.start(ready=False, expected_exits=(1, 2))
        worker.wait_for("cannot import 'no_such_module' named in 'imports' or 'include'")
        assert worker.wait() in (1, 2)
        assert "Traceback" not in worker.log
