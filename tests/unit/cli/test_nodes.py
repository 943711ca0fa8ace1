"""Which workers a command line of ``amqptasks multi`` means: Celery's grammar, and what is a mistake in it."""

from __future__ import annotations

import shlex
import signal
import string

import pytest
from celery.apps.multi import MultiParser, NamespacedOptionParser
from hypothesis import given
from hypothesis import strategies as st

from amqptasks.cli.common import CliError
from amqptasks.cli.nodes import Node, Places, nodes_of, read

KNOWN = {"-A": True, "-c": True, "-l": True, "-Q": True, "-P": True, "-D": False, "--pidfile": True, "--logfile": True,
         "-f": True, "--purge": False, "--workdir": True, "--executable": True}  # fmt: skip
HOST = "host.example.com"
PLACES = Places("run/%n.pid", "log/%n%I.log")


def nodes(text: str) -> list[Node]:
    return nodes_of(read(shlex.split(text), KNOWN), PLACES, HOST, {"-A": "-A", "--workdir": "--workdir"})


def options(text: str) -> dict[str, dict[str, str | None]]:
    """What each node is started with, by its short name, apart from its name and places."""
    left_out = {"-n", "--pidfile", "--logfile"}
    return {
        each.name.partition("@")[0]: {key: value for key, value in each.options.items() if key not in left_out}
        for each in nodes(text)
    }


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("3", ["celery1", "celery2", "celery3"]),
        ("2 --range-prefix worker", ["worker1", "worker2"]),
        ("mail images", ["mail", "images"]),
        ("mail images --prefix=p-", ["p-mail", "p-images"]),
        ("2 mail", ["2", "mail"]),
    ],
)
def test_nodes_are_counted_or_named(text: str, names: list[str]) -> None:
    assert [each.name for each in nodes(text)] == [f"{name}@{HOST}" for name in names]


def test_a_host_can_be_given() -> None:
    assert [each.name for each in nodes("foo@%h bar@else baz -n %n.lan")] == [
        f"foo@{HOST}", "bar@else", "baz@host.lan",
    ]  # fmt: skip
    assert nodes("1 --suffix x --hostname y")[0].name == "celery1@x"


def test_options_are_for_all_or_for_some() -> None:
    # Given the example of Celery's manual
    found = options("10 -l INFO -Q:1-3 images,video -Q:4,5 data -Q default -l:4,5 DEBUG -c3")
    # Then each has its own
    assert found["celery1"] == {"-l": "INFO", "-Q": "images,video", "-c": "3"}
    assert found["celery5"] == {"-l": "DEBUG", "-Q": "data", "-c": "3"}
    assert found["celery6"] == {"-l": "INFO", "-Q": "default", "-c": "3"}


def test_of_two_for_one_node_the_later_wins() -> None:
    assert options("3 -c:1-3 1 -c:2 2")["celery2"] == {"-c": "2"}
    assert options("3 -c:2 2 -c:1-3 1")["celery2"] == {"-c": "1"}
    # And what is for all never undoes what is for one
    assert options("3 -c:2 2 -c 1") == {"celery1": {"-c": "1"}, "celery2": {"-c": "2"}, "celery3": {"-c": "1"}}


def test_named_nodes_are_known_by_name_number_and_range() -> None:
    found = options("mail images data -c 1 -c:mail 2 -l:2-3 DEBUG -Q:data@host.example.com x --purge:1")
    assert found == {
        "mail": {"-c": "2", "--purge": None},
        "images": {"-c": "1", "-l": "DEBUG"},
        "data": {"-c": "1", "-l": "DEBUG", "-Q": "x"},
    }


def test_a_value_may_stand_apart_or_attached() -> None:
    for text in ("1 --pidfile=a/%n.pid", "1 --pidfile a/%n.pid", "--pidfile a/%n.pid 1"):
        assert nodes(text)[0].options["--pidfile"] == "a/%n.pid"
    # And what takes no value takes none: Celery would start no node here
    assert options("-D mail") == {"mail": {"-D": None}}


