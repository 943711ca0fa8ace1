"""Which workers a command line of ``amqptasks multi`` means, and the command line of each; pure, and Celery's grammar.

Words that do not begin with a dash are names of nodes; one whole number alone is that many nodes. An option is for all
nodes, or behind a colon for some: ``-c:1-3 5 -Q:mail,4 x --pidfile:2=p``. What is for some wins over what is for all;
of two that are for the same node, the later.
"""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from amqptasks.cli.common import CliError, did_you_mean, text_of
from amqptasks.logs import expand_path

__all__ = ["CommandLine", "Node", "Places", "nodes_of", "read"]

#: Options of multi's own, each with a value: how nodes are named, and what is run.
OWN = ("--append", "--cmd", "--hostname", "--prefix", "--range-prefix", "--suffix", "-n")
DEFAULT_COMMAND = "-m amqptasks worker --detach"
PROGRAM = "amqptasks"
#: How nodes are called that are only counted: those of Celery, as our one worker is too.
RANGE_PREFIX = "celery"
#: More can only be a slip, such as a forgotten option before a number.
MOST_NODES = 1000

PIDFILE = ("--pidfile",)
LOGFILE = ("--logfile", "-f")


@dataclass(slots=True)
class Given:
    """An option as it was given: for all nodes, or for those that ``scope`` names."""

    name: str
    value: str | None
    scope: str | None = None


@dataclass(slots=True)
class CommandLine:
    """The words behind ``multi start``, sorted."""

    names: list[str] = field(default_factory=list)
    options: list[Given] = field(default_factory=list)
    #: What follows ``--``: settings, handed to every worker.
    rest: list[str] = field(default_factory=list)
    #: ``-KILL``, ``-9``.
    signal: signal.Signals | None = None

    def own(self, *names: str) -> str | None:
        """Return the value of an option of multi's own."""
        found = [each.value for each in self.options if each.name in names]
        return found[-1] if found else None


@dataclass(frozen=True, slots=True)
class Places:
    """Where pidfiles and log files are unless the command line says so."""

    pidfile: str
    logfile: str


@dataclass(slots=True)
class Node:
    """One worker: its name, and the words that start it."""

    name: str
    #: Options of the program, which stand before ``worker``.
    globals: dict[str, str | None]
    options: dict[str, str | None]
    rest: Sequence[str] = ()
    command: str = DEFAULT_COMMAND
    append: str = ""

    def expand(self, template: str) -> str:
        """Fill in what ``%n``, ``%h``, ``%d`` and ``%p`` stand for; ``%i`` and ``%I`` are left to the worker."""
        kept = template.replace("%%", "%%%%").replace("%i", "%%i").replace("%I", "%%I")
        return expand_path(kept, self.name)

    @property
    def pidfile(self) -> str:
        """The path of its pidfile, as the worker makes it."""
        return self._path(PIDFILE)

    @property
    def logfile(self) -> str:
        """The path of its own log file."""
        return self._path(LOGFILE)

    def _path(self, names: tuple[str, ...]) -> str:
        path = next(self.options[name] for name in names if name in self.options) or ""
        directory = os.path.expanduser(self.expand(self.globals.get("--workdir") or ""))
        return os.path.abspath(os.path.join(directory, os.path.expanduser(expand_path(path, self.name))))

    def words(self) -> list[str]:
        """Return what follows the name of the Python that runs it."""
        command = [self.expand(word) for word in shlex.split(self.command)]
        at = command.index(PROGRAM) + 1 if PROGRAM in command else len(command)
        tail = [self.expand(word) for word in shlex.split(self.append)]
        return [*command[:at], *self._formatted(self.globals), *command[at:], *self._formatted(self.options),
                *self.rest, *tail]  # fmt: skip

    def _formatted(self, options: Mapping[str, str | None]) -> Iterator[str]:
        for name, value in options.items():
            if name == "--executable":
                # It is what runs these words.
                continue
            if value is None:
                yield name
                continue
            text = self.expand(value)
            if name in (*PIDFILE, *LOGFILE, "--workdir"):
                # There is no shell between us and the worker that would know of ~.
                text = os.path.expanduser(text)
            if name.startswith("--"):
                yield f"{name}={text}"
            else:
                yield from (name, text)


def read(words: Sequence[str], known: Mapping[str, bool]) -> CommandLine:
    """Sort the words of a command line.

    Args:
        known: The options there are, and whether each takes a value.

    Raises:
        CliError: There is no such option, or it lacks its value.
    """
    line = CommandLine()
    known = {**known, **dict.fromkeys(OWN, True)}
    left = list(words)
    while left:
        word = left.pop(0)
        number = _signal(word)
        if word == "--":
            line.rest = [word, *left]
            break
        if number is not None:
            line.signal = number
        elif word.startswith("-") and word != "-":
            line.options.append(_option(word, left, known))
        elif word:
            line.names.append(word)
    return line


def _signal(word: str) -> signal.Signals | None:
    text = word[1:] if word.startswith("-") and word != "-" else ""
    try:
        if text.isdecimal():
            return signal.Signals(int(text))
        return signal.Signals["SIG" + text.removeprefix("SIG")] if text.isupper() and len(text) > 1 else None
    except (KeyError, ValueError):
        if text.isdecimal():
            raise CliError(f"there is no signal {text}") from None
        return None


