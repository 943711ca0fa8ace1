import asyncio
import os
from pathlib import Path

from django.db import connection, transaction
from django.db.backends.signals import connection_created
from django.db.models import F
from django.dispatch import receiver

from amqptasks import shared_task, signals
from stock.models import Book

opened_by = []


@receiver(connection_created)
def on_connection(**kwargs):
    opened_by.append(os.getpid())


@signals.worker_init.connect
def look_before_the_fork(**kwargs):
    # A project that asks its database while a worker starts: the children must not inherit this connection.
    if os.environ.get("BOOKSHOP_LOOKS_EARLY"):
        Book.objects.count()


@shared_task
def order(pk, copies):
    """Read a book and write it."""
    Book.objects.filter(pk=pk).update(copies=F("copies") + copies)
    return Book.objects.get(pk=pk).copies


@shared_task
def connections():
    """Tell which process opened the connection that a query here uses, how many this one has opened, and who we are."""
    Book.objects.count()
    return {"pid": os.getpid(), "opener": opened_by[-1], "opened": opened_by.count(os.getpid())}


@shared_task
def leave_open():
    """Ask the database, and tell whether a connection was there already when the task began."""
    was_open = connection.connection is not None
    Book.objects.count()
    return was_open


@shared_task
def queries():
    """Count the queries that Django remembers, this task's own among them."""
    Book.objects.count()
    return len([each for each in connection.queries if "COUNT" in each["sql"]])


@shared_task(bind=True)
def report(self, gate, fails):
    """Report from within a transaction, stay in it until somebody opens the gate, and undo it if asked to."""
    with transaction.atomic():
        Book.objects.create(title="reported")
        self.update_state(state="PROGRESS", meta={"done": 1})
        with open(gate) as opened:
            opened.read()
        if fails:
            raise ValueError("undone")
    return "all"


@shared_task(bind=True)
async def report_later(self, gate):
    """Report from the event loop, where Django's synchronous parts refuse to work, and stay until the gate opens."""
    self.update_state(state="PROGRESS", meta={"done": 1})
    return await asyncio.to_thread(Path(gate).read_text)
