"""What ``amqptasks upgrade`` makes of sources that use Celery: imports, names, settings, and what it says of others."""

from __future__ import annotations

import ast
import textwrap

import pytest
from celery.app.defaults import _TO_NEW_KEY
from hypothesis import given
from hypothesis import strategies as st

from amqptasks.cli import rewriting_settings
from amqptasks.cli.rewriting import Source, imports
from amqptasks.settings_names import name_of_old
from amqptasks.settings_table import SETTINGS


def rewrite(text: str) -> tuple[str, list[str]]:
    """Rewrite imports and app.conf; return the text, and the remarks with their lines."""
    source = Source(textwrap.dedent(text))
    imports(source)
    rewriting_settings.conf_uses(source)
    return source.rewritten(), [f"{each.line}: {each.text}" for each in sorted(source.remarks)]


def rewrite_settings(text: str, namespace: str = "") -> tuple[str, list[str]]:
    source = Source(textwrap.dedent(text))
    rewriting_settings.settings(source, namespace=namespace)
    return source.rewritten(), [f"{each.line}: {each.text}" for each in sorted(source.remarks)]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("from celery import Celery, shared_task", "from amqptasks import Celery, shared_task"),
        (
            "from celery import chain, group, chord, signature as s",
            "from amqptasks import chain, group, chord, signature as s",
        ),
        ("from celery.schedules import crontab", "from amqptasks.schedules import crontab"),
        ("from celery.utils.log import get_task_logger", "from amqptasks.utils.log import get_task_logger"),
        ("from celery.result import AsyncResult", "from amqptasks.result import AsyncResult"),
        ("from celery.signals import task_success", "from amqptasks.signals import task_success"),
        ("from celery.exceptions import Ignore, Reject", "from amqptasks.exceptions import Ignore, Reject"),
        ("from celery.states import SUCCESS", "from amqptasks.states import SUCCESS"),
        ("from celery.canvas import Signature", "from amqptasks.canvas import Signature"),
        ("from celery import states, signals", "from amqptasks import states, signals"),
        ("from celery.app.task import Task", "from amqptasks import Task"),
        ("from celery.task import task", "from amqptasks import shared_task as task"),
        ("from celery import subtask as s", "from amqptasks import signature as s"),
        ("from kombu import Queue, Exchange, binding", "from amqptasks import Queue, Exchange, binding"),
        ("from kombu.common import Broadcast", "from amqptasks import Broadcast"),
        ("from kombu.exceptions import OperationalError", "from amqptasks.exceptions import OperationalError"),
        ("from billiard.exceptions import TimeLimitExceeded", "from amqptasks.exceptions import TimeLimitExceeded"),
        # Comments and layout stay
        (
            "from celery import (  # a\n    Celery,  # b\n    group,\n)",
            "from amqptasks import (  # a\n    Celery,  # b\n    group,\n)",
        ),
        ("from  celery \\\n  import Celery", "from  amqptasks \\\n  import Celery"),
        ("if True:\n    from celery import Celery; x = 1\n", "if True:\n    from amqptasks import Celery; x = 1\n"),
        ("t = 'ä'; from celery import Celery\n", "t = 'ä'; from amqptasks import Celery\n"),
        # Modules, and what is reached through them
        ("import celery\nclass T(celery.Task): pass", "import amqptasks\nclass T(amqptasks.Task): pass"),
        ("import celery as c\nc.chain()", "import amqptasks as c\nc.chain()"),
        (
            "import celery.schedules\nx = celery.schedules.crontab()",
            "import amqptasks.schedules\nx = amqptasks.schedules.crontab()",
        ),
        (
            "import os, celery  # c\ncelery.chain(a, celery.group(b))",
            "import os, amqptasks  # c\namqptasks.chain(a, amqptasks.group(b))",
        ),
        ("import celery\ncelery.states.SUCCESS", "import amqptasks.states\namqptasks.states.SUCCESS"),
        ("import kombu\nkombu.Queue('x')", "import amqptasks\namqptasks.Queue('x')"),
        (
            "import celery.utils.log as log\nlog.get_task_logger('x')",
            "import amqptasks.utils.log as log\nlog.get_task_logger('x')",
        ),
        # What is the project's own stays
        ("from .celery import app", "from .celery import app"),
        ("from proj.celery import app\nimport proj.celery", "from proj.celery import app\nimport proj.celery"),
        ("x = 'from celery import Celery'  # import celery", "x = 'from celery import Celery'  # import celery"),
    ],
)
def test_imports_are_rewritten_where_they_stand(before: str, after: str) -> None:
    assert rewrite(before) == (after, [])
    # And once more changes nothing
    assert rewrite(after) == (after, [])


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (
            "from celery import Celery, bootsteps",
            "from amqptasks import Celery\nfrom celery import bootsteps",
            "1: celery.bootsteps has no counterpart: a worker has no bootsteps",
        ),
        (
            "def f():\n    from kombu import Connection, Queue",
            "def f():\n    from kombu import Connection\n    from amqptasks import Queue",
            "2: kombu.Connection has no counterpart",
        ),
        ("from celery import *", None, "1: celery.* has no counterpart"),
        ("import celery\ncelery.Celery()\ncelery.bugreport()", None, "3: celery.bugreport has no counterpart"),
        ("import celery\nx = celery", None, "2: celery has no counterpart"),
        ("import celery\ndef f(celery): celery.x", None, "1: the name 'celery' is also bound to something else here"),
        ("import celery.bootsteps as b", None, "1: celery.bootsteps has no counterpart: a worker has no bootsteps"),
        ("import django_celery_beat", None, "1: django_celery_beat has no counterpart: not there"),
        (
            "from celery.contrib.abortable import AbortableTask",
            None,
            "1: celery.contrib.abortable.AbortableTask has no counterpart: revoke",
        ),
    ],
)
def test_what_has_no_counterpart_is_left_and_named(before: str, after: str | None, says: str) -> None:
    text, remarks = rewrite(before)
    assert text == (before if after is None else after)
    assert any(each.startswith(says) for each in remarks), remarks


