"""Results in a Django project's own database and caches: on the project in ``tests/django_project``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.bookshop import Shop
from tests.support import ROOT

APPS = ["stock.apps.StockConfig", "amqptasks.contrib.django"]
IN_DATABASE = {"INSTALLED_APPS": APPS, "AMQPTASKS_RESULT_BACKEND": "django-db", "AMQPTASKS_RESULT_EXTENDED": True}
CACHE = {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache"}

#: Wait for a state, as a person would who reloads a page.
UNTIL = """
def until(check):
    import threading, time
    deadline = time.monotonic() + 20
    while not check():
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)
"""


@pytest.fixture
def shop(tmp_path: Path, broker_url: str, queue_name: str) -> Iterator[Callable[..., Shop]]:
    """Make the project with these settings."""
    made: list[Shop] = []

    def make(**settings: Any) -> Shop:
        made.append(Shop(tmp_path, broker_url, queue_name, settings))
        return made[-1]

    yield make
    for each in made:
        for process in each.workers:
            process.finish()


@pytest.fixture(scope="module")
def bookshop(tmp_path_factory: pytest.TempPathFactory, broker_url: str, postgres_url: str) -> Iterator[Shop]:
    """The project on a PostgreSQL database of its own, in transactions that repeat their reads, with a worker."""
    server = sa.make_url(postgres_url)
    name = f"bookshop_{uuid.uuid4().hex[:12]}"
    engine = sa.create_engine(
        server.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool
    )
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    database = {
        "ENGINE": "django.db.backends.postgresql", "HOST": server.host, "PORT": server.port, "NAME": name,
        "USER": server.username, "PASSWORD": server.password, "CONN_MAX_AGE": 600,
        # 3, repeatable reads: what MySQL does unless told otherwise.
        "OPTIONS": {"isolation_level": 3},
    }  # fmt: skip
    settings = {**IN_DATABASE, "DATABASES": {"default": database}}
    made = Shop(tmp_path_factory.mktemp("bookshop"), broker_url, f"work-{uuid.uuid4().hex[:12]}", settings)
    made.worker("-c", "2")
    made.workers[0].wait_ready()
    yield made
    for process in made.workers:
        process.finish()
    with engine.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))


def test_a_result_is_a_row_that_any_process_reads(bookshop: Shop) -> None:
    # Given a program that calls a task, and waits for its result
    made = bookshop.program("""
        book = Book.objects.create(title="Emma", copies=1)
        good, bad = tasks.order.delay(book.pk, 2), tasks.order.delay(-1, 2)
        assert good.get(timeout=20) == 3
        bad.get(timeout=20, propagate=False)
        tell([good.id, bad.id])
    """)
    # When another asks for it, by its id and by the model / Then it finds all of it
    told = bookshop.program(f"""
        from amqptasks.contrib.django.models import TaskResult
        good, bad = (app.AsyncResult(each) for each in {made!r})
        row = TaskResult.objects.get(task_id=good.id)
        failed = TaskResult.objects.get(task_id=bad.id)
        tell([
            good.get(timeout=5), good.name, good.args[1], row.status, row.result, row.task_name, str(row),
            bad.state, type(bad.result).__name__, failed.status, "DoesNotExist" in failed.traceback,
        ])
    """)
    name = "stock.tasks.order"
    assert told == [
        3, name, 2, "SUCCESS", "3", name, f"{name} {made[0]} (SUCCESS)", "FAILURE", "DoesNotExist", "FAILURE", True
    ]  # fmt: skip


@pytest.mark.parametrize("fails", [False, True])
def test_a_state_is_seen_before_the_transaction_that_reports_it_ends(bookshop: Shop, fails: bool) -> None:
    # Given a task that reports from within a transaction, and stays there
    gate = bookshop.directory / f"gate-{fails}"
    os.mkfifo(gate)
    told = bookshop.program(
        UNTIL
        + textwrap.dedent(f"""
        before = Book.objects.filter(title="reported").count()
        running = tasks.report.delay({str(gate)!r}, {fails})
        until(lambda: running.state == "PROGRESS")
        seen = [running.info, Book.objects.filter(title="reported").count() - before]
        open({str(gate)!r}, "w").close()
        running.get(timeout=20, propagate=False)
        tell([seen, running.state, Book.objects.filter(title="reported").count() - before])
    """)
    )
    # Then its state could be seen, and what it did could not; and the one is not undone with the other
    assert told == [[{"done": 1}, 0], "FAILURE" if fails else "SUCCESS", 0 if fails else 1]


def test_a_result_is_seen_in_a_transaction_that_repeats_its_reads(bookshop: Shop) -> None:
    # Given a program in a transaction that has begun to read / When it waits for a result / Then it gets it
    told = bookshop.program("""
        from django.db import connection, connections
        book = Book.objects.create(title="Persuasion")
        with transaction.atomic():
            Book.objects.count()
            result = tasks.order.delay(book.pk, 2)
            value = result.get(timeout=20)
            # And its transaction is what it was
            tell([value, Book.objects.get(pk=book.pk).copies, connection.in_atomic_block, len(connections.all(True))])
    """)
    assert told == [2, 0, True, 1]


def test_a_connection_that_broke_is_replaced(bookshop: Shop) -> None:
    told = bookshop.program("""
        from django.db import connection
        result = tasks.connections.delay()
        result.get(timeout=20)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            cursor.execute("SELECT pg_backend_pid()")
        connection.connection.close()
        tell([result.state, tasks.connections.delay().get(timeout=20) is not None])
    """)
    assert told == ["SUCCESS", True]


def test_old_results_are_cleaned_up(bookshop: Shop) -> None:
    told = bookshop.program("""
        from datetime import timedelta
        from django.utils import timezone
        from amqptasks.contrib.django.models import GroupResult, TaskResult
        from amqptasks.results.record import ResultRecord
        for name in ("old", "new"):
            app.backend.store(ResultRecord.now(name, "SUCCESS", 1))
            app.backend.save_group(name, [1])
        for model in (TaskResult, GroupResult):
            key = "task_id" if model is TaskResult else "group_id"
            model.objects.filter(**{key: "old"}).update(date_done=timezone.now() - timedelta(days=2))
        deleted = app.backend.cleanup()
        tell([deleted, app.backend.fetch("old"), app.backend.fetch("new").result, app.backend.fetch_group("old")])
    """)
    assert told == [2, None, 1, None]


def test_a_forked_child_takes_nothing_from_its_parent(bookshop: Shop) -> None:
    # Given a program that has used its store, and keeps the connection / When children of it use theirs
    told = bookshop.program("""
        import os, sys
        from amqptasks.results.record import ResultRecord
        from django.db import connection

        def server():
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                return cursor.fetchone()[0]

        store = app.backend
        store.store(ResultRecord.now("parent", "SUCCESS", 1))
        mine = server()
        codes = []
        for number in range(2):
            child = os.fork()
            if not child:
                assert store.fetch("parent").result == 1
                store.store(ResultRecord.now(f"child-{number}", "SUCCESS", number))
                sys.exit(server() == mine)
            codes.append(os.waitpid(child, 0)[1])
            store.store(ResultRecord.now(f"beside-{number}", "SUCCESS", number))
        tell([codes, store.fetch("child-1").result, store.fetch("beside-1").result, server() == mine])
    """, BOOKSHOP_SETTINGS=json.dumps({**bookshop.settings, "AMQPTASKS_RESULT_BACKEND_MAX_RETRIES": 0}))  # fmt: skip
    # Then each has a connection of its own, and the program keeps its
    assert told == [[0, 0], 1, 1, True]


def test_a_coroutine_reports_and_returns_too(shop: Callable[..., Shop], tmp_path: Path) -> None:
    # Given a worker that runs tasks on an event loop, and a task that reports from there
    made = shop(**IN_DATABASE)
    made.worker("-c", "2", "-P", "asyncio").wait_ready()
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    told = made.program(
        UNTIL
        + textwrap.dedent(f"""
        running = tasks.report_later.delay({str(gate)!r})
        until(lambda: running.state == "PROGRESS")
        info = running.info
        open({str(gate)!r}, "w").write("all")
        ordered = tasks.order.delay(Book.objects.create(title="Emma").pk, 2)
        tell([info, running.get(timeout=20), ordered.get(timeout=20)])
    """)
    )
    # Then its state and its result are stored, and those of other tasks
    assert told == [{"done": 1}, "all", 2]


def test_the_migrations_make_what_the_models_say(bookshop: Shop) -> None:
    done = bookshop.python("manage.py", "makemigrations", "amqptasks", "--check", "--dry-run")
    assert "No changes detected" in done.stdout


def test_results_can_be_looked_at_in_the_admin(shop: Callable[..., Shop]) -> None:
    # Given a project with Django's admin, and a result on SQLite, with dates that have no zone
    middleware = "django.contrib.{0}.middleware.{1}Middleware"
    made = shop(
        **IN_DATABASE | {"INSTALLED_APPS": [
            *APPS, *(f"django.contrib.{each}" for each in ("admin", "auth", "contenttypes", "sessions", "messages"))
        ]},
        USE_TZ=False, ROOT_URLCONF="bookshop.urls", ALLOWED_HOSTS=["testserver"], STATIC_URL="/static/",
        MIDDLEWARE=[
            middleware.format("sessions", "Session"), middleware.format("auth", "Authentication"),
            middleware.format("messages", "Message"),
        ],
        TEMPLATES=[{
            "BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True,
            "OPTIONS": {"context_processors": [
                "django.template.context_processors.request", "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]},
        }],
    )  # fmt: skip
    # When somebody opens the lists, the row, and tries to change it
    told = made.program("""
        from django.contrib.auth.models import User
        from django.test import Client
        from amqptasks.contrib.django.models import TaskResult
        from amqptasks.results.record import ResultRecord
        record = ResultRecord.now("the-id", "SUCCESS", 1, extra={"name": "stock.tasks.order", "args": [1]})
        app.backend.store(record)
        app.backend.save_group("the-group", [1])
        client = Client()
        client.force_login(User.objects.create_superuser("u", "u@example.org", "p"))
        pages = [
            client.get("/admin/amqptasks/taskresult/"),
            client.get("/admin/amqptasks/groupresult/"),
            client.get(f"/admin/amqptasks/taskresult/{TaskResult.objects.get().pk}/change/"),
            client.get("/admin/amqptasks/taskresult/add/"),
        ]
        shown = [b"the-id" in pages[0].content, b"the-group" in pages[1].content, b"<textarea" in pages[2].content]
        tell([[each.status_code for each in pages], shown, app.backend.fetch("the-id") == record])
    """)
    # Then they see it, can change nothing, and it is as it was
    assert told == [[200, 200, 200, 403], [True, True, False], True]


# ---- Caches


def test_a_cache_keeps_results_for_any_process(shop: Callable[..., Shop], tmp_path: Path) -> None:
    # Given a project with a cache of its own for results, and a worker
    made = shop(
        AMQPTASKS_RESULT_BACKEND="django-cache", AMQPTASKS_CACHE_BACKEND="results",
        CACHES={"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"},
                "results": {**CACHE, "LOCATION": str(tmp_path / "cache")}},
    )  # fmt: skip
    made.worker("-c", "2").wait_ready()
    # When a program calls / Then it, and another, get the result, which stands in that cache under Celery's key
    task_id = made.program("""
        book = Book.objects.create(title="Emma", copies=1)
        result = tasks.order.delay(book.pk, 2)
        assert result.get(timeout=20) == 3
        tell(result.id)
    """)
    told = made.program(f"""
        from django.core.cache import caches
        from amqptasks.results.record import ResultRecord
        value = caches["results"].get("celery-task-meta-{task_id}")
        result = app.AsyncResult({task_id!r})
        state = result.state
        result.forget()
        app.backend.store(ResultRecord.now("id with spaces", "SUCCESS", 1))
        tell([value["status"], value["result"], state, result.state, app.backend.fetch("id with spaces").result])
    """)
    assert told == ["SUCCESS", 3, "SUCCESS", "PENDING", 1]


def test_who_replaces_a_value_of_a_cache_keeps_others_out(shop: Callable[..., Shop], tmp_path: Path) -> None:
    # Given somebody who is about to store a success, and has looked already / When a late failure comes in between
    told = shop(
        AMQPTASKS_RESULT_BACKEND="django-cache", CACHES={"default": {**CACHE, "LOCATION": str(tmp_path / "cache")}}
    ).program("""
        import threading
        from django.core.cache.backends.filebased import FileBasedCache
        from amqptasks.results.record import ResultRecord

        refused, really_add = threading.Event(), FileBasedCache.add

        def add(self, key, *args, **kwargs):
            done = really_add(self, key, *args, **kwargs)
            if not done and key.endswith(".lock"):
                refused.set()
            return done

        FileBasedCache.add = add
        store = app.backend
        store.store(ResultRecord.now("id", "STARTED"))
        values, key = store._store(), "celery-task-meta-id"
        with values._locked(values._cache(), key):
            late = threading.Thread(target=store.store, args=(ResultRecord.now("id", "FAILURE"),))
            late.start()
            waited = refused.wait(20)
            values._cache().set(key, ResultRecord.now("id", "SUCCESS", "first").to_plain())
        late.join(20)
        tell([waited, store.fetch("id").result])
    """)
    # Then it waits for its turn, and finds that it comes too late
    assert told == [True, "first"]


# ---- What cannot work


def test_a_worker_says_that_the_tables_are_missing(shop: Callable[..., Shop]) -> None:
    # Given a project that was migrated before it was asked to keep results / When a worker starts / Then it says so
    worker = shop().worker("-c", "1", settings=IN_DATABASE)
    worker.expected_exits = (1, 2)
    worker.wait()
    assert (
        "the table amqptasks_taskresult of the result backend django-db is missing: run 'manage.py migrate amqptasks'"
        in worker.log
    )


def test_whatever_else_is_missing_is_told(shop: Callable[..., Shop]) -> None:
    made = shop()
    source = """
        from amqptasks.exceptions import ImproperlyConfigured
        try:
            app.backend.prepare()
        except ImproperlyConfigured as error:
            tell(str(error))
    """
    for settings, said in (
        ({"AMQPTASKS_RESULT_BACKEND": "django-db"}, "put 'amqptasks.contrib.django' into INSTALLED_APPS"),
        ({"AMQPTASKS_RESULT_BACKEND": "django-cache"}, "no other process sees a LocMemCache"),
        ({"AMQPTASKS_RESULT_BACKEND": "django-cache", "AMQPTASKS_CACHE_BACKEND": "nowhere"},
         "cannot use the cache 'nowhere' (cache_backend)"),
    ):  # fmt: skip
        assert said in made.program(source, BOOKSHOP_SETTINGS=json.dumps(settings))


@pytest.mark.parametrize("backend", ["django-db", "django-cache"])
def test_a_program_that_is_no_django_project_is_told(backend: str) -> None:
    source = f"""
        from amqptasks import App
        from amqptasks.exceptions import ImproperlyConfigured
        try:
            App("plain", backend={backend!r}).backend.fetch("id")
        except ImproperlyConfigured as error:
            print(error)
    """
    environment = {key: value for key, value in os.environ.items() if key != "DJANGO_SETTINGS_MODULE"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=30,
    )  # fmt: skip
    assert f"the result backend {backend} needs a Django project" in done.stdout, done.stderr
