"""What the document this project grew from shows of periodic tasks: its entry, its fields, its three commands."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

from tests.beats import BeatShop, leads
from tests.command import Shell
from tests.support import eventually

TASKS = """
    from datetime import timedelta
    from amqptasks.schedules import crontab, schedule

    @app.task
    def add(x, y):
        note(f"{x} + {y} = {x + y}")
        return x + y

    class TwiceAsOften(schedule):
        def is_due(self, last_run_at):
            due, _next = super().is_due(last_run_at)
            return due, self.seconds / 2

    app.conf.beat_schedule = {
        # Executes every Monday morning at 7:30 a.m.
        'add-every-monday-morning': {
            'task': 'tasks.add',
            'schedule': crontab(hour=7, minute=30, day_of_week=1),
            'args': (16, 16),
        },
        'seconds': {'task': 'tasks.add', 'schedule': 1, 'args': [1, 1]},
        'timedelta': {'task': 'tasks.add', 'schedule': timedelta(seconds=1), 'kwargs': {'x': 2, 'y': 2}},
        'relative': {'task': 'tasks.add', 'schedule': timedelta(seconds=1), 'relative': True, 'args': (3, 3)},
        'options': {
            'task': 'tasks.add', 'schedule': 1.0, 'args': (4, 4),
            'options': {'exchange': '', 'routing_key': QUEUE, 'expires': 60},
        },
        'of my own': {'task': 'tasks.add', 'schedule': TwiceAsOften(1.0), 'args': (5, 5)},
    }
"""


def test_the_documents_schedule_runs_as_it_is_written(tmp_path: Path, broker_url: str) -> None:
    with BeatShop(tmp_path, broker_url, TASKS, name="tasks") as shop:
        shell = Shell(tmp_path)
        # When a worker is started with beat in it, as the document does
        worker = shop.start("-B", "-c", "1", "-s", "celerybeat-schedule")
        # Then everything that is due every second runs
        for number in range(1, 6):
            eventually(lambda n=number: shop.ledger().count(f"{n} + {n} = {2 * n}") >= 2, 20.0)
        # And the crontab comes next on a Monday at 7:30, with its arguments
        show = ("-A", "tasks", "schedule", "show", "add-every-monday-morning", "--json")
        found = json.loads(shell(*show, "--timeout", "20").stdout)
        moment = datetime.fromisoformat(found["next_run"])
        assert (moment.isoweekday(), moment.hour, moment.minute) == (1, 7, 30) and found["args"] == [16, 16]
        # When it is its time, or somebody says so / Then it runs
        shell("-A", "tasks", "schedule", "run", "add-every-monday-morning")
        shop.noted("16 + 16 = 32")
        # When beat runs by itself, with its file elsewhere / Then it stands by, and goes on when the worker stops
        (tmp_path / "var").mkdir()
        beat = shop.beat("-s", "var/celerybeat-schedule")
        beat.wait_for("Standing by")
        worker.stop()
        leads(beat)
        assert (tmp_path / "celerybeat-schedule").exists()
        beat.stop()
        assert (tmp_path / "var" / "celerybeat-schedule").exists()
