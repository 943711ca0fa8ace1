"""``amqptasks doctor``: looks whether broker, queues, rights and settings are fit for work."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from amqptasks.cli.common import EXIT_FAILED, Globals, plural
from amqptasks.cli.elements import Command, json_option
from amqptasks.cli.findings import BAD, OK, WARN, Finding, of_address, of_settings, of_version
from amqptasks.exceptions import BrokerUnavailable, ImproperlyConfigured, OperationalError
from amqptasks.wire.reprs import printable

if TYPE_CHECKING:
    from amqptasks.app.app import App
    from amqptasks.broker.parameters import Endpoint
    from amqptasks.broker.probe import Probe
    from amqptasks.broker.topology import DeclareQueue

__all__ = ["doctor"]

#: The broker's clock is told in whole seconds.
SKEW_S = 2.0
#: How long RabbitMQ waits for an ack, unless it is told otherwise.
DELIVERY_TIMEOUT_S = 1800.0
#: Tasks that are named in one line.
SHOWN = 5
COLORS = {OK: "green", WARN: "yellow", BAD: "red"}


@click.command(
    cls=Command, short_help="Check broker, queues, rights and settings.",
    examples=("amqptasks -A proj doctor", "amqptasks -A proj doctor --json"),
)  # fmt: skip
@json_option()
@click.pass_context
def doctor(ctx: click.Context, /, as_json: bool) -> None:
    """Check what a worker would meet: broker and version, alarms, clock, rights, queues, settings.

    Nothing is changed: no queue is made but two of its own, which go with its connection, and no message is taken.
    Each line is ok, warn or bad, with what to do. The exit code is 1 if one is bad.
    """
    obj: Globals = ctx.obj
    app = obj.app()
    if obj.app_name:
        app.import_modules()
    findings: list[Finding] = []

    def add(found: Iterator[Finding]) -> None:
        for each in found:
            findings.append(each)
            if not as_json and not (obj.quiet and each.status == OK):
                _print(each)

    version = _check_brokers(app, add)
    add(of_settings(app, version))
    bad = sum(each.status == BAD for each in findings)
    warned = sum(each.status == WARN for each in findings)
    status = BAD if bad else WARN if warned else OK
    if as_json:
        click.echo(json.dumps({"status": status, "findings": [asdict(each) for each in findings]}, indent=2))
    else:
        obj.say(f"{len(findings)} findings: {bad} bad, {plural(warned, 'warning')}.")
    if bad:
        ctx.exit(EXIT_FAILED)


def _print(finding: Finding) -> None:
    click.echo(f"{click.style(f'{finding.status:<4}', fg=COLORS[finding.status])}  {finding.check}: {finding.text}")
    if finding.remedy:
        for number, line in enumerate(finding.remedy.splitlines()):
            click.echo(f"      {'->' if number == 0 else '  '} {line}")


def _check_brokers(app: App, add: Callable[[Iterator[Finding]], None]) -> tuple[int, ...]:
    """Check each broker that the settings name; returns the version of the first that answers."""
    from amqptasks.broker.probe import Probe

    first: tuple[int, ...] = ()
    is_reached = False
    for endpoint in app.endpoints("doctor"):
        add(of_address(endpoint.parameters, endpoint.label))
        try:
            with Probe((endpoint,)) as probe:
                version = probe.version
                add(iter([Finding("broker", OK, f"{endpoint.label} answers")]))
                add(of_version(version))
                if not is_reached:
                    # The others of a list are the same cluster, or stand in for it.
                    is_reached, first = True, version
                    for check in (_rights, _clock, _queues):
                        add(_told(check, app, probe))
            add(_told(_alarms, app, endpoint))
        except BrokerUnavailable as error:
            reason = str(error).partition(f"{endpoint.label}: ")[2] or str(error)
            add(iter([Finding("broker", BAD, f"{endpoint.label} cannot be reached: {reason}", _unreached(reason))]))
    if is_reached:
        add(_timeout(app, first))
    return first


def _unreached(reason: str) -> str:
    if "ACCESS_REFUSED" in reason or "login" in reason or "vhost" in reason:
        return "mend user, password or virtual host in broker_url; guest may log in from the same machine only"
    if "refused" in reason.lower():
        return "start RabbitMQ there, or mend broker_url"
    return "mend broker_url, or the network between"


def _told(check: Callable[[App, Any], Iterator[Finding]], app: App, argument: Any) -> Iterator[Finding]:
    """Carry out a check; what the broker will not answer is a finding too."""
    try:
        yield from check(app, argument)
    except OperationalError as error:
        yield Finding(check.__name__.strip("_"), BAD, printable(str(error), 500), "see the broker's log")


# -- checks that ask the broker


def _alarms(_app: App, endpoint: Endpoint) -> Iterator[Finding]:
    from amqptasks.broker.confirming import NotPublished
    from amqptasks.broker.probe import Probe

    # A connection of its own: a blocked one is of no other use.
    with Probe((endpoint,)) as probe:
        try:
            reason = probe.alarm()
        except NotPublished as error:
            yield Finding("alarms", WARN, f"unknown: {printable(str(error), 300)}", "see rights")
            return
    if reason is None:
        yield Finding("alarms", OK, "none: the broker takes messages")
        return
    yield Finding(
        "alarms", BAD, f"the broker takes no messages: {printable(reason, 200)}",
        "free memory or disk on the broker's machine; see vm_memory_high_watermark and disk_free_limit",
    )  # fmt: skip


def _rights(app: App, probe: Probe) -> Iterator[Finding]:
    prefix = app.conf.task_queue_prefix
    refused = []
    for right, text in (
        ("configure", probe.may_declare(f"{prefix}.probe.{uuid.uuid4().hex}")),
        # To a queue that is not there: it is about the exchange that most messages go through.
        ("write", probe.may_publish("", f"{prefix}.probe.{uuid.uuid4().hex}")),
    ):  # fmt: skip
        if text is not None:
            refused.append(Finding("rights", BAD, f"{right}: {printable(text, 300)}", _grant(app)))
    yield from refused
    if not refused:
        yield Finding("rights", OK, f"may declare queues of {prefix}.* and publish through amq.default")


def _grant(app: App) -> str:
    prefix = str(app.conf.task_queue_prefix).replace(".", r"\.")
    names = "|".join(each.replace(".", r"\.") for each in app.queues)
    suffix = str(app.conf.task_dead_letter_suffix).replace(".", r"\.")
    ours = rf"{prefix}\..*|({names})({suffix})?"
    return f"rabbitmqctl set_permissions USER '^({ours})$' '^({ours}|amq\\.default)$' '^({ours})$'"


def _clock(app: App, probe: Probe) -> Iterator[Finding]:
    ahead_s = probe.clock_ahead_s(app.conf.task_queue_prefix)
    if ahead_s is None:
        yield Finding("clock", OK, "unknown: the broker told no time")
    elif abs(ahead_s) <= SKEW_S:
        yield Finding("clock", OK, "that of the broker and that of this machine agree, to the second")
    else:
        side = "ahead of" if ahead_s > 0 else "behind"
        yield Finding(
            "clock", WARN, f"the broker's is {abs(ahead_s):.0f} s {side} this machine's",
            "let both follow NTP: eta and expires are moments, compared with the clock of the worker",
        )  # fmt: skip


def _queues(app: App, probe: Probe) -> Iterator[Finding]:
    from amqptasks.broker.topology import DeclareQueue, dead_queue, plan

    conf, version = app.conf, probe.version
    for queue in app.queues.values():
        name = str(getattr(queue, "title", queue.name))
        try:
            steps = plan(queue, default_type=conf.task_default_queue_type, version=version)
            dead = dead_queue(conf, name, version)
        except ImproperlyConfigured as error:
            yield Finding("queues", BAD, str(error), "mend task_queues")
            continue
        declared = next((each for each in steps if isinstance(each, DeclareQueue)), None)
        if declared is None:
            yield Finding("queues", OK, f"{name}: left alone (no_declare)")
        elif not declared.exclusive:
            yield from _allowed(app, _queue(app, probe, declared))
        yield from _allowed(app, _letters(probe, dead))
    yield from _allowed(app, _ladder(app, probe))


def _allowed(app: App, found: Iterator[Finding]) -> Iterator[Finding]:
    """Pass findings on. A queue that may not even be looked at, as RabbitMQ 4.3 has it, is one too."""
    try:
        yield from found
    except OperationalError as error:
        if "ACCESS_REFUSED" not in str(error):
            raise
        yield Finding("rights", BAD, f"look: {printable(str(error), 300)}", _grant(app))


def _ladder(app: App, probe: Probe) -> Iterator[Finding]:
    from amqptasks.broker.topology import DeclareQueue

    ladder = app.sender.ladder
    for step in ladder.steps():
        # One of each: all queues of the ladder are declared together.
        if isinstance(step, DeclareQueue) and step.queue == ladder.queue(0, 1) and probe.counts(step.queue):
            yield from _compared(app, probe, step, Finding("queues", OK, f"{step.queue}: delayed tasks can wait"))
    stranded = probe.counts(ladder.unroutable)
    if stranded and stranded[0]:
        yield Finding(
            "queues", WARN, f"{ladder.unroutable}: {plural(stranded[0], 'delayed task')} whose queue had gone",
            "declare the queue, and move them there",
        )  # fmt: skip


def _queue(app: App, probe: Probe, step: DeclareQueue) -> Iterator[Finding]:
    counts = probe.counts(step.queue)
    if counts is None:
        yield Finding("queues", OK, f"{step.queue}: not there yet; its first worker or sender declares it")
        return
    kind = step.arguments.get("x-queue-type")
    waiting, consumers = counts
    words = f"{step.queue}: {kind}, {plural(waiting, 'message')}, {plural(consumers, 'consumer')}"
    if waiting and not consumers:
        remedy = f"start a worker: amqptasks -A … worker -Q {step.queue}"
        yield from _compared(app, probe, step, Finding("queues", WARN, words, remedy))
    else:
        yield from _compared(app, probe, step, Finding("queues", OK, words))
    refused = probe.may_read(step.queue)
    if refused is not None:
        yield Finding("rights", BAD, f"read: {printable(refused, 300)}", _grant(app))


def _compared(app: App, probe: Probe, step: DeclareQueue, as_declared: Finding) -> Iterator[Finding]:
    """Tell how a queue differs from its declaration here; ``as_declared`` if it does not."""
    from amqptasks.broker.topology import conflict

    difference = probe.differs(step)
    if difference is None:
        yield as_declared
    elif difference[0] == "conflict":
        # What is said first is what differs, then a table, and at last what to do.
        said, _, rest = str(conflict(difference[1], step)).partition("\n")
        yield Finding("queues", BAD, printable(said, 500), rest)
    else:
        yield Finding("rights", BAD, f"configure: {printable(difference[1], 300)}", _grant(app))


def _letters(probe: Probe, dead: DeclareQueue) -> Iterator[Finding]:
    from amqptasks.broker.topology import conflict

    counts = probe.counts(dead.queue)
    if counts is None:
        return
    if counts[0]:
        yield Finding(
            "dead letters", WARN, f"{dead.queue}: {plural(counts[0], 'dead letter')}", "amqptasks -A … dead list"
        )  # fmt: skip
    difference = probe.differs(dead)
    if difference is not None and difference[0] == "conflict":
        # Workers bury there all the same.
        said, _, rest = str(conflict(difference[1], dead)).partition("\n")
        yield Finding("dead letters", WARN, printable(said, 500), rest)


def _timeout(app: App, version: tuple[int, ...]) -> Iterator[Finding]:
    conf = app.conf
    told = "unknown: AMQP does not tell; RabbitMQ's default is 30 minutes"
    what = "consumers are cancelled, of quorum queues alone" if version >= (4, 3) else "channels are closed"
    long = []
    for task in app.tasks.values():
        late = conf.task_acks_late if task.acks_late is None else task.acks_late
        limit = task.time_limit or conf.task_time_limit
        if late and (limit is None or limit > DELIVERY_TIMEOUT_S):
            long.append(f"{printable(task.name, 100)} ({'no time limit' if limit is None else f'{limit:g} s'})")
    if not long:
        yield Finding("consumer_timeout", OK, f"{told}; no task with late acks may take that long")
        return
    more = f" and {len(long) - SHOWN} more" if len(long) > SHOWN else ""
    yield Finding(
        "consumer_timeout", WARN,
        f"{told}. Then {what}, and late-ack tasks delivered again. May take longer: {', '.join(long[:SHOWN])}{more}",
        "rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).' tells it, in milliseconds; raise it, or "
        "give these tasks a time limit below it",
    )  # fmt: skip
