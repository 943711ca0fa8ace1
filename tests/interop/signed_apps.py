"""Apps of both kinds that sign what they send, for worker and client processes; as a program, a client.

Signing is set up for a whole process, in Celery as in amqptasks: so each side has a process of its own.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import celery

import amqptasks


def settings() -> dict[str, Any]:
    directory, name = os.environ["SIGNED_DIRECTORY"], os.environ["SIGNED_NAME"]
    return {
        "broker_url": os.environ["SIGNED_BROKER"], "result_backend": "rpc://", "task_serializer": "auth",
        "result_serializer": "auth", "event_serializer": "auth", "accept_content": ["auth"],
        "security_key": f"{directory}/{name}.key", "security_certificate": f"{directory}/{name}.crt",
        "security_cert_store": f"{directory}/store/*", "task_default_queue": os.environ["SIGNED_QUEUE"],
        "broker_connection_retry_on_startup": True,
    }  # fmt: skip


def register(app: Any) -> Any:
    app.conf.update(settings())
    app.setup_security(serializer=os.environ.get("SIGNED_SERIALIZER", "json"))

    app.task(name="signed.add")(add)
    app.task(name="signed.second_time", bind=True)(second_time)
    app.task(name="signed.refuse")(refuse)
    return app


def add(x: Any, y: Any) -> Any:
    return x + y


def second_time(self: Any) -> int:
    if self.request.retries == 0:
        raise self.retry(countdown=0)
    return int(self.request.retries)


def refuse() -> None:
    raise KeyError("signed")


def celery_app() -> Any:
    return register(celery.Celery("signed"))


def our_app() -> Any:
    # As Celery declares it.
    return register(amqptasks.App("signed", task_default_queue_type="classic"))


KINDS = {"celery": celery_app, "amqptasks": our_app}


def call(app: Any) -> dict[str, Any]:
    """Call the tasks, and tell what came of it."""
    add, refuse = app.tasks["signed.add"], app.tasks["signed.refuse"]
    told: dict[str, Any] = {"sum": add.delay(2, 3).get(timeout=20)}
    told["chain"] = (add.s(1, 1) | add.s(5)).apply_async().get(timeout=20)
    told["gzip"] = len(add.apply_async(("x" * 5000, "y"), compression="gzip").get(timeout=20))
    told["delayed"] = add.apply_async((1, 1), countdown=0.2).get(timeout=20)
    told["retried"] = app.tasks["signed.second_time"].delay().get(timeout=20)
    told["error"] = repr(refuse.delay().get(timeout=20, propagate=False))
    return told


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(name)
    made = globals()["app"] = KINDS[os.environ["SIGNED_KIND"]]()
    return made


if __name__ == "__main__":
    client = KINDS[os.environ["SIGNED_KIND"]]()
    json.dump(call(client), sys.stdout)
    sys.stdout.flush()
    client.close()
    # Celery's connections are left to the garbage collector, which has nothing to add here.
    os._exit(0)
