"""One Django project, both kinds of readers and writers: real Celery with django-celery-results beside our stores."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT

PROGRAM = """
import json, sys, warnings
directory, backend = sys.argv[1:]
from django.conf import settings
settings.configure(
    USE_TZ=True, TIME_ZONE="Asia/Tokyo", INSTALLED_APPS=["django_celery_results"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": directory + "/db.sqlite3"}},
    CACHES={"default": {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": directory}},
)
import django
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)

import celery
from celery.app.task import Context
from celery.result import GroupResult as TheirGroup
from amqptasks.app.app import App
from amqptasks.results.handles import AsyncResult, GroupResult
from amqptasks.results.record import ResultRecord

theirs = celery.Celery("theirs", broker="memory://", backend=backend, set_as_current=False)
theirs.conf.update(result_extended=True)
ours = App("ours", backend=backend, set_as_current=False, result_extended=True)
told = {}

# What we store, Celery reads
plain = {"exc_type": "ValueError", "exc_message": ["no", 3], "exc_module": "builtins"}
extra = {"name": "shop.sell", "args": [1, "x"], "kwargs": {"a": 1}, "worker": "w@h"}
ours.backend.store(ResultRecord.now("ok", "STARTED"))
ours.backend.store(ResultRecord.now("ok", "SUCCESS", {"a": [1, None]}, extra=extra, children=[[["child", None], None]]))
ours.backend.store(ResultRecord.now("bad", "FAILURE", plain, traceback="Traceback"))
good, bad = theirs.AsyncResult("ok"), theirs.AsyncResult("bad")
told["celery reads"] = [
    good.get(timeout=5), good.state, good.name or good._get_task_meta().get("task_name"), good.args, good.kwargs,
    good.worker, [each.id for each in good.children], bad.state, repr(bad.get(propagate=False)), bad.traceback,
]

# What Celery stores, we read
request = Context(task="shop.sell", args=[1], kwargs={}, hostname="w@h", _children=[theirs.AsyncResult("child")])
theirs.backend.store_result("their-ok", {"a": [1, None]}, "SUCCESS", request=request)
theirs.backend.store_result("their-bad", KeyError("gone"), "FAILURE", traceback="Traceback", request=request)
good, bad = ours.AsyncResult("their-ok"), ours.AsyncResult("their-bad")
told["we read"] = [
    good.get(timeout=5), good.state, good.name, good.worker, [each.id for each in good.children],
    bad.state, repr(bad.get(propagate=False)), bad.traceback,
]

# Neither overwrites our success, and each forgets what the other stored
ours.backend.store(ResultRecord.now("their-ok", "FAILURE", plain))
told["first"] = ours.AsyncResult("their-ok").state
theirs.AsyncResult("ok").forget()
ours.AsyncResult("their-ok").forget()
told["forgotten"] = [ours.AsyncResult("ok").state, ours.AsyncResult("their-ok").state]

# Groups
GroupResult("g", [AsyncResult("a", app=ours)], app=ours).save()
TheirGroup("h", [theirs.AsyncResult("b")], app=theirs).save()
told["groups"] = [
    [each.id for each in TheirGroup.restore("g", app=theirs).results],
    [each.id for each in GroupResult.restore("h", app=ours).results],
]
print(json.dumps(told))
"""


@pytest.mark.parametrize("backend", ["django-db", "django-cache"])
def test_celery_and_we_share_a_project(backend: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(PROGRAM), str(tmp_path), backend]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    value = {"a": [1, None]}
    assert told == {
        "celery reads": [
            value, "SUCCESS", "shop.sell", [1, "x"], {"a": 1}, "w@h", ["child"], "FAILURE", "ValueError('no', 3)",
            "Traceback",
        ],
        "we read": [value, "SUCCESS", "shop.sell", "w@h", ["child"], "FAILURE", "KeyError('gone')", "Traceback"],
        "first": "SUCCESS",
        "forgotten": ["PENDING", "PENDING"],
        "groups": [["a"], ["b"]],
    }  # fmt: skip