def test_the_command_of_a_node() -> None:
    node = nodes("mail -A proj -c 2 --pidfile=~/%n.pid --workdir /srv -- task_acks_late=yes")[0]
    words = node.words()
    assert words[:6] == ["-m", "amqptasks", "-A", "proj", "--workdir=/srv", "worker"]
    assert words[6:8] == ["--detach", "-c"]
    assert "~" not in node.pidfile
    # The number of a child is the worker's to fill in
    assert "--logfile=log/mail%I.log" in words
    assert words[-2:] == ["--", "task_acks_late=yes"]
    # And a path is taken from where the worker will be
    assert node.logfile == "/srv/log/mail.log"


@pytest.mark.parametrize(
    ("word", "number"), [("-9", signal.SIGKILL), ("-QUIT", signal.SIGQUIT), ("-SIGHUP", signal.SIGHUP)]
)
def test_a_signal_is_an_option(word: str, number: signal.Signals) -> None:
    line = read(["3", word], KNOWN)
    assert line.signal == number and not line.options


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "which nodes?"),
        ("0", "expected a number of nodes from 1 to 1000, got: 0"),
        ("5000", "from 1 to 1000"),
        ("mail mail", "two nodes are called 'mail@host.example.com'"),
        ("2 --pidfle=x", "no option '--pidfle' (did you mean '--pidfile'?)"),
        ("2 -c", "-c needs a value"),
        ("2 -c --purge", "-c needs a value"),
        ("2 --purge=yes", "--purge takes no value"),
        ("2 -c:3 1", "-c:3: there is no node 3, the nodes are 1 to 2"),
        ("2 -c:0 1", "there is no node 0"),
        ("2 -c:3-1 1", "expected a range such as 1-3, got: 3-1"),
        ("mail images -c:mial 1", "there is no node 'mial' (did you mean 'mail'?)"),
        ("2 -c: 1", "expected the nodes behind the colon"),
        ("2 --prefix:1 x", "--prefix is for all nodes"),
        ("2 -99", "there is no signal 99"),
        ("2 --pidfile=w.pid", "would both have"),
    ],
)
def test_mistakes_are_told(text: str, says: str) -> None:
    with pytest.raises(CliError) as caught:
        nodes(text)
    assert says in caught.value.message


def test_a_range_may_be_longer_than_the_nodes() -> None:
    # As in Celery: the same options do for fewer nodes
    assert options("2 -c:1-5 7") == {"celery1": {"-c": "7"}, "celery2": {"-c": "7"}}


# -- against Celery's own


words = st.text(string.ascii_lowercase + string.digits + "._,/", min_size=1, max_size=8)
names = st.lists(st.text(string.ascii_lowercase, min_size=2, max_size=6), min_size=2, max_size=5, unique=True)
members = st.sets(st.integers(1, 5), min_size=1)


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """Command lines that mean the same in both: every option once for all and once for some."""
    named = draw(names | st.none())
    count = len(named) if named else draw(st.integers(1, 5))
    groups: list[list[str]] = [named or [str(count)]]
    for option in draw(st.lists(st.sampled_from(["-c", "-l", "-Q", "-P"]), unique=True)):
        if draw(st.booleans()):
            groups.append([option, draw(words)])
        if draw(st.booleans()):
            chosen = sorted(each for each in draw(members) if each <= count) or [1]
            if named and draw(st.booleans()):
                scope = ",".join(named[each - 1] for each in chosen)
            elif not named and draw(st.booleans()):
                scope = f"{chosen[0]}-{chosen[-1]}"
            else:
                scope = ",".join(map(str, chosen))
            groups.append([f"{option}:{scope}", draw(words)])
    return [word for group in draw(st.permutations(groups)) for word in group]


@given(lines())
def test_celery_means_the_same(line: list[str]) -> None:
    # Given a command line that Celery knows too
    line = [*line, "--pidfile=%n.pid", "--logfile=%n%I.log"]
    # When both read it
    parser = NamespacedOptionParser(line)
    parser.parse()
    theirs = list(MultiParser().parse(parser))
    host = theirs[0].name.partition("@")[2]
    ours = nodes_of(read(line, KNOWN), PLACES, host, {})
    # Then they start the same nodes with the same options
    assert [each.name for each in ours] == [each.name for each in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.options == {key: value for key, value in other.options.items() if key != "--executable"}
        assert mine.expand("%n %d %p").split()[0] == other.expander("%n").split()[0]
