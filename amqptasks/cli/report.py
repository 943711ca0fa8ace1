"""``amqptasks report``: what to put into a bug report."""

from __future__ import annotations

import json
import platform
import textwrap
from typing import Any

import click

from amqptasks._version import __version__
from amqptasks.cli.common import Globals, plain
from amqptasks.cli.elements import Command, json_option
from amqptasks.exceptions import OperationalError

__all__ = ["report"]

LIBRARIES = ("pika", "msgpack", "click", "tenacity", "SQLAlchemy", "redis", "pymongo", "Django", "celery")


@click.command(
    cls=Command, short_help="Show versions and settings, for bug reports.",
    examples=("amqptasks -A proj report", "amqptasks -A proj report --json > report.json"),
)  # fmt: skip
@json_option()
@click.pass_obj
def report(obj: Globals, /, as_json: bool) -> None:
    """Show versions, platform, broker and settings, for bug reports.

    Passwords are hidden. A broker that cannot be reached is part of the report, not an error.
    """
    app = obj.app()
    conf = app.conf
    facts: dict[str, Any] = {
        "software": {"amqptasks": __version__, "python": platform.python_version()} | _versions(),
        "platform": {
            "system": platform.system(),
            "kernel": platform.release(),
            "machine": platform.machine(),
            "implementation": platform.python_implementation(),
        },
        "app": app.main if obj.app_name else None,
        "broker": _broker(obj),
        "results": app.backend.as_uri(),
        "settings": conf.table(),
    }
    if as_json:
        click.echo(json.dumps(facts, indent=2, default=plain))
        return
    for name in ("software", "platform"):
        _line(name, " ".join(f"{key}:{value}" for key, value in facts[name].items()))
    if facts["app"]:
        _line("app", facts["app"])
    for number, line in enumerate(facts["broker"]):
        _line("" if number else "broker", line)
    _line("results", facts["results"])
    click.echo()
    click.echo(conf.humanize() or "(every setting has its default)")


def _line(name: str, text: str) -> None:
    head = f"{name:<8} {'->' if name else '  '} "
    wrapped = textwrap.wrap(text, 78, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False,
                            break_on_hyphens=False)  # fmt: skip
    click.echo("\n".join(wrapped))


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _broker(obj: Globals) -> list[str]:
    """Say of each broker URL what answers there."""
    from amqptasks.broker.admin import Admin

    said = []
    for endpoint in obj.app().endpoints("report"):
        try:
            with Admin((endpoint,)) as admin:
                version = ".".join(map(str, admin.version))
                said.append(f"{endpoint.label}: {f'RabbitMQ {version}' if version else 'not RabbitMQ'}")
        except OperationalError as error:
            reason = str(error).partition(f"{endpoint.label}: ")[2] or str(error)
            said.append(f"{endpoint.label}: cannot be reached ({reason})")
    return said