def _option(word: str, left: list[str], known: Mapping[str, bool]) -> Given:
    name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
    name, colon, scope = name.partition(":")
    given = value if equals else None
    if name not in known and len(name) > 2 and not name.startswith("--") and known.get(name[:2]):
        # -c3, -lINFO
        name, given = name[:2], word[2:]
        scope = colon = ""
    if name not in known:
        raise CliError(f"no option {name!r}{did_you_mean(name, known)}; see: amqptasks worker --help")
    if colon and not scope:
        raise CliError(f"{word}: expected the nodes behind the colon, such as {name}:1-3 or {name}:mail")
    if known[name] and given is None:
        if not left or (left[0].startswith("-") and left[0] != "-" and not left[0][1:].isdecimal()):
            raise CliError(f"{name} needs a value")
        given = left.pop(0)
    if not known[name] and given is not None:
        raise CliError(f"{name} takes no value, got: {text_of(given)}")
    if colon and name in OWN:
        raise CliError(f"{name} is for all nodes: a node is called by its name, which stands without an option")
    return Given(name, given, scope or None)


def nodes_of(line: CommandLine, places: Places, host: str, global_options: Mapping[str, str]) -> list[Node]:
    """Return the nodes that a command line means, in order.

    Args:
        places: Where pidfiles and log files are without options.
        host: This machine's name.
        global_options: The options that stand before ``worker``, and the one name that each has there.

    Raises:
        CliError: It names no node, one twice, or one in an option that there is not.
    """
    titles = _titles(line, host)
    if not titles:
        raise CliError("which nodes? Give a number of them, or their names; see: amqptasks multi help")
    full = [name for _short, name in titles]
    twice = next((name for name in full if full.count(name) > 1), None)
    if twice:
        raise CliError(f"two nodes are called {twice!r}")
    scoped = [(each, _members(each, titles)) for each in line.options if each.name not in OWN]
    command, append = line.own("--cmd") or DEFAULT_COMMAND, line.own("--append") or ""
    made = []
    for index, (_short, name) in enumerate(titles):
        # What is for some wins over what is for all, wherever it stands.
        own = {each.name: each.value for each, members in scoped if members is None}
        own |= {each.name: each.value for each, members in scoped if members is not None and index in members}
        outer = {global_options[each]: value for each, value in own.items() if each in global_options}
        inner = {each: value for each, value in own.items() if each not in global_options}
        inner["-n"] = name
        if not any(each in inner for each in PIDFILE):
            inner["--pidfile"] = places.pidfile
        if not any(each in inner for each in LOGFILE):
            inner["--logfile"] = places.logfile
        made.append(Node(name, outer, inner, line.rest, command, append))
    _refuse_one_place(made)
    return made


def _refuse_one_place(nodes: Sequence[Node]) -> None:
    taken: dict[str, str] = {}
    for node in nodes:
        other = taken.setdefault(node.pidfile, node.name)
        if other != node.name:
            raise CliError(
                f"--pidfile: {other} and {node.name} would both have {node.pidfile}; write %n for the node's name, "
                f"such as %n.pid"
            )


def _titles(line: CommandLine, host: str) -> list[tuple[str, str]]:
    """Return each node's short name, by which options know it, and its full name."""
    suffix = line.own("--suffix") or line.own("-n", "--hostname") or host
    suffix = _filled("" if suffix in ('""', "''") else suffix, host)
    names, prefix = line.names, line.own("--prefix") or ""
    if len(names) == 1 and names[0].isdecimal():
        count = int(names[0])
        if not 1 <= count <= MOST_NODES:
            raise CliError(f"expected a number of nodes from 1 to {MOST_NODES}, got: {names[0]}")
        names, prefix = [str(number) for number in range(1, count + 1)], line.own("--range-prefix") or RANGE_PREFIX
    titles = []
    for name in names:
        if "@" in name:
            full = _filled(name, host)
            titles.append((full.partition("@")[0], full))
        else:
            titles.append((name, _filled(f"{prefix}{name}@{suffix}", host)))
    return titles


def _filled(text: str, host: str) -> str:
    name, _, domain = host.partition(".")
    for letter, value in (("%h", host), ("%n", name), ("%d", domain)):
        text = text.replace(letter, value)
    return text


def _members(option: Given, titles: Sequence[tuple[str, str]]) -> frozenset[int] | None:
    """Return the places, from 0, of the nodes that an option is for; None if it is for all."""
    if option.scope is None:
        return None
    found: set[int] = set()
    for part in option.scope.split(","):
        found |= _places_of(option, part.strip(), titles)
    return frozenset(found)


def _places_of(option: Given, part: str, titles: Sequence[tuple[str, str]]) -> set[int]:
    named = {at for at, title in enumerate(titles) if part in title}
    if named:
        return named
    first, dash, last = part.partition("-")
    if dash and first.isdecimal() and last.isdecimal():
        if int(first) < 1 or int(last) < int(first):
            raise CliError(f"{option.name}:{option.scope}: expected a range such as 1-3, got: {part}")
        # What is past the last node is let pass, as in Celery: the same options then do for fewer nodes.
        found = set(range(int(first) - 1, min(int(last), len(titles))))
    else:
        found = {int(part) - 1} & set(range(len(titles))) if part.isdecimal() else set()
    if not found:
        if part[:1].isdecimal():
            count = len(titles)
            raise CliError(f"{option.name}:{option.scope}: there is no node {part}, the nodes are 1 to {count}")
        near = did_you_mean(part, [each for title in titles for each in title])
        raise CliError(f"{option.name}:{option.scope}: there is no node {part!r}{near}")
    return found
