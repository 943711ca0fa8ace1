"""The commands that workers know, as ``inspect`` and ``control`` take them: names, arguments, what they do.

Those every worker has stand here, so that they can be given to workers of any app, Celery's too, without one. An app's
own are found in its modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from amqptasks.cli.common import CliError, did_you_mean, text_of

__all__ = ["AMONG_WORKERS", "BUILT_IN", "Known", "find", "of_kind"]

#: Commands that are not for people: workers send them to each other.
AMONG_WORKERS: Final = frozenset({"election", "hello"})

Converter = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class Known:
    """A command that workers know.

    Attributes:
        kind: ``inspect`` or ``control``.
        help: What it does, in a line.
        signature: Its arguments, as help shows them; what is in ``<>`` must be given.
        parameters: The arguments by name, in order, and what makes a value of the text that was typed.
        rest: The argument that takes all further ones, as a list.
        least: How many of these must be given.
        timeout_s: How long its answers take, where that is longer than usual. Seconds.
    """

    name: str
    kind: str
    help: str
    signature: str = ""
    parameters: Sequence[tuple[str, Converter | None]] = ()
    rest: str | None = None
    least: int = 0
    timeout_s: float = 0.0

    def arguments(self, typed: Sequence[str]) -> dict[str, Any]:
        """Make the arguments of what was typed.

        Raises:
            CliError: Too few, too many, or one that is not what it should be.
        """
        required = min(self.signature.count("<"), len(self.parameters))
        most = len(self.parameters)
        usage = f"{self.kind} {self.name} {self.signature}".strip()
        if len(typed) < required + self.least:
            raise CliError(f"{self.name} takes more arguments: {usage}")
        if len(typed) > most and not self.rest:
            if not most:
                raise CliError(f"{self.name} takes no arguments, got: {text_of(typed[0])}")
            raise CliError(f"{self.name}: too many arguments, from {text_of(typed[most])}; expected: {usage}")
        made: dict[str, Any] = {}
        for (name, convert), text in zip(self.parameters, typed, strict=False):
            try:
                made[name] = convert(text) if convert is not None else text
            except (ValueError, TypeError) as error:
                wanted = _WANTED.get(convert) or getattr(convert, "__name__", "another value")
                raise CliError(f"{self.name}: {name}: expected {wanted}, got: {text_of(text)}") from error
        if self.rest:
            made[self.rest] = list(typed[most:])
        return made


def truth(text: str) -> bool:
    """Read yes or no, in the words that Celery takes."""
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    try:
        return known[text.lower()]
    except KeyError:
        raise ValueError(text) from None


_WANTED: Mapping[Any, str] = {int: "a whole number", float: "a number", truth: "true or false"}

BUILT_IN: Mapping[str, Known] = {
    each.name: each
    for each in (
        Known("active", "inspect", "The tasks that run."),
        Known("active_queues", "inspect", "The queues that are consumed."),
        Known("clock", "inspect", "The logical clocks."),
        Known(
            "conf", "inspect", "The settings that were made, without secrets.", "[include_defaults=False]",
            (("with_defaults", truth),),
        ),
        Known("memdump", "inspect", "The memory samples.", "[n_samples=10]", (("samples", int),)),
        Known("memsample", "inspect", "Take a sample of the memory used."),
        Known(
            "objgraph", "inspect", "Draw what refers to objects of a type, to find leaks.",
            "[object_type=Request] [num=200 [max_depth=10]]", (("type", str), ("num", int), ("max_depth", int)),
            timeout_s=60.0,
        ),
        Known("ping", "inspect", "Which workers answer."),
        Known("query_task", "inspect", "What is known of tasks.", "[id1 [id2 [... [idN]]]]", rest="ids", least=1),
        Known(
            "registered", "inspect", "The tasks that workers can run.", "[attr1 [attr2 [... [attrN]]]]",
            rest="taskinfoitems",
        ),
        Known("report", "inspect", "Versions and settings, for bug reports."),
        Known("reserved", "inspect", "The tasks that were fetched and have not begun."),
        Known("revoked", "inspect", "The ids of revoked tasks."),
        Known("scheduled", "inspect", "The tasks that wait for their time."),
        Known("stats", "inspect", "Numbers: tasks, pool, broker, process."),
        Known(
            "add_consumer", "control", "Consume a queue too.", "<queue> [exchange [type [routing_key]]]",
            (("queue", str), ("exchange", str), ("exchange_type", str), ("routing_key", str)),
        ),
        Known(
            "autoscale", "control", "Change how many tasks run at once at most and at least.", "[max [min]]",
            (("max", int), ("min", int)),
        ),
        Known("cancel_consumer", "control", "Consume a queue no longer.", "<queue>", (("queue", str),)),
        Known("disable_events", "control", "Tell of tasks no longer."),
        Known("enable_events", "control", "Tell of tasks, for monitors."),
        Known("heartbeat", "control", "Send a heartbeat now."),
        Known("pool_grow", "control", "Let N more tasks run at once.", "[N=1]", (("n", int),)),
        Known("pool_restart", "control", "Replace the processes of the pool."),
        Known("pool_shrink", "control", "Let N fewer tasks run at once.", "[N=1]", (("n", int),)),
        Known(
            "rate_limit", "control", "Change how often tasks of a name begin.",
            "<task_name> <rate_limit (e.g., 5/s | 5/m | 5/h)>", (("task_name", str), ("rate_limit", str)),
        ),
        Known("revoke", "control", "Keep tasks from running.", "[id1 [id2 [... [idN]]]]", rest="task_id", least=1),
        Known(
            "revoke_by_stamped_headers", "control", "Keep the tasks with a stamp from running.",
            "[key1=value1 [key2=value2 [... [keyN=valueN]]]]", rest="headers", least=1,
        ),
        Known("shutdown", "control", "Stop workers; what runs ends first."),
        Known(
            "terminate", "control", "Revoke tasks, and kill those that run.", "<signal> [id1 [id2 [... [idN]]]]",
            (("signal", str),), rest="task_id", least=1,
        ),
        Known(
            "time_limit", "control", "Change the time limits of tasks of a name.",
            "<task_name> <soft_secs> [hard_secs]", (("task_name", str), ("soft", float), ("hard", float)),
        ),
    )
}  # fmt: skip


def of_kind(kind: str, own: Iterable[Known]) -> list[Known]:
    """Return the commands of a kind by their names, an app's own among them."""
    known = {**BUILT_IN, **{each.name: each for each in own}}
    return [known[name] for name in sorted(known) if known[name].kind == kind]


def find(kind: str, name: str, own: Callable[[], Iterable[Known]]) -> Known:
    """Return a command by its name.

    Args:
        own: Finds the app's own commands. Asked only for what is not built in, as it imports the app's modules.

    Raises:
        CliError: There is none, or it is of the other kind.
    """
    found = BUILT_IN.get(name)
    if found is None:
        others = list(own())
        found = next((each for each in others if each.name == name), None)
        if found is None:
            hint = did_you_mean(name, (each.name for each in of_kind(kind, others)))
            raise CliError(f"no {kind} command {name!r}{hint}; amqptasks {kind} --list names all")
    if found.kind != kind:
        raise CliError(f"{name!r} is of the other kind: amqptasks {found.kind} {name}")
    return found
