"""Django's result stores, for the conformance suite.

Django has one configuration for a process, so they are asked in a process of their own: see
``tests/conformance/test_django_backends.py``.
"""

from __future__ import annotations

import atexit
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from amqptasks.results.backend import ResultBackend
from amqptasks.results.django_cache import DjangoCacheBackend
from amqptasks.results.django_db import DjangoDatabaseBackend

#: Which database the tables are in: one of `DATABASES`.
CURRENT = ["default"]


class Router:
    """Sends everything to the database that is being tested."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return CURRENT[0]

    db_for_write = db_for_read


def configure() -> None:
    """Be a Django project with two databases and a cache. Safe twice."""
    from django.conf import settings

    if settings.configured:
        return
    import django
    import sqlalchemy as sa
    from django.core.management import call_command
    from django.db import connections

    directory = tempfile.TemporaryDirectory(prefix="amqptasks-django-")
    server = sa.make_url(os.environ["AMQPTASKS_TEST_POSTGRES_URL"])
    name = f"django_{uuid.uuid4().hex[:12]}"
    engine = sa.create_engine(
        server.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool
    )
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    settings.configure(
        USE_TZ=True,
        TIME_ZONE="Europe/Berlin",
        INSTALLED_APPS=["amqptasks.contrib.django"],
        DATABASE_ROUTERS=["tests.django_subjects.Router"],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": f"{directory.name}/db.sqlite3",
                "OPTIONS": {"timeout": 20},
            },
            "postgresql": {
                "ENGINE": "django.db.backends.postgresql", "HOST": server.host, "PORT": server.port, "NAME": name,
                "USER": server.username, "PASSWORD": server.password,
            },
        },
        CACHES={
            "default": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "results_cache"},
        },
    )  # fmt: skip
    django.setup()
    for alias in ("default", "postgresql"):
        CURRENT[0] = alias
        call_command("migrate", database=alias, verbosity=0)
        call_command("createcachetable", database=alias, verbosity=0)

    @atexit.register
    def clean_up() -> None:
        connections.close_all()
        with engine.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
        directory.cleanup()


@contextmanager
def made_by(make: Callable[[], ResultBackend], alias: str) -> Iterator[tuple[ResultBackend, Callable[[], Any]]]:
    """Make a backend, and as many others like it as another process would."""
    configure()
    from django.db import connections

    CURRENT[0] = alias
    made: list[ResultBackend] = []

    def another() -> ResultBackend:
        made.append(make())
        return made[-1]

    yield another(), another
    for each in made:
        each.close()
    connections.close_all()


BACKENDS: dict[str, tuple[Callable[[], ResultBackend], str]] = {
    "django-db-sqlite": (DjangoDatabaseBackend, "default"),
    "django-db-postgresql": (DjangoDatabaseBackend, "postgresql"),
    "django-cache-db": (DjangoCacheBackend, "postgresql"),
}