def test_settings_of_a_module_get_todays_names() -> None:
    text, remarks = rewrite_settings(
        """
        BROKER_URL = 'amqp://'  # the broker
        CELERYD_CONCURRENCY: int = 2
        task_acks_late = True
        if CELERYD_CONCURRENCY > 1:
            CELERY_TASK_RESULT_EXPIRES = CELERYD_CONCURRENCY * 60
        class Test:
            CELERY_ALWAYS_EAGER = True
        OTHER = 1
        """
    )
    assert text == textwrap.dedent(
        """
        broker_url = 'amqp://'  # the broker
        worker_concurrency: int = 2
        task_acks_late = True
        if worker_concurrency > 1:
            result_expires = worker_concurrency * 60
        class Test:
            task_always_eager = True
        OTHER = 1
        """
    )
    assert [each for each in remarks if "result_expires" not in each] == []
    # And once more changes nothing
    assert rewrite_settings(text)[0] == text


def test_settings_of_django_keep_their_namespace() -> None:
    text, remarks = rewrite_settings(
        """
        TIME_ZONE = "UTC"
        DATABASE_URL = "x"
        BROKER_URL = "amqp://"
        CELERY_ALWAYS_EAGER = False
        CELERY_TASK_TRACK_STARTED = True
        CELERY_NONSENSE = 1
        """,
        "CELERY",
    )
    expected = """
        TIME_ZONE = "UTC" DATABASE_URL = "x" CELERY_BROKER_URL = "amqp://" CELERY_TASK_ALWAYS_EAGER = False
        CELERY_TASK_TRACK_STARTED = True CELERY_NONSENSE = 1
    """
    assert text.split() == expected.split()
    assert remarks == ["7: unknown setting 'nonsense'"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("BROKER_URL = 'redis://x'", "1: BROKER_URL (now broker_url): RabbitMQ is the only broker"),
        ("result_backend = 's3://x'", "1: result_backend: there is no result store s3"),
        ("worker_pool = 'gevent'", "1: worker_pool: there is no pool 'gevent'; asyncio or threads"),
        ("broker_pool_limit = 10", "1: broker_pool_limit does nothing"),
        ("task_protocol = 2", "1: task_protocol does nothing here"),
        ("task_acks_lat = True", "1: unknown setting 'task_acks_lat' (did you mean 'task_acks_late'?)"),
        ("s3_bucket = 'x'", "1: setting 's3_bucket' belongs to a result store"),
        ("worker_prefetch_multiplier = 'x'", "1: expected worker_prefetch_multiplier to be a whole number"),
        ("CELERY_QUEUES = ()\ntask_queues = ()", "1: CELERY_QUEUES is task_queues today, which is set here too"),
    ],
)
def test_a_setting_that_is_meant_otherwise_is_named(text: str, says: str) -> None:
    _text, remarks = rewrite_settings(text)
    assert any(each.startswith(says) for each in remarks), remarks


