"""``amqptasks health``: says by a worker's health file whether it is well. For probes: it imports no app, and asks no
broker."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import click

from amqptasks.cli.elements import Command, json_option

__all__ = ["address", "health"]

#: As in `amqptasks.cli.common`, which would be another import for a probe.
EXIT_FAILED = 1
EXIT_UNAVAILABLE = 69

#: No health file is longer than this, bytes.
MAX_BYTES = 65_536


def address(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, int] | None:
    """Read ``[HOST:]PORT``; a click callback. Without a host it is this machine's own."""
    if value is None:
        return None
    host, colon, port = value.rpartition(":")
    if not port.isdecimal() or int(port) > 65535 or (colon and not host):
        raise click.BadParameter(f"expected PORT or HOST:PORT, such as 8080 or 0.0.0.0:8080, got: {value!r}")
    return host.strip("[]") or "127.0.0.1", int(port)


@click.command(
    cls=Command, short_help="Say whether a worker is well.",
    examples=(
        "amqptasks health --file /run/proj/health",
        "amqptasks health --file /run/proj/health --max-age 60",
    ),
)  # fmt: skip
@click.option("--file", "path", metavar="FILE", help="What the worker got as --health-file.")
@click.option(
    "--max-age", type=click.FloatRange(min=1), metavar="SECONDS", default=15.0, show_default=True,
    help="The worker is not well if the file is older.",
)  # fmt: skip
@json_option()
@click.pass_context
def health(ctx: click.Context, /, path: str | None, max_age: float, as_json: bool) -> None:
    """Say by its health file whether a worker is well.

    A worker writes that file every second while it has its broker and consumes its queues. The exit code is 0 if it is
    well, 1 if the file is too old, 69 if there is none: the worker is not ready yet, or has ended.
    """
    if path is None:
        raise click.UsageError("which worker? Give the file that it got as --health-file: --file FILE", ctx)
    try:
        with open(path, "rb") as opened:
            written_at = os.fstat(opened.fileno()).st_mtime
            found = _read(opened.read(MAX_BYTES))
    except OSError as error:
        if as_json:
            click.echo(json.dumps({"ok": False, "error": f"no health file {path!r}: {error.strerror}"}))
        else:
            click.echo(f"Error: no health file {path!r}: {error.strerror}; no worker is ready there", err=True)
        ctx.exit(EXIT_UNAVAILABLE)
    age_s = max(0.0, time.time() - written_at)
    is_well = age_s <= max_age
    if as_json:
        click.echo(json.dumps({"ok": is_well, "age": round(age_s, 3), **found}))
    else:
        state = f"{found.get('node', 'unknown node')}: {found.get('state', 'unknown state')}"
        if is_well:
            click.echo(f"{state}, {age_s:.0f} s ago")
        else:
            click.echo(
                f"Error: {state} {age_s:.0f} s ago, and nothing since: it hangs, was killed, or has no broker", err=True
            )
    ctx.exit(0 if is_well else EXIT_FAILED)


def _read(content: bytes) -> dict[str, Any]:
    """Return what stands in the file, as far as it is what a worker writes."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
