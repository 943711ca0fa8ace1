"""Which backend a URL, a name, a path or a class makes, and what is said to one that makes none."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery.backends.filesystem import FilesystemBackend

from amqptasks.app.app import App
from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.results.backend import DisabledBackend, ResultBackend
from amqptasks.results.database import DatabaseBackend
from amqptasks.results.memory import MemoryBackend
from amqptasks.results.rpc import RpcBackend
from tests.support import ROOT


class Own(MemoryBackend):
    """A user's own backend."""

    def __init__(self, url: str, app: Any) -> None:
        super().__init__()
        self.url = url
        self.app = app


class Unwilling(MemoryBackend):
    """One that takes what Celery's take."""

    def __init__(self, app: Any = None, *, url: str = "") -> None:
        super().__init__()


class CelerysOwn(FilesystemBackend):  # type: ignore[misc]
    """A user's own backend for Celery."""


class Nothing:
    """Something else."""


def not_a_backend(url: str, app: Any) -> dict[str, Any]:
    return {}


@pytest.fixture
def backend() -> Callable[..., ResultBackend]:
    """Make the backend of an app with these settings."""

    def make(setting: Any, **settings: Any) -> ResultBackend:
        return App("registry", set_as_current=False, result_backend=setting, **settings).backend

    return make


@pytest.mark.parametrize(
    ("setting", "kind", "uri"),
    [
        (None, DisabledBackend, "disabled://"),
        ("disabled", DisabledBackend, "disabled://"),
        ("disabled://", DisabledBackend, "disabled://"),
        ("rpc://", RpcBackend, "rpc://"),
        ("rpc", RpcBackend, "rpc://"),
        ("memory://", MemoryBackend, "memory://"),
        ("cache+memory://", MemoryBackend, "memory://"),
        ("db+sqlite:///results.db", DatabaseBackend, "db+sqlite:///results.db"),
        ("database+sqlite:///results.db", DatabaseBackend, "db+sqlite:///results.db"),
        ("db+postgresql+psycopg://me:pw@host/x", DatabaseBackend, "db+postgresql+psycopg://me:***@host/x"),
    ],
)
def test_a_url_names_its_backend(backend: Any, setting: Any, kind: type, uri: str) -> None:
    made = backend(setting)
    assert type(made) is kind
    assert made.as_uri() == uri


def test_the_database_can_have_a_setting_of_its_own(backend: Any) -> None:
    for setting in ("database", "db"):
        assert backend(setting, database_url="sqlite:///own.db").as_uri() == "db+sqlite:///own.db"
    with pytest.raises(ImproperlyConfigured, match="needs database_url"):
        backend("database")


@pytest.mark.parametrize(
    ("setting", "url"),
    [
        (f"{__name__}:Own", ""),
        (f"{__name__}.Own", ""),
        (f"{__name__}:Own+redis://host", "redis://host"),
        (f"{__name__}.Own://host", f"{__name__}.Own://host"),
    ],
)
def test_a_path_names_a_class_of_ones_own(backend: Any, setting: str, url: str) -> None:
    # Given this module under its name
    sys.modules.setdefault(__name__, sys.modules[Own.__module__])
    made = backend(setting)
    assert type(made) is Own
    assert made.url == url
    assert made.app.conf.result_backend == setting


def test_a_class_or_a_backend_can_be_given_itself(backend: Any) -> None:
    assert type(backend(Own)) is Own
    ready = MemoryBackend()
    assert backend(ready) is ready