def test_settings_in_the_app_are_found() -> None:
    text, remarks = rewrite(
        """
        app = Celery("x", broker="redis://x")
        app.conf.CELERY_TIMEZONE = "UTC"
        app.conf["CELERY_ACKS_LATE"] = True
        app.conf.update(CELERY_TASK_SERIALIZER="json", task_ignore_resul=True)
        self.app.conf.update({'CELERYD_CONCURRENCY': 2, "task_track_started": "perhaps"})
        print(app.conf.CELERY_TIMEZONE, app.conf.broker_url, other.CELERY_TIMEZONE)
        """
    )
    assert text == textwrap.dedent(
        """
        app = Celery("x", broker="redis://x")
        app.conf.timezone = "UTC"
        app.conf["task_acks_late"] = True
        app.conf.update(task_serializer="json", task_ignore_resul=True)
        self.app.conf.update({'worker_concurrency': 2, "task_track_started": "perhaps"})
        print(app.conf.timezone, app.conf.broker_url, other.CELERY_TIMEZONE)
        """
    )
    assert [each.partition(",")[0] for each in remarks] == [
        "2: broker: RabbitMQ is the only broker",
        "5: unknown setting 'task_ignore_resul' (did you mean 'task_ignore_result'?)",
        "6: expected task_track_started to be True or False",
    ]


def test_every_old_name_of_celerys_is_known() -> None:
    # Given Celery's own table of old names / When each is asked for / Then today's is the same, if it is here at all
    old = {key: value for key, value in _TO_NEW_KEY.items() if key.isupper() and value in SETTINGS}
    assert {key: name_of_old(key) for key in old} == old
    assert len(old) > 100


@given(st.lists(st.sampled_from([
    "from celery import Celery, group as g", "import celery", "celery.chain(a)", "x = '''\ncelery\n'''", "# celery",
    "BROKER_URL = 'amqp://'", "if x:\n\tfrom kombu import Queue, Connection", "from celery.task import task; y = 1",
    "ä = celery.group(ö)", "app.conf.CELERY_ACKS_LATE = 1",
])), st.sampled_from(["\n", "\r\n"]))  # fmt: skip
def test_what_is_rewritten_is_python_and_stays_as_it_is(lines: list[str], end: str) -> None:
    # Given any mixture of lines
    text = end.join(each.replace("\n", end) for each in lines)

    def act(text: str) -> str:
        source = Source(text)
        imports(source)
        rewriting_settings.settings(source)
        rewriting_settings.conf_uses(source)
        return source.rewritten()

    # When it is rewritten / Then it is Python, comments and texts are what they were, and once more changes nothing
    once = act(text)
    ast.parse(once)
    assert once.count("# celery") == text.count("# celery") and once.count("'''") == text.count("'''")
    assert act(once) == once
