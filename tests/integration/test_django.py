"""A real worker on a real Django project: ``tests/django_project``."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bookshop import Shop
from tests.support import ROOT, eventually

#: A look at what is sent, as the message leaves.
SENT = """
sent = []

@signals.before_task_publish.connect
def on_send(headers=None, **kwargs):
    sent.append(headers)
"""


@pytest.fixture
def shop(tmp_path: Path, broker_url: str, queue_name: str) -> Iterator[Shop]:
    made = Shop(tmp_path, broker_url, queue_name)
    yield made
    for process in made.workers:
        process.finish()


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_task_reads_and_writes_a_model(shop: Shop, pool: str) -> None:
    # Given a worker on the project, and a book
    shop.worker("-c", "2", "-P", pool).wait_ready()
    # When a program orders copies of it, in a task found in the tasks.py of an installed app
    copies = shop.program("""
        book = Book.objects.create(title="Emma", copies=1)
        answers = sorted(tasks.order.delay(book.pk, 2).get(timeout=15) for _ in range(3))
        book.refresh_from_db()
        tell([answers, book.copies])
    """)
    # Then each run has read and written the row, and the program sees what they wrote
    assert copies == [[3, 5, 7], 7]


def test_a_send_on_commit_waits_for_the_commit(shop: Shop) -> None:
    # Given a worker, and a program that creates a book and orders copies in one transaction
    shop.worker("-c", "1").wait_ready()
    sent = shop.program(
        SENT
        + textwrap.dedent("""
        counts = []
        with transaction.atomic():
            book = Book.objects.create(title="Persuasion")
            tasks.order.delay_on_commit(book.pk, copies=2)
            tasks.order.apply_async_on_commit((book.pk, 3), countdown=0)
            counts.append(len(sent))
        counts.append(len(sent))
        tell([counts, [headers["kwargsrepr"] for headers in sent], book.pk])
    """)
    )
    # Then nothing leaves before the commit, both calls leave after it, and the worker finds the row
    assert sent[:2] == [[0, 2], ["{'copies': 2}", "{}"]]
    look = f"tell(Book.objects.get(pk={sent[2]}).copies)"
    assert eventually(lambda: shop.program(look) == 5, within_s=15, every_s=0.2)


def test_a_send_on_commit_is_forgotten_with_a_rollback(shop: Shop) -> None:
    # Given a program whose transaction fails, whole or in part
    told = shop.program(
        SENT
        + textwrap.dedent("""
        try:
            with transaction.atomic():
                tasks.order.delay_on_commit(1, 1)
                raise KeyError
        except KeyError:
            pass
        with transaction.atomic():
            tasks.order.delay_on_commit(2, 2)
            try:
                with transaction.atomic():
                    tasks.order.delay_on_commit(3, 3)
                    raise KeyError
            except KeyError:
                pass
        tasks.order.delay_on_commit(4, 4)
        tell([headers["argsrepr"] for headers in sent])
    """)
    )
    # Then nothing of what was undone is sent; what was committed is, and so is a call outside of any transaction
    assert told == ["(2, 2)", "(4, 4)"]


def test_wrong_arguments_are_refused_before_the_commit(shop: Shop) -> None:
    # Given a transaction / When a call in it cannot be right
    told = shop.program("""
        try:
            with transaction.atomic():
                Book.objects.create(title="Emma")
                tasks.order.delay_on_commit(1)
        except TypeError as error:
            tell([str(error), Book.objects.count()])
    """)
    # Then the error comes there, not when it is too late to undo anything
    assert "copies" in told[0]
    assert told[1] == 0


@pytest.mark.parametrize(("max_age", "opened"), [("0", [1, 2, 3]), ("600", [1, 1, 1])])
def test_connections_live_as_long_as_django_says(shop: Shop, max_age: str, opened: list[int]) -> None:
    # Given a worker with one child / When tasks use the database, one after the other
    shop.worker("-c", "1", BOOKSHOP_CONN_MAX_AGE=max_age).wait_ready()
    told = shop.program("tell([tasks.connections.delay().get(timeout=15)['opened'] for _ in range(3)])")
    # Then each opens a connection of its own without CONN_MAX_AGE, and they share one with it
    assert told == opened


def test_a_child_does_not_use_its_parents_connection(shop: Shop) -> None:
    # Given a worker whose parent process opens a connection that lives, before it forks
    shop.worker("-c", "1", BOOKSHOP_CONN_MAX_AGE="600", BOOKSHOP_LOOKS_EARLY="1").wait_ready()
    # When a child uses the database
    told = shop.program("tell([tasks.leave_open.delay().get(timeout=15), tasks.connections.delay().get(timeout=15)])")
    # Then it does so over a connection of its own
    assert told[0] is False
    assert told[1]["opener"] == told[1]["pid"]


def test_a_query_log_does_not_grow(shop: Shop) -> None:
    # Given a worker of a project with DEBUG, where Django keeps the text of every query
    shop.worker("-c", "1", settings={"DEBUG": True}, BOOKSHOP_CONN_MAX_AGE="600").wait_ready()
    # When tasks run one after the other
    told = shop.program("tell([tasks.queries.delay().get(timeout=15) for _ in range(3)])")
    # Then each sees its own queries alone
    assert told[1] == told[2] == 1


def test_moments_without_a_zone_are_in_the_projects(shop: Shop) -> None:
    # Given a project whose TIME_ZONE is Berlin / When a call is sent for a naive moment in summer
    told = shop.program(
        SENT
        + textwrap.dedent("""
        from datetime import datetime
        tasks.connections.apply_async(expires=datetime(2090, 7, 1, 12, 0))
        tell([str(app.timezone), sent[0]["expires"]])
    """)
    )
    # Then the message names the moment that was meant
    assert told[0] == "Europe/Berlin"
    assert told[1].startswith("2090-07-01T10:00:00") or told[1].startswith("2090-07-01T12:00:00+02:00")


def test_a_setting_of_our_own_beats_the_projects_zone(shop: Shop) -> None:
    zone = shop.program("tell(str(app.timezone))", BOOKSHOP_SETTINGS='{"AMQPTASKS_TIMEZONE": "Asia/Tokyo"}')
    assert zone == "Asia/Tokyo"


def test_a_misspelt_name_in_the_settings_is_refused(shop: Shop) -> None:
    # Given a slip among Django's settings / When a worker starts
    worker = shop.worker(settings={"AMQPTASKS_TASK_ROUTS": {}, "TASK_ROUTS": {}, "CELERY_BROKER_URL": "amqp://h"})
    worker.expected_exits = (2,)
    # Then it says which name is wrong and which was meant; names of others are theirs
    assert worker.wait() == 2
    assert "did you mean 'task_routes'?" in worker.log
    assert "AMQPTASKS_TASK_ROUTS" in worker.log


def test_a_worker_speaks_whatever_the_project_says_of_logging(shop: Shop) -> None:
    # Given a project whose LOGGING disables every logger there is, and sends the rest nowhere
    worker = shop.worker("-c", "1")
    # When a worker runs a task / Then its log tells of it as ever
    worker.wait_ready()
    shop.program("tell(tasks.connections.delay().get(timeout=15))")
    worker.wait_for(r"Task stock\.tasks\.connections\[.*\] succeeded")


def test_a_project_that_django_finds_faulty_is_told_of(shop: Shop) -> None:
    # Given a project with a fault that Django's system check finds / When a worker starts / Then its log says so
    worker = shop.worker("-c", "1", settings={"LANGUAGE_CODE": "not a language"})
    worker.wait_ready()
    assert "Django's system check: ?: (translation.E001)" in worker.log


def test_other_apps_do_not_touch_django() -> None:
    # Given a program that has nothing to do with Django / When it imports its tasks, and sends one on commit
    source = """
        import sys
        from amqptasks import App
        app = App("plain")
        app.import_modules()
        print("django" in sys.modules)
        app.task(name="plain.add")(lambda x: x).delay_on_commit(1)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    # Then Django is not loaded, and the error says why the send cannot wait
    assert done.stdout.strip() == "False"
    assert "task 'plain.add' waits for Django's transaction to end, and this is no Django project" in done.stderr