def test_names_can_be_overridden_and_added(backend: Any) -> None:
    overrides = {"rpc": Own, "mine": f"{__name__}:Own"}
    assert type(backend("rpc://", override_backends=overrides)) is Own
    assert backend("mine://host", override_backends=overrides).url == "mine://host"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with two backends, as pip would leave it."""
    (tmp_path / "their_store.py").write_text(
        "from amqptasks.results.memory import MemoryBackend\n"
        "class Theirs(MemoryBackend):\n"
        "    def __init__(self, url, app):\n"
        "        super().__init__()\n"
        "        self.url = url\n"
    )
    info = tmp_path / "their_store-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-store\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[amqptasks.result_backends]\n"
        "theirs = their_store:Theirs\nbroken = their_store:Missing\nrpc = their_store:Theirs\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_backend_that_is_installed_is_found(backend: Any, installed: None) -> None:
    made = backend("theirs://host")
    assert type(made).__name__ == "Theirs"
    assert made.url == "theirs://host"
    # And one that cannot be loaded says what is installed
    with pytest.raises(
        ImproperlyConfigured, match="'broken' is installed as 'their_store:Missing' and cannot be loaded"
    ):
        backend("broken://")
    # And nothing that is installed takes the place of what comes with us
    assert type(backend("rpc://")) is RpcBackend


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("rcp://", "unknown result backend 'rcp://': did you mean 'rpc'?"),
        ("databse", "did you mean 'database'?"),
        ("thiers://", "did you mean 'theirs'?"),
        ("couchdb://me:secret@host", "unknown result backend 'couchdb://me:***@host': expected one of"),
        (
            "no.such.module:Class",
            "path such as 'package.module:name' that can be imported, got: 'no.such.module:Class'",
        ),
        ("amqptasks.results.memory:Missing", "got: 'amqptasks.results.memory:Missing'"),
        (f"{__name__}:not_a_backend", "to be a subclass of amqptasks.results.backend.ResultBackend, got: dict"),
        (f"{__name__}:Nothing", "to be a subclass of amqptasks.results.backend.ResultBackend"),
        (f"{__name__}:CelerysOwn", "Celery's backends speak to Celery's app, and cannot be used here"),
        (f"{__name__}:Unwilling", "to be made with its URL and the app, as Unwilling(url, app): too many positional"),
        ("amqptasks.results.polled:StoreBackend+x://", "lacks as_uri, may_pass, open"),
        ("cache+couchbase://host", "cache+memory://, or one of the two in cache_backend, got: cache+couchbase://host"),
        ("db+sqlite://", "a database in memory, which no other process sees: name a file"),
        ("db+sqlite:///:memory:", "a database in memory"),
        ("db+sqlite", "unknown result backend 'db+sqlite': did you mean 'db'?"),
        ("db+://", "expected an SQLAlchemy URL such as sqlite:///results.db"),
    ],
)
def test_what_names_no_backend_is_told_what_would(backend: Any, installed: None, setting: str, said: str) -> None:
    sys.modules.setdefault(__name__, sys.modules[Own.__module__])
    with pytest.raises(ImproperlyConfigured) as caught:
        backend(setting)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "settings", "said"),
    [
        ("db+sqlite:///{0}", {"database_engine_options": {"no_such": 1}}, "database_engine_options.*no_such"),
        ("db+nosuch://host/x", {}, "SQLAlchemy refuses the result backend db\\+nosuch://host/x"),
        ("db+mysql://me:secret@host/x", {}, "needs a driver that is not installed.*MySQLdb"),
        (
            "db+sqlite:///{0}",
            {"database_table_names": {"tasks": "x"}},
            "expected database_table_names to map 'task' and",
        ),
        ("db+sqlite:///{0}", {"database_table_schemas": {"task": 1}}, "expected database_table_schemas to map"),
        ("db+sqlite:///{0}", {"database_engine_callback": "no.such"}, "expected database_engine_callback to be a path"),
    ],
)
def test_what_no_database_can_be_opened_with_says_so(
    backend: Any, tmp_path: Path, url: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ImproperlyConfigured, match=said) as caught:
        backend(url.format(tmp_path / "x.db"), **settings).fetch("id")
    assert "secret" not in str(caught.value)


def test_compression_where_nothing_is_compressed_is_warned_of(backend: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        backend("memory://", result_compression="gzip")
    assert "result_compression has no effect on the result backend memory://" in caplog.text
    caplog.clear()
    backend("db+sqlite:///x.db", result_compression="gzip")
    assert not caplog.records


def test_sqlalchemy_is_asked_for_where_it_is_missing_and_imported_only_where_it_is_used() -> None:
    # Given a Python without any package, When a program makes an app with a database / Then it is told what to install
    program = (
        "import sys\nfrom amqptasks.app.app import App\n"
        "from amqptasks.exceptions import ImproperlyConfigured\n"
        "try:\n    App('x', backend='db+sqlite:///x.db').backend\n"
        "except ImproperlyConfigured as error:\n    print(error)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, env=environment)
    assert "needs SQLAlchemy: pip install 'amqptasks[sqlalchemy]'" in done.stdout, done.stderr
    # And with it, an app that has not stored or read anything has not imported it
    program = (
        "import sys\nfrom amqptasks.app.app import App\n"
        "backend = App('x', backend='db+sqlite:///x.db').backend\n"
        "backend.expect('id'); backend.unexpect('id'); backend.as_uri(); backend.close()\n"
        "print('sqlalchemy' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout == "False\n", done.stderr
