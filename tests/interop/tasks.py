"""Tasks that run under real Celery and under amqptasks alike, and the two apps that carry them.

A worker of either kind finds its app here: ``celery -A tests.interop.tasks:celery_app``, ``amqptasks -A
tests.interop.tasks:our_app``. What differs between two runs comes by the environment.
"""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery

from amqptasks import App


class Refused(Exception):
    """An error of the project's own."""


FLAKY: dict[str, Any] = {
    "autoretry_for": (Refused,), "retry_backoff": True, "retry_backoff_max": 1, "retry_jitter": True, "max_retries": 2,
}  # fmt: skip


def settings(broker_url: str, queue: str, queue_type: str) -> dict[str, Any]:
    """The settings that both kinds of app understand, and must be given alike to share queues."""
    return {
        "broker_url": broker_url,
        "result_backend": os.environ.get("INTEROP_BACKEND", "rpc://"),
        "task_default_queue": queue,
        "task_default_queue_type": queue_type,
        "task_create_missing_queue_type": queue_type,
        "accept_content": ["json", "msgpack"],
    }


def register(app: Any) -> Any:
    """Give an app the tasks, under the same names for both kinds."""
    app.task(name="interop.add")(add)
    app.task(name="interop.total")(total)
    app.task(name="interop.echo")(echo)
    app.task(name="interop.refuse")(refuse)
    app.task(name="interop.raises")(raises)
    app.task(name="interop.write")(write)
    app.task(name="interop.write_quietly", ignore_result=True)(write)
    app.task(name="interop.where", bind=True)(where)
    app.task(name="interop.request", bind=True)(request)
    app.task(name="interop.stamps", bind=True)(stamps)
    app.task(name="interop.become", bind=True)(become)
    app.task(name="interop.grow", bind=True)(grow)
    app.task(name="interop.now")(now)
    app.task(name="interop.report", bind=True)(report)
    app.task(name="interop.wait", track_started=True)(wait)
    app.task(name="interop.second_time", bind=True)(second_time)
    app.task(name="interop.hop", bind=True, max_retries=9)(hop)
    app.task(name="interop.flaky", bind=True, **FLAKY)(flaky)
    app.task(name="interop.on_error_id")(on_error_id)
    app.task(name="interop.on_error_full")(on_error_full)
    app.task(name="interop.on_error_bound", bind=True)(on_error_bound)
    return app


def add(x: Any, y: Any) -> Any:
    return x + y


def total(numbers: list[Any]) -> Any:
    return sum(numbers)


def echo(*args: Any, **kwargs: Any) -> Any:
    return [list(args), kwargs]


def refuse(*args: Any) -> None:
    raise Refused(*args)


def raises(kind: str, *args: Any) -> None:
    raise {"ValueError": ValueError, "KeyError": KeyError, "ZeroDivisionError": ZeroDivisionError}[kind](*args)


def write(text: Any, path: str) -> Any:
    """Append a line to a file; the text comes first, so that a call before it can give it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{text}\n".encode())
    os.close(descriptor)
    return text


def where(self: Any, trail: list[str]) -> list[str]:
    """Add which kind of worker this is."""
    return [*trail, "celery" if isinstance(self.app, Celery) else "amqptasks"]


def request(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Tell how the call looks from within."""
    own = self.request
    fields = (
        "id", "task", "root_id", "parent_id", "group", "group_index", "retries", "shadow", "correlation_id", "reply_to",
        "expires", "eta", "timelimit", "ignore_result", "origin", "headers", "args", "kwargs", "called_directly",
        "argsrepr", "kwargsrepr",
    )  # fmt: skip
    told = {name: getattr(own, name, "<no such field>") for name in fields}
    told["priority"] = own.delivery_info["priority"]
    told["routing_key"] = own.delivery_info["routing_key"]
    told["tenant"] = getattr(own, "tenant", None)
    return told


def stamps(self: Any, *args: Any) -> dict[str, Any]:
    """Tell how the call is stamped."""
    own = self.request
    return {name: own.stamps[name] for name in own.stamped_headers}


def become(self: Any, call: Any) -> Any:
    """Become another call."""
    return self.replace(self.app.signature(call))


def grow(self: Any, call: Any) -> str:
    """Add a call to the chord that this one is a part of."""
    self.add_to_chord(self.app.signature(call))
    return "grown"


def now() -> float:
    return time.time()


def report(self: Any, gate: str) -> str:
    """Report a state of its own, then stay until the gate, a named pipe, is opened."""
    self.update_state(state="HALFWAY", meta={"done": 1, "of": 2})
    return wait(gate)


def wait(gate: str) -> str:
    with open(gate) as opened:
        return opened.read()


def second_time(self: Any, gate: str) -> str:
    """Ask for another try at first, and then wait at the gate."""
    if self.request.retries == 0:
        raise self.retry(exc=Refused("not yet"), countdown=0, max_retries=1)
    return wait(gate)


def hop(self: Any, trail: list[Any], route: list[str | None], countdown: float) -> list[Any]:
    """Be tried again along a route of queues; None stands for the queue it is in. Tell where it has been."""
    own = self.request
    kind = "celery" if isinstance(self.app, Celery) else "amqptasks"
    tenant = (own.headers or {}).get("tenant")
    trail = [*trail, [kind, own.retries, own.id, own.root_id, tenant, own.delivery_info["priority"]]]
    if not route:
        return trail
    queue, *rest = route
    raise self.retry(args=(trail, rest, countdown), queue=queue, countdown=countdown, exc=Refused("on"))


def flaky(self: Any, times: int) -> int:
    """Fail so often, and be tried again by itself."""
    retries: int = self.request.retries
    if retries < times:
        raise Refused(retries)
    return retries


def on_error_id(task_id: str, path: str) -> None:
    write(f"id {task_id}", path)


def on_error_full(request: Any, error: BaseException, traceback: str, path: str) -> None:
    write(f"full {request.id} {error!r} {'refuse' in traceback}", path)


def on_error_bound(self: Any, task_id: str, path: str) -> None:
    write(f"bound {task_id} {self.name}", path)


def __getattr__(name: str) -> Any:
    # Made when a worker asks for it: the tests that import this module have their apps by other means.
    if name not in ("celery_app", "our_app"):
        raise AttributeError(name)
    kind = Celery if name == "celery_app" else App
    app = register(kind("interop"))
    app.task(name="interop.only_celery" if kind is Celery else "interop.only_amqptasks")(write)
    app.conf.update(settings(*(os.environ[f"INTEROP_{key}"] for key in ("BROKER", "QUEUE", "QUEUE_TYPE"))))
    if kind is App:
        app.conf.chord_join = os.environ.get("INTEROP_CHORD_JOIN", "broker")
    globals()[name] = app
    return app
