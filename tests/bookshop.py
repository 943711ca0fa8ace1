"""A Django project for tests, `tests/django_project`, with a database and a queue of its own: programs and workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from tests.support import ROOT, WorkerProcess

PROJECT = ROOT / "tests" / "django_project"

#: What every program begins with: `tell` prints what the test gets back.
HEAD = """
import json, django
from bookshop import app
django.setup()
from django.db import transaction
from amqptasks import signals
from stock import tasks
from stock.models import Book

def tell(value):
    print(json.dumps(value))
"""


class Shop:
    """The project with a database and a queue of its own."""

    def __init__(self, directory: Path, broker_url: str, queue: str, settings: dict[str, Any] | None = None) -> None:
        self.directory, self.queue = directory, queue
        self.workers: list[WorkerProcess] = []
        self.environment = os.environ | {
            "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1",
            "DJANGO_SETTINGS_MODULE": "bookshop.settings", "BOOKSHOP_DATABASE": str(directory / "db.sqlite3"),
            "AMQPTASKS_BROKER_URL": broker_url, "AMQPTASKS_TASK_DEFAULT_QUEUE": queue,
        }  # fmt: skip
        self.settings = settings or {}
        self.environment["BOOKSHOP_SETTINGS"] = json.dumps(self.settings)
        self.python("manage.py", "migrate", "-v", "0")

    def python(self, *arguments: str, expected_exit: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=PROJECT, env=self.environment | environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert done.returncode == expected_exit, done.stdout + done.stderr
        return done

    def program(self, source: str, **environment: str) -> Any:
        """Run a program of the project, as a view would, and return what it tells last."""
        done = self.python("-c", HEAD + textwrap.dedent(source), **environment)
        return json.loads(done.stdout.splitlines()[-1])

    def worker(self, *arguments: str, settings: dict[str, Any] | None = None, **environment: str) -> WorkerProcess:
        node = f"shop{len(self.workers)}@{self.queue}"
        command = [sys.executable, "-m", "amqptasks", "-A", "bookshop", "worker", "-l", "INFO", "-n", node, *arguments]
        # The project's own celery.py names the settings: a worker is started without the variable.
        env = {key: value for key, value in self.environment.items() if key != "DJANGO_SETTINGS_MODULE"}
        env |= {"BOOKSHOP_SETTINGS": json.dumps({**self.settings, **(settings or {})})} | environment
        log = self.directory / f"worker-{len(self.workers)}.log"
        self.workers.append(WorkerProcess(command, directory=PROJECT, log=log, env=env))
        return self.workers[-1]
